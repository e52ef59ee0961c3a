"""Whether a quantized model is as its target wants it, read off the graph alone.

Rules, each broken by a node that a line names:
    1. Activations and constant operands have the target's type, and its zero point if it is
       symmetric.
    2. Weights are int8 with zero point 0, on -64..64 where the target reduces the range; one scale
       a tensor unless the target has more, and then along the axis of outputs. What has such a
       weight reads quantized activations.
    3. Biases are int32 with zero point 0 and scale s_in * s_w, or float: as the target has it.
    4. What must share parameters has equal ones; what keeps values keeps parameters; fixed ranges
       are those of the target.
    5. Nothing is rounded inside a layer: between MatMul and the Add of its bias, or before the
       Add of a residual.
    6. Nothing is rounded for nobody: behind an operator that the target computes in float, or whose
       output it leaves float, unless a quantized one reads it.
    7. What is quantized wherever it stands is quantized.
    8. Masks have a sparsity pattern that the target computes faster, if any is known.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxdrp.geometry import to_slabs
from onnxdrp.layers import by_weight, layers
from onnxdrp.masks import Mask
from onnxdrp.model import Model
from onnxdrp.operators import kind_of
from onnxdrp.patterns import Unstructured, parse_pattern
from onnxdrp.quantization import QuantParams, Range, activation_params, bias_params, qlimits
from onnxdrp.targets import Target

__all__ = ["departures"]

Array = npt.NDArray[Any]

_FEW = 2  # nodes that a line names


def departures(
    model: Model,
    target: Target,
    *,
    masks: Mapping[str, Mask] | None = None,
    kept: Mapping[str, str] | None = None,
) -> list[str]:
    """The rules of the target that the model breaks, a line each; empty if none.

    Args:
        model: quantized; a float one breaks none.
        target: the profile.
        masks: {weight: its mask} of the pruned weights.
        kept: {node: why it stays float}: no rule makes these quantized.
    """
    found: dict[str, list[str]] = {}
    graph = _Graph(model, target)
    if model.nodes("QuantizeLinear"):
        for node in model.nodes():
            for rule in graph.broken(node, kept or {}):
                found.setdefault(rule, []).append(node.name)
    for name in _other_patterns(model, target, masks or {}):
        rule = f"{target.name} is faster with {' or '.join(target.patterns)}, not with other masks"
        found.setdefault(rule, []).append(name)
    return [f"{rule}: {_few(names)}" for rule, names in found.items()]


class _Graph:
    """A quantized graph beside what its target wants."""

    def __init__(self, model: Model, target: Target) -> None:
        self.model, self.target = model, target
        self.outputs = {t.name for t in model.graph.outputs}

    def broken(self, node: gs.Node, kept: Mapping[str, str]) -> Iterator[str]:
        """The rules that a node breaks."""
        ops = self.target.operators
        if node.op == "QuantizeLinear":
            yield from self._activation(self._numbers(node)[1])
            yield from self._for_nobody(node)
        elif node.op in ops.weighted:
            yield from self._layer(node)
        elif node.op == "Add" and (bias := self._bias_of_matmul(node)) is not None:
            yield from self._bias(*bias)
        elif node.op in (*ops.own_range, *ops.same_range):
            yield from self._operands(node)
            yield from self._shared(node)
            yield from self._residual(node)
        if node.op in ops.always_quantized and node.name not in kept:
            yield from self._always(node)

    # --------------------------------------------------------------------------------- activations

    def _activation(self, zero: Array) -> Iterator[str]:
        target = self.target
        if zero.dtype.name not in (target.activation_dtype, target.wide_dtype):
            yield f"{target.name} takes {target.activation_dtype} activations, not {zero.dtype}"
        middle = 0 if zero.dtype.kind == "i" else 1 << 8 * zero.itemsize - 1
        if target.activation_symmetric and np.any(zero != middle):
            yield f"{target.name} takes symmetric activations, not a zero point"

    def _operands(self, node: gs.Node) -> Iterator[str]:
        for maker in _makers(node):
            if maker is not None and self._stored(maker):
                yield from self._activation(self._numbers(maker)[1])

    def _for_nobody(self, quantize: gs.Node) -> Iterator[str]:
        maker = _maker(quantize.inputs[0])
        if maker is None or any(self._reads_integers(n) for n in _behind(quantize)):
            return
        head = self._head(maker)
        if head.op in self.target.operators.float_output:
            yield f"{self.target.name} leaves the output of {head.op} float for float readers"
        elif kind_of(maker, self.target) is None:
            yield f"{self.target.name} computes {maker.op} in float and rounds nothing behind it"

    def _reads_integers(self, node: gs.Node) -> bool:
        return kind_of(node, self.target) is not None

    def _head(self, node: gs.Node) -> gs.Node:
        """The layer that a node is computed with: nothing is rounded between them."""
        while node.op in ("Relu", "Clip", "Add"):
            computed = [m for m in _makers(node) if m is not None and m.op != "DequantizeLinear"]
            if not computed:
                break
            node = computed[0]
        return node

    # -------------------------------------------------------------------------------------- layers

    def _layer(self, node: gs.Node) -> Iterator[str]:
        target, makers = self.target, _makers(node)
        weights = [i for i, m in enumerate(makers[:2]) if m is not None and self._stored(m)]
        if weights and kind_of(node, target) is None:
            yield f"{target.name} computes {node.op} in float, with float weights"
            return
        for i in weights:
            yield from self._weight(node, makers[i])
        if len(weights) != 1:
            return
        data, weight = makers[1 - weights[0]], makers[weights[0]]
        if data is None or data.op != "DequantizeLinear":
            yield f"{target.name} takes quantized inputs of {node.op}"
        elif len(makers) > 2 and node.inputs[2].name:
            yield from self._bias(node.inputs[2], data, weight)
        yield from self._bias_apart(node)

    def _weight(self, node: gs.Node, maker: gs.Node) -> Iterator[str]:
        target, codes = self.target, self.model.constant(maker.inputs[0])
        assert codes is not None  # `_stored` has seen it
        zero = self._numbers(maker)[1]
        if codes.dtype != np.int8 or zero.any():
            yield f"{target.name} takes int8 weights with zero point 0"
            return
        limit = qlimits("int8", symmetric=True, reduce_range=True)[1]
        if target.reduces_range and np.abs(codes.astype(np.int16)).max(initial=0) > limit:
            yield f"{target.name} takes weights from {-limit} to {limit}"
        if zero.size > 1 and not target.per_channel:
            yield f"{target.name} takes weights with one scale a tensor"
        elif zero.size > 1 and node.op in target.operators.whole_weights:
            yield f"{target.name} takes weights of {node.op} with one scale a tensor"
        elif zero.size > 1 and maker.attrs.get("axis", 1) % codes.ndim != _axis(node, codes.ndim):
            yield f"{target.name} takes scales along the outputs of {node.op}"

    def _bias(self, bias: gs.Tensor, data: gs.Node, weight: gs.Node) -> Iterator[str]:
        target, maker = self.target, _maker(bias)
        quantized = maker is not None and self._stored(maker)
        if target.bias_dtype == "float32":
            if quantized:
                yield f"{target.name} takes float biases"
            return
        if maker is None or not quantized or maker.inputs[0].dtype != np.int32:
            yield f"{target.name} takes int32 biases"
            return
        scale, zero = self._numbers(maker)
        axis = None if self._numbers(weight)[1].ndim == 0 else 0
        wanted = QuantParams.symmetric(self._numbers(weight)[0], axis=axis)
        if zero.any() or np.any(scale != bias_params(self._numbers(data)[0], wanted).scale):
            yield f"{target.name} takes biases of scale s_in * s_w with zero point 0"

    def _bias_of_matmul(self, add: gs.Node) -> tuple[gs.Tensor, gs.Node, gs.Node] | None:
        """The bias, data and weight of a quantized MatMul that an Add is computed with."""
        if not self.target.operators.matmul_add_is_fc:
            return None
        for place, head in enumerate(_makers(add)):
            if head is None or head.op != "MatMul":
                continue
            makers = [m for m in _makers(head) if m is not None and m.op == "DequantizeLinear"]
            stored = [self._stored(m) for m in makers]
            bias = add.inputs[1 - place]
            if sorted(stored) == [False, True] and self._values(bias) is not None:
                return bias, makers[stored.index(False)], makers[stored.index(True)]
        return None

    def _bias_apart(self, node: gs.Node) -> Iterator[str]:
        """MatMul, a pair that only an Add reads, and a stored row of one number an output."""
        pair = _only_pair(node.outputs[0])
        if node.op != "MatMul" or not self.target.operators.matmul_add_is_fc or pair is None:
            return
        readers, after = _behind(pair), pair.outputs[0].outputs[0].outputs[0]
        if [n.op for n in readers] != ["Add"] or after.name in self.outputs:
            return
        (bias,) = [t for t in readers[0].inputs if t is not after] or [None]
        values = None if bias is None else self._values(bias)
        if values is not None and values.size in (1, values.shape[-1] if values.ndim else 1):
            yield f"{self.target.name} takes MatMul and Add of a constant as one layer"

    # ------------------------------------------------------------------------------ who shares what

    def _shared(self, node: gs.Node) -> Iterator[str]:
        target, ops = self.target, self.target.operators
        inputs = [m for m in _makers(node) if m is not None and m.op == "DequantizeLinear"]
        outputs = [n for t in node.outputs for n in t.outputs if n.op == "QuantizeLinear"]
        if kind_of(node, target) == "same":
            around = [*inputs[:1], *outputs] if inputs else []
        elif len(inputs) < len(node.inputs):
            around = []  # a parameter, or float
        elif node.op in ops.shared_inputs_and_output:
            around = [*inputs, *outputs]
        else:
            around = inputs if node.op in ops.shared_inputs else []
        if len({tuple(n.tobytes() for n in self._numbers(node)) for node in around}) > 1:
            yield f"{target.name} wants the same parameters around {node.op}"
        if node.op in ops.fixed_range and inputs:
            low, high = ops.fixed_range[node.op]
            given = [self._numbers(n) for n in outputs]
            if any(not self._fixed(node.op, scale, zero) for scale, zero in given):
                yield f"{target.name} wants {node.op} to give [{low:g}, {high:g}]"

    def _fixed(self, op: str, scale: Array, zero: Array) -> bool:
        """Whether these are the parameters of the operator's fixed range."""
        target, ranges = self.target, self.target.operators.fixed_range
        wide = zero.dtype.name == target.wide_dtype
        dtype = target.wide_dtype if wide and target.wide_dtype else target.activation_dtype
        low, high = (ranges | target.operators.wide_fixed_range if wide else ranges)[op]
        wanted = activation_params(Range(low, high), dtype, symmetric=target.activation_symmetric)
        return bool(scale == wanted.scale and zero == wanted.zero_point)

    def _residual(self, node: gs.Node) -> Iterator[str]:
        """A residual whose every input is rounded, one of them right behind a layer."""
        if node.op not in self.target.operators.fused_residual:
            return
        makers = _makers(node)
        if any(m is None or m.op != "DequantizeLinear" or self._stored(m) for m in makers):
            return
        layers_before = [h for m in makers if (h := _lone_head(m)) is not None]
        if any(head.op in self.target.operators.weighted for head in layers_before):
            yield f"{self.target.name} computes {node.op} with the layer before it"

    def _always(self, node: gs.Node) -> Iterator[str]:
        tensor, maker = node.inputs[0], _maker(node.inputs[0])
        if tensor.dtype != np.float32 or self.model.constant(tensor) is not None:
            return
        before = maker is not None and maker.op == "DequantizeLinear"
        after = all(n.op == "QuantizeLinear" for n in node.outputs[0].outputs)
        if not (before and after and node.outputs[0].outputs):
            yield f"{self.target.name} quantizes {node.op} wherever it stands"

    # ------------------------------------------------------------------------------------- numbers

    def _stored(self, node: gs.Node) -> bool:
        """Whether it dequantizes what is stored."""
        return node.op == "DequantizeLinear" and self.model.constant(node.inputs[0]) is not None

    def _values(self, tensor: gs.Tensor) -> Array | None:
        """What is stored in a tensor, behind a DequantizeLinear too."""
        maker = _maker(tensor)
        if maker is not None and self._stored(maker):
            tensor = maker.inputs[0]
        return self.model.constant(tensor)

    def _numbers(self, node: gs.Node) -> tuple[Array, Array]:
        """Scale and zero point; that is uint8 0 where there is none."""
        scale, zero = (
            None
            if len(node.inputs) <= i or node.inputs[i].is_empty()
            else self.model.constant(node.inputs[i])
            for i in (1, 2)
        )
        none = np.zeros((), np.uint8)
        return none if scale is None else scale, none if zero is None else zero


