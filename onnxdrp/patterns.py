"""The sparsity patterns.

A pattern turns scores (magnitudes in the slab view of onnxdrp.geometry: groups, outputs, slabs,
block) and a rate into a boolean `keep` of the same view. The rate p prunes floor(p*M + 1/2), in
exact decimals and at most M-1, of every M:

    block         M = outputs of the group, in each slab: whole vectors, ranked by their L2 norm
    flex-nm       M = row length: N_g weights of slab g in every output of the group, the N_g
                  chosen for the largest retained magnitude
    nm            M = block, in each vector
    row           M = row length, in each output
    unstructured  M = the layer

Of equal scores the one with the smaller index in the view is kept, so counts are exact and results
repeat.
"""

import difflib
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from onnxdrp.cycles import cycles_a, cycles_b, cycles_c
from onnxdrp.errors import ModelError, OptionError
from onnxdrp.geometry import WeightGeometry, from_slabs, magnitude, to_slabs
from onnxdrp.masks import Mask, dead_outputs, load_masks, save_masks
from onnxdrp.options import imported
from onnxdrp.ranking import Rate, above_threshold, exact_rate, largest, prune_count

__all__ = [
    "NM",
    "PATTERNS",
    "Block",
    "FlexNM",
    "Mask",
    "Pattern",
    "Rate",
    "Row",
    "Unstructured",
    "WeightGeometry",
    "cycles_a",
    "cycles_b",
    "cycles_c",
    "dead_outputs",
    "exact_rate",
    "from_slabs",
    "largest",
    "load_masks",
    "magnitude",
    "make_mask",
    "parse_pattern",
    "prune_count",
    "save_masks",
    "to_slabs",
    "without_rate",
]

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]


class Pattern(Protocol):
    """What the weights kept must look like. `keep` and `scores` are in the slab view."""

    @property
    def name(self) -> str:
        """What `parse_pattern` takes to make this pattern again."""

    @property
    def block(self) -> int:
        """How many consecutive input channels make a slab."""

    @property
    def fixed_rate(self) -> Fraction | None:
        """The rate, where the pattern itself sets it; no other may then be asked for."""

    def mask(self, scores: Array, rate: Rate) -> Bools:
        """The places to keep, so that the rate is met exactly and the most magnitude stays."""

    def valid(self, keep: Bools) -> bool:
        """Whether a mask has this pattern."""

    def cycles(self, keep: Bools) -> int:
        """The modelled cycles under the reading that the pattern stands for."""


@dataclass(frozen=True)
class _Shaped:
    """What the patterns share."""

    block: int = 32
    fixed_rate: ClassVar[Fraction | None] = None

    def __post_init__(self) -> None:
        if self.block < 1:
            raise OptionError(f"a block of {self.block} channels is not possible; use 1 or more")

    def _scores(self, scores: Array, *, padded: bool = False) -> Array:
        """The scores, wide enough to be squared and summed; refuses those that cannot be ranked."""
        if scores.ndim != 4 or scores.shape[-1] != self.block:
            raise ModelError(
                f"scores {list(scores.shape)} are not (groups, outputs, slabs, {self.block})"
            )
        if scores.dtype not in (np.float32, np.float64):
            scores = scores.astype(np.float32 if scores.dtype.itemsize <= 2 else np.float64)
        low, high = scores.min(), scores.max()
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ModelError("the weight holds NaN or infinity; mend the model before pruning it")
        if low < 0 and not padded:
            raise ModelError(f"its input channels are not a multiple of {self.block}")
        return scores


