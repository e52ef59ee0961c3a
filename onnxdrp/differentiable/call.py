"""What the function of an operator is told besides its inputs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from onnxdrp.errors import ModelError

__all__ = ["Call", "integers"]


@dataclass(frozen=True, eq=False)
class Call:
    """One node of a model.

    Attributes:
        name: of the node.
        op: its operator.
        opset: the version of the operator set, which says what attributes mean.
        outputs: how many outputs the node has, counting unnamed ones before the last named.
        attrs: {attribute: number, str, list of them, or torch tensor}.
    """

    name: str = ""
    op: str = ""
    opset: int = 21
    outputs: int = 1
    attrs: Mapping[str, Any] = field(default_factory=dict)

    def get(self, attribute: str, default: Any = None) -> Any:
        """The value of an attribute, or the default that the standard gives it."""
        return self.attrs.get(attribute, default)

    def refusal(self, why: str) -> ModelError:
        """The error that says that this node cannot be run, and why."""
        return ModelError(f"node {self.name!r} ({self.op}): {why}")


def integers(call: Call, attribute: str, given: torch.Tensor | None) -> list[int] | None:
    """Integers that older operator sets have as an attribute and newer ones as an input."""
    if given is not None:
        return [int(i) for i in given.reshape(-1).tolist()]
    found = call.get(attribute)
    return None if found is None else [int(i) for i in found]
