"""Train the weights of a model so that it gives what its teacher gives.

    v <- v - rate(step) * m / (sqrt(s) + 1e-8)       Adam (Kingma and Ba 2015), betas 0.9, 0.999
    rate(step) = r * (step + 1) / 10                  the first ten steps
               = r * (1 + cos(pi * (step - 10) / (steps - 10))) / 2       those after

The first steps do not depend on how many there will be: a budget of seconds is turned into steps by
the time that they take, and a run of that many steps gives the same bytes. Where later ones take
longer, or in the first half less, the rest of the schedule is planned anew. All that is
random in a step comes from (seed, step). Twenty times on the way, and before the first step, the
loss on the held-back samples is taken; the values of the least loss are the result.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from onnxdrp.differentiable.augment import augmented
from onnxdrp.differentiable.keeping import Kept, Progress
from onnxdrp.differentiable.matching import Matched
from onnxdrp.differentiable.network import Network, to_torch
from onnxdrp.differentiable.quantizing import fake_quantize
from onnxdrp.differentiable.samples import Part, Samples
from onnxdrp.differentiable.trainable import Trainable
from onnxdrp.errors import DataError

__all__ = ["Outcome", "Settings", "deterministic", "train"]

Floats = npt.NDArray[np.float32]

_WARM = 10
_LOOKS = 20
_RECENT = 20  # steps by whose time that of the next ones is judged
_OFF = 1.2  # times as many steps as there is time for, or so many times fewer: planned anew
_TEMPERATURE = 2.0
_COPIES = 3  # of all tensors: the student's, their gradients, the teacher's


@dataclass(frozen=True)
class Settings:
    """How to train; `seconds` counts where `steps` is None.

    `replanned` are {steps done: of how many from there on}, of a run that is to be repeated.
    """

    steps: int | None
    replanned: Mapping[int, int]
    seconds: float
    rate: float
    batch: int
    features: float
    patience: int
    images: Mapping[str, Any]
    seed: int
    memory_limit: int
    step_limit: int


@dataclass(frozen=True, eq=False)
class Outcome:
    """The result.

    Attributes:
        values: {stored tensor: float32 values}; None where the start was best.
        steps: that the schedule was made for.
        replanned: {steps done: of how many from there on}, where steps took more time, or less.
        taken: steps that were made; fewer where patience ended.
        before: loss on the held-back samples.
        after: the least one.
        best: the step after which it was the least.
    """

    values: dict[str, Floats] | None
    steps: int
    replanned: dict[int, int]
    taken: int
    before: float
    after: float
    best: int
    losses: dict[int, float] = field(default_factory=dict)


@contextmanager
def deterministic(threads: int, device: str) -> Iterator[None]:
    """While this is open, torch computes the same each time, as far as it can on the device."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=device != "cpu")
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])


