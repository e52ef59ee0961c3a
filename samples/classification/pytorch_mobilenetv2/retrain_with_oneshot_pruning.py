"""Prunes MobileNetV2 at once, and retrains it; writes oneshot_pruned_mobilenetv2.pth and .onnx."""

import torch
from mobilenetv2 import MobileNetV2, arguments, images, report, save
from torch.nn.functional import cross_entropy

from onnxdrp.compat.drpai_compaction_tool.pytorch import (
    Pruner,
    get_model_info,
    make_pruning_layer_list,
)

args = arguments(__doc__, retrain=True)
torch.manual_seed(0)
train, test = images(args.data)

model = MobileNetV2()
model.load_state_dict(torch.load(args.pretrained_weight))
report(model, test)
optimizer = torch.optim.SGD(model.parameters(), args.lr, momentum=0.9, weight_decay=5e-4)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.max_epochs)

pruning_layer_list = make_pruning_layer_list(model, [(2, 3, 32, 32)])
pruner = Pruner(model, pruning_layer_list, final_pr=args.pruning_rate)
print(get_model_info(model, [(2, 3, 32, 32)]).to_string())

for epoch in range(args.max_epochs):
    model.train()
    for x, y in train:
        pruner.update()
        loss = cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    schedule.step()
    print(f"epoch {epoch + 1}: loss {loss.item():.3f}")

report(model, test)
save(model, "oneshot_pruned_mobilenetv2")
