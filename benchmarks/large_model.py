"""Load, prune one layer in ten of, and save a model of more than 2 GB with external data.

Prints the median time as a ratio to copying the same files in the same run, and the peak anonymous
memory (mapped pages not counted). Run: python benchmarks/large_model.py FOLDER
"""

import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
import onnx
from anonymous import AnonymousMemory
from onnx import TensorProto, helper

WIDTH = 2496  # a layer is WIDTH x WIDTH float32: 24.9 MB
LAYERS = 90  # 2.24 GB


def build(folder: Path) -> Path:
    """Write the model layer by layer, so that building it takes no more memory than a layer."""
    path, rng = folder / "large.onnx", np.random.default_rng(0)
    nodes, tensors, offset = [], [], 0
    with (folder / "large.onnx.data").open("wb") as data:
        for i in range(LAYERS):
            weight = rng.standard_normal((WIDTH, WIDTH), dtype=np.float32) / np.float32(WIDTH**0.5)
            data.write(weight.tobytes())
            tensor = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=weight.shape)
            tensor.data_location = TensorProto.EXTERNAL
            place = {"location": "large.onnx.data", "offset": offset, "length": weight.nbytes}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            tensors.append(tensor)
            nodes.append(helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"], f"layer{i}"))
            offset += weight.nbytes
    value = helper.make_tensor_value_info
    ends = [value(n, TensorProto.FLOAT, ["batch", WIDTH]) for n in ("x0", f"x{LAYERS}")]
    graph = helper.make_graph(nodes, "large", ends[:1], ends[1:], tensors)
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)])
    path.write_bytes(model.SerializeToString())
    return path


def edit(path: Path, output: Path) -> None:
    """The work that is measured, in a process of its own."""
    from onnxdrp.model import Model
    from onnxdrp.passes import PruneBlocks, SelectLayers
    from onnxdrp.pipeline import PassContext, PassManager

    watch = AnonymousMemory()
    started = time.perf_counter()
    model, ctx = Model.load(path), PassContext()
    nine_of_ten = (r"re:layer\d*[0-46-9]",)
    PassManager([SelectLayers(rate=0.7, exclude=nine_of_ten), PruneBlocks()]).run(model, ctx)
    model.save(output)
    print(time.perf_counter() - started, watch.stop(), len(ctx.masks))


def check(path: Path, output: Path) -> None:
    """Every tenth layer has its zeros; all others are the same to the bit."""
    from onnxdrp.model import Model

    onnx.checker.check_model(str(output))
    before, after = Model.load(path), Model.load(output)
    for i in range(LAYERS):
        a, b = before.weight(f"w{i}"), after.weight(f"w{i}")
        if i % 10 == 5:
            zeros = float((b == 0).mean())
            assert 0.69 < zeros < 0.71, (i, zeros)
            assert np.array_equal(a[b != 0], b[b != 0])
        else:
            assert np.array_equal(a, b), i


def _clean(folder: Path, names: tuple[str, ...]) -> None:
    """Delete what was written and wait for the disk, so that nobody pays for another's writes."""
    for name in names:
        (folder / name).unlink(missing_ok=True)
    os.sync()


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--repeat", default=5, show_default=True)
@click.option("--edit-only", nargs=2, type=click.Path(path_type=Path), hidden=True)
def main(folder: Path, repeat: int, edit_only: tuple[Path, Path] | None) -> None:
    """Build the model in FOLDER (once), then measure; leaves only the model there."""
    if edit_only:
        edit(*edit_only)
        return
    folder.mkdir(parents=True, exist_ok=True)
    path, output = folder / "large.onnx", folder / "edited.onnx"
    if not path.exists():
        build(path.parent)
    files = [path, folder / "large.onnx.data"]
    size = sum(f.stat().st_size for f in files)
    copies, edits, memory = [], [], []
    names = ("copy-large.onnx", "copy-large.onnx.data", "edited.onnx", "edited.onnx.data")
    for _ in range(repeat):
        _clean(folder, names)
        started = time.perf_counter()
        for file in files:
            shutil.copyfile(file, folder / f"copy-{file.name}")
        copies.append(time.perf_counter() - started)
        _clean(folder, names)
        command = [sys.executable, __file__, str(folder), "--edit-only", str(path), str(output)]
        seconds, peak, layers = subprocess.check_output(command, text=True).split()
        edits.append(float(seconds))
        check(path, output)
        memory.append(int(peak) / 1e6)
    _clean(folder, names)
    copy, work = statistics.median(copies), statistics.median(edits)
    print(f"model: {size / 1e9:.2f} GB in {LAYERS} layers, {layers} of them pruned")
    print(f"copying the files: {copy:.2f} s (median of {repeat})")
    print(f"load, prune, save: {work:.2f} s, {work / copy:.2f} x the copy")
    print(f"peak anonymous memory: {max(memory):.0f} MB")


if __name__ == "__main__":
    main()
