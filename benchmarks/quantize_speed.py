"""How long `quantize` takes beside its calibration, and its work on graphs of thousands of nodes.

Whole: `onnxdrp.quantize` on EfficientNet-Lite0 with 100 images of 224x224 that lie decoded in
memory, from the loaded model to the report, its figures on held-back images included; beside it the
seconds of its pass `calibrate`. Imports are not in the times: the first call is thrown away. Bar:
at most 1.5 times the calibration.

Graph: the same on generated networks (stacked.py) of 1,000, 2,000 and 4,000 nodes, fed four tiny
images. The graph part is all passes but those that run the model on the data; what onnxruntime
takes in them to open sessions (`check` opens the INT8 model, of three times as many nodes) is shown
beside it, since it is not work of this project. `plan` is a part of calibrate, quantize-weights and
insert-qdq, measured by itself. Bars: under 2 s for 2,000 nodes without onnxruntime's part, and
twice the nodes take twice the time.

All are medians of repeats, of which each runs every size once. `--profile` lists the functions that
take longest at 2,000 nodes.

Run: python benchmarks/quantize_speed.py --shared FOLDER
`--options` is JSON of further options of `quantize`, such as those that turn off parts of it.
"""

import cProfile
import json
import pstats
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from main_job import cases
from methods import markdown
from stacked import SIZE, stacked

import onnxdrp
import onnxdrp.session
from onnxdrp.model import Model
from onnxdrp.pipeline import Instrument
from onnxdrp.plan import make_plan
from onnxdrp.targets import load_target

ON_DATA = ("calibrate", "equalize-gates", "keep-float", "round-weights", "correct-bias")
BAR_WHOLE, BAR_GRAPH, BAR_GROWTH = 1.5, 2.0, 2.2
SIZES = (1000, 2000, 4000)
Seconds = dict[str, float]
Array = npt.NDArray[np.float32]


