"""Defects that are planted are found in three calls at most; where there is none, none is."""

import json
from pathlib import Path

import numpy as np
import pytest
from builders import make_model, normal, value
from onnx import helper
from toy_passes import Scale

import onnxdrp
from onnxdrp.datareaders import ArrayReader, DataReader, NCHWDataReader
from onnxdrp.evaluation import accuracy
from onnxdrp.model import Model
from onnxdrp.passes import Calibrate, FuseBatchNorm, InferShapes, InsertQdq, QuantizeWeights

LAYER = "blocks.2.first.conv.weight"
IMAGES = Path(__file__).parents[1] / "models" / "calibrate_images"
QUANTIZING = (Calibrate(method="minmax"), QuantizeWeights(), InsertQdq())
RECIPE = (InferShapes(), FuseBatchNorm(), *QUANTIZING)


def images(model: Model, mean: float = 0.219, limit: int = 40) -> DataReader:
    return NCHWDataReader(
        str(IMAGES), norm_mean=[mean] * 3, norm_std=[0.3318] * 3, model=model, limit=limit
    )


@pytest.fixture(scope="module")
def model(modA: Path) -> Model:
    return Model.load(modA)


# -------------------------------------------------------------------- a layer's weights, 50 times


def test_a_pass_that_scales_a_layer_is_found_with_its_layer(model: Model) -> None:
    passes = [InferShapes(), FuseBatchNorm(), Scale(LAYER, 50.0), *QUANTIZING]
    trace = onnxdrp.debug(model, passes, images(model))
    found = trace.bisect(20)
    assert found.found is not None
    assert found.found.name == "scale"
    assert found.passes[1].value > 80  # fused: the same
    assert found.tensor is not None
    layer = next(n for n in model.nodes("Conv") if n.inputs[1].name == LAYER)
    assert found.tensor.node == layer.name
    assert found.tensor.after_db == pytest.approx(-20 * np.log10(49), abs=3)  # but for the bias
    seen = trace.tensor(found.tensor.tensor, "scale")
    assert seen.range is not None
    assert seen.original_range is not None
    assert seen.range.high > 20 * seen.original_range.high


def test_weights_scaled_behind_the_calibration_saturate(model: Model) -> None:
    passes = [*RECIPE[:3], Scale(LAYER, 50.0), *RECIPE[3:]]
    trace = onnxdrp.debug(model, passes, images(model))
    found = trace.bisect(20)
    assert found.found is not None
    assert found.found.name == "scale"
    assert found.tensor is not None
    seen = trace.tensor("/blocks/blocks.2/Relu_output_0", "insert-qdq")  # what its Relu gives
    assert seen.unrounded is not None
    assert seen.saturated is not None
    assert seen.saturated[1] > 0.1 * seen.unrounded.size


def test_a_model_that_came_in_with_a_scaled_layer_is_off_from_there_on(model: Model) -> None:
    broken = model.clone()
    broken.set_weight(LAYER, broken.weight(LAYER) * np.float32(50))
    seen = onnxdrp.debug(broken, RECIPE, images(broken)).inputs()
    layer = next(n for n in model.nodes("Conv") if n.inputs[1].name == LAYER)
    odd = next(norm for norm in seen.norms if not norm.fits)
    assert odd.node == layer.outputs[0].outputs[0].name
    assert odd.spread == pytest.approx(50, rel=0.2)
    assert any(repr(odd.node) in sign and "weights" in sign for sign in seen.signs)


# ------------------------------------------------------------------------------ what a reader feeds


def test_nothing_is_said_of_the_right_data(model: Model) -> None:
    seen = onnxdrp.debug(model, RECIPE, images(model, limit=80)).inputs()
    assert seen.signs == []
    assert all(norm.fits for norm in seen.norms)
    assert len(seen.norms) == 15
    assert not any("reversed" in a.variant for a in seen.answers)  # grey images have no order
    assert "nothing speaks against" in str(seen)


@pytest.mark.parametrize("mean", [0.0, 0.5])
def test_a_wrong_mean_is_found(model: Model, mean: float) -> None:
    trace = onnxdrp.debug(model, RECIPE, images(model, mean, limit=80))
    seen = trace.inputs()
    assert [c.mean for c in seen.channels] == pytest.approx([(0.219 - mean) / 0.3318] * 3, abs=0.1)
    assert not seen.norms[0].fits
    assert "the first BatchNormalization" in seen.signs[0]
    assert "mean 0 and deviation 1" in seen.signs[1]
    json.dumps(seen.as_dict(), allow_nan=False)


