"""Scores of a model that was changed, by its outputs and those of the model as it was.

agreement   share of the samples whose largest class is the same
top-1       share of the samples whose largest class is the label's
signal      1 / (1 + noise power / signal power) of each output, their mean

or a function of the user's in a file:

    def score(outputs, wanted):     # {name: array over all samples}, of the changed model, of float
        return 0.9                  # higher is better

Classes are those of the first float output of shape [N, classes]. Scores are monoids, as observers
are: a shard is scored by itself, and merged.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from onnxdrp.datareaders.blame import blamed
from onnxdrp.errors import DataError, ModelError, OptionError
from onnxdrp.evaluation import has_classes
from onnxdrp.fidelity import Error
from onnxdrp.model import Model

__all__ = ["SCORES", "Score", "score_of"]

Array = npt.NDArray[Any]
Outputs = Mapping[str, Array]
Function = Callable[[Outputs, Outputs], float]

SCORES = ("agreement", "top-1", "signal")


class Score(Protocol):
    """Of a part of the samples, then of all."""

    def fresh(self) -> Self:
        """A score of no sample."""

    def update(self, samples: Sequence[int], wanted: Outputs, got: Outputs) -> None:
        """Takes in the outputs of both models for some samples, with their numbers."""

    def merge(self, other: Self) -> None:
        """Takes in what the other has seen, of samples that come later."""

    def result(self) -> float:
        """Of all that was seen."""


@dataclass
class _Top:
    """The share of samples with the class of the label, or, without labels, of the float model."""

    output: str
    labels: Array | None = None
    right: int = 0
    count: int = 0

    def fresh(self) -> Self:
        return type(self)(self.output, self.labels)

    def update(self, samples: Sequence[int], wanted: Outputs, got: Outputs) -> None:
        found = _classes(got[self.output])
        true = _classes(wanted[self.output]) if self.labels is None else self.labels[list(samples)]
        self.right += int(np.count_nonzero(found == true))
        self.count += len(found)

    def merge(self, other: Self) -> None:
        self.right += other.right
        self.count += other.count

    def result(self) -> float:
        return self.right / max(self.count, 1)


@dataclass
class _Signal:
    errors: dict[str, Error]

    def fresh(self) -> Self:
        return type(self)({name: Error() for name in self.errors})

    def update(self, samples: Sequence[int], wanted: Outputs, got: Outputs) -> None:  # noqa: ARG002
        for name, error in self.errors.items():
            error.update(wanted[name], got[name])

    def merge(self, other: Self) -> None:
        for name, error in self.errors.items():
            error.merge(other.errors[name])

    def result(self) -> float:
        sums = [(e.signal, e.noise) for e in self.errors.values()]
        shares = [signal / (signal + noise) for signal, noise in sums if signal + noise]
        return math.fsum(shares) / max(len(shares), 1)


@dataclass
class _Own:
    """A user's, which sees all samples at once; their outputs are held in memory."""

    function: Function
    label: str
    wanted: list[Outputs] = field(default_factory=list)
    got: list[Outputs] = field(default_factory=list)

    def fresh(self) -> Self:
        return type(self)(self.function, self.label)

    def update(self, samples: Sequence[int], wanted: Outputs, got: Outputs) -> None:  # noqa: ARG002
        self.wanted.append(wanted)
        self.got.append(got)

    def merge(self, other: Self) -> None:
        self.wanted += other.wanted
        self.got += other.got

    def __reduce__(self) -> tuple[Any, ...]:
        # what a file defines is pickled by the name of the file
        return _own, (self.label,), {"wanted": self.wanted, "got": self.got}

    def result(self) -> float:
        with blamed(f"score {self.label}", self.label.rpartition(":")[0]):
            found = float(self.function(_joined(self.got), _joined(self.wanted)))
        if not math.isfinite(found):
            raise DataError(f"score {self.label} gives {found}; return a finite number")
        return found


def score_of(model: Model, score: str | None, labels: Array | None) -> tuple[str, Score]:
    """The name of a score, and the score of no sample.

    Args:
        model: float.
        score: one of SCORES, or "FILE.py:function"; None: top-1 where there are classes and labels,
            agreement where there are classes alone, else signal.
        labels: of the samples; None where there are none.

    Raises:
        ModelError: no output of the model is float.
        OptionError: there is no such score, or it has no such function.
        DataError: top-1 is asked for without labels, or the user's file cannot be imported.
    """
    floats = [o for o in model.outputs if o.dtype is not None and o.dtype.kind == "f"]
    if not floats:
        raise ModelError("no output of the model is float; there is nothing to compare")
    classes = next((o.name for o in floats if has_classes(o)), None)
    if score is None:
        score = "signal" if classes is None else "agreement" if labels is None else "top-1"
    if score == "signal":
        return score, _Signal({o.name: Error() for o in floats})
    if score not in SCORES:
        function, digest = _function(score)
        return f"{Path(score).name} {digest}", _Own(function, score)
    if classes is None:
        raise OptionError(f"score {score!r}: no output is [N, classes]; take signal, or your own")
    if score == "agreement":
        return score, _Top(classes)
    if labels is None:
        raise DataError("score 'top-1' needs labels; give labelled data, or take agreement")
    return score, _Top(classes, np.asarray(labels))


def _function(spec: str) -> tuple[Function, str]:
    """A function in a user's file, and a hash of the file."""
    file, _, name = spec.rpartition(":")
    path = Path(file)
    if path.suffix != ".py" or not name:
        known = ", ".join(SCORES)
        raise OptionError(f"score {spec!r}: there are {known}, or FILE.py:function of your own")
    if not path.is_file():
        raise OptionError(f"score {path}: no such file")
    found = spec_from_file_location(path.stem, path)
    assert found is not None  # of a file that ends in .py there is one
    assert found.loader is not None
    module = module_from_spec(found)
    with blamed(f"score {path}", str(path)):
        found.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise OptionError(f"score {path} has no function {name!r}; name one: FILE.py:function")
    return function, hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()


def _own(label: str) -> _Own:
    return _Own(_function(label)[0], label)


def _classes(scores: Array) -> Array:
    return np.asarray(scores.reshape(len(scores), -1).argmax(1))


def _joined(parts: Sequence[Outputs]) -> dict[str, Array]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
