"""Quantizers side by side: each takes a float model and a file of images and writes an INT8 model.

Each runs in a process of its own, `measured`: the seconds are those of the quantization alone, from
the float file to the INT8 file, after a first one of a tiny model, so that imports do not count;
the memory is the peak of what the process has of its own (RssAnon), imports included.

    onnxdrp TARGET      `onnxdrp.quantize` with the profile's defaults; all images calibrate, the
                        figures of its own report are of the first eight
    onnxruntime METHOD  the opset raised to 13 by onnx, without which its scales by channel are
                        invalid; quant_pre_process; quantize_static with Q/DQ, uint8 activations
                        and int8 weights. Entropy with 2048 bins: with its default, 128 for 128
                        levels, it has one candidate, and gives the ranges of MinMax
    nncf                `nncf.quantize`, preset MIXED, target CPU, fast bias correction

"tensor" after a name: one weight scale for a tensor; else each has one for each output channel
(onnxdrp: what the profile says).

onnxruntime's histogram calibrations keep every float tensor of every image: they are given as many
images as fit into `most_mb` by the sizes of the tensors.
"""

import importlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.version_converter

from onnxdrp.targets import list_targets

__all__ = ["Job", "available", "columns", "measured"]

ORT_METHODS = ("MinMax", "Percentile", "Entropy")
ENTROPY_BINS = 2048
REPORTED = 8  # images of the figures of onnxdrp's own report
COPIES = 2.2  # of the kept tensors, at the peak of a histogram calibration


@dataclass
class Job:
    """One quantization.

    Attributes:
        column: of `columns`.
        model: the float model.
        rows: an .npy file of its calibration images, [images, ...] float32.
        result: where the INT8 model goes.
        most_mb: memory for the images of histogram calibrations.
    """

    column: str
    model: str
    rows: str
    result: str
    most_mb: float


def columns() -> list[str]:
    """The names of all quantizers, ours first."""
    ours = [f"onnxdrp {target}" for target in sorted(list_targets(), key=lambda t: t != "generic")]
    ours.insert(1, "onnxdrp generic tensor")
    ort = [f"onnxruntime {m}{t}" for t in ("", " tensor") for m in ORT_METHODS]
    return [*ours, *ort, "nncf", "nncf tensor"]


def available(column: str) -> bool:
    """Whether what the column needs is installed."""
    return not column.startswith("nncf") or importlib.util.find_spec("nncf") is not None


