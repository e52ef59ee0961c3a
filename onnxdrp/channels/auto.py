"""Rates of channels found without a target, under a budget of accuracy: Fujitsu's CAC on a graph.

Round by round: what each group of channels alone would cost (onnxdrp.channels.lone_groups), which
rates the radius of trust allows (onnxdrp.channels.trust_region), the channels removed and what is
left repaired; the candidate becomes the model where it loses no more than `max_drop` points of the
*original* model's accuracy, or of agreement with it. Rates are shares of the width of now, so they
compound. Each repair aims at what the original model computes, not at the last model accepted.

How this departs from CAC, and why, is in docs/cac.md.
"""

import importlib.util
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from onnxdrp.channels.choosing import at_rates
from onnxdrp.channels.cost import totals
from onnxdrp.channels.excluding import removable
from onnxdrp.channels.groups import Channels, channels_of
from onnxdrp.channels.judging import HeldOut
from onnxdrp.channels.rounds import AutoChannels, Round
from onnxdrp.channels.saved_search import Figures, SavedSearch, State
from onnxdrp.channels.trust_region import Proposal, TrustRegion, loss_thresholds
from onnxdrp.checkpoint import data_identity
from onnxdrp.datareaders import split
from onnxdrp.errors import CheckError, ModelError, OptionError
from onnxdrp.model import Model
from onnxdrp.pipeline import PassContext, PassManager

if TYPE_CHECKING:
    from onnxdrp.datareaders import DataReader
    from onnxdrp.targets import Target

__all__ = ["AutoChannels", "Round", "auto_channels"]

log = logging.getLogger(__name__)

Recovery: TypeAlias = Literal["refit", "distill"]

_HELD_OUT = 0.2  # of the calibration data, where no other is given to judge by
_TRAINING_HELD_OUT = 0.1  # of what is left, by which distill judges what it has reached


@dataclass(frozen=True)
class _Options:
    """What the search is told; see auto_channels."""

    max_drop: float
    sure: bool
    rates: tuple[float, ...]
    loss_margin: float
    scaling_factor: float
    max_search_times: int
    exclude: tuple[str, ...]
    auto_excludes: bool
    multiple: int
    recover: Recovery
    distill_minutes: float | None
    distill_steps: int | None
    gradients: bool
    calc_iter: int
    samples: int
    rows: int
    original: bool
    seed: int
    memory_limit: int

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop <= 100:
            raise OptionError(f"max_drop {self.max_drop} is outside [0, 100] points; 1 is usual")
        if not self.rates or not all(0 <= rate < 1 for rate in self.rates) or not any(self.rates):
            raise OptionError(f"rates {list(self.rates)}: give some in (0, 1); 0.2, 0.1 is usual")
        if not 0 < self.loss_margin < math.inf:
            raise OptionError(
                f"loss_margin {self.loss_margin}: give a number above 0; 0.5 is usual"
            )
        for name in ("max_search_times", "multiple", "calc_iter", "samples", "rows"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} {getattr(self, name)}: give 1 or more")
        if self.recover != "distill" and (self.distill_minutes or self.distill_steps):
            raise OptionError(f"recover {self.recover} does not distill; leave its budget out")
        if (self.recover == "distill" or self.gradients) and not importlib.util.find_spec("torch"):
            raise OptionError("distill and gradients need torch; pip install onnxdrp[distill]")


