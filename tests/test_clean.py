"""Clean: what does nothing goes; names that count stay."""

import numpy as np
import pytest
from builders import make_model, value
from onnx import TensorProto, helper
from running import node, ops, run_pass

from onnxdrp.model import Model
from onnxdrp.passes.clean import Clean
from onnxdrp.passes.infer_shapes import InferShapes
from onnxdrp.pipeline import PassContext


def ints(*numbers):
    return np.array(numbers, np.int64)


def clean(nodes, weights=(), x=("N", 4, 6), out=("N", 4, 6), *, opset=17, infer=True, **more):
    proto = make_model(
        nodes, [value("x", x)], [value("y", out)], weights or {}, opset=opset, **more
    )
    model = Model.from_proto(proto)
    if infer:
        InferShapes().run(model, PassContext())
    return run_pass(Clean(), model, tolerance=0)


def between(operator, *inputs, **attributes):
    """Relu, the node in question, Neg."""
    return [
        node("Relu", ["x"], ["r"], "relu"),
        node(operator, ["r", *inputs], ["i"], "idle", **attributes),
        node("Neg", ["i"], ["y"], "neg"),
    ]


BIG = 2**63 - 1
NO_OPS = {
    "identity": (between("Identity"), {}),
    "dropout": (between("Dropout"), {}),
    "dropout that may train": (between("Dropout", "", "no"), {"no": np.array(False)}),
    "transpose": (between("Transpose", perm=[0, 1, 2]), {}),
    "cast": (between("Cast", to=TensorProto.FLOAT), {}),
    "concat": (between("Concat", axis=1), {}),
    "sum": (between("Sum"), {}),
    "max": (between("Max"), {}),
    "pad": (between("Pad", "p"), {"p": ints(0, 0, 0, 0, 0, 0)}),
    "reshape": (between("Reshape", "s"), {"s": ints(-1, 4, 6)}),
    "flatten": (between("Flatten"), {}),
    "expand": (between("Expand", "s"), {"s": ints(1, 4, 6)}),
    "slice": (between("Slice", "b", "e"), {"b": ints(0, 0), "e": ints(BIG, BIG)}),
    "slice by size": (between("Slice", "b", "e", "a"), {"b": ints(-6), "e": ints(6), "a": ints(2)}),
    "pool": (between("MaxPool", kernel_shape=[1]), {}),
}
SHAPES = {"flatten": ("N", 4), "expand": (2, 4, 6), "slice by size": (2, 4, 6)}


@pytest.mark.parametrize("name", NO_OPS)
def test_what_does_nothing_goes(name):
    nodes, weights = NO_OPS[name]
    shape = SHAPES.get(name, ("N", 4, 6))
    model, result = clean(nodes, weights, shape, shape)
    assert ops(model) == ["Relu", "Neg"]
    assert result.stats["no_ops"] == 1


