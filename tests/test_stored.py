"""Where weights are stored: floats, integers behind DequantizeLinear, and what is refused."""

import ml_dtypes
import numpy as np
import pytest
from builders import make_model, normal, outputs_of, value
from onnx import TensorProto, helper, numpy_helper

from onnxdrp.errors import OptionError
from onnxdrp.masks import Mask
from onnxdrp.model import Model
from onnxdrp.stored import Readers, Stored, find_stored

RNG = np.random.default_rng(5)


def quantized(q, scale, zero=None, *, opset=21, **attributes):
    """MatMul of x with DequantizeLinear(q, scale, zero)."""
    weights = {"q": q, "s": np.asarray(scale, np.float32)}
    names = ["q", "s"]
    if zero is not None:
        weights["z"] = zero
        names.append("z")
    nodes = [
        helper.make_node("DequantizeLinear", names, ["w"], "dq", **attributes),
        helper.make_node("MatMul", ["x", "w"], ["y"], "mm"),
    ]
    rows, columns = q.shape
    tensors = [
        numpy_helper.from_array(array, name) if array.dtype.name != "int4" else _int4(array, name)
        for name, array in weights.items()
    ]
    inputs, outputs = [value("x", ["N", rows])], [value("y", ["N", columns])]
    return make_model(nodes, inputs, outputs, tensors, opset=opset)


def _int4(array, name):
    flat = array.astype(np.int8).ravel()
    return helper.make_tensor(name, TensorProto.INT4, array.shape, flat)


def stored_of(proto, tensor="w"):
    model = Model.from_proto(proto)
    found = find_stored(model, model.tensor(tensor))
    assert isinstance(found, Stored), found
    return model, found


