"""Share out what is pruned among the layers so that the outputs err least, from data.

SelectLayers gives each layer the rate that is asked for as a whole; here those that bear more get
more, and the share of weights, or of multiply-adds, that is pruned in all stays what it was. What a
layer does to the outputs of the model if it is pruned at rate r is taken for

    d(r) = D * e(r) / e(r0)

e(r) what stays wrong at its own output with the other weights fitted (onnxdrp.pruning_curves), r0
the rate it has, and D the error of the model's outputs, as a share of their power, when this layer
alone is pruned at r0 and fitted. The rates with the least sum of d are found by dynamic programming
(onnxdrp.allocation). No label is read, and no weight is touched.

The pattern is kept to: rates are whole numbers of its units. The data is read once for e, and some
samples once for D, with half a model, on average, for each layer.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from onnxdrp.allocation import Curve, allocate
from onnxdrp.errors import DataError, ModelError, OptionError
from onnxdrp.fidelity import Error
from onnxdrp.geometry import WeightGeometry, from_slabs, magnitude
from onnxdrp.layers import Layer, by_weight, layers
from onnxdrp.least_squares import joined
from onnxdrp.model import Model
from onnxdrp.moments import Moments, MomentStats
from onnxdrp.passes.biases import Biases
from onnxdrp.passes.sweeps import Mended, Stop, sweep
from onnxdrp.patterns import Pattern, parse_pattern, prune_count
from onnxdrp.pipeline import Pass, PassContext, PassResult
from onnxdrp.pruned import units_of
from onnxdrp.pruning_curves import error_curve, fit_to_own, interpolated, spread_rows
from onnxdrp.selectors import check_selector, select
from onnxdrp.stored import Stored
from onnxdrp.taps import Tap
from onnxdrp.unfold import Unfolding
from onnxdrp.unit_sensitivity import few, noise_power
from onnxdrp.walk import walk

__all__ = ["AllocateRates"]

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]

_RATES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)  # at which layers are fitted, besides their own
_OPTIONS = 96  # rates of a layer that are compared
_COPIES = 4  # of X'X, at most at a time


@dataclass(frozen=True)
class AllocateRates(Pass):
    """Give each layer a rate of its own.

    Stats: `rates` {weight: rate}; `curves` {weight: [rate, error of the outputs] of each rate
    looked at}; `error`, the sum of these `before` and `after`; `kept`, weights whose rate was not
    to change; `skipped` {node: why it kept its rate}.

    Attributes:
        of: what is shared out: the "weights" that are pruned, or the "macs" that this saves.
        pattern: as PruneBlocks has it; default: the target's.
        keep: selectors of layers that keep the rate they have.
        highest: rate of a layer, unless it has a higher one.
        samples: of the calibration data on which outputs are compared, spread over it.
        rows: of a layer's input that are looked at, if there are more: output positions of samples.
        memory_limit: bytes of activations held in memory; more go to a temporary file.
        moments_limit: a weight whose X'X takes more bytes than this, in four copies, keeps its
            rate.
    """

    name: ClassVar[str] = "allocate-rates"
    keeps_results: ClassVar[bool] = True

    of: Literal["weights", "macs"] = "weights"
    pattern: str | None = None
    keep: tuple[str, ...] = ()
    highest: float = 0.95
    samples: int = 32
    rows: int = 10_000
    memory_limit: int = 1 << 30
    moments_limit: int = 1 << 32

    def __post_init__(self) -> None:
        if self.of not in ("weights", "macs"):
            raise OptionError(f"of {self.of!r}: there are weights and macs")
        if not 0 < self.highest < 1:
            raise OptionError(f"highest {self.highest} is outside (0, 1); 0.95 is usual")
        for number in ("samples", "rows", "memory_limit", "moments_limit"):
            if getattr(self, number) < 1:
                raise OptionError(f"{number} {getattr(self, number)}: give 1 or more")
        for selector in self.keep:
            check_selector(selector)
        if self.pattern is not None:
            _check_free(parse_pattern(self.pattern))

    def requires(self, model: Model, ctx: PassContext) -> None:
        """Layers are chosen and not pruned yet, the pattern leaves rates open, and there is data."""
        if ctx.reader is None:
            raise DataError(
                "allocate-rates needs data; give some hundred images or arrays (--calib)"
            )
        if not ctx.rates:
            raise ModelError("no layer is chosen yet; run select-layers first")
        if ctx.masks:
            raise ModelError("weights are pruned already; run allocate-rates before that")
        _check_free(parse_pattern(self.pattern or ctx.target.pattern))

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises ModelError where multiply-adds are asked for and not known, DataError for NaN."""
        pattern = parse_pattern(self.pattern or ctx.target.pattern)
        found = layers(model, pattern.block)
        users = by_weight(found)
        kept = self._kept(found, ctx)
        budget = _Budget(self.of, pattern, users)
        trial = _Trial(self, model, ctx, pattern, users, kept)
        trial.fit()
        trial.compare()
        curves = {
            weight: budget.curve(weight, ctx.rates[weight], self.highest, probe)
            for weight, probe in trial.probes.items()
        }
        before = [prune_count(ctx.rates[weight], curve.units) for weight, curve in curves.items()]
        total = math.fsum(
            float(c.kept_cost(p)) for c, p in zip(curves.values(), before, strict=True)
        )
        after = allocate(list(curves.values()), total)
        pairs = list(zip(curves.items(), after, strict=True))
        ctx.rates = ctx.rates | {weight: pruned / curve.units for (weight, curve), pruned in pairs}
        stats = {
            "rates": dict(ctx.rates),
            "curves": {
                weight: [[rate, error] for rate, error in zip(p.rates, p.damage, strict=True)]
                for weight, p in trial.probes.items()
            },
            "error": {
                "before": _summed(curves.values(), before),
                "after": _summed(curves.values(), after),
            },
            "kept": sorted(kept),
            "skipped": trial.skipped,
        }
        return PassResult(modified=False, stats=stats)

    def _kept(self, found: list[Layer], ctx: PassContext) -> set[str]:
        names = {u.name: tuple(filter(None, (u.name, u.weight))) for u in found}
        weights = {u.name: u.weight for u in found}
        hit = {weights[n] for selector in self.keep for n in select(selector, names, "layer")}
        return {weight for weight in hit if weight is not None and weight in ctx.rates}


