"""A front of sub-networks: what each share of the multiply-adds is worth, found by evolution.

As AMD's Vitis AI Optimizer searches a once-for-all network, here a float model without training:

    1. 16 parents are drawn, of shares spread over what is allowed (onnxdrp.channels.subnets).
    2. Each iteration makes 8 children by mutation (each rate anew with probability 0.2) and 4 by
       crossover (each rate the other parent's with probability 0.5). Rates are any, or those of
       given ratios.
    3. The allowed multiply-adds are cut into buckets, of which each keeps its best two; these are
       the parents of the next iteration.

A child whose multiply-adds are outside of what is allowed has its rates shifted alike until they
are not. The score of a sub-network is measured (onnxdrp.passes.slim_trials); or, where curves of
the groups are given, predicted, as minus the sum of what each group loses at its rate, and only
what the buckets have at the end is measured. A front is what no other has fewer multiply-adds than,
or less latency, at as high a score.
"""

import hashlib
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from onnxdrp.batches import pieces, static_batch
from onnxdrp.channels.candidates import By, Judge, Known, SubnetScore
from onnxdrp.channels.excluding import removable
from onnxdrp.channels.front import Cost, Front, NetPoint, front_of, slim_of
from onnxdrp.channels.groups import Channels, channels_of
from onnxdrp.channels.spec import ChannelSpec
from onnxdrp.channels.subnets import Subnet, Subnets
from onnxdrp.checkpoint import data_identity
from onnxdrp.datareaders.batching import split
from onnxdrp.errors import DataError, OptionError
from onnxdrp.layers import layers
from onnxdrp.passes.removing import remove
from onnxdrp.passes.slim_trials import SlimTrials

if TYPE_CHECKING:
    from onnxdrp.datareaders import DataReader
    from onnxdrp.model import Model

__all__ = ["Curves", "pareto"]

