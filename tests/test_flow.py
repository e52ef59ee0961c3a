"""Reachability: right through bodies, whatever the order of the nodes, and linear."""

import numpy as np
import pytest
from builders import make_model, value
from onnx import helper

from onnxdrp.flow import Flow
from onnxdrp.model import Model


def names(model, indices):
    return {model.graph.nodes[i].name for i in indices}


def index(model, name):
    return [n.name for n in model.graph.nodes].index(name)


def diamond():
    """x -> a -> (b, c) -> d; e is computed from a constant alone, f adds it to x."""
    nodes = [
        helper.make_node("Relu", ["x"], ["ta"], "a"),
        helper.make_node("Neg", ["ta"], ["tb"], "b"),
        helper.make_node("Abs", ["ta"], ["tc"], "c"),
        helper.make_node("Add", ["tb", "tc"], ["y"], "d"),
        helper.make_node("Neg", ["k"], ["te"], "e"),
        helper.make_node("Add", ["te", "x"], ["z"], "f"),
    ]
    weights = {"k": np.ones(3, np.float32)}
    return Model.from_proto(
        make_model(nodes, [value("x", [3])], [value("y", [3]), value("z", [3])], weights)
    )


def test_descendants_and_ancestors():
    model = diamond()
    flow = Flow(model)
    assert names(model, flow.descendants([index(model, "a")])) == {"b", "c", "d"}
    assert names(model, flow.ancestors([index(model, "d")])) == {"a", "b", "c"}
    assert flow.descendants([index(model, "d")]) == set()


def test_the_order_of_the_nodes_does_not_matter():
    model = diamond()
    model.graph.nodes.reverse()
    flow = Flow(model)
    assert names(model, flow.descendants([index(model, "a")])) == {"b", "c", "d"}
    assert names(model, flow.ancestors([index(model, "d")])) == {"a", "b", "c"}


def test_activations_depend_on_what_is_fed():
    model = diamond()
    flow, tensors = Flow(model), model.tensors()
    fed = {name for name, tensor in tensors.items() if flow.is_activation(tensor)}
    assert fed == {"x", "ta", "tb", "tc", "y", "z"}


def if_node(captured: str, out: str, name: str):
    """An If whose then-branch reads `captured` of the outer graph."""
    then = helper.make_graph(
        [helper.make_node("Neg", [captured], [f"{name}.n"], f"{name}.neg")],
        "then",
        [],
        [value(f"{name}.n", None)],
    )
    other = helper.make_graph(
        [helper.make_node("Abs", [captured], [f"{name}.a"], f"{name}.abs")],
        "else",
        [],
        [value(f"{name}.a", None)],
    )
    return helper.make_node("If", ["c"], [out], name, then_branch=then, else_branch=other)


def test_what_a_body_captures_counts_as_input_of_its_node():
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], "relu"),
        if_node("r", "i", "if"),
        helper.make_node("Neg", ["i"], ["y"], "after"),
    ]
    inputs = [value("x", [3]), value("c", [], np.bool_)]
    model = Model.from_proto(make_model(nodes, inputs, [value("y", [3])]))
    flow = Flow(model)
    assert names(model, flow.descendants([index(model, "relu")])) == {"if", "after"}
    assert names(model, flow.ancestors([index(model, "after")])) == {"if", "relu"}


class Counted(list):
    """A list that counts the walks over it."""

    walks = 0

    def __iter__(self):
        Counted.walks += 1
        return super().__iter__()


@pytest.mark.parametrize("count", [60, 600])
def test_a_chain_with_side_branches_visits_each_node_once(count):
    nodes = [helper.make_node("Neg", ["x"], ["t0"], "n0")]
    nodes += [
        helper.make_node("Add", [f"t{i - 1}", f"t{i // 2}"], [f"t{i}"], f"n{i}")
        for i in range(1, count)
    ]
    model = Model.from_proto(make_model(nodes, [value("x", [3])], [value(f"t{count - 1}", [3])]))
    flow = Flow(model)
    for edges, reach, start in (
        ("_after", flow.descendants, 0),
        ("_before", flow.ancestors, count - 1),
    ):
        setattr(flow, edges, [Counted(found) for found in getattr(flow, edges)])
        Counted.walks = 0
        assert len(reach([start])) == count - 1
        assert Counted.walks <= count + 1  # nodes, and the one that it starts from
