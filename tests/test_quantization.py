"""Quantization parameters by the rules, and arithmetic equal to onnxruntime's bit for bit."""

import math
import pickle

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnxruntime.quantization.quant_utils import compute_scale_zp, get_qmin_qmax_for_qType

from onnxdrp.errors import DataError, ModelError, OptionError
from onnxdrp.quantization import (
    BIAS_LIMIT,
    QuantParams,
    Range,
    activation_params,
    bias_params,
    dequantize,
    fake_quantize,
    qlimits,
    quantize,
    weight_absmax,
    weight_params,
    weight_scale_for_bias,
)

TYPES = {"int8": TensorProto.INT8, "uint8": TensorProto.UINT8, "int32": TensorProto.INT32}


def floats(low, high):
    return st.floats(float(np.float32(low)), float(np.float32(high)), width=32)


FLOAT32 = floats(-1e30, 1e30)
ACTIVATIONS = [("int8", False), ("int8", True), ("uint8", False), ("uint8", True)]


# --- ranges and limits -------------------------------------------------------------------------


def test_ranges():
    assert Range(1, 3).union(Range(-2, 2)) == Range(-2, 3)
    assert Range(1, 3).with_zero() == Range(0, 3)
    assert Range(-3, -1).with_zero() == Range(-3, 0)
    assert Range(-3, 3).contains(Range(-3, 2))
    assert not Range(-3, 3).contains(Range(-3, 3.1))


def test_limits():
    assert qlimits("int8") == (-128, 127)
    assert qlimits("int8", symmetric=True) == (-127, 127)
    assert qlimits("uint8") == qlimits("uint8", symmetric=True) == (0, 255)
    assert qlimits("int8", reduce_range=True) == (-64, 64)
    assert qlimits("uint8", reduce_range=True) == (0, 127)
    assert qlimits("int32") == (-(2**31), 2**31 - 1)
    with pytest.raises(OptionError, match="int8, uint8, int16, uint16, int32"):
        qlimits("int7")


# --- activations -------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "symmetric"), ACTIVATIONS)
@pytest.mark.parametrize("reduce_range", [False, True])
@given(low=FLOAT32, high=FLOAT32)
@settings(max_examples=200)
def test_activations_as_onnxruntime_has_them(dtype, symmetric, reduce_range, low, high):
    low, high = sorted((low, high))
    params = activation_params(
        Range(low, high), dtype, symmetric=symmetric, reduce_range=reduce_range
    )
    qmin, qmax = get_qmin_qmax_for_qType(TYPES[dtype], reduce_range, symmetric)
    zero, scale = compute_scale_zp(
        np.float32(low), np.float32(high), qmin, qmax, symmetric=symmetric
    )
    assert params.scale == scale
    assert params.zero_point == zero
    assert params.zero_point.dtype == dtype
    assert params.axis is None
    assert params.scale.shape == params.zero_point.shape == ()


@pytest.mark.parametrize(("dtype", "symmetric"), ACTIVATIONS)
@given(st.tuples(FLOAT32, FLOAT32).map(sorted))
def test_the_range_is_representable_and_zero_is_exact(dtype, symmetric, bounds):
    low, high = bounds
    params = activation_params(Range(low, high), dtype, symmetric=symmetric)
    assume(params.scale != 1)
    slack = float(params.scale) * 0.501
    inside = Range(params.interval.low - slack, params.interval.high + slack)
    assert inside.contains(Range(low, high).with_zero())
    assert fake_quantize(np.zeros(1, np.float32), params) == 0
    if symmetric:
        assert params.zero_point == (128 if dtype == "uint8" else 0)


@pytest.mark.parametrize(("dtype", "symmetric"), ACTIVATIONS)
@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-38])
def test_ranges_too_small_for_a_scale(dtype, symmetric, size):
    params = activation_params(Range(-size, size), dtype, symmetric=symmetric)
    assert (params.scale, params.zero_point) == (1, 0)


