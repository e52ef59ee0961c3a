"""ScoreChannels: what is lost on real activations, over every way to read a channel."""

import numpy as np
import pytest
from builders import conv_net, normal, outputs_of
from quantizing import Feeds, parse

from onnxdrp.channels import channels_of
from onnxdrp.channels.choosing import unit_scores
from onnxdrp.channels.reading import readers_of
from onnxdrp.channels.scoring import Losses
from onnxdrp.errors import OptionError, PassError
from onnxdrp.model import Model
from onnxdrp.moments import ChannelMoments, Moments
from onnxdrp.observe import observe
from onnxdrp.passes import (
    InferShapes,
    MeasureChannels,
    RefitWeights,
    RemoveChannels,
    ScoreChannels,
    SelectChannels,
)
from onnxdrp.pipeline import PassContext, PassManager
from onnxdrp.scores import damped
from onnxdrp.taps import Tap
from onnxdrp.unfold import Unfolding

HEAD = '<ir_version: 10, opset_import: ["" : 17]>'

RESIDUAL = f"""{HEAD} g (float[N,8,6,6] x) => (float[N,5,6,6] y) {{
    a = Conv<pads=[1,1,1,1]>(x, wa)
    ar = Relu(a)
    b = Conv<pads=[1,1,1,1]>(ar, wb)
    br = Relu(b)
    c = Conv<pads=[1,1,1,1]>(br, wc)
    sum = Add(c, ar)
    sr = Relu(sum)
    y = Conv<pads=[1,1,1,1]>(sr, wd)
}}"""
RESIDUAL_WEIGHTS = {
    name: normal([outputs, 8, 3, 3], i)
    for i, (name, outputs) in enumerate({"wa": 8, "wb": 8, "wc": 8, "wd": 5}.items())
}

CONCAT = f"""{HEAD} g (float[N,4,6,6] x) => (float[N,6,6,6] y) {{
    a = Conv(x, wa)
    ar = Relu(a)
    d = Conv<group=8>(ar, wd)
    s = Sigmoid(d)
    c = Concat<axis=1>(ar, s)
    y = Conv<group=2>(c, wc)
}}"""
CONCAT_WEIGHTS = {
    "wa": normal([8, 4, 1, 1], 0),
    "wd": normal([8, 1, 1, 1], 1) + 2,
    "wc": normal([6, 8, 1, 1], 2),
}

FLAT = f"""{HEAD} g (float[N,3,5,5] x) => (float[N,4] y) {{
    a = Conv<strides=[2,2]>(x, wa, ba)
    r = Relu(a)
    f = Flatten(r)
    h = Gemm<alpha=0.5>(f, wf)
    hr = Relu(h)
    y = MatMul(hr, wy)
}}"""
FLAT_WEIGHTS = {
    "wa": normal([6, 3, 3, 3], 0),
    "ba": normal([6], 1),
    "wf": normal([24, 10], 2),
    "wy": normal([10, 4], 3),
}

TURNED = f"""{HEAD} g (float[N,4,5,5] x) => (float[N,6,5,5] y) {{
    a = Conv(x, wa)
    r = Relu(a)
    t = ConvTranspose<group=2>(r, wt)
    u = Conv(r, wu)
    y = Concat<axis=1>(t, u)
}}"""
TURNED_WEIGHTS = {
    "wa": normal([8, 4, 1, 1], 0),
    "wt": normal([8, 2, 1, 1], 1),
    "wu": normal([2, 8, 1, 1], 2),
}

MODELS = {
    "residual": (RESIDUAL, RESIDUAL_WEIGHTS),
    "concat": (CONCAT, CONCAT_WEIGHTS),
    "flat": (FLAT, FLAT_WEIGHTS),
    "turned": (TURNED, TURNED_WEIGHTS),
}


def built(name):
    text, weights = MODELS[name]
    model = parse(text, weights)
    PassManager([InferShapes()]).run(model)
    return model


def data(model, count=60, seed=0):
    shape = model.graph.inputs[0].shape[1:]
    x = np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)
    x = x + np.roll(x, 1, axis=1)  # so that channels depend on each other
    return Feeds(*({"x": x[i : i + 10]} for i in range(0, count, 10)))


def run(model, *steps, reader=None):
    ctx = PassContext(reader=reader or data(model))
    report = PassManager(steps).run(model, ctx)
    return ctx, report.records


def least(weights, h, gone):
    """The least mean square of W x - V x over all V that are zero at `gone`, [m]."""
    if h.ndim == 1:
        return np.square(weights[:, gone]) @ h[gone]
    root = np.linalg.cholesky(h).T
    fitted = np.linalg.lstsq(root[:, ~gone], root @ weights.T, rcond=None)[0]
    return np.square(root @ weights.T - root[:, ~gone] @ fitted).sum(0)


