"""Calibration beside bare inference and beside onnxruntime's calibrators: seconds and memory.

Every measurement is a process of its own. Its time runs from after the imports to the result, the
opening of the model included; how long it took until then has a column of its own. llvmlite, which
counting loads once it pays, is in the time, unless --preload makes it one of the imports. The
memory is the peak of what the process has of its own (RssAnon, every 2 ms), imports included;
beside it stands the peak of the whole resident set (VmHWM), which has mapped libraries too. Images
are decoded beforehand into one file of float32 rows, of which each process reads one at a time into
its own memory, again from the first row when they are used up: nobody pays for decoding, and no
mapped page stands in for memory. Everyone has all cores and onnxruntime's default threads.

    bare     onnxruntime, all optimizations, one image at a time, outputs thrown away
    floor    the same, returning the tensors that the quantization plan needs, thrown away
    ours     load the model, plan, and the pass Calibrate with each method
    ORT      onnxruntime's calibrators with their defaults, on the same file and operator types

A repeat runs bare, floor and ours one after the other; a ratio is the median of those within the
repeats. ORT's calibrators run once, each between two runs of ours on as many images. All but MinMax
keep every activation of every image: from two small runs of Percentile follows the largest of 32,
64, 128 ... images that fits into --most-memory and --most-seconds, and that is run. Entropy and
Distribution, which take as much memory, are run on 32 alone. (Entropy gives the same ranges as
MinMax: its 128 bins for 128 levels leave one candidate.)

Run: python benchmarks/calibration.py --shared FOLDER --rapidocr FOLDER
The folders are those of main_job.py.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import click
import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from anonymous import AnonymousMemory

if TYPE_CHECKING:
    from onnxdrp.model import Model

PARTS = ("time", "peers", "memory")
METHODS = ("minmax", "percentile", "entropy", "mse")
MEMORY_METHODS = ("minmax", "percentile")  # entropy and mse count as percentile does
PEERS = {"MinMax": "minmax", "Percentile": "percentile", "Entropy": "entropy",
         "Distribution": "sigma"}  # fmt: skip
"""onnxruntime's method, and ours that it is compared with."""

TIME_BARS = {"minmax": (1.2, 1.5)} | dict.fromkeys(METHODS[1:], (1.6, 2.0))
"""At most so many times the floor; the aim in times of bare inference."""

SMALL, FIRST = 16, 32  # images from which the memory of onnxruntime's calibrators is foretold

Array = npt.NDArray[np.float32]
Work = Callable[[], dict[str, Any]]


# --------------------------------------------------------------------------- what all of them share


@dataclass
class Setup:
    """A model and its images, prepared once for all processes.

    Attributes:
        model: the preprocessed model; `floor` is it with the tensors of the plan as outputs.
        rows: the file of the images, `unique` of them, each of this `shape`.
        fed: the tensors of the plan that are inputs of the graph.
        tapped: the other tensors of the plan.
        operators: the types of the nodes that the plan quantizes.
    """

    name: str
    model: str
    floor: str
    rows: str
    input: str
    shape: list[int]
    unique: int
    fed: list[str]
    tapped: list[str]
    operators: list[str]

    def image(self, index: int) -> Array:
        """One image with a batch axis, in memory of its own."""
        size = int(np.prod(self.shape))
        start = index % self.unique * size * 4
        return np.fromfile(self.rows, np.float32, size, offset=start).reshape(self.shape)

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Self:
        return cls(**json.loads(path.read_text()))


