"""The two shape inferences, ONNX's and onnxruntime's symbolic one, on models without weights."""

import re
import traceback
from collections.abc import Iterator

import onnx

__all__ = ["Dim", "dims_of", "onnx_inference", "symbolic_inference", "values_of"]

Dim = int | str | None
_GENERATED = re.compile(r"unk__\d+")  # names that ONNX's inference makes up for what it cannot say
_ERRORS = (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError)


def onnx_inference(skeleton: onnx.ModelProto, warnings: list[str]) -> onnx.ModelProto:
    """ONNX's inference, values of shapes propagated; where a node fails, a warning says so."""
    _clear_unknown(skeleton)
    try:
        inferred = onnx.shape_inference.infer_shapes(skeleton, strict_mode=True, data_prop=True)
    except _ERRORS as strict:
        warnings.append(_say("ONNX shape inference", strict))
        try:
            inferred = onnx.shape_inference.infer_shapes(skeleton, data_prop=True)
        except _ERRORS as lenient:
            warnings.append(_say("ONNX shape inference", lenient))
            return skeleton
    _forget_generated(inferred, skeleton)
    return inferred


def _forget_generated(inferred: onnx.ModelProto, skeleton: onnx.ModelProto) -> None:
    given = {dim for value in values_of(skeleton) for dim in dims_of(value.type.tensor_type)}
    for value in values_of(inferred):
        for dim in value.type.tensor_type.shape.dim:
            if _GENERATED.fullmatch(dim.dim_param) and dim.dim_param not in given:
                dim.ClearField("dim_param")


def symbolic_inference(skeleton: onnx.ModelProto, warnings: list[str]) -> onnx.ModelProto:
    """The symbolic inference, which writes what depends on a free dimension as an expression.

    Returns:
        A model that has nothing but value_info: what was found before a failure, if there was one.
    """
    from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

    _make_inputs_of_references(skeleton.graph)
    _clear_unknown(skeleton)
    # its public infer_shapes throws away what it found, and leaves a file, where one node stops it
    inference = SymbolicShapeInference(2**31 - 1, False, False, 0)
    try:
        inference._preprocess(skeleton)
        while inference.run_:
            inference._infer_impl()
    except Exception as e:  # a partial tool: it asserts, indexes and unpacks what it did not expect
        warnings.append(_say(f"onnxruntime's symbolic shape inference{_at_node(e)}", e))
    inferred = onnx.ModelProto()
    inferred.graph.value_info.extend(getattr(inference, "known_vi_", {}).values())
    _forget_generated(inferred, skeleton)
    return inferred


def _clear_unknown(skeleton: onnx.ModelProto) -> None:
    """Some exporters write -1 or "?" for an unknown dimension, and inference believes it."""
    for value in values_of(skeleton):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value < 0 or dim.dim_param == "?":
                dim.Clear()


def _at_node(error: BaseException) -> str:
    """The node that inference was at when it failed, which only its frames know."""
    names = [
        frame.f_locals["node"].name
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if isinstance(frame.f_locals.get("node"), onnx.NodeProto)
    ]
    return f" stopped at node {names[-1]!r}" if names else ""


def _make_inputs_of_references(graph: onnx.GraphProto) -> None:
    """Let large weights be inputs of their type: their values lie outside, and shapes need none."""
    external = onnx.TensorProto.EXTERNAL
    large = [t for t in graph.initializer if t.data_location == external]
    small = [t for t in graph.initializer if t.data_location != external]
    graph.input.extend(
        onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in large
    )
    kept = [onnx.TensorProto.FromString(t.SerializeToString()) for t in small]
    graph.ClearField("initializer")
    graph.initializer.extend(kept)


def values_of(proto: onnx.ModelProto) -> Iterator[onnx.ValueInfoProto]:
    """What a graph states of its tensors: inputs, values inside, outputs."""
    yield from proto.graph.input
    yield from proto.graph.value_info
    yield from proto.graph.output


def dims_of(kind: onnx.TypeProto.Tensor) -> list[Dim]:
    """The dimensions of a tensor type: number, symbol, or None."""
    return [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in kind.shape.dim]


def _say(what: str, error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{what}: {' '.join(lines[:3]) or type(error).__name__}"
