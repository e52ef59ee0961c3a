"""AllocateRates: less is pruned where the outputs suffer, and as much in all as before."""

from fractions import Fraction

import numpy as np
import pytest
from builders import conv_net, feeds_for, mlp, normal, outputs_of
from quantizing import Feeds, parse, sqnr

from onnxdrp.errors import DataError, ModelError, OptionError
from onnxdrp.layers import by_weight, layers
from onnxdrp.model import Model
from onnxdrp.moments import Moments
from onnxdrp.observe import Tap, observe
from onnxdrp.passes import (
    AllocateRates,
    FuseBatchNorm,
    InferShapes,
    PruneBlocks,
    RefitWeights,
    SelectLayers,
)
from onnxdrp.patterns import parse_pattern, prune_count
from onnxdrp.pipeline import PassContext, PassManager
from onnxdrp.pruned import units_of
from onnxdrp.pruning_curves import fit_to_own
from onnxdrp.unfold import Unfolding

HEAD = '<ir_version: 10, opset_import: ["" : 17]> g '


def branches(faint=0.02):
    """Two convolutions side by side, the larger of which hardly counts, and one behind them."""
    text = HEAD + (
        "(float[N, 3, 6, 6] x) => (float[N, 5] y)"
        "{ a = Conv<pads=[1,1,1,1]>(x, w1, b1) r = Relu(a)"
        "  s = Conv<pads=[1,1,1,1]>(r, strong, b2) f = Conv<pads=[2,2,2,2]>(r, faint)"
        "  t = Add(s, f) u = Relu(t) v = Conv(u, behind, b3) q = Relu(v)"
        "  p = GlobalAveragePool(q) e = Flatten(p) y = Gemm<transB=1>(e, w5, b5) }"
    )
    shapes = {
        "w1": [32, 3, 3, 3], "b1": [32], "strong": [32, 32, 3, 3], "b2": [32],
        "faint": [32, 32, 5, 5], "behind": [64, 32, 3, 3], "b3": [64], "w5": [5, 64], "b5": [5],
    }  # fmt: skip
    weights = {name: normal(shape, i) for i, (name, shape) in enumerate(shapes.items())}
    weights["faint"] *= np.float32(faint)
    return parse(text, weights)


def data(model, samples=48, seed=0):
    return Feeds(feeds_for(model.proto(), seed, batch=samples))


def selected(model, reader=None, **options):
    """A context in which SelectLayers has chosen."""
    ctx = PassContext(reader=reader or data(model), workers=1)
    PassManager([InferShapes(), SelectLayers(**options)]).run(model, ctx)
    return ctx


def allocated(model, ctx, **options):
    """The figures of the pass; rates are in the context."""
    (record,) = PassManager([AllocateRates(**options)]).run(model, ctx).records
    return record.stats


def weighed(model, rates, pattern, of="weights"):
    """(cost that is kept, cost of a unit of each weight that keeps less than all), exactly."""
    users, pattern = by_weight(layers(model)), parse_pattern(pattern)
    kept, single = Fraction(0), []
    for weight, rate in rates.items():
        units = units_of(users[weight][0].geometry, pattern)
        macs = sum(u.baseline_mac or 0 for u in users[weight])
        cost = Fraction(users[weight][0].weights if of == "weights" else macs, units)
        pruned = prune_count(rate, units)
        assert rate == pytest.approx(pruned / units, abs=1e-12)
        kept += cost * (units - pruned)
        single += [cost] if pruned else []
    return kept, single


@pytest.mark.parametrize("of", ["weights", "macs"])
@pytest.mark.parametrize("pattern", ["block", "flex-nm", "nm", "row", "unstructured"])
def test_as_much_is_pruned_as_before_to_within_a_unit_and_the_masks_are_of_the_pattern(pattern, of):
    model = branches()
    ctx = selected(model, rate=0.625, pattern=pattern)  # whole units of every layer
    before, _ = weighed(model, ctx.rates, pattern, of)
    stats = allocated(model, ctx, pattern=pattern, of=of)
    after, single = weighed(model, ctx.rates, pattern, of)
    assert 0 <= before - after < min(single)
    assert len(set(ctx.rates.values())) > 1
    assert stats["rates"] == ctx.rates
    assert stats["error"]["after"] < 0.9 * stats["error"]["before"]
    PassManager([PruneBlocks(pattern=pattern)]).run(model, ctx)  # it checks masks against rates
    kept = sum(mask.count for mask in ctx.masks.values())
    assert kept == weighed(model, ctx.rates, pattern)[0]


def test_a_layer_that_hardly_counts_is_pruned_most():
    model = branches()
    ctx = selected(model, rate=0.6, pattern="block")
    allocated(model, ctx, pattern="block")
    assert ctx.rates["faint"] > 0.9
    assert ctx.rates["strong"] < 0.6


