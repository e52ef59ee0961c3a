"""A model's graph as a picture: SVG that needs no script, no font of its own and no network.

    onnxdrp.draw(model).save("net.svg")
    onnxdrp.draw(model, around="/stage2/conv/Conv", hops=2, color="precision")

Layers have their weight's shape, links the shape of the tensor, boxes their full name and figures
as a tooltip. Names are only ever text in the picture, escaped.
"""

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import onnx_graphsurgeon as gs

from onnxdrp.boxes import Box, Boxes, boxes_of
from onnxdrp.colours import By, Colours, Precision, Signal, Sparsity
from onnxdrp.display import escaped
from onnxdrp.errors import OptionError
from onnxdrp.files import atomic_write
from onnxdrp.layout import Layout, Point, Route, check_layout, place
from onnxdrp.model import Model, load

if TYPE_CHECKING:
    from onnxdrp.evaluation import Comparison

__all__ = ["Drawing", "draw"]

_LETTER, _LINE, _MARGIN = 6.7, 15.0, 16.0  # pixels, of 11 pixels' text
_LONGEST = 30  # letters of a line
_LABELLED = 400  # boxes; with more, shapes stand in tooltips alone
_MOST = 1500  # boxes; with more, Graphviz takes minutes and nobody reads it


@dataclass(frozen=True)
class Drawing:
    """A picture of a graph; notebooks show it.

    Attributes:
        svg: all of it.
        text: what it is of.
    """

    svg: str
    text: str

    def save(self, path: str | Path) -> Path:
        """Write it, whole or not at all.

        Raises:
            OptionError: the file is to be something else than .svg.
            ModelError: it cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() != ".svg":
            raise OptionError(f"drawing {path}: name a file that ends in .svg")
        with atomic_write(path) as file:
            file.write(self.svg.encode())
        return path

    def __repr__(self) -> str:
        return f"<Drawing of {self.text}>"

    def _repr_svg_(self) -> str:
        return self.svg


def draw(
    model: Model | str | Path,
    *,
    around: str | None = None,
    hops: int = 3,
    color: By | None = None,
    comparison: "Comparison | None" = None,
    expand: Collection[str] = (),
    collapse: Collection[str] = (),
    most: int = 150,
    qdq: bool = False,
) -> Drawing:
    """Draw a model's graph, or what is near one of its nodes.

    Args:
        model: a file, or one that is loaded; is not changed.
        around: a node; only what is at most `hops` links away from it is drawn.
        hops: how far that is.
        color: what colours say: "sparsity" (zeros among weights), "precision" (what nodes compute
            in), "sqnr" (of `comparison`); None: layers with weights stand out.
        comparison: of `onnxdrp.compare(..., layers=True)`, with this model as one of both.
        expand: scopes (`/a/b` is one of `/a/b/c`) that are opened, with those that they are in.
        collapse: scopes that are one box.
        most: boxes; the largest scopes are opened first as long as there is room for them.
        qdq: draw QuantizeLinear and DequantizeLinear as nodes of their own.

    Raises:
        OptionError: pygraphviz is missing; an option has no meaning; there are too many boxes.
        ModelError: there is no such node.
    """
    check_layout()
    if (color == "sqnr") != (comparison is not None):
        raise OptionError("color 'sqnr' and a comparison belong together; give both or neither")
    if comparison is not None and not comparison.layers:
        raise OptionError("the comparison has no layers; make it with compare(..., layers=True)")
    if hops < 0 or most < 1:
        raise OptionError(f"hops {hops}, most {most}: give hops from 0 and boxes from 1")
    model = load(model)
    boxes = boxes_of(model, around, hops, expand=expand, collapse=collapse, most=most, fold=not qdq)
    if len(boxes.boxes) > _MOST:
        raise OptionError(
            f"the drawing would have {len(boxes.boxes)} boxes, since names have no scopes to "
            f"collapse; draw what is around a node, or collapse scopes ({_MOST} boxes at most)"
        )
    return _Sheet(model, boxes, _colours(model, boxes, color, comparison)).drawing()


def _colours(
    model: Model, boxes: Boxes, color: By | None, comparison: "Comparison | None"
) -> Colours | None:
    if comparison is not None:
        return Signal(comparison, boxes.wires)
    if color is None:
        return None
    if color == "sparsity":
        return Sparsity(model)
    if color == "precision":
        return Precision(boxes.wires)
    raise OptionError(f"color {color!r}: give sparsity, precision or sqnr")


class _Sheet:
    """Puts one picture together."""

    def __init__(self, model: Model, boxes: Boxes, colours: Colours | None) -> None:
        self.model, self.boxes, self.colours = model, boxes, colours
        self.tensors = model.tensors()
        self.shapes = _shapes(model)
        self.said = [colours.of(box) if colours else None for box in boxes.boxes]

    def drawing(self) -> Drawing:
        lines = [
            self._lines(box, said) for box, said in zip(self.boxes.boxes, self.said, strict=True)
        ]
        sizes = [_size(some) for some in lines]
        labels = [self._label(link.tensors) for link in self.boxes.links]
        if len(sizes) > _LABELLED:
            labels = [""] * len(labels)
        rooms = [(_LETTER * len(label) + 14, 13.0) if label else None for label in labels]
        links = [
            (link.source, link.target, room)
            for link, room in zip(self.boxes.links, rooms, strict=True)
        ]
        layout = place(sizes, links)
        parts = [
            self._link(i, route, label)
            for i, (route, label) in enumerate(zip(layout.routes, labels, strict=True))
        ]
        parts += [
            self._box(i, middle, size, some)
            for i, (middle, size, some) in enumerate(zip(layout.places, sizes, lines, strict=True))
        ]
        return Drawing(_svg(layout, parts, self.text, self._legend()), self.text)

    @property
    def text(self) -> str:
        """What the picture is of."""
        found, all_nodes = self.boxes, len(self.model.nodes())
        nodes = sum(len(box.nodes) for box in found.boxes)
        folded = all_nodes - len(found.wires.nodes)
        name = self.model.path.name if self.model.path else "model"
        text = f"{name}: {nodes} of {all_nodes} nodes"
        if found.around is not None:
            text += f" around {found.boxes[found.around].name}"
        scopes = sum(box.kind == "scope" for box in found.boxes)
        text += f", {scopes} scopes closed" if scopes else ""
        return text + (f", {folded} of QDQ on the links" if folded else "")

    def _lines(self, box: Box, said: tuple[str, str] | None) -> list[str]:
        """The text of a box: what it is, its name, its figure."""
        words = [said[1]] if said else []
        if box.kind in ("input", "output"):
            return [box.kind, _short(box.name)]
        if box.kind == "scope":
            held = f"{len(box.nodes)} nodes: "
            for op, n in Counter(node.op for node in box.nodes).most_common():
                if len(held) + len(op) > _LONGEST:
                    held += "…"
                    break
                held += f"{n} {op}, "
            return [_short(box.name), held.removesuffix(", "), *words]
        (node,) = box.nodes
        return [_short(node.op + self._weight(node)), _short(_last(box.name)), *words]

    def _weight(self, node: gs.Node) -> str:
        """The shape of a layer's weight."""
        if len(node.inputs) < 2 or node.op not in _LAYERS:
            return ""
        stored = self.tensors.get(self.boxes.wires.root(node.inputs[1].name))
        return f" {_dims(stored.shape)}" if isinstance(stored, gs.Constant) else ""

    def _label(self, tensors: list[str]) -> str:
        more = f" +{len(tensors) - 1}" if len(tensors) > 1 else ""
        return f"{_short(self.shapes.get(tensors[0], ''))}{more}"

    def _link(self, index: int, route: Route, label: str) -> str:
        link = self.boxes.links[index]
        told = "\n".join(f"{name}  {self.shapes.get(name, '')}" for name in link.tensors)
        text = (
            f"<text class='shape' {_at(*route.label)}>{escaped(label)}</text>"
            if (route.label)
            else ""
        )
        curve = _curve(route.points)
        lines = f"<path class='link' {_PLAIN['link']} d='{curve}'/>{_arrow(route)}"
        return f"<g><title>{escaped(told)}</title>{lines}{text}</g>"

    def _box(self, index: int, middle: Point, size: Point, lines: list[str]) -> str:
        box, said = self.boxes.boxes[index], self.said[index]
        (x, y), (width, height) = middle, size
        plain = _TINTS.get(box.kind, "#ffffff")
        if box.kind == "node" and not self.colours and box.nodes[0].op in _LAYERS:
            plain = "#dbe9f6"
        kinds = [box.kind, *["open"] * box.open, *["around"] * (index == self.boxes.around)]
        place = f"x='{x - width / 2:.1f}' y='{y - height / 2:.1f}'"
        round_ = height / 2 if box.kind in ("input", "output") else 4
        top = y - _LINE * (len(lines) - 1) / 2
        texts = [
            f"<text class='{'name' if i == 0 else 'more'}' {_at(x, top + i * _LINE)}>"
            f"{escaped(line)}</text>"
            for i, line in enumerate(lines)
        ]
        told = "\n".join([f"{box.kind} {box.name}", *self._told(box), *([said[1]] if said else [])])
        return (
            f"<g class='{' '.join(kinds)}'><title>{escaped(told)}</title>"
            f"<rect {place} width='{width:.1f}' height='{height:.1f}' rx='{round_:g}' "
            f"fill='{said[0] if said else plain}' {_PLAIN['box']}/>{''.join(texts)}</g>"
        )

    def _told(self, box: Box) -> list[str]:
        """Of a node its operator and attributes, of a scope how many of each operator."""
        if box.kind == "node":
            (node,) = box.nodes
            plain = {k: v for k, v in node.attrs.items() if isinstance(v, int | float | str | list)}
            return [node.op, *(f"{k} = {str(v)[:80]}" for k, v in plain.items())]
        return [f"{n} {op}" for op, n in Counter(node.op for node in box.nodes).most_common(12)]

    def _legend(self) -> list[tuple[str, str]]:
        legend = list(self.colours.legend) if self.colours else []
        used = {said[0] for said in self.said if said}
        if isinstance(self.colours, Precision):
            legend = [entry for entry in legend if entry[0] in used]
        return [("", self.colours.title), *legend] if self.colours else []


_LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul", "QLinearConv", "QLinearMatMul"}
_TINTS = {"input": "#e3e6ea", "output": "#e3e6ea"}


def _shapes(model: Model) -> dict[str, str]:
    """Shapes of tensors as text, inferred where the graph does not state them."""
    proto = onnx.shape_inference.infer_shapes(model.skeleton())
    found = {}
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        if value.type.tensor_type.HasField("shape"):
            dims = value.type.tensor_type.shape.dim
            found[value.name] = _dims([d.dim_param or (d.dim_value or "?") for d in dims])
    return found


def _dims(shape: Collection[int | str]) -> str:
    return "×".join(map(str, shape)) or "scalar"


def _last(name: str) -> str:
    """The end of a name, as many scopes as fit."""
    parts = name.split("/")
    while len("/".join(parts)) > _LONGEST and len(parts) > 1:
        parts = parts[1:]
    return "/".join(parts)


def _short(text: str) -> str:
    half = _LONGEST // 2
    return text if len(text) <= _LONGEST else f"{text[: half - 1]}…{text[-half:]}"


def _size(lines: list[str]) -> tuple[float, float]:
    letters = max(1.1 * len(lines[0]), *map(len, lines[1:]))  # the first is bold
    return max(60.0, _LETTER * letters + 14), _LINE * len(lines) + 8


