"""Segments: run in turn they are the whole model; what is live is enough, and no more."""

import tracemalloc
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from builders import conv_net, external, feeds_for, make_model, mlp, normal, value
from hypothesis import given
from hypothesis import strategies as st
from light_models import feed, light_model
from onnx import TensorProto, helper

import onnxdrp
from onnxdrp.errors import DataError, ModelError, OptionError
from onnxdrp.model import Model
from onnxdrp.passes import InferShapes
from onnxdrp.pipeline import PassContext
from onnxdrp.segments import Segments, default_cuts

node = helper.make_node
DEMO = Path(onnxdrp.__file__).parent / "demo" / "modA.onnx"


def made_in(parts, k):
    """All that segment k makes."""
    made = []
    for name in [t.name for n in parts.model.nodes() for t in n.outputs if t.name]:
        with suppress(OptionError):  # nothing needs it
            if parts.segment_of(name) == k:
                made.append(name)
    return made


def run_all(parts, feeds, *, wanted=made_in, **options):
    """Run each segment on nothing but what is live before it; return all that was asked for."""
    live = {name: feeds[name] for name in parts.live(-1)}
    seen = {}
    for k in range(len(parts)):
        segment = parts.build(k, [*parts.live(k), *wanted(parts, k)], **options)
        assert set(segment.inputs) | set(segment.passed) <= set(live)
        values = segment.run(live)
        seen |= {name: values[name] for name in segment.computed}
        assert all(values[name] is live[name] for name in segment.passed)
        live = {name: values[name] for name in parts.live(k)}
    return seen, live


def equals_whole(model, cuts, feeds, *, keep=()):
    """Assert that every tensor of every segment is bit for bit that of the whole model."""
    parts = Segments(model, cuts, keep)
    seen, live = run_all(parts, feeds, optimize=False, threads=1)
    assert set(live) == set(keep)
    outputs = {t.name for t in model.outputs}
    assert outputs <= set(seen)
    whole = model.session(outputs=list(seen), optimize=False, threads=1)
    for name, want in zip(seen, whole.run(list(seen), dict(feeds)), strict=True):
        assert np.array_equal(want, seen[name], equal_nan=True), name
        assert np.asarray(want).dtype == np.asarray(seen[name]).dtype
    assert any(np.ptp(seen[name]) > 1e-3 for name in outputs)
    return parts


def is_minimal(parts):
    """Assert that each live tensor is read by a later segment, or named by a cut or keep."""
    for k in range(-1, len(parts) - 1):
        asked = {name for cut in parts.cuts[max(k, 0) :] for name in cut} | set(parts.keep)
        read = set()
        for later in range(k + 1, len(parts)):
            ends = [*parts.live(later), *made_in(parts, later)]
            read |= set(parts.build(later, ends, optimize=False, threads=1).inputs)
        assert set(parts.live(k)) <= read | asked


# ----------------------------------------------------------------------------------- small graphs


def residual():
    """Two blocks; the second's skip is its input."""
    weights = {f"w{i}": normal([4, 4, 1, 1], i) for i in range(4)}
    nodes = [
        node("Conv", ["x", "w0"], ["a"], "conv0"),
        node("Relu", ["a"], ["b"], "relu0"),
        node("Conv", ["b", "w1"], ["c"], "conv1"),
        node("Relu", ["c"], ["d"], "relu1"),
        node("Conv", ["d", "w2"], ["e"], "conv2"),
        node("Add", ["e", "b"], ["f"], "add"),
        node("Conv", ["f", "w3"], ["y"], "conv3"),
    ]
    return make_model(nodes, [value("x", ["N", 4, 3, 3])], [value("y", ["N", 4, 3, 3])], weights)


def test_the_skip_of_a_residual_block_is_live_while_its_block_runs():
    model = Model.from_proto(residual())
    parts = equals_whole(model, [("b",), ("d",), ("f",)], feeds_for(residual()))
    assert [parts.live(k) for k in range(-1, 4)] == [("x",), ("b",), ("b", "d"), ("f",), ()]
    assert [parts.segment_of(n) for n in "xabcdefy"] == [-1, 0, 0, 1, 1, 2, 2, 3]
    is_minimal(parts)


