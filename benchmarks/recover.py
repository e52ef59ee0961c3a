"""What pruning costs and what repair wins back, from unlabelled images alone.

Top-1 in percent on labelled images that no repair has seen; medians over the seeds, which draw the
images of the repair where there are more than it takes. Each configuration runs in a process of its
own. Rows are a model, a pattern, a rate and how many layers have it; columns:

    float           the model as it came
    masked          weights of smallest magnitude are zero, nothing else
    refit           the same masks, RefitWeights
    moments         refit, then MatchMoments
    second-order    masks by second-order score, RefitWeights
    auto            and rates allocated over the layers
    steps           auto, pruned in 3 steps with RefitWeights behind each
    distill N       auto, then Distill for N minutes (needs torch; one seed, at 0.7, block and
                    flex-nm only)
    ... int8        onnxdrp.quantize of that model for drp-ai3, calibrated on 200 of the images

A second table has the seconds of all passes from the choice of masks on (preprocessing, INT8 and
the measuring of accuracy not counted), a third the peak memory of the process in MB (RssAnon).

With --onnxsim-python, the interpreter of an environment that has onnxsim, its SparseGPT is beside
ours: unstructured, the same layers at the same rate, 500 images. It cannot leave layers out, but
prunes each on its own from the float model's tensors: those that ours does not prune get their
weights back. Its seconds are of all layers, first and last too.

Run: python benchmarks/recover.py --shared FOLDER [--resnet20 FILE] [--resnet56 FILE]
         [--models modA,resnet20] [--patterns block,flex-nm] [--sparsities 0.5,0.7] [--seeds 3]
         [--configurations masked,refit] [--distill-minutes 5,15] [--int8 refit]
         [--onnxsim-python FILE] [--out FILE.json]
`--shared` holds models/ and data/ as in main_job.py; train_cifar_resnet.py makes the ResNets.
"""

import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from anonymous import AnonymousMemory
from main_job import Case, cases
from methods import markdown

import onnxdrp
from onnxdrp import chains
from onnxdrp import passes as p
from onnxdrp.datareaders import DataReader, open_reader, subset
from onnxdrp.datareaders.batching import count
from onnxdrp.evaluation import accuracy, paired_difference
from onnxdrp.model import Model
from onnxdrp.pipeline import Pass, PassContext, PassManager, PassRecord
from onnxdrp.targets import load_target

Row = dict[str, Any]
PATTERNS = ("block", "flex-nm", "nm", "row")
DISTILLED_PATTERNS, DISTILLED_RATE = ("block", "flex-nm"), 0.7
REFIT_IMAGES, DISTILL_IMAGES, INT8_IMAGES, PEER_IMAGES = 1000, 5000, 200, 500
TARGET = "drp-ai3"
STEPS = 3
PEER, PEER_OURS = "onnxsim", ("masked", "refit", "second-order")
UNTIMED = {s.name for s in chains.preprocessing(None, None)} | {p.SelectLayers.name}
SCRIPT = Path(__file__).with_name("onnxsim_sparsegpt.py")


@dataclass(frozen=True)
class Places:
    """Where models and data are."""

    shared: str | None
    resnet20: str | None
    resnet56: str | None
    onnxsim: str | None


@dataclass(frozen=True)
class Job:
    """One configuration of one model; what a process of its own is given.

    Attributes:
        configuration: of CONFIGURATIONS, "float", PEER, or "distill" and minutes.
        images: for repair; None: REFIT_IMAGES, or all where there are fewer.
        int8: quantize the result too.
    """

    places: Places
    model: str
    pattern: str
    rate: float
    configuration: str
    seed: int
    images: int | None = None
    int8: bool = False

    @property
    def minutes(self) -> float | None:
        """Of distillation."""
        kind, *rest = self.configuration.split()
        return float(rest[0]) if kind == "distill" else None


def tests(places: Places) -> dict[str, Case]:
    """Every model that the arguments give; `calibrate` reads all that repair may read."""
    shared = None if places.shared is None else Path(places.shared)
    wanted = ("modA", "modB", "cifar10_cnn_nhwc", "efficientnet_lite0")
    there = cases(shared, None)
    found = {name: there[name] for name in wanted if name in there}
    if shared is None:
        return found
    folder = shared / "data" / "cifar10"

    def cifar(path: str | Path, **options: Any) -> Case:
        def reader(name: str) -> Callable[[Model], DataReader]:
            return lambda model: open_reader(folder / f"{name}.npz", model, batch=100, **options)

        return Case(Path(path), reader("unlabelled"), reader("eval"))

    found["cifar10_cnn_nhwc"] = cifar(found["cifar10_cnn_nhwc"].path, scale=1)
    for name, path in (("resnet20", places.resnet20), ("resnet56", places.resnet56)):
        if path is not None:
            found[name] = cifar(path)
    return found


