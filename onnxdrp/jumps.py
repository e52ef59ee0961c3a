"""The first layer where the error between two models jumps, and what is known of that layer.

For every compared tensor t, made from compared tensors or graph inputs I(t):

    fall(t) = min(36 dB, worst SQNR of I(t)) - max(SQNR(t), worst SQNR of the outputs behind t)

So an error that does not reach an output counts nothing, and one that later layers make smaller
counts by what is left of it; above 36 dB 8-bit tensors differ by chance. Where a fall is 8 dB or
more the error jumps. The first such tensor whose fall is at least half the largest is named: what
comes after it often falls because of it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxdrp.dataflow import ordered
from onnxdrp.fidelity import ErrorStats
from onnxdrp.grids import find_rounding, stored_values
from onnxdrp.model import reads
from onnxdrp.moments import ChannelMoments
from onnxdrp.observe import BadSample, Tap, observe
from onnxdrp.observers import Histogram
from onnxdrp.operators import WeightUse, weight_use
from onnxdrp.quantization import Range

if TYPE_CHECKING:
    from onnxdrp.datareaders import DataReader
    from onnxdrp.model import Model

__all__ = ["Jump", "find_step", "outputs_behind", "what_is_known"]

Array = npt.NDArray[Any]

_FINE = 36.0  # dB
_JUMP = 8.0  # dB
_SPREAD = 8.0  # times: the median channel loses 3 of 8 bits
_OUTLYING = 8.0  # times
_POOR = 32.0  # dB of rounded weights; 8 bits give about 40
_CLIPPED = 1e-3  # share of the values
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Jump:
    """Where SQNR falls.

    Attributes:
        name: of the node: the layer with weights among those that make `tensor`, else the last.
        op: its operator.
        tensor: the compared tensor.
        before_db: SQNR of the worst tensor that it is made from; inf without error.
        after_db: of `tensor`.
        fall_db: see above.
        place: its number among the compared tensors, from 1.
        of: how many there are.
        reasons: what is known of it, in words.
    """

    name: str
    op: str
    tensor: str
    before_db: float
    after_db: float
    fall_db: float
    place: int
    of: int
    reasons: tuple[str, ...] = ()

    @property
    def is_jump(self) -> bool:
        """Whether it is more than the error's usual growth."""
        return self.fall_db >= _JUMP

    def as_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        found = asdict(self) | {"reasons": list(self.reasons)}
        return {k: None if v in (math.inf, -math.inf) else v for k, v in found.items()}

    def __str__(self) -> str:
        fallen = f"from {self.before_db:.1f} to" if math.isfinite(self.before_db) else "at once to"
        where = f"at {self.op} {self.name!r} ({self.place} of {self.of})"
        why = f": {'; '.join(self.reasons)}" if self.reasons else ""
        return f"SQNR falls {fallen} {self.after_db:.1f} dB {where}{why}"


def find_step(model: "Model", errors: Mapping[str, ErrorStats]) -> Jump | None:
    """The first jump; without one, the largest fall; None if nothing falls or is compared.

    Args:
        model: the reference.
        errors: {tensor: its error}, of all that were compared, outputs among them.
    """
    nodes = ordered(model.nodes())
    before, made = _before(model, nodes, errors)
    behind = outputs_behind(model, errors)
    falls = {
        t: min(before[t], _FINE) - max(errors[t].sqnr_db, behind.get(t, math.inf)) for t in before
    }
    largest = max(falls.values(), default=0.0)
    if largest <= 0:
        return None
    least = max(_JUMP, largest / 2) if largest >= _JUMP else largest
    places = list(before)
    tensor = next(t for t in places if falls[t] >= least)
    node = _blamed(made[tensor])
    return Jump(
        node.name,
        node.op,
        tensor,
        before[tensor],
        errors[tensor].sqnr_db,
        falls[tensor],
        places.index(tensor) + 1,
        len(places),
    )


def _before(
    model: "Model", nodes: Sequence[gs.Node], errors: Mapping[str, ErrorStats]
) -> tuple[dict[str, float], dict[str, list[gs.Node]]]:
    """For each compared tensor SQNR of the worst it is made from, and the nodes between."""
    worst = {info.name: math.inf for info in model.inputs}
    between: dict[str, list[gs.Node]] = {}
    before: dict[str, float] = {}
    made: dict[str, list[gs.Node]] = {}
    for node in nodes:
        sources = [t.name for t in reads(node) if t.name in worst]
        low = min((worst[name] for name in sources), default=math.inf)
        inside = [n for name in sources for n in between.get(name, [])] + [node]
        for name in (t.name for t in node.outputs if t.name):
            if name in errors:
                before[name], made[name] = low, inside
                worst[name] = errors[name].sqnr_db
            else:
                worst[name], between[name] = low, inside[-8:]  # long chains are of no interest
    return before, made


