"""Work that goes to other processes and machines by way of a folder.

What is sent carries but the name of a file: the first time that it is pickled its work is written
to the folder, from which each process that gets it loads it once.
"""

import pickle
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from onnxdrp.errors import OptionError

__all__ = ["Here", "Sent", "read_state"]


class Work(Protocol):
    """What can be written."""

    def save(self, folder: Path, token: str) -> None:
        """Write all of it, under this name; nothing where that was done before."""


W = TypeVar("W", bound=Work)


class Here(Generic[W]):
    """What came to this process from another.

    Args:
        load: reads what `save` of the work wrote.
        kept: how many works stay, the last that came.
    """

    def __init__(self, load: Callable[[Path, str], W], kept: int) -> None:
        self._load, self._kept = load, kept
        self.works: dict[str, W] = {}
        self._lock = threading.Lock()

    def work(self, folder: Path, token: str) -> W:
        """The work of this name; loaded if it is the first time."""
        with self._lock:
            if token not in self.works:
                self.works[token] = self._load(folder, token)
                for old in list(self.works)[: -self._kept]:
                    del self.works[old]
            return self.works[token]


class Sent(ABC, Generic[W]):
    """What is pickled without its work.

    Args:
        work: as this process has it.
        folder: where it is written when this is pickled; without one it cannot be.
    """

    def __init__(self, work: W, folder: Path | None) -> None:
        self._work: W | None = work
        self._folder, self._token = folder, uuid.uuid4().hex

    @abstractmethod
    def _loaded(self, folder: Path, token: str) -> W:
        """The work, where this came from another process."""

    def _here(self) -> W:
        """The work as this process has it."""
        if self._work is None:
            assert self._folder is not None  # __getstate__ wrote there
            self._work = self._loaded(self._folder, self._token)
        return self._work

    def __getstate__(self) -> dict[str, Any]:
        if self._work is not None:
            if self._folder is None:
                raise TypeError("there is no folder through which this could leave its process")
            self._work.save(self._folder, self._token)
        return self.__dict__ | {"_work": None}


def read_state(folder: Path, token: str) -> dict[str, Any]:
    """What a work pickled into the file of its name.

    Raises:
        OptionError: the folder is not to be seen.
    """
    try:
        state: dict[str, Any] = pickle.loads((folder / token).read_bytes())
    except OSError as e:
        raise OptionError(
            f"{folder}: a worker does not see this folder; let TMPDIR name one that all "
            "workers share"
        ) from e
    return state
