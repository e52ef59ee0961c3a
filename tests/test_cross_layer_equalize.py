"""CrossLayerEqualize: what the model computes stays, weights on both sides become one size."""

import numpy as np
import pytest
from builders import conv_net, feeds_for, normal, outputs_of, same_outputs
from quantizing import Feeds, parse, quantize_model, sqnr

from onnxdrp.errors import ModelError
from onnxdrp.masks import Mask
from onnxdrp.model import Model
from onnxdrp.passes import CrossLayerEqualize
from onnxdrp.pipeline import PassContext, PassManager
from onnxdrp.quantization import Range

HEAD = '<ir_version: 10, opset_import: ["" : 17]> g '


def uneven(shape, seed, low=0.02):
    """Weights whose outputs, and whose inputs, are of quite other sizes."""
    rng = np.random.default_rng(seed + 100)
    sizes = [rng.permutation(np.geomspace(low, 1, n)) if n > 1 else np.ones(1) for n in shape[:2]]
    wide = np.multiply.outer(*sizes).reshape(*shape[:2], *(1 for _ in shape[2:]))
    return (normal(shape, seed) * wide).astype(np.float32)


def equalized(model, *feeds, ctx=None):
    """The model before and after, and the figures."""
    ctx = ctx or PassContext()
    if feeds:
        ctx.reader = Feeds(*feeds)
    ctx.workers = 1
    before = model.clone()
    (record,) = PassManager([CrossLayerEqualize()]).run(model, ctx).records
    model.check()
    assert record.modified == (before.fingerprint() != model.fingerprint())
    return before, model, record.stats


def chain():
    """A Conv, a depthwise one, a grouped one, pooling, and layers behind a Flatten."""
    text = (
        HEAD + "(float[N, 4, 8, 8] x) => (float[N, 5] y)"
        "{ c = Conv<pads=[1,1,1,1]>(x, w1, b1) r = Relu(c)"
        "  d = Conv<group=8, pads=[1,1,1,1]>(r, w2, b2) s = LeakyRelu<alpha=0.1>(d)"
        "  m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(s)"
        "  e = Conv<group=2>(m, w3) t = Relu(e)"
        "  p = AveragePool<kernel_shape=[2,2], strides=[2,2]>(t) f = Flatten(p)"
        "  h = Gemm<transB=1>(f, w4, b4) i = Relu(h) y = Gemm(i, w5) }"
    )
    weights = {
        "w1": uneven([8, 4, 3, 3], 0),
        "w2": uneven([8, 1, 3, 3], 1),
        "w3": uneven([6, 4, 1, 1], 2),
        "w4": uneven([7, 24], 3),
        "w5": uneven([7, 5], 4),
    }
    weights |= {f"b{i}": normal([len(weights[f"w{i}"])], 10 + i) for i in (1, 2, 4)}
    return parse(text, weights)


def sides(model):
    """(largest weight that makes, that reads) each channel, pair by pair of `chain`."""
    w = {n: np.abs(model.weight(n)) for n in ("w1", "w2", "w3", "w4", "w5")}
    into_w3 = w["w3"].reshape(2, 3, 4).max(axis=1).reshape(8)
    into_w4 = w["w4"].reshape(7, 6, 4).max(axis=(0, 2))
    return [
        (w["w1"].max(axis=(1, 2, 3)), w["w2"].max(axis=(1, 2, 3))),
        (w["w2"].max(axis=(1, 2, 3)), into_w3),
        (w["w3"].max(axis=(1, 2, 3)), into_w4),
        (w["w4"].max(axis=1), w["w5"].max(axis=1)),
    ]


def test_both_sides_of_each_channel_become_one_size_and_results_stay():
    model = chain()
    assert all(np.ptp(np.log(a / b)) > 1 for a, b in sides(model))
    before, model, stats = equalized(model)
    same_outputs(before, model, feeds_for(before.proto(), batch=4), tolerance=2e-6)
    for made, read in sides(model):
        np.testing.assert_allclose(made, read, rtol=0.06)
    assert len(stats["equalized"]) == 4
    assert all(factor > 2 for factor in stats["equalized"].values())
    assert list(stats["skipped"].values()) == ["'y' is an output of the model or read by a body"]


def test_what_is_even_stays_bit_for_bit():
    _, model, _ = equalized(chain())
    for _ in range(20):
        _, model, stats = equalized(model)
    before, model, stats = equalized(model)
    assert all(factor < 1.011 for factor in stats["equalized"].values())
    same_outputs(before, model, feeds_for(before.proto(), batch=4), tolerance=2e-6)


