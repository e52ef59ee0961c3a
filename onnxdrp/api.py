"""The verbs of the command line as functions with the same words.

Each edits the Model it is given and returns a Report whose `model` is the result (of a path, too).
"""

import copy
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from onnxdrp.errors import CheckError, DataError, ModelError, OptionError
from onnxdrp.model import Model, load
from onnxdrp.pipeline import Instrument, Pass, PassContext, PassManager, watched
from onnxdrp.report import Report

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from onnxdrp.chains import (
        Allocation,
        BiasCorrection,
        ChannelScore,
        Equalization,
        Recovery,
        Rounding,
    )
    from onnxdrp.channels.choosing import ChannelScores
    from onnxdrp.channels.rounds import AutoChannels
    from onnxdrp.datareaders import DataReader
    from onnxdrp.debugging import Trace
    from onnxdrp.detection import DetectionScore
    from onnxdrp.evaluation import Accuracy, Comparison
    from onnxdrp.exclusions import TailMode
    from onnxdrp.explanation import Explanation
    from onnxdrp.passes.calibrate import Method
    from onnxdrp.scores import Score
    from onnxdrp.sparsity_search import Curve
    from onnxdrp.summary import Summary
    from onnxdrp.targets import Target

__all__ = [
    "calibrate",
    "compare",
    "debug",
    "evaluate",
    "evaluate_detection",
    "explain",
    "info",
    "optimize",
    "pareto",
    "preprocess",
    "prune",
    "quantize",
    "run",
    "sensitivity",
    "slim",
]

log = logging.getLogger(__name__)

Path_: TypeAlias = str | Path
Tails: TypeAlias = Literal["two", "one", "abs"]
Progress: TypeAlias = Callable[[int, int | None], None]
_SWITCHES = ("per_channel", "reduce_range")  # False says something, too
_PLAIN = "without calibration data weights are rounded to the nearest, and biases stay"
ROUNDING: "Rounding" = "second-order"  # these where there is data
BIAS_CORRECTION: "BiasCorrection" = "sequential"
SCORE: "Score" = "second-order"
CHANNEL_SCORE: "ChannelScore" = "second-order"
ALLOCATION: "Allocation" = "auto"
RECOVER: "Recovery" = "refit"
HELD_OUT = 0.2  # share of the calibration data that is kept for the figures of the report
DISTILL_HELD_OUT = 0.1  # share of the rest, by which distill judges what it has reached
SEARCH_SAMPLES = 1000  # by which, at most, a search judges a sparsity


@dataclass
class _Job:
    """One run: the model, what it is to become, and on which data."""

    model: Model
    target: "Target"
    calibration: "DataReader | None"
    held_out: "DataReader | None"
    labelled: "DataReader | None"
    seed: int
    instruments: Sequence[Instrument]
    warnings: list[str]
    profile: str  # the target as the user named it
    activation_zeropoint: bool = False
    checkpoint: Path | None = None
    executor: "Executor | None" = None
    workers: int | None = None
    skip_bad_samples: bool = False
    scores: "ChannelScores | None" = None  # that the last run found

    def run(self, passes: Sequence[Pass]) -> Report:
        """Run the passes and add to the report what the whole came to."""
        from onnxdrp.figures import summarize
        from onnxdrp.recipe import dump_recipe

        original, ctx = self.model.clone(), self.context(passes)
        report = PassManager(passes, self.instruments).run(self.model, ctx)
        report.recipe = dump_recipe(
            [step.as_run(r.stats) for step, r in zip(passes, report.records, strict=True)],
            target=self.profile,
            activation_zeropoint=self.activation_zeropoint or None,
            seed=self.seed,
        )
        self.scores = ctx.channel_scores
        report.masks, report.ranges, report.rounds = ctx.masks, ctx.calibration, ctx.rounds
        report.sensitivity = ctx.sensitivity or ctx.channel_curves
        report.warnings += self.warnings
        for record in report.records:
            found = record.stats.get("warnings", ())
            report.warnings += [f"{record.name}: {text}" for text in dict.fromkeys(found)]
            unmet = [f"target {self.target.name}: {w}" for w in record.stats.get("unmet", ())]
            report.warnings += [w for w in unmet if w not in report.warnings]
            if tail := record.stats.get("tail"):
                report.summary["float_tail"] = {"nodes": len(tail), "from": tail[0], "to": tail[-1]}
        with watched("measure", self.instruments) as progress:
            summarize(
                report,
                original,
                ctx,
                self.held_out,
                self.labelled,
                skip_bad_samples=self.skip_bad_samples,
                progress=progress,
            )
        if ctx.rounds is not None:
            _tell_apart(report, ctx.rounds, self.labelled is None)
        return report

    def context(self, passes: Sequence[Pass]) -> PassContext:
        """What the first of these passes is to find."""
        from onnxdrp.datareaders import count, split
        from onnxdrp.passes import AutoSlim, Distill

        reader, judged = self.calibration, None
        if reader is not None and any(isinstance(p, Distill) for p in passes) and count(reader) > 1:
            reader, judged = split(reader, DISTILL_HELD_OUT, seed=self.seed)
        if self.labelled is not None and any(isinstance(p, AutoSlim) for p in passes):
            judged = self.labelled
        return PassContext(
            reader=reader,
            held_out=judged,
            target=self.target,
            seed=self.seed,
            checkpoint=self.checkpoint,
            executor=self.executor,
            workers=self.workers,
        )


def _tell_apart(report: Report, rounds: "AutoChannels", unseen: bool) -> None:
    """Say whether figures are of data that chose among candidates, and where it flattered them."""
    told = report.summary.get("fidelity")
    if told is None:
        return
    told["of"] = "samples that no decision saw" if unseen else "the data that judged the candidates"
    if not unseen:
        report.warnings.append(
            "figures are of the data by which candidates were judged, and the last one accepted is "
            "flattered by it; measure on other data, too"
        )
    elif told["top1_agreement"] is not None and rounds.what == "top-1 agreement":
        lost = 100 * (1 - told["top1_agreement"])
        if lost > rounds.max_drop:
            report.warnings.append(
                f"{lost:.2f} points are lost on {told['samples']} samples that no decision saw, "
                f"{rounds.best.lost:.2f} on those that judged; give more samples, or sure"
            )


def _job(
    model: "Model | Path_",
    calib: Any,
    data: Any,
    target: "str | Path | Target",
    seed: int,
    instruments: Sequence[Instrument],
    *,
    hold_out: bool = True,
    activation_zeropoint: bool = False,
    reshaped: bool = False,
    strict: bool = False,
    skip_bad_samples: bool = False,
    checkpoint: Path_ | None = None,
    executor: "Executor | None" = None,
    workers: int | None = None,
) -> _Job:
    from onnxdrp.datareaders import check_reader, count, split
    from onnxdrp.targets import load_target

    if workers is not None and workers < 1:
        raise OptionError(f"workers {workers}: give 1 or more")
    model = load(model)
    profile = load_target(target) if isinstance(target, str | Path) else target
    if activation_zeropoint:
        profile = profile.with_zero_points()
    # The shapes and the opset that the passes will see to are judged by Check, on the result.
    unmet = [] if reshaped else profile.unmet(model, converted=True)
    if unmet and strict:
        raise CheckError(f"target {profile.name} is not met: {'; '.join(unmet)}")
    warnings = [f"target {profile.name}: {wish}" for wish in unmet]
    for warning in warnings:
        log.warning(warning)
    calibration = None if calib is None else _reader(calib, model)
    labelled = None if data is None else _reader(data, model)
    if skip_bad_samples:
        calibration, labelled = _not_refusing(calibration), _not_refusing(labelled)
    for reader in (calibration, labelled):
        if reader is not None:
            check_reader(reader, model)
    held_out = labelled
    if calibration is not None and labelled is None and hold_out:
        if count(calibration) > 1:
            calibration, held_out = split(calibration, HELD_OUT, seed=seed)
        else:
            held_out = calibration
            warnings.append("figures are of the only calibration sample: none was held back")
    named = str(target) if isinstance(target, str | Path) else profile.name
    job = _Job(model, profile, calibration, held_out, labelled, seed, instruments, warnings, named)
    job.checkpoint = None if checkpoint is None else Path(checkpoint)
    job.executor, job.workers, job.skip_bad_samples = executor, workers, skip_bad_samples
    job.activation_zeropoint = activation_zeropoint
    return job


