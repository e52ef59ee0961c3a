"""The comparison itself: what it lets pass, what it must not."""

import numpy as np
import pytest
from builders import conv_net, make_model, normal, value
from hypothesis import given
from hypothesis import strategies as st
from running import node

from onnxdrp.equivalence import Scores, compare_models, example_feeds, same_results
from onnxdrp.errors import ModelError
from onnxdrp.model import Model

RNG = np.random.default_rng


def floats(*shape, seed=0):
    return RNG(seed).standard_normal(shape).astype(np.float32)


def differs(a, b, **more):
    found = same_results({"y": a}, {"y": b}, **more)
    assert all(line.startswith("output 'y': ") for line in found)
    return bool(found)


@given(st.floats(1e-6, 1e6), st.integers(0, 99))
def test_the_tolerance_is_of_the_largest_value(size, at):
    a = floats(1, 100) * np.float32(size)
    largest = np.abs(a).max()
    for share, wrong in ((0.9e-4, False), (1.1e-4, True)):
        b = a.astype(np.float64)
        b[0, at] += share * largest
        assert differs(a.astype(np.float64), b) == wrong


def test_twice_the_result_is_wrong():
    assert differs(floats(8, 10), 2 * floats(8, 10))


@pytest.mark.parametrize("axis", [1, 2])
def test_parts_of_another_scale_are_judged_apart(axis):
    # 100 boxes: 4 coordinates of some hundred pixels, then 20 scores of at most 1
    a = np.concatenate([320 * (1 + floats(2, 100, 4)), 0.5 + 0.1 * floats(2, 100, 20)], 2)
    b = a.copy()
    b[1, 5, 7] += 0.01  # 1e-5 of the pixels, but 1 % of a score
    if axis == 1:
        a, b = a.transpose(0, 2, 1), b.transpose(0, 2, 1)
    assert np.abs(a - b).max() < 1e-4 * np.abs(a).max()
    (line,) = same_results({"y": a}, {"y": b})
    assert f"of axis {axis}" in line
    b[...] = a
    b[..., 0, 0] += 0.01
    assert not differs(a, b)


def test_a_single_small_value_is_no_part():
    a = floats(1, 1000)
    a[0, 3] = 1e-6
    b = a.copy()
    b[0, 3] = 2e-6
    assert not differs(a, b)


def test_rounding_in_a_channel_that_cancels_is_no_difference():
    a = floats(2, 4, 50, 50)
    a[:, 2] = 0
    b = a.copy()
    b[:, 2] = 1e-8
    assert not differs(a, b)
    b[:, 2] = 1e-5
    assert differs(a, b)


def test_nan_and_infinity_equal_themselves_only():
    a = floats(4, 4)
    a[0, 0], a[1, 1] = np.nan, np.inf
    assert not differs(a, a.copy())
    for at, wrong in (((0, 0), 0.0), ((1, 1), -np.inf), ((1, 1), 1e30), ((2, 2), np.nan)):
        b = a.copy()
        b[at] = wrong
        assert differs(a, b)


def test_shape_type_and_names_must_match():
    a = floats(4, 4)
    assert differs(a, a.reshape(2, 8))
    assert differs(a, a.astype(np.float64))
    assert same_results({"y": a}, {"z": a}) == ["output 'y' is missing", "output 'z' is new"]
    assert not differs(np.empty((0, 3), np.float32), np.empty((0, 3), np.float32))


def test_half_precision_is_judged_by_what_it_can_say():
    a = floats(10, 10).astype(np.float16)
    assert not differs(a, a * np.float16(1.002))
    assert differs(a, a * np.float16(1.02))


def test_small_probabilities_are_judged_like_those_of_one_percent():
    a = np.full((2, 100), 1e-7, np.float32)
    b = a + np.float32(9e-7)
    assert differs(a, b)
    assert not differs(a, b, bounded={"y"})
    assert differs(a, a + np.float32(1.1e-6), bounded={"y"})
    a[...] = 0.5
    assert differs(a, a + np.float32(6e-5), bounded={"y"})


def test_what_a_softmax_gives_is_known_to_be_bounded():
    def model(bias):
        nodes = [
            node("Add", ["x", "b"], ["h"], "add"),
            node("Softmax", ["h"], ["p"], "softmax"),
            node("Reshape", ["p", "to"], ["y"], "reshape"),
        ]
        weights = {"b": np.array(bias, np.float32), "to": np.array([-1, 1, 3])}
        ends = [value("x", ["N", 3])], [value("y", [None] * 3)]
        return Model.from_proto(make_model(nodes, *ends, weights))

    feeds = [{"x": floats(20, 3)}]
    before = model([0, 0, -13])
    assert compare_models(before, model([0, 0, -12.9]), feeds) == []
    assert compare_models(before, model([0, 0, -9]), feeds) != []


