"""Charts as SVG that the page's colours reach: they print, turn dark, and need no script.

Each is an image with a sentence for those who do not see it; the figures themselves stand in a
table of the same section. What has `data-tip` shows it when pointed at, or walked to by arrow keys.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from onnxdrp.html.markup import Markup, element
from onnxdrp.html.words import number

__all__ = ["Mark", "Series", "columns", "figure", "histogram", "lines"]

_WIDTH, _HEIGHT = 900, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 14, 40
_COLUMN = 26.0  # the widest
_LETTER = 7.0  # with the room around it


@dataclass(frozen=True)
class Mark:
    """A figure of a chart.

    Attributes:
        x: its place.
        y: its value; an infinite one reaches the edge.
        tip: what it says when pointed at.
        low: lower end of its interval; None without one.
        high: upper end.
        style: a class, for its colour.
        link: id of what it leads to.
        label: text that stands beside it.
        behind: a value that stands behind, such as that of before.
    """

    x: float
    y: float
    tip: str
    low: float | None = None
    high: float | None = None
    style: str = ""
    link: str = ""
    label: str = ""
    behind: float | None = None


@dataclass(frozen=True)
class Series:
    """Marks that a line joins."""

    marks: Sequence[Mark]
    style: str = ""
    dots: bool = True


@dataclass
class _Plane:
    """From figures to places in the image, with axes and grid."""

    x: tuple[float, float]
    y: tuple[float, float]
    parts: list[Markup] = field(default_factory=list)

    def across(self, x: float) -> float:
        low, high = self.x
        return round(_LEFT + (x - low) / (high - low or 1) * (_WIDTH - _LEFT - _RIGHT), 1)

    def up(self, y: float) -> float:
        low, high = self.y
        place = (min(max(y, low), high) - low) / (high - low or 1)
        return round(_HEIGHT - _BOTTOM - place * (_HEIGHT - _TOP - _BOTTOM), 1)

    def axes(self, x_label: str, y_label: str, x_ticks: Mapping[float, str]) -> None:
        for y in ticks(*self.y):
            self.line("grid", _LEFT, self.up(y), _WIDTH - _RIGHT, self.up(y))
            self.text(number(y), _LEFT - 6, self.up(y) + 4, "end")
        for x, name in x_ticks.items():
            self.text(name, self.across(x), _HEIGHT - _BOTTOM + 16, "middle")
        floor = _HEIGHT - _BOTTOM
        self.line("axis", _LEFT, floor, _WIDTH - _RIGHT, floor)
        self.text(x_label, (_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, "middle")
        middle = (_TOP + floor) / 2
        turn = f"rotate(-90 14 {middle:g})"
        self.parts.append(
            element("text", y_label, x=14, y=middle, text_anchor="middle", transform=turn)
        )

    def line(self, style: str, x1: float, y1: float, x2: float, y2: float) -> None:
        self.parts.append(element("line", class_=style, x1=x1, y1=y1, x2=x2, y2=y2))

    def text(self, text: str, x: float, y: float, anchor: str, style: str | None = None) -> None:
        self.parts.append(
            element("text", text, x=round(x, 1), y=round(y, 1), text_anchor=anchor, class_=style)
        )

    def limit(self, value: float, text: str) -> None:
        """A line across, at a value that matters."""
        if self.y[0] <= value <= self.y[1]:
            self.line("limit", _LEFT, self.up(value), _WIDTH - _RIGHT, self.up(value))
            self.text(text, _WIDTH - _RIGHT, self.up(value) - 5, "end", "limit-text")

    def image(self, label: str) -> Markup:
        return element(
            "svg", *self.parts, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=label,
            tabindex=0, class_="chart",
        )  # fmt: skip


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers within [low, high], about so many."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [
        round((first + i) * step, 12) for i in range(int((high - first * step) / step + 1e-9) + 1)
    ]


def columns(
    marks: Sequence[Mark],
    label: str,
    x_label: str,
    y_label: str,
    *,
    top: float | None = None,
    names: Sequence[str] = (),
) -> Markup:
    """A column a mark, side by side in their order, with intervals; what stands behind is paler.

    Args:
        marks: their x is not looked at: they are numbered from 1. A label stands at the top.
        label: the sentence for those who do not see it.
        x_label: of the axis.
        y_label: of the other.
        top: of the axis; None: the next round number.
        names: of the marks, to stand below them where there is room, instead of numbers.
    """
    values = [v for m in marks for v in (m.y, m.behind) if v is not None and math.isfinite(v)]
    low = min(0.0, *values, 0.0)
    high = _round_up(low, max(values, default=0.0)) if top is None else top
    plane = _Plane((0.5, len(marks) + 0.5), (low, high or 1.0))
    step = (_WIDTH - _LEFT - _RIGHT) / max(len(marks), 1)
    if names and max(map(len, names)) * _LETTER < step:
        plane.axes(x_label, y_label, dict(enumerate(names, 1)))
    else:
        whole = [int(t) for t in ticks(1, max(len(marks), 2), 12) if t == int(t) <= len(marks)]
        plane.axes(x_label, y_label, {t: number(t) for t in whole})
    width = round(max(min(step * 0.8, _COLUMN), 0.6), 2)
    for place, mark in enumerate(marks, 1):
        left, floor = round(plane.across(place) - width / 2, 1), plane.up(0)

        def bar(value: float, style: str, left: float = left, floor: float = floor) -> Markup:
            y = plane.up(value)
            return element(
                "rect", x=left, y=min(y, floor), width=width, height=round(abs(floor - y), 1),
                class_=style,
            )  # fmt: skip

        bars = [] if mark.behind is None else [bar(mark.behind, "behind")]
        style = f"bar {mark.style}".strip() if math.isfinite(mark.y) else "behind"
        drawn = [*bars, bar(mark.y, style), *_interval(plane, place, mark)]
        if mark.label:
            x = plane.across(place)
            drawn.append(element("line", class_="limit", x1=x, x2=x, y1=_TOP, y2=plane.up(mark.y)))
            drawn.append(element("text", mark.label, class_="limit-text", x=x + 4, y=_TOP + 8))
        hit = element("rect", class_="hit", x=round(plane.across(place) - step / 2, 1), y=_TOP,
                      width=round(step, 1), height=_HEIGHT - _TOP - _BOTTOM)  # fmt: skip
        plane.parts.append(_tipped(mark, *drawn, hit))
    return plane.image(label)


def _round_up(low: float, high: float) -> float:
    """The end of an axis: the tick at the value, or the next above it."""
    found = ticks(low, high)
    if len(found) < 2 or high - found[-1] < 1e-9 * (high - low):
        return high
    return 2 * found[-1] - found[-2]


def lines(
    series: Sequence[Series],
    label: str,
    x_label: str,
    y_label: str,
    *,
    limit: tuple[float, str] | None = None,
) -> Markup:
    """Marks over a plane, joined within a series, with their intervals.

    Labels that would lie over others are left out; their tips tell.
    """
    marks = [mark for one in series for mark in one.marks]
    xs = [mark.x for mark in marks]
    ys = [v for m in marks for v in (m.y, m.low, m.high) if v is not None]
    ys += [] if limit is None else [limit[0]]
    plane = _Plane(_room(xs), _room(ys))
    plane.axes(x_label, y_label, {t: number(t) for t in ticks(*plane.x, 9)})
    for one in series:
        places = " ".join(f"{plane.across(m.x)},{plane.up(m.y)}" for m in one.marks)
        plane.parts.append(element("polyline", points=places, class_=f"line {one.style}".strip()))
    told: list[tuple[float, float]] = []
    for one in series:
        for mark in one.marks if one.dots else ():
            x, y = plane.across(mark.x), plane.up(mark.y)
            drawn = [
                element("circle", cx=x, cy=y, r=4, class_=f"dot {mark.style or one.style}".strip())
            ]
            drawn = [*_interval(plane, mark.x, mark), *drawn]
            if mark.label and not any(abs(x - a) < 16 and abs(y - b) < 12 for a, b in told):
                drawn.append(element("text", mark.label, x=x - 7, y=y - 7, text_anchor="end"))
                told.append((x, y))
            plane.parts.append(_tipped(mark, *drawn))
    if limit is not None:
        plane.limit(*limit)
    return plane.image(label)


def _interval(plane: _Plane, place: float, mark: Mark) -> list[Markup]:
    if mark.low is None or mark.high is None:
        return []
    x = plane.across(place)
    return [
        element(
            "line", class_="interval", x1=x, x2=x, y1=plane.up(mark.low), y2=plane.up(mark.high)
        )
    ]


def _room(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    margin = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return low - margin, high + margin


def _tipped(mark: Mark, *drawn: Markup) -> Markup:
    group = element("g", *drawn, data_tip=mark.tip)
    return element("a", group, href=f"#{mark.link}", tabindex=-1) if mark.link else group


def histogram(
    counts: Sequence[int], least: float, most: float, low: float, high: float, label: str
) -> Markup:
    """Counts over [least, most], as logarithms: single values are seen; with the range."""
    width, height = 192, 36
    peak = math.log1p(max(counts, default=0)) or 1.0
    part = width / max(len(counts), 1)
    path = "".join(
        f"M{i * part:.5g} {height}V{height - max(math.log1p(count) / peak * (height - 2), 1):.4g}"
        f"h{part:.4g}V{height}"
        for i, count in enumerate(counts)
        if count
    )

    def place(value: float) -> float:
        return round(min(max((value - least) / (most - least or 1), 0), 1) * width, 1)

    left, right = place(low), place(high)
    outside = [
        element("rect", class_="outside", x=x, y=0, width=round(wide, 1), height=height)
        for x, wide in ((0, left), (right, width - right))
        if wide > 0
    ]
    ends = [element("line", class_="threshold", x1=x, x2=x, y1=0, y2=height) for x in (left, right)]
    return element("svg", *outside, element("path", d=path), *ends, class_="histogram",
                   viewBox=f"0 0 {width} {height}", role="img", aria_label=label)  # fmt: skip


def figure(title: str, chart: Markup, note: str = "", legend: Markup | None = None) -> Markup:
    """A chart under its title, with what else there is to say of it, over its legend."""
    caption = element("figcaption", element("strong", title), " " if note else None, note)
    return element("figure", caption, element("div", chart, class_="scroll"), legend)
