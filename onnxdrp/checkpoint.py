"""What an interrupted observation leaves behind, so that the next one goes on from there.

A checkpoint is a .npz file: numbers and arrays of the observers, and a header. Nothing in it is
code. It counts only for the same models, taps and data (by the first sample and the number of all).
"""

import copy
import hashlib
import json
import logging
import time
import zipfile
import zlib
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import numpy as np
import numpy.typing as npt

from onnxdrp.errors import OptionError
from onnxdrp.files import atomic_write
from onnxdrp.job import NotFinite
from onnxdrp.observers import Observer
from onnxdrp.taps import Tap

if TYPE_CHECKING:
    from onnxdrp.datareaders import DataReader
    from onnxdrp.model import Model

__all__ = ["Checkpoint", "State", "add_samples", "data_identity", "identity", "new_observers"]

Array = npt.NDArray[Any]
log = logging.getLogger(__name__)

_KEPT = (bool, int, float, str, tuple, np.ndarray, np.number)
_INTERVAL = 10.0  # seconds between two writings
_VERSION = 1


@dataclass
class State:
    """How far an observation has come.

    Attributes:
        observers: {key: all that its tap has seen}.
        group: the pass over the data that is under way.
        shards: shards of it that are done, from the first.
        samples: samples of it that are done.
        bad: the samples that were left out.
        left_out: how many of them the passes that are done have left out.
        whole: whether all this belongs together.
    """

    observers: dict[Hashable, Observer]
    group: int = 0
    shards: int = 0
    samples: int = 0
    bad: list[NotFinite] = field(default_factory=list)
    left_out: int = 0
    whole: bool = True

    @contextmanager
    def changing(self) -> Iterator[None]:
        """While this is open, and if it is left by an interrupt, the state is not `whole`."""
        self.whole = False
        yield
        self.whole = True


class Checkpoint:
    """A file that is written now and then and deleted when the work is done."""

    def __init__(self, path: Path, taps: Mapping[Any, Tap]) -> None:
        """Keep the state of an observation of `taps` in `path`.

        Raises:
            OptionError: the folder is not there, or an observer is not made of numbers and arrays.
        """
        if not path.parent.is_dir():
            raise OptionError(f"{path}: there is no folder {path.parent}; create it")
        if path.is_dir():
            raise OptionError(f"{path}: is a folder; name a file for the checkpoint")
        self._path, self._taps, self._key = path, taps, ""
        for tap in taps.values():
            _pack(tap.observer, "", {})
        self._written = time.monotonic()

    def read(self, key: str) -> State | None:
        """The state in the file; None if there is none, or it belongs to other work.

        Args:
            key: what the work is (`identity`); `write` notes it too.
        """
        self._key = key
        try:
            with self._path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                header = json.loads(str(file["header"]))
                if header["key"] != key or header["version"] != _VERSION:
                    log.info("%s: belongs to other work, which is begun anew", self._path)
                    return None
                arrays = dict(file)
        except FileNotFoundError:
            return None
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as e:
            log.warning("%s: is no whole checkpoint (%s); begun anew", self._path, e)
            return None
        observers = {
            name: _unpacked(type(tap.observer), tap.observer, arrays, f"{number}")
            for number, (name, tap) in enumerate(self._taps.items())
        }
        bad = [NotFinite(b["sample"], tuple(b["pair"]), b["what"]) for b in header["bad"]]
        log.info("%s: goes on after %d samples", self._path, header["samples"])
        done = {name: header[name] for name in ("group", "shards", "samples", "left_out")}
        return State(observers, **done, bad=bad)

    def write(self, state: State, *, now: bool = False) -> None:
        """Write the state, if it is time or `now`, and if it is whole and worth it."""
        if not now and time.monotonic() - self._written < _INTERVAL:
            return
        if not state.whole or not (state.shards or state.group):
            return
        arrays: dict[str, Array] = {}
        for number, observer in enumerate(state.observers.values()):
            _pack(observer, f"{number}", arrays)
        header = {
            "version": _VERSION,
            "key": self._key,
            "group": state.group,
            "shards": state.shards,
            "samples": state.samples,
            "bad": [asdict(b) for b in state.bad],
            "left_out": state.left_out,
        }
        with atomic_write(self._path) as file:
            np.savez(file, allow_pickle=False, header=np.array(json.dumps(header)), **arrays)
        self._written = time.monotonic()

    def remove(self) -> None:
        """Delete the file: the work is done."""
        self._path.unlink(missing_ok=True)


