"""InsertQdq: what stands where in the graph, and that it computes what the arithmetic says."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from builders import conv_net, feeds_for, make_model, mlp, normal, outputs_of, value
from onnx import helper
from quantizing import Feeds, numbers, parse, quantize_model, sqnr, target_with

from onnxdrp.errors import ModelError
from onnxdrp.model import Model
from onnxdrp.passes import Calibrate, InferShapes, InsertQdq, QuantizeWeights
from onnxdrp.pipeline import PassContext
from onnxdrp.quantization import QuantParams, Range, fake_quantize

HEAD = '<ir_version: 10, opset_import: ["" : 17]>'
W = {"w": normal([8, 8, 1, 1], 0), "v": normal([8, 8, 1, 1], 1), "b": normal([8], 2)}
SIGNED = target_with("generic", activation_dtype="int8", activation_symmetric=True)
TARGETS = {"generic": "generic", "drp-ai3": "drp-ai3", "signed": SIGNED}


def graph(body, inputs="float[N, 8, 4, 4] x", outputs="float[N, 8, 4, 4] y", **weights):
    return parse(f"{HEAD} g ({inputs}) => ({outputs}) {{ {body} }}", W | weights)


def residual():
    """Two convolutions around a residual, pooled; every activation quantized, the output too."""
    return graph(
        "a = Conv<pads=[1,1,1,1]>(x, k, b) r = Relu(a) m = MaxPool<kernel_shape=[1, 1]>(r) "
        "c = Conv(m, w, b) s = Add(c, r) t = Relu(s) g = Conv(t, v) y = GlobalAveragePool(g)",
        outputs="float[N, 8, 1, 1] y",
        k=normal([8, 8, 3, 3], 3),
    )


def kinds(model):
    return Counter(node.op for node in model.nodes())


def fused(model, tmp_path):
    """The operators that onnxruntime runs, its hardware-independent optimizations on."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    data = model.proto().SerializeToString()
    ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    optimized = onnx.ModelProto.FromString((tmp_path / "optimized.onnx").read_bytes())
    return Counter(node.op_type for node in optimized.graph.node)


def run(model, feeds, *, optimize):
    session = model.session(optimize=optimize)
    return session.run([o.name for o in model.outputs], dict(feeds))


# --- numbers -----------------------------------------------------------------------------------


def conv(x, w, b=None, pad=0):
    """Correlation in float64, [N, C, H, W]."""
    x = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], (2, 3))
    out = np.einsum("nchwij,ocij->nohw", windows, w.astype(np.float64))
    return out if b is None else out + b[:, None, None]


def by_hand(done, x):
    """What the arithmetic of the parameters in the graph says that `residual` gives."""

    def rounded(values, name):
        scale, zero = done.params(name)
        return fake_quantize(np.float32(values), QuantParams(scale, zero, zero.dtype.name))

    def stored(name):
        scale, _ = done.params(name)
        codes = done.model.weight(name)
        return codes * scale.astype(np.float64).reshape([-1] + [1] * (codes.ndim - 1))

    x = rounded(x, "x")
    r = rounded(np.maximum(conv(x, stored("k"), stored("b_of_Conv_0"), 1), 0), "r")
    c = rounded(conv(r, stored("w"), stored("b")), "c")
    t = rounded(np.maximum(c + r, 0), "t")
    g = rounded(conv(t, stored("v")), "g")
    return rounded(g.mean((2, 3), keepdims=True), "y")


@pytest.mark.parametrize("target", TARGETS)
def test_the_graph_computes_what_the_parameters_say(target):
    x = {"x": normal([16, 8, 4, 4], 9)}
    done = quantize_model(residual(), x, target=TARGETS[target], method="minmax")
    want, (got,) = by_hand(done, x["x"]), run(done.model, x, optimize=False)
    step = float(done.params("y")[0])
    assert np.ptp(want) > 50 * step
    assert np.abs(want - got).max() <= 1.001 * step  # a value on the edge may fall to either side
    assert np.mean(np.abs(want - got) < 0.5 * step) > 0.98
    (floats,) = outputs_of(done.before, x)
    assert sqnr(floats, got) > (24 if target == "drp-ai3" else 28)


