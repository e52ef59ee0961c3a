"""FoldConstants: what is computed once, what never is."""

import numpy as np
import onnx
import pytest
from builders import Array, make_model, normal, value
from onnx import TensorProto, helper
from running import node, ops, run_pass

from onnxdrp.model import Model
from onnxdrp.passes import compute, fold_constants
from onnxdrp.passes.fold_constants import FoldConstants
from onnxdrp.pipeline import PassContext


def ints(*numbers):
    return np.array(numbers, np.int64)


def fold(nodes, weights, x=("N", 4), out=("N", 4), **more):
    return run_pass(
        FoldConstants(), make_model(nodes, [value("x", x)], [value("y", out)], weights), **more
    )


def test_a_chain_of_stored_values_becomes_one_stored_value():
    w = normal([4, 4], 1)
    model, result = fold(
        [
            node("Transpose", ["w"], ["wt"], "turn", perm=[1, 0]),
            node("Mul", ["wt", "k"], ["ws"], "scale"),
            node("MatMul", ["x", "ws"], ["y"], "fc"),
        ],
        {"w": w, "k": np.array(0.5, np.float32)},
    )
    assert ops(model) == ["MatMul"]
    assert result.stats == {"folded": 2, "skipped": {}}
    assert np.array_equal(model.weight("ws"), w.T * np.float32(0.5))


def test_shape_and_size_of_known_dimensions_fold_even_where_others_are_free():
    model, _ = fold(
        [
            node("Shape", ["x"], ["s"], "shape", start=1, end=3),
            node("Size", ["r"], ["n"], "size"),
            node("Shape", ["x"], ["whole"], "free"),
            node("Cast", ["s"], ["sf"], "cast", to=TensorProto.FLOAT),
            node("Cast", ["n"], ["nf"], "cast2", to=TensorProto.FLOAT),
            node("ReduceSum", ["sf"], ["k"], "sum"),
            node("Mul", ["x", "k"], ["a"], "mul"),
            node("Div", ["a", "nf"], ["b"], "div"),
            node("Reshape", ["b", "whole"], ["y"], "same"),
        ],
        {"r": normal([3, 5], 1)},
        x=("N", 4, 6),
        out=("N", 4, 6),
    )
    assert ops(model) == ["Shape", "Mul", "Div", "Reshape"]
    assert model.weight("k") == 10
    assert model.weight("nf") == 15


def test_known_dimensions_are_picked_from_the_shape_of_a_tensor_with_free_ones():
    model, _ = fold(
        [
            node("Shape", ["x"], ["s"], "shape"),
            node("Gather", ["s", "last"], ["c"], "channels"),
            node("Unsqueeze", ["c", "zero"], ["c1"], "wrap"),
            node("Slice", ["s", "one", "two"], ["h"], "middle"),
            node("Gather", ["s", "first"], ["n"], "batch"),
            node("Unsqueeze", ["n", "zero"], ["n1"], "wrap2"),
            node("Concat", ["n1", "c1", "h"], ["to"], "concat", axis=0),
            node("Reshape", ["x", "to"], ["y"], "reshape"),
        ],
        {
            "last": np.array(-1),
            "zero": ints(0),
            "one": ints(1),
            "two": ints(2),
            "first": np.array(0),
        },
        x=("N", 4, 6),
        out=("N", 6, 4),
    )
    assert ops(model) == ["Shape", "Gather", "Unsqueeze", "Concat", "Reshape"]
    assert (model.weight("c1").tolist(), model.weight("h").tolist()) == ([6], [4])


def test_several_outputs_of_one_node():
    model, _ = fold(
        [
            node("Split", ["w"], ["a", "b"], "split", axis=0),
            node("Mul", ["x", "a"], ["m"], "mul"),
            node("Add", ["m", "b"], ["y"], "add"),
        ],
        {"w": normal([2, 4], 1)},
    )
    assert ops(model) == ["Mul", "Add"]


def model_of(nodes, weights, out=("N", 4), **more):
    return Model.from_proto(
        make_model(nodes, [value("x", ["N", 4])], [value("y", out)], weights, **more)
    )


def refusal(model):
    result = FoldConstants().run(model, PassContext())
    assert not result.modified
    (why,) = result.stats["skipped"].values()
    return why


def test_random_nodes_stay():
    nodes = [
        node("RandomNormal", [], ["r"], "noise", shape=[4]),
        node("Add", ["x", "r"], ["y"], "add"),
    ]
    assert refusal(model_of(nodes, {})) == "its result is random"


def test_a_quantized_weight_stays_quantized():
    weights = {"q": np.arange(16, dtype=np.int8).reshape(4, 4), "s": np.array(0.1, np.float32)}
    nodes = [
        node("DequantizeLinear", ["q", "s"], ["w"], "dq"),
        node("Transpose", ["w"], ["wt"], "turn"),
        node("MatMul", ["x", "wt"], ["y"], "fc"),
    ]
    assert refusal(model_of(nodes, weights)) == "it keeps the model quantized"


def test_an_output_of_the_model_is_computed_by_a_node():
    nodes = [node("Neg", ["w"], ["y"], "neg"), node("Relu", ["x"], ["z"], "relu")]
    assert "output" in refusal(model_of(nodes, {"w": normal([4], 1)}, out=[4]))


