"""What a reader feeds, and whether the float model makes sense of it, without any label.

A reader with the wrong mean, scale or order of channels gives a model that agrees with itself
before and after every pass, and is wrong: no comparison of models sees it. Three signs do:

    channels    mean, deviation and extremes of what is fed, to be held against what the model was
                trained on, or against another reader
    batch norm  a BatchNormalization has mean m and variance v of its input x in training:
                shift = rms over channels of (mean(x) - m) / sqrt(v)
                spread = median over channels of std(x) / sqrt(v)
                About 0 and 1 where x is what it was in training. If the first is off, the data is;
                if a later one is, the weights before it are. Gone once they are fused.
    answers     of a classifier with probabilities p over its classes:
                information = H(mean p) - mean H(p),  H(p) = - sum p log p, in nats
                (the logarithm of the inception score, Salimans et al. 2016): high where answers
                are sure, and differ from sample to sample. Confidence alone is no sign: pixels
                that are far too large make a model sure of one class.

Answers are measured on what is fed, and on what it could have been meant to be: channels reversed,
other scales, channels of mean 0 and deviation 1. A variant is named where its information is higher
by more than 2 % and with a paired bootstrap over samples leaving no more than 2.5 % of doubt. That
is a sign, no proof: it needs some dozens of samples of several classes. Data whose channels are
equal (grey images) has no order of channels to tell.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onnxdrp.batches import pieces, static_batch
from onnxdrp.dataflow import ordered
from onnxdrp.display import Shown, Table, Tabular
from onnxdrp.errors import DataError
from onnxdrp.evaluation import has_classes
from onnxdrp.moments import ChannelMoments
from onnxdrp.observe import Tap, observe
from onnxdrp.report import Text

if TYPE_CHECKING:
    from onnxdrp.datareaders import DataReader
    from onnxdrp.model import Model, TensorInfo

__all__ = ["Answers", "Channel", "Inputs", "Norm", "find_inputs"]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Feed = Mapping[str, Array]

_CHANNELS = 16  # inputs with more are told as a whole
_BETTER = 1.02  # times the information
_DRAWS = 200
_SHIFT = 0.25  # deviations
_SPREAD = (0.75, 1.33)  # times


@dataclass(frozen=True)
class Channel:
    """What is fed to one channel of an input; index None: all of them."""

    input: str
    index: int | None
    mean: float
    std: float
    low: float
    high: float


@dataclass(frozen=True)
class Norm:
    """How far the input of a BatchNormalization is from what it was trained on.

    `shift` is in deviations, 0 where nothing is shifted; `spread` is a ratio, 1 where all is well.
    """

    node: str
    shift: float
    spread: float

    @property
    def fits(self) -> bool:
        """Whether both are about what they are on training data."""
        return self.shift <= _SHIFT and _SPREAD[0] <= self.spread <= _SPREAD[1]


@dataclass(frozen=True)
class Answers:
    """What a classifier answers to one variant of the data.

    Attributes:
        variant: what was done to the data.
        information: H(mean p) - mean H(p), nats.
        entropy: mean H(p), nats.
        confidence: the mean of the largest p.
        surely_better: its information is surely higher than that of the data as it is fed.
        top1: share of samples that are right; None without labels.
    """

    variant: str
    information: float
    entropy: float
    confidence: float
    surely_better: bool = False
    top1: float | None = None


@dataclass(frozen=True, repr=False)
class Inputs(Tabular):
    """What a reader feeds, and signs of whether it is what the model was trained on.

    Attributes:
        samples: how many were looked at.
        channels: of each input.
        norms: every BatchNormalization with stored figures, in the order of the graph.
        answers: of the data as it is fed, then of its variants; empty without scores of classes.
        against: the same of another reader.
    """

    samples: int
    channels: tuple[Channel, ...]
    norms: tuple[Norm, ...] = ()
    answers: tuple[Answers, ...] = ()
    against: "Inputs | None" = field(default=None)

    @property
    def signs(self) -> list[str]:
        """What speaks against the data, in words; empty if nothing does."""
        found = []
        odd = next((norm for norm in self.norms if not norm.fits), None)
        if odd is not None:
            what = (
                f"sees values that are shifted by {odd.shift:.2f} deviations and "
                f"{odd.spread:.2f} times as wide as those it was trained on"
            )
            if odd is self.norms[0]:
                found.append(
                    f"the first BatchNormalization, {odd.node!r}, {what}: check mean, deviation, "
                    "scale and order of channels"
                )
            else:
                found.append(
                    f"BatchNormalization {odd.node!r}, {self.norms.index(odd) + 1} of "
                    f"{len(self.norms)}, {what}, and those before it do not: check the weights of "
                    "the layer before it"
                )
        better = [a for a in self.answers if a.surely_better]
        if better:
            best = max(better, key=lambda a: a.information)
            found.append(
                f"the float model makes more sense of the data with {best.variant}: its answers "
                f"carry {best.information:.2f} nats against {self.answers[0].information:.2f}"
            )
        other = self.against
        if other is not None and other.answers and self.answers:
            mine, theirs = self.answers[0].information, other.answers[0].information
            if theirs > _BETTER * mine:
                found.append(
                    f"the other reader's data gives answers that carry {theirs:.2f} nats, this "
                    f"one's {mine:.2f}"
                )
        return found

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON can hold it."""
        return {
            "samples": self.samples,
            "channels": [vars(c) for c in self.channels],
            "norms": [vars(n) | {"fits": n.fits} for n in self.norms],
            "answers": [vars(a) for a in self.answers],
            "signs": self.signs,
            "against": None if self.against is None else self.against.as_dict(),
        }

    def table(self) -> Text:
        """Channels, batch norm and answers, then what speaks against the data."""
        sides = [("", self)] + ([] if self.against is None else [("the other", self.against)])
        rows = [
            (side, c.input, "all" if c.index is None else str(c.index),
             *(f"{n:.4g}" for n in (c.mean, c.std, c.low, c.high)))
            for side, found in sides for c in found.channels
        ]  # fmt: skip
        head = ("", "input", "channel", "mean", "deviation", "lowest", "highest")
        parts: list[Any] = [Table(head, rows)]
        norms = [
            (side, n.node, f"{n.shift:.2f}", f"{n.spread:.2f}", "" if n.fits else "off")
            for side, found in sides
            for n in _shown(found.norms)
        ]
        if norms:
            parts += ["", Table(("", "BatchNormalization", "shift", "spread", ""), norms)]
        if self.answers:
            lines = [
                (f"{side} {a.variant}".strip(), f"{a.information:.2f}", f"{a.entropy:.2f}",
                 f"{a.confidence:.2f}", "" if a.top1 is None else f"{100 * a.top1:.1f}")
                for side, found in sides for a in found.answers
            ]  # fmt: skip
            columns = ("answers to the data", "information", "entropy", "confidence", "top-1 %")
            parts += ["", Table(columns, lines)]
        said = [f"sign: {sign}" for sign in self.signs]
        nothing = f"nothing speaks against the data, on {self.samples} samples"
        return Shown(*parts, "", *(said or [nothing]))


