"""MatchMoments: means and variances are the float model's again, where that helps."""

import numpy as np
import pytest
from builders import normal
from hypothesis import given, settings
from hypothesis import strategies as st
from quantizing import Feeds, parse

from onnxdrp.errors import DataError, ModelError, OptionError
from onnxdrp.masks import Mask
from onnxdrp.moments import ChannelMoments
from onnxdrp.observe import Tap, observe
from onnxdrp.passes import ApplyMasks, MatchMoments, RemoveChannels
from onnxdrp.pipeline import PassContext, PassManager
from onnxdrp.trials import Trials

HEAD = '<ir_version: 10, opset_import: ["" : 17]> g '
EXACT = MatchMoments(strength=1.0, most=1000)


def net(seed=0):
    """A Conv, a depthwise one, a residual sum, a Gemm, a MatMul with an Add; some without bias."""
    text = (
        HEAD + "(float[N, 3, 6, 6] x) => (float[N, 5] y)"
        "{ a = Conv<pads=[1,1,1,1]>(x, wa, ba) r = Relu(a)"
        "  b = Conv<pads=[1,1,1,1]>(r, wb) s = Relu(b)"
        "  c = Conv<pads=[1,1,1,1], group=8>(s, wc, bc) t = Relu(c)"
        "  d = Conv(t, wd, bd) u = Add(r, d) v = Relu(u)"
        "  p = GlobalAveragePool(v) f = Flatten(p)"
        "  g = Gemm(f, wg, bg) h = Relu(g)"
        "  m = MatMul(h, wm) y = Add(m, bm) }"
    )
    shapes = {
        "wa": (8, 3, 3, 3), "ba": (8,), "wb": (8, 8, 3, 3), "wc": (8, 1, 3, 3), "bc": (8,),
        "wd": (8, 8, 1, 1), "bd": (8,), "wg": (8, 12), "bg": (12,), "wm": (12, 5), "bm": (5,),
    }  # fmt: skip
    weights = {name: normal(shape, seed + i) for i, (name, shape) in enumerate(shapes.items())}
    return parse(text, weights)


LAYERS = ("b", "c", "d", "g", "y")  # their outputs


def images(count=96, seed=9):
    return {"x": np.random.default_rng(seed).standard_normal((count, 3, 6, 6)).astype(np.float32)}


def masked(model, share=0.5, names=("wb", "wd"), seed=1, **more):
    """A copy whose weights of these names have lost some, and its context."""
    model, random = model.clone(), np.random.default_rng(seed)
    masks = {name: Mask(random.random(model.weight(name).shape) >= share) for name in names}
    more.setdefault("reader", Feeds(images()))
    ctx = PassContext(masks=masks, workers=1, **more)
    PassManager([ApplyMasks()]).run(model, ctx)
    return model, ctx


def done(model, ctx, step=EXACT):
    """A copy after the pass, and its figures."""
    model = model.clone()
    (record,) = PassManager([step]).run(model, ctx).records
    model.check()
    return model, record


def moments(model, ctx, *tensors):
    taps = {t: Tap(t, ChannelMoments(1)) for t in tensors}
    return observe(model, ctx.reader, taps, workers=1)


def test_every_output_has_its_mean_and_its_variance_again():
    dense = net()
    model, ctx = masked(dense)
    before, want = moments(model, ctx, *LAYERS), moments(dense, ctx, *LAYERS)
    mended, record = done(model, ctx)
    after = moments(mended, ctx, *LAYERS)
    for tensor in LAYERS:
        assert np.abs(before[tensor].variance / want[tensor].variance - 1).max() > 0.1
        np.testing.assert_allclose(after[tensor].variance, want[tensor].variance, rtol=1e-4)
        np.testing.assert_allclose(after[tensor].mean, want[tensor].mean, atol=1e-5)
    assert record.modified
    assert record.stats["strength"] == 1
    assert len(record.stats["layers"]) == len(LAYERS)
    assert all(f["least"] <= f["median"] <= f["most"] for f in record.stats["layers"].values())


def test_what_comes_before_the_first_pruned_layer_keeps_its_bits_and_zeros_stay():
    model, ctx = masked(net())
    mended, _ = done(model, ctx)
    for name in ("wa", "ba"):
        assert np.array_equal(mended.weight(name), model.weight(name))
    for name, mask in ctx.masks.items():
        assert np.array_equal(mended.weight(name) != 0, mask.keep)
    assert not np.array_equal(mended.weight("wc"), model.weight("wc"))