def _maker(tensor: gs.Tensor) -> gs.Node | None:
    return tensor.inputs[0] if tensor.inputs else None


def _makers(node: gs.Node) -> list[gs.Node | None]:
    """Who makes each input."""
    return [_maker(t) for t in node.inputs]


def _behind(quantize: gs.Node) -> list[gs.Node]:
    """Who reads what a QuantizeLinear gives, behind the DequantizeLinear."""
    dequantize = [n for n in quantize.outputs[0].outputs if n.op == "DequantizeLinear"]
    return [reader for n in dequantize for reader in n.outputs[0].outputs]


def _only_pair(tensor: gs.Tensor) -> gs.Node | None:
    """The QuantizeLinear that alone reads a tensor, with one DequantizeLinear behind it."""
    if len(tensor.outputs) != 1 or tensor.outputs[0].op != "QuantizeLinear":
        return None
    after = tensor.outputs[0].outputs[0].outputs
    return tensor.outputs[0] if [n.op for n in after] == ["DequantizeLinear"] else None


def _lone_head(dequantize: gs.Node) -> gs.Node | None:
    """What gives its output to this pair alone, and the pair to one reader."""
    quantize = _maker(dequantize.inputs[0])
    head = None if quantize is None else _maker(quantize.inputs[0])
    alone = head is not None and _only_pair(head.outputs[0]) is quantize
    return head if alone and len(dequantize.outputs[0].outputs) == 1 else None


def _axis(node: gs.Node, rank: int) -> int:
    """Along which the outputs of a layer lie in its weight, the right factor."""
    if node.op in ("Conv", "ConvTranspose"):
        return int(node.op == "ConvTranspose")
    return 0 if node.op == "Gemm" and node.attrs.get("transB", 0) else rank - 1


def _other_patterns(model: Model, target: Target, masks: Mapping[str, Mask]) -> list[str]:
    """The pruned weights that have none of the target's patterns."""
    if not (masks and target.patterns):
        return []
    wrong = set(masks)
    for pattern in map(parse_pattern, target.patterns):
        users = by_weight(layers(model, pattern.block))
        for name in [n for n in wrong if n in users]:
            geometry = users[name][0].geometry
            fits = geometry is not None and (geometry.aligned or isinstance(pattern, Unstructured))
            if (
                geometry is not None
                and fits
                and pattern.valid(to_slabs(masks[name].keep, geometry))
            ):
                wrong.discard(name)
    return [name for name in masks if name in wrong]


def _few(names: list[str]) -> str:
    more = f" and {len(names) - _FEW} more" if names[_FEW:] else ""
    return ", ".join(names[:_FEW]) + more