def auto_channels(
    model: Model,
    calib: "DataReader",
    *,
    max_drop: float = 1.0,
    sure: bool = False,
    held_out: "DataReader | None" = None,
    judge: Callable[[Model], float] | None = None,
    rates: Sequence[float] = (0.2, 0.1, 0.0),
    loss_margin: float = 0.5,
    scaling_factor: float = 2.0,
    max_search_times: int = 1000,
    exclude: Sequence[str] = (),
    auto_excludes: bool = True,
    multiple: int = 1,
    recover: Recovery = "refit",
    distill_minutes: float | None = None,
    distill_steps: int | None = None,
    gradients: bool = False,
    calc_iter: int = 100,
    samples: int = 64,
    rows: int = 8192,
    original: bool = False,
    target: "Target | None" = None,
    seed: int = 0,
    workers: int | None = None,
    memory_limit: int = 1 << 30,
    checkpoint: Path | None = None,
    progress: Callable[[Round, int], None] | None = None,
) -> AutoChannels:
    """Remove channels as long as no more than some points of accuracy are lost.

    Args:
        model: float, preprocessed; is not changed.
        calib: unlabelled data to measure and to repair by.
        max_drop: points that may be lost of the model's accuracy, where `held_out` has labels, else
            of agreement with it; CAC's acc_control.
        sure: it is the upper end of the 95 % interval of what is lost that may be no more; then
            the choice among candidates does not flatter the last one, and less is removed.
        held_out: data to judge candidates by; default: a fifth of `calib`, which is kept for that.
        judge: gives the points that a model has lost, instead; for models without classes.
        rates: shares of a group's channels, of its width at that time; 0 is always one of them.
        loss_margin: share of the original loss by which that may rise (CAC's).
        scaling_factor: by which the radius of trust grows and shrinks (CAC's).
        max_search_times: most rounds.
        exclude: selectors of layers whose channels stay.
        auto_excludes: leave the outputs of the first and of the last convolution whole.
        multiple: of channels that stays in each layer that loses some.
        recover: refit: RefitWeights; distill: Distill behind it for candidates that would fail
            without.
        distill_minutes: of one candidate's training; default 5.
        distill_steps: of the same, instead.
        gradients: CAC's thresholds, errors and order (onnxdrp.channels.gradients, the smallest L1
            first), not those of lone_groups and score-channels; needs torch.
        calc_iter: batches for them.
        samples: on which the loss is looked at for each group.
        rows: of a layer's input that are looked at for its error, if there are more.
        original: the bound as CAC has it (onnxdrp.channels.trust_region), and gradients that add
            up.
        target: the hardware profile, for the passes.
        seed: of everything random.
        workers: threads.
        memory_limit: bytes of activations held in memory.
        checkpoint: a JSON file, beside which accepted models lie, that is written after each round;
            the same call goes on from there. Both are deleted at the end.
        progress: told of each round, and how many follow if none of them holds.

    Raises:
        ModelError: no channels can be removed, or nothing of the outputs can be compared.
        OptionError: an option is out of its range, or torch is not there.
        CheckError: every candidate loses too much; says what the last one loses.
        DataError: the data cannot be used.
    """
    options = _Options(
        max_drop, sure, tuple(rates), loss_margin, scaling_factor, max_search_times, tuple(exclude),
        auto_excludes, multiple, recover, distill_minutes, distill_steps, gradients, calc_iter,
        samples, rows, original, seed, memory_limit,
    )  # fmt: skip
    if held_out is None:
        calib, held_out = split(calib, _HELD_OUT, seed)
    held = HeldOut(model, held_out, judge, hard=gradients, seed=seed)
    search = _Search(model, calib, held, options, target, workers)
    saved = SavedSearch(checkpoint, "" if checkpoint is None else search.key(held_out))
    if (state := saved.read()) is not None:
        search.resume(state)
    proposal = search.propose()
    while proposal is not None:
        found = search.round(proposal)
        saved.write(search.state)
        log.info("round %d: %.2f points lost", found.number, found.lost)
        proposal = search.propose()
        if progress is not None:
            progress(found, search.left())
    result = search.result()
    saved.remove()
    return result