def _not_refusing(reader: "DataReader | None") -> "DataReader | None":
    """The reader, which gives NaN and infinity on: it is for others to say what becomes of them."""
    if reader is not None:
        reader = copy.copy(reader)
        reader.finite = False
    return reader


def _reader(data: Any, model: Model) -> "DataReader":
    from onnxdrp.datareaders import open_reader

    return open_reader(data, model)


def _refuse(what: str, **given: Any) -> None:
    """Raise OptionError for the options that are given and would be ignored because of `what`."""
    empty = (None, False)
    asked = [
        name
        for name, value in given.items()
        if not any(value is e for e in empty) and value not in ((), {}, [])
    ]
    if asked:
        raise OptionError(f"{', '.join(asked)} does not go with {what}; leave one of them out")


def preprocess(
    model: "Model | Path_",
    *,
    input_shape: Mapping[str, Sequence[int]] | None = None,
    outputs: Iterable[str] | None = None,
    target: "str | Path | Target" = "generic",
    calib: Any = None,
    instruments: Sequence[Instrument] = (),
) -> Report:
    """Infer shapes, optimize, fold constants, fuse BatchNormalization: what must precede any mask.

    Args:
        model: a Model, which is edited, or the path of one.
        input_shape: {input name: static shape}.
        outputs: names of tensors that become the graph's outputs.
        target: a profile's name, or the path of one.
        calib: data on which instruments and figures run; none is needed.
        instruments: see `onnxdrp.instruments`.

    Returns:
        The report; outputs are unchanged but for rounding.

    Raises:
        OnnxDrpError: the model, an option or the data cannot be used; PassError if a pass failed.
    """
    job = _job(model, calib, None, target, 0, instruments, reshaped=bool(input_shape))
    return job.run(_preprocessed(input_shape, outputs))


def prune(
    model: "Model | Path_",
    *,
    sparsity: float | None = None,
    pattern: str | None = None,
    target: "str | Path | Target" = "generic",
    rates: Mapping[str, float] | None = None,
    allocation: "Allocation | None" = None,
    sparsity_of: Literal["weights", "macs"] | None = None,
    score: "Score | None" = None,
    prune_steps: int | None = None,
    exclude: Iterable[str] = (),
    prune_last: bool = False,
    prune_depthwise: bool = False,
    masks: Path_ | None = None,
    recover: "Recovery | None" = None,
    distill_minutes: float | None = None,
    max_drop: float | None = None,
    input_shape: Mapping[str, Sequence[int]] | None = None,
    outputs: Iterable[str] | None = None,
    calib: Any = None,
    data: Any = None,
    memory_limit: int | None = None,
    workers: int | None = None,
    checkpoint: Path_ | None = None,
    seed: int = 0,
    skip_preprocess: bool = False,
    instruments: Sequence[Instrument] = (),
) -> Report:
    """Preprocess, zero the weights that matter least, in the pattern's units, and repair the rest.

    Args:
        model: a Model, which is edited, or the path of one.
        sparsity: share of units to prune in the layers that are pruned, in [0, 1); default 0.7.
        pattern: block, flex-nm, nm, nm:N:M, row or unstructured; default: the target's.
        target: a profile's name, or the path of one.
        rates: {node or weight name, glob, or "re:" and a regular expression: rate}.
        allocation: auto, the default where there is data and the pattern leaves rates open, prunes
            more where it costs less (AllocateRates); uniform gives all layers the same rate.
        sparsity_of: weights or macs: what the share is of where rates are allocated.
        score: what matters least: magnitude, the default without data; activation; or second-order,
            what the outputs of the layer lose once the others are re-fitted (PruneBlocks).
        prune_steps: in how many the sparsity is reached, with the rest re-fitted after each.
        exclude: layers to leave whole, named in the same ways.
        prune_last: prune the last layers too.
        prune_depthwise: prune depthwise convolutions too.
        masks: an .npz of masks to apply instead of choosing any.
        recover: refit, the default where there is data, fits what is left to what the float model
            computes (RefitWeights); distill trains it besides (Distill; needs torch); moments gives
            outputs of layers their means and variances again, which is quick (MatchMoments); or
            none.
        distill_minutes: how long distill may take; default 5.
        max_drop: points of top-1 accuracy on `data`, where it has labels, or else of agreement with
            the float model, that may be lost: instead of `sparsity` the highest is found with which
            no more are, on samples that are held back (onnxdrp.sparsity_search).
        input_shape: {input name: static shape}.
        outputs: names of tensors that become the graph's outputs.
        calib: unlabelled data to choose and to repair by; a part is held back for the figures of
            the report unless `data` is given.
        data: other, possibly labelled, data for the figures.
        memory_limit: bytes of activations held at a time; default 2^30.
        workers: how many samples are under way at a time; default: as many as there are cores.
        checkpoint: a file that keeps what a search or distill has reached, so that the same call
            goes on after an interruption; it is deleted at the end.
        seed: of everything random.
        skip_preprocess: leave the graph as it is.
        instruments: see `onnxdrp.instruments`.

    Raises:
        OnnxDrpError: the model, an option or the data cannot be used; PassError if a pass failed.
    """
    running: dict[str, Any] = {"workers": workers, "checkpoint": checkpoint}
    job = _job(model, calib, data, target, seed, instruments, reshaped=bool(input_shape), **running)
    before = _preprocessed(input_shape, outputs, skip=skip_preprocess)
    options: dict[str, Any] = {
        "pattern": pattern,
        "rates": rates,
        "allocation": allocation,
        "sparsity_of": sparsity_of,
        "score": score,
        "prune_steps": prune_steps,
        "exclude": exclude,
        "prune_last": prune_last,
        "prune_depthwise": prune_depthwise,
        "memory_limit": memory_limit,
    }
    repair: dict[str, Any] = {"recover": recover, "distill_minutes": distill_minutes}
    curve = None
    if max_drop is not None:
        _need(calib, ())
        _refuse("max_drop", sparsity=sparsity, masks=masks)
        quick = repair | {"distill_minutes": None}
        if recover == "distill":
            quick["recover"] = "refit"

        def chain(rate: float) -> list[Pass]:
            every = options | quick
            return _pruned(job.target, data=True, sparsity=rate, masks=None, **every)

        curve = _curve(job, before, chain, max_drop, pattern)
        assert curve.best is not None  # find_sparsity has seen to it
        sparsity = curve.best.rate
        job.warnings += curve.warnings
    data_given = calib is not None
    steps = before + _pruned(
        job.target, data=data_given, sparsity=sparsity, masks=masks, **options, **repair
    )
    report = job.run(steps)
    report.curve = curve
    return report


