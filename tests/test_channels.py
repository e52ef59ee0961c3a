"""Which channels are one: a small graph for each rule, and why others are kept."""

import numpy as np
import onnx
import pytest
from builders import conv_net, feeds_for, make_model, mlp, normal, value
from onnx import helper
from quantizing import parse, quantize_model
from slimming import check_exact, masked, some_of

from onnxdrp.channels import channels_of
from onnxdrp.errors import OptionError
from onnxdrp.layers import layers
from onnxdrp.model import Model
from onnxdrp.passes import InferShapes
from onnxdrp.passes.removing import remove
from onnxdrp.pipeline import PassContext

X = "float[N,3,4,4] x"


def ints(*values):
    return np.array(values, np.int64)


def graph(body, weights=None, outputs=8, given="zc", x=X, opset=17, size=1):
    """`h`, 8 channels that Conv "a" makes of x; `body` makes `z` of it; Conv "b" sums over that.

    Args:
        body: lines of nodes, from h to z.
        weights: {name: array} that they read.
        outputs: channels of z.
        given: "zc": Conv b reads z; "" : the body ends in y itself.
        x: the input.
        opset: of the model.
        size: of b's kernel.
    """
    last = "[b] y = Conv(z, b_w)" if given else ""
    text = f"""<ir_version: 10, opset_import: ["" : {opset}]> g ({x}) => (float[M] y) {{
        [a] h = Conv<pads=[1,1,1,1]>(x, a_w, a_b)
        {body}
        {last}
    }}"""
    stored = {"a_w": normal([8, 3, 3, 3], 0), "a_b": normal([8], 1), **(weights or {})}
    if given:
        stored["b_w"] = normal([5, outputs, size, size], 2)
    return parse(text.replace("float[M] y", "float[N,5,H,W] y"), stored)


def feeds(model, seed=0):
    return feeds_for(model.proto(), seed)


def makers(model):
    """{group: {layer: [channels of it that each unit is]}}."""
    return {
        group.name: {name: counts.tolist() for name, counts in group.makers.items()}
        for group in channels_of(model).groups
    }


ONES = [1] * 8

