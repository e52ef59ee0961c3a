"""What an interrupted training leaves behind, so that the next one goes on from there.

An .npz file of numbers and a header in JSON; nothing in it is code. It counts only for the same
models, samples and settings.
"""

import json
import logging
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxdrp.files import atomic_write

__all__ = ["Kept", "Progress"]

Array = npt.NDArray[Any]
log = logging.getLogger(__name__)

_VERSION = 2


@dataclass
class Progress:
    """How far a training has come.

    Attributes:
        steps: of the schedule; None while that is not known.
        step: steps done.
        planned: steps of the schedule as it was first.
        replanned: {steps done: of how many from there on}.
        seconds: that steps and looks have taken.
        losses: {steps done: loss on the held-back samples}.
        looks_since_best: times that the loss was taken since it was the least.
        best: {tensor: values of the least loss}; empty where that is the start.
        latents: {tensor: (value, first moment, second moment)} as read from a file.
    """

    steps: int | None
    step: int = 0
    planned: int | None = None
    replanned: dict[int, int] = field(default_factory=dict)
    seconds: float = 0.0
    losses: dict[int, float] = field(default_factory=dict)
    looks_since_best: int = 0
    best: dict[str, Array] = field(default_factory=dict)
    latents: dict[str, tuple[Array, ...]] = field(default_factory=dict)


class Kept:
    """A file that is written now and then.

    Args:
        path: the file.
        key: what the work is; a file of other work is not gone on from.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path, self._key = path, key

    def read(self) -> Progress | None:
        """What is in the file; None if there is none, or it belongs to other work."""
        try:
            with self._path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                header = json.loads(str(file["header"]))
                if header["key"] != self._key or header["version"] != _VERSION:
                    log.info("%s: belongs to other work, which is begun anew", self._path)
                    return None
                names = header["names"]
                state = Progress(
                    header["steps"],
                    header["step"],
                    header["planned"],
                    {int(step): steps for step, steps in header["replanned"].items()},
                    header["seconds"],
                    {int(step): loss for step, loss in header["losses"].items()},
                    header["looks_since_best"],
                )
                for i, name in enumerate(names):
                    state.latents[name] = tuple(file[f"{i}.{k}"] for k in range(3))
                    if header["has_best"]:
                        state.best[name] = file[f"{i}.best"]
        except FileNotFoundError:
            return None
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as e:
            log.warning("%s: is no whole checkpoint (%s); begun anew", self._path, e)
            return None
        log.info("%s: goes on after %d steps", self._path, state.step)
        return state

    def write(self, state: Progress, latents: Mapping[str, tuple[Array, ...]]) -> None:
        """Replace what is in the file."""
        header = {
            "version": _VERSION,
            "key": self._key,
            "names": list(latents),
            "steps": state.steps,
            "step": state.step,
            "planned": state.planned,
            "replanned": state.replanned,
            "seconds": state.seconds,
            "losses": state.losses,
            "looks_since_best": state.looks_since_best,
            "has_best": bool(state.best),
        }
        arrays: dict[str, Any] = {}
        for i, (name, values) in enumerate(latents.items()):
            arrays |= {f"{i}.{k}": value for k, value in enumerate(values)}
            if state.best:
                arrays[f"{i}.best"] = state.best[name]
        with atomic_write(self._path) as file:
            np.savez(file, allow_pickle=False, header=np.array(json.dumps(header)), **arrays)

    def remove(self) -> None:
        """Delete the file: the work is done."""
        self._path.unlink(missing_ok=True)
