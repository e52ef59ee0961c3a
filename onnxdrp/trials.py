"""A float model on a few samples, to which many variants of it are compared.

Feeds and outputs are held, so a trial costs one session and its forwards: data is read, and the
float model run, once.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from onnxdrp.batches import pieces, static_batch
from onnxdrp.errors import DataError, ModelError, OptionError
from onnxdrp.evaluation import has_classes, paired_difference, wilson
from onnxdrp.fidelity import Error
from onnxdrp.taps import run_session

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnxruntime

    from onnxdrp.datareaders import DataReader
    from onnxdrp.model import Model

__all__ = ["Closeness", "Trials"]

Array = npt.NDArray[Any]

_DECIBELS = 0.5  # less is by chance: other samples may say the opposite


@dataclass(frozen=True, eq=False)
class Closeness:
    """How close a variant is to float, labels left aside.

    Attributes:
        same: of each sample, whether its top-1 is the same; None where no output is a row of
            class scores.
        sqnr_db: signal to noise of the worst output.
    """

    same: npt.NDArray[np.bool_] | None
    sqnr_db: float

    def is_closer(self, other: "Closeness") -> bool:
        """Whether this is closer than another on the same samples.

        It agrees on more of them, by more than the standard error of that difference (the square
        root of the number of samples on which only one of the two agrees); or if neither does that,
        it has less noise, by half a decibel.
        """
        if self.same is not None and other.same is not None:
            won = int(np.count_nonzero(self.same & ~other.same))
            lost = int(np.count_nonzero(other.same & ~self.same))
            if (won - lost) ** 2 > won + lost:
                return won > lost
        return self.sqnr_db > other.sqnr_db + _DECIBELS

    def as_dict(self) -> dict[str, float | None]:
        """As JSON can hold it: no infinity, shares rounded."""
        return {
            "agreement": None if self.same is None else round(float(self.same.mean()), 6),
            "sqnr_db": round(self.sqnr_db, 4) if math.isfinite(self.sqnr_db) else None,
        }


class _Piece(NamedTuple):
    feed: dict[str, Array]
    samples: int  # the others are padding
    outputs: list[Array]


class Trials:
    """What a float model gives.

    Args:
        model: float; its variants have inputs and outputs of the same names.
        reader: the samples, all of which are held in memory.
        threads: of each session; None: onnxruntime's choice.

    Attributes:
        samples: how many there are.
        labelled: whether they have labels.

    Raises:
        ModelError: no output is float.
        DataError: the reader gives no samples.
    """

    def __init__(self, model: "Model", reader: "DataReader", threads: int | None = None) -> None:
        floats = [o for o in model.outputs if o.dtype is not None and o.dtype.kind == "f"]
        if not floats:
            raise ModelError("no output of the model is float; there is nothing to compare")
        self._names = [o.name for o in floats]
        self._scores = next((i for i, o in enumerate(floats) if has_classes(o)), None)
        self._pieces: list[_Piece] = []
        self._threads = threads
        session, inputs = model.session(threads=threads), {info.name for info in model.inputs}
        for feed, valid in pieces(reader, static_batch([model])):
            given = {name: array for name, array in feed.items() if name in inputs}
            found = run_session(session, self._names, given)
            self._pieces.append(_Piece(given, valid, self._valid(found, given, valid)))
        self.samples = sum(piece.samples for piece in self._pieces)
        if not self.samples:
            raise DataError("the reader gives no samples; check the path and the limit")
        self.labelled = reader.labels is not None
        self._labels = reader.labels

    def sqnr_db(self, variant: "Model") -> float:
        """Signal to noise of the worst output, in dB; inf if nothing differs."""
        return self.closeness(variant).sqnr_db

    def closeness(self, variant: "Model") -> Closeness:
        """How close a variant is; labels are not looked at."""
        sums = [Error() for _ in self._names]
        same = []
        for wanted, got in self._run(variant):
            for error, want, have in zip(sums, wanted, got, strict=True):
                error.update(want, have)
            if (place := self._scores) is not None:
                same.append(_classes(wanted[place]) == _classes(got[place]))
        noise = min(error.result().sqnr_db for error in sums)
        return Closeness(np.concatenate(same) if same else None, noise)

    @property
    def top1(self) -> float:
        """Percent of top-1 of the float model: accuracy with labels, else agreement with itself.

        Raises:
            OptionError: no output is a row of class scores.
        """
        place = self._place()
        if self._labels is None:
            return 100.0
        found = np.concatenate([_classes(piece.outputs[place]) for piece in self._pieces])
        return 100 * float(np.mean(found == self._labels))

    def drop(self, variant: "Model") -> tuple[float, float, float]:
        """Points of top-1 that are lost, and their 95 % interval (low, high).

        With labels they are of accuracy (the interval is that of paired differences), else of
        agreement with float (Wilson's).

        Raises:
            OptionError: no output is a row of class scores.
        """
        place = self._place()
        rows = ([_classes(w[place]), _classes(g[place])] for w, g in self._run(variant))
        before, after = (np.concatenate(part) for part in zip(*rows, strict=True))
        if self._labels is None:
            return 100 * float(np.mean(before != after)), *wilson(before != after)
        points, low, high = paired_difference(before == self._labels, after == self._labels)
        return -points, -high, -low

    def _place(self) -> int:
        """Which output holds class scores."""
        if self._scores is None:
            raise OptionError("no output is [N, classes], so there is no top-1; give min_sqnr")
        return self._scores

    def _run(self, variant: "Model") -> "Iterator[tuple[list[Array], list[Array]]]":
        """(outputs in float, outputs of the variant) of each piece."""
        session: onnxruntime.InferenceSession = variant.session(threads=self._threads)
        for piece in self._pieces:
            found = run_session(session, self._names, piece.feed)
            yield piece.outputs, self._valid(found, piece.feed, piece.samples)

    def _valid(self, values: list[Array], feed: dict[str, Array], samples: int) -> list[Array]:
        size = max((len(v) for v in feed.values() if np.ndim(v)), default=1)
        if size == samples:
            return values
        return [v if len(v) % size else v[: len(v) // size * samples] for v in values]


def _classes(scores: Array) -> Array:
    return np.asarray(scores.reshape(len(scores), -1).argmax(1))
