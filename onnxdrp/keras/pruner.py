"""Makes the model for pruning: the same graph of the same layers, some of them wrapped.

The parameters are those of DRP-AI Extension Pack (manual, section 4.3.2), the masks those of
`onnxdrp.patterns`: an exported model shows them to `onnxdrp.info` as they were made here.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import keras

from onnxdrp.errors import ModelError
from onnxdrp.keras.graph import checked, trace
from onnxdrp.keras.wrapper import NO_KERNEL, PruneLowMagnitude, geometry_of, kernel_of
from onnxdrp.masks import Mask
from onnxdrp.patterns import Pattern
from onnxdrp.training.asked import check_names, pattern_at, prunable
from onnxdrp.training.schedule import Schedule

__all__ = ["Pruner", "finalize", "masks", "wrappers"]


class Pruner:
    """Wraps layers of a model so that they are pruned by magnitude and their masks held.

    With `end_step` -1 everything is pruned here and now (one-shot); else the callback
    UpdatePruningStep prunes by the schedule of `onnxdrp.training.schedule`. Either way `fit` must
    have the callback. What is pruned stays pruned. Layers that are wrapped already keep their masks
    and take the settings that are given here.

    The layers are those of the model itself, not copies: it is pruned and trained along, and can be
    saved and exported in place of the model for pruning.

    Args:
        model: functional or sequential, built.
        pruning_layer_list: names of Conv2D, Dense and DepthwiseConv2D layers, OUTER/INNER for those
            of a model in the model; those that the pattern cannot prune are left dense, with a
            warning.
        initial_pr: rate at `begin_step`, in [0, 1).
        final_pr: rate at the end, in [0, 1). 0 only makes room for masks that are loaded.
        begin_step: first step that prunes.
        end_step: last step that prunes; -1: one-shot, the three parameters around are ignored.
        frequency: steps from one pruning to the next.
        pattern: as `onnxdrp prune --pattern`.

    Raises:
        OptionError: a parameter out of its range, a layer that the model has not.
        ModelError: the model is subclassed or not built, or a layer cannot be wrapped.
    """

    def __init__(
        self,
        model: keras.Model,
        pruning_layer_list: Sequence[str],
        initial_pr: float = 0.01,
        final_pr: float = 0.7,
        begin_step: int = 0,
        end_step: int = -1,
        frequency: int = 100,
        pattern: str | Pattern = "flex-nm",
    ) -> None:
        schedule = Schedule(initial_pr, final_pr, begin_step, end_step, frequency)
        rules = pattern_at(pattern, final_pr)
        settings = {**asdict(schedule), "pattern": rules.name, "block": rules.block}
        chosen, held = _chosen(model, pruning_layer_list, rules), wrappers(model)

        def wrapped(layer: Any) -> Any:
            bare = layer.layer if isinstance(layer, PruneLowMagnitude) else layer
            return PruneLowMagnitude(bare, **settings) if id(bare) in chosen else layer

        self._model = _rebuilt(model, wrapped)
        self._wrappers = [w for at, w in wrappers(self._model).items() if at in chosen]
        for wrapper in self._wrappers:
            if id(wrapper.layer) in held:
                wrapper.hold(held[id(wrapper.layer)].keep)
            if schedule.one_shot:
                wrapper.prune(final_pr)

    def get_pruning_model(self) -> keras.Model:
        """The model for pruning; to be compiled."""
        return self._model

    @property
    def is_finished(self) -> bool:
        """Whether the final rate is reached; at once in one-shot pruning."""
        return all(wrapper.finished for wrapper in self._wrappers)


def finalize(model_for_pruning: keras.Model) -> keras.Model:
    """The plain model: the layers out of their wrappers, pruned places exactly 0.

    Args:
        model_for_pruning: its layers are those of the result, not copies.

    Returns:
        A model that needs nothing of this package to be loaded; to be compiled.
    """
    for wrapper in wrappers(model_for_pruning).values():
        wrapper.settle()
    return _rebuilt(model_for_pruning, lambda x: x.layer if isinstance(x, PruneLowMagnitude) else x)


def masks(model: keras.Model) -> dict[str, Mask]:
    """{layer: mask of its kernel} of all that have one; the names are those of `info`."""
    held = wrappers(model)
    return {
        seen.name: Mask(held[id(seen.layer)].keep)
        for seen in trace(model)
        if id(seen.layer) in held
    }


def wrappers(model: Any) -> dict[int, PruneLowMagnitude]:
    """{id of the layer: its wrapper}, in a model of any kind."""
    layers = model._flatten_layers()
    return {id(x.layer): x for x in layers if isinstance(x, PruneLowMagnitude)}


def _rebuilt(model: Any, function: Callable[[Any], Any]) -> Any:
    """The same graph, with the layers that a function gives; models in it are gone into."""
    return keras.models.clone_model(checked(model), clone_function=function, recursive=True)


def _chosen(model: Any, names: Sequence[str], pattern: Pattern) -> set[int]:
    """The ids of the layers."""
    traced = {seen.name: seen for seen in trace(model)}
    check_names(names, traced, "Conv2D or Dense")
    chosen = set()
    for name in names:
        layer, holder = traced[name].layer, traced[name].holder
        if holder:
            raise ModelError(f"{name!r} cannot be pruned: it stands in {holder}, which runs it")
        if kernel_of(layer) is None:
            raise ModelError(f"{name!r} cannot be pruned: {NO_KERNEL}")
        if prunable(name, geometry_of(layer, pattern.block), pattern, stacklevel=3):
            chosen.add(id(layer))
    return chosen
