"""What the report costs: a job's time and CPU time, and what figures of layers and the page add.

Runs `optimize` several times in one process and prints medians of seconds, CPU in brackets: the job
alone, which writes no report; what `Report.details` takes, which JSON and page need; what the page
takes then; its bytes. The bar is 5 % of the job, figures and page together. The first run is thrown
away: it imports.

Run: python benchmarks/report_cost.py MODEL DATA [MODEL DATA ...] [--samples 100] [--runs 3]
`synthetic NODES` in place of a model and data is a generated network (stacked.py), fed tiny images.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from stacked import SIZE, stacked

import onnxdrp
from onnxdrp.datareaders import open_reader
from onnxdrp.model import Model
from onnxdrp.tables import text_table

BAR = 0.05
CHANNELS = 3


def clocked(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """What it gives, with its seconds and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    return found, time.perf_counter() - wall, time.process_time() - cpu


def measure(path: str, data: str, samples: int, runs: int, folder: Path) -> list[str]:
    """A row of the table."""
    if path == "synthetic":
        model = Model.from_proto(stacked(int(data)))
        values = np.random.default_rng(0).standard_normal((samples, CHANNELS, SIZE, SIZE))
        reader = open_reader({"x": values.astype(np.float32)}, model)
    else:
        model = Model.load(path)
        reader = open_reader(data, model, scale=1, limit=samples)
    found: list[list[float]] = []
    for _ in range(runs + 1):
        report, *job = clocked(lambda: onnxdrp.optimize(model.clone(), reader, sparsity=0.5))
        _, *details = clocked(partial(getattr, report, "details"))
        page, *made = clocked(partial(report.to_html, folder / "report.html"))
        found.append([*job, *details, *made])
    job_s, job_cpu, details_s, details_cpu, page_s, page_cpu = (
        statistics.median(column) for column in zip(*found[1:], strict=True)
    )
    wall, cpu = (details_s + page_s) / job_s, (details_cpu + page_cpu) / job_cpu
    return [
        f"{Path(path).stem} {data if path == 'synthetic' else ''}".strip(),
        str(len(report.details["layers"])),
        f"{job_s:.2f} ({job_cpu:.2f})",
        f"{details_s:.2f} ({details_cpu:.2f})",
        f"{page_s:.2f} ({page_cpu:.2f})",
        f"{100 * wall:.1f} ({100 * cpu:.1f})",
        f"{page.stat().st_size:,}",
    ]


@click.command()
@click.argument("pairs", nargs=-1, required=True)
@click.option("--samples", default=100, show_default=True, help="Of the data.")
@click.option("--runs", default=3, show_default=True)
def main(pairs: tuple[str, ...], samples: int, runs: int) -> None:
    """Measure each MODEL with its DATA."""
    if len(pairs) % 2:
        raise click.UsageError("give models and data in pairs")
    head = ("model", "layers", "job s", "figures s", "page s", f"% (bar {BAR:.0%})", "page bytes")
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            measure(path, data, samples, runs, Path(folder))
            for path, data in zip(pairs[::2], pairs[1::2], strict=True)
        ]
    click.echo(text_table(head, rows))


if __name__ == "__main__":
    main()
