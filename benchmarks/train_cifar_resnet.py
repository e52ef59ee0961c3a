"""Trains a CIFAR ResNet by distillation from another ONNX model, without any label.

The network is that of He et al. 2015 (https://arxiv.org/abs/1512.03385, section 4.2): three stages
of (depth - 2) / 6 blocks with 16, 32 and 64 channels; shortcuts that change the shape are 1x1
convolutions. It learns to give what the teacher gives: the loss is the divergence between
softmax(outputs / T) of both. Images are mirrored, moved by up to 4 pixels and mixed in pairs
(mixup, https://arxiv.org/abs/1710.09412), and the teacher sees them as they are after that. No
label is read for training, so the result can be little better than its teacher; it is a network to
measure pruning on, not a good classifier.

The learning rate follows one cycle over the wall-clock minutes, so the number of steps depends on
the machine. The weights are also written beside the result as .pt; --start takes those of a
shallower network: blocks whose last scale is zero are put behind those of each stage, which leaves
its outputs as they are. Such blocks change little in a short training, and cost little to prune: a
deep network that is to be hard to prune has to be trained without --start.

Run: python benchmarks/train_cifar_resnet.py --teacher FILE.onnx --images UNLABELLED.npz --depth 20
         --minutes 20 --out resnet20.onnx [--test LABELLED.npz] [--start resnet8.pt]
The teacher takes NHWC pixels 0..255 and gives logits, the archives hold `x` uint8 NHWC (and `y`),
the result takes NCHW pixel / 255: mean and deviation are subtracted and divided in the graph.
"""

import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional

Array = npt.NDArray[Any]
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)
TEMPERATURE = 2.0
BATCH = 128
OPSET = 17


class Block(nn.Module):
    """Two 3x3 convolutions and the shortcut around them."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.shortcut = (
            nn.Identity()
            if before == after
            else nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.relu(self.bn1(self.conv1(x)))
        total: Tensor = self.bn2(self.conv2(inner)) + self.shortcut(x)
        return functional.relu(total)


class ResNet(nn.Module):
    """(pixel / 255) [n, 3, 32, 32] to logits [n, 10]."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        if (depth - 2) % 6:
            raise click.UsageError(f"depth {depth}: it must be 6 n + 2")
        self.register_buffer("mean", torch.tensor(MEAN).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).reshape(1, 3, 1, 1))
        self.stem = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        count = (depth - 2) // 6
        self.stages = nn.ModuleList(
            nn.Sequential(
                Block(before, after, stride), *(Block(after, after, 1) for _ in range(count - 1))
            )
            for before, after, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2))
        )
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn(self.stem((x - self.mean) / self.std)))
        for stage in self.stages:
            x = stage(x)
        logits: Tensor = self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def started(depth: int, start: Path | None) -> ResNet:
    """A network of random weights, or a deeper one with the outputs of that in the file."""
    net = ResNet(depth)
    if start is not None:
        shallow = torch.load(start)
        for key, value in net.state_dict().items():
            if key not in shallow and key.endswith("bn2.weight"):  # a block that the file has not
                nn.init.zeros_(value)
        net.load_state_dict(net.state_dict() | shallow)
    return net


def augmented(images: Array, rng: np.random.Generator) -> Array:
    """A batch of NHWC float32 pixels 0..255: moved, mirrored, most of them mixed in pairs.

    `images` are padded by 4 pixels a side.
    """
    chosen = rng.integers(len(images), size=2 * BATCH)
    moves = rng.integers(9, size=(2 * BATCH, 2))
    steps = 1 - 2 * rng.integers(2, size=2 * BATCH)
    rows = zip(chosen, moves, steps, strict=True)
    crops = np.stack([images[i, y : y + 32, x : x + 32][:, ::step] for i, (y, x), step in rows])
    share = rng.beta(1, 1, size=(BATCH, 1, 1, 1)) * rng.integers(2, size=(BATCH, 1, 1, 1))
    first, second = crops[:BATCH].astype(np.float32), crops[BATCH:].astype(np.float32)
    mixed: Array = (first + share * (second - first)).astype(np.float32)
    return mixed