class Sessions:
    """Counts the seconds that onnxruntime takes to open sessions, by what is under way."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.open = onnxdrp.session.open_session
        onnxdrp.session.open_session = self.timed

    def timed(self, *args: Any, **options: Any) -> Any:
        started = time.perf_counter()
        try:
            return self.open(*args, **options)
        finally:
            self.seconds += time.perf_counter() - started


class Watch(Instrument):
    """Notes for each pass the seconds of the sessions that it opened."""

    def __init__(self, sessions: Sessions) -> None:
        self.sessions = sessions
        self.found: Seconds = defaultdict(float)

    def before(self, *_: Any) -> None:
        self.started = self.sessions.seconds

    def after(self, _index: int, step: Any, *_: Any) -> None:
        self.found[step.name] += self.sessions.seconds - self.started


def quantized(
    model: Model, rows: Array, options: dict[str, Any], sessions: Sessions
) -> tuple[Seconds, Seconds]:
    """Quantize once: the seconds of each pass and of the whole, and those of sessions."""
    watch = Watch(sessions)
    started = time.perf_counter()
    report = onnxdrp.quantize(model, rows, instruments=[watch], **options)
    found: Seconds = defaultdict(float)
    for record in report.records:
        found[record.name] += record.seconds
    found["whole"] = time.perf_counter() - started
    return found, watch.found


def whole(shared: Path, images: int, repeats: int, options: dict[str, Any]) -> str:
    """The table of the whole beside its calibration."""
    case = cases(shared, None)["efficientnet_lite0"]
    model = Model.load(case.path)
    name = model.inputs[0].name
    batches = [np.array(batch[name]) for batch in case.calibrate(model).batches()]
    rows = np.concatenate(batches)[:images].astype(np.float32)
    sessions = Sessions()
    quantized(model.clone(), rows[:4], options, sessions)
    runs = [quantized(model.clone(), rows, options, sessions)[0] for _ in range(repeats)]
    ratio = statistics.median(run["whole"] / run["calibrate"] for run in runs)
    names = list(runs[0])
    seconds = {n: statistics.median(run[n] for run in runs) for n in names}
    seconds["around"] = seconds["whole"] - sum(seconds[n] for n in names if n != "whole")
    lines = [[n, f"{s:.3f}", f"{s / seconds['calibrate']:.2f}"] for n, s in seconds.items()]
    text = markdown([f"efficientnet_lite0, {len(rows)} images", "s", "/ calibrate"], lines)
    return f"{text}\n\n{_verdict('whole / calibrate', ratio, BAR_WHOLE)}"


def graph(sizes: tuple[int, ...], repeats: int, options: dict[str, Any]) -> str:
    """The table of the passes by the number of nodes."""
    models = {size: Model.from_proto(stacked(size)) for size in sizes}
    rows = np.random.default_rng(0).standard_normal((5, 3, SIZE, SIZE), dtype=np.float32)
    sessions = Sessions()
    quantized(Model.from_proto(stacked(60)), rows, options, sessions)
    runs: dict[int, list[Seconds]] = {size: [] for size in sizes}
    for _ in range(repeats):
        for size, model in models.items():
            found, opening = quantized(model.clone(), rows, options, sessions)
            parts = [n for n in found if n not in ("whole", *ON_DATA)]
            found["graph part"] = sum(found[n] for n in parts)
            found["of it sessions"] = sum(opening[n] for n in parts)
            found["graph part without them"] = found["graph part"] - found["of it sessions"]
            found["plan"] = _seconds(lambda model=model: _plan(model))
            runs[size].append(found)
    medians = {
        size: {n: statistics.median(run[n] for run in found) for n in found[0]}
        for size, found in runs.items()
    }
    last, half = medians[sizes[-1]], medians[sizes[-2]]
    lines = [
        [n, *(f"{m[n]:.3f}" for m in medians.values()), f"{last[n] / max(half[n], 1e-9):.2f}"]
        for n in last
    ]
    head = ["s", *(f"{len(m.nodes())} nodes" for m in models.values()), "last / last but one"]
    own = "graph part without them"
    at_bar = medians[min(sizes, key=lambda s: abs(s - 2000))][own]
    verdicts = [
        _verdict("graph part of 2,000 nodes without sessions, s", at_bar, BAR_GRAPH),
        _verdict("its growth where nodes double", last[own] / half[own], BAR_GROWTH),
    ]
    return markdown(head, lines) + "\n\n" + "\n".join(verdicts)


def _plan(model: Model) -> None:
    make_plan(model, load_target("generic"), {})


def _seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _verdict(what: str, value: float, bar: float) -> str:
    return f"- {'holds' if value <= bar else 'MISSED'}: {what} {value:.2f}, bar {bar:.2f}"


def profile(options: dict[str, Any]) -> None:
    """Print where the time of 2,000 nodes goes."""
    rows = np.random.default_rng(0).standard_normal((5, 3, SIZE, SIZE), dtype=np.float32)
    onnxdrp.quantize(Model.from_proto(stacked(60)), rows, **options)
    model, watch = Model.from_proto(stacked(2000)), cProfile.Profile()
    watch.runcall(onnxdrp.quantize, model, rows, **options)
    pstats.Stats(watch).sort_stats("cumulative").print_stats(60)


@click.command()
@click.option("--shared", type=click.Path(exists=True, path_type=Path))
@click.option("--images", default=100, show_default=True)
@click.option("--repeats", default=5, show_default=True)
@click.option("--nodes", default=",".join(map(str, SIZES)), show_default=True, help="Two or more.")
@click.option("--options", "text", default="{}", help="JSON of further options of `quantize`.")
@click.option("--profile", "profiled", is_flag=True, help="Instead of the tables.")
def main(
    shared: Path | None, images: int, repeats: int, nodes: str, text: str, profiled: bool
) -> None:
    """Print the tables and what holds; the first only with --shared."""
    options = json.loads(text)
    if profiled:
        profile(options)
        return
    if shared is not None:
        print(whole(shared, images, repeats, options), end="\n\n", flush=True)
    print(graph(tuple(int(n) for n in nodes.split(",")), repeats, options))


if __name__ == "__main__":
    main()