def test_two_readers_are_held_beside_each_other(model: Model) -> None:
    trace = onnxdrp.debug(model, RECIPE, images(model, 0.5))
    seen = trace.inputs(against=images(model))
    assert seen.against is not None
    assert seen.against.channels[0].mean - seen.channels[0].mean == pytest.approx(
        0.5 / 0.3318 - 0.219 / 0.3318, abs=0.1
    )
    assert any("the other reader" in sign for sign in seen.signs)
    assert "the other" in str(seen)


def colours(samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of eight colours, [n, 3, 8, 8] in about 0..1, and which colour each is of."""
    rng = np.random.default_rng(seed)
    palette = np.random.default_rng(7).uniform(0.1, 0.9, (8, 3))
    palette[:, 0] = 0.3 + 0.7 * palette[:, 0]  # red is the strongest, blue the weakest
    palette[:, 2] *= 0.6
    labels = rng.integers(0, 8, samples)
    noise = rng.normal(0, 0.05, (samples, 3, 8, 8))
    return (palette[labels, :, None, None] + noise).astype(np.float32), labels


@pytest.fixture(scope="module")
def classifier() -> Model:
    """Conv-BatchNormalization-Relu-GlobalAveragePool-Gemm that tells the colours apart."""
    x, labels = colours(400, 0)
    weight = normal([24, 3, 3, 3], 1)
    weights = {"conv.weight": weight, "bn.scale": np.ones(24, np.float32)}
    weights["bn.bias"] = normal([24], 2) * np.float32(0.3)
    weights |= {"bn.mean": np.zeros(24, np.float32), "bn.var": np.ones(24, np.float32)}
    weights |= {"fc.weight": normal([8, 24], 3), "fc.bias": np.zeros(8, np.float32)}
    bn = ["h", "bn.scale", "bn.bias", "bn.mean", "bn.var"]
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight"], ["h"], "conv"),
        helper.make_node("BatchNormalization", bn, ["b"], "bn"),
        helper.make_node("Relu", ["b"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "fc.weight", "fc.bias"], ["y"], "fc", transB=1),
    ]
    proto = make_model(nodes, [value("x", ["N", 3, 8, 8])], [value("y", ["N", 8])], weights)
    model = Model.from_proto(proto)
    h = model.session(outputs=["h"]).run(["h"], {"x": x})[0]
    model.set_weight("bn.mean", h.mean((0, 2, 3)))
    model.set_weight("bn.var", h.var((0, 2, 3)))
    f = model.session(outputs=["f"]).run(["f"], {"x": x})[0].astype(np.float64)
    rows = np.column_stack([f, np.ones(len(f))])
    target = 10.0 * np.eye(8)[labels]
    fit = np.linalg.solve(rows.T @ rows + 1e-2 * np.eye(25), rows.T @ target)
    model.set_weight("fc.weight", fit[:-1].T.astype(np.float32))
    model.set_weight("fc.bias", fit[-1].astype(np.float32))
    return model


def test_a_wrong_order_of_channels_is_found(classifier: Model) -> None:
    x, labels = colours(120, 1)
    right = ArrayReader({"x": x, "y": labels}, classifier)
    swapped = ArrayReader({"x": np.ascontiguousarray(x[:, ::-1])}, classifier)
    assert accuracy(classifier, right).top1.mean() > 0.95
    seen = onnxdrp.debug(classifier, RECIPE, right).inputs()
    assert seen.signs == []
    assert seen.answers[0].top1 is not None
    assert seen.answers[0].top1 > 0.95
    seen = onnxdrp.debug(classifier, RECIPE, swapped).inputs()
    assert any("its channels reversed" in sign for sign in seen.signs)
    assert any("the first BatchNormalization" in sign for sign in seen.signs)
    best = max(seen.answers, key=lambda a: a.information)
    assert best.variant == "its channels reversed"


@pytest.mark.parametrize("bgr", [False, True])
def test_the_order_of_channels_of_photographs_is_told_without_a_batch_norm(
    shared: Path, bgr: bool
) -> None:
    model = Model.load(shared / "models" / "cifar10_cnn_nhwc.onnx")
    with np.load(shared / "data" / "cifar10" / "unlabelled.npz") as archive:
        x = archive["x"][:160]
    data = {model.inputs[0].name: np.ascontiguousarray(x[..., ::-1] if bgr else x)}
    reader = ArrayReader(data, model, scale=1.0)
    seen = onnxdrp.debug(model, RECIPE, reader).inputs(samples=128)
    assert seen.norms == ()
    assert ["its channels reversed" in sign for sign in seen.signs] == [True] * bgr
