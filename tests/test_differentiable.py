"""The differentiable interpreter: every operator as onnxruntime computes it, and its gradients."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from builders import conv_net, feeds_for, make_model, mlp, outputs_of
from onnx import helper

torch = pytest.importorskip("torch", reason="torch is not installed: pip install onnxdrp[distill]")

from onnxdrp.differentiable import OPERATORS, Call, Network  # noqa: E402
from onnxdrp.differentiable.quantizing import fake_quantize  # noqa: E402
from onnxdrp.errors import DataError, ModelError  # noqa: E402
from onnxdrp.model import Model  # noqa: E402

RNG = np.random.default_rng(0)


def f(*shape, low=-2.0, high=2.0):
    """Floats that are no round numbers."""
    return RNG.uniform(low, high, shape).astype(np.float32)


def pos(*shape):
    return f(*shape, low=0.3, high=3)


def i(*values):
    return np.array(values, np.int64)


def s(value, dtype=np.float32):
    return np.array(value, dtype)


def case(op, *inputs, opset=21, outputs=1, feed=1, name=None, **attrs):
    """One node on its inputs, of which the first `feed` are fed, the others stored."""
    shown = "-".join(f"{k}={v}" for k, v in attrs.items() if not isinstance(v, onnx.TensorProto))
    shapes = "x".join(str(a.shape).replace(" ", "") if a is not None else "_" for a in inputs)
    return pytest.param(
        op, inputs, attrs, opset, outputs, feed, id=name or f"{op}{opset}-{shapes}-{shown}"[:90]
    )


X1, X2, X3 = f(2, 4, 11), f(2, 4, 9, 10), f(1, 2, 5, 6, 7)

CONVOLUTIONS = [
    case("Conv", X1, f(6, 4, 3), f(6), strides=[2], pads=[1, 0]),
    case("Conv", X2, f(6, 4, 3, 3), f(6), pads=[1, 1, 1, 1]),
    case("Conv", X2, f(6, 4, 3, 3), pads=[1, 0, 2, 1], strides=[2, 1]),
    case("Conv", X2, f(6, 2, 3, 2), f(6), group=2, dilations=[2, 3]),
    case("Conv", X2, f(4, 1, 5, 5), f(4), group=4, auto_pad="SAME_UPPER", strides=[2, 2]),
    case("Conv", X2, f(4, 4, 4, 2), f(4), auto_pad="SAME_LOWER", strides=[2, 3]),
    case("Conv", X2, f(4, 4, 3, 3), f(4), auto_pad="VALID", strides=[2, 2]),
    case("Conv", X3, f(3, 2, 3, 3, 3), f(3), pads=[1, 1, 0, 1, 0, 1], strides=[1, 2, 2]),
    case("ConvTranspose", X1, f(4, 3, 3), f(3), strides=[2], pads=[1, 0]),
    case("ConvTranspose", X2, f(4, 3, 3, 3), f(3), strides=[2, 2], pads=[1, 1, 1, 1]),
    case("ConvTranspose", X2, f(4, 3, 2, 2), strides=[2, 2]),
    case(
        "ConvTranspose",
        *(X2, f(4, 3, 3, 3), f(3)),
        strides=[2, 2],
        pads=[0, 1, 0, 1],
        output_padding=[1, 1],
    ),
    case("ConvTranspose", X2, f(4, 3, 3, 3), group=2, strides=[3, 2], dilations=[2, 1]),
    case("ConvTranspose", X2, f(4, 3, 3, 3), f(3), strides=[2, 2], output_shape=[18, 20]),
    case("ConvTranspose", X2, f(4, 3, 3, 3), auto_pad="SAME_UPPER", strides=[2, 2]),
    case("ConvTranspose", X2, f(4, 3, 3, 3), auto_pad="SAME_LOWER", strides=[2, 2]),
    case("ConvTranspose", X3, f(2, 2, 2, 3, 2), f(2), strides=[2, 1, 2]),
    case("Gemm", f(3, 5), f(5, 4), f(4)),
    case("Gemm", f(5, 3), f(4, 5), f(3, 1), transA=1, transB=1, alpha=0.5, beta=1.5),
    case("Gemm", f(3, 5), f(5, 4)),
    case("MatMul", f(2, 3, 4, 5), f(5, 6)),
    case("MatMul", f(2, 3, 4, 5), f(3, 5, 2), feed=2),
    case("MatMul", f(5), f(5, 6)),
]

POOLS = [
    case("MaxPool", X1, kernel_shape=[3], strides=[2]),
    case("MaxPool", X2, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    case("MaxPool", X2, kernel_shape=[3, 2], strides=[2, 2], ceil_mode=1),
    case("MaxPool", X2, kernel_shape=[2, 2], strides=[3, 3], ceil_mode=1, pads=[1, 0, 0, 1]),
    case("MaxPool", X2, kernel_shape=[3, 3], dilations=[2, 2]),
    case("MaxPool", X2, kernel_shape=[3, 3], auto_pad="SAME_UPPER", strides=[2, 2]),
    case("MaxPool", X2, kernel_shape=[2, 2], auto_pad="SAME_LOWER"),
    case("MaxPool", X2, kernel_shape=[5, 5], pads=[2, 2, 2, 2]),
    case("MaxPool", X3, kernel_shape=[2, 2, 2], strides=[2, 2, 2]),
    case("AveragePool", X1, kernel_shape=[3], strides=[2]),
    case("AveragePool", X2, kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    case("AveragePool", X2, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    case("AveragePool", X2, kernel_shape=[3, 3], pads=[0, 1, 2, 1], strides=[2, 1]),
    case("AveragePool", X2, kernel_shape=[3, 3], pads=[0, 1, 2, 1], count_include_pad=1),
    case("AveragePool", X2, kernel_shape=[2, 3], strides=[2, 2], ceil_mode=1),
    case("AveragePool", X2, kernel_shape=[3, 3], auto_pad="SAME_UPPER", strides=[2, 2]),
    case("AveragePool", X2, kernel_shape=[2, 2], auto_pad="SAME_LOWER"),
    case("AveragePool", X2, kernel_shape=[2, 2], dilations=[2, 3]),
    case("AveragePool", X3, kernel_shape=[2, 3, 2], strides=[1, 2, 2]),
    case("GlobalAveragePool", X2),
    case("GlobalAveragePool", X1),
    case("GlobalMaxPool", X2),
]

UNARY = [
    *(case(op, f(3, 4)) for op in ("Abs", "Cos", "Erf", "Exp", "Neg", "Sign", "Sin", "Tanh")),
    *(case(op, f(3, 4)) for op in ("Ceil", "Floor", "Identity", "Relu", "Sigmoid", "Softsign")),
    *(case(op, pos(3, 4)) for op in ("Log", "Sqrt", "Reciprocal")),
    case("Round", s([0.5, 1.5, 2.5, -0.5, -1.5, 1.2])),
    case("Not", f(3, 4) > 0),
    case("Softplus", f(3, 4, low=-30, high=30)),
    case("HardSwish", f(3, 4, low=-6, high=6)),
    case("Mish", f(3, 4, low=-6, high=6)),
    case("HardSigmoid", f(3, 4, low=-5, high=5)),
    case("HardSigmoid", f(3, 4, low=-5, high=5), alpha=1 / 6, beta=0.4),
    *(case(op, f(3, 4)) for op in ("Elu", "Celu", "Selu", "LeakyRelu", "Gelu")),
    case("Elu", f(3, 4), alpha=0.5),
    case("Celu", f(3, 4), alpha=0.5),
    case("Selu", f(3, 4), alpha=1.5, gamma=0.7),
    case("LeakyRelu", f(3, 4), alpha=0.2),
    case("Gelu", f(3, 4), approximate="tanh"),
    case("PRelu", X2, f(4, 1, 1)),
    case("PRelu", X2, f(1)),
    case("Clip", f(3, 4), s(-0.5), s(0.7)),
    case("Clip", f(3, 4), None, s(0.7)),
    case("Clip", f(3, 4), s(-0.5)),
    case("Clip", f(3, 4)),
    case("Clip", f(3, 4), opset=6, min=-0.5, max=0.7),
    case("Softmax", f(3, 4, 5)),
    case("Softmax", f(3, 4, 5), axis=1),
    case("Softmax", f(3, 4, 5), opset=11),
    case("Softmax", f(3, 4, 5), opset=11, axis=2),
    case("Softmax", f(3, 4, 5), opset=11, axis=-1),
    case("LogSoftmax", f(3, 4, 5), axis=1),
    case("LogSoftmax", f(3, 4, 5), opset=11),
    case("Dropout", f(3, 4)),
    case("Dropout", f(3, 4), s(0.5), s(False, bool), opset=13),
    case("Dropout", f(3, 4), opset=10, ratio=0.3),
    *(
        case("Cast", f(3, 4, low=-9, high=9), to=to)
        for to in (
            onnx.TensorProto.FLOAT16,
            onnx.TensorProto.DOUBLE,
            onnx.TensorProto.INT32,
            onnx.TensorProto.INT64,
            onnx.TensorProto.BOOL,
        )
    ),
    case("Cast", i(3, 0, -2), to=onnx.TensorProto.FLOAT),
    case("CastLike", f(3, 4), s([1], np.int32)),
]

BINARY = [
    *(case(op, f(3, 4), f(4), feed=2) for op in ("Add", "Sub", "Mul", "Min", "Max")),
    *(case(op, f(3, 4), f(3, 4), f(4)) for op in ("Min", "Max", "Sum", "Mean")),
    case("Sum", f(3, 4)),
    case("Div", f(3, 4), pos(4)),
    case("Div", i(7, -7, 9, -9), i(2, 2, -4, -4)),
    case("Mod", i(7, -7, 9, -9), i(2, 2, -4, -4)),
    case("Mod", f(3, 4), pos(4), fmod=1),
    case("Pow", pos(3, 4), f(4)),
    case("Pow", f(3, 4), s(2.0)),
    case("Pow", f(3, 4), s([2], np.int64)),
    *(
        case(op, np.round(f(3, 4)), np.round(f(4)), feed=2)
        for op in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
    ),
    *(case(op, f(3, 4) > 0, f(4) > 0, feed=2) for op in ("And", "Or", "Xor")),
    case("Where", f(3, 1) > 0, f(3, 4), f(4), feed=3),
]

REDUCTIONS = [
    *(
        case(op, f(3, 4, 5), opset=11, axes=[0, -1])
        for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2")
    ),
    *(
        case(op, f(3, 4, 5), i(1), keepdims=0)
        for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2")
    ),
    case("ReduceMean", f(3, 4, 5)),
    case("ReduceSum", pos(3, 4, 5), None, keepdims=0),
    case("ReduceSum", f(3, 4, 5), i(), noop_with_empty_axes=1),
    case("ArgMax", f(3, 4, 5), axis=1),
    case("ArgMax", f(3, 4, 5), axis=-1, keepdims=0),
    case("ArgMax", np.round(f(6, 7)), axis=1, select_last_index=1),
    case("ArgMin", np.round(f(6, 7)), axis=1),
    case("BatchNormalization", X2, f(4), f(4), f(4), pos(4)),
    case("BatchNormalization", f(5, 4), f(4), f(4), f(4), pos(4), epsilon=0.1),
    case("LayerNormalization", f(3, 4, 5), f(5), f(5)),
    case("LayerNormalization", f(3, 4, 5), f(4, 5), axis=1, epsilon=0.1),
    case("InstanceNormalization", X2, f(4), f(4)),
]

SHAPES = [
    case("Reshape", f(2, 3, 4), i(4, -1)),
    case("Reshape", f(2, 3, 4), i(0, -1)),
    case("Reshape", f(2, 0, 4), i(4, 0), allowzero=1),
    *(case("Flatten", f(2, 3, 4), axis=axis) for axis in (0, 1, 2, -1)),
    case("Transpose", f(2, 3, 4)),
    case("Transpose", f(2, 3, 4), perm=[1, 2, 0]),
    case("Squeeze", f(1, 3, 1, 4), i(0, -2)),
    case("Squeeze", f(1, 3, 1, 4)),
    case("Squeeze", f(1, 3, 1, 4), opset=11, axes=[2]),
    case("Unsqueeze", f(3, 4), i(0, -1)),
    case("Unsqueeze", f(3, 4), opset=11, axes=[1, 3]),
    case("Concat", f(2, 3), f(2, 1), f(2, 4), axis=1, feed=3),
    case("Concat", f(2, 3), f(4, 3), axis=-2),
    case("Split", f(6, 5), i(1, 2, 3), outputs=3),
    case("Split", f(7, 6), opset=11, axis=1, outputs=3),
    case("Split", f(7, 6), opset=11, axis=1, split=[1, 5], outputs=2),
    case("Split", f(7, 5), num_outputs=3, outputs=3),
    case("Slice", f(6, 7), i(1), i(5)),
    case("Slice", f(6, 7), i(1, -6), i(1000, -1), i(0, 1), i(2, 3)),
    case("Slice", f(6, 7), i(-1), i(-1000), i(1), i(-1)),
    case("Slice", f(6, 7), i(5, 6), i(0, -8), i(-2, -1), i(-2, -3)),
    case("Slice", f(6, 7), opset=9, starts=[1, 2], ends=[4, -1], axes=[1, 0]),
    case("Slice", f(6, 7), opset=9, starts=[1], ends=[9]),
    case("Pad", f(3, 4), i(1, 0, 2, 3)),
    case("Pad", f(3, 4), i(1, -1, 2, 3), s(1.5)),
    case("Pad", f(3, 4), i(1, 2), s(0.0), i(-1)),
    *(case("Pad", f(5, 6), i(1, 2, 3, 0), mode=mode) for mode in ("reflect", "edge", "wrap")),
    case("Pad", f(5, 6), i(2, -1, -1, 2), mode="edge"),
    case("Pad", f(3, 4), opset=10, pads=[1, 0, 2, 3], value=0.5),
    case("Gather", f(4, 5), i(3, 0, -1)),
    case("Gather", f(4, 5, 6), np.array([[0, 2], [-1, 1]]), axis=1),
    case("Gather", f(4, 5), s(2, np.int64), axis=-1),
    case("GatherElements", f(4, 5), np.array([[0, -1], [2, 3], [1, 1], [4, 0]]), axis=1),
    case("Shape", f(3, 4, 5)),
    case("Shape", f(3, 4, 5), start=1, end=-1),
    case("Size", f(3, 4, 5)),
    case("ConstantOfShape", i(2, 3)),
    case("ConstantOfShape", i(2, 3), value=helper.make_tensor("v", 7, [1], [5])),
    case("Expand", f(3, 1), i(2, 1, 4)),
    case("Expand", f(3, 1), i(1)),
    case("Tile", f(3, 4), i(2, 3)),
    case("Range", s(2.0), s(9.5), s(1.5), feed=3),
    case("Range", s(9, np.int64), s(2, np.int64), s(-3, np.int64), feed=3),
    *(case("DepthToSpace", f(2, 12, 3, 4), blocksize=2, mode=mode) for mode in ("DCR", "CRD")),
    case("SpaceToDepth", f(2, 3, 4, 6), blocksize=2),
    case("Constant", value=helper.make_tensor("v", 1, [2], [1.5, 2.5]), feed=0),
    case("Constant", value_ints=[3, 4], feed=0),
    case("Constant", value_float=3.5, feed=0),
]

_COORDINATES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
RESIZES = [
    *(
        case(
            "Resize",
            *(f(2, 3, 5, 6), None, np.float32([1, 1, up, across])),
            mode=mode,
            coordinate_transformation_mode=coordinates,
        )
        for mode in ("nearest", "linear")
        for coordinates in (*_COORDINATES, "half_pixel_symmetric")
        for up, across in ((2, 2), (1.7, 0.6))
    ),
    *(
        case("Resize", f(1, 2, 5, 6), None, None, i(1, 2, *size), mode=mode, nearest_mode=nearest)
        for size in ((10, 12), (7, 4), (1, 9))
        for mode, nearest in (
            ("linear", "floor"),
            *(("nearest", n) for n in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")),
        )
    ),
    case("Resize", f(1, 2, 5, 6), None, np.float32([2, 3]), axes=[2, 3]),
    case("Resize", f(1, 2, 5, 6), np.float32([1, 1, 2, 3]), opset=10),
    case("Resize", f(1, 2, 5, 6), np.float32([1, 1, 2, 1.5]), opset=10, mode="linear"),
    case(
        "Resize",
        *(f(1, 2, 5, 6), np.float32([]), np.float32([]), i(1, 2, 9, 9)),
        opset=11,
        coordinate_transformation_mode="tf_half_pixel_for_nn",
        nearest_mode="floor",
    ),
    case("Upsample", f(1, 2, 5, 6), np.float32([1, 1, 2, 3]), opset=9),
    case("Upsample", f(1, 2, 5, 6), opset=7, scales=[1.0, 1.0, 2.0, 2.0], mode="linear"),
]

CODES = RNG.integers(-100, 100, (2, 4, 3))
QUANTIZED = [
    *(
        case("QuantizeLinear", 40 * f(2, 4, 3), s(0.25), s(zero, dtype))
        for zero, dtype in ((0, np.int8), (7, np.int8), (120, np.uint8), (-300, np.int16))
    ),
    case("QuantizeLinear", 40 * f(2, 4, 3), s(0.5)),
    case("QuantizeLinear", s([0.5, 1.5, 2.5, -0.5, 300, -300]), s(1.0), s(0, np.int8)),
    case("QuantizeLinear", f(2, 4, 3), pos(4), s([3, -2, 0, 9], np.int8)),
    case("QuantizeLinear", f(2, 4, 3), pos(3), s([3, 2, 0], np.uint8), axis=-1),
    case("DequantizeLinear", CODES.astype(np.int8), s(0.25), s(3, np.int8)),
    case("DequantizeLinear", CODES.astype(np.int8), s(0.25)),
    case("DequantizeLinear", (CODES + 100).astype(np.uint8), pos(4), s([3, 2, 0, 9], np.uint8)),
    case("DequantizeLinear", CODES.astype(np.int16), pos(3), s([3, 2, 0], np.int16), axis=2),
    case("DequantizeLinear", (CODES * 1000).astype(np.int32), pos(2), axis=0),
    case(
        "DequantizeLinear",
        *(CODES.astype(np.int8), pos(2, 2, 3), np.zeros((2, 2, 3), np.int8)),
        axis=1,
        block_size=2,
    ),
]

CASES = [
    *(*CONVOLUTIONS, *POOLS, *UNARY, *BINARY, *REDUCTIONS),
    *(*SHAPES, *RESIZES, *QUANTIZED),
]


def build(op, inputs, attrs, opset, outputs, feed):
    """A model of one node, and its feeds."""
    names = [f"x{n}" if array is not None else "" for n, array in enumerate(inputs)]
    made = [f"y{n}" for n in range(outputs)]
    node = helper.make_node(op, names, made, name="it", **attrs)
    given = {name: array for name, array in zip(names, inputs, strict=True) if name}
    fed = dict(list(given.items())[:feed])
    infos = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in fed.items()
    ]
    weights = {name: array for name, array in given.items() if name not in fed}
    outs = [onnx.ValueInfoProto(name=name) for name in made]
    return make_model([node], infos, outs, weights, opset=opset), fed


def torch_run(model, feeds, outputs=None):
    network = Network(Model.from_proto(model) if isinstance(model, onnx.ModelProto) else model)
    outputs = outputs or [o.name for o in network._model.outputs]
    feeds = {name: torch.from_numpy(np.array(array)) for name, array in feeds.items()}
    return [value.numpy() for value in network.run(feeds, outputs)]


@pytest.mark.parametrize(("op", "inputs", "attrs", "opset", "outputs", "feed"), CASES)
def test_an_operator_is_computed_as_onnxruntime_does(op, inputs, attrs, opset, outputs, feed):
    proto, feeds = build(op, inputs, attrs, opset, outputs, feed)
    want = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, feeds
    )
    got = torch_run(proto, feeds)
    assert len(got) == len(want) == outputs
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        if op != "QuantizeLinear":  # codes are held as floats
            assert a.dtype == b.dtype
        if b.dtype == np.float16:
            np.testing.assert_array_equal(a, b)
        else:
            scale = np.abs(b.astype(np.float64)).max(initial=0)
            assert np.abs(a.astype(np.float64) - b).max(initial=0) <= 3e-6 * scale


def test_every_operator_has_a_case_of_its_own():
    assert {param.values[0] for param in CASES} == set(OPERATORS)


NOT_SMOOTH = {"Abs", "Ceil", "Floor", "Round", "Sign", "ArgMax", "ArgMin", "QuantizeLinear", "Not"}
NOT_SMOOTH |= {"Cast", "CastLike", "Constant"}


@pytest.mark.parametrize(
    ("op", "inputs", "attrs", "opset", "outputs", "feed"),
    [p for p in CASES if p.values[0] not in NOT_SMOOTH],
)
def test_gradients_are_those_of_finite_differences(op, inputs, attrs, opset, outputs, feed):
    proto, _ = build(op, inputs, attrs, opset, outputs, feed)
    (node,) = Network(Model.from_proto(proto))._plan([f"y{n}" for n in range(outputs)], ())
    small = [
        None if a is None else torch.from_numpy(np.array(a, np.float64 if a.dtype == "f" else None))
        for a in inputs
    ]
    fixed = {"Resize": {1, 2, 3}, "Upsample": {1}, "Clip": {1, 2}, "Range": {0, 1, 2}}.get(
        op, set()
    )
    fixed |= {"Pow": {1}, "Dropout": {1}, "BatchNormalization": {3, 4}, "Pad": {2}}.get(op, set())
    fixed |= {"DequantizeLinear": {1, 2}, "Mod": {1}}.get(op, set())
    free = [
        k
        for k, a in enumerate(small)
        if a is not None and a.is_floating_point() and k not in fixed and a.numel()
    ]
    if not free:
        return  # integers: nothing to differentiate
    for k in free:
        small[k].requires_grad_()

    def run(*values):
        arguments = list(small)
        for k, value in zip(free, values, strict=True):
            arguments[k] = value
        return node.run(node.call, *arguments)

    out = run(*(small[k] for k in free))
    out = out if isinstance(out, tuple) else (out,)
    if not any(o.requires_grad for o in out):
        assert op in {"Shape", "Size", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"}
        return
    # directions instead of every entry: the sum of the outputs, weighted, along random lines
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(o.shape, generator=generator, dtype=torch.float64) for o in out]
    lines = [torch.randn(small[k].shape, generator=generator, dtype=torch.float64) for k in free]

    def total(step):
        moved = [small[k].detach() + step * line for k, line in zip(free, lines, strict=True)]
        found = run(*moved)
        found = found if isinstance(found, tuple) else (found,)
        return sum(float((w * y).sum()) for w, y in zip(weights, found, strict=True))

    loss = sum((w * y).sum() for w, y in zip(weights, out, strict=True))
    gradients = torch.autograd.grad(loss, [small[k] for k in free], allow_unused=True)
    along = sum(
        float((g * line).sum()) for g, line in zip(gradients, lines, strict=True) if g is not None
    )
    numeric = (total(1e-7) - total(-1e-7)) / 2e-7
    size = sum(float(g.abs().sum()) for g in gradients if g is not None)
    assert size > 0
    assert abs(along - numeric) <= 1e-5 * size


def test_rounding_passes_gradients_inside_of_the_range_and_none_outside():
    x = torch.tensor([-2.0, -1.01, -0.99, 0.26, 0.98, 1.02, 3.0], requires_grad=True)
    y = fake_quantize(x, *(torch.tensor(v) for v in (1 / 64, 0.0, -64.0, 64.0)))
    np.testing.assert_array_equal(y.detach() * 64, [-64, -64, -63, 17, 63, 64, 64])
    y.sum().backward()
    assert x.grad.tolist() == [0, 0, 1, 1, 1, 0, 0]


def test_gradients_pass_through_quantized_activations():
    text = (
        '<ir_version: 10, opset_import: ["" : 21]> g (float[N] x) => (float[N] y)'
        "<float s = {0.5}, int8 z = {3}>"
        "{ q = QuantizeLinear(x, s, z) m = Relu(q) y = DequantizeLinear(m, s, z) }"
    )
    model = Model.from_proto(onnx.parser.parse_model(text))
    x = torch.tensor([0.3, 9.0, -70.0, 70.0, -3.0], requires_grad=True)
    (y,) = Network(model).run({"x": x}, ["y"])
    np.testing.assert_array_equal(y.detach(), [0.5, 9, -1.5, 62, -1.5])
    y.sum().backward()
    assert x.grad.tolist() == [1, 1, 0, 0, 0]


@pytest.mark.parametrize(
    "proto", [conv_net(), conv_net(opset=11), mlp(6, 5, 4)], ids=["conv", "11", "mlp"]
)
def test_a_whole_model_gives_what_onnxruntime_does(proto):
    feeds = feeds_for(proto, batch=5)
    for got, want in zip(torch_run(proto, feeds), outputs_of(proto, feeds), strict=True):
        assert want.std() > 1e-3
        assert np.abs(got - want).max() <= 3e-6 * np.abs(want).max()


def test_the_models_of_the_checkout_give_what_onnxruntime_does(modA, modB):
    for path in (modA, modB):
        model = Model.load(path)
        feeds = feeds_for(model.proto(), batch=2)
        for got, want in zip(torch_run(model, feeds), outputs_of(model, feeds), strict=True):
            assert want.std() > 1e-3
            assert np.abs(got - want).max() <= 3e-6 * np.abs(want).max()


@pytest.mark.parametrize(
    ("name", "deviation"),
    [("cifar10_cnn_nhwc", 60), ("efficientnet_lite0", 1), ("yolox_nano_416", 60)],
)
def test_real_models_give_what_onnxruntime_does(shared, name, deviation):
    model = Model.load(shared / "models" / f"{name}.onnx")
    feeds = {n: np.float32(deviation) * v for n, v in feeds_for(model.proto(), batch=1).items()}
    for got, want in zip(torch_run(model, feeds), outputs_of(model, feeds), strict=True):
        assert want.std() > 1e-3
        assert np.abs(got - want).max() <= 2e-5 * np.abs(want).max()


def test_tensors_that_are_given_are_not_computed_and_get_gradients():
    model = Model.from_proto(conv_net())
    feeds = {n: torch.from_numpy(a) for n, a in feeds_for(conv_net(), batch=2).items()}
    network = Network(model)
    weight = torch.from_numpy(model.weight("fc.weight").copy()).requires_grad_()
    output = model.outputs[0].name
    (y,) = network.run(feeds, [output], {"fc.weight": weight})
    y.square().sum().backward()
    assert weight.grad.abs().sum() > 0
    (plain,) = network.run(feeds, [output])
    assert torch.equal(plain, y.detach())
    (double,) = network.run(feeds, [output], {"fc.weight": 2 * weight.detach()})
    bias = torch.from_numpy(model.weight("fc.bias").copy())
    torch.testing.assert_close(double - bias, 2 * (plain - bias), rtol=1e-4, atol=1e-5)


def test_what_a_given_tensor_is_made_of_need_not_be_fed():
    model = Model.from_proto(conv_net())
    gemm = model.nodes("Gemm")[0]
    features = torch.ones(3, 32)
    (y,) = Network(model).run({}, [gemm.outputs[0].name], {gemm.inputs[0].name: features})
    want = model.weight("fc.weight").sum(1) + model.weight("fc.bias")
    np.testing.assert_allclose(y[1], want, rtol=1e-5)


def test_an_unknown_operator_is_named_with_its_node():
    text = (
        '<ir_version: 10, opset_import: ["" : 17]> g (float[N, 4] x) => (float[N, 4] y)'
        "{ h = Relu(x) [odd] y = Hardmax(h) }"
    )
    model = Model.from_proto(onnx.parser.parse_model(text))
    with pytest.raises(ModelError, match=r"node 'odd': the operator Hardmax cannot"):
        Network(model)


@pytest.mark.parametrize(
    ("op", "inputs", "attrs", "opset", "outputs", "why"),
    [
        ("MaxPool", (X2,), {"kernel_shape": [2, 2]}, 21, 2, "indices"),
        ("Resize", (X2, None, np.float32([1, 1, 2, 2])), {"mode": "cubic"}, 21, 1, "cubic"),
        ("Dropout", (X2,), {}, 21, 2, "mask"),
        ("Dropout", (X2, s(0.5), s(True, bool)), {}, 21, 1, "training mode"),
        ("Reshape", (X2, i(7, 7)), {}, 21, 1, "shape"),
        ("Cast", (X2,), {"to": onnx.TensorProto.FLOAT8E4M3FN}, 21, 1, "FLOAT8E4M3FN"),
    ],
)
def test_what_an_operator_cannot_do_is_said_with_its_node(op, inputs, attrs, opset, outputs, why):
    proto, feeds = build(op, inputs, attrs, opset, outputs, 1)
    with pytest.raises(ModelError, match=rf"node 'it' \({op}\): .*{why}") as caught:
        torch_run(proto, feeds)
    assert "\n" not in str(caught.value)


def test_an_input_that_is_not_fed_is_named():
    with pytest.raises(DataError, match="tensor 'x' is neither fed nor computed"):
        Network(Model.from_proto(mlp(6, 5, 4))).run({}, ["y"])


def test_attributes_default_as_the_standard_says():
    assert Call().get("axis", 3) == 3
    assert Call(attrs={"axis": 0}).get("axis", 3) == 0
