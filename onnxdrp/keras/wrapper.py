"""A layer with a mask: `kernel * mask` is what computes, so no gradient goes to pruned places.

The kernel stays the very Variable of the layer: the model that the layer was taken from has it,
too. Where it is pruned it is written 0 whenever a mask changes, at the end of each epoch and of the
training; in between, an optimizer's momentum may move it there, which nothing sees.

Mask, threshold and step are weights that are not trained. Files have them, functions that backends
compile take them as state, and settings are in the layer's config: a model that was saved in the
middle of gradual pruning goes on when it is loaded. Their order is that of TensorFlow Model
Optimization's wrapper (mask, threshold, pruning_step, behind what is trained), which DRP-AI
Extension Pack's manual builds on (section 3.7).
"""

import warnings
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from onnxdrp.errors import ModelError, OptionError
from onnxdrp.geometry import WeightGeometry
from onnxdrp.patterns import parse_pattern, without_rate
from onnxdrp.training.asked import pattern_at
from onnxdrp.training.held import next_mask
from onnxdrp.training.schedule import Schedule

__all__ = ["LAYERS", "PruneLowMagnitude", "array_of", "geometry_of", "inner", "kernel_of"]

LAYERS = (keras.layers.Conv2D, keras.layers.Dense, keras.layers.DepthwiseConv2D)
"""What the manual of DRP-AI Extension Pack prunes (section 4.3.1)."""


@keras.saving.register_keras_serializable(package="onnxdrp")
class PruneLowMagnitude(keras.layers.Wrapper):
    """A Conv2D, Dense or DepthwiseConv2D whose kernel has a mask; `Pruner` makes it.

    Args:
        layer: is used as it is; its weights are the wrapper's.
        initial_pr: rate at `begin_step`, in [0, 1).
        final_pr: rate at the end, in [0, 1).
        begin_step: first step that prunes.
        end_step: last step that prunes; -1: one-shot, which Pruner does when it makes this.
        frequency: steps from one pruning to the next.
        pattern: as `onnxdrp prune --pattern`.
        block: input channels of a slab.
        kwargs: of keras.layers.Layer; the name is prune_low_magnitude_NAME unless told.

    Attributes:
        mask: of the kernel's shape and type, 1 where it lives.
        threshold: the largest magnitude of what the last pruning took, 0 if nothing.
        pruning_step: the training step that began last, from 0; -1 before the first. While `fit`
            runs, it is written at prunings, at the end of epochs and when the model is saved.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        initial_pr: float = 0.01,
        final_pr: float = 0.7,
        begin_step: int = 0,
        end_step: int = -1,
        frequency: int = 100,
        pattern: str = "flex-nm",
        block: int = 32,
        **kwargs: Any,
    ) -> None:
        if not isinstance(layer, LAYERS):
            raise OptionError(
                f"{layer.name!r} is a {type(layer).__name__}: Conv2D, Dense and DepthwiseConv2D "
                "can be pruned"
            )
        self.schedule = Schedule(initial_pr, final_pr, begin_step, end_step, frequency)
        self.pattern = pattern_at(parse_pattern(pattern, block), final_pr)
        self._step: int | None = None  # steps begun, as long as a callback counts
        kwargs.setdefault("name", f"prune_low_magnitude_{layer.name}")
        kwargs.setdefault("dtype", layer.dtype_policy)
        super().__init__(layer, **kwargs)
        self.activity_regularizer = layer.activity_regularizer
        self.supports_masking = layer.supports_masking

    def build(self, input_shape: Any = None) -> None:
        """Make the weights: nothing is pruned yet."""
        super().build(input_shape)
        self.input_spec = self.layer.input_spec
        kernel = kernel_of(self.layer)
        if kernel is None:
            raise ModelError(f"{self.layer.name!r}: {NO_KERNEL}")
        self.mask = self.add_weight(
            shape=kernel.shape,
            initializer="ones",
            dtype=kernel.dtype,
            trainable=False,
            name="mask",
        )
        self.threshold = self.add_weight(
            shape=(), initializer="zeros", trainable=False, dtype="float32", name="threshold"
        )
        self.pruning_step = self.add_weight(
            shape=(),
            initializer=keras.initializers.Constant(-1),
            trainable=False,
            dtype="int32",
            name="pruning_step",
        )

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """What the layer computes with its kernel masked; warns if no callback prunes it.

        An error would come too late: with JAX the model has lost its weights to `fit` by then.
        """
        if training and self._step is None:
            warnings.warn(_NO_CALLBACK, stacklevel=2)
        layer, kernel = self.layer, kernel_of(self.layer)
        values = [(v, v.value) for v in layer.variables if v is not kernel]
        with keras.StatelessScope([*values, (kernel, kernel.value * self.mask.value)]):
            return layer.call(inputs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The layer's."""
        return self.layer.compute_output_shape(input_shape)

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        """The layer's mask of time steps."""
        return self.layer.compute_mask(inputs, previous_mask)

    def get_config(self) -> dict[str, Any]:
        """The layer, and the settings of the pruning."""
        schedule = self.schedule
        return {
            **super().get_config(),
            "initial_pr": schedule.initial_pr,
            "final_pr": schedule.final_pr,
            "begin_step": schedule.begin_step,
            "end_step": schedule.end_step,
            "frequency": schedule.frequency,
            "pattern": self.pattern.name,
            "block": self.pattern.block,
        }

    def save_own_variables(self, store: Any) -> None:
        """Writes the step as it is now, in the middle of an epoch, too."""
        self._store_step()
        super().save_own_variables(store)

    def load_own_variables(self, store: Any) -> None:
        """Goes on at the step that is loaded."""
        self._step = None
        super().load_own_variables(store)

    @property
    def pruning_vars(self) -> list[tuple[Any, Any, Any]]:
        """[(kernel, mask, threshold)], as TensorFlow Model Optimization has it."""
        return [(kernel_of(self.layer), self.mask, self.threshold)]

    @property
    def step(self) -> int:
        """How many training steps have begun."""
        return int(array_of(self.pruning_step)) + 1 if self._step is None else self._step

    @property
    def finished(self) -> bool:
        """Whether the final rate is reached; at once in one-shot pruning."""
        return self.schedule.finished(self.step)

    @property
    def keep(self) -> npt.NDArray[np.bool_]:
        """bool, of the kernel's shape: what the mask keeps."""
        kept: npt.NDArray[np.bool_] = array_of(self.mask) != 0
        return kept

    @property
    def sparsity(self) -> float:
        """The share of pruned weights."""
        return 1.0 - float(np.mean(self.keep))

    def rate_due(self, steps: int) -> float | None:
        """The rate to prune at when so many more steps begin; None where none of them prunes."""
        first = self.step
        due = [at for at in range(first, first + steps) if self.schedule.prunes(at)]
        return self.schedule.rate(due[-1]) if due else None

    def advance(self, steps: int) -> None:
        """Count steps that begin, or take back some that did not."""
        self._step = self.step + steps

    def stop(self) -> None:
        """Training has ended: count no longer."""
        self.settle()
        self._step = None

    def settle(self) -> None:
        """Write the step, and 0 wherever the kernel is pruned."""
        self._store_step()
        kernel = kernel_of(self.layer)
        kernel.assign(keras.ops.where(keras.ops.equal(self.mask.value, 0), 0, kernel.value))

    def prune(self, rate: float) -> None:
        """Prune at a rate, within the mask that there is.

        Raises:
            ModelError: the kernel holds NaN or infinity.
        """
        geometry, alive = geometry_of(self.layer, self.pattern.block), self.keep
        weight = array_of(kernel_of(self.layer))
        seen = (weight.reshape(geometry.shape), alive.reshape(geometry.shape))
        try:
            keep = next_mask(*seen, geometry, without_rate(self.pattern), rate)
        except ModelError as error:
            raise ModelError(f"{self.layer.name}: {error}") from error
        keep = keep.reshape(weight.shape)
        self.hold(keep)
        self.threshold.assign(np.max(np.abs(weight[alive & ~keep]), initial=0))

    def hold(self, keep: npt.NDArray[np.bool_]) -> None:
        """Set the mask: bool, of the kernel's shape, True lives."""
        self.mask.assign(keep)
        self.settle()

    def _store_step(self) -> None:
        if self._step is not None:
            self.pruning_step.assign(self._step - 1)


