"""samples/classification/keras_cnn: the three scripts, one after the other."""

import importlib.util
from functools import partial

import numpy as np
import pytest
from keras_nets import QUIET, images, keras
from samples_run import run_sample

import onnxdrp
from onnxdrp.keras.pruner import wrappers

pytestmark = QUIET


@pytest.mark.slow
@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow" or not importlib.util.find_spec("tf2onnx"),
    reason="exported by tensorflow and tf2onnx",
)
def test_the_scripts_write_files_of_the_rate_asked_for(tmp_path):
    x, y = images(160, side=32)
    x = np.clip(128 + 40 * x, 0, 255).astype(np.uint8)
    np.savez(tmp_path / "images.npz", x=x, y=y)
    script = partial(run_sample, "keras_cnn")

    out = script("train", tmp_path, "--max_epochs", "2", "--lr", "0.002")
    assert "accuracy on 32 test images" in out
    for kind, options in (
        ("oneshot", ()),
        ("gradual", ("--pretrained_weight", "pretrained_cnn.keras")),
    ):
        rate = ("--pruning_rate", "0.6", "--max_epochs", "3")
        out = script(f"retrain_with_{kind}_pruning", tmp_path, *rate, *options)
        assert out.count("accuracy on 32 test images") == 2
        rows = onnxdrp.info(tmp_path / f"{kind}_pruned_cnn.onnx").layers
        assert [row.sparsity for row in rows] == pytest.approx([0, 0.6, 0.6, 0.6, 0], abs=2e-3)
        kept = keras.models.load_model(tmp_path / f"{kind}_pruned_cnn.keras")
        assert len(wrappers(kept)) == 3
        zeros = [row.zeros for row in rows[1:4]]
        assert [int((~w.keep).sum()) for w in wrappers(kept).values()] == zeros
    assert onnxdrp.info(tmp_path / "pretrained_cnn.onnx").sparsity == 0
