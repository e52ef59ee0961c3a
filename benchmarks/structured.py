"""What removing channels costs and gains, from unlabelled images alone.

Top-1 in percent on labelled images that nothing has seen; of yolox_nano_416 the mAP 50-95 in
percent. Each row is a model, a share of the multiply-adds that shall go, and a way to choose the
channels:

    uniform       the same share of each group, the smallest by their weights (L1)
    scored        the same, those that their readers miss least (ScoreChannels, as in all below
                  but auto)
    curves        by what each group alone costs the outputs (MeasureChannels)
    moments       by what it costs the layers behind
    search        the best of 50 random sub-networks, repaired by matching moments
    auto          what 1 point of top-1 allows, removed and re-fitted round by round (the share does
                  not count): judged by every other test image, measured on those between
    onnxsim       its structured pruning, L2, at the nearest share that it reaches (needs
                  --onnxsim-python, the interpreter of an environment that has it)

and its columns: the multiply-adds, parameters and bytes that are left, as shares; how much faster
onnxruntime runs the result (median of interleaved runs of one image, one thread); top-1 of the
float model, as the channels were removed, once the rest is re-fitted, and distilled (by up to 5,000
images; where there are too few, a tenth of them is held back from all passes to judge that by);
seconds of all passes from the choice on without that, peak memory of the process (RssAnon).

Run: python benchmarks/structured.py --shared FOLDER [--resnet20 FILE] [--resnet56 FILE]
         [--models modA,resnet20] [--ratios 0.5] [--ways uniform] [--distill-minutes 15]
         [--multiple 8] [--onnxsim-python FILE] [--out FILE.json]
A distillation next to other work is quicker with OMP_WAIT_POLICY=passive in the environment.
"""

import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from anonymous import AnonymousMemory
from main_job import Case
from main_job import cases as jobs
from methods import markdown
from recover import FILE, REFIT_IMAGES, Places, drawn, others, run, tests

import onnxdrp
from onnxdrp import chains
from onnxdrp import passes as p
from onnxdrp.channels.cost import totals
from onnxdrp.datareaders import DataReader, split, subset
from onnxdrp.datareaders.batching import count
from onnxdrp.detection import evaluate_detection
from onnxdrp.evaluation import accuracy
from onnxdrp.model import Model
from onnxdrp.pipeline import Pass, PassContext, PassManager
from onnxdrp.summary import summarize_layers

Row = dict[str, Any]
RUNS, WARM = 60, 10
TRIES = 50
HELD_OUT = 0.1
PEER = "onnxsim"
PEER_SCRIPT = Path(__file__).with_name("onnxsim_structured.py")


@dataclass(frozen=True)
class Job:
    """One row; what a process of its own is given."""

    places: Places
    model: str
    ratio: float
    way: str
    multiple: int
    minutes: float | None
    images: int = REFIT_IMAGES
    seed: int = 0
    configuration: str = ""


def _select(job: Job) -> Pass:
    return p.SelectChannels(ratio=job.ratio, multiple=job.multiple)


WAYS: dict[str, Callable[[Job], list[Pass]]] = {
    "uniform": lambda job: [_select(job)],
    "scored": lambda job: [p.ScoreChannels(), _select(job)],
    "curves": lambda job: [p.ScoreChannels(), p.MeasureChannels(), _select(job)],
    "moments": lambda job: [p.ScoreChannels(), p.MeasureChannels(mode="moments"), _select(job)],
    "search": lambda job: [
        p.ScoreChannels(),
        p.SearchChannels(ratio=job.ratio, multiple=job.multiple, tries=TRIES),
    ],
}
AUTO = "auto"
BOXES = "yolox_nano_416"


def cases(places: Places) -> dict[str, Case]:
    """Those of recover.py, and a detector."""
    shared = None if places.shared is None else Path(places.shared)
    boxes = {name: c for name, c in jobs(shared, None).items() if name == BOXES}
    return tests(places) | boxes


def measure(job: Job) -> Row:
    """All figures of a row."""
    case = cases(job.places)[job.model]
    original = Model.load(case.path)
    pool, test = case.calibrate(original), case.test(original)
    score = _mean_precision if case.boxes else _top1
    model = original.clone()
    PassManager(chains.preprocessing(None, None)).run(model, PassContext())
    whole = model.clone()
    row: Row = {"float": score(original, test)}
    if job.way == PEER:
        smaller, row["seconds"] = peer(job, whole)
        return row | _size(whole, smaller) | {"removed": score(smaller, test)}
    reader, more, held = drawn(pool, job.images, job.seed), pool, None
    if job.minutes is not None:
        more, held = others(pool, job)  # type: ignore[arg-type]
        if held is None:
            more, held = split(pool, HELD_OUT, job.seed)
            reader = more
    watch, started = AnonymousMemory(), time.perf_counter()
    ctx = PassContext(reader=reader, seed=job.seed)
    if job.way == AUTO:
        ctx.held_out, test = (subset(test, np.arange(first, count(test), 2)) for first in (0, 1))
        row["float"] = score(original, test)
        PassManager([p.AutoSlim(multiple=job.multiple)]).run(model, ctx)
        row |= _size(whole, model) | {"seconds": time.perf_counter() - started}
        return row | {"refit": score(model, test), "peak_mb": watch.stop() / 1e6}
    PassManager([*WAYS[job.way](job), p.RemoveChannels()]).run(model, ctx)
    seconds = time.perf_counter() - started
    row |= _size(whole, model) | {"removed": score(model, test)}
    started = time.perf_counter()
    PassManager([p.RefitWeights()]).run(model, ctx)
    row |= {"seconds": seconds + time.perf_counter() - started, "refit": score(model, test)}
    row["peak_mb"] = watch.stop() / 1e6
    if job.minutes is not None:
        ctx.reader, ctx.held_out = more, held
        (record,) = PassManager([p.Distill(minutes=job.minutes)]).run(model, ctx).records
        row |= {"distill": score(model, test), "steps": record.stats["taken"]}
    return row