# body, weights, channels of z, how many of a's channels each unit is
FOLLOWED = {
    "value by value": ("z = Relu(h)", {}, 8, ONES),
    "clip": ("z = Clip(h, lo, hi)", {"lo": np.float32(0), "hi": np.float32(6)}, 8, ONES),
    "add of a constant for each channel": (
        "z = Add(h, c)",
        {"c": normal([1, 8, 1, 1], 3)},
        8,
        ONES,
    ),
    "a constant of fewer axes": ("z = Mul(c, h)", {"c": normal([8, 1, 1], 3)}, 8, ONES),
    "a constant for all": ("z = Mul(h, c)", {"c": np.float32(0.3)}, 8, ONES),
    "a constant along the image": ("z = Add(h, c)", {"c": normal([4, 4], 3)}, 8, ONES),
    "prelu": ("z = PRelu(h, s)", {"s": normal([8, 1, 1], 3)}, 8, ONES),
    "residual": ("r = Relu(h)\n z = Add(h, r)", {}, 8, ONES),
    "pool": ("z = MaxPool<kernel_shape=[2,2]>(h)", {}, 8, ONES),
    "global pool": ("z = GlobalAveragePool(h)", {}, 8, ONES),
    "mean over the image": ("z = ReduceMean<axes=[-1,-2]>(h)", {}, 8, ONES),
    "mean without its axes": (
        "m = ReduceMean<axes=[2], keepdims=0>(h)\n z = Unsqueeze(m, t)",
        {"t": ints(-1)},
        8,
        ONES,
    ),
    "argmax over the image": (
        "m = ArgMax<axis=3>(h)\n z = Cast<to=1>(m)",
        {},
        8,
        ONES,
    ),
    "softmax over the image": ("z = Softmax<axis=-1>(h)", {}, 8, ONES),
    "layer norm over the image": (
        "z = LayerNormalization<axis=2>(h, s)",
        {"s": normal([4, 4], 3)},
        8,
        ONES,
    ),
    "concat of twice the same": ("z = Concat<axis=1>(h, h)", {}, 16, ONES),
    "concat along the image": ("z = Concat<axis=-1>(h, h)", {}, 8, ONES),
    "concat with negative axis": ("r = Relu(h)\n z = Concat<axis=-3>(r, h)", {}, 16, ONES),
    "split": (
        "p, q = Split<axis=1>(h, s)\n r = Relu(p)\n z = Concat<axis=1>(q, r)",
        {"s": ints(2, 6)},
        8,
        ONES,
    ),
    "split in equal parts that are added": (
        "p, q = Split<axis=-3>(h)\n z = Add(p, q)",
        {},
        4,
        [2] * 4,
    ),
    "split along the image": ("p, q = Split<axis=2>(h)\n z = Add(p, q)", {}, 8, ONES),
    "slice": ("z = Slice(h, s, e, a)", {"s": ints(1), "e": ints(6), "a": ints(1)}, 5, ONES),
    "slice with negative ends": (
        "z = Slice(h, s, e, a)",
        {"s": ints(-7, 0), "e": ints(-1, 2), "a": ints(-3, -1)},
        6,
        ONES,
    ),
    "slice to the end, axes not given": (
        "z = Slice(h, s, e)",
        {"s": ints(0, 3), "e": ints(2**62, 2**62)},
        5,
        ONES,
    ),
    "slice in int32": (
        "z = Slice(h, s, e, a)",
        {"s": np.int32([2]), "e": np.int32([-2]), "a": np.int32([1])},
        4,
        ONES,
    ),
    "strided slice of the image": (
        "z = Slice(h, s, e, a, t)",
        {"s": ints(0, 0), "e": ints(4, 4), "a": ints(2, 3), "t": ints(2, 2)},
        8,
        ONES,
    ),
    "gather": ("z = Gather<axis=1>(h, i)", {"i": ints(3, -1, 0, -8, 5)}, 5, ONES),
    "gather of a line of the image": (
        "g = Gather<axis=2>(h, i)\n z = Unsqueeze(g, t)",
        {"i": np.array(1), "t": ints(2)},
        8,
        ONES,
    ),
    "pad": ("z = Pad(h, p)", {"p": ints(0, 3, 0, 0, 0, 2, 0, 0)}, 13, ONES),
    "pad of the image": (
        'z = Pad<mode="reflect">(h, p)',
        {"p": ints(0, 0, 1, 0, 0, 0, 1, 0)},
        8,
        ONES,
    ),
    "shortcut padded with zeros": (
        "s = Pad(h, p)\n [c] c = Conv(h, c_w)\n z = Add(s, c)",
        {"p": ints(0, 2, 0, 0, 0, 2, 0, 0), "c_w": normal([12, 8, 1, 1], 3)},
        12,
        ONES + [0] * 4,
    ),
    "expand": (
        "m = ReduceMax<axes=[2,3]>(h)\n z = Expand(m, s)",
        {"s": ints(1, 8, 4, 4)},
        8,
        ONES,
    ),
    "expand by ones": (
        "m = ReduceMax<axes=[2,3]>(h)\n z = Expand(m, s)",
        {"s": ints(4, 4)},
        8,
        ONES,
    ),
    "resize by scales": (
        'z = Resize<mode="linear">(h, , s)',
        {"s": np.float32([1, 1, 2, 2])},
        8,
        ONES,
    ),
    "transpose there and back": (
        "t = Transpose<perm=[0,2,3,1]>(h)\n u = Add(t, c)\n z = Transpose<perm=[0,3,1,2]>(u)",
        {"c": normal([8], 3)},
        8,
        ONES,
    ),
    "transpose of all axes": ("t = Transpose(h)\n z = Transpose(t)", {}, 8, ONES),
    "squeeze and unsqueeze": (
        "g = GlobalMaxPool(h)\n s = Squeeze(g, t)\n r = Relu(s)\n z = Unsqueeze(r, t)",
        {"t": ints(-1, 2)},
        8,
        ONES,
    ),
    "shuffle": (
        "s = Reshape(h, p)\n t = Transpose<perm=[0,2,1,3,4]>(s)\n z = Reshape(t, q)",
        {"p": ints(0, 2, 4, 4, 4), "q": ints(-1, 8, 4, 4)},
        8,
        [2] * 4,
    ),
    "reshape of the image": (
        "s = Reshape(h, p)\n t = Softmax(s)\n z = Reshape(t, q)",
        {"p": ints(0, 0, -1), "q": ints(-1, 8, 4, 4)},
        8,
        ONES,
    ),
    "space to depth": ("z = SpaceToDepth<blocksize=2>(h)", {}, 32, ONES),
    "depth to space": ("z = DepthToSpace<blocksize=2>(h)", {}, 2, [4] * 2),
    "depth to space by columns": ('z = DepthToSpace<blocksize=2, mode="CRD">(h)', {}, 2, [4] * 2),
    "where": (
        "m = Greater(h, o)\n n = Neg(h)\n z = Where(m, h, n)",
        {"o": np.float32(0)},
        8,
        ONES,
    ),
    "one channel for all": (
        "[c] m = Conv(h, c_w)\n s = Sigmoid(m)\n z = Mul(h, s)",
        {"c_w": normal([1, 8, 1, 1], 3)},
        8,
        ONES,
    ),
    "batch normalization": (
        "z = BatchNormalization(h, s, t, t, s)",
        {"s": np.linspace(0.5, 1.5, 8, dtype=np.float32), "t": normal([8], 3)},
        8,
        ONES,
    ),
    "depthwise": (
        "[d] z = Conv<group=8, pads=[1,1,1,1]>(h, d_w, d_b)",
        {"d_w": normal([16, 1, 3, 3], 3), "d_b": normal([16], 4)},
        16,
        ONES,
    ),
    "grouped": (
        "[d] z = Conv<group=2>(h, d_w)",
        {"d_w": normal([6, 4, 1, 1], 3)},
        6,
        [2] * 4,
    ),
    "transposed, grouped": (
        "[d] z = ConvTranspose<group=2>(h, d_w, d_b)",
        {"d_w": normal([8, 3, 2, 2], 3), "d_b": normal([6], 4)},
        6,
        [2] * 4,
    ),
    "dropout": ("z = Dropout(h)", {}, 8, ONES),
    "its batch, read while it runs": (
        """s = Shape(h)
            n = Gather(s, i)
            q = Concat<axis=0>(n, o, o, o)
            one = ConstantOfShape(q)
            u = Sub(h, one)
            z = Relu(u)""",
        {"i": ints(0), "o": ints(1)},
        8,
        ONES,
    ),
}


