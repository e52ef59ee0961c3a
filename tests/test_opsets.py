"""Every way down of every operator: valid in the older opset, with equal results; or a reason."""

import functools
import re

import numpy as np
import onnx
import pytest
from builders import feeds_for, make_model, outputs_of, value
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.backend.test.case.node import collect_testcases

from onnxdrp.opset_steps import STEPS
from onnxdrp.opsets import NEWEST, OLDEST, lower_opset
from onnxdrp.passes.inference import onnx_inference

I64 = np.int64
BOX = [2, 4, 5, 6]


def lower(proto, opset):
    known = onnx.ModelProto.FromString(proto.SerializeToString())
    return lower_opset(proto, onnx_inference(known, []), opset)


def model(op, shape, weights=(), *, opset, outputs=1, dtype=np.float32, out=None, **attributes):
    """One node on `x`; its stored inputs are named as in `weights`, an input left out is None."""
    weights = dict(weights)
    names = ["x", *("" if array is None else name for name, array in weights.items())]
    stored = {name: array for name, array in weights.items() if array is not None}
    results = [f"y{i}" if i else "y" for i in range(outputs)]
    node = helper.make_node(op, names, results, "it", **attributes)
    shape_out = shape if op == "GroupNormalization" else None  # which inference does not know
    values = [value(name, shape_out, out or dtype) for name in results]
    if op == "TopK":
        values[1].type.tensor_type.elem_type = TensorProto.INT64
    proto = make_model([node], [value("x", shape, dtype)], values, stored, opset=opset)
    return onnx.shape_inference.infer_shapes(proto)  # of the outputs


def prove(proto, opset, tolerance=1e-6):
    """Lower; assert validity, equal results that vary, and names; return the operators."""
    done = lower(proto, opset)
    assert not done.refused
    (standard,) = done.model.opset_import
    assert standard.version == opset
    onnx.checker.check_model(done.model, full_check=True)
    feeds = feeds_for(proto)
    for want, got in zip(outputs_of(proto, feeds), outputs_of(done.model, feeds), strict=True):
        assert (want.dtype, want.shape) == (got.dtype, got.shape)
        want, got = want.astype(np.float64), got.astype(np.float64)
        assert np.ptp(want) > 1e-3
        assert np.abs(want - got).max() <= tolerance * np.abs(want).max()
    assert "it" in {n.name for n in done.model.graph.node}
    assert len({n.name for n in done.model.graph.node}) == len(done.model.graph.node)
    return [n.op_type for n in done.model.graph.node]


def ints(*values):
    return np.array(values, I64)


def floats(*values):
    return np.array(values, np.float32)