def _check_free(pattern: Pattern) -> None:
    if pattern.fixed_rate is not None:
        raise OptionError(
            f"{pattern.name} is a rate of {float(pattern.fixed_rate):g} in every layer; leave "
            "allocate-rates out, or take the pattern nm"
        )


def _summed(curves: Any, pruned: list[int]) -> float:
    return math.fsum(curve.error(p) for curve, p in zip(curves, pruned, strict=True))


@dataclass(frozen=True)
class _Budget:
    """What weights cost while they are kept."""

    of: str
    pattern: Pattern
    users: Mapping[str, list[Layer]]

    def curve(self, weight: str, rate: float, highest: float, probe: "_Probe") -> Curve:
        """The rates that a weight may have."""
        units = units_of(_stored(self.users[weight])[1], self.pattern)
        most = prune_count(max(highest, rate), units)
        options = np.linspace(0, most, min(most, _OPTIONS) + 1).round().astype(np.int64)
        errors = interpolated(options / units, probe.rates, np.asarray(probe.damage))
        return Curve(units, self._cost(weight) / units, options, errors)

    def _cost(self, weight: str) -> int:
        """Of all of a weight."""
        if self.of == "weights":
            return self.users[weight][0].weights
        total = 0
        for layer in self.users[weight]:
            if layer.baseline_mac is None:
                raise ModelError(
                    f"{layer.name!r}: multiply-adds are not known ({layer.why_no_mac}); run "
                    "infer-shapes or freeze-shapes first, or share out weights"
                )
            total += layer.baseline_mac
        return total


@dataclass(eq=False)
class _Probe:
    """A weight at the rate it has, fitted; and its errors at others.

    Attributes:
        values: the fitted weight.
        shifts: of each of its layers, what its bias is to be changed by.
        rates: from 0 on.
        errors: of some of its outputs, at each rate.
        place: of its own rate among them.
        damage: what it does to the model's outputs, at each rate.
    """

    values: Array
    shifts: list[Array]
    rates: list[float]
    errors: Array
    place: int
    damage: list[float] = field(default_factory=list)

    def set_damage(self, measured: float) -> None:
        """Scale the errors to what was measured at its own rate."""
        whole = float(self.errors[self.place])
        self.damage = (self.errors * (measured / whole if whole else 1.0)).tolist()