def peer(job: Job, whole: Model) -> tuple[Model, float]:
    """The result of onnxsim with the multiply-adds nearest to the wanted, and its seconds."""
    with tempfile.TemporaryDirectory() as folder:
        before = f"{folder}/whole.onnx"
        whole.save(before)
        best: tuple[float, Model, float] | None = None
        for sparsity in np.arange(0.1, 0.95, 0.05):
            share = f"{sparsity:.2f}"
            after = f"{folder}/{share}.onnx"  # its own: the weights of the best stay mapped
            arguments = [str(job.places.onnxsim), str(PEER_SCRIPT), before, share, after]
            done = subprocess.run(arguments, check=True, text=True, stdout=subprocess.PIPE).stdout
            found = onnxdrp.preprocess(after).model.clone()
            off = abs(_size(whole, found, latency=False)["macs"] - (1 - job.ratio))
            if best is None or off < best[0]:
                best = off, found, json.loads(done.splitlines()[-1])["seconds"]
    assert best is not None
    return best[1:]


def _top1(model: Model, test: DataReader) -> float:
    return 100 * float(accuracy(model, test).top1.mean())


def _mean_precision(model: Model, test: DataReader) -> float:
    return 100 * float(evaluate_detection(model, test).map_5095)


def _size(whole: Model, smaller: Model, *, latency: bool = True) -> Row:
    """Shares of multiply-adds, parameters and bytes that are left, and the gain in time."""
    before, after = summarize_layers(whole), summarize_layers(smaller)
    assert before.baseline_mac
    row: Row = {
        "macs": (after.baseline_mac or 0) / before.baseline_mac,
        "params": totals(smaller)[0] / totals(whole)[0],
        "bytes": smaller.inventory()[1] / whole.inventory()[1],
    }
    return row | ({"faster": _faster(whole, smaller)} if latency else {})


def _faster(whole: Model, smaller: Model) -> float:
    """The ratio of the median times of one image, in turns."""
    sessions = [m.session(threads=1) for m in (whole, smaller)]
    rng = np.random.default_rng(0)
    info = whole.inputs[0]
    shape = [d if isinstance(d, int) else 1 for d in info.shape or ()]
    feed = {info.name: rng.standard_normal(shape).astype(np.float32)}
    times: list[list[float]] = [[], []]
    for turn in range(RUNS + WARM):
        for session, own in zip(sessions, times, strict=True):
            started = time.perf_counter()
            session.run(None, feed)
            if turn >= WARM:
                own.append(time.perf_counter() - started)
    return float(np.median(times[0]) / np.median(times[1]))


COLUMNS = {
    **dict.fromkeys(("macs", "params", "bytes"), 3),
    **dict.fromkeys(("faster", "float", "removed", "refit", "distill"), 2),
    "seconds": 1,
    "peak_mb": 0,
}


def table(done: list[tuple[Job, Row]]) -> str:
    """All rows, as Markdown."""
    lines = []
    for job, row in done:
        cells = [f"{row[c]:.{d}f}" if c in row else "" for c, d in COLUMNS.items()]
        cells = [row["failed"][:60], *cells[1:]] if "failed" in row else cells
        lines.append([f"{job.model} {job.ratio:g} {job.way}", *cells])
    return markdown(["model, share, way", *COLUMNS], lines)


@click.command()
@click.option("--shared", type=click.Path(exists=True, file_okay=False))
@click.option("--resnet20", type=FILE)
@click.option("--resnet56", type=FILE)
@click.option("--onnxsim-python", type=FILE, help="An interpreter that has onnxsim.")
@click.option("--models", default="", help="Names with commas [all].")
@click.option("--ratios", default="0.5", show_default=True)
@click.option("--ways", default=",".join((*WAYS, AUTO)), show_default=True)
@click.option("--multiple", default=8, show_default=True)
@click.option("--distill-minutes", type=float)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="JSON.")
@click.option("--job", "given", hidden=True)
def main(
    shared: str | None,
    resnet20: str | None,
    resnet56: str | None,
    onnxsim_python: str | None,
    models: str,
    ratios: str,
    ways: str,
    multiple: int,
    distill_minutes: float | None,
    out: Path | None,
    given: str | None,
) -> None:
    """Print the table."""
    if given is not None:
        fields = json.loads(given)
        print(json.dumps(measure(Job(**fields | {"places": Places(**fields["places"])}))))
        return
    places = Places(shared, resnet20, resnet56, onnxsim_python)
    names = [n for n in models.split(",") if n] or list(cases(places))
    chosen = [w for w in ways.split(",") if w] + ([PEER] if onnxsim_python else [])
    done = []
    for name in names:
        for ratio in map(float, ratios.split(",")):
            for way in chosen:
                minutes = distill_minutes if way != PEER else None
                job = Job(places, name, ratio, way, multiple, minutes)
                row = run(__file__, asdict(job))
                click.echo(f"{name} {ratio} {way}: {row}", err=True)
                done.append((job, row))
                if out is not None:
                    rows = [{**asdict(j), **r} for j, r in done]
                    out.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(done))


if __name__ == "__main__":
    main()