@pytest.mark.parametrize("case", FOLLOWED)
def test_channels_are_followed_through(case):
    body, weights, outputs, counts = FOLLOWED[case]
    model = graph(body, weights, outputs)
    found = makers(model)
    assert found["a"]["a"] == counts
    slimmed = check_exact(model, feeds(model), effect=1e-4)
    assert slimmed.counts["a"] == (8, 8 - sum(counts[i] for i in slimmed.removed["a"]))
    for unit in (0, 1, len(counts) - 1):  # each alone; not all are read
        if counts[unit]:
            alone = check_exact(model, feeds(model), {"a": [unit]}, effect=-1)
            assert alone.counts["a"] == (8, 8 - counts[unit])


# body, weights, channels of z, in the reason
PINNED = {
    "softmax over channels": ("[n] z = Softmax<axis=1>(h)", {}, 8, "Softmax 'n': it mixes"),
    "log softmax": ("[n] z = LogSoftmax<axis=-3>(h)", {}, 8, "LogSoftmax 'n': it mixes"),
    "layer norm": (
        "[n] z = LayerNormalization<axis=1>(h, s)",
        {"s": np.ones([8, 4, 4], np.float32)},
        8,
        "LayerNormalization 'n': it mixes",
    ),
    "instance norm": (
        "[n] z = InstanceNormalization(h, s, s)",
        {"s": np.ones(8, np.float32)},
        8,
        "InstanceNormalization 'n'",
    ),
    "lrn": ("[n] z = LRN<size=3>(h)", {}, 8, "LRN 'n': it mixes"),
    "mean over channels": ("[n] z = ReduceMean<axes=[-3]>(h)", {}, 1, "ReduceMean 'n': it mixes"),
    "mean over everything": ("[n] z = ReduceMean(h)", {}, 1, "ReduceMean 'n': it mixes"),
    "argmax": ("[n] m = ArgMax<axis=1>(h)\n z = Cast<to=1>(m)", {}, 1, "ArgMax 'n': it mixes"),
    "cumulative sum": ("[n] z = CumSum(h, o)", {"o": np.array(1)}, 8, "CumSum 'n' is not followed"),
    "tile": ("[n] z = Tile(h, r)", {"r": ints(1, 2, 1, 1)}, 16, "Tile 'n' is not followed"),
    "slice in steps": (
        "[n] z = Slice(h, s, e, a, t)",
        {"s": ints(0), "e": ints(8), "a": ints(1), "t": ints(2)},
        4,
        "Slice 'n': it takes channels in steps of 2",
    ),
    "pad that repeats": (
        '[n] z = Pad<mode="edge">(h, p)',
        {"p": ints(0, 1, 0, 0, 0, 0, 0, 0)},
        9,
        "Pad 'n': it crops channels, or repeats them",
    ),
    "pad that crops": (
        "[n] z = Pad(h, p)",
        {"p": ints(0, -1, 0, 0, 0, 0, 0, 0)},
        7,
        "Pad 'n': it crops channels, or repeats them",
    ),
    "batch among the channels": (
        "[n] s = Reshape(h, p)\n r = Relu(s)\n z = Reshape(r, q)",
        {"p": ints(-1, 1, 4, 4), "q": ints(-1, 8, 4, 4)},
        8,
        "Reshape 'n': it lays channels out together with a size that is not known",
    ),
    "resize of the channels": (
        "[n] z = Resize(h, , s)",
        {"s": np.float32([1, 2, 1, 1])},
        16,
        "Resize 'n': it resizes the axis of the channels",
    ),
    "their number, read while it runs": (
        "s = Shape(h)\n [n] k = Cast<to=1>(s)\n m = ReduceSum(k)\n z = Mul(h, m)",
        {},
        8,
        "Shape 'Shape_1': Cast 'n' reads how many channels there are",
    ),
    "the places of maxima": (
        "z1, [i] p = MaxPool<kernel_shape=[1,1]>(h)\n f = Cast<to=1>(p)\n z = Add(z1, f)",
        {},
        8,
        "its output 'p' is read",
    ),
    "another axis is summed over": (
        """t = Transpose<perm=[0,2,1,3]>(h)
            [n] m = MatMul(t, m_w)
            z = Transpose<perm=[0,2,1,3]>(m)""",
        {"m_w": normal([4, 4], 3)},
        8,
        "MatMul 'n': it sums over another axis",
    ),
    "product of two activations": (
        "t = Transpose<perm=[0,1,3,2]>(h)\n [n] z = MatMul(h, t)",
        {},
        8,
        "MatMul 'n': both its factors are computed",
    ),
    "places that channels choose": (
        """m = ArgMax<axis=3, keepdims=0>(h)
            [n] g = Gather<axis=3>(h, m)
            r = ReduceMax<axes=[3,4,5], keepdims=0>(g)
            z = Unsqueeze(r, t)""",
        {"t": ints(3)},
        8,
        "Gather 'n': what it is told to do is computed from channels",
    ),
    "its windows": (
        """t = Transpose<perm=[0,2,1,3]>(h)
            [n] m = MaxPool<kernel_shape=[1,1]>(t)
            z = Transpose<perm=[0,2,1,3]>(m)""",
        {},
        8,
        "MaxPool 'n': its windows cross the channels, along axis 2",
    ),
    "what is not followed, added": (
        "[n] s = CumSum(h, o)\n z = Add(h, s)",
        {"o": np.array(1)},
        8,
        "CumSum 'n' is not followed",
    ),
    "an image with as many channels": (
        "t = Tile(x, r)\n [n] z = Add(h, t)",
        {"r": ints(1, 8, 1, 1), "a_w": normal([24, 3, 3, 3], 3), "a_b": normal([24], 4)},
        24,
        "Add 'n': its input 't' is not followed",
    ),
}


