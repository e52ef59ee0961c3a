"""Small models and comparisons that several tests use."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from onnxdrp.model import Model

__all__ = [
    "contents",
    "conv_net",
    "deep_net",
    "external",
    "feeds_for",
    "make_model",
    "mlp",
    "nodes_in_order",
    "normal",
    "outputs_of",
    "read_proto",
    "same_outputs",
    "value",
]

Array = npt.NDArray[Any]


def normal(shape: Sequence[int], seed: int, dtype: Any = np.float32) -> Array:
    """He-like normal values: outputs of a few layers stay near 1."""
    fan = int(np.prod(shape[1:])) or 1
    values = np.random.default_rng(seed).standard_normal(tuple(shape))
    return (values * np.sqrt(2 / fan)).astype(dtype)


def value(name: str, shape: Sequence[int | str | None] | None, dtype: Any = np.float32) -> Any:
    """The ValueInfoProto of a tensor."""
    data_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return helper.make_tensor_value_info(name, data_type, shape)


def make_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Mapping[str, Array] | Iterable[onnx.TensorProto] = (),
    *,
    opset: int = 17,
    ir_version: int = 10,
    **more: Any,
) -> onnx.ModelProto:
    """A ModelProto that onnxruntime takes; `weights` are arrays by name, or tensors."""
    if isinstance(weights, Mapping):
        weights = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(
        list(nodes), "test", list(inputs), list(outputs), initializer=list(weights)
    )
    more.setdefault("opset_imports", [helper.make_opsetid("", opset)])
    return helper.make_model(graph, ir_version=ir_version, **more)


def conv_net(
    channels: int = 32, classes: int = 10, *, opset: int = 17, batch: int | str = "N", seed: int = 0
) -> onnx.ModelProto:
    """Conv-Relu-Conv-BatchNormalization-Relu-GlobalAveragePool-Flatten-Gemm on [N, 3, 8, 8]."""
    n = channels
    weights = {
        "conv1.weight": normal([n, 3, 3, 3], seed),
        "conv1.bias": normal([n], seed + 1),
        "conv2.weight": normal([n, n, 3, 3], seed + 2),
        "bn.scale": np.random.default_rng(seed + 3).uniform(0.5, 1.5, n).astype(np.float32),
        "bn.bias": normal([n], seed + 4),
        "bn.mean": normal([n], seed + 5),
        "bn.var": np.random.default_rng(seed + 6).uniform(0.5, 1.5, n).astype(np.float32),
        "fc.weight": normal([classes, n], seed + 7),
        "fc.bias": normal([classes], seed + 8),
    }
    bn = ["h2", "bn.scale", "bn.bias", "bn.mean", "bn.var"]
    nodes = [
        helper.make_node(
            "Conv", ["x", "conv1.weight", "conv1.bias"], ["h1"], "conv1", pads=[1] * 4
        ),
        helper.make_node("Relu", ["h1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "conv2.weight"], ["h2"], "conv2", pads=[1] * 4),
        helper.make_node("BatchNormalization", bn, ["h3"], "bn"),
        helper.make_node("Relu", ["h3"], ["r2"], "relu2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "fc.weight", "fc.bias"], ["y"], "fc", transB=1),
    ]
    inputs, outputs = [value("x", [batch, 3, 8, 8])], [value("y", [batch, classes])]
    return make_model(nodes, inputs, outputs, weights, opset=opset)


def mlp(*sizes: int, opset: int = 17, seed: int = 0) -> onnx.ModelProto:
    """Gemm-Relu-...-Gemm of these widths, on [N, sizes[0]]; weights fc0.weight, fc0.bias, ..."""
    weights: dict[str, Array] = {}
    nodes, at = [], "x"
    for i, (wide, out) in enumerate(pairwise(sizes)):
        weights[f"fc{i}.weight"] = normal([out, wide], seed + 2 * i)
        weights[f"fc{i}.bias"] = normal([out], seed + 2 * i + 1)
        last = i == len(sizes) - 2
        gemm = "y" if last else f"g{i}"
        names = [at, f"fc{i}.weight", f"fc{i}.bias"]
        nodes.append(helper.make_node("Gemm", names, [gemm], f"fc{i}", transB=1))
        if not last:
            at = f"r{i}"
            nodes.append(helper.make_node("Relu", [gemm], [at], f"relu{i}"))
    inputs, outputs = [value("x", ["N", sizes[0]])], [value("y", ["N", sizes[-1]])]
    return make_model(nodes, inputs, outputs, weights, opset=opset)


def feeds_for(proto: onnx.ModelProto, seed: int = 0, batch: int = 2) -> dict[str, Array]:
    """Normal values for every input that has no initializer; unknown dimensions become `batch`."""
    stored = {t.name for t in proto.graph.initializer}
    feeds = {}
    for i, v in enumerate(v for v in proto.graph.input if v.name not in stored):
        shape = [d.dim_value or batch for d in v.type.tensor_type.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type)
        values = np.random.default_rng(seed + i).standard_normal(shape)
        feeds[v.name] = values > 0 if dtype == np.bool_ else values.astype(dtype)
    return feeds


def outputs_of(model: Model | onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    """What plain onnxruntime, its optimizations off, makes of a model's serialized bytes."""
    proto = model.proto() if isinstance(model, Model) else model
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    data = proto.SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return [np.asarray(v) for v in session.run(None, dict(feeds))]


