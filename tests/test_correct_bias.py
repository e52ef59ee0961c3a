"""CorrectBias: means are those of the float model again, and which mode brings that about."""

import numpy as np
import pytest
from builders import conv_net, feeds_for, normal, outputs_of
from quantizing import Feeds, parse, quantize_model, sqnr

from onnxdrp.curves import curves
from onnxdrp.errors import DataError, ModelError, OptionError
from onnxdrp.model import Model
from onnxdrp.moments import ChannelMoments
from onnxdrp.observe import Tap, observe
from onnxdrp.passes import Calibrate, CorrectBias, InferShapes, InsertQdq, QuantizeWeights
from onnxdrp.passes.noisy import noisy_copy
from onnxdrp.pipeline import PassContext, PassManager
from onnxdrp.shifts import Shift

HEAD = '<ir_version: 10, opset_import: ["" : 17]> g '


def uneven(shape, seed):
    """Weights of which one scale suits a few outputs only: the others lose much."""
    weight = normal(shape, seed)
    sizes = np.geomspace(0.02, 1, shape[0]).reshape(-1, *(1 for _ in shape[1:]))
    return (weight * sizes).astype(np.float32)


def rounded(proto, *feeds, per_channel=False):
    """The model with rounded weights, the float one, and the context."""
    model = proto if isinstance(proto, Model) else Model.from_proto(proto)
    feeds = feeds or (feeds_for(model.proto(), batch=32),)
    ctx = PassContext(reader=Feeds(*feeds), workers=1)
    steps = [InferShapes(), Calibrate(method="minmax"), QuantizeWeights(per_channel)]
    PassManager(steps).run(model, ctx)
    assert ctx.reference is not None
    return model, ctx.reference, ctx


def corrected(model, ctx, mode):
    """A copy of a rounded model, corrected, and the figures."""
    model = model.clone()
    (record,) = PassManager([CorrectBias(mode)]).run(model, ctx).records
    model.check()
    return model, record.stats


def means(model, ctx, *tensors):
    found = observe(model, ctx.reader, {t: Tap(t, ChannelMoments()) for t in tensors}, workers=1)
    return [found[t].mean for t in tensors]


def net(outputs="y"):
    """Every kind of layer, with biases, without, shared, and of one value."""
    text = (
        HEAD + f"(float[N, 4, 6, 6] x) => (float[N, 6] {outputs})"
        "{ c = Conv<pads=[1,1,1,1]>(x, w1) r = Relu(c)"
        "  d = Conv<group=8, pads=[1,1,1,1]>(r, w2, b) s = Relu(d)"
        "  e = Conv(s, w3, b) t = Relu(e)"
        "  u = ConvTranspose<group=2>(t, w4) p = GlobalAveragePool(u) f = Flatten(p)"
        "  h = Gemm<transB=1, beta=2.0>(f, w5) i = Relu(h)"
        "  m = MatMul(i, w6) y = Add(m, one) }"
    )
    weights = {
        "w1": uneven([8, 4, 3, 3], 0),
        "w2": uneven([8, 1, 3, 3], 1),
        "w3": uneven([8, 8, 1, 1], 2),
        "w4": normal([8, 3, 2, 2], 3),
        "w5": uneven([8, 6], 4),
        "w6": np.ascontiguousarray(uneven([6, 8], 5).T),
        "b": normal([8], 6),
        "one": np.float32([0.25]),
    }
    return parse(text, weights)


LAYERS = ("c", "d", "e", "u", "h", "y")


def left_over(model, reference, ctx):
    """{layer: by what it should still be shifted}, activations rounded."""
    rounding = noisy_copy(model, ctx)
    behind = curves(reference, [n.name for n in reference.nodes()])
    axis = dict.fromkeys(LAYERS, 1) | {"h": -1, "y": -1}
    taps = {t: Tap((("float", t), ("rounded", t)), Shift(axis[t], behind.get(t))) for t in LAYERS}
    return observe({"float": reference, "rounded": rounding}, ctx.reader, taps, workers=1)