def slim(
    model: "Model | Path_",
    *,
    ratio: float | None = None,
    rate: float | None = None,
    score: "ChannelScore | None" = None,
    curves: Path_ | None = None,
    search: int | None = None,
    ratios: Sequence[float] = (),
    index: int | None = None,
    auto: bool = False,
    max_drop: float | None = None,
    sure: bool = False,
    spec: Path_ | None = None,
    multiple: int | None = None,
    exclude: Iterable[str] = (),
    auto_excludes: bool = True,
    sparse: bool = False,
    recover: "Recovery | None" = None,
    distill_minutes: float | None = None,
    target: "str | Path | Target" = "generic",
    input_shape: Mapping[str, Sequence[int]] | None = None,
    outputs: Iterable[str] | None = None,
    calib: Any = None,
    data: Any = None,
    memory_limit: int | None = None,
    workers: int | None = None,
    executor: "Executor | None" = None,
    checkpoint: Path_ | None = None,
    seed: int = 0,
    skip_preprocess: bool = False,
    instruments: Sequence[Instrument] = (),
) -> Report:
    """Preprocess, remove channels from the graph, and repair the rest: faster on every device.

    Which channels go is decided in one of five ways: the same share of every group (`rate`, or
    `ratio`), by what they cost in each (`ratio` with `curves`), by trying (`ratio` with `search`),
    as many as a budget of accuracy allows (`auto`), or as decided before (`spec`).

    Args:
        model: a Model, which is edited, or the path of one.
        ratio: share of the multiply-adds to remove, in [0, 1).
        rate: share of the channels to remove, of every group that may lose some.
        score: which channels of a group go first: l1, the smallest weights, the default without
            data; activation; or second-order, what their readers lose once the other channels are
            re-fitted, the default where there is data (ScoreChannels).
        curves: a file of `sensitivity(..., of="channels")`: channels go in the order in which it
            has measured them.
        search: how many sub-networks to try (SearchChannels).
        ratios: of these, the shares of a group's channels that may stay; default: any.
        index: take this one of them, or of the front that `spec` is.
        auto: remove what `max_drop` allows (onnxdrp.channels.auto: Fujitsu's CAC, docs/cac.md).
        max_drop: points of top-1 accuracy on `data`, where it has labels, or else of agreement with
            the float model, that `auto` may lose; default 1.
        sure: hold the upper end of the 95 % interval of what is lost to `max_drop`, too: less goes,
            and on other images it holds as well.
        spec: a file of a decision (onnxdrp.channels.spec), or of a front (`pareto`).
        multiple: that the numbers of channels left are of; default: the target's, 1 with `auto`.
        exclude: layers whose outputs stay whole: names, globs, "re:" and a regular expression.
        auto_excludes: leave the outputs of the first and of the last convolution whole.
        sparse: only set the weights of these channels to zero, the shapes stay.
        recover: as for `prune`; refit is the default where there is data.
        distill_minutes: how long distill may take; default 5.
        target: a profile's name, or the path of one.
        input_shape: {input name: static shape}.
        outputs: names of tensors that become the graph's outputs.
        calib: unlabelled data to choose and to repair by; a part is held back for the figures of
            the report unless `data` is given.
        data: other, possibly labelled, data for the figures.
        memory_limit: bytes of activations held at a time; default 2^30.
        workers: how many samples, or tries, are under way at a time; default: as many as there are
            cores.
        executor: any concurrent.futures.Executor to run them; default: threads.
        checkpoint: as for `prune`.
        seed: of everything random.
        skip_preprocess: leave the graph as it is.
        instruments: see `onnxdrp.instruments`.

    Returns:
        The report; with `auto`, `report.rounds` has what was tried.

    Raises:
        OnnxDrpError: the model, an option or the data cannot be used; PassError if a pass failed.
    """
    from onnxdrp import chains
    from onnxdrp.passes import AutoSlim

    running: dict[str, Any] = {"workers": workers, "executor": executor, "checkpoint": checkpoint}
    job = _job(model, calib, data, target, seed, instruments, reshaped=bool(input_shape), **running)
    steps = _preprocessed(input_shape, outputs, skip=skip_preprocess)
    recover = recover or (RECOVER if calib is not None else "none")
    if recover != "distill":
        _refuse(f"recover {recover}", distill_minutes=distill_minutes)
    size = {"ratio": ratio, "rate": rate}
    which = {
        "multiple": multiple,
        "exclude": tuple(exclude),
        "auto_excludes": auto_excludes,
    }
    if calib is None:
        _refuse("no calibration data", memory_limit=memory_limit)
    how: dict[str, Any] = {"memory_limit": memory_limit}
    if spec is not None:
        _refuse("spec", **size, score=score, curves=curves, search=search, multiple=multiple,
                exclude=which["exclude"], auto_excludes=not auto_excludes, auto=auto,
                max_drop=max_drop, sure=sure, ratios=ratios)  # fmt: skip
        how |= {"spec": str(spec), "index": index}
    elif auto:
        _need(calib, ())
        _refuse("auto", **size, score=score, curves=curves, search=search, index=index,
                ratios=ratios)  # fmt: skip
        if sparse:
            raise OptionError(
                "auto judges the slim form; keep what it decides (--save-spec), and give that "
                "with sparse"
            )
        budget: dict[str, Any] = which | {
            "recover": recover,
            "sure": sure,
            "max_drop": max_drop,
            "distill_minutes": distill_minutes,
            "memory_limit": memory_limit,
        }
        given = {name: value for name, value in budget.items() if value is not None}
        return job.run([*steps, AutoSlim(**given)])
    else:
        _refuse("a given ratio or rate", max_drop=max_drop, sure=sure)
        if curves is not None:
            _refuse("curves", score=score)
        elif calib is not None:
            score = score or CHANNEL_SCORE
        if search is None:
            _refuse("no search", index=index, ratios=ratios)
            how |= {"rate": rate, "curves": None if curves is None else str(curves)}
        else:
            _need(calib, ())
            _refuse("search", rate=rate, curves=curves)
            how |= {"tries": search, "index": index, "ratios": tuple(ratios) or None}
        how |= {"score": score, "ratio": ratio, **which}
    steps += chains.slimming(sparse=sparse, **how)
    steps += chains.recovery(recover, minutes=distill_minutes, memory_limit=memory_limit)
    return job.run(steps)


def pareto(
    model: "Model | Path_",
    calib: Any,
    *,
    curves: Path_ | None = None,
    cost: Literal["macs", "latency"] = "macs",
    by: Literal["sqnr", "agreement", "top-1"] = "sqnr",
    min_macs: float = 0.25,
    max_macs: float = 0.95,
    points: int = 10,
    multiple: int | None = None,
    ratios: Sequence[float] = (),
    exclude: Iterable[str] = (),
    auto_excludes: bool = True,
    target: "str | Path | Target" = "generic",
    input_shape: Mapping[str, Sequence[int]] | None = None,
    outputs: Iterable[str] | None = None,
    memory_limit: int | None = None,
    workers: int | None = None,
    executor: "Executor | None" = None,
    checkpoint: Path_ | None = None,
    seed: int = 0,
    skip_preprocess: bool = False,
    instruments: Sequence[Instrument] = (),
) -> Report:
    """Search for smaller networks, none of which is worse than another in cost and closeness.

    Each is the model without some channels, repaired in a quick way; `slim(..., spec=FILE,
    index=K)` makes one of them, repaired in full.

    Args:
        model: a Model, which is not changed, or the path of one.
        calib: data; a quarter is held back to compare by.
        curves: a file of `sensitivity(..., of="channels")`: networks are judged by it, their
            channels go in its order, and only those of the front are measured. Default: each is
            measured, and channels go as by `slim`.
        cost: multiply-adds, or the time of onnxruntime.
        by: how close a network is: SQNR or agreement with the float model, or top-1.
        min_macs: least multiply-adds, as a share of the model's.
        max_macs: most of them.
        points: into how many sizes the search is divided.
        multiple: that the numbers of channels left are of; default: the target's.
        ratios: the shares of a group's channels that may stay, before that: of a once-for-all
            network (0.5, 0.75, 1), say; default: any.
        exclude: as for `slim`.
        auto_excludes: as for `slim`.
        target: a profile's name, or the path of one.
        input_shape: {input name: static shape}.
        outputs: names of tensors that become the graph's outputs.
        memory_limit: bytes of activations held at a time, by each network that is measured.
        workers: how many are measured at a time; default: as many as there are cores.
        executor: any concurrent.futures.Executor to measure them; default: threads.
        checkpoint: a file that keeps what is measured, so that the same call goes on.
        seed: of everything random.
        skip_preprocess: leave the graph as it is.
        instruments: see `onnxdrp.instruments`.

    Returns:
        The report; `report.front` can be shown and saved.

    Raises:
        OnnxDrpError: the model, an option or the data cannot be used; PassError if a pass failed.
    """
    from onnxdrp.channels import channels_of
    from onnxdrp.channels import pareto as search
    from onnxdrp.channels.sensitivity import load_channel_sensitivity
    from onnxdrp.passes import ScoreChannels

    _need(calib, ())
    running: dict[str, Any] = {"workers": workers, "executor": executor, "checkpoint": checkpoint}
    whole = load(model).clone()
    reshaped = bool(input_shape)
    job = _job(
        whole, calib, None, target, seed, instruments, hold_out=False, reshaped=reshaped, **running
    )
    memory: dict[str, Any] = {} if memory_limit is None else {"memory_limit": memory_limit}
    steps = _preprocessed(input_shape, outputs, skip=skip_preprocess)
    report = job.run(steps if curves is not None else [*steps, ScoreChannels(**memory)])
    how: dict[str, Any] = {"scores": job.scores}
    if curves is not None:
        found = load_channel_sensitivity(curves)
        found.check(whole, channels_of(whole))
        drops = ((name, found.drops(name)) for name in found.curves)
        known = {name: (rates.tolist(), lost.tolist()) for name, (rates, lost) in drops}
        how = {"scores": found.scores(), "curves": known}
    assert job.calibration is not None
    report.front = search.pareto(
        whole,
        job.calibration,
        cost=cost,
        by=by,
        min_macs=min_macs,
        max_macs=max_macs,
        points=points,
        multiple=multiple or job.target.channel_multiple,
        ratios=tuple(ratios),
        exclude=tuple(exclude),
        auto_excludes=auto_excludes,
        seed=seed,
        **how,
        **memory,
        **running | {"checkpoint": job.checkpoint},
    )
    return report


