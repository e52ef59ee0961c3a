"""Train what pruning or rounding has left, until the model gives what the float model gives.

    min over all kept weights and biases of  distance(outputs) + features * distance(features)

on unlabelled samples, from what its teacher gives: the model before any weight was pruned
(ctx.dense), or rounded (ctx.reference). The distances are those of onnxdrp.differentiable.matching,
the optimizer that of onnxdrp.differentiable.training, what is trained that of
onnxdrp.differentiable.trainable. Masks hold in every step; zeros stay zero. A quantized model is
trained through its QuantizeLinear and DequantizeLinear, with gradients that take the rounding for
the identity; its integers are written back on the same scales.

The values are kept that do best on held-back samples, the start among them: on those the model is
never worse than before. They are those of ctx.held_out; without any, some of the reader's, on which
a start that refit-weights has fitted to them looks better than it is. The same seed, number of
steps and threads give the same bytes on the same machine; a budget of minutes is turned into steps
by the time of the first, and said in `steps`.

Needs torch: pip install onnxdrp[distill].
"""

import dataclasses
import hashlib
import importlib.util
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from onnxdrp.batches import whole_inputs
from onnxdrp.checkpoint import data_identity
from onnxdrp.datareaders import DataReader, first_batch, split
from onnxdrp.datareaders.layouts import layout_of
from onnxdrp.errors import DataError, ModelError, OptionError
from onnxdrp.executing import available_cores
from onnxdrp.masked import check_masks
from onnxdrp.model import Model
from onnxdrp.pipeline import Pass, PassContext, PassResult

if TYPE_CHECKING:
    from onnxdrp.differentiable.keeping import Kept

__all__ = ["Distill"]


