import json
import math

import numpy as np
import pytest
from builders import normal
from quantizing import Feeds, parse

import onnxdrp
from onnxdrp.evaluation import compare_models
from onnxdrp.fidelity import ErrorStats
from onnxdrp.jumps import find_step
from onnxdrp.ranges import save_ranges

N, LAYERS = 8, ("a", "b", "c", "d", "e", "f")


def chain():
    """Conv-Relu six times."""
    weights = {f"w_{name}": normal((N, N, 3, 3), i) for i, name in enumerate(LAYERS)}
    ends = zip(("x", *(f"r_{n}" for n in LAYERS[:-1])), LAYERS, strict=True)
    body = "".join(
        f"[{n}] h_{n} = Conv <pads = [1, 1, 1, 1]> ({before}, w_{n})\n"
        f"[relu_{n}] r_{n} = Relu (h_{n})\n"
        for before, n in ends
    )
    stored = ", ".join(f"float[{N}, {N}, 3, 3] {w}" for w in weights)
    return parse(
        f"""
        <ir_version: 10, opset_import: ["": 17]>
        net (float[N, {N}, 6, 6] x) => (float[N, {N}, 6, 6] y) <{stored}>
        {{ {body} [last] y = Identity (r_f) }}
        """,
        weights,
    )


def reader(samples=16):
    x = np.random.default_rng(0).standard_normal((samples, N, 6, 6)).astype(np.float32)
    return Feeds({"x": x})


def coarse(model, name, bits=3):
    """The weights of one layer on a grid of few steps."""
    weight = model.weight(f"w_{name}")
    step = np.float32(np.abs(weight).max() / 2 ** (bits - 1))
    model.set_weight(f"w_{name}", np.round(weight / step) * step)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_with_coarse_weights_is_named_whatever_comes_after_it(layer):
    a = chain()
    b = a.clone()
    coarse(b, layer)
    found = compare_models(a, b, reader(), layers=True)
    jump = found.first_jump
    assert (jump.name, jump.op, jump.before_db) == (layer, "Conv", math.inf)
    assert 3 < jump.after_db < 20
    assert jump.place == 2 * LAYERS.index(layer) + 1
    assert f"at Conv {layer!r} ({jump.place} of 13)" in found.verdict
    assert "its weights are" in found.verdict
    assert found.verdict in str(found)


@pytest.mark.parametrize("layer", LAYERS)
def test_it_is_named_in_a_quantized_model_too_where_every_layer_errs(layer):
    a = chain()
    spoilt = a.clone()
    coarse(spoilt, layer)
    b = onnxdrp.quantize(spoilt, reader(60)).model
    found = compare_models(a, b, reader(), layers=True)
    assert found.first_jump.name == layer
    assert any("weights are" in reason for reason in found.first_jump.reasons)
    before = found.first_jump.before_db
    assert (before == math.inf) if layer == "a" else (28 < before < 60)


@pytest.mark.parametrize("target", ["generic", "drp-ai3"])
def test_a_clipped_activation_is_named_with_how_much_of_it_is_lost(tmp_path, target):
    a, data = chain(), reader(60)
    ranges = onnxdrp.calibrate(a, data, target=target).ranges
    top = ranges.tensors["r_c"].high
    ranges.edit("r_c", high=top / 8)
    save_ranges(tmp_path / "ranges.json", ranges)
    b = onnxdrp.quantize(a.clone(), data, ranges=tmp_path / "ranges.json", target=target).model
    found = compare_models(a, b, reader(), layers=True)
    jump = found.first_jump
    assert jump.tensor == "r_c"
    assert jump.name in ("c", "relu_c")  # the Relu, where it is not folded into the Conv
    (clipped,) = (reason for reason in jump.reasons if "outside" in reason)
    values = a.session(outputs=["r_c"]).run(["r_c"], next(iter(reader().batches())))[0]
    share = 100 * (values > top / 8).mean()
    assert float(clipped.split(" %")[0]) == pytest.approx(share, rel=0.05)
    assert share > 5


def test_a_scale_far_too_wide_is_told_of(tmp_path):
    a, data = chain(), reader(60)
    ranges = onnxdrp.calibrate(a, data).ranges
    top = ranges.tensors["r_b"].high
    ranges.edit("r_b", high=30 * top)
    save_ranges(tmp_path / "ranges.json", ranges)
    b = onnxdrp.quantize(a.clone(), data, ranges=tmp_path / "ranges.json").model
    jump = compare_models(a, b, reader(), layers=True).first_jump
    assert jump.tensor == "r_b"
    assert any("its scale is made for" in reason for reason in jump.reasons)


def unbalanced(by):
    """Channel 0 of what layer c gives is so many times the others, and layer d makes up for it."""
    model = chain()
    weight = model.weight("w_c").copy()
    weight[1:] /= by
    model.set_weight("w_c", weight)
    weight = model.weight("w_d").copy()
    weight[:, 1:] *= by
    model.set_weight("w_d", weight)
    return model


