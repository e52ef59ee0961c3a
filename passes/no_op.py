"""Which nodes give their first input back unchanged."""

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxdrp.model import Model
from onnxdrp.passes.edit import is_standard

__all__ = ["does_nothing"]

_END = 2**31 - 1  # from here on exporters mean "to the end"


def does_nothing(model: Model, node: gs.Node) -> bool:
    """Whether the first output always equals the first input, and no other output is read."""
    rule = _RULES.get(node.op)
    if rule is None or not is_standard(node) or not node.inputs or not node.inputs[0].name:
        return False
    if any(t.outputs for t in node.outputs[1:]):
        return False
    return rule(model, node)


def _always(_model: Model, _node: gs.Node) -> bool:
    return True


def _one_input(_model: Model, node: gs.Node) -> bool:
    return len(node.inputs) == 1


def _dropout(model: Model, node: gs.Node) -> bool:
    if model.opset < 7:
        return bool(node.attrs.get("is_test", 0))
    if len(node.inputs) < 3 or not node.inputs[2].name:
        return True
    training = model.constant(node.inputs[2])
    return training is not None and not training.any()


def _transpose(_model: Model, node: gs.Node) -> bool:
    perm = node.attrs.get("perm")
    if perm is None:
        return node.inputs[0].shape is not None and len(node.inputs[0].shape) < 2
    return list(perm) == list(range(len(perm)))


def _cast(_model: Model, node: gs.Node) -> bool:
    dtype = node.inputs[0].dtype
    if dtype is None:
        return False
    target = int(node.attrs["to"])
    plain = target != onnx.TensorProto.STRING  # which numpy has no type of its own for
    return plain and _numpy(dtype) == onnx.helper.tensor_dtype_to_np_dtype(target)


def _numpy(dtype: object) -> np.dtype[np.generic]:
    if isinstance(dtype, int):
        return onnx.helper.tensor_dtype_to_np_dtype(dtype)
    return np.dtype(dtype)  # type: ignore[call-overload, no-any-return]


def _same_shape(_model: Model, node: gs.Node) -> bool:
    """Whether no value can have moved: the shapes agree, one dimension may be free.

    If all others agree, and are not 0, that one does as well, since no value is lost or added.
    """
    before, after = node.inputs[0].shape, node.outputs[0].shape
    if before is None or after is None or len(before) != len(after):
        return False
    pairs = list(zip(before, after, strict=True))
    known = [_size(a) is not None and _size(a) == _size(b) for a, b in pairs]
    return known.count(False) == 0 or (
        known.count(False) == 1 and not _fixed(pairs[known.index(False)])
    )


def _fixed(pair: tuple[object, object]) -> bool:
    return _size(pair[0]) is not None and _size(pair[1]) is not None


def _size(dim: object) -> int | None:
    return int(dim) if isinstance(dim, int | np.integer) and dim > 0 else None


def _expand(_model: Model, node: gs.Node) -> bool:
    """Expand adds values, so that all dimensions must be known."""
    before, after = node.inputs[0].shape, node.outputs[0].shape
    if before is None or after is None or len(before) != len(after):
        return False
    return all(
        _size(a) is not None and _size(a) == _size(b) for a, b in zip(before, after, strict=True)
    )


def _pad(model: Model, node: gs.Node) -> bool:
    if len(node.inputs) < 2:
        pads: Sequence[int] | None = node.attrs.get("pads", node.attrs.get("paddings"))
        return pads is not None and not any(pads)
    stored = model.constant(node.inputs[1])
    return stored is not None and not stored.any()


def _slice(model: Model, node: gs.Node) -> bool:
    starts, ends, steps = _bounds(model, node)
    if starts is None or ends is None or steps is None or any(s != 1 for s in steps):
        return False
    whole = all(s == 0 for s in starts) and all(e >= _END for e in ends)
    return whole or _expand(model, node)


def _bounds(model: Model, node: gs.Node) -> list[list[int] | None]:
    """Starts, ends and steps of a Slice; None for those that are computed."""
    if model.opset < 10:
        starts = list(node.attrs["starts"])
        return [starts, list(node.attrs["ends"]), [1] * len(starts)]
    found: list[list[int] | None] = []
    for place in (1, 2, 4):
        given = place < len(node.inputs) and node.inputs[place].name
        values = model.constant(node.inputs[place]) if given else np.ones(1, np.int64)
        found.append(None if values is None else values.reshape(-1).tolist())
    return found


def _pool(_model: Model, node: gs.Node) -> bool:
    if str(node.attrs.get("auto_pad", "NOTSET")) == "NOTSET" and any(node.attrs.get("pads", ())):
        return False
    moves = [*node.attrs.get("kernel_shape", (0,)), *node.attrs.get("strides", ())]
    return all(m == 1 for m in moves)


_RULES: dict[str, Callable[[Model, gs.Node], bool]] = {
    "AveragePool": _pool,
    "Cast": _cast,
    "Concat": _one_input,
    "Dropout": _dropout,
    "Expand": _expand,
    "Flatten": _same_shape,
    "Identity": _always,
    "Max": _one_input,
    "MaxPool": _pool,
    "Mean": _one_input,
    "Min": _one_input,
    "Pad": _pad,
    "Reshape": _same_shape,
    "Slice": _slice,
    "Sum": _one_input,
    "Transpose": _transpose,
}
