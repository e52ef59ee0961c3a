"""How long it takes to find out what removing channels costs.

By outputs the bar is groups x rates x samples x inference: each choice run through the whole model.
As the part before a group is shared, less is needed; how much of the bar, the table says. Inference
is what as many threads take for the same batches, a session of one thread for each, measured before
and after. The scores, which say in what order channels go, are one walk and linear algebra,
whatever the number of rates; by moments there is no more to do.

Run: python benchmarks/channel_analysis.py --shared FOLDER [--resnet20 FILE] [--resnet56 FILE]
         [--models resnet56,efficientnet_lite0] [--samples 500] [--rates 0.1,...,0.9]
ResNet-50 is there for its size, with random weights and noise for images.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import click
import numpy as np
from anonymous import AnonymousMemory
from methods import markdown
from recover import FILE, Places, drawn
from resnet50 import resnet50
from structured import cases

from onnxdrp import chains
from onnxdrp import passes as p
from onnxdrp.datareaders import DataReader
from onnxdrp.executing import available_cores
from onnxdrp.model import Model
from onnxdrp.pipeline import Pass, PassContext, PassManager

RATES = "0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9"
LARGE = "resnet50"


class Noise(DataReader):
    """Images of noise."""

    layout = "NCHW"

    def __init__(self, samples: int, batch: int = 8) -> None:
        self.samples, self._batch = samples, batch

    def batches(self) -> Iterator[dict[str, Any]]:
        """[batch, 3, 224, 224] float32 each."""
        rng = np.random.default_rng(0)
        for first in range(0, self.samples, self._batch):
            size = min(self._batch, self.samples - first)
            yield {"x": rng.standard_normal((size, 3, 224, 224), np.float32)}


def inference(model: Model, reader: DataReader) -> float:
    """Seconds for all samples, outputs alone."""
    names = [info.name for info in model.inputs]
    feeds = [{name: batch[name] for name in names} for batch in reader.batches()]
    sessions = [model.session(threads=1) for _ in range(available_cores())]

    def turn(number: int) -> None:
        for feed in feeds[number :: len(sessions)]:
            sessions[number].run(None, feed)

    started = time.perf_counter()
    with ThreadPoolExecutor(len(sessions)) as pool:
        list(pool.map(turn, range(len(sessions))))
    return time.perf_counter() - started


def timed(model: Model, reader: DataReader, *passes: Pass) -> tuple[list[float], PassContext]:
    """Seconds of each pass, and what they found."""
    ctx = PassContext(reader=reader)
    report = PassManager(passes).run(model.clone(), ctx)
    return [record.seconds for record in report.records], ctx


@click.command()
@click.option("--shared", type=click.Path(exists=True, file_okay=False))
@click.option("--resnet20", type=FILE)
@click.option("--resnet56", type=FILE)
@click.option("--models", default=f"resnet56,efficientnet_lite0,{LARGE}", show_default=True)
@click.option("--samples", default=500, show_default=True)
@click.option("--rates", default=RATES, show_default=True)
@click.option("--modes", default="outputs,moments", show_default=True)
def main(
    shared: str | None,
    resnet20: str | None,
    resnet56: str | None,
    models: str,
    samples: int,
    rates: str,
    modes: str,
) -> None:
    """Print the table."""
    there, rows = cases(Places(shared, resnet20, resnet56, None)), []
    shares = tuple(map(float, rates.split(",")))
    for name in models.split(","):
        model = Model.from_proto(resnet50()) if name == LARGE else Model.load(there[name].path)
        whole = Noise(samples) if name == LARGE else there[name].calibrate(model)
        reader = drawn(whole, samples, 0)
        PassManager(chains.preprocessing(None, None)).run(model, PassContext())
        for mode in modes.split(","):
            watch, before = AnonymousMemory(), inference(model, reader)
            own: dict[str, Any] = {"rates": shares, "mode": mode}
            own |= {"samples": samples} if mode == "outputs" else {}
            seconds, ctx = timed(model, reader, p.ScoreChannels(), p.MeasureChannels(**own))
            once = (before + inference(model, reader)) / 2
            found = ctx.channel_curves
            assert found is not None
            bar = len(found.curves) * len(shares) * once
            figures = (len(found.curves), len(shares), found.samples, f"{once:.2f}")
            peak = watch.stop() / 1e6
            spent = (f"{seconds[1]:.1f}", f"{seconds[1] / bar:.2f}", f"{peak:.0f}")
            rows.append([name, mode, *map(str, figures), f"{seconds[0]:.1f}", *spent])
            click.echo(rows[-1], err=True)
    head = ["model", "mode", "groups", "rates", "samples", "inference of all s", "scores s",
            "analysis s", "of the bar", "peak MB"]  # fmt: skip
    print(markdown(head, rows))


if __name__ == "__main__":
    main()