def measured(job: Job) -> dict[str, Any]:
    """Run a job in a process of its own: seconds, peak_mb, images, or "failed" with the reason."""
    arguments = [sys.executable, __file__, json.dumps(asdict(job))]
    done = subprocess.run(arguments, check=False, text=True, capture_output=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return {"failed": lines[-1][:200]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


# ------------------------------------------------------------------------------------- in the child

Work = Callable[[Job], dict[str, Any]]


def _onnxdrp(job: Job) -> Work:
    import onnxdrp
    import onnxdrp.passes

    words = job.column.split()
    options: dict[str, Any] = {"per_channel": False} if words[2:] == ["tensor"] else {}

    def work(job: Job) -> dict[str, Any]:
        rows = np.load(job.rows, mmap_mode="r")
        report = onnxdrp.quantize(job.model, rows, data=rows[:REPORTED], target=words[1], **options)
        report.model.save(job.result)
        passes = {r.name: round(r.seconds, 3) for r in report.records}
        return {"images": len(rows), "passes": passes, "warnings": report.warnings}

    return work


def _onnxruntime(job: Job) -> Work:
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    method, by_channel = job.column.split()[1], not job.column.endswith(" tensor")
    # the package gives a function the name of the module
    module = importlib.import_module("onnxruntime.quantization.quantize")
    create = module.create_calibrator

    def finer(*args: Any, **options: Any) -> Any:
        """quantize_static has no option for the bins of Entropy."""
        extra = options.pop("extra_options", None) or {}
        if method == "Entropy":
            extra["num_bins"] = ENTROPY_BINS
        return create(*args, extra_options=extra, **options)

    vars(module)["create_calibrator"] = finer

    class Images(quantization.CalibrationDataReader):  # type: ignore[misc]  # it has no types
        def __init__(self, name: str, rows: np.ndarray[Any, Any]) -> None:
            self.feeds: Iterator[dict[str, Any]] = ({name: row[None]} for row in rows)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.feeds, None)

    def work(job: Job) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            raised, prepared = f"{folder}/raised.onnx", f"{folder}/prepared.onnx"
            _raise_opset(job.model, raised)
            try:
                quant_pre_process(raised, prepared)
            except Exception:  # its symbolic inference fails on some models
                quant_pre_process(raised, prepared, skip_symbolic_shape=True)
            proto = onnx.load(prepared)  # noqa: TID251 - of onnxruntime's own making
            rows = np.load(job.rows)
            fit = len(rows) if method == "MinMax" else int(job.most_mb / (COPIES * _mb(proto)))
            rows = rows[np.linspace(0, len(rows) - 1, max(1, min(fit, len(rows)))).astype(int)]
            quantization.quantize_static(
                prepared,
                job.result,
                Images(proto.graph.input[0].name, rows),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=by_channel,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                calibrate_method=quantization.CalibrationMethod[method],
            )
        return {"images": len(rows)}

    return work


def _raise_opset(path: str, result: str) -> None:
    """A copy of the model, of opset 13 where it had less."""
    proto = onnx.load(path)  # noqa: TID251 - as a user of onnxruntime does it
    if max(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")) < 13:
        proto = onnx.version_converter.convert_version(proto, 13)
    Path(result).write_bytes(proto.SerializeToString())


def _mb(proto: onnx.ModelProto) -> float:
    """The size of all float tensors that a model computes for one image."""
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    size = 0
    for value in (*inferred.value_info, *inferred.output):
        kind = value.type.tensor_type
        if kind.elem_type == onnx.TensorProto.FLOAT:
            size += 4 * int(np.prod([max(1, d.dim_value) for d in kind.shape.dim]))
    return size / 1e6


def _nncf(job: Job) -> Work:
    import nncf
    from nncf.quantization import advanced_parameters as advanced

    options: dict[str, Any] = {}
    if job.column.endswith(" tensor"):
        options["advanced_parameters"] = advanced.AdvancedQuantizationParameters(
            weights_quantization_params=advanced.QuantizationParameters(per_channel=False)
        )

    def work(job: Job) -> dict[str, Any]:
        rows = np.load(job.rows, mmap_mode="r")
        proto = onnx.load(job.model)  # noqa: TID251 - nncf takes protos
        name = proto.graph.input[0].name
        quantized = nncf.quantize(
            proto,
            nncf.Dataset(range(len(rows)), lambda i: {name: np.ascontiguousarray(rows[i : i + 1])}),
            preset=nncf.QuantizationPreset.MIXED,
            target_device=nncf.TargetDevice.CPU,
            subset_size=len(rows),
            **options,
        )
        Path(job.result).write_bytes(quantized.SerializeToString())
        return {"images": len(rows)}

    return work


TOOLS = {"onnxdrp": _onnxdrp, "onnxruntime": _onnxruntime, "nncf": _nncf}


def _tiny(job: Job, folder: Path) -> Job:
    """The same for one convolution, by which everything that is imported late is imported."""
    helper, numbers = onnx.helper, np.random.default_rng(0).standard_normal((4, 3, 8, 8))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], "conv")],
        "tiny",
        [value("x", onnx.TensorProto.FLOAT, [1, 3, 8, 8])],
        [value("y", onnx.TensorProto.FLOAT, [1, 4, 1, 1])],
        [onnx.numpy_helper.from_array(numbers.astype(np.float32), "w")],
    )
    opset = [helper.make_opsetid("", 17)]
    proto = helper.make_model(graph, ir_version=8, opset_imports=opset)
    (folder / "tiny.onnx").write_bytes(proto.SerializeToString())
    np.save(folder / "rows.npy", numbers.astype(np.float32))
    paths = [str(folder / name) for name in ("tiny.onnx", "rows.npy", "result.onnx")]
    return Job(job.column, *paths, job.most_mb)


def main() -> None:
    """Measure the job of the command line."""
    from anonymous import AnonymousMemory
    from int8_speed import session

    job = Job(**json.loads(sys.argv[1]))
    work = TOOLS[job.column.split()[0]](job)
    with tempfile.TemporaryDirectory() as folder:
        work(_tiny(job, Path(folder)))
    watch = AnonymousMemory()
    started = time.perf_counter()
    found = work(job)
    seconds = time.perf_counter() - started
    session(job.result)  # one that does not load has failed
    print(json.dumps({**found, "seconds": seconds, "peak_mb": watch.stop() / 1e6}))


if __name__ == "__main__":
    main()