def test_a_residual_of_tensorrt_is_added_before_it_is_rounded():
    x = {"x": normal([16, 8, 4, 4], 9)}
    done = quantize_model(residual(), x, target="tensorrt", method="minmax")
    (got,) = run(done.model, x, optimize=False)
    names = {n.removesuffix("_scale") for n in done.model.weights() if n.endswith("_scale")}
    assert names == {"x", "k", "r", "m", "w", "t", "v"}  # not c, no bias, and not for the user

    def rounded(values, name):
        scale, zero = done.params(name)
        return fake_quantize(np.float32(values), QuantParams(scale, zero, "int8"))

    def stored(name):
        scale, _ = done.params(name)
        codes = done.model.weight(name)
        return codes * scale.astype(np.float64).reshape([-1] + [1] * (codes.ndim - 1))

    r = rounded(np.maximum(conv(rounded(x["x"], "x"), stored("k"), W["b"], 1), 0), "r")
    t = rounded(np.maximum(conv(r, stored("w"), W["b"]) + r, 0), "t")
    want = conv(t, stored("v")).mean((2, 3), keepdims=True)
    assert np.ptp(want) > 1
    assert np.mean(np.abs(got - want) < 1e-5) > 0.98  # a value on the edge falls to either side
    assert np.abs(got - want).max() < float(done.params("t")[0])
    assert done.model.weight("b").dtype == np.float32


def test_float_biases_of_matmul_and_gemm_stay_where_they_are():
    body = "m = MatMul(x, u) n = Add(m, d) r = Relu(n) y = Gemm<beta=0.5, transB=1>(r, u, d)"
    weights = {"u": normal([8, 8], 0), "d": normal([8], 1)}
    done = quantize_model(
        graph(body, "float[16, 8] x", "float[16, 8] y", **weights), target="tensorrt"
    )
    assert [n.op for n in done.model.nodes("MatMul", "Add", "Gemm")] == ["MatMul", "Add", "Gemm"]
    np.testing.assert_array_equal(done.model.weight("d"), weights["d"])
    x = {"x": normal([16, 8], 5)}
    (want,), (got,) = outputs_of(done.before, x), outputs_of(done.model, x)
    assert sqnr(want, got) > 30


@pytest.mark.parametrize("target", TARGETS)
def test_it_runs_with_onnxruntimes_optimizations_on(target):
    x = {"x": normal([16, 8, 4, 4], 9)}
    done = quantize_model(residual(), x, target=TARGETS[target])
    (plain,), (fast,) = (run(done.model, x, optimize=o) for o in (False, True))
    assert sqnr(plain, fast) > 24  # its integer kernels round elsewhere
    assert np.ptp(plain) > 0.5


@pytest.mark.parametrize("target", ["generic", "ort-cpu"])
def test_onnxruntime_fuses_every_operator_of_its_profiles(tmp_path, target):
    done = quantize_model(residual(), target=target)
    assert fused(done.model, tmp_path) == {
        "QuantizeLinear": 1,
        "QLinearConv": 3,
        "MaxPool": 1,
        "QLinearAdd": 1,
        "QLinearGlobalAveragePool": 1,
        "DequantizeLinear": 1,
    }
    net = quantize_model(mlp(16, 32, 8), target=target)
    assert fused(net.model, tmp_path) == {"QuantizeLinear": 1, "QGemm": 2}


# --- structure ---------------------------------------------------------------------------------


def test_one_pair_a_tensor_and_nothing_between_a_layer_and_its_relu():
    done = quantize_model(residual())
    quantized = {n.inputs[0].name for n in done.model.nodes("QuantizeLinear")}
    # m holds values of r; the output is quantized under another name
    assert quantized == {"x", "r", "m", "c", "t", "g", "y_QuantizeLinear_Input"}
    assert numbers(done.model, "Relu") == 0
    assert done.stats["insert-qdq"] == {
        "folded_activations": 2,
        "matmul_to_gemm": 0,
        "weights": 3,
        "biases": 2,
        "constant_operands": 0,
        "pairs": 7,
        "skipped": {},
    }
    for name in ("m", "r"):
        for a, b in zip(done.params(name), done.params("r"), strict=True):
            np.testing.assert_array_equal(a, b)
    assert kinds(done.model)["DequantizeLinear"] == 7 + 3 + 2


