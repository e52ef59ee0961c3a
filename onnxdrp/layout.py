"""Places boxes and routes links between them, from top to bottom, by Graphviz's `dot`.

Gansner, Koutsofios, North, Vo (1993), "A Technique for Drawing Directed Graphs". Graphviz comes
with the wheels of pygraphviz. It sees numbers and sizes alone: no name of a model ever reaches it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from threading import Lock

from onnxdrp.errors import OptionError

__all__ = ["Layout", "Route", "check_layout", "place"]

Point = tuple[float, float]
Size = tuple[float, float]

_ONE_AT_A_TIME = Lock()  # Graphviz has global state
_INCH = 72.0
_MANY = 200
_IN_HASTE = "nslimit=2 nslimit1=2 mclimit=0.3"  # seconds for 1000 boxes, not minutes


@dataclass(frozen=True)
class Route:
    """The way of a link: a chain of cubic Bezier curves, and where its label has room.

    Attributes:
        points: the start, then three for each curve.
        tip: of the arrow, straight on from the last.
        label: the middle of the label; None without one.
    """

    points: list[Point]
    tip: Point
    label: Point | None


@dataclass(frozen=True)
class Layout:
    """Everything in pixels, y down.

    Attributes:
        width: of all.
        height: of all.
        places: the middle of each box.
        routes: of each link.
    """

    width: float
    height: float
    places: list[Point]
    routes: list[Route]


def check_layout() -> None:
    """Raises OptionError where there is no layout engine."""
    if find_spec("pygraphviz") is None:
        raise OptionError("drawing a graph needs pygraphviz; pip install 'onnxdrp[draw]'")


def place(boxes: Sequence[Size], links: Sequence[tuple[int, int, Size | None]]) -> Layout:
    """Lay a graph out.

    Args:
        boxes: width and height of each.
        links: indices of two different boxes, each pair once, with the size of the label.

    Raises:
        OptionError: pygraphviz is not there.
    """
    check_layout()
    import pygraphviz

    lines = [
        "strict digraph { nodesep=0.25 ranksep=0.3",
        _IN_HASTE if len(boxes) > _MANY else "",
        'node [shape=box fixedsize=true label=""]',
        *(f"{i} [width={w / _INCH:.4f} height={h / _INCH:.4f}]" for i, (w, h) in enumerate(boxes)),
        *(f"{a} -> {b} {_room(size)}" for a, b, size in links),
        "}",
    ]
    with _ONE_AT_A_TIME:
        graph = pygraphviz.AGraph(string="\n".join(lines))
        graph.layout(prog="dot")
        _, _, width, height = map(float, graph.graph_attr["bb"].split(","))
        places = [_point(graph.get_node(str(i)).attr["pos"], height) for i in range(len(boxes))]
        edges = [graph.get_edge(str(a), str(b)).attr for a, b, _ in links]
        routes = [_route(edge["pos"], edge["lp"], height) for edge in edges]
    return Layout(width, height, places, routes)


def _room(size: Size | None) -> str:
    """A label of just this size, without a font."""
    if size is None:
        return ""
    table = f'border="0" fixedsize="true" width="{size[0]:.0f}" height="{size[1]:.0f}"'
    return f"[label=<<table {table}><tr><td></td></tr></table>>]"


def _point(text: str, height: float) -> Point:
    x, y = text.split(",")
    return float(x), height - float(y)


def _route(spline: str, label: str | None, height: float) -> Route:
    """As the attribute `pos` of an edge has it: "e,x,y", the tip, then the points."""
    tip, *points = spline.split()
    ends = _point(tip.removeprefix("e,"), height)
    middle = _point(label, height) if label else None
    return Route([_point(p, height) for p in points], ends, middle)
