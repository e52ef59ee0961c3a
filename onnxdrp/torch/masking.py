"""Masks of modules, as torch.nn.utils.prune keeps them: `weight_orig` and `weight_mask`.

    weight = weight_mask * weight_orig        before each forward pass

`weight_orig` is the very Parameter that `weight` was, so that optimizers and wrappers that know it
go on; its gradient is zero wherever the mask is. Checkpoints have both tensors, as those of DRP-AI
Extension Pack have (manual, sections 4.2.7 and 6).

Two things are added:

- After each forward pass `weight` is let go of the graph. torch.nn.utils.prune leaves a tensor
  there that autograd made, which copy.deepcopy and pickle refuse.
- torch.export, and the ONNX exporter on top of it, would leave the product in the graph, where a
  compiler that looks for zeros does not see them. There it is multiplied beforehand.
"""

import copy
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.utils import prune
from torch.utils._python_dispatch import _disable_current_modes

from onnxdrp.errors import ModelError, OptionError
from onnxdrp.masks import Mask
from onnxdrp.torch.tracing import layers_of, plain
from onnxdrp.training.asked import check_names

__all__ = [
    "copy_masks",
    "deepcopy_model",
    "finalize",
    "held_layers",
    "hold",
    "is_held",
    "keep_array",
    "load_pruned_state_dict",
    "masks",
    "parameter",
    "refresh",
    "set_masks",
    "weight_array",
]

_ORIG, _MASK = "weight_orig", "weight_mask"


def is_held(module: nn.Module) -> bool:
    """Whether the module's weight has a mask; not if somebody has put another weight there."""
    names = module._parameters.keys()
    return _ORIG in names and _MASK in module._buffers and "weight" not in names


def held_layers(model: nn.Module) -> dict[str, nn.Module]:
    """{name: layer} of all that have a mask."""
    return {name: module for name, module in layers_of(model).items() if is_held(module)}


def parameter(module: nn.Module) -> nn.Parameter:
    """What is trained: `weight_orig` where there is a mask.

    Raises:
        ModelError: something else makes the weight of the module.
    """
    found = module._parameters.get(_ORIG if is_held(module) else "weight")
    if found is None:
        raise ModelError(
            f"the weight of this {type(module).__name__} is made by something else, as a "
            "parametrization; remove that before pruning"
        )
    return found


def keep_array(module: nn.Module) -> npt.NDArray[np.bool_]:
    """bool, of the weight's shape: what the mask keeps; everything where there is none."""
    if not is_held(module):
        return np.ones(tuple(parameter(module).shape), np.bool_)
    return cast("npt.NDArray[np.bool_]", (module._buffers[_MASK] != 0).cpu().numpy())


def weight_array(module: nn.Module) -> npt.NDArray[Any]:
    """The weight that the module computes with; half precision as float32. May be a view."""
    weight = parameter(module).detach().cpu()
    if weight.dtype in (torch.float16, torch.bfloat16):
        weight = weight.float()
    values: npt.NDArray[Any] = weight.numpy()
    return np.where(keep_array(module), values, values.dtype.type(0)) if is_held(module) else values


def hold(module: nn.Module, keep: npt.NDArray[np.bool_] | None = None) -> None:
    """Give a module a mask, or the one that it has other places; None: all is kept.

    The mask is written in place: compiled graphs and wrappers that know the tensor stay valid.

    Args:
        module: with a parameter `weight`.
        keep: of the weight's shape, True lives.

    Raises:
        OptionError: the mask has another shape than the weight.
        ModelError: something else than a mask makes the module's weight.
    """
    if not is_held(module):
        made = _Held.apply(module, "weight", mask=torch.ones_like(parameter(module)))
        made.remember(module)
        module.register_forward_hook(_let_go, always_call=True)
        module.register_load_state_dict_post_hook(made.remember)
    if keep is not None:
        Mask(keep).check_fits(tuple(parameter(module).shape), "the weight")
        with torch.no_grad():
            module._buffers[_MASK].copy_(torch.from_numpy(np.ascontiguousarray(keep)))
    refresh(module)


def masks(model: nn.Module) -> dict[str, Mask]:
    """{layer: mask} of all that have one."""
    return {name: Mask(keep_array(module)) for name, module in held_layers(model).items()}


def set_masks(model: nn.Module, found: Mapping[str, Mask]) -> None:
    """Give layers these masks.

    Args:
        model: is changed.
        found: {name of a Conv2d or Linear: mask of its weight}.

    Raises:
        OptionError: a name that the model has no layer of, or a mask of another shape.
    """
    modules = layers_of(model)
    check_names(list(found), modules, "Conv2d or Linear")
    for name, mask in found.items():
        mask.check_fits(tuple(parameter(modules[name]).shape), f"the weight of {name!r}")
        hold(modules[name], mask.keep)


