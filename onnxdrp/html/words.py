"""Figures in words: with thousands, with units, and what changed."""

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["amount", "brief", "change", "number", "of_bytes", "shape"]

_THOUSANDS = ("", " thousand", " million", " billion")
_BYTES = ("bytes", "KB", "MB", "GB", "TB")


def number(value: Any, digits: int = 4) -> str:
    """A figure: counts with thousands, others with so many digits; "" of None."""
    if value is None:
        return ""
    if isinstance(value, bool | str):
        return "∞" if value == "inf" else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.{digits}g}".replace("-", "−").replace("e−0", "e−").replace("e+0", "e")


def amount(value: float) -> str:
    """A large count: 105.7 million."""
    for unit in _THOUSANDS[:-1]:
        if abs(value) < 999.5 or (not unit and abs(value) < 10_000):
            return f"{value:,.4g}{unit}" if unit else f"{value:,.0f}"
        value /= 1000
    return f"{value:,.4g}{_THOUSANDS[-1]}"


def of_bytes(value: float) -> str:
    """2.79 MB."""
    for unit in _BYTES[:-1]:
        if abs(value) < 1000:
            return f"{value:,.3g} {unit}"
        value /= 1000
    return f"{value:,.3g} {_BYTES[-1]}"


def change(before: float, after: float) -> str:
    """−49.6 %; "" where there was nothing."""
    if not before:
        return ""
    percent = 100 * (after / before - 1)
    return f"{'−' if percent < 0 else '+'}{abs(percent):.3g} %" if percent else "unchanged"


def shape(sides: Any) -> str:
    """1 × 3 × 224 × 224."""
    if sides is None:
        return ""
    return " × ".join("?" if side is None else str(side) for side in sides) or "scalar"


def brief(value: Any) -> str:
    """A figure of a pass: long ones by how many they are."""
    if isinstance(value, Mapping):
        if len(value) > 4 or any(isinstance(v, Mapping | list) for v in value.values()):
            return f"{len(value):,} entries"
        return ", ".join(f"{k} {brief(v)}" for k, v in value.items())
    if isinstance(value, list):
        if len(value) > 4 or any(isinstance(v, Mapping | list) for v in value):
            return f"{len(value):,} entries"
        return ", ".join(map(brief, value))
    return {True: "yes", False: "no"}.get(value, "") if isinstance(value, bool) else number(value)
