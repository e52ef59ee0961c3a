"""A network as deep as wanted, of the blocks of exported CNNs: for the speed of graph work alone.

A cell is two inverted residual blocks (Sandler et al., "MobileNetV2", CVPR 2018) with SiLU and
squeeze-and-excitation (Tan, Le, "EfficientNet", ICML 2019), their outputs joined by a Concat and a
convolution: the operators, and about as many of each, as in an exported EfficientNet or YOLO. Every
convolution outside of the squeezes has its BatchNormalization yet. Weights are random and seeded,
images small: what is computed means nothing and costs little.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper
from resnet50 import Net

__all__ = ["stacked"]

CHANNELS, WIDER, SQUEEZED, SIZE = 16, 2, 8, 16


def stacked(nodes: int, classes: int = 10, seed: int = 0) -> onnx.ModelProto:
    """The model: "x" float32 [1, 3, 16, 16] -> "y" float32 [1, classes].

    Args:
        nodes: it has at least so many, and at most a cell more.
        classes: how many outputs.
        seed: of the weights, normal with variance 2 / fan-in.
    """
    net = Net(np.random.default_rng(seed))
    x = _silu(net, _conv(net, "x", 3, CHANNELS, 3, "stem"))
    cell = 0
    while len(net.nodes) < nodes - 3:
        first = _block(net, x, f"cell{cell}.first")
        second = _block(net, first, f"cell{cell}.second")
        joined = net.add("Concat", first, f"cell{cell}.joined", second, axis=1)
        x = _silu(net, _conv(net, joined, 2 * CHANNELS, CHANNELS, 1, f"cell{cell}.out"))
        cell += 1
    flat = net.add("Flatten", net.add("GlobalAveragePool", x, "mean"), "flat")
    fc = (net.stored("fc.weight", (classes, CHANNELS)), net.stored("fc.bias", (classes,)))
    net.add("Gemm", flat, "y", *fc, transB=1)
    value = helper.make_tensor_value_info
    inputs = [value("x", TensorProto.FLOAT, [1, 3, SIZE, SIZE])]
    outputs = [value("y", TensorProto.FLOAT, [1, classes])]
    graph = helper.make_graph(net.nodes, "stacked", inputs, outputs, net.tensors)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def _block(net: Net, x: str, name: str) -> str:
    inside = WIDER * CHANNELS
    y = _silu(net, _conv(net, x, CHANNELS, inside, 1, f"{name}.expand"))
    y = _silu(net, _conv(net, y, inside, inside, 3, f"{name}.depthwise", group=inside))
    squeezed = net.add("GlobalAveragePool", y, f"{name}.squeeze")
    squeezed = _silu(net, net.conv(squeezed, inside, SQUEEZED, 1, 1, f"{name}.reduce"))
    squeezed = net.conv(squeezed, SQUEEZED, inside, 1, 1, f"{name}.restore")
    gate = net.add("Sigmoid", squeezed, f"{name}.gate")
    y = _conv(
        net, net.add("Mul", y, f"{name}.excite", gate), inside, CHANNELS, 1, f"{name}.project"
    )
    return net.add("Add", x, f"{name}.sum", y)


def _conv(
    net: Net, x: str, inputs: int, outputs: int, kernel: int, name: str, group: int = 1
) -> str:
    """A convolution and its BatchNormalization."""
    y = net.conv(x, inputs, outputs, kernel, 1, name, group)
    numbers = {"scale": 1.0, "shift": 0.0, "mean": 0.0, "variance": 1.0}
    stored = [net.stored(f"{name}.{part}", (outputs,), fill) for part, fill in numbers.items()]
    return net.add("BatchNormalization", y, f"{name}.normal", *stored)


def _silu(net: Net, x: str) -> str:
    return net.add("Mul", x, f"{x}.silu", net.add("Sigmoid", x, f"{x}.sigmoid"))
