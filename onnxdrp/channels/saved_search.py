"""The state of a search for rates of channels in a file, and its model in another beside it."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from onnxdrp.channels.lanes import Ints
from onnxdrp.channels.rounds import Round
from onnxdrp.channels.trust_region import TrustRegion
from onnxdrp.errors import ModelError, OptionError
from onnxdrp.files import atomic_write
from onnxdrp.model import Model

__all__ = ["Figures", "SavedSearch", "State"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Figures:
    """What is known of the model of now.

    Attributes:
        loss: of it.
        thresholds: {group: th}, not scaled.
        errors: {group: {rate: error}}.
    """

    loss: float
    thresholds: dict[str, float]
    errors: dict[str, dict[float, float]]

    def as_dict(self) -> dict[str, Any]:
        """As JSON can hold it, whose keys are text."""
        errors = {name: list(of.items()) for name, of in self.errors.items()}
        return asdict(self) | {"errors": errors}

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "Figures":
        """What `as_dict` gave."""
        errors = {name: dict(of) for name, of in content["errors"].items()}
        return cls(content["loss"], content["thresholds"], errors)


@dataclass
class State:
    """How far a search has come.

    Attributes:
        region: the radius of trust.
        left: {layer: its output channels in the original model that are left}.
        rounds: all so far.
        model: the last that was accepted; None: the original.
        figures: of that; None where it was not measured yet.
    """

    region: TrustRegion
    left: dict[str, Ints]
    rounds: list[Round] = field(default_factory=list)
    model: Model | None = None
    figures: Figures | None = None


class SavedSearch:
    """A file that is written after each round, and deleted when the search is done.

    Args:
        path: of the JSON file; None: nothing is kept.
        key: what the search is of: model, options and data.

    Raises:
        OptionError: the folder is not there.
    """

    version: ClassVar[str] = "onnxdrp-auto-channels-1"

    def __init__(self, path: Path | None, key: str) -> None:
        if path is not None and not path.parent.is_dir():
            raise OptionError(f"{path}: there is no folder {path.parent}; create it")
        self.path, self.key = path, key
        self._model = ""

    def read(self) -> State | None:
        """What the file has; None if there is none, or it belongs to another search."""
        if self.path is None:
            return None
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            if (content["version"], content["key"]) != (self.version, self.key):
                log.info("%s: belongs to other work, which is begun anew", self.path)
                return None
            figures, name = content["figures"], content["model"]
            found = State(
                region=TrustRegion(**content["region"]),
                left={layer: np.asarray(of, np.int64) for layer, of in content["left"].items()},
                rounds=[Round(**r) for r in content["rounds"]],
                model=self._loaded(self.path, name) if name else None,
                figures=None if figures is None else Figures.of(figures),
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ModelError) as e:
            log.warning("%s: is no whole checkpoint (%s); begun anew", self.path, e)
            return None
        self._model = name
        return found

    def write(self, state: State) -> None:
        """Write all of it; the model first, so that what the file names is there."""
        if self.path is None:
            return
        before, last = self._model, state.rounds[-1]
        if last.accepted and state.model is not None:
            self._model = f"{self.path.name}.{last.number}.onnx"
            state.model.save(self.path.with_name(self._model), overwrite=True)
        content = {
            "version": self.version,
            "key": self.key,
            "model": self._model,
            "region": asdict(state.region),
            "left": {layer: of.tolist() for layer, of in state.left.items()},
            "figures": None if state.figures is None else state.figures.as_dict(),
            "rounds": [asdict(r) for r in state.rounds],
        }
        with atomic_write(self.path) as file:
            file.write(json.dumps(content, indent=1).encode() + b"\n")
        if before != self._model:
            self._delete(self.path, before)

    def remove(self) -> None:
        """Delete the files: the search is done."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
            self._delete(self.path, self._model)

    def _loaded(self, path: Path, name: str) -> Model:
        """The model, in memory: its file will be deleted."""
        model = Model.load(path.with_name(name))
        for weight in model.weights():
            model.set_weight(weight, np.array(model.weight(weight)))
        return model

    def _delete(self, path: Path, name: str) -> None:
        if name:
            for part in (name, f"{name}.data"):  # a large model has its weights in the second
                path.with_name(part).unlink(missing_ok=True)