def identity(
    models: "Mapping[str, Model]",
    taps: Mapping[Hashable, Tap],
    rules: str,
    first: Iterable[Mapping[str, Array]],
    samples: int | None,
) -> str:
    """A hash of what a state belongs to: the models, the taps, the rules and the data.

    Of the data the first samples count and the number of all.

    Raises:
        OptionError: an observer is not made of numbers and arrays.
    """
    import onnxruntime

    from onnxdrp import __version__

    digest = hashlib.blake2b(digest_size=16)
    prints = {name: model.fingerprint() for name, model in models.items()}
    versions = onnxruntime.__version__, __version__
    digest.update(repr((prints, rules, samples, versions)).encode())
    for key, tap in taps.items():
        digest.update(repr((key, tap.pairs(), type(tap.observer).__qualname__)).encode())
        _add(digest, _packed(tap.observer))
    for feed in first:
        _add(digest, feed)
    return digest.hexdigest()


def data_identity(reader: "DataReader") -> str:
    """Tells data from other data by the number of samples and the first of them."""
    from onnxdrp.datareaders import count, first_batch

    digest = hashlib.blake2b(digest_size=16)
    _add(digest, first_batch(reader) or {})
    return f"{count(reader)} {digest.hexdigest()}"


def add_samples(digest: "hashlib.blake2b", reader: "DataReader") -> None:
    """Let a hash depend on all samples of a reader."""
    for batch in reader.batches():
        _add(digest, batch)


def _add(digest: "hashlib.blake2b", arrays: Mapping[str, Array]) -> None:
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())


def new_observers(taps: Mapping[Any, Tap]) -> dict[Any, Observer]:
    """Copies of the observers of taps, each by itself."""
    return {key: copy.deepcopy(tap.observer) for key, tap in taps.items()}


def _packed(observer: object) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    _pack(observer, "", arrays)
    return arrays


def _pack(observer: object, prefix: str, arrays: dict[str, Array]) -> None:
    """Numbers, arrays and tuples of a dataclass, by the path of their fields; None is left out."""
    if not is_dataclass(observer):
        raise OptionError(
            f"{type(observer).__name__} is no dataclass of numbers and arrays, so its state cannot "
            "be kept in a checkpoint; give none, or make it one"
        )
    for f in fields(observer):
        value, name = getattr(observer, f.name), f"{prefix}.{f.name}"
        if value is None:
            continue
        if is_dataclass(value):
            _pack(value, name, arrays)
            continue
        arrays[name] = np.asarray(value if isinstance(value, _KEPT) else None)
        if arrays[name].dtype.hasobject:
            raise OptionError(
                f"{type(observer).__name__}.{f.name} is a {type(value).__name__}, which a "
                "checkpoint does not keep; give none, or make it numbers and arrays"
            )


def _unpacked(kind: type, fresh: object, file: Mapping[str, Array], prefix: str) -> Any:
    """An observer of this kind with the stored values; those of `fresh` tell their types."""
    observer = copy.copy(fresh) if fresh is not None else object.__new__(kind)
    for f in fields(kind):
        value, name = getattr(fresh, f.name, None), f"{prefix}.{f.name}"
        if name in file:
            stored: Any = _like(value, file[name])
        elif any(path.startswith(f"{name}.") for path in file):
            part = _dataclass_of(get_type_hints(kind)[f.name]) if value is None else type(value)
            stored = _unpacked(part, value, file, name)
        else:
            stored = None
        object.__setattr__(observer, f.name, stored)
    return observer


def _like(value: object, array: Array) -> Any:
    if isinstance(value, tuple):
        return tuple(array.tolist())
    if array.ndim or isinstance(value, np.ndarray):
        return array
    return array[()] if isinstance(value, np.generic) else array.item()


def _dataclass_of(hint: Any) -> type:
    """The dataclass in a type such as `X` or `X | None`."""
    return next(k for k in (hint, *get_args(hint)) if isinstance(k, type) and is_dataclass(k))
