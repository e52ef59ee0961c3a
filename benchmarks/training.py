"""Retraining with held masks against repair without labels: top-1 and minutes, at one sparsity.

The network is the small ResNet of models/train.py with its trained weights, the data Fashion-MNIST:
60,000 labelled images to retrain on, 10,000 test images that nothing else sees. Rows, for each
pattern:

    float         the model that came in
    masked        pruned by magnitude, nothing repaired
    refit         pruned and re-fitted by `onnxdrp prune`, from unlabelled training images
    distill       the same, and trained towards the float model on them
    one-shot      pruned at once, then retrained with labels (onnxdrp.torch.Pruner)
    gradual       pruned while it is retrained, the same epochs in all
    dense         retrained without pruning for the same epochs: what retraining alone gives

each with its top-1 after `onnxdrp quantize`, too. Retraining is SGD with Nesterov momentum and one
cycle of the learning rate, in bfloat16 autocast as the float training was. `update` is the time in
Pruner.update() as a share of the training steps.

Run: python benchmarks/training.py --data FASHION_MNIST_FOLDER [--epochs 3] [--rate 0.7]
         [--patterns flex-nm,block] [--ways refit,one-shot] [--images 1000] [--distill-minutes 5]
         [--out FILE.json]
The folder has the four `*-ubyte.gz` files (Debian's package dataset-fashion-mnist).
"""

import copy
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from methods import markdown
from torch import nn
from torch.nn import functional

import onnxdrp
from onnxdrp import demo
from onnxdrp.datareaders import ArrayReader
from onnxdrp.evaluation import accuracy
from onnxdrp.model import Model
from onnxdrp.torch import Pruner, finalize, info, masks
from onnxdrp.training import schedule

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
import train as recipe

BATCH = 128
LEARNING_RATE = 0.02  # a tenth of that of the float training: the weights are trained already
SIZE = [(2, 3, 32, 32)]
TRAINED = ("dense", "one-shot", "gradual")
WAYS = ("masked", "refit", "distill", *TRAINED)


@dataclass
class Row:
    """What came of one way; accuracies in percent, `update` as a share of the training steps."""

    pattern: str
    way: str
    sparsity: float
    top1: float
    int8: float
    minutes: float
    update: float | None = None


@dataclass
class Data:
    """Fashion-MNIST as the network takes it, and in readers for the models that come out."""

    images: torch.Tensor
    labels: torch.Tensor
    unlabelled: ArrayReader
    test: ArrayReader


def opened(folder: Path, count: int, model: Model) -> Data:
    images, labels = recipe.load(folder, "train")
    test, truth = recipe.load(folder, "t10k")
    few = np.random.default_rng(0).permutation(len(images))[:count]
    return Data(
        torch.from_numpy(images),
        torch.from_numpy(labels),
        ArrayReader({"x": nchw(images[few])}, model=model, batch=50),
        ArrayReader({"x": nchw(test), "y": truth}, model=model, batch=100),
    )


def nchw(images: np.ndarray) -> np.ndarray:
    return np.repeat(recipe.normalise(images)[:, None], 3, axis=1)


def trained() -> nn.Module:
    """The network with the weights of models/modA.onnx."""
    import onnx_graphsurgeon as gs

    model, network = onnxdrp.load(demo.MODEL), recipe.ResNet()
    stored = {
        t.name: t.values for t in model.graph.tensors().values() if isinstance(t, gs.Constant)
    }
    same = {n.outputs[0].name: n.inputs[0].name for n in model.graph.nodes if n.op == "Identity"}
    state = {
        name: torch.from_numpy(np.array(stored[same.get(name, name)]))
        for name, value in network.state_dict().items()
        if value.is_floating_point()
    }
    network.load_state_dict(state, strict=False)
    return network