def _slimmed(
    target: "Target",
    ratio: float,
    pattern: str | None,
    exclude: Iterable[str],
    repair: bool,
    memory_limit: int | None,
) -> list[Pass]:
    """Channels removed before a pattern is pruned: so many that its blocks still fit."""
    from onnxdrp import chains
    from onnxdrp.patterns import parse_pattern

    multiple = math.lcm(target.channel_multiple, parse_pattern(pattern or target.pattern).block)
    score: ChannelScore | None = CHANNEL_SCORE if repair else None
    selection: dict[str, Any] = {"ratio": ratio, "multiple": multiple, "exclude": tuple(exclude)}
    steps = chains.slimming(sparse=False, score=score, memory_limit=memory_limit, **selection)
    return steps + chains.recovery("refit" if repair else "none", memory_limit=memory_limit)


def _curve(
    job: _Job,
    before: Sequence[Pass],
    chain: Callable[[float], list[Pass]],
    max_drop: float,
    pattern: str | None,
) -> "Curve":
    """What sparsities cost that were tried in search of the highest with which max_drop holds."""
    from onnxdrp.checkpoint import data_identity
    from onnxdrp.evaluation import has_classes
    from onnxdrp.patterns import parse_pattern
    from onnxdrp.sparsity_search import Sweeps, find_sparsity
    from onnxdrp.trials import Trials
    from onnxdrp.unit_sensitivity import few

    pattern = pattern or job.target.pattern
    parsed = parse_pattern(pattern)
    if parsed.fixed_rate is not None:
        raise OptionError(f"max_drop: {pattern} has one sparsity; give nm, or another pattern")
    assert job.calibration is not None
    assert job.held_out is not None  # a part of it, or data of its own
    base = job.model.clone()
    PassManager(before).run(base, PassContext(target=job.target))
    if not any(has_classes(output) for output in base.outputs):
        raise ModelError("max_drop is judged by class scores, and no output has any; give sparsity")

    def sweep(rate: float) -> Model:
        ctx = PassContext(
            reader=job.calibration, target=job.target, seed=job.seed, workers=job.workers
        )
        return PassManager(chain(rate)).run(base.clone(), ctx).model

    with watched("search sparsity", job.instruments) as progress:
        sweeps = Sweeps(sweep, Trials(base, few(job.held_out, SEARCH_SAMPLES, job.seed)), pattern)
        return find_sparsity(
            sweeps,
            max_drop,
            what=sweeps.what,
            samples=sweeps.trials.samples,
            step=1 / parsed.block if pattern == "nm" else 0.01,
            checkpoint=job.checkpoint,
            key=f"{base.fingerprint()} {chain(0.5)} {job.seed} {data_identity(job.calibration)}",
            progress=progress,
        )


def _preprocessed(
    input_shape: Mapping[str, Sequence[int]] | None,
    outputs: Iterable[str] | None,
    *,
    skip: bool = False,
) -> list[Pass]:
    from onnxdrp import chains

    if skip:
        _refuse("skip_preprocess", input_shape=input_shape, outputs=outputs)
        return []
    return chains.preprocessing(input_shape, outputs)


def _pruned(
    target: "Target",
    *,
    data: bool,
    sparsity: float | None,
    pattern: str | None,
    rates: Mapping[str, float] | None,
    allocation: "Allocation | None",
    sparsity_of: Literal["weights", "macs"] | None,
    score: "Score | None",
    prune_steps: int | None,
    exclude: Iterable[str],
    prune_last: bool,
    prune_depthwise: bool,
    masks: Path_ | None,
    recover: "Recovery | None",
    distill_minutes: float | None,
    memory_limit: int | None,
) -> list[Pass]:
    """The passes of `onnxdrp.chains.pruning` and `recovery`; without data those that need none."""
    from onnxdrp import chains
    from onnxdrp.patterns import parse_pattern

    selection: dict[str, Any] = {
        "rates": dict(rates or {}),
        "exclude": tuple(exclude),
        "prune_last": prune_last,
        "prune_depthwise": prune_depthwise,
    }
    choice = {"allocation": allocation, "sparsity_of": sparsity_of, "score": score}
    if masks is not None:
        _refuse(
            "masks", sparsity=sparsity, pattern=pattern, prune_steps=prune_steps,
            **choice, **selection,
        )  # fmt: skip
    recover = recover or (RECOVER if data else "none")
    if recover != "distill":
        _refuse(f"recover {recover}", distill_minutes=distill_minutes)
    if recover == "none":
        _refuse("recover none", prune_steps=prune_steps)
    if not data and recover == "none":
        _refuse("no calibration data", memory_limit=memory_limit)
    fixed = masks is None and parse_pattern(pattern or target.pattern).fixed_rate is not None
    allocation = allocation or (ALLOCATION if data and not fixed else "uniform")
    if allocation == "uniform":
        _refuse("allocation uniform", sparsity_of=sparsity_of)
    steps = chains.pruning(
        None if masks is None else str(masks),
        pattern,
        rate=sparsity,
        score=score or (SCORE if data else "magnitude"),
        steps=1 if prune_steps is None else prune_steps,
        allocation=allocation,
        of=sparsity_of,
        memory_limit=memory_limit,
        **selection,
    )
    return steps + chains.recovery(recover, minutes=distill_minutes, memory_limit=memory_limit)


