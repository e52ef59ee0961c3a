"""The tail of a detector: what decodes boxes and scores after the last layers.

It must stay float: boxes in pixels and scores of 0..1 that end up in one tensor end up in one
scale, whose step of a pixel or more is all of a score. Kept float, the outputs of the last layers
have a scale each. The rule:

    1. A layer is a node that makes features: Conv, ConvTranspose, Gemm or MatMul with a learned
       weight, a recurrent layer, a normalization, an averaging pool. Relu or Clip directly after
       it, and the Add of a MatMul's bias, belong to it. A weight of nothing but multiples of 1/2
       is not learned but arithmetic: the 0, 1, 2, ... that takes the mean of a distribution (the
       DFL of YOLOv8 to v11; Li et al., Generalized Focal Loss, 2020), the matrix that turns centre
       and size into corners.
    2. After the last layers is what reads their outputs and leads to no layer any more.
    3. There, a node that puts values together is a joint: a Concat of two or more computed tensors,
       a ScatterND or ScatterElements (YOLOv5 decodes in place), any non-maximum suppression.
    4. The tail is all joints and, of what is after the last layers, what leads to them or comes of
       them.

Whatever has no joint has no tail: a classifier (even one that ends in Softmax or TopK), a
segmentation or text head that ends in Resize, Sigmoid, Softmax or ArgMax, heads whose outputs stay
apart. A lone Softmax is none because it costs nothing: its range is known, is its own, and rounding
it moves a probability by 1/512 at most; `exclude Softmax` leaves it float all the same. A joint of
equals (logits of several heads) is taken too: it computes nothing that 8 bits would speed up.

Before the tail is the head: the tensors from which it is at most two layers away, whichever way one
goes. Their rare large values are the detections, which a range that is chosen by how many values it
serves cuts off: a logit never above 0 is a score never above 1/2. So calibration keeps the extremes
of these.

Each node and each edge is looked at a fixed number of times.
"""

from collections.abc import Collection, Iterable

import numpy as np
import onnx_graphsurgeon as gs

from onnxdrp.dataflow import data_tensors, ordered
from onnxdrp.model import Model, reads

__all__ = ["find_head", "find_tail"]

_WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_FEATURES = {
    "LSTM", "GRU", "RNN", "DeformConv",
    "BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization",
    "AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "ReduceMean",
}  # fmt: skip
_SCATTERS = {"ScatterND", "ScatterElements"}
_HEAD = 2  # layers; YOLOv8n: scores lose 4 dB with none, 1 with one, nothing more with five
_FIXED_SIZE = 4096  # a matrix of arithmetic has a few values; no need to read larger weights


def find_tail(model: Model) -> dict[str, str]:
    """The nodes of a detector's tail.

    Args:
        model: a float model.

    Returns:
        {node: why it is one}, in the order in which they are computed; empty if there is no tail.
    """
    return _Tail(model).nodes()


def find_head(model: Model, tail: Collection[str]) -> set[str]:
    """The tensors before a detector's tail, from its inputs up to two layers back.

    Args:
        model: a float model.
        tail: the names of the nodes of its tail, or some of them.

    Returns:
        Their names; none if there is no tail.
    """
    return _Tail(model).head(set(tail)) if tail else set()