def test_sequential_correction_leaves_nothing_to_shift_in_any_layer():
    model, reference, ctx = rounded(net())
    before = left_over(model, reference, ctx)
    model, stats = corrected(model, ctx, "sequential")
    after = left_over(model, reference, ctx)
    for name in LAYERS:
        assert np.abs(before[name]).max() > 1e-4
        # behind a Relu one step goes most of the way, elsewhere all of it
        most = 0.1 * np.abs(before[name]).max() if name in ("c", "d", "e", "h") else 4e-6
        assert np.abs(after[name]).max() < most, name
    assert len(stats["corrected"]) == 6
    assert stats["skipped"] == {}
    assert all(shift > 1e-5 for shift in stats["corrected"].values())


def test_what_a_relu_drops_has_no_part_in_the_sequential_shift():
    """Half of the samples err by -3 far below 0: their mean must not lift the others."""
    text = HEAD + (
        "(float[N, 2] x) => (float[N, 1] y)"
        "{ h = Gemm<transB=1>(x, w1, b) r = Relu(h) y = Gemm<transB=1>(r, w2) }"
    )
    weights = {"w1": np.float32([[2.0, 1.0]]), "w2": np.float32([[1.0]]), "b": np.float32([0])}
    low = np.arange(64) % 2 == 0
    x = np.stack([np.where(low, 0, 1 + np.arange(64) / 64), np.where(low, -20, 0)], axis=1)
    model, _, ctx = rounded(parse(text, weights), {"x": x.astype(np.float32)})
    model.set_weight("w1", np.float32([[2.0, 1.15]]))
    done, _ = corrected(model, ctx, "sequential")
    assert np.abs(done.weight("b")).max() < 0.02
    assert np.abs(corrected(model, ctx, "fast")[0].weight("b")).max() > 1


def test_the_fast_one_takes_out_what_each_layer_does_itself():
    model, reference, ctx = rounded(net())
    done, stats = corrected(model, ctx, "fast")
    assert len(stats["corrected"]) == 6
    alone = reference.clone()  # the float model, with the first two layers of the other
    for name in ("w1", "w2"):
        alone.set_weight(name, done.weight(name))
    first = next(n for n in done.nodes("Conv"))
    shift = done.weight(first.inputs[2].name)
    want, have = means(reference, ctx, "c")[0], means(alone, ctx, "c")[0]
    np.testing.assert_allclose(shift, want - have, atol=1e-6)
    before, after = (np.abs(means(m, ctx, "y")[0] - means(reference, ctx, "y")[0]) for m in
                     (model, done))  # fmt: skip
    assert after.max() < 0.3 * before.max()


@pytest.mark.parametrize("mode", ["fast", "sequential"])
def test_biases_of_others_stay_and_graph_and_weights_too(mode):
    model, _, ctx = rounded(net())
    weights = {n: model.weight(n).copy() for n in model.weights() if n.startswith("w")}
    done, _ = corrected(model, ctx, mode)
    for name, values in weights.items():
        np.testing.assert_array_equal(done.weight(name), values)
    assert [n.op for n in done.nodes()] == [n.op for n in model.nodes()]
    biases = [n.inputs[2].name for n in done.nodes("Conv", "ConvTranspose", "Gemm")]
    assert len(set(biases)) == len(biases) == 5
    assert done.weight(done.nodes("Add")[0].inputs[1].name).shape == (6,)


@pytest.mark.parametrize("mode", ["fast", "sequential"])
def test_the_corrected_model_is_closer_and_can_be_written(mode):
    proto = conv_net(16)
    feeds = feeds_for(proto, batch=64)
    model, reference, ctx = rounded(proto, feeds)
    model.set_weight("conv1.weight", np.round(model.weight("conv1.weight") * 6) / np.float32(6))
    done, _ = corrected(model, ctx, mode)
    (want,), (a,), (b,) = (outputs_of(m, feeds) for m in (reference, model, done))
    assert sqnr(want, b) > sqnr(want, a) + 1
    written = []
    for each in (model, done):
        tables = {"ranges": ctx.ranges, "quantization": ctx.quantization}
        PassManager([InsertQdq()]).run(each, PassContext(**tables))
        each.check()
        written += outputs_of(each, feeds)
    assert sqnr(want, written[1]) > sqnr(want, written[0]) + 0.5


