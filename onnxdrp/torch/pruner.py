"""Prunes a model once, or more and more while it is trained, and holds the masks.

The parameters are those of DRP-AI Extension Pack (manual, section 4.2.2), the masks those of
`onnxdrp.patterns`: an exported model shows them to `onnxdrp.info` as they were made here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import nn

from onnxdrp.errors import ModelError, OptionError
from onnxdrp.patterns import Pattern, parse_pattern, without_rate
from onnxdrp.torch.layers import geometry_of
from onnxdrp.torch.masking import hold, keep_array, parameter, weight_array
from onnxdrp.torch.tracing import layers_of, plain
from onnxdrp.training.asked import check_names, pattern_at, prunable
from onnxdrp.training.held import next_mask
from onnxdrp.training.schedule import Schedule

__all__ = ["Pruner"]


class Pruner:
    """Prunes the layers of a model by magnitude and holds the masks while it is trained.

    With `end_step` -1 everything is pruned here and now (one-shot); else `update`, called at the
    start of each iteration, prunes by the schedule of `onnxdrp.training.schedule`. What is pruned
    stays pruned. A model that has masks already keeps them: a lower rate adds nothing.

    Args:
        model: its parameters should be registered with the optimizer before. Out of
            DistributedDataParallel and torch.compile it is taken as it is.
        pruning_layer_list: names of Conv2d and Linear modules; those that the pattern cannot prune
            are left dense, with a warning.
        initial_pr: rate at `begin_step`, in [0, 1).
        final_pr: rate at the end, in [0, 1). 0 only makes room for masks that are loaded.
        begin_step: first step that prunes.
        end_step: last step that prunes; -1: one-shot, the three parameters around are ignored.
        frequency: steps from one pruning to the next.
        pattern: as `onnxdrp prune --pattern`.

    Raises:
        OptionError: a parameter out of its range, a layer that the model has not.
    """

    def __init__(
        self,
        model: nn.Module,
        pruning_layer_list: Sequence[str],
        initial_pr: float = 0.01,
        final_pr: float = 0.7,
        begin_step: int = 0,
        end_step: int = -1,
        frequency: int = 100,
        pattern: str | Pattern = "flex-nm",
    ) -> None:
        self._schedule = Schedule(initial_pr, final_pr, begin_step, end_step, frequency)
        self._pattern = pattern_at(pattern, final_pr)
        self._step = 0
        self._layers = _chosen(plain(model), pruning_layer_list, self._pattern)
        if self._schedule.one_shot:
            self._prune(final_pr)
        else:
            for module in self._layers.values():
                hold(module)

    @property
    def is_finished(self) -> bool:
        """Whether the final rate is reached; at once in one-shot pruning."""
        return self._schedule.finished(self._step)

    @property
    def step(self) -> int:
        """How many iterations have begun."""
        return self._step

    def update(self) -> None:
        """Count an iteration, at its start; prune if the schedule says so."""
        if self._schedule.prunes(self._step):
            self._prune(self._schedule.rate(self._step))
        self._step += 1

    def state_dict(self) -> dict[str, Any]:
        """Settings and step, in plain types; the masks are in the model's own state."""
        return {
            **asdict(self._schedule),
            "pattern": self._pattern.name,
            "block": self._pattern.block,
            "step": self._step,
            "pruning_layer_list": list(self._layers),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on where another Pruner was; the model's own state has to be loaded as well.

        Raises:
            OptionError: it is no state of a Pruner, or of one for other layers.
        """
        state = dict(state_dict)
        try:
            layers, step = state.pop("pruning_layer_list"), state.pop("step")
            pattern = parse_pattern(state.pop("pattern"), state.pop("block"))
            schedule = Schedule(**state)
        except (KeyError, TypeError) as error:
            raise OptionError("this is not what Pruner.state_dict() gives") from error
        if set(layers) != set(self._layers):
            other = sorted(set(layers) ^ set(self._layers))
            raise OptionError(f"it was stored for other layers: {', '.join(other)}")
        self._schedule, self._pattern, self._step = schedule, pattern, step

    def _prune(self, rate: float) -> None:
        pattern = without_rate(self._pattern)
        for name, module in self._layers.items():
            geometry = geometry_of(module, pattern.block)
            try:
                keep = next_mask(weight_array(module), keep_array(module), geometry, pattern, rate)
            except ModelError as error:
                raise ModelError(f"{name}: {error}") from error
            hold(module, keep)


def _chosen(model: nn.Module, names: Sequence[str], pattern: Pattern) -> dict[str, nn.Module]:
    """The layers by name, each module once."""
    modules = layers_of(model)
    check_names(names, modules, "Conv2d or Linear")
    chosen = {}
    for name in names:
        if not prunable(name, geometry_of(modules[name], pattern.block), pattern, stacklevel=3):
            continue
        if not parameter(modules[name]).is_floating_point():
            raise ModelError(f"the weight of {name!r} is not a floating-point tensor")
        chosen[name] = modules[name]
    return chosen
