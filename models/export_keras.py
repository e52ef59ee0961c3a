"""Builds the network of train.py in Keras, gives it the trained weights and writes modB.onnx.

    python models/export_keras.py weights.npz modB.onnx

The result takes NHWC and computes the same logits. It needs tensorflow-cpu, keras and tf2onnx.
"""

import argparse
from pathlib import Path

import keras
import numpy as np
import onnx
from keras import KerasTensor, layers

SIZE = 32
EPSILON = 1e-5  # PyTorch's; Keras has 1e-3
OPSET = 13

Weights = dict[str, np.ndarray]


def conv_bn(x: KerasTensor, weights: Weights, name: str, stride: int = 1) -> KerasTensor:
    """Adds the ConvBn `name`.

    Padding is a layer of its own: with stride 2, Keras' "same" pads only below and to the right.
    """
    kernel = weights[f"{name}.conv.weight"].transpose(2, 3, 1, 0)  # OIHW to HWIO
    label = name.replace(".", "_")
    size = kernel.shape[0]
    if stride > 1 and size > 1:
        x = layers.ZeroPadding2D(size // 2, name=f"{label}_pad")(x)
    padding = "same" if stride == 1 else "valid"
    conv = layers.Conv2D(
        kernel.shape[3], size, stride, padding, use_bias=False, name=f"{label}_conv"
    )
    norm = layers.BatchNormalization(epsilon=EPSILON, name=f"{label}_bn")
    x = norm(conv(x))
    conv.set_weights([kernel])
    parts = ("weight", "bias", "running_mean", "running_var")
    norm.set_weights([weights[f"{name}.bn.{part}"] for part in parts])
    return x


def block(x: KerasTensor, weights: Weights, name: str) -> KerasTensor:
    """Adds the residual block `name`; it halves the image where it widens it."""
    stride = 2 if f"{name}.shortcut.conv.weight" in weights else 1
    label = name.replace(".", "_")
    y = layers.ReLU(name=f"{label}_relu1")(conv_bn(x, weights, f"{name}.first", stride))
    y = conv_bn(y, weights, f"{name}.second")
    shortcut = conv_bn(x, weights, f"{name}.shortcut", stride) if stride > 1 else x
    return layers.ReLU(name=f"{label}_relu2")(layers.Add(name=f"{label}_add")([y, shortcut]))


def build(weights: Weights) -> keras.Model:
    """Returns the Keras model with the weights in it."""
    image = keras.Input((SIZE, SIZE, 3), name="input")
    x = layers.ReLU(name="stem_relu")(conv_bn(image, weights, "stem"))
    count = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
    for index in range(count):
        x = block(x, weights, f"blocks.{index}")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    dense = layers.Dense(len(weights["classifier.bias"]), name="logits")
    output = dense(x)
    dense.set_weights([weights["classifier.weight"].T, weights["classifier.bias"]])
    return keras.Model(image, {"logits": output})  # the key names the graph's output


def export(model: keras.Model, path: Path) -> None:
    """Writes ONNX, which Keras leaves to tf2onnx, and checks it."""
    model(np.zeros((1, SIZE, SIZE, 3), np.float32))  # Keras exports only what was called
    model.export(str(path), format="onnx", opset_version=OPSET, verbose=False)
    onnx.checker.check_model(str(path), full_check=True)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("weights", type=Path, help="weights.npz of train.py")
    parser.add_argument("out", type=Path, help="the .onnx file to write")
    options = parser.parse_args()
    with np.load(options.weights) as weights:
        export(build(dict(weights)), options.out)


if __name__ == "__main__":
    main()
