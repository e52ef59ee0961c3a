"""The passes: channels masked in place or taken out, and what they leave for those behind them."""

import numpy as np
import pytest
from builders import conv_net, feeds_for, normal, outputs_of
from quantizing import Feeds, parse, sqnr
from slimming import values_of

from onnxdrp.channels import channels_of
from onnxdrp.channels.excluding import removable
from onnxdrp.errors import CheckError, OptionError, PassError
from onnxdrp.masks import Mask
from onnxdrp.model import Model
from onnxdrp.passes import (
    ApplyMasks,
    InferShapes,
    MaskChannels,
    RefitWeights,
    RemoveChannels,
    SelectChannels,
)
from onnxdrp.pipeline import PassContext, PassManager

RESIDUAL = """<ir_version: 10, opset_import: ["" : 17]>
g (float[N,8,6,6] x) => (float[N,8,6,6] y) {
    [a] at = Conv<pads=[1,1,1,1]>(x, a)
    ar = Relu(at)
    [b] bt = Conv<pads=[1,1,1,1]>(ar, b, bias)
    br = Relu(bt)
    [c] ct = Conv<pads=[1,1,1,1]>(br, c)
    sum = Add(ct, ar)
    [d] y = Conv<pads=[1,1,1,1]>(sum, d)
}"""
REMOVED = {"a": (0, 5), "b": (1, 2, 3)}


def residual():
    weights = {name: normal([8, 8, 3, 3], i) for i, name in enumerate("abcd")}
    return parse(RESIDUAL, weights | {"bias": normal([8], 9)})


def images(count=32, seed=0):
    """Smooth noise, in batches of 8."""
    x = np.random.default_rng(seed).standard_normal((count, 8, 6, 6)).astype(np.float32)
    x = x + np.roll(x, 1, axis=-1) + np.roll(x, 1, axis=-2)
    return [{"x": x[i : i + 8]} for i in range(0, count, 8)]


def run(model, *steps, **context):
    """The context, and the figures of the last pass."""
    ctx = PassContext(**context)
    report = PassManager(list(steps)).run(model, ctx)
    model.check()
    return ctx, report.records[-1]


def test_what_is_removed_is_counted():
    model = residual()
    before = model.clone()
    _, record = run(model, RemoveChannels(), removed=dict(REMOVED))
    assert record.modified
    assert record.stats["channels"] == {"a": [8, 6], "b": [8, 5], "c": [8, 6]}
    sizes = {name: model.weight(name).shape[:2] for name in "abcd"}
    assert sizes == {"a": (6, 8), "b": (5, 6), "c": (6, 5), "d": (8, 6)}
    products = 9 * np.array([4 * 64, 6 * 8 + 5 * 6 + 6 * 5 + 8 * 6])
    assert record.stats["params"] == (products + np.array([8, 5])).tolist()
    assert record.stats["macs"] == (36 * products).tolist()
    assert record.stats["pinned"] == {"d": "'y' is an output of the model"}
    for name in "abcd":
        kept_out = [i for i in range(8) if not (name in "ac" and i in (0, 5))]
        kept_out = [i for i in kept_out if not (name == "b" and i in (1, 2, 3))]
        assert model.weight(name).shape[0] == len(kept_out)
        first = [i for i in range(8) if name == "a" or i not in {"c": (1, 2, 3)}.get(name, (0, 5))]
        np.testing.assert_array_equal(
            model.weight(name), before.weight(name)[np.ix_(kept_out, first)]
        )