def test_one_scale_for_a_tensor_suits_it_then():
    even = chain()
    for name in ("w1", "w2", "w3", "w4", "w5"):
        even.set_weight(name, normal(even.weight(name).shape, 7))
    rng, odd = np.random.default_rng(0), even.clone()
    for made, bias, read in (("w1", "b1", "w2"), ("w4", "b4", "w5")):  # the same, in other units
        sizes = np.exp(rng.uniform(-4, 4, len(even.weight(made)))).astype(np.float32)
        for name, factor in ((made, sizes), (bias, sizes), (read, 1 / sizes)):
            values = even.weight(name)
            odd.set_weight(name, values * factor.reshape(-1, *(1 for _ in values.shape[1:])))
    feeds = feeds_for(even.proto(), batch=64)
    before, model, _ = equalized(odd)
    same_outputs(even, model, feeds, tolerance=2e-6)
    (want,) = outputs_of(before, feeds)
    plain, better = (
        outputs_of(quantize_model(m, feeds, per_channel=False).model, feeds)[0]
        for m in (before, model)
    )
    assert sqnr(want, better) > sqnr(want, plain) + 10


def test_tensors_whose_values_change_have_names_of_their_own():
    before, model, _ = equalized(chain())
    old = {t.name for n in before.nodes() for t in n.outputs}
    new = {t.name for n in model.nodes() for t in n.outputs}
    assert old & new == {"y"}
    assert {name.removesuffix("_equalized") for name in new} == old


def test_channels_are_followed_through_transpose_and_matmul():
    text = (
        HEAD + "(float[N, 5, 6] x) => (float[N, 4, 5] y)"
        "{ a = MatMul(x, w1) r = Relu(a) b = MatMul(r, w2) s = Relu(b)"
        "  t = Transpose<perm=[0,2,1]>(s) y = Conv(t, w3) }"
    )
    weights = {"w1": ([6, 7], 0), "w2": ([7, 8], 1), "w3": ([4, 8, 1], 2)}
    weights = {name: uneven(*args, low=0.2) for name, args in weights.items()}
    before, model, stats = equalized(parse(text, weights))
    same_outputs(before, model, feeds_for(before.proto()), tolerance=2e-6)
    assert len(stats["equalized"]) == 2
    w = {n: np.abs(model.weight(n)) for n in weights}
    np.testing.assert_allclose(w["w1"].max(axis=0), w["w2"].max(axis=1), rtol=0.05)
    np.testing.assert_allclose(w["w2"].max(axis=0), w["w3"].max(axis=(0, 2)), rtol=0.05)


def test_zeros_stay_zeros_and_dead_channels_stay_as_they_are():
    model = chain()
    weight = model.weight("w3").copy()
    weight[np.random.default_rng(0).random(weight.shape) < 0.5] = 0
    weight[2] = 0
    model.set_weight("w3", weight)
    ctx = PassContext(masks={"w3": Mask.from_zeros(weight)})
    before, model, _ = equalized(model, ctx=ctx)
    np.testing.assert_array_equal(model.weight("w3") == 0, weight == 0)
    same_outputs(before, model, feeds_for(before.proto()), tolerance=2e-6)


BETWEEN = {
    "r = Sigmoid(c)": "Sigmoid behind it does not scale",
    "r = Add(c, k)": "Add behind it does not scale",
    "r = Clip(c, k, six)": "does not clip at 0 and a bound",
    "t = Relu(c) r = Add(t, c)": "is read by 2 nodes",
    "r = Concat<axis=0>(c, c)": "is read by 2 nodes",
}


@pytest.mark.parametrize("between", BETWEEN)
def test_what_cannot_be_scaled_is_left_with_a_reason(between):
    text = (
        HEAD + "(float[N, 4, 3, 3] x) => (float[M, 5, 3, 3] y)"
        f"{{ c = Conv(x, w1) {between} y = Conv(r, w2) }}"
    )
    weights = {"w1": uneven([8, 4, 1, 1], 0), "w2": uneven([5, 8, 1, 1], 1)}
    weights |= {"k": np.float32(-1), "six": np.float32(6)}
    before, model, stats = equalized(parse(text, weights))
    assert before.fingerprint() == model.fingerprint()
    assert stats["equalized"] == {}
    assert BETWEEN[between] in next(iter(stats["skipped"].values()))