@pytest.mark.parametrize("case", PINNED)
def test_what_cannot_be_followed_is_pinned_and_named(case):
    body, weights, outputs, why = PINNED[case]
    if case == "the places of maxima":
        body = body.replace("z1, [i] p", "[n] z1, p")
    model = graph(body, weights, outputs)
    channels = channels_of(model)
    assert why in channels.pinned["a"]
    assert {layer.name for layer in layers(model)} == channels.pinned.keys() | {
        name for group in channels.groups for name in group.makers
    }
    with pytest.raises(OptionError, match="can be removed"):
        channels.alive({"a": [0]})
    check_exact(model, feeds(model), effect=0)  # what is left to be removed


OLD = {  # opset, body, weights, channels of z, units
    "split attribute": (11, "p, q = Split<axis=1, split=[5,3]>(h)\n z = Identity(q)", {}, 3, ONES),
    "slice attributes": (9, "z = Slice<axes=[1], starts=[-5], ends=[7]>(h)", {}, 4, ONES),
    "pad attribute": (10, "z = Pad<pads=[0,2,0,0,0,1,0,0]>(h)", {}, 11, ONES),
    "squeeze attributes": (
        11,
        "g = GlobalAveragePool(h)\n s = Squeeze<axes=[2,3]>(g)\n z = Unsqueeze<axes=[2,3]>(s)",
        {},
        8,
        ONES,
    ),
    "clip attributes": (10, "z = Clip<min=0.0, max=6.0>(h)", {}, 8, ONES),
    "upsample": (9, "z = Upsample(h, s)", {"s": np.float32([1, 1, 2, 2])}, 8, ONES),
    "upsample attribute": (8, "z = Upsample<scales=[1.0,1.0,2.0,2.0]>(h)", {}, 8, ONES),
    "resize": (10, "z = Resize(h, s)", {"s": np.float32([1, 1, 2, 2])}, 8, ONES),
    "reduce": (11, "z = ReduceSum<axes=[2,3]>(h)", {}, 8, ONES),
    "softmax of all that follows": (11, "z = Softmax<axis=2>(h)", {}, 8, ONES),
    "equal parts with a rest": (
        18,
        "p, q, r = Split<axis=1, num_outputs=3>(h)\n z = Concat<axis=1>(r, p)",
        {},
        5,
        ONES,
    ),
    "pad of some axes": (
        18,
        "z = Pad(h, p, , a)",
        {"p": ints(1, 2), "a": ints(-3)},
        11,
        ONES,
    ),
    "resize of some axes": (
        18,
        "z = Resize<axes=[2,1]>(h, , , s)",
        {"s": ints(8, 8)},
        8,
        ONES,
    ),
    "axes of a reduction": (18, "z = ReduceMean(h, a)", {"a": ints(-1)}, 8, ONES),
}


