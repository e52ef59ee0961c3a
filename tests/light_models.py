"""The real graphs that the onnx package ships, with weights that give their outputs a meaning."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
QUICK = ("densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet")
SLOW = ("bvlc_alexnet", "vgg19", "zfnet512")  # their Gemms have up to 100 million weights
BATCHNORM_ROLES = ("scale", "bias", "mean", "var")


def light_model(name, seed=0):
    """`light_<name>.onnx`, each ConstantOfShape weight replaced by seeded values that suit its use.

    Weights are He-normal, biases and means small, BatchNormalization scales and variances in
    [0.5, 1.5]. The last layer is scaled so that its outputs have a standard deviation of 2: a
    Softmax over them is neither flat nor saturated.
    """
    model = onnx.load(LIGHT / f"light_{name}.onnx")  # noqa: TID251 - a proto to be filled, not a Model
    graph, rng = model.graph, np.random.default_rng(seed)
    roles = _roles(graph)
    shapes = {t.name: tuple(numpy_helper.to_array(t)) for t in graph.initializer}
    filled = {
        n.output[0]: _values(roles[n.output[0]], shapes[n.input[0]], rng)
        for n in graph.node
        if n.op_type == "ConstantOfShape"
    }
    kept = [n for n in graph.node if n.op_type != "ConstantOfShape"]
    del graph.node[:]
    graph.node.extend(kept)
    graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in filled.items())
    graph.input.extend(  # below IR 4 every initializer is an input as well
        onnx.helper.make_tensor_value_info(k, onnx.TensorProto.FLOAT, v.shape)
        for k, v in filled.items()
    )
    _scale_last_layer(model, rng)
    return model


def _roles(graph):
    """{name of a weight: what it is used as}; through Unsqueeze and Reshape to what it feeds."""
    roles = {}
    for node in reversed(graph.node):
        if node.op_type in ("Unsqueeze", "Reshape"):
            roles[node.input[0]] = roles.get(node.output[0])
        elif node.op_type == "BatchNormalization":
            roles.update(zip(node.input[1:], BATCHNORM_ROLES, strict=True))
        elif node.op_type in ("Conv", "Gemm"):
            roles.update(zip(node.input[1:], ("weight", "bias"), strict=False))
        elif node.op_type in ("Mul", "Add"):
            roles.update(dict.fromkeys(node.input, "scale" if node.op_type == "Mul" else "bias"))
    return roles


def _values(role, shape, rng):
    if role == "weight":  # [out, in/group, ...]; the Gemms here all have transB=1
        return rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape).astype(np.float32)
    if role in ("scale", "var"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    return rng.normal(0, 0.1, shape).astype(np.float32)


def _scale_last_layer(model, rng):
    last = next(n for n in reversed(model.graph.node) if n.op_type in ("Conv", "Gemm"))
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.append(onnx.ValueInfoProto(name=last.output[0]))
    session = ort.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    logits = session.run(None, feed(model, rng))[0]
    stored_as = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "Reshape"}
    names = [stored_as.get(name, name) for name in last.input[1:]]
    for tensor in model.graph.initializer:
        if tensor.name in names:
            values = numpy_helper.to_array(tensor) * np.float32(2 / logits.std())
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def data_input(model):
    """Name and shape of the one input that is no initializer."""
    stored = {t.name for t in model.graph.initializer}
    (value,) = (v for v in model.graph.input if v.name not in stored)
    return value.name, [d.dim_value for d in value.type.tensor_type.shape.dim]


def feed(model, rng):
    """Large patches of random colour and some noise, so that averages over the image differ too."""
    name, (batch, channels, height, width) = data_input(model)
    patches = rng.normal(size=(batch, channels, 2, 2)).repeat(height // 2, 2).repeat(width // 2, 3)
    noise = rng.normal(0, 0.5, (batch, channels, height, width))
    return {name: (2 * patches + noise).astype(np.float32)}
