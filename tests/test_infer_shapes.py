"""InferShapes: everything known, nothing contradicted, every failure said."""

import numpy as np
import onnx
import pytest
import sympy
from builders import conv_net, feeds_for, make_model, normal, outputs_of, value
from running import node, run_pass

from onnxdrp.errors import OptionError
from onnxdrp.model import Model
from onnxdrp.passes import infer_shapes
from onnxdrp.passes.infer_shapes import InferShapes
from onnxdrp.pipeline import PassContext
from onnxdrp.weights import Weight


def test_completes_every_tensor_of_a_plain_net():
    model, result = run_pass(InferShapes(), conv_net(batch="N"))
    assert result.stats == {"inferred": 7, "unknown": []}
    assert model.info("r2").shape == ("N", 32, 8, 8)
    assert model.info("p").dtype == np.float32


def test_expressions_of_a_free_size_are_right_when_the_size_is_put_in():
    nodes = [
        node(
            "MaxPool", ["x"], ["p"], "pool", kernel_shape=[2, 2], strides=[2, 2], pads=[1, 0, 1, 0]
        ),
        node("Conv", ["p", "w"], ["c"], "conv", strides=[3, 1]),
        node("Shape", ["c"], ["s"], "shape"),
        node("Gather", ["s", "second"], ["h"], "height"),
        node("Unsqueeze", ["h", "zero"], ["h1"], "wrap"),
        node("Concat", ["first", "h1", "rest"], ["to"], "concat", axis=0),
        node("Reshape", ["c", "to"], ["y"], "reshape"),
    ]
    numbers = {"second": np.array(2), "zero": np.array([0]), "first": np.array([0])}
    proto = make_model(
        nodes,
        [value("x", ["N", 3, "height", "width"])],
        [value("y", [None] * 3)],
        {"w": normal([8, 3, 3, 3], 1), "rest": np.array([-1]), **numbers},
    )
    model, result = run_pass(InferShapes(), proto, feeds={"x": normal([2, 3, 17, 14], 2)})
    assert result.stats["unknown"] == []
    sizes = {"N": 2, "height": 17, "width": 14}
    probe = model.proto()
    probe.graph.output.append(onnx.ValueInfoProto(name="c"))
    y, c = outputs_of(probe, {"x": normal([2, 3, 17, 14], 2)})
    for name, array in {"c": c, "y": y}.items():
        symbols = {s: sympy.Symbol(s) for s in sizes}  # N alone is one of sympy's functions
        shape = [sympy.sympify(d, locals=symbols) for d in model.info(name).shape]
        put_in = [int(d.subs({symbols[s]: n for s, n in sizes.items()})) for d in shape]
        assert put_in == list(array.shape)
    assert "height" in str(model.info("c").shape)