def test_integers_must_be_equal():
    a = np.arange(12).reshape(3, 4)
    b = a.copy()
    assert not differs(a, b)
    b[1, 2] += 1
    (line,) = same_results({"y": a}, {"y": b})
    assert "1 of 12 values differ" in line


def test_positions_may_differ_where_their_scores_tie():
    values = np.array([[1.0, 5.0, 5.0 - 1e-5], [2.0, 4.0, 9.0]], np.float32)
    a = np.array([1, 2])
    scores = {"y": Scores(values, axis=1, kept=False)}
    assert not differs(a, np.array([2, 2]), scores=scores)
    assert differs(a, np.array([0, 2]), scores=scores)
    assert differs(a, np.array([1, 1]), scores=scores)
    assert differs(a, np.array([2, 2]))


def classifier(weight, operator="ArgMax", **attributes):
    tail = [node("Cast", ["i"], ["y"], "cast", to=1)]
    if operator == "TopK":
        pick = node("TopK", ["h", "two"], ["best", "i"], "pick", **attributes)
    else:
        pick = node(operator, ["h"], ["i"], "pick", axis=1, **attributes)
    proto = make_model(
        [node("MatMul", ["x", "w"], ["h"], "fc"), pick, *tail],
        [value("x", ["N", 4])], [value("y", [None] * (1 + attributes.get("keepdims", 1)))],
        {"w": weight, "two": np.array([2])},
    )  # fmt: skip
    return Model.from_proto(proto)


@pytest.mark.parametrize("case", [("ArgMax", {"keepdims": 0}), ("ArgMin", {}), ("TopK", {})])
def test_models_that_give_positions_are_compared_by_their_scores(case):
    operator, attributes = case
    weight = floats(4, 3)
    weight[:, 1] = weight[:, 0]  # the first two classes always tie, but for rounding
    tied = weight.copy()
    tied[:, 1] *= np.float32(1 + 1e-6)
    feeds = [{"x": floats(50, 4, seed=i)} for i in range(3)]
    before = classifier(weight, operator, **attributes)
    after = classifier(tied, operator, **attributes)
    a, b = (m.session(optimize=False).run(None, feeds[0])[0] for m in (before, after))
    assert np.any(a != b)
    assert compare_models(before, after, feeds) == []
    tied[:, 1] *= np.float32(1.5)
    (line,) = compare_models(before, classifier(tied, operator, **attributes), feeds)
    assert "are no ties" in line


def test_models_are_compared_on_every_feed():
    proto = conv_net()
    before, after = Model.from_proto(proto), Model.from_proto(proto)
    feeds = [{"x": normal([2, 3, 8, 8], i)} for i in range(3)]
    assert compare_models(before, after, feeds) == []
    after.set_weight("fc.bias", after.weight("fc.bias") * np.float32(1.01))
    (line,) = compare_models(before, after, feeds)
    assert "output 'y': differs by" in line
    with pytest.raises(ModelError, match="no data was given"):
        compare_models(before, after, [])


def test_models_with_other_outputs_differ():
    before = Model.from_proto(conv_net())
    after = before.clone()
    after.graph.outputs[0].name = "z"
    assert compare_models(before, after, []) == ["outputs were ['y'], are ['z']"]


def test_example_feeds_are_seeded_and_fit_the_model():
    proto = make_model(
        [
            node("Conv", ["x", "w"], ["h"], "conv", strides=[2, 2]),
            node("Reshape", ["h", "to"], ["f"], "flatten"),
            node("Cast", ["flag"], ["g"], "cast", to=1),
            node("Mul", ["f", "g"], ["y"], "mul"),
        ],
        [value("x", ["N", None, "height", "width"]), value("flag", [1], np.bool_)],
        [value("y", [None, None])],
        # 8 * 31 * 31 values an image only if it is 64 pixels wide
        {"w": normal([8, 3, 3, 3], 1), "to": np.array([-1, 8 * 31 * 31])},
    )
    feeds = example_feeds(Model.from_proto(proto), seed=5, batch=2, count=2)
    assert [f["x"].shape for f in feeds] == [(2, 3, 64, 64)] * 2
    assert feeds[0]["flag"].dtype == np.bool_
    assert not np.array_equal(feeds[0]["x"], feeds[1]["x"])
    again = example_feeds(Model.from_proto(proto), seed=5, batch=2, count=2)
    assert np.array_equal(feeds[1]["x"], again[1]["x"])


def test_a_model_that_runs_with_no_size_is_said():
    proto = make_model(
        [node("Reshape", ["x", "to"], ["y"], "flatten")],
        [value("x", ["N", "length"])],
        [value("y", [None, None])],
        {"to": np.array([-1, 7919])},
    )
    with pytest.raises(ModelError, match="no example input was found"):
        example_feeds(Model.from_proto(proto))
