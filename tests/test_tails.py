"""Tails: the decoding of detectors is found in all its forms, and nothing else is taken for it."""

import numpy as np
import onnx
import pytest
from builders import make_model, normal, outputs_of, value
from onnx import helper
from quantizing import parse, quantize_model, sqnr

from onnxdrp.model import Model, reads
from onnxdrp.passes import InferShapes
from onnxdrp.pipeline import PassContext
from onnxdrp.tails import find_head, find_tail

# Two features of 8 channels, 8x8 and 4x4: what heads stand on.
TRUNK = """
    [stem] p3 = Conv<pads = [1, 1, 1, 1]>(x, w_stem) [act] r = Relu(p3)
    [down] p4 = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(r, w_down) [act4] q = Relu(p4)
"""


def graph(head, outputs, weights, constants=""):
    """A trunk and a head, in ONNX's text form; `weights` give Conv weights their shapes."""
    shapes = {"w_stem": (8, 3, 3, 3), "w_down": (8, 8, 3, 3)} | weights
    stored = {
        name: w if isinstance(w, np.ndarray) else normal(w, seed)
        for seed, (name, w) in enumerate(shapes.items())
    }
    text = (
        '<ir_version: 10, opset_import: ["" : 17]> g (float[1, 3, 8, 8] x) => '
        f"({', '.join(f'float[] {o}' for o in outputs)}) "
        f"<{constants}> {{ {TRUNK} {head} }}"
    )
    return parse(text, stored)


def tail_of(head, outputs, weights, constants=""):
    model = graph(head, outputs, weights, constants)
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    for found in model.session().run(None, {"x": x}):  # the head is one that computes something
        assert np.isfinite(found).all()
        assert found.size
    return list(find_tail(model))


INTS = "int64[3] flat = {1, 12, -1}, int64[3] rows = {1, -1, 6}, int64[2] parts = {2, 4}"


def yolox():
    scale = """
        [box{i}] b{i} = Conv({f}, w_b) [obj{i}] o{i} = Conv({f}, w_o) [cls{i}] c{i} = Conv({f}, w_c)
        [so{i}] so{i} = Sigmoid(o{i}) [sc{i}] sc{i} = Sigmoid(c{i})
        [cat{i}] k{i} = Concat<axis = 1>(b{i}, so{i}, sc{i}) [flat{i}] l{i} = Reshape(k{i}, flat)
    """
    head = scale.format(i=1, f="r") + scale.format(i=2, f="q")
    head += "[cat] k = Concat<axis = 2>(l1, l2) [turn] y = Transpose<perm = [0, 2, 1]>(k)"
    weights = {"w_b": (4, 8, 1, 1), "w_o": (1, 8, 1, 1), "w_c": (7, 8, 1, 1)}
    tail = ["so1", "sc1", "cat1", "flat1", "so2", "sc2", "cat2", "flat2", "cat", "turn"]
    return head, ["y"], weights, INTS, tail


def yolov5():
    scale = """
        [conv{i}] c{i} = Conv({f}, w) [rows{i}] v{i} = Reshape(c{i}, rows)
        [sig{i}] s{i} = Sigmoid(v{i}) [split{i}] xy{i}, rest{i} = Split<axis = 2>(s{i}, parts)
        [two{i}] t{i} = Mul(xy{i}, two) [grid{i}] g{i} = Add(t{i}, half)
        [stride{i}] z{i} = Mul(g{i}, stride) [join{i}] j{i} = Concat<axis = 2>(z{i}, rest{i})
    """
    head = scale.format(i=1, f="r") + scale.format(i=2, f="q")
    head += "[cat] y = Concat<axis = 1>(j1, j2)"
    constants = f"{INTS}, float two = {{2}}, float half = {{-0.5}}, float stride = {{8}}"
    one = ["rows", "sig", "split", "two", "grid", "stride", "join"]
    tail = [f"{name}{i}" for i in (1, 2) for name in one] + ["cat"]
    return head, ["y"], {"w": (18, 8, 1, 1)}, constants, tail


