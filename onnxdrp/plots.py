"""Plots of what was measured: what channels of each group cost, and a front of sub-networks.

Drawn by matplotlib (pip install 'onnxdrp[plot]') on a canvas of its own: nothing is shown, and no
state of pyplot is touched.
"""

from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from onnxdrp.errors import OptionError
from onnxdrp.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Figure_

    from onnxdrp.channels.front import Front
    from onnxdrp.channels.sensitivity import ChannelSensitivity

__all__ = ["channels_figure", "check_plot", "front_figure", "save_plot"]

Figure: TypeAlias = "Figure_"

_KINDS = (".svg", ".png", ".pdf")
_NAMED = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")  # Okabe and Ito: for all eyes
_OTHERS = "#c4c4c4"
_INK = "#333333"
_LONGEST = 34  # letters of a label
_LINE = 0.062  # of the height of the axes, that a label takes
_SCORES = {
    "agreement": ("agreement with the whole model (%)", 100.0),
    "top-1": ("top-1 accuracy (%)", 100.0),
    "signal": ("signal / (signal + noise)", 1.0),
    "moments": ("power left to the layers behind (%)", 100.0),
}
_BY = {
    "agreement": ("agreement with the whole model (%)", 100.0),
    "sqnr": ("SQNR (dB)", 1.0),
    "top-1": ("top-1 accuracy (%)", 1.0),
}


def check_plot(path: str | Path) -> None:
    """Raises OptionError where a plot cannot be written, before there is one.

    That is, matplotlib is not there, or the ending of the file is none of .svg, .png and .pdf.
    """
    if Path(path).suffix.lower() not in _KINDS:
        raise OptionError(f"plot {path}: name a file that ends in .svg, .png or .pdf")
    if find_spec("matplotlib") is None:
        raise OptionError("a plot needs matplotlib; pip install 'onnxdrp[plot]'")


def save_plot(figure: Figure, path: str | Path) -> None:
    """Write a figure, whole or not at all; equal ones give equal bytes.

    Raises:
        OptionError: the ending says nothing that can be written.
        ModelError: the file cannot be written.
    """
    import matplotlib as mpl

    check_plot(path)
    kind = Path(path).suffix.lower()[1:]
    dated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}[kind]
    style = {"svg.hashsalt": "onnxdrp", "svg.fonttype": "none"}
    with atomic_write(Path(path)) as file, mpl.rc_context(style):
        figure.savefig(file, format=kind, dpi=150, metadata=dated)


def channels_figure(found: "ChannelSensitivity") -> Figure:
    """A line a group: the score against the share of its channels that is removed.

    The groups that lose most, over all rates, have a colour and a name; the others are grey.
    """
    what, unit = _SCORES.get(found.score, (f"score ({found.score})", 1.0))
    lost = {name: float(np.mean(found.drops(name)[1])) for name in found.curves}
    named = sorted(lost, key=lambda name: -lost[name])[: len(_NAMED)]
    figure, axes = _figure(
        f"{found.model or 'Model'}: channels removed of one group alone",
        f"{found.samples:,} samples; {_of(len(named), len(lost))}"
        + ("" if found.complete else "; interrupted, scores are missing"),
    )
    axes.set(xlabel="channels of the group removed (%)", ylabel=what)
    ends = []
    for name in [*(n for n in found.curves if n not in named), *reversed(named)]:
        points = [(0.0, found.baseline), *sorted(found.curves[name].items())]
        rates, scores = np.array(points).T
        style: dict[str, Any] = {"color": _OTHERS, "linewidth": 0.8}
        if name in named:
            style = {"color": _NAMED[named.index(name)], "linewidth": 1.8}
            style |= {"marker": "o", "markersize": 3}
            ends.append((name, 100 * rates[-1], unit * scores[-1], style["color"]))
        axes.plot(100 * rates, unit * scores, label=name, **style)
    _label_ends(axes, ends)
    return figure


def front_figure(front: "Front") -> Figure:
    """Each point by its cost and its score, with its net_id; what loses nothing has no place."""
    what, unit = _BY[front.by]
    points = [p for p in front.points if isfinite(p.score)]
    left = len(front.points) - len(points)
    figure, axes = _figure(
        f"{front.model or 'Model'}: sub-networks, by {front.by} and {front.cost}",
        "numbers are of slim --index" + (f"; {left} without noise left out" if left else ""),
    )
    if front.cost == "latency":
        cost, name = [100 * (p.latency or 0.0) for p in points], "latency (% of the whole model's)"
        if front.whole_ms is not None:
            name = f"latency (% of the whole model's {front.whole_ms:.3g} ms)"
    else:
        cost = [100 * p.macs / front.whole for p in points]
        name = f"multiply-adds (% of {front.whole / 1e6:,.4g} million)"
    score = [unit * p.score for p in points]
    axes.set(xlabel=name, ylabel=what)
    axes.plot(cost, score, color=_NAMED[0], linewidth=1, marker="o", markersize=5)
    for point, x, y in zip(points, cost, score, strict=True):
        axes.annotate(
            str(point.net_id), (x, y), (-4, 4), textcoords="offset points", ha="right",
            fontsize=8, color=_INK,
        )  # fmt: skip
    axes.margins(0.08)
    return figure


def _figure(title: str, note: str) -> tuple[Figure, Any]:
    """An empty plot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    figure.suptitle(title, x=0.02, ha="left", fontsize=12, color=_INK)
    axes = figure.subplots()
    axes.set_title(note, loc="left", fontsize=9, color=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#eeeeee", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9)
    return figure, axes


def _of(named: int, count: int) -> str:
    return f"{count} groups" if named == count else f"the costliest {named} of {count} groups named"


def _label_ends(axes: Any, ends: list[tuple[str, float, float, str]]) -> None:
    """Names right of the axes, level with the ends of their lines as far as they have room."""
    low, high = axes.get_ylim()
    ends = sorted(ends, key=lambda end: end[2])
    places = np.array([(y - low) / (high - low) for _, _, y, _ in ends])
    steps = _LINE * np.arange(len(ends))
    places = np.maximum.accumulate(places - steps) + steps
    places -= max(0.0, places.max(initial=0.0) - 1)
    for i in range(len(places) - 2, -1, -1):
        places[i] = min(places[i], places[i + 1] - _LINE)
    for (name, x, y, color), place in zip(ends, places.tolist(), strict=True):
        axes.annotate(
            _short(name), (x, y), (1.03, place), textcoords="axes fraction", va="center",
            fontsize=8, color=color,
            arrowprops={
                "arrowstyle": "-", "color": color, "linewidth": 0.6, "shrinkB": 3,
                "relpos": (0, 0.5),
            },
        )  # fmt: skip


def _short(name: str) -> str:
    half = _LONGEST // 2
    return name if len(name) <= _LONGEST else f"{name[: half - 1]}…{name[-half:]}"