@dataclass(frozen=True, eq=False)
class _Variant:
    """x' = gain * x + offset, of each channel, then the channels reversed if asked for."""

    name: str
    gain: Floats | float = 1.0
    offset: Floats | float = 0.0
    turned: bool = False

    def of(self, values: Array, axis: int) -> Array:
        shape = [1] * values.ndim
        shape[axis] = -1
        gain, offset = (np.asarray(v, np.float32).reshape(shape) for v in (self.gain, self.offset))
        found = (values * gain + offset).astype(values.dtype)
        return np.flip(found, axis) if self.turned else found


def find_inputs(
    model: "Model",
    reader: "DataReader",
    samples: int | None = 64,
    against: "DataReader | None" = None,
) -> Inputs:
    """What a reader feeds to a float model, and what that makes of it.

    Args:
        model: as it came in.
        reader: the data.
        samples: that are looked at, the first; None: all.
        against: another reader, held beside this one.

    Raises:
        DataError: the reader gives no samples.
    """
    found = _look(model, reader, samples, variants=True)
    if against is None:
        return found
    other = _look(model, against, samples, variants=False)
    return Inputs(found.samples, found.channels, found.norms, found.answers, other)


def _look(model: "Model", reader: "DataReader", samples: int | None, *, variants: bool) -> Inputs:
    from onnxdrp.datareaders import take

    reader = reader if samples is None else take(reader, samples)
    floats = [info for info in model.inputs if info.dtype.kind == "f" and len(info.shape or ()) > 1]
    axes = {info.name: _axis(info, reader) for info in floats}
    seen = {name: _Seen(axis) for name, axis in axes.items()}
    total = 0
    for feed, valid in pieces(reader, static_batch([model])):
        total += valid
        for name, figures in seen.items():
            if name in feed:
                figures.update(feed[name][:valid])
    if not total:
        raise DataError("the reader gives no samples; check the path and the limit")
    channels = tuple(c for name, figures in seen.items() for c in figures.channels(name))
    scores = next((o for o in model.outputs if o.dtype.kind == "f" and has_classes(o)), None)
    image = next((info.name for info in floats if len(info.shape or ()) == 4), None)
    answers: tuple[Answers, ...] = ()
    if scores is not None:
        tried = [_Variant("the data as it is fed")]
        if variants and image is not None:
            tried += seen[image].variants()
        answers = _answers(model, reader, scores.name, image, axes.get(image or "", 1), tried)
    return Inputs(total, channels, _norms(model, reader), answers)


