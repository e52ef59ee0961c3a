"""What profiles ask for, in words and as JSON."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxdrp.targets.files import list_targets, load_target
from onnxdrp.targets.profile import Target

__all__ = ["Description", "describe"]


@dataclass(frozen=True)
class Description:
    """One profile in words.

    Attributes:
        name: of the profile.
        description: for whom it is.
        activations: type and zero points.
        weights: granularity, range and the type of biases.
        model: opset, IR version and shapes of the models it takes.
        patterns: sparsity patterns that it computes faster, the default first.
        sharing: what has equal or fixed parameters; a line each.
        quantized: the operators that it quantizes.
        notes: what the user should know, such as which rules are not published.
    """

    name: str
    description: str
    activations: str
    weights: str
    model: str
    patterns: str
    sharing: tuple[str, ...]
    quantized: tuple[str, ...]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, target: Target) -> "Description":
        """The words for a target."""
        return cls(
            name=target.name,
            description=target.description,
            activations=_activations(target),
            weights=_weights(target),
            model=_model(target),
            patterns=", ".join(target.patterns) or f"none known ({target.pattern} is the default)",
            sharing=tuple(_sharing(target)),
            quantized=tuple(sorted(_quantized(target))),
            notes=target.notes,
        )

    def as_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}

    def __str__(self) -> str:
        rows = {
            "activations": [self.activations],
            "weights": [self.weights],
            "model": [self.model],
            "sparsity": [self.patterns],
            "sharing": self.sharing,
            "quantized": [", ".join(self.quantized)],
            "note": self.notes,
        }
        lines = [f"{self.name}: {self.description}"]
        lines += [f"  {name:<12} {text}" for name, texts in rows.items() for text in texts]
        return "\n".join(lines)


def describe(*names: str | Path) -> list[Description]:
    """These profiles, by name or file; all that come along if none is named.

    Raises:
        OptionError: as `load_target`.
    """
    return [Description.of(load_target(name)) for name in names or list_targets()]


def _quantized(target: Target) -> set[str]:
    ops = target.operators
    return {*ops.weighted, *ops.own_range, *ops.same_range} - {*ops.keep_float}


def _activations(target: Target) -> str:
    middle = 128 if target.activation_dtype == "uint8" else 0
    zero = f"zero point {middle}" if target.activation_symmetric else "any zero point"
    wide = f"; {target.wide_dtype} where asked for" if target.wide_dtype else ""
    return f"{target.activation_dtype}, {zero}{wide}"


def _weights(target: Target) -> str:
    scales = "a scale for each output channel" if target.per_channel else "one scale a tensor"
    if target.per_channel and target.operators.whole_weights:
        scales += f" (but for {_list(target.operators.whole_weights)})"
    limits = {"on": "-64..64", "off": "-127..127", "auto": "-64..64 where products saturate"}
    return f"int8 {limits[target.reduce_range]}, {scales}; {target.bias_dtype} biases"


def _model(target: Target) -> str:
    newest = f" to {target.opset_max}" if target.opset_max is not None else " and later"
    parts = [f"opset {target.opset_min}{newest}"]
    if target.ir_version_max is not None:
        parts.append(f"IR version {target.ir_version_max} and earlier")
    if target.static_shapes:
        parts.append("static shapes")
    if target.batch is not None:
        parts.append(f"batch {target.batch}")
    return ", ".join(parts)


def _sharing(target: Target) -> list[str]:
    ops = target.operators
    lines = []
    if ops.shared_inputs:
        lines.append(f"all inputs of {_list(ops.shared_inputs)}")
    if ops.shared_inputs_and_output:
        lines.append(f"all inputs and the output of {_list(ops.shared_inputs_and_output)}")
    for op, (low, high) in ops.fixed_range.items():
        lines.append(f"{op} gives [{low:g}, {high:g}], whatever was measured")
    return lines


def _list(ops: Iterable[str]) -> str:
    return ", ".join(ops)