def same_outputs(
    a: Model | onnx.ModelProto,
    b: Model | onnx.ModelProto,
    feeds: Mapping[str, Array],
    tolerance: float = 0.0,
) -> None:
    """Assert max|a-b| <= tolerance * max|a| of each output, and that the outputs vary."""
    for want, got in zip(outputs_of(a, feeds), outputs_of(b, feeds), strict=True):
        assert want.shape == got.shape
        assert want.dtype == got.dtype
        want, got = np.asarray(want, np.float64), np.asarray(got, np.float64)
        assert np.ptp(want) > 1e-3, "outputs that do not vary prove nothing"
        assert np.abs(want - got).max() <= tolerance * np.abs(want).max()


def external(proto: onnx.ModelProto, path: Path, threshold: int = 0) -> Path:
    """Write `proto` with its initializers beside it in `<name>.bin`, as exporters do."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    offset = 0
    with path.with_suffix(".bin").open("wb") as file:
        for tensor in copy.graph.initializer:
            data = numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data
            if len(data) < threshold:
                continue
            for name in ("raw_data", "float_data", "int32_data", "int64_data", "double_data"):
                tensor.ClearField(name)  # type: ignore[arg-type]
            tensor.data_location = TensorProto.EXTERNAL
            location = {
                "location": file.name.rpartition("/")[2],
                "offset": offset,
                "length": len(data),
            }
            for key, entry in location.items():
                tensor.external_data.add(key=key, value=str(entry))
            offset += file.write(data)
    path.write_bytes(copy.SerializeToString())
    return path


def read_proto(path: Path) -> onnx.ModelProto:
    """A model file read by onnx alone, external data included."""
    proto = onnx.ModelProto.FromString(path.read_bytes())
    onnx.external_data_helper.load_external_data_for_model(proto, str(path.parent))
    return proto


def contents(proto: onnx.ModelProto) -> dict[str, Any]:
    """All that a model says, in a form in which equal means equal: order of tables aside."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    _drop_defaults(copy)
    proto = copy
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    copy.ClearField("graph")
    copy.ClearField("opset_import")
    opsets = sorted((o.domain, o.version) for o in proto.opset_import)
    return {"model": copy, "opsets": opsets, "graph": _graph(proto.graph)}


def _drop_defaults(message: Any) -> None:
    """Unset fields that hold their default: a name that is "" says no more than none."""
    for field, content in message.ListFields():
        if isinstance(content, str | bytes) and not content:
            message.ClearField(field.name)
        elif field.message_type is not None:
            for part in [content] if hasattr(content, "ListFields") else content:
                _drop_defaults(part)


def _graph(graph: onnx.GraphProto) -> dict[str, Any]:
    ends = {v.name for v in (*graph.input, *graph.output)}
    return {
        "name": graph.name,
        "doc": graph.doc_string,
        "metadata": {p.key: p.value for p in graph.metadata_props},
        "annotations": {a.tensor_name: a for a in graph.quantization_annotation},
        "inputs": list(graph.input),
        "outputs": list(graph.output),
        "values": {v.name: v for v in graph.value_info if v.name not in ends},
        "weights": {t.name: _tensor(t) for t in graph.initializer},
        "sparse": {t.values.name: t for t in graph.sparse_initializer},
        "nodes": {n.name: _node(n) for n in graph.node},
    }


def nodes_in_order(graph: onnx.GraphProto) -> list[str]:
    """The names of the nodes but constants, which may stand anywhere before their use."""
    return [n.name for n in graph.node if n.op_type != "Constant"]


def _node(node: onnx.NodeProto) -> tuple[Any, ...]:
    attributes = {a.name: _attribute(a) for a in node.attribute}
    metadata = {p.key: p.value for p in node.metadata_props}
    ends = (tuple(node.input), tuple(node.output))
    return (node.op_type, node.domain, *ends, attributes, metadata, node.doc_string, node.overload)


def _attribute(attribute: onnx.AttributeProto) -> Any:
    if attribute.type == onnx.AttributeProto.GRAPH:
        return _graph(attribute.g)
    if attribute.type == onnx.AttributeProto.TENSOR:
        return _tensor(attribute.t)
    return attribute


def _tensor(tensor: onnx.TensorProto) -> tuple[Any, ...]:
    head = (tensor.data_type, tuple(tensor.dims), tensor.doc_string)
    metadata = {p.key: p.value for p in tensor.metadata_props}
    if tensor.data_type == TensorProto.STRING:
        return (*head, metadata, tuple(tensor.string_data))
    raw = tensor.raw_data or numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data
    return (*head, metadata, raw)


def deep_net() -> onnx.ModelProto:
    """A classifier of four convolutions on [N, 3, 8, 8], so that some may lose channels."""
    weights = {"conv0.weight": normal([32, 3, 3, 3], 0), "fc.weight": normal([10, 32], 9)}
    nodes, x = [], "x"
    for i in range(4):
        weights.setdefault(f"conv{i}.weight", normal([32, 32, 3, 3], i))
        nodes.append(
            helper.make_node("Conv", [x, f"conv{i}.weight"], [f"c{i}"], f"conv{i}", pads=[1] * 4)
        )
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"], f"relu{i}"))
        x = f"r{i}"
    nodes += [
        helper.make_node("GlobalAveragePool", [x], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "fc.weight"], ["y"], "fc", transB=1),
    ]
    inputs, outputs = [value("x", ["N", 3, 8, 8])], [value("y", ["N", 10])]
    return make_model(nodes, inputs, outputs, weights)