def test_names_types_and_order_are_kept(tmp_path):
    source = residual()
    before = source.proto()
    done = quantize_model(source)
    path = done.model.save(tmp_path / "q.onnx")
    after = onnx.load_model(path)
    assert [i.SerializeToString() for i in after.graph.input] == [
        i.SerializeToString() for i in before.graph.input
    ]
    assert [o.name for o in after.graph.output] == ["y"]
    assert after.ir_version == before.ir_version
    assert after.opset_import[0].version == 17
    seen = {i.name for i in after.graph.input} | {t.name for t in after.graph.initializer}
    for node in after.graph.node:
        assert set(node.input) <= seen | {""}
        seen |= set(node.output)
    names = [n.name for n in after.graph.node] + [o for n in after.graph.node for o in n.output]
    assert len(set(names)) == len(names)


def test_inserting_twice_is_refused_and_so_is_inserting_too_early():
    done = quantize_model(residual())
    with pytest.raises(ModelError, match="'x_QuantizeLinear': the model is quantized already"):
        InsertQdq().requires(done.model, done.ctx)
    model, ctx = residual(), PassContext(reader=Feeds(feeds_for(residual().proto())))
    with pytest.raises(ModelError, match="run calibrate and quantize-weights first"):
        InsertQdq().requires(model, ctx)
    Calibrate().run(model, ctx)
    ctx.quantization["x"] = QuantParams.symmetric(1.0)
    with pytest.raises(ModelError, match="weight 'k' is not quantized; run quantize-weights"):
        InsertQdq().requires(model, ctx)


def test_scales_by_channel_name_their_axis_and_others_do_not():
    done = quantize_model(mlp(16, 32, 8, opset=13))
    axes = {n.inputs[0].name: n.attrs.get("axis") for n in done.model.nodes("DequantizeLinear")}
    assert axes["fc0.weight"] == 0
    assert axes["fc0.bias"] == 0
    assert axes["x_QuantizeLinear_Output"] is None
    done = quantize_model(mlp(16, 32, 8, opset=12), per_channel=False)
    assert all("axis" not in n.attrs for n in done.model.nodes())
    assert done.model.opset == 12


@pytest.mark.parametrize("opset", [10, 11, 12, 13, 17, 19, 21])
def test_every_opset_that_has_quantizelinear(opset):
    done = quantize_model(conv_net(16, opset=opset), per_channel=opset >= 13)
    feeds = feeds_for(done.before.proto(), batch=8)
    (a,), (b,) = outputs_of(done.before, feeds), run(done.model, feeds, optimize=True)
    assert sqnr(a, b) > 24
    assert done.model.opset == opset


def test_opset_9_has_no_quantizelinear():
    model = Model.from_proto(conv_net(16, opset=9))
    ctx = PassContext(reader=Feeds(feeds_for(model.proto())))
    InferShapes().run(model, ctx)
    Calibrate().run(model, ctx)
    QuantizeWeights(per_channel=False).run(model, ctx)
    with pytest.raises(ModelError, match=r"opset 9 has no QuantizeLinear; run .* convert-opset"):
        InsertQdq().requires(model, ctx)


# --- Relu and Clip -----------------------------------------------------------------------------


def test_no_relu_goes_at_zero_point_0_of_int8():
    done = quantize_model(residual(), target=SIGNED)
    assert numbers(done.model, "Relu") == 2
    quantized = {n.inputs[0].name for n in done.model.nodes("QuantizeLinear")}
    assert not quantized & {"a", "s"}  # nothing is rounded before it
    assert done.stats["insert-qdq"]["folded_activations"] == 0


