"""samples/classification/pytorch_mobilenetv2: the three scripts, one after the other."""

from functools import partial

import numpy as np
import pytest
from samples_run import run_sample
from torch_nets import torch

import onnxdrp
from onnxdrp import demo


@pytest.mark.slow
def test_the_scripts_write_files_of_the_rate_asked_for(tmp_path):
    with np.load(demo.TEST) as file:
        np.savez(tmp_path / "images.npz", x=file["x"][:160], y=file["y"][:160])
    script = partial(run_sample, "pytorch_mobilenetv2")

    out = script("train", tmp_path, "--max_epochs", "1", "--lr", "0.02")
    assert "accuracy on 32 test images" in out
    before = onnxdrp.info(tmp_path / "pretrained_mobilenetv2.onnx")
    assert before.sparsity < 1e-4
    pruned = {row.name for row in before.layers if row.prunable}
    for kind, options in (
        ("oneshot", ()),
        ("gradual", ("--pretrained_weight", "pretrained_mobilenetv2.pth")),
    ):
        rate = ("--pruning_rate", "0.6", "--max_epochs", "2")
        out = script(f"retrain_with_{kind}_pruning", tmp_path, *rate, *options)
        assert out.count("accuracy on 32 test images") == 2
        after = onnxdrp.info(tmp_path / f"{kind}_pruned_mobilenetv2.onnx")
        rows = {row.name: row for row in after.layers}
        assert len(pruned) > 20
        assert all(rows[name].sparsity == pytest.approx(0.6, abs=0.016) for name in pruned)
        assert all(rows[name].sparsity < 1e-4 for name in rows.keys() - pruned)
        assert sum(rows[name].weights for name in pruned) > 0.9 * sum(
            r.weights for r in after.layers
        )
        state = torch.load(tmp_path / f"{kind}_pruned_mobilenetv2.pth")
        masks = [value for name, value in state.items() if name.endswith("weight_mask")]
        assert len(masks) == len(pruned)
