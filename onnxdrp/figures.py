"""What a run came to: the summary of its report."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from onnxdrp.details import describe
from onnxdrp.evaluation import Accuracy, accuracy, compare_models, paired_difference
from onnxdrp.masked import masked_copy
from onnxdrp.memory import peak_rss_mb
from onnxdrp.observe import BadSample

if TYPE_CHECKING:
    from onnxdrp.datareaders import DataReader
    from onnxdrp.model import Model
    from onnxdrp.pipeline import PassContext
    from onnxdrp.report import Report

__all__ = ["summarize"]

_WORST = 3
_REPAIRS = ("refit-weights", "match-moments", "distill", "auto-slim")


def summarize(
    report: "Report",
    original: "Model",
    ctx: "PassContext",
    held_out: "DataReader | None",
    labelled: "DataReader | None",
    *,
    skip_bad_samples: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
) -> None:
    """Fill `report.summary`: sparsity and MACs, bytes, fidelity to the original, accuracy, memory.

    Args:
        report: of the run; its model is the result.
        original: the model before the run.
        ctx: of the run.
        held_out: data that was not calibrated on, or None if there is no data at all.
        labelled: data with labels, or None.
        skip_bad_samples: leave samples that give NaN or infinity out of the fidelity.
        progress: called with (samples done, samples in all or None), anew for each measurement.
    """
    from onnxdrp.summary import summarize_layers

    model, summary = report.model, report.summary
    layers = summarize_layers(model, ctx.target.pattern)
    summary["sparsity"] = round(layers.sparsity, 6)
    summary["baseline_mac"], summary["current_mac"] = layers.baseline_mac, layers.current_mac
    before, after = original.inventory()[1], model.inventory()[1]
    summary["weight_bytes"] = {"before": before, "after": after}
    if report.slimming is not None:
        summary["compression_rate"] = round(1 - after / max(before, 1), 4)  # as CAC counts it
    if not {o.name for o in original.outputs} & {o.name for o in model.outputs}:
        held_out = None  # nothing compares
    # a page looks at both models once more: most runs make none, and `model` may be edited by then
    report.describe = partial(
        describe, original, model.clone(), ctx, layers, held_out, skip_bad_samples=skip_bad_samples
    )
    if held_out is not None:
        bad: list[BadSample] = []
        skip = bad.append if skip_bad_samples else None
        comparison = compare_models(
            original, model, held_out, on_bad=skip, progress=progress
        ).as_dict()
        del comparison["layers"], comparison["outputs"]
        samples = held_out.samples
        if bad and samples is not None:
            samples -= len({b.sample for b in bad})
        summary["fidelity"] = {**comparison, "samples": samples}
        if ctx.dense is not None and not bad and any(r.name in _REPAIRS for r in report.records):
            recovery = _recovery(comparison, ctx.dense, ctx, held_out, progress)
            summary["recovery"] = recovery | _worst(report)
    if labelled is not None and labelled.labels is not None:
        summary["accuracy"] = _change(
            accuracy(original, labelled, progress), accuracy(model, labelled, progress)
        )
    summary["peak_rss_mb"] = round(peak_rss_mb(), 1)


def _recovery(
    result: dict[str, Any],
    dense: "Model",
    ctx: "PassContext",
    held_out: "DataReader",
    progress: Callable[[int, int | None], None] | None,
) -> dict[str, Any]:
    """What pruning cost, and what is left of it once it is repaired, before any quantization.

    Args:
        result: how far the result of the run is from the original.
        dense: the model before it was pruned.
        ctx: of the run.
        held_out: the data of `result`.
        progress: as in `summarize`.
    """
    broken = masked_copy(ctx.slim or dense, ctx.masks)
    pruned = compare_models(dense, broken, held_out, progress=progress).as_dict()
    repaired = result
    if ctx.reference is not None:  # the result is quantized, too
        repaired = compare_models(dense, ctx.reference, held_out, progress=progress).as_dict()
    return {
        name: {key: figures[key] for key in ("sqnr_db", "top1_agreement")}
        for name, figures in (("pruned", pruned), ("repaired", repaired))
    }


def _worst(report: "Report") -> dict[str, Any]:
    """The layers that are farthest from what they should give, and by which share of its power."""
    fits = (r.stats["layers"] for r in report.records[::-1] if r.name == "refit-weights")
    layers: dict[str, dict[str, float]] = next(fits, {})
    errors = sorted(((f["after"], name) for name, f in layers.items()), reverse=True)
    found = {name: round(error, 4) for error, name in errors[:_WORST]}
    return {"worst_layers": found} if found else {}


def _change(before: Accuracy, after: Accuracy) -> dict[str, Any]:
    points, low, high = paired_difference(before.top1, after.top1)
    return {
        "top1_before": before.as_dict()["top1"],
        "top1_after": after.as_dict()["top1"],
        "change": points,
        "change_interval": (low, high),
        "samples": len(before.top1),
    }