def test_clip_goes_where_all_that_is_representable_lies_inside():
    low, high = np.float32(0), np.float32(6)
    for bounds, kept in (((low, high), 0), ((low, np.float32(1e9)), 0), ((low + 1, high), 1)):
        model = graph("a = Conv(x, w) y = Clip(a, low, high)", low=bounds[0], high=bounds[1])
        done = quantize_model(model, {"x": 20 * normal([8, 8, 4, 4], 9)}, method="minmax")
        assert numbers(done.model, "Clip") == kept
        x = {"x": 30 * normal([8, 8, 4, 4], 10)}  # beyond what was calibrated
        (got,) = run(done.model, x, optimize=True)
        assert got.min() >= bounds[0] - kept * float(done.params("y")[0]) / 2
        assert got.max() <= bounds[1] * (1 + 1e-6)


def test_a_relu_stays_where_sharing_makes_its_range_wider():
    body = "a = Conv(x, w) r = Relu(a) c = Conv(x, v) y = Concat<axis=1>(r, c)"
    wide = "float[N, 16, 4, 4] y"
    shared = target_with("generic", shared_inputs_and_output=("Concat",))
    done = quantize_model(graph(body, outputs=wide), target=shared)
    assert done.params("r")[1] > 0  # c is negative at times
    assert numbers(done.model, "Relu") == 1
    alone = quantize_model(graph(body, outputs=wide))
    assert alone.params("r")[1] == 0
    assert numbers(alone.model, "Relu") == 0


def test_relu6_as_attributes_of_an_old_clip():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "conv"),
        helper.make_node("Clip", ["a"], ["y"], "clip", min=0.0, max=6.0),
    ]
    shape = ["N", 8, 4, 4]
    proto = make_model(nodes, [value("x", shape)], [value("y", shape)], {"w": W["w"]}, opset=10)
    done = quantize_model(proto, per_channel=False)
    assert numbers(done.model, "Clip") == 0


# --- fully connected layers --------------------------------------------------------------------


def dense(shape, bias_shape, order="a, b"):
    dims = ", ".join(map(str, shape))
    body = f"a = MatMul(x, w) s = Add({order}) y = Relu(s)"
    out = ", ".join(map(str, (*shape[:-1], 6)))
    weights = {"w": normal([8, 6], 0), "b": normal(bias_shape, 1)}
    return graph(body, f"float[{dims}] x", f"float[{out}] y", **weights)


@pytest.mark.parametrize("order", ["a, b", "b, a"])
@pytest.mark.parametrize("bias", [[6], [1, 6], [1]])
@pytest.mark.parametrize("target", ["generic", "drp-ai3"])
def test_matmul_and_add_become_a_gemm_with_an_int32_bias(target, bias, order):
    x = {"x": normal([32, 8], 5)}
    done = quantize_model(dense(("N", 8), bias, order), x, target=target)
    assert kinds(done.model)["Gemm"] == 1
    assert not kinds(done.model).keys() & {"MatMul", "Add"}
    codes = done.model.node("MatMul_0").inputs[2].inputs[0].inputs[0]
    assert done.model.constant(codes).dtype == np.int32
    scale = done.model.constant(done.model.node("MatMul_0").inputs[2].inputs[0].inputs[1])
    expected = done.params("x")[0] * done.params("w")[0]
    np.testing.assert_array_equal(scale, np.broadcast_to(expected, scale.shape))
    (a,), (b,) = outputs_of(done.before, x), run(done.model, x, optimize=True)
    assert a.shape == b.shape
    assert sqnr(a, b) > 28


@pytest.mark.parametrize("target", ["generic", "drp-ai3"])
def test_of_higher_rank_they_stay_with_nothing_rounded_between(target):
    x = {"x": normal([4, 5, 8], 5)}
    done = quantize_model(dense(("N", 5, 8), [6]), x, target=target)
    assert kinds(done.model)["MatMul"] == kinds(done.model)["Add"] == 1
    assert done.model.weight("b").dtype == np.int32
    matmul = done.model.node("MatMul_0")
    assert matmul.outputs[0].outputs[0].op == "Add"
    (a,), (b,) = outputs_of(done.before, x), run(done.model, x, optimize=True)
    assert sqnr(a, b) > 28