def calibrate(
    model: "Model | Path_",
    calib: Any,
    *,
    target: "str | Path | Target" = "generic",
    method: "Method | None" = None,
    percentile: float | None = None,
    tails: Tails | None = None,
    sigmas: float | None = None,
    exclude: Iterable[str] = (),
    exclude_subgraph: Iterable[str] = (),
    exclude_patterns: Path_ | None = None,
    exclude_tail: "TailMode | None" = None,
    activation_zeropoint: bool = False,
    opset: int | None = None,
    equalize: "Equalization" = "none",
    input_shape: Mapping[str, Sequence[int]] | None = None,
    outputs: Iterable[str] | None = None,
    skip_bad_samples: bool = False,
    memory_limit: int | None = None,
    workers: int | None = None,
    executor: "Executor | None" = None,
    checkpoint: Path_ | None = None,
    skip_preprocess: bool = False,
    instruments: Sequence[Instrument] = (),
) -> Report:
    """Measure the ranges that `quantize` would, on all the data, for `quantize(..., ranges=...)`.

    The model is preprocessed first, as `quantize` does it: tensors have the names of the graph that
    comes of that, which are those of the input file for all that is still there.

    Args:
        model: a Model, which is not changed, or the path of one.
        calib: a reader, or what `onnxdrp.datareaders.open_reader` opens; nothing is held back.
        target: a profile's name, or the path of one; it decides what is quantized.
        method: as for `quantize`.
        percentile: as for `quantize`.
        tails: as for `quantize`.
        sigmas: as for `quantize`.
        exclude: as for `quantize`.
        exclude_subgraph: as for `quantize`.
        exclude_patterns: as for `quantize`.
        exclude_tail: as for `quantize`.
        activation_zeropoint: as for `quantize`.
        opset: as for `quantize`.
        equalize: as for `quantize`, but none by default: ranges are those of the equalized model.
        input_shape: {input name: static shape}.
        outputs: names of tensors that become the graph's outputs.
        skip_bad_samples: as for `quantize`.
        memory_limit: as for `quantize`.
        workers: as for `quantize`.
        executor: as for `quantize`.
        checkpoint: as for `quantize`.
        skip_preprocess: leave the graph as it is.
        instruments: see `onnxdrp.instruments`.

    Returns:
        The report: `report.ranges` can be shown, edited and, by `onnxdrp.ranges.save_ranges`, kept.

    Raises:
        OnnxDrpError: the model, an option or the data cannot be used; PassError if a pass failed.
    """
    from onnxdrp import chains

    _need(calib, ())
    job = _job(
        load(model).clone(),
        calib,
        None,
        target,
        0,
        instruments,
        hold_out=False,
        activation_zeropoint=activation_zeropoint,
        reshaped=bool(input_shape),
        skip_bad_samples=skip_bad_samples,
        checkpoint=checkpoint,
        executor=executor,
        workers=workers,
    )
    steps = _preprocessed(input_shape, outputs, skip=skip_preprocess)
    steps += chains.calibration(
        per_channel=None,
        opset=opset,
        equalize=equalize,
        **_measuring(method, percentile, tails, sigmas, skip_bad_samples, memory_limit),
        **_leaving(exclude, exclude_subgraph, exclude_patterns, exclude_tail),
    )
    return job.run(steps)


def quantize(
    model: "Model | Path_",
    calib: Any = None,
    *,
    target: "str | Path | Target" = "generic",
    method: "Method | None" = None,
    percentile: float | None = None,
    tails: Tails | None = None,
    sigmas: float | None = None,
    ranges: Path_ | Sequence[Path_] = (),
    per_channel: bool | None = None,
    reduce_range: bool | None = None,
    activation_zeropoint: bool = False,
    opset: int | None = None,
    equalize: "Equalization | None" = None,
    rounding: "Rounding | None" = None,
    weight_bits: Literal[8, 4] | None = None,
    bias_correction: "BiasCorrection | None" = None,
    min_sqnr: float | None = None,
    max_drop: float | None = None,
    strict: bool = False,
    exclude: Iterable[str] = (),
    exclude_subgraph: Iterable[str] = (),
    exclude_patterns: Path_ | None = None,
    exclude_tail: "TailMode | None" = None,
    input_shape: Mapping[str, Sequence[int]] | None = None,
    outputs: Iterable[str] | None = None,
    data: Any = None,
    skip_bad_samples: bool = False,
    memory_limit: int | None = None,
    workers: int | None = None,
    executor: "Executor | None" = None,
    checkpoint: Path_ | None = None,
    seed: int = 0,
    skip_preprocess: bool = False,
    instruments: Sequence[Instrument] = (),
) -> Report:
    """Preprocess, take ranges from the calibration data, insert QuantizeLinear/DequantizeLinear.

    Args:
        model: a Model, which is edited, or the path of one.
        calib: a reader, or what `onnxdrp.datareaders.open_reader` opens; a part is held back for
            the figures of the report unless `data` is given. None where `ranges` has every tensor;
            without any data the report has no figures of fidelity.
        target: a profile's name, or the path of one.
        method: minmax, mean-minmax, percentile, entropy, mse or sigma (see `Calibrate`); default
            that of another option, such as percentile, else mse.
        percentile: share of values inside the range, in percent; default 99.999.
        tails: two, one or abs: at which ends percentile leaves values out; default two.
        sigmas: how many standard deviations sigma goes from the mean.
        ranges: a file of ranges, or several, to use instead of measuring; where several have a
            tensor the widest counts. Tensors that they lack are measured.
        per_channel: weight scales by output channel; default: the target's.
        reduce_range: weights of 7 bits, for kernels that add products in 16 bits; default: the
            target's.
        activation_zeropoint: activations have zero points although the target wants none.
        opset: the opset of the result; default: the model's, moved into what the target takes.
        equalize: gates, the default where there is data and no ranges are given, gives channels
            between a layer and a depthwise one one size through SiLU (EqualizeGates); all shares
            sizes of weights out between other layers, too (CrossLayerEqualize); or none.
        rounding: second-order, the default where there is data, rounds weights so that their errors
            cancel in the outputs of their layers (RoundWeights); nearest rounds each alone.
        weight_bits: 4: only the integers from -7 to 7, with second-order rounding; default 8.
        bias_correction: sequential, the default where there is data, or fast (CorrectBias), or
            none.
        min_sqnr: leave the cheapest layers float with which no output has less SQNR, in dB
            (KeepFloat).
        max_drop: the same for points of accuracy, or of agreement where there are no labels.
        strict: a wish of the target that is not met is an error.
        exclude: nodes to leave float: by name, by operator whatever its case (or "op:NAME"), by
            glob, by "re:" and a regular expression.
        exclude_subgraph: "A..B" each: what lies between these tensors or nodes stays float, the
            nodes included; several with commas; "A.." and "..B" go to the end and from the start.
        exclude_patterns: a CSV file of sequences of operators that stay float, as DRP-AI Quantizer
            has them (onnxdrp.patterncsv), or a folder of such.
        exclude_tail: auto, the default, leaves what decodes a detector's boxes and scores float
            (onnxdrp.tails); none does not.
        input_shape: {input name: static shape}.
        outputs: names of tensors that become the graph's outputs.
        data: other, possibly labelled, data for the figures.
        skip_bad_samples: leave samples that give NaN or infinity out, and say which.
        memory_limit: bytes of tapped activations held at a time; default 2^30.
        workers: how many samples are under way at a time; default: as many as there are cores.
        executor: any concurrent.futures.Executor to run them; default: threads.
        checkpoint: a file that keeps what is measured while the measuring goes on, so that the same
            call goes on after an interruption; it is deleted at the end.
        seed: of everything random.
        skip_preprocess: leave the graph as it is.
        instruments: see `onnxdrp.instruments`.

    Raises:
        OnnxDrpError: the model, an option or the data cannot be used; PassError if a pass failed.
    """
    files = _files(ranges)
    measuring = _measuring(method, percentile, tails, sigmas, skip_bad_samples, memory_limit)
    running: dict[str, Any] = {"workers": workers, "executor": executor, "checkpoint": checkpoint}
    _need(calib, files)
    if calib is None:
        _refuse("ranges without calib", **measuring, **running)
    leaving = _leaving(exclude, exclude_subgraph, exclude_patterns, exclude_tail)
    steps = _preprocessed(input_shape, outputs, skip=skip_preprocess)
    steps += _quantized(
        data=calib is not None,
        rounding=rounding,
        bias_correction=bias_correction,
        min_sqnr=min_sqnr,
        max_drop=max_drop,
        per_channel=per_channel,
        reduce_range=reduce_range,
        opset=opset,
        equalize=equalize,
        weight_bits=weight_bits,
        strict=strict,
        ranges=files,
        **leaving,
        **measuring,
    )
    job = _job(
        model,
        calib,
        data,
        target,
        seed,
        instruments,
        **running,
        activation_zeropoint=activation_zeropoint,
        reshaped=bool(input_shape),
        strict=strict,
        skip_bad_samples=skip_bad_samples,
    )
    if calib is None and None in (rounding, bias_correction):
        job.warnings.append(_PLAIN)
    return job.run(steps)


