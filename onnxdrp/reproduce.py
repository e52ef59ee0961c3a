"""What replays a failure, in one folder: the model before it, the passes, the context."""

import json
import logging
import shlex
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onnxdrp.errors import OnnxDrpError, OptionError
from onnxdrp.pipeline import Instrument, Pass, PassContext, PassManager
from onnxdrp.report import versions

if TYPE_CHECKING:
    from onnxdrp.model import Model

__all__ = ["Reproducer", "refuse_input_in", "replay"]

log = logging.getLogger(__name__)

_MARK = "failure.json"
_FILES = (
    *("model.onnx", "model.onnx.data", "recipe.toml", "traceback.txt", _MARK),
    *("context.json", "ranges.json", "masks.npz", "samples.npz"),
    *("reference.onnx", "reference.onnx.data"),
)


class Reproducer(Instrument):
    """Leaves in a folder, when a pass or a check fails, what `onnxdrp replay FOLDER` needs.

        model.onnx      before the failing pass
        recipe.toml     the failing pass and those after it
        context.json, ranges.json, masks.npz, reference.onnx, samples.npz
                        see `onnxdrp.contexts`
        failure.json    versions, what failed, and the command
        traceback.txt

    A folder that holds anything but an earlier reproducer is refused.

    Args:
        folder: is made when there is a failure to write.
        samples: how many samples of the reader to keep.
    """

    def __init__(self, folder: str | Path, samples: int = 8) -> None:
        self.folder = Path(folder)
        self.samples = samples
        self._passes: tuple[Pass, ...] = ()
        self._model: Model | None = None
        self._ctx: PassContext | None = None
        self._check_folder()

    def start(self, passes: Sequence[Pass], model: "Model", ctx: PassContext) -> None:
        """Note the passes."""
        refuse_input_in(self.folder, model)
        self._passes = tuple(passes)

    def before(self, index: int, step: Pass, model: "Model", ctx: PassContext) -> None:
        """Keep the model and the tables as they are; weights and entries are shared."""
        self._model = model.clone()
        self._ctx = ctx.copy()

    def failed(
        self, index: int, step: Pass, model: "Model", ctx: PassContext, error: Exception
    ) -> None:
        """Write the folder, and say how to replay it."""
        try:
            self._write(index, step, error)
        except (OnnxDrpError, OSError) as e:  # must not hide the failure itself
            log.warning("%s: the reproducer is not complete (%s)", self.folder, e)
        error.add_note(f"to replay it: {self._command}")
        log.warning("to replay the failure of %s: %s", step.name, self._command)

    @property
    def _command(self) -> str:
        return f"onnxdrp replay {shlex.quote(str(self.folder))}"

    def _write(self, index: int, step: Pass, error: Exception) -> None:
        from onnxdrp.contexts import save_context
        from onnxdrp.recipe import dump_recipe

        self._check_folder()
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in _FILES:
            (self.folder / name).unlink(missing_ok=True)
        failure = {
            "pass": step.name,
            "error": f"{type(error).__name__}: {error}",
            "replay": self._command,
            "versions": versions(),
        }
        _write_text(self.folder / _MARK, json.dumps(failure, indent=2) + "\n")
        _write_text(self.folder / "traceback.txt", "".join(traceback.format_exception(error)))
        if self._model is not None and self._ctx is not None:
            self._model.save(self.folder / "model.onnx")
            _write_text(self.folder / "recipe.toml", dump_recipe(self._passes[index:]))
            save_context(self._ctx, self.folder, self.samples)

    def _check_folder(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise OptionError(f"{self.folder}: is a file; name a folder for the reproducer")
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if path.name not in _FILES:
                raise OptionError(
                    f"{self.folder}: holds {path.name!r}, which no reproducer wrote; "
                    "name an empty folder"
                )


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def refuse_input_in(folder: Path, model: "Model") -> None:
    """Raise OptionError if the model was loaded from this folder, whose files will go."""
    if model.path is not None and model.path.resolve().parent == folder.resolve():
        raise OptionError(f"{folder}: holds the input {model.path.name!r}; name another folder")


def replay(folder: str | Path) -> None:
    """Run again, with all checks, what a `Reproducer` left in a folder.

    Raises:
        OptionError: the folder is not one that a Reproducer left.
        PassError: the failure, if it happens again.
    """
    from onnxdrp.contexts import load_context
    from onnxdrp.instruments import Equivalence, Verify
    from onnxdrp.model import Model
    from onnxdrp.recipe import load_recipe

    folder = Path(folder)
    if not (folder / _MARK).is_file():
        raise OptionError(f"{folder}: no {_MARK} in it; give a folder that --reproduce left")
    model = Model.load(folder / "model.onnx")
    passes = load_recipe(folder / "recipe.toml")
    PassManager(passes, [Verify(), Equivalence()]).run(model, load_context(folder))
