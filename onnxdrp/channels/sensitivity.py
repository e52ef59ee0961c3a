"""What removing some channels of one group alone costs, group by group and rate by rate.

Of a group with the scores s(r) at its rates r, and the score `base` of the model as it is, the drop
is

    d(r) = |base - s(r)| / (base + 1e-5)        never less than at a lower rate, d(0) = 0

and a straight line between rates, as far as the highest of them (the first line is that of AMD's
Vitis AI Optimizer, which takes measured rates alone). The order in which the units of a group went
is kept: what was measured is what goes. The file is JSON, tied to a graph by a hash of its layers
and groups; weights may have been trained further since.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxdrp.channels.groups import Channels
from onnxdrp.display import Shown, Table, Tabular
from onnxdrp.errors import OptionError
from onnxdrp.files import atomic_write, read_json
from onnxdrp.layers import layers
from onnxdrp.model import Model
from onnxdrp.report import Text

__all__ = ["ChannelSensitivity", "graph_print", "load_channel_sensitivity"]

Floats = npt.NDArray[np.float64]

_FORMAT, _VERSION = "onnxdrp-channel-sensitivity", 2
_NOTHING = 1e-5  # of the base, in AMD's drop


@dataclass(repr=False)
class ChannelSensitivity(Tabular):
    """A score for each group and rate.

    Attributes:
        curves: {group: {share of its channels that go: score}}, rates rising.
        order: {group: a number for each of its units; the lowest went first}.
        baseline: the score of the model as it is.
        score: what it is: "agreement", "top-1", "signal", "moments", or a file and function.
        samples: how many it was measured on.
        seed: that drew them.
        model: file name of the model, or "".
        graph: hash of the layers and groups.
        identity: hash of all that the figures depend on.
        skipped: {layer: why its group was not measured}.
        complete: False while scores are missing, after an interruption.
    """

    curves: dict[str, dict[float, float]] = field(default_factory=dict)
    order: dict[str, list[float]] = field(default_factory=dict)
    baseline: float = 1.0
    score: str = ""
    samples: int = 0
    seed: int = 0
    model: str = ""
    graph: str = ""
    identity: str = ""
    skipped: dict[str, str] = field(default_factory=dict)
    complete: bool = True

    def drops(self, group: str) -> tuple[Floats, Floats]:
        """The rates of a group, 0 first, and its drop at each."""
        points = sorted(self.curves[group].items())
        rates, scores = np.array([(0.0, self.baseline), *points]).T
        drops = np.abs(self.baseline - scores) / (self.baseline + _NOTHING)
        return rates, np.maximum.accumulate(drops)

    def scores(self) -> dict[str, Floats]:
        """The order, as choosing wants it."""
        return {group: np.array(numbers, np.float64) for group, numbers in self.order.items()}

    def check(self, model: Model, channels: Channels) -> None:
        """Raises OptionError if this is of another graph, or not complete."""
        if self.graph != graph_print(model, channels):
            of = f" ({self.model})" if self.model else ""
            raise OptionError(
                f"the sensitivity is of another model{of}: its layers or groups of channels differ;"
                " measure this one, preprocessed alike"
            )
        if not self.complete:
            raise OptionError(
                "the sensitivity is not complete; the same call of sensitivity goes on with it"
            )

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON can hold it."""
        curves = {
            name: {str(rate): score for rate, score in sorted(curve.items())}
            for name, curve in self.curves.items()
        }
        return {"format": _FORMAT, "version": _VERSION, **asdict(self), "curves": curves}

    def save(self, path: str | Path) -> None:
        """Write it as JSON, whole or not at all. Raises ModelError if it cannot be written."""
        with atomic_write(Path(path)) as file:
            file.write(json.dumps(self.as_dict(), separators=(",", ":")).encode() + b"\n")

    def plot(self, path: str | Path) -> None:
        """Draw a line a group (onnxdrp.plots), as .svg, .png or .pdf.

        Raises:
            OptionError: the file ends otherwise, or matplotlib is not there.
            ModelError: the file cannot be written.
        """
        from onnxdrp.plots import channels_figure, check_plot, save_plot

        check_plot(path)
        save_plot(channels_figure(self), path)

    def table(self) -> Text:
        """A line a group with its score at each rate, then what it is of."""
        rates = sorted({rate for curve in self.curves.values() for rate in curve})
        rows = [
            (name, *(f"{curve[r]:.4f}" if r in curve else "-" for r in rates))
            for name, curve in self.curves.items()
        ]
        note = (
            f"score ({self.score}; {self.baseline:.4f} of the whole model) with this share of one "
            f"group's channels removed, {self.samples} samples"
        )
        more = [] if self.complete else ["interrupted: scores are missing; the same call goes on"]
        head = ("group", *(f"{rate:g}" for rate in rates))
        return Shown(Table(head, rows), "", note, *more)


def graph_print(model: Model, channels: Channels) -> str:
    """A hash of the layers and their weights' shapes, and of the groups; values do not matter."""
    found = [(u.name, u.op, u.stored and u.stored.shape) for u in layers(model)]
    groups = [
        (g.name, {name: counts.tolist() for name, counts in g.makers.items()}, g.readers)
        for g in channels.groups
    ]
    return hashlib.blake2b(repr((found, groups)).encode(), digest_size=16).hexdigest()


def load_channel_sensitivity(path: str | Path) -> ChannelSensitivity:
    """Read what `ChannelSensitivity.save` wrote.

    Raises:
        OptionError: the file cannot be read, or is none.
    """
    with read_json(path, "channel sensitivity", _FORMAT, _VERSION) as table:
        curves = {name: _curve(points) for name, points in table.pop("curves").items()}
        order = {name: _numbers(table["order"][name]) for name in curves}
        found = ChannelSensitivity(curves, **table | {"order": order})
        if not (math.isfinite(found.baseline) and found.baseline >= 0):
            raise ValueError(f"baseline {found.baseline}")
        return found


def _numbers(order: list[Any]) -> list[float]:
    found = [float(number) for number in order]
    if not all(map(math.isfinite, found)):
        raise ValueError("order has numbers that are not finite")
    return found


def _curve(points: Mapping[str, Any]) -> dict[float, float]:
    found = {float(rate): float(score) for rate, score in points.items()}
    for rate, score in found.items():
        if not (0 < rate < 1 and math.isfinite(score)):
            raise ValueError(f"score {score} at rate {rate}")
    return found