def test_logits_of_a_last_gemm_stay_float_on_generic_only():
    for target, op in (("generic", "Gemm"), ("drp-ai3", "DequantizeLinear")):
        done = quantize_model(mlp(16, 32, 8), target=target)
        assert done.model.tensor("y").inputs[0].op == op


def test_a_bias_of_another_shape_stays_float():
    model = graph(
        "y = Gemm(x, w, c)",
        "float[4, 8] x",
        "float[4, 6] y",
        w=normal([8, 6], 0),
        c=normal([4, 1], 1),
    )
    done = quantize_model(model)
    assert done.model.weight("c").dtype == np.float32
    x = {"x": normal([4, 8], 5)}
    (a,), (b,) = outputs_of(done.before, x), run(done.model, x, optimize=True)
    assert sqnr(a, b) > 28


# --- sharing, constants, readers ---------------------------------------------------------------


def test_inputs_of_add_and_all_of_concat_share_on_drp_ai3():
    model = graph(
        "a = Conv(x, w) c = Conv(x, v) s = Add(a, c) y = Concat<axis=1>(s, c)",
        outputs="float[N, 16, 4, 4] y",
    )
    done = quantize_model(model, target="drp-ai3")
    scales = {name: float(done.params(name)[0]) for name in ("a", "c", "s", "y", "x")}
    assert len({scales[name] for name in "acsy"}) == 1
    assert scales["x"] != scales["a"]
    assert not any(done.params(name)[1].any() for name in "acsyx")


@pytest.mark.parametrize("target", ["generic", "drp-ai3"])
def test_constant_operands_take_the_type_of_activations(target, tmp_path):
    body = "a = Conv(x, w) s = Add(a, c) m = Mul(s, two) y = Conv(m, v)"
    model = graph(body, c=normal([1, 8, 1, 1], 4), two=np.float32(2))
    done = quantize_model(model, target=target)
    dtype = np.uint8 if target == "generic" else np.int8
    assert done.model.weight("c").dtype == done.model.weight("two").dtype == dtype
    assert done.stats["insert-qdq"]["constant_operands"] == 2
    x = feeds_for(done.before.proto(), batch=8)
    (a,), (b,) = outputs_of(done.before, x), run(done.model, x, optimize=True)
    assert sqnr(a, b) > 20
    if target == "generic":
        assert fused(done.model, tmp_path)["QLinearAdd"] == 1


def test_a_constant_read_by_others_too_is_copied():
    body = "a = Conv(x, w) s = Add(a, c) e = Sub(s, c) y = Conv(e, v)"
    done = quantize_model(graph(body, c=normal([1, 8, 1, 1], 4)))
    assert done.model.weight("c").dtype == np.float32
    assert done.model.weight("c_of_Add_1").dtype == np.uint8


def test_float_readers_read_the_original_of_what_floats_compute():
    body = "e = Exp(x) a = Conv(e, w) f = Sin(e) g = Sin(a) h = Sub(f, g) y = Conv(h, v)"
    done = quantize_model(graph(body))
    assert done.model.node("Sin_2").inputs[0].name == "e"  # Exp is float, e is exact there
    assert done.model.node("Sin_3").inputs[0].name == "a_DequantizeLinear_Output"
    assert done.model.node("Conv_1").inputs[0].name == "e_DequantizeLinear_Output"


def test_outputs_that_are_read_inside_too():
    body = "y = Conv(x, w) z = Conv(y, v)"
    outputs = "float[N, 8, 4, 4] y, float[N, 8, 4, 4] z"
    done = quantize_model(graph(body, outputs=outputs))
    assert [o.name for o in done.model.outputs] == ["y", "z"]
    assert done.model.node("Conv_1").inputs[0].name == "y"
    assert done.model.tensor("y").inputs[0].op == "DequantizeLinear"
    x = feeds_for(done.before.proto(), batch=4)
    for a, b in zip(outputs_of(done.before, x), run(done.model, x, optimize=True), strict=True):
        assert sqnr(a, b) > 28


