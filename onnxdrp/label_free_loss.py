"""How far a model's outputs are from the float model's, as one number that rises with the distance.

    classes      mean over samples of  - sum p log q      p, q = softmax of the scores of both
    classes, hard                      - log q[argmax p]
    other        mean over the outputs of  1 + sum (y - t)^2 / sum t^2

The first is the cross entropy with the float model's own answers for labels, so that the float
model itself has a loss above 0 (the entropy of its answers), of which shares can be allowed on top.
At the float model its gradient is 0; that of the second, with the float model's classes for labels,
is not.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from onnxdrp.errors import ModelError, OptionError
from onnxdrp.evaluation import has_classes
from onnxdrp.fidelity import Error
from onnxdrp.model import Model
from onnxdrp.taps import Tap
from onnxdrp.unit_sensitivity import noise_power

__all__ = ["CrossEntropy", "LabelFreeLoss"]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

_TINY = 1e-30


@dataclass
class CrossEntropy:
    """The cross entropy of scores with those of a reference: `update(reference, actual)`.

    `result` is (that of the reference with itself, that of the actual), means over the samples.

    Attributes:
        probabilities: the scores have gone through a Softmax already.
        hard: the reference's class is the label, not its shares.
    """

    probabilities: bool = False
    hard: bool = False
    own: float = 0.0
    cross: float = 0.0
    count: int = 0
    nonfinite: int = 0

    def update(self, *arrays: Array) -> None:
        """Takes in scores [n, classes] (or [n, classes, 1, 1]) of both."""
        reference, actual = (self._logs(np.asarray(array)) for array in arrays)
        bad = ~(np.isfinite(reference).all(1) & np.isfinite(actual).all(1))
        if bad.any():
            self.nonfinite += int(np.count_nonzero(bad))
            reference, actual = reference[~bad], actual[~bad]
        label = np.exp(reference)
        if self.hard:
            label = np.eye(label.shape[1])[label.argmax(1)]
        self.own -= float(np.einsum("nc,nc->", label, reference))
        self.cross -= float(np.einsum("nc,nc->", label, actual))
        self.count += len(label)

    def merge(self, other: Self) -> None:
        """Takes in the other's sums."""
        self.own += other.own
        self.cross += other.cross
        self.count += other.count
        self.nonfinite += other.nonfinite

    def result(self) -> tuple[float, float]:
        """The means of all that was seen."""
        return self.own / max(self.count, 1), self.cross / max(self.count, 1)

    def _logs(self, scores: Array) -> Floats:
        values: Floats = scores.reshape(len(scores), -1).astype(np.float64)
        if self.probabilities:
            return np.asarray(np.log(np.maximum(values, _TINY)))
        with np.errstate(invalid="ignore"):  # infinities are counted
            values -= values.max(1, keepdims=True)
            values -= np.log(np.exp(values).sum(1, keepdims=True))
        return values


@dataclass(frozen=True)
class LabelFreeLoss:
    """The loss of one model against another.

    Attributes:
        outputs: that are compared.
        classes: whether the only one of them is scores of classes.
        probabilities: whether those have gone through a Softmax.
        hard: whether the float model's classes are the labels.
    """

    outputs: tuple[str, ...]
    classes: bool
    probabilities: bool = False
    hard: bool = False

    @classmethod
    def of(cls, model: Model, hard: bool = False) -> Self:
        """The loss of a model of these outputs.

        Raises:
            ModelError: no output is float.
            OptionError: `hard`, and no output is scores of classes.
        """
        floats = [o for o in model.outputs if o.dtype is not None and o.dtype.kind == "f"]
        if not floats:
            raise ModelError("no output of the model is float; there is nothing to compare")
        scores = next((o.name for o in floats if has_classes(o)), None)
        if scores is not None:
            softmax = {t.name for node in model.nodes("Softmax") for t in node.outputs}
            return cls((scores,), True, scores in softmax, hard)
        if hard:
            raise OptionError("no output is [N, classes], so there are no classes to learn from")
        return cls(tuple(o.name for o in floats), False)

    def taps(self, reference: str, actual: str) -> dict[str, Tap]:
        """What to observe of two models of these names."""
        return {
            name: Tap(
                ((reference, name), (actual, name)),
                CrossEntropy(self.probabilities, self.hard) if self.classes else Error(),
            )
            for name in self.outputs
        }

    def value(self, found: Mapping[str, Any]) -> tuple[float, float]:
        """(The loss of the reference, the loss of the other) of what was observed."""
        if self.classes:
            own, cross = found[self.outputs[0]]
            return float(own), float(cross)
        noise = [noise_power(found[name].sqnr_db) for name in self.outputs]
        shares = [share for share in noise if math.isfinite(share)]
        return 1.0, 1.0 + math.fsum(shares) / max(len(shares), 1)
