"""Targets: what a hardware or runtime wants of a model, as data.

A profile is a TOML file whose keys are the fields of `Target`; its table `[operators]` has those
of `Operators`. `load_target` takes the name of a profile that comes along (`list_targets`), or the
path of a user's own file.
"""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

import onnx

from onnxdrp.errors import OnnxDrpError, OptionError
from onnxdrp.options import convert, near

if TYPE_CHECKING:
    from onnxdrp.model import Model

__all__ = ["Operators", "Target", "list_targets", "load_target"]


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
        matmul_add_is_fc: MatMul followed by Add of a constant is one layer with an int32 bias.
    """

    weighted: tuple[str, ...] = ()
    own_range: tuple[str, ...] = ()
    same_range: tuple[str, ...] = ()
    always_quantized: tuple[str, ...] = ()
    float_output: tuple[str, ...] = ()
    shared_inputs: tuple[str, ...] = ()
    shared_inputs_and_output: tuple[str, ...] = ()
    fixed_range: dict[str, tuple[float, float]] = field(default_factory=dict)
    matmul_add_is_fc: bool = False

    def __post_init__(self) -> None:
        self._within(self.always_quantized, self.same_range, "always_quantized", "same_range")
        self._within(self.float_output, self.weighted, "float_output", "weighted")
        shared = (*self.shared_inputs, *self.shared_inputs_and_output)
        self._within(shared, self.own_range, "shared_inputs", "own_range")
        self._within(self.fixed_range, self.own_range, "fixed_range", "own_range")
        for op in (*self.weighted, *self.own_range, *self.same_range):
            if op not in _operators():
                raise OptionError(f"{op!r} is no ONNX operator{near(op, _operators())}")
        for op, (low, high) in self.fixed_range.items():
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
        pattern: the sparsity pattern taken when none is named.
        activation_dtype: integer type of activations.
        activation_symmetric: zero point 0 (of uint8, 128), range +-absmax.
        per_channel: weights have a scale for each output channel.
        opset_min: the oldest opset it takes.
        opset_max: the newest opset it takes; None: any.
        static_shapes: no dynamic dimension in the inputs.
        batch: the only batch size it takes; None: any.
        minimum_sparsity: below this, `sparsity_advice` is given.
        sparsity_advice: what the maker says of sparsity, in words.
        operators: what is quantized, and how.
    """

    name: str
    description: str
    pattern: str
    activation_dtype: Literal["int8", "uint8"]
    activation_symmetric: bool
    per_channel: bool
    operators: Operators
    opset_min: int = 10
    opset_max: int | None = None
    static_shapes: bool = False
    batch: int | None = None
    minimum_sparsity: float = 0.0
    sparsity_advice: str = ""

    def __post_init__(self) -> None:
        from onnxdrp.patterns import parse_pattern

        parse_pattern(self.pattern)
        if self.opset_min < 10:
            raise OptionError(f"opset_min {self.opset_min}: QuantizeLinear exists from opset 10 on")
        if self.opset_max is not None and self.opset_max < self.opset_min:
            raise OptionError(
                f"opset_max {self.opset_max} is below opset_min {self.opset_min}; swap them"
            )
        if not 0 <= self.minimum_sparsity < 1:
            raise OptionError(f"minimum_sparsity {self.minimum_sparsity} is outside [0, 1)")

    def unmet(self, model: "Model", *, converted: bool = False) -> list[str]:
        """What this target wants of a model and `model` lacks, in words; empty if nothing.

        Args:
            model: the model.
            converted: leave out the opset: convert-opset has its turn yet.
        """
        opset = [] if converted else self._opset(model)
        return [*opset, *self._shapes(model)]

    def advice(self, sparsity: float) -> str:
        """What to tell the user about this sparsity; "" if nothing."""
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


def list_targets() -> list[str]:
    """The names of the profiles that come along."""
    files = resources.files(__name__).iterdir()
    return sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml"))


def load_target(name: str | Path) -> Target:
    """The profile of this name, or in this file (anything that ends in .toml is a file).

    Raises:
        OptionError: no such profile or file, no TOML, an unknown key (with the nearest right one),
            a key missing, or a value of the wrong type.
    """
    text, where, stem = _read(name)
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise OptionError(f"target {where}: not TOML ({e})") from e
    try:
        operators = _build(Operators, _pop_table(table), "[operators] ")
        target: Target = _build(Target, {"name": stem, **table, "operators": operators}, "")
    except OnnxDrpError as e:
        raise OptionError(f"target {where}: {e}") from e
    return target


def _read(name: str | Path) -> tuple[str, str, str]:
    """The text of a profile, what errors call it, and its name."""
    if isinstance(name, Path) or name.endswith(".toml"):
        path = Path(name)
        try:
            return path.read_text(encoding="utf-8"), str(path), path.stem
        except (OSError, UnicodeDecodeError) as e:
            raise OptionError(f"target {path}: cannot be read ({e})") from e
    known = list_targets()
    if name not in known:
        raise OptionError(
            f"no target is called {name!r}{near(name, known)}; there are {', '.join(known)}, "
            "and any .toml file of your own"
        )
    return (resources.files(__name__) / f"{name}.toml").read_text(encoding="utf-8"), name, name


def _pop_table(table: dict[str, Any]) -> dict[str, Any]:
    operators = table.pop("operators", {})
    if not isinstance(operators, dict):
        raise OptionError("operators is a table: [operators]")
    return operators


def _build(cls: type[Any], table: Mapping[str, Any], where: str) -> Any:
    """A dataclass from a TOML table, with every key and type checked."""
    hints = get_type_hints(cls)
    for key in table.keys() - hints.keys():
        raise OptionError(f"{where}has no key {key!r}{near(key, hints)}")
    for f in fields(cls):
        if f.name not in table and f.default is MISSING and f.default_factory is MISSING:
            raise OptionError(f"{where}lacks the key {f.name!r}")
    return cls(**{key: convert(value, hints[key], f"{where}{key}") for key, value in table.items()})


def _frozen(shape: tuple[int | str | None, ...] | None, batch: int) -> str:
    if shape is None:
        return "..."
    first = [str(batch if type(d) is not int else d) for d in shape[:1]]
    return ",".join([*first, *(str(d) if type(d) is int else "?" for d in shape[1:])])


def _operators() -> set[str]:
    return {s.name for s in onnx.defs.get_all_schemas() if s.domain == ""}
