"""Tensors that calibration can make little of: empty, all zero, or the same value everywhere."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from onnxdrp.ranges import Ranges, TensorRange

if TYPE_CHECKING:
    from onnxdrp.model import Model

__all__ = ["odd_tensors", "odd_warnings"]

_ADVICE = {
    "empty_tensors": (
        "no value in any sample, so the range is [0, 0]; calibrate on data for which there are some"
    ),
    "zero_tensors": "nothing but zeros; check the data and its scale, mean and std",
    "constant_tensors": "one value throughout; check that the data varies",
}
_TOLD = 3  # tensors in a warning


def odd_tensors(model: "Model", ranges: Ranges) -> dict[str, dict[str, str]]:
    """{"empty_tensors", "zero_tensors", "constant_tensors": {tensor: what it is, in words}}."""
    tensors = model.tensors()
    found: dict[str, dict[str, str]] = {kind: {} for kind in _ADVICE}
    for name, seen in ranges.tensors.items():
        kind = _kind(seen)
        if kind is not None:
            made_by = tensors[name].inputs
            where = f"of node {made_by[0].name!r}" if made_by else "of the input"
            value = "no value" if kind == "empty_tensors" else f"always {_ends(seen)[0]:g}"
            found[kind][name] = f"{where}: {value}"
    return found


def odd_warnings(found: Mapping[str, Mapping[str, str]]) -> list[str]:
    """A line for each kind, with the first tensors of it and what to do."""
    lines = []
    for kind, advice in _ADVICE.items():
        told = [f"{name!r} {text.rpartition(': ')[0]}" for name, text in found[kind].items()]
        if told:
            more = f" and {len(told) - _TOLD} more" if told[_TOLD:] else ""
            lines.append(f"{', '.join(told[:_TOLD])}{more}: {advice}")
    return lines


def _kind(seen: TensorRange) -> str | None:
    low, high = _ends(seen)
    if seen.count == 0:
        return "empty_tensors"
    if low != high:
        return None
    return "constant_tensors" if low else "zero_tensors"


def _ends(seen: TensorRange) -> tuple[float, float]:
    if seen.min is None or seen.max is None:
        return seen.low, seen.high
    return seen.min, seen.max