def test_weights_that_are_read_elsewhere_are_left():
    text = (
        HEAD + "(float[N, 4, 3, 3] x) => (float[N, 4, 3, 3] y)"
        "{ c = Conv(x, w1) r = Relu(c) d = Conv(r, w2) s = Relu(d) y = Conv(s, w2) }"
    )
    weights = {"w1": uneven([4, 4, 1, 1], 0), "w2": uneven([4, 4, 1, 1], 1)}
    before, model, stats = equalized(parse(text, weights))
    assert before.fingerprint() == model.fingerprint()
    reasons = list(stats["skipped"].values())
    assert sum("'w2' is read elsewhere too" in why for why in reasons) == 2


# ------------------------------------------------------------------------------------------- Clip


def clipped(bias, gain=1):
    """A Conv of 8 channels, with these biases, clipped to 0..6, and one that reads them."""
    text = (
        HEAD + "(float[N, 4, 3, 3] x) => (float[N, 5, 3, 3] y)"
        "{ c = Conv(x, w1, b) r = Clip(c, zero, six) y = Conv(r, w2) }"
    )
    weights = {"w1": uneven([8, 4, 1, 1], 0), "b": bias}
    weights["w2"] = np.float32(gain) * uneven([5, 8, 1, 1], 1)
    weights |= {"zero": np.float32(0), "six": np.float32(6)}
    return parse(text, weights)


def test_through_a_clip_only_channels_that_stay_below_its_bound_are_scaled():
    bias = np.float32([0, 5.9, 0, 7, 0, 0, 4.9, 0])
    feeds = {"x": normal([50, 4, 3, 3], 5)}
    before, model, stats = equalized(clipped(bias, gain=1e6), feeds)
    assert stats["skipped"].keys() == {before.nodes("Conv")[1].name}
    same_outputs(before, model, feeds, tolerance=2e-6)
    near = np.maximum(outputs_of(_shows(before, "c"), feeds)[0], 0).max(axis=(0, 2, 3)) > 0.8 * 6
    assert 2 <= near.sum() <= 5
    scaled = model.weight("w1") != before.weight("w1")
    assert not scaled[near].any()
    assert scaled[~near].any(axis=(1, 2, 3)).all()
    after = outputs_of(_shows(model, "c_equalized"), feeds)[0].max(axis=(0, 2, 3))
    assert np.all(after[~near] <= 0.8 * 6 * 1.0001)
    assert np.any(after[~near] > 0.79 * 6)  # here the Clip was the limit


def _shows(model, name):
    """The model with a tensor for its only output."""
    shown = model.clone()
    shown.graph.outputs = [shown.tensors()[name]]
    return shown


def test_a_clip_whose_bound_held_back_samples_reach_is_left():
    bias = np.zeros(8, np.float32)
    x = normal([50, 4, 3, 3], 5)
    from onnxdrp.datareaders import split

    _, held = split(Feeds({"x": np.arange(50.0, dtype=np.float32)[:, None]}), 0.2)
    rows = np.concatenate([b["x"] for b in held.batches()]).astype(int).ravel()
    assert len(rows) == 10
    x[rows[3]] *= 1000
    before, model, stats = equalized(clipped(bias), {"x": x})
    assert before.fingerprint() == model.fingerprint()
    assert "held-back samples reach the bound" in stats["skipped"]["Conv_0"]


def test_a_clip_is_left_without_data_and_where_all_channels_come_near():
    before, model, stats = equalized(clipped(np.zeros(8, np.float32)))
    assert before.fingerprint() == model.fingerprint()
    assert "clips, and there is no data" in stats["skipped"]["Conv_0"]
    feeds = {"x": normal([50, 4, 3, 3], 5)}
    before, model, stats = equalized(clipped(np.full(8, 7, np.float32)), feeds)
    assert before.fingerprint() == model.fingerprint()
    assert "all its channels come near" in stats["skipped"]["Conv_0"]


def test_a_clip_without_an_upper_bound_is_a_relu():
    model = clipped(np.zeros(8, np.float32))
    clip = model.nodes("Clip")[0]
    clip.inputs.pop()
    before, model, stats = equalized(model)
    assert len(stats["equalized"]) == 1
    same_outputs(before, model, feeds_for(before.proto()), tolerance=2e-6)


def test_what_it_needs_is_said_before_any_work():
    model = Model.from_proto(conv_net(16))
    with pytest.raises(ModelError, match="run cross-layer-equalize first"):
        CrossLayerEqualize().requires(model, PassContext(ranges={"x": Range(0, 1)}))
    done = quantize_model(conv_net(16))
    with pytest.raises(ModelError, match="quantized already"):
        CrossLayerEqualize().requires(done.model, PassContext())
