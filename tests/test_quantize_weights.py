"""QuantizeWeights: the grid, its axes, biases beside tiny weights, and what shares a weight."""

import numpy as np
import pytest
from builders import conv_net, feeds_for, make_model, mlp, normal, outputs_of, value
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from quantizing import Feeds, parse, quantize_model, sqnr, target_with

from onnxdrp.errors import ModelError, OptionError
from onnxdrp.masks import Mask
from onnxdrp.model import Model
from onnxdrp.passes import Calibrate, InferShapes, InsertQdq, PruneBlocks, QuantizeWeights
from onnxdrp.pipeline import PassContext, PassManager
from onnxdrp.quantization import dequantize, quantize


def rounded(proto, *feeds, per_channel=None, target="generic", ctx=None, **options):
    """The model after QuantizeWeights, its context and figures, and the model before."""
    model = proto if isinstance(proto, Model) else Model.from_proto(proto)
    from onnxdrp.targets import load_target

    ctx = ctx or PassContext()
    ctx.target = load_target(target) if isinstance(target, str) else target
    ctx.reader = Feeds(*(feeds or (feeds_for(model.proto(), batch=8),)))
    InferShapes().run(model, ctx)
    before = model.clone()
    Calibrate(method="minmax", **options).run(model, ctx)
    step = QuantizeWeights(per_channel)
    step.requires(model, ctx)
    fingerprint = model.fingerprint()
    result = step.run(model, ctx)
    assert result.modified
    assert model.fingerprint() != fingerprint
    model.check()
    return model, ctx, result.stats, before


def prepared(model, target):
    """A context with ranges for this model."""
    from onnxdrp.targets import load_target

    ctx = PassContext(reader=Feeds(feeds_for(model.proto(), batch=8)))
    ctx.target = load_target(target) if isinstance(target, str) else target
    InferShapes().run(model, ctx)
    Calibrate(method="minmax").run(model, ctx)
    return ctx


def one_layer(op, weight, bias=None, shape=(2, 8, 6, 6), **attrs):
    names = ["x", "w"] + ["b"] * (bias is not None)
    weights = {"w": weight} | ({} if bias is None else {"b": bias})
    nodes = [helper.make_node(op, names, ["y"], "layer", **attrs)]
    outputs = [value("y", [None] * len(shape))]
    return make_model(nodes, [value("x", shape)], outputs, weights)