@dataclass(frozen=True)
class Block(_Shaped):
    """Whole vectors of one output live or die; every slab keeps the same number of them."""

    name: ClassVar[str] = "block"

    def mask(self, scores: Array, rate: Rate) -> Bools:
        """Keeps the vectors of largest L2 norm in each slab."""
        scores = self._scores(scores)
        power = np.einsum("gosb,gosb->gso", scores, scores, dtype=np.float64, casting="same_kind")
        outputs = scores.shape[1]
        vectors = largest(power, outputs - prune_count(rate, outputs)).transpose(0, 2, 1)
        return np.repeat(vectors[..., None], self.block, axis=-1)

    def valid(self, keep: Bools) -> bool:
        """Vectors are whole, and every slab of every group keeps as many."""
        vectors: Bools = np.any(keep, axis=-1)
        return _alike(vectors.sum(axis=1)) and bool((keep == vectors[..., None]).all())

    def cycles(self, keep: Bools) -> int:
        """Reading B."""
        return cycles_b(keep)


@dataclass(frozen=True)
class FlexNM(_Shaped):
    """Every output of a group keeps N_g weights of slab g; N_g differs from slab to slab."""

    name: ClassVar[str] = "flex-nm"

    def mask(self, scores: Array, rate: Rate) -> Bools:
        """Greedy over gain(g, k) = sum over outputs of the k-th largest score of slab g.

        Gains fall with k, so the largest T of them retain the most that the pattern allows.
        """
        scores = self._scores(scores)
        groups, _, slabs, block = scores.shape
        length = slabs * block
        ranked = np.sort(scores, axis=-1)
        gains = ranked.sum(axis=1, dtype=np.float64)[..., ::-1].reshape(groups, length)
        taken = largest(gains, length - prune_count(rate, length))
        wanted = taken.reshape(groups, 1, slabs, block).sum(axis=-1)  # N_g
        place = np.broadcast_to(block - np.maximum(wanted, 1), ranked.shape[:-1])
        threshold = np.take_along_axis(ranked, place[..., None], axis=-1)[..., 0]
        counts = np.broadcast_to(wanted, threshold.shape)
        return above_threshold(scores, np.where(counts > 0, threshold, np.inf), counts)

    def valid(self, keep: Bools) -> bool:
        """In each slab, all outputs of the group keep as many weights."""
        counts = keep.sum(axis=-1)
        return bool((counts == counts[:, :1]).all())

    def cycles(self, keep: Bools) -> int:
        """Reading C."""
        return cycles_c(keep)


@dataclass(frozen=True, kw_only=True)
class NM(_Shaped):
    """N of every `block` (M) weights are kept; without a fixed `n`, the rate says how many."""

    n: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n is not None and not 1 <= self.n <= self.block:
            raise OptionError(
                f"nm:{self.n}:{self.block}: N of nm:N:M must be 1 to M; nm:2:4 keeps 2 of every 4"
            )

    @property
    def name(self) -> str:
        """`nm`, or `nm:N:M` when N is fixed."""
        return "nm" if self.n is None else f"nm:{self.n}:{self.block}"

    @property
    def fixed_rate(self) -> Fraction | None:  # type: ignore[override]
        """1 - N/M when N is fixed."""
        return None if self.n is None else 1 - Fraction(self.n, self.block)

    def mask(self, scores: Array, rate: Rate | None = None) -> Bools:
        """Keeps the largest of each vector; a rate other than the fixed one is refused."""
        scores = self._scores(scores)
        return largest(scores, self._kept(rate))

    def _kept(self, rate: Rate | None) -> int:
        fixed = self.fixed_rate
        if fixed is None:
            if rate is None:
                raise OptionError("nm needs a rate, or its numbers: nm:2:4")
            return self.block - prune_count(rate, self.block)
        if rate is not None and abs(exact_rate(rate) - fixed) > Fraction(1, 10**9):
            raise OptionError(f"{self.name} is a rate of {float(fixed):g}; {rate} conflicts")
        return self.block - round(fixed * self.block)

    def valid(self, keep: Bools) -> bool:
        """Each vector keeps the same count; at most N where N is fixed."""
        counts = keep.sum(axis=-1)
        return _alike(counts) if self.n is None else bool((counts <= self.n).all())

    def cycles(self, keep: Bools) -> int:
        """Reading C."""
        return cycles_c(keep)