def test_without_cuts_there_is_one_segment():
    parts = equals_whole(Model.from_proto(residual()), [], feeds_for(residual()))
    assert len(parts) == 1
    assert parts.live(-1) == ("x",)


def test_an_output_that_is_live_is_passed_and_needs_no_session():
    parts = Segments(Model.from_proto(residual()), [("b",), ("d",), ("f",)])
    segment = parts.build(1, ["d", "b", "d"])
    assert (segment.inputs, segment.computed, segment.passed) == (("b",), ("d",), ("b",))
    only = parts.build(1, ["b"])
    assert (only.inputs, only.session) == ((), None)
    b = np.ones(3)
    assert only.run({"b": b, "more": b})["b"] is b


def test_only_what_the_outputs_need_is_computed():
    parts = Segments(Model.from_proto(residual()), [("b",), ("f",)])
    segment = parts.build(1, ["c"])
    assert segment.inputs == ("b",)
    assert segment.run({"b": np.zeros((1, 4, 2, 2), np.float32)})["c"].shape == (1, 4, 2, 2)
    assert set(segment.session.onnxdrp_weights) == set()  # small ones stay inside


def test_branches_concat_and_a_shared_tensor():
    nodes = [
        node("Relu", ["x"], ["a"], "stem"),
        node("MatMul", ["a", "w0"], ["b"], "left"),
        node("MatMul", ["a", "w1"], ["c"], "right"),
        node("Sigmoid", ["c"], ["d"], "sigmoid"),
        node("Concat", ["b", "d", "a"], ["e"], "concat", axis=1),
        node("MatMul", ["e", "w2"], ["y"], "head"),
    ]
    weights = {"w0": normal([4, 4], 0), "w1": normal([4, 4], 1), "w2": normal([12, 3], 2)}
    proto = make_model(nodes, [value("x", ["N", 4])], [value("y", ["N", 3])], weights)
    model = Model.from_proto(proto)
    assert default_cuts(model) == (("a",), ("e",))
    parts = equals_whole(model, [("a",), ("b",), ("d",)], feeds_for(proto))
    assert [parts.live(k) for k in range(3)] == [("a",), ("a", "b"), ("a", "b", "d")]
    is_minimal(parts)


def test_the_trunk_of_squeeze_and_excite_is_live_while_it_is_squeezed():
    nodes = [
        node("Relu", ["x"], ["a"], "relu"),
        node("GlobalAveragePool", ["a"], ["p"], "pool"),
        node("Conv", ["p", "w0"], ["q"], "reduce"),
        node("Conv", ["q", "w1"], ["r"], "expand"),
        node("Sigmoid", ["r"], ["s"], "gate"),
        node("Mul", ["a", "s"], ["y"], "mul"),
    ]
    weights = {"w0": normal([2, 4, 1, 1], 0), "w1": normal([4, 2, 1, 1], 1)}
    proto = make_model(nodes, [value("x", ["N", 4, 3, 3])], [value("y", ["N", 4, 3, 3])], weights)
    parts = equals_whole(Model.from_proto(proto), [("p",), ("q",)], feeds_for(proto))
    assert parts.live(0) == ("a", "p")
    assert parts.live(1) == ("a", "q")
    is_minimal(parts)


def test_each_output_of_a_split_is_live_for_itself():
    nodes = [
        node("Split", ["x"], ["a", "b", "c"], "split", axis=1, num_outputs=3),
        node("Relu", ["a"], ["d"], "relu"),
        node("Neg", ["d"], ["e"], "neg"),
        node("Add", ["e", "c"], ["y"], "add"),
    ]
    proto = make_model(nodes, [value("x", ["N", 6])], [value("y", ["N", 2])], opset=18)
    parts = equals_whole(Model.from_proto(proto), [("a",), ("d",)], feeds_for(proto))
    assert parts.live(0) == ("a", "c")
    assert parts.live(1) == ("c", "d")
    is_minimal(parts)