def yolov5_in_place():
    head = """
        [conv] c = Conv(r, w) [rows] v = Reshape(c, rows) [sig] s = Sigmoid(v)
        [cut] xy = Slice(s, from, to, axes) [stride] z = Mul(xy, eight)
        [write] y = ScatterND(s, at, z)
    """
    constants = f"{INTS}, float eight = {{8}}, int64[1] from = {{0}}, int64[1] to = {{1}}, "
    constants += "int64[1] axes = {1}, int64[1, 2] at = {0, 0}"
    head = head.replace("z = Mul(xy, eight)", "z0 = Mul(xy, eight) [sq] z = Squeeze(z0, axes)")
    tail = ["rows", "sig", "cut", "stride", "sq", "write"]
    return head, ["y"], {"w": (18, 8, 1, 1)}, constants, tail


def yolov8():
    scale = """
        [box{i}] b{i} = Conv({f}, w_b) [cls{i}] c{i} = Conv({f}, w_c)
        [cat{i}] k{i} = Concat<axis = 1>(b{i}, c{i}) [flat{i}] l{i} = Reshape(k{i}, flat)
    """
    head = scale.format(i=1, f="r") + scale.format(i=2, f="q")
    head += """
        [cat] all = Concat<axis = 2>(l1, l2) [split] dist, logit = Split<axis = 1>(all, sizes)
        [four] d4 = Reshape(dist, four) [turn] dt = Transpose<perm = [0, 2, 1, 3]>(d4)
        [soft] p = Softmax<axis = 1>(dt) [dfl] e = Conv(p, w_dfl) [sides] d = Reshape(e, sides)
        [lt] l, t = Split<axis = 1>(d, twos)
        [x1] x1 = Sub(anchors, l) [x2] x2 = Add(anchors, t)
        [sum] m = Add(x1, x2) [centre] mid = Div(m, two) [size] wh = Sub(x2, x1)
        [xywh] boxes = Concat<axis = 1>(mid, wh) [pixels] px = Mul(boxes, strides)
        [sig] score = Sigmoid(logit) [out] y = Concat<axis = 1>(px, score)
    """
    constants = """int64[3] flat = {1, 67, -1}, int64[2] sizes = {64, 3}, float two = {2},
        int64[4] four = {1, 4, 16, -1}, int64[3] sides = {1, 4, -1}, int64[2] twos = {2, 2}"""
    weights = {
        "w_b": (64, 8, 1, 1), "w_c": (3, 8, 1, 1),
        "w_dfl": np.arange(16, dtype=np.float32).reshape(1, 16, 1, 1),
        "anchors": np.stack(np.divmod(np.arange(80), 9)).astype(np.float32)[None] + 0.5,
        "strides": np.where(np.arange(80) < 64, 8, 32).astype(np.float32)[None, None],
    }  # fmt: skip
    tail = """cat1 flat1 cat2 flat2 cat split four turn soft dfl sides lt x1 x2 sum centre size
        xywh pixels sig out"""
    return head, ["y"], weights, constants, tail.split()


def nanodet():
    """The mean of a distribution as a MatMul."""
    head = """
        [box] b = Conv(r, w_b) [cls] c = Conv(r, w_c)
        [rows] v = Reshape(b, eight) [soft] p = Softmax<axis = 2>(v) [mean] e = MatMul(p, steps)
        [sides] d = Reshape(e, four) [turn] t = Reshape(c, three) [sig] s = Sigmoid(t)
        [out] y = Concat<axis = 2>(d, s)
    """
    constants = """int64[3] eight = {1, -1, 8}, int64[3] four = {1, -1, 4},
        int64[3] three = {1, -1, 3}"""
    weights = {
        "w_b": (32, 8, 1, 1), "w_c": (3, 8, 1, 1),
        "steps": np.arange(8, dtype=np.float32).reshape(8, 1),
    }  # fmt: skip
    tail = ["rows", "soft", "mean", "sides", "turn", "sig", "out"]
    return head, ["y"], weights, constants, tail