@pytest.mark.parametrize("pattern", ["block", "flex-nm"])
def test_pruned_and_fitted_the_outputs_err_less_than_at_one_rate(pattern):
    model = branches()
    reader, fresh = data(model, 64), feeds_for(model.proto(), 9, batch=64)
    found = []
    for steps in ([], [AllocateRates(pattern=pattern)]):
        pruned = model.clone()
        ctx = selected(pruned, reader, rate=0.6, pattern=pattern)
        PassManager([*steps, PruneBlocks(pattern=pattern), RefitWeights()]).run(pruned, ctx)
        (want,), (got,) = outputs_of(model, fresh), outputs_of(pruned, fresh)
        found.append(sqnr(want, got))
    assert found[1] > found[0] + 2


def test_the_curve_goes_through_the_error_of_the_outputs_with_one_layer_pruned_and_fitted():
    model = branches()
    reader = data(model, 32)
    ctx = selected(model, reader, rate=0.5, pattern="block")
    stats = allocated(model, ctx, pattern="block", rows=10**6)
    node = next(n for n in model.nodes("Conv") if n.inputs[1].name == "behind")
    way, rows = Unfolding.of(model, node), {0: Tap("u", Moments(Unfolding.of(model, node)))}
    moments = observe(model, reader, rows, workers=1)[0]
    lone, alone = model.clone(), PassContext(rates={"behind": 0.5})
    PruneBlocks(pattern="block").run(lone, alone)
    matrix = way.matrix(model.weight("behind"))
    fitted, _ = fit_to_own(matrix, way.matrix(alone.masks["behind"].keep), moments.centred())
    lost = np.asarray(matrix - fitted, np.float64)
    shift = np.einsum("gmk,gk->gm", lost, moments.x / moments.count).ravel()
    lone.set_weight("behind", way.weight(fitted))
    lone.set_weight("b3", (model.weight("b3") + shift).astype(np.float32))
    (feed,) = reader.batches()
    (want,), (got,) = outputs_of(model, feed), outputs_of(lone, feed)
    error = 10 ** (-sqnr(want, got) / 10)
    assert 1e-4 < error < 1
    assert dict(map(tuple, stats["curves"]["behind"]))[0.5] == pytest.approx(error, rel=1e-3)


def test_curves_begin_at_nothing_rise_and_end_at_the_highest_rate():
    model = branches()
    ctx = selected(model, rate=0.5, pattern="block")
    stats = allocated(model, ctx, pattern="block", highest=0.75)
    assert stats["curves"].keys() == ctx.rates.keys() == {"strong", "faint", "behind"}
    for curve in stats["curves"].values():
        rates, errors = zip(*curve, strict=True)
        assert (rates[0], errors[0], rates[-1]) == (0, 0, 0.75)
        assert (np.diff(rates) > 0).all()
        assert (np.diff(errors) >= 0).all()
        assert errors[-1] > 0
    assert max(ctx.rates.values()) == 0.75
    whole = sum(dict(map(tuple, curve))[0.5] for curve in stats["curves"].values())
    assert stats["error"]["before"] == pytest.approx(whole, rel=1e-9)


def test_a_rate_above_the_highest_is_no_obstacle():
    model = branches()
    ctx = selected(model, rate=0.875, pattern="block")
    allocated(model, ctx, pattern="block", highest=0.5)
    assert ctx.rates == dict.fromkeys(("strong", "faint", "behind"), 0.875)


def test_layers_that_are_named_keep_their_rates():
    model = branches()
    ctx = selected(model, rate=0.6, pattern="flex-nm", rates={"faint": 0.3})
    stats = allocated(model, ctx, pattern="flex-nm", keep=("faint",))
    assert ctx.rates["faint"] == 0.3
    assert stats["kept"] == ["faint"]
    assert stats["curves"].keys() == {"strong", "behind"}
    rest = {name: ctx.rates[name] for name in ("strong", "behind")}
    before, _ = weighed(model, dict.fromkeys(rest, round(0.6 * 288) / 288), "flex-nm")
    after, single = weighed(model, rest, "flex-nm")
    assert 0 <= before - after < min(single)
    assert rest["strong"] != rest["behind"]


def test_weights_without_moments_keep_their_rates_and_it_is_said_why():
    model = branches()
    ctx = selected(model, rate=0.6, pattern="block")
    stats = allocated(model, ctx, pattern="block", moments_limit=1000)
    assert set(ctx.rates.values()) == {0.6}
    assert len(stats["skipped"]) == 3
    assert all("more than moments_limit" in why for why in stats["skipped"].values())
    assert stats["curves"] == {}