def test_what_nothing_needs_is_in_no_segment_unless_it_is_kept():
    nodes = [
        node("Relu", ["x"], ["a"], "relu"),
        node("Abs", ["x"], ["b"], "abs"),
        node("Sub", ["a", "b"], ["dead"], "dead"),
        node("Add", ["a", "b"], ["y"], "add"),
    ]
    proto = make_model(
        nodes, [value("x", ["N", 4]), value("unused", ["N"])], [value("y", ["N", 4])]
    )
    model = Model.from_proto(proto)
    parts = equals_whole(model, [("b",), ("a",)], feeds_for(proto))
    assert parts.live(-1) == ("x",)
    assert parts.live(1) == ("a", "b")
    with pytest.raises(OptionError, match="no output and no cut needs tensor 'dead'"):
        parts.segment_of("dead")
    kept = equals_whole(model, [("b",), ("a",)], feeds_for(proto), keep=("dead", "x"))
    assert kept.segment_of("dead") == 2
    assert kept.live(0) == ("x", "b")
    assert kept.live(1) == ("x", "a", "b")
    assert kept.live(2) == ("x", "dead")


def test_what_nothing_needs_can_be_looked_at_where_its_one_source_is_made():
    nodes = [
        node("Relu", ["x"], ["a"], "relu"),
        node("Neg", ["a"], ["aside"], "aside"),
        node("Abs", ["aside"], ["further"], "further"),
        node("Exp", ["a"], ["b"], "exp"),
        node("Neg", ["b"], ["y"], "neg"),
    ]
    proto = make_model(nodes, [value("x", ["N", 4])], [value("y", ["N", 4])])
    parts = Segments(Model.from_proto(proto), [("a",), ("b",)])
    assert [parts.segment_of(name) for name in ("a", "aside", "further", "b", "y")] == [
        *(0, 0, 0, 1, 2)
    ]
    assert [parts.live(k) for k in range(2)] == [("a",), ("b",)]
    x = np.float32([[1, -2, 3, 0.5]])
    found = parts.build(0, ["further", "a"]).run({"x": x})
    np.testing.assert_array_equal(found["further"], np.maximum(x, 0))


def test_a_graph_output_is_not_stored_once_it_is_computed():
    proto = residual()
    proto.graph.output.append(value("c", ["N", 4, 3, 3]))
    model = Model.from_proto(proto)
    cuts = [("b",), ("d",), ("f",)]
    assert equals_whole(model, cuts, feeds_for(proto)).live(2) == ("f",)
    assert equals_whole(model, cuts, feeds_for(proto), keep=("c",)).live(2) == ("c", "f")


def test_a_cut_may_name_inputs_and_what_is_there_already():
    parts = equals_whole(
        Model.from_proto(residual()),
        [("x",), ("d",), ("b", "a"), ("d", "f")],
        feeds_for(residual()),
    )
    assert [made_in(parts, k) for k in range(5)] == [[], list("abcd"), [], list("ef"), ["y"]]
    assert [parts.live(k) for k in range(4)] == [
        ("x",),
        ("a", "b", "d"),
        ("a", "b", "d"),
        ("d", "f"),
    ]
    assert parts.build(2, parts.live(2)).session is None


def test_what_bodies_capture_is_live_for_the_node_that_holds_them():
    big = normal([300, 4], 5)
    then = helper.make_graph(
        [
            node("MatMul", ["wide", "inside"], ["t"], "t"),
            node("Add", ["t", "captured"], ["then_y"], "then_add"),
        ],
        "then",
        [],
        [value("then_y", None)],
        [onnx.numpy_helper.from_array(big, "inside")],
    )
    other = helper.make_graph(
        [node("Add", ["captured", "bias"], ["else_y"], "else_add")],
        "else",
        [],
        [value("else_y", None)],
    )
    nodes = [
        node("Relu", ["x"], ["captured"], "relu"),
        node("MatMul", ["captured", "w"], ["wide"], "matmul"),
        node("ReduceSum", ["wide"], ["sum"], "sum", keepdims=0),
        node("Greater", ["sum", "zero"], ["flag"], "greater"),
        node("If", ["flag"], ["z"], "choice", then_branch=then, else_branch=other),
        node("Neg", ["z"], ["y"], "neg"),
    ]
    weights = {"w": normal([4, 300], 1), "zero": np.zeros((), np.float32)}
    weights["bias"] = normal([1, 4], 2)
    proto = make_model(nodes, [value("x", ["N", 4])], [value("y", ["N", 4])], weights)
    model = Model.from_proto(proto)
    for seed in range(4):  # both branches
        parts = equals_whole(model, [("wide",), ("flag",)], feeds_for(proto, seed))
    assert parts.live(0) == ("captured", "wide")
    assert parts.live(1) == ("captured", "wide", "flag")
    is_minimal(parts)