def batches(data: Data, epochs: int, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    made = torch.Generator().manual_seed(seed)
    steps = len(data.images) // BATCH
    for _ in range(epochs):
        for rows in torch.randperm(len(data.images), generator=made)[: steps * BATCH].split(BATCH):
            yield recipe.to_input(recipe.augment(data.images[rows])), data.labels[rows]


def retrain(
    model: nn.Module, pruner: Pruner | None, data: Data, epochs: int, seed: int
) -> float | None:
    """Train as models/train.py does; the share of the time that update() took."""
    torch.manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = epochs * (len(data.images) // BATCH)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps, pct_start=0.25)
    model.train()
    start, updating = time.perf_counter(), 0.0
    for x, y in batches(data, epochs, seed):
        before = time.perf_counter()
        if pruner is not None:
            pruner.update()
        updating += time.perf_counter() - before
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x)
        loss = functional.cross_entropy(logits.float(), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        cycle.step()
    return None if pruner is None else updating / (time.perf_counter() - start)


def by_training(
    way: str, pattern: str, rate: float, data: Data, epochs: int, seed: int
) -> tuple[Model, float | None]:
    """Retrain, and export; the share of update()."""
    model = trained().to(memory_format=torch.channels_last)
    pruner = None
    if way != "dense":
        names = info(model, SIZE, pattern=pattern).prunable
        per_epoch = len(data.images) // BATCH
        gradual = {
            "end_step": schedule.end_step(per_epoch, max_epoch=epochs),
            "frequency": max(1, per_epoch // 10),
        }
        options: dict[str, Any] = gradual if way == "gradual" else {}
        pruner = Pruner(model, names, final_pr=rate, pattern=pattern, **options)
    held = masks(model)
    share = retrain(model, pruner, data, epochs, seed)
    if way == "one-shot" and masks(model) != held:
        raise SystemExit("a mask has changed by training")
    if pruner is not None and not pruner.is_finished:
        raise SystemExit("pruning has not come to its end")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trained.onnx"
        model = finalize(copy.deepcopy(model)).to(memory_format=torch.contiguous_format)
        recipe.export(model, path)
        return onnxdrp.load(path.rename(path.with_name("model.onnx"))).clone(), share


def by_repair(
    path: Path, way: str, pattern: str, rate: float, data: Data, minutes: float, seed: int
) -> Model:
    """Prune the exported model, and repair it without labels."""
    if way == "masked":
        return onnxdrp.prune(path, sparsity=rate, pattern=pattern).model
    distilling = {"distill_minutes": minutes} if way == "distill" else {}
    return onnxdrp.prune(
        path,
        sparsity=rate,
        pattern=pattern,
        calib=data.unlabelled,
        data=data.unlabelled,
        recover=way,  # type: ignore[arg-type]
        seed=seed,
        **distilling,
    ).model


def measured(model: Model, data: Data) -> tuple[float, float, float]:
    """Sparsity of all weights, and top-1 of the model and of its INT8 form, in percent."""
    sparsity = onnxdrp.info(model).sparsity
    top1 = 100 * float(accuracy(model, data.test).top1.mean())
    quantized = onnxdrp.quantize(
        model.clone(), data.unlabelled, data=data.unlabelled, target="generic"
    ).model
    return sparsity, top1, 100 * float(accuracy(quantized, data.test).top1.mean())


@click.command(help=__doc__)
@click.option("--data", "folder", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--epochs", default=3)
@click.option("--rate", default=0.7)
@click.option("--patterns", default="flex-nm,block")
@click.option("--ways", default=",".join(WAYS))
@click.option("--images", default=1000)
@click.option("--distill-minutes", default=5.0)
@click.option("--seed", default=0)
@click.option("--out", type=click.Path(path_type=Path))
def main(
    folder: Path,
    epochs: int,
    rate: float,
    patterns: str,
    ways: str,
    images: int,
    distill_minutes: float,
    seed: int,
    out: Path | None,
) -> None:
    data = opened(folder, images, onnxdrp.load(demo.MODEL))

    def train(way: str, pattern: str) -> tuple[Model, float | None]:
        return by_training(way, pattern, rate, data, epochs, seed)

    def repair(way: str, pattern: str) -> Model:
        return by_repair(demo.MODEL, way, pattern, rate, data, distill_minutes, seed)

    rows = [Row("-", "float", *measured(onnxdrp.load(demo.MODEL), data), 0.0)]
    compare(rows, patterns.split(","), ways.split(","), train, repair, data, out)


def compare(
    rows: list[Row],
    patterns: list[str],
    ways: list[str],
    train: Callable[[str, str], tuple[Model, float | None]],
    repair: Callable[[str, str], Model],
    data: Data,
    out: Path | None,
) -> None:
    """Go every way on every pattern, and print the table.

    Args:
        rows: of what came in; those of the ways are added.
        patterns: by name.
        ways: of WAYS.
        train: (way, pattern) to a model, and the share of update().
        repair: (way, pattern) to a model.
        data: to measure on.
        out: a file for the figures so far.
    """
    for pattern in patterns:
        for way in ways:
            if way == "dense" and any(row.way == "dense" for row in rows):
                continue
            start, share = time.perf_counter(), None
            if way in TRAINED:
                model, share = train(way, pattern)
            else:
                model = repair(way, pattern)
            minutes = (time.perf_counter() - start) / 60
            rows.append(Row(pattern, way, *measured(model, data), minutes, share))
            print(json.dumps(asdict(rows[-1])), flush=True)
            if out is not None:
                out.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    print(table(rows))


def table(rows: list[Row]) -> str:
    head = ["pattern", "way", "sparsity", "top-1", "INT8", "minutes", "update() %"]
    cells = [
        [r.pattern, r.way, f"{r.sparsity:.3f}", f"{r.top1:.2f}", f"{r.int8:.2f}",
         f"{r.minutes:.1f}", "" if r.update is None else f"{100 * r.update:.2f}"]
        for r in rows
    ]  # fmt: skip
    return markdown(head, cells)


if __name__ == "__main__":
    main()