def test_a_result_that_would_blow_up_the_file_stays_a_node():
    nodes = [
        node("Expand", ["k", "to"], ["w"], "expand"),
        node("MatMul", ["x", "w"], ["y"], "fc"),
    ]
    size = fold_constants.LIMIT // 16  # float32 values in each of 4 rows
    weights = {"k": np.array(0.5, np.float32)}
    small = model_of(nodes, {**weights, "to": ints(4, size)}, out=("N", None))
    assert FoldConstants().run(small, PassContext()).stats["folded"] == 1
    large = model_of(nodes, {**weights, "to": ints(4, size + 1)}, out=("N", None))
    assert "1,048,592 bytes, its inputs 20" in refusal(large)


def test_nor_do_many_small_results_together(monkeypatch):
    monkeypatch.setattr(fold_constants, "TOTAL", 3000)
    nodes = [node("Expand", ["k", "to"], [f"w{i}"], f"expand{i}") for i in range(4)]
    nodes.append(node("Sum", ["x", *(f"w{i}" for i in range(4))], ["y"], "sum"))
    model = model_of(nodes, {"k": np.array(0.5, np.float32), "to": ints(64, 4)}, out=(64, 4))
    result = FoldConstants().run(model, PassContext())
    assert result.stats["folded"] == 2
    assert "bytes more" in result.stats["skipped"]["expand3"]


def test_a_large_weight_behind_an_identity_is_not_stored_twice():
    nodes = [
        node("Identity", ["w"], ["w2"], "copy"),
        node("MatMul", ["x", "w"], ["h"], "one"),
        node("MatMul", ["h", "w2"], ["y"], "two"),
    ]
    model, result = fold(nodes, {"w": normal([4, 4], 1)})
    assert result.stats["folded"] == 1
    assert model.weights() == ["w"]


def body(name, operator):
    """A body without inputs that reads `captured` of the graph around it."""
    return helper.make_graph(
        [node(operator, ["captured"], [f"{name}_out"], f"{name}_node")],
        name, [], [value(f"{name}_out", [4])],
    )  # fmt: skip


def test_ifs_stay_and_what_their_bodies_capture_may_be_folded():
    nodes = [
        node("Neg", ["w"], ["captured"], "neg"),
        node("Greater", ["k", "zero"], ["yes"], "greater"),
        node(
            "If",
            ["yes"],
            ["r"],
            "if",
            then_branch=body("then", "Abs"),
            else_branch=body("else", "Neg"),
        ),
        node("Add", ["x", "r"], ["y"], "add"),
    ]
    scalars = {"k": np.array(1, np.float32), "zero": np.array(0, np.float32)}
    model, result = fold(nodes, {"w": normal([4], 1), **scalars})
    assert ops(model) == ["If", "Add"]
    assert result.stats["skipped"] == {"if": "it has a body"}
    assert "captured" in {t.name for t in model.proto().graph.initializer}


def test_what_onnxruntime_cannot_compute_stays_and_the_rest_folds():
    weights = {"a": np.array([1, 2], np.float64), "w": normal([4], 1)}
    nodes = [
        node("Erf", ["a"], ["b"], "no_kernel"),  # none for float64 in the CPU build
        node("Cast", ["b"], ["c"], "behind_it", to=TensorProto.FLOAT),
        node("ReduceMax", ["c"], ["m"], "max", keepdims=0),
        node("Neg", ["w"], ["n"], "neg"),
        node("Add", ["x", "n"], ["h"], "add"),
        node("Mul", ["h", "m"], ["y"], "mul"),
    ]
    model = model_of(nodes, weights)
    result = FoldConstants().run(model, PassContext())
    assert result.stats["folded"] == 1
    assert "neg" not in {n.name for n in model.nodes()}
    assert set(result.stats["skipped"]) == {"no_kernel", "behind_it", "max"}
    assert "onnxruntime cannot" in result.stats["skipped"]["no_kernel"]


def test_only_what_is_folded_is_run(monkeypatch):
    seen: list[list[str]] = []
    run = compute._run

    def spy(part: Model, nodes, wanted) -> dict[str, Array]:
        seen.append([n.name for n in nodes])
        return run(part, nodes, wanted)

    monkeypatch.setattr(compute, "_run", spy)
    fold(
        [node("Neg", ["w"], ["v"], "neg"), node("Add", ["x", "v"], ["y"], "add")],
        {"w": normal([4], 1)},
    )
    assert seen == [["neg"]]


@pytest.mark.parametrize("opset", [9, 13, 21])
def test_old_and_new_operator_sets(opset):
    proto = make_model(
        [node("ConstantOfShape", ["to"], ["c"], "fill",
              value=helper.make_tensor("v", TensorProto.FLOAT, [1], [0.25])),
         node("Mul", ["x", "c"], ["y"], "mul")],
        [value("x", ["N", 4])], [value("y", ["N", 4])], {"to": ints(4)}, opset=opset,
    )  # fmt: skip
    model, _ = run_pass(FoldConstants(), proto)
    assert ops(model) == ["Mul"]
    assert model.opset == opset
    assert isinstance(model.proto(), onnx.ModelProto)
