"""Layers: which there are, where their weights are, how they are seen, first and last, why not."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from builders import conv_net, make_model, mlp, normal, outputs_of, value
from onnx import TensorProto, helper, numpy_helper

from onnxdrp.geometry import WeightGeometry
from onnxdrp.layers import by_weight, layers
from onnxdrp.model import Model
from onnxdrp.patterns import parse_pattern
from onnxdrp.refusals import refusals


def found_in(nodes, weights=(), x=("N", 64), outputs=("y",), **more):
    proto = make_model(
        nodes, [value("x", list(x))], [value(o, None) for o in outputs], weights, **more
    )
    return {layer.name: layer for layer in layers(Model.from_proto(proto))}


def matmul(x, w, y, name):
    return helper.make_node("MatMul", [x, w], [y], name)


def test_an_mlp():
    fc0, fc1, fc2 = layers(Model.from_proto(mlp(784, 512, 512, 10)))
    assert [fc0.name, fc1.name, fc2.name] == ["fc0", "fc1", "fc2"]
    assert [fc0.params, fc1.params, fc2.params] == [401_920, 262_656, 5_130]
    assert [(f.first, f.last) for f in (fc0, fc1, fc2)] == [
        (True, False),
        (False, False),
        (False, True),
    ]
    assert fc1.weight == "fc1.weight"
    assert fc1.geometry == WeightGeometry.gemm((512, 512), trans_b=True)
    assert not fc0.geometry.aligned
    assert fc0.op == "Gemm"


def test_a_conv_net():
    conv1, conv2, fc = layers(Model.from_proto(conv_net()))
    assert (conv1.first, conv2.first, fc.last) == (True, False, True)
    assert conv1.geometry == WeightGeometry.conv((32, 3, 3, 3))
    assert conv1.input_shape == ("N", 3, 8, 8)
    assert conv1.params == 32 * 27 + 32
    assert conv2.params == 32 * 32 * 9


@pytest.mark.parametrize("block", [4, 16, 32])
def test_the_block_is_that_of_the_geometry(block):
    assert {f.geometry.block for f in layers(Model.from_proto(mlp(64, 64, 8)), block)} == {block}


@pytest.mark.parametrize(
    ("op", "order", "attributes", "geometry"),
    [
        ("MatMul", "xw", {}, WeightGeometry.matmul((64, 64), "right")),
        ("MatMul", "wx", {}, WeightGeometry.matmul((64, 64), "left")),
        ("Gemm", "xw", {}, WeightGeometry.gemm((64, 64), trans_b=False)),
        ("Gemm", "xw", {"transB": 1}, WeightGeometry.gemm((64, 64), trans_b=True)),
        ("Gemm", "xw", {"transA": 1}, WeightGeometry.gemm((64, 64), trans_b=False)),
        ("Gemm", "xw", {"alpha": 0.5, "beta": 2.0}, WeightGeometry.gemm((64, 64), trans_b=False)),
        ("Gemm", "wx", {}, WeightGeometry.gemm((64, 64), trans_b=True)),
        ("Gemm", "wx", {"transA": 1}, WeightGeometry.gemm((64, 64), trans_b=False)),
        ("Gemm", "wx", {"transB": 1}, WeightGeometry.gemm((64, 64), trans_b=True)),
    ],
)
def test_the_geometry_of_a_product_is_that_of_its_outputs(op, order, attributes, geometry):
    node = helper.make_node(op, list(order), ["y"], "p", **attributes)
    layer = found_in([node], {"w": normal((64, 64), 0)}, x=(64, 64))["p"]
    assert layer.geometry == geometry
    # onnxruntime's word for it: without the weights of output 5, that output alone is zero
    weight = normal((64, 64), 0).copy()
    weight[(5, slice(None)) if geometry.output_axis == 0 else (slice(None), 5)] = 0
    proto = make_model([node], [value("x", [64, 64])], [value("y", [64, 64])], {"w": weight})
    got = outputs_of(proto, {"x": normal((64, 64), 1)})[0]
    dead = got[:, 5] if order == "xw" else got[5]
    assert not dead.any()
    assert np.count_nonzero(got) == 63 * 64


def test_grouped_and_depthwise_convolutions():
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"], "grouped", group=2),
        helper.make_node("Conv", ["h", "b"], ["i"], "depthwise", group=64),
        helper.make_node("Conv", ["i", "c"], ["y"], "multiplier", group=64),
    ]
    weights = {
        "a": normal((64, 32, 3, 3), 0),
        "b": normal((64, 1, 3, 3), 1),
        "c": normal((128, 1, 3, 3), 2),
    }
    found = found_in(nodes, weights, x=("N", 64, 16, 16))
    assert found["grouped"].geometry == WeightGeometry.conv((64, 32, 3, 3), 2)
    assert found["grouped"].geometry.aligned
    assert not found["grouped"].depthwise
    assert found["depthwise"].geometry == WeightGeometry.depthwise_conv((64, 1, 3, 3))
    assert found["multiplier"].geometry == WeightGeometry.depthwise_conv((128, 1, 3, 3))
    assert found["depthwise"].depthwise
    assert found["multiplier"].depthwise
    assert found["depthwise"].groups == 64


def test_nhwc_exports_have_the_same_geometry():
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], "in", perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["t", "a"], ["h"], "conv1"),
        helper.make_node("Conv", ["h", "b"], ["i"], "conv2"),
        helper.make_node("Transpose", ["i"], ["y"], "out", perm=[0, 2, 3, 1]),
    ]
    weights = {"a": normal((64, 3, 3, 3), 0), "b": normal((48, 64, 3, 3), 1)}
    found = found_in(nodes, weights, x=("N", 16, 16, 3))
    assert found["conv2"].geometry == WeightGeometry.conv((48, 64, 3, 3))
    assert found["conv1"].first
    assert found["conv2"].last


# ------------------------------------------------------------------------- where weights are stored


def test_weights_that_are_also_inputs_as_opset_9_has_them():
    proto = mlp(64, 64, 64, 8, opset=9)
    proto.ir_version = 3
    for tensor in proto.graph.initializer:
        proto.graph.input.append(value(tensor.name, tensor.dims))
    found = layers(Model.from_proto(proto))
    assert [f.weight for f in found] == ["fc0.weight", "fc1.weight", "fc2.weight"]
    assert [f.first for f in found] == [True, False, False]
    assert all(f.geometry for f in found)


def test_weights_in_constant_nodes():
    proto = mlp(64, 64, 64, 8)
    nodes = [
        helper.make_node("Constant", [], [t.name], f"const_{t.name}", value=t)
        for t in proto.graph.initializer
    ]
    nodes += [onnx.NodeProto.FromString(n.SerializeToString()) for n in proto.graph.node]
    proto.graph.ClearField("initializer")
    proto.graph.ClearField("node")
    proto.graph.node.extend(nodes)
    found = layers(Model.from_proto(proto))
    assert [f.weight for f in found] == ["fc0.weight", "fc1.weight", "fc2.weight"]
    assert [f.params for f in found] == [64 * 65, 64 * 65, 65 * 8]
    assert [f.first for f in found] == [True, False, False]


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_floats(dtype):
    tensor = numpy_helper.from_array(normal((64, 64), 0).astype(dtype), "w")
    found = found_in([matmul("x", "w", "y", "m")], [tensor])
    assert found["m"].geometry is not None


def test_quantized_weights_and_biases_are_seen_through_dequantize_linear():
    weights = {
        "q": np.ones((64, 64), np.int8),
        "b": np.ones(64, np.int32),
        "s": np.float32(0.1),
        "sb": np.float32(0.01),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["dq"], "dq"),
        helper.make_node("DequantizeLinear", ["b", "sb"], ["db"], "db"),
        helper.make_node("Gemm", ["x", "dq", "db"], ["y"], "g", transB=1),
    ]
    layer = found_in(nodes, weights)["g"]
    assert layer.weight == "q"
    assert layer.params == 64 * 65
    assert layer.geometry == WeightGeometry.gemm((64, 64), trans_b=True)


# --------------------------------------------------------------------------------- biases of MatMul


@pytest.mark.parametrize("order", [["h", "b"], ["b", "h"]])
def test_the_add_after_a_matmul_is_its_bias(order):
    nodes = [matmul("x", "w", "h", "m"), helper.make_node("Add", order, ["y"], "a")]
    found = found_in(nodes, {"w": normal((64, 10), 0), "b": normal((10,), 1)})
    assert found["m"].params == 650


def test_a_quantized_matmul_has_its_bias_behind_casts():
    weights = {"w": normal((64, 10), 0), "b": normal((10,), 1), "s": np.float32(1)}
    nodes = [
        matmul("x", "w", "h", "m"),
        helper.make_node("QuantizeLinear", ["h", "s"], ["hq"], "q"),
        helper.make_node("DequantizeLinear", ["hq", "s"], ["hd"], "d"),
        helper.make_node("Add", ["hd", "b"], ["y"], "a"),
    ]
    assert found_in(nodes, weights)["m"].params == 650


def test_what_is_added_otherwise_is_no_bias():
    nodes = [
        matmul("x", "w", "h", "m"),
        helper.make_node("Add", ["h", "b"], ["i"], "a"),
        helper.make_node("Add", ["h", "i"], ["y"], "residual"),
    ]
    assert found_in(nodes, {"w": normal((64, 10), 0), "b": normal((10,), 1)})["m"].params == 640
    nodes = [matmul("x", "w", "h", "m"), helper.make_node("Add", ["h", "b"], ["y"], "a")]
    assert found_in(nodes, {"w": normal((64, 10), 0), "b": np.float32(1)})["m"].params == 640


# -------------------------------------------------------------------------------- what can never be


def reason(nodes, weights, name, **more):
    layer = found_in(nodes, weights, **more)[name]
    assert layer.geometry is None
    return layer.barred


def test_conv_transpose_is_counted_and_barred():
    node = helper.make_node("ConvTranspose", ["x", "w", "b"], ["y"], "t")
    weights = {"w": normal((64, 32, 2, 2), 0), "b": normal((32,), 1)}
    found = found_in([node], weights, x=("N", 64, 4, 4))
    assert found["t"].barred.startswith("ConvTranspose")
    assert found["t"].params == 64 * 32 * 4 + 32
    assert found["t"].weight == "w"


def test_batched_constants():
    why = reason([matmul("x", "w", "y", "m")], {"w": normal((4, 64, 64), 0)}, "m", x=(4, 7, 64))
    assert why == "batched weight: its shape is [4, 64, 64]"


def test_vectors():
    why = reason([matmul("x", "w", "y", "m")], {"w": normal((64,), 0)}, "m")
    assert why == "weight without two axes: its shape is [64]"


def test_weights_that_are_not_float():
    nodes = [helper.make_node("Cast", ["x"], ["i"], "c", to=TensorProto.INT32)]
    why = reason([*nodes, matmul("i", "w", "y", "m")], {"w": np.ones((64, 64), np.int32)}, "m")
    assert why == "weight not float: 'w' is int32"


def test_computed_weights_are_layers_all_the_same():
    """A transposed constant holds parameters; the layer after it is not the first."""
    nodes = [
        helper.make_node("Transpose", ["a"], ["t"], "turn"),
        matmul("x", "t", "h", "m1"),
        matmul("h", "b", "y", "m2"),
    ]
    weights = {"a": normal((64, 64), 0), "b": normal((64, 64), 1)}
    proto = make_model(nodes, [value("x", ["N", 64])], [value("y", None)], weights)
    first, second = layers(Model.from_proto(onnx.shape_inference.infer_shapes(proto)))
    assert "fold-constants" in first.barred
    assert first.params == 64 * 64
    assert first.baseline_mac == 64 * 64
    assert not second.first


def test_products_of_activations_hold_no_weights_and_are_no_layer_before_others():
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], "relu"),
        matmul("x", "r", "h", "m1"),
        matmul("h", "w", "y", "m2"),
    ]
    found = found_in(nodes, {"w": normal((64, 64), 1)}, x=(64, 64))
    assert found["m1"].barred == "no weights: both factors are activations"
    assert found["m2"].first


def test_dynamic_convolutions():
    nodes = [helper.make_node("Conv", ["x", "k"], ["y"], "c")]
    proto = make_model(
        nodes, [value("x", ["N", 3, 8, 8]), value("k", [4, 3, 3, 3])], [value("y", None)]
    )
    (layer,) = layers(Model.from_proto(proto))
    assert layer.barred.startswith("no weights")


def test_constant_operations_are_no_layer_before_others():
    nodes = [
        matmul("a", "b", "c", "fold"),
        helper.make_node("Add", ["x", "c"], ["h"], "add"),
        matmul("h", "w", "y", "m"),
    ]
    weights = {"a": normal((1, 8), 0), "b": normal((8, 64), 1), "w": normal((64, 64), 2)}
    found = found_in(nodes, weights)
    assert found["fold"].barred.startswith("constant operation")
    assert found["m"].first


def test_groups_that_do_not_divide_the_outputs_are_refused():
    node = helper.make_node("Conv", ["x", "w"], ["y"], "c", group=3)
    why = reason([node], {"w": normal((64, 32, 3, 3), 0)}, "c", x=("N", 96, 8, 8))
    assert "do not divide" in why


# ----------------------------------------------------------------------------------- shared weights


def test_shared_weights_are_one_weight():
    nodes = [
        matmul("x", "a", "h", "m1"),
        matmul("h", "w", "i", "m2"),
        matmul("i", "w", "j", "m3"),
        matmul("j", "a2", "y", "m4"),
    ]
    weights = {n: normal((64, 64), i) for i, n in enumerate(("a", "w", "a2"))}
    found = found_in(nodes, weights)
    assert found["m2"].geometry == found["m3"].geometry
    assert [f.name for f in by_weight(list(found.values()))["w"]] == ["m2", "m3"]


def test_weights_shared_in_different_geometries_are_refused():
    nodes = [
        matmul("x", "a", "h", "m1"),
        matmul("h", "w", "i", "m2"),
        helper.make_node("Gemm", ["i", "w"], ["y"], "g3", transB=1),
    ]
    found = found_in(nodes, {"a": normal((64, 64), 0), "w": normal((64, 64), 1)})
    for name in ("m2", "g3"):
        assert found[name].geometry is None
        assert found[name].barred == "shared weight: 'm2' and 'g3' see it in different geometries"
    assert found["m1"].geometry is not None


def test_weights_that_other_nodes_read_are_refused():
    """A tied embedding: its rows are looked up, and multiplied by."""
    nodes = [
        helper.make_node("Gather", ["w", "k"], ["e"], "embedding"),
        helper.make_node("Add", ["x", "e"], ["h"], "add"),
        matmul("h", "w", "y", "m"),
    ]
    weights = {"w": normal((64, 64), 0), "k": np.array([3], np.int64)}
    assert reason(nodes, weights, "m") == (
        "weight used elsewhere: 'w' is read by Gather 'embedding' too"
    )


def test_weights_that_leave_the_graph_are_refused():
    why = reason([matmul("x", "w", "y", "m")], {"w": normal((64, 64), 0)}, "m", outputs=("y", "w"))
    assert why == "weight is an output: 'w' leaves the graph"


# ------------------------------------------------------------------------------ first, last, bodies


def test_every_branch_has_its_first_and_its_last():
    nodes = [
        matmul("x", "a", "ha", "a1"),
        matmul("x", "b", "hb", "b1"),
        matmul("ha", "c", "hc", "a2"),
        helper.make_node("Add", ["hc", "hb"], ["s"], "add"),
        matmul("s", "d", "hd", "mid"),
        matmul("hd", "e", "y", "out1"),
        matmul("hd", "f", "z", "out2"),
    ]
    weights = {n: normal((64, 64), i) for i, n in enumerate("abcdef")}
    found = found_in(nodes, weights, outputs=("y", "z"))
    assert {n for n, f in found.items() if f.first} == {"a1", "b1"}
    assert {n for n, f in found.items() if f.last} == {"out1", "out2"}


def body(name, tensor, weight, out):
    return helper.make_graph(
        [helper.make_node("MatMul", [tensor, weight], [out], f"{name}.m")],
        name,
        [],
        [value(out, None)],
    )


def with_if(weight="v"):
    """x -> m1 -> If(MatMul with `weight` | MatMul with u of the body) -> m2 -> m3."""
    other = body("else", "h", "u", "eo")
    other.initializer.append(numpy_helper.from_array(normal((64, 64), 9), "u"))
    branches = {"then_branch": body("then", "h", weight, "to"), "else_branch": other}
    nodes = [
        matmul("x", "a", "h", "m1"),
        helper.make_node("If", ["c"], ["i"], "if", **branches),
        matmul("i", "w", "j", "m2"),
        matmul("j", "b", "y", "m3"),
    ]
    weights = {n: normal((64, 64), i) for i, n in enumerate("avwb")}
    inputs = [value("x", ["N", 64]), value("c", [], np.bool_)]
    return make_model(nodes, inputs, [value("y", None)], weights)


def test_layers_in_bodies_are_listed_and_left_alone():
    found = {layer.name: layer for layer in layers(Model.from_proto(with_if()))}
    assert sorted(found) == ["else.m", "m1", "m2", "m3", "then.m"]
    assert found["then.m"].barred.startswith("layer in a body: of If 'if'")
    assert found["then.m"].weight == "v"
    assert found["else.m"].params == 64 * 64
    assert found["m1"].first
    assert not found["m1"].last
    assert not found["m2"].first
    assert found["m2"].geometry is not None


def test_layers_in_bodies_alone_do_not_make_others_second():
    """Whether they run is not known, so the layer after them may be the first."""
    proto = with_if()
    del proto.graph.node[0]
    for attribute in proto.graph.node[0].attribute:
        attribute.g.node[0].input[0] = "x"
    found = {layer.name: layer for layer in layers(Model.from_proto(proto))}
    assert found["m2"].first


def test_a_weight_that_a_body_captures_is_shared_with_its_layer():
    found = layers(Model.from_proto(with_if(weight="w")))
    refused = refusals(found, parse_pattern("block"))
    assert refused["m2"] == ("shared weight: with 'then.m', which is not pruned (layer in a body)")


def test_nodes_out_of_order():
    model = Model.from_proto(mlp(64, 64, 64, 64))
    model.graph.nodes.reverse()
    found = {layer.name: layer for layer in layers(model)}
    assert [found[f"fc{i}"].first for i in range(3)] == [True, False, False]
    assert [found[f"fc{i}"].last for i in range(3)] == [False, False, True]


def test_looking_changes_nothing(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(mlp(64, 512, 512, 8).SerializeToString())
    model = Model.load(path)
    before = model.fingerprint()
    for layer in layers(model):
        assert layer.nonzero(model).all()
    assert model.fingerprint() == before