KEPT = {
    "transpose": (between("Transpose", perm=[0, 2, 1]), {}),
    "cast": (between("Cast", to=TensorProto.DOUBLE), {}),
    "concat": (between("Concat", "r", axis=1), {}),
    "pad": (between("Pad", "p"), {"p": ints(0, 0, 0, 0, 0, 1)}),
    "reshape": (between("Reshape", "s"), {"s": ints(-1, 6, 4)}),
    "reshape of two free sizes": (between("Reshape", "s"), {"s": ints(0, -1, 6)}),
    "expand": (between("Expand", "s"), {"s": ints(3, 1, 1, 1)}),
    "slice backwards": (
        between("Slice", "b", "e", "a", "d"),
        {"b": ints(-1), "e": ints(-BIG), "a": ints(2), "d": ints(-1)},
    ),
    "slice": (between("Slice", "b", "e"), {"b": ints(0, 1), "e": ints(BIG, BIG)}),
    "pool": (between("MaxPool", kernel_shape=[1], strides=[2]), {}),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_does_something_stays(name):
    nodes, weights = KEPT[name]
    x = ("N", "M", 6) if name == "reshape of two free sizes" else (2, 4, 6)
    rank = 4 if name == "expand" else 3
    proto = make_model(nodes, [value("x", x)], [value("y", [None] * rank)], weights)
    if name == "cast":
        proto.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    model = Model.from_proto(proto)
    InferShapes().run(model, PassContext())
    model, result = run_pass(Clean(), model)
    assert len(model.nodes()) == 3
    assert result.stats["no_ops"] == 0


def test_the_name_of_an_output_stays_when_its_node_goes():
    model, _ = clean([node("Relu", ["x"], ["r"], "relu"), node("Identity", ["r"], ["y"], "copy")])
    assert ops(model) == ["Relu"]
    assert model.node("relu").outputs[0].name == "y"


def test_an_input_that_is_an_output_needs_its_identity():
    model, result = clean([node("Identity", ["x"], ["y"], "copy")])
    assert ops(model) == ["Identity"]
    assert result.stats["skipped"] == {"copy": "it joins two tensors that must keep their names"}


def test_the_name_of_a_captured_tensor_stays():
    branches = [
        helper.make_graph(
            [node(op, ["c"], [f"{op}_out"], f"{op}_in")], op, [], [value(f"{op}_out", [4])]
        )
        for op in ("Abs", "Neg")
    ]
    model, _ = clean(
        [
            node("Relu", ["x"], ["r"], "relu"),
            node("Identity", ["r"], ["c"], "copy"),
            node("ReduceMax", ["x"], ["m"], "max", keepdims=0),
            node("Greater", ["m", "zero"], ["yes"], "greater"),
            node("If", ["yes"], ["i"], "if", then_branch=branches[0], else_branch=branches[1]),
            node("Add", ["i", "r"], ["y"], "add"),
        ],
        {"zero": np.array(0, np.float32)},
        x=[4],
        out=[4],
    )
    assert "Identity" not in ops(model)
    assert model.node("relu").outputs[0].name == "c"


@pytest.mark.parametrize("size", [4, 4000])
def test_equal_weights_become_one_and_others_do_not(size):
    w = np.random.default_rng(1).uniform(0.5, 1.5, (1, size)).astype(np.float32)
    other = w.copy()
    other[0, -1] += 1  # beyond the sample that is read first, where there are 4000
    weights = {"w0": w, "w1": w.copy(), "w2": other, "w3": w.copy(), "turned": w.reshape(-1)}
    places = ["x", *(f"h{name}" for name in weights)]
    nodes = [
        node("Mul", [places[i], name], [places[i + 1]], name) for i, name in enumerate(weights)
    ]
    nodes.append(node("Neg", [places[-1]], ["y"], "neg"))
    model, result = clean(nodes, weights, [1, size], [1, size])
    assert result.stats["duplicates"] == 2
    assert set(model.weights()) == {"w0", "w2", "turned"}


def test_equal_bytes_of_another_type_are_no_duplicates():
    weights = {"a": np.zeros(4, np.float32), "b": np.zeros(4, np.int32)}
    _, result = clean(
        [
            node("Cast", ["b"], ["c"], "cast", to=TensorProto.FLOAT),
            node("Add", ["x", "a"], ["h"], "add"),
            node("Sub", ["h", "c"], ["y"], "sub"),
        ],
        weights,
        x=("N", 4),
        out=("N", 4),
    )
    assert result.stats["duplicates"] == 0
    assert not result.modified


def test_dead_nodes_and_unused_optional_outputs():
    model, result = clean(
        [
            node("Relu", ["x"], ["r"], "relu"),
            node("Exp", ["r"], ["e"], "dead"),
            node("Log", ["e"], ["l"], "dead_too"),
            node("MaxPool", ["r"], ["p", "where"], "pool", kernel_shape=[2], strides=[2]),
            node("Neg", ["p"], ["y"], "neg"),
        ],
        out=("N", 4, 3),
    )
    assert ops(model) == ["Relu", "MaxPool", "Neg"]
    assert len(model.node("pool").outputs) == 1
    assert result.stats["dead"] == 2
    assert result.stats["unused_outputs"] == 1


def test_a_dropout_whose_mask_is_read_and_one_that_trains_stay():
    mask = [
        node("Dropout", ["x"], ["i", "mask"], "drop"),
        node("Cast", ["mask"], ["m"], "cast", to=TensorProto.FLOAT),
        node("Add", ["i", "m"], ["y"], "add"),
    ]
    assert len(clean(mask)[0].nodes()) == 3
    trains = between("Dropout", "none", "yes")
    weights = {"none": np.array(0, np.float32), "yes": np.array(True)}
    assert len(clean(trains, weights)[0].nodes()) == 3


@pytest.mark.parametrize("opset", [7, 9])
def test_old_operator_sets(opset):
    nodes = between("Pad", pads=[0] * 6)
    nodes.insert(1, node("Slice", ["r"], ["q"], "slice", starts=[0], ends=[BIG], axes=[1]))
    nodes[2].input[0] = "q"
    model, _ = clean(nodes, opset=opset)
    assert ops(model) == ["Relu", "Neg"]