@dataclass(frozen=True)
class Distill(Pass):
    """Train all kept weights and biases towards the float model, on unlabelled samples.

    Stats: `steps` of the schedule and what it was `replanned` to (give both again for the same
    result), `taken`, fewer where patience ended; `best`, after how many the result was reached; the
    held-back loss `before` and `after`; `losses` on the way; how many tensors were `trained`;
    `skipped` says why others were not; `seconds`, `device`, `threads`.

    A checkpoint (ctx.checkpoint with ".distill" behind its name) is written as often as the loss is
    taken, and deleted at the end.

    Attributes:
        minutes: budget of time; default 5 if no steps are given.
        steps: budget of steps, instead of minutes.
        replanned: pairs (steps done, of how many from there on): where steps of a run of minutes
            took another time than thought, for one of steps that repeats it.
        learning_rate: the largest; by what share of its deviation a step may move an output.
        batch: samples of a step.
        augment: mirror and move images (onnxdrp.differentiable.augment); not for text.
        classes: whether the output is scores of classes [N, classes], whose shares shall agree;
            default: whether there is one output of such a shape. False for measured values.
        features: weight of intermediate tensors in the loss; 0 matches heads and outputs alone.
        tensors: names of the intermediate tensors; default: what the layers read.
        held_out: share of the samples that is held back, where ctx.held_out has none.
        patience: times that the loss on them may be taken without a new least; there are 20, so by
            default a run goes to its end: from a start that least squares has fitted the loss rises
            until the learning rate has come down.
        device: as torch calls it; default the GPU if there is one.
        memory_limit: bytes of samples held in memory, and half as many of teacher's outputs.
        step_limit: bytes of what a step computes; a batch that takes more runs in parts.
    """

    name: ClassVar[str] = "distill"

    minutes: float | None = None
    steps: int | None = None
    replanned: tuple[tuple[int, int], ...] = ()
    learning_rate: float = 0.003
    batch: int = 64
    augment: bool = True
    classes: bool | None = None
    features: float = 0.1
    tensors: tuple[str, ...] | None = None
    held_out: float = 0.1
    patience: int = 20
    device: str | None = None
    memory_limit: int = 1 << 30
    step_limit: int = 1 << 32

    def __post_init__(self) -> None:
        if self.minutes is not None and self.steps is not None:
            raise OptionError("minutes and steps are both given; give one")
        if self.minutes is not None and not 0 < self.minutes < float("inf"):
            raise OptionError(f"minutes {self.minutes}: give a number above 0")
        if self.replanned and self.steps is None:
            raise OptionError("replanned belongs to steps; give those too")
        if self.steps is not None and self.steps < 1:
            raise OptionError(f"steps {self.steps}: give 1 or more")
        if not 0 < self.learning_rate <= 1:
            raise OptionError(
                f"learning_rate {self.learning_rate} is outside (0, 1]; 0.003 is usual"
            )
        if self.batch < 1:
            raise OptionError(f"batch {self.batch}: give 1 or more")
        if not 0 <= self.features < float("inf"):
            raise OptionError(f"features {self.features}: give 0 or more")
        if not 0 < self.held_out < 1:
            raise OptionError(f"held_out {self.held_out} must lie between 0 and 1")
        if self.patience < 1:
            raise OptionError(f"patience {self.patience}: give 1 or more")
        for limit in ("memory_limit", "step_limit"):
            if getattr(self, limit) < 1:
                raise OptionError(f"{limit} {getattr(self, limit)}: give a number of bytes above 0")

    def requires(self, model: Model, ctx: PassContext) -> None:
        """There are data, a teacher and torch; weights are floats, or stored as integers."""
        if ctx.reader is None:
            raise DataError("distill needs data; give some hundred images or arrays (--calib)")
        if ctx.dense is None and ctx.reference is None:
            raise ModelError("distill has no teacher; prune or quantize the model first")
        quantized = any(True for _ in model.nodes("DequantizeLinear"))
        if ctx.quantization and not quantized:
            raise ModelError(
                "the weights are rounded but still floats; run distill before quantize-weights or "
                "after insert-qdq"
            )
        if importlib.util.find_spec("torch") is None:
            raise OptionError("distill needs torch; pip install onnxdrp[distill]")

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises ModelError for an operator that cannot be differentiated; names its node."""
        import torch

        from onnxdrp.differentiable import Network
        from onnxdrp.differentiable.matching import matched
        from onnxdrp.differentiable.samples import Samples
        from onnxdrp.differentiable.trainable import trainables
        from onnxdrp.differentiable.training import Settings, deterministic, train

        teacher = ctx.dense or ctx.reference
        assert ctx.reader is not None
        assert teacher is not None  # `requires` has seen to both
        started = time.perf_counter()
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        threads = ctx.workers or available_cores()
        weights, skipped = trainables(model, ctx.masks)
        stats: dict[str, Any] = {"trained": len(weights), "skipped": skipped}
        if not weights:
            return PassResult(modified=False, stats=stats)
        match = matched(model, teacher, self.tensors, self.classes)
        _check_device(device)
        networks = Network(model, device), Network(teacher, device)
        seen, held = ctx.reader, ctx.held_out
        if held is None:
            seen, held = split(ctx.reader, self.held_out, ctx.seed)
        settings = Settings(
            steps=self.steps,
            replanned=dict(self.replanned),
            seconds=60 * (5 if self.minutes is None else self.minutes),
            rate=self.learning_rate,
            batch=self.batch,
            features=self.features,
            patience=self.patience,
            images=_images(model, ctx.reader) if self.augment else {},
            seed=ctx.seed,
            memory_limit=self.memory_limit,
            step_limit=self.step_limit,
        )
        kept = self._kept(model, teacher, ctx, threads)
        with deterministic(threads, device):
            limit = self.memory_limit
            samples = Samples(seen, model, limit), Samples(held, model, limit)
            outcome = train(*networks, weights, match, samples, settings, kept, ctx.progress)
        modified = False
        if outcome.values is not None:
            for weight in weights:
                new = weight.stored(outcome.values[weight.name])
                if not np.array_equal(new, model.weight(weight.name)):
                    model.set_weight(weight.name, new)
                    modified = True
        if kept is not None:
            kept.remove()
        stats = {
            "steps": outcome.steps,
            "replanned": [list(pair) for pair in outcome.replanned.items()],
            "taken": outcome.taken,
            "best": outcome.best,
            "before": outcome.before,
            "after": outcome.after,
            "losses": {str(step): loss for step, loss in outcome.losses.items()},
            **stats,
            "matched": len(match.names),
            "seconds": time.perf_counter() - started,
            "device": device,
            "threads": threads,
        }
        return PassResult(modified=modified, stats=stats)

    def ensures(self, model: Model, ctx: PassContext) -> None:
        """What the masks prune is zero."""
        check_masks(model, ctx.masks)

    def as_run(self, stats: dict[str, Any]) -> Pass:
        """With the steps that its minutes were good for."""
        if "steps" not in stats:
            return self
        replanned = tuple((at, steps) for at, steps in stats["replanned"])
        return dataclasses.replace(self, minutes=None, steps=stats["steps"], replanned=replanned)

    def _kept(self, model: Model, teacher: Model, ctx: PassContext, threads: int) -> "Kept | None":
        """The checkpoint, for these models, these options and this data."""
        from onnxdrp.differentiable.keeping import Kept

        if ctx.checkpoint is None:
            return None
        assert ctx.reader is not None
        prints = model.fingerprint(), teacher.fingerprint()
        key = repr((prints, self.options(), ctx.seed, threads)) + data_identity(ctx.reader)
        path = ctx.checkpoint.with_name(f"{ctx.checkpoint.name}.distill")
        if not path.parent.is_dir():
            raise OptionError(f"{path}: there is no folder {path.parent}; create it")
        return Kept(path, hashlib.blake2b(key.encode(), digest_size=16).hexdigest())


def _check_device(device: str) -> None:
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as e:  # the second where torch is built without it
        why = str(e).strip().splitlines()[0]
        raise OptionError(f"device {device!r} cannot be used: {why}") from e


def _images(model: Model, reader: DataReader) -> dict[str, str]:
    """{input: layout} of those inputs that are images."""
    batch = first_batch(reader) or {}
    whole = whole_inputs([model], batch)
    shapes = {info.name: info.shape for info in model.inputs}
    found = {}
    for name, array in batch.items():
        layout = reader.layout if reader.layout != "any" else layout_of(shapes.get(name))
        layout = layout or layout_of(array.shape)
        if array.ndim == 4 and name not in whole and layout is not None:
            found[name] = str(layout)
    return found