def outputs_behind(model: "Model", errors: Mapping[str, ErrorStats]) -> dict[str, float]:
    """{tensor: SQNR of the worst output that is made from it}."""
    behind = {o.name: errors[o.name].sqnr_db for o in model.outputs if o.name in errors}
    for node in reversed(ordered(model.nodes())):
        found = [behind[t.name] for t in node.outputs if t.name in behind]
        for tensor in reads(node):
            behind[tensor.name] = min([behind.get(tensor.name, math.inf), *found])
    return behind


def _blamed(nodes: Sequence[gs.Node]) -> gs.Node:
    return next((node for node in reversed(nodes) if node.op in _LAYERS), nodes[-1])


def what_is_known(
    jump: Jump,
    a: "Model",
    b: "Model",
    reader: "DataReader",
    on_bad: Callable[[BadSample], None] | None = None,
) -> tuple[str, ...]:
    """What could make the error, in words: weights, their spread, the values of the output.

    Runs the reference over the data once more, for this tensor alone.

    Args:
        jump: where.
        a: the reference.
        b: the other model.
        reader: the data.
        on_bad: told of samples that are left out; None: an error.
    """
    node = a.node(jump.name)
    use = weight_use(a, node) if node.op in _LAYERS else None
    data = "" if use is None else str(node.inputs[use.data].name)
    taps: dict[str, Tap] = {"output": Tap(jump.tensor, Histogram())}
    if data and _interval(b, data) is not None:
        axis = 1 if node.op in ("Conv", "ConvTranspose") else -1
        taps["input"] = Tap(data, ChannelMoments(axis))
    seen = observe(a, reader, taps, on_bad=on_bad)
    found = _weights(a, b, use) if use is not None else []
    if "input" in taps:
        size = np.sqrt(seen["input"].variance + seen["input"].mean ** 2)
        found += _spread(size, f"its input {data!r}")
    return (*found, *_values(seen["output"], _interval(b, jump.tensor)))


def _spread(sizes: Array, of: str) -> list[str]:
    """Whether the largest channel is so much larger than others that these have few steps."""
    usual = float(np.median(sizes))
    if not sizes.max() >= _SPREAD * usual > 0:
        return []
    times = f"{sizes.max() / usual:,.0f} times the median one"
    return [f"the largest channel of {of} is {times}, and all share one scale"]


def _weights(a: "Model", b: "Model", use: WeightUse) -> list[str]:
    nodes = {node.name: node for node in b.nodes()}
    mine, other = a.node(use.node), nodes.get(use.node)
    if other is None or len(other.inputs) <= use.weight:
        return []
    weight = a.constant(mine.inputs[use.weight])
    rounded, grid = stored_values(b, other.inputs[use.weight])
    if weight is None or rounded is None or rounded.shape != weight.shape:
        return []
    found = []
    wide = weight.astype(np.float64)
    noise, signal = float(((wide - rounded) ** 2).sum()), float((wide**2).sum())
    decibels = 10 * math.log10(signal / noise) if noise and signal else math.inf
    if decibels < _POOR:
        found.append(f"its weights are {decibels:.1f} dB from those of the reference")
    if grid is not None and grid.axis is None and use.axis is not None:
        others = tuple(i for i in range(weight.ndim) if i != use.axis)
        found += _spread(np.abs(wide).max(axis=others), "its weight")
    return found


def _interval(model: "Model", tensor: str) -> Range | None:
    """What a tensor is quantized to can represent; None if it is not quantized."""
    found = find_rounding(model, tensor)
    return found.params.interval if found is not None and found.params.axis is None else None


def _values(seen: Histogram, interval: Range | None) -> list[str]:
    """What is odd about the values, or just where they lie."""
    low, high = seen.extremes.low, seen.extremes.high
    if not seen.extremes.count:
        return []
    text = f"its output ranges over {low:.3g}..{high:.3g}"
    most = seen.percentile(98, "two")
    peak, usual = max(-low, high), max(-most.low, most.high)
    if usual > 0 and peak >= _OUTLYING * usual:
        text += f", but 98 % of the values lie in {most.low:.3g}..{most.high:.3g}"
    found = [text]
    if interval is None:
        return found
    can = f"{interval.low:.3g}..{interval.high:.3g}"
    share = seen.outside(interval)
    span = max(-interval.low, interval.high)
    if share >= _CLIPPED:
        found.append(f"{100 * share:.2g} % of them lie outside of the {can} that it can represent")
    elif peak > 0 and span >= _OUTLYING * peak:
        found.append(f"its scale is made for {can}")
    return found