_NO_CALLBACK = (
    "the model is trained without onnxdrp.keras.UpdatePruningStep() among the callbacks of fit: no "
    "schedule goes on, and masks are not written into the weights"
)
NO_KERNEL = "its kernel is made of parts, as by LoRA or quantization; merge or undo that first"


def inner(layer: Any) -> Any:
    """The layer itself, out of its wrapper."""
    return layer.layer if isinstance(layer, PruneLowMagnitude) else layer


def kernel_of(layer: Any) -> Any:
    """The Variable that is trained; None where the kernel is not one."""
    kernel = getattr(layer, "kernel", None)
    floating = isinstance(kernel, keras.Variable) and "float" in kernel.dtype
    return kernel if floating else None


def array_of(variable: Any) -> npt.NDArray[Any]:
    """A variable's value; half precision as float32."""
    values = np.asarray(keras.ops.convert_to_numpy(variable))
    return values.astype(np.float32) if values.dtype.itemsize == 2 else values


def geometry_of(layer: Any, block: int = 32) -> WeightGeometry:
    """How patterns see a kernel: Dense [in, out], Conv2D [kh, kw, Cin/g, Cout] as they are.

    The kernel of a DepthwiseConv2D [kh, kw, C, multiplier] has the shape [kh, kw, C * multiplier,
    1] there, as an ONNX Conv has its outputs.
    """
    shape = tuple(kernel_of(layer).shape)
    if isinstance(layer, keras.layers.Dense):
        return WeightGeometry.gemm(shape, trans_b=False, block=block)
    if isinstance(layer, keras.layers.DepthwiseConv2D) and shape[2] > 1:
        shape = (*shape[:2], shape[2] * shape[3], 1)
        return WeightGeometry(shape, 2, 3, block=block, depthwise=True)
    groups = getattr(layer, "groups", 1)
    if groups > 1 and shape[2] == 1:
        return WeightGeometry(shape, 3, 2, block=block, depthwise=True)
    return WeightGeometry(shape, 3, 2, groups, block)