@pytest.mark.parametrize("step", [EXACT, MatchMoments()])
def test_a_model_whose_masks_keep_everything_comes_out_as_it_was(step):
    model, ctx = masked(net(), share=0.0)
    mended, record = done(model, ctx, step)
    assert mended.fingerprint() == model.fingerprint()
    assert not record.modified
    assert record.stats["strength"] is None


def test_what_lost_channels_gets_its_moments_again():
    small, ctx = (
        net(),
        PassContext(reader=Feeds(images()), workers=1, removed={"Conv_0": (1, 4, 6)}),
    )
    PassManager([RemoveChannels()]).run(small, ctx)
    tensors = ("b", "d", "g", "y")
    before, want = moments(small, ctx, *tensors), moments(ctx.dense, ctx, *tensors)
    mended, record = done(small, ctx)
    after = moments(mended, ctx, *tensors)
    for tensor in tensors:
        assert np.abs(before[tensor].variance / want[tensor].variance - 1).max() > 0.05
        np.testing.assert_allclose(after[tensor].variance, want[tensor].variance, rtol=1e-4)
        if tensor != "b":  # a layer without a bias
            np.testing.assert_allclose(after[tensor].mean, want[tensor].mean, atol=1e-4)
    assert record.modified


def test_where_moments_are_right_already_no_bit_changes():
    model, ctx = masked(net())
    same = model.clone()
    ctx.dense = model  # masks that take away nothing of it
    mended, record = done(same, ctx)
    assert mended.fingerprint() == same.fingerprint()
    assert not record.modified


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), strength=st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_a_layer_gets_the_formula_whatever_the_strength(seed, strength):
    text = HEAD + "(float[N, 6] x) => (float[N, 4] y) { y = Gemm<transB=1>(x, w, b) }"
    dense = parse(text, {"w": normal([4, 6], seed), "b": normal([4], seed + 1)})
    x = np.random.default_rng(seed).standard_normal((50, 6)).astype(np.float32) + 0.5
    keep = np.random.default_rng(seed + 2).random((4, 6)) < 0.6
    keep[0], keep[1] = False, True
    ctx = PassContext(reader=Feeds({"x": x}), masks={"w": Mask(keep)}, workers=1)
    model = dense.clone()
    PassManager([ApplyMasks()]).run(model, ctx)
    mended, _ = done(model, ctx, MatchMoments(strength=strength, most=1.5))
    t, y = (m.session().run(None, {"x": x})[0].astype(np.float64) for m in (dense, model))
    there = np.where(keep.any(1), y.var(0), 1)
    s = np.clip((t.var(0) / there) ** (strength / 2), 1 / 1.5, 1.5)
    s[~keep.any(1)] = 1
    want = s * (y - y.mean(0)) + t.mean(0)
    found = mended.session().run(None, {"x": x})[0]
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)
    assert s[1] == pytest.approx(1)
    assert np.ptp(found[:, 0]) == 0  # without any weight: the mean alone


def shared(text):
    """A model of two layers of one weight, masked, and its context."""
    dense = parse(HEAD + text, {"w": normal([6, 6], 3), "b": normal([6], 4)})
    feed = {"x": np.random.default_rng(5).standard_normal((80, 6)).astype(np.float32)}
    keep = np.random.default_rng(6).random((6, 6)) < 0.6
    keep[np.arange(6), np.arange(6)] = True
    model = dense.clone()
    ctx = PassContext(reader=Feeds(feed), masks={"w": Mask(keep)}, workers=1)
    PassManager([ApplyMasks()]).run(model, ctx)
    return model, ctx


def test_a_weight_of_two_layers_has_one_factor_and_each_its_own_bias():
    model, ctx = shared(
        "(float[N, 6] x) => (float[N, 6] a, float[N, 6] c)"
        "{ a = Gemm<transB=1>(x, w, b) r = Abs(x) c = Gemm<transB=1>(r, w, b) }"
    )
    mended, _ = done(model, ctx)
    keep, there, want = ctx.masks["w"].keep, moments(model, ctx, "a", "c"), ctx.dense
    float_ = moments(want, ctx, "a", "c")
    s = np.sqrt(sum(float_[t].variance for t in "ac") / sum(there[t].variance for t in "ac"))
    assert np.abs(s - 1).max() > 0.05
    np.testing.assert_allclose(mended.weight("w"), model.weight("w") * s[:, None] * keep, rtol=1e-4)
    found = moments(mended, ctx, "a", "c")
    for tensor in "ac":
        np.testing.assert_allclose(found[tensor].mean, float_[tensor].mean, atol=1e-5)
    biases = [node.inputs[2].name for node in mended.nodes("Gemm")]
    assert len(set(biases)) == 2


