"""By what candidates of a search are judged: points lost, and their loss, on held-out data.

Points are of top-1: of accuracy where the data has labels, else of agreement with the original
model (onnxdrp.trials); or what a function of the user's says.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from onnxdrp.errors import ModelError
from onnxdrp.evaluation import has_classes
from onnxdrp.label_free_loss import LabelFreeLoss
from onnxdrp.model import Model
from onnxdrp.observe import observe
from onnxdrp.trials import Trials
from onnxdrp.unit_sensitivity import few

if TYPE_CHECKING:
    from onnxdrp.datareaders import DataReader

__all__ = ["HeldOut"]

_SAMPLES = 1000


class HeldOut:
    """How much a model has lost on held-out data, and its loss there.

    Args:
        model: the original.
        held_out: data that nothing is fitted to; of more than 1,000 samples so many are taken.
        own: gives the points that a model has lost, instead of top-1.
        hard: of the loss (onnxdrp.label_free_loss).
        seed: draws the samples.

    Attributes:
        loss: which one.
        samples: how many there are.
        top1: percent of it that the original model has.
        what: what points are of.

    Raises:
        ModelError: no output is scores of classes, and there is no function of the user's.
    """

    def __init__(
        self,
        model: Model,
        held_out: "DataReader",
        own: Callable[[Model], float] | None = None,
        hard: bool = False,
        seed: int = 0,
    ) -> None:
        if own is None and not any(has_classes(output) for output in model.outputs):
            raise ModelError("no output has scores of classes to judge by; give a judge")
        self._model, self._reader, self._own = model, few(held_out, _SAMPLES, seed), own
        self._trials = Trials(model, self._reader)
        self.loss = LabelFreeLoss.of(model, hard)
        self.samples = self._trials.samples
        self.top1 = self._trials.top1 if own is None else 100.0
        labelled = "top-1 accuracy" if self._trials.labelled else "top-1 agreement"
        self.what = labelled if own is None else "the judge's score"

    def lost(self, model: Model) -> tuple[float, float, float]:
        """Points, and their 95 % interval; where the user's function gives them, just that."""
        if self._own is None:
            return self._trials.drop(model)
        lost = float(self._own(model))
        return lost, lost, lost

    def losses(self, model: Model, workers: int | None = None) -> tuple[float, float]:
        """(The loss of the original model, that of another)."""
        pair, taps = {"float": self._model, "now": model}, self.loss.taps("float", "now")
        return self.loss.value(observe(pair, self._reader, taps, workers=workers))