def train(
    net: ResNet,
    teacher: onnxruntime.InferenceSession,
    images: Array,
    minutes: float,
    rate: float,
    seed: int,
) -> int:
    """Distils for that many minutes; returns the number of steps."""
    name = teacher.get_inputs()[0].name
    rng = np.random.default_rng(seed)
    decayed = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    )
    net.train().to(memory_format=torch.channels_last)
    steps, shown, total = 0, 0.0, 0.0
    begun = time.monotonic()
    while (done := (time.monotonic() - begun) / (60 * minutes)) < 1:
        ramp = done / 0.2 if done < 0.2 else (1 + np.cos(np.pi * (done - 0.2) / 0.8)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate * max(float(ramp), 0.01)
        pixels = augmented(images, rng)
        wanted = torch.from_numpy(teacher.run(None, {name: pixels})[0] / TEMPERATURE).softmax(1)
        given = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
        got = (net(given) / TEMPERATURE).log_softmax(1)
        loss = functional.kl_div(got, wanted, reduction="batchmean") * TEMPERATURE**2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps, total = steps + 1, total + loss.item()
        if steps % 100 == 0:
            shown, total = total / 100, 0.0
            click.echo(f"{100 * done:.0f} %: step {steps}, loss {shown:.4f}", err=True)
    return steps


def settle(net: ResNet, images: Array) -> None:
    """Sets BatchNorm's mean and variance to those of the images without augmentation."""
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over the batches
    net.train()
    with torch.no_grad():
        for start in range(0, len(images), 250):
            batch = images[start : start + 250, 4:-4, 4:-4].astype(np.float32)
            net(torch.from_numpy(batch).permute(0, 3, 1, 2) / 255)
    net.eval()


def export(net: ResNet, path: Path) -> None:
    """Writes the network with its BatchNormalization nodes and a dynamic batch."""
    torch.onnx.export(
        net.eval().to(memory_format=torch.contiguous_format),
        (torch.zeros(1, 3, 32, 32),),
        str(path),
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}},
        opset_version=OPSET,
        training=torch.onnx.TrainingMode.EVAL,
        dynamo=False,
    )


def top1(path: Path, images: Array, labels: Array) -> float:
    """Percent of the images whose largest logit is at the label."""
    session = onnxruntime.InferenceSession(str(path))
    right = 0
    for start in range(0, len(images), 250):
        rows = slice(start, start + 250)
        batch = images[rows].transpose(0, 3, 1, 2).astype(np.float32) / 255
        right += int((session.run(None, {"image": batch})[0].argmax(1) == labels[rows]).sum())
    return 100 * right / len(images)


FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.option("--teacher", "teacher_file", type=FILE, required=True)
@click.option("--images", "images_file", type=FILE, required=True)
@click.option("--test", "test_file", type=FILE, help="Labelled images to measure top-1 on.")
@click.option("--depth", default=20, show_default=True)
@click.option("--start", type=FILE, help="The .pt file of a shallower network.")
@click.option("--minutes", default=20.0, show_default=True)
@click.option("--rate", default=4e-3, show_default=True, help="Largest learning rate.")
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True)
def main(
    teacher_file: Path,
    images_file: Path,
    test_file: Path | None,
    depth: int,
    start: Path | None,
    minutes: float,
    rate: float,
    seed: int,
    threads: int,
    out: Path,
) -> None:
    """Train, write the ONNX file, print the number of steps and top-1."""
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    teacher = onnxruntime.InferenceSession(str(teacher_file), options)
    images = np.pad(np.load(images_file)["x"], ((0, 0), (4, 4), (4, 4), (0, 0)), mode="reflect")
    net = started(depth, start)
    steps = train(net, teacher, images, minutes, rate, seed)
    settle(net, images)
    torch.save(net.state_dict(), out.with_suffix(".pt"))
    export(net, out)
    text = f"{out}: depth {depth}, {steps} steps"
    if test_file is not None:
        test = np.load(test_file)
        text += f", top-1 {top1(out, test['x'], test['y']):.2f} %"
    print(text)


if __name__ == "__main__":
    main()