def _measuring(
    method: "Method | None",
    percentile: float | None,
    tails: Tails | None,
    sigmas: float | None,
    skip_bad_samples: bool,
    memory_limit: int | None,
) -> dict[str, Any]:
    """Options of Calibrate that say how ranges are taken."""
    return {
        "method": method,
        "percentile": percentile,
        "tails": tails,
        "sigmas": sigmas,
        "skip_bad_samples": skip_bad_samples,
        "memory_limit": memory_limit,
    }


def _quantized(
    *,
    data: bool = False,
    ranges: Sequence[str] = (),
    equalize: "Equalization | None" = None,
    rounding: "Rounding | None" = None,
    bias_correction: "BiasCorrection | None" = None,
    min_sqnr: float | None = None,
    max_drop: float | None = None,
    **options: Any,
) -> list[Pass]:
    """The passes of `onnxdrp.chains.quantization`; without data those that need none."""
    from onnxdrp import chains

    return chains.quantization(
        ranges=ranges,
        equalize=equalize or ("gates" if data and not ranges else "none"),
        rounding=rounding or (ROUNDING if data else "nearest"),
        bias_correction=bias_correction or (BIAS_CORRECTION if data else "none"),
        keep_float={"min_sqnr": min_sqnr, "max_drop": max_drop},
        **options,
    )


def sensitivity(
    model: "Model | Path_",
    calib: Any,
    *,
    of: Literal["quant", "channels"] = "quant",
    samples: int | None = None,
    mode: Literal["outputs", "moments"] | None = None,
    score: str | None = None,
    shares: Sequence[float] | None = None,
    auto_excludes: bool = True,
    file: Path_ | None = None,
    target: "str | Path | Target" = "generic",
    method: "Method | None" = None,
    percentile: float | None = None,
    tails: Tails | None = None,
    sigmas: float | None = None,
    per_channel: bool | None = None,
    exclude: Iterable[str] = (),
    exclude_subgraph: Iterable[str] = (),
    exclude_patterns: Path_ | None = None,
    exclude_tail: "TailMode | None" = None,
    activation_zeropoint: bool = False,
    opset: int | None = None,
    equalize: "Equalization" = "gates",
    input_shape: Mapping[str, Sequence[int]] | None = None,
    outputs: Iterable[str] | None = None,
    skip_bad_samples: bool = False,
    memory_limit: int | None = None,
    workers: int | None = None,
    executor: "Executor | None" = None,
    checkpoint: Path_ | None = None,
    seed: int = 0,
    skip_preprocess: bool = False,
    instruments: Sequence[Instrument] = (),
) -> Report:
    """What quantizing each layer alone costs, or removing channels of each group; without labels.

    The model is preprocessed first, and for quant calibrated, as `quantize` does it.

    Args:
        model: a Model, which is not changed, or the path of one.
        calib: as for `quantize`; all of it is calibrated on.
        of: quant, in dB at the outputs; or channels, a score of the model with a tenth to nine
            tenths of the channels of each group gone, for `slim(..., curves=FILE)`.
        samples: how many of the data the units are measured on, spread over it; default 16, of
            channels by outputs 500. What channels go first (ScoreChannels) is seen on all.
        mode: of channels: outputs, the default, or moments, which looks at what the layers behind
            lose, on all of the data, and is quick at any size (MeasureChannels).
        score: of channels by outputs: agreement, top-1 (the data has labels), signal, or a function
            of one's own, "FILE.py:name".
        shares: of channels: of a group, that go, rising; default 0.1 to 0.9.
        auto_excludes: of channels: leave the first and the last convolution out.
        file: a JSON file that is written as the work goes on, and gone on from if it is there.
        target: as for `quantize`.
        method: as for `quantize`.
        percentile: as for `quantize`.
        tails: as for `quantize`.
        sigmas: as for `quantize`.
        per_channel: as for `quantize`.
        exclude: as for `quantize`.
        exclude_subgraph: as for `quantize`.
        exclude_patterns: as for `quantize`.
        exclude_tail: as for `quantize`.
        activation_zeropoint: as for `quantize`.
        opset: as for `quantize`.
        equalize: as for `quantize`.
        input_shape: {input name: static shape}.
        outputs: names of tensors that become the graph's outputs.
        skip_bad_samples: as for `quantize`; of the calibration.
        memory_limit: as for `quantize`; of the calibration.
        workers: as for `quantize`.
        executor: as for `quantize`.
        checkpoint: as for `quantize`.
        seed: of everything random.
        skip_preprocess: leave the graph as it is.
        instruments: see `onnxdrp.instruments`.

    Returns:
        The report: `report.sensitivity` can be shown and saved.

    Raises:
        OnnxDrpError: the model, an option or the data cannot be used; PassError if a pass failed.
    """
    from onnxdrp import chains
    from onnxdrp.passes import MeasureChannels, MeasureSensitivity, ScoreChannels

    _need(calib, ())
    steps = _preprocessed(input_shape, outputs, skip=skip_preprocess)
    measuring = _measuring(method, percentile, tails, sigmas, skip_bad_samples, None)
    leaving = _leaving(exclude, exclude_subgraph, exclude_patterns, exclude_tail)
    where = {} if file is None else {"file": str(file)}
    if of == "quant":
        _refuse("of quant", mode=mode, score=score, shares=shares, auto_excludes=not auto_excludes)
        measuring["memory_limit"] = memory_limit
        steps += chains.calibration(
            per_channel=per_channel, opset=opset, equalize=equalize, **measuring, **leaving
        )
        steps.append(MeasureSensitivity(samples or 16, per_channel, **where))
    elif of == "channels":
        leaving.pop("exclude")
        _refuse(
            "of channels",
            per_channel=per_channel,
            opset=opset,
            equalize=None if equalize == "gates" else equalize,
            activation_zeropoint=activation_zeropoint,
            **measuring,
            **leaving,
        )
        if mode == "moments":
            _refuse("mode moments", executor=executor)
        rates = None if shares is None else tuple(shares)
        given = {
            "mode": mode,
            "score": score,
            "rates": rates,
            "samples": samples,
            "memory_limit": memory_limit,
        }
        options: dict[str, Any] = {k: v for k, v in given.items() if v is not None} | where
        memory: dict[str, Any] = {} if memory_limit is None else {"memory_limit": memory_limit}
        which: dict[str, Any] = {"exclude": tuple(exclude), "auto_excludes": auto_excludes}
        steps += [ScoreChannels(**memory), MeasureChannels(**which, **options)]
    else:
        raise OptionError(f"of {of!r}: there are quant and channels")
    job = _job(
        load(model).clone(),
        calib,
        None,
        target,
        seed,
        instruments,
        hold_out=False,
        activation_zeropoint=activation_zeropoint,
        reshaped=bool(input_shape),
        skip_bad_samples=skip_bad_samples,
        checkpoint=checkpoint,
        executor=executor,
        workers=workers,
    )
    return job.run(steps)


