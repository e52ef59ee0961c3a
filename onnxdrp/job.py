"""The work of one worker: run a shard of samples, feed the taps, say what is not finite.

A job goes to other processes and machines too. It then carries no model: the first time that it is
pickled, models and taps are written to a folder, from which each process loads them once.
"""

import pickle
import threading
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from onnxdrp.batches import Batch, Shard, Source
from onnxdrp.errors import DataError, OptionError
from onnxdrp.observers import Observer
from onnxdrp.sending import Here, Sent, read_state
from onnxdrp.taps import Pair, Runner, Tap, TensorRunner, run_batch

if TYPE_CHECKING:
    from onnxdrp.model import Model

__all__ = ["BadSample", "Job", "NotFinite", "ShardResult", "named"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class NotFinite:
    """A sample for which a tapped tensor has NaN or infinity."""

    sample: int
    pair: Pair
    what: str


@dataclass(frozen=True)
class BadSample:
    """A sample for which a tapped tensor has NaN or infinity."""

    sample: int
    model: str
    tensor: str
    node: str
    what: str

    def __str__(self) -> str:
        where = f"of node {self.node!r}" if self.node else "of the input"
        of = f" of model {self.model!r}" if self.model else ""
        return f"tensor {self.tensor!r} {where}{of} has {self.what} in sample {self.sample}"


@dataclass
class ShardResult:
    """What a shard gave.

    Attributes:
        observers: {key: observer that saw the shard}; without meaning if a sample is refused.
        bad: the samples that were left out.
        refused: the first sample that may not be left out, if there is one.
        count: samples of the shard, those left out included.
    """

    observers: dict[Hashable, Observer]
    bad: list[NotFinite]
    refused: NotFinite | None
    count: int


class Job(Sent["_Work"]):
    """Called with a shard, gives a ShardResult; may be called by several threads at once."""

    def __init__(
        self,
        models: "Mapping[str, Model]",
        taps: Mapping[Hashable, Tap],
        whole: frozenset[str],
        *,
        skip: bool = False,
        folder: Path | None = None,
        runners: Mapping[str, Runner] | None = None,
        tapped: Mapping[str, int] | None = None,
    ) -> None:
        """What to do with each shard.

        Args:
            models: {name: model}.
            taps: what to observe.
            whole: inputs without a batch axis.
            skip: leave samples with NaN or infinity out, rather than refuse them.
            folder: where models and taps are written if the job is sent to another process; without
                one it cannot be.
            runners: {model: what gives its tensors}, if not sessions of the whole models.
            tapped: {model: how many of its tensors all jobs of the study want}.
        """
        super().__init__(_Work(models, taps, runners, tapped), folder)
        self._whole, self._skip = whole, skip
        self._bad: frozenset[int] = frozenset()

    def leave_out(self, samples: frozenset[int]) -> None:
        """From the next shard on these samples are not looked at."""
        self._bad = samples

    def runners(self) -> Mapping[str, Runner]:
        """What gives each model's tensors: sessions, opened once."""
        return self._here().runners()

    def close(self) -> None:
        """Let the sessions go; they are opened again if they are wanted."""
        self._here().close()

    def __call__(self, shard: Shard | Source) -> ShardResult:
        """Observe a shard with fresh observers, from the start again if a sample is left out."""
        work = self._here()
        shard = shard.read() if isinstance(shard, Source) else shard
        bad: list[NotFinite] = []
        if self._bad:
            shard = shard.without(self._bad, self._whole)
        while True:
            observers = work.fresh()
            found = work.observe(shard, observers, self._whole)
            if found is None:
                return ShardResult(observers, bad, None, shard.count)
            if not self._skip:
                return ShardResult({}, bad, found, shard.count)
            bad.append(found)
            shard = shard.without({found.sample}, self._whole)

    def _loaded(self, folder: Path, token: str) -> "_Work":
        return _HERE.work(folder, token)


class _Work:
    """Observers as new, and what gives them their tensors."""

    def __init__(
        self,
        models: "Mapping[str, Model]",
        taps: Mapping[Hashable, Tap],
        runners: Mapping[str, Runner] | None = None,
        tapped: Mapping[str, int] | None = None,
    ) -> None:
        self._tapped = tapped or {}
        self._models: Mapping[str, Model | Path] = models
        self._pairs = {key: tap.pairs() for key, tap in taps.items()}
        self._fresh = _pickled(taps)
        self._given, self._opened = runners, runners
        self._lock = threading.Lock()
        # after which tap a tensor can go
        self._last = {pair: key for key, pairs in self._pairs.items() for pair in pairs}

    def runners(self) -> Mapping[str, Runner]:
        with self._lock:
            if self._opened is None:
                wanted: dict[str, dict[str, None]] = {}
                for pairs in self._pairs.values():
                    for name, tensor in pairs:
                        wanted.setdefault(name, {})[tensor] = None
                self._opened = {
                    name: TensorRunner(
                        _loaded(self._models[name]), tensors, self._tapped.get(name, 0)
                    )
                    for name, tensors in wanted.items()
                }
            return self._opened

    def close(self) -> None:
        with self._lock:
            self._opened = self._given

    def fresh(self) -> dict[Hashable, Observer]:
        observers: dict[Hashable, Observer] = pickle.loads(self._fresh)
        return observers

    def save(self, folder: Path, token: str) -> None:
        """Write what `load` reads; models that are there already are not written again."""
        with self._lock:
            if (folder / token).exists():
                return
            paths = {name: folder / f"{i}.onnx" for i, name in enumerate(self._models)}
            for name, path in paths.items():
                model = self._models[name]
                if not isinstance(model, Path) and not path.exists():
                    model.save(path)
            state = self.__dict__ | {"_models": paths, "_given": None, "_opened": None}
            del state["_lock"]
            (folder / token).write_bytes(pickle.dumps(state))

    @classmethod
    def load(cls, folder: Path, token: str) -> Self:
        """The work as it was saved. Raises OptionError if the folder is not to be seen."""
        work = cls.__new__(cls)
        work.__dict__.update(read_state(folder, token), _lock=threading.Lock())
        return work

    def observe(
        self, shard: Shard, observers: Mapping[Hashable, Observer], whole: frozenset[str]
    ) -> NotFinite | None:
        """Feed a shard to observers, up to the first sample that one of them finds not finite."""
        runners = self.runners()
        for batch in shard.batches:
            try:
                values = run_batch(runners, batch, whole)
            except DataError as e:
                raise DataError(f"{_numbers(batch.samples)}: {e}") from e
            for key, pairs in self._pairs.items():
                observer = observers[key]
                _update(observer, [values[pair] for pair in pairs], batch)
                if observer.nonfinite:
                    return self._first_bad(key, values, batch)
                for pair in pairs:
                    if self._last[pair] == key:
                        del values[pair]
        return None

    def _first_bad(self, key: Hashable, values: Mapping[Pair, Array], batch: Batch) -> NotFinite:
        """The first sample of a batch that is not finite; taps before `key` found none."""
        keys = list(self._pairs)
        later = keys[keys.index(key) :]
        for i, sample in enumerate(batch.samples):
            for key in later:
                pairs = self._pairs[key]
                rows = _sample([values[pair] for pair in pairs], i, len(batch.samples))
                observer = self.fresh()[key]
                observer.update(*rows)
                if observer.nonfinite:
                    odd = ((p, v) for p, v in zip(pairs, rows, strict=True) if _is_odd(v))
                    pair, value = next(odd, (pairs[0], rows[0]))
                    return NotFinite(sample, pair, "NaN" if _has_nan(value) else "infinity")
        raise DataError(f"an observer of {keys[0]!r} finds NaN or infinity in no single sample")


_HERE = Here(_Work.load, kept=2)  # works whose sessions a worker process keeps open


def _loaded(model: "Model | Path") -> "Model":
    from onnxdrp.model import Model

    return Model.load(model) if isinstance(model, Path) else model


def named(models: "Mapping[str, Model]", bad: NotFinite) -> BadSample:
    """The sample, with the node that makes the tensor."""
    model, tensor = bad.pair
    made_by = models[model].tensor(tensor).inputs
    return BadSample(bad.sample, model, tensor, made_by[0].name if made_by else "", bad.what)


def _pickled(taps: Mapping[Hashable, Tap]) -> bytes:
    """The observers of some taps; one that several of them have becomes one for each."""
    try:
        apart = {key: pickle.loads(pickle.dumps(tap.observer)) for key, tap in taps.items()}
        return pickle.dumps(apart)
    except (pickle.PicklingError, AttributeError, TypeError) as e:
        raise OptionError(
            f"an observer cannot be pickled ({e}); define its class at the top of a module"
        ) from e


def _update(observer: Observer, values: Sequence[Array], batch: Batch) -> None:
    samples = len(batch.samples)
    if not getattr(observer, "each_sample", False):
        observer.update(*values)
        return
    for i, sample in enumerate(batch.samples):
        if hasattr(observer, "sample"):
            observer.sample = sample
        observer.update(*(_sample(values, i, samples) if samples > 1 else values))


def _sample(values: Sequence[Array], i: int, samples: int) -> list[Array]:
    """What belongs to one of the samples in tensors of all; a whole where nothing tells them."""
    if any(not np.ndim(v) or len(v) % samples for v in values):
        return list(values)
    rows = [len(v) // samples for v in values]
    return [v[i * r : (i + 1) * r] for v, r in zip(values, rows, strict=True)]


def _is_odd(value: Array) -> bool:
    return value.dtype.kind not in "iub" and not np.isfinite(value).all()


def _has_nan(value: Array) -> bool:
    return value.dtype.kind not in "iub" and bool(np.isnan(value).any())


def _numbers(samples: Sequence[int]) -> str:
    first, last = samples[0], samples[-1]
    return f"sample {first}" if first == last else f"samples {first} to {last}"
