"""What a group does alone: errors against damped least squares, rises against a copy."""

import numpy as np
import pytest
from builders import mlp

import onnxdrp
from onnxdrp.channels import channels_of
from onnxdrp.channels.lone_groups import lone_groups
from onnxdrp.datareaders import ArrayReader
from onnxdrp.label_free_loss import LabelFreeLoss
from onnxdrp.model import Model
from onnxdrp.observe import observe
from onnxdrp.passes import ScoreChannels
from onnxdrp.pipeline import PassContext, PassManager
from onnxdrp.scores import damped


def model_of(*sizes):
    return onnxdrp.preprocess(Model.from_proto(mlp(*sizes))).model


def data(samples):
    return np.random.default_rng(3).standard_normal((samples, 12)).astype(np.float32)


def scores_of(model, x):
    ctx = PassContext(reader=ArrayReader({"x": x}, model, batch=50))
    PassManager([ScoreChannels()]).run(model, ctx)
    return ctx.channel_scores


def lowest(scores, name, count):
    return np.argsort(scores[name])[:count].tolist()


def alone(model, removed, x, scores=None, **options):
    reader = ArrayReader({"x": x}, model, batch=50)
    options = {"samples": len(x), **options}
    loss, channels = LabelFreeLoss.of(model), channels_of(model)
    scores = scores_of(model, x) if scores is None else scores
    return lone_groups(model, model, channels, removed, scores, reader, loss, **options)


def loss_of(model, other, x):
    loss, reader = LabelFreeLoss.of(model), ArrayReader({"x": x}, model, batch=50)
    return loss.value(observe({"a": model, "b": other}, reader, loss.taps("a", "b")))


def relu(model, x, layer):
    return np.maximum(x @ model.weight(f"{layer}.weight").T + model.weight(f"{layer}.bias"), 0)


def fitted(read, target, gone):
    """The least-squares weights and bias without some columns."""
    left = np.delete(np.arange(read.shape[1]), gone)
    rows = np.column_stack([read[:, left], np.ones(len(read))]).astype(np.float64)
    found = np.linalg.lstsq(rows, target.astype(np.float64), rcond=None)[0]
    weight = np.zeros((target.shape[1], read.shape[1]))
    weight[:, left] = found[:-1].T
    return weight, found[-1]


def test_errors_are_what_least_squares_leaves_wrong():
    model, x = model_of(12, 24, 16, 5), data(600)
    scores = scores_of(model, x)
    gone = {
        "fc0": {0.3: lowest(scores, "fc0", 7), 0.1: lowest(scores, "fc0", 2)},
        "fc1": {0.25: lowest(scores, "fc1", 4)},
    }
    found = alone(model, gone, x, scores)
    first = relu(model, x, "fc0")
    for layer, read in (("fc0", first), ("fc1", relu(model, first, "fc1"))):
        reader = "fc1" if layer == "fc0" else "fc2"
        weight = model.weight(f"{reader}.weight").astype(np.float64)
        power = np.cov(read.T.astype(np.float64), bias=True)
        whole, h = np.vdot(weight, weight @ power), damped(power[None])[0]
        for rate, units in gone[layer].items():
            left = np.delete(np.arange(len(h)), units)
            toward = np.linalg.solve(h[np.ix_(left, left)], h[np.ix_(left, units)])
            alone_in = h[np.ix_(units, units)] - h[np.ix_(units, left)] @ toward
            wrong = np.vdot(weight[:, units], weight[:, units] @ alone_in) / whole
            assert 0.005 < wrong < 1
            assert found[layer].errors[rate] == pytest.approx(wrong, rel=1e-3)


def test_the_slope_is_the_rise_of_the_loss_with_the_readers_fitted():
    model, x = model_of(12, 24, 16, 5), data(600)
    scores = scores_of(model, x)
    units = lowest(scores, "fc0", 7)
    lone = alone(model, {"fc0": {0.3: units, 0.1: units[:2]}}, x, scores)["fc0"]
    read = relu(model, x, "fc0")
    weight, bias = fitted(read, read @ model.weight("fc1.weight").T, units)
    other = model.clone()
    other.set_weight("fc1.weight", weight.astype(np.float32))
    other.set_weight("fc1.bias", (model.weight("fc1.bias") + bias).astype(np.float32))
    own, now = loss_of(model, other, x)
    assert now - own > 2e-3
    assert lone.rises[0.3] == pytest.approx(now - own, rel=2e-2)
    assert lone.rises[0.1] / lone.rises[0.3] == pytest.approx(lone.errors[0.1] / lone.errors[0.3])


def test_what_others_can_make_up_for_is_no_error():
    model, x = model_of(12, 24, 16, 5), data(600)
    for name in ("fc0.weight", "fc0.bias"):
        values = np.array(model.weight(name))
        values[4], values[7] = 0, 2 * values[2]
        model.set_weight(name, values)
    scores = scores_of(model, x)
    free = lowest(scores, "fc0", 2)
    assert 4 in free
    assert {2, 7} & set(free)
    removed = {"fc0": {0.08: free, 0.2: lowest(scores, "fc0", 8)}}
    found = alone(model, removed, x, scores)["fc0"]
    assert found.errors[0.08] < 0.2 * found.errors[0.2]


def test_a_group_that_chance_makes_free_keeps_a_tenth_of_the_median_slope():
    model, x = model_of(12, 24, 16, 5), data(600)
    model.set_weight("fc2.weight", model.weight("fc2.weight") * np.float32(1e-4))  # outputs: bias
    removed = {"fc0": {0.1: [3, 20]}, "fc1": {0.1: [1, 2]}}
    found = alone(model, removed, x)
    assert all(lone.slope > 0 for lone in found.values())
    slopes = sorted(lone.slope for lone in found.values())
    assert slopes[0] >= 0.1 * np.median(slopes) - 1e-12


def test_neither_model_nor_reader_is_changed_and_the_same_comes_of_the_same():
    model, x = model_of(12, 24, 16, 5), data(300)
    before = model.fingerprint()
    removed = {"fc0": {0.1: [3, 20]}, "fc1": {0.1: [1, 2]}}
    a, b = (alone(model, removed, x, samples=40, rows=100, workers=w) for w in (1, 2))
    assert a == b
    assert model.fingerprint() == before


def test_a_reader_that_is_too_large_to_fit_just_loses_its_inputs():
    model, x = model_of(12, 24, 16, 5), data(300)
    units, other = [3, 9, 20], model.clone()
    lone = alone(model, {"fc0": {0.1: units}}, x, moments_limit=1)["fc0"]
    weight = np.array(model.weight("fc1.weight"))
    weight[:, units] = 0
    other.set_weight("fc1.weight", weight)
    own, now = loss_of(model, other, x)
    assert now - own > 1e-3
    assert lone.rises[0.1] == pytest.approx(now - own, rel=1e-4)


def test_groups_that_lose_nothing_are_left_out():
    model, x = model_of(12, 24, 16, 5), data(60)
    assert alone(model, {"fc0": {}}, x) == {}