def test_an_output_that_floats_compute_is_exact():
    body = "y = Exp(x) z = Conv(y, w)"
    outputs = "float[N, 8, 4, 4] y, float[N, 8, 4, 4] z"
    done = quantize_model(graph(body, outputs=outputs))
    x = feeds_for(done.before.proto(), batch=4)
    np.testing.assert_array_equal(
        outputs_of(done.before, x)[0], run(done.model, x, optimize=False)[0]
    )


def test_a_tensor_read_twice_by_one_node():
    done = quantize_model(graph("a = Conv(x, w) s = Add(a, a) m = Mul(s, s) y = Conv(m, v)"))
    x = feeds_for(done.before.proto(), batch=4)
    (a,), (b,) = outputs_of(done.before, x), run(done.model, x, optimize=True)
    assert sqnr(a, b) > 24


def test_a_body_that_captures_a_tensor_still_finds_it():
    text = f"""{HEAD} g (float[1, 8, 4, 4] x, bool c) => (float[1, 8, 4, 4] y) {{
        a = Conv(x, w)
        r = Relu(a)
        i = If (c) <
            then_branch = yes () => (float[1, 8, 4, 4] p) {{ p = Add(a, r) }},
            else_branch = no () => (float[1, 8, 4, 4] q) {{ q = Conv(r, w) }}
        >
        y = Conv(i, v)
    }}"""
    x = {"x": normal([1, 8, 4, 4], 5), "c": np.array(True)}
    done = quantize_model(parse(text, W), x)
    assert done.model.weight("w_copy").dtype == np.int8  # the body reads the float one
    for choice in (True, False):
        feeds = x | {"c": np.array(choice)}
        (a,), (b,) = outputs_of(done.before, feeds), run(done.model, feeds, optimize=True)
        assert sqnr(a, b) > 24


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        ("y = ConvTranspose<strides=[2, 2]>(x, t, b)", [8, 8, 2, 2]),
        ("y = ConvTranspose<strides=[2, 2], group=2>(x, t, b)", [8, 4, 2, 2]),
        ("a = Conv(x, w, d) y = Conv<group=8>(a, t)", [8, 1, 1, 1]),
        ("a, c = Split<axis=1>(x, n) u = Conv(c, t) y = Concat<axis=1>(a, u)", [4, 4, 1, 1]),
        ('a = Conv(x, w) r = Resize<mode="linear">(a, , k) y = Conv(r, t)', [8, 8, 1, 1]),
        ("g = Gather<axis=1>(x, o) y = Conv(g, t)", [8, 8, 1, 1]),
        ("a = Conv(x, w) e = LeakyRelu<alpha=0.1>(a) s = Sigmoid(e) y = Mul(s, e)", [1]),
        ("a = Conv(x, w) p = AveragePool<kernel_shape=[2, 2]>(a) y = Conv(p, t)", [8, 8, 1, 1]),
    ],
)
@pytest.mark.parametrize("target", ["generic", "drp-ai3"])
def test_other_operators(body, shape, target):
    bias = normal([8], 7) if "group=2" in body or "d)" in body else W["b"]
    model = graph(
        body, outputs="float[N, C, H, W] y", t=normal(shape, 6), d=normal([8], 7), b=bias,
        n=np.array([4, 4]), k=np.float32([1, 1, 2, 2]), o=np.arange(8)[::-1].copy(),
    )  # fmt: skip
    done = quantize_model(model, target=target)
    assert done.ctx.kept_float == {}
    x = feeds_for(done.before.proto(), batch=8)
    (a,), (b,) = outputs_of(done.before, x), run(done.model, x, optimize=True)
    assert sqnr(a, b) > (18 if target == "drp-ai3" else 28)


# --- how a model stores things -----------------------------------------------------------------