def prepare(folder: Path, images: int, shared: Path, rapidocr: Path | None, name: str) -> Setup:
    """Preprocess the model, plan its quantization, decode the images."""
    from main_job import cases

    from onnxdrp import preprocess
    from onnxdrp.model import Model
    from onnxdrp.passes import ConvertOpset, InferShapes
    from onnxdrp.pipeline import PassContext, PassManager
    from onnxdrp.plan import make_plan

    found = cases(shared, rapidocr)
    if name == "resnet50":
        from resnet50 import resnet50

        case, model = found["efficientnet_lite0"], Model.from_proto(resnet50())
    else:
        case = found[name]
        model = Model.load(case.path)
        model = preprocess(model, **case.options).model
    ctx = PassContext()
    PassManager([ConvertOpset(), InferShapes()]).run(model, ctx)
    plan = make_plan(model, ctx.target, {})
    only = model.inputs[0].name
    with (folder / "images").open("wb") as file:
        unique = 0
        for batch in case.calibrate(model).batches():
            rows = np.ascontiguousarray(batch[only][: images - unique], np.float32)
            rows.tofile(file)
            unique += len(rows)
            if unique == images:
                break
    model.save(folder / "model.onnx")
    tapped = [t for t in plan.observed if t != only]
    _save_floor(model, tapped, folder / "floor.onnx")
    return Setup(
        name=name,
        model=str(folder / "model.onnx"),
        floor=str(folder / "floor.onnx"),
        rows=str(folder / "images"),
        input=only,
        shape=[1, *rows.shape[1:]],
        unique=unique,
        fed=[t for t in plan.observed if t == only],
        tapped=tapped,
        operators=sorted({model.node(node).op for node in plan.nodes}),
    )


def _save_floor(model: "Model", tapped: list[str], path: Path) -> None:
    proto = model.proto()
    present = {value.name for value in proto.graph.output}
    for name in tapped:
        if name not in present:
            proto.graph.output.add(name=name)
    path.write_bytes(proto.SerializeToString())


# ------------------------------------------------------------------- what is measured, in a child


@dataclass
class Job:
    """One measurement: of whom (a key of `CHILDREN`), how, on how many images of which setup.

    Attributes:
        limit: Calibrate's memory_limit, in bytes.
        preload: load llvmlite among the imports, not when counting would.
    """

    kind: str
    method: str
    count: int
    setup: str
    limit: int
    preload: bool


def bare(setup: Setup, job: Job) -> Work:
    return lambda: _infer(setup, setup.model, None, job.count)


def floor(setup: Setup, job: Job) -> Work:
    return lambda: _infer(setup, setup.floor, setup.tapped, job.count)


def _infer(setup: Setup, path: str, names: list[str] | None, count: int) -> dict[str, Any]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    size = 0
    for index in range(count):
        image = setup.image(index)
        values = session.run(names, {setup.input: image})
        size = sum(value.nbytes for value in values) + len(setup.fed) * image.nbytes
        del values  # or they would be held while the next are made
    return {"tapped_mb": size / 1e6}