def test_a_bias_that_only_a_body_reads_comes_along():
    body = [
        helper.make_graph(
            [node("Add", ["a", "bias"], [f"{way}_y"], way)], way, [], [value(f"{way}_y", None)]
        )
        for way in ("then", "else")
    ]
    nodes = [
        node("Relu", ["x"], ["a"], "relu"),
        node("If", ["flag"], ["y"], "if", then_branch=body[0], else_branch=body[1]),
    ]
    proto = make_model(
        nodes,
        [value("x", ["N", 300]), value("flag", [], np.bool_)],
        [value("y", ["N", 300])],
        {"bias": normal([1, 300], 3)},
    )
    for flag in (True, False):
        feeds = feeds_for(proto) | {"flag": np.array(flag)}
        parts = equals_whole(Model.from_proto(proto), [("a",)], feeds)
    assert parts.live(0) == ("flag", "a")


def test_a_loop_reads_what_its_body_captures():
    body = helper.make_graph(
        [node("Add", ["state", "step"], ["next"], "add"), node("Identity", ["go"], ["on"], "id")],
        "body",
        [value("i", [], np.int64), value("go", [], np.bool_), value("state", None)],
        [value("on", [], np.bool_), value("next", None)],
    )
    nodes = [
        node("Neg", ["x"], ["step"], "neg"),
        node("Relu", ["x"], ["start"], "relu"),
        node("Loop", ["n", "", "start"], ["y"], "loop", body=body),
    ]
    weights = {"n": np.array(3)}
    proto = make_model(nodes, [value("x", ["N", 4])], [value("y", ["N", 4])], weights)
    parts = equals_whole(Model.from_proto(proto), [("start",), ("step",)], feeds_for(proto))
    assert parts.live(1) == ("step", "start")
    is_minimal(parts)


def test_a_shape_is_live_instead_of_what_it_measures():
    nodes = [
        node("Shape", ["x"], ["s"], "shape"),
        node("Flatten", ["x"], ["a"], "flatten"),
        node("Relu", ["a"], ["b"], "relu"),
        node("Reshape", ["b", "s"], ["y"], "reshape"),
    ]
    proto = make_model(nodes, [value("x", ["N", 2, 3])], [value("y", None)])
    parts = equals_whole(Model.from_proto(proto), [("a",), ("b",)], feeds_for(proto))
    assert [parts.live(k) for k in range(2)] == [("s", "a"), ("s", "b")]
    is_minimal(parts)


def test_a_sequence_can_be_live():
    nodes = [
        node("SplitToSequence", ["x"], ["s"], "split", axis=1),
        node("SequenceAt", ["s", "one"], ["y"], "at"),
    ]
    weights = {"one": np.array(1)}
    proto = make_model(nodes, [value("x", ["N", 3])], [value("y", None)], weights)
    parts = Segments(Model.from_proto(proto), [("s",)])
    x = feeds_for(proto)
    live = parts.build(0, ["s"]).run(x)
    assert np.array_equal(parts.build(1, ["y"]).run(live)["y"], x["x"][:, 1:2])