LAYERS = {
    "Conv": ((6, 8, 3, 3), 0, {}, None),
    "Conv grouped": ((6, 4, 3, 3), 0, {"group": 2}, None),
    "Conv depthwise": ((8, 1, 3, 3), 0, {"group": 8}, None),
    "ConvTranspose": ((8, 6, 2, 2), 1, {}, None),
    "Gemm": ((8, 6), 1, {}, (5, 8)),
    "Gemm turned": ((6, 8), 0, {"transB": 1}, (5, 8)),
    "MatMul": ((8, 6), 1, {}, (5, 8)),
    "MatMul batched": ((2, 8, 6), None, {}, (2, 5, 8)),
    "ConvTranspose grouped": ((8, 3, 2, 2), None, {"group": 2}, None),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_weights_lie_on_the_grid_of_their_outputs(kind):
    shape, axis, attrs, data = LAYERS[kind]
    weight = normal(shape, 0) * np.linspace(0.1, 3, shape[-1], dtype=np.float32)
    proto = one_layer(kind.split()[0], weight, shape=data or (2, 8, 6, 6), **attrs)
    model, ctx, stats, _ = rounded(proto)
    params = ctx.quantization["w"]
    assert (params.axis, params.dtype, params.zero_point.any()) == (axis, "int8", False)
    others = tuple(i for i in range(weight.ndim) if i != axis)
    peak = np.abs(weight).max(axis=None if axis is None else others)
    np.testing.assert_allclose(params.scale, peak / 127, rtol=1e-6)
    if axis is not None:
        assert np.ptp(params.scale) > 0
    codes = quantize(model.weight("w"), params)
    assert codes.min() >= -127
    assert np.abs(codes.astype(int)).max() == 127
    np.testing.assert_array_equal(dequantize(codes, params), model.weight("w"))
    step = params.scale if axis is None else np.expand_dims(params.scale, others)
    assert np.all(np.abs(model.weight("w") - weight) <= step * 0.5001)
    assert bool(stats["per_tensor"]) == (axis is None)


def test_per_tensor_when_asked_and_by_the_target():
    _, ctx, stats, _ = rounded(conv_net(16), per_channel=False)
    assert all(ctx.quantization[w].axis is None for w in ("conv1.weight", "fc.weight"))
    assert stats["per_tensor"] == 3
    _, ctx, _, _ = rounded(conv_net(16), target="drp-ai3")
    assert ctx.quantization["conv1.weight"].axis is None
    _, ctx, _, _ = rounded(conv_net(16), target="drp-ai3", per_channel=True)
    assert ctx.quantization["conv1.weight"].axis == 0


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("bias", [None, normal([6], 3)])
def test_a_reduced_range_ends_at_64(per_channel, bias):
    proto = one_layer("Conv", normal([6, 8, 3, 3], 0), bias)
    full, *_ = rounded(proto, per_channel=per_channel)
    model, ctx, stats, before = rounded(
        proto, per_channel=per_channel, target=target_with(reduce_range="on")
    )
    assert stats["reduced_range"] is True
    params = ctx.quantization["w"]
    codes = np.abs(quantize(model.weight("w"), params).astype(int))
    assert codes.max() == 64
    np.testing.assert_array_equal(
        dequantize(quantize(model.weight("w"), params), params), model.weight("w")
    )
    wide, narrow = (np.abs(m.weight("w") - before.weight("w")).mean() for m in (full, model))
    assert 1.7 < narrow / wide < 2.3  # half the levels


def test_the_pass_overrides_the_range_of_the_profile():
    for target, choice in (("generic", True), (target_with(reduce_range="on"), False)):
        model = Model.from_proto(conv_net(16))
        done = prepared(model, target)
        stats = QuantizeWeights(reduce_range=choice).run(model, done).stats
        assert stats["reduced_range"] is choice
        codes = quantize(model.weight("conv2.weight"), done.quantization["conv2.weight"])
        assert np.abs(codes.astype(int)).max() == (64 if choice else 127)


def test_a_range_that_is_reduced_where_products_saturate(monkeypatch):
    for answer in (True, False):
        monkeypatch.setattr("onnxdrp.saturation.products_saturate", lambda answer=answer: answer)
        _, _, stats, _ = rounded(conv_net(16), target="ort-cpu")
        assert stats["reduced_range"] is answer


def test_whole_weights_beside_others_by_channel():
    _, ctx, stats, _ = rounded(conv_net(16), target="qnn-htp")
    assert ctx.quantization["conv2.weight"].axis == 0
    assert ctx.quantization["fc.weight"].axis is None
    why = "target qnn-htp takes one scale of its operator"
    assert stats["per_tensor"] == {"fc.weight": why}


def test_float_biases_do_not_widen_scales():
    weight, bias = 1e-6 * normal([6, 8, 3, 3], 0), np.full(6, 1e3, np.float32)
    proto = one_layer("Conv", weight, bias)
    _, ctx, *_ = rounded(proto, target="tensorrt", per_channel=False)
    np.testing.assert_allclose(ctx.quantization["w"].scale, np.abs(weight).max() / 127, rtol=1e-6)
    _, wide, *_ = rounded(proto, target=target_with("tensorrt", bias_dtype="int32"))
    assert wide.quantization["w"].scale.min() > 2 * ctx.quantization["w"].scale


def test_a_left_factor_is_quantized_whole():
    proto = make_model(
        [helper.make_node("MatMul", ["w", "x"], ["y"], "m")],
        [value("x", [8, 5])],
        [value("y", [6, 5])],
        {"w": normal([6, 8], 0)},
    )
    model, ctx, stats, before = rounded(proto)
    assert ctx.quantization["w"].axis is None
    assert "left factor" in stats["per_tensor"]["w"]
    assert 0 < np.abs(model.weight("w") - before.weight("w")).max() < 0.02


def test_per_channel_below_opset_13_is_refused_and_no_number_is_edited():
    model = Model.from_proto(conv_net(16, opset=12))
    ctx = PassContext(reader=Feeds(feeds_for(model.proto())))
    InferShapes().run(model, ctx)
    Calibrate().run(model, ctx)
    with pytest.raises(OptionError, match="need opset 13, the model has 12; run the pass convert-"):
        QuantizeWeights().requires(model, ctx)
    assert model.opset == 12
    QuantizeWeights(per_channel=False).requires(model, ctx)


def test_it_wants_ranges_and_runs_once():
    model = Model.from_proto(conv_net(16))
    with pytest.raises(ModelError, match="run calibrate first"):
        QuantizeWeights().requires(model, PassContext())
    model, ctx, *_ = rounded(model)
    with pytest.raises(ModelError, match="quantized already"):
        QuantizeWeights().requires(model, ctx)


def test_a_model_that_changed_since_calibrate_is_noticed():
    model, ctx = Model.from_proto(conv_net(16)), PassContext()
    ctx.reader = Feeds(feeds_for(model.proto()))
    InferShapes().run(model, ctx)
    Calibrate().run(model, ctx)
    model.tensor("r1").name = "renamed"
    with pytest.raises(ModelError, match="tensor 'renamed' has no range; run calibrate"):
        QuantizeWeights().run(model, ctx)


# --- biases ------------------------------------------------------------------------------------


def int32_bias(done):
    """Codes and scales of the bias of the one layer, and the float bias."""
    model = done.model
    scale, _ = done.params("b")
    codes = model.weight("b")
    assert codes.dtype == np.int32
    return codes.astype(np.float64), scale.astype(np.float64), done.before.weight("b")


@pytest.mark.parametrize("per_channel", [True, False])
def test_dead_and_tiny_channels_keep_their_bias(per_channel):
    weight = normal([6, 8, 3, 3], 0)
    weight[1] = 0
    weight[2] *= np.float32(1e-30)
    weight[3] *= np.float32(1e-9)
    bias = np.float32([0.5, -3.25, 2.0, 1e-3, 0.0, 7.0])
    done = quantize_model(one_layer("Conv", weight, bias), per_channel=per_channel)
    codes, scale, want = int32_bias(done)
    assert np.abs(codes).max() <= 2**30 * (1 + 1e-6)
    y_scale, _ = done.params("y")
    assert np.abs(codes * scale - want).max() <= 255 * float(y_scale) * 2**-16
    assert np.all(codes[want != 0] != 0)
    feeds = feeds_for(done.before.proto(), batch=8)
    (a,), (b,) = outputs_of(done.before, feeds), outputs_of(done.model, feeds)
    assert sqnr(a, b) > 28
    assert np.abs(a[:, 1] - b[:, 1]).max() <= 0.51 * float(y_scale)  # the dead one is its bias


@settings(max_examples=40)
@given(
    st.lists(st.floats(-38, 2), min_size=1, max_size=5),
    st.lists(st.floats(-6, 4), min_size=5, max_size=5),
    st.booleans(),
    st.booleans(),
)
def test_no_bias_overflows_or_loses_more_than_a_part_in_65536(sizes, biases, per_channel, same):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((len(sizes), 3, 1, 1)) * 10.0 ** np.reshape(sizes, (-1, 1, 1, 1))
    bias = np.float32(rng.choice([-1, 1], len(sizes)) * 10.0 ** np.array(biases[: len(sizes)]))
    proto = one_layer("Conv", np.float32(weight), bias, shape=(4, 3, 2, 2))
    done = quantize_model(
        proto, per_channel=per_channel, target=target_with(activation_symmetric=same)
    )
    codes, scale, want = int32_bias(done)
    assert np.abs(codes).max() <= 2**31 - 1
    y_scale, _ = done.params("y")
    peak = np.abs(np.float32(weight)).max(axis=(1, 2, 3) if per_channel else None)
    ordinary = 0.5001 * float(done.params("x")[0]) * peak / 127  # what any int32 bias loses
    allowed = np.maximum(255 * float(y_scale) * 2**-16, ordinary)
    assert np.all(np.abs(codes * scale - want) <= allowed)


def test_shared_biases_get_a_scale_each():
    text = (
        '<ir_version: 10, opset_import: ["" : 17]> g (float[1, 4, 3, 3] x) => (float[1, 4, 3, 3] y)'
        "{ a = Conv(x, w, b) r = Relu(a) y = Conv(r, v, b) }"
    )
    weights = {"w": normal([4, 4, 1, 1], 0), "v": normal([4, 4, 1, 1], 1), "b": normal([4], 2)}
    done = quantize_model(parse(text, weights))
    codes = [n for n, t in done.tensors().items() if t.dtype == np.int32 and "zero" not in n]
    assert len(codes) == 2
    for name in codes:
        scale = done.params(name)[0].astype(np.float64)
        assert np.all(np.abs(done.model.weight(name) * scale - weights["b"]) <= 0.5001 * scale)
        assert scale.max() < 1e-3
    assert done.stats["insert-qdq"]["biases"] == 2


# --- sharing -----------------------------------------------------------------------------------

SHARED = (
    '<ir_version: 10, opset_import: ["" : 17]> g (float[2, 4] x) => (float[2, 4] y) '
    "{ a = Gemm<transB=1>(x, w, b) r = Relu(a) y = Gemm<transB=1>(r, w, c) }"
)


def test_a_weight_of_two_layers_stays_one():
    weights = {"w": normal([4, 4], 0), "b": normal([4], 1), "c": normal([4], 2)}
    done = quantize_model(parse(SHARED, weights))
    assert done.model.weight("w").dtype == np.int8
    assert [n.name for n in done.model.nodes("DequantizeLinear")].count("w_DequantizeLinear") == 1
    assert len([n for n, t in done.tensors().items() if t.dtype == np.int8 and "w" in n]) == 2


def test_two_layers_that_see_it_turned_quantize_it_whole():
    weights = {"w": normal([4, 4], 0), "b": normal([4], 1), "c": normal([4], 2)}
    model = parse(SHARED.replace("Gemm<transB=1>(r", "Gemm(r"), weights)
    _, ctx, stats, _ = rounded(model)
    assert ctx.quantization["w"].axis is None
    assert stats["per_tensor"] == {"w": "its layers have their outputs on different axes"}


def test_a_weight_that_a_float_node_reads_too_is_copied_for_the_layer():
    text = SHARED.replace("y = Gemm<transB=1>(r, w, c)", "y = Sub(r, w)").replace(
        "[2, 4]", "[4, 4]"
    )
    weights = {"w": normal([4, 4], 0), "b": normal([4], 1)}
    mask = Mask(np.abs(weights["w"]) > 0.3)
    weights["w"] = mask.apply(weights["w"])
    ctx = PassContext(masks={"w": mask})
    model, ctx, stats, before = rounded(parse(text, weights), ctx=ctx)
    assert stats["copied"] == {"w_copy": "w"}
    np.testing.assert_array_equal(model.weight("w"), before.weight("w"))
    assert 0 < np.abs(model.weight("w_copy") - weights["w"]).max() < 0.02
    assert ctx.masks["w_copy"] == mask
    InsertQdq().run(model, ctx)
    model.check()
    assert model.weight("w").dtype == np.float32


def test_a_weight_that_is_an_output_of_the_model_is_copied():
    text = SHARED.replace("=> (float[2, 4] y)", "=> (float[2, 4] y, float[4, 4] w)")
    weights = {"w": normal([4, 4], 0), "b": normal([4], 1), "c": normal([4], 2)}
    done = quantize_model(parse(text, weights))
    feeds = feeds_for(done.before.proto())
    got = outputs_of(done.model, feeds)
    np.testing.assert_array_equal(got[1], weights["w"])


@pytest.mark.parametrize("shared", [False, True])
def test_alpha_and_beta_go_into_weight_and_bias(shared):
    second = "y = Gemm<transB=1>(r, w, b)" if shared else "y = Gemm<transB=1>(r, v, c)"
    text = SHARED.replace("Gemm<transB=1>(x", "Gemm<transB=1, alpha=0.5, beta=2.0>(x").replace(
        "y = Gemm<transB=1>(r, w, c)", second
    )
    weights = {"w": normal([4, 4], 0), "b": normal([4], 1), "c": normal([4], 2)}
    weights["v"] = normal([4, 4], 3)
    done = quantize_model(parse(text, weights), {"x": normal([2, 4], 5)})
    feeds = {"x": normal([2, 4], 5)}
    (a,), (b,) = outputs_of(done.before, feeds), outputs_of(done.model, feeds)
    assert sqnr(a, b) > 35
    assert all(n.attrs.get("alpha", 1) == n.attrs.get("beta", 1) == 1 for n in done.model.nodes())
    assert ("w" in done.ctx.quantization) == shared
    assert "w_copy" in done.ctx.quantization


# --- pruned weights ----------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["block", "flex-nm", "unstructured"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_pruned_zeros_are_exactly_zero_in_int8(pattern, per_channel):
    model, ctx = Model.from_proto(conv_net(64)), PassContext()
    PassManager([PruneBlocks(rate=0.9, pattern=pattern)]).run(model, ctx)
    done = quantize_model(model, ctx=ctx, per_channel=per_channel)
    keep = ctx.masks["conv2.weight"].keep
    codes = done.model.weight("conv2.weight")
    assert codes.dtype == np.int8
    assert not codes[~keep].any()
    assert (codes[keep] != 0).mean() > 0.95
    assert 0.89 < 1 - keep.mean() < 0.91


def test_nan_in_a_weight_is_an_error():
    weights = normal([4, 3, 1, 1], 0)
    weights[1, 1] = np.nan
    proto = one_layer("Conv", weights, shape=(1, 3, 2, 2))
    model, ctx = Model.from_proto(proto), PassContext()
    from onnxdrp.quantization import Range

    ctx.ranges = {"x": Range(-1, 1), "y": Range(-1, 1)}
    InferShapes().run(model, ctx)
    with pytest.raises(ModelError, match="NaN or infinity"):
        QuantizeWeights().run(model, ctx)


def test_the_mlp_of_the_manual():
    done = quantize_model(mlp(784, 512, 512, 10))
    for i in range(3):
        assert done.model.weight(f"fc{i}.weight").dtype == np.int8
        assert done.model.weight(f"fc{i}.bias").dtype == np.int32
