"""Measure what notebook 04 draws: top-1 by sparsity, pattern and recovery, on the bundled model.

    python notebooks/data/measure.py [--distill]

Writes recovery.json beside this file, a row at a time, and goes on with what is missing: begin anew
by deleting it. Some 20 minutes on two cores; --distill adds another 20, and needs torch.

    sparsity, pattern, recovery    as `onnxdrp prune` has them; "magnitude" is pruned without data:
                                   uniform, smallest first, nothing repaired
    top1, current_mac              in percent of the 1,000 test images; multiply-adds that are left
"""

import argparse
import json
from itertools import product
from pathlib import Path
from typing import Any

import onnxdrp
from onnxdrp import demo

FILE = Path(__file__).with_name("recovery.json")
SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.9)
PATTERNS = ("flex-nm", "block")
RECOVERIES = ("magnitude", "none", "refit")
DISTILL_MINUTES = 2.0
DISTILLED = (0.8, 0.9)  # where it pays


def measured(sparsity: float, pattern: str, recovery: str) -> dict[str, Any]:
    """A row of the file."""
    model = onnxdrp.load(demo.MODEL)
    images = {"mean": demo.MEAN, "std": demo.STD, "batch": 20}
    how: dict[str, Any] = {}
    if recovery != "magnitude":
        calib = onnxdrp.open_reader(demo.CALIBRATE_IMAGES, model, **images)
        how = {"calib": calib, "recover": recovery}
    if recovery == "distill":
        how["distill_minutes"] = DISTILL_MINUTES
    report = onnxdrp.prune(model, sparsity=sparsity, pattern=pattern, **how)
    test = onnxdrp.open_reader(demo.TEST, model, **images)
    return {
        "sparsity": sparsity,
        "pattern": pattern,
        "recovery": recovery,
        "top1": round(onnxdrp.evaluate(report.model, test).as_dict()["top1"], 2),
        "current_mac": report.summary["current_mac"],
        "baseline_mac": report.summary["baseline_mac"],
    }


def main(distill: bool) -> None:
    """Measure what the file has not."""
    rows = json.loads(FILE.read_text("utf-8")) if FILE.exists() else []
    done = {(row["sparsity"], row["pattern"], row["recovery"]) for row in rows}
    recoveries = [*RECOVERIES, "distill"] if distill else RECOVERIES
    for recovery, pattern, sparsity in product(recoveries, PATTERNS, SPARSITIES):
        if recovery == "distill" and sparsity not in DISTILLED:
            continue
        if (sparsity, pattern, recovery) not in done:
            rows.append(measured(sparsity, pattern, recovery))
            lines = ",\n ".join(map(json.dumps, rows))
            FILE.write_text(f"[{lines}]\n", encoding="utf-8")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--distill", action="store_true", help="repair by distillation, too")
    main(options.parse_args().distill)