CASES = {
    "per tensor, no zero point": (RNG.integers(-9, 9, (64, 48), np.int8), 0.5, None, {}),
    "per tensor, uint8": (
        RNG.integers(120, 136, (64, 48)).astype(np.uint8),
        0.02,
        np.uint8(128),
        {},
    ),
    "per axis 0": (
        RNG.integers(-3, 4, (64, 48), np.int8),
        RNG.uniform(0.1, 1, 64),
        RNG.integers(-2, 2, 64, np.int8),
        {"axis": 0},
    ),
    "per axis -1": (
        RNG.integers(-3, 4, (64, 48), np.int8),
        RNG.uniform(0.1, 1, 48),
        RNG.integers(-2, 2, 48, np.int8),
        {"axis": -1},
    ),
    "blocks": (
        RNG.integers(-3, 4, (64, 48), np.int8),
        RNG.uniform(0.1, 1, (4, 48)),
        RNG.integers(-2, 2, (4, 48), np.int8),
        {"axis": 0, "block_size": 16},
    ),
    "int4": (RNG.integers(-3, 4, (64, 48)).astype(ml_dtypes.int4), 0.5, None, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_dequantized_values_are_onnxruntimes(case):
    q, scale, zero, attributes = CASES[case]
    proto = quantized(q, scale, zero if zero is None else np.asarray(zero), **attributes)
    model, stored = stored_of(proto)
    want = outputs_of(proto, {"x": np.eye(64, dtype=np.float32)})[0]
    assert np.ptp(want) > 0.1
    assert stored.name == "q"
    assert stored.shape == (64, 48)
    np.testing.assert_array_equal(stored.values(model), want)
    np.testing.assert_array_equal(stored.nonzero(model), want != 0)
    assert 0 < stored.nonzero(model).mean() < 1


@pytest.mark.parametrize("case", CASES)
def test_pruned_integers_dequantize_to_zero_and_others_stay(case):
    q, scale, zero, attributes = CASES[case]
    proto = quantized(q, scale, zero if zero is None else np.asarray(zero), **attributes)
    model, stored = stored_of(proto)
    before = stored.values(model).copy()
    keep = np.random.default_rng(1).random((64, 48)) < 0.5
    assert stored.apply(model, Mask(keep))
    assert stored.holds(model, Mask(keep))
    got = outputs_of(model, {"x": np.eye(64, dtype=np.float32)})[0]
    np.testing.assert_array_equal(got, np.where(keep, before, 0))
    assert not stored.apply(model, Mask(keep))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_floats_are_masked_bit_for_bit(dtype):
    weight = normal((64, 40), 3).astype(dtype)
    node = helper.make_node("Identity", ["w"], ["y"], "id")
    tensor = numpy_helper.from_array(weight, "w")
    model = Model.from_proto(make_model([node], [], [value("y", [64, 40], dtype)], [tensor]))
    stored = find_stored(model, model.tensor("w"))
    keep = np.random.default_rng(1).random((64, 40)) < 0.5
    assert stored.apply(model, Mask(keep))
    got = model.weight("w")
    assert got.dtype == weight.dtype
    assert got[keep].tobytes() == weight[keep].tobytes()
    assert not np.any(got[~keep].astype(np.float32))


def test_floats_behind_quantize_and_dequantize_are_the_weight():
    weights = {"f": normal((8, 4), 1), "s": np.float32(0.1), "z": np.int8(3)}
    nodes = [
        helper.make_node("QuantizeLinear", ["f", "s", "z"], ["q"], "quant"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], "dq"),
        helper.make_node("MatMul", ["x", "w"], ["y"], "mm"),
    ]
    _, stored = stored_of(make_model(nodes, [value("x", [2, 8])], [value("y", [2, 4])], weights))
    assert (stored.name, stored.dequantize) == ("f", None)


def test_a_mask_of_another_shape_is_refused_by_name():
    model, stored = stored_of(quantized(*CASES["per axis 0"][:3], axis=0))
    with pytest.raises(OptionError, match=r"q has shape \[64, 48\]"):
        stored.apply(model, Mask(np.ones((48, 64), bool)))


def test_what_is_computed_sparse_or_not_float_says_so():
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("sp", TensorProto.FLOAT, [2], [1.0, 2.0]),
        helper.make_tensor("", TensorProto.INT64, [2], [0, 5]),
        [4, 4],
    )
    nodes = [
        helper.make_node("Transpose", ["f"], ["t"], "turn"),
        helper.make_node("Mul", ["one", "one"], ["s"], "scale"),
        helper.make_node("DequantizeLinear", ["q", "s"], ["d"], "dq"),
        *(helper.make_node("Identity", [n], [f"y_{n}"], n) for n in ("t", "d", "i", "sp", "x")),
    ]
    weights = {
        "f": normal((4, 4), 1),
        "one": np.float32(1),
        "q": np.ones((4, 4), np.int8),
        "i": np.ones((4, 4), np.int32),
    }
    outputs = [value(f"y_{n}", [4, 4]) for n in ("t", "d", "sp", "x")]
    outputs.append(value("y_i", [4, 4], np.int32))
    proto = make_model(nodes, [value("x", [4, 4])], outputs, weights)
    proto.graph.sparse_initializer.append(sparse)
    model = Model.from_proto(proto)
    reasons = {n: find_stored(model, model.tensor(n)) for n in ("t", "d", "i", "sp", "x")}
    assert "computed weight" in reasons["t"]
    assert "fold-constants" in reasons["t"]
    assert "scale or zero point of 'q'" in reasons["d"]
    assert reasons["i"] == "weight not float: 'i' is int32"
    assert "sparse" in reasons["sp"]
    assert "computed weight" in reasons["x"]


def test_readers_see_through_casts_and_find_other_uses():
    proto = quantized(*CASES["per axis 0"][:3], axis=0)
    model = Model.from_proto(proto)
    stored = find_stored(model, model.tensor("w"))
    assert Readers(model).besides(stored, {"mm"}) == ""
    proto.graph.node.append(helper.make_node("Identity", ["w"], ["also"], "id"))
    proto.graph.output.append(value("also", [64, 48]))
    model = Model.from_proto(proto)
    stored = find_stored(model, model.tensor("w"))
    assert "read by Identity 'id'" in Readers(model).besides(stored, {"mm"})
    proto.graph.node.pop()
    proto.graph.output[-1].name = "w"
    model = Model.from_proto(proto)
    stored = find_stored(model, model.tensor("w"))
    assert Readers(model).besides(stored, {"mm"}).startswith("weight is an output")