def test_masked_first_the_outputs_stay():
    sparse = residual()
    ctx, record = run(sparse, MaskChannels(), removed=dict(REMOVED))
    assert record.stats["masks"] == 4
    kept = 6 * 8 + 5 * 6 + 6 * 5 + 8 * 6
    assert record.stats["sparsity"] == pytest.approx(1 - kept / 256)
    for name in "abcd":
        assert ctx.masks[name].count == np.count_nonzero(sparse.weight(name))
    assert ctx.dense.fingerprint() == residual().fingerprint()
    slim = sparse.clone()
    run(slim, RemoveChannels(), removed=dict(ctx.removed))
    feed = images()[0]
    (want,), (got,) = outputs_of(sparse, feed), outputs_of(slim, feed)
    assert np.abs(want - outputs_of(residual(), feed)[0]).max() > 0.1 * np.ptp(want)
    assert np.abs(want - got).max() <= 1e-5 * np.abs(want).max()


def test_the_context_tells_the_passes_behind():
    model = residual()
    ctx, _ = run(model, RemoveChannels(), removed=dict(REMOVED))
    assert ctx.removed == {}
    assert ctx.shortened == {"b", "c", "d"}
    assert ctx.slim is not model
    assert ctx.slim.fingerprint() == model.fingerprint()


def test_dense_is_the_float_model_seen_through_the_channels_that_are_left():
    model, whole = residual(), residual()
    ctx, _ = run(model, RemoveChannels(), removed=dict(REMOVED))
    names, feed = ["at", "ar", "bt", "br", "ct", "sum", "y"], images()[0]
    want, got = values_of(whole, feed, names), values_of(ctx.dense, feed, names)
    left = {"a": [1, 2, 3, 4, 6, 7], "b": [0, 4, 5, 6, 7]}
    for name in names:
        kept = left["b" if name[0] == "b" else "a"] if name != "y" else list(range(8))
        np.testing.assert_array_equal(want[name][:, kept], got[name])
        assert model.tensor(name).shape == ctx.dense.tensor(name).shape


def test_removing_twice_is_removing_once():
    once, twice = residual(), residual()
    first, _ = run(once, RemoveChannels(), removed=dict(REMOVED))
    ctx = PassContext(removed={"a": (0,), "b": (2,)})
    PassManager([RemoveChannels()]).run(twice, ctx)
    ctx.removed = {"a": (4,), "b": (1, 2)}
    PassManager([RemoveChannels()]).run(twice, ctx)
    feed = images()[0]
    for name in "abcd":
        np.testing.assert_array_equal(once.weight(name), twice.weight(name))
    names = ["ar", "br", "sum", "y"]
    want, got = values_of(first.dense, feed, names), values_of(ctx.dense, feed, names)
    for name in names:
        np.testing.assert_array_equal(want[name], got[name])


def test_masks_of_weights_lose_what_the_weights_lose():
    model = residual()
    rng = np.random.default_rng(3)
    masks = {name: Mask(rng.random((8, 8, 3, 3)) > 0.5) for name in "abd"}
    ctx = PassContext(masks=dict(masks), removed=dict(REMOVED))
    PassManager([ApplyMasks(), RemoveChannels()]).run(model, ctx)
    left, inner = [1, 2, 3, 4, 6, 7], [0, 4, 5, 6, 7]
    np.testing.assert_array_equal(ctx.masks["a"].keep, masks["a"].keep[left])
    np.testing.assert_array_equal(ctx.masks["b"].keep, masks["b"].keep[np.ix_(inner, left)])
    np.testing.assert_array_equal(ctx.masks["d"].keep, masks["d"].keep[:, left])
    for name, mask in ctx.masks.items():
        assert not model.weight(name)[~mask.keep].any()


def test_masks_of_channels_join_those_that_are_there():
    model = residual()
    ctx = PassContext(masks={"b": Mask(np.arange(8 * 72).reshape(8, 8, 3, 3) % 2 == 0)})
    PassManager([ApplyMasks()]).run(model, ctx)
    ctx.removed = {"b": (1,)}
    PassManager([MaskChannels()]).run(model, ctx)
    assert ctx.masks["b"].count == 7 * 36
    assert ctx.masks["c"].count == 7 * 72
    assert set(ctx.masks) == {"b", "c"}


