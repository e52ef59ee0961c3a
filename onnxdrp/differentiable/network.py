"""A model as a function of torch tensors, through which gradients flow to its stored tensors.

    values = Network(model).run(feeds, outputs, given)

Node by node in the order of the graph, each operator a function in the tables of this package. A
tensor in `given` is not computed but taken: weights that are trained stand there, those of a
quantized model by the name of what their DequantizeLinear gives.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs
import torch

from onnxdrp.dataflow import ordered
from onnxdrp.datareaders.layouts import layout_of
from onnxdrp.differentiable.call import Call
from onnxdrp.differentiable.convolution import CONVOLUTION
from onnxdrp.differentiable.elementwise import ELEMENTWISE
from onnxdrp.differentiable.pooling import POOLING
from onnxdrp.differentiable.quantizing import QUANTIZING
from onnxdrp.differentiable.reducing import REDUCING
from onnxdrp.differentiable.resizing import RESIZING
from onnxdrp.differentiable.shaping import SHAPING
from onnxdrp.errors import DataError, ModelError
from onnxdrp.model import Model

__all__ = ["OPERATORS", "Network", "to_torch"]

Array = npt.NDArray[Any]

OPERATORS: dict[str, Callable[..., Any]] = {
    **CONVOLUTION,
    **ELEMENTWISE,
    **POOLING,
    **QUANTIZING,
    **REDUCING,
    **RESIZING,
    **SHAPING,
}
"""{operator of the standard set: its function of a Call and torch tensors, absent ones None}."""


@dataclass(frozen=True, eq=False)
class _Step:
    """A node, ready to run."""

    call: Call
    run: Callable[..., Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    done: tuple[str, ...]


class Network:
    """A model to be run, and differentiated, by torch.

    Args:
        model: its stored tensors are copied as they are first used; later changes are not seen.
        device: where to compute. Integers and single numbers stay on the host.

    Raises:
        ModelError: a node has an operator that is not in OPERATORS.
    """

    def __init__(self, model: Model, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self._model = model
        self._nodes = ordered(model.graph.nodes)
        self._opset = model.opset
        self._stored = {n: t for n, t in model.tensors().items() if isinstance(t, gs.Constant)}
        self._known = {info.name for info in model.inputs}
        self._known |= {t.name for node in self._nodes for t in node.outputs}
        self._constants: dict[str, torch.Tensor] = {}
        self._plans: dict[tuple[tuple[str, ...], frozenset[str]], list[_Step]] = {}
        for node in self._nodes:
            if node.op not in OPERATORS or node.domain not in (None, "", "ai.onnx"):
                domain = f"{node.domain}." if node.domain else ""
                raise ModelError(
                    f"node {node.name!r}: the operator {domain}{node.op} cannot be differentiated; "
                    "cut the model before it, or repair without distill"
                )

    def has(self, tensor: str) -> bool:
        """Whether a tensor of this name is fed or computed."""
        return tensor in self._known

    def bytes(self, feeds: Mapping[str, torch.Tensor]) -> int:
        """What all tensors take that are computed for some inputs."""
        names = [t.name for node in self._nodes for t in node.outputs if t.name]
        with torch.no_grad():
            return sum(v.numel() * v.element_size() for v in self.run(feeds, names))

    def run(
        self,
        feeds: Mapping[str, torch.Tensor],
        outputs: Sequence[str],
        given: Mapping[str, torch.Tensor] | None = None,
    ) -> list[torch.Tensor]:
        """The values of tensors.

        Args:
            feeds: the inputs of the model, as it declares them.
            outputs: the names of tensors of the model.
            given: values of tensors that are not to be computed, stored ones too.

        Returns:
            One tensor for each of `outputs`. What QuantizeLinear makes is floats.

        Raises:
            DataError: an input or a tensor that is asked for is not there.
            ModelError: an operator cannot take what it is given.
        """
        given = given or {}
        key = (tuple(outputs), frozenset(given))
        steps = self._plans.get(key)
        if steps is None:
            steps = self._plans.setdefault(key, self._plan(outputs, given))
        values: dict[str, torch.Tensor] = {**feeds, **given}
        for step in steps:
            inputs = [self._value(name, values) for name in step.inputs]
            try:
                found = step.run(step.call, *inputs)
            except (RuntimeError, TypeError, IndexError, ValueError) as e:
                raise step.call.refusal(str(e).strip().splitlines()[0]) from e
            found = found if isinstance(found, tuple) else (found,)
            values.update(zip(step.outputs, found, strict=False))
            for name in step.done:
                values.pop(name, None)
        found = [self._value(name, values) for name in outputs]
        missing = next((n for n, v in zip(outputs, found, strict=True) if v is None), None)
        if missing is not None:
            raise DataError(f"tensor {missing!r} is neither fed nor computed; check its name")
        return found

    def _value(self, name: str, values: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        if not name:
            return None
        value = values.get(name)
        if value is None:
            value = self._constants.get(name)
        if value is None and name in self._stored:
            stored = self._model.constant(self._stored[name])
            if stored is None:
                raise ModelError(f"tensor {name!r} is stored as a sparse tensor; export it dense")
            value = self._constants[name] = to_torch(stored, name, self.device)
        if value is None:
            raise DataError(f"tensor {name!r} is neither fed nor computed; feed every input")
        return value

    def _plan(self, outputs: Sequence[str], given: Iterable[str]) -> list[_Step]:
        """The nodes that the outputs need, and after which of them a tensor is read no more."""
        needed, chosen = set(outputs), []
        taken = set(given)
        for node in reversed(self._nodes):
            made = {t.name for t in node.outputs}
            if (made & needed) - taken:
                chosen.append(node)
                needed |= {t.name for t in node.inputs} - taken
        steps: list[_Step] = []
        kept = set(outputs) | taken
        for node in chosen:  # from the last
            names = tuple(t.name for t in node.inputs)
            made_names = tuple(t.name for t in node.outputs)
            done = {name for name in (*names, *made_names) if name and name not in kept}
            kept |= done
            steps.append(
                _Step(self._call(node), OPERATORS[node.op], names, made_names, tuple(sorted(done)))
            )
        return steps[::-1]

    def _call(self, node: gs.Node) -> Call:
        attrs = {name: self._attribute(value) for name, value in node.attrs.items()}
        named = [i for i, t in enumerate(node.outputs) if t.name]
        return Call(node.name, node.op, self._opset, 1 + max(named, default=0), attrs)

    def _attribute(self, value: Any) -> Any:
        if isinstance(value, gs.Constant):
            value = self._model.constant(value)
        if isinstance(value, np.ndarray):
            return to_torch(value, "an attribute", torch.device("cpu"))
        return value


def to_torch(array: Array, name: str, device: torch.device) -> torch.Tensor:
    """A copy of an array; integers and single numbers stay on the host.

    Images in NCHW, and kernels, lie channels last in memory: measured on a CPU, a step of training
    takes a fifth less time for EfficientNet-Lite0.

    Raises:
        ModelError: torch has no such type.
    """
    try:
        tensor = torch.from_numpy(np.array(array))
    except TypeError as e:
        raise ModelError(f"tensor {name!r}: torch does not have the type {array.dtype}") from e
    if not tensor.is_floating_point() or not tensor.ndim:
        return tensor
    if tensor.ndim == 4 and layout_of(array.shape) != "NHWC":
        tensor = tensor.contiguous(memory_format=torch.channels_last)
    return tensor.to(device)
