"""Which layers are not pruned, each with its reason."""

import numpy as np
import pytest
from builders import make_model, mlp, normal, value
from onnx import helper

from onnxdrp.layers import layers
from onnxdrp.model import Model
from onnxdrp.patterns import parse_pattern
from onnxdrp.refusals import kind, refusals


def refused(proto, pattern="block", **options):
    rules = parse_pattern(pattern)
    return refusals(layers(Model.from_proto(proto), rules.block), rules, **options)


def conv_chain():
    """first 3->64, middle 64->48 grouped, 48 -> 48 depthwise, 48 -> 64, 64 -> 10."""
    shapes = {
        "first": ((64, 3, 3, 3), 1),
        "grouped": ((64, 16, 3, 3), 4),
        "wide": ((64, 64, 3, 3), 1),
        "depthwise": ((64, 1, 3, 3), 64),
        "narrow": ((48, 64, 1, 1), 1),
        "odd": ((64, 48, 1, 1), 1),
        "odd_depthwise": ((80, 1, 1, 1), 80),
        "last": ((10, 64, 1, 1), 1),
    }
    del shapes["odd_depthwise"]
    nodes, weights, at = [], {}, "x"
    for i, (name, (shape, groups)) in enumerate(shapes.items()):
        weights[f"{name}.w"] = normal(shape, i)
        nodes.append(
            helper.make_node(
                "Conv", [at, f"{name}.w"], [f"{name}.y"], name, group=groups, auto_pad="SAME_UPPER"
            )
        )
        at = f"{name}.y"
    return make_model(nodes, [value("x", ["N", 3, 8, 8])], [value(at, None)], weights)


def test_the_default_rules():
    assert refused(conv_chain()) == {
        "first": "first layer: no other comes before it",
        "grouped": "input channels not a multiple of 32: 16 in each group",
        "depthwise": "depthwise layer: pruned only with prune_depthwise",
        "odd": "input channels not a multiple of 32: 48",
        "last": "last layer: pruned only with prune_last",
    }


def test_prune_last_and_prune_depthwise_turn_two_of_them_off():
    without = refused(conv_chain(), prune_last=True, prune_depthwise=True)
    assert set(without) == {"first", "grouped", "odd"}


def test_the_block_of_the_pattern_decides_what_fits():
    assert "grouped" not in refused(conv_chain(), "nm:2:4")
    assert "odd" not in refused(conv_chain(), "nm:2:4")


def test_unstructured_has_no_rule_of_multiples():
    assert set(refused(conv_chain(), "unstructured")) == {"first", "depthwise", "last"}


@pytest.mark.parametrize("pattern", ["block", "flex-nm", "nm", "row"])
def test_all_others_have_it(pattern):
    assert {"grouped", "odd"} <= set(refused(conv_chain(), pattern))


def test_depthwise_needs_channels_in_multiples_too():
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"], "first"),
        helper.make_node("Conv", ["h", "b"], ["i"], "dw", group=48),
        helper.make_node("Conv", ["i", "c"], ["y"], "last"),
    ]
    weights = {
        "a": normal((48, 3, 1, 1), 0),
        "b": normal((48, 1, 3, 3), 1),
        "c": normal((8, 48, 1, 1), 2),
    }
    proto = make_model(nodes, [value("x", ["N", 3, 8, 8])], [value("y", None)], weights)
    assert refused(proto, prune_depthwise=True)["dw"] == "input channels not a multiple of 32: 48"


def test_a_weight_shared_with_a_refused_layer_is_refused():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "m1"),
        helper.make_node("MatMul", ["h", "w"], ["i"], "m2"),
        helper.make_node("MatMul", ["i", "v"], ["y"], "m3"),
    ]
    weights = {"w": normal((64, 64), 0), "v": normal((64, 64), 1)}
    proto = make_model(nodes, [value("x", ["N", 64])], [value("y", None)], weights)
    assert refused(proto)["m2"] == "shared weight: with 'm1', which is not pruned (first layer)"


def test_what_the_user_leaves_out_comes_after_the_rules():
    proto = mlp(64, 64, 64, 8)
    out = {"fc0": "excluded: by 'fc*'", "fc1": "excluded: by 'fc*'"}
    found = refused(proto, excluded=out)
    assert found["fc0"].startswith("first layer")
    assert found["fc1"] == "excluded: by 'fc*'"


def test_the_kind_of_a_reason():
    assert kind("first layer: no other comes before it") == "first layer"
    assert np.all([kind(why) for why in refused(conv_chain()).values()])
