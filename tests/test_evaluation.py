import json

import numpy as np
import pytest
from builders import conv_net, make_model, value
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from onnxdrp.datareaders import ArrayReader
from onnxdrp.errors import DataError, ModelError
from onnxdrp.evaluation import accuracy, compare_models, paired_difference, wilson
from onnxdrp.model import Model


def data(samples=20, seed=0):
    return np.random.default_rng(seed).standard_normal((samples, 3, 8, 8)).astype(np.float32)


def test_a_model_equals_itself():
    model = Model.from_proto(conv_net())
    reader = ArrayReader({"x": data()}, model)
    found = compare_models(model, model.clone(), reader, layers=True)
    assert found.sqnr_db == np.inf
    assert found.top1_agreement == 1.0
    assert all(e.max_abs_error == 0 for *_, e in found.layers)
    assert [t for _, _, t, _ in found.layers] == ["h1", "r1", "h2", "h3", "r2", "p", "f"]
    assert json.loads(json.dumps(found.as_dict()))["sqnr_db"] is None  # JSON has no infinity


def test_the_first_layer_that_differs_is_seen():
    a = Model.from_proto(conv_net())
    b = a.clone()
    weight = b.weight("conv2.weight")
    b.set_weight("conv2.weight", weight * np.float32(1.01))
    found = compare_models(a, b, ArrayReader({"x": data()}, a, batch=4), layers=True)
    by_tensor = {t: e for _, _, t, e in found.layers}
    assert by_tensor["r1"].sqnr_db == np.inf
    assert by_tensor["h2"].sqnr_db == pytest.approx(40, abs=0.01)  # a hundredth is -40 dB
    assert by_tensor["h2"].cosine == pytest.approx(1, abs=1e-9)
    keys = {"sqnr_db", "max_abs_error", "cosine", "top1_agreement", "outputs", "layers"}
    assert found.as_dict().keys() == keys | {"first_jump", "verdict"}
    assert compare_models(a, b, ArrayReader({"x": data()}, a)).as_dict().keys() == keys
    assert "conv2" in str(found)
    assert "top-1 agreement" in str(found)


def test_a_quantized_tensor_is_compared_as_its_readers_see_it():
    import onnxdrp

    a = Model.from_proto(conv_net())
    x = data(40)
    b = onnxdrp.quantize(a.clone(), {"x": x}).model
    assert not b.nodes("Relu")  # folded: the tensor before it holds negative values
    reader = ArrayReader({"x": x}, a, batch=8)
    by_tensor = {t: e for _, _, t, e in compare_models(a, b, reader, layers=True).layers}
    assert 25 < by_tensor["r1"].sqnr_db < 70
    assert 25 < by_tensor["r2"].sqnr_db < 70


def test_models_without_a_common_output_are_refused():
    a = Model.from_proto(conv_net())
    node = helper.make_node("Relu", ["x"], ["other"], "relu")
    proto = make_model([node], [value("x", ["N", 3, 8, 8])], [value("other", ["N", 3, 8, 8])])
    with pytest.raises(ModelError, match="share no float output"):
        compare_models(a, Model.from_proto(proto), ArrayReader({"x": data()}, a))


def ranks(classes=8):
    """A model whose scores are its input, [N, classes]."""
    node = helper.make_node("Identity", ["x"], ["y"], "same")
    shape = ["N", classes]
    return Model.from_proto(make_model([node], [value("x", shape)], [value("y", shape)]))


@pytest.mark.parametrize("batch", [1, 7])
def test_top1_and_top5_are_those_of_sorting(batch):
    model, rng = ranks(), np.random.default_rng(0)
    x = rng.integers(0, 4, (50, 8)).astype(np.float32)  # many ties
    y = rng.integers(0, 8, 50)
    found = accuracy(model, ArrayReader({"x": x, "y": y}, model, batch=batch))
    order = np.argsort(-x, axis=1, kind="stable")
    np.testing.assert_array_equal(found.top1, x.argmax(1) == y)
    np.testing.assert_array_equal(found.top5, (order[:, :5] == y[:, None]).any(1))
    assert 0 < found.top1.mean() < found.top5.mean() < 1
    assert found.as_dict()["samples"] == 50


def test_few_classes_have_no_top5_and_wrong_labels_are_refused():
    model = ranks(3)
    x, y = np.eye(3, dtype=np.float32), np.arange(3)
    found = accuracy(model, ArrayReader({"x": x, "y": y}, model))
    assert found.top5 is None
    assert found.as_dict()["top1"] == 100
    with pytest.raises(DataError, match="label 3 is not among the model's 3 classes"):
        accuracy(model, ArrayReader({"x": x, "y": y + 1}, model))
    with pytest.raises(DataError, match="no labels"):
        accuracy(model, ArrayReader({"x": x}, model))


def test_the_bundled_models_score_what_their_readme_says(modA, modB):
    from onnxdrp import demo

    archive = np.load(demo.TEST)
    mean, std = (np.array(v, np.float32) for v in (demo.MEAN, demo.STD))
    x = (archive["x"] / np.float32(255) - mean) / std
    for path, images in ((modA, x.transpose(0, 3, 1, 2)), (modB, x)):
        model = Model.load(path)
        reader = ArrayReader({model.inputs[0].name: images, "y": archive["y"]}, model, batch=100)
        assert int(accuracy(model, reader).top1.sum()) == pytest.approx(946, abs=1)


def test_wilson_against_published_values():
    # Newcombe 1998, table I: 81 of 263 gives .2553 to .3662
    right = np.arange(263) < 81
    assert wilson(right) == pytest.approx((25.53, 36.62), abs=0.005)
    assert wilson(np.ones(10, bool))[1] == pytest.approx(100, abs=1e-9)
    assert wilson(np.zeros(10, bool))[0] == pytest.approx(0, abs=1e-9)


@given(st.integers(0, 2**32 - 1), st.integers(2, 400))
def test_the_paired_interval_holds_the_change(seed, n):
    rng = np.random.default_rng(seed)
    before, after = rng.random(n) < 0.8, rng.random(n) < 0.7
    points, low, high = paired_difference(before, after)
    assert points == pytest.approx(100 * (after.mean() - before.mean()))
    assert low < high
    back, down, up = paired_difference(after, before)
    assert (back, down, up) == pytest.approx((-points, -high, -low))
