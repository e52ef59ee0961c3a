"""samples/classification/pytorch_mobilenetv2: the three scripts, one after the other."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from torch_nets import torch

import onnxdrp
from onnxdrp import demo

FOLDER = Path(__file__).parents[1] / "samples" / "classification" / "pytorch_mobilenetv2"


@pytest.mark.slow
def test_the_scripts_write_files_of_the_rate_asked_for(tmp_path):
    with np.load(demo.TEST) as file:
        np.savez(tmp_path / "images.npz", x=file["x"][:160], y=file["y"][:160])
    path = os.pathsep.join([str(FOLDER.parents[2]), os.environ.get("PYTHONPATH", "")])

    def script(name, *options):
        command = [sys.executable, str(FOLDER / f"{name}.py"), "--data", "images.npz", *options]
        done = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    out = script("train", "--max_epochs", "1", "--lr", "0.02")
    assert "accuracy on 32 test images" in out
    before = onnxdrp.info(tmp_path / "pretrained_mobilenetv2.onnx")
    assert before.sparsity < 1e-4
    pruned = {row.name for row in before.layers if row.prunable}
    for kind, options in (
        ("oneshot", ()),
        ("gradual", ("--pretrained_weight", "pretrained_mobilenetv2.pth")),
    ):
        rate = ("--pruning_rate", "0.6", "--max_epochs", "2")
        out = script(f"retrain_with_{kind}_pruning", *rate, *options)
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
