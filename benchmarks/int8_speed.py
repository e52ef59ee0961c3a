"""What onnxruntime on the CPU makes of an INT8 model: its latency, and what stays float in it."""

import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort

__all__ = ["latencies", "left_over", "session"]

COPYING = {
    "Cast", "Concat", "Constant", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity",
    "MaxPool", "Pad", "ReorderInput", "ReorderOutput", "Reshape", "Resize", "Shape", "Slice",
    "SpaceToDepth", "Split", "Squeeze", "Transpose", "Unsqueeze",
}  # fmt: skip
"""Operators that compute nothing: it does not matter in which type they are."""


def session(path: str | Path, optimized: str | None = None) -> ort.InferenceSession:
    """A session with all optimizations, on all cores.

    Its threads do not spin while they wait: those of one session would take the cores of another.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    if optimized is not None:
        options.optimized_model_filepath = optimized
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def latencies(
    paths: dict[str, Path], feed: dict[str, Any], repeats: int, most_seconds: float = 60.0
) -> dict[str, float]:
    """{name: median seconds of one run}: all models in turn, so that all meet the same machine."""
    sessions = {name: session(path) for name, path in paths.items()}
    for one in sessions.values():
        one.run(None, feed)
    times: dict[str, list[float]] = {name: [] for name in sessions}
    started = time.perf_counter()
    for done in range(repeats):
        for name, one in sessions.items():
            began = time.perf_counter()
            one.run(None, feed)
            times[name].append(time.perf_counter() - began)
        if done > 4 and time.perf_counter() - started > most_seconds:
            break
    return {name: statistics.median(found) for name, found in times.items()}


def left_over(path: Path) -> dict[str, int]:
    """Nodes of the optimized model: integer ones, those that compute in float, Q and DQ."""
    with tempfile.TemporaryDirectory() as folder:
        optimized = f"{folder}/optimized.onnx"
        session(path, optimized)
        ops = Counter(n.op_type for n in onnx.load(optimized).graph.node)  # noqa: TID251
    found = {"integer": 0, "float": 0, "quantize": ops.pop("QuantizeLinear", 0)}
    found["dequantize"] = ops.pop("DequantizeLinear", 0)
    for op, count in ops.items():
        if op.startswith(("QLinear", "QGemm", "ConvInteger", "MatMulInteger", "DynamicQuantize")):
            found["integer"] += count
        elif op not in COPYING:
            found["float"] += count
    return found
