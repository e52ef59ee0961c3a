"""Run onnxscript's rewrite rules over a skeleton, and put back what is none of their business."""

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnxdrp.model import Model

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["rewrite"]

LIMIT = 1024  # elements of a tensor that partial evaluation looks into
_RULES = (
    "add_0_rule",
    "cast_cast_rule",
    "cast_constant_of_shape_rule",
    "cast_constant_of_shape_without_value_rule",
    "collapse_slice2_rule",
    "collapse_slice_rule",
    "div_by_1_rule",
    "dropout_inference_rule",
    "dropout_zero_rule",
    "fuse_pad_into_conv_rule",
    "materialize_reshape_shape_rule",
    "max_max_rule",
    "max_min_rule",
    "min_max_rule",
    "min_min_rule",
    "mul_by_1_rule",
    "no_op_cast_rule",
    "no_op_dynamic_scatter_nd_rule",
    "no_op_expand_rule",
    "no_op_static_scatter_nd_rule",
    "no_op_transpose_rule",
    "one_reshape_matmul_reshape_rule",
    "reshape_reshape_rule",
    "squeeze_reshape_1d_rule",
    "sub_0_rule",
    "successive_clip_relu_rule",
    "successive_clip_rule",
    "successive_relu_clip_rule",
    "successive_relu_rule",
    "transpose_transpose_rule",
    "two_reshapes_matmul_reshape_rule",
    "unsqueeze_unsqueeze_rule",
)

_SINCE = {"materialize_reshape_shape_rule": 14}  # it writes Reshape.allowzero, new in that opset


def rewrite(skeleton: onnx.ModelProto, model: Model) -> onnx.ModelProto:
    """The skeleton simplified; weights of `model` are read only where a rule looks at them."""
    import onnx_ir as ir
    from onnx_ir.passes.common import CommonSubexpressionEliminationPass, NameFixPass
    from onnxscript import optimizer, rewriter
    from onnxscript.rewriter.rules import common

    names = [name for name in _RULES if model.opset >= _SINCE.get(name, 1)]
    rules = [getattr(common, name) for name in names]
    graph = ir.serde.deserialize_model(skeleton)
    kept = _open_weights(graph, model)
    for _ in range(2):  # as onnxscript's own pipeline
        before = _wiring(graph)
        optimizer.fold_constants(
            graph,
            onnx_shape_inference=True,  # some rules fail where a type is not known
            input_size_limit=LIMIT,
            output_size_limit=LIMIT,
            should_fold=_is_small_filling,
        )
        rewriter.rewrite(graph, rules)
        if _wiring(graph) == before:
            break
    CommonSubexpressionEliminationPass()(graph)
    NameFixPass()(graph)
    for value in graph.graph.initializers.values():
        if id(value.const_value) in kept:
            value.const_value = kept[id(value.const_value)]
    result: onnx.ModelProto = ir.serde.serialize_model(graph)
    _restore(result, skeleton)
    return result


def _wiring(graph: "ir.Model") -> "list[tuple[ir.Node | ir.Value | None, ...]]":
    """Every node with what it reads; rules replace nodes, so that it tells if any did something."""
    return [(node, *node.inputs) for node in graph.graph.all_nodes()]


def _is_small_filling(node: "ir.Node") -> bool | None:
    """ConstantOfShape, by default never folded, stands between many a Shape and its Pad."""
    if node.op_type != "ConstantOfShape" or node.inputs[0] is None:
        return None
    dims = node.inputs[0].const_value
    return None if dims is None else bool(np.prod(dims.numpy()) <= LIMIT)


def _open_weights(graph: "ir.Model", model: Model) -> dict[int, Any]:
    """Let references be read when a rule looks at their values; returns what stood there."""
    import onnx_ir as ir

    tensors = model.tensors()

    def open_later(name: str, reference: Any) -> ir.LazyTensor:
        def read() -> ir.TensorProtocol:
            values = model.constant(tensors[name])
            assert values is not None  # the skeleton has a reference for it
            return ir.Tensor(values, dtype=reference.dtype, name=name)

        return ir.LazyTensor(read, dtype=reference.dtype, shape=reference.shape, name=name)

    kept = {}
    for name, value in graph.graph.initializers.items():
        if isinstance(value.const_value, ir.ExternalTensor):
            reference = value.const_value
            value.const_value = open_later(name, reference)
            kept[id(value.const_value)] = reference
    return kept


def _restore(result: onnx.ModelProto, skeleton: onnx.ModelProto) -> None:
    """Put back what is none of the rewriter's business: operator sets, names, and no tags."""
    result.ClearField("opset_import")
    result.opset_import.extend(skeleton.opset_import)
    old = {node.output[0]: node.name for node in skeleton.graph.node}
    names = {node.name for node in result.graph.node}
    known = set(old.values())
    for node in result.graph.node:
        name = old.get(node.output[0], "")
        if node.name not in known and name and name not in names:
            node.name = name
            names.add(name)
        for i in reversed(range(len(node.metadata_props))):
            if node.metadata_props[i].key.startswith("pkg.onnxscript"):
                del node.metadata_props[i]
