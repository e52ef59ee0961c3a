"""Which layers a functional or sequential model has, in which order, and what each depends on.

Keras knows the graph of such a model: nodes are calls of layers, edges are tensors. It is walked
once, into models that stand in it as layers as well. Names of layers in those are OUTER/INNER.
The order in which layers were made says nothing about any of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import keras

from onnxdrp.errors import ModelError, OptionError
from onnxdrp.keras.wrapper import LAYERS, inner

__all__ = ["Traced", "checked", "is_graph", "trace"]

Shape = tuple[int | None, ...]


@dataclass
class Traced:
    """A layer of the graph.

    Attributes:
        name: with the names of the models that it stands in; wrapped or not, the same.
        layer: a Conv2D, Dense or DepthwiseConv2D, out of its wrapper.
        input_shape: of its first call, with the batch; None where it stands in another layer.
        output_shape: likewise.
        calls: the shape of the output of each call.
        before: names of the layers that its inputs come from, over all calls.
        holder: the layer that it stands in, as TimeDistributed 'td'; "" where none.
    """

    name: str
    layer: Any
    input_shape: Shape | None = None
    output_shape: Shape | None = None
    calls: list[Shape] = field(default_factory=list)
    before: set[str] = field(default_factory=set)
    holder: str = ""


def is_graph(layer: Any) -> bool:
    """Whether it is a functional or sequential model."""
    return isinstance(layer, keras.Sequential | keras.Function)


def checked(model: Any) -> Any:
    """The model, if its graph is known.

    Raises:
        OptionError: it is no Keras model.
        ModelError: it is subclassed, or not built.
    """
    if not isinstance(model, keras.Model):
        raise OptionError(f"a {type(model).__name__} is no keras.Model")
    if not is_graph(model):
        raise ModelError(
            f"{type(model).__name__} is a subclassed model, whose layers Keras does not know the "
            "order of; only functional and sequential models can be pruned"
        )
    if isinstance(model, keras.Sequential) and model._functional is None:
        raise ModelError(
            f"{model.name!r} is not built: begin it with keras.Input(shape), or call "
            "model.build(input_shape)"
        )
    return model


def trace(model: Any) -> list[Traced]:
    """The layers that could be pruned, each once, in the order in which they first run.

    Raises:
        OptionError: it is no Keras model.
        ModelError: its graph is not known, or it has no such layer.
    """
    walk = _Walk()
    walk.through(checked(model), [frozenset()] * len(model.inputs), "")
    if not walk.traced:
        raise ModelError("the model has neither Conv2D nor Dense")
    return list(walk.traced.values())


class _Walk:
    """Follows which layers tensors depend on."""

    def __init__(self) -> None:
        self.traced: dict[int, Traced] = {}

    def through(
        self, model: Any, sources: Sequence[frozenset[str]], prefix: str
    ) -> list[frozenset[str]]:
        """What each output of a model depends on, from what its inputs do."""
        graph = checked(model)
        graph = graph._functional if isinstance(graph, keras.Sequential) else graph
        known = {id(t): source for t, source in zip(graph.inputs, sources, strict=True)}
        for depth in sorted(graph._nodes_by_depth, reverse=True):
            for node in graph._nodes_by_depth[depth]:
                if not node.is_input:
                    reads = [known[id(t)] for t in node.input_tensors]
                    made = self._at(node, reads, prefix)
                    known |= {id(t): made[i] for i, t in enumerate(node.outputs)}
        return [known[id(t)] for t in graph.outputs]

    def _at(
        self, node: Any, reads: Sequence[frozenset[str]], prefix: str
    ) -> Sequence[frozenset[str]]:
        """What the outputs of a node depend on."""
        layer = inner(node.operation)
        before = frozenset().union(*reads)
        if is_graph(layer) and len(layer.inputs) == len(reads):
            return self.through(layer, reads, f"{prefix}{layer.name}/")
        if isinstance(layer, LAYERS):
            seen = self._seen(layer, prefix + layer.name)
            shape = tuple(node.outputs[0].shape)
            seen.input_shape = seen.input_shape or tuple(node.input_tensors[0].shape)
            seen.output_shape = seen.output_shape or shape
            seen.calls.append(shape)
            seen.before |= before
            return [before | {seen.name}] * len(node.outputs)
        return [before | self._held(layer, before, prefix)] * len(node.outputs)

    def _held(self, holder: Any, before: frozenset[str], prefix: str) -> frozenset[str]:
        """Names of the layers that stand in another, which runs them as it likes."""
        parts = holder._flatten_layers(include_self=False) if _is_layer(holder) else ()
        names = set()
        for layer in filter(lambda x: isinstance(x, LAYERS), parts):
            seen = self._seen(layer, f"{prefix}{holder.name}/{layer.name}")
            seen.holder = f"{type(holder).__name__} {holder.name!r}"
            seen.before |= before
            names.add(seen.name)
        return frozenset(names)

    def _seen(self, layer: Any, name: str) -> Traced:
        return self.traced.setdefault(id(layer), Traced(name, layer))


def _is_layer(operation: Any) -> bool:
    return isinstance(operation, keras.layers.Layer)
