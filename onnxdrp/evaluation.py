"""Compare two models on the same data, and measure accuracy on labelled data.

Intervals are 95 %: Wilson's for a proportion (Wilson 1927), Bonett and Price's adjusted Wald for
the difference of two proportions on the same samples (Bonett, Price 2012).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxdrp.batches import pieces
from onnxdrp.display import Shown, Table, Tabular
from onnxdrp.errors import DataError, ModelError
from onnxdrp.jumps import Jump, find_step, what_is_known
from onnxdrp.observe import BadSample, Tap, observe
from onnxdrp.observers import Error, ErrorStats, TopAgreement
from onnxdrp.report import Text

if TYPE_CHECKING:
    from onnxdrp.datareaders import DataReader
    from onnxdrp.model import Model, TensorInfo

__all__ = [
    "Accuracy",
    "Comparison",
    "accuracy",
    "compare_models",
    "has_classes",
    "paired_difference",
    "wilson",
]

Bools = npt.NDArray[np.bool_]
_FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE}
_CONFUSED = 100  # pairs of classes
_Z = 1.959964  # two-sided 95 % of the normal distribution


@dataclass(repr=False)
class Comparison(Tabular):
    """How far model b is from model a on the same samples.

    Attributes:
        outputs: {output name: its error}.
        top1_agreement: share of samples with the same largest class, for the first output that has
            classes; None if no output has.
        layers: (node name, operator, tensor name, its error) in graph order, if asked for.
        step: where the error jumps first, or, without a jump, grows most; None if layers were not
            compared, or no error of theirs reaches an output.
    """

    outputs: dict[str, ErrorStats]
    top1_agreement: float | None
    layers: list[tuple[str, str, str, ErrorStats]] = field(default_factory=list)
    step: Jump | None = None

    @property
    def first_jump(self) -> Jump | None:
        """The first layer where the error jumps (onnxdrp.jumps), if one does."""
        return self.step if self.step is not None and self.step.is_jump else None

    @property
    def verdict(self) -> str:
        """Where the error comes from, in words; "" if layers were not compared."""
        if not self.layers:
            return ""
        if self.step is None:
            return "no layer makes an error that reaches an output"
        if self.step.is_jump:
            return str(self.step)
        return f"no jump: the error grows step by step; at most where {self.step}"

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization-noise ratio of the worst output, in dB; inf if all are equal."""
        return min((e.sqnr_db for e in self.outputs.values()), default=math.inf)

    def as_dict(self) -> dict[str, Any]:
        """The keys of `compare --json`: the worst figures over outputs, then each of them."""
        errors = self.outputs.values()
        jump = None if self.first_jump is None else self.first_jump.as_dict()
        said = {"first_jump": jump, "verdict": self.verdict} if self.layers else {}
        return said | {
            "sqnr_db": _finite(self.sqnr_db),
            "max_abs_error": max((e.max_abs_error for e in errors), default=0.0),
            "cosine": min((e.cosine for e in errors), default=1.0),
            "top1_agreement": self.top1_agreement,
            "outputs": {name: _plain(e) for name, e in self.outputs.items()},
            "layers": [
                {"name": node, "op": op, "tensor": tensor, **_plain(e)}
                for node, op, tensor, e in self.layers
            ],
        }

    def table(self) -> Text:
        """A line a tensor, the outputs last, then the verdict."""
        rows = [(node, op, tensor, *_cells(e)) for node, op, tensor, e in self.layers]
        foot = [("output", "", name, *_cells(e)) for name, e in self.outputs.items()]
        head = ("node", "op", "tensor", "SQNR dB", "cosine", "max |error|")
        parts: list[Any] = [Table(head, rows, foot)]
        if self.top1_agreement is not None:
            parts += ["", f"top-1 agreement: {100 * self.top1_agreement:.2f} %"]
        return Shown(*parts, *(("", self.verdict) if self.verdict else ()))