class _Tail:
    def __init__(self, model: Model) -> None:
        self.model, self.data = model, data_tensors(model)
        self.order = [n for n in ordered(model.nodes()) if self._handles_data(n)]
        self.maker = {t.name: n for n in self.order for t in n.outputs if t.name}
        self.makers = {n.name: list(self._makers(n)) for n in self.order}
        self.layers = self._layers()

    def nodes(self) -> dict[str, str]:
        """See `find_tail`."""
        after = self._after_last_layers()
        joint: dict[str, gs.Node] = {}  # by the name of a node: the joint it leads to or comes of
        for node in after:
            if self._is_joint(node):
                joint[node.name] = node
        self._spread(after, joint)
        return {n.name: _why(joint[n.name]) for n in after if n.name in joint}

    def head(self, tail: set[str]) -> set[str]:
        """See `find_head`."""
        leads: set[str] = set()  # tensors that lead to the tail
        layers: dict[str, int] = {}  # how many layers follow a tensor, at most
        for node in reversed(self.order):
            made = [t.name for t in node.outputs if t.name]
            follow = max(layers.get(name, 0) for name in made)
            count = follow + int(self._is_layer(node) and node.name not in tail)
            to_tail = node.name in tail or any(name in leads for name in made)
            for name in (t.name for t in reads(node) if t.name in self.data):
                layers[name] = max(count, layers.get(name, 0))
                if to_tail:
                    leads.add(name)
        inside = {t.name for n in self.order if n.name in tail for t in n.outputs}
        return {name for name in leads - inside if layers[name] <= _HEAD}

    def _handles_data(self, node: gs.Node) -> bool:
        return any(t.name in self.data for t in node.outputs if t.name)

    def _makers(self, node: gs.Node) -> Iterable[gs.Node]:
        read = dict.fromkeys(t.name for t in reads(node) if t.name in self.data)
        return (self.maker[name] for name in read if name in self.maker)

    # --------------------------------------------------------------------------- the last layers

    def _layers(self) -> set[str]:
        """The names of all layers and of what belongs to them."""
        found: set[str] = set()
        for node in self.order:
            if self._is_layer(node) or self._belongs_to(node, found):
                found.add(node.name)
        return found

    def _is_layer(self, node: gs.Node) -> bool:
        if node.op not in _WEIGHTED:
            return node.op in _FEATURES
        stored = [w for t in node.inputs[:2] if (w := self.model.constant(t)) is not None]
        if not stored:
            return node.op in ("Conv", "ConvTranspose")  # MatMul of two activations mixes, as Mul
        return not any(map(_is_arithmetic, stored))

    def _belongs_to(self, node: gs.Node, layers: set[str]) -> bool:
        makers = self.makers[node.name]
        if len(makers) != 1 or makers[0].name not in layers:
            return False
        bias = node.op == "Add" and makers[0].op == "MatMul"
        return bias or (node.op in ("Relu", "Clip") and makers[0].op not in ("Relu", "Clip"))

    def _after_last_layers(self) -> list[gs.Node]:
        leads_to_layer, after = set(self.layers), set(self.layers)
        for node in reversed(self.order):
            if node.name in leads_to_layer:
                leads_to_layer.update(maker.name for maker in self.makers[node.name])
        for node in self.order:
            if any(maker.name in after for maker in self.makers[node.name]):
                after.add(node.name)
        return [n for n in self.order if n.name in after - leads_to_layer]

    # ---------------------------------------------------------------------------------- the joints

    def _is_joint(self, node: gs.Node) -> bool:
        if node.op == "Concat":
            return len({t.name for t in node.inputs if t.name in self.data}) > 1
        name = node.op.lower()
        return node.op in _SCATTERS or "nms" in name or "nonmaxsuppression" in name

    def _spread(self, after: list[gs.Node], joint: dict[str, gs.Node]) -> None:
        """Give each node that comes of a joint, or leads to one, that joint."""
        inside, comes, leads = {n.name for n in after}, dict(joint), dict(joint)
        for node in after:
            for maker in self.makers[node.name]:
                if maker.name in comes:
                    comes.setdefault(node.name, comes[maker.name])
        for node in reversed(after):
            for maker in self.makers[node.name]:
                if node.name in leads and maker.name in inside:
                    leads.setdefault(maker.name, leads[node.name])
        joint |= comes | leads


def _is_arithmetic(weight: np.ndarray) -> bool:
    """Whether no training made these values: all are multiples of 1/2, and not all are 0."""
    if weight.size > _FIXED_SIZE or weight.dtype.kind != "f":
        return False
    twice = 2 * weight
    return bool(weight.any()) and np.array_equal(twice, np.round(twice))


def _why(joint: gs.Node) -> str:
    return (
        f"tail: decodes boxes and scores after the last layers "
        f"({joint.op} {joint.name!r} joins them)"
    )
