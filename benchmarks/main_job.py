"""The main job on real models: seconds, memory, sparsity, MACs, SQNR and accuracy of each stage.

Each model runs in a process of its own: float, masked (pruned without repair), pruned and repaired,
quantized only (as the target has it, and with one weight scale a tensor), all of it.
Accuracies are top-1 in percent (map_5095 for the detector), changes carry their paired 95 %
interval. Run: python benchmarks/main_job.py --shared FOLDER --rapidocr FOLDER [--only NAME]
`--shared` holds models/ and data/, `--rapidocr` the .onnx files of the PyPI package
rapidocr-onnxruntime.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np

import onnxdrp
from onnxdrp import demo
from onnxdrp.datareaders import DataReader, NCHWDataReader, open_reader
from onnxdrp.datareaders.batching import subset
from onnxdrp.evaluation import accuracy, compare_models, paired_difference
from onnxdrp.figures import peak_rss_mb
from onnxdrp.model import Model
from onnxdrp.tables import text_table

SPARSITY = 0.7
STAGES = ("masked", "pruned", "quantized", "per tensor", "both")
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Case:
    """A model, the data it is calibrated and measured on, and options of `optimize`."""

    path: Path
    calibrate: Callable[[Model], DataReader]
    test: Callable[[Model], DataReader]
    options: dict[str, Any] = field(default_factory=dict)
    boxes: bool = False


def cases(shared: Path | None, rapidocr: Path | None) -> dict[str, Case]:
    own = {"mean": demo.MEAN, "std": demo.STD}

    def reader(data: Path, **options: Any) -> Callable[[Model], DataReader]:
        return lambda model: open_reader(data, model, **options)

    def images(rows: slice) -> Callable[[Model], DataReader]:
        folder = shared / "data" / "imagenet" if shared else Path()
        return lambda model: subset(
            NCHWDataReader(
                folder / "images", 127, 128, model, scale=1, resize="crop", size=(224, 224),
                labels=folder / "labels.csv", batch=10,
            ),
            np.arange(500)[rows],
        )  # fmt: skip

    found = {
        name: Case(
            ROOT / "models" / f"{name}.onnx",
            reader(demo.CALIBRATE_IMAGES, batch=20, **own),
            reader(demo.TEST, batch=100, **own),
        )
        for name in ("modA", "modB")
    }
    if shared is not None:
        models, data = shared / "models", shared / "data"
        found["cifar10_cnn_nhwc"] = Case(
            models / "cifar10_cnn_nhwc.onnx",
            reader(data / "cifar10" / "unlabelled.npz", scale=1, limit=500, batch=50),
            reader(data / "cifar10" / "eval.npz", scale=1, batch=100),
        )
        found["efficientnet_lite0"] = Case(
            models / "efficientnet_lite0.onnx", images(slice(0, 100)), images(slice(100, 500))
        )
        letterbox = {"scale": 1, "color": "bgr", "resize": "letterbox", "pad_place": "top-left"}
        found["yolox_nano_416"] = Case(
            models / "yolox_nano_416.onnx",
            reader(data / "coco" / "train2017" / "images", **letterbox),
            reader(data / "coco" / "val2017" / "images", **letterbox),
            boxes=True,
        )
    if shared is not None and rapidocr is not None:
        photos = shared / "data" / "coco"
        for name, size in (("det", (320, 320)), ("rec", (48, 320)), ("cls", (48, 192))):
            path = next(rapidocr.glob(f"*_{name}_*.onnx"))
            options = {"mean": 0.5, "std": 0.5, "size": size}
            static = {"input_shape": {"x": (1, 3, *size)}}
            found[path.stem] = Case(
                path,
                reader(photos / "train2017" / "images", limit=64, **options),
                reader(photos / "val2017" / "images", limit=32, **options),
                static,
            )
    return found


def measure(case: Case) -> dict[str, Any]:
    """All figures of one model; runs in a process of its own."""
    original = Model.load(case.path)
    calib, test = case.calibrate(original), case.test(original)
    started = time.perf_counter()
    report = onnxdrp.optimize(
        original.clone(), calib, sparsity=SPARSITY, data=calib, **case.options
    )
    seconds, peak = time.perf_counter() - started, peak_rss_mb()
    both = report.model
    masked = onnxdrp.prune(original.clone(), sparsity=SPARSITY, **case.options).model
    pruned = onnxdrp.prune(
        original.clone(), sparsity=SPARSITY, calib=calib, data=calib, **case.options
    ).model
    quantized, per_tensor = (
        onnxdrp.quantize(
            original.clone(), calib, data=calib, per_channel=by_channel, **case.options
        ).model
        for by_channel in (None, False)
    )
    stages = {
        "masked": masked,
        "pruned": pruned,
        "quantized": quantized,
        "per tensor": per_tensor,
        "both": both,
    }
    row: dict[str, Any] = {"seconds": seconds, "peak_rss_mb": peak}
    row |= {k: report.summary[k] for k in ("sparsity", "baseline_mac", "current_mac")}
    row["passes"] = {r.name: round(r.seconds, 2) for r in report.records}
    row["sqnr_db"] = {k: compare_models(original, m, test).sqnr_db for k, m in stages.items()}
    row["accuracy"] = _accuracy(case, original, stages, test)
    return row


def _accuracy(
    case: Case, original: Model, stages: dict[str, Model], test: DataReader
) -> dict[str, Any]:
    if case.boxes:
        return _map(original, stages, test)
    if test.labels is None:
        return {}
    before = accuracy(original, test).top1
    found: dict[str, Any] = {"float": 100 * float(before.mean()), "samples": len(before)}
    for name, model in stages.items():
        found[name] = list(paired_difference(before, accuracy(model, test).top1))
    return found


def _map(original: Model, stages: dict[str, Model], test: DataReader) -> dict[str, Any]:
    from onnxdrp.detection import difference, evaluate_detection

    before = evaluate_detection(original, test)
    found: dict[str, Any] = {"float": 100 * before.map_5095, "samples": before.samples}
    for name, model in stages.items():
        change = (difference(before, evaluate_detection(model, test)) or {})["map_5095"]
        found[name] = [100 * v for v in (change.value, change.low, change.high)]
    return found


def show(rows: dict[str, dict[str, Any]]) -> str:
    head = ("model", "s", "peak MB", "sparsity", "MMAC", "pruned", "SQNR dB p / q / t / both",
            "float", *STAGES)  # fmt: skip
    table = []
    for name, row in rows.items():
        right = row["accuracy"]
        changes = ["{:+.2f} [{:+.2f}, {:+.2f}]".format(*right[k]) if right else "-" for k in STAGES]
        table.append(
            (
                name, f"{row['seconds']:.1f}", f"{row['peak_rss_mb']:.0f}",
                f"{row['sparsity']:.3f}", f"{row['baseline_mac'] / 1e6:.1f}",
                f"{row['current_mac'] / 1e6:.1f}",
                " / ".join(f"{v:.1f}" for v in row["sqnr_db"].values()),
                f"{right['float']:.2f}" if right else "-", *changes,
            )
        )  # fmt: skip
    return text_table(head, table)


@click.command()
@click.option("--shared", type=click.Path(exists=True, path_type=Path))
@click.option("--rapidocr", type=click.Path(exists=True, path_type=Path))
@click.option("--only", help="One model, by name.")
@click.option("--target", default="generic", show_default=True)
@click.option("--child", is_flag=True, hidden=True)
def main(
    shared: Path | None, rapidocr: Path | None, only: str | None, target: str, child: bool
) -> None:
    """Print the table, and the figures as JSON."""
    found = cases(shared, rapidocr)
    if child and only is not None:
        case = found[only]
        case.options["target"] = target
        print(json.dumps(measure(case)))
        return
    rows = {}
    for name in [only] if only else found:
        arguments = [sys.executable, *sys.argv, "--child", "--only", name]
        output = subprocess.run(arguments, check=False, text=True, stdout=subprocess.PIPE).stdout
        if output:
            rows[name] = json.loads(output.splitlines()[-1])
        else:
            print(f"{name}: failed")
    print(show(rows))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