@pytest.mark.parametrize("case", OLD)
def test_other_opsets_say_the_same_otherwise(case):
    opset, body, weights, outputs, counts = OLD[case]
    model = graph(body, weights, outputs, opset=opset)
    assert makers(model)["a"]["a"] == counts
    check_exact(model, feeds(model), effect=1e-4)


def test_an_old_softmax_mixes_all_that_follows():
    model = graph("[n] z = Softmax(h)", opset=11)
    assert channels_of(model).pinned["a"] == "Softmax 'n': it mixes channels"


def test_broadcasting_of_opset_6_is_left_alone():
    model = graph("[n] z = PRelu(h, s)", {"s": normal([8], 3)}, opset=6)
    assert "Softmax" not in channels_of(model).pinned["a"]
    assert "opset 6" in channels_of(model).pinned["a"]


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_resize_by_sizes_at_any_rank(rank):
    axes = ",".join("4" * rank)
    text = f"""<ir_version: 10, opset_import: ["" : 18]>
    g (float[2,3,{axes}] x) => (float[2,4,{",".join("8" * rank)}] y) {{
        [a] h = Conv(x, a)
        z = Resize<axes=[{",".join(str(-1 - i) for i in range(rank + 1))}]>(h, , , s)
        y = Conv(z, b)
    }}"""
    weights = {
        "a": normal([6, 3, *[1] * rank], 0),
        "b": normal([4, 6, *[1] * rank], 1),
        "s": ints(*[8] * rank, 6),
    }
    slimmed = check_exact(model := parse(text, weights), feeds(model))
    assert slimmed.counts == {"a": (6, 3)}


def test_flat_features_go_with_their_channel():
    """[N, 8, 4, 4] -> [N, 128]: a channel is 16 columns."""
    model = graph(
        "f = Flatten(h)\n [m] g = Gemm<transB=1>(f, m_w, m_b)\n z = Unsqueeze(g, t)",
        {"m_w": normal([8, 128], 3), "m_b": normal([8], 4), "t": ints(2, 3)},
    )
    assert makers(model) == {"a": {"a": ONES}, "m": {"m": ONES}}
    slimmed = check_exact(model, feeds(model))
    assert slimmed.slim.weight("m_w").shape == (4, 64)
    gone = [i for unit in slimmed.removed["a"] for i in range(16 * unit, 16 * unit + 16)]
    rows = np.delete(np.arange(8), slimmed.removed["m"])
    wanted = np.delete(model.weight("m_w")[rows], gone, axis=1)
    np.testing.assert_array_equal(slimmed.slim.weight("m_w"), wanted)


GEMMS = {
    "plain": ("[m] z = Gemm(r, w, c)", (8, 6), (6,), 0),
    "turned": ("[m] z = Gemm<transB=1, alpha=0.5, beta=2.0>(r, w, c)", (6, 8), (1, 6), 0),
    "bias for all": ("[m] z = Gemm<transB=1>(r, w, c)", (6, 8), (1,), 0),
    "from the left": ("[m] u = Gemm<transB=1>(w, r, c)\n z = Transpose(u)", (6, 8), (6, 1), 0),
    "from the left, turned": (
        "[m] u = Gemm<transA=1, transB=1>(w, r, c)\n z = Transpose(u)",
        (8, 6),
        (6, 1),
        0,
    ),
    "its data turned": (
        "t = Transpose(r)\n [m] z = Gemm<transA=1>(t, w, c)",
        (8, 6),
        (6,),
        0,
    ),
    "product": ("[m] u = MatMul(r, w)\n z = Add(u, c)", (8, 6), (6,), 0),
    "product from the left": (
        "t = Transpose(r)\n [m] u = MatMul(w, t)\n v = Add(u, c)\n z = Transpose(v)",
        (6, 8),
        (6, 1),
        0,
    ),
}


@pytest.mark.parametrize("case", GEMMS)
def test_products_whichever_side_is_stored(case):
    body, shape, bias, _ = GEMMS[case]
    text = f"""<ir_version: 10, opset_import: ["" : 17]> g (float[N,5] x) => (float[N,4] y) {{
        [a] h = Gemm(x, a)
        r = Tanh(h)
        {body}
        [b] y = MatMul(z, b)
    }}"""
    weights = {"a": normal([5, 8], 0), "w": normal(shape, 1), "c": normal(bias, 2)}
    model = parse(text, weights | {"b": normal([6, 4], 3)})
    assert makers(model) == {"a": {"a": ONES}, "m": {"m": [1] * 6}}
    slimmed = check_exact(model, feeds(model))
    assert slimmed.counts == {"a": (8, 4), "m": (6, 3)}
    readers = {group.name: group.readers for group in slimmed.channels.groups}
    assert readers == {"a": ("m",), "m": ("b",)}