class _Trial:
    """Prunes one layer at a time in a copy of the model."""

    def __init__(
        self,
        step: AllocateRates,
        model: Model,
        ctx: PassContext,
        pattern: Pattern,
        users: Mapping[str, list[Layer]],
        kept: set[str],
    ) -> None:
        self.step, self.model, self.ctx, self.pattern, self.users = step, model, ctx, pattern, users
        self.pruned = model.clone()
        self.probes: dict[str, _Probe] = {}
        stops, skipped = sweep(self.pruned, list(ctx.rates))
        names = {layer.name for weight in ctx.rates for layer in users.get(weight, ())}
        self.skipped = {node: why for node, why in skipped.items() if node in names}
        self.stops = [s for stop in stops if (s := self._chosen(stop, kept)).rounds]
        biases = Biases(self.pruned)
        self.biases = {
            use.node.name: biases.own(use.bias.holder, use.bias.place, use.bias.outputs)
            for _, one in self._all()
            for use in one.uses
            if use.bias is not None
        }

    def _chosen(self, stop: Stop, kept: set[str]) -> Stop:
        """The stop with the weights that get a rate."""
        found = []
        for one in (one for part in stop.rounds for one in part):
            if one.weight.name not in self.ctx.rates or one.weight.name in kept:
                continue
            way = one.uses[0].unfolding
            needed = _COPIES * 8 * way.groups * way.columns * (way.columns + way.outputs)
            if needed <= self.step.moments_limit:
                found.append(one)
                continue
            why = f"its moments take {needed / 1e9:.1f} GB, more than moments_limit"
            self.skipped |= dict.fromkeys((use.node.name for use in one.uses), why)
        return Stop(stop.cut, [found] if found else [])

    def _all(self) -> Iterator[tuple[Stop, Mended]]:
        return ((stop, one) for stop in self.stops for part in stop.rounds for one in part)

    def fit(self) -> None:
        """Prune and fit each weight at its own rate, and some rows at others."""
        assert self.ctx.reader is not None  # see requires
        steps = walk(
            self.model,
            self.ctx.reader,
            [stop.cut for stop in self.stops],
            memory_limit=self.step.memory_limit,
            workers=self.ctx.workers,
            progress=self.ctx.progress,
        )
        for at, stop in zip(steps if self.stops else (), self.stops, strict=True):
            positions = math.ceil(self.step.rows / at.samples)
            for one in (one for part in stop.rounds for one in part):
                taps = {
                    i: Tap(use.data, Moments(use.unfolding, positions, self.ctx.seed))
                    for i, use in enumerate(one.uses)
                }
                moments = at.observe(taps)
                stats = [moments[i] for i in range(len(one.uses))]
                self.probes[one.weight.name] = self._probe(one, stats)

    def _probe(self, one: Mended, moments: list[MomentStats]) -> _Probe:
        weight, way = one.weight.name, one.uses[0].unfolding
        rate, (stored, geometry) = self.ctx.rates[weight], _stored(self.users[weight])
        units = units_of(geometry, self.pattern)
        values = stored.values(self.model)
        matrix, masks = way.matrix(values), _Masks(values, geometry, self.pattern, way)
        stats = joined(
            [m if u.bias is None else m.centred() for u, m in zip(one.uses, moments, strict=True)]
        )
        own = prune_count(rate, units)
        most = prune_count(max(self.step.highest, rate), units)
        counts = {0, own, most, *(min(prune_count(r, units), most) for r in _RATES)}
        rates = [count / units for count in sorted(counts)]
        fitted = fit_to_own(matrix, masks.keep(own / units), stats)
        rows = spread_rows(fitted.error, way.columns)
        errors = error_curve(matrix, masks.keep, stats, rates[1:], rows)
        lost = matrix - np.asarray(fitted.matrix, np.float64)
        shifts = [np.einsum("gmk,gk->gm", lost, m.x / max(m.count, 1)).ravel() for m in moments]
        return _Probe(
            way.weight(fitted.matrix),
            shifts,
            rates,
            np.append(0.0, errors),
            sorted(counts).index(own),
        )

    def compare(self) -> None:
        """What each weight, pruned and fitted alone, does to the outputs of the model."""
        assert self.ctx.reader is not None
        outputs = [
            o.name for o in self.model.outputs if o.dtype is not None and o.dtype.kind == "f"
        ]
        if not outputs:
            raise ModelError("no output of the model is float; there is nothing to compare")
        taps = {name: Tap((("float", name), ("pruned", name)), Error()) for name in outputs}
        held = self.pruned.tensors()
        steps = walk(
            {"float": self.model, "pruned": self.pruned},
            few(self.ctx.reader, self.step.samples, self.ctx.seed),
            [stop.cut for stop in self.stops],
            memory_limit=self.step.memory_limit,
            workers=self.ctx.workers,
            progress=self.ctx.progress,
        )
        for at, stop in zip(steps if self.stops else (), self.stops, strict=True):
            for one in (one for part in stop.rounds for one in part):
                probe = self.probes[one.weight.name]
                changed = {one.weight.name: probe.values}
                for use, shift in zip(one.uses, probe.shifts, strict=True):
                    if (bias := self.biases.get(use.node.name)) is not None:
                        before = self.pruned.weight(held[bias])
                        changed[bias] = before + shift.reshape(before.shape).astype(before.dtype)
                whole = {name: self.pruned.weight(held[name]) for name in changed}
                for name, values in changed.items():
                    self.pruned.set_weight(held[name], values)
                found = at.observe(taps)
                for name, values in whole.items():
                    self.pruned.set_weight(held[name], values)
                shares = [noise_power(found[name].sqnr_db) for name in outputs]
                probe.set_damage(math.fsum(s for s in shares if math.isfinite(s)) / len(outputs))


@dataclass(frozen=True, eq=False)
class _Masks:
    """The masks that PruneBlocks would give a weight."""

    values: Array
    geometry: WeightGeometry
    pattern: Pattern
    unfolding: Unfolding

    def keep(self, rate: float) -> Bools:
        """What stays, as the unfolding sees the weight."""
        keep = self.pattern.mask(magnitude(self.values, self.geometry), rate)
        return self.unfolding.matrix(from_slabs(keep, self.geometry))


def _stored(users: list[Layer]) -> tuple[Stored, WeightGeometry]:
    if users[0].stored is None or users[0].geometry is None:
        raise ModelError(f"{users[0].name!r} cannot be pruned ({users[0].barred})")
    return users[0].stored, users[0].geometry