def yolov7_with_nms():
    """Corners by a fixed 4x4 matrix, then NonMaxSuppression and what it selects."""
    head = """
        [conv] c = Conv(r, w) [rows] v = Reshape(c, rows) [sig] s = Sigmoid(v)
        [split] b, k = Split<axis = 2>(s, parts) [corners] z = MatMul(b, turn)
        [turned] t = Transpose<perm = [0, 2, 1]>(k)
        [nms] n = NonMaxSuppression(z, t, many) [pick] g = Gather<axis = 0>(n, at)
        [out] y = Cast<to = 1>(g)
    """
    constants = """int64[3] rows = {1, -1, 6}, int64[2] parts = {4, 2}, int64 many = {5},
        int64[1] at = {0}"""
    turn = np.array([[1, 0, 1, 0], [0, 1, 0, 1], [-0.5, 0, 0.5, 0], [0, -0.5, 0, 0.5]], np.float32)
    tail = ["rows", "sig", "split", "corners", "turned", "nms", "pick", "out"]
    return head, ["y"], {"w": (18, 8, 1, 1), "turn": turn}, constants, tail


def ssd():
    scale = """
        [loc{i}] l{i} = Conv({f}, w_l) [lt{i}] m{i} = Transpose<perm = [0, 2, 3, 1]>(l{i})
        [lr{i}] lf{i} = Reshape(m{i}, four)
        [conf{i}] c{i} = Conv({f}, w_c) [ct{i}] d{i} = Transpose<perm = [0, 2, 3, 1]>(c{i})
        [cr{i}] cf{i} = Reshape(d{i}, three)
    """
    head = scale.format(i=1, f="r") + scale.format(i=2, f="q")
    head += """
        [lcat] loc = Concat<axis = 1>(lf1, lf2) [ccat] conf = Concat<axis = 1>(cf1, cf2)
        [soft] scores = Softmax<axis = 2>(conf) [scale] off = Mul(loc, tenth)
        [exp] boxes = Exp(off)
    """
    constants = "int64[3] four = {1, -1, 4}, int64[3] three = {1, -1, 3}, float tenth = {0.1}"
    one = [f"{n}{i}" for i in (1, 2) for n in ("lt", "lr", "ct", "cr")]
    tail = [*one, "lcat", "ccat", "soft", "scale", "exp"]
    return head, ["boxes", "scores"], {"w_l": (8, 8, 1, 1), "w_c": (6, 8, 1, 1)}, constants, tail


DETECTORS = {
    f.__name__: f for f in (yolox, yolov5, yolov5_in_place, yolov8, nanodet, yolov7_with_nms, ssd)
}


@pytest.mark.parametrize("name", DETECTORS)
def test_the_tail_of_a_detector_is_all_that_decodes_and_no_layer(name):
    head, outputs, weights, constants, tail = DETECTORS[name]()
    assert tail_of(head, outputs, weights, constants) == tail


