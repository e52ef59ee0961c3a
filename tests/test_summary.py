"""The table of layers: the manual's figures, its key names, unknown shapes, quantized models."""

import json
from itertools import pairwise

import numpy as np
import onnx
import pytest
from builders import conv_net, make_model, mlp, normal, value
from onnx import helper

from onnxdrp.layers import layers
from onnxdrp.model import Model
from onnxdrp.passes.prune_blocks import PruneBlocks
from onnxdrp.pipeline import PassManager
from onnxdrp.summary import summarize_layers

KEYS = [
    "name",
    "op",
    "input_shape",
    "output_shape",
    "params",
    "sparsity",
    "baseline_mac",
    "current_mac",
]


def gemm_mlp():
    """As PyTorch exports the manual's network."""
    return mlp(784, 512, 512, 10)


def matmul_mlp():
    """As Keras exports it: MatMul with [Cin, Cout], then Add."""
    sizes, nodes, weights, at = (784, 512, 512, 10), [], {}, "x"
    for i, (wide, out) in enumerate(pairwise(sizes)):
        weights |= {f"k{i}": normal([wide, out], i), f"b{i}": normal([out], i + 5)}
        nodes.append(helper.make_node("MatMul", [at, f"k{i}"], [f"m{i}"], f"fc{i}"))
        nodes.append(helper.make_node("Add", [f"m{i}", f"b{i}"], [f"a{i}"], f"add{i}"))
        at = f"r{i}"
        nodes.append(helper.make_node("Relu", [f"a{i}"], [at], f"relu{i}"))
    return make_model(nodes, [value("x", ["N", 784])], [value("r2", ["N", 10])], weights)


@pytest.mark.parametrize("pattern", ["block", "flex-nm", "row"])
@pytest.mark.parametrize("network", [gemm_mlp, matmul_mlp])
def test_figure_3_11_of_the_manual(network, pattern):
    model = Model.from_proto(network())
    before = summarize_layers(model).as_dict()
    assert [row["params"] for row in before["layers"]] == [401_920, 262_656, 5_130]
    assert before["total"]["params"] == 669_706
    assert before["total"]["current_mac"] == 668_672
    assert before["total"]["sparsity"] == 0
    PassManager([PruneBlocks(pattern=pattern, rate=0.7)]).run(model)
    after = summarize_layers(model).as_dict()
    assert [round(row["sparsity"], 3) for row in after["layers"]] == [0.0, 0.699, 0.0]
    assert [row["current_mac"] for row in after["layers"]] == [401_408, 78_848, 5_120]
    assert after["total"]["current_mac"] == 485_376
    assert after["total"]["baseline_mac"] == 668_672
    assert after["total"]["params"] == 669_706
    text = str(summarize_layers(model))
    middle = next(line for line in text.splitlines() if line.startswith("fc1"))
    for figure in ("512", "262,656", "0.699", "262,144", "78,848"):
        assert figure in middle
    assert "0.000" in next(line for line in text.splitlines() if line.startswith("fc0"))
    assert "485,376" in next(line for line in text.splitlines() if line.startswith("total"))


def test_the_key_names_are_the_contract():
    data = summarize_layers(Model.from_proto(conv_net())).as_dict()
    json.dumps(data)
    for row in data["layers"]:
        assert set(row) == {*KEYS, "cycles_b", "cycles_c", "prunable", "why_not"}
    assert {"params", "sparsity", "baseline_mac", "current_mac"} <= set(data["total"])
    conv1, conv2, fc = data["layers"]
    assert (conv1["name"], conv1["op"]) == ("conv1", "Conv")
    assert conv1["input_shape"] == ["N", 3, 8, 8]
    assert conv1["output_shape"] == ["N", 32, 8, 8]
    assert conv1["baseline_mac"] == 64 * 32 * 27
    assert (conv1["prunable"], conv2["prunable"], fc["prunable"]) == (False, True, False)
    assert conv2["why_not"] == ""
    assert conv1["why_not"].startswith("first layer")
    assert "models" in data["note"]


def test_shapes_are_inferred_on_a_copy():
    proto = conv_net()
    assert not proto.graph.value_info
    model = Model.from_proto(proto)
    before = model.fingerprint()
    assert all(row.output_shape for row in summarize_layers(model).layers)
    assert model.fingerprint() == before
    assert layers(model)[0].output_shape is None


def test_dynamic_sizes_are_said_and_not_counted():
    proto = conv_net()
    for dim in proto.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.ClearField("dim_value")
        dim.dim_param = "side"
    summary = summarize_layers(Model.from_proto(proto))
    total = summary.as_dict()["total"]
    assert summary.layers[0].baseline_mac is None
    assert set(total["uncounted"]) == {"conv1", "conv2"}
    assert total["current_mac"] == 320
    assert (
        "multiply-adds of 2 layers are not counted (conv1: the shape of 'h1' is not fixed: "
        "[N, 32, side, side]); give the inputs fixed shapes"
    ) in str(summary)