def test_known_activations():
    assert activation_params(Range(0, 6), "uint8").zero_point == 0
    assert activation_params(Range(0, 6), "int8").zero_point == -128
    assert activation_params(Range(2, 6), "uint8").scale == np.float32(6 / 255)
    assert activation_params(Range(-6, -2), "uint8").zero_point == 255
    assert activation_params(Range(-1, 6), "int8", symmetric=True).scale == np.float32(6 / 127)
    assert activation_params(Range(-3e38, 3e38), "int8").scale == np.float32(6e38 / 255)
    assert activation_params(Range(0, 2.55), "uint8").interval.high == pytest.approx(2.55, rel=1e-6)
    symmetric = activation_params(Range(-127, 127), symmetric=True)
    assert symmetric.interval == Range(-128, 127)  # kernels use all of the type


@pytest.mark.parametrize(
    "bad", [(math.nan, 1), (0, math.nan), (-math.inf, 0), (0, math.inf), (2, 1), (0, 1e39)]
)
def test_ranges_that_are_none(bad):
    with pytest.raises(DataError, match="no range of finite float32"):
        activation_params(Range(*bad))


# --- parameters --------------------------------------------------------------------------------


def test_parameters_are_values():
    one = QuantParams(np.array([1, 2.0]), np.array([0, 0]), "int8", 1)
    two = QuantParams.symmetric([1, 2], axis=1)
    assert one == two
    assert hash(one) == hash(two)
    assert pickle.loads(pickle.dumps(one)) == one
    assert one.scale.dtype == np.float32
    assert one.zero_point.dtype == np.int8
    assert one.interval == Range(-256, 254)
    assert one not in (QuantParams.symmetric([1, 2], axis=0), QuantParams.symmetric(1), 5)
    with pytest.raises(ValueError, match="read-only"):
        one.scale[0] = 3


@pytest.mark.parametrize(
    ("scale", "zero", "dtype", "axis"),
    [
        (0, 0, "int8", None),
        (-1, 0, "int8", None),
        (math.nan, 0, "int8", None),
        (math.inf, 0, "int8", None),
        (1e-50, 0, "int8", None),
        ([1, 0], 0, "int8", 0),
        (1, 0, "int8", 0),
        ([1], 0, "int8", None),
        (1, 128, "int8", None),
        (1, -1, "uint8", None),
    ],
)
def test_impossible_parameters(scale, zero, dtype, axis):
    with pytest.raises(ValueError, match=r"scale|zero point"):
        QuantParams(np.array(scale), np.array(zero), dtype, axis)


# --- the same bits as onnxruntime --------------------------------------------------------------


def run_node(op, x, params, output):
    node = helper.make_node(op, ["x", "s", "z"], ["y"], axis=params.axis or 0)
    if params.axis is None:
        del node.attribute[:]
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", kind, x.shape)],
        [helper.make_tensor_value_info("y", output, x.shape)],
        [
            onnx.numpy_helper.from_array(params.scale, "s"),
            onnx.numpy_helper.from_array(params.zero_point, "z"),
        ],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 13)])
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def several(rng, dtype, axis, count):
    if dtype == "int8" and axis is not None:
        return QuantParams.symmetric(10.0 ** rng.uniform(-4, 1, count), axis=axis)
    zero = {"int8": -37, "uint8": 201}[dtype]
    scale = 10.0 ** rng.uniform(-4, 1, () if axis is None else count)
    return QuantParams(scale, np.array(zero), dtype, axis)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("axis", [None, 0, 1, 3])
def test_quantize_gives_onnxruntimes_bits(dtype, axis):
    rng = np.random.default_rng(axis or 7)
    shape = (5, 6, 7, 8)
    for scale in (1e-3, 0.3, 50, 1e30):
        params = several(rng, dtype, axis, 1 if axis is None else shape[axis])
        x = (rng.standard_normal(shape) * scale).astype(np.float32)
        x.flat[:4] = np.inf, -np.inf, 0.0, -0.0
        x.flat[4:40] = (np.arange(36) - 17.5) * np.float32(params.scale.flat[0])  # halves
        codes = quantize(x, params)
        assert codes.dtype == dtype
        np.testing.assert_array_equal(codes, run_node("QuantizeLinear", x, params, TYPES[dtype]))
        assert len(np.unique(codes)) > 2
        back = dequantize(codes, params)
        theirs = run_node("DequantizeLinear", codes, params, TensorProto.FLOAT)
        assert back.tobytes() == theirs.tobytes()
        assert fake_quantize(x, params).tobytes() == back.tobytes()


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=40),
       floats(np.finfo(np.float32).tiny, 1e30),
       st.sampled_from([("int8", -128), ("int8", 0), ("uint8", 3), ("uint8", 255)]))  # fmt: skip