def test_random_values_are_live_and_drawn_once():
    nodes = [
        node("RandomNormal", [], ["noise"], "random", shape=[2, 4]),
        node("Add", ["x", "noise"], ["a"], "add"),
        node("Sub", ["a", "noise"], ["y"], "sub"),
    ]
    proto = make_model(nodes, [value("x", [2, 4])], [value("y", [2, 4])])
    parts = Segments(Model.from_proto(proto), [("a",)])
    assert parts.live(0) == ("noise", "a")
    x = feeds_for(proto)
    seen, _ = run_all(parts, x)
    assert np.abs(seen["y"] - x["x"]).max() < 1e-6 < np.abs(seen["noise"]).max()


# ---------------------------------------------------------------------------------------- weights


def test_weights_that_are_replaced_between_segments_are_seen():
    proto = mlp(8, 40, 40, 4)
    model = Model.from_proto(proto)
    cuts = default_cuts(model)
    assert cuts == (("x",), ("r0",), ("r1",))
    parts, feeds = Segments(model, cuts), feeds_for(proto)
    live = parts.span(0, 1, parts.live(1)).run(feeds)
    before = parts.build(2, ["r1"]).run(live)["r1"]
    new = model.clone()
    for name, shape in {"fc1.weight": [40, 40], "fc1.bias": [40], "fc2.bias": [4]}.items():
        for each in (model, new):
            each.set_weight(name, normal(shape, 77))
    model.set_weight("fc0.weight", np.zeros((40, 8), np.float32))  # behind the cut: too late
    live = parts.build(2, ["r1"], optimize=False).run(live)
    assert np.abs(live["r1"] - before).max() > 0.1
    got = parts.build(3, ["y"], optimize=False).run(live)["y"]
    assert np.array_equal(got, new.session(optimize=False).run(["y"], feeds)[0])


def test_values_that_are_put_in_the_graph_itself_are_seen_too():
    proto = mlp(8, 40, 4)
    model = Model.from_proto(proto)
    parts, feeds = Segments(model, [("r0",)]), feeds_for(proto)
    live = parts.build(0, ["r0"]).run(feeds)
    before = parts.build(1, ["y"]).run(live)["y"]
    model.tensor("fc1.weight").values = normal([4, 40], 9)
    got = parts.build(1, ["y"], optimize=False).run(live)["y"]
    assert np.abs(got - before).max() > 0.1
    assert np.array_equal(got, model.session(optimize=False).run(["y"], feeds)[0])


def quantized_twice():
    """One int8 weight behind a DequantizeLinear, read by two layers."""
    nodes = [
        node("DequantizeLinear", ["q", "scale"], ["w"], "dequantize"),
        node("MatMul", ["x", "w"], ["a"], "first"),
        node("Relu", ["a"], ["b"], "relu"),
        node("MatMul", ["b", "w"], ["y"], "second"),
    ]
    q = np.random.default_rng(0).integers(-127, 127, (40, 40), np.int8)
    weights = {"q": q, "scale": np.array(0.01, np.float32)}
    return make_model(nodes, [value("x", ["N", 40])], [value("y", ["N", 40])], weights)


def test_what_is_made_from_weights_is_made_anew_where_it_is_read():
    proto = quantized_twice()
    model = Model.from_proto(proto)
    feeds, cuts = feeds_for(proto), default_cuts(model)
    assert cuts == (("x",), ("b",))
    parts = equals_whole(model, cuts, feeds)
    assert [parts.live(k) for k in range(-1, 2)] == [("x",), ("x",), ("b",)]
    live = parts.span(0, 1, ["b"]).run(feeds)
    before = parts.build(2, ["y"], optimize=False).run(live)["y"]
    model.set_weight("scale", np.array(0.02, np.float32))
    after = parts.build(2, ["y", "w"], optimize=False).run(live)
    assert np.allclose(after["y"], 2 * before, rtol=1e-5)
    assert np.array_equal(after["w"], model.weight("q") * np.float32(0.02))


def test_weights_are_neither_copied_nor_serialized(tmp_path):
    sizes = [1000] * 9
    path = external(mlp(*sizes), tmp_path / "big.onnx")  # 8 weights of 4 MB
    model = Model.load(path)
    parts = Segments(model, default_cuts(model))
    model.set_weight("fc3.weight", normal([1000, 1000], 99))
    tracemalloc.start()
    built = [parts.build(k, parts.live(k) or ["y"], threads=1) for k in range(len(parts))]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000
    held = [w for s in built if s.session for w in s.session.onnxdrp_weights.items()]
    assert sorted(name for name, _ in held) == sorted(n for n in model.weights())
    for name, memory in held:
        assert memory.data_ptr() == model.weight(name).ctypes.data


