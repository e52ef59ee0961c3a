"""What a pass did to a graph: nodes added, removed and rewired, stored tensors changed.

Nodes and tensors are the same if they have the same name. Of each stored tensor

    sparsity   share of zeros                norm   sqrt(sum w^2)
    change     max|w' - w| / max|w|

are of the values as layers see them: of integers behind a DequantizeLinear, what that gives. The
tensors that change most have pictures: what is kept of those that lost weights, and how the values
lie before and after.
"""

import inspect
import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxdrp.display import Details, Picture, Shown, Table, Tabular
from onnxdrp.grids import stored_values
from onnxdrp.masks import Mask
from onnxdrp.pictures import heat_map, histogram
from onnxdrp.pipeline import Pass
from onnxdrp.report import Text

if TYPE_CHECKING:
    from onnxdrp.model import Model

__all__ = ["Diff", "NodeLine", "Rewiring", "WeightChange", "find_diff"]

Array = npt.NDArray[Any]

_MOST = 12  # lines of each kind that a str shows
_PICTURED = 8  # tensors
_STORED = ("stored tensor", "", "shape", "type", "sparsity", "norm", "largest change")
_CELLS = 64  # of a picture of a mask, on each side


@dataclass(frozen=True)
class NodeLine:
    """A node: its name, operator, and the names of what it reads and gives."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.op} {self.name!r}: {self.links}"

    @property
    def links(self) -> str:
        """What it reads, and what it gives."""
        return f"{_names(self.inputs)} -> {_names(self.outputs)}"


@dataclass(frozen=True)
class Rewiring:
    """A node that is still there, and differs.

    Attributes:
        before: as it was.
        after: as it is.
        attributes: {name: (value before, value after)} of those that differ; None: it has none.
    """

    before: NodeLine
    after: NodeLine
    attributes: dict[str, tuple[Any, Any]]

    @property
    def name(self) -> str:
        """The name of the node."""
        return self.before.name

    def __str__(self) -> str:
        return f"{self.after.op} {self.name!r}: {self.change}"

    @property
    def change(self) -> str:
        """What is new, in words."""
        a, b = self.before, self.after
        parts = [] if a.op == b.op else [f"{a.op} -> {b.op}"]
        for what, old, new in (("reads", a.inputs, b.inputs), ("gives", a.outputs, b.outputs)):
            parts += [f"{what} {_turned(old, new)}"] if old != new else []
        parts += [f"{k}: {_value(x)} -> {_value(y)}" for k, (x, y) in self.attributes.items()]
        return "; ".join(parts)


@dataclass(frozen=True)
class WeightChange:
    """A stored tensor that was added, removed or changed; pairs are (before, after).

    Attributes:
        name: of the tensor.
        what: "added", "removed" or "changed".
        shape: None on the side where there is none; so are the others.
        dtype: as stored.
        sparsity: share of zeros.
        norm: root of the sum of squares.
        change: max|w' - w| / max|w|; None where the shapes differ, or there is only one side, or
            only zeros before.
    """

    name: str
    what: str
    shape: tuple[tuple[int, ...] | None, tuple[int, ...] | None]
    dtype: tuple[str | None, str | None]
    sparsity: tuple[float | None, float | None]
    norm: tuple[float | None, float | None]
    change: float | None


@dataclass(frozen=True, repr=False)
class Diff(Tabular):
    """What a pass did.

    Attributes:
        name: of the pass.
        explanation: what it does, in the words and the formula of its own documentation.
        added: nodes that were not there.
        removed: nodes that are not there any more.
        rewired: nodes that read, give or are something else.
        weights: stored tensors that differ, in the order of the graph.
        pictures: {stored tensor: how it changed}, of the few that changed most, these first.
    """

    name: str
    explanation: str
    added: tuple[NodeLine, ...]
    removed: tuple[NodeLine, ...]
    rewired: tuple[Rewiring, ...]
    weights: tuple[WeightChange, ...]
    pictures: dict[str, tuple[Picture, ...]] = field(default_factory=dict, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the pictures, as JSON can hold it."""
        found = asdict(replace(self, pictures={}))
        del found["pictures"]
        for entry, line in zip(found["rewired"], self.rewired, strict=True):
            entry["attributes"] = {
                k: [_value(x), _value(y)] for k, (x, y) in line.attributes.items()
            }
        return found

    def table(self, most: int | None = None) -> Text:
        """A line a node and a stored tensor.

        Args:
            most: lines of each kind; None: all.
        """
        parts: list[Any] = [*f"{self.name}: {self.explanation}".rstrip(": ").splitlines()]
        plain = ("op", "node", "reads -> gives")
        for what, head, lines in (
            ("removed", plain, [(n.op, n.name, n.links) for n in self.removed]),
            ("added", plain, [(n.op, n.name, n.links) for n in self.added]),
            ("rewired", ("op", "node", "what is new"),
             [(r.after.op, r.name, r.change) for r in self.rewired]),
        ):  # fmt: skip
            if lines:
                of = ", ".join(
                    f"{n} {op}" for op, n in sorted(Counter(x[0] for x in lines).items())
                )
                parts += ["", Details(f"{what}: {of}", Table(head, lines[:most]))]
                parts += _more(lines, most)
        if self.weights:
            parts += ["", Table(_STORED, [_row(w) for w in self.weights[:most]])]
            parts += _more(self.weights, most)
        if not (self.added or self.removed or self.rewired or self.weights):
            parts += ["", "graph and stored tensors are as before"]
        return Shown(*parts)

    def __str__(self) -> str:
        return self.table(_MOST)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        changes = {w.name: w.change for w in self.weights}
        parts: list[Any] = [
            Details(f"{name}{_by(changes.get(name))}", Shown(*pictures))
            for name, pictures in self.pictures.items()
        ]
        left = sum(w.what == "changed" for w in self.weights) - len(parts)
        if parts and left:
            parts.append(f"the other {left} tensors changed less, and have no picture")
        return Shown(self.table(), *parts)._repr_html_()


