"""Callbacks of `fit`: pruning by the schedule, what TensorBoard shows of it, early stopping.

A step is a batch. It is counted when it begins, and pruned then if the schedule says so. With
`steps_per_execution` n, Keras tells of every n-th batch: the others are counted when their
execution ends, and what should have been pruned at them is pruned there, up to n - 1 steps late.
"""

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import keras

from onnxdrp.errors import OptionError
from onnxdrp.keras.pruner import wrappers
from onnxdrp.keras.wrapper import PruneLowMagnitude, array_of

__all__ = ["EarlyStopping", "PruningSummaries", "UpdatePruningStep"]


class UpdatePruningStep(keras.callbacks.Callback):
    """Prunes while `fit` runs; a model for pruning that is trained without it warns.

    In a loop of one's own:

        update = UpdatePruningStep()
        update.set_model(model_for_pruning)
        update.on_train_begin()
        for epoch in ...:
            for batch in ...:
                update.on_train_batch_begin(batch=-1)
                ...
            update.on_epoch_end(-1)
        update.on_train_end()
    """

    def __init__(self) -> None:
        super().__init__()
        self._wrappers: list[PruneLowMagnitude] = []
        self._begun = self._ended = -1

    def on_train_begin(self, logs: Any = None) -> None:
        """Find the layers."""
        self._wrappers = list(wrappers(self.model).values())
        if not self._wrappers:
            raise OptionError(
                "the model has no layer to prune: train the one that Pruner.get_pruning_model() "
                "gives"
            )

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Batches are counted from 0 again."""
        self._begun = self._ended = -1

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """A step begins; with -1 the next one."""
        self._advance(max(batch - self._begun, 1))
        self._begun = batch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Steps have ended, of which only the first was told of."""
        batches = (self.params or {}).get("steps")
        self._ended = batch if batches is None else min(batch, batches - 1)
        if self._ended > self._begun:
            self._advance(self._ended - self._begun)
            self._begun = self._ended

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Write what is pruned as 0, and the step."""
        missing = self._begun - self._ended
        if self._ended >= 0 and missing > 0:  # data of unknown length ended where a batch began
            for wrapper in self._wrappers:
                wrapper.advance(-missing)
            self._begun = self._ended
        self._synced()
        for wrapper in self._wrappers:
            wrapper.settle()

    def on_train_end(self, logs: Any = None) -> None:
        """Write what is pruned as 0, and the step."""
        self._synced()
        for wrapper in self._wrappers:
            wrapper.stop()

    def _advance(self, steps: int) -> None:
        due = [(wrapper, wrapper.rate_due(steps)) for wrapper in self._wrappers]
        if any(rate is not None for _, rate in due):
            self._synced()
        for wrapper, rate in due:
            wrapper.advance(steps)
            if rate is not None:
                wrapper.prune(rate)

    def _synced(self) -> None:
        """With JAX, the state of a training is elsewhere until somebody asks for the model."""
        _ = self.model


class PruningSummaries(keras.callbacks.Callback):
    """Writes sparsity and threshold of each pruned layer for TensorBoard, by training step.

    They are written at the start of each epoch and at the end of the training, into
    LOG_DIR/metrics; keras.callbacks.TensorBoard may write into the same LOG_DIR.

    Args:
        log_dir: what `tensorboard --logdir` is given.
    """

    def __init__(self, log_dir: str | Path = "logs") -> None:
        super().__init__()
        self._folder = Path(log_dir) / "metrics"
        self._writer: Any = None
        if importlib.util.find_spec("tensorboard") is None:
            warnings.warn(
                "tensorboard is not installed: no sparsities are written; "
                "pip install onnxdrp[keras]",
                stacklevel=2,
            )

    def on_train_begin(self, logs: Any = None) -> None:
        """Open the file."""
        if importlib.util.find_spec("tensorboard") is not None:
            from tensorboard.summary import Writer

            self._writer = Writer(str(self._folder))

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Write the sparsities that the epoch begins with."""
        self._write()

    def on_train_end(self, logs: Any = None) -> None:
        """Write the last ones."""
        self._write()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write(self) -> None:
        if self._writer is None:
            return
        for wrapper in wrappers(self.model).values():
            threshold = float(array_of(wrapper.threshold))
            self._writer.add_scalar(f"{wrapper.name}/sparsity", wrapper.sparsity, wrapper.step)
            self._writer.add_scalar(f"{wrapper.name}/threshold", threshold, wrapper.step)
        self._writer.flush()


class EarlyStopping(keras.callbacks.EarlyStopping):
    """That of Keras, which looks at nothing before the final rate is reached.

    What it monitors falls while the rate rises, and the best weights of a training that is not
    pruned yet are of no use (manual of DRP-AI Extension Pack, chapter 6).
    """

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Look at the epoch, if all of it could count."""
        if all(wrapper.finished for wrapper in wrappers(self.model).values()):
            super().on_epoch_end(epoch, logs)