def _at(x: float, y: float) -> str:
    return f"x='{x:.1f}' y='{y + 4:.1f}'"


def _curve(points: list[Point]) -> str:
    start, *rest = (f"{x:.1f} {y:.1f}" for x, y in points)
    return f"M{start}C{' '.join(rest)}"


def _arrow(route: Route) -> str:
    """A triangle from the end of the curve to the tip."""
    (x, y), (tx, ty) = route.points[-1], route.tip
    length = math.hypot(tx - x, ty - y) or 1.0
    sx, sy = 3.5 * (ty - y) / length, -3.5 * (tx - x) / length
    corners = f"{x + sx:.1f},{y + sy:.1f} {tx:.1f},{ty:.1f} {x - sx:.1f},{y - sy:.1f}"
    return f"<polygon class='tip' {_PLAIN['tip']} points='{corners}'/>"


def _svg(layout: Layout, parts: list[str], title: str, legend: list[tuple[str, str]]) -> str:
    """The picture with a title line and a legend above it."""
    keys, x = [], _MARGIN
    for colour, words in legend:
        if colour:
            keys.append(f"<rect x='{x:.1f}' y='28' width='14' height='12' fill='{colour}'/>")
            x += 18
        keys.append(f"<text class='key' {_PLAIN['key']} x='{x:.1f}' y='38'>{escaped(words)}</text>")
        x += _LETTER * len(words) + 14
    top = 52 if legend else 32
    width = max(layout.width + 2 * _MARGIN, x, _LETTER * len(title) + 2 * _MARGIN)
    height = layout.height + top + _MARGIN
    left = (width - layout.width) / 2
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' class='onnxdrp-graph' role='img' {_PLAIN['all']} "
        f"width='{width:.0f}' height='{height:.0f}' viewBox='0 0 {width:.0f} {height:.0f}'>"
        f"<title>{escaped(title)}</title><style>{_STYLE}</style>"
        f"<rect class='ground' {_PLAIN['ground']} width='100%' height='100%'/>"
        f"<text class='key' {_PLAIN['key']} x='{_MARGIN}' y='18'>{escaped(title)}</text>"
        f"{''.join(keys)}"
        f"<g transform='translate({left:.1f} {top})'>{''.join(parts)}</g></svg>\n"
    )


