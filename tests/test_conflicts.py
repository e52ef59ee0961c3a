"""Conflicts: what sharing parameters costs is said, with names and numbers, and nothing else is."""

import numpy as np
import pytest
from builders import normal
from quantizing import parse, planned, quantize_model, target_with

from onnxdrp.conflicts import conflict_warnings, conflicts
from onnxdrp.quantization import Range, activation_params
from onnxdrp.targets import load_target

HEAD = '<ir_version: 8, opset_import: ["" : 13]>'
WEIGHTS = {"w": normal([4, 4, 1, 1], 0), "v": normal([4, 4, 1, 1], 1)}


def graph(body, **weights):
    text = f"{HEAD} g (float[1, 4, 3, 3] x) => (float[1, N, 3, 3] y) {{ {body} }}"
    return parse(text, WEIGHTS | weights)


def found(model, target, ranges):
    plan = planned(model, target)
    assert plan.observed.keys() <= ranges.keys()
    return conflicts(model, plan, {k: Range(*r) for k, r in ranges.items()}, target)


HEADS = "boxes = Conv(x, w) scores = Conv(x, v) y = Concat<axis=1>(boxes, scores)"


def test_small_scores_beside_large_boxes_are_named_with_what_is_left_of_them():
    drp = load_target("drp-ai3")
    ranges = {"x": (-1, 1), "boxes": (0, 320), "scores": (0, 1)}
    (line,) = found(graph(HEADS), drp, ranges)
    assert line == (
        "Concat 'Concat_2': 'boxes' [0, 320] and 'scores' [0, 1] share a scale: "
        "'scores' keeps 1 of 256 levels"
    )
    assert found(graph(HEADS), load_target("generic"), ranges | {"y": (0, 320)}) == []


@pytest.mark.parametrize(("top", "count"), [(40.1, 0), (39.9, 1)])
def test_an_eighth_of_the_levels_is_enough(top, count):
    ranges = {"x": (-1, 1), "boxes": (0, 320), "scores": (0, top)}
    assert len(found(graph(HEADS), load_target("drp-ai3"), ranges)) == count


def test_the_levels_are_those_of_the_scales():
    drp = load_target("drp-ai3")
    ranges = {"x": (-1, 1), "boxes": (-30, 200), "scores": (-3, 9)}
    (line,) = found(graph(HEADS), drp, ranges)
    scales = [
        activation_params(Range(*ranges[k]), symmetric=True).scale for k in ("scores", "boxes")
    ]
    assert f"keeps {round(256 * float(scales[0] / scales[1]))} of 256" in line
    assert "keeps 12 of 256" in line


def test_a_tensor_that_is_small_by_itself_is_no_conflict():
    ranges = {"x": (0, 1e-6), "boxes": (0, 1e-6), "scores": (0, 1e-6)}
    assert found(graph(HEADS), load_target("drp-ai3"), ranges) == []
    zeros = ranges | {"scores": (0, 0), "boxes": (0, 1)}
    assert found(graph(HEADS), load_target("drp-ai3"), zeros) == []


def test_what_passes_values_on_is_part_of_it():
    pool = "p = MaxPool<kernel_shape=[1, 1]>(b)"
    body = f"a = Conv(x, w) b = Conv(x, v) {pool} s = Add(a, p) y = Relu(s)"
    ranges = {"x": (-1, 1), "a": (-900, 900), "b": (-1, 1), "y": (0, 900)}
    (line,) = found(graph(body), load_target("drp-ai3"), ranges)
    assert line.startswith("Add 'Add_3': 'a' [-900, 900] and 'b' [-1, 1] share a scale")


def test_a_constant_operand_is_a_member_too():
    model = graph("a = Conv(x, w) y = Add(a, c)", c=np.float32([[[[0.01]]], [[[0.02]]]])[:1])
    ranges = {"x": (-1, 1), "a": (-500, 500), "y": (-500, 500)}
    (line,) = found(model, load_target("drp-ai3"), ranges)
    assert "and input 1 of 'Add_1' [0, 0.01] share a scale: input 1 of 'Add_1' keeps 1" in line


def test_one_line_a_group_the_worst_first():
    body = (
        "a = Conv(x, w) b = Conv(x, v) c = Conv(x, w) d = Concat<axis=1>(a, b, c) "
        "e = Conv(x, v) f = Conv(x, w) g = Concat<axis=1>(e, f) y = Concat<axis=1>(d, d)"
    )
    model = graph(body)
    top = model.tensors()["g"]
    assert top.outputs == []
    ranges = dict.fromkeys("xbcf", (-1, 1)) | {"a": (-20, 20), "e": (-100, 100)}
    worst, other = found(model, load_target("drp-ai3"), ranges)
    assert worst.startswith("Concat 'Concat_6'")
    assert other.endswith("keeps 13 of 256 levels, and 1 more of the group are short of levels")


SOFTMAX = "a = Conv(x, w) s = Softmax<axis=1>(a) b = Conv(x, v) y = Concat<axis=1>(s, b)"


def test_a_fixed_range_that_others_do_not_fit_into_loses_and_that_is_said():
    target = target_with("qnn-htp", shared_inputs_and_output=("Concat",))
    fixed, starved = found(graph(SOFTMAX), target, {"x": (-1, 1), "a": (-1, 1), "b": (-4, 60)})
    assert sorted([fixed, starved])[1].startswith(
        "Concat 'Concat_3': 's' has the fixed range [0, 0.9961], but what it shares parameters "
        "with needs [-4, 60]; that is taken"
    )
    assert found(graph(SOFTMAX), target, {"x": (-1, 1), "a": (-1, 1), "b": (0, 0.9)}) == []


def test_the_group_really_has_the_union():
    target = target_with("qnn-htp", shared_inputs_and_output=("Concat",))
    done = quantize_model(graph(SOFTMAX), target=target, method="minmax")
    params = {name: done.params(name) for name in ("s", "b", "y")}
    assert params["s"] == params["b"] == params["y"]
    union = done.ctx.ranges["b"].union(Range(0, 255 / 256))
    assert union.low < -1
    assert done.ctx.quantization["s"] == activation_params(union, "uint8")
    stats = done.stats["quantize-weights"]
    assert any("fixed range" in line for line in stats["conflicts"])
    assert stats["warnings"] == stats["conflicts"]


def test_a_report_tells_the_first_three_and_how_many_more():
    lines = [f"line {i}" for i in range(5)]
    assert conflict_warnings(lines) == [*lines[:3], "2 more conflicts of shared scales"]
    assert conflict_warnings(lines[:3]) == lines[:3]