def ours(setup: Setup, job: Job) -> Work:
    from onnxdrp.datareaders import Batch, DataReader
    from onnxdrp.model import Model
    from onnxdrp.passes import Calibrate
    from onnxdrp.pipeline import PassContext

    if job.preload and job.method != "minmax":  # which never loads it
        from onnxdrp.counting import compiled_count

        compiled_count()

    class Images(DataReader):
        """The images one by one; counts how many were read, and so the passes."""

        read = 0

        def __init__(self, indices: npt.NDArray[np.int64]) -> None:
            self.indices = indices
            self.samples = len(indices)

        def batches(self) -> Iterator[Batch]:
            for index in self.indices:
                Images.read += 1
                yield {setup.input: setup.image(int(index))}

        def pick(self, indices: npt.NDArray[np.int64]) -> "Images":
            return Images(self.indices[indices])

    def work() -> dict[str, Any]:
        options: dict[str, Any] = {"method": job.method, "memory_limit": job.limit}
        step, model = Calibrate(**options), Model.load(setup.model)
        ctx = PassContext(reader=Images(np.arange(job.count)))
        step.requires(model, ctx)
        step.run(model, ctx)
        if ctx.ranges.keys() != {*setup.fed, *setup.tapped}:
            raise AssertionError("Calibrate measures other tensors than the floor returns")
        return {"passes": max(1, Images.read // job.count)}  # a few are read to look at them

    return work


def peer(setup: Setup, job: Job) -> Work:
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    class Images(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
        def __init__(self) -> None:
            self.indices = iter(range(job.count))

        def get_next(self) -> dict[str, Array] | None:
            index = next(self.indices, None)
            return None if index is None else {setup.input: setup.image(index)}

    def work() -> dict[str, Any]:
        calibrator = create_calibrator(
            setup.model,
            setup.operators,
            augmented_model_path=str(Path(setup.model).with_name("augmented.onnx")),
            calibrate_method=CalibrationMethod[job.method],
        )
        calibrator.collect_data(Images())
        return {"tensors": len(calibrator.compute_data().data)}

    return work


CHILDREN = {f.__name__: f for f in (bare, floor, ours, peer)}


def child(job: Job) -> dict[str, Any]:
    """Measure in this process; what is imported before the clock starts is not in the time."""
    work = CHILDREN[job.kind](Setup.load(Path(job.setup)), job)
    imports = _age()
    watch = AnonymousMemory()
    started, used = time.perf_counter(), sum(os.times()[:4])
    found = work()
    seconds, cpu = time.perf_counter() - started, sum(os.times()[:4]) - used
    figures = {"seconds": seconds, "cpu": cpu, "imports": imports}
    memory = {"peak_mb": watch.stop() / 1e6, "resident_mb": _status("self", "VmHWM")}
    return {**figures, **memory, **found}


def _age() -> float:
    """Seconds since this process began, in steps of the system's clock (10 ms)."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    began = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # man 5 proc: starttime, since boot
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began


def _status(process: str, entry: str) -> float:
    """A size in /proc/PROCESS/status, in MB (10^6 bytes)."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    found = (line for line in lines if line.startswith(f"{entry}:"))
    return int(next(found, "- 0 kB").split()[1]) * 1024 / 1e6  # one that has ended has none


# --------------------------------------------------------------------------- the order of the runs


@dataclass
class Bench:
    """Runs children for one model and remembers all that they found.

    Attributes:
        runs: {"kind/method": [a dict for each run]}; one that came to nothing says why in "failed".
    """

    setup: Setup
    path: Path
    limit: int
    preload: bool
    most_mb: float
    most_seconds: float
    runs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def run(self, kind: str, method: str, count: int, part: str, repeat: int = 0) -> dict[str, Any]:
        """Measure once; the child is ended where it takes too much memory or time."""
        found = self._measured(kind, method, count)
        found |= {"images": count, "part": part, "repeat": repeat}
        self.runs.setdefault(f"{kind}/{method}", []).append(found)
        what = found.get("failed") or f"{found['seconds']:.2f} s, {found['peak_mb']:.0f} MB"
        print(f"{self.setup.name} {kind} {method} {count}: {what}", file=sys.stderr)
        return found

    def _measured(self, kind: str, method: str, count: int) -> dict[str, Any]:
        job = Job(kind, method, count, str(self.path), self.limit, self.preload)
        arguments = [sys.executable, __file__, "--child", json.dumps(asdict(job))]
        started = time.monotonic()
        with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as complained:
            process = subprocess.Popen(arguments, stdout=said, stderr=complained)
            failed = ""
            while not failed:
                try:
                    process.wait(0.1)
                    break
                except subprocess.TimeoutExpired:
                    if _status(str(process.pid), "VmRSS") > self.most_mb:
                        failed = f"does not fit in {self.most_mb / 1e3:.1f} GB"
                    elif time.monotonic() - started > self.most_seconds:
                        failed = f"not done in {self.most_seconds:.0f} s"
            if failed:
                process.kill()
                process.wait()
            elif process.returncode:
                complained.seek(0)
                failed = (complained.read().strip().splitlines() or [f"{process.returncode}"])[-1]
            if failed:
                return {"failed": failed}
            said.seek(0)
            result: dict[str, Any] = json.loads(said.read().splitlines()[-1])
            return result

    def of(self, who: str, part: str, count: int | None = None) -> list[dict[str, Any]]:
        """The runs of one that came to something."""
        return [
            run
            for run in self.runs.get(who, ())
            if run["part"] == part and "failed" not in run and count in (None, run["images"])
        ]

    def why(self, who: str, part: str) -> str:
        """Why one has no figures."""
        runs = (run for run in self.runs.get(who, ()) if run["part"] == part)
        failed = (f"{run['images']} images: {run['failed']}" for run in runs if "failed" in run)
        return next(failed, "not run")


def measure_time(bench: Bench, methods: list[str], images: int, repeats: int) -> None:
    for repeat in range(repeats):
        for kind, method in (("bare", ""), ("floor", ""), *(("ours", m) for m in methods)):
            bench.run(kind, method, images, "time", repeat)


def measure_peers(bench: Bench, images: int, most: int) -> None:
    """Each calibrator of onnxruntime on as many images as fit, between two runs of ours."""
    for name, method in PEERS.items():
        counts = [images] if name == "MinMax" else fitting(bench, name, most)
        for count in counts:
            bench.run("ours", method, count, f"beside {name}")
            found = bench.run("peer", name, count, "peers")
            bench.run("ours", method, count, f"beside {name}")
            if "failed" not in found:
                break


def fitting(bench: Bench, name: str, most: int) -> list[int]:
    """The counts of images to try, the largest that should fit first."""
    if name != "Percentile" or most <= FIRST:
        return [min(most, FIRST)]
    for count in (SMALL, FIRST):
        bench.run("peer", name, count, "foretell")
    seconds, mb = foretell(bench, "seconds"), foretell(bench, "peak_mb")
    counts = [FIRST << i for i in range((most // FIRST).bit_length())]
    fit = [n for n in counts if mb(n) < bench.most_mb and seconds(n) < bench.most_seconds]
    return fit[::-1] or [FIRST]


def foretell(bench: Bench, what: str) -> Callable[[int], float]:
    """A figure of onnxruntime's Percentile for any count of images, from the two small runs."""
    small, first = (bench.of("peer/Percentile", "foretell", n) for n in (SMALL, FIRST))
    if not (small and first):
        return lambda _: np.inf
    slope = (first[0][what] - small[0][what]) / (FIRST - SMALL)
    return lambda count: float(first[0][what] + slope * (count - FIRST))


def measure_memory(bench: Bench, methods: list[str], counts: list[int]) -> None:
    for count in counts:
        for method in methods:
            if method in MEMORY_METHODS:
                bench.run("ours", method, count, "memory")


# ------------------------------------------------------------------------------------- the tables


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def median(runs: list[dict[str, Any]], what: str) -> float:
    return float(statistics.median(run[what] for run in runs))


def ratio(runs: list[dict[str, Any]], others: list[dict[str, Any]], what: str = "seconds") -> float:
    """The median of the ratios within the repeats."""
    beside = {other["repeat"]: other[what] for other in others}
    found = [run[what] / beside[run["repeat"]] for run in runs if run["repeat"] in beside]
    return float(statistics.median(found)) if found else math.nan


def time_table(benches: list[Bench], methods: list[str]) -> str:
    head = ("model", "images", "what", "s", "CPU s", "/ floor", "/ bare", "CPU / floor",
            "imports s", "peak MB", "resident MB", "tapped MB", "passes")  # fmt: skip
    rows = []
    for bench in benches:
        base, low = bench.of("bare/", "time"), bench.of("floor/", "time")
        for who in ("bare/", "floor/", *(f"ours/{m}" for m in methods)):
            runs = bench.of(who, "time")
            if not (runs and base and low):
                rows.append((bench.setup.name, "", who, bench.why(who, "time"), *[""] * 9))
                continue
            rows.append(
                (
                    bench.setup.name, str(runs[0]["images"]), who.strip("/").replace("/", " "),
                    f"{median(runs, 'seconds'):.2f}", f"{median(runs, 'cpu'):.2f}",
                    f"{ratio(runs, low):.2f}", f"{ratio(runs, base):.2f}",
                    f"{ratio(runs, low, 'cpu'):.2f}", f"{median(runs, 'imports'):.2f}",
                    f"{median(runs, 'peak_mb'):.0f}", f"{median(runs, 'resident_mb'):.0f}",
                    f"{low[0]['tapped_mb']:.1f}" if who != "bare/" else "-",
                    str(runs[0].get("passes", "-")),
                )
            )  # fmt: skip
    return table(head, rows)


def peer_table(benches: list[Bench]) -> str:
    head = ("model", "ORT method", "images", "ORT s", "ORT peak MB", "ours", "ours s",
            "ours peak MB", "ORT / ours")  # fmt: skip
    rows = []
    for bench in benches:
        for name, method in PEERS.items():
            runs = bench.of(f"peer/{name}", "peers")
            if not runs:
                why = bench.why(f"peer/{name}", "peers")
                rows.append((bench.setup.name, name, "", why, *[""] * 5))
                continue
            (run,), count = runs, runs[0]["images"]
            cells = (bench.setup.name, name, str(count), f"{run['seconds']:.2f}",
                     f"{run['peak_mb']:.0f}", method)  # fmt: skip
            mine = bench.of(f"ours/{method}", f"beside {name}", count)
            if not mine:
                rows.append((*cells, bench.why(f"ours/{method}", f"beside {name}"), "", ""))
                continue
            seconds = median(mine, "seconds")
            peak = f"{median(mine, 'peak_mb'):.0f}"
            rows.append((*cells, f"{seconds:.2f}", peak, f"{run['seconds'] / seconds:.1f}"))
    return table(head, rows)


def memory_table(benches: list[Bench], methods: list[str], counts: list[int]) -> str:
    head = ("model", "what", *(f"{n} images: peak MB (s)" for n in counts))
    rows = []
    for bench in benches:
        for who in (f"ours/{m}" for m in methods if m in MEMORY_METHODS):
            cells = [_memory_cell(bench.of(who, "memory", n)) for n in counts]
            rows.append((bench.setup.name, who.replace("/", " "), *cells))
        rows += _peer_memory(bench, counts)
    return table(head, rows)


def _peer_memory(bench: Bench, counts: list[int]) -> list[tuple[str, ...]]:
    """What onnxruntime's Percentile took where it was run, and what it would take elsewhere."""
    if not bench.of("peer/Percentile", "foretell"):
        return []
    mb = foretell(bench, "peak_mb")
    cells = []
    for count in counts:
        runs = [run for p in ("peers", "foretell") for run in bench.of("peer/Percentile", p, count)]
        cells.append(_memory_cell(runs) if runs else f"not run (about {mb(count):.0f})")
    return [(bench.setup.name, "ORT Percentile", *cells)]


def _memory_cell(runs: list[dict[str, Any]]) -> str:
    return f"{runs[0]['peak_mb']:.0f} ({runs[0]['seconds']:.1f})" if runs else "failed"


def verdicts(benches: list[Bench], methods: list[str], counts: list[int]) -> list[str]:
    lines = []
    for bench in benches:
        for method in methods:
            lines += _time_verdicts(bench, method)
            lines += _flatness(bench, method, counts)
        lines += _five_times(bench)
    return lines


def _verdict(bench: Bench, method: str, what: str, value: float, bar: float, digits: int) -> str:
    word = "holds" if value <= bar else "MISSED"
    text = f"{what} {value:.{digits}f}, bar {bar:.{digits}f}"
    return f"- {word}: {bench.setup.name} {method}: {text}"


def _time_verdicts(bench: Bench, method: str) -> list[str]:
    runs, base, low = (bench.of(w, "time") for w in (f"ours/{method}", "bare/", "floor/"))
    if not (runs and base and low):
        return []
    passes, (bar, aim) = runs[0]["passes"], TIME_BARS[method]
    of = f" for each of {passes} passes" if passes > 1 else ""
    tapped = min(low[0]["tapped_mb"], bench.limit / 1e6)
    most = median(base, "peak_mb") + 1.5 * tapped + 150
    return [
        _verdict(bench, method, f"time / floor{of}", ratio(runs, low) / passes, bar, 2),
        _verdict(bench, method, f"(aim) time / bare{of}", ratio(runs, base) / passes, aim, 2),
        _verdict(bench, method, "peak MB", median(runs, "peak_mb"), most, 0),
    ]


def _flatness(bench: Bench, method: str, counts: list[int]) -> list[str]:
    """The peak at the most images beside that at 128, or at the fewest above it."""
    peaks = [r for n in counts if n >= 128 for r in bench.of(f"ours/{method}", "memory", n)]
    if len(peaks) < 2:
        return []
    first, last = peaks[0], peaks[-1]
    what = f"peak at {last['images']} / peak at {first['images']} images"
    return [_verdict(bench, method, what, last["peak_mb"] / first["peak_mb"], 1.05, 3)]


def _five_times(bench: Bench) -> list[str]:
    found = bench.of("peer/Percentile", "peers")
    if not found:
        return []
    count = found[0]["images"]
    mine = bench.of("ours/percentile", "beside Percentile", count)
    if not mine:
        return []
    what = f"time / ORT Percentile at {count} images"
    value = median(mine, "seconds") / found[0]["seconds"]
    return [_verdict(bench, "percentile", what, value, 0.2, 3)]


# ------------------------------------------------------------------------------------ command line


def _split(text: str, known: tuple[str, ...] | None = None) -> list[str]:
    found = [word for word in text.split(",") if word]
    if known and (unknown := set(found) - set(known)):
        raise click.UsageError(f"{', '.join(sorted(unknown))}: there are {', '.join(known)}")
    return found


def _models(rapidocr: Path | None, only: str) -> list[str]:
    names = ["yolox_nano_416", "efficientnet_lite0", "resnet50"]
    if rapidocr is not None:
        names.insert(2, next(rapidocr.glob("*_det_*.onnx")).stem)
    return _split(only, tuple(names)) or names


def _most_mb(gigabytes: float) -> float:
    """What a child may take: as asked, but not more than the machine has free by far."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    return min(gigabytes * 1e3, 0.8 * free * 1024 / 1e6)


@click.command()
@click.option("--shared", type=click.Path(exists=True, path_type=Path))
@click.option("--rapidocr", type=click.Path(exists=True, path_type=Path))
@click.option("--only", default="", help="Models, by name, with commas.")
@click.option("--parts", default=",".join(PARTS), show_default=True)
@click.option("--methods", default=",".join(METHODS), show_default=True)
@click.option("--images", default=128, show_default=True, help="Of the comparison of times.")
@click.option("--repeats", default=5, show_default=True)
@click.option("--memory", default="32,128,512,2048", show_default=True, help="Counts of images.")
@click.option("--peer-images", default=512, show_default=True, help="The most for ORT.")
@click.option("--most-memory", default=16.0, show_default=True, help="GB a process may take.")
@click.option("--most-seconds", default=240.0, show_default=True, help="A process may take.")
@click.option("--memory-limit", default=1024.0, show_default=True, help="Calibrate's, in MB.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--preload", is_flag=True, help="llvmlite is one of the imports.")
@click.option("--child", "job", hidden=True)
def main(
    shared: Path | None,
    rapidocr: Path | None,
    only: str,
    parts: str,
    methods: str,
    images: int,
    repeats: int,
    memory: str,
    peer_images: int,
    most_memory: float,
    most_seconds: float,
    memory_limit: float,
    json_file: Path | None,
    preload: bool,
    job: str | None,
) -> None:
    """Print the tables and the verdicts; what is being measured goes to the error stream."""
    if job is not None:
        print(json.dumps(child(Job(**json.loads(job)))))
        return
    if shared is None:
        raise click.UsageError("--shared is needed")
    chosen, wanted = _split(methods, METHODS), _split(parts, PARTS)
    counts = sorted(int(n) for n in _split(memory))
    benches: list[Bench] = []
    with tempfile.TemporaryDirectory() as place:
        for name in _models(rapidocr, only):
            folder = Path(place) / name
            folder.mkdir()
            path = folder / "setup.json"
            prepare(folder, images, shared, rapidocr, name).save(path)
            limit, most_mb = int(memory_limit * 1e6), _most_mb(most_memory)
            bench = Bench(Setup.load(path), path, limit, preload, most_mb, most_seconds)
            if not benches:  # what is compiled once for an installation is compiled now
                for warm in chosen:
                    bench.run("ours", warm, 2, "warm")
            if "time" in wanted:
                measure_time(bench, chosen, images, repeats)
            if "peers" in wanted:
                measure_peers(bench, images, peer_images)
            if "memory" in wanted:
                measure_memory(bench, chosen, counts)
            benches.append(bench)
            if json_file is not None:  # after each model, so that what is done is not lost
                json_file.write_text(json.dumps({b.setup.name: b.runs for b in benches}, indent=1))
    loading = "one of the imports" if preload else "in the time"
    print(f"onnxruntime {ort.__version__}, {os.cpu_count()} cores, medians of {repeats}, ", end="")
    print(f"loading llvmlite is {loading}\n")
    if "time" in wanted:
        print(time_table(benches, chosen), end="\n\n")
    if "peers" in wanted:
        print(peer_table(benches), end="\n\n")
    if "memory" in wanted:
        print(memory_table(benches, chosen, counts), end="\n\n")
    print("Bars, which are meant for 128 images and more:\n")
    print("\n".join(verdicts(benches, chosen, counts)))


if __name__ == "__main__":
    main()
