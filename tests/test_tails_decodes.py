"""The decode of each detector, in small, with the operators that its exporter writes: all of it is
found as the tail, nothing before it is, and scores keep their digits next to boxes in pixels."""

import re
from dataclasses import dataclass

import numpy as np
import pytest
from builders import normal, outputs_of
from quantizing import parse, quantize_model, sqnr

from onnxdrp.tails import find_tail

CLASSES, SIZE = 3, 64
STRIDES = (8, 16)
CELLS = [(SIZE // s) ** 2 for s in STRIDES]  # 64 and 16
TRUNK = """
    [stem] s1 = Conv<pads = [1, 1, 1, 1], strides = [4, 4]>(x, w_stem) [act1] r1 = Relu(s1)
    [down] s2 = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(r1, w_down) [act2] p1 = Relu(s2)
    [deep] s3 = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(p1, w_deep) [act3] p2 = Relu(s3)
"""


@dataclass
class Head:
    """The end of a detector: its layers, what decodes them, and its stored tensors."""

    layers: str
    decode: str
    weights: dict[str, object]  # an array, or the shape of a learned weight
    outputs: str = "float[] y"
    axis: int = 2  # where boxes, then scores lie

    @property
    def tail(self):
        return re.findall(r"\[([a-z]\w*)\] ", self.decode)


def graph(head):
    shapes = {"w_stem": (8, 3, 3, 3), "w_down": (8, 8, 3, 3), "w_deep": (8, 8, 3, 3)}
    stored = {
        name: w if isinstance(w, np.ndarray) else normal(w, seed)
        for seed, (name, w) in enumerate((shapes | head.weights).items())
    }
    return parse(
        f'<ir_version: 10, opset_import: ["" : 17]> g (float[1, 3, {SIZE}, {SIZE}] x) => '
        f"({head.outputs}) {{ {TRUNK} {head.layers} {head.decode} }}",
        stored,
    )


def each(text):
    """The text once for each of the two scales, {i} its number."""
    return "".join(text.replace("{i}", str(i)) for i in (1, 2))


def grid(side, offset=0.0):
    """Column and row of each cell, [side, side, 2]."""
    rows, columns = np.mgrid[:side, :side]
    return (np.stack([columns, rows], -1) + offset).astype(np.float32)


def flat_grid(offset=0.0):
    """Columns and rows of the cells of both scales, [cells, 2], and their strides, [cells, 1]."""
    both = np.concatenate([grid(SIZE // s, offset).reshape(-1, 2) for s in STRIDES])
    strides = np.repeat(np.array(STRIDES, np.float32), CELLS)[:, None]
    return both, strides


ANCHORS = np.array([[[10, 13], [33, 23]], [[30, 61], [62, 45]]], np.float32)  # [scale, anchor, 2]


def anchored():
    """What YOLOv3 to v7 store for a scale: the grid and the anchors, [1, 2, side, side, 2]."""
    stored = {}
    for i, stride in enumerate(STRIDES, 1):
        side = SIZE // stride
        stored[f"grid{i}"] = np.broadcast_to(grid(side), (1, 2, side, side, 2)).copy()
        wide = ANCHORS[i - 1].reshape(1, 2, 1, 1, 2)
        stored[f"anchor{i}"] = np.broadcast_to(wide, (1, 2, side, side, 2)).copy()
        stored[f"stride{i}"] = np.array(stride, np.float32)
        stored[f"to{i}"] = np.array([1, 2, 5 + CLASSES, side, side])
    return stored


RAW = """[head{i}] c{i} = Conv(p{i}, w_head{i}, b_head{i})
"""
RAW_WEIGHTS = {
    f"{kind}_head{i}": shape for i in (1, 2) for kind, shape in (("w", (16, 8, 1, 1)), ("b", (16,)))
}


def yolov3():
    """Sigmoid of the centre, exponential of the size, each in its own slice."""
    decode = each("""
        [rows{i}] v{i} = Reshape(c{i}, to{i})
        [last{i}] t{i} = Transpose<perm = [0, 1, 3, 4, 2]>(v{i})
        [split{i}] xy{i}, wh{i}, conf{i} = Split<axis = 4>(t{i}, parts)
        [sxy{i}] q{i} = Sigmoid(xy{i}) [cell{i}] a{i} = Add(q{i}, grid{i})
        [pixel{i}] f{i} = Mul(a{i}, stride{i})
        [exp{i}] e{i} = Exp(wh{i}) [size{i}] z{i} = Mul(e{i}, anchor{i})
        [score{i}] o{i} = Sigmoid(conf{i}) [join{i}] j{i} = Concat<axis = 4>(f{i}, z{i}, o{i})
        [flat{i}] l{i} = Reshape(j{i}, flat)
    """)
    decode += "[all] y = Concat<axis = 1>(l1, l2)"
    weights = {**RAW_WEIGHTS, **anchored(), "parts": np.array([2, 2, 1 + CLASSES])}
    weights["flat"] = np.array([1, -1, 5 + CLASSES])
    return Head(each(RAW), decode, weights)


def yolov5():
    """One Sigmoid for all, then 2 xy - 1/2 and (2 wh)^2 (versions 6 and 7)."""
    decode = each("""
        [rows{i}] v{i} = Reshape(c{i}, to{i})
        [last{i}] t{i} = Transpose<perm = [0, 1, 3, 4, 2]>(v{i})
        [sig{i}] q{i} = Sigmoid(t{i})
        [split{i}] xy{i}, wh{i}, conf{i} = Split<axis = 4>(q{i}, parts)
        [twice{i}] d{i} = Mul(xy{i}, two) [cell{i}] a{i} = Add(d{i}, grid{i})
        [pixel{i}] f{i} = Mul(a{i}, stride{i})
        [double{i}] u{i} = Mul(wh{i}, two) [square{i}] e{i} = Pow(u{i}, two)
        [size{i}] z{i} = Mul(e{i}, anchor{i}) [join{i}] j{i} = Concat<axis = 4>(f{i}, z{i}, conf{i})
        [flat{i}] l{i} = Reshape(j{i}, flat)
    """)
    decode += "[all] y = Concat<axis = 1>(l1, l2)"
    weights = {**RAW_WEIGHTS, **anchored(), "parts": np.array([2, 2, 1 + CLASSES])}
    weights |= {"flat": np.array([1, -1, 5 + CLASSES]), "two": np.array(2, np.float32)}
    return Head(each(RAW), decode, weights)


def yolov7():
    """As YOLOv5, with ImplicitA before and ImplicitM after each last layer, decoded in place."""
    layers = each("""[imp{i}] h{i} = Add(p{i}, ia{i})
        [head{i}] k{i} = Conv(h{i}, w_head{i}, b_head{i})
    """)
    decode = each("""
        [scale{i}] c{i} = Mul(k{i}, im{i})
        [rows{i}] v{i} = Reshape(c{i}, to{i})
        [last{i}] t{i} = Transpose<perm = [0, 1, 3, 4, 2]>(v{i})
        [sig{i}] q{i} = Sigmoid(t{i})
        [cutxy{i}] xy{i} = Slice(q{i}, zero, end1, axes) [twice{i}] d{i} = Mul(xy{i}, two)
        [back{i}] g{i} = Sub(d{i}, half) [cell{i}] a{i} = Add(g{i}, grid{i})
        [pixel{i}] f{i} = Mul(a{i}, stride{i})
        [cutwh{i}] wh{i} = Slice(q{i}, end1, end2, axes) [double{i}] u{i} = Mul(wh{i}, two)
        [square{i}] e{i} = Pow(u{i}, two) [size{i}] z{i} = Mul(e{i}, anchor{i})
        [rest{i}] o{i} = Slice(q{i}, end2, end3, axes)
        [join{i}] j{i} = Concat<axis = 4>(f{i}, z{i}, o{i}) [flat{i}] l{i} = Reshape(j{i}, flat)
    """)
    decode += "[all] y = Concat<axis = 1>(l1, l2)"
    weights = {**RAW_WEIGHTS, **anchored(), "flat": np.array([1, -1, 5 + CLASSES])}
    weights |= {"two": np.array(2, np.float32), "half": np.array(0.5, np.float32)}
    weights |= {f"ia{i}": (1, 8, 1, 1) for i in (1, 2)} | {f"im{i}": (1, 16, 1, 1) for i in (1, 2)}
    ends = {"zero": 0, "end1": 2, "end2": 4, "end3": 99, "axes": 4}
    return Head(layers, decode, weights | {k: np.array([v]) for k, v in ends.items()})


# ----------------------------------------------------------- distributions: YOLOv8, v9, v10 and v11

SPLIT_HEAD = """[box{i}] b{i} = Conv(p{i}, w_box{i}, b_box{i}) [cls{i}] k{i} = Conv(p{i}, w_cls{i})
"""
DFL = """
    [cat1] a1 = Concat<axis = 1>(b1, k1) [flat1] l1 = Reshape(a1, flat)
    [cat2] a2 = Concat<axis = 1>(b2, k2) [flat2] l2 = Reshape(a2, flat)
    [all] l = Concat<axis = 2>(l1, l2) [split] dist, logit = Split<axis = 1>(l, parts)
    [four] d4 = Reshape(dist, four) [turn] dt = Transpose<perm = [0, 2, 1, 3]>(d4)
    [soft] p = Softmax<axis = 1>(dt) [dfl] e = Conv(p, w_dfl) [sides] d = Reshape(e, sides)
    [lt] n = Slice(d, zero, mid, one) [rb] m = Slice(d, mid, end, one)
    [x1] near = Sub(anchors, n) [x2] far = Add(anchors, m)
"""
XYWH = """
    [sum] both = Add(near, far) [centre] c = Div(both, two) [size] wh = Sub(far, near)
    [xywh] xy = Concat<axis = 1>(c, wh) [pixel] boxes = Mul(xy, strides)
    [sig] score = Sigmoid(logit) [out] y = Concat<axis = 1>(boxes, score)
"""


def dfl_weights():
    anchors, strides = flat_grid(0.5)
    stored = {
        "w_dfl": np.arange(16, dtype=np.float32).reshape(1, 16, 1, 1),
        "anchors": np.ascontiguousarray(anchors.T[None]),
        "strides": np.ascontiguousarray(strides.T[None]),
        "two": np.array(2, np.float32),
    }
    integers = {
        "flat": [1, 64 + CLASSES, -1], "parts": [64, CLASSES], "four": [1, 4, 16, -1],
        "sides": [1, 4, -1], "zero": [0], "mid": [2], "end": [4], "one": [1],
    }  # fmt: skip
    learned = {}
    for i in (1, 2):
        learned |= {f"w_box{i}": (64, 8, 1, 1), f"b_box{i}": (64,), f"w_cls{i}": (CLASSES, 8, 1, 1)}
    return learned | stored | {k: np.array(v) for k, v in integers.items()}


def yolov8():
    """The mean of a distribution by a Conv of weights 0, 1, 2, ...; boxes as centre and size."""
    return Head(each(SPLIT_HEAD), DFL + XYWH, dfl_weights(), axis=1)


def twin(text):
    """The same nodes once more, with names of their own, on the same features."""
    made = re.findall(r"\] ([\w, ]+) =", text)
    names = {name for several in made for name in several.split(", ")}
    text = re.sub(r"\w+", lambda word: word[0] + "_b" * (word[0] in names), text)
    return re.sub(r"\[([a-z]\w*?)(_b)?\] ", r"[\1_b] ", text)


def yolov9():
    """The same, with the auxiliary head that is exported beside it: two tails."""
    layers, decode = each(SPLIT_HEAD), DFL + XYWH
    text = f"{layers} {decode}"
    both = twin(text)
    cut = both.index("[cat1_b]")
    return Head(
        layers + both[:cut], decode + both[cut:], dfl_weights(), "float[] y, float[] y_b", axis=1
    )


def yolov10():
    """Free of NMS: the best by TopK, twice, and what belongs to them gathered; corners."""
    best = """
        [corners] xy = Concat<axis = 1>(near, far) [pixel] boxes = Mul(xy, strides)
        [sig] score = Sigmoid(logit) [out] o = Concat<axis = 1>(boxes, score)
        [swap] r = Transpose<perm = [0, 2, 1]>(o) [apart] bx, sc = Split<axis = 2>(r, ends)
        [best] top = ReduceMax<axes = [2], keepdims = 0>(sc) [pick] v1, i1 = TopK<axis = 1>(top, k)
        [idx] i2 = Unsqueeze(i1, last) [tb] ib = Tile(i2, by_four) [tc] ic = Tile(i2, by_classes)
        [gb] gboxes = GatherElements<axis = 1>(bx, ib)
        [gc] gscores = GatherElements<axis = 1>(sc, ic)
        [flatten] fs = Flatten(gscores) [again] v3, i3 = TopK<axis = 1>(fs, k)
        [label] lab = Mod(i3, classes) [number] num = Div(i3, classes)
        [wide] w4 = Unsqueeze(num, last) [tile] w5 = Tile(w4, by_four)
        [final] fb = GatherElements<axis = 1>(gboxes, w5) [conf] v6 = Unsqueeze(v3, last)
        [cast] lf = Cast<to = 1>(lab) [lab6] l6 = Unsqueeze(lf, last)
        [rows] y = Concat<axis = 2>(fb, v6, l6)
    """
    integers = {
        "ends": [4, CLASSES], "k": [5], "last": [-1], "by_four": [1, 1, 4],
        "by_classes": [1, 1, CLASSES], "classes": CLASSES,
    }  # fmt: skip
    weights = dfl_weights() | {k: np.array(v) for k, v in integers.items()}
    return Head(each(SPLIT_HEAD), DFL + best, weights)


def yolov11():
    """Attention (C2PSA) in the trunk, whose MatMuls and Softmax are no tail; depthwise scores."""
    layers = """
        [qkv] q0 = Conv(p2, w_qkv) [rq] q1 = Reshape(q0, heads)
        [sq] q, k, v = Split<axis = 1>(q1, thirds)
        [qt] qt = Transpose<perm = [0, 2, 1]>(q) [qk] qk = MatMul(qt, k)
        [as] at = Softmax<axis = 2>(qk)
        [av] av = MatMul(v, at) [rv] av4 = Reshape(av, square) [proj] pr = Conv(av4, w_proj)
        [res] f2 = Add(p2, pr)
    """
    head = """[box{i}] b{i} = Conv({f}, w_box{i}, b_box{i})
        [dw{i}] d{i}0 = Conv<group = 8>({f}, w_dw{i})
        [sd{i}] e{i}0 = Sigmoid(d{i}0) [md{i}] m{i}0 = Mul(d{i}0, e{i}0)
        [cls{i}] k{i} = Conv(m{i}0, w_cls{i})
    """
    layers += head.replace("{i}", "1").replace("{f}", "p1")
    layers += head.replace("{i}", "2").replace("{f}", "f2")
    weights = dfl_weights() | {"w_qkv": (24, 8, 1, 1), "w_proj": (8, 8, 1, 1)}
    weights |= {"w_dw1": (8, 1, 1, 1), "w_dw2": (8, 1, 1, 1), "heads": np.array([1, 24, -1])}
    weights |= {"thirds": np.array([8, 8, 8]), "square": np.array([1, 8, 4, 4])}
    return Head(layers, DFL + XYWH, weights, axis=1)


# -------------------------------------------------------------------------------------------- YOLOX

YOLOX_LAYERS = """[reg{i}] b{i} = Conv(p{i}, w_reg{i}) [obj{i}] o{i} = Conv(p{i}, w_obj{i})
    [cls{i}] k{i} = Conv(p{i}, w_cls{i})
"""
YOLOX_JOIN = """
    [so1] so1 = Sigmoid(o1) [sk1] sk1 = Sigmoid(k1) [cat1] a1 = Concat<axis = 1>(b1, so1, sk1)
    [flat1] l1 = Reshape(a1, flat)
    [so2] so2 = Sigmoid(o2) [sk2] sk2 = Sigmoid(k2) [cat2] a2 = Concat<axis = 1>(b2, so2, sk2)
    [flat2] l2 = Reshape(a2, flat)
    [all] l = Concat<axis = 2>(l1, l2) [turn] t = Transpose<perm = [0, 2, 1]>(l)
"""


def yolox_weights():
    cells, strides = flat_grid()
    learned = {}
    for i in (1, 2):
        learned |= {f"w_reg{i}": (4, 8, 1, 1), f"w_obj{i}": (1, 8, 1, 1)}
        learned |= {f"w_cls{i}": (CLASSES, 8, 1, 1)}
    integers = {
        "flat": [1, 5 + CLASSES, -1], "zero": [0], "mid": [2], "end": [4], "rest": [99],
        "axis": [2],
    }  # fmt: skip
    return learned | {"cells": cells[None], "strides": strides[None]} | {
        k: np.array(v) for k, v in integers.items()
    }  # fmt: skip


def yolox_decoded():
    """decode_in_inference: centre and size by their slices, then joined."""
    decode = (
        YOLOX_JOIN
        + """
        [cutxy] xy = Slice(t, zero, mid, axis) [cell] c = Add(xy, cells)
        [pixel] cp = Mul(c, strides)
        [cutwh] wh = Slice(t, mid, end, axis) [exp] e = Exp(wh) [size] wp = Mul(e, strides)
        [scores] s = Slice(t, end, rest, axis) [out] y = Concat<axis = 2>(cp, wp, s)
    """
    )
    return Head(each(YOLOX_LAYERS), decode, yolox_weights())


def yolox_in_place():
    """The same as PyTorch's tracer writes an assignment to a slice: ScatterND."""
    decode = (
        YOLOX_JOIN
        + """
        [cutxy] xy = Slice(t, zero, mid, axis) [cell] c = Add(xy, cells)
        [pixel] cp = Mul(c, strides)
        [put] t2 = ScatterND(t, at_xy, cp)
        [cutwh] wh = Slice(t2, mid, end, axis) [exp] e = Exp(wh) [size] wp = Mul(e, strides)
        [put2] y = ScatterND(t2, at_wh, wp)
    """
    )
    places = np.stack(np.meshgrid([0], np.arange(80), np.arange(4), indexing="ij"), -1)
    weights = yolox_weights() | {"at_xy": places[:, :, :2], "at_wh": places[:, :, 2:]}
    return Head(each(YOLOX_LAYERS), decode, weights)


# ---------------------------------------------------------------------------------------------- SSD

SSD_LAYERS = """[loc{i}] b{i} = Conv(p{i}, w_loc{i}) [conf{i}] k{i} = Conv(p{i}, w_conf{i})
"""


def ssd_weights():
    centres, strides = flat_grid(0.5)
    priors = np.concatenate([centres * strides, np.full_like(centres, 2) * strides], -1)
    learned = {}
    for i in (1, 2):
        learned |= {f"w_loc{i}": (4, 8, 1, 1), f"w_conf{i}": (CLASSES + 1, 8, 1, 1)}
    stored = {
        "pxy": priors[None, :, :2], "pwh": priors[None, :, 2:], "half": np.array(0.5, np.float32),
        "v1": np.array(0.1, np.float32), "v2": np.array(0.2, np.float32),
        "py": priors[None, :, 1:2], "px": priors[None, :, :1],
        "ph": priors[None, :, 3:], "pw": priors[None, :, 2:3],
        "ten": np.array(10, np.float32), "five": np.array(5, np.float32),
    }  # fmt: skip
    integers = {
        "four": [1, -1, 4], "many": [1, -1, CLASSES + 1], "zero": [0], "mid": [2], "end": [4],
        "axis": [2], "first": [1], "rest": [99], "most": [5],
    }  # fmt: skip
    return learned | {k: np.ascontiguousarray(v) for k, v in stored.items()} | {
        k: np.array(v) for k, v in integers.items()
    }  # fmt: skip


SSD_JOIN = (
    each("""
    [lt{i}] lt{i} = Transpose<perm = [0, 2, 3, 1]>(b{i}) [lf{i}] lf{i} = Reshape(lt{i}, four)
    [kt{i}] kt{i} = Transpose<perm = [0, 2, 3, 1]>(k{i}) [kf{i}] kf{i} = Reshape(kt{i}, many)
""")
    + """
    [lcat] loc = Concat<axis = 1>(lf1, lf2) [kcat] conf = Concat<axis = 1>(kf1, kf2)
"""
)


def ssd():
    """PyTorch's: Softmax, centre and size by variances, then corners; one output of both."""
    decode = (
        SSD_JOIN
        + """
        [soft] scores = Softmax<axis = 2>(conf)
        [cutxy] txy = Slice(loc, zero, mid, axis) [vxy] dxy = Mul(txy, v1) [mxy] mxy = Mul(dxy, pwh)
        [axy] cxy = Add(mxy, pxy)
        [cutwh] twh = Slice(loc, mid, end, axis) [vwh] dwh = Mul(twh, v2) [exp] ewh = Exp(dwh)
        [mwh] wh = Mul(ewh, pwh) [hw] hwh = Mul(wh, half) [near] tl = Sub(cxy, hwh)
        [far] br = Add(cxy, hwh)
        [out] y = Concat<axis = 2>(tl, br, scores)
    """
    )
    return Head(each(SSD_LAYERS), decode, ssd_weights())


def ssd_tensorflow():
    """TensorFlow's: Sigmoid, the code unpacked and divided by 10 and 5, then NonMaxSuppression."""
    decode = (
        SSD_JOIN
        + """
        [sig] sg = Sigmoid(conf) [drop] scores = Slice(sg, first, rest, axis)
        [unpack] ty, tx, th, tw = Split<axis = 2>(loc)
        [dh] th5 = Div(th, five) [eh] eh = Exp(th5) [h] h = Mul(eh, ph)
        [dw] tw5 = Div(tw, five) [ew] ew = Exp(tw5) [w] w = Mul(ew, pw)
        [dy] ty10 = Div(ty, ten) [my] my = Mul(ty10, ph) [yc] yc = Add(my, py)
        [dx] tx10 = Div(tx, ten) [mx] mx = Mul(tx10, pw) [xc] xc = Add(mx, px)
        [hh] hh = Mul(h, half) [hw] hw = Mul(w, half)
        [ymin] y0 = Sub(yc, hh) [xmin] x0 = Sub(xc, hw) [ymax] y1 = Add(yc, hh)
        [xmax] x1 = Add(xc, hw)
        [boxes] bx = Concat<axis = 2>(y0, x0, y1, x1)
        [by_class] st = Transpose<perm = [0, 2, 1]>(scores)
        [nms] sel = NonMaxSuppression(bx, st, most) [which] at = Slice(sel, mid, rest, first)
        [flat] index = Squeeze(at, first) [pick] y = Gather<axis = 1>(bx, index)
    """
    )
    return Head(each(SSD_LAYERS), decode, ssd_weights(), "float[] y, int64[] sel")


DETECTORS = {
    f.__name__: f
    for f in (
        yolov3, yolov5, yolov7, yolov8, yolov9, yolov10, yolov11, yolox_decoded, yolox_in_place,
        ssd, ssd_tensorflow,
    )
}  # fmt: skip
JOINED = [n for n in DETECTORS if n not in ("yolov10", "ssd_tensorflow")]  # no choice in the output


@pytest.mark.parametrize("name", DETECTORS)
def test_all_that_decodes_is_the_tail_and_nothing_before_it(name):
    head = DETECTORS[name]()
    model = graph(head)
    x = np.random.default_rng(0).standard_normal((1, 3, SIZE, SIZE)).astype(np.float32)
    for array in model.session().run(None, {"x": x}):
        assert np.isfinite(array).all()
        assert array.size
    assert sorted(find_tail(model)) == sorted(head.tail)
    assert len(head.tail) > 15


def parts(head, array):
    """Boxes and scores of an output."""
    array = np.moveaxis(array, head.axis, -1)
    return array[..., :4], array[..., 4:]


@pytest.mark.parametrize("name", JOINED)
def test_boxes_are_pixels_scores_are_shares_and_both_survive(name):
    head = DETECTORS[name]()
    model = graph(head)
    x = np.random.default_rng(1).standard_normal((1, 3, SIZE, SIZE)).astype(np.float32)
    want = parts(head, outputs_of(model.proto(), {"x": x})[0])
    assert np.abs(want[0]).max() > 20, "boxes in pixels"
    assert 0 < want[1].min() < want[1].max() < 1, "scores are shares"
    found = {}
    for mode in ("auto", "none"):
        done = quantize_model(model.clone(), {"x": x}, exclude_tail=mode, method="minmax")
        got = parts(head, outputs_of(done.model.proto(), {"x": x})[0])
        found[mode] = [sqnr(w, g) for w, g in zip(want, got, strict=True)]
        if mode == "auto":
            decoded = {t.name for n in head.tail for t in done.before.node(n).outputs}
            assert not {f"{name}_scale" for name in decoded} & done.tensors().keys()
    assert found["auto"][0] > 20
    assert found["auto"][1] > 20
    assert found["auto"][1] > found["none"][1] + 5
    assert found["auto"][0] > found["none"][0] - 1
