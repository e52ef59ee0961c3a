"""What each calibration method is worth on real models: SQNR and accuracy of the quantized model.

    SQNR of a model = 10 log10(sum of squares of the float output / of the difference), in dB,

of its worst output. Each method measures ranges on the calibration images (`onnxdrp.calibrate`) and
`onnxdrp.quantize` inserts them with the target's defaults: nothing differs but the ranges. Figures
are of images that were not calibrated on. Accuracies are top-1 in percent (map_5095 for the
detector), their changes are in points with the paired 95 % interval. The last column of the first
table is the most that a method stays below the best one for the same model, by which a default can
be chosen; ranges that are right for one model alone stand out there. All is deterministic. The text
detector counts for less: of its 32 photos 3 have text that it finds, and these are all its signal.

Run: python benchmarks/methods.py --shared FOLDER --rapidocr FOLDER [--target drp-ai3]
The folders are those of main_job.py.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
from main_job import Case, _accuracy, cases

import onnxdrp
from onnxdrp.datareaders import DataReader
from onnxdrp.datareaders.batching import count, subset
from onnxdrp.model import Model
from onnxdrp.observe import Tap, observe
from onnxdrp.observers import Error
from onnxdrp.ranges import save_ranges

METHODS: dict[str, dict[str, Any]] = {
    "minmax": {"method": "minmax"},
    "mean-minmax": {"method": "mean-minmax"},
    "percentile 99.99": {"method": "percentile", "percentile": 99.99},
    "percentile 99.999": {"method": "percentile", "percentile": 99.999},
    "entropy": {"method": "entropy"},
    "mse": {"method": "mse"},
    "sigma 8": {"method": "sigma", "sigmas": 8.0},
}
MODELS = ("modA", "cifar10_cnn_nhwc", "efficientnet_lite0", "yolox_nano_416", "det")
Row = dict[str, Any]


def spread(reader: DataReader, samples: int | None) -> DataReader:
    """So many samples, evenly over the reader: data often lies sorted by class."""
    there = count(reader)
    if samples is None or samples >= there:
        return reader
    return subset(reader, np.linspace(0, there - 1, samples).astype(np.int64))


def measure(case: Case, target: str, samples: int | None) -> Row:
    """The figures of one model: {"sqnr_db": {method: dB}, "accuracy": see main_job, ...}."""
    original = Model.load(case.path)
    calib, test = spread(case.calibrate(original), samples), case.test(original)
    options = case.options | {"target": target}
    quantized = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, method in METHODS.items():
            ranges = onnxdrp.calibrate(original, calib, **method, **options).ranges
            assert ranges is not None  # Calibrate is among the passes
            save_ranges(path := Path(folder) / "ranges.json", ranges)
            quantized[name] = onnxdrp.quantize(original.clone(), ranges=path, **options).model
    return {
        "calibrated_on": count(calib),
        "measured_on": count(test),
        "sqnr_db": sqnr(original, quantized, test),
        "accuracy": _accuracy(case, original, quantized, test),
    }


def sqnr(original: Model, quantized: Mapping[str, Model], test: DataReader) -> dict[str, float]:
    """What `compare_models` gives for each of them; the data is read and run in float once."""
    outputs = [o.name for o in original.outputs if o.dtype.kind == "f"]
    taps = {(m, o): Tap((("", o), (m, o)), Error()) for m in quantized for o in outputs}
    found = observe({"": original, **quantized}, test, taps)
    return {m: min(found[m, o].sqnr_db for o in outputs) for m in quantized}


def show(rows: Mapping[str, Row]) -> str:
    """Two Markdown tables, methods down and models across."""
    best = {name: max(row["sqnr_db"].values()) for name, row in rows.items()}
    table = []
    for method in METHODS:
        own = {name: row["sqnr_db"][method] for name, row in rows.items()}
        behind = max(best[name] - value for name, value in own.items())
        cells = (f"**{v:.2f}**" if v == best[name] else f"{v:.2f}" for name, v in own.items())
        table.append([method, *cells, f"{behind:.2f}"])
    text = markdown(["SQNR dB", *rows, "most below best"], table)
    rated = {name: row for name, row in rows.items() if row["accuracy"]}
    if rated:
        table = [["float", *(f"{row['accuracy']['float']:.2f}" for row in rated.values())]]
        for method in METHODS:
            changes = (row["accuracy"][method] for row in rated.values())
            table.append([method, *(f"{v:+.2f} [{a:+.2f}, {b:+.2f}]" for v, a, b in changes)])
        text += "\n\n" + markdown(["accuracy, change", *rated], table)
    images = (f"{name} {r['calibrated_on']} / {r['measured_on']}" for name, r in rows.items())
    return f"{text}\n\nImages calibrated on / measured on: {', '.join(images)}."


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@click.command()
@click.option("--shared", type=click.Path(exists=True, path_type=Path))
@click.option("--rapidocr", type=click.Path(exists=True, path_type=Path))
@click.option("--only", multiple=True, help="One model, by name; may be given several times.")
@click.option("--calibration", type=click.IntRange(min=1), help="Images to calibrate on [all].")
@click.option("--target", default="generic", show_default=True)
@click.option("--json", "as_json", type=click.Path(path_type=Path), help="Write the figures here.")
def main(
    shared: Path | None,
    rapidocr: Path | None,
    only: tuple[str, ...],
    calibration: int | None,
    target: str,
    as_json: Path | None,
) -> None:
    """Print the tables."""
    found = {
        "det" if "_det_" in name else name: case for name, case in cases(shared, rapidocr).items()
    }
    wanted = only or [name for name in MODELS if name in found]
    if unknown := set(wanted) - found.keys():
        raise click.UsageError(f"no model {min(unknown)!r}; there are {', '.join(found)}")
    rows = {}
    for name in wanted:
        rows[name] = measure(found[name], target, calibration)
        click.echo(f"{name}: done", err=True)
    print(show(rows))
    if as_json is not None:
        as_json.write_text(json.dumps({"target": target, "models": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
