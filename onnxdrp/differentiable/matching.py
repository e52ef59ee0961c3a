"""Which tensors of two models are made to agree, and how much they differ.

    loss = mean over heads and outputs of d(y, t)  +  features * mean over features of d(y, t)
    d(y, t) = mean (y - t)^2 / mean variance of a channel of t

with y of the student, t of the teacher. Heads are what the last layers give, before a Softmax or
Sigmoid: logits; the maps of each level of a detector, apart from each other. Features are what
layers read: the outputs of blocks. The variance is that over the held-back samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from onnxdrp.errors import OptionError
from onnxdrp.layers import layers
from onnxdrp.model import Model
from onnxdrp.segments import default_cuts

__all__ = ["Matched", "matched"]


@dataclass(frozen=True)
class Matched:
    """Names of tensors that both models have."""

    heads: tuple[str, ...]
    features: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """All, heads first."""
        return self.heads + self.features


def matched(student: Model, teacher: Model, chosen: Sequence[str] | None) -> Matched:
    """The tensors to match.

    Args:
        student: the model that is trained.
        teacher: what it shall agree with.
        chosen: names of the features; None: what the layers read.

    Raises:
        OptionError: a chosen tensor is not in both models.
    """
    both = set(_computed(student)) & set(_computed(teacher))
    ends = {info.name: None for info in student.outputs if info.name in both}
    last = [layer.name for layer in layers(student) if layer.last]
    nodes = {node.name: node for node in student.nodes()}
    heads = [nodes[name].outputs[0].name for name in last if name in nodes]
    heads = list(dict.fromkeys([*ends, *(name for name in heads if name in both)]))
    if chosen is None:
        fed = {info.name for info in student.inputs}
        read = [name for cut in default_cuts(student) for name in cut]
        chosen = [name for name in read if name in both and name not in fed]
    elif missing := next((name for name in chosen if name not in both), None):
        raise OptionError(f"tensor {missing!r} is not in both models; name another to match")
    return Matched(tuple(heads), tuple(n for n in dict.fromkeys(chosen) if n not in heads))


def _computed(model: Model) -> list[str]:
    return [t.name for node in model.nodes() for t in node.outputs if t.name]
