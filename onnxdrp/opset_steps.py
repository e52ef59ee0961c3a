"""How operators are said one version earlier, where comparing their schemas does not tell.

A step takes a node of the version of its operator that came with an opset and returns nodes of the
opset before. Source: ONNX's change log (docs/Changelog.md of onnx), opsets 11 to 28. What a step
leaves alone is compared with the schema afterwards (onnxdrp/opset_schemas.py).

Operators that are new in an opset are written out in older ones by onnxdrp/opset_formulas.py.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx

from onnxdrp.opset_formulas import FORMULAS
from onnxdrp.opset_schemas import CannotLowerError, Tensors, attribute

__all__ = ["STEPS", "Step"]

Node = onnx.NodeProto
Step = Callable[[Node, Tensors], list[Node]]


def _edited(
    node: Node, inputs: Sequence[str] | None = None, drop: Sequence[str] = (), **attributes: Any
) -> Node:
    """A copy with other inputs (absent ones at the end left out) and attributes."""
    result = Node()
    result.CopyFrom(node)
    if inputs is not None:
        names = list(inputs)
        while names and not names[-1]:
            names.pop()
        result.ClearField("input")
        result.input.extend(names)
    kept = [a for a in node.attribute if a.name not in (*drop, *attributes)]
    result.ClearField("attribute")
    result.attribute.extend(kept)
    result.attribute.extend(onnx.helper.make_attribute(k, v) for k, v in attributes.items())
    return result


def _inputs(node: Node, count: int) -> list[str]:
    """The names of the first inputs, "" for those left out."""
    return [*node.input, *[""] * count][:count]


# ------------------------------------------------------------- inputs that were attributes


def _axes_as_attribute(node: Node, tensors: Tensors) -> list[Node]:
    """Squeeze, Unsqueeze, reductions; none and `noop_with_empty_axes` is no reduction at all."""
    axes = tensors.constant(node, 1, "axes")
    none = axes is None or not axes.size
    if none and (attribute(node, "noop_with_empty_axes", 0) or node.op_type == "Unsqueeze"):
        raise CannotLowerError("it names no axes, which means all of them in the older form")
    if node.op_type == "Squeeze" and axes is not None and none:
        raise CannotLowerError("its list of axes is empty, which the older form does not know")
    more: dict[str, Any] = {} if axes is None or none else {"axes": axes.reshape(-1).tolist()}
    drop = ("noop_with_empty_axes",)
    return [_edited(node, node.input[:1], drop, **more)]


def _split_as_attribute(node: Node, tensors: Tensors) -> list[Node]:
    sizes = tensors.constant(node, 1, "sizes")
    more = {} if sizes is None else {"split": sizes.tolist()}
    return [_edited(node, node.input[:1], **more)]


def _split_without_count(node: Node, tensors: Tensors) -> list[Node]:
    """`num_outputs`, where it does not divide the axis, makes the last part smaller."""
    count = attribute(node, "num_outputs")
    if count is None:
        return [node]
    shape = tensors.shape(node.input[0])
    size = shape[attribute(node, "axis", 0)]
    if size is None:
        raise CannotLowerError("num_outputs is new in opset 18, and its axis has no fixed size")
    part = -(-size // count)
    sizes = [part] * (count - 1) + [size - part * (count - 1)]
    if sizes[-1] < 0:
        raise CannotLowerError(f"{size} cannot be split into {count} parts of {part}")
    if sizes[-1] == part:
        return [_edited(node, drop=("num_outputs",))]
    stored = tensors.store(f"{node.name}_sizes", np.array(sizes, np.int64))
    return [_edited(node, [node.input[0], stored], ("num_outputs",))]


def _clip_as_attributes(node: Node, tensors: Tensors) -> list[Node]:
    stored = {
        "min": tensors.constant(node, 1, "bounds"),
        "max": tensors.constant(node, 2, "bounds"),
    }
    bounds: dict[str, Any] = {k: float(v.item()) for k, v in stored.items() if v is not None}
    if bounds.get("min", -math.inf) > bounds.get("max", math.inf):
        raise CannotLowerError("what it does with min above max is not said below opset 13")
    return [_edited(node, node.input[:1], **bounds)]


def _pad_as_attributes(node: Node, tensors: Tensors) -> list[Node]:
    pads, fill = tensors.constant(node, 1, "paddings"), tensors.constant(node, 2, "padding values")
    assert pads is not None  # it is required
    more: dict[str, Any] = {} if fill is None else {"value": float(fill.item())}
    return [_edited(node, node.input[:1], pads=pads.tolist(), **more)]


def _pad_without_axes(node: Node, tensors: Tensors) -> list[Node]:
    """`axes` say which axes the paddings are of; the others have none."""
    data, pads, fill, _ = _inputs(node, 4)
    axes = tensors.constant(node, 3, "axes")
    if axes is None:
        return [_edited(node, [data, pads, fill])]
    given = tensors.constant(node, 1, "paddings")
    assert given is not None  # it is required
    rank = len(tensors.shape(data))
    whole = np.zeros((2, rank), np.int64)
    whole[:, axes] = given.reshape(2, -1)
    return [_edited(node, [data, tensors.store(f"{node.name}_pads", whole.reshape(-1)), fill])]


def _dropout_as_attribute(node: Node, tensors: Tensors) -> list[Node]:
    training = tensors.constant(node, 2, "modes")
    if training is not None and training.any():
        raise CannotLowerError("it is in training mode")
    if any(node.output[1:]):
        raise CannotLowerError("its mask says the contrary below opset 12")
    ratio = tensors.constant(node, 1, "ratios")
    more: dict[str, Any] = {} if ratio is None else {"ratio": float(ratio.item())}
    return [_edited(node, node.input[:1], **more)]


def _gemm_with_bias(node: Node, tensors: Tensors) -> list[Node]:
    a, b, c = _inputs(node, 3)
    return [_edited(node, [a, b, c or tensors.store("zero", np.zeros((), tensors.dtype(a)))])]


# -------------------------------------------------------------------- what meant another thing


def _flattening(node: Node, tensors: Tensors) -> list[Node]:
    """Softmax and the like went over all axes from `axis` on; now over that alone."""
    x, y = node.input[0], node.output[0]
    shape = tensors.shape(x)
    last = len(shape) - 1
    axis = attribute(node, "axis", -1) % len(shape)
    if all(d == 1 for d in shape[axis + 1 :]):
        return [_edited(node, axis=axis)]
    turned = list(range(len(shape)))
    turned[axis], turned[last] = last, axis
    # square or not, the type says no more than the rank from here on
    a, b = (tensors.fresh(f"{y}_{what}", like=x, ranked=False) for what in ("turned", "done"))
    inside = _edited(node, [a], axis=last)
    inside.output[0] = b
    return [
        onnx.helper.make_node("Transpose", [x], [a], perm=turned),
        inside,
        onnx.helper.make_node("Transpose", [b], [y], perm=turned),
    ]


def _positive_axes(node: Node, tensors: Tensors) -> list[Node]:
    """Axes did not count from the back."""
    more: dict[str, Any] = {}
    axis, axes = attribute(node, "axis"), attribute(node, "axes")
    if axis is not None and axis < 0:
        extra = 1 if node.op_type == "OneHot" else 0
        more["axis"] = axis + len(tensors.shape(node.input[0])) + extra
    if axes is not None and min(axes, default=0) < 0:
        extra = len(axes) if node.op_type == "Unsqueeze" else 0
        rank = len(tensors.shape(node.input[0])) + extra
        more["axes"] = sorted(a % rank for a in axes)
    return [_edited(node, **more)]


def _pool_inside(node: Node, tensors: Tensors) -> list[Node]:
    """With `ceil_mode`, windows that begin in the padding at the end are left out now."""
    if not attribute(node, "ceil_mode", 0) or attribute(node, "auto_pad", "NOTSET") != "NOTSET":
        return [node]
    kernel = attribute(node, "kernel_shape")
    n = len(kernel)
    strides, dilations = (attribute(node, k, [1] * n) for k in ("strides", "dilations"))
    pads = attribute(node, "pads", [0] * 2 * n)
    for i, size in enumerate(tensors.shape(node.input[0])[2:]):
        if size is None:
            raise CannotLowerError("what ceil_mode does is known only where its sizes are fixed")
        span = size + pads[i] + pads[n + i] - dilations[i] * (kernel[i] - 1) - 1
        if span % strides[i] == 0:
            continue
        if -(-span // strides[i]) * strides[i] >= size + pads[i]:
            raise CannotLowerError("with ceil_mode, its last window lies in the padding")
        if attribute(node, "count_include_pad", 0):
            raise CannotLowerError("ceil_mode with count_include_pad divided by another count")
    return [node]


def _one_scale(node: Node, tensors: Tensors) -> list[Node]:
    """Scales by channel are new in opset 13."""
    if math.prod(d or 0 for d in tensors.shape(node.input[1])) != 1:
        raise CannotLowerError("scales by channel are new in opset 13")
    return [_edited(node, drop=("axis",))]


def _typed_by_zero_point(node: Node, _tensors: Tensors) -> list[Node]:
    """`output_dtype` says what the zero point does, or uint8, which it is without one."""
    stated = attribute(node, "output_dtype", 0)
    _, _, zero = _inputs(node, 3)
    if stated and not zero and stated != onnx.TensorProto.UINT8:
        raise CannotLowerError("output_dtype without a zero point is new in opset 21")
    return [_edited(node, drop=("output_dtype",))]


def _typed_by_scale(node: Node, tensors: Tensors) -> list[Node]:
    stated = attribute(node, "output_dtype", 0)
    scale = tensors.kind(node.input[1]).tensor_type.elem_type
    if stated and stated != scale:
        raise CannotLowerError("output_dtype other than that of the scale is new in opset 23")
    return [_edited(node, drop=("output_dtype",))]


def _no_zero_allowed(node: Node, tensors: Tensors) -> list[Node]:
    """`allowzero` changes nothing where the shape has no 0."""
    if attribute(node, "allowzero", 0):
        shape = tensors.constant(node, 1, "dimensions")
        if shape is None or not shape.all():
            raise CannotLowerError("allowzero with a 0 in the shape is new in opset 14")
    return [_edited(node, drop=("allowzero",))]


def _whole_shape(node: Node, tensors: Tensors) -> list[Node]:
    """`start` and `end` are a Slice after it."""
    start, end = attribute(node, "start", 0), attribute(node, "end")
    whole = _edited(node, drop=("start", "end"))
    if start == 0 and end is None:
        return [whole]
    (y,) = node.output
    whole.output[0] = tensors.fresh(f"{y}_whole", like=y, ranked=False)
    ends = np.iinfo(np.int64).max if end is None else end
    bounds = [
        tensors.store(f"{node.name}_{k}", np.array([v], np.int64))
        for k, v in (("start", start), ("end", ends))
    ]
    return [whole, onnx.helper.make_node("Slice", [whole.output[0], *bounds], [y])]


def _float_mod(node: Node, tensors: Tensors) -> list[Node]:
    if not attribute(node, "fmod", 0) and tensors.dtype(node.input[0]).kind not in "iu":
        raise CannotLowerError("of floats it is fmod below opset 28")
    return [node]


def _defined_shift(_node: Node, _tensors: Tensors) -> list[Node]:
    raise CannotLowerError("shifts by all bits and more are undefined below opset 28")


def _constant_tensor(node: Node, _tensors: Tensors) -> list[Node]:
    """`value_int` and the like are a tensor as `value`."""
    dtypes: dict[str, type] = {"value_int": np.int64, "value_ints": np.int64}
    dtypes |= {"value_float": np.float32, "value_floats": np.float32}
    for a in node.attribute:
        dtype = dtypes.get(a.name)
        if dtype is not None:
            tensor = onnx.numpy_helper.from_array(np.array(attribute(node, a.name), dtype))
            return [_edited(node, drop=(a.name,), value=tensor)]
    return [node]


def _bilinear(node: Node, tensors: Tensors) -> list[Node]:
    """GridSample called its modes bilinear and bicubic, and took images only."""
    if len(tensors.shape(node.input[0])) != 4:
        raise CannotLowerError("inputs other than images are new in opset 20")
    mode = attribute(node, "mode", "linear")
    old = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    return [_edited(node, mode=old)]


# ---------------------------------------------------------------------------------------- Resize


def _resize_all_axes(node: Node, tensors: Tensors) -> list[Node]:
    """`axes` say which axes the factors or sizes are of; the others stay as they are."""
    axes = attribute(node, "axes")
    if axes is None:
        return [node]
    if attribute(node, "coordinate_transformation_mode") == "tf_crop_and_resize":
        raise CannotLowerError("axes of a crop are new in opset 18")
    x, _, scales, sizes = _inputs(node, 4)
    shape = tensors.shape(x)
    if scales:
        given, whole = tensors.constant(node, 2, "factors"), np.ones(len(shape), np.float32)
        scales = tensors.store(f"{node.name}_scales", _placed(whole, axes, given))
    else:
        given = tensors.constant(node, 3, "sizes")
        kept = [d for i, d in enumerate(shape) if i not in [a % len(shape) for a in axes]]
        if None in kept:
            raise CannotLowerError("axes are new in opset 18, and the others have no fixed size")
        whole = np.array([d or 0 for d in shape], np.int64)
        sizes = tensors.store(f"{node.name}_sizes", _placed(whole, axes, given))
    return [_edited(node, [x, "", scales, sizes], ("axes",))]


def _placed(whole: Any, axes: Sequence[int], given: Any) -> Any:
    whole[list(axes)] = given
    return whole


def _resize_all_inputs(node: Node, tensors: Tensors) -> list[Node]:
    """What is left out was an empty tensor."""
    x, roi, scales, sizes = _inputs(node, 4)
    empty = "" if roi and scales else tensors.store("empty", np.zeros(0, np.float32))
    return [_edited(node, [x, roi or empty, scales or empty, sizes])]


_RESIZE_10 = (
    "coordinate_transformation_mode", "nearest_mode", "cubic_coeff_a", "exclude_outside",
    "extrapolation_value",
)  # fmt: skip


def _resize_asymmetric(node: Node, tensors: Tensors) -> list[Node]:
    """Coordinates were asymmetric, and the nearest was the one below.

    (But the one above, in onnxruntime, where it shrinks.)
    """
    mode, coordinates = attribute(node, "mode", "nearest"), attribute(node, _RESIZE_10[0])
    if coordinates != "asymmetric" or mode == "cubic":
        raise CannotLowerError(f"{mode} with {coordinates or 'half_pixel'} is new in opset 11")
    x, _, scales, sizes = _inputs(node, 4)
    factors = tensors.constant(node, 2, "factors")
    if sizes:
        wanted, shape = tensors.constant(node, 3, "sizes"), tensors.shape(x)
        if wanted is None or None in shape:
            raise CannotLowerError("sizes are new in opset 11, and those of its input are free")
        now = np.array(shape, np.float32)
        factors = (wanted / now).astype(np.float32)
        if np.any(np.floor(now * factors) != wanted):
            raise CannotLowerError("sizes are new in opset 11, and no factor gives them")
        scales = tensors.store(f"{node.name}_scales", factors)
    down = factors is None or np.any(factors < 1)
    if mode == "nearest" and (attribute(node, "nearest_mode") != "floor" or down):
        raise CannotLowerError("that way to round to the nearest is new in opset 11")
    return [_edited(node, [x, scales], _RESIZE_10)]


# ------------------------------------------------------------------------------------- the table

_REDUCTIONS = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSumSquare",
)  # fmt: skip
_WITH_AXES = (
    *_REDUCTIONS, "ArgMax", "ArgMin", "Compress", "Concat", "Flatten", "Hardmax", "LogSoftmax",
    "OneHot", "ReduceSum", "Softmax", "Split", "Squeeze", "TopK", "Unsqueeze",
)  # fmt: skip

STEPS: dict[tuple[str, int], Step] = {
    **{(op, 11): _positive_axes for op in _WITH_AXES},
    ("Clip", 11): _clip_as_attributes,
    ("Gemm", 11): _gemm_with_bias,
    ("Pad", 11): _pad_as_attributes,
    ("Resize", 11): _resize_asymmetric,
    ("Constant", 12): _constant_tensor,
    ("Dropout", 12): _dropout_as_attribute,
    **dict.fromkeys([("Softmax", 13), ("LogSoftmax", 13), ("Hardmax", 13)], _flattening),
    **{(op, 13): _axes_as_attribute for op in ("Squeeze", "Unsqueeze", "ReduceSum")},
    **{(op, 13): _one_scale for op in ("QuantizeLinear", "DequantizeLinear")},
    ("Resize", 13): _resize_all_inputs,
    ("Split", 13): _split_as_attribute,
    ("Reshape", 14): _no_zero_allowed,
    ("Shape", 15): _whole_shape,
    **{(op, 18): _axes_as_attribute for op in _REDUCTIONS},
    ("Pad", 18): _pad_without_axes,
    ("Resize", 18): _resize_all_axes,
    ("Split", 18): _split_without_count,
    ("AveragePool", 19): _pool_inside,
    ("GridSample", 20): _bilinear,
    ("QuantizeLinear", 21): _typed_by_zero_point,
    ("AveragePool", 22): _pool_inside,
    ("MaxPool", 22): _pool_inside,
    ("DequantizeLinear", 23): _typed_by_scale,
    ("BitShift", 28): _defined_shift,
    ("Mod", 28): _float_mod,
    **FORMULAS,
}  # fmt: skip
"""{(operator, opset that changed it): the step to the opset before}."""