CLASSIFIER = "[pool] p = GlobalAveragePool(q) [flat] f = Flatten(p) [fc] y = Gemm(f, w)"
NO_TAIL = {
    "classifier": (CLASSIFIER, ["y"], {"w": (8, 5)}),
    "classifier with softmax": (
        CLASSIFIER.replace("y =", "z =") + "[soft] y = Softmax(z)", ["y"], {"w": (8, 5)},
    ),
    "classifier with top-k": (
        CLASSIFIER.replace("y =", "z =") + "s = Softmax(z) y, i = TopK(s, k)", ["y"],
        {"w": (8, 5), "k": np.array([2])},
    ),
    "classifier of a convolution, pooled last": (
        "c = Conv(q, w) a = Relu(c) p = GlobalAveragePool(a) f = Flatten(p) y = Softmax(f)", ["y"],
        {"w": (5, 8, 1, 1)},
    ),
    "branches that are joined and pooled": (
        "a = Conv(q, w) b = Conv(q, v) k = Concat<axis = 1>(a, b) y = GlobalAveragePool(k)", ["y"],
        {"w": (5, 8, 1, 1), "v": (3, 8, 1, 1)},
    ),
    "dense block, normalized": (
        """a = Conv(q, w) k = Concat<axis = 1>(q, a)
           n = BatchNormalization(k, one, zero, zero, one) y = Relu(n)""", ["y"],
        {"w": (8, 8, 1, 1), "one": np.ones(16, np.float32), "zero": np.zeros(16, np.float32)},
    ),
    "segmentation": (
        "c = Conv(q, w) u = Resize(c, , s) y = Softmax<axis = 1>(u)", ["y"],
        {"w": (5, 8, 1, 1), "s": np.array([1, 1, 4, 4], np.float32)},
    ),
    "U-Net": (
        """u = ConvTranspose<strides = [2, 2]>(q, w) k = Concat<axis = 1>(u, r) c = Conv(k, v)
           y = Sigmoid(c)""", ["y"], {"w": (8, 8, 2, 2), "v": (1, 16, 1, 1)},
    ),
    "text detector": (
        "u = ConvTranspose<strides = [2, 2]>(q, w) y = Sigmoid(u)", ["y"], {"w": (8, 1, 2, 2)},
    ),
    "text recognizer": (
        """t = Transpose<perm = [0, 2, 3, 1]>(q) m = MatMul(t, w) a = Add(m, b)
           y = Softmax<axis = 3>(a)""", ["y"], {"w": (8, 5), "b": (5,)},
    ),
    "super resolution": (
        """c = Conv(r, w) d = DepthToSpace<blocksize = 2>(c) m = Mul(d, k) a = Add(m, k)
           y = Clip(a)""", ["y"], {"w": (12, 8, 1, 1), "k": (1, 3, 1, 1)},
    ),
    "heads that stay apart": (
        "a = Conv(q, w) y = Sigmoid(a) b = Conv(r, v) z = Exp(b)", ["y", "z"],
        {"w": (5, 8, 1, 1), "v": (4, 8, 1, 1)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_TAIL)
def test_what_decodes_nothing_has_no_tail(name):
    assert tail_of(*NO_TAIL[name]) == []


def test_shapes_that_are_computed_are_no_data():
    head = """
        c = Conv(q, w) s = Shape(c) n = Gather(s, zero) u = Unsqueeze(n, zero)
        k = Concat<axis = 0>(u, rest) y = Reshape(c, k)
    """
    weights = {"w": (5, 8, 1, 1), "zero": np.array([0]), "rest": np.array([-1])}
    head = head.replace("n = Gather(s, zero)", "n = ReduceMax<keepdims = 0>(s)")
    assert tail_of(head, ["y"], weights) == []


def test_a_branch_apart_from_the_tail_is_not_in_it():
    """The prototypes of a segmenting detector: an output of their own, with nothing joined."""
    head, _, weights, constants, tail = yolox()
    head += "[proto] m = Conv(r, w_m) [sig_m] n = Sigmoid(m) [silu] masks = Mul(m, n)"
    found = tail_of(head, ["y", "masks"], weights | {"w_m": (6, 8, 3, 3)}, constants)
    assert found == tail


def test_activations_and_biases_belong_to_the_last_layers():
    head = """
        [one] a = Conv(q, w) [ra] ra = Relu(a) [two] b = Conv(q, v) [rb] rb = Clip(b, lo)
        [cat] y = Concat<axis = 1>(ra, rb)
        [turn] t = Transpose<perm = [0, 2, 3, 1]>(q)
        [m1] m1 = MatMul(t, f) [b1] f1 = Add(m1, h) [m2] m2 = MatMul(t, g) [b2] f2 = Add(m2, h)
        [cat2] z = Concat<axis = 3>(f1, f2)
    """
    weights = {
        "w": (5, 8, 1, 1), "v": (3, 8, 1, 1), "lo": np.array(0, np.float32),
        "f": (8, 4), "g": (8, 4), "h": (4,),
    }  # fmt: skip
    assert tail_of(head, ["y", "z"], weights) == ["cat", "cat2"]


def test_only_fixed_weights_are_arithmetic():
    head, outputs, weights, constants, tail = yolov8()
    steps = weights["w_dfl"]
    for learned in (steps + np.float32(0.01), np.zeros_like(steps)):
        found = tail_of(head, outputs, weights | {"w_dfl": learned}, constants)
        assert (
            found == tail[tail.index("sides") :]
        )  # that Conv is a layer: the tail begins behind it
    assert tail_of(head, outputs, weights | {"w_dfl": steps * 8}, constants) == tail


def test_each_reason_says_what_it_is_and_which_node_joins():
    head, outputs, weights, constants, _ = yolox()
    why = find_tail(graph(head, outputs, weights, constants))
    assert all(text.startswith("tail: decodes boxes and scores") for text in why.values())
    assert "(Concat 'cat2' joins them)" in why["sc2"]
    assert "(Concat 'cat' joins them)" in why["turn"]


# ------------------------------------------------------------------------------------ what it buys


def test_scores_keep_their_digits_and_every_branch_has_a_scale_of_its_own():
    head, outputs, weights, constants, tail = yolov8()
    model = graph(head, outputs, weights, constants)
    x = np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype(np.float32)
    (want,) = outputs_of(model.proto(), {"x": x})
    assert want.shape == (1, 7, 80)
    assert want[:, :4].max() > 20
    assert 0 < want[:, 4:].min() < want[:, 4:].max() < 1
    scores, boxes = {}, {}
    for mode in ("auto", "none"):
        done = quantize_model(model.clone(), {"x": x}, exclude_tail=mode, method="minmax")
        (got,) = outputs_of(done.model.proto(), {"x": x})
        boxes[mode], scores[mode] = sqnr(want[:, :4], got[:, :4]), sqnr(want[:, 4:], got[:, 4:])
        kept = done.ctx.kept_float
        assert (set(tail) <= kept.keys()) == (mode == "auto")
        if mode == "auto":
            scales = [float(done.params(name)[0]) for name in ("b1", "c1", "b2", "c2")]
            assert len(set(scales)) == 4
            assert done.stats["calibrate"]["tail"] == tail
            decoded = {t.name for name in tail for t in done.before.node(name).outputs}
            assert not {f"{name}_scale" for name in decoded} & done.tensors().keys()
        else:
            assert done.stats["calibrate"]["tail"] == []
    assert scores["auto"] > 25
    assert scores["auto"] > scores["none"] + 15
    assert boxes["auto"] > boxes["none"] - 1


def test_real_models(modA, modB, shared):
    for path in (modA, modB, *(shared / "models").glob("*.onnx")):
        model = Model.load(path)
        InferShapes().run(model, PassContext())
        found = find_tail(model)
        assert bool(found) == ("yolox" in path.name), path
        if found:
            joints = [name for name in found if name.startswith("Concat")]
            assert joints == ["Concat_331", "Concat_364", "Concat_397", "Concat_422"]
            assert not any(name.startswith("Conv") for name in found)


def test_bundled_models_have_no_tail(modA, modB):
    for path in (modA, modB):
        assert find_tail(Model.load(path)) == {}


@pytest.mark.parametrize("count", [30, 300])
def test_each_node_is_looked_at_a_fixed_number_of_times(monkeypatch, count):
    looks = 0

    def counted(node):
        nonlocal looks
        looks += 1
        return reads(node)

    nodes = [helper.make_node("Conv", ["x", "w"], ["c0"], "c0")]
    for i in range(count):
        nodes.append(helper.make_node("Concat", [f"c{i}", "c0"], [f"k{i}"], f"k{i}", axis=1))
        nodes.append(helper.make_node("Sigmoid", [f"k{i}"], [f"c{i + 1}"], f"s{i}"))
    outputs = [value(f"c{count}", None)]
    proto = make_model(nodes, [value("x", [1, 2, 2, 2])], outputs, {"w": normal([2, 2, 1, 1], 0)})
    model = Model.from_proto(proto)
    monkeypatch.setattr("onnxdrp.tails.reads", counted)
    tail = find_tail(model)
    assert len(tail) == 2 * count
    assert looks == len(nodes)
    looks = 0
    assert find_head(model, tail) == {"x", "c0"}
    assert looks == 2 * len(nodes)


# ----------------------------------------------------------------------------------------- the head


def test_the_head_is_what_leads_to_the_tail_by_two_layers_at_most():
    head, outputs, weights, constants, tail = yolox()
    model = graph(head, outputs, weights, constants)
    found = find_head(model, tail)
    # p3 and r lead to the second scale by two layers, x by three
    assert found == {"p3", "r", "p4", "q"} | {f"{t}{i}" for t in "boc" for i in (1, 2)}
    deeper = head.replace("Conv(q, w_c)", "Conv(qq, w_c)")
    deeper = "[more] q1 = Conv(q, w_m) [act] qq = Relu(q1) " + deeper
    model = graph(deeper, outputs, weights | {"w_m": (8, 8, 1, 1)}, constants)
    assert find_head(model, tail) == (found | {"q1", "qq"}) - {"p3", "r"}
    assert find_head(model, ()) == set()


def test_a_branch_beside_the_tail_is_no_head():
    head, outputs, weights, constants, tail = yolox()
    head += "[proto] m = Conv(r, w_m) [sig_m] n = Sigmoid(m)"
    model = graph(head, [*outputs, "n"], weights | {"w_m": (6, 8, 3, 3)}, constants)
    assert not {"m", "n"} & find_head(model, tail)


@pytest.mark.parametrize("method", ["mse", "percentile", "sigma", "mean-minmax"])
def test_the_head_keeps_its_extremes_whatever_the_method(method):
    head, outputs, weights, constants, tail = yolox()
    model = graph(head, outputs, weights, constants)
    x = np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype(np.float32)
    x *= np.random.default_rng(2).exponential(1, x.shape).astype(np.float32)
    given = {"percentile": 99} if method == "percentile" else {}
    given |= {"sigmas": 1.5} if method == "sigma" else {}
    feeds = {"x": x}, {"x": 3 * x}
    ranges = {}
    for mode in ("auto", "none"):
        done = quantize_model(model.clone(), *feeds, exclude_tail=mode, method=method, **given)
        ranges[mode] = done.ctx.calibration.tensors
        found = done.stats["calibrate"]["head"]
        want = find_head(model, tail) & ranges[mode].keys() if mode == "auto" else set()
        assert sorted(found) == sorted(want)
    names = ("b1", "c1", "o2", "c2")
    for name in names:
        whole = ranges["auto"][name]
        seen = [a for f in feeds for a in outputs_of(tapped(model, name), f)[-1:]]
        assert whole.low == pytest.approx(min(a.min() for a in seen), rel=1e-5)
        assert whole.high == pytest.approx(max(a.max() for a in seen), rel=1e-5)
    assert any(ranges["none"][n].range != ranges["auto"][n].range for n in names)
    assert ranges["auto"]["x"] == ranges["none"]["x"]


def tapped(model, name):
    """The model with one more output."""
    proto = model.proto()
    proto.graph.output.append(onnx.ValueInfoProto(name=name))
    return proto
