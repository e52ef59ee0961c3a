"""What replays a failure: the model before it, the passes from there on, the context, and versions, in one folder."""

import dataclasses
import json
import logging
import shlex
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onnxdrp.errors import DataError, OptionError
from onnxdrp.pipeline import Instrument, Pass, PassContext, PassManager
from onnxdrp.report import versions

if TYPE_CHECKING:
    from onnxdrp.model import Model

__all__ = ["Reproducer", "replay"]

log = logging.getLogger(__name__)

_MARK = "failure.json"


class Reproducer(Instrument):
    """Leaves in a folder, when a pass or a check fails, all that `onnxdrp replay FOLDER` needs to fail again.

        model.onnx      before the failing pass
        recipe.toml     the failing pass and those after it
        context.json, masks.npz, samples.npz    see `onnxdrp.contexts`
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
        self._ctx = PassContext()
        self._check_folder()

    def start(self, passes: Sequence[Pass], model: "Model", ctx: PassContext) -> None:
        """Note the passes."""
        self._passes = tuple(passes)

    def before(self, index: int, step: Pass, model: "Model", ctx: PassContext) -> None:
        """Keep the model and the tables as they are; weights and entries are shared."""
        self._model = model.clone()
        self._ctx = dataclasses.replace(
            ctx, **{n: dict(t) for n, t in vars(ctx).items() if isinstance(t, dict)}
        )

    def failed(
        self, index: int, step: Pass, model: "Model", ctx: PassContext, error: Exception
    ) -> None:
        """Write the folder, and say how to replay it."""
        command = f"onnxdrp replay {shlex.quote(str(self.folder))}"
        self._write(index, step, error, command)
        error.add_note(f"to replay it: {command}")
        log.warning("to replay the failure of %s: %s", step.name, command)

    def _write(self, index: int, step: Pass, error: Exception, command: str) -> None:
        from onnxdrp.contexts import save_context
        from onnxdrp.recipe import dump_recipe

        self._check_folder()
        self.folder.mkdir(parents=True, exist_ok=True)
        failure = {
            "pass": step.name,
            "error": f"{type(error).__name__}: {error}",
            "replay": command,
            "versions": versions(),
        }
        (self.folder / _MARK).write_text(json.dumps(failure, indent=2) + "\n", encoding="utf-8")
        trace = "".join(traceback.format_exception(error))
        (self.folder / "traceback.txt").write_text(trace, encoding="utf-8")
        if self._model is not None:
            self._model.save(self.folder / "model.onnx", overwrite=True)
        recipe = dump_recipe(self._passes[index:])
        (self.folder / "recipe.toml").write_text(recipe, encoding="utf-8")
        try:
            save_context(self._ctx, self.folder, self.samples)
        except DataError as e:  # the reader may be what failed
            log.warning("%s: %s", self.folder, e)

    def _check_folder(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise OptionError(f"{self.folder}: is a file; name a folder for the reproducer")
        if self.folder.is_dir() and any(self.folder.iterdir()):
            if not (self.folder / _MARK).is_file():
                raise OptionError(
                    f"{self.folder}: holds files that no reproducer wrote; name an empty folder"
                )


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
