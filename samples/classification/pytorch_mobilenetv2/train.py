"""Trains MobileNetV2; writes pretrained_mobilenetv2.pth and .onnx."""

import torch
from mobilenetv2 import MobileNetV2, arguments, images, report, save
from torch.nn.functional import cross_entropy

args = arguments(__doc__)
torch.manual_seed(0)
train, test = images(args.data)

model = MobileNetV2()
optimizer = torch.optim.SGD(model.parameters(), args.lr, momentum=0.9, weight_decay=5e-4)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.max_epochs)

for epoch in range(args.max_epochs):
    model.train()
    for x, y in train:
        loss = cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    schedule.step()
    print(f"epoch {epoch + 1}: loss {loss.item():.3f}")

report(model, test)
save(model, "pretrained_mobilenetv2")