def test_a_weight_that_two_layers_share_has_one_set_of_channels():
    body = """
        [c] k = Conv(h, w)
        r = Relu(k)
        [d] z = Conv(r, w)
    """
    model = graph(body, {"w": normal([8, 8, 1, 1], 3)})
    assert makers(model) == {"a": {"a": ONES, "c": ONES, "d": ONES}}
    check_exact(model, feeds(model))


def test_a_weight_that_is_read_otherwise_too_keeps_its_channels():
    body = """
        [c] k = Conv(h, w)
        [n] m = ReduceMax(w)
        z = Mul(k, m)
    """
    model = graph(body, {"w": normal([8, 8, 1, 1], 3)})
    channels = channels_of(model)
    assert "'w' is read by 'n' too" in channels.pinned["c"]
    assert "'w' is read by 'n' too" in channels.pinned["a"]
    check_exact(model, feeds(model), effect=0)


def test_equal_constants_that_are_stored_once_do_not_join_their_readers():
    """Such as the zero biases of all layers, which exporters and optimizers merge."""
    body = """
        r = Relu(h)
        [c] k = Conv(r, c_w, a_b)
        s = BatchNormalization(k, one, a_b, a_b, one)
        [d] z = Conv(s, d_w, a_b)
    """
    one = np.linspace(0.5, 2, 8, dtype=np.float32)
    weights = {"c_w": normal([8, 8, 1, 1], 3), "d_w": normal([8, 8, 1, 1], 4), "one": one}
    model = graph(body, weights)
    assert makers(model) == {name: {name: ONES} for name in "acd"}
    removed = {"a": [0, 1], "c": [5], "d": [0, 3, 7]}
    slimmed = check_exact(model, feeds(model), removed)
    assert slimmed.slim.weight("one").shape == (7,)
    biases = [node.inputs[2].name for node in slimmed.slim.nodes("Conv") if len(node.inputs) > 2]
    assert len(set(biases)) == 3
    same = check_exact(model, feeds(model), {"d": [2]})
    names = [node.inputs[2].name for node in same.slim.nodes("Conv") if len(node.inputs) > 2]
    assert names[:2] == ["a_b", "a_b"]  # these lose nothing


def test_a_shape_that_several_nodes_read_is_changed_for_each():
    body = """
        f = Reshape(h, s)
        g = Reshape(x24, s)
        t = Tanh(g)
        [m] p = MatMul(f, m_w)
        [l] q = MatMul(t, m_w2)
        u = Add(p, q)
        z = Unsqueeze(u, a)
    """
    weights = {
        "s": ints(-1, 128),
        "m_w": normal([128, 8], 3),
        "m_w2": normal([128, 8], 4),
        "a": ints(2, 3),
    }
    model = graph(body, weights, x=X + ", float[N,8,4,4] x24")
    slimmed = check_exact(model, feeds(model), {"a": [1, 2]})
    kept = [
        slimmed.slim.constant(node.inputs[1]).tolist() for node in slimmed.slim.nodes("Reshape")
    ]
    assert kept == [[-1, 96], [-1, 128]]


def test_a_size_copied_from_what_becomes_smaller_is_written_out():
    """[4, 4, 2] as [8, 0]: the 0 stands where there are channels before, and none afterwards."""
    text = """<ir_version: 10, opset_import: ["" : 17]> g (float[2,6] x) => (float[8,4] y) {
        [a] h = Gemm(x, a)
        w = Unsqueeze(h, t)
        e = Expand(w, s)
        r = Reshape(e, p)
        y = Relu(r)
    }"""
    weights = {"a": normal([6, 4], 0), "t": ints(2), "s": ints(2, 4, 4), "p": ints(8, 0)}
    model = parse(text, weights)
    assert "output of the model" in channels_of(model).pinned["a"]
    text = text.replace("float[8,4] y", "float[3,4] y").replace(
        "y = Relu(r)", "[b] y = MatMul(b, r)"
    )
    model = parse(text, weights | {"b": normal([3, 8], 1)})
    slimmed = check_exact(model, feeds(model), {"a": [2]})
    assert slimmed.slim.constant(slimmed.slim.node("Reshape_3").inputs[1]).tolist() == [6, 4]


def test_dense_features_that_become_an_image():
    """[N, 8 * 6 * 6] as [N, 8, 6, 6], as generators do: channels, though the image is larger."""
    text = """<ir_version: 10, opset_import: ["" : 17]> g (float[N,5] x) => (float[N,3,6,6] y) {
        [a] h = Gemm(x, a)
        r = Reshape(h, s)
        [b] y = Conv(r, b)
    }"""
    weights = {"a": normal([5, 144], 0), "s": ints(-1, 4, 6, 6), "b": normal([3, 4, 1, 1], 1)}
    model = parse(text, weights)
    assert makers(model) == {"a": {"a": [36] * 4}}
    assert check_exact(model, feeds(model)).counts == {"a": (144, 72)}


