"""RefitWeights: the least squares of real activations, zeros kept, nothing else touched."""

from functools import partial

import numpy as np
import pytest
from builders import conv_net, normal, outputs_of
from quantizing import Feeds, parse, sqnr

from onnxdrp.errors import DataError, ModelError, OptionError, PassError
from onnxdrp.masks import Mask
from onnxdrp.model import Model
from onnxdrp.passes import ApplyMasks, InferShapes, PruneBlocks, RefitWeights
from onnxdrp.pipeline import PassContext, PassManager

HEAD = '<ir_version: 10, opset_import: ["" : 17]>'

RESIDUAL = f"""{HEAD} g (float[N,8,6,6] x) => (float[N,8,6,6] y) {{
    at = Conv<pads=[1,1,1,1]>(x, a)
    ar = Relu(at)
    bt = Conv<pads=[1,1,1,1]>(ar, b, bias)
    br = Relu(bt)
    ct = Conv<pads=[1,1,1,1]>(br, c)
    sum = Add(ct, ar)
    y = Conv<pads=[1,1,1,1]>(sum, d)
}}"""


def residual():
    weights = {name: normal([8, 8, 3, 3], i) for i, name in enumerate("abcd")}
    return parse(RESIDUAL, weights | {"bias": normal([8], 9)})