def train(
    student: Network,
    teacher: Network,
    weights: Sequence[Trainable],
    match: Matched,
    samples: tuple[Samples, Samples],
    settings: Settings,
    kept: Kept | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> Outcome:
    """Train; the models themselves are not changed.

    Args:
        student: what is trained.
        teacher: what it shall give.
        weights: of the student.
        match: the tensors that shall agree.
        samples: to train on, and held back.
        settings: see there.
        kept: where to keep what is done, and to go on from.
        progress: called with samples done and samples in all.

    Raises:
        DataError: what the teacher gives is not finite.
        ModelError: as Network.run.
    """
    return _Training(student, teacher, weights, match, samples, settings).run(kept, progress)


class _Training:
    def __init__(
        self,
        student: Network,
        teacher: Network,
        weights: Sequence[Trainable],
        match: Matched,
        samples: tuple[Samples, Samples],
        settings: Settings,
    ) -> None:
        self.student, self.teacher, self.weights = student, teacher, weights
        self.match, self.settings = match, settings
        self.seen, self.held = samples
        self.cache = _Cache(settings.memory_limit // 2)
        self.rows = self._rows()
        self.variances = self._variances()
        self.values = [_Value(w, unit, student.device) for w, unit in self._units()]
        self.optimizer = torch.optim.Adam([v.latent for v in self.values], foreach=True)

    # -------------------------------------------------------------------------------------- the run

    def run(self, kept: Kept | None, progress: Callable[[int, int | None], None] | None) -> Outcome:
        settings = self.settings
        state = kept.read() if kept is not None else None
        if state is None:
            state = Progress(settings.steps, planned=settings.steps, losses={0: self._held_loss()})
        else:
            self._restore(state)
        before = state.losses[0]
        clock = _Clock(settings.seconds, state)
        while before > 0 and (state.steps is None or state.step < state.steps):
            with clock.step():
                self._step(state.step, state.steps)
            state.step += 1
            if state.steps is None and state.step == _WARM:
                if not clock.look_time:
                    with clock.look():
                        self._held_loss()
                state.planned = state.steps = _WARM + clock.steps_left(1 + _LOOKS)
            if progress is not None:
                whole = None if state.steps is None else state.steps * settings.batch
                progress(state.step * settings.batch, whole)
            if state.steps is not None and self._is_look(state.step, state.steps):
                with clock.look():
                    hopeful = self._look(state)
                if not hopeful:
                    break
                self._replan(state, clock)
                if kept is not None:
                    self._save(state, kept)
        best = min(state.losses, key=lambda step: (state.losses[step], step))
        values = None
        if best:
            values = {w.name: state.best[w.name] for w in self.weights}
        return Outcome(
            values,
            state.step if state.planned is None else state.planned,
            state.replanned,
            state.step,
            before,
            state.losses[best],
            best,
            dict(state.losses),
        )

    def _replan(self, state: Progress, clock: "_Clock") -> None:
        """End when the budget is used up, or where an earlier run did so."""
        assert state.steps is not None
        steps = self.settings.replanned.get(state.step, state.steps)
        if self.settings.steps is None:
            looks = _LOOKS * (state.steps - state.step) // state.steps
            left = clock.steps_left(looks)
            planned = state.steps - state.step
            early = 2 * state.step <= state.steps  # later the rate has come down
            if planned > _OFF * left or (early and left > _OFF * planned):
                steps = state.step + left
        if steps != state.steps:
            state.steps = state.replanned[state.step] = steps

    def _is_look(self, step: int, steps: int) -> bool:
        """Whether the loss is taken after so many steps; never before it is known how many."""
        if step == steps:
            return True
        return step > _WARM and (step * _LOOKS) // steps > ((step - 1) * _LOOKS) // steps

    def _look(self, state: Progress) -> bool:
        """Take the loss; False if there is no hope of a lower one."""
        loss = self._held_loss()
        if not math.isfinite(loss):
            return False  # diverged
        if loss < min(state.losses.values()):
            state.best = {v.weight.name: v.floats() for v in self.values}
            state.looks_since_best = 0
        else:
            state.looks_since_best += 1
        state.losses[state.step] = loss
        return state.looks_since_best < self.settings.patience

    def _step(self, step: int, steps: int | None) -> None:
        settings = self.settings
        self.optimizer.param_groups[0]["lr"] = settings.rate * _share(step, steps)
        self.optimizer.zero_grad()
        numbers = self._numbers(step)
        rng = np.random.default_rng([settings.seed, 1, step])
        for part in self.seen.parts(numbers, self.rows):
            feeds = dict(part.feeds)
            for name, layout in settings.images.items():
                feeds[name] = augmented(feeds[name], layout, rng)
            fed = self._fed(feeds)
            key = None if settings.images else (0, part.samples)
            targets = self._targets(fed, key)
            loss = self._loss(fed, targets)
            (loss * (len(part.samples) / len(numbers))).backward()
        self.optimizer.step()

    def _numbers(self, step: int) -> list[int]:
        """The samples of a step: all are seen, in another order each time, before any again.

        Where nothing is augmented the batches stay the same, and with them the teacher's outputs.
        """
        seed = self.settings.seed
        count, size = len(self.seen), min(self.settings.batch, len(self.seen))
        turn, place = divmod(step, count // size)
        mixed = np.random.default_rng([seed, 0, turn if self.settings.images else 0])
        if not self.settings.images:
            place = int(np.random.default_rng([seed, 2, turn]).permutation(count // size)[place])
        return [int(n) for n in mixed.permutation(count)[place * size : (place + 1) * size]]

    # ------------------------------------------------------------------------------------- the loss

    def _loss(
        self, fed: Mapping[str, torch.Tensor], targets: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        given = {name: value for v in self.values for name, value in v.given()}
        found = self.student.run(fed, self.match.names, given)
        heads = len(self.match.heads)
        terms = [
            (y.to(torch.float32) - t).square().mean() / variance
            for y, t, variance in zip(found, targets, self.variances, strict=True)
        ]
        if self.match.classes:
            loss = _divergence(found[0], targets[0], self.match.probabilities)
        else:
            loss = torch.stack(terms[:heads]).mean()
        if terms[heads:] and self.settings.features:
            loss = loss + self.settings.features * torch.stack(terms[heads:]).mean()
        return loss

    def _held_loss(self) -> float:
        total = 0.0
        with torch.no_grad():
            for number, part in self._held_parts():
                fed = self._fed(part.feeds)
                loss = self._loss(fed, self._targets(fed, (1, (number,))))
                total += float(loss) * len(part.samples)
        return total / len(self.held)

    def _held_parts(self) -> Iterator[tuple[int, Part]]:
        count, size = len(self.held), self.settings.batch
        number = 0
        for start in range(0, count, size):
            for part in self.held.parts(range(start, min(start + size, count)), self.rows):
                yield number, part
                number += 1

    def _targets(self, fed: Mapping[str, torch.Tensor], key: Any) -> list[torch.Tensor]:
        found = self.cache.get(key)
        if found is None:
            with torch.no_grad():
                found = [t.to(torch.float32) for t in self.teacher.run(fed, self.match.names)]
            self.cache.put(key, found)
        return found

    def _fed(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, torch.Tensor]:
        return {name: to_torch(v, name, self.student.device) for name, v in feeds.items()}

    def _variances(self) -> list[float]:
        """The variance of what the teacher gives, over the held-back samples."""
        sums = [_Variance() for _ in self.match.names]
        with torch.no_grad():
            for number, part in self._held_parts():
                targets = self._targets(self._fed(part.feeds), (1, (number,)))
                for one, values in zip(sums, targets, strict=True):
                    one.add(values)
        for name, one in zip(self.match.names, sums, strict=True):
            if not math.isfinite(one.variance):
                raise DataError(
                    f"tensor {name!r} of the model before pruning is not finite on the data; "
                    "check how the data is prepared"
                )
        return [max(one.variance, 1e-12) for one in sums]

    def _units(self) -> Iterator[tuple[Trainable, Floats]]:
        """The trained tensors with their units, by one batch of the held-back samples.

        The teacher's tensors count where it has them: pruning may have made the student's constant.
        """
        _, part = next(self._held_parts())
        fed = self._fed(part.feeds)
        outputs = [w.output for w in self.weights if w.role != "scale"]
        wanted = dict.fromkeys([*outputs, *(w.reads for w in self.weights if w.reads)])
        found: dict[str, torch.Tensor] = {}
        with torch.no_grad():
            for network in (self.teacher, self.student):
                names = [n for n in wanted if n not in found and network.has(n)]
                found.update(zip(names, network.run(fed, names), strict=True))
        for weight in self.weights:
            deviation, mean = np.ones(1), 1.0
            if weight.reads:
                mean = float(found[weight.reads].abs().mean(dtype=torch.float64))
            if weight.role != "scale":
                deviation = _deviation(found[weight.output], weight.output_axis)
            yield weight, weight.unit(deviation, mean)

    def _rows(self) -> int:
        """How many samples run at once: those whose tensors take no more than the limit."""
        part = next(self.held.parts([0]))
        fed = self._fed(part.feeds)
        taken = self.student.bytes(fed) // len(part.feeds[next(iter(part.feeds))])
        return max(1, self.settings.step_limit // max(_COPIES * taken, 1))

    # ---------------------------------------------------------------------------------- checkpoints

    def _save(self, state: Progress, kept: Kept) -> None:
        arrays = {}
        for value in self.values:
            moments = self.optimizer.state[value.latent]
            arrays[value.weight.name] = tuple(
                tensor.detach().cpu().numpy()
                for tensor in (value.latent, moments["exp_avg"], moments["exp_avg_sq"])
            )
        kept.write(state, arrays)

    def _restore(self, state: Progress) -> None:
        for value in self.values:
            latent, first, second = state.latents[value.weight.name]
            with torch.no_grad():
                value.latent.copy_(torch.from_numpy(latent))
            self.optimizer.state[value.latent] = {
                "step": torch.tensor(float(state.step)),
                "exp_avg": torch.empty_like(value.latent).copy_(torch.from_numpy(first)),
                "exp_avg_sq": torch.empty_like(value.latent).copy_(torch.from_numpy(second)),
            }


class _Clock:
    """What steps and looks take, and how many steps are left of a budget of seconds."""

    def __init__(self, seconds: float, state: Progress) -> None:
        self._seconds, self._state = seconds, state
        self._steps: deque[float] = deque(maxlen=_RECENT)
        self.look_time = 0.0

    @contextmanager
    def step(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._steps.append(time.perf_counter() - started)
        self._state.seconds += self._steps[-1]

    @contextmanager
    def look(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.look_time = time.perf_counter() - started
        self._state.seconds += self.look_time

    def steps_left(self, looks: int) -> int:
        """How many steps there is time for, besides so many looks."""
        left = self._seconds - self._state.seconds - looks * self.look_time
        return max(0, int(left / float(np.median(self._steps))))


class _Value:
    """A trained tensor as the optimizer and as the network see it."""

    def __init__(self, weight: Trainable, unit: Floats, device: torch.device) -> None:
        self.weight = weight
        factor = unit if weight.keep is None else np.where(weight.keep, unit, np.float32(0))
        start = weight.start / unit
        if weight.keep is not None:
            start = np.where(weight.keep, start, np.float32(0))
        self.factor = to_torch(np.asarray(factor, np.float32), weight.name, device)
        self.latent = to_torch(start.astype(np.float32), weight.name, device).requires_grad_()
        grid = weight.grid
        self.grid = (
            None
            if grid is None
            else [
                torch.from_numpy(np.array(a)).to(device)
                for a in (grid.scale, grid.zero, grid.low, grid.high)
            ]
        )

    def given(self) -> list[tuple[str, torch.Tensor]]:
        value = self.latent * self.factor
        if self.grid is not None:
            scale, zero, low, high = self.grid
            value = fake_quantize(value, scale, zero, low, high)
        return [(name, value) for name in self.weight.given]

    def floats(self) -> Floats:
        """The values now, not rounded."""
        return np.ascontiguousarray((self.latent.detach() * self.factor).cpu().numpy())


def _divergence(y: torch.Tensor, t: torch.Tensor, probabilities: bool) -> torch.Tensor:
    """What the scores of classes y say less than t, at a temperature, in nats."""
    if probabilities:
        y, t = (x.clamp_min(1e-12).log() for x in (y, t))
    y, t = ((x / _TEMPERATURE).log_softmax(1) for x in (y, t))
    return (t.exp() * (t - y)).sum(1).mean() * _TEMPERATURE**2


def _deviation(values: torch.Tensor, axis: int | None) -> npt.NDArray[np.float64]:
    """The standard deviation for each index of an axis, or of all values."""
    values = values.to(torch.float64)
    rows = values.reshape(1, -1) if axis is None else values.movedim(axis, 0).flatten(1)
    found: npt.NDArray[np.float64] = rows.std(dim=1, correction=0).cpu().numpy()
    return found


class _Variance:
    """The mean variance over all values of a tensor, streamed."""

    def __init__(self) -> None:
        self._count, self._sum, self._squares = 0, 0.0, 0.0

    def add(self, values: torch.Tensor) -> None:
        self._count += values.numel()
        self._sum += float(values.sum(dtype=torch.float64))
        self._squares += float(values.to(torch.float64).square().sum())

    @property
    def variance(self) -> float:
        if not self._count:
            return 0.0
        return self._squares / self._count - (self._sum / self._count) ** 2


class _Cache:
    """What the teacher gave, up to so many bytes."""

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._found: dict[Any, list[torch.Tensor]] = {}

    def get(self, key: Any) -> list[torch.Tensor] | None:
        return self._found.get(key)

    def put(self, key: Any, values: list[torch.Tensor]) -> None:
        taken = sum(v.numel() * v.element_size() for v in values)
        if key is not None and taken <= self._left:
            self._left -= taken
            self._found[key] = values


def _share(step: int, steps: int | None) -> float:
    """The share of the learning rate in a step; the first ones need no number of steps."""
    if step < _WARM or steps is None:
        return (step + 1) / _WARM
    return (1 + math.cos(math.pi * (step - _WARM) / (steps - _WARM))) / 2
