"""What the three scripts share: options, images, the network, its files."""

import argparse
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from onnxdrp.demo import TEST

BATCH = 64
# expansion, outputs, blocks, stride: table 2 of https://arxiv.org/abs/1801.04381, for 32x32 images
STAGES = [(1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
          (6, 160, 3, 2), (6, 320, 1, 1)]  # fmt: skip


def arguments(description: str | None, retrain: bool = False) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--lr", type=float, default=0.05, help="learning rate (%(default)s)")
    parser.add_argument("--max_epochs", type=int, default=20, help="epochs (%(default)s)")
    parser.add_argument(
        "--data", type=Path, default=TEST, help="x uint8 [n, h, w, 3], y in an .npz file"
    )
    if retrain:
        file = Path("pretrained_mobilenetv2.pth")
        parser.add_argument("--pretrained_weight", type=Path, default=file, help="(%(default)s)")
        parser.add_argument("--pruning_rate", type=float, default=0.7, help="(%(default)s)")
    return parser.parse_args()


def images(path: Path) -> tuple[DataLoader, DataLoader]:
    """Images in [0, 1], NCHW, and their classes: the first 80 % to train on, the others to test."""
    with np.load(path) as file:
        x = torch.from_numpy(file["x"]).permute(0, 3, 1, 2).float() / 255
        y = torch.from_numpy(file["y"].astype(np.int64))
    cut = len(x) * 4 // 5
    train = TensorDataset(x[:cut], y[:cut])
    return (
        DataLoader(train, BATCH, shuffle=True, drop_last=True),
        DataLoader(TensorDataset(x[cut:], y[cut:]), BATCH),
    )


class ConvBn(nn.Sequential):
    """A convolution, its batch normalization, and ReLU6 unless it ends a block."""

    def __init__(self, inputs, outputs, kernel=1, stride=1, groups=1, ends=False):
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs), nn.Identity() if ends else nn.ReLU6())


class Block(nn.Module):
    """The inverted residual."""

    def __init__(self, inputs, outputs, stride, expansion):
        super().__init__()
        wide = inputs * expansion
        self.shortcut = stride == 1 and inputs == outputs
        self.layers = nn.Sequential(
            nn.Identity() if expansion == 1 else ConvBn(inputs, wide),
            ConvBn(wide, wide, 3, stride, groups=wide),
            ConvBn(wide, outputs, ends=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Adds the shortcut where shapes allow it."""
        return x + self.layers(x) if self.shortcut else self.layers(x)


class MobileNetV2(nn.Sequential):
    """[n, 3, 32, 32] to logits [n, classes]."""

    def __init__(self, classes: int = 10):
        layers, inputs = [ConvBn(3, 32, 3)], 32
        for expansion, outputs, blocks, stride in STAGES:
            for index in range(blocks):
                layers.append(Block(inputs, outputs, 1 if index else stride, expansion))
                inputs = outputs
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(1280, classes)]
        super().__init__(*layers, ConvBn(inputs, 1280), *head)


def report(model: nn.Module, test: DataLoader) -> None:
    """Prints the accuracy."""
    model.eval()
    with torch.no_grad():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in test)
    count = len(test.dataset)
    print(f"accuracy on {count} test images: {right / count:.2%}")


def save(model: nn.Module, name: str) -> None:
    """Writes the weights, and ONNX for one image at a time or many."""
    torch.save(model.state_dict(), f"{name}.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            model.eval(), (torch.zeros(1, 3, 32, 32),), f"{name}.onnx", dynamo=False,
            opset_version=13, input_names=["image"], output_names=["logits"],
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        )  # fmt: skip
    print(f"wrote {name}.pth, {name}.onnx")