@settings(max_examples=50, deadline=None)
def test_quantize_gives_onnxruntimes_bits_of_any_float(values, scale, kind):
    params = QuantParams(np.array(scale), np.array(kind[1]), kind[0])
    x = np.array(values, np.float32)
    with np.errstate(over="ignore"):  # the quotient may be infinite, and saturates
        codes = quantize(x, params)
        np.testing.assert_array_equal(codes, run_node("QuantizeLinear", x, params, TYPES[kind[0]]))
        theirs = run_node("DequantizeLinear", codes, params, TensorProto.FLOAT)
        assert dequantize(codes, params).tobytes() == theirs.tobytes()


@pytest.mark.parametrize("axis", [None, 0])
def test_bias_dequantizes_to_onnxruntimes_bits(axis):
    rng = np.random.default_rng(0)
    scale = 10.0 ** rng.uniform(-9, -3, 64) if axis == 0 else np.array(1e-7)
    params = QuantParams.symmetric(scale, "int32", axis)
    bias = rng.standard_normal(64).astype(np.float32)
    codes = quantize(bias, params)
    assert codes.dtype == np.int32
    assert np.abs(codes).max() > 2**24
    theirs = run_node("DequantizeLinear", codes, params, TensorProto.FLOAT)
    assert dequantize(codes, params).tobytes() == theirs.tobytes()
    assert (np.abs(dequantize(codes, params) - bias) <= params.scale / 2 + 1e-7).all()


def test_int32_saturates_at_its_own_limits():
    params = QuantParams.symmetric(1, "int32")
    codes = quantize(np.array([1e20, -1e20, 2**31, 1.5, 2.5], np.float32), params)
    assert codes.tolist() == [2**31 - 1, -(2**31), 2**31 - 1, 2, 2]


def test_round_half_to_even_and_saturation():
    params = QuantParams.symmetric(2)
    x = np.array([1, 3, 5, -1, -3, 255, 1000, -1000], np.float32)
    assert quantize(x, params).tolist() == [0, 2, 2, 0, -2, 127, 127, -128]


def test_half_precision_and_scalars():
    params = activation_params(Range(-1, 1), symmetric=True)
    assert quantize(np.array([0.5], np.float16), params) == 64
    assert quantize(np.array(0.5, np.float32), params).shape == ()
    assert dequantize(np.array(64, np.int8), params) == np.float32(64) * params.scale


def test_quantize_leaves_its_input_alone():
    x = np.linspace(-1, 1, 9, dtype=np.float32)
    x.flags.writeable = False
    fake_quantize(x, QuantParams.symmetric(0.1))
    assert x[0] == -1


def test_what_cannot_be_quantized():
    with pytest.raises(DataError, match="NaN"):
        quantize(np.array([0, np.nan], np.float32), QuantParams.symmetric(1))
    with pytest.raises(ModelError, match="3 scales"):
        quantize(np.zeros((2, 4), np.float32), QuantParams.symmetric([1, 1, 1], axis=1))


# --- weights -----------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_weights(axis, dtype):
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((6, 5, 3, 3)) * 10.0 ** rng.uniform(-2, 1, (6, 5, 1, 3))).astype(
        dtype
    )
    weight[rng.random(weight.shape) < 0.7] = 0
    params = weight_params(weight, axis)
    codes = quantize(weight, params)
    assert (params.zero_point == 0).all()
    assert (codes[weight == 0] == 0).all()
    assert not np.signbit(dequantize(codes, params)[weight == 0]).any()
    others = None if axis is None else tuple({0, 1, 2, 3} - {axis % 4})
    assert (np.abs(codes.astype(int)).max(others) == 127).all()
    error = np.abs(dequantize(codes, params) - weight).max(others)
    assert (error <= params.scale * 0.5001).all()
    reduced = weight_params(weight, axis, reduce_range=True)
    assert (np.abs(quantize(weight, reduced).astype(int)).max(others) == 64).all()


