"""Random small networks for channels to be removed from: every way of joining and moving them.

A network grows from an image by a list of moves; each takes a tensor that is there and adds nodes
behind it. All tensors are [batch, channels, 4, ...] or, once strided, [batch, channels, 2, ...].
What nothing reads in the end gets a head.
"""

from collections.abc import Callable

import numpy as np
import onnx
from builders import make_model, normal, value
from onnx import helper

__all__ = ["HEADS", "MOVES", "network"]


class Net:
    """A graph that grows."""

    def __init__(self, seed: int, rank: int = 2, batch: int | str = "N") -> None:
        self.rng, self.rank, self.batch = np.random.default_rng(seed), rank, batch
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.shapes: dict[str, tuple[int, ...]] = {"x": (3, *[4] * rank)}
        self.live: list[str] = []
        self.outputs: list[str] = []

    def add(self, op, inputs, channels=None, side=None, **attrs):
        """A node; its output, with the spatial axes of the first input."""
        name = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [f"{name}_out"], name, **attrs))
        known = self.shapes.get(inputs[0], ())
        first = known[0] if channels is None and known else channels
        rest = known[1:] if side is None else [side] * self.rank
        self.shapes[f"{name}_out"] = (first, *rest)
        return f"{name}_out"

    def stored(self, values, name="w"):
        """A stored tensor."""
        name = f"{name}{len(self.weights)}"
        self.weights[name] = np.asarray(values)
        return name

    def ints(self, *values):
        return self.stored(np.array(values, np.int64), "n")

    def pick(self):
        return self.live[int(self.rng.integers(len(self.live)))]

    def channels(self, name):
        return self.shapes[name][0]

    def normal(self, *shape):
        return self.stored(normal(shape, int(self.rng.integers(1 << 30))))

    def chance(self, share=0.5):
        return self.rng.random() < share

    def conv(self, at, outputs, size=1, groups=1, bias=True, weight=None):
        """A Conv that keeps the spatial axes."""
        shape = (outputs, self.channels(at) // groups, *[size] * self.rank)
        inputs = [at, weight or self.normal(*shape)]
        if bias:
            inputs.append(self.normal(outputs))
        pads = [size // 2] * (2 * self.rank)
        return self.add("Conv", inputs, outputs, group=groups, pads=pads)

    def made(self, *names):
        """These are there now."""
        self.live += names


MOVES: dict[str, Callable[[Net], None]] = {}
HEADS: dict[str, Callable[[Net, str], str]] = {}


def move(function):
    """One of the moves, by its name."""
    MOVES[function.__name__] = function
    return function


def head(function):
    """One of the heads, by its name."""
    HEADS[function.__name__] = function
    return function


@move
def conv(net):
    net.made(net.conv(net.pick(), 4 * int(net.rng.integers(1, 4)), int(net.rng.choice([1, 3]))))


@move
def grouped(net):
    at = net.pick()
    groups = 2 if net.channels(at) % 4 else int(net.rng.choice([2, 4]))
    if net.channels(at) % groups == 0:
        net.made(net.conv(at, groups * int(net.rng.integers(2, 5)), 3, groups, net.chance()))


@move
def depthwise(net):
    at = net.pick()
    count = net.channels(at)
    net.made(net.conv(at, count * int(net.rng.integers(1, 3)), 3, count, net.chance()))


@move
def transposed(net):
    at = net.pick()
    count = net.channels(at)
    groups = int(net.rng.choice([1, count, 2 if count % 2 == 0 else 1]))
    each = 1 if groups == count else 4
    weight = net.normal(count, each, *[3] * net.rank)
    inputs = [at, weight, net.normal(each * groups)]
    out = net.add("ConvTranspose", inputs, each * groups, group=groups, pads=[1] * 2 * net.rank)
    net.made(out)


@move
def activation(net):
    op = str(net.rng.choice(["Relu", "Sigmoid", "LeakyRelu", "HardSwish", "Tanh", "Identity"]))
    net.made(net.add(op, [net.pick()]))


@move
def clip(net):
    low, high = (net.stored(np.float32(v)) for v in (-1, 2))
    net.made(net.add("Clip", [net.pick(), low, high]))


@move
def prelu(net):
    at = net.pick()
    count = net.channels(at) if net.chance(0.7) else 1
    net.made(net.add("PRelu", [at, net.normal(count, *[1] * net.rank)]))


@move
def batchnorm(net):
    at = net.pick()
    count = net.channels(at)
    scale, var = (net.stored(net.rng.uniform(0.5, 1.5, count).astype(np.float32)) for _ in range(2))
    inputs = [at, scale, net.normal(count), net.normal(count), var]
    net.made(net.add("BatchNormalization", inputs))


def _like(net, at):
    """Another tensor of the same shape, from a Conv if there is none."""
    others = [name for name in net.live if name != at and net.shapes[name] == net.shapes[at]]
    if others and net.chance(0.7):
        return others[int(net.rng.integers(len(others)))]
    return net.conv(at, net.channels(at), 3)


@move
def residual(net):
    at = net.pick()
    net.made(net.add(str(net.rng.choice(["Add", "Sub", "Max"])), [at, _like(net, at)]))


@move
def summed(net):
    at = net.pick()
    net.made(net.add("Sum", [at, _like(net, at), _like(net, at)]))


@move
def constant(net):
    at, op = net.pick(), str(net.rng.choice(["Add", "Mul"]))
    count = net.channels(at)
    shape = [(1, count), (count,), ()][int(net.rng.integers(3))]
    values = net.normal(*shape, *[1] * net.rank) if shape else net.stored(np.float32(0.7))
    net.made(net.add(op, [at, values] if net.chance() else [values, at], count))
    net.shapes[net.live[-1]] = net.shapes[at]


@move
def gate(net):
    """Squeeze-excite: per channel, broadcast over the image."""
    at = net.pick()
    pooled = net.add("GlobalAveragePool", [at], side=1)
    inner = net.add("Relu", [net.conv(pooled, 4)])
    gate = net.add("Sigmoid", [net.conv(inner, net.channels(at))])
    net.made(net.add("Mul", [at, gate]))


@move
def dense_gate(net):
    """The same by way of Gemm, and an Expand."""
    at = net.pick()
    count = net.channels(at)
    flat = net.add("Flatten", [net.add("GlobalAveragePool", [at], side=1)])
    inner = net.add("Relu", [net.add("MatMul", [flat, net.normal(count, 6)])])
    made = net.add("Gemm", [inner, net.normal(count, 6), net.normal(1, count)], transB=1)
    wide = net.add("Unsqueeze", [made, net.ints(*range(2, 2 + net.rank))], count, 1)
    side = net.shapes[at][1:]
    spread = net.add("Expand", [net.add("Sigmoid", [wide]), net.ints(1, count, *side)], count)
    net.made(net.add("Mul", [at, spread]))


@move
def attention(net):
    """Spatial attention: one channel, broadcast over the others."""
    at = net.pick()
    net.made(net.add("Mul", [at, net.add("Sigmoid", [net.conv(at, 1, 3)])]))


@move
def concat(net):
    at = net.pick()
    others = [name for name in net.live if net.shapes[name][1:] == net.shapes[at][1:]]
    parts = [at, others[int(net.rng.integers(len(others)))]]
    count = sum(net.channels(part) for part in parts)
    if isinstance(net.batch, int) and net.chance():
        parts.insert(1, net.normal(net.batch, 2, *net.shapes[at][1:]))
        count += 2
    if count <= 40:
        net.made(net.add("Concat", parts, count, axis=1 - 2 - net.rank))


@move
def split(net):
    at = net.pick()
    count = net.channels(at)
    if count < 4:
        return
    first = int(net.rng.integers(1, count - 1))
    sizes = [first, count - first]
    if net.chance(0.3) and count % 2 == 0:
        sizes, inputs, attrs = [count // 2] * 2, [at], {"num_outputs": 2}
    else:
        inputs, attrs = [at, net.ints(*sizes)], {}
    name = f"split{len(net.nodes)}"
    outs = [f"{name}_{i}" for i in range(2)]
    net.nodes.append(helper.make_node("Split", inputs, outs, name, axis=1, **attrs))
    for out, size in zip(outs, sizes, strict=True):
        net.shapes[out] = (size, *net.shapes[at][1:])
    net.made(*outs)


@move
def sliced(net):
    at = net.pick()
    count = net.channels(at)
    if count < 4:
        return
    start, end = 1, int(net.rng.integers(2, count))
    places = [(start, end), (start - count, end), (start, end - count), (1, 1 << 40)]
    start, end = places[int(net.rng.integers(4))]
    taken = len(range(count)[start:end])
    axis = 1 if net.chance() else -1 - net.rank
    inputs = [at, net.ints(start), net.ints(end), net.ints(axis), net.ints(1)]
    net.made(net.add("Slice", inputs, taken))


@move
def gather(net):
    at = net.pick()
    count = net.channels(at)
    places = net.rng.permutation(count)[: max(count // 2, 2)]
    places = np.where(net.rng.random(len(places)) < 0.5, places, places - count)
    net.made(net.add("Gather", [at, net.ints(*places)], len(places), axis=1))


@move
def padded(net):
    at, zeros = net.pick(), [0] * net.rank
    front, back = (int(n) for n in net.rng.integers(0, 4, 2))
    pads = net.ints(0, front, *zeros, 0, back, *zeros)
    net.made(net.add("Pad", [at, pads], net.channels(at) + front + back))


@move
def shortcut(net):
    """ResNet's option A: every second position, channels padded with zeros."""
    at = net.pick()
    count = net.channels(at)
    if net.shapes[at][1] != 4 or count > 16:
        return
    axes = list(range(2, 2 + net.rank))
    inputs = [at, *(net.ints(*[n] * net.rank) for n in (0, 1 << 31)), net.ints(*axes)]
    small = net.add("Slice", [*inputs, net.ints(*[2] * net.rank)], side=2)
    pads = net.ints(0, count // 2, *[0] * net.rank, 0, count // 2, *[0] * net.rank)
    wide = net.add("Pad", [small, pads], 2 * (count // 2) + count)
    weight = net.normal(2 * (count // 2) + count, count, *[3] * net.rank)
    own = net.add(
        "Conv", [at, weight], net.channels(wide), 2, pads=[1] * 2 * net.rank, strides=[2] * net.rank
    )
    net.made(net.add("Add", [wide, own]))


@move
def shuffle(net):
    at = net.pick()
    count, side = net.channels(at), net.shapes[at][1:]
    if count % 2:
        return
    groups = 4 if count % 4 == 0 and net.chance() else 2
    first = 0 if net.chance() else -1
    parts = net.add("Reshape", [at, net.ints(first, groups, count // groups, *side)])
    order = [0, 2, 1, *range(3, 3 + net.rank)]
    turned = net.add("Transpose", [parts], perm=order)
    out = net.add("Reshape", [turned, net.ints(0, -1 if first == 0 else count, *side)], count)
    net.shapes[out] = (count, *side)
    net.made(out)


@move
def channels_last(net):
    at = net.pick()
    count, axes = net.channels(at), list(range(2, 2 + net.rank))
    last = net.add("Transpose", [at], perm=[0, *axes, 1])
    kind = int(net.rng.integers(4))
    if kind == 0:
        last = net.add("Mul", [last, net.normal(count)])
    elif kind == 1:
        last = net.add("MatMul", [last, net.normal(count, 8)])
        last, count = net.add("Add", [last, net.normal(8)]), 8
    elif kind == 2:
        last = net.add("Concat", [last, net.add("Relu", [last])], axis=-1)
        count *= 2
    else:
        last = net.add("LayerNormalization", [last, net.normal(count)], axis=-1)
    out = net.add("Transpose", [last], count, perm=[0, 1 + net.rank, *range(1, 1 + net.rank)])
    net.shapes[out] = (count, *net.shapes[at][1:])
    net.made(out)


@move
def pool(net):
    op = str(net.rng.choice(["MaxPool", "AveragePool"]))
    sizes = {"kernel_shape": [3] * net.rank, "pads": [1] * 2 * net.rank}
    net.made(net.add(op, [net.pick()], **sizes))


@move
def resized(net):
    at = net.pick()
    count, side = net.channels(at), net.shapes[at][1]
    if net.chance() or net.batch == "N":
        inputs = [at, "", net.stored(np.array([1, 1, *[2] * net.rank], np.float32))]
    else:
        inputs = [at, "", "", net.ints(net.batch, count, *[2 * side] * net.rank)]
    wide = net.add("Resize", inputs, side=2 * side)
    sizes = {"kernel_shape": [2] * net.rank, "strides": [2] * net.rank}
    net.made(net.add("MaxPool", [wide], side=side, **sizes))


@move
def blocks(net):
    at = net.pick()
    count, side = net.channels(at), net.shapes[at][1]
    if net.rank != 2 or side != 4 or count > 8:
        return
    deep = net.add("SpaceToDepth", [at], 4 * count, 2, blocksize=2)
    deep = net.conv(deep, 4 * count) if net.chance() else deep
    mode = str(net.rng.choice(["DCR", "CRD"]))
    net.made(net.add("DepthToSpace", [deep], count, 4, blocksize=2, mode=mode))


@move
def tied(net):
    """One weight, two layers."""
    at = net.pick()
    count = net.channels(at)
    weight = net.normal(count, count, *[3] * net.rank)
    first = net.conv(at, count, 3, weight=weight)
    net.made(net.conv(net.add("Relu", [first]), count, 3, weight=weight, bias=False))


@move
def one_bias(net):
    """Equal constants are often stored once."""
    bias = net.normal(8)
    outs = []
    for _ in range(2):
        at = net.pick()
        weight = net.normal(8, net.channels(at), *[1] * net.rank)
        outs.append(net.add("Conv", [at, weight, bias], 8))
    net.made(*outs)


@move
def chosen(net):
    at = net.pick()
    over = net.add("Greater", [at, net.stored(np.float32(0.1))])
    net.made(net.add("Where", [over, at, _like(net, at)], net.channels(at)))
    net.shapes[net.live[-1]] = net.shapes[at]


@move
def mixed(net):
    at = net.pick()
    count = net.channels(at)
    kind = int(net.rng.integers(6))
    if kind == 0:
        out = net.add("Softmax", [at], axis=1)
    elif kind == 1:
        out = net.add("InstanceNormalization", [at, net.normal(count), net.normal(count)])
    elif kind == 2 and net.rank == 2:
        out = net.add("LRN", [at], size=3)
    elif kind in (2, 3):
        out = net.add("Mul", [at, net.add("ReduceMax", [at, net.ints(1)])])
    elif kind == 4:
        out = net.add("LpNormalization", [at], axis=1)
    else:
        weight = net.stored(net.rng.random(net.shapes[at]).astype(np.float32))
        out = net.add("LayerNormalization", [at, weight], axis=1)
    net.made(out)


@move
def along_the_image(net):
    """What looks like mixing, but is along other axes."""
    at = net.pick()
    kind = int(net.rng.integers(3))
    if kind == 0:
        out = net.add("Softmax", [at], axis=-1)
    elif kind == 1:
        out = net.add("Sub", [at, net.add("ReduceMean", [at, net.ints(-1)])])
    else:
        out = net.add("LayerNormalization", [at, net.normal(net.shapes[at][-1])], axis=-1)
    net.made(out)


@move
def counted(net):
    """A shape that is computed while the model runs."""
    at = net.pick()
    whole = net.add("Shape", [at])
    batch = net.add("Gather", [whole, net.ints(0)])
    sizes = net.add("Concat", [batch, net.ints(*net.shapes[at])], axis=0)
    out = net.add("Reshape", [net.add("Relu", [at]), sizes], net.channels(at))
    net.shapes[out] = net.shapes[at]
    net.made(out)


@move
def own_output(net):
    net.outputs.append(net.pick())


@move
def squeezed(net):
    at = net.pick()
    axis = int(net.rng.integers(0, 3))
    wide = net.add("Unsqueeze", [at, net.ints(axis)])
    net.made(net.add("Squeeze", [net.add("Tanh", [wide]), net.ints(axis)], net.channels(at)))
    net.shapes[net.live[-1]] = net.shapes[at]


@move
def repeated(net):
    at = net.pick()
    if net.channels(at) <= 8:
        ones = [1] * net.rank
        net.made(net.add("Tile", [at, net.ints(1, 2, *ones)], 2 * net.channels(at)))


@head
def pooled_head(net, at):
    flat = net.add("Flatten", [net.add("GlobalAveragePool", [at], side=1)])
    weight, turned = net.normal(5, net.channels(at)), net.chance()
    if not turned:
        net.weights[weight] = np.ascontiguousarray(net.weights[weight].T)
    return net.add("Gemm", [flat, weight, net.normal(5)], transB=int(turned))


@head
def flat_head(net, at):
    size = int(np.prod(net.shapes[at]))
    wanted = [(0, -1), (-1, size)][int(net.rng.integers(2))]
    flat = net.add("Reshape", [at, net.ints(*wanted)]) if net.chance() else net.add("Flatten", [at])
    made = net.add("MatMul", [flat, net.normal(size, 5)])
    return net.add("Add", [made, net.normal(5)])


@head
def left_head(net, at):
    """The weight is the left factor: W X, columns are images."""
    size = int(np.prod(net.shapes[at]))
    flat = net.add("Flatten", [at])
    if net.chance():
        columns = net.add("Transpose", [flat], perm=[1, 0])
        hidden = net.add("Gemm", [net.normal(6, size), columns, net.normal(6, 1)])
    else:
        hidden = net.add("Gemm", [net.normal(size, 6), flat], transA=1, transB=1)
    return net.add("MatMul", [net.normal(5, 6), net.add("Tanh", [hidden])])


@head
def conv_head(net, at):
    return net.conv(at, 3)


def network(
    moves: list[str], heads: list[str], seed: int = 0, rank: int = 2, batch: int | str = "N"
) -> onnx.ModelProto:
    """A network that these moves make."""
    net = Net(seed, rank, batch)
    net.made(net.conv("x", 8, 3))
    for move in moves:
        MOVES[move](net)
    read = {name for node in net.nodes for name in node.input}
    ends = [name for name in net.live if name not in read]
    outputs = [HEADS[heads[i % len(heads)]](net, at) for i, at in enumerate(ends)]
    outputs += [name for name in dict.fromkeys(net.outputs) if name not in outputs]
    values = [value(name, None) for name in outputs]
    return make_model(
        net.nodes, [value("x", [batch, 3, *[4] * rank])], values, net.weights, opset=18
    )
