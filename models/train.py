"""Trains a small ResNet on Fashion-MNIST and writes modA.onnx and all that goes with it.

    python models/train.py train DATA OUT  # weights.npz, modA.onnx, test.npz, calibrate_images/
    python models/train.py evaluate DATA --nchw modA.onnx --nhwc modB.onnx --bundled test.npz

DATA is the folder of the four `*-ubyte.gz` files; export_keras.py makes modB.onnx of weights.npz.
"""

import argparse
import gzip
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 10
SIZE = 32
CHANNELS = (32, 64, 128)
BLOCKS = 2  # a stage
MEAN = 0.2190  # of the training images padded to 32x32; `train` checks both
STD = 0.3318
CALIBRATION_IMAGES = 200
TEST_IMAGES = 1000
OPSET = 13


def load(data: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns uint8 images (n, 32, 32), padded with zeros from 28x28, and int64 labels (n,)."""
    pixels = np.frombuffer(
        gzip.decompress((data / f"{part}-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16
    )
    labels = np.frombuffer(
        gzip.decompress((data / f"{part}-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8
    )
    images = np.pad(pixels.reshape(-1, 28, 28), ((0, 0), (2, 2), (2, 2)))
    return images, labels.astype(np.int64)


def normalise(images: np.ndarray) -> np.ndarray:
    """Turns uint8 (..., 32, 32) into the float32 that the models expect."""
    return ((images.astype(np.float32) / 255 - MEAN) / STD).astype(np.float32)


def balanced(labels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the indices of `count` samples, equally many a class, in random order."""
    share = count // CLASSES
    chosen = [rng.choice(np.flatnonzero(labels == c), share, replace=False) for c in range(CLASSES)]
    return rng.permutation(np.concatenate(chosen))


class ConvBn(nn.Sequential):
    """A convolution without bias and its batch normalisation."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)


class Block(nn.Module):
    """The basic residual block; a 1x1 projection where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = ConvBn(inputs, outputs, 3, stride)
        self.second = ConvBn(outputs, outputs, 3)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else ConvBn(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Adds the shortcut before the last activation."""
        return functional.relu(self.second(functional.relu(self.first(x))) + self.shortcut(x))


class ResNet(nn.Module):
    """A 3x3 stem, a stage of residual blocks for each entry of CHANNELS, pooling, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvBn(3, CHANNELS[0], 3)
        self.blocks = nn.Sequential()
        inputs = CHANNELS[0]
        for stage, outputs in enumerate(CHANNELS):
            for index in range(BLOCKS):
                stride = 2 if stage and not index else 1
                self.blocks.append(Block(inputs, outputs, stride))
                inputs = outputs
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(inputs, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (n, CLASSES) for float images (n, 3, SIZE, SIZE)."""
        features = self.blocks(functional.relu(self.stem(x)))
        return self.classifier(torch.flatten(self.pool(features), 1))


def augment(images: Tensor) -> Tensor:
    """Shifts each image (n, 32, 32) by up to two pixels and mirrors every other one, by chance."""
    count = len(images)
    padded = functional.pad(images, (2, 2, 2, 2))
    shift = torch.randint(0, 5, (2, count, 1))
    rows = torch.arange(SIZE) + shift[0]
    columns = torch.arange(SIZE) + shift[1]
    mirrored = torch.rand(count, 1) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    return padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


def to_input(images: Tensor) -> Tensor:
    """Turns grey uint8 (n, 32, 32) into the network's float (n, 3, 32, 32)."""
    grey = (images.float() / 255 - MEAN) / STD
    return grey[:, None].expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


def fit(
    model: nn.Module,
    logits: Callable[[Tensor], Tensor],
    labels: Tensor,
    epochs: int,
    batch: int,
) -> None:
    """Trains with SGD and one learning-rate cycle; `logits` gives those of rows of the images."""
    steps = len(labels) // batch
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.2, epochs=epochs, steps_per_epoch=steps, pct_start=0.25
    )
    model.train()
    started = time.monotonic()
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(labels))[: steps * batch].split(batch):
            loss = functional.cross_entropy(logits(rows), labels[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        passed = f"{(time.monotonic() - started) / 60:.1f} min"
        print(f"epoch {epoch + 1}/{epochs}: loss {total / steps:.4f}, {passed}", flush=True)


def export(model: nn.Module, path: Path) -> None:
    """Writes NCHW ONNX, with the BatchNormalization nodes left in, and checks it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the TorchScript exporter
        torch.onnx.export(
            model.eval(),
            (torch.zeros(1, 3, SIZE, SIZE),),
            path,
            dynamo=False,
            opset_version=OPSET,
            training=torch.onnx.TrainingMode.PRESERVE,  # EVAL would fold them into Conv
            do_constant_folding=False,
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
        )
    onnx.checker.check_model(str(path), full_check=True)


def write_images(data: Path, out: Path, seed: int) -> None:
    """Writes calibrate_images/ from the training images and test.npz from the test images."""
    rng = np.random.default_rng(seed)
    folder = out / "calibrate_images"
    folder.mkdir(exist_ok=True)
    images, labels = load(data, "train")
    for number, index in enumerate(balanced(labels, CALIBRATION_IMAGES, rng)):
        Image.fromarray(images[index]).convert("RGB").save(folder / f"{number:03d}.png")
    images, labels = load(data, "t10k")
    chosen = balanced(labels, TEST_IMAGES, rng)
    grey = images[chosen, ..., None]  # (n, 32, 32, 1)
    np.savez_compressed(out / "test.npz", x=grey.repeat(3, axis=-1), y=labels[chosen])


def train(data: Path, out: Path, epochs: int, batch: int, seed: int) -> None:
    """Trains, then writes everything that the demo needs into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    write_images(data, out, seed)
    images, labels = load(data, "train")
    measured = (round(images.mean() / 255, 4), round(images.std() / 255, 4))
    if measured != (MEAN, STD):
        raise SystemExit(f"mean and std of the training images are {measured}; correct MEAN, STD")
    torch.manual_seed(seed)
    model = ResNet().to(memory_format=torch.channels_last)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    pixels = torch.from_numpy(images)

    def logits(rows: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(to_input(augment(pixels[rows]))).float()

    fit(model, logits, torch.from_numpy(labels), epochs, batch)
    weights = {k: v.numpy() for k, v in model.state_dict().items() if v.is_floating_point()}
    np.savez(out / "weights.npz", **weights)
    export(model.to(memory_format=torch.contiguous_format), out / "modA.onnx")


def logits(path: Path, layout: str, images: np.ndarray) -> np.ndarray:
    """Runs the model at `path` on RGB images, uint8 (n, 32, 32, 3)."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def outputs() -> Iterator[np.ndarray]:
        for start in range(0, len(images), 250):
            x = normalise(images[start : start + 250])
            x = np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if layout == "NCHW" else x
            yield session.run(None, {name: x})[0]

    return np.concatenate(list(outputs()))


def evaluate(data: Path, nchw: Path, nhwc: Path, bundled: Path) -> None:
    """Prints the top-1 of both models, on all test images and on the bundled ones."""
    grey, labels = load(data, "t10k")
    subset = np.load(bundled)
    sets = {"all": (grey[..., None].repeat(3, -1), labels), "bundled": (subset["x"], subset["y"])}
    for name, (images, y) in sets.items():
        a, b = logits(nchw, "NCHW", images), logits(nhwc, "NHWC", images)
        for path, z in ((nchw, a), (nhwc, b)):
            correct = int((z.argmax(1) == y).sum())
            print(f"{name:8} {path.name:12} top-1 {correct / len(y):.2%} ({correct} of {len(y)})")
        agree = int((a.argmax(1) == b.argmax(1)).sum())
        print(
            f"{name:8} max |logit difference| {np.abs(a - b).max():.2e}, "
            f"max |logit| {np.abs(a).max():.2f}, same class {agree} of {len(y)}"
        )


def main() -> None:
    """Runs the command that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("train")
    one.add_argument("data", type=Path, help="the folder of the four *-ubyte.gz files")
    one.add_argument("out", type=Path)
    one.add_argument("--epochs", type=int, default=12)
    one.add_argument("--batch", type=int, default=128)
    one.add_argument("--seed", type=int, default=0)
    one.set_defaults(run=train)
    two = commands.add_parser("evaluate")
    two.add_argument("data", type=Path, help="the folder of the four *-ubyte.gz files")
    two.add_argument("--nchw", type=Path, required=True)
    two.add_argument("--nhwc", type=Path, required=True)
    two.add_argument("--bundled", type=Path, required=True)
    two.set_defaults(run=evaluate)
    options = vars(parser.parse_args())
    options.pop("run")(**options)


if __name__ == "__main__":
    main()