def test_types_that_numpy_lacks_and_sparse_weights_come_along():
    half = helper.make_tensor("h", TensorProto.BFLOAT16, [4], [1.5, -2.0, 0.25, 3.0])
    dense = onnx.numpy_helper.from_array(np.array([2.0, 5.0], np.float32), "sp")
    places = onnx.numpy_helper.from_array(np.array([1, 2]), "sp_at")
    nodes = [
        node("Relu", ["x"], ["a"], "relu"),
        node("Cast", ["h"], ["c"], "cast", to=TensorProto.FLOAT),
        node("Mul", ["a", "c"], ["b"], "mul"),
        node("Add", ["b", "sp"], ["y"], "add"),
    ]
    proto = make_model(nodes, [value("x", ["N", 4])], [value("y", ["N", 4])], [half])
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(dense, places, [4]))
    x = {"x": np.array([[1, 2, 3, 4], [-1, 5, 6, 7]], np.float32)}
    parts = equals_whole(Model.from_proto(proto), [("a",), ("b",)], x)
    seen, _ = run_all(parts, x)
    assert np.array_equal(seen["y"], [[1.5, -2, 5.75, 12], [0, -8, 6.5, 21]])


# ---------------------------------------------------------------------------------- starting again


def test_a_span_does_what_its_segments_do_in_turn():
    model = Model.from_proto(conv_net())
    parts, feeds = Segments(model, default_cuts(model)), feeds_for(conv_net())
    seen, _ = run_all(parts, feeds, optimize=False)
    for k in range(len(parts)):
        span = parts.span(0, k, [*parts.live(k), *made_in(parts, k)], optimize=False)
        assert set(span.inputs) <= {"x"}
        for name, got in span.run(feeds).items():
            assert np.array_equal(got, seen.get(name, feeds.get(name)))
    rest = parts.span(2, 3, ["y"], optimize=False)
    assert rest.inputs == parts.live(1) == ("r1",)
    assert np.array_equal(rest.run(seen)["y"], seen["y"])


# ------------------------------------------------------------------------------------------- types


def test_a_batch_that_the_file_states_inside_does_not_bind():
    proto = conv_net()
    proto.graph.value_info.append(value("r1", [1, 32, 8, 8]))
    model = Model.from_proto(proto)
    equals_whole(model, [("r1",), ("r2",)], feeds_for(proto, batch=3))


def test_types_that_only_more_inference_finds_are_asked_for():
    nodes = [
        node("Gelu", ["x"], ["a"], "gelu", domain="com.microsoft"),
        node("Relu", ["a"], ["y"], "relu"),
    ]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    proto = make_model(nodes, [value("x", [2, 4])], [value("y", [2, 4])], opset_imports=opsets)
    model = Model.from_proto(proto)
    parts = Segments(model, [("a",)])
    with pytest.raises(ModelError, match="type of tensor 'a' cannot be inferred; run InferShapes"):
        parts.build(1, ["y"])
    InferShapes().run(model, PassContext())
    equals_whole(model, [("a",)], feeds_for(proto))


# ------------------------------------------------------------------------------------------ errors


def refused(cuts, keep=()):
    with pytest.raises(OptionError) as error:
        Segments(Model.from_proto(quantized_twice()), cuts, keep)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_cuts_that_cannot_be_are_refused():
    nearest = "no tensor is called 'dequantise'"
    assert refused([("dequantise",)]).startswith(nearest)
    assert "near: 'scale'" in refused([("b",), ("scalee",)])
    assert refused([("q",)]) == "tensor 'q' is stored, not computed; name a computed one"
    assert "'w' is made from stored tensors alone" in refused([("w",)])
    assert "cut 1 names no tensor" in refused([("b",), ()])
    assert "cut 0 names no tensor; give a tuple" in refused(["b"])
    assert "'q' is stored" in refused([], ["q"])


