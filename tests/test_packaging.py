"""What is installed, what `import onnxdrp` costs, and that the example in CONTRIBUTING.md runs."""

import re
import shutil
import subprocess
import sys
import zipfile
from importlib import import_module
from pathlib import Path

import numpy as np
import onnx
import pytest
from builders import conv_net

import onnxdrp
from onnxdrp.instruments import Verify
from onnxdrp.model import Model
from onnxdrp.pipeline import PassManager
from onnxdrp.recipe import load_recipe
from onnxdrp.report import versions

ROOT = Path(__file__).parents[1]
FOLDERS = {"onnxdrp": "onnxdrp", "passes": "onnxdrp/passes", "datareaders": "onnxdrp/datareaders"}
HEAVY = (
    "onnxruntime", "scipy", "sympy", "PIL", "rich", "onnxscript", "pycocotools",
    "matplotlib", "torch",
)  # fmt: skip


def python(code: str, *, cwd: Path = ROOT, **environment: str) -> str:
    """What a fresh interpreter prints."""
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd, env={"PATH": "", **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy so that nothing is left in the checkout."""
    source = tmp_path_factory.mktemp("source")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist", "."]
    run = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    (built,) = (source / "dist").glob("*.whl")
    return built


def test_onnxdrp_is_the_only_name_that_is_installed(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert tops == {"onnxdrp", f"onnxdrp-{onnxdrp.__version__}.dist-info"}


def test_every_file_of_the_packages_is_installed(wheel: Path) -> None:
    wanted = {
        f"{target}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, target in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        installed = {name for name in archive.namelist() if name.startswith("onnxdrp/")}
        info = f"onnxdrp-{onnxdrp.__version__}.dist-info"
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
        metadata = archive.read(f"{info}/METADATA").decode()
    assert installed == wanted
    for name in ("py.typed", "demo/modA.onnx", "demo/test.npz", "targets/generic.toml"):
        assert f"onnxdrp/{name}" in installed
    assert sum(name.startswith("onnxdrp/demo/calibrate_images/") for name in installed) == 200
    assert "onnxdrp = onnxdrp.cli:main" in entry_points
    assert "Apache-2.0" in metadata


def test_the_installed_package_works_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import onnxdrp, onnxdrp.passes, onnxdrp.datareaders, onnxdrp.targets, onnxdrp.demo\n"
        "print(onnxdrp.__file__, onnxdrp.passes.__file__, onnxdrp.datareaders.__file__)\n"
        "print(onnxdrp.targets.load_target('generic').name, len(onnxdrp.__path__))\n"
        "print(onnxdrp.Model.load(onnxdrp.demo.MODEL).inputs[0])"
    )
    lines = python(code, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site")).splitlines()
    assert all(path.startswith(str(tmp_path / "site")) for path in lines[0].split())
    assert lines[1] == "generic 1"
    assert "float32" in lines[2]


def test_a_bare_checkout_works() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "onnxdrp", "--help"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("Usage: ")
    assert "optimize" in run.stdout
    where = python(
        "import onnxdrp.passes as p, onnxdrp.datareaders as d\nprint(p.__file__, d.__file__)"
    )
    assert where.split() == [str(ROOT / n / "__init__.py") for n in ("passes", "datareaders")]


def test_the_folders_are_no_packages_of_their_own(tmp_path: Path) -> None:
    code = "import importlib.util as u; print(u.find_spec('passes'), u.find_spec('datareaders'))"
    assert python(code, cwd=tmp_path) == "None None"


@pytest.mark.parametrize("names", ["", "Model, PassManager, PassContext"])
def test_importing_costs_little(names: str) -> None:
    code = f"""
import sys, time, onnx, numpy
start = time.perf_counter()
import onnxdrp
{f"from onnxdrp import {names}" if names else ""}
seconds = time.perf_counter() - start
heavy = [name for name in {HEAVY!r} if name in sys.modules]
print(seconds, heavy)
"""
    results = [python(code).split(maxsplit=1) for _ in range(3)]
    assert {heavy for _, heavy in results} == {"[]"}
    assert min(float(seconds) for seconds, _ in results) < 0.5


def test_help_loads_nothing_heavy() -> None:
    code = f"""
import sys
from click.testing import CliRunner
from onnxdrp.cli import cli
assert CliRunner().invoke(cli, ["--help"]).exit_code == 0
print([name for name in {("onnx", "numpy", *HEAVY)!r} if name in sys.modules])
"""
    assert python(code) == "[]"


def test_versions_agree() -> None:
    assert versions()["onnxdrp"] == onnxdrp.__version__
    assert versions()["onnx"] == onnx.__version__


def test_the_example_pass_of_contributing_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    example = next(b for b in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "(Pass)" in b)
    (tmp_path / "clip_weights.py").write_text(example, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "clip_weights", raising=False)
    step = import_module("clip_weights").ClipWeights(sigmas=2.0)
    (again,) = load_recipe('[[pass]]\nname = "clip_weights:ClipWeights"\nsigmas = 2.0\n')
    assert again == step
    model = Model.from_proto(conv_net())
    before = {name: model.weight(name) for name in ("conv1.weight", "conv2.weight", "fc.weight")}
    first, second = PassManager([step, type(step)(sigmas=50.0)], [Verify()]).run(model).records
    assert first.modified
    assert set(first.stats["clipped"]) == {"conv1.weight", "conv2.weight"}
    assert not second.modified
    for name in ("conv1.weight", "conv2.weight"):
        limit = 2 * before[name].std()
        want = np.clip(before[name], -limit, limit)
        assert (model.weight(name) == want).all()
        assert (want != before[name]).sum() == first.stats["clipped"][name]
    assert (model.weight("fc.weight") == before["fc.weight"]).all()
    lines = example.strip().splitlines()
    assert len(lines) <= 30, "the example is to stay short"
