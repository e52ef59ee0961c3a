"""Find the ranges of the activations that will be quantized: measured, or from files.

Plans the quantization of the whole graph (onnxdrp.plan) and taps only the tensors that the plan
asks for; ranges are those of the model as it is, so after pruning. Whatever the method, the head of
a detector whose tail stays float keeps its extremes (onnxdrp.tails). Fills ctx.ranges,
ctx.calibration and ctx.kept_float, and takes samples that were left out from ctx.reader; the model
is not touched.
"""

import dataclasses
import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import numpy as np

from onnxdrp import thresholds
from onnxdrp.curves import Curve, curves
from onnxdrp.datareaders import DataReader, count, subset
from onnxdrp.errors import DataError, ModelError, OptionError
from onnxdrp.exclusions import Exclusions, TailMode, Unmatched
from onnxdrp.model import Model
from onnxdrp.observe import BadSample, Tap, observe
from onnxdrp.observers import Histogram, MeanMinMax, MinMax, Observer
from onnxdrp.odd_tensors import odd_tensors, odd_warnings
from onnxdrp.pipeline import Pass, PassContext, PassResult
from onnxdrp.plan import Plan, make_plan
from onnxdrp.quantization import Range
from onnxdrp.ranges import Ranges, TensorRange, load_ranges, merge_ranges, weights_digest
from onnxdrp.tails import find_head
from onnxdrp.targets import Target

__all__ = ["Calibrate", "Method"]

Method = Literal["minmax", "mean-minmax", "percentile", "entropy", "mse", "sigma"]

_OPTIONS = {"percentile": "percentile", "tails": "percentile", "sigmas": "sigma"}
_DEFAULT = "mse"  # the figures of all are in the README
_TOLD = 3  # names or samples in a warning
_PARTS = 48  # of the histograms that a report shows