# what stays where a page takes styles out: they, where they are, have the last word
_PLAIN = {
    "all": "fill='#1f2328' font-family='sans-serif' font-size='11' text-anchor='middle'",
    "ground": "fill='#ffffff'",
    "key": "text-anchor='start'",
    "box": "stroke='#6e7781'",
    "link": "fill='none' stroke='#6e7781'",
    "tip": "fill='#6e7781'",
}

_STYLE = """
.onnxdrp-graph .ground { fill: #ffffff }
.onnxdrp-graph text { font: 11px system-ui, 'Segoe UI', Helvetica, Arial, sans-serif;
  fill: #1f2328; text-anchor: middle }
.onnxdrp-graph text.key { text-anchor: start }
.onnxdrp-graph .name { font-weight: 600 }
.onnxdrp-graph .key, .onnxdrp-graph .shape { fill: #57606a }
.onnxdrp-graph rect { stroke: #6e7781; stroke-width: 1 }
.onnxdrp-graph .ground { stroke: none }
.onnxdrp-graph .scope rect { stroke-width: 2.5 }
.onnxdrp-graph .open rect { stroke-dasharray: 4 3 }
.onnxdrp-graph .around rect { stroke: #8250df; stroke-width: 3; stroke-dasharray: none }
.onnxdrp-graph .link { fill: none; stroke: #6e7781 }
.onnxdrp-graph .tip { fill: #6e7781 }
@media (prefers-color-scheme: dark) {
  .onnxdrp-graph .ground { fill: #12161c }
  .onnxdrp-graph .key, .onnxdrp-graph .shape { fill: #adbac7 }
  .onnxdrp-graph .link { stroke: #909dab }
  .onnxdrp-graph .tip { fill: #909dab } }
"""