Floats = npt.NDArray[np.float64]
Curves = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""{group: (rates, ascending; how much of the score is lost at each)}."""

_PARENTS, _MUTATIONS, _CROSSOVERS = 16, 8, 4
_MUTATED, _CROSSED = 0.2, 0.5
_PER_BUCKET = 2
_MEASURED_ITERATIONS, _PREDICTED_ITERATIONS = 10, 300
_RUNS, _WARM = 20, 3  # of a session, to time it; twice


def pareto(
    model: "Model",
    reader: "DataReader",
    *,
    held_out: "DataReader | None" = None,
    curves: Curves | None = None,
    scores: Mapping[str, Floats] | None = None,
    cost: Cost = "macs",
    by: By = "sqnr",
    min_macs: float = 0.25,
    max_macs: float = 0.95,
    points: int = 10,
    iterations: int | None = None,
    samples: int = 128,
    judged: int = 256,
    multiple: int = 1,
    ratios: Sequence[float] = (),
    exclude: Sequence[str] = (),
    auto_excludes: bool = True,
    seed: int = 0,
    memory_limit: int = 1 << 30,
    checkpoint: Path | None = None,
    executor: Executor | None = None,
    workers: int | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> Front:
    """Find a front of sub-networks; the same seed gives the same, but for latencies.

    Args:
        model: float, preprocessed, with shapes; is not changed.
        reader: the data; a quarter of it is held back where `held_out` is None.
        held_out: samples to compare on.
        curves: of an analysis; groups without one stay whole. None: each sub-network is measured.
        scores: {group: one for each unit}, the lowest go; None: by L1.
        cost: what the score stands against in the front. Latencies are measured for what the
            buckets have at the end; multiply-adds lead the search.
        by: what the score is; labels are looked at for "top-1" alone.
        min_macs: least multiply-adds, as a share of the model's, in [0, 1).
        max_macs: most of them, in (0, 1].
        points: how many buckets; the front has at most two points of each.
        iterations: of the evolution; None: 10 where each sub-network is measured, 300 with curves.
        samples: most of the data that moments are taken from.
        judged: most that sub-networks are compared on.
        multiple: that the channels which stay are of.
        ratios: the shares of a group's channels that may stay, before that; (): any.
        exclude: selectors of layers whose channels stay.
        auto_excludes: leave the outputs of the first and of the last convolution whole.
        seed: of everything random.
        memory_limit: bytes of activations held in memory by each trial at a time.
        checkpoint: a file that keeps what is measured; the same call goes on from there.
        executor: where sub-networks are measured: any concurrent.futures.Executor; None: threads.
        workers: how many at a time; None: as many as there are cores.
        progress: called with (sub-networks measured, of about how many).

    Raises:
        ModelError: nothing can be removed, or no output is float.
        OptionError: a bound, a curve or a count is out of its range, scores are of another model,
            or no sub-network is within the bounds.
        DataError: the data gives no samples, or lacks the labels that are asked for.
    """
    _check(min_macs, max_macs, points, iterations, cost, multiple)
    channels = channels_of(model)
    groups, _ = removable(model, channels, exclude, auto_excludes)
    if curves is not None:
        _check_curves(curves, groups)
        groups = [name for name in groups if name in curves]
    subnets = Subnets(model, channels, groups, multiple, scores, ratios)
    rest, held = (reader, held_out) if held_out is not None else split(reader, 0.25, seed)
    key = repr((model.fingerprint(), samples, judged, by, groups, subnets.order, seed))
    data = data_identity(reader) + ("" if held_out is None else data_identity(held_out))
    known = Known(checkpoint, hashlib.blake2b((key + data).encode(), digest_size=16).hexdigest())
    rounds = iterations
    if rounds is None:
        rounds = _MEASURED_ITERATIONS if curves is None else _PREDICTED_ITERATIONS
    with tempfile.TemporaryDirectory(prefix="onnxdrp-pareto-") as folder:
        judge = SlimTrials(
            model,
            rest,
            held,
            by=by,
            samples=samples,
            judged=judged,
            seed=seed,
            memory_limit=memory_limit,
            folder=Path(folder),
        )
        children = rounds * (_MUTATIONS + _CROSSOVERS)
        total = _PER_BUCKET * points if curves is not None else _PARENTS + children
        measure = _Measure(subnets, judge, known, executor, workers, _Teller(progress, total))

        def order(found: Sequence[Subnet]) -> list[tuple[float, float]]:
            if curves is not None:
                return [(_predicted(curves, subnets.gone(subnet)), 0.0) for subnet in found]
            return [score.order(by) for score in measure(found)]

        bounds = 1 - max_macs, 1 - min_macs
        evolution = _Evolution(subnets, order, bounds, points, np.random.default_rng(seed))
        evolution.run(rounds)
        winners = evolution.winners()
        measured = measure(winners)
    found = [
        _named(model, channels, subnets, subnet, score, by, curves)
        for subnet, score in zip(winners, measured, strict=True)
    ]
    whole_ms = None
    if cost == "latency":
        whole_ms, *ms = _latencies([model, *(slim_of(model, p) for p in found)], reader)
        latencies = [round(one / whole_ms, 4) for one in ms]
        found = [replace(p, latency=one) for p, one in zip(found, latencies, strict=True)]
    name = "" if model.path is None else model.path.name
    front = Front(front_of(found, by), by, cost, subnets.whole, name, whole_ms)
    known.remove()
    return front


def _check(
    low: float, high: float, points: int, iterations: int | None, cost: str, multiple: int
) -> None:
    if not 0 <= low < high <= 1:
        raise OptionError(
            f"min_macs {low} and max_macs {high}: give shares of the model's multiply-adds, the "
            "first below the second, such as 0.25 and 0.95"
        )
    if points < 1:
        raise OptionError(f"{points} points: give 1 or more; 10 is usual")
    if iterations is not None and iterations < 0:
        raise OptionError(f"{iterations} iterations: give 0 or more; 10 is usual")
    if cost not in ("macs", "latency"):
        raise OptionError(f"cost {cost!r}: give macs or latency")
    if multiple < 1:
        raise OptionError(f"multiple {multiple}: give 1 or more")


def _check_curves(curves: Curves, groups: Sequence[str]) -> None:
    if not set(curves) & set(groups):
        raise OptionError("no curve is of a group that may be removed; analyse this model")
    for name, (rates, drops) in curves.items():
        rising = all(a < b for a, b in pairwise(rates))
        if not len(rates) or len(rates) != len(drops) or not rising:
            raise OptionError(f"the curve of {name!r} needs ascending rates, and a drop for each")
        if not all(map(math.isfinite, (*rates, *drops))):
            raise OptionError(f"the curve of {name!r} has values that are not finite")


def _predicted(curves: Curves, gone: Mapping[str, float]) -> float:
    """Minus the sum of what the groups lose alone; nothing is lost at rate 0."""
    lost = 0.0
    for name, rate in gone.items():
        rates, drops = curves[name]
        if rates[0] > 0:
            rates, drops = [0.0, *rates], [0.0, *drops]
        lost += float(np.interp(rate, rates, drops))
    return -lost


class _Teller:
    """Counts what is measured."""

    def __init__(self, progress: Callable[[int, int | None], None] | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, max(self._total, self._done))


@dataclass(frozen=True, eq=False)
class _Measure:
    """Gives the scores of sub-networks, each measured once."""

    subnets: Subnets
    judge: Judge
    known: Known
    executor: Executor | None
    workers: int | None
    tell: _Teller

    def __call__(self, found: Sequence[Subnet]) -> list[SubnetScore]:
        wanted = {subnet.key: self.subnets.removed(subnet) for subnet in found}
        new = sum(key not in self.known.scores for key in wanted)
        scores = self.known.judged(self.judge, wanted, executor=self.executor, workers=self.workers)
        by_key = {}
        for i, (key, score) in enumerate(zip(wanted, scores, strict=True)):
            by_key[key] = score
            if i < new:
                self.tell()
        return [by_key[subnet.key] for subnet in found]


@dataclass(frozen=True)
class _Rated:
    """A sub-network with what it is worth; larger is better."""

    subnet: Subnet
    order: tuple[float, float]


class _Evolution:
    """Buckets of sub-networks by what goes of their multiply-adds.

    Args:
        subnets: of the model.
        order: what some sub-networks are worth.
        bounds: least and largest share of the multiply-adds that goes.
        buckets: how many.
        random: draws all.
    """

    def __init__(
        self,
        subnets: Subnets,
        order: Callable[[Sequence[Subnet]], list[tuple[float, float]]],
        bounds: tuple[float, float],
        buckets: int,
        random: np.random.Generator,
    ) -> None:
        self._subnets, self._order, self._bounds, self._random = subnets, order, bounds, random
        self._buckets: list[list[_Rated]] = [[] for _ in range(buckets)]
        self._known: set[tuple[int, ...]] = set()

    def run(self, iterations: int) -> None:
        """Draw parents, and let them have children. Raises OptionError if none is within bounds."""
        low, high = self._bounds
        shares = np.linspace(max(low, 0.0), min(high, self._subnets.most), _PARENTS)
        self._take([self._subnets.random(self._random, float(share)) for share in shares])
        self._take([self._subnets.uniform(float(share)) for share in shares])
        if not any(self._buckets):
            raise OptionError(
                f"no sub-network has between {1 - high:.3g} and {1 - low:.3g} of the multiply-adds "
                f"(least {1 - self._subnets.most:.3f}); widen min_macs and max_macs"
            )
        for _ in range(iterations):
            self._take([*self._mutated(), *self._crossed()])

    def winners(self) -> list[Subnet]:
        """What the buckets have, the largest networks first."""
        return [rated.subnet for bucket in self._buckets for rated in bucket]

    def _take(self, found: Sequence[Subnet]) -> None:
        """Rate those that are new and within bounds; of each bucket the best stay."""
        low, high = self._bounds
        fresh = []
        for subnet in found:
            if subnet.kept in self._known or not low - 1e-9 <= subnet.share <= high + 1e-9:
                continue
            self._known.add(subnet.kept)
            fresh.append(subnet)
        for subnet, order in zip(fresh, self._order(fresh), strict=True):
            place = (subnet.share - low) / (high - low) * len(self._buckets)
            bucket = self._buckets[min(max(int(place), 0), len(self._buckets) - 1)]
            bucket.append(_Rated(subnet, order))
            bucket.sort(key=lambda r: (r.order, r.subnet.share), reverse=True)
            del bucket[_PER_BUCKET:]

    def _mutated(self) -> Iterator[Subnet]:
        parents = self.winners()
        for _ in range(_MUTATIONS):
            rates = self._rates(self._one_of(parents))
            drawn = self._subnets.rates(self._random)
            yield self._within(np.where(self._random.random(len(rates)) < _MUTATED, drawn, rates))

    def _crossed(self) -> Iterator[Subnet]:
        parents = self.winners()
        for _ in range(_CROSSOVERS):
            a, b = self._rates(self._one_of(parents)), self._rates(self._one_of(parents))
            yield self._within(np.where(self._random.random(len(a)) < _CROSSED, a, b))

    def _one_of(self, parents: Sequence[Subnet]) -> Subnet:
        return parents[int(self._random.integers(len(parents)))]

    def _rates(self, subnet: Subnet) -> Floats:
        return np.array([subnet.rates[name] for name in self._subnets.groups])

    def _within(self, rates: Floats) -> Subnet:
        return self._subnets.within(self._random, rates, *self._bounds)


def _named(
    model: "Model",
    channels: Channels,
    subnets: Subnets,
    subnet: Subnet,
    score: SubnetScore,
    by: By,
    curves: Curves | None,
) -> NetPoint:
    """A point without its number, which the front gives."""
    removed, gone = subnets.removed(subnet), subnets.gone(subnet)
    spec = ChannelSpec.of(channels, removed)
    slim = model.clone()
    remove(slim, channels, removed)
    found = layers(slim)
    return NetPoint(
        net_id=0,
        score=round(score.order(by)[0], 6),
        macs=round(subnets.whole * (1 - subnet.share)),
        params=sum(layer.params for layer in found),
        setting=dict(spec.removed),
        rates=gone,
        channels=dict(spec.channels),
        structure=spec.structure,
        measured=score,
        predicted=None if curves is None else round(_predicted(curves, gone), 6),
    )


def _latencies(models: Sequence["Model"], reader: "DataReader") -> list[float]:
    """Milliseconds that each takes for one image, with the threads that onnxruntime chooses.

    All run in turn, so that what else the machine does meets all alike. Sessions of the same model
    differ by some percent, the one that was opened first mostly being the slowest: all are opened
    twice, in both orders, and the median is that of both.
    """
    static = static_batch(models)
    first = next(pieces(reader, static), None)
    if first is None:
        raise DataError("the reader gives no samples; check the path and the limit")
    names = {info.name for info in models[0].inputs}
    rows = first[1] if static is None else 1
    feed = {
        name: array[:1] if np.ndim(array) and len(array) == rows else array
        for name, array in first[0].items()
        if name in names
    }
    seconds: list[list[float]] = [[] for _ in models]
    for step in (1, -1):
        turns = [(m.session(), own) for m, own in list(zip(models, seconds, strict=True))[::step]]
        for turn in range(_WARM + _RUNS):
            for session, own in turns:
                started = time.perf_counter()
                session.run(None, feed)
                if turn >= _WARM:
                    own.append(time.perf_counter() - started)
    return [1e3 * float(np.median(own)) for own in seconds]
