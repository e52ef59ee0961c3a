"""Fits the kept weights of layers to what they should give: one round of a sweep at a time.

First by least squares, then, where an activation follows, by steps towards what that should give
(onnxdrp.least_squares). The model has new weights at once, so that the walk goes on with them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxdrp.curves import Curve, curves
from onnxdrp.held_back import HeldBack
from onnxdrp.least_squares import RIDGES, Descent, best_ridge, fit, joined
from onnxdrp.masks import Mask
from onnxdrp.model import Model
from onnxdrp.moments import Moments, MomentStats
from onnxdrp.passes.sweeps import Mended, Use, centred, own_biases
from onnxdrp.passes.sweeps import Stop as Plan
from onnxdrp.taps import Tap
from onnxdrp.walk import Stop

__all__ = ["Mender"]

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

_BENT = ("Clip", "HardSwish", "LeakyRelu", "Relu")
_ENOUGH = 0.99  # a step that leaves more of the error is the last


@dataclass(frozen=True, eq=False)
class _State:
    """The values of a weight, [g, m, k], and of the bias of each of its layers, [g, m]."""

    matrix: Floats
    biases: tuple[Floats | None, ...]

    def where(self, rows: Bools, other: "_State") -> "_State":
        """These `rows` [g, m], and the others of another state."""
        pairs = zip(self.biases, other.biases, strict=True)
        biases = [a if a is None or b is None else np.where(rows, a, b) for a, b in pairs]
        return _State(np.where(rows[..., None], self.matrix, other.matrix), tuple(biases))

    def moved(self, matrix: Floats, biases: Sequence[Floats]) -> "_State":
        """The sum with some steps."""
        pairs = zip(self.biases, biases, strict=True)
        return _State(self.matrix + matrix, tuple(a if a is None else a + b for a, b in pairs))


@dataclass(frozen=True, eq=False)
class _Task:
    """A weight to be fitted, and what is known of its layers."""

    weight: Mended
    moments: list[MomentStats]
    descent: Descent

    @property
    def uses(self) -> tuple[Use, ...]:
        return self.weight.uses


class Mender:
    """Fits weights of the model "pruned" to the model "float" of a walk.

    Attributes:
        figures: {layer: error before and after as shares of the variance, and ridge}.
        warnings: in words.
    """

    def __init__(
        self,
        model: Model,
        masks: Mapping[str, Mask],
        stops: Sequence[Plan],
        ridge: float | None,
        steps: int,
        seed: int,
    ) -> None:
        """See to it that each layer that can have a bias has one of its own.

        Args:
            model: the one called "pruned".
            masks: {weight name: what stays}; of other weights what is not zero.
            stops: of all that will be fitted.
            ridge: as a share; None: chosen for each weight.
            steps: behind an activation, at most.
            seed: chooses output positions.
        """
        self.model, self.masks, self.seed = model, masks, seed
        self.ridge, self.steps = ridge, steps
        self.figures: dict[str, dict[str, float]] = {}
        self.warnings: list[str] = []
        own, tensors = own_biases(model, stops), model.tensors()
        self._biases = {layer: tensors[name] for layer, name in own.items()}
        self._curves = curves(model, [node.name for node in model.nodes(*_BENT)])

    def mend(self, at: Stop, weights: Sequence[Mended], positions: int) -> None:
        """Fit weights that need not wait for each other, from `positions` of each sample."""
        taps = {}
        for use in (use for weight in weights for use in weight.uses):
            observer = HeldBack(
                Moments(use.unfolding, positions, self.seed),
                Moments(use.unfolding, positions, self.seed),
            )
            pairs = ("pruned", use.data), ("float", use.total)
            beside = tuple(("pruned", name) for name in use.beside)
            taps[use.node.name] = Tap((*pairs, *beside), observer)
        found = at.observe(taps)
        for weight in weights:
            parts = [found.pop(use.node.name) for use in weight.uses]
            task, state = self._fit(weight, parts)
            self._store(task, state)
            behind = [self._curves.get(use.total) for use in weight.uses]
            known = [curve for curve in behind if curve is not None]
            if self.steps and len(known) == len(behind):
                self._descend(at, task, state, known, positions)

    def _fit(
        self, weight: Mended, parts: Sequence[tuple[MomentStats, MomentStats]]
    ) -> tuple[_Task, _State]:
        """The least squares, with the ridge that does best on what is held back."""
        uses, way = weight.uses, weight.uses[0].unfolding
        matrix, mask = way.matrix(self.model.weight(weight.weight)), self.masks.get(weight.name)
        keep = matrix != 0 if mask is None else way.matrix(mask.keep)
        moments = [joined([stats for stats in part if stats.count]) for part in parts]
        ridge = self.ridge or self._best_ridge(uses, matrix, keep, parts)
        result = fit(matrix, keep, centred(uses, moments), ridge)
        if result.open.any():
            rows = sum(stats.count for stats in moments)
            self.warnings.append(
                f"layer {uses[0].node.name!r}: {int(result.open.sum())} of {result.open.size} "
                f"outputs keep more weights than {rows} rows of data determine, and have only "
                "their bias fitted; give more samples"
            )
        old = [self._bias(use, matrix) for use in uses]
        new = [
            None if b is None else _best_bias(stats, result.matrix)
            for b, stats in zip(old, moments, strict=True)
        ]
        for use, stats, a, b in zip(uses, moments, old, new, strict=True):
            power = float(stats.centred().tt.sum()) or 1.0
            before = stats.error(matrix, 0.0 if a is None else a).sum()
            after = stats.error(result.matrix, 0.0 if b is None else b).sum()
            figures = {"before": float(before) / power, "after": float(after) / power}
            self.figures[use.node.name] = {**figures, "ridge": ridge}
        task = _Task(weight, moments, result.descent)
        return task, _State(result.matrix.astype(np.float64), tuple(new))

    def _best_ridge(
        self,
        uses: Sequence[Use],
        matrix: Array,
        keep: Bools,
        parts: Sequence[tuple[MomentStats, MomentStats]],
    ) -> float:
        most, few = ([part[i] for part in parts] for i in (0, 1))
        if not all(stats.count for stats in (*most, *few)):
            return RIDGES[-1]  # of so few samples none is held back, or all are
        return best_ridge(matrix, keep, centred(uses, most), centred(uses, few))

    def _descend(
        self, at: Stop, task: _Task, state: _State, behind: Sequence[Curve], positions: int
    ) -> None:
        """Steps behind activations; each row keeps the best of its states."""
        taps = {
            i: Tap(
                (("pruned", use.data), ("float", use.total), ("pruned", use.total)),
                Moments(use.unfolding, positions, self.seed, curve, gram=False),
            )
            for i, (use, curve) in enumerate(zip(task.uses, behind, strict=True))
        }
        steepest = max(curve.steepest() for curve in behind)
        pull = task.descent.ridge[:, None, None]
        start, best, least = state, state, np.full(state.matrix.shape[:2], np.inf)
        for step in range(self.steps + 1):
            found = at.observe(taps)
            gaps = [
                replace(stats, t=gap.t / steepest, xt=gap.xt / steepest, tt=gap.tt)
                for stats, gap in zip(task.moments, found.values(), strict=True)
            ]
            error = np.sum([gap.tt for gap in gaps], axis=0)
            before, better = least.sum(), error < least
            best, least = state.where(better, best), np.where(better, error, least)
            if step == self.steps or least.sum() > _ENOUGH * before or not least.any():
                break
            back = pull * (start.matrix - state.matrix)  # the ridge pulls towards the start
            slopes = [
                gap.xt if use.bias is None else gap.centred_xt()
                for use, gap in zip(task.uses, gaps, strict=True)
            ]
            move = task.descent(np.sum(slopes, axis=0) + back.swapaxes(1, 2))
            state = state.moved(move, [_best_bias(gap, move) for gap in gaps])
            self._store(task, state)
        self._store(task, best)

    def _bias(self, use: Use, matrix: Array) -> Floats | None:
        if use.bias is None:
            return None
        values = self.model.weight(self._biases[use.node.name])
        return values.astype(np.float64).reshape(matrix.shape[:2])

    def _store(self, task: _Task, state: _State) -> None:
        """Give the model the values."""
        tensor = task.weight.weight
        weight = task.uses[0].unfolding.weight(state.matrix)
        self.model.set_weight(tensor, weight.astype(self.model.weight(tensor).dtype))
        for use, bias in zip(task.uses, state.biases, strict=True):
            if bias is not None:
                held = self._biases[use.node.name]
                old = self.model.weight(held)
                self.model.set_weight(held, bias.reshape(old.shape).astype(old.dtype))


def _best_bias(stats: MomentStats, matrix: Array) -> Floats:
    """What is left of the targets on average, [g, m]."""
    made = np.einsum("gmk,gk->gm", np.asarray(matrix, np.float64), stats.x)
    return np.asarray((stats.t - made) / max(stats.count, 1))
