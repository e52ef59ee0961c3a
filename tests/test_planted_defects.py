"""Defects that are planted are found in three calls at most; where there is none, none is."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_passes import Scale

import onnxdrp
from onnxdrp.datareaders import ArrayReader, DataReader, NCHWDataReader
from onnxdrp.evaluation import accuracy
from onnxdrp.model import Model
from onnxdrp.passes import (
    Calibrate,
    CrossLayerEqualize,
    FuseBatchNorm,
    InferShapes,
    InsertQdq,
    QuantizeWeights,
    RoundWeights,
)

LAYER = "blocks.2.first.conv.weight"
MODELS = Path(__file__).parents[1] / "models"
IMAGES = MODELS / "calibrate_images"
QUANTIZING = (Calibrate(method="minmax"), QuantizeWeights(), InsertQdq())
RECIPE = (InferShapes(), FuseBatchNorm(), *QUANTIZING)


def drawing() -> Any:
    """models/signs.py, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("signs", MODELS / "signs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


draw = drawing().draw


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


# ------------------------------------------------------------------------ a model that sees colours


@pytest.fixture(scope="module")
def reads_signs() -> Model:
    return Model.load(MODELS / "signs.onnx")


def signs(model: Model, count: int = 80, seed: int = 10, **changes: Any) -> DataReader:
    """Images as the model wants them, but for the changes."""
    x, labels = draw(count, seed)
    fed = {"mean": (0.298, 0.3059, 0.2907), "std": (0.2073, 0.2084, 0.2307)} | changes
    return ArrayReader({"x": x, "y": labels}, model, **fed)


def test_the_images_are_drawn_the_same_and_their_classes_are_told_apart(reads_signs: Model) -> None:
    images, labels = draw(300, 5)
    again, _ = draw(300, 5)
    np.testing.assert_array_equal(images, again)
    assert (images.shape, images.dtype) == ((300, 32, 32, 3), np.uint8)
    assert np.bincount(labels).tolist() == [30] * 10
    assert (draw(300, 6)[0] != images).mean() > 0.9
    assert accuracy(reads_signs, signs(reads_signs, 300, 5)).top1.mean() > 0.93


@pytest.mark.parametrize("seed", range(10, 14))
def test_a_wrong_order_of_channels_is_found_and_the_right_one_is_not_blamed(
    reads_signs: Model, seed: int
) -> None:
    seen = onnxdrp.debug(reads_signs, RECIPE, signs(reads_signs, seed=seed)).inputs()
    assert seen.signs == []
    assert seen.answers[0].top1 is not None
    assert seen.answers[0].top1 > 0.9
    swapped = signs(reads_signs, seed=seed, color="bgr")
    seen = onnxdrp.debug(reads_signs, RECIPE, swapped).inputs()
    assert any("its channels reversed" in sign for sign in seen.signs)
    best = max(seen.answers, key=lambda a: a.information)
    assert best.variant == "its channels reversed"


def test_a_wrong_mean_of_colours_is_found(reads_signs: Model) -> None:
    seen = onnxdrp.debug(reads_signs, RECIPE, signs(reads_signs, mean=0.0)).inputs()
    assert not seen.norms[0].fits
    assert "the first BatchNormalization" in seen.signs[0]


def test_the_dead_channel_that_training_left_is_found_and_mended(reads_signs: Model) -> None:
    """Its batch norm has a variance of 0: fused, its weights take the one scale from all others."""
    before, after = (InferShapes(), FuseBatchNorm()), (Calibrate(), coarse(), InsertQdq())
    reader = signs(reads_signs, 100)
    trace = onnxdrp.debug(reads_signs, [*before, *after], reader)
    found = trace.bisect(10)
    assert found.found is not None
    assert found.found.name == "round-weights"
    assert found.tensor is not None
    assert found.tensor.node == "/blocks/blocks.1/depthwise/Conv"
    trace.jump("round-weights")
    assert trace.record is not None
    assert next(iter(trace.record.diff.pictures)) == "blocks.1.depthwise.weight"
    by_name = {w.name: w for w in trace.record.diff.weights}
    sparsity = by_name["blocks.1.depthwise.weight"].sparsity[1]
    assert sparsity is not None
    assert sparsity > 0.95
    seen = trace.tensor("/blocks/blocks.0/pointwise_relu/Relu_output_0", "start", samples=20)
    assert seen.original is not None
    assert (seen.original.max((0, 2, 3)) == 0).sum() == 1
    for mended in (
        trace.rerun("round-weights", per_channel=True),
        onnxdrp.debug(reads_signs, [*before, CrossLayerEqualize(), *after], reader),
    ):
        assert mended.bisect(12).found is None


def coarse() -> RoundWeights:
    return RoundWeights(bits=4, per_channel=False)


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