SAME = {
    "relu": (lambda: model("Relu", BOX, opset=17), 10),
    "clip": (lambda: model("Clip", BOX, {"a": floats(-0.5)[0], "b": floats(1)[0]}, opset=17), 10),
    "clip above": (lambda: model("Clip", BOX, {"a": None, "b": floats(1)[0]}, opset=13), 10),
    "squeeze": (lambda: model("Squeeze", [2, 1, 3, 1], {"a": ints(-1, 1)}, opset=17), 10),
    "squeeze all": (lambda: model("Squeeze", [2, 1, 3, 1], opset=17), 10),
    "unsqueeze": (lambda: model("Unsqueeze", [2, 3], {"a": ints(-1, 0)}, opset=17), 10),
    "reduce": (lambda: model("ReduceMean", BOX, {"a": ints(-1, 1)}, opset=18, keepdims=0), 10),
    "split": (lambda: model("Split", BOX, {"s": ints(1, 3)}, opset=18, axis=1, outputs=2), 10),
    "split uneven": (lambda: model("Split", BOX, opset=18, axis=-2, num_outputs=2, outputs=2), 10),
    "split even": (lambda: model("Split", BOX, opset=18, axis=1, num_outputs=2, outputs=2), 10),
    "pad": (
        lambda: model("Pad", BOX, {"p": ints(0, 0, 1, 2, 0, 0, 3, 4), "v": floats(2)[0]}, opset=17),
        10,
    ),
    "pad axes": (
        lambda: model("Pad", BOX, {"p": ints(1, 2, 3, 4), "v": None, "a": ints(-1, 2)}, opset=18,
                      mode="edge"),
        10,
    ),
    "top": (lambda: model("TopK", BOX, {"k": ints(2)}, opset=17, axis=-1, outputs=2), 10),
    "dropout": (lambda: model("Dropout", BOX, {"r": floats(0.3)[0]}, opset=13), 10),
    "reshape": (lambda: model("Reshape", BOX, {"s": ints(2, -1)}, opset=14, allowzero=1), 10),
    "average": (
        lambda: model("AveragePool", BOX, opset=22, kernel_shape=[2, 3], strides=[2, 1],
                      ceil_mode=1, dilations=[1, 1]),
        10,
    ),
    "max": (
        lambda: model("MaxPool", BOX, opset=22, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1,
                      dilations=[1, 1]),
        10,
    ),
    "resize": (
        lambda: model("Resize", BOX, {"r": None, "s": floats(1, 1, 2, 1.5)}, opset=19,
                      mode="linear"),
        11,
    ),
    "resize sizes of axes": (
        lambda: model("Resize", BOX, {"r": None, "s": None, "n": ints(12, 10)}, opset=18,
                      axes=[-1, 2], mode="cubic"),
        11,
    ),
    "resize factors of axes": (
        lambda: model("Resize", BOX, {"r": None, "s": floats(2, 3)}, opset=18, axes=[3, 2],
                      mode="nearest"),
        11,
    ),
    "resize asymmetric": (
        lambda: model("Resize", BOX, {"r": None, "s": None, "n": ints(2, 4, 10, 12)}, opset=13,
                      coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
        10,
    ),
    "grid": (
        lambda: model("GridSample", [1, 2, 4, 4],
                      {"g": np.linspace(-1, 1, 18, dtype=np.float32).reshape(1, 3, 3, 2)},
                      opset=20, mode="cubic"),
        16,
    ),
    "gemm": (lambda: model("Gemm", [2, 3], {"b": np.eye(3, 4, dtype=np.float32)}, opset=13), 10),
    "log": (lambda: model("LogSoftmax", BOX, opset=13, axis=2), 10),
    "softmax default": (lambda: model("Softmax", BOX, opset=13), 10),
    "scatter": (
        lambda: model("ScatterElements", [3, 4], {"i": ints(0, 2, 1, 0).reshape(1, 4),
                      "u": floats(5, 6, 7, 8).reshape(1, 4)}, opset=18, reduction="none"),
        11,
    ),
    "hard swish": (lambda: model("HardSwish", BOX, opset=14), 10),
    "mish": (lambda: model("Mish", BOX, opset=18), 10),
    "gelu": (lambda: model("Gelu", BOX, opset=20), 10),
    "gelu tanh": (lambda: model("Gelu", BOX, opset=20, approximate="tanh"), 10),
    "celu": (lambda: model("Celu", BOX, opset=12, alpha=0.7), 10),
    "swish": (lambda: model("Swish", BOX, opset=24, alpha=1.5), 10),
    "layer norm": (
        lambda: model("LayerNormalization", BOX, {"s": np.linspace(1, 2, 30, dtype=np.float32)
                      .reshape(5, 6), "b": np.ones((5, 6), np.float32)}, opset=17, axis=-2),
        10,
    ),
    "layer norm without bias": (
        lambda: model("LayerNormalization", BOX, {"s": np.linspace(1, 2, 6, dtype=np.float32)},
                      opset=17, epsilon=0.1),
        10,
    ),
    "root mean square": (
        lambda: model("RMSNormalization", BOX, {"s": np.linspace(1, 2, 6, dtype=np.float32)},
                      opset=23),
        10,
    ),
    "group norm": (
        lambda: model("GroupNormalization", BOX, {"s": floats(1, 2, 3, 4), "b": floats(4, 3, 2, 1)},
                      opset=21, num_groups=2),
        10,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_a_node_is_lowered_with_equal_results_to_every_opset_in_between(name):
    make, lowest = SAME[name]
    proto = make()
    for opset in {lowest, 11, 12, 13, 16} | {proto.opset_import[0].version - 1}:
        if lowest <= opset < proto.opset_import[0].version:
            prove(proto, opset)


@given(st.data())
def test_softmax_means_the_same_along_any_axis(data):
    shape = data.draw(st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=4))
    shape[data.draw(st.integers(0, len(shape) - 1))] = 3
    axis = data.draw(st.sampled_from([i for i, d in enumerate(shape) if d == 3]))
    axis -= data.draw(st.sampled_from([0, len(shape)]))
    op = data.draw(st.sampled_from(["Softmax", "LogSoftmax", "Hardmax"]))
    prove(model(op, shape, opset=17, axis=axis), data.draw(st.integers(10, 12)))


@given(st.data())
def test_pools_are_lowered_only_where_no_version_sees_another_window(data):
    op = data.draw(st.sampled_from(["AveragePool", "MaxPool"]))
    kernel, stride = data.draw(st.integers(2, 4)), data.draw(st.integers(1, 4))
    pads = data.draw(st.lists(st.integers(0, 1), min_size=2, max_size=2))
    more = {"count_include_pad": data.draw(st.booleans())} if op == "AveragePool" else {}
    size = data.draw(st.integers(4, 9))
    proto = model(op, [2, 2, size], opset=22, kernel_shape=[kernel], strides=[stride], pads=pads,
                  ceil_mode=1, **more)  # fmt: skip
    if not lower(proto, 12).refused:
        prove(proto, 12)


def test_softmax_turns_only_where_it_must():
    assert prove(model("Softmax", [2, 3, 1, 1], opset=13, axis=1), 12) == ["Softmax"]
    assert prove(model("Softmax", BOX, opset=13, axis=1), 12) == [
        "Transpose",
        "Softmax",
        "Transpose",
    ]


def test_variance_keeps_its_digits_far_from_zero():
    proto = model("LayerNormalization", [2, 64], {"s": np.ones(64, np.float32)}, opset=17)
    x = {"x": (np.random.default_rng(0).standard_normal((2, 64)) + 3000).astype(np.float32)}
    (want,), (got,) = outputs_of(proto, x), outputs_of(lower(proto, 13).model, x)
    exact = x["x"].astype(np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / exact.std(-1, keepdims=True)
    assert np.abs(got - exact).max() < 1e-3
    assert np.abs(got - want).max() < 1e-3


WEIGHT = np.linspace(1, 2, 6, dtype=np.float32)
REFUSED = {
    "newer": (lambda: model("Trilu", [3, 3], opset=14), 13, "Trilu: the operator is new"),
    "type": (
        lambda: model("Add", [2], {"b": np.ones(2, np.int16)}, opset=14, dtype=np.int16), 13,
        r"Add of opset 13 takes no tensor\(int16\)",
    ),
    "mixed types": (
        lambda: model("Pow", [2], {"b": np.ones(2)}, opset=12), 11,
        r"does not mix tensor\(double\) with tensor\(float\)",
    ),
    "attribute": (
        lambda: model("GatherND", [2, 3], {"i": ints(0, 1).reshape(2, 1)}, opset=13, batch_dims=1),
        11, "batch_dims=1 is new in opset 12",
    ),
    "value": (
        lambda: model("Pad", [4], {"p": ints(1, 1)}, opset=19, mode="wrap"), 13,
        "mode='wrap' is new in opset 19",
    ),
    "default": (
        lambda: model("RoiAlign", [1, 1, 4, 4],
                      {"r": floats(0, 0, 2, 2).reshape(1, 4), "b": ints(0)}, opset=16),
        15, "coordinate_transformation_mode='half_pixel' is new in opset 16",
    ),
    "zero": (
        lambda: model("Reshape", [0, 3], {"s": ints(3, 0)}, opset=14, allowzero=1), 13, "allowzero",
    ),
    "antialias": (
        lambda: model("Resize", BOX, {"r": None, "s": floats(1, 1, .5, .5)}, opset=18,
                      mode="linear", antialias=1), 13, "antialias=1 is new in opset 18",
    ),
    "half pixel": (
        lambda: model("Resize", BOX, {"r": None, "s": floats(1, 1, 2, 2)}, opset=13), 10,
        "nearest with half_pixel is new in opset 11",
    ),
    "no axes": (
        lambda: model("ReduceMax", BOX, opset=18, noop_with_empty_axes=1), 13, "it names no axes",
    ),
    "by channel": (
        lambda: model("QuantizeLinear", [2, 6], {"s": WEIGHT, "z": np.zeros(6, np.int8)}, opset=13,
                      out=np.int8), 12, "scales by channel are new in opset 13",
    ),
    "training": (
        lambda: model("Dropout", [9], {"r": floats(.5)[0], "t": np.array(True)}, opset=13), 11,
        "it is in training mode",
    ),
    "half": (
        lambda: model("HardSwish", [9], opset=14, dtype=np.float16), 13,
        "written out for float32, not float16",
    ),
    "free": (
        lambda: model("Split", [2, "n"], opset=18, axis=1, num_outputs=2, outputs=2), 13,
        "its axis has no fixed size",
    ),
    "pool": (
        lambda: model("AveragePool", [1, 1, 5], opset=22, kernel_shape=[2], strides=[2],
                      ceil_mode=1, count_include_pad=1), 13, "count_include_pad",
    ),
    "volume": (
        lambda: model("GridSample", [1, 1, 2, 2, 2], {"g": np.zeros((1, 2, 2, 2, 3), np.float32)},
                      opset=20), 16, "inputs other than images",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_older_form_is_refused_with_the_reason(name):
    make, opset, why = REFUSED[name]
    proto = make()
    done = lower(proto, opset)
    assert list(done.refused) == ["it"]
    assert done.refused["it"].startswith(proto.graph.node[0].op_type + ": ")
    assert re.search(why, done.refused["it"]), done.refused


def test_axes_that_are_computed_are_refused():
    nodes = [helper.make_node("Squeeze", ["x", "a"], ["y"], "it")]
    inputs = [value("x", [1, 3]), value("a", [1], I64)]
    done = lower(make_model(nodes, inputs, [value("y", None)], opset=13), 12)
    assert done.refused == {"it": "Squeeze: it computes its axes; the older form takes stored ones"}


def test_shape_of_a_part_becomes_a_slice():
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], "it", start=-2),
        helper.make_node("Cast", ["s"], ["y"], "cast", to=TensorProto.FLOAT),
    ]
    proto = make_model(nodes, [value("x", ["a", "b", 3])], [value("y", [2])], opset=17)
    assert prove(proto, 10) == ["Shape", "Slice", "Cast"]


def test_or_equal_and_cast_like():
    nodes = [
        helper.make_node("GreaterOrEqual", ["x", "b"], ["g"], "it"),
        helper.make_node("CastLike", ["g", "x"], ["y"], "cast"),
    ]
    weights = {"b": floats(0, 1, np.nan, 0)}
    proto = make_model(nodes, [value("x", [5, 4])], [value("y", [5, 4])], weights, opset=16)
    assert prove(proto, 11) == ["Greater", "Equal", "Or", "Cast"]


def test_bodies_of_nodes_are_lowered_too():
    body = [
        helper.make_graph(nodes, name, [], [value(f"{name}_y", [2, 3])])
        for name, nodes in (
            ("a", [helper.make_node("HardSwish", ["x"], ["a_y"], "in_a")]),
            ("b", [helper.make_node("Softmax", ["x"], ["b_y"], "in_b", axis=0)]),
        )
    ]
    nodes = [helper.make_node("If", ["c"], ["y"], "it", then_branch=body[0], else_branch=body[1])]
    inputs = [value("x", [2, 3]), value("c", [], bool)]
    proto = make_model(nodes, inputs, [value("y", [2, 3])], opset=14)
    done = lower(proto, 12)
    assert done.rewritten == {
        "in_a": "HardSigmoid, Mul",
        "in_b": "Transpose, Softmax, Transpose",
    }
    onnx.checker.check_model(done.model, full_check=True)
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    for c in (True, False):
        feeds = {"x": x, "c": np.array(c)}
        (want,), (got,) = outputs_of(proto, feeds), outputs_of(done.model, feeds)
        assert np.ptp(want) > 1e-3
        np.testing.assert_allclose(want, got, rtol=1e-6, atol=1e-7)


def test_tensors_of_unknown_type_are_refused():
    nodes = [
        helper.make_node("Odd", ["x"], ["s"], "odd", domain="com.example"),
        helper.make_node("Add", ["s", "s"], ["y"], "it"),
    ]
    opsets = [helper.make_opsetid("", 14), helper.make_opsetid("com.example", 1)]
    proto = make_model(nodes, [value("x", [2])], [value("y", [2])], opset_imports=opsets)
    done = lower(proto, 13)
    assert done.refused == {"it": "Add: the type of its tensor 's' is unknown; run infer-shapes"}


def test_the_graph_that_is_given_is_left_as_it_is():
    proto = SAME["layer norm"][0]()
    before = proto.SerializeToString()
    lower(proto, 10)
    assert proto.SerializeToString() == before


def test_each_step_belongs_to_a_version_of_its_operator():
    for op, since in STEPS:
        assert OLDEST < since <= NEWEST
        assert onnx.defs.get_schema(op, since, "").since_version == since


def test_all_changes_that_this_onnx_knows_are_known():
    assert onnx.defs.onnx_opset_version() <= NEWEST, "read the change log, and add its steps"


@functools.cache
def _cases():
    """onnx's own test of every operator, as [(name, model with small integers stored, feeds)]."""
    cases = []
    for case in collect_testcases(None):
        arrays = case.data_sets[0][0] if case.model is not None and case.data_sets else []
        standard = all(o.domain == "" for o in case.model.opset_import)
        random = "bernoulli" in case.name or "dropout" in case.name
        if not standard or random or not all(isinstance(a, np.ndarray) for a in arrays):
            continue
        proto, feeds = onnx.ModelProto(), {}
        proto.CopyFrom(case.model)
        proto.ir_version = min(proto.ir_version, 10)
        proto.graph.ClearField("input")
        for i, (info, array) in enumerate(zip(case.model.graph.input, arrays, strict=True)):
            if i and array.size < 16 and (array.dtype.kind in "ib" or array.ndim < 2):
                proto.graph.initializer.append(numpy_helper.from_array(array, info.name))
            else:
                proto.graph.input.append(info)
                feeds[info.name] = array
        cases.append((case.name, proto, feeds))
    return cases


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("opset", "fewest"), [(21, 300), (13, 400), (11, 600)])
def test_what_onnx_tests_of_every_operator_is_equal_in_both_opsets(opset, fewest):
    compared = 0
    with np.errstate(all="ignore"):
        for name, proto, feeds in _cases():
            if proto.opset_import[0].version <= opset:
                continue
            done = lower(proto, opset)
            if done.refused:
                continue
            onnx.checker.check_model(done.model, full_check=True)
            try:
                before = outputs_of(proto, feeds)
            except Exception:
                continue
            for want, got in zip(before, outputs_of(done.model, feeds), strict=True):
                if want.dtype.kind != "O":
                    assert (want.dtype, want.shape) == (got.dtype, got.shape), name
                    rtol = 1e-2 if want.dtype.itemsize < 4 else 2e-6
                    np.testing.assert_allclose(
                        want.astype(float), got.astype(float), rtol, rtol, err_msg=name
                    )
            compared += 1
    assert compared >= fewest
