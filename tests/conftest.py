"""What several test files need: the real models, and the shared data where a machine has it."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

from onnxdrp import job

# The same examples in every run; --hypothesis-profile=explore looks for new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None, max_examples=20_000)
settings.load_profile("repeatable")

ROOT = Path(__file__).parents[1]


def _shared() -> Path | None:
    folder = os.environ.get("ONNXDRP_SHARED")
    return Path(folder) if folder else None


def pytest_report_header() -> str:
    folder = _shared()
    if folder is None:
        return "shared data: none (ONNXDRP_SHARED is not set; tests that need it are skipped)"
    return f"shared data: {folder}{'' if folder.is_dir() else ' (MISSING)'}"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared models and data; skips where there is none."""
    folder = _shared()
    if folder is None:
        pytest.skip("ONNXDRP_SHARED does not name a folder of shared models and data")
    if not (folder / "models").is_dir():
        pytest.fail(f"ONNXDRP_SHARED={folder} holds no models/")
    return folder


@pytest.fixture(scope="session", name="modA")
def mod_a() -> Path:
    """models/modA.onnx: a small ResNet, NCHW, as PyTorch exports it."""
    return ROOT / "models" / "modA.onnx"


@pytest.fixture(scope="session", name="modB")
def mod_b() -> Path:
    """models/modB.onnx: the same network, NHWC, as Keras exports it."""
    return ROOT / "models" / "modB.onnx"


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many samples each run of a session was given, but those of the proof."""
    sizes: list[int] = []
    run = job.run_batch

    def spied(runners, batch, whole=()):
        sizes.append(len(batch.samples))
        return run(runners, batch, whole)

    monkeypatch.setattr(job, "run_batch", spied)
    return sizes