# --------------------------------------------------------------------------------- configurations


def _scored(pattern: str, step: int = 1, steps: int = 1) -> list[Pass]:
    masks = p.PruneBlocks(pattern=pattern, score="second-order", step=step, steps=steps)
    return [masks, p.RefitWeights()]


def _stepwise(pattern: str) -> list[Pass]:
    passes = [one for step in range(STEPS) for one in _scored(pattern, step + 1, STEPS)]
    return [p.AllocateRates(pattern=pattern), *passes]


CONFIGURATIONS: dict[str, Callable[[str], list[Pass]]] = {
    "masked": lambda pattern: [p.PruneBlocks(pattern=pattern)],
    "refit": lambda pattern: [p.PruneBlocks(pattern=pattern), p.RefitWeights()],
    "moments": lambda pattern: [
        p.PruneBlocks(pattern=pattern),
        p.RefitWeights(),
        p.MatchMoments(),
    ],
    "second-order": _scored,
    "auto": lambda pattern: [p.AllocateRates(pattern=pattern), *_scored(pattern)],
    "steps": _stepwise,
}
SEEDLESS = ("float", "masked")


def repaired(job: Job, model: Model, pool: DataReader) -> tuple[list[PassRecord], PassContext]:
    """Prune and repair `model` in place."""
    ctx = PassContext(
        reader=drawn(pool, job.images or REFIT_IMAGES, job.seed),
        target=load_target(TARGET),
        seed=job.seed,
    )
    steps: list[Pass] = [p.SelectLayers(rate=job.rate, pattern=job.pattern)]
    name = "auto" if job.minutes is not None else job.configuration
    steps += CONFIGURATIONS[name](job.pattern)
    records = PassManager(steps).run(model, ctx).records
    if job.minutes is not None:
        ctx.reader, ctx.held_out = others(pool, job)
        records += PassManager([p.Distill(minutes=job.minutes)]).run(model, ctx).records
    return records, ctx


def drawn(reader: DataReader, images: int, seed: int) -> DataReader:
    """So many images by chance; all where there are no more."""
    there = count(reader)
    if there <= images:
        return reader
    return subset(reader, np.random.default_rng(seed).choice(there, images, replace=False))


