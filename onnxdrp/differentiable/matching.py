"""Which tensors of two models are made to agree, and how much they differ.

    loss = heads + features * mean over features of d(y, t)
    heads = mean over heads and outputs of d(y, t)
    heads = T^2 KL(softmax(t / T) | softmax(y / T)), T = 2, of a classifier's output    (Hinton et
            al. 2015; on a CIFAR-10 network it kept more top-1 in as many steps than d)
    d(y, t) = mean (y - t)^2 / variance of t

with y of the student, t of the teacher. A classifier is a model whose one output is [N, classes],
2 classes or more. Heads are what the last layers give, before a Softmax or Sigmoid: the maps of
each level of a detector, apart from each other. Features are what layers read, before it is
quantized: the outputs of blocks. Variances are those over the held-back samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from onnxdrp.errors import OptionError
from onnxdrp.layers import layers
from onnxdrp.model import Model
from onnxdrp.segments import default_cuts

__all__ = ["Matched", "matched"]


@dataclass(frozen=True)
class Matched:
    """Names of tensors that both models have.

    Attributes:
        heads: outputs, then what the last layers give.
        features: intermediate tensors.
        classes: whether the first head is scores of classes [N, classes].
        probabilities: whether those have gone through a Softmax.
    """

    heads: tuple[str, ...]
    features: tuple[str, ...]
    classes: bool = False
    probabilities: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """All, heads first."""
        return self.heads + self.features


def matched(
    student: Model, teacher: Model, chosen: Sequence[str] | None, classes: bool | None = None
) -> Matched:
    """The tensors to match.

    Args:
        student: the model that is trained.
        teacher: what it shall agree with.
        chosen: names of the features; None: what the layers read.
        classes: whether the output is scores of classes; None: as its shape says.

    Raises:
        OptionError: a chosen tensor is not in both models, or an output is no scores of classes.
    """
    both = set(_computed(student)) & set(_computed(teacher))
    ends = {info.name: None for info in student.outputs if info.name in both}
    last = [layer.name for layer in layers(student) if layer.last]
    nodes = {node.name: node for node in student.nodes()}
    heads = [nodes[name].outputs[0].name for name in last if name in nodes]
    heads = list(dict.fromkeys([*ends, *(name for name in heads if name in both)]))
    if chosen is None:
        fed = {info.name for info in student.inputs}
        tensors = student.tensors()
        read = [_before_rounding(tensors[name]) for cut in default_cuts(student) for name in cut]
        chosen = [name for name in read if name in both and name not in fed]
    elif missing := next((name for name in chosen if name not in both), None):
        raise OptionError(f"tensor {missing!r} is not in both models; name another to match")
    features = tuple(n for n in dict.fromkeys(chosen) if n not in heads)
    scores = _are_scores(student)
    if classes and not scores:
        raise OptionError("classes: the model has no single output [N, classes]; leave it out")
    softmax = student.outputs[0].name in {
        t.name for node in student.nodes("Softmax") for t in node.outputs
    }
    return Matched(tuple(heads), features, scores if classes is None else classes, softmax)


def _before_rounding(tensor: gs.Tensor) -> str:
    """The name of a tensor before it was quantized and dequantized."""
    while tensor.inputs and tensor.inputs[0].op in ("QuantizeLinear", "DequantizeLinear"):
        tensor = tensor.inputs[0].inputs[0]
    return str(tensor.name)


def _are_scores(model: Model) -> bool:
    """Whether the model has one output, [N, classes]."""
    shapes = [info.shape for info in model.outputs]
    if len(shapes) != 1 or shapes[0] is None or len(shapes[0]) != 2:
        return False
    count = shapes[0][1]
    return not isinstance(count, int) or count > 1


def _computed(model: Model) -> list[str]:
    return [t.name for node in model.nodes() for t in node.outputs if t.name]
