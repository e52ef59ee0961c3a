"""Real models keep their accuracy in INT8: the default settings, data that calibration never saw.

The difference is paired, image by image; a goal is missed if its 95 % interval lies beyond it.
"""

import csv

import numpy as np
import pytest
from PIL import Image
from quantizing import Feeds

from onnxdrp.model import Model
from onnxdrp.passes import (
    Calibrate,
    Check,
    Clean,
    ConvertOpset,
    FoldConstants,
    FuseBatchNorm,
    InferShapes,
    InsertQdq,
    Optimize,
    QuantizeWeights,
)
from onnxdrp.pipeline import PassContext, PassManager
from onnxdrp.targets import load_target

PREPROCESS = [InferShapes(), Optimize(), FoldConstants(), FuseBatchNorm(), Clean()]


def right(model, images, labels):
    """Whether each image is classified right, onnxruntime's optimizations on."""
    session, name = model.session(), model.inputs[0].name
    parts = np.array_split(images, max(1, len(images) // 50))
    scores = np.concatenate([session.run(None, {name: part})[0] for part in parts])
    return scores.argmax(-1) == labels


def drop(path, calibration, images, labels, target="generic", **options):
    """Percentage points lost, half of the 95 % interval, and the float accuracy."""
    model = Model.load(path)
    before = right(model, images, labels)
    name = model.inputs[0].name
    batches = np.array_split(calibration, max(1, len(calibration) // 25))
    ctx = PassContext(reader=Feeds(*({name: b} for b in batches)), target=load_target(target))
    steps = [ConvertOpset(), InferShapes(), Calibrate(), QuantizeWeights(**options), InsertQdq()]
    PassManager([*PREPROCESS, *steps, Check()]).run(model, ctx)
    lost = before.astype(float) - right(model, images, labels)
    half = 1.96 * lost.std() / np.sqrt(len(lost))
    return 100 * lost.mean(), 100 * half, 100 * before.mean()


def fashion(root):
    """Calibration images, test images and their labels, NHWC, as the two models take them."""
    with np.load(root / "models" / "test.npz") as data:
        images, labels = data["x"], data["y"]
    files = sorted((root / "models" / "calibrate_images").rglob("*.png"))
    calibration = np.stack([np.asarray(Image.open(f).convert("RGB")) for f in files])
    return *(
        ((x / 255 - 0.2190) / 0.3318).astype(np.float32) for x in (calibration, images)
    ), labels


@pytest.mark.parametrize("target", ["generic", "drp-ai3"])
@pytest.mark.parametrize("which", ["modA", "modB"])
def test_the_bundled_models_lose_half_a_point_at_most(which, target, request):
    path = request.getfixturevalue(which)
    calibration, images, labels = fashion(path.parents[1])
    if which == "modA":
        calibration, images = (
            np.ascontiguousarray(x.transpose(0, 3, 1, 2)) for x in (calibration, images)
        )
    lost, half, before = drop(path, calibration, images, labels, target)
    assert before > 94
    assert lost - half <= 0.5
    assert lost <= 1.0


def test_the_keras_net_of_cifar_loses_half_a_point_at_most(shared):
    calibration = np.load(shared / "data/cifar10/unlabelled.npz")["x"][:500].astype(np.float32)
    data = np.load(shared / "data/cifar10/eval.npz")
    images = data["x"].astype(np.float32)
    path = shared / "models" / "cifar10_cnn_nhwc.onnx"
    lost, _, before = drop(path, calibration, images, data["y"])
    assert before > 76
    assert lost <= 0.5


def test_efficientnet_by_channel_loses_one_point_at_most(shared):
    folder = shared / "data" / "imagenet"
    with (folder / "labels.csv").open() as file:
        rows = [row for row in csv.reader(file) if row[1].isdigit()]

    def pixels(name):
        image = Image.open(next(folder.rglob(name.rpartition("/")[2]))).convert("RGB")
        left, top = (image.width - 224) // 2, (image.height - 224) // 2
        cut = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32)
        return ((cut - 127) / 128).transpose(2, 0, 1)

    images = np.stack([pixels(name) for name, _ in rows])
    labels = np.array([int(label) for _, label in rows])
    path = shared / "models" / "efficientnet_lite0.onnx"
    lost, _, before = drop(path, images[:100], images[100:], labels[100:])
    assert before > 87
    assert lost <= 1.0
