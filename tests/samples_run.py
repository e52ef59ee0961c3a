"""Runs the scripts of samples/ as a user does: in a folder of one's own."""

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["run_sample"]

ROOT = Path(__file__).parents[1]


def run_sample(name: str, script: str, folder: Path, *options: str) -> str:
    """What a script of samples/classification/NAME prints, on images.npz in the folder."""
    file = ROOT / "samples" / "classification" / name / f"{script}.py"
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(file), "--data", "images.npz", *options]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": path}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