def test_weights_of_zeros_and_of_next_to_nothing():
    weight = np.array([[0, 0], [1e-45, 0], [1, -2]], np.float32)
    params = weight_params(weight, 0)
    np.testing.assert_allclose(params.scale, [1, 1, 2 / 127], rtol=1e-6)
    assert quantize(weight, params).tolist() == [[0, 0], [0, 0], [64, -127]]
    assert weight_params(np.zeros((0, 3), np.float32)).scale == 1
    assert weight_absmax(np.array([1, -3], np.float32)) == 3


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(bad):
    weight = np.ones((3, 4), np.float32)
    weight[1, 2] = bad
    for axis in (None, 0, 1):
        with pytest.raises(ModelError, match="NaN or infinity"):
            weight_params(weight, axis)


# --- bias --------------------------------------------------------------------------------------

SIZE = st.one_of(st.just(0.0), floats(1e-45, 1e3))
BIAS = st.one_of(st.just(0.0), floats(-1e4, 1e4))


def bias_of(absmax, bias, s_in, output, axis):
    """Scales, and the bias's codes and steps as the quantized model will have them."""
    scale = weight_scale_for_bias(absmax, bias, s_in, output)
    weight = QuantParams.symmetric(scale, axis=axis)
    params = bias_params(s_in, weight)
    assert params.scale.tobytes() == (np.float32(s_in) * weight.scale).tobytes()
    step = params.scale.astype(np.float64)
    return scale, np.rint(bias.astype(np.float64) / step), step, quantize(bias, params)


@given(
    st.lists(st.tuples(SIZE, BIAS), min_size=1, max_size=6),
    floats(1e-8, 1e3),
    floats(1e-4, 1e6),
)
@settings(max_examples=500)
def test_bias_fits_whatever_the_channel(channels, s_in, span):
    absmax, bias = (np.array(column, np.float32) for column in zip(*channels, strict=True))
    output = Range(-span / 4, span * 3 / 4)
    scale, exact, step, codes = bias_of(absmax, bias, s_in, output, 0)
    assert scale.dtype == np.float32
    assert (np.abs(exact) <= BIAS_LIMIT * (1 + 1e-6)).all()  # no overflow, nor in the sum
    np.testing.assert_array_equal(codes, exact)
    assert (np.abs(codes * step - bias) <= step / 2 * (1 + 1e-9)).all()
    natural = (absmax.astype(np.float64) / 127).astype(np.float32)
    assert (scale >= natural).all()  # weights are never clipped
    # A scale that the bias chose, not the weights, has a step that the output does not see.
    chosen = (scale != natural) & (np.abs(bias) <= 2**14 * span)
    assert (step[chosen] <= span * 2.0**-16).all()
    # The weights' own scale is left alone where the bias fits it.
    fits = np.abs(bias) < 0.999 * BIAS_LIMIT * s_in * natural.astype(np.float64)
    usable = natural.astype(np.float64) * min(1, s_in) > 2e-38
    assert (scale == natural)[fits & usable].all()


@given(
    st.lists(st.tuples(SIZE, BIAS), min_size=1, max_size=6),
    floats(1e-8, 1e3),
    floats(1e-4, 1e6),
)
@settings(max_examples=300)
def test_bias_fits_a_scale_for_the_whole_tensor(channels, s_in, span):
    absmax, bias = (np.array(column, np.float32) for column in zip(*channels, strict=True))
    peak = absmax.max()
    scale, exact, step, codes = bias_of(peak, bias, s_in, Range(0, span), None)
    assert scale.shape == ()
    assert (np.abs(exact) <= BIAS_LIMIT * (1 + 1e-6)).all()
    np.testing.assert_array_equal(codes, exact)
    assert scale >= np.float32(float(peak) / 127)
    if scale != np.float32(float(peak) / 127) and np.abs(bias).max() <= 2**14 * span:
        assert step <= span * 2.0**-16


