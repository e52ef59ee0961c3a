"""The JSON of every command, in the places that the page has for it.

A report of passes is there as it is. Of what else --json prints, each kind is known by its keys,
and of the files that commands write by their `format`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from onnxdrp.errors import OptionError

__all__ = ["as_report"]

Report = Mapping[str, Any]


def as_report(found: Any) -> Report:
    """What the sections of a page read; without any figure where the kind is not known.

    Raises:
        OptionError: it is no JSON object.
    """
    if not isinstance(found, Mapping):
        raise OptionError("the JSON is no table; give what --report or --json wrote")
    if "passes" in found:
        return found
    kind = next((read for keys, read in _KINDS if keys <= found.keys()), None)
    return found if kind is None else kind(found)


def _of_demo(found: Report) -> Report:
    return {**found["report"], "models": found["models"]}


def _of_file(found: Report) -> Report:
    where = next((name for key, name in _FILES.items() if key in found), None)
    known = where is not None and str(found["format"]).startswith("onnxdrp")
    return {where: found, "input": found.get("model", "")} if known and where else {}


def _of_compare(found: Report) -> Report:
    figures = ("sqnr_db", "max_abs_error", "cosine", "top1_agreement")
    fidelity = {key: found[key] for key in figures} | {"of": "the data given"}
    files = {key: found[key] for key in ("input", "output") if key in found}
    return {**files, "fidelity": fidelity, "compared": found}


def _of_evaluate(found: Report) -> Report:
    return {"input": found.get("input", ""), "evaluated": found}


def _of_explain(found: Report) -> Report:
    return {"input": found.get("input", ""), "plan": found}


def _of_info(found: Report) -> Report:
    total = found["total"]
    rows = [
        r | {"mac_before": r["baseline_mac"], "mac_after": r["current_mac"]}
        for r in found["layers"]
    ]
    warned = [
        f"multiply-adds of layer {name!r} are not counted: {why}; give the inputs fixed shapes"
        for name, why in total.get("uncounted", {}).items()
    ]
    return {
        "input": found.get("input", ""),
        **{key: value for key, value in total.items() if key != "uncounted"},
        **({"warnings": warned} if warned else {}),
        "layers": rows,
    }


_FILES = {"units": "sensitivity", "curves": "sensitivity", "points": "front", "tensors": "ranges"}
_KINDS: tuple[tuple[set[str], Callable[[Report], Report]], ...] = (
    ({"report", "models"}, _of_demo),
    ({"format"}, _of_file),
    ({"outputs", "cosine", "layers"}, _of_compare),
    ({"top1", "samples"}, _of_evaluate),
    ({"map_50", "samples"}, _of_evaluate),
    ({"nodes", "quantized_nodes"}, _of_explain),
    ({"total", "layers"}, _of_info),
)