def test_behind_squeeze_excite_only_the_sequential_one_is_right():
    """The gates turn noise of the layers before them into a mean error of what they gate."""
    text = (
        HEAD + "(float[N, 4, 6, 6] x) => (float[N, 5, 6, 6] y)"
        "{ c = Conv<pads=[1,1,1,1]>(x, w1, b1) a = HardSwish(c)"
        "  p = GlobalAveragePool(a) s = Conv(p, w2, b2) r = Relu(s) e = Conv(r, w3, b3)"
        "  g = HardSigmoid(e) m = Mul(a, g) y = Conv(m, w4, b4) }"
    )
    shapes = {"w1": [8, 4, 3, 3], "w2": [4, 8, 1, 1], "w3": [8, 4, 1, 1], "w4": [5, 8, 1, 1]}
    weights = {name: uneven(shape, i) for i, (name, shape) in enumerate(shapes.items())}
    weights["w3"] = weights["w3"] * np.float32(4)
    weights |= {f"b{i}": normal([len(weights[f"w{i}"])], 10 + i) for i in range(1, 5)}
    x = {"x": 2 * normal([64, 4, 6, 6], 20) * np.float32(6)}
    model, reference, ctx = rounded(parse(text, weights), x)
    for name in shapes:  # coarser than int8, so that the noise is worth the name
        w = model.weight(name)
        step = np.abs(w).max() / 5
        model.set_weight(name, (np.rint(w / step) * step).astype(np.float32))
    (want,) = means(reference, ctx, "y")
    models = {m: corrected(model, ctx, m)[0] for m in ("fast", "sequential")} | {"none": model}
    errors = {
        name: float(np.abs(means(noisy_copy(done, ctx), ctx, "y")[0] - want).max())
        for name, done in models.items()
    }
    assert errors["sequential"] < 1e-5
    assert errors["fast"] > 1e-3
    assert errors["none"] > errors["fast"]


def test_layers_without_a_bias_are_passed_over_with_a_reason():
    text = (
        HEAD + "(float[N, 4] x, float[6] v) => (float[N, 6] y)"
        "{ m = MatMul(x, w1) r = Relu(m) y = Gemm(r, w2, v) }"
    )
    weights = {"w1": normal([4, 8], 0), "w2": normal([8, 6], 1)}
    feeds = {"x": normal([16, 4], 2), "v": normal([6], 3)}
    model, _, ctx = rounded(parse(text, weights), feeds)
    before = model.fingerprint()
    for mode in ("fast", "sequential"):
        (record,) = PassManager([CorrectBias(mode)]).run(model, ctx).records
        reasons = sorted(record.stats["skipped"].values())
        assert reasons == ["its bias is computed", "its operator has no bias"]
        assert not record.modified
        assert model.fingerprint() == before


def test_what_it_needs_is_said_before_any_work():
    model, ctx = Model.from_proto(conv_net(16)), PassContext()
    with pytest.raises(DataError, match="correct-bias needs data"):
        CorrectBias().requires(model, ctx)
    ctx.reader = Feeds(feeds_for(model.proto()))
    with pytest.raises(ModelError, match="run quantize-weights first"):
        CorrectBias().requires(model, ctx)
    done = quantize_model(conv_net(16))
    with pytest.raises(ModelError, match="before insert-qdq"):
        CorrectBias().requires(done.model, done.ctx)
    with pytest.raises(OptionError, match="mode 'slow': there are fast and sequential"):
        CorrectBias("slow")