def find_diff(step: Pass, before: "Model", after: "Model") -> Diff:
    """What a pass made of a model.

    Args:
        step: the pass.
        before: the model that it was given.
        after: what became of it. Weights are read where their digests differ, one at a time.
    """
    old = {node.name: node for node in before.nodes()}
    new = {node.name: node for node in after.nodes()}
    pairs = ((old[name], node) for name, node in new.items() if name in old)
    return Diff(
        step.name,
        explained(step),
        tuple(_line(node) for name, node in new.items() if name not in old),
        tuple(_line(node) for name, node in old.items() if name not in new),
        tuple(found for a, b in pairs if (found := _rewiring(a, b)) is not None),
        (weights := tuple(_weights(before, after))),
        _pictures(weights, before, after),
    )


def explained(step: Pass) -> str:
    """The first words of a pass's documentation, with the formula that follows them, if one does.

    They are of the module where that has the name of the pass, else of the class.
    """
    kind = type(step)
    own_file = kind.__module__.rpartition(".")[2] == kind.name.replace("-", "_")
    text = sys.modules[kind.__module__].__doc__ if own_file else kind.__doc__
    first, _, rest = inspect.cleandoc(text or "").partition("\n\n")
    formula = rest.partition("\n\n")[0]
    return f"{first}\n\n{formula}" if formula.startswith("    ") else first


def _line(node: gs.Node) -> NodeLine:
    inputs, outputs = (tuple(str(t.name) for t in of) for of in (node.inputs, node.outputs))
    return NodeLine(str(node.name), str(node.op), inputs, outputs)


def _rewiring(old: gs.Node, new: gs.Node) -> Rewiring | None:
    a, b = _line(old), _line(new)
    names = dict.fromkeys([*old.attrs, *new.attrs])
    values = {name: (old.attrs.get(name), new.attrs.get(name)) for name in names}
    attributes = {name: pair for name, pair in values.items() if _value(pair[0]) != _value(pair[1])}
    return Rewiring(a, b, attributes) if a != b or attributes else None


def _value(value: Any) -> Any:
    """An attribute as text tells it, the same for the same; a body by its size."""
    if isinstance(value, gs.Graph):
        return f"a body of {len(value.nodes)} nodes"
    if isinstance(value, gs.Constant):
        return f"a tensor {list(value.shape)}"
    if isinstance(value, list | tuple):
        return [_value(v) for v in value]
    return value if isinstance(value, str | int | float | None) else str(value)