@dataclass(frozen=True)
class Calibrate(Pass):
    """Take ranges from the calibration data, or from files that hold them.

    What stays float whatever the target says is named as onnxdrp.exclusions has it.

    Attributes:
        method: "minmax", the extremes; "mean-minmax", the mean of each sample's extremes (what
            onnxruntime calls a moving average); "percentile" leaves out the outermost values;
            "entropy" loses least by Kullback-Leibler divergence, "mse" by squared error, both for
            the target's integers ("mse" of what a SiLU or the like makes of the tensor, where
            nothing else reads it: onnxdrp.curves); "sigma" reaches from the mean by standard
            deviations. None: the method that another option belongs to, else "mse".
        percentile: percent of the values of a tensor that its range keeps.
        tails: where percentile leaves values out: "two", half of the rest at each end; "one", the
            rest at each end; "abs", the rest of |x|, for a range symmetric about 0.
        sigmas: standard deviations of "sigma".
        ranges: files of ranges (onnxdrp.ranges) to use instead of measuring, merged by the widest
            where several have a tensor; what they lack is measured.
        exclude: selectors of nodes that stay float: names, operators, globs, "re:" and regular
            expressions.
        exclude_subgraph: "A..B" each: what lies between these tensors or nodes stays float.
        exclude_patterns: a CSV file of sequences of operators that stay float, or a folder of them.
        exclude_tail: "auto", so that what decodes a detector's boxes and scores stays float
            (onnxdrp.tails), or "none".
        unmatched: "error", or "warn" of what names nothing.
        skip_bad_samples: leave samples that give NaN or infinity out, and say which; else the first
            is an error.
        memory_limit: bytes of tapped activations held at a time.
    """

    name: ClassVar[str] = "calibrate"
    keeps_results: ClassVar[bool] = True

    method: Method | None = None
    percentile: float = 99.999
    tails: Literal["two", "one", "abs"] = "two"
    sigmas: float = 6.0
    ranges: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    exclude_subgraph: tuple[str, ...] = ()
    exclude_patterns: str | None = None
    exclude_tail: TailMode = "auto"
    unmatched: Unmatched = "error"
    skip_bad_samples: bool = False
    memory_limit: int = 1 << 30

    def __post_init__(self) -> None:
        if self.method is None:
            options = (o for o in dataclasses.fields(self) if o.name in _OPTIONS)
            told = (_OPTIONS[o.name] for o in options if getattr(self, o.name) != o.default)
            object.__setattr__(self, "method", next(told, _DEFAULT))
        if self.method not in get_args(Method):
            known = ", ".join(get_args(Method))
            raise OptionError(f"method {self.method!r}: there are {known}")
        for option in dataclasses.fields(self):
            owner = _OPTIONS.get(option.name, self.method)
            if self.method != owner and getattr(self, option.name) != option.default:
                raise OptionError(
                    f"{option.name} belongs to the method {owner}, not to {self.method}; "
                    "leave one of them out"
                )
        if not 50 <= self.percentile <= 100:
            raise OptionError(f"percentile {self.percentile} is outside [50, 100]; 99.999 is usual")
        if self.tails not in ("two", "one", "abs"):
            raise OptionError(f"tails {self.tails!r}: there are two, one, abs")
        if not 0 < self.sigmas <= 1000:
            raise OptionError(f"sigmas {self.sigmas} is outside (0, 1000]; 6 is usual")
        if self.memory_limit <= 0:
            raise OptionError(f"memory_limit {self.memory_limit}: give a number of bytes above 0")
        self.exclusions()  # says what is wrong with them

    def requires(self, model: Model, ctx: PassContext) -> None:
        """There is data, or are files of ranges, and the model is not quantized yet."""
        if ctx.reader is None and not self.ranges:
            raise DataError("calibration needs data; give some hundred images or arrays (--calib)")
        if node := next(iter(model.nodes("QuantizeLinear")), None):
            raise ModelError(
                f"node {node.name!r}: the model is quantized already; start from the float model"
            )

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises DataError where data is missing or gives NaN, ModelError if no node is left."""
        files = {path: load_ranges(path) for path in self.ranges}
        given = merge_ranges(files.values())
        kept = self.exclusions().find(model)
        plan = make_plan(model, ctx.target, kept.nodes)
        if not plan.nodes:
            raise ModelError(f"no node of the model can be quantized: {_first_reasons(plan)}")
        missing = [name for name in plan.observed if name not in given.tensors]
        bad: list[BadSample] = []
        head = find_head(model, kept.tail.keys() & plan.kept.keys())
        seen_as = curves(model, plan.nodes) if self.method == "mse" else {}
        ranges = replace(given)
        if missing:
            ranges = self._measure(model, ctx, missing, head, seen_as, bad)
        if bad:
            ctx.reader = _without(ctx.reader, {sample.sample for sample in bad})
        known = given.tensors | ranges.tensors
        ranges.tensors = {name: known[name] for name in plan.observed}
        ctx.calibration = ranges
        ctx.ranges = {name: tensor.range for name, tensor in ranges.tensors.items()}
        ctx.kept_float = dict(plan.kept)
        odd = odd_tensors(model, ranges)
        stats = {
            "quantized_nodes": len(plan.nodes),
            "float_nodes": len(plan.kept),
            "tail": [name for name in kept.tail if name in plan.kept],
            "measured_tensors": len(missing),
            "head": [name for name in missing if name in head],
            "unused_ranges": [name for name in given.tensors if name not in plan.observed],
            "skipped_samples": [str(sample) for sample in bad[:_TOLD]],
            **odd,
            "skipped": dict(plan.kept),
        }
        warnings = [*kept.notes, *_stale(files, model), *_left_out(bad, ranges), *odd_warnings(odd)]
        return PassResult(modified=False, stats=stats | {"warnings": warnings})

    def exclusions(self) -> Exclusions:
        """What stays float whatever the target says."""
        return Exclusions(
            exclude=self.exclude,
            exclude_subgraph=self.exclude_subgraph,
            exclude_patterns=self.exclude_patterns,
            exclude_tail=self.exclude_tail,
            unmatched=self.unmatched,
        )

    def _measure(
        self,
        model: Model,
        ctx: PassContext,
        tensors: Sequence[str],
        whole: Collection[str],
        seen_as: Mapping[str, Curve],
        bad: list[BadSample],
    ) -> Ranges:
        """Measure these tensors; samples that are left out are added to `bad`.

        Those in `whole` keep their extremes; `seen_as` holds what readers make of some of them.
        """
        if ctx.reader is None:
            raise DataError(
                f"{', '.join(self.ranges)}: no range for {_several(tensors)}; "
                "give calibration data too (--calib), or add them"
            )
        reader, samples = ctx.reader, ctx.reader.samples

        def progress(done: int, total: int | None) -> None:
            nonlocal samples
            samples = done if reader.samples is None else reader.samples
            if ctx.progress is not None:
                ctx.progress(done, total)

        observer = _OBSERVERS.get(str(self.method), Histogram)
        found = observe(
            model,
            reader,
            {name: Tap(name, (_Extremes if name in whole else observer)()) for name in tensors},
            memory_limit=self.memory_limit,
            executor=ctx.executor,
            workers=ctx.workers,
            checkpoint=ctx.checkpoint,
            on_bad=bad.append if self.skip_bad_samples else None,
            progress=progress,
        )
        own = [name for name, method in _OPTIONS.items() if method == self.method]
        ranges = {
            name: self._range(seen, ctx.target, seen_as.get(name)) for name, seen in found.items()
        }
        ctx.histograms = {
            name: {"histogram": parts, "outside": seen.outside(ranges[name].range)}
            for name, seen in found.items()
            if isinstance(seen, Histogram) and (parts := seen.sketch(_PARTS))
        }
        return Ranges(
            ranges,
            model="" if model.path is None else model.path.name,
            weights=weights_digest(model),
            target=ctx.target.name,
            method={"name": self.method} | {name: getattr(self, name) for name in own},
            samples=None if samples is None else samples - len({b.sample for b in bad}),
        )

    def _range(
        self, seen: "_Extremes | _Means | Histogram", target: Target, curve: Curve | None
    ) -> TensorRange:
        if isinstance(seen, _Means):
            mean = MeanMinMax.result(seen)
            return TensorRange(mean.low, mean.high, count=None if seen.samples else 0)
        extremes = seen.extremes if isinstance(seen, Histogram) else seen
        if not extremes.count:
            return TensorRange(0.0, 0.0, count=0)
        if isinstance(seen, Histogram):
            chosen = self._threshold(seen, target, curve)
        else:
            chosen = MinMax.result(seen)
        return TensorRange(chosen.low, chosen.high, extremes.low, extremes.high, extremes.count)

    def _threshold(self, seen: Histogram, target: Target, curve: Curve | None) -> Range:
        if self.method == "percentile":
            return seen.percentile(self.percentile, self.tails)
        if self.method == "sigma":
            return thresholds.sigma(seen, self.sigmas)
        dtype, symmetric = target.activation_dtype, target.activation_symmetric
        if curve is not None:
            return thresholds.mse_of(seen, curve, dtype, symmetric=symmetric)
        search = thresholds.entropy if self.method == "entropy" else thresholds.mse
        return search(seen, dtype, symmetric=symmetric)


def _without(reader: DataReader | None, bad: Collection[int]) -> DataReader:
    """The reader without these samples: what comes after calibrating reads it, too."""
    assert reader is not None  # they were read from it
    indices = np.setdiff1d(np.arange(count(reader)), list(bad))
    return subset(reader, indices)


@dataclass
class _Extremes(MinMax):
    """The extremes, with how many values they are of."""

    def result(self) -> Any:
        """All that was seen."""
        return self


@dataclass
class _Means(MeanMinMax):
    """The mean extremes, with how many samples they are of."""

    def result(self) -> Any:
        """All that was seen."""
        return self


_OBSERVERS: dict[str, type[Observer]] = {"minmax": _Extremes, "mean-minmax": _Means}


def _stale(files: Mapping[str, Ranges], model: Model) -> list[str]:
    """What is odd about files of ranges."""
    warnings, tensors = [], model.tensors()
    weights = weights_digest(model) if files else ""
    for path, ranges in files.items():
        if ranges.weights not in ("", weights):
            warnings.append(
                f"{path}: was measured with other weights than the model has now; measure again "
                "unless that is meant"
            )
        unknown = [name for name in ranges.tensors if name not in tensors]
        for name in unknown[:_TOLD]:
            near = difflib.get_close_matches(name, tensors, 1)
            hint = f"is {near[0]!r} meant?" if near else "is it of another model?"
            warnings.append(f"{path}: the model has no tensor {name!r}; {hint}")
        if unknown[_TOLD:]:
            warnings.append(f"{path}: {len(unknown) - _TOLD} more tensors are not in the model")
    return warnings


def _left_out(bad: Sequence[BadSample], ranges: Ranges) -> list[str]:
    if not bad:
        return []
    count = len({sample.sample for sample in bad})
    total = f" of {count + ranges.samples}" if ranges.samples is not None else ""
    return [f"{count}{total} samples were left out: {_several(bad, '; ')}"]


def _several(things: Sequence[object], between: str = ", ") -> str:
    """The first of them, and how many more there are."""
    first = between.join(repr(t) if isinstance(t, str) else str(t) for t in things[:_TOLD])
    return first + (f"{between}and {len(things) - _TOLD} more" if things[_TOLD:] else "")


def _first_reasons(plan: Plan) -> str:
    reasons = list(dict.fromkeys(plan.kept.values()))
    return "; ".join(reasons[:3]) or "it has no node that computes floats"
