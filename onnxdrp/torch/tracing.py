"""What a PyTorch model does with its layers when it runs once.

One forward pass is watched: which convolutions and fully connected layers run, in which order, on
which shapes, and from which others their inputs come. The last is followed through storages: what
an operator gives depends on all that it reads, views and what is written in place included. Names
of registration say nothing about any of it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from onnxdrp.errors import DataError, ModelError, OptionError

__all__ = ["LAYERS", "Traced", "layers_of", "plain", "trace"]

LAYERS = (nn.Conv2d, nn.Linear)
"""What the manual of DRP-AI Extension Pack prunes (section 4.2.1)."""


@dataclass
class Traced:
    """A layer that ran.

    Attributes:
        name: of the module; the first of several that it is registered under.
        module: the layer.
        input_shape: of its first call, with the batch.
        output_shape: likewise.
        positions: places that its weight is applied to for one sample, over all calls.
        before: names of the layers that its inputs come from, over all calls.
    """

    name: str
    module: nn.Module
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    positions: float = 0.0
    before: set[str] = field(default_factory=set)


def plain(model: nn.Module) -> nn.Module:
    """The module itself, out of DistributedDataParallel, DataParallel and torch.compile."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        if isinstance(model, wrappers):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod
        else:
            return model


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """{name: layer} of all that could be pruned, each once, in the order of registration."""
    return {name: m for name, m in plain(model).named_modules() if isinstance(m, LAYERS)}


def trace(
    model: nn.Module,
    input_size: Sequence[tuple[int, ...]] | None = None,
    input_data: Sequence[Any] | Mapping[str, Any] | None = None,
) -> tuple[list[Traced], list[str]]:
    """Run a model once, as it is (training or not), and watch its layers.

    Buffers (running means) and the state of the random numbers are put back afterwards.

    Args:
        model: runs on the device of its parameters.
        input_size: a shape, batch first, for each input; filled with random numbers in [0, 1).
        input_data: the arguments of `forward` in a list, or by name. One of the two.

    Returns:
        The layers that ran, in the order in which they first did, and the names of those that did
        not run.

    Raises:
        OptionError: both or none of input_size and input_data; not a list or mapping.
        DataError: the model does not run on them.
        ModelError: it has no layer to prune.
    """
    model = plain(model)
    named = layers_of(model)
    if not named:
        raise ModelError("the model has neither Conv2d nor Linear")
    args, kwargs = _arguments(model, input_size, input_data)
    watch = _Watch({id(module): name for name, module in named.items()})
    hooks = [
        hook
        for module in named.values()
        for hook in (
            module.register_forward_pre_hook(watch.enter, with_kwargs=True),
            module.register_forward_hook(watch.leave),
        )
    ]
    try:
        with _undisturbed(model), torch.no_grad(), watch:
            model(*args, **kwargs)
    except Exception as error:  # of the model's own code: whatever it is, the input is to blame
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        hint = (
            "; models with BatchNorm need a batch of 2 or more" if "per channel" in reason else ""
        )
        raise DataError(
            f"{type(model).__name__} does not run on the input given: {reason}{hint}; give what "
            "its forward takes, as input_data=[...] or input_data={name: ...}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return list(watch.traced.values()), [name for name in named if name not in watch.order]


def _arguments(
    model: nn.Module,
    input_size: Sequence[tuple[int, ...]] | None,
    input_data: Sequence[Any] | Mapping[str, Any] | None,
) -> tuple[list[Any], dict[str, Any]]:
    if (input_size is None) == (input_data is None):
        raise OptionError("set either input_size or input_data, and not both")
    if input_size is not None:
        one = next(model.parameters())
        try:
            return [torch.rand(size, dtype=one.dtype, device=one.device) for size in input_size], {}
        except (TypeError, RuntimeError) as error:
            raise OptionError(
                f"input_size is {input_size!r}: it is a list with a shape, batch first, for each "
                "input, as [(1, 3, 224, 224)]"
            ) from error
    if isinstance(input_data, Mapping):
        return [], dict(input_data)
    if isinstance(input_data, torch.Tensor) or not isinstance(input_data, Sequence):
        raise OptionError("input_data is a list of what forward takes, or {name: value}")
    return list(input_data), {}


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Puts back what a forward pass changes beside its outputs."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(sorted(i for i in devices if i is not None)):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)


class _Watch(TorchDispatchMode):
    """Follows what tensors depend on: a bit for each layer, kept by storage.

    A weak reference keeps the identity of a storage from being given to another, not its memory.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.names = names
        self.traced: dict[int, Traced] = {}
        self.order: list[str] = []
        self.from_layers: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self._mark(found, self._read((args, kwargs)))
        return found

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Before a layer runs."""
        name = self.names[id(module)]
        if id(module) not in self.traced:
            shape = next(tuple(t.shape) for t in tree_leaves((args, kwargs)) if _is_tensor(t))
            self.traced[id(module)] = Traced(name, module, shape, ())
            self.order.append(name)
        bits = self._read((args, kwargs))
        self.traced[id(module)].before |= {n for i, n in enumerate(self.order) if bits >> i & 1}

    def leave(self, module: nn.Module, _args: Any, output: torch.Tensor) -> None:
        """After it ran."""
        seen = self.traced[id(module)]
        shape = tuple(output.shape)
        seen.output_shape = seen.output_shape or shape
        features = 1 if isinstance(module, nn.Conv2d) else -1
        batched = output.dim() > (3 if isinstance(module, nn.Conv2d) else 1)
        batch = shape[0] if batched else 1
        channels = shape[features if batched else 0]
        seen.positions += output.numel() / max(batch * channels, 1)
        self._mark(output, 1 << self.order.index(seen.name))

    def _read(self, values: Any) -> int:
        bits = 0
        for tensor in filter(_is_tensor, tree_leaves(values)):
            bits |= self.from_layers.get(_storage(tensor), 0)
        return bits

    def _mark(self, values: Any, bits: int) -> None:
        if bits:
            for tensor in filter(_is_tensor, tree_leaves(values)):
                key = _storage(tensor)
                self.from_layers[key] = self.from_layers.get(key, 0) | bits


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.layout == torch.strided


def _storage(tensor: torch.Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())