def explain(
    model: "Model | Path_",
    *,
    target: "str | Path | Target" = "generic",
    per_channel: bool | None = None,
    opset: int | None = None,
    exclude: Iterable[str] = (),
    exclude_subgraph: Iterable[str] = (),
    exclude_patterns: Path_ | None = None,
    exclude_tail: "TailMode | None" = None,
    input_shape: Mapping[str, Sequence[int]] | None = None,
    outputs: Iterable[str] | None = None,
    skip_preprocess: bool = False,
) -> "Explanation":
    """What `quantize` with these options would do with each node, and why; no data is needed.

    The model is preprocessed first, as `quantize` does it: the nodes are those of that graph.

    Args:
        model: a Model, which is not changed, or the path of one.
        target: as for `quantize`.
        per_channel: as for `quantize`; it can raise the opset.
        opset: as for `quantize`.
        exclude: as for `quantize`.
        exclude_subgraph: as for `quantize`.
        exclude_patterns: as for `quantize`.
        exclude_tail: as for `quantize`.
        input_shape: {input name: static shape}.
        outputs: names of tensors that become the graph's outputs.
        skip_preprocess: leave the graph as it is.

    Raises:
        OnnxDrpError: the model or an option cannot be used; PassError if a pass failed.
    """
    from onnxdrp import chains
    from onnxdrp.explanation import explain_plan
    from onnxdrp.passes import Calibrate
    from onnxdrp.plan import make_plan
    from onnxdrp.targets import load_target

    leaving = _leaving(exclude, exclude_subgraph, exclude_patterns, exclude_tail)
    steps = _preprocessed(input_shape, outputs, skip=skip_preprocess)
    *before, calibrating = chains.calibration(
        per_channel=per_channel, opset=opset, equalize="none", **leaving
    )
    assert isinstance(calibrating, Calibrate)  # the last of its chain
    model = load(model).clone()
    profile = load_target(target) if isinstance(target, str | Path) else target
    PassManager([*steps, *before]).run(model, PassContext(target=profile))
    kept = calibrating.exclusions().find(model)
    return explain_plan(model, make_plan(model, profile, kept.nodes), kept)


def _leaving(
    exclude: Iterable[str],
    subgraphs: Iterable[str],
    patterns: Path_ | None,
    tail: "TailMode | None",
) -> dict[str, Any]:
    """Options of Calibrate that say what stays float; None stands for its default."""
    return {
        "exclude": _all_of(exclude),
        "exclude_subgraph": _all_of(subgraphs),
        "exclude_patterns": None if patterns is None else str(patterns),
        "exclude_tail": tail,
    }