def test_weights_that_are_graph_inputs_too_stay_so(tmp_path):
    proto = conv_net(16, opset=12)
    proto.ir_version = 3
    proto.graph.input.extend(
        value(t.name, list(t.dims)) for t in proto.graph.initializer if t.name != "fc.bias"
    )
    proto.graph.input.append(value("fc.bias", [10]))
    done = quantize_model(proto, per_channel=False)
    path = done.model.save(tmp_path / "old.onnx")
    saved = onnx.load_model(path)
    onnx.checker.check_model(saved, full_check=True)
    assert saved.ir_version == 3
    inputs = {i.name: i.type.tensor_type.elem_type for i in saved.graph.input}
    assert inputs["conv1.weight"] == onnx.TensorProto.INT8
    assert inputs["conv1.bias"] == onnx.TensorProto.INT32
    assert [i.name for i in Model.load(path).inputs] == ["x"]
    x = feeds_for(done.before.proto(), batch=4)
    (a,) = outputs_of(done.before, x)
    (b,) = run(Model.load(path), x, optimize=True)
    assert sqnr(a, b) > 24


def test_weights_in_constant_nodes_stay_there(tmp_path):
    nodes = [
        helper.make_node("Constant", [], ["w"], "cw", value=onnx.numpy_helper.from_array(W["w"])),
        helper.make_node("Conv", ["x", "w"], ["y"], "conv"),
    ]
    shape = ["N", 8, 4, 4]
    done = quantize_model(make_model(nodes, [value("x", shape)], [value("y", shape)]))
    saved = onnx.load_model(done.model.save(tmp_path / "q.onnx"))
    (constant,) = [n for n in saved.graph.node if n.op_type == "Constant" and n.name == "cw"]
    assert constant.attribute[0].t.data_type == onnx.TensorProto.INT8
    x = feeds_for(done.before.proto(), batch=4)
    (a,), (b,) = outputs_of(done.before, x), run(done.model, x, optimize=True)
    assert sqnr(a, b) > 28


def test_names_that_are_taken_are_avoided():
    model = graph(
        "x_scale = Conv(x, w) x_QuantizeLinear = Relu(x_scale) y = Conv(x_QuantizeLinear, v)"
    )
    done = quantize_model(model)
    assert done.model.node("x_QuantizeLinear_1").inputs[0].name == "x"
    assert "x_scale_1" in done.tensors()


def test_a_scale_serves_what_was_never_calibrated():
    done = quantize_model(conv_net(16), {"x": np.zeros((2, 3, 8, 8), np.float32)})
    (y,) = run(done.model, feeds_for(done.before.proto(), batch=4), optimize=True)
    assert np.isfinite(y).all()
    for node in done.model.nodes("QuantizeLinear"):
        assert done.model.constant(node.inputs[1]).min() > 0


def test_ranges_given_by_hand_are_what_is_written():
    model, ctx = residual(), PassContext(reader=Feeds(feeds_for(residual().proto())))
    Calibrate().run(model, ctx)
    ctx.ranges["x"] = Range(-1.0, 254.0)
    QuantizeWeights().run(model, ctx)
    InsertQdq().run(model, ctx)
    assert float(model.weight("x_scale")) == 1.0
    assert int(model.weight("x_zero_point")) == 1


# --- real models -------------------------------------------------------------------------------


def test_model_b_whole(modB, tmp_path):
    model = Model.load(modB)
    with np.load(modB.parent / "test.npz") as data:
        images = data["x"] if "x" in data else data[data.files[0]]
    images = ((images[:64] / 255 - 0.2190) / 0.3318).astype(np.float32)
    if images.ndim == 3:
        images = np.repeat(images[..., None], 3, -1)
    feeds = {model.inputs[0].name: images}
    done = quantize_model(model, feeds)
    assert done.ctx.kept_float == {}
    operators = fused(done.model, tmp_path)
    assert operators["QLinearConv"] == 15
    assert operators["QLinearAdd"] == 6
    assert not operators.keys() & {"Conv", "Add", "Relu", "MatMul", "Gemm", "DequantizeLinear"}
    (a,), (b,) = outputs_of(done.before, feeds), run(done.model, feeds, optimize=True)
    assert sqnr(a, b) > 30
    assert done.model.inventory()[1] < 0.27 * done.before.inventory()[1]