def half_known():
    """Relu, and a MaxPool of a free size: ONNX infers the type of the second, no expression."""
    nodes = [
        node("Relu", ["x"], ["r"], "relu"),
        node("MaxPool", ["r"], ["p"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Neg", ["p"], ["y"], "out"),
    ]
    return make_model(nodes, [value("x", [1, 3, "height", 4])], [value("y", [1, 3, None, 2])])


@pytest.mark.parametrize(
    ("options", "height"),
    [
        ({"symbolic": False}, None),
        ({"standard": False}, "floor(height/2)"),
        ({}, "floor(height/2)"),
    ],
)
def test_each_of_the_two_inferences_can_be_left_out(monkeypatch, options, height):
    calls = []
    for kind in ("onnx", "symbolic"):
        name = f"onnxdrp.passes.infer_shapes.{kind}_inference"
        real = getattr(infer_shapes, f"{kind}_inference")
        monkeypatch.setattr(
            name, lambda *a, kind=kind, real=real: (calls.append(kind), real(*a))[1]
        )
    model, result = run_pass(InferShapes(**options), half_known())
    assert model.info("r").shape == (1, 3, "height", 4)
    assert model.info("p").shape in ((1, 3, height, 2), (1, 3, height or "", 2))
    assert result.stats["unknown"] == ([] if height else ["p", "y"])
    left_out = {"symbolic": "symbolic", "standard": "onnx"}
    assert set(calls) == {"onnx", "symbolic"} - {left_out[name] for name in options}


def test_to_leave_both_out_is_refused():
    with pytest.raises(OptionError, match="both off; leave the pass out"):
        InferShapes(standard=False, symbolic=False)


def test_what_depends_on_a_value_of_the_input_is_reported_unknown():
    nodes = [
        node("Relu", ["x"], ["r"], "relu"),
        node("Reshape", ["r", "to"], ["y"], "reshape"),
        node("Sigmoid", ["y"], ["z"], "out"),
    ]
    inputs = [value("x", [2, 6]), value("to", ["rank"], np.int64)]
    proto = make_model(nodes, inputs, [value("z", None)])
    proto.graph.output[0].CopyFrom(value("z", [None, None]))
    feeds = {"x": normal([2, 6], 1), "to": np.array([3, 4])}
    model, result = run_pass(InferShapes(), proto, feeds=feeds)
    assert set(result.stats["unknown"]) == {"y", "z"}
    assert model.info("r").shape == (2, 6)


def test_a_node_that_fails_is_named_and_the_others_are_inferred():
    nodes = [
        node("MatMul", ["x", "w"], ["y"], "wrong_sizes"),
        node("Relu", ["x"], ["r"], "relu"),
    ]
    proto = make_model(
        nodes, [value("x", [2, 3])], [value("y", [None] * 2), value("r", [2, 3])],
        {"w": normal([4, 5], 1)},
    )  # fmt: skip
    proto.graph.output[1].type.tensor_type.ClearField("shape")
    model = Model.from_proto(proto)
    result = InferShapes().run(model, PassContext())
    assert "wrong_sizes" in result.stats["warnings"][0]
    assert "y" in result.stats["unknown"]
    assert model.info("r").shape == (2, 3)


def test_a_node_at_which_symbolic_inference_fails_is_named():
    # sizes that disagree only by their symbols' values make it stop at the Concat
    nodes = [
        node("Concat", ["a", "b"], ["c"], "join", axis=1),
        node("Reshape", ["c", "to"], ["y"], "reshape"),
    ]
    inputs = [value("a", ["N", 2]), value("b", ["M", 2]), value("to", [2], np.int64)]
    model = Model.from_proto(make_model(nodes, inputs, [value("y", [None, None])]))
    result = InferShapes().run(model, PassContext())
    assert result.stats["unknown"] == ["y"]
    for warning in result.stats.get("warnings", []):
        assert "at node" in warning


def test_what_the_file_states_stays():
    proto = conv_net(batch="N")
    proto.graph.value_info.append(value("r1", ["images", 32, 8, 8]))
    model, _ = run_pass(InferShapes(), proto)
    assert model.info("r1").shape == ("images", 32, 8, 8)


@pytest.mark.parametrize("free", [-1, "?", None])
def test_the_ways_in_which_exporters_write_a_free_dimension(free):
    nodes = [
        node("MaxPool", ["x"], ["p"], "pool", kernel_shape=[2, 2]),
        node("Relu", ["p"], ["y"], "relu"),
    ]
    proto = make_model(nodes, [value("x", [free, 3, free, free])], [value("y", None)])
    proto.graph.output[0].CopyFrom(value("y", [None] * 4))
    model, result = run_pass(InferShapes(), proto, feeds={"x": normal([2, 3, 5, 4], 1)})
    batch, channels, height, width = model.info("p").shape
    assert channels == 3
    assert result.stats["unknown"] == []
    assert len({batch, height, width}) == 3, "three free dimensions are three"


def test_no_weight_is_read(monkeypatch):
    model = Model.from_proto(conv_net(64))

    def refuse(self):
        raise AssertionError("a weight was read")

    monkeypatch.setattr(Weight, "array", refuse)
    assert InferShapes().run(model, PassContext()).modified


def test_inferred_shapes_are_those_of_a_run():
    proto = conv_net(batch="N", seed=3)
    model, _ = run_pass(InferShapes(), proto)
    probe = model.proto()
    names = [t.name for n in model.nodes() for t in n.outputs if t.name != "y"]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    for name, array in zip(names, outputs_of(probe, feeds_for(proto, batch=3))[1:], strict=True):
        assert tuple(3 if d == "N" else d for d in model.info(name).shape) == array.shape
