"""Make free dimensions of inputs static.

What the graph says of the tensors inside was true for the free dimensions; it is cleared, and
InferShapes, which must follow, finds it anew. A symbol that an input is given a number for has that
number wherever else it stands in inputs and outputs.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import onnx_graphsurgeon as gs

from onnxdrp.errors import OptionError
from onnxdrp.model import Model, TensorInfo
from onnxdrp.pipeline import Pass, PassContext, PassResult

__all__ = ["FreezeShapes"]


@dataclass(frozen=True)
class FreezeShapes(Pass):
    """Give inputs the shapes that they will have.

    Attributes:
        shapes: {name of an input: all its dimensions}.
    """

    name: ClassVar[str] = "freeze-shapes"
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def requires(self, model: Model, ctx: PassContext) -> None:
        """Raise OptionError for an unknown input, another rank, or a dimension that is static."""
        inputs = {info.name: info for info in model.inputs}
        for name, shape in self.shapes.items():
            if name not in inputs:
                near = difflib.get_close_matches(name, inputs, 1) or list(inputs)
                raise OptionError(f"no input is called {name!r}; did you mean {near[0]!r}?")
            _check(inputs[name], tuple(shape))
        _symbols(model, self.shapes)

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Set the inputs, put numbers for symbols, clear what is stale."""
        symbols = _symbols(model, self.shapes)
        before = [_stated(t) for t in (*model.graph.inputs, *model.graph.outputs)]
        for tensor in model.graph.inputs:
            if tensor.name in self.shapes:
                tensor.shape = [int(d) for d in self.shapes[tensor.name]]
            else:
                _substitute(tensor, symbols)
        for tensor in model.graph.outputs:
            _substitute(tensor, symbols)
        modified = before != [_stated(t) for t in (*model.graph.inputs, *model.graph.outputs)]
        if modified:
            _clear(model)
        frozen = {name: list(shape) for name, shape in self.shapes.items()}
        return PassResult(modified=modified, stats={"frozen": frozen})


def _check(info: TensorInfo, shape: tuple[int, ...]) -> None:
    if any(not isinstance(d, int) or d < 1 for d in shape):
        raise OptionError(f"input {info.name!r}: dimensions must be numbers from 1, not {shape}")
    if info.shape is None:
        return
    if len(shape) != len(info.shape):
        raise OptionError(
            f"input {info} has {len(info.shape)} dimensions, {shape} has {len(shape)}"
        )
    for stated, wanted in zip(info.shape, shape, strict=True):
        if isinstance(stated, int) and stated != wanted:
            raise OptionError(
                f"input {info} is static: its dimension of {stated} cannot become {wanted}; "
                "export the model with that size"
            )


def _symbols(model: Model, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """What each symbol becomes. Raises OptionError if two inputs want one to be two things."""
    symbols: dict[str, int] = {}
    for info in model.inputs:
        stated = info.shape or ()
        for symbol, size in zip(stated, shapes.get(info.name, ()), strict=False):
            if isinstance(symbol, str) and symbols.setdefault(symbol, size) != size:
                raise OptionError(
                    f"input {info}: the dimension {symbol!r} cannot be both {symbols[symbol]} "
                    f"and {size}; give all inputs that have it the same number"
                )
    return symbols


def _substitute(tensor: gs.Variable, symbols: dict[str, int]) -> None:
    if tensor.shape is not None:
        tensor.shape = [symbols.get(d, d) if isinstance(d, str) else d for d in tensor.shape]


def _stated(tensor: gs.Variable) -> list[int | str | None] | None:
    return None if tensor.shape is None else list(tensor.shape)


def _clear(model: Model) -> None:
    outputs = {t.name for t in model.graph.outputs}
    for node in model.nodes():
        for tensor in node.outputs:
            if isinstance(tensor, gs.Variable) and tensor.name and tensor.name not in outputs:
                tensor.shape = None
    for tensor in model.graph.outputs:
        if tensor.shape is not None and tensor.inputs:
            tensor.shape = [d if isinstance(d, int) else None for d in tensor.shape]