def test_the_weight_whose_channels_have_different_sizes_under_one_scale_is_named():
    a = unbalanced(60)
    b = onnxdrp.quantize(a.clone(), reader(60), per_channel=False).model
    jump = compare_models(a, b, reader(), layers=True).first_jump
    # What c gives is nearly all in channel 0: that the others are lost is seen behind d.
    assert (jump.name, jump.tensor) == ("d", "r_d")
    (reason,) = (r for r in jump.reasons if "largest channel" in r)
    assert reason.startswith("the largest channel of its input 'r_c' is ")
    values = a.session(outputs=["r_c"]).run(["r_c"], next(iter(reader().batches())))[0]
    size = np.sqrt((values.astype(np.float64) ** 2).mean((0, 2, 3)))
    times = size.max() / np.median(size)
    assert times > 50
    assert f"is {times:,.0f} times the median one" in reason
    a.set_weight("w_c", a.weight("w_c") / np.float32(3))
    swapped = a.clone()
    weight = swapped.weight("w_d").copy()
    weight[1:] /= 500  # outputs of d, not inputs
    swapped.set_weight("w_d", weight)
    c = onnxdrp.quantize(swapped.clone(), reader(60), per_channel=False).model
    jump = compare_models(swapped, c, reader(), layers=True).first_jump
    assert any(r.startswith("the largest channel of its weight is ") for r in jump.reasons)
    d = onnxdrp.quantize(swapped.clone(), reader(60), per_channel=True).model
    jump = compare_models(swapped, d, reader(), layers=True).first_jump
    assert not any("of its weight" in r for r in jump.reasons)


def test_outliers_in_the_output_are_told_of():
    a = chain()
    b = a.clone()
    coarse(b, "c")
    x = next(iter(reader(128).batches()))["x"].copy()
    x[0] *= 1000
    jump = compare_models(a, b, Feeds({"x": x}), layers=True).first_jump
    values = a.session(outputs=["h_c"]).run(["h_c"], {"x": x})[0]
    low, high = np.percentile(values, [1, 99])
    (known,) = (r for r in jump.reasons if r.startswith("its output"))
    assert known == (
        f"its output ranges over {values.min():.3g}..{values.max():.3g}, but 98 % of the values "
        f"lie in {known.split('lie in ')[1]}"
    )
    told = [float(v) for v in known.split("lie in ")[1].split("..")]
    width = 2 * float(np.abs(values).max()) / 4096  # of a bin
    assert told == pytest.approx([low, high], abs=2 * width)


def test_a_model_without_a_jump_says_so():
    a = chain()
    b = onnxdrp.quantize(a.clone(), reader(60)).model
    found = compare_models(a, b, reader(), layers=True)
    assert 20 < found.sqnr_db < 60
    assert found.first_jump is None
    assert found.verdict.startswith("no jump: the error grows step by step; at most where SQNR")
    assert found.as_dict()["first_jump"] is None


def test_equal_models_have_no_error_to_place():
    a = chain()
    found = compare_models(a, a.clone(), reader(), layers=True)
    assert found.verdict == "no layer makes an error that reaches an output"
    assert found.first_jump is None


def test_without_layers_nothing_is_said():
    a = chain()
    b = a.clone()
    coarse(b, "c")
    found = compare_models(a, b, reader())
    assert found.verdict == ""
    assert "verdict" not in found.as_dict()
    assert "SQNR falls" not in str(found)


def test_json_holds_the_jump():
    a = chain()
    b = a.clone()
    coarse(b, "d")
    found = json.loads(json.dumps(compare_models(a, b, reader(), layers=True).as_dict()))
    assert found["first_jump"]["name"] == "d"
    assert found["first_jump"]["before_db"] is None  # no error before it
    assert found["verdict"].startswith("SQNR falls at once to")


BRANCHES = """
<ir_version: 10, opset_import: ["": 17]>
net (float[N, 4] x) => (float[N, 4] y)
{
    [one] a = Relu (x)
    [unread] u = Sigmoid (a)
    [two] b = Tanh (a)
    [three] c = Add (a, b)
    [four] y = Neg (c)
}
"""


def stats(**decibels):
    return {name: ErrorStats(db, 1.0, 0.0) for name, db in decibels.items()}


def test_the_noise_of_a_tensor_that_nobody_reads_is_no_jump():
    step = find_step(parse(BRANCHES), stats(a=40, u=2, b=38, c=37, y=34))
    assert (step.name, step.is_jump) == ("four", False)


def test_an_error_that_vanishes_again_counts_by_what_is_left_of_it():
    step = find_step(parse(BRANCHES), stats(a=40, u=40, b=5, c=33, y=33))
    assert (step.name, step.is_jump) == ("two", False)
    assert step.fall_db == pytest.approx(3)
    assert step.after_db == 5


def test_the_first_of_two_jumps_is_named_unless_it_is_far_the_smaller():
    two = find_step(parse(BRANCHES), stats(a=40, u=40, b=26, c=12, y=12))
    assert (two.name, two.before_db, two.after_db) == ("two", 40, 26)
    late = find_step(parse(BRANCHES), stats(a=40, u=40, b=27, c=3, y=3))
    assert (late.name, late.before_db) == ("three", 27)


def test_layers_that_one_model_lacks_are_looked_through():
    step = find_step(parse(BRANCHES), stats(a=40, u=40, y=10))
    assert (step.name, step.tensor, step.before_db) == ("four", "y", 40)