def copy_masks(source: nn.Module, target: nn.Module) -> None:
    """Give a model the masks of another of the same architecture.

    Args:
        source: pruned.
        target: is changed; its weights become `weight_orig` and `weight_mask` where they are not.

    Raises:
        OptionError: the target lacks a layer that has a mask.
    """
    modules, held = layers_of(target), held_layers(source)
    check_names(list(held), modules, "Conv2d or Linear")
    for name, module in held.items():
        hold(modules[name])
        with torch.no_grad():
            modules[name]._buffers[_MASK].copy_(module._buffers[_MASK])
        refresh(modules[name])


def finalize(model: nn.Module) -> nn.Module:
    """Make plain weights of masked ones, pruned places exactly 0; the masks are gone.

    Args:
        model: is changed; parameters become `weight` again and stay the same objects.

    Returns:
        The model.
    """
    for module in held_layers(model).values():
        with torch.no_grad():
            parameter(module).masked_fill_(module._buffers[_MASK] == 0, 0)
        prune.remove(module, "weight")
        _unhook(module)
    return model


def deepcopy_model(model: nn.Module) -> nn.Module:
    """A deep copy of a pruned model, by whatever it was pruned (manual, section 4.2.6)."""
    for module in plain(model).modules():
        if is_held(module):
            _let_go(module)
    return copy.deepcopy(model)


def load_pruned_state_dict(
    model: nn.Module, pruned_state_dict: Mapping[str, Any], strict: bool = True
) -> None:
    """Load weights that are stored as `weight_orig` and `weight_mask` (manual, section 4.2.7).

        model    pruned_state_dict
        sparse   sparse              loaded
        dense    sparse              loaded; the weights become weight_orig and weight_mask
        either   dense               an error

    Args:
        model: is changed.
        pruned_state_dict: of a pruned model; names may begin with `module.`.
        strict: its names must be those of the model.

    Raises:
        OptionError: it is dense, or what a Pruner has stored, or does not fit the model.
    """
    state = dict(pruned_state_dict)
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    if "pruning_layer_list" in state:
        raise OptionError(
            "these are the settings of a Pruner, not weights: save model.state_dict()"
        )
    pruned = {key.removesuffix("." + _MASK) for key in state if key.endswith("." + _MASK)}
    if not pruned:
        raise OptionError(
            "there is no weight_mask in it, so it is of a model that is not pruned; load it with "
            "model.load_state_dict()"
        )
    model = plain(model)
    for name, module in layers_of(model).items():
        if name in pruned and not is_held(module):
            hold(module)
    try:
        model.load_state_dict(state, strict=strict)
    except RuntimeError as error:
        raise OptionError(
            f"the weights do not fit the model: {' '.join(str(error).split())}"
        ) from error
    for module in held_layers(model).values():
        refresh(module)


def refresh(module: nn.Module) -> None:
    """The weight by the mask as it is now, for whoever looks before the next forward pass."""
    with torch.no_grad():
        module.weight = module._buffers[_MASK] * parameter(module)


class _Held(prune.CustomFromMask):
    """Multiplies before each forward pass; for an exporter the tensors, and not in the graph."""

    real: tuple[torch.Tensor, torch.Tensor]

    def __call__(self, module: nn.Module, inputs: Any) -> None:
        if not is_held(module):  # fused with what comes behind it, for instance
            return
        if not torch.compiler.is_exporting():
            super().__call__(module, inputs)
            self.remember(module)
            return
        with _disable_current_modes(), torch.no_grad():
            weight, mask = self.real
            module.__dict__["weight"].copy_(mask.to(weight) * weight)  # in place: it is known

    def remember(self, module: nn.Module, *_: Any) -> None:
        """While a model is exported it has stand-ins for its tensors."""
        self.real = (parameter(module), module._buffers[_MASK])


def _let_go(module: nn.Module, *_: Any) -> None:
    """After a forward pass; what was made in inference mode could not be written again."""
    if torch.compiler.is_exporting() or not is_held(module):
        return
    if torch.compiler.is_compiling():
        refresh(module)  # what is multiplied once in the compiled graph
        return
    weight = module.__dict__.get("weight")
    if weight is not None:
        with torch.inference_mode(False):
            module.weight = weight.clone() if weight.is_inference() else weight.detach()


def _unhook(module: nn.Module) -> None:
    for key in [key for key, hook in module._forward_hooks.items() if hook is _let_go]:
        del module._forward_hooks[key]
        module._forward_hooks_always_called.pop(key, None)
    hooks = module._load_state_dict_post_hooks
    for key in [key for key, hook in hooks.items() if _is_ours(hook)]:
        del hooks[key]


def _is_ours(hook: Any) -> bool:
    return isinstance(getattr(hook, "__self__", None), _Held)
