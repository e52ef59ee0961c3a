"""What a mask does to a weight, in figures, and what the user should know of them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxdrp.cycles import cycles_b, cycles_c
from onnxdrp.geometry import WeightGeometry, from_slabs
from onnxdrp.masks import Mask, dead_outputs
from onnxdrp.patterns import NM, Block, FlexNM, Pattern, Rate, Row, Unstructured, prune_count

__all__ = ["PrunedWeight", "expected_count", "units_of", "warnings_of"]

Array = npt.NDArray[Any]

_CHUNK = 1 << 13  # too short for a BLAS to share out over threads, which would cost far more

_READINGS = {
    "B": "whole vectors of one output and one slab are skipped",
    "C": "each slab costs as much as its fullest output",
}


@dataclass(frozen=True)
class PrunedWeight:
    """A mask and its figures.

    Attributes:
        mask: in the weight's own shape.
        rate: that was asked for.
        kept_l1: share of the sum of magnitudes that is kept.
        kept_l2: share of the L2 norm that is kept.
        dead_outputs: outputs without any weight.
        outputs: all outputs.
        cycles_b: modelled cycles under reading B, as a share of the dense weight's.
        cycles_c: the same under reading C.
    """

    mask: Mask
    rate: float
    kept_l1: float
    kept_l2: float
    dead_outputs: int
    outputs: int
    cycles_b: float
    cycles_c: float

    @classmethod
    def choose(
        cls, scores: Array, geometry: WeightGeometry, pattern: Pattern, rate: float
    ) -> "PrunedWeight":
        """The mask that a pattern makes of scores in the slab view."""
        return cls.of(pattern.mask(scores, rate), scores, geometry, rate)

    @classmethod
    def of(
        cls, keep: Array, magnitudes: Array, geometry: WeightGeometry, rate: float
    ) -> "PrunedWeight":
        """The figures of what is kept, both in the slab view."""
        mask = Mask(from_slabs(keep, geometry))
        l1, l2 = _kept(magnitudes, keep)
        return cls(
            mask=mask,
            rate=rate,
            kept_l1=l1,
            kept_l2=l2,
            dead_outputs=len(dead_outputs(mask.keep, geometry.output_axis)),
            outputs=geometry.shape[geometry.output_axis],
            cycles_b=cycles_b(keep) / keep.size,
            cycles_c=cycles_c(keep) / keep.size,
        )

    def as_dict(self) -> dict[str, Any]:
        """The figures as JSON can hold them."""
        return {
            "rate": self.rate,
            "sparsity": self.mask.sparsity,
            "kept_magnitude": {"l1": self.kept_l1, "l2": self.kept_l2},
            "dead_outputs": self.dead_outputs,
            "modelled_cycles": {"b": self.cycles_b, "c": self.cycles_c},
        }


def _kept(scores: Array, keep: Array) -> tuple[float, float]:
    """The shares of the L1 and L2 norm that stay; 1 for a weight that is all zero."""
    flat, kept = scores.reshape(-1), keep.reshape(-1)
    sums = np.zeros(4)
    for start in range(0, flat.size, _CHUNK):  # in float64, which a whole weight need not be
        piece = slice(start, start + _CHUNK)
        every = np.maximum(flat[piece], 0, dtype=np.float64)  # padding scores below 0
        alive = every * kept[piece]
        sums += (every.sum(), alive.sum(), every @ every, alive @ alive)
    if not sums[0]:
        return 1.0, 1.0
    return float(sums[1] / sums[0]), math.sqrt(sums[3] / sums[2])


def units_of(geometry: WeightGeometry, pattern: Pattern) -> int | None:
    """M, of which a rate prunes a whole number (onnxdrp.patterns); None for a pattern not known."""
    _, outputs, slabs, block = geometry.view_shape
    match pattern:
        case Block():
            return outputs
        case FlexNM() | Row():
            return slabs * block
        case NM():
            return block
        case Unstructured():
            return math.prod(geometry.shape)
        case _:
            return None


def expected_count(geometry: WeightGeometry, pattern: Pattern, rate: Rate) -> int | None:
    """How many weights a mask of this rate keeps; None for a pattern not known here."""
    units = units_of(geometry, pattern)
    if units is None:
        return None
    return math.prod(geometry.shape) // units * (units - prune_count(rate, units))


def warnings_of(pruned: Mapping[str, PrunedWeight], pattern: Pattern) -> list[str]:
    """Outputs left without weights, and readings of the hardware under which nothing is gained.

    Args:
        pruned: by layer name.
        pattern: of the masks.
    """
    found = []
    dead = {name: p for name, p in pruned.items() if p.dead_outputs}
    if dead:
        worst = max(dead, key=lambda name: dead[name].dead_outputs / dead[name].outputs)
        found.append(
            f"{sum(p.dead_outputs for p in dead.values())} outputs of {len(dead)} layers have no "
            f"weight left ({worst!r}: {dead[worst].dead_outputs} of {dead[worst].outputs}) and "
            "give constants; lower the rate of these layers, take another pattern, or remove them"
        )
    asked = [p for p in pruned.values() if p.rate > 0]
    for letter, what in _READINGS.items():
        shares = [p.cycles_b if letter == "B" else p.cycles_c for p in asked]
        idle = sum(share >= 1 for share in shares)
        if idle:
            found.append(
                f"pattern {pattern.name} gains nothing in {idle} of {len(asked)} layers if the "
                f"hardware works as in reading {letter} ({what}; a model, not a measurement)"
            )
    return found