@pytest.mark.parametrize("form", [RemoveChannels, MaskChannels])
def test_refitting_repairs_either_form(form):
    model, feeds = residual(), images(64)
    want = outputs_of(model, images(8, seed=5)[0])[0]
    ctx, _ = run(model, form(), removed=dict(REMOVED), reader=Feeds(*feeds))
    bad = outputs_of(model, images(8, seed=5)[0])[0]
    report = PassManager([RefitWeights()]).run(model, ctx)
    good = outputs_of(model, images(8, seed=5)[0])[0]
    assert sqnr(want, good) > sqnr(want, bad) + 3
    assert set(report.records[0].stats["layers"]) >= {"b", "c", "d"}
    assert not report.records[0].stats["skipped"]


def test_select_and_remove_are_a_chain():
    model = Model.from_proto(conv_net(32))
    feeds = feeds_for(conv_net(32))
    steps = [InferShapes(), SelectChannels(rate=0.5, auto_excludes=False), RemoveChannels()]
    _, record = run(model, *steps)
    assert record.stats["channels"] == {"conv1": [32, 16], "conv2": [32, 16]}
    assert record.stats["pinned"] == {"fc": "'y' is an output of the model"}
    assert outputs_of(model, feeds)[0].shape == (2, 10)


def test_what_does_not_fit_is_refused():
    model = residual()
    fresh = model.fingerprint()
    for step in (RemoveChannels(), MaskChannels()):
        with pytest.raises(PassError, match="run select-channels before"):
            PassManager([step]).run(model, PassContext())
        with pytest.raises(PassError, match="no group of channels is called 'z'; there are 'a'"):
            PassManager([step]).run(model, PassContext(removed={"z": (0,)}))
        with pytest.raises(PassError, match="units 0 to 7"):
            PassManager([step]).run(model, PassContext(removed={"a": (8,)}))
        with pytest.raises(PassError, match="'d' can be removed: 'y' is an output"):
            PassManager([step]).run(model, PassContext(removed={"d": (0,)}))
        with pytest.raises(PassError, match="nothing of tensor"):
            PassManager([step]).run(model, PassContext(removed={"a": tuple(range(8))}))
    with pytest.raises(PassError, match="run select-layers afterwards"):
        PassManager([RemoveChannels()]).run(
            model, PassContext(removed={"a": (0,)}, rates={"a": 0.5})
        )
    assert model.fingerprint() == fresh


def test_shapes_that_do_not_fit_afterwards_are_an_error_of_the_pass():
    model = residual()
    step, ctx = RemoveChannels(), PassContext(removed={"b": (0,)})
    step.run(model, ctx)
    step.ensures(model, ctx)
    whole = model.clone()
    model.set_weight("c", normal([8, 8, 3, 3], 0))
    with pytest.raises(CheckError, match="'c' reads 7 channels, its weight is for 8"):
        step.ensures(model, ctx)
    whole.set_weight("c", normal([7, 7, 3, 3], 0))
    with pytest.raises(CheckError, match="no valid shapes"):
        step.ensures(whole, ctx)


def test_the_first_and_the_last_convolution_stay_whole_unless_told():
    model = residual()
    channels = channels_of(model)
    left, skipped = removable(model, channels)
    assert left == ["b"]
    assert skipped["a"] == skipped["c"] == "first: the first convolution stays whole ('a')"
    assert skipped["d"] == "'y' is an output of the model"
    assert removable(model, channels, auto_excludes=False)[0] == ["a", "b"]
    left, skipped = removable(model, channels, ["c"], auto_excludes=False)
    assert left == ["b"]
    assert skipped["a"] == "excluded: by 'c' ('c')"
    with pytest.raises(OptionError):
        removable(model, channels, ["nobody"])


def test_a_model_of_which_nothing_can_be_removed():
    model = Model.from_proto(conv_net(8))
    with pytest.raises(PassError, match="no channels can be removed"):
        run(model, InferShapes(), SelectChannels(rate=0.5, exclude=("conv*",)))