def test_outputs_that_a_segment_does_not_reach_are_refused():
    parts = Segments(Model.from_proto(residual()), [("b",), ("d",), ("f",)])
    with pytest.raises(OptionError, match="'e' is computed later, in segment 2"):
        parts.build(1, ["e"])
    with pytest.raises(OptionError, match="'a' is computed in segment 0 and no longer live at se"):
        parts.build(1, ["a"])
    with pytest.raises(OptionError, match="'x' is a graph input and no longer live at segment 2"):
        parts.build(2, ["x"])
    with pytest.raises(OptionError, match="no tensor is called 'bb'"):
        parts.build(1, ["bb"])
    with pytest.raises(OptionError, match="'w1' is stored"):
        parts.build(1, ["w1"])
    with pytest.raises(OptionError, match="no segment 4 here; give one of 0 to 3"):
        parts.build(4, ["y"])
    with pytest.raises(OptionError, match="no segment 1 here; give one of 2 to 3"):
        parts.span(2, 1, ["y"])
    with pytest.raises(OptionError, match="no segment -2 here"):
        parts.live(-2)


def test_data_that_is_missing_or_does_not_fit_is_named():
    segment = Segments(Model.from_proto(residual()), [("b",), ("d",)]).build(1, ["d"])
    with pytest.raises(DataError, match="tensor 'b' is not given"):
        segment.run({"x": np.zeros(1)})
    with pytest.raises(DataError, match="onnxruntime fails on the data"):
        segment.run({"b": np.zeros((1, 5, 3, 3), np.float32)})


def test_a_graph_that_was_replaced_must_be_cut_again():
    model = Model.from_proto(residual())
    parts = Segments(model, [("b",)])
    model.rebuild(model.skeleton())
    with pytest.raises(ModelError, match="cut it again"):
        parts.build(0, ["b"])


# ------------------------------------------------------------------------------------ default cuts


def test_each_layer_with_a_stored_weight_gives_its_input():
    nodes = [
        node("ConvTranspose", ["x", "w0"], ["a"], "up"),
        node("Conv", ["a", "w1"], ["b"], "left"),
        node("Conv", ["a", "w1"], ["c"], "right"),
        node("MatMul", ["b", "c"], ["d"], "product"),
        node("MatMul", ["m", "d"], ["e"], "stored_first"),
        node("Transpose", ["m"], ["n"], "turn"),
        node("MatMul", ["e", "n"], ["f"], "turned"),
        node("Gemm", ["m", "n"], ["g"], "constant"),
        node("Add", ["f", "g"], ["y"], "add"),
    ]
    weights = {
        "w0": normal([3, 3, 1, 1], 0),
        "w1": normal([3, 3, 1, 1], 1),
        "m": normal([4, 4], 2),
    }
    proto = make_model(nodes[::-1], [value("x", [1, 3, 4, 4])], [value("y", [1, 3, 4, 4])], weights)
    model = Model.from_proto(proto)
    assert default_cuts(model) == (("x",), ("a",), ("d",), ("e",))
    is_minimal(equals_whole(model, default_cuts(model), feeds_for(proto)))


# ------------------------------------------------------------------------------------- real models


def real_feeds(model):
    rng = np.random.default_rng(0)
    return {
        i.name: rng.standard_normal([d if isinstance(d, int) else 2 for d in i.shape]).astype(
            i.dtype
        )
        for i in model.inputs
    }


def holds_on(model, feeds):
    """Bit for bit without optimizations, within 1e-5 with them; live sets without a surplus.

    Like is compared with like: onnxruntime's optimizations alone move yolox_nano by 4e-5.
    """
    cuts = default_cuts(model)
    assert len(cuts) > 5
    parts = equals_whole(model, cuts, feeds)
    is_minimal(Segments(model, cuts[::7]))
    names = [t.name for t in model.outputs]
    seen, _ = run_all(parts, feeds, wanted=lambda p, k: [n for n in names if p.segment_of(n) == k])
    for name, want in zip(names, model.session().run(names, feeds), strict=True):
        assert np.abs(seen[name] - want).max() <= 1e-5 * np.abs(want).max()