def others(reader: DataReader, job: Job) -> tuple[DataReader, DataReader | None]:
    """Images to distill on, and a tenth as many that no pass has fitted anything to."""
    images, there = job.images or REFIT_IMAGES, count(reader)
    if there < images + there // 10:
        return reader, None
    order = np.random.default_rng(job.seed).choice(there, images, replace=False)
    unseen = np.setdiff1d(np.arange(there), order)
    held = unseen[:: max(len(unseen) // (there // 10), 1)]
    rest = np.setdiff1d(np.arange(there), held)[:DISTILL_IMAGES]
    return subset(reader, rest), subset(reader, held)


# -------------------------------------------------------------------------- in a process of its own


def measure(job: Job) -> Row:
    """Top-1, its change with the paired interval, seconds, memory."""
    case = tests(job.places)[job.model]
    original = Model.load(case.path)
    pool, test = case.calibrate(original), case.test(original)
    if job.configuration == "float":
        right = accuracy(original, test).top1
        row: Row = {"top1": 100 * float(right.mean()), "images": len(right)}
        return row | _quantized(job, original, pool, test)
    model = original.clone()
    PassManager(chains.preprocessing(None, None)).run(model, PassContext())
    watch = AnonymousMemory()
    if job.configuration == PEER:
        row = peer(job, model, pool)
        watch.stop()
    else:
        records, ctx = repaired(job, model, pool)
        row = {"peak_mb": watch.stop() / 1e6, "sparsity": _sparsity(model, ctx.masks)}
        row["passes"] = [[r.name, round(r.seconds, 3)] for r in records]
        row["seconds"] = sum(r.seconds for r in records if r.name not in UNTIMED)
        row["layers"] = len(ctx.masks)
        row["steps"] = next((r.stats["steps"] for r in records if r.name == "distill"), None)
    before, after = (accuracy(m, test).top1 for m in (original, model))
    row |= {"top1": 100 * float(after.mean()), "change": list(paired_difference(before, after))}
    return row | _quantized(job, model, pool, test)


def _quantized(job: Job, model: Model, pool: DataReader, test: DataReader) -> Row:
    if not job.int8:
        return {}
    calib = drawn(pool, INT8_IMAGES, job.seed)
    result = onnxdrp.quantize(model.clone(), calib, data=calib, target=TARGET, seed=job.seed).model
    return {"int8_top1": 100 * float(accuracy(result, test).top1.mean())}


def _sparsity(model: Model, weights: Iterable[str]) -> float:
    values = [model.weight(name) for name in weights]
    return 1 - float(sum(map(np.count_nonzero, values))) / sum(v.size for v in values)


def peer(job: Job, model: Model, pool: DataReader) -> Row:
    """The weights of onnxsim's SparseGPT in the layers that ours prunes."""
    assert job.places.onnxsim is not None  # the table has no such column without it
    ctx = PassContext(target=load_target(TARGET))
    PassManager([p.SelectLayers(rate=job.rate, pattern=job.pattern)]).run(model, ctx)
    with tempfile.TemporaryDirectory() as folder:
        files = [f"{folder}/{name}" for name in ("float.onnx", "rows.npy", "pruned.onnx")]
        model.save(files[0])
        name = model.inputs[0].name
        images = drawn(pool, job.images or PEER_IMAGES, job.seed)
        np.save(files[1], np.concatenate([np.array(batch[name]) for batch in images.batches()]))
        arguments = [job.places.onnxsim, str(SCRIPT), *files[:2], str(job.rate), files[2]]
        done = subprocess.run(arguments, check=True, text=True, stdout=subprocess.PIPE).stdout
        pruned = Model.load(files[2])
    for weight in ctx.rates:
        model.set_weight(weight, pruned.weight(weight))
    row: Row = json.loads(done.splitlines()[-1])
    return row | {"sparsity": _sparsity(model, ctx.rates), "layers": len(ctx.rates)}


# ------------------------------------------------------------------------------------- all of them


def jobs(
    places: Places,
    models: Iterable[str],
    patterns: Iterable[str],
    rates: Iterable[float],
    configurations: list[str],
    seeds: int,
    images: int | None,
    int8: set[str],
) -> Iterator[Job]:
    """Every cell of the tables, once for each seed that changes it."""

    def one(model: str, pattern: str, rate: float, name: str, seed: int) -> Job:
        kind = name.split()[0]
        return Job(places, model, pattern, rate, name, seed, images, kind in int8)

    for model in models:
        yield one(model, "", 0.0, "float", 0)
        for pattern in patterns:
            for rate in rates:
                for name in configurations:
                    drawn_by = 1 if name in SEEDLESS else seeds
                    if name.startswith("distill"):
                        wanted = pattern in DISTILLED_PATTERNS and rate == DISTILLED_RATE
                        drawn_by = int(wanted)
                    for seed in range(drawn_by):
                        yield one(model, pattern, rate, name, seed)
        if places.onnxsim is not None:
            for rate in rates:
                for name in (*PEER_OURS, PEER):
                    for seed in range(1 if name in SEEDLESS else seeds):
                        job = one(model, "unstructured", rate, name, seed)
                        yield replace(job, images=images or PEER_IMAGES)


def run(script: str, fields: dict[str, Any]) -> Row:
    """The figures that a script prints for a job in a process of its own, or why it "failed"."""
    arguments = [sys.executable, script, "--job", json.dumps(fields)]
    done = subprocess.run(arguments, check=False, text=True, capture_output=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return {"failed": lines[-1][:300]}
    found: Row = json.loads(done.stdout.splitlines()[-1])
    return found


# ----------------------------------------------------------------------------------- what is shown


@dataclass(frozen=True)
class Done:
    """A job and what came of it."""

    job: Job
    row: Row


def tables(done: list[Done]) -> str:
    """Top-1, seconds and memory; rows a model, a pattern and a rate."""
    whole = {d.job.model: [d.row] for d in done if d.job.configuration == "float"}
    places: dict[tuple[str, str, float], dict[str, list[Row]]] = {}
    for job, row in ((d.job, d.row) for d in done if d.job.configuration != "float"):
        cells = places.setdefault((job.model, job.pattern, job.rate), {"float": whole[job.model]})
        cells.setdefault(job.configuration, []).append(row)
    names = list(dict.fromkeys(name for cells in places.values() for name in cells))
    int8 = list(dict.fromkeys(d.job.configuration for d in done if d.job.int8))

    def table(title: str, digits: int, columns: list[tuple[str, str]]) -> str:
        head = [f"{name} int8" if key == "int8_top1" else name for name, key in columns]
        lines = [
            [_label(*place, cells), *(_median(cells.get(n, []), k, digits) for n, k in columns)]
            for place, cells in places.items()
        ]
        return markdown([title, *head], lines)

    return "\n\n".join(
        (
            table("top-1", 2, [(n, "top1") for n in names] + [(n, "int8_top1") for n in int8]),
            table("seconds", 1, [(n, "seconds") for n in names[1:]]),
            table("peak MB", 0, [(n, "peak_mb") for n in names[1:]]),
        )
    )


def _label(model: str, pattern: str, rate: float, cells: dict[str, list[Row]]) -> str:
    found = {row["layers"] for rows in cells.values() for row in rows if "layers" in row}
    return f"{model} {pattern} {rate:g} ({'/'.join(map(str, sorted(found)))} layers)"


def _median(rows: list[Row], key: str, digits: int) -> str:
    if failed := [row["failed"] for row in rows if "failed" in row]:
        return str(failed[0])[:60]
    values = [row[key] for row in rows if row.get(key) is not None]
    return f"{statistics.median(values):.{digits}f}" if values else ""


# ------------------------------------------------------------------------------------ command line


def _words(text: str, known: Iterable[str]) -> list[str]:
    """What stands between the commas, each of `known`; all of them where the text is empty."""
    words, known = [w.strip() for w in text.split(",") if w.strip()], list(known)
    if unknown := [w for w in words if w not in known]:
        raise click.UsageError(f"{unknown[0]!r}: there are {', '.join(known)}")
    return words or known


def _numbers(text: str) -> list[float]:
    return [float(word) for word in text.split(",") if word.strip()]


FILE = click.Path(exists=True, dir_okay=False)


@click.command()
@click.option("--shared", type=click.Path(exists=True, file_okay=False))
@click.option("--resnet20", type=FILE)
@click.option("--resnet56", type=FILE)
@click.option("--onnxsim-python", type=FILE, help="An interpreter that has onnxsim.")
@click.option("--models", default="", help="Names with commas [all].")
@click.option(
    "--patterns", default=",".join(PATTERNS), show_default=True, help="'none': only onnxsim."
)
@click.option("--sparsities", default="0.5,0.7,0.9", show_default=True)
@click.option("--configurations", default="", help="Columns, without distill [all].")
@click.option("--distill-minutes", default="5,15", show_default=True, help="'' for none.")
@click.option("--int8", default="float,refit,auto,distill", show_default=True, help="Columns.")
@click.option("--seeds", default=3, show_default=True)
@click.option("--images", type=int, help=f"For repair [{REFIT_IMAGES}].")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="JSON.")
@click.option("--job", "given", hidden=True)
def main(
    shared: str | None,
    resnet20: str | None,
    resnet56: str | None,
    onnxsim_python: str | None,
    models: str,
    patterns: str,
    sparsities: str,
    configurations: str,
    distill_minutes: str,
    int8: str,
    seeds: int,
    images: int | None,
    out: Path | None,
    given: str | None,
) -> None:
    """Print the tables."""
    if given is not None:
        fields = json.loads(given)
        print(json.dumps(measure(Job(**fields | {"places": Places(**fields["places"])}))))
        return
    places = Places(shared, resnet20, resnet56, onnxsim_python)
    columns = _words(configurations, CONFIGURATIONS)
    minutes = _numbers(distill_minutes)
    if minutes and importlib.util.find_spec("torch") is None:
        click.echo("distill: left out, torch is not installed", err=True)
        minutes = []
    columns += [f"distill {m:g}" for m in minutes]
    wanted = jobs(
        places,
        _words(models, tests(places)),
        [] if patterns == "none" else patterns.split(","),
        _numbers(sparsities),
        columns,
        seeds,
        images,
        set(int8.split(",")),
    )
    done: list[Done] = []
    for job in wanted:
        done.append(Done(job, run(__file__, asdict(job))))
        click.echo(f"{_said(job)}: {_short(done[-1].row)}", err=True)
        if out is not None:  # after each, so that what is done is not lost
            found = [{**_plain(d.job), **d.row} for d in done]
            out.write_text(json.dumps(found, indent=1) + "\n")
    print(tables(done))


def _plain(job: Job) -> Row:
    return {name: value for name, value in asdict(job).items() if name != "places"}


def _said(job: Job) -> str:
    return f"{job.model} {job.pattern} {job.rate:g} {job.configuration} seed {job.seed}"


def _short(row: Row) -> str:
    keys = ("failed", "top1", "int8_top1", "seconds", "peak_mb", "sparsity", "steps")
    return ", ".join(
        f"{k} {row[k]:.4g}" if isinstance(row[k], float) else f"{k} {row[k]}"
        for k in keys
        if row.get(k) is not None
    )


if __name__ == "__main__":
    main()
