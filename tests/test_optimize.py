"""Optimize: simpler, portable, names kept; a model it cannot take goes on as it is."""

import numpy as np
import onnx
from builders import conv_net, make_model, normal, value
from onnx import TensorProto
from running import node, ops, run_pass

from onnxdrp.model import Model
from onnxdrp.passes import optimize
from onnxdrp.passes.optimize import Optimize
from onnxdrp.pipeline import PassContext
from onnxdrp.weights import Weight


def ints(*numbers):
    return np.array(numbers, np.int64)


def optimized(nodes, weights, x=("N", 4, 6, 6), out=("N", None, None, None), **more):
    return run_pass(
        Optimize(), make_model(nodes, [value("x", x)], [value("y", out)], weights, **more)
    )


def test_a_pad_goes_into_its_conv_which_keeps_its_name():
    model, result = optimized(
        [
            node("Pad", ["x", "p"], ["h"], "pad"),
            node("Conv", ["h", "w"], ["y"], "conv", pads=[1, 0, 0, 0]),
        ],
        {"p": ints(0, 0, 0, 1, 0, 0, 1, 1), "w": normal([8, 4, 3, 3], 1)},
    )
    assert ops(model) == ["Conv"]
    assert result.stats == {"removed_nodes": 1}
    assert model.node("conv").attrs["pads"] == [1, 1, 1, 1]
    assert model.node("conv").inputs[1].name == "w"


def test_runs_of_transpose_relu_and_clip_become_one():
    model, _ = optimized(
        [
            node("Transpose", ["x"], ["a"], "there", perm=[0, 2, 3, 1]),
            node("Transpose", ["a"], ["b"], "back", perm=[0, 3, 1, 2]),
            node("Relu", ["b"], ["c"], "relu"),
            node("Clip", ["c", "low", "high"], ["d"], "relu6"),
            node("Relu", ["d"], ["y"], "again"),
        ],
        {"low": np.array(-1, np.float32), "high": np.array(0.5, np.float32)},
    )
    assert ops(model) == ["Clip"]


def test_sizes_are_followed_through_shape_arithmetic():
    model, _ = optimized(
        [
            node("Shape", ["x"], ["s"], "shape"),
            node("Gather", ["s", "one"], ["c1"], "channels", axis=0),
            node("ConstantOfShape", ["c1"], ["o"], "zeros"),
            node("Reshape", ["x", "to"], ["x1"], "reshape"),
            node("Add", ["x1", "o"], ["y"], "add"),
        ],
        {"one": ints(1), "to": ints(-1, 6, 6, 4)},
    )
    assert "Shape" not in ops(model)
    assert "Gather" not in ops(model)


def test_nodes_that_compute_the_same_become_one():
    model, _ = optimized(
        [
            node("Exp", ["x"], ["a"], "one"),
            node("Exp", ["x"], ["b"], "other"),
            node("Add", ["a", "b"], ["y"], "add"),
        ],
        {},
    )
    assert ops(model) == ["Exp", "Add"]


def test_normalization_and_weights_are_left_to_their_own_passes(monkeypatch):
    model = Model.from_proto(conv_net(64))

    def refuse(self):
        raise AssertionError(f"a weight of {self.nbytes} bytes was read")

    monkeypatch.setattr(Weight, "array", refuse)
    result = Optimize().run(model, PassContext())
    assert "failed" not in result.stats
    assert "BatchNormalization" in ops(model)


def test_opset_ir_and_unused_domains_are_those_of_the_file():
    opsets = [onnx.helper.make_opsetid("", 13), onnx.helper.make_opsetid("ai.onnx.ml", 2)]
    proto = make_model(
        [node("Identity", ["x"], ["i"], "copy"), node("Relu", ["i"], ["y"], "relu")],
        [value("x", ["N", 4])], [value("y", ["N", 4])], ir_version=7, opset_imports=opsets,
    )  # fmt: skip
    proto.metadata_props.add(key="made by", value="a test")
    model, result = run_pass(Optimize(), proto)
    assert result.stats == {"removed_nodes": 1}
    assert (model.opsets, model.ir_version) == ({"": 13, "ai.onnx.ml": 2}, 7)
    saved = model.proto()
    assert [p.key for p in saved.metadata_props] == ["made by"]
    assert all(not n.metadata_props for n in saved.graph.node)


