"""Trains the CNN; writes pretrained_cnn.keras and pretrained_cnn.onnx."""

import keras
from cnn import BATCH, arguments, cnn, compiled, export, images, report

args = arguments(__doc__)
keras.utils.set_random_seed(0)
(x, y), test = images(args.data)

model = compiled(cnn(x.shape[1:], classes=int(y.max()) + 1), args.lr)
model.fit(x, y, batch_size=BATCH, epochs=args.max_epochs, verbose=2)

report(model, test)
model.save("pretrained_cnn.keras")
export(model, "pretrained_cnn.onnx")