def _all_of(names: Iterable[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _files(ranges: Path_ | Sequence[Path_]) -> tuple[str, ...]:
    return (str(ranges),) if isinstance(ranges, str | Path) else tuple(map(str, ranges))


def _need(calib: Any, ranges: Sequence[str]) -> None:
    if calib is None and not ranges:
        raise DataError("there is no calibration data; give some hundred images or arrays")


def optimize(
    model: "Model | Path_",
    calib: Any = None,
    *,
    slim: float | None = None,
    sparsity: float | None = None,
    pattern: str | None = None,
    target: "str | Path | Target | None" = None,
    method: "Method | None" = None,
    percentile: float | None = None,
    tails: Tails | None = None,
    sigmas: float | None = None,
    ranges: Path_ | Sequence[Path_] = (),
    per_channel: bool | None = None,
    reduce_range: bool | None = None,
    activation_zeropoint: bool = False,
    opset: int | None = None,
    equalize: "Equalization | None" = None,
    rounding: "Rounding | None" = None,
    weight_bits: Literal[8, 4] | None = None,
    bias_correction: "BiasCorrection | None" = None,
    min_sqnr: float | None = None,
    max_drop: float | None = None,
    strict: bool = False,
    rates: Mapping[str, float] | None = None,
    allocation: "Allocation | None" = None,
    sparsity_of: Literal["weights", "macs"] | None = None,
    score: "Score | None" = None,
    prune_steps: int | None = None,
    recover: "Recovery | None" = None,
    distill_minutes: float | None = None,
    exclude: Iterable[str] = (),
    keep_float: Iterable[str] = (),
    exclude_subgraph: Iterable[str] = (),
    exclude_patterns: Path_ | None = None,
    exclude_tail: "TailMode | None" = None,
    prune_last: bool = False,
    prune_depthwise: bool = False,
    masks: Path_ | None = None,
    input_shape: Mapping[str, Sequence[int]] | None = None,
    outputs: Iterable[str] | None = None,
    data: Any = None,
    skip_bad_samples: bool = False,
    memory_limit: int | None = None,
    workers: int | None = None,
    executor: "Executor | None" = None,
    checkpoint: Path_ | None = None,
    seed: int | None = None,
    recipe: Path_ | None = None,
    instruments: Sequence[Instrument] = (),
) -> Report:
    """The whole job: preprocess, prune, repair, quantize, check; measured on data held back.

    Args:
        model: a Model, which is edited, or the path of one.
        calib: as for `quantize`.
        slim: share of the multiply-adds that is removed with whole channels, before anything is
            pruned: in such numbers that the pattern's blocks still fit.
        sparsity: as for `prune`.
        pattern: as for `prune`.
        target: a profile's name, or the path of one; default: the recipe's, or generic.
        method: as for `quantize`.
        percentile: as for `quantize`.
        tails: as for `quantize`.
        sigmas: as for `quantize`.
        ranges: as for `quantize`; ranges of a model that was not pruned are told to be stale.
        per_channel: as for `quantize`.
        reduce_range: as for `quantize`.
        activation_zeropoint: as for `quantize`.
        opset: as for `quantize`.
        equalize: as for `quantize`.
        rounding: as for `quantize`.
        weight_bits: as for `quantize`.
        bias_correction: as for `quantize`.
        min_sqnr: as for `quantize`.
        max_drop: as for `quantize`; what channels and pruning have cost counts, too.
        strict: as for `quantize`.
        rates: as for `prune`.
        allocation: as for `prune`.
        sparsity_of: as for `prune`.
        score: as for `prune`.
        prune_steps: as for `prune`.
        recover: as for `prune`.
        distill_minutes: as for `prune`.
        exclude: layers not to prune.
        keep_float: nodes not to quantize, named as for `exclude` of `quantize`.
        exclude_subgraph: as for `quantize`; it concerns quantization alone.
        exclude_patterns: as for `quantize`.
        exclude_tail: as for `quantize`.
        prune_last: as for `prune`.
        prune_depthwise: as for `prune`.
        masks: as for `prune`.
        input_shape: {input name: static shape}.
        outputs: names of tensors that become the graph's outputs.
        data: other, possibly labelled, data for the figures.
        skip_bad_samples: as for `quantize`.
        memory_limit: as for `quantize`.
        workers: as for `quantize`.
        executor: as for `quantize`.
        checkpoint: as for `quantize`.
        seed: of everything random; default: the recipe's, or 0.
        recipe: a TOML file that names the passes and their options, in place of all options above
            that concern passes.
        instruments: see `onnxdrp.instruments`.

    Raises:
        OnnxDrpError: the model, an option or the data cannot be used; PassError if a pass failed.
    """
    files = _files(ranges)
    measuring = _measuring(method, percentile, tails, sigmas, skip_bad_samples, memory_limit)
    running: dict[str, Any] = {"workers": workers, "executor": executor, "checkpoint": checkpoint}
    rounded: dict[str, Any] = {
        "per_channel": per_channel,
        "reduce_range": reduce_range,
        "opset": opset,
        "equalize": equalize,
        "rounding": rounding,
        "weight_bits": weight_bits,
        "bias_correction": bias_correction,
        "min_sqnr": min_sqnr,
        "max_drop": max_drop,
        "strict": strict,
    }
    pruning: dict[str, Any] = {
        "sparsity": sparsity,
        "pattern": pattern,
        "rates": rates,
        "allocation": allocation,
        "sparsity_of": sparsity_of,
        "score": score,
        "prune_steps": prune_steps,
        "prune_last": prune_last,
        "prune_depthwise": prune_depthwise,
        "masks": masks,
        "recover": recover,
        "distill_minutes": distill_minutes,
    }
    if recipe is not None:
        _refuse(
            "recipe",
            slim=slim,
            ranges=files,
            **pruning,
            exclude=exclude,
            keep_float=keep_float,
            exclude_subgraph=exclude_subgraph,
            exclude_patterns=exclude_patterns,
            exclude_tail=exclude_tail,
            input_shape=input_shape,
            outputs=outputs,
            **{k: str(v) if k in _SWITCHES and v is not None else v for k, v in rounded.items()},
            **measuring,
        )
        return run(
            model,
            recipe,
            calib=calib,
            data=data,
            target=target,
            activation_zeropoint=activation_zeropoint or None,
            seed=seed,
            instruments=instruments,
            **running,
        )
    _need(calib, files)
    if calib is None:
        _refuse("ranges without calib", **measuring, **running)
    job = _job(
        model,
        calib,
        data,
        target or "generic",
        seed or 0,
        instruments,
        **running,
        activation_zeropoint=activation_zeropoint,
        reshaped=bool(input_shape),
        strict=strict,
        skip_bad_samples=skip_bad_samples,
    )
    leaving = _leaving(keep_float, exclude_subgraph, exclude_patterns, exclude_tail)
    memory = memory_limit if calib is not None else None
    given = calib is not None
    steps = _preprocessed(input_shape, outputs)
    if slim is not None:
        repair = given and recover != "none"
        steps += _slimmed(job.target, slim, pattern, exclude, repair, memory)
    steps += _pruned(job.target, data=given, exclude=exclude, memory_limit=memory, **pruning)
    steps += _quantized(data=given, ranges=files, **rounded, **leaving, **measuring)
    if calib is None and None in (rounding, bias_correction):
        job.warnings.append(_PLAIN)
    return job.run(steps)


def run(
    model: "Model | Path_",
    recipe: "Path_ | Sequence[Pass]",
    calib: Any = None,
    *,
    data: Any = None,
    target: "str | Path | Target | None" = None,
    activation_zeropoint: bool | None = None,
    seed: int | None = None,
    workers: int | None = None,
    executor: "Executor | None" = None,
    checkpoint: Path_ | None = None,
    instruments: Sequence[Instrument] = (),
) -> Report:
    """Run the passes of a recipe (a TOML file, or a list of passes) and measure as `optimize` does.

    `activation_zeropoint`, `workers`, `executor` and `checkpoint` are as for `quantize`; what is
    None is as the recipe has it.

    Raises:
        OnnxDrpError: the model, the recipe or the data cannot be used; PassError if a pass failed.
    """
    steps, job = _recipe_job(
        *(model, recipe, calib, data, target, seed, instruments, activation_zeropoint),
        workers=workers,
        executor=executor,
        checkpoint=checkpoint,
    )
    return job.run(steps)


def debug(
    model: "Model | Path_",
    recipe: "Path_ | Sequence[Pass]",
    reader: Any = None,
    *,
    data: Any = None,
    target: "str | Path | Target | None" = None,
    activation_zeropoint: bool | None = None,
    seed: int | None = None,
    instruments: Sequence[Instrument] = (),
) -> "Trace":
    """A trace of what `run` does with the same arguments, pass by pass: back, again, another way.

    Nothing has run when it is returned, and the model that is given stays as it is. As in `run`, a
    part of the reader's samples is held back unless there is `data`; errors are measured on what
    was held back, or on `data`.

    Args:
        model: a Model or a path.
        recipe: a TOML file, or passes.
        reader: the calibration data: a reader, or what `onnxdrp.datareaders.open_reader` opens.
        data: other data to measure errors on.
        target: as for `run`.
        activation_zeropoint: as for `run`.
        seed: as for `run`.
        instruments: called around each pass.

    Raises:
        OnnxDrpError: the model, the recipe or the data cannot be used.
    """
    from onnxdrp.debugging import Trace

    steps, job = _recipe_job(
        model, recipe, reader, data, target, seed, instruments, activation_zeropoint
    )
    return Trace(steps, job.model, job.context(steps), reader=job.held_out, instruments=instruments)


def _recipe_job(
    model: "Model | Path_",
    recipe: "Path_ | Sequence[Pass]",
    calib: Any,
    data: Any,
    target: "str | Path | Target | None",
    seed: int | None,
    instruments: Sequence[Instrument],
    activation_zeropoint: bool | None,
    **running: Any,
) -> tuple[Sequence[Pass], _Job]:
    """The passes of a recipe, and the job that runs them; what is None is as the recipe has it."""
    from onnxdrp.passes import FreezeShapes
    from onnxdrp.recipe import Recipe, load_recipe

    steps = load_recipe(recipe) if isinstance(recipe, str | Path) else Recipe(recipe)
    target = target if target is not None else steps.target or "generic"
    seed = seed if seed is not None else steps.seed or 0
    if activation_zeropoint is None:
        activation_zeropoint = bool(steps.activation_zeropoint)
    running["activation_zeropoint"] = activation_zeropoint
    running["reshaped"] = any(isinstance(step, FreezeShapes) for step in steps)
    skip = any(getattr(step, "skip_bad_samples", False) for step in steps)
    job = _job(model, calib, data, target, seed, instruments, skip_bad_samples=skip, **running)
    return steps, job


def info(model: "Model | Path_", *, pattern: str | None = None) -> "Summary":
    """Per layer: shapes, parameters, sparsity, MACs before and after pruning, and why not prunable.

    Args:
        model: a Model or a path; it is not changed.
        pattern: the pattern whose rules decide what is prunable; default block.
    """
    from onnxdrp.summary import summarize_layers

    return summarize_layers(load(model), pattern)


def compare(
    a: "Model | Path_",
    b: "Model | Path_",
    calib: Any,
    *,
    layers: bool = False,
    memory_limit: int = 1 << 30,
    progress: Progress | None = None,
) -> "Comparison":
    """How far model b is from model a on the same data: SQNR, cosine, largest error, agreement.

    Args:
        a: the reference, mostly the float model.
        b: the other.
        calib: a reader, or what `onnxdrp.datareaders.open_reader` opens.
        layers: compare every tensor that both compute, too.
        memory_limit: bytes of tapped activations held at a time.
        progress: called with (samples done, samples in all or None).
    """
    from onnxdrp.datareaders import check_reader
    from onnxdrp.evaluation import compare_models

    a, b = load(a), load(b)
    reader = _reader(calib, a)
    check_reader(reader, a)
    return compare_models(a, b, reader, layers=layers, memory_limit=memory_limit, progress=progress)


def evaluate(model: "Model | Path_", data: Any, *, progress: Progress | None = None) -> "Accuracy":
    """Top-1 and top-5 of a classifier on labelled data.

    Args:
        model: a Model or a path.
        data: a reader with labels, or arrays with `y`.
        progress: called with (samples done, samples in all or None).
    """
    from onnxdrp.datareaders import check_reader
    from onnxdrp.evaluation import accuracy

    model = load(model)
    reader = _reader(data, model)
    check_reader(reader, model)
    return accuracy(model, reader, progress)


def evaluate_detection(
    model: "Model | Path_",
    data: "DataReader",
    labels: Path_ | None = None,
    *,
    decoder: str = "yolox",
    conf: float = 0.001,
    nms: float = 0.65,
    names: Path_ | None = None,
    progress: Progress | None = None,
) -> "DetectionScore":
    """map_50 and map_5095 of a detector on labelled images.

    Args:
        model: a Model or a path.
        data: a reader of an image folder, set up as the model wants its input.
        labels: a COCO JSON file, a folder of YOLO or VOC files; default: found beside the images.
        decoder: yolox, yolov8, or FILE.py[:function].
        conf: least score of a detection.
        nms: largest overlap of two detections of one class.
        names: a file of class names, one a line, in the model's order, for VOC and COCO labels.
        progress: called with (images done, images in all).
    """
    from onnxdrp.detection import evaluate_detection as score
    from onnxdrp.detection import read_names

    classes = None if names is None else read_names(Path(names))
    loaded = load(model)
    return score(
        loaded,
        data,
        labels,
        decoder=decoder,
        conf=conf,
        nms=nms,
        names=classes,
        progress=progress,
    )
