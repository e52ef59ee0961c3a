"""The loss against the float model: hand-computed, in parts, and of each kind of output."""

import numpy as np
import pytest
from builders import make_model, mlp, normal, value
from onnx import helper

from onnxdrp.datareaders import ArrayReader
from onnxdrp.errors import ModelError, OptionError
from onnxdrp.label_free_loss import CrossEntropy, LabelFreeLoss
from onnxdrp.model import Model
from onnxdrp.observe import observe


def shares(scores):
    p = np.exp(scores.astype(np.float64))
    return p / p.sum(1, keepdims=True)


def test_it_is_the_cross_entropy_of_the_shares():
    t, y = normal([50, 7], 0), normal([50, 7], 1)
    p, q = shares(t), shares(y)
    whole = CrossEntropy()
    whole.update(t, y)
    own, cross = whole.result()
    assert own == pytest.approx(-(p * np.log(p)).sum(1).mean())
    assert cross == pytest.approx(-(p * np.log(q)).sum(1).mean())
    assert own < cross - 0.05
    first, second = CrossEntropy(), CrossEntropy()
    first.update(t[:13], y[:13])
    second.update(t[13:, :, None, None], y[13:, :, None, None])
    first.merge(second)
    assert first.result() == pytest.approx(whole.result())
    soft = CrossEntropy(probabilities=True)
    soft.update(p, q)
    assert soft.result() == pytest.approx(whole.result())
    hard = CrossEntropy(hard=True)
    hard.update(t, y)
    rows = np.arange(50), t.argmax(1)
    assert hard.result() == pytest.approx((-np.log(p[rows]).mean(), -np.log(q[rows]).mean()))


def test_scores_that_are_not_finite_are_counted():
    t, y = normal([5, 3], 0), normal([5, 3], 1)
    y[2, 1] = np.nan
    found = CrossEntropy()
    found.update(t, y)
    assert (found.nonfinite, found.count) == (1, 4)
    assert np.isfinite(found.result()).all()


def loss_of(a, b, x, **options):
    loss = LabelFreeLoss.of(a, **options)
    reader = ArrayReader({"x": x}, a, batch=8)
    return loss, loss.value(observe({"f": a, "g": b}, reader, loss.taps("f", "g")))


def test_a_model_has_the_entropy_of_its_own_answers():
    a, x = Model.from_proto(mlp(6, 8, 4)), normal([30, 6], 3)
    b = a.clone()
    b.set_weight("fc1.weight", -a.weight("fc1.weight"))
    loss, (own, same) = loss_of(a, a, x)
    assert loss.classes
    assert own == pytest.approx(same)
    assert loss_of(a, b, x)[1][1] > own + 1e-3


def test_a_softmax_is_seen():
    x = normal([30, 6], 3)
    proto = mlp(6, 8, 4)
    proto.graph.node.append(helper.make_node("Softmax", ["y"], ["p"]))
    proto.graph.output[0].name = "p"
    soft = Model.from_proto(proto)
    loss, (own, _) = loss_of(soft, soft, x)
    assert loss.probabilities
    assert own == pytest.approx(loss_of(*[Model.from_proto(mlp(6, 8, 4))] * 2, x)[1][0], rel=1e-5)


def test_outputs_that_are_no_scores_are_compared_by_their_noise():
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"])]
    w = normal([4, 3, 1, 1], 0)
    one = make_model(nodes, [value("x", ["N", 3, 5, 5])], [value("y", ["N", 4, 5, 5])], {"w": w})
    a = Model.from_proto(one)
    b = a.clone()
    b.set_weight("w", w * np.float32(1.5))
    x = normal([10, 3, 5, 5], 1)
    loss, (own, other) = loss_of(a, b, x)
    assert not loss.classes
    assert own == 1
    assert other == pytest.approx(1.25, rel=1e-5)
    assert loss_of(a, a, x)[1][1] == 1
    with pytest.raises(OptionError, match="no classes"):
        LabelFreeLoss.of(a, hard=True)


def test_a_model_without_float_outputs_is_refused():
    nodes = [helper.make_node("ArgMax", ["x"], ["y"], axis=1)]
    proto = make_model(nodes, [value("x", ["N", 3])], [value("y", ["N", 1], np.int64)])
    with pytest.raises(ModelError, match="float"):
        LabelFreeLoss.of(Model.from_proto(proto))