def test_weights_that_are_inputs_too_are_known_values():
    proto = make_model(
        [node("Add", ["x", "zero"], ["h"], "add"), node("Relu", ["h"], ["y"], "relu")],
        [value("x", [2, 4]), value("zero", [])], [value("y", [2, 4])],
        {"zero": np.array(0, np.float32)}, opset=9, ir_version=3,
    )  # fmt: skip
    model, _ = run_pass(Optimize(), proto)
    assert ops(model) == ["Relu"]
    assert model.ir_version == 3


def test_a_quantized_weight_stays_quantized():
    model, result = optimized(
        [
            node("DequantizeLinear", ["q", "s"], ["w"], "dq"),
            node("Conv", ["x", "w"], ["y"], "conv"),
        ],
        {
            "q": np.arange(-72, 72, dtype=np.int8).reshape(4, 4, 3, 3),
            "s": np.array(0.1, np.float32),
        },
    )
    assert ops(model) == ["DequantizeLinear", "Conv"]
    assert not result.modified


def test_random_nodes_are_neither_folded_nor_merged():
    proto = make_model(
        [
            node("RandomNormal", [], ["a"], "one", shape=[4]),
            node("RandomNormal", [], ["b"], "other", shape=[4]),
            node("Sub", ["a", "b"], ["d"], "sub"),
            node("Add", ["x", "d"], ["y"], "add"),
        ],
        [value("x", ["N", 4])], [value("y", ["N", 4])],
    )  # fmt: skip
    model = Model.from_proto(proto)
    Optimize().run(model, PassContext())
    assert ops(model).count("RandomNormal") == 2


def test_a_model_that_it_cannot_take_is_left_as_it_is_and_the_user_is_told(monkeypatch, caplog):
    def crash(skeleton, model):
        raise KeyError("an operator nobody thought of")

    monkeypatch.setattr(optimize, "rewrite", crash)
    model = Model.from_proto(conv_net())
    before = model.fingerprint()
    result = Optimize().run(model, PassContext())
    assert not result.modified
    assert model.fingerprint() == before
    assert "an operator nobody thought of" in result.stats["failed"]
    assert result.stats["warnings"] == [result.stats["failed"]]
    assert "left as it is" in caplog.text


def test_a_result_that_is_not_portable_is_not_taken(monkeypatch):
    def foreign(skeleton, model):
        skeleton.graph.node[0].domain = "com.microsoft"
        return skeleton

    def renamed(skeleton, model):
        skeleton.graph.output[0].name = "other"
        return skeleton

    for bad, why in ((foreign, "other domains"), (renamed, "changed the outputs")):
        monkeypatch.setattr(
            optimize,
            "rewrite",
            lambda s, m, bad=bad: bad(onnx.ModelProto.FromString(s.SerializeToString()), m),
        )
        result = Optimize().run(Model.from_proto(conv_net()), PassContext())
        assert why in result.stats["failed"]


def test_casts_there_and_back_of_a_type_that_holds_less_are_kept():
    model, _ = optimized(
        [
            node("Cast", ["x"], ["h"], "down", to=TensorProto.INT32),
            node("Cast", ["h"], ["y"], "up", to=TensorProto.FLOAT),
        ],
        {},
        out=("N", 4, 6, 6),
    )
    assert ops(model) == ["Cast", "Cast"]


def test_below_opset_14_no_reshape_gets_an_attribute_that_came_with_it():
    nodes = [
        node("Shape", ["x"], "s"),
        node("Gather", ["s", "zero"], "n"),
        node("Unsqueeze", ["n", "axes"], "u"),
        node("Concat", ["u", "rest"], "t", axis=0),
        node("Reshape", ["x", "t"], "y"),
    ]
    weights = {"zero": np.array(0), "axes": np.array([0]), "rest": np.array([12])}
    for opset in (13, 17):
        proto = make_model(
            nodes, [value("x", ["N", 3, 4])], [value("y", ["N", 12])], weights, opset=opset
        )
        model, _ = run_pass(Optimize(), proto)
        model.check()
        attributes = {name for n in model.nodes("Reshape") for name in n.attrs}
        assert opset >= 14 or "allowzero" not in attributes