@dataclass(frozen=True)
class Row(_Shaped):
    """Every output keeps the same number of weights, anywhere in its row."""

    name: ClassVar[str] = "row"

    def mask(self, scores: Array, rate: Rate) -> Bools:
        """Keeps the largest of each output's row."""
        scores = self._scores(scores)
        rows = scores.reshape(*scores.shape[:2], -1)
        length = rows.shape[-1]
        return largest(rows, length - prune_count(rate, length)).reshape(scores.shape)

    def valid(self, keep: Bools) -> bool:
        """All outputs keep as many weights."""
        return _alike(keep.sum(axis=(2, 3)))

    def cycles(self, keep: Bools) -> int:
        """Reading A."""
        return cycles_a(keep)


@dataclass(frozen=True)
class Unstructured(_Shaped):
    """The largest weights of the layer, wherever they are; no multiple-of-block rule."""

    name: ClassVar[str] = "unstructured"

    def mask(self, scores: Array, rate: Rate) -> Bools:
        """Keeps the largest of the layer; padding is neither kept nor counted."""
        scores = self._scores(scores, padded=True)
        real = int(np.count_nonzero(scores >= 0))
        return largest(scores.reshape(1, -1), real - prune_count(rate, real)).reshape(scores.shape)

    def valid(self, keep: Bools) -> bool:  # noqa: ARG002 - a Pattern answers this of any mask
        """Any mask is."""
        return True

    def cycles(self, keep: Bools) -> int:
        """Reading C, the likeliest: no reading skips a single zero wherever it is."""
        return cycles_c(keep)


PATTERNS: dict[str, type[Block | FlexNM | NM | Row | Unstructured]] = {
    "block": Block,
    "flex-nm": FlexNM,
    "nm": NM,
    "row": Row,
    "unstructured": Unstructured,
}


def parse_pattern(text: str, block: int = 32) -> Pattern:
    """The pattern of a name.

    Args:
        text: one of PATTERNS; `nm:2:4`, which names N and M, and M is then its block; or
            "module:Name" of a pattern of your own, or of a class that makes one without arguments.
        block: how many consecutive input channels make a slab; one of your own has its own.
    """
    if numbers := re.fullmatch(r"nm:(\d+):(\d+)", text):
        n, m = map(int, numbers.groups())
        if block not in (32, m):
            raise OptionError(f"{text} has blocks of {m}; a block of {block} conflicts")
        return NM(block=m, n=n)
    if text in PATTERNS:
        return PATTERNS[text](block=block)
    if ":" in text and text.partition(":")[0] not in PATTERNS:
        return _of_your_own(text)
    near = difflib.get_close_matches(text, [*PATTERNS, "nm:2:4"], n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}? " if near else ""
    there = f"{', '.join(PATTERNS)}, nm:N:M, or module:Name of your own"
    raise OptionError(f"no pattern {text!r}: {hint}there are {there}")


def _of_your_own(text: str) -> Pattern:
    found = imported(text, "pattern")
    try:
        pattern: Pattern = found() if isinstance(found, type) else found
    except TypeError as e:
        raise OptionError(f"pattern {text!r} cannot be made without arguments ({e})") from e
    lacks = [what for what in _PROTOCOL if not hasattr(pattern, what)]
    if lacks:
        raise OptionError(f"{text!r} is no pattern: it lacks {', '.join(lacks)}")
    return pattern


def without_rate(pattern: Pattern) -> Pattern:
    """The pattern on the way to the rate that it fixes: nm:2:4 becomes nm in blocks of 4."""
    return pattern if pattern.fixed_rate is None else NM(block=pattern.block)


def make_mask(weight: Array, geometry: WeightGeometry, pattern: Pattern, rate: Rate) -> Mask:
    """The mask of a stored weight, ranked by magnitude."""
    return Mask(from_slabs(pattern.mask(magnitude(weight, geometry), rate), geometry))


_PROTOCOL = ("name", "block", "fixed_rate", "mask", "valid", "cycles")


def _alike(counts: Array) -> bool:
    return bool((counts == counts.flat[0]).all())