def test_dead_channels_keep_their_bias():
    absmax = np.array([1, 0, 0, 1e-40, 1e-12], np.float32)
    bias = np.array([0.3, 0.3, 0, -5, 7], np.float32)
    scale, _, step, codes = bias_of(absmax, bias, 0.02, Range(-8, 8), 0)
    assert scale[0] == np.float32(1 / 127)
    np.testing.assert_allclose(codes * step, bias, atol=16 * 2.0**-17 / 100)
    # With scale 1, the usual one for zeros, a bias would be off by up to half of s_in.
    assert (step[1:] < 16 * 2.0**-16).all()
    assert 16 * 2.0**-16 < 0.02
    assert (np.array([1e-40, 0]) / scale[[3, 2]] < 0.5).all()  # nothing stays nothing


def test_a_bias_beyond_its_output_does_not_overflow():
    for axis, absmax in ((0, np.zeros(2, np.float32)), (None, np.float32(0))):
        bias = np.array([1e30, -1], np.float32)
        _, exact, _, codes = bias_of(absmax, bias, 0.02, Range(0, 1), axis)
        assert np.abs(exact).max() <= BIAS_LIMIT * 1.000001
        assert codes[0] > 2**29


def test_without_an_output_range_the_bias_sets_the_step():
    for output in (None, Range(0, 0)):
        absmax = np.zeros(3, np.float32)
        bias = np.array([0, 1e-3, -80], np.float32)
        _, _, step, codes = bias_of(absmax, bias, 0.1, output, 0)
        np.testing.assert_allclose(codes * step, bias, rtol=1e-6)


@pytest.mark.parametrize(
    ("absmax", "bias", "s_in"),
    [(np.nan, 1, 1), (1, np.inf, 1), (1, 1, 0), (1, 1, math.nan), (1, 1, -2)],
)
def test_bias_that_is_not_finite(absmax, bias, s_in):
    with pytest.raises(ModelError, match="not finite"):
        weight_scale_for_bias(np.array(absmax), np.array(bias), s_in)


@pytest.mark.parametrize("axis", [None, 0])
def test_a_quantized_layer_with_dead_channels_runs_as_the_float_one(axis):
    """Gemm with QDQ in onnxruntime: the int32 bias of pruned channels comes out as it was."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((4, 32)).astype(np.float32)
    weight[1], weight[2] = 0, weight[2] * 1e-12
    bias = np.array([0.5, 3, -4, 1], np.float32)
    x = rng.standard_normal((64, 32)).astype(np.float32)
    want = x @ weight.T + bias
    output = Range(float(want.min()), float(want.max()))
    inputs = activation_params(Range(float(x.min()), float(x.max())), "uint8")
    outputs = activation_params(output, "uint8")
    scale = weight_scale_for_bias(weight_absmax(weight, axis), bias, float(inputs.scale), output)
    weights = QuantParams.symmetric(scale, axis=axis)
    biases = bias_params(inputs.scale, weights)
    stored = {"w": (quantize(weight, weights), weights), "b": (quantize(bias, biases), biases)}
    nodes, tensors = [], []

    def add(op, source, params, target):
        axes = {} if params.axis is None else {"axis": params.axis}
        nodes.append(helper.make_node(op, [source, f"{target}_s", f"{target}_z"], [target], **axes))
        tensors.append(onnx.numpy_helper.from_array(params.scale, f"{target}_s"))
        tensors.append(onnx.numpy_helper.from_array(params.zero_point, f"{target}_z"))

    add("QuantizeLinear", "x", inputs, "xq")
    add("DequantizeLinear", "xq", inputs, "xd")
    for name, (codes, params) in stored.items():
        tensors.append(onnx.numpy_helper.from_array(codes, f"{name}q"))
        add("DequantizeLinear", f"{name}q", params, f"{name}d")
    nodes.append(helper.make_node("Gemm", ["xd", "wd", "bd"], ["g"], transB=1))
    add("QuantizeLinear", "g", outputs, "gq")
    add("DequantizeLinear", "gq", outputs, "y")
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, want.shape)],
        tensors,
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 13)])
    onnx.checker.check_model(model)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    got = session.run(None, {"x": x})[0]
    step = float(outputs.scale)
    assert np.ptp(want) > 10
    assert np.abs(got[:, 1:3] - want[:, 1:3]).max() <= step * 0.51  # rounding of the output alone
    assert np.abs(got - want).max() <= step * 2
