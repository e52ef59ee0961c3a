"""Removes channels with onnxsim; run by structured.py with an interpreter that has onnxsim.

Run: python benchmarks/onnxsim_structured.py MODEL.onnx SPARSITY RESULT.onnx
It prints JSON: `seconds` of the pruning alone, imports not counted.
"""

import json
import sys
import time
from pathlib import Path

import onnx
import onnxsim


def main(model: str, sparsity: str, result: str) -> None:
    """Write the smaller model and print the figures."""
    proto = onnx.load(model)  # noqa: TID251 - onnxsim takes protos
    started = time.perf_counter()
    pruned = onnxsim.apply_structured_pruning(proto, sparsity=float(sparsity))
    seconds = time.perf_counter() - started
    Path(result).write_bytes(pruned.SerializeToString())
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