def loss(model, channels, removed, activation=False):
    """What all layers lose of what they give, with the inputs that `channels.masks` prunes."""
    masks, total = channels.masks(model, removed), 0.0
    summing = {site.node for site in channels.trace.sites if site.role == "read"}
    for node in model.nodes():
        weight = next((t.name for t in node.inputs[1:] if t.name in masks), None)
        if node.name not in summing or weight is None:
            continue
        values, keep, tensor = model.weight(weight), masks[weight].keep, node.inputs[0].name
        if node.op == "ConvTranspose":  # [inputs, outputs of a group, ...]
            matrix = values.reshape(2, 4, 2).swapaxes(1, 2)
            gone = ~keep.reshape(2, 4, 2).any(axis=2)
        else:
            way = Unfolding.of(model, node)
            matrix = way.matrix(values)
            gone = ~way.matrix(keep).any(axis=1)
        if activation or node.op == "ConvTranspose":
            seen = observe(model, data(model), {0: Tap(tensor, ChannelMoments(1))})[0]
            mean = 0 if node.op in ("Conv", "Gemm") else seen.mean  # others have no bias to fit
            h = (seen.variance + np.square(mean)).reshape(len(matrix), -1)
            h = np.tile(h, (1, matrix.shape[2] // h.shape[1]))
            whole = np.square(matrix) * h[:, None]
        else:
            seen = observe(model, data(model), {0: Tap(tensor, Moments(way))})[0]
            h = (seen if node.op == "MatMul" else seen.centred()).xx / seen.count
            whole = matrix * (matrix @ h)
        lost = [least(w, p, g) for w, p, g in zip(matrix, damped(h), gone, strict=True)]
        total += np.sum(lost) / whole.sum()
    return total


@pytest.mark.parametrize("score", ["second-order", "activation"])
@pytest.mark.parametrize("name", MODELS)
def test_scores_are_what_all_readers_lose_with_a_unit_and_those_before_it(name, score):
    model = built(name)
    channels = channels_of(model)
    ctx, (record,) = run(model, ScoreChannels(score=score))
    assert not record.modified
    assert record.weights["changed"] == 0
    assert set(ctx.channel_scores) == {group.name for group in channels.groups}
    for group in channels.groups:
        scores = ctx.channel_scores[group.name]
        assert scores.shape == (group.size,)
        order = np.argsort(scores)
        assert scores[order[0]] > 0
        for count in (1, group.size // 2, group.size - 1):
            first = order[:count]
            wanted = loss(model, channels, {group.name: first.tolist()}, score == "activation")
            np.testing.assert_allclose(scores[order[count - 1]], wanted, rtol=1e-5)


def test_selected_are_the_lowest_and_any_rate_takes_a_start_of_the_same_order():
    model = built("residual")
    ctx, _ = run(model, ScoreChannels())
    scores = ctx.channel_scores
    for rate, count in ((0.25, 2), (0.5, 4), (0.75, 6)):
        PassManager([SelectChannels(rate=rate, multiple=1, auto_excludes=False)]).run(model, ctx)
        assert set(ctx.removed) == set(scores)
        for name, units in ctx.removed.items():
            assert set(units) == set(np.argsort(scores[name])[:count])
    by_weights, _ = run(model, SelectChannels(rate=0.5, multiple=1, auto_excludes=False))
    assert by_weights.removed != ctx.removed


def test_what_others_can_make_up_for_goes_though_its_weights_are_larger():
    text, weights = MODELS["residual"]
    weights = {name: w.copy() for name, w in weights.items()}
    weights["wb"][4:] = weights["wb"][:4]  # b has each channel twice
    weights["wb"][[0, 1, 4, 5]] /= 2  # and two of them small, which c makes large
    weights["wc"][:, [0, 1, 4, 5]] *= 2
    model = parse(text, weights)
    PassManager([InferShapes()]).run(model)
    feeds = {"x": np.concatenate([b["x"] for b in data(model, seed=5).batches()])}
    (want,) = outputs_of(model, feeds)
    errors = {}
    for score in ("l1", "second-order"):
        small = model.clone()
        run(
            small,
            ScoreChannels(score=score),
            SelectChannels(rate=0.5, multiple=1),
            RemoveChannels(),
            RefitWeights(),
        )
        assert small.weight("wb").shape[0] == 4
        errors[score] = float(np.square(outputs_of(small, feeds)[0] - want).mean() / want.var())
    assert errors["second-order"] < 1e-2
    assert errors["l1"] > 0.05
    ctx, _ = run(model, ScoreChannels(), SelectChannels(rate=0.5, multiple=1))
    (gone,) = ctx.removed.values()
    assert {unit % 4 for unit in gone} == {0, 1, 2, 3}


def test_l1_needs_no_data_and_is_what_select_channels_does_alone():
    model = built("residual")
    ctx = PassContext()
    PassManager([ScoreChannels(score="l1")]).run(model, ctx)
    for name, wanted in unit_scores(model, channels_of(model)).items():
        np.testing.assert_array_equal(ctx.channel_scores[name], wanted)
    with pytest.raises(PassError, match="needs data"):
        PassManager([ScoreChannels()]).run(model, PassContext())


def test_scores_of_another_model_are_refused():
    model, other = built("residual"), Model.from_proto(conv_net(16))
    ctx, _ = run(model, ScoreChannels())
    PassManager([InferShapes()]).run(other)
    with pytest.raises(PassError, match="run score-channels again"):
        PassManager([SelectChannels(rate=0.5, auto_excludes=False)]).run(other, ctx)
    PassManager([SelectChannels(rate=0.5, multiple=1), RemoveChannels()]).run(model, ctx)
    with pytest.raises(PassError, match="run score-channels again"):
        PassManager([SelectChannels(rate=0.5, auto_excludes=False)]).run(model, ctx)


def test_a_layer_whose_moments_are_too_large_is_scored_by_activation_and_named():
    model = built("residual")
    by_activation, _ = run(model, ScoreChannels(score="activation"))
    ctx, (record,) = run(model, ScoreChannels(moments_limit=6 * 8 * 72 * 72 - 1))
    assert len(record.stats["by_activation"]) == 3
    assert all("moments_limit" in why for why in record.stats["by_activation"].values())
    assert len(record.stats["warnings"]) == 3
    for name, scores in by_activation.channel_scores.items():
        np.testing.assert_array_equal(ctx.channel_scores[name], scores)


def test_how_else_a_layer_is_scored_and_which_are_not_is_named():
    model = built("turned")
    (turned,) = model.nodes("ConvTranspose")
    ctx, (record,) = run(model, ScoreChannels())
    assert ctx.channel_scores.by == "second-order"
    (why,) = record.stats["by_activation"].values()
    assert "ConvTranspose" in why
    want = f"layer {turned.name!r} is scored by activation: {why}"
    assert record.stats["warnings"] == [want]
    ctx, (record,) = run(model, MeasureChannels(mode="moments", auto_excludes=False))
    assert record.stats["warnings"] == [want]
    _, (record,) = run(built("turned"), ScoreChannels(score="activation"))
    assert record.stats["by_activation"] == {}


def test_what_a_layer_loses_that_reads_always_the_same_is_not_known():
    text = FLAT.replace(
        "MatMul(hr, wy)", "MatMul(hr, wy)\n e = Gemm(k, wk)\n j = Relu(e)\n q = Gemm(j, wq)"
    )
    text = text.replace("=> (float[N,4] y)", "=> (float[N,4] y, float[1,4] q)")
    constant = {"k": normal([1, 3], 4), "wk": normal([3, 8], 5), "wq": normal([8, 4], 6)}
    model = parse(text, FLAT_WEIGHTS | constant)
    reads_it, made_it = (
        next(n for n in model.nodes("Gemm") if n.inputs[1].name == w) for w in ("wq", "wk")
    )
    ctx, (scored, measured) = run(
        model, ScoreChannels(), MeasureChannels(mode="moments", auto_excludes=False)
    )
    assert scored.stats["skipped"].keys() == {reads_it.name}
    assert made_it.name in ctx.channel_scores
    assert "same for all samples" in measured.stats["skipped"][made_it.name]
    assert measured.stats["warnings"] == []
    curves = ctx.channel_curves
    assert made_it.name not in curves.curves.keys() | curves.order.keys()
    assert len(curves.curves) == 2


def test_what_is_held_until_the_last_reader_of_a_group_counts_too():
    """b reads the first group, c another one, then y the first again."""
    model = built("residual")
    held = 8 * 72 * (72 + 8)
    ctx, (record,) = run(model, ScoreChannels(moments_limit=6 * held))
    assert record.stats["by_activation"] == {}
    losses = record.stats["losses"]
    assert all(some == sorted(some) and some[0] > 0 for some in losses.values())
    for name, scores in ctx.channel_scores.items():
        np.testing.assert_allclose(losses[name], np.sort(scores)[[1, 3, 5]])
    readers = readers_of(model, channels_of(model))
    limits = {}
    for room in (held - 1, held, 2 * held - 1, 2 * held):
        step = ScoreChannels(moments_limit=room)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("onnxdrp.passes.score_channels._COPIES", 0)
            found = step._by_activation(readers, Losses(channels_of(model), readers))
        limits[room] = [name in found for name in (r.name for r in readers)]
    assert list(limits.values()) == [
        [True, True, False],  # y has fewer outputs
        [False, True, True],
        [False, True, False],
        [False, False, False],
    ]


@pytest.mark.parametrize(
    "options", [{"score": "l2"}, {"positions": 0}, {"memory_limit": 0}, {"moments_limit": 0}]
)
def test_options_that_mean_nothing_are_refused(options):
    with pytest.raises(OptionError):
        ScoreChannels(**options)