@pytest.mark.parametrize(("pattern", "fits"), [("block", False), ("nm:2:4", True)])
def test_the_pattern_decides_what_is_prunable(pattern, fits):
    summary = summarize_layers(Model.from_proto(mlp(64, 36, 64, 8)), pattern)
    assert summary.layers[1].prunable is fits
    assert summary.pattern == pattern


def test_shared_weights_count_once_among_parameters_and_each_time_among_macs():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "m1"),
        helper.make_node("MatMul", ["h", "w"], ["y"], "m2"),
    ]
    weight = normal((64, 64), 0).copy()
    weight[:32] = 0
    proto = make_model(nodes, [value("x", ["N", 64])], [value("y", ["N", 64])], {"w": weight})
    summary = summarize_layers(Model.from_proto(proto))
    assert [row.params for row in summary.layers] == [4096, 4096]
    assert summary.params == 4096
    assert summary.sparsity == 0.5
    assert (summary.baseline_mac, summary.current_mac) == (8192, 4096)


def test_zeros_are_seen_through_dequantize_linear():
    q = np.random.default_rng(0).integers(100, 150, (64, 64)).astype(np.uint8)
    q[q == 128] = 129
    q[::4] = 128
    weights = {"q": q, "s": np.float32(0.1), "z": np.uint8(128)}
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], "dq"),
        helper.make_node("MatMul", ["x", "w"], ["y"], "m"),
    ]
    proto = make_model(nodes, [value("x", ["N", 64])], [value("y", ["N", 64])], weights)
    (row,) = summarize_layers(Model.from_proto(proto)).layers
    assert (row.sparsity, row.current_mac) == (0.25, 3072)


def test_modelled_cycles_are_counted_beside_the_macs():
    """Block: whole vectors go, reading B gains all and C nothing; flex-nm the other way round."""
    for pattern, key, idle in (
        ("block", "cycles_b", "cycles_c"),
        ("flex-nm", "cycles_c", "cycles_b"),
    ):
        model = Model.from_proto(mlp(64, 512, 512, 8))
        PassManager([PruneBlocks(pattern=pattern, rate=0.7)]).run(model)
        first, middle, _ = summarize_layers(model).as_dict()["layers"]
        assert middle[key] == middle["current_mac"] == 78_848
        assert middle[idle] == middle["baseline_mac"] == 262_144
        assert first["cycles_b"] == first["cycles_c"] == first["baseline_mac"]
    text = str(summarize_layers(model))
    assert "cycles B (model)" in text
    assert "not measurements" in text


def test_a_model_without_layers():
    proto = make_model(
        [helper.make_node("Relu", ["x"], ["y"], "r")], [value("x", [2])], [value("y", [2])]
    )
    summary = summarize_layers(Model.from_proto(proto))
    assert summary.layers == []
    assert (summary.sparsity, summary.params, summary.baseline_mac) == (0, 0, 0)
    assert "total" in str(summary)


def test_a_notebook_shows_the_table():
    summary = summarize_layers(Model.from_proto(conv_net()))
    assert repr(summary) == str(summary) == repr(summary.table())
    assert "\n" in repr(summary.table())


def test_real_models(shared):
    """Multiply-adds are those that the models' makers state: 0.54 G for YOLOX-Nano at 416."""
    yolox = summarize_layers(Model.load(shared / "models" / "yolox_nano_416.onnx"))
    assert 0.5e9 < yolox.baseline_mac < 0.56e9
    assert yolox.params == pytest.approx(0.91e6, rel=0.01)
    lite = summarize_layers(Model.load(shared / "models" / "efficientnet_lite0.onnx"))
    assert 0.38e9 < lite.baseline_mac < 0.41e9
    assert lite.params == pytest.approx(4.63e6, rel=0.01)
    for summary in (yolox, lite):
        assert not summary.uncounted
        assert any(row.prunable for row in summary.layers)


def test_macs_of_a_convolution_are_those_of_its_unfolded_product():
    """An independent count: a convolution as a product over its unfolded input."""
    rng = np.random.default_rng(0)
    for _ in range(5):
        cin, cout, k, side = (int(n) for n in rng.integers([1, 1, 1, 9], [9, 9, 9, 17]))
        w = normal((cout, cin, k, k), 0)
        node = helper.make_node("Conv", ["x", "w"], ["y"], "c")
        proto = make_model([node], [value("x", [1, cin, side, side])], [value("y", None)], {"w": w})
        inferred = onnx.shape_inference.infer_shapes(proto)
        out = [d.dim_value for d in inferred.graph.output[0].type.tensor_type.shape.dim]
        unfolded = np.lib.stride_tricks.sliding_window_view(np.zeros((side, side)), (k, k))
        products = unfolded.size * cin * cout
        (row,) = summarize_layers(Model.from_proto(proto)).layers
        assert row.baseline_mac == products
        assert list(row.output_shape) == out