def test_free_height_and_width():
    body = "r = Relu(h)\n s = Reshape(r, p)\n t = Softmax(s)\n [n] z = Unsqueeze(t, a)"
    model = graph(body, {"p": ints(0, 0, -1), "a": ints(3)}, x="float[N,3,H,W] x")
    shape = {"x": normal([2, 3, 5, 7], 5)}
    assert makers(model) == {"a": {"a": ONES}}
    check_exact(model, shape)
    flat = graph(
        "[n] f = Reshape(h, p)\n z = Unsqueeze(f, a)",
        {"p": ints(0, -1), "a": ints(2, 3)},
        x="float[N,3,H,W] x",
    )
    assert "Reshape 'n': it lays channels out together" in channels_of(flat).pinned["a"]


def test_a_fixed_batch_may_be_among_the_channels():
    body = "s = Reshape(h, p)\n r = Relu(s)\n z = Reshape(r, q)"
    weights = {"p": ints(16, 1, 4, 4), "q": ints(2, 8, 4, 4)}
    model = graph(body, weights, x="float[2,3,4,4] x")
    assert makers(model) == {"a": {"a": ONES}}
    check_exact(model, feeds(model))


def test_shapes_that_fix_a_free_batch_are_taken_at_their_word():
    model = graph("s = Reshape(h, p)\n z = Reshape(s, p)", {"p": ints(1, 8, 4, 4)})
    assert makers(model) == {"a": {"a": ONES}}
    check_exact(model, {"x": normal([1, 3, 4, 4], 5)})


def test_outputs_in_the_middle_keep_their_channels():
    text = """<ir_version: 10, opset_import: ["" : 17]>
    g (float[N,3,4,4] x) => (float[N,6,4,4] h, float[N,4,4,4] y) {
        [a] h = Conv(x, a)
        r = Relu(h)
        [b] k = Conv(r, b)
        [c] y = Conv(k, c)
    }"""
    weights = {"a": normal([6, 3, 1, 1], 0), "b": normal([6, 6, 1, 1], 1)}
    model = parse(text, weights | {"c": normal([4, 6, 1, 1], 2)})
    channels = channels_of(model)
    assert channels.pinned == {
        "a": "'h' is an output of the model",
        "c": "'y' is an output of the model",
    }
    check_exact(model, feeds(model))


def test_what_a_body_reads_keeps_its_channels():
    text = """<ir_version: 10, opset_import: ["" : 17]>
    g (float[2,3,4,4] x, bool[] flag) => (float[2,8,4,4] y) {
        [a] h = Conv(x, a)
        [n] z = If(flag) <
            then_branch = t () => (float[2,8,4,4] p) { p = Relu(h) },
            else_branch = e () => (float[2,8,4,4] q) { q = Conv(h, w) }
        >
        [b] k = Conv(z, w)
        [c] y = Conv(k, c)
    }"""
    weights = {"a": normal([8, 3, 1, 1], 0), "w": normal([8, 8, 1, 1], 1)}
    model = parse(text, weights | {"c": normal([8, 8, 1, 1], 2)})
    channels = channels_of(model)
    assert channels.pinned["a"] == "If 'n' is not followed"
    assert "'w' is read by" in channels.pinned["b"]
    assert not channels.groups


def test_weights_that_are_graph_inputs_too():
    proto = conv_net(8)
    proto.ir_version = 3
    proto.graph.input.extend(value(t.name, t.dims) for t in proto.graph.initializer)
    model = Model.from_proto(proto)
    InferShapes().run(model, PassContext())
    slimmed = check_exact(model, feeds_for(proto))
    after = {
        i.name: [d.dim_value for d in i.type.tensor_type.shape.dim]
        for i in slimmed.slim.proto().graph.input
    }
    assert after["conv2.weight"] == [4, 4, 3, 3]


def test_quantized_models_keep_their_channels_and_say_why():
    model = quantize_model(conv_net(8)).model
    channels = channels_of(model)
    assert not channels.groups
    assert set(channels.pinned) == {"conv1", "conv2", "fc"}
    assert all("quantized weight" in why for why in channels.pinned.values())


def test_sparse_weights_keep_their_channels():
    proto = mlp(6, 8, 4)
    (first,) = (t for t in proto.graph.initializer if t.name == "fc0.weight")
    values = onnx.numpy_helper.to_array(first)
    sparse = onnx.SparseTensorProto()
    sparse.values.CopyFrom(onnx.numpy_helper.from_array(values.reshape(-1), "fc0.weight"))
    sparse.indices.CopyFrom(onnx.numpy_helper.from_array(np.arange(values.size), "indices"))
    sparse.dims.extend(values.shape)
    proto.graph.initializer.remove(first)
    proto.graph.sparse_initializer.append(sparse)
    channels = channels_of(Model.from_proto(proto))
    assert "sparse" in channels.pinned["fc0"]