def _axis(info: "TensorInfo", reader: "DataReader") -> int:
    """Where the channels of an input are."""
    shape = info.shape or ()
    if len(shape) != 4:
        return 1 if len(shape) == 2 else len(shape) - 1
    if reader.layout != "any":
        return 1 if reader.layout == "NCHW" else 3
    return 3 if shape[3] in (1, 3, 4) and shape[1] not in (1, 3, 4) else 1


class _Seen:
    """Figures of each channel of an input."""

    def __init__(self, axis: int) -> None:
        self.axis = axis
        self.moments = ChannelMoments(axis)
        self.low: Floats = np.zeros(0)
        self.high: Floats = np.zeros(0)
        self.alike = True  # first and last channel are equal

    def update(self, values: Array) -> None:
        self.moments.update(values)
        others = tuple(i for i in range(values.ndim) if i != self.axis)
        low, high = values.min(others), values.max(others)
        self.low = np.minimum(self.low, low) if self.low.size else low.astype(np.float64)
        self.high = np.maximum(self.high, high) if self.high.size else high.astype(np.float64)
        first, last = np.take(values, 0, self.axis), np.take(values, -1, self.axis)
        self.alike = self.alike and np.array_equal(first, last)

    def channels(self, name: str) -> Iterator[Channel]:
        stats = self.moments.result()
        std = np.sqrt(stats.variance)
        if len(std) > _CHANNELS:
            mean = float(stats.mean.mean())
            whole = math.sqrt(float((stats.variance + (stats.mean - mean) ** 2).mean()))
            yield Channel(name, None, mean, whole, float(self.low.min()), float(self.high.max()))
            return
        for i, values in enumerate(zip(stats.mean, std, self.low, self.high, strict=True)):
            yield Channel(name, i, *map(float, values))

    def variants(self) -> Iterator[_Variant]:
        """What the data could have been meant to be, where that is not what it is."""
        stats = self.moments.result()
        mean, std = stats.mean, np.sqrt(stats.variance)
        if not self.alike:
            yield _Variant("its channels reversed", turned=True)
        low, span = float(self.low.min()), float(self.high.max() - self.low.min())
        if not span or not std.all():
            return
        yield from (
            variant
            for variant in (
                _Variant("channels of mean 0 and deviation 1", 1 / std, -mean / std),
                _Variant("values from 0 to 1", 1 / span, -low / span),
                _Variant("values from -1 to 1", 2 / span, -2 * low / span - 1),
                _Variant("values from 0 to 255", 255 / span, -255 * low / span),
            )
            if np.abs(variant.gain * mean + variant.offset - mean).max() > 0.05 * std.min()
            or np.abs(np.asarray(variant.gain) - 1).max() > 0.05
        )