def test_a_weight_whose_layers_follow_each_other_is_passed_over_with_the_reason():
    model, ctx = shared(
        "(float[N, 6] x) => (float[N, 6] y)"
        "{ a = Gemm<transB=1>(x, w, b) r = Relu(a) y = Gemm<transB=1>(r, w, b) }"
    )
    mended, record = done(model, ctx)
    assert mended.fingerprint() == model.fingerprint()
    assert not record.modified
    whys = list(record.stats["skipped"].values())
    assert len(whys) == 2
    assert all("one comes after another" in why for why in whys)


def test_a_layer_without_a_bias_is_passed_over_with_the_reason():
    text = HEAD + "(float[N, 6] x) => (float[N, 4] y) { m = MatMul(x, w) y = Relu(m) }"
    dense = parse(text, {"w": normal([6, 4], 3)})
    feed = {"x": np.random.default_rng(5).standard_normal((20, 6)).astype(np.float32)}
    model = dense.clone()
    keep = np.random.default_rng(6).random((6, 4)) < 0.5
    ctx = PassContext(reader=Feeds(feed), masks={"w": Mask(keep)}, workers=1)
    PassManager([ApplyMasks()]).run(model, ctx)
    mended, record = done(model, ctx)
    assert mended.fingerprint() == model.fingerprint()
    (why,) = record.stats["skipped"].values()
    assert "without a bias" in why


# ------------------------------------------------------------------------------ where it helps


def test_it_is_done_where_it_helps_on_samples_held_back():
    dense = net()
    model, ctx = masked(dense, share=0.6)
    mended, record = done(model, ctx, MatchMoments())
    stats = record.stats
    assert stats["strength"] in (1.0, 0.5, 0.25)
    assert stats["samples"] == 24
    assert list(stats["tried"]) == ["1", "0.5", "0.25"]
    taken = stats["tried"][f"{stats['strength']:g}"]
    assert taken["agreement"] >= stats["before"]["agreement"]
    fresh = Trials(dense, Feeds(images(200, seed=77)))
    assert fresh.sqnr_db(mended) > fresh.sqnr_db(model) + 3


def test_it_is_left_undone_where_it_does_not_help():
    dense = net()
    model, ctx = masked(dense, share=0.6)
    mended, _ = done(model, ctx, MatchMoments(strength=1.0))
    again, record = done(mended, ctx, MatchMoments())
    assert record.stats["strength"] is None
    assert not record.modified
    assert again.fingerprint() == mended.fingerprint()
    tried = [found["sqnr_db"] for found in record.stats["tried"].values()]
    assert record.stats["before"]["sqnr_db"] >= max(tried) - 0.5


def test_the_context_may_have_samples_to_judge_by_that_nothing_was_fitted_to():
    model, ctx = masked(net(), share=0.6, held_out=Feeds(images(40, seed=50)))
    _, record = done(model, ctx, MatchMoments())
    assert record.stats["samples"] == 40
    by_all, _ = done(model, ctx, MatchMoments(strength=record.stats["strength"]))
    again, _ = done(model, ctx, MatchMoments())
    assert again.fingerprint() == by_all.fingerprint()  # moments come from all of the reader


def test_labels_are_never_looked_at():
    model, ctx = masked(net(), share=0.6)
    want, record = done(model, ctx, MatchMoments())
    ctx.reader.labels = np.zeros(96, np.int64)
    found, other = done(model, ctx, MatchMoments())
    assert found.fingerprint() == want.fingerprint()
    assert other.stats == record.stats


def test_batches_and_workers_change_no_bit():
    dense, feed = net(), images()
    want, _ = done(*masked(dense), MatchMoments())
    parts = Feeds(*({"x": feed["x"][i : i + 7]} for i in range(0, 96, 7)))
    model, ctx = masked(dense, reader=parts)
    ctx.workers = 3
    found, _ = done(model, ctx, MatchMoments())
    assert found.fingerprint() == want.fingerprint()


def test_it_says_what_it_needs():
    with pytest.raises(DataError, match="needs data"):
        MatchMoments().requires(net(), PassContext())
    with pytest.raises(ModelError, match="run prune-blocks or remove-channels first"):
        MatchMoments().requires(net(), PassContext(reader=Feeds(images())))
    options = ({"strength": 1.5}, {"most": 0.5}, {"held_out": 1.0}, {"memory_limit": 0})
    for option in options:
        with pytest.raises(OptionError, match=next(iter(option))):
            MatchMoments(**option)
