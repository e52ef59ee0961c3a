"""What a search for sub-networks leaves: those of which none is worse than another in both.

Either against multiply-adds or against measured latency. A front is a JSON file, each of whose
points is a decision (onnxdrp.channels.spec) and gives a static model.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from onnxdrp.channels.candidates import By, SubnetScore
from onnxdrp.channels.groups import channels_of
from onnxdrp.channels.spec import ChannelSpec
from onnxdrp.display import Shown, Table, Tabular
from onnxdrp.errors import OptionError
from onnxdrp.files import atomic_write, read_json
from onnxdrp.passes.removing import remove
from onnxdrp.report import Text

if TYPE_CHECKING:
    from onnxdrp.model import Model

__all__ = ["Cost", "Front", "NetPoint", "front_of", "load_front", "slim_of"]

Cost = Literal["macs", "latency"]

_FORMAT, _VERSION = "onnxdrp-front", 1


@dataclass(frozen=True)
class NetPoint:
    """A sub-network of the front.

    Attributes:
        net_id: its number.
        score: with the cheap repair; what counts of it.
        macs: multiply-adds for one image.
        params: weights and biases of all layers.
        setting: {group: its units that go}.
        rates: {group: share of its channels that goes}.
        channels: {layer: output channels before, after}.
        structure: of the graph, as a decision has it (onnxdrp.channels.spec).
        measured: all figures.
        predicted: minus what the curves say is lost; None without curves.
        latency: of one image in onnxruntime, over that of the whole model; None if not asked for.
    """

    net_id: int
    score: float
    macs: int
    params: int
    setting: dict[str, tuple[int, ...]]
    rates: dict[str, float]
    channels: dict[str, tuple[int, int]]
    structure: str
    measured: SubnetScore
    predicted: float | None = None
    latency: float | None = None

    def spec(self) -> ChannelSpec:
        """The decision that it is."""
        return ChannelSpec(self.structure, self.setting, self.channels)


@dataclass(frozen=True, repr=False)
class Front(Tabular):
    """Sub-networks none of which is worse than another in both.

    Attributes:
        points: those of the fewest multiply-adds (the least latency) first.
        by: what score is.
        cost: "macs" or "latency".
        whole: multiply-adds of the whole model.
        model: its file name, or "".
        whole_ms: the latency of the whole model; None if not asked for.
    """

    points: tuple[NetPoint, ...]
    by: By
    cost: Cost
    whole: int
    model: str = ""
    whole_ms: float | None = None

    def point(self, net_id: int) -> NetPoint:
        """The one of this number. Raises OptionError if there is none."""
        for point in self.points:
            if point.net_id == net_id:
                return point
        there = ", ".join(str(point.net_id) for point in self.points)
        raise OptionError(f"the front has no net_id {net_id}; there is {there}")

    def at(self, ratio: float) -> NetPoint:
        """The best of those without this share of the multiply-adds, or more.

        Raises:
            OptionError: none is so small.
        """
        small = [p for p in self.points if p.macs <= (1 - ratio) * self.whole]
        if not small:
            least = 1 - min(p.macs for p in self.points) / self.whole
            raise OptionError(
                f"ratio {ratio}: the smallest network of the front lacks {least:.3f} of the "
                "multiply-adds; ask for less, or lower min_macs"
            )
        return max(small, key=lambda p: (p.measured.order(self.by), -p.macs))

    def as_dict(self) -> dict[str, Any]:
        """As the file has it; a score without a bound is None, since JSON has no infinity."""
        table = asdict(self)
        for point in table["points"]:
            point["score"] = point["score"] if isfinite(point["score"]) else None
        return {"format": _FORMAT, "version": _VERSION, **table}

    def save(self, path: str | Path) -> None:
        """Write it as JSON, whole or not at all. Raises ModelError if it cannot be written."""
        with atomic_write(Path(path)) as file:
            file.write(json.dumps(self.as_dict(), indent=1).encode() + b"\n")

    def plot(self, path: str | Path) -> None:
        """Draw its points (onnxdrp.plots), as .svg, .png or .pdf.

        Raises:
            OptionError: the file ends otherwise, or matplotlib is not there.
            ModelError: the file cannot be written.
        """
        from onnxdrp.plots import check_plot, front_figure, save_plot

        check_plot(path)
        save_plot(front_figure(self), path)

    def table(self) -> Text:
        """A line a point."""
        head = ("net_id", "MACs", "share", "params", self.by, "SQNR dB", "latency")
        rows = [
            (str(p.net_id), f"{p.macs:,}", f"{p.macs / self.whole:.3f}", f"{p.params:,}",
             f"{p.score:.4g}",
             "-" if p.measured.sqnr_db is None else f"{p.measured.sqnr_db:.2f}",
             "-" if p.latency is None else f"{p.latency:.2f}")
            for p in self.points
        ]  # fmt: skip
        return Shown(Table(head, rows))


def load_front(path: str | Path) -> Front:
    """Read what `Front.save` wrote.

    Raises:
        OptionError: the file cannot be read, or is none.
    """
    with read_json(path, "front", _FORMAT, _VERSION) as table:
        points = [_point(row) for row in table.pop("points")]
        return Front(tuple(points), **table)


def _point(row: dict[str, Any]) -> NetPoint:
    return NetPoint(
        **{
            **row,
            "score": inf if row["score"] is None else row["score"],
            "setting": {name: tuple(units) for name, units in row["setting"].items()},
            "channels": {
                name: (before, after) for name, (before, after) in row["channels"].items()
            },
            "measured": SubnetScore(**row["measured"]),
        }
    )


def slim_of(model: "Model", point: NetPoint) -> "Model":
    """A copy of a model with just the channels of a point, not repaired.

    Raises:
        OptionError: the point is of another model.
    """
    channels = channels_of(model)
    point.spec().check(channels)
    slim = model.clone()
    remove(slim, channels, point.setting)
    return slim


def front_of(found: Sequence[NetPoint], by: By) -> tuple[NetPoint, ...]:
    """Those that no other is as good as at less cost, numbered."""

    def price(point: NetPoint) -> float:
        return point.macs if point.latency is None else point.latency

    kept: list[NetPoint] = []
    for point in sorted(found, key=lambda p: (price(p), *(-x for x in p.measured.order(by)))):
        if not kept or point.measured.order(by) > kept[-1].measured.order(by):
            kept.append(replace(point, net_id=len(kept)))
    return tuple(kept)