def images(shape, count=40, seed=0, batch=8):
    """Smooth noise, so that neighbours depend on each other."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, *shape)).astype(np.float32)
    if len(shape) == 3:
        x = x + np.roll(x, 1, axis=-1) + np.roll(x, 1, axis=-2)
    return [{"x": x[i : i + batch]} for i in range(0, count, batch)]


def values(model, feeds, name):
    session = model.session(outputs=[name])
    return np.concatenate([session.run([name], feed)[0] for feed in feeds])


def masks(model, rate, *names, seed=5):
    """Random ones: a third of the weights or so, exactly."""
    rng = np.random.default_rng(seed)
    return {name: Mask(rng.random(model.weight(name).shape) >= rate) for name in names}


def refit(model, chosen, feeds, step=None, **context):
    """The dense model, the masked one, the one that is fitted, and the figures of the pass."""
    ctx = PassContext(reader=Feeds(*feeds), masks=chosen, **context)
    dense = model.clone()
    PassManager([ApplyMasks()]).run(model, ctx)
    masked = model.clone()
    report = PassManager([step or RefitWeights()]).run(model, ctx)
    model.check()
    return dense, masked, model, report.records[-1].stats


def test_the_first_pruned_layer_is_the_least_squares_of_its_activations():
    model, feeds = residual(), images((8, 6, 6))
    dense = model.clone()
    chosen = masks(model, 0.5, "b")
    step = RefitWeights(ridge=1e-6, steps=0, rows=10**6)
    *_, fitted, _ = refit(model, chosen, feeds, step)
    read, wanted = values(dense, feeds, "ar"), values(dense, feeds, "bt")
    padded = np.pad(read, ((0, 0), (0, 0), (1, 1), (1, 1)))
    rows = np.stack(
        [padded[:, :, i : i + 6, j : j + 6] for i in range(3) for j in range(3)], axis=2
    )  # [n, c, 9, 6, 6]
    rows = rows.transpose(0, 3, 4, 1, 2).reshape(-1, 72).astype(np.float64)
    for output in range(8):
        keep = chosen["b"].keep[output].reshape(-1)
        full = np.column_stack([rows[:, keep], np.ones(len(rows))])
        best = np.linalg.lstsq(full, wanted[:, output].reshape(-1).astype(np.float64))[0]
        got = fitted.weight("b")[output].reshape(-1)
        np.testing.assert_allclose(got[keep], best[:-1], rtol=2e-3, atol=2e-4)
        assert not got[~keep].any()
        np.testing.assert_allclose(fitted.weight("bias")[output], best[-1], rtol=1e-2, atol=1e-3)


def test_outputs_come_back_and_zeros_stay():
    model, feeds = residual(), images((8, 6, 6))
    chosen = masks(model, 0.5, "b", "c")
    dense, masked, fitted, stats = refit(model, chosen, feeds)
    fresh = images((8, 6, 6), seed=1)[0]
    want, bad, good = (outputs_of(m, fresh)[0] for m in (dense, masked, fitted))
    assert sqnr(want, good) > sqnr(want, bad) + 3
    for name, mask in chosen.items():
        assert not fitted.weight(name)[~mask.keep].any()
        assert (fitted.weight(name)[mask.keep] != 0).all()
    assert [figures["after"] < figures["before"] for figures in stats["layers"].values()] == [
        True
    ] * 3
    assert not stats["skipped"]


def test_what_pruning_does_not_concern_keeps_its_bits():
    model, feeds = residual(), images((8, 6, 6))
    dense, _, fitted, stats = refit(model, masks(model, 0.5, "c"), feeds)
    for name in ("a", "b", "bias"):
        assert np.array_equal(dense.weight(name), fitted.weight(name))
    assert (dense.weight("d") != fitted.weight("d")).any()
    assert len(stats["layers"]) == 2


def test_masks_that_keep_everything_change_nothing():
    model = residual()
    whole = {name: Mask(np.ones((8, 8, 3, 3), np.bool_)) for name in "abcd"}
    before = model.fingerprint()
    ctx = PassContext(reader=Feeds(*images((8, 6, 6))), masks=whole)
    report = PassManager([ApplyMasks(), RefitWeights()]).run(model, ctx)
    assert model.fingerprint() == before
    assert not report.records[-1].modified


def test_no_layer_errs_more_than_with_the_weights_it_had():
    for seed in range(3):
        model = residual()
        *_, stats = refit(model, masks(model, 0.7, *"abc", seed=seed), images((8, 6, 6), 6))
        assert len(stats["layers"]) == 4
        for figures in stats["layers"].values():
            assert figures["after"] <= figures["before"]


def test_steps_behind_a_relu_lessen_what_it_passes_on():
    feeds = images((8, 6, 6), 60)
    found = {}
    for steps in (0, 3):
        model = residual()
        step = RefitWeights(steps=steps, ridge=1e-3)
        dense, _, fitted, _ = refit(model, masks(model, 0.7, "b"), feeds, step)
        found[steps] = sqnr(values(dense, feeds, "br"), values(fitted, feeds, "br"))
    assert found[3] > found[0] + 0.2


@pytest.mark.parametrize("bytes_held", [1 << 30, 1])
def test_bits_depend_on_neither_batches_nor_workers_nor_memory(bytes_held):
    found = set()
    for batch, workers in ((8, 1), (8, 2), (4, 2)):
        model = residual()
        step = RefitWeights(memory_limit=bytes_held)
        feeds = images((8, 6, 6), batch=batch)
        refit(model, masks(model, 0.6, "b", "c"), feeds, step, workers=workers)
        found.add(model.fingerprint())
    assert len(found) == 1


LAYERS = {
    "grouped": ("y = Conv<group=2, pads=[1,1,1,1]>(h, w)", (6, 4, 3, 3)),
    "depthwise": ("y = Conv<group=8, pads=[1,1,1,1]>(h, w)", (8, 1, 3, 3)),
    "strided": ("y = Conv<strides=[2,2], dilations=[2,1], pads=[2,0,1,1]>(h, w)", (5, 8, 3, 3)),
    "same": ('y = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(h, w)', (5, 8, 3, 3)),
    "pointwise": ("y = Conv(h, w)", (12, 8, 1, 1)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_every_kind_of_conv_makes_up_for_what_was_pruned_before_it(kind):
    last, shape = LAYERS[kind]
    text = f"""{HEAD} g (float[N,8,6,6] x) => (float[N,C,H,W] y) {{
        h = Conv<pads=[1,1,1,1]>(x, a)
        {last}
    }}"""
    weights = {"a": normal([8, 8, 3, 3], 0), "w": normal(shape, 1)}
    model = parse(text, weights)
    every = [Mask(np.ones(shape, np.bool_)), *masks(model, 0.3, "w").values()]
    for own in every:
        model = parse(text, weights)
        chosen = masks(model, 0.4, "a") | {"w": own}
        dense, masked, fitted, stats = refit(model, chosen, images((8, 6, 6)))
        fresh = images((8, 6, 6), seed=3)[0]
        want, bad, good = (outputs_of(m, fresh)[0] for m in (dense, masked, fitted))
        assert sqnr(want, good) > sqnr(want, bad) + 1
        assert len(stats["layers"]) == 2
        assert fitted.weight("w")[~own.keep].any() == 0


@pytest.mark.parametrize(
    ("last", "shape"),
    [
        ("y = Gemm(h, w, b)", (12, 5)),
        ("y = Gemm<transB=1, alpha=0.5, beta=2.0>(h, w, b)", (5, 12)),
        ("m = MatMul(h, w)\n y = Add(m, b)", (12, 5)),
        ("y = MatMul(h, w)", (12, 5)),
    ],
)
def test_products_of_matrices_are_fitted(last, shape):
    text = f"""{HEAD} g (float[N,16] x) => (float[N,5] y) {{
        h0 = Gemm<transB=1>(x, a)
        h = Tanh(h0)
        {last}
    }}"""
    weights = {"a": normal([12, 16], 0), "w": normal(shape, 1), "b": normal([5], 2)}
    model = parse(text, weights)
    chosen = masks(model, 0.3, "a", "w")
    dense, masked, fitted, stats = refit(model, chosen, images((16,), 400))
    fresh = images((16,), seed=3)[0]
    want, bad, good = (outputs_of(m, fresh)[0] for m in (dense, masked, fitted))
    assert sqnr(want, good) > sqnr(want, bad) + 0.2
    assert len(stats["layers"]) == 2


def test_layers_that_share_a_weight_are_fitted_at_once():
    text = f"""{HEAD} g (float[N,8,6,6] x) => (float[N,8,6,6] y, float[N,8,3,3] z) {{
        at = Conv<pads=[1,1,1,1]>(x, a)
        pool = MaxPool<kernel_shape=[2,2], strides=[2,2]>(at)
        y = Conv<pads=[1,1,1,1]>(at, shared, bias)
        z = Conv<pads=[1,1,1,1]>(pool, shared)
    }}"""
    weights = {
        "a": normal([8, 8, 3, 3], 0),
        "shared": normal([8, 8, 3, 3], 1),
        "bias": normal([8], 2),
    }
    model = parse(text, weights)
    dense, masked, fitted, stats = refit(model, masks(model, 0.5, "shared"), images((8, 6, 6)))
    fresh = images((8, 6, 6), seed=3)[0]
    for want, bad, good in zip(
        *(outputs_of(m, fresh) for m in (dense, masked, fitted)), strict=True
    ):
        assert sqnr(want, good) > sqnr(want, bad) + 1
    assert len(stats["layers"]) == 2
    assert fitted.node(fitted.nodes("Conv")[1].name).inputs[1].name == "shared"


def test_the_whole_chain_on_a_classifier():
    proto = conv_net(64)
    model = Model.from_proto(proto)
    feeds = [{"x": f["x"]} for f in images((3, 8, 8), 64)]
    name = model.inputs[0].name
    ctx = PassContext(reader=Feeds(*({name: f["x"]} for f in feeds)))
    dense = model.clone()
    PassManager([InferShapes(), PruneBlocks(pattern="block", rate=0.5)]).run(model, ctx)
    masked = model.clone()
    PassManager([RefitWeights()]).run(model, ctx)
    fresh = {name: images((3, 8, 8), seed=3)[0]["x"]}
    want, bad, good = (outputs_of(m, fresh)[0] for m in (dense, masked, model))
    assert sqnr(want, good) > sqnr(want, bad) + 1


@pytest.mark.parametrize("count", [1, 2, 7])
def test_few_samples_are_no_reason_to_fail(count):
    model = residual()
    *_, fitted, stats = refit(model, masks(model, 0.5, "b"), images((8, 6, 6), count, batch=1))
    assert all(np.isfinite(fitted.weight(name)).all() for name in "abcd")
    assert any("give more samples" in text for text in stats["warnings"]) == (count < 3)


def test_weights_too_large_for_memory_are_passed_over_with_a_reason():
    model = residual()
    before = model.weight("b").copy()
    step = RefitWeights(moments_limit=1000)
    _, masked, fitted, stats = refit(model, masks(model, 0.5, "b"), images((8, 6, 6)), step)
    assert len(stats["skipped"]) == 3
    assert all("moments_limit" in why for why in stats["skipped"].values())
    assert fitted.fingerprint() == masked.fingerprint()
    assert (before != fitted.weight("b")).any()


def test_data_that_is_not_finite_is_refused_by_name():
    feeds = images((8, 6, 6))
    feeds[1]["x"][3, 0, 0, 0] = np.nan
    model = residual()
    with pytest.raises(PassError, match="sample 11"):
        refit(model, masks(model, 0.5, "b"), feeds)


def test_what_it_needs_is_asked_for():
    model = residual()
    with pytest.raises(DataError, match="--calib"):
        RefitWeights().requires(model, PassContext())
    with pytest.raises(ModelError, match="prune-blocks"):
        RefitWeights().requires(model, PassContext(reader=Feeds(*images((8, 6, 6)))))
    for wrong in ({"ridge": 0.0}, {"rows": 0}, {"steps": -1}, {"memory_limit": 0}):
        with pytest.raises(OptionError):
            partial(RefitWeights, **wrong)()