def _plain(error: ErrorStats) -> dict[str, float | None]:
    return {
        "sqnr_db": _finite(error.sqnr_db),
        "cosine": error.cosine,
        "max_abs_error": error.max_abs_error,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no infinity


def _cells(error: ErrorStats) -> tuple[str, str, str]:
    return f"{error.sqnr_db:.1f}", f"{error.cosine:.6f}", f"{error.max_abs_error:.3g}"


def compare_models(
    a: "Model",
    b: "Model",
    reader: "DataReader",
    *,
    layers: bool = False,
    memory_limit: int = 1 << 30,
    on_bad: Callable[[BadSample], None] | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> Comparison:
    """Run both models on the same samples and measure how far b's outputs are from a's.

    Args:
        a: the reference, mostly the float model.
        b: the other; outputs and tensors correspond by name.
        reader: the data; labels are not needed.
        layers: also compare every tensor that both models compute, streamed, and say where the
            error jumps; if it does, the reference runs over the data once more.
        memory_limit: bytes of tapped tensors held at a time.
        on_bad: told of each sample that gives NaN or infinity, which is left out; None: an error.
        progress: called with (samples done, samples in all or None).

    Raises:
        ModelError: the models have no output in common.
        DataError: a tensor has NaN or infinity; names it.
    """
    float_outputs = [o for o in a.outputs if o.dtype.kind == "f"]
    names = {o.name for o in b.outputs}
    common = [o for o in float_outputs if o.name in names]
    if not common:
        raise ModelError(
            f"the models share no float output: {[o.name for o in a.outputs]} against "
            f"{sorted(names)}; compare models of one origin"
        )
    taps: dict[tuple[str, str], Tap] = {
        ("error", o.name): Tap((("a", o.name), ("b", o.name)), Error()) for o in common
    }
    scores = next((o for o in common if has_classes(o)), None)
    if scores is not None:
        taps["top1", ""] = Tap((("a", scores.name), ("b", scores.name)), TopAgreement())
    inner = _common_tensors(a, b) if layers else []
    rounded = _rounded(b) if layers else {}
    taps |= {("layer", t): Tap((("a", t), ("b", rounded.get(t, t))), Error()) for _, _, t in inner}
    models = {"a": a, "b": b}
    results = observe(
        models, reader, taps, memory_limit=memory_limit, on_bad=on_bad, progress=progress
    )
    outputs = {o.name: results["error", o.name] for o in common}
    table = [(node, op, t, results["layer", t]) for node, op, t in inner]
    step = find_step(a, outputs | {t: error for _, _, t, error in table}) if inner else None
    if step is not None and step.is_jump:
        step = replace(step, reasons=what_is_known(step, a, b, reader, on_bad))
    return Comparison(outputs, results.get(("top1", "")), table, step)


def has_classes(info: "TensorInfo") -> bool:
    """Whether an output is a row of class scores for each sample: [N, C] or [N, C, 1, 1]."""
    shape = info.shape
    if shape is None or len(shape) < 2 or any(d != 1 for d in shape[2:]):
        return False
    return shape[1] is None or isinstance(shape[1], str) or shape[1] > 1


def _common_tensors(a: "Model", b: "Model") -> list[tuple[str, str, str]]:
    """(node, operator, tensor) of every float tensor that both models compute, in a's order."""
    in_b = {t.name for n in b.nodes() for t in n.outputs}
    outputs = {o.name for o in a.outputs}
    inferred = onnx.shape_inference.infer_shapes(a.skeleton()).graph.value_info
    floats = {v.name for v in inferred if v.type.tensor_type.elem_type in _FLOATS}
    return [
        (node.name, node.op, t.name)
        for node in a.nodes()
        for t in node.outputs
        if t.name in in_b and t.name not in outputs and t.name in floats
    ]


def _rounded(model: "Model") -> dict[str, str]:
    """{tensor: what its readers see}: the DequantizeLinear behind it, where it is quantized.

    A Relu that was folded into the quantization is in the second and not in the first.
    """
    return {
        quantize.inputs[0].name: reader.outputs[0].name
        for quantize in model.nodes("QuantizeLinear")
        for reader in quantize.outputs[0].outputs
        if reader.op == "DequantizeLinear"
    }


@dataclass(frozen=True)
class Accuracy:
    """Which samples of a labelled set a classifier gets right.

    Attributes:
        top1: bool [samples], the largest score is the label's.
        top5: bool [samples], the label is among the five largest; None below six classes.
        labels: int64 [samples].
        predicted: int64 [samples], the first of the classes with the largest score.
    """

    top1: Bools
    top5: Bools | None
    labels: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]

    def summary(self) -> dict[str, Any]:
        """Accuracies over all samples in percent, with their 95 % interval."""
        figures: dict[str, Any] = {
            "top1": _percent(self.top1),
            "top1_interval": wilson(self.top1),
            "top5": None if self.top5 is None else _percent(self.top5),
        }
        if self.top5 is not None:
            figures["top5_interval"] = wilson(self.top5)
        return figures | {"samples": len(self.top1)}

    def as_dict(self) -> dict[str, Any]:
        """The keys of `evaluate --json`: the summary, each class, and what is taken for what."""
        return self.summary() | {"classes": self._classes(), "confused": self._confused()}

    def _classes(self) -> list[dict[str, Any]]:
        """A row a class that has samples."""
        found = []
        for label in np.unique(self.labels):
            right = self.top1[self.labels == label]
            figures = {"top1": _percent(right), "top1_interval": wilson(right)}
            found.append({"class": int(label), "samples": len(right), **figures})
        return found

    def _confused(self) -> list[dict[str, int]]:
        """The commonest mistakes, at most _CONFUSED of them, most frequent first."""
        wrong = np.stack([self.labels, self.predicted])[:, ~self.top1]
        pairs, counts = np.unique(wrong, axis=1, return_counts=True)
        order = np.argsort(-counts, kind="stable")[:_CONFUSED]
        return [
            {"label": int(label), "taken_for": int(given), "samples": int(count)}
            for (label, given), count in zip(pairs.T[order], counts[order], strict=True)
        ]

    def __str__(self) -> str:
        low, high = wilson(self.top1)
        text = f"top-1 {_percent(self.top1):.2f} % [{low:.2f}, {high:.2f}]"
        if self.top5 is not None:
            low, high = wilson(self.top5)
            text += f", top-5 {_percent(self.top5):.2f} % [{low:.2f}, {high:.2f}]"
        return f"{text} on {len(self.top1):,} samples"

    __repr__ = __str__


def accuracy(
    model: "Model",
    reader: "DataReader",
    progress: Callable[[int, int | None], None] | None = None,
) -> Accuracy:
    """Top-1 and top-5 of a classifier on labelled data.

    The first float output of shape [N, classes] (or [N, classes, 1, 1]) is taken as the scores.

    Raises:
        DataError: the reader has no labels, or they do not fit the classes.
        ModelError: no output has scores for classes.
    """
    labels = reader.labels
    if labels is None:
        raise DataError("the data has no labels; give --labels FILE.csv, class folders, or `y`")
    scores = next((o for o in model.outputs if o.dtype.kind == "f" and has_classes(o)), None)
    if scores is None:
        raise ModelError("no output of the model is [N, classes]; accuracy needs a classifier")
    session = model.session()
    inputs = {info.name for info in model.inputs}
    shape = model.inputs[0].shape
    batch_size = shape[0] if shape and isinstance(shape[0], int) else None
    first, five, predicted, seen = [], [], [], 0
    for feed, valid in pieces(reader, batch_size):
        given = {name: feed[name] for name in inputs if name in feed}
        values = session.run([scores.name], given)[0][:valid].reshape(valid, -1)
        wanted = labels[seen : seen + valid, None]
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < values.shape[1]:
            raise DataError(
                f"label {wanted.max()} is not among the model's {values.shape[1]} classes; "
                "check the class indices of the labels"
            )
        score = np.take_along_axis(values, wanted, axis=1)
        earlier = np.arange(values.shape[1]) < wanted  # of equal scores argmax takes the first
        rank = ((values > score) | ((values == score) & earlier)).sum(axis=1)
        first.append(rank < 1)
        five.append(rank < 5)
        predicted.append(values.argmax(axis=1))
        seen += valid
        if progress is not None:
            progress(seen, reader.samples)
    if seen == 0:
        raise DataError("the reader gives no samples; check the path and the limit")
    top5 = np.concatenate(five) if values.shape[1] > 5 else None
    right = np.concatenate(first)
    return Accuracy(right, top5, np.asarray(labels[:seen], np.int64), np.concatenate(predicted))


def _percent(right: Bools) -> float:
    return 100.0 * float(right.mean())


def wilson(right: Bools) -> tuple[float, float]:
    """Wilson's 95 % interval of the share of True, in percent."""
    n, p = len(right), float(right.mean())
    centre = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2)) / (1 + _Z**2 / n)
    return max(0.0, 100 * (centre - half)), min(100.0, 100 * (centre + half))


def paired_difference(before: Bools, after: Bools) -> tuple[float, float, float]:
    """The change of accuracy on the same samples, in points, and its 95 % interval (low, high).

    Bonett and Price's interval: adjusted Wald over the discordant pairs, one added to each.
    """
    n = len(before)
    lost, won = int((before & ~after).sum()), int((~before & after).sum())
    p_won, p_lost = (won + 1) / (n + 2), (lost + 1) / (n + 2)
    centre = p_won - p_lost
    half = _Z * math.sqrt((p_won + p_lost - centre**2) / (n + 2))
    return 100 * (won - lost) / n, 100 * (centre - half), 100 * (centre + half)