@pytest.mark.parametrize("name", ["modA", "modB"])
def test_the_models_of_this_project_in_segments(name, request):
    model = Model.load(request.getfixturevalue(name))
    holds_on(model, real_feeds(model))


def test_the_model_of_the_demo_in_segments():
    model = Model.load(DEMO)
    holds_on(model, real_feeds(model))


@pytest.mark.parametrize("name", ["cifar10_cnn_nhwc", "efficientnet_lite0", "yolox_nano_416"])
def test_the_shared_models_in_segments(name, shared):
    model = Model.load(shared / "models" / f"{name}.onnx")
    holds_on(model, real_feeds(model))


@pytest.mark.parametrize("name", ["shufflenet", "squeezenet"])
def test_graphs_of_the_onnx_package_in_segments(name):
    proto = light_model(name)
    holds_on(Model.from_proto(proto), feed(proto, np.random.default_rng(0)))


# ------------------------------------------------------------------------------------- random DAGs


@st.composite
def dags(draw):
    """A graph of [2, 4] tensors and any cuts of it, ancestors first or not."""
    nodes, names = [], ["x0", "x1"]
    weights = {"w": normal([4, 4], 1), "v": normal([4, 4], 2), "row": normal([1, 4], 3)}
    for i in range(draw(st.integers(2, 12))):
        op = draw(st.sampled_from(["Tanh", "Add", "MatMul", "Max", "If", "Split", "Shape"]))
        a, b = draw(st.sampled_from(names)), draw(st.sampled_from(names))
        y = f"t{i}"
        if op == "Tanh":
            nodes.append(node(op, [a], [y], f"n{i}"))
        elif op in ("Add", "Max"):
            nodes.append(node(op, [a, b], [y], f"n{i}"))
        elif op == "MatMul":
            weight = draw(st.sampled_from(["w", "v"]))
            nodes += [
                node("Tanh", [weight], [f"w{i}"], f"nw{i}"),
                node(op, [a, f"w{i}"], [y], f"n{i}"),
            ]
        elif op == "If":
            branches = {
                f"{way}_branch": helper.make_graph(
                    [node("Add", [c, "row"], [f"{y}_{way}"], f"n{i}_{way}")],
                    way,
                    [],
                    [value(f"{y}_{way}", [2, 4])],
                )
                for way, c in (("then", a), ("else", b))
            }
            nodes.append(node("If", ["flag"], [y], f"n{i}", **branches))
        elif op == "Split":
            nodes += [
                node("Concat", [a, b], [f"c{i}"], f"nc{i}", axis=1),
                node("Split", [f"c{i}"], [y, f"s{i}"], f"n{i}", axis=1, num_outputs=2),
            ]
            names.append(f"s{i}")
        else:
            nodes += [
                node("Shape", [a], [f"h{i}"], f"nh{i}"),
                node("Reshape", [b, f"h{i}"], [y], f"n{i}"),
            ]
        names.append(y)
    made = names[2:]
    ends = draw(st.lists(st.sampled_from(made), min_size=1, max_size=3, unique=True))
    inputs = [value("x0", [2, 4]), value("x1", [2, 4]), value("flag", [], np.bool_)]
    proto = make_model(nodes, inputs, [value(e, [2, 4]) for e in ends], weights, opset=18)
    some = st.lists(st.sampled_from(names), min_size=1, max_size=3)
    return (
        proto,
        draw(st.lists(some, max_size=5)),
        draw(st.lists(st.sampled_from(names), max_size=2)),
    )


@given(dags(), st.booleans())
def test_any_cuts_of_any_graph_compute_what_the_whole_does(drawn, flag):
    proto, cuts, keep = drawn
    model = Model.from_proto(proto)
    feeds = feeds_for(proto) | {"flag": np.array(flag)}
    parts = equals_whole(model, cuts, feeds, keep=keep)
    is_minimal(parts)
    assert all(set(cut) <= set(parts.live(k)) for k, cut in enumerate(parts.cuts))