def test_the_same_data_gives_the_same_rates_whatever_the_batches_and_the_model_is_not_touched():
    model = branches()
    (feed,) = data(model, 48).batches()
    parts = [{"x": feed["x"][i : i + 12]} for i in range(0, 48, 12)]
    prints, found = model.fingerprint(), []
    for reader in (Feeds(feed), Feeds(feed), Feeds(*parts)):
        ctx = selected(model, reader, rate=0.6, pattern="flex-nm")
        stats = allocated(model, ctx, pattern="flex-nm", samples=16)
        found.append((ctx.rates, stats["curves"]))
    assert found[0] == found[1]
    assert found[0][0] == found[2][0]
    assert model.fingerprint() == prints


def test_a_weight_that_two_layers_share_is_pruned_for_both():
    text = HEAD + (
        "(float[N, 8] x) => (float[N, 5] y)"
        "{ a = Gemm<transB=1>(x, w1, b1) r = Relu(a) b = Gemm<transB=1>(r, shared, b2) s = Relu(b)"
        "  c = Gemm<transB=1>(s, shared, b3) t = Relu(c) d = Gemm<transB=1>(t, own, b4) u = Relu(d)"
        "  y = Gemm<transB=1>(u, w5, b5) }"
    )
    shapes = {
        "w1": [64, 8], "b1": [64], "shared": [64, 64], "b2": [64], "b3": [64], "own": [64, 64],
        "b4": [64], "w5": [5, 64], "b5": [5],
    }  # fmt: skip
    weights = {name: normal(shape, i) for i, (name, shape) in enumerate(shapes.items())}
    model = parse(text, weights)
    reader = data(model, 512)
    for of, times in (("weights", 1), ("macs", 2)):
        ctx = selected(model, reader, rate=0.5, pattern="flex-nm")
        allocated(model, ctx, pattern="flex-nm", of=of)
        own, shared = (round(64 * ctx.rates[name]) for name in ("own", "shared"))
        assert 0 <= times * shared + own - (times + 1) * 32 <= times - 1


def test_layers_without_a_bias_and_batch_normalization_are_taken_as_they_are():
    model = Model.from_proto(conv_net(64))
    ctx = PassContext(reader=data(model, 32), workers=1)
    steps = [SelectLayers(rate=0.5, prune_last=True), AllocateRates(pattern="block")]
    PassManager([InferShapes(), FuseBatchNorm(), *steps]).run(model, ctx)
    assert len(set(ctx.rates.values())) == 2


def test_what_cannot_be_is_refused():
    model = branches()
    ctx = selected(model, rate=0.5, pattern="block")
    for wrong, said in (
        ({"of": "bytes"}, "there are weights and macs"),
        ({"highest": 1.0}, "outside"),
        ({"samples": 0}, "give 1 or more"),
        ({"keep": ("re:(",)}, "not a regular expression"),
        ({"pattern": "nm:2:4"}, "leave allocate-rates out"),
    ):
        with pytest.raises(OptionError, match=said):
            AllocateRates(**wrong)
    with pytest.raises(OptionError, match="no layer matches 'stong'"):
        AllocateRates(pattern="block", keep=("stong",)).run(model, ctx)
    step = AllocateRates()
    with pytest.raises(DataError, match="--calib"):
        step.requires(model, PassContext(rates=ctx.rates))
    with pytest.raises(ModelError, match="run select-layers first"):
        step.requires(model, PassContext(reader=ctx.reader))
    with pytest.raises(ModelError, match="no layer has the weight 'gone'"):
        step.requires(model, PassContext(reader=ctx.reader, rates={"gone": 0.5}))
    PruneBlocks(pattern="block").run(model, ctx)
    with pytest.raises(ModelError, match="pruned already"):
        step.requires(model, ctx)


def test_multiply_adds_that_are_not_known_are_an_error():
    text = HEAD + (
        "(float[N, 32, H, W] x) => (float[N, 32, H, W] y)"
        "{ a = Conv<pads=[1,1,1,1]>(x, w1) r = Relu(a) b = Conv<pads=[1,1,1,1]>(r, w2)"
        "  s = Relu(b) y = Conv<pads=[1,1,1,1]>(s, w3) }"
    )
    model = parse(text, {f"w{i}": normal([32, 32, 3, 3], i) for i in (1, 2, 3)})
    feed = {"x": np.random.default_rng(0).standard_normal((8, 32, 5, 5)).astype(np.float32)}
    ctx = selected(model, Feeds(feed), rate=0.5, pattern="block")
    with pytest.raises(ModelError, match=r"multiply-adds of .* not known: .* not fixed"):
        AllocateRates(of="macs", pattern="block").run(model, ctx)
    assert set(ctx.rates.values()) == {0.5}


def test_an_only_layer_keeps_its_rate():
    model = Model.from_proto(mlp(8, 64, 64, 4))
    ctx = selected(model, data(model, 300), rate=0.5, pattern="row")
    allocated(model, ctx, pattern="row")
    assert ctx.rates == {"fc1.weight": 0.5}