class _Search:
    """The loop: the model of now, and how far the radius of trust reaches."""

    def __init__(
        self,
        model: Model,
        calib: "DataReader",
        held: HeldOut,
        options: _Options,
        target: "Target | None",
        workers: int | None,
    ) -> None:
        self._first, self._origin = model, channels_of(model)
        self._calib, self._held, self._options = calib, held, options
        self._target, self._workers = target, workers
        groups, self._skipped = self._removable(model, self._origin)
        if not groups:
            raise ModelError(
                f"no channels can be removed: {next(iter(self._skipped.values()), '')}"
            )
        self.state = State(
            TrustRegion(options.scaling_factor, options.original),
            {layer: np.arange(len(atoms)) for layer, atoms in self._origin.trace.made.items()},
        )
        self._become(None)

    def key(self, held_out: "DataReader") -> str:
        """What the search is of: model, options and data."""
        data = data_identity(self._calib), data_identity(held_out)
        target = "" if self._target is None else self._target.name
        return f"{self._first.fingerprint()} {self._options} {target} {data}"

    def resume(self, state: State) -> None:
        """Go on from there."""
        self.state = state
        self._become(state.model)

    def propose(self) -> Proposal | None:
        """What the radius of trust allows; None when the search is over."""
        state, most = self.state, self._options.max_search_times
        if len(state.rounds) >= most and not state.region.stopped:
            state.region.stopped = f"{most} rounds (max_search_times)"
        if state.region.stopped:
            return None
        if state.figures is None:
            state.figures = self._measured()
            state.region.begin(state.figures.thresholds, state.figures.errors)
        found = state.region.propose(state.figures.thresholds, state.figures.errors)
        return None if state.region.stopped else found

    def left(self) -> int:
        """How many rounds follow if none of them holds."""
        region, figures = self.state.region, self.state.figures
        if region.stopped or figures is None:
            return 0
        most = self._options.max_search_times - len(self.state.rounds)
        return min(region.rejections_left(figures.thresholds, figures.errors), most)

    def round(self, proposal: Proposal) -> Round:
        """Try a candidate, and take it for the model if it holds."""
        started, state = time.perf_counter(), self.state
        assert state.figures is not None  # propose has seen to it
        removed = at_rates(self._channels, self._scores, proposal.rates, self._options.multiple)
        before = next((r for r in self._failed() if r.rates == proposal.rates), None)
        trial = self._tried(removed) if before is None else _Trial.again(before)
        found = Round(
            number=len(state.rounds) + 1,
            rates=proposal.rates,
            errors={name: proposal.choices[name].error for name in proposal.rates},
            thresholds=proposal.thresholds,
            norm=proposal.norm,
            upper_bound=proposal.upper_bound,
            limit=state.region.limit,
            loss=state.figures.loss,
            channels=sum(map(len, removed.values())),
            macs=trial.macs,
            lost=trial.lost[0],
            low=trial.lost[1],
            high=trial.lost[2],
            accepted=self._holds(trial.lost),
            recovered=trial.recovered,
            same_as=0 if before is None else before.same_as or before.number,
            seconds=round(time.perf_counter() - started, 3),
        )
        state.rounds.append(found)
        if found.accepted:
            state.region.accept(proposal)
            for layer, kept in self._channels.kept(removed).items():
                state.left[layer] = state.left[layer][kept]
            state.model, state.figures = trial.model, None
            self._become(trial.model)
        else:
            state.region.reject(proposal)
        return found

    def _holds(self, lost: tuple[float, float, float]) -> bool:
        """Whether no more is lost than may be."""
        return lost[2 if self._options.sure else 0] <= self._options.max_drop

    def _failed(self) -> list[Round]:
        """The rounds since the last that was accepted."""
        rounds = self.state.rounds
        return rounds[max((i + 1 for i, r in enumerate(rounds) if r.accepted), default=0) :]

    def _become(self, model: Model | None) -> None:
        """Take a model for the one of now; None: the original."""
        self._model = self._first if model is None else model
        self._channels = channels_of(self._model)
        self._known_scores: Mapping[str, npt.NDArray[np.float64]] | None = None
        self._dense = self._first if model is None else self._seen()

    @property
    def _scores(self) -> Mapping[str, npt.NDArray[np.float64]]:
        """{group: what is lost with each unit of the model of now and those before it}."""
        if self._known_scores is None:
            self._known_scores = self._scored()
        return self._known_scores

    def _scored(self) -> Mapping[str, npt.NDArray[np.float64]]:
        from onnxdrp.passes import ScoreChannels

        ctx = PassContext(reader=self._calib, seed=self._options.seed, workers=self._workers)
        score = ScoreChannels(
            "l1" if self._options.gradients else "second-order",
            memory_limit=self._options.memory_limit,
        )
        PassManager([score]).run(self._model, ctx)
        assert ctx.channel_scores is not None  # it is what the pass is for
        return ctx.channel_scores

    def _seen(self) -> Model:
        """The original model, with what is left of the channels of its tensors."""
        from onnxdrp.passes.removing import seen_through

        return seen_through(self._first, self._origin, self._origin.alive(self._removed()))

    def _removed(self) -> dict[str, tuple[int, ...]]:
        """{group of the original model: its units that are gone}."""
        unit, gone = self._origin.unit, [np.empty(0, np.int64)]
        for layer, atoms in self._origin.trace.made.items():
            gone.append(np.delete(unit[atoms], self.state.left[layer]))
        lost = np.unique(np.concatenate(gone))
        places = {g.name: np.flatnonzero(np.isin(g.units, lost)) for g in self._origin.groups}
        return {name: tuple(at.tolist()) for name, at in places.items() if len(at)}

    def _removable(self, model: Model, channels: Channels) -> tuple[list[str], dict[str, str]]:
        return removable(model, channels, self._options.exclude, self._options.auto_excludes)

    def _measured(self) -> Figures:
        """Thresholds, and the errors of all rates."""
        options, model, channels = self._options, self._model, self._channels
        groups, _ = self._removable(model, channels)
        removed = {name: self._units(name) for name in groups}
        own, loss = self._held.losses(model, self._workers)
        if options.gradients:
            from onnxdrp.channels.gradients import gradient_sensitivities, group_sizes, removed_l1

            sensitivities = gradient_sensitivities(
                model, self._first, channels, groups, self._calib, self._held.loss,
                options.calc_iter, options.original,
            )  # fmt: skip
            sizes = group_sizes(model, channels, groups)
            thresholds = loss_thresholds(own, loss, options.loss_margin, sensitivities, sizes)
            return Figures(loss, thresholds, removed_l1(model, channels, removed))
        from onnxdrp.channels.lone_groups import lone_groups

        alone = lone_groups(
            model, self._dense, channels, removed, self._scores, self._calib, self._held.loss,
            samples=options.samples, rows=options.rows, seed=options.seed,
            memory_limit=options.memory_limit, workers=self._workers,
        )  # fmt: skip
        ones = dict.fromkeys(groups, 1.0)  # errors are rises of the loss already
        thresholds = loss_thresholds(own, loss, options.loss_margin, ones)
        return Figures(loss, thresholds, {name: lone.rises for name, lone in alone.items()})

    def _units(self, group: str) -> dict[float, list[int]]:
        """{rate: units that go}, of rates at which some go, and others than at a higher rate."""
        found: dict[float, list[int]] = {}
        for rate in sorted(set(self._options.rates) - {0.0}, reverse=True):
            units = at_rates(self._channels, self._scores, {group: rate}, self._options.multiple)
            if group in units and (self._options.original or units[group] not in found.values()):
                found[rate] = units[group]
        return found

    def _tried(self, removed: Mapping[str, Sequence[int]]) -> "_Trial":
        """The model of now without some channels, repaired."""
        from onnxdrp.passes import Distill, RefitWeights, RemoveChannels

        options, model = self._options, self._model.clone()
        ctx = PassContext(reader=self._calib, seed=options.seed, workers=self._workers)
        ctx.target = self._target or ctx.target
        ctx.dense = self._dense
        ctx.removed = {name: tuple(units) for name, units in removed.items()}
        if options.recover == "distill":
            ctx.reader, ctx.held_out = split(self._calib, _TRAINING_HELD_OUT, options.seed)
        limit = options.memory_limit
        PassManager([RemoveChannels(), RefitWeights(memory_limit=limit)]).run(model, ctx)
        macs, lost, recovered = totals(model)[1], self._held.lost(model), "refit"
        if options.recover == "distill" and not self._holds(lost):
            minutes, steps = options.distill_minutes, options.distill_steps
            train = Distill(minutes=minutes, steps=steps, memory_limit=limit)
            PassManager([train]).run(model, ctx)
            lost, recovered = self._held.lost(model), "distill"
        return _Trial(model, macs, lost, recovered)

    def _told(self, last: Round) -> str:
        return f"{last.lost:.2f}" + (f", at most {last.high:.2f}" if self._options.sure else "")

    def result(self) -> AutoChannels:
        """What it came to. Raises CheckError if nothing was accepted."""
        rounds, stopped = self.state.rounds, self.state.region.stopped
        if not any(r.accepted for r in rounds):
            last = f"the last candidate loses {self._told(rounds[-1])}; " if rounds else ""
            raise CheckError(
                f"no channels can go at {self._options.max_drop:g} points of {self._held.what}: "
                f"{last}the search ended with {stopped!r}; allow more, or exclude the layers that "
                "cost most"
            )
        before, after = totals(self._first), totals(self._model)
        made = self._origin.trace.made
        return AutoChannels(
            model=self._model,
            rounds=tuple(rounds),
            removed=self._removed(),
            channels={
                layer: [len(made[layer]), len(left)]
                for layer, left in self.state.left.items()
                if len(left) < len(made[layer])
            },
            macs=(before[1], after[1]),
            params=(before[0], after[0]),
            max_drop=self._options.max_drop,
            what=self._held.what,
            samples=self._held.samples,
            top1=self._held.top1,
            stopped=stopped,
            skipped=self._skipped,
        )


@dataclass(frozen=True, eq=False)
class _Trial:
    """A candidate, its multiply-adds, what it has lost, and how it was repaired."""

    model: Model | None
    macs: int | None
    lost: tuple[float, float, float]
    recovered: str

    @classmethod
    def again(cls, before: Round) -> "_Trial":
        """Of a round that had the same one, and failed."""
        return cls(None, before.macs, (before.lost, before.low, before.high), before.recovered)