def _answers(
    model: "Model",
    reader: "DataReader",
    output: str,
    image: str | None,
    axis: int,
    variants: "list[_Variant]",
) -> tuple[Answers, ...]:
    session, names = model.session(), {info.name for info in model.inputs}
    found: list[list[Array]] = [[] for _ in variants]
    for feed, valid in pieces(reader, static_batch([model])):
        given = {name: values for name, values in feed.items() if name in names}
        for variant, rows in zip(variants, found, strict=True):
            if image is not None:
                given[image] = np.ascontiguousarray(variant.of(feed[image], axis))
            rows.append(_probabilities(session.run([output], given)[0][:valid]))
    chances = [np.concatenate(rows) for rows in found]
    draws = _draws(len(chances[0]))
    base = _information(chances[0], draws)
    labels = reader.labels
    answers = []
    for variant, p in zip(variants, chances, strict=True):
        information = _information(p, draws)
        doubt = float(np.mean(information[1:] <= base[1:]))
        better = information[0] > _BETTER * base[0] and doubt <= 0.025
        answers.append(
            Answers(
                variant.name,
                float(information[0]),
                float(_entropy(p).mean()),
                float(p.max(1).mean()),
                bool(better),
                None if labels is None else float(np.mean(p.argmax(1) == labels[: len(p)])),
            )
        )
    return tuple(answers)


def _probabilities(scores: Array) -> Array:
    """Softmax of scores [n, classes], or [n, classes, 1, 1]; those that are shares stay."""
    values = scores.reshape(len(scores), -1).astype(np.float64)
    if values.min() >= 0 and np.abs(values.sum(1) - 1).max() < 1e-3:
        return values
    values = np.exp(values - values.max(1, keepdims=True))
    return np.asarray(values / values.sum(1, keepdims=True))


def _entropy(p: Floats) -> Floats:
    return np.asarray(-(p * np.log(np.maximum(p, 1e-30))).sum(-1))


def _draws(samples: int) -> Floats:
    """How often each sample counts: once, then in bootstrap draws; [1 + draws, samples]."""
    rng = np.random.default_rng(0)
    counts = rng.multinomial(samples, np.full(samples, 1 / samples), _DRAWS)
    return np.concatenate([np.ones((1, samples)), counts]) / samples


def _information(p: Floats, draws: Floats) -> Floats:
    """H(mean p) - mean H(p) for each draw."""
    return np.asarray(_entropy(draws @ p) - draws @ _entropy(p))


def _norms(model: "Model", reader: "DataReader") -> tuple[Norm, ...]:
    stored: dict[str, tuple[str, Floats, Floats]] = {}
    for node in ordered(model.nodes("BatchNormalization")):
        mean, variance = (model.constant(t) for t in node.inputs[3:5])
        if mean is not None and variance is not None:
            std = np.sqrt(np.maximum(variance.astype(np.float64), 1e-12))
            stored[str(node.inputs[0].name)] = str(node.name), mean.astype(np.float64), std
    seen = observe(model, reader, {name: Tap(name, ChannelMoments(1)) for name in stored})
    found = []
    for name, (node_name, mean, std) in stored.items():
        shift = math.sqrt(float(np.mean(((seen[name].mean - mean) / std) ** 2)))
        spread = float(np.median(np.sqrt(seen[name].variance) / std))
        found.append(Norm(node_name, shift, spread))
    return tuple(found)


def _shown(norms: tuple[Norm, ...]) -> tuple[Norm, ...]:
    """The first, and the first that is off."""
    odd = [norm for norm in norms[1:] if not norm.fits]
    return norms[:1] + tuple(odd[:1])
