"""Prunes a model with onnxsim's SparseGPT; run by recover.py with an interpreter that has onnxsim.

Run: python benchmarks/onnxsim_sparsegpt.py MODEL.onnx IMAGES.npy SPARSITY RESULT.onnx
It prints JSON: `seconds` of the pruning alone, imports not counted, and `peak_mb`, the peak of what
the process has of its own.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxsim
from anonymous import AnonymousMemory

BATCH = 50


def main(model: str, images: str, sparsity: str, result: str) -> None:
    """Write the pruned model and print the figures."""
    proto = onnx.load(model)  # noqa: TID251 - onnxsim takes protos
    name, rows = proto.graph.input[0].name, np.load(images)
    batches = [{name: rows[i : i + BATCH]} for i in range(0, len(rows), BATCH)]
    watch = AnonymousMemory()
    started = time.perf_counter()
    pruned = onnxsim.apply_sparsegpt_pruning(proto, batches, sparsity=float(sparsity))
    seconds = time.perf_counter() - started
    Path(result).write_bytes(pruned.SerializeToString())
    print(json.dumps({"seconds": seconds, "peak_mb": watch.stop() / 1e6}))


if __name__ == "__main__":
    main(*sys.argv[1:])
