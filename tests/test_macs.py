"""Multiply-adds: against counts by hand, and the batch counted as one."""

import numpy as np
import onnx
import pytest
from builders import make_model, normal, value
from onnx import helper

from onnxdrp.layers import layers
from onnxdrp.macs import batch_of, shape_of, shape_text
from onnxdrp.model import Model


def only_layer(nodes, x, weights=(), *, more=()):
    """The one layer of a model with input x of this shape, shapes inferred by ONNX."""
    inputs = [value("x", x), *more]
    proto = make_model(nodes, inputs, [value("y", None)], weights)
    model = Model.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))
    (layer,) = layers(model)
    return layer


@pytest.mark.parametrize(
    ("x", "w", "attributes", "want"),
    [
        (["N", 3, 8, 8], (16, 3, 3, 3), {}, 6 * 6 * 16 * 3 * 9),
        (["N", 3, 8, 8], (16, 3, 3, 3), {"pads": [1] * 4, "strides": [2, 2]}, 4 * 4 * 16 * 3 * 9),
        (["N", 8, 9, 7], (16, 2, 3, 1), {"group": 4}, 7 * 7 * 16 * 2 * 3),
        (["N", 8, 9, 7], (8, 1, 3, 3), {"group": 8}, 7 * 5 * 8 * 9),
        ([5, 4, 11], (6, 4, 3), {}, 9 * 6 * 4 * 3),
        ([1, 4, 5, 6, 7], (6, 4, 2, 2, 2), {}, 4 * 5 * 6 * 6 * 4 * 8),
    ],
)
def test_conv_counts_output_positions(x, w, attributes, want):
    node = helper.make_node("Conv", ["x", "w"], ["y"], "c", **attributes)
    assert only_layer([node], x, {"w": normal(w, 0)}).baseline_mac == want


def test_conv_transpose_counts_input_positions():
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], "c", strides=[2, 2], group=2)
    layer = only_layer([node], ["N", 8, 5, 6], {"w": normal((8, 3, 2, 2), 0)})
    assert layer.output_shape[2:] == (10, 12)
    assert layer.baseline_mac == 5 * 6 * 8 * 3 * 4


@pytest.mark.parametrize(("trans_a", "trans_b"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_gemm(trans_a, trans_b):
    node = helper.make_node("Gemm", ["x", "w"], ["y"], "g", transA=trans_a, transB=trans_b)
    x = [64, "N"] if trans_a else ["N", 64]
    w = normal((32, 64) if trans_b else (64, 32), 0)
    assert only_layer([node], x, {"w": w}).baseline_mac == 64 * 32


@pytest.mark.parametrize(
    ("x", "w", "side", "want"),
    [
        (["N", 64], (64, 10), "right", 640),
        ([4, 64], (64, 10), "right", 640),
        ([1, 7, 64], (64, 10), "right", 7 * 640),
        (["N", 7, 5, 64], (64, 10), "right", 35 * 640),
        ([64], (64, 10), "right", 640),
        ([64, "N"], (10, 64), "left", 640),
        (["N", 64, 7], (10, 64), "left", 7 * 640),
        ([2, 3, 64, 7], (10, 64), "left", 3 * 7 * 640),
        ([64], (10, 64), "left", 640),
        (["N", 5, 64], (5, 64, 10), "right", None),
        ([2, 8, 6, 64], (8, 64, 10), "right", 8 * 6 * 640),
    ],
)
def test_matmul_multiplies_by_all_leading_dimensions_but_the_batch(x, w, side, want):
    order = ["x", "w"] if side == "right" else ["w", "x"]
    layer = only_layer([helper.make_node("MatMul", order, ["y"], "m")], x, {"w": normal(w, 0)})
    assert layer.baseline_mac == (want or 5 * 5 * 640)


def test_a_product_of_two_activations_has_multiply_adds_and_no_parameters():
    node = helper.make_node("MatMul", ["x", "z"], ["y"], "m")
    layer = only_layer([node], ["N", 4, 7, 64], more=[value("z", ["N", 4, 64, 9])])
    assert layer.baseline_mac == 4 * 7 * 9 * 64
    assert (layer.params, layer.weights, layer.stored) == (0, 0, None)
    assert layer.mac(0) == layer.baseline_mac


def test_a_fixed_batch_counts_as_one_and_patches_of_it_as_many():
    """[4, 6, 64] -> [24, 64]: with a batch of 4, 6 rows an image."""
    nodes = [
        helper.make_node("Reshape", ["x", "s"], ["r"], "reshape"),
        helper.make_node("Gemm", ["r", "w"], ["y"], "g"),
    ]
    weights = {"w": normal((64, 10), 0), "s": np.array([-1, 64], np.int64)}
    assert only_layer(nodes, [4, 6, 64], weights).baseline_mac == 6 * 640
    assert only_layer(nodes, [1, 6, 64], weights).baseline_mac == 6 * 640


@pytest.mark.parametrize(
    ("op", "x", "w", "why"),
    [
        ("Conv", ["N", 3, "H", 8], (16, 3, 3, 3), r"not fixed: \[.*16, .*6\]"),
        ("MatMul", ["N", "T", 64], (64, 10), r"not fixed: \[N, T, 10\]"),
    ],
)
def test_dimensions_that_are_not_fixed_are_said(op, x, w, why):
    import re

    layer = only_layer([helper.make_node(op, ["x", "w"], ["y"], "n")], x, {"w": normal(w, 0)})
    assert layer.baseline_mac is None
    assert layer.mac(1) is None
    assert re.search(why, layer.why_no_mac), layer.why_no_mac


@pytest.mark.parametrize(
    ("leading", "images"),
    [
        ("N", 1),
        ("p2o.Dynamic.0", 1),
        ("49*N", 49),
        (None, 1),
        ("floor(N/2)", None),
        ("N + 1", None),
        ("N/2", None),
        ("batch-size", 1),
        ("H*N", None),
    ],
)
def test_a_leading_expression_counts_as_it_says_or_not_at_all(leading, images):
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "m")
    proto = make_model(
        [node], [value("x", ["N", 64])], [value("y", [leading, 10])], {"w": normal((64, 10), 0)}
    )
    (layer,) = layers(Model.from_proto(proto))
    assert layer.baseline_mac == (None if images is None else images * 640)


def test_shapes_for_reading_leave_long_expressions_out():
    shape = ("N", 3, "floor(H/2 - 1/2) + 1", None, "4*N")
    assert shape_text(shape) == "[N, 3, ?, ?, 4*N]"
    assert shape_text(None) == "?"


def test_an_unknown_shape_is_said():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], "c"),
        helper.make_node("MatMul", ["x", "z"], ["y"], "m"),
    ]
    inputs = [value("x", None), value("z", None)]
    outputs = [value("y", None), value("h", None)]
    proto = make_model(nodes, inputs, outputs, {"w": normal((4, 3, 3, 3), 0)})
    conv, product = layers(Model.from_proto(proto))
    assert (conv.input_shape, conv.output_shape) == (None, None)
    assert conv.why_no_mac == "the shape of 'h' is unknown"
    assert "length of its products is unknown" in product.why_no_mac


def test_what_exporters_write_for_unknown_is_none():
    proto = make_model(
        [helper.make_node("Relu", ["x"], ["y"], "r")],
        [value("x", [-1, "", "?", "N", None, 7])],
        [value("y", None)],
    )
    model = Model.from_proto(proto)
    assert shape_of(model.tensor("x")) == (None, None, None, "N", None, 7)
    assert batch_of(model) is None