def test_a_depthwise_layer_on_the_image_has_its_channels():
    text = """<ir_version: 10, opset_import: ["" : 17]> g (float[N,3,4,4] x) => (float[N,4,4,4] y) {
        [d] h = Conv<group=3>(x, d)
        [a] y = Conv(h, a)
    }"""
    model = parse(text, {"d": normal([6, 1, 1, 1], 0), "a": normal([4, 6, 1, 1], 1)})
    assert "no channels of its input" in channels_of(model).pinned["d"]


def test_what_can_only_go_together_is_pinned():
    single = graph("[c] z = Conv(h, w)", {"w": normal([1, 8, 1, 1], 3)}, 1)
    assert "all its channels are one" in channels_of(single).pinned["c"]
    body = "[c] k = Conv(h, w)\n z = DepthToSpace<blocksize=2>(k)"
    blocks = graph(body, {"w": normal([4, 8, 1, 1], 3)}, 1)
    assert "all its channels are one" in channels_of(blocks).pinned["c"]


def test_models_without_layers_have_no_groups():
    nodes = [helper.make_node("Relu", ["x"], ["y"], "r")]
    model = Model.from_proto(make_model(nodes, [value("x", ["N", 3])], [value("y", ["N", 3])]))
    channels = channels_of(model)
    assert (channels.groups, channels.pinned) == ((), {})
    assert channels.alive({}).size == 0
    assert remove(model.clone(), channels, {}) == {}


def test_units_of_one_block_are_in_the_same_tensors():
    body = "p, q = Split<axis=1>(h, s)\n r = Relu(q)\n z = Concat<axis=1>(p, r, r)"
    model = graph(body, {"s": ints(3, 5)}, 13)
    (group,) = channels_of(model).groups
    assert [len(block) for block in group.blocks()] == [3, 5]
    assert group.step(0, 8) == 8


def test_all_of_a_tensor_cannot_go():
    body = "p, q = Split<axis=1>(h, s)\n z = Concat<axis=1>(q, p)"
    channels = channels_of(graph(body, {"s": ints(3, 5)}))
    with pytest.raises(OptionError, match="nothing of tensor 'p' would be left"):
        channels.alive({"a": [0, 1, 2]})
    assert channels.alive({"a": [0, 1, 3, 4, 5, 6]}).any()
    with pytest.raises(OptionError, match="units 0 to 7"):
        channels.alive({"a": [8]})
    with pytest.raises(OptionError, match="no group of channels is called 'nobody'"):
        channels.alive({"nobody": [0]})
    with pytest.raises(OptionError, match="'b' can be removed: 'y' is an output"):
        channels.alive({"b": [0]})


def test_masks_are_of_weights_alone():
    model = graph(
        "f = Flatten(h)\n [m] g = Gemm(f, m_w, m_b)\n z = Unsqueeze(g, t)",
        {"m_w": normal([128, 8], 3), "m_b": normal([1, 8], 4), "t": ints(2, 3)},
    )
    channels = channels_of(model)
    found = channels.masks(model, {"a": [0], "m": [1, 2]})
    assert set(found) == {"a_w", "m_w", "b_w"}
    assert found["m_w"].keep.sum() == 112 * 6
    zeros = masked(model, channels, {"a": [0], "m": [1, 2]})
    assert not zeros.weight("a_w")[0].any()
    assert zeros.weight("m_b").all()


def chain(count):
    """Conv, BatchNormalization, Relu, Add over and over: `count` nodes."""
    nodes, weights, at = [], {}, "x"
    scale = np.ones(8, np.float32)
    for i in range(count // 4):
        weights[f"w{i}"] = normal([8, 8, 1, 1], i)
        weights |= {f"{kind}{i}": scale for kind in "smbv"}
        nodes.append(helper.make_node("Conv", [at, f"w{i}"], [f"c{i}"], f"conv{i}"))
        inputs = [f"c{i}", *(f"{kind}{i}" for kind in "sbmv")]
        nodes.append(helper.make_node("BatchNormalization", inputs, [f"n{i}"], f"bn{i}"))
        nodes.append(helper.make_node("Relu", [f"n{i}"], [f"r{i}"], f"relu{i}"))
        second = f"r{i}" if i % 5 == 0 else f"a{i - 1}"
        nodes.append(helper.make_node("Add", [f"r{i}", second], [f"a{i}"], f"add{i}"))
        at = f"a{i}"
    shape = ["N", 8, 4, 4]
    return make_model(nodes, [value("x", shape)], [value(at, shape)], weights)


def test_long_chains_of_nodes():
    model = Model.from_proto(chain(3000))
    InferShapes().run(model, PassContext())
    channels = channels_of(model)
    assert len(channels.groups) == 149
    assert len(channels.pinned) == 5
    removed = some_of(channels)
    assert (~channels.alive(removed)).any()
