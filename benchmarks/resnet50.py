"""A model of the size of ResNet-50 with seeded random weights: for speed alone, not for accuracy.

The graph is that of He et al., "Deep residual learning for image recognition" (CVPR 2016), with the
stride in the 3x3 convolution of a bottleneck and BatchNormalization already fused: 53 Conv of which
16 end in an Add, 4.1 billion multiply-accumulates an image of 224x224.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["Net", "resnet50"]

STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))  # blocks, channels inside of a block
WIDER = 4  # output channels of a block to those inside


def resnet50(size: int = 224, classes: int = 1000, seed: int = 0) -> onnx.ModelProto:
    """The model: "x" float32 [n, 3, size, size] -> "y" float32 [n, classes], n free.

    Args:
        size: height and width of an image.
        classes: how many outputs.
        seed: of the weights, normal with variance 2 / fan-in (He et al. 2015); biases are 0.
    """
    net = Net(np.random.default_rng(seed))
    x = net.add("MaxPool", net.relu(net.conv("x", 3, 64, 7, 2, "stem")), "pool",
                kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)  # fmt: skip
    channels = 64
    for stage, (blocks, inside) in enumerate(STAGES):
        for block in range(blocks):
            stride, name = (2 if block == 0 and stage else 1), f"stage{stage}.{block}"
            y = net.relu(net.conv(x, channels, inside, 1, 1, f"{name}.reduce"))
            y = net.relu(net.conv(y, inside, inside, 3, stride, f"{name}.middle"))
            y = net.conv(y, inside, WIDER * inside, 1, 1, f"{name}.expand")
            if block == 0:
                x = net.conv(x, channels, WIDER * inside, 1, stride, f"{name}.shortcut")
            x, channels = net.relu(net.add("Add", y, f"{name}.sum", x)), WIDER * inside
    flat = net.add("Flatten", net.add("GlobalAveragePool", x, "mean"), "flat")
    fc = (net.stored("fc.weight", (classes, channels)), net.stored("fc.bias", (classes,)))
    net.add("Gemm", flat, "y", *fc, transB=1)
    value = helper.make_tensor_value_info
    inputs = [value("x", TensorProto.FLOAT, ["n", 3, size, size])]
    outputs = [value("y", TensorProto.FLOAT, ["n", classes])]
    graph = helper.make_graph(net.nodes, "resnet50", inputs, outputs, net.tensors)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


class Net:
    """Nodes and weights as they are added."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def add(self, op: str, x: str, name: str, *more: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, [x, *more], [name], name, **attributes))
        return name

    def conv(
        self, x: str, inputs: int, outputs: int, kernel: int, stride: int, name: str, group: int = 1
    ) -> str:
        weight = self.stored(f"{name}.weight", (outputs, inputs // group, kernel, kernel))
        bias = self.stored(f"{name}.bias", (outputs,))
        return self.add("Conv", x, name, weight, bias, kernel_shape=[kernel] * 2,
                        strides=[stride] * 2, pads=[kernel // 2] * 4, group=group)  # fmt: skip

    def relu(self, x: str) -> str:
        return self.add("Relu", x, f"{x}.relu")

    def stored(self, name: str, shape: tuple[int, ...], fill: float = 0.0) -> str:
        """A weight, or the same number everywhere where there is but one axis; its name."""
        values: npt.NDArray[np.float32] = np.full(shape, fill, np.float32)
        if len(shape) > 1:
            self.rng.standard_normal(dtype=np.float32, out=values)
            values *= np.float32((2 / np.prod(shape[1:])) ** 0.5)
        self.tensors.append(numpy_helper.from_array(values, name))
        return name