def _weights(before: "Model", after: "Model") -> list[WeightChange]:
    old, new = before.inventory()[0], after.inventory()[0]
    differ = [name for name in {**new, **old} if old.get(name) != new.get(name)]
    tensors = before.tensors(), after.tensors()
    found = []
    for name in differ:
        a, b = (
            _seen(model, t.get(name)) for model, t in zip((before, after), tensors, strict=True)
        )
        what = "added" if name not in old else "removed" if name not in new else "changed"
        x, y = (_figures(values) for _, values in (a, b))
        shapes = tuple(None if v is None else v.shape for _, v in (a, b))
        found.append(
            WeightChange(
                name,
                what,
                (shapes[0], shapes[1]),
                (a[0], b[0]),
                (x[0], y[0]),
                (x[1], y[1]),
                _change(a[1], b[1]),
            )
        )
    return found


def _pictures(
    weights: Sequence[WeightChange], before: "Model", after: "Model"
) -> dict[str, tuple[Picture, ...]]:
    """Of the tensors of floats that changed most, in value or sparsity; another shape first."""
    changed = [
        w
        for w in weights
        if w.what == "changed" and w.change != 0 and math.prod(w.shape[1] or ()) > 1
    ]
    changed.sort(key=_extent, reverse=True)
    tensors = before.tensors(), after.tensors()
    found = {}
    for weight in changed[:_PICTURED]:
        x, y = (
            _seen(model, t[weight.name])[1]
            for model, t in zip((before, after), tensors, strict=True)
        )
        if x is not None and y is not None and x.dtype.kind == y.dtype.kind == "f":
            lost = np.count_nonzero(y) < np.count_nonzero(x)
            masks = [heat_map(Mask(y != 0), _CELLS)] if lost else []
            found[weight.name] = (*masks, histogram(x, y))
    return found


def _extent(weight: WeightChange) -> float:
    """By values alone, a tensor of which one channel is left would come last: it is the largest."""
    if weight.change is None:
        return math.inf
    before, after = weight.sparsity
    return max(weight.change, abs((after or 0.0) - (before or 0.0)))


def _by(change: float | None) -> str:
    return "" if change is None else f": changed by {change:.3g} of its largest value"


def _seen(model: "Model", tensor: gs.Tensor | None) -> tuple[str | None, Array | None]:
    """(dtype as stored, the values as layers see them); None where there is no such tensor."""
    values = None if tensor is None else model.constant(tensor)
    if tensor is None or values is None:
        return None, None
    for reader in tensor.outputs:
        if reader.op == "DequantizeLinear" and reader.inputs[0] is tensor:
            seen, _ = stored_values(model, reader.outputs[0])
            return values.dtype.name, values if seen is None else seen
    return values.dtype.name, values


def _figures(values: Array | None) -> tuple[float | None, float | None]:
    """(Share of zeros, norm); None without numbers."""
    if values is None or values.dtype.kind not in "fiub":
        return None, None
    wide = values.astype(np.float64)
    zeros = 1 - np.count_nonzero(wide) / wide.size if wide.size else 0.0
    return zeros, math.sqrt(float(np.vdot(wide, wide)))


def _change(before: Array | None, after: Array | None) -> float | None:
    if before is None or after is None or before.shape != after.shape or not before.size:
        return None
    if before.dtype.kind not in "fiu" or after.dtype.kind not in "fiu":
        return None
    a, b = before.astype(np.float64), after.astype(np.float64)
    largest = float(np.abs(a).max())
    return float(np.abs(b - a).max()) / largest if largest else None


def _row(weight: WeightChange) -> tuple[str, ...]:
    shapes = tuple(None if s is None else "x".join(map(str, s)) or "1" for s in weight.shape)
    return (
        weight.name,
        weight.what,
        _both(*shapes),
        _both(*weight.dtype),
        _both(*(None if s is None else f"{s:.3f}" for s in weight.sparsity)),
        _both(*(None if n is None else f"{n:.4g}" for n in weight.norm)),
        "" if weight.change is None else f"{weight.change:.3g}",
    )


def _both(before: str | None, after: str | None) -> str:
    if before is None or after is None or before == after:
        return next((side for side in (after, before) if side is not None), "")
    return f"{before} -> {after}"


def _more(lines: Sequence[object], most: int | None) -> list[str]:
    return [] if most is None or len(lines) <= most else [f"  and {len(lines) - most} more"]


def _names(names: Sequence[str]) -> str:
    return ", ".join(name or "-" for name in names) or "nothing"


def _turned(old: Sequence[str], new: Sequence[str]) -> str:
    if len(old) != len(new):
        return f"{_names(old)} -> {_names(new)}"
    return ", ".join(f"{a} -> {b}" for a, b in zip(old, new, strict=True) if a != b)
