"""Work on a model and its channels that goes to other processes: by a folder, as onnxdrp.sending.

What is written is the model, and beside it the state of the work: all of its attributes but those
that `_prepare` makes of the model again.
"""

import pickle
import threading
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Self

from onnxdrp.channels.groups import Channels, channels_of
from onnxdrp.model import Model
from onnxdrp.sending import read_state

__all__ = ["ModelWork"]


class ModelWork(ABC):
    """A work that is written as its model and its state.

    Args:
        model: float; is not changed.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._lock = threading.Lock()

    @abstractmethod
    def _prepare(self, channels: Channels) -> None:
        """Take in what is known of the model's channels."""

    @abstractmethod
    def _state(self, folder: Path, token: str) -> dict[str, Any]:
        """The attributes that the work has before `_prepare`, without the model."""

    def save(self, folder: Path, token: str) -> None:
        """Write what `load` reads, once."""
        with self._lock:
            if (folder / token).exists():
                return
            path = self._model.save(folder / f"{token}.onnx")
            state = self._state(folder, token)
            (folder / token).write_bytes(pickle.dumps(state | {"_model": path}))

    @classmethod
    def load(cls, folder: Path, token: str) -> Self:
        """The work as it was saved. Raises OptionError if the folder is not to be seen."""
        state = read_state(folder, token)
        work = cls.__new__(cls)
        work.__dict__.update(state, _model=Model.load(state["_model"]), _lock=threading.Lock())
        work._prepare(channels_of(work._model))
        return work
