"""Trains a tiny depthwise-separable network on drawn road signs and writes signs.onnx.

    python models/train_signs.py train OUT
    python models/train_signs.py evaluate models/signs.onnx

The images are drawn (signs.py); nothing else is needed.
"""

import argparse
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from signs import CLASSES, draw
from torch import Tensor, nn
from torch.nn import functional
from train import export, fit

BLOCKS = (
    (16, 32, 1),
    (32, 48, 2),
    (48, 64, 1),
    (64, 96, 2),
    (96, 96, 1),
)  # inputs, outputs, stride
MEAN = (0.298, 0.3059, 0.2907)  # of the training images, for each channel; `train` checks both
STD = (0.2073, 0.2084, 0.2307)
TRAINING_IMAGES, TEST_IMAGES = 20_000, 2_000
TRAINING_SEED, TEST_SEED = 1, 2  # users draw others


class Separable(nn.Sequential):
    """A depthwise 3x3 and a 1x1 convolution, each with batch normalisation and Relu."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
        self.depthwise_bn = nn.BatchNorm2d(inputs)
        self.depthwise_relu = nn.ReLU()
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.pointwise_bn = nn.BatchNorm2d(outputs)
        self.pointwise_relu = nn.ReLU()


class Net(nn.Module):
    """A 3x3 stem, the blocks, pooling, a linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, BLOCKS[0][0], 3, 2, 1, bias=False)
        self.stem_bn = nn.BatchNorm2d(BLOCKS[0][0])
        self.blocks = nn.Sequential(*(Separable(*block) for block in BLOCKS))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(BLOCKS[-1][1], len(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (n, classes) for float images (n, 3, SIZE, SIZE)."""
        features = self.blocks(functional.relu(self.stem_bn(self.stem(x))))
        return self.classifier(torch.flatten(self.pool(features), 1))


def normalise(images: np.ndarray) -> np.ndarray:
    """Turns RGB uint8 (n, SIZE, SIZE, 3) into the network's float32 (n, 3, SIZE, SIZE)."""
    x = (images.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def train(out: Path, epochs: int, batch: int, seed: int) -> None:
    """Trains, and writes signs.onnx into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    images, labels = draw(TRAINING_IMAGES, TRAINING_SEED)
    pixels = images.reshape(-1, 3) / 255
    measured = tuple(tuple(of.round(4).tolist()) for of in (pixels.mean(0), pixels.std(0)))
    if measured != (MEAN, STD):
        raise SystemExit(f"mean and std of the training images are {measured}; correct MEAN, STD")
    torch.manual_seed(seed)
    model = Net()
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    x = torch.from_numpy(normalise(images))
    fit(model, lambda rows: model(x[rows]), torch.from_numpy(labels), epochs, batch)
    export(model, out / "signs.onnx")
    evaluate(out / "signs.onnx")


def evaluate(model: Path) -> None:
    """Prints the top-1 on the test images."""
    images, labels = draw(TEST_IMAGES, TEST_SEED)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    logits = session.run(None, {"input": normalise(images)})[0]
    correct = int((logits.argmax(1) == labels).sum())
    print(f"{model.name} top-1 {correct / len(labels):.2%} ({correct} of {len(labels)})")


def main() -> None:
    """Runs the command that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("train")
    one.add_argument("out", type=Path)
    one.add_argument("--epochs", type=int, default=16)
    one.add_argument("--batch", type=int, default=128)
    one.add_argument("--seed", type=int, default=0)
    one.set_defaults(run=train)
    two = commands.add_parser("evaluate")
    two.add_argument("model", type=Path)
    two.set_defaults(run=evaluate)
    options = vars(parser.parse_args())
    options.pop("run")(**options)


if __name__ == "__main__":
    main()
