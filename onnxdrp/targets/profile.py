"""What a profile can say, checked when it is made, and what a model lacks of it."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Literal, Self

import onnx

from onnxdrp.errors import OptionError
from onnxdrp.options import near

if TYPE_CHECKING:
    from onnxdrp.model import Model

__all__ = ["Operators", "Target", "least_ir"]

_PATTERN = "block"  # the literal reading of channel-block pruning


@dataclass(frozen=True)
class Operators:
    """Which operators a target quantizes, and what becomes of their inputs and outputs.

    Attributes:
        weighted: int8 weights and int32 bias; the output has a range of its own.
        own_range: no weights; each input and each output has its own parameters.
        same_range: outputs keep the parameters of the (first) input; quantized where that is.
        always_quantized: of `same_range`, those that are quantized even between float operators.
        float_output: their output stays float where nothing quantized reads it.
        shared_inputs: all inputs take the same parameters.
        shared_inputs_and_output: all inputs and the output take the same parameters.
        fixed_range: {operator: [low, high]} of outputs whose range is not measured.
        wide_fixed_range: the same for outputs of the wide type, where it is another.
        fused_residual: where such an operator alone reads what a weighted one gives, nothing is
            rounded between them: they are one layer, and the other input is quantized.
        whole_weights: of `weighted`, those whose weights have one scale even where the others have
            one for each output channel.
        keep_float: stay float, whatever the other lists say: what a profile built on another one
            takes out.
        matmul_add_is_fc: MatMul followed by Add of a constant is one layer, and that its bias.
    """

    weighted: tuple[str, ...] = ()
    own_range: tuple[str, ...] = ()
    same_range: tuple[str, ...] = ()
    always_quantized: tuple[str, ...] = ()
    float_output: tuple[str, ...] = ()
    shared_inputs: tuple[str, ...] = ()
    shared_inputs_and_output: tuple[str, ...] = ()
    fixed_range: dict[str, tuple[float, float]] = field(default_factory=dict)
    wide_fixed_range: dict[str, tuple[float, float]] = field(default_factory=dict)
    fused_residual: tuple[str, ...] = ()
    whole_weights: tuple[str, ...] = ()
    keep_float: tuple[str, ...] = ()
    matmul_add_is_fc: bool = False

    def __post_init__(self) -> None:
        self._within(self.always_quantized, self.same_range, "always_quantized", "same_range")
        self._within(self.float_output, self.weighted, "float_output", "weighted")
        shared = (*self.shared_inputs, *self.shared_inputs_and_output)
        self._within(shared, self.own_range, "shared_inputs", "own_range")
        self._within(self.fixed_range, self.own_range, "fixed_range", "own_range")
        fixed = tuple(self.fixed_range)
        self._within(self.wide_fixed_range, fixed, "wide_fixed_range", "fixed_range")
        self._within(self.fused_residual, self.own_range, "fused_residual", "own_range")
        self._within(self.whole_weights, self.weighted, "whole_weights", "weighted")
        if both := sorted({*self.fused_residual} & {*shared}):
            raise OptionError(
                f"fused_residual and shared_inputs both have {both[0]!r}: what is not rounded "
                "shares nothing; take it out of one"
            )
        for op in (*self.weighted, *self.own_range, *self.same_range, *self.keep_float):
            if op not in _operators():
                raise OptionError(f"{op!r} is no ONNX operator{near(op, _operators())}")
        for op, (low, high) in (*self.fixed_range.items(), *self.wide_fixed_range.items()):
            if not low < high:
                raise OptionError(f"fixed_range.{op}: [{low}, {high}] is empty; give [low, high]")

    @staticmethod
    def _within(ops: Iterable[str], table: tuple[str, ...], name: str, where: str) -> None:
        for op in ops:
            if op not in table:
                raise OptionError(f"{name} has {op!r}, which {where} has not; add it there")


@dataclass(frozen=True)
class Target:
    """A hardware profile.

    Attributes:
        name: its name: that of the file.
        description: for whom it is, in one line.
        patterns: the sparsity patterns that it computes faster, the one taken when none is named
            first; empty if none is known to.
        activation_dtype: integer type of activations.
        wide_dtype: integer type of activations that 8 bits are too few for; None: it has none.
        activation_symmetric: zero point 0 (of unsigned types, the middle), range +-absmax.
        per_channel: weights have a scale for each output channel.
        bias_dtype: "int32", of scale s_in * s_w; or "float32": biases are not quantized.
        reduce_range: "on": weights use -64..64, so that two products of them and uint8 fit an
            int16; "auto": on if onnxruntime saturates there on the machine that calibrates.
        opset_min: the oldest opset it takes.
        opset_max: the newest opset it takes; None: any.
        ir_version_max: the newest version of ONNX's file format (IR) it reads; None: any.
        static_shapes: no dynamic dimension in the inputs.
        batch: the only batch size it takes; None: any.
        channel_multiple: that numbers of channels are a multiple of, where channels are removed.
        minimum_sparsity: below this, `sparsity_advice` is given.
        sparsity_advice: what the maker says of sparsity, in words.
        notes: what the user should know of the profile, such as which rules are not published.
        operators: what is quantized, and how.
    """

    name: str
    description: str
    activation_dtype: Literal["int8", "uint8"]
    activation_symmetric: bool
    per_channel: bool
    operators: Operators
    patterns: tuple[str, ...] = ()
    wide_dtype: Literal["int16", "uint16"] | None = None
    bias_dtype: Literal["int32", "float32"] = "int32"
    reduce_range: Literal["auto", "on", "off"] = "off"
    opset_min: int = 10
    opset_max: int | None = None
    ir_version_max: int | None = None
    static_shapes: bool = False
    batch: int | None = None
    channel_multiple: int = 8
    minimum_sparsity: float = 0.0
    sparsity_advice: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        from onnxdrp.patterns import parse_pattern

        for pattern in self.patterns:
            parse_pattern(pattern)
        if self.channel_multiple < 1:
            raise OptionError(f"channel_multiple {self.channel_multiple}: give 1 or more")
        if self.opset_min < 10:
            raise OptionError(f"opset_min {self.opset_min}: QuantizeLinear exists from opset 10 on")
        if self.opset_max is not None and self.opset_max < self.opset_min:
            raise OptionError(
                f"opset_max {self.opset_max} is below opset_min {self.opset_min}; swap them"
            )
        if self.ir_version_max is not None and self.ir_version_max < least_ir(self.opset_min):
            raise OptionError(
                f"ir_version_max {self.ir_version_max}: opset_min {self.opset_min} came with IR "
                f"version {least_ir(self.opset_min)}; raise the one or lower the other"
            )
        if not 0 <= self.minimum_sparsity < 1:
            raise OptionError(f"minimum_sparsity {self.minimum_sparsity} is outside [0, 1)")

    @property
    def pattern(self) -> str:
        """The sparsity pattern taken when none is named."""
        return self.patterns[0] if self.patterns else _PATTERN

    @property
    def reduces_range(self) -> bool:
        """Whether weights use -64..64; "auto" asks onnxruntime, once a process."""
        if self.reduce_range == "auto":
            from onnxdrp.saturation import products_saturate

            return products_saturate()
        return self.reduce_range == "on"

    def with_zero_points(self, on: bool = True) -> Self:
        """The same target with activations that have zero points; `on=False`: that have none."""
        return dataclasses.replace(self, activation_symmetric=not on)

    def unmet(self, model: "Model", *, converted: bool = False) -> list[str]:
        """What this target wants of a model and `model` lacks, in words; empty if nothing.

        Args:
            model: the model.
            converted: leave out opset and IR version: convert-opset has its turn yet.
        """
        versions = [] if converted else [*self._opset(model), *self._ir(model)]
        return [*versions, *self._shapes(model)]

    def advice(self, sparsity: float) -> str:
        """What to tell the user about this sparsity; "" if nothing."""
        sparsity = round(sparsity, 3)  # rates that were allocated come near what was asked for
        if sparsity >= self.minimum_sparsity or not self.sparsity_advice:
            return ""
        return f"sparsity {sparsity:.3g}: {self.sparsity_advice}"

    def _opset(self, model: "Model") -> list[str]:
        if model.opset < self.opset_min:
            how = f"{self.name} takes {self.opset_min} and later; convert-opset raises it"
            return [f"opset {model.opset}: {how}"]
        if self.opset_max is not None and model.opset > self.opset_max:
            span = f"{self.opset_min} to {self.opset_max}"
            return [f"opset {model.opset}: {self.name} takes {span}; export the model with that"]
        return []

    def _ir(self, model: "Model") -> list[str]:
        newest, least = self.ir_version_max, least_ir(model.opset)
        if newest is None or model.ir_version <= newest:
            return []
        takes = f"IR version {model.ir_version}: {self.name} reads {newest} and earlier"
        if least > newest:
            return [f"{takes}, but opset {model.opset} came with {least}; export it with an older"]
        return [f"{takes}; convert-opset lowers it"]

    def _shapes(self, model: "Model") -> list[str]:
        wishes = []
        for info in model.inputs:
            shape = info.shape
            if self.static_shapes and (shape is None or any(type(d) is not int for d in shape)):
                wishes.append(
                    f"input {info}: {self.name} takes static shapes; freeze it with "
                    f"--input-shape {info.name}:{_frozen(shape, self.batch or 1)}"
                )
            elif self.batch is not None and shape and shape[0] != self.batch:
                wishes.append(f"input {info}: {self.name} takes batch {self.batch}")
        return wishes


def _frozen(shape: tuple[int | str | None, ...] | None, batch: int) -> str:
    if shape is None:
        return "..."
    first = [str(batch if type(d) is not int else d) for d in shape[:1]]
    return ",".join([*first, *(str(d) if type(d) is int else "?" for d in shape[1:])])


@cache
def least_ir(opset: int) -> int:
    """The IR version with which an opset came; 0 for one that this onnx does not know."""
    try:
        return int(onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)]))
    except ValueError:
        return 0


@cache
def _operators() -> set[str]:
    return {s.name for s in onnx.defs.get_all_schemas() if s.domain == ""}
