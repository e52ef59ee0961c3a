"""Pruning: exact counts, kept weights bit for bit, every place and type a weight can have."""

from fractions import Fraction

import ml_dtypes
import numpy as np
import onnx
import pytest
from builders import conv_net, feeds_for, make_model, mlp, normal, outputs_of, value
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from quantizing import Feeds

from onnxdrp import scores
from onnxdrp.errors import CheckError, DataError, ModelError, OptionError, PassError
from onnxdrp.geometry import WeightGeometry, from_slabs, to_slabs
from onnxdrp.layers import layers
from onnxdrp.masks import Mask
from onnxdrp.model import Model
from onnxdrp.passes.prune_blocks import PruneBlocks
from onnxdrp.passes.refit_weights import RefitWeights
from onnxdrp.passes.select_layers import SelectLayers
from onnxdrp.patterns import parse_pattern, prune_count
from onnxdrp.pipeline import PassContext, PassManager
from onnxdrp.scores import activation, damped, second_order_mask
from onnxdrp.unfold import Unfolding

PATTERNS = ["block", "flex-nm", "nm", "row", "unstructured"]


def prune(model, *steps, ctx=None):
    ctx = ctx or PassContext()
    if not isinstance(model, Model):
        model = Model.from_proto(model)
    report = PassManager(steps or (PruneBlocks(rate=0.7),)).run(model, ctx)
    return model, ctx, report.records[-1]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_kept_weights_stay_bit_for_bit_and_onnxruntime_sees_the_zeros(pattern):
    proto = conv_net(64)
    before = Model.from_proto(proto)
    model, ctx, record = prune(before.clone(), PruneBlocks(pattern=pattern, rate=0.7))
    assert record.modified
    assert record.weights["changed"] == 1
    (name,) = ctx.masks
    assert name == "conv2.weight"
    keep, old, new = ctx.masks[name].keep, before.weight(name), model.weight(name)
    assert new[keep].tobytes() == old[keep].tobytes()
    assert new[~keep].tobytes() == bytes(4 * (~keep).sum())  # +0, not -0
    assert 0.68 < ctx.masks[name].sparsity < 0.71
    wanted = onnx.ModelProto.FromString(proto.SerializeToString())
    tensor = next(t for t in wanted.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.where(keep, old, 0).astype(np.float32), name))
    feeds = feeds_for(proto)
    (got,), (want,) = outputs_of(model, feeds), outputs_of(wanted, feeds)
    np.testing.assert_array_equal(got, want)
    assert np.abs(got - outputs_of(proto, feeds)[0]).max() > 1e-3
    for other in ("conv1.weight", "fc.weight", "conv1.bias"):
        assert model.weight(other).tobytes() == before.weight(other).tobytes()


def random_net(shape, groups, seed, op="Conv"):
    """first -> layer of this weight -> last, so that the middle one alone is prunable."""
    cout, cin = shape[0], shape[1] * groups
    ties = normal(shape, seed).round(1)
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"], "first"),
        helper.make_node("Conv", ["h", "w"], ["i"], "middle", group=groups),
        helper.make_node("Conv", ["i", "b"], ["y"], "last"),
    ]
    tail = (1,) * (len(shape) - 2)
    weights = {"a": normal((cin, 3, *tail), 1), "w": ties, "b": normal((5, cout, *tail), 2)}
    x = value("x", ["N", 3, *(9 for _ in tail)])
    return make_model(nodes, [x], [value("y", None)], weights)


@settings(max_examples=40)
@given(
    st.sampled_from(PATTERNS),
    st.integers(0, 999).map(lambda n: n / 1000),
    st.integers(1, 3),
    st.integers(1, 7),
    st.integers(1, 2),
    st.lists(st.integers(1, 3), min_size=1, max_size=3),
)
def test_counts_are_exact_on_random_layers(pattern, rate, groups, outputs, blocks, kernel):
    shape = (groups * outputs, 32 * blocks, *kernel)
    proto = random_net(shape, groups, seed=outputs)
    model, ctx, _ = prune(proto, PruneBlocks(pattern=pattern, rate=rate))
    keep = ctx.masks["w"].keep
    assert not model.weight("w")[~keep].any()
    rows = keep.reshape(groups * outputs, -1)
    length, size = rows.shape[1], keep.size
    if pattern == "unstructured":
        assert keep.sum() == size - prune_count(rate, size)
    elif pattern in ("row", "flex-nm"):
        assert set(rows.sum(axis=1)) == {length - prune_count(rate, length)}
    elif pattern == "nm":
        vectors = np.moveaxis(keep, 1, -1).reshape(-1, 32)
        assert set(vectors.sum(axis=1)) == {32 - prune_count(rate, 32)}
    else:
        vectors = np.moveaxis(keep, 1, -1).reshape(groups, outputs, -1, 32)
        assert (vectors.all(axis=-1) == vectors.any(axis=-1)).all()
        alive = vectors.any(axis=-1).sum(axis=1)
        assert set(alive.ravel()) == {outputs - prune_count(rate, outputs)}


@settings(max_examples=20)
@given(st.sampled_from(PATTERNS), st.integers(0, 99).map(lambda n: Fraction(n, 100)))
def test_a_second_run_changes_nothing(pattern, rate):
    proto = random_net((24, 64, 2), 2, seed=3)
    step = PruneBlocks(pattern=pattern, rate=float(rate))
    model, ctx, _ = prune(proto, step)
    weights = {name: model.weight(name).tobytes() for name in model.weights()}
    _, _, again = prune(model, step)
    assert not again.modified
    assert again.weights["changed"] == 0
    _, _, again = prune(model, step, ctx=ctx)
    assert not again.modified
    assert weights == {name: model.weight(name).tobytes() for name in model.weights()}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_equal_weights_are_pruned_the_same_way_each_time(pattern):
    proto = mlp(64, 64, 64, 8)
    tensor = next(t for t in proto.graph.initializer if t.name == "fc1.weight")
    tensor.CopyFrom(numpy_helper.from_array(np.ones((64, 64), np.float32), tensor.name))
    runs = [prune(proto, PruneBlocks(pattern=pattern, rate=0.7)) for _ in range(2)]
    first, second = (ctx.masks["fc1.weight"] for _, ctx, _ in runs)
    assert first == second
    assert runs[0][0].fingerprint() == runs[1][0].fingerprint()


def test_more_sparsity_keeps_what_is_zero_zero():
    model, _, _ = prune(mlp(64, 128, 128, 8), PruneBlocks(pattern="block", rate=0.5))
    zeros = model.weight("fc1.weight") == 0
    prune(model, PruneBlocks(pattern="block", rate=0.7))
    assert not model.weight("fc1.weight")[zeros].any()
    assert (model.weight("fc1.weight") == 0).mean() > 0.69


# ----------------------------------------------------------------- where and how weights are stored


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_floats_keep_type_and_bits(dtype):
    weight = normal((64, 64), 0).astype(dtype)
    tensors = [
        numpy_helper.from_array(normal((64, 64), i).astype(dtype), name)
        for i, name in enumerate("ab")
    ]
    tensors.append(numpy_helper.from_array(weight, "w"))
    nodes = [helper.make_node("MatMul", [x, w], [y], w) for x, w, y in ("xah", "hwi", "iby")]
    ends = [value("x", ["N", 64], dtype)], [value("y", ["N", 64], dtype)]
    model, ctx, _ = prune(make_model(nodes, *ends, tensors))
    keep, got = ctx.masks["w"].keep, model.weight("w")
    assert got.dtype == dtype
    assert got[keep].tobytes() == weight[keep].tobytes()
    assert not got[~keep].astype(np.float32).any()


def test_weights_that_are_inputs_too_as_opset_9_has_them():
    proto = mlp(64, 64, 64, 8, opset=9)
    proto.ir_version = 3
    proto.graph.input.extend(value(t.name, t.dims) for t in proto.graph.initializer)
    model, ctx, _ = prune(proto)
    assert set(ctx.masks) == {"fc1.weight"}
    saved = model.proto()
    assert saved.ir_version == 3
    assert {i.name for i in saved.graph.input} == {i.name for i in proto.graph.input}
    tensor = next(t for t in saved.graph.initializer if t.name == "fc1.weight")
    assert 0.69 < (numpy_helper.to_array(tensor) == 0).mean() < 0.71
    assert np.ptp(outputs_of(model, {"x": normal((2, 64), 0)})[0]) > 1e-3


def test_weights_in_constant_nodes():
    proto = mlp(64, 64, 64, 8)
    constants = [
        helper.make_node("Constant", [], [t.name], f"c.{t.name}", value=t)
        for t in proto.graph.initializer
    ]
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in proto.graph.node]
    proto.graph.ClearField("initializer")
    proto.graph.ClearField("node")
    proto.graph.node.extend(constants + nodes)
    model, _, _ = prune(proto)
    saved = model.proto()
    assert not saved.graph.initializer
    node = next(n for n in saved.graph.node if n.output[0] == "fc1.weight")
    assert 0.69 < (numpy_helper.to_array(node.attribute[0].t) == 0).mean() < 0.71


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pattern", ["block", "flex-nm"])
def test_matmul_constants_on_either_side(side, pattern):
    weights = {n: normal((64, 64), i) for i, n in enumerate("awb")}
    order = (lambda x, w: [x, w]) if side == "right" else (lambda x, w: [w, x])
    nodes = [helper.make_node("MatMul", order(x, w), [y], w) for x, w, y in ("xah", "hwi", "iby")]
    proto = make_model(nodes, [value("x", [64, 64])], [value("y", [64, 64])], weights)
    _, ctx, _ = prune(proto, PruneBlocks(pattern=pattern, rate=0.7))
    keep = ctx.masks["w"].keep if side == "left" else ctx.masks["w"].keep.T  # [Cout, Cin]
    vectors = keep.reshape(64, 2, 32)
    if pattern == "block":
        assert (vectors.all(-1) == vectors.any(-1)).all()
        assert set(vectors.any(-1).sum(0)) == {64 - 45}
    else:
        assert len(set(map(tuple, vectors.sum(-1)))) == 1
        assert not (keep.T.reshape(64, 2, 32).sum(-1) == vectors.sum(-1)).all()


def test_a_shared_weight_has_one_mask_and_stands_under_each_layer():
    weights = {n: normal((64, 64), i) for i, n in enumerate("awb")}
    nodes = [
        helper.make_node("MatMul", [x, w], [y], f"{w}.{y}")
        for x, w, y in ("xah", "hwi", "iwj", "jby")
    ]
    proto = make_model(nodes, [value("x", ["N", 64])], [value("y", None)], weights)
    _, ctx, record = prune(proto)
    assert set(ctx.masks) == {"w"}
    assert set(record.stats["layers"]) == {"w.i", "w.j"}
    assert record.stats["weights"] == 64 * 64


def test_grouped_and_depthwise():
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"], "first"),
        helper.make_node("Conv", ["h", "g"], ["i"], "grouped", group=2),
        helper.make_node("Conv", ["i", "d"], ["j"], "dw", group=64),
        helper.make_node("Conv", ["j", "b"], ["y"], "last"),
    ]
    weights = {
        "a": normal((64, 3, 1, 1), 0),
        "g": normal((64, 32, 3, 3), 1),
        "d": normal((64, 1, 3, 3), 2),
        "b": normal((8, 64, 1, 1), 3),
    }
    proto = make_model(nodes, [value("x", ["N", 3, 9, 9])], [value("y", None)], weights)
    _, ctx, _ = prune(proto)
    assert set(ctx.masks) == {"g"}
    select = SelectLayers(prune_depthwise=True, rate=0.7)
    _, ctx, _ = prune(proto, select, PruneBlocks())
    # 32 channels at one kernel position live or die together; 9 positions, 6 pruned in each slab
    vectors = ctx.masks["d"].keep.reshape(2, 32, 9)
    assert (vectors.all(axis=1) == vectors.any(axis=1)).all()
    assert vectors.any(axis=1).sum(axis=1).tolist() == [3, 3]


def test_quantized_weights_are_pruned_to_their_zero_point():
    rng = np.random.default_rng(0)
    weights = {"s": np.float32(0.01), "z": np.uint8(130)}
    nodes = []
    for x, w, y in ("xah", "hci", "iby"):
        weights[w] = rng.integers(100, 160, (64, 64)).astype(np.uint8)
        nodes.append(helper.make_node("DequantizeLinear", [w, "s", "z"], [f"{w}d"], f"dq{w}"))
        nodes.append(helper.make_node("MatMul", [x, f"{w}d"], [y], f"m{w}"))
    proto = make_model(nodes, [value("x", ["N", 64])], [value("y", None)], weights)
    model, ctx, _ = prune(proto)
    keep, got = ctx.masks["c"].keep, model.weight("c")
    assert got.dtype == np.uint8
    assert (got[~keep] == 130).all()
    assert (got[keep] == weights["c"][keep]).all()
    # the largest |q - zero point| of each slab stay
    assert 0.69 < (~keep).mean() < 0.71


# -------------------------------------------------------------------------------------- the context


def test_rates_of_select_layers_are_taken():
    select = SelectLayers(rate=0.5, rates={"fc2": 0.25}, exclude=("fc3",))
    _, ctx, record = prune(mlp(64, 64, 64, 64, 64, 8), select, PruneBlocks(pattern="row"))
    assert {n: f["sparsity"] for n, f in record.stats["layers"].items()} == {
        "fc1": 0.5,
        "fc2": 0.25,
    }
    assert ctx.masks.keys() == {"fc1.weight", "fc2.weight"}
    assert record.stats["skipped"]["fc3"] == "excluded: by 'fc3'"


def test_without_select_layers_its_defaults_hold():
    _, ctx, record = prune(mlp(64, 64, 64, 8), PruneBlocks())
    assert ctx.rates == {"fc1.weight": 0.7}
    assert set(ctx.refused) == {"fc0", "fc2"}
    assert record.stats["pattern"] == "block"


def test_the_pattern_is_the_targets():
    from onnxdrp.targets import load_target

    ctx = PassContext(target=load_target("drp-ai3"))
    _, _, record = prune(mlp(64, 64, 64, 8), PruneBlocks(), ctx=ctx)
    assert record.stats["pattern"] == "flex-nm"
    assert not any("70 %" in w for w in record.stats["warnings"])


def test_the_targets_advice_is_given():
    from onnxdrp.targets import load_target

    ctx = PassContext(target=load_target("drp-ai3"))
    _, _, record = prune(mlp(64, 64, 64, 8), PruneBlocks(rate=0.5), ctx=ctx)
    assert any("70 %" in w for w in record.stats["warnings"])


def test_a_rate_that_conflicts_with_rates_chosen_before_is_refused():
    steps = SelectLayers(rate=0.5), PruneBlocks(rate=0.7)
    with pytest.raises(PassError, match=r"rate 0\.7 conflicts with the rates"):
        prune(mlp(64, 64, 64, 8), *steps)
    prune(mlp(64, 64, 64, 8), SelectLayers(rate=0.7), PruneBlocks(rate=0.7))


def test_a_pattern_that_does_not_fit_what_was_chosen_is_refused_before_any_work():
    model = Model.from_proto(mlp(64, 40, 64, 8))
    before = model.fingerprint()
    steps = SelectLayers(pattern="unstructured"), PruneBlocks(pattern="block")
    with pytest.raises(PassError, match=r"'fc1\.weight'.*not a multiple of 32.*select-layers"):
        prune(model, *steps)
    assert model.fingerprint() == before


def test_rates_of_a_weight_that_is_gone_are_refused():
    ctx = PassContext(rates={"gone": 0.5})
    with pytest.raises(PassError, match="no layer has the weight 'gone'"):
        prune(mlp(64, 64, 64, 8), PruneBlocks(), ctx=ctx)


@pytest.mark.parametrize(
    "options", [{"rate": 1.0}, {"pattern": "x"}, {"pattern": "nm:2:4", "rate": 0.7}]
)
def test_options_are_refused_when_given(options):
    with pytest.raises(OptionError):
        PruneBlocks(**options)


def test_nm_2_4():
    _, ctx, _ = prune(mlp(64, 36, 36, 8), PruneBlocks(pattern="nm:2:4"))
    keep = ctx.masks["fc1.weight"].keep.reshape(36, 9, 4)
    assert set(keep.sum(-1).ravel()) == {2}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_weights_that_are_not_finite_are_named(bad, pattern):
    proto = mlp(64, 64, 64, 8)
    weight = normal((64, 64), 0)
    weight[3, 7] = bad
    tensor = next(t for t in proto.graph.initializer if t.name == "fc1.weight")
    tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    with pytest.raises(PassError, match=r"weight 'fc1\.weight'.*(NaN|infinity)") as error:
        prune(proto, PruneBlocks(pattern=pattern))
    assert isinstance(error.value.__cause__, ModelError)


# ------------------------------------------------------------------------------- figures and checks


def test_figures_of_each_layer_and_of_all():
    model, _, record = prune(mlp(64, 512, 512, 8), PruneBlocks(pattern="block", rate=0.7))
    stats = record.stats
    figures = stats["layers"]["fc1"]
    assert figures["sparsity"] == pytest.approx(358 / 512)
    assert 0.3 < figures["kept_magnitude"]["l1"] < figures["kept_magnitude"]["l2"] < 1
    dead = int((model.weight("fc1.weight") == 0).all(axis=1).sum())
    assert figures["dead_outputs"] == dead
    assert stats["sparsity"] == pytest.approx(358 / 512)
    assert stats["pruned"] == 512 * 358
    assert any("reading C" in w for w in stats["warnings"])
    import json

    json.dumps(stats)


def test_checks_after_the_pass_can_fail():
    model, ctx, _ = prune(mlp(64, 64, 64, 8), PruneBlocks(pattern="block", rate=0.7))
    step = PruneBlocks(pattern="block")
    step.ensures(model, ctx)
    spoilt = model.weight("fc1.weight").copy()
    spoilt[~ctx.masks["fc1.weight"].keep] = 1e-6
    model.set_weight("fc1.weight", spoilt)
    with pytest.raises(CheckError, match="not zero everywhere"):
        step.ensures(model, ctx)
    right = ctx.masks["fc1.weight"]
    ctx.masks["fc1.weight"] = Mask(np.ones((64, 64), bool))
    with pytest.raises(CheckError, match="keeps 4096"):
        step.ensures(model, ctx)
    ctx.masks["fc1.weight"] = Mask(
        np.random.default_rng(0).permuted(right.keep.ravel()).reshape(64, 64)
    )
    with pytest.raises(CheckError, match="is not block"):
        step.ensures(model, ctx)


def test_real_models(shared, modA, modB):
    """Each pattern on each model: exact, valid, runs, second run changes nothing."""
    for path in (*sorted((shared / "models").glob("*.onnx")), modA, modB):
        for pattern in PATTERNS:
            model, ctx, record = prune(Model.load(path), PruneBlocks(pattern=pattern, rate=0.7))
            rules = parse_pattern(pattern)
            seen = {f.weight: f.geometry for f in layers(model)}
            assert len(ctx.masks) > 5
            for name, mask in ctx.masks.items():
                assert mask.holds(model.weight(name))
                assert rules.valid(to_slabs(mask.keep, seen[name]))
            assert abs(record.stats["sparsity"] - 0.7) < 0.015
            assert not prune(model, PruneBlocks(pattern=pattern, rate=0.7))[2].modified
        shape = [d if isinstance(d, int) else 1 for d in model.inputs[0].shape]
        x = np.random.default_rng(0).random(shape, np.float32)
        assert np.isfinite(model.session().run(None, {model.inputs[0].name: x})[0]).all()


# ------------------------------------------------------------------------------- ranked by the data


SCORES = ["activation", "second-order"]


class Unlabelled(Feeds):
    """Feeds whose labels must not be read."""

    @property
    def labels(self):
        raise AssertionError("labels were read")


def mixed(shape, seed=0):
    """Inputs of which each depends on all others and has a mean and a size of its own."""
    rng = np.random.default_rng(seed)
    wide = shape[1]
    x = np.moveaxis(rng.standard_normal(shape), 1, -1)
    x = x @ (np.eye(wide) + rng.standard_normal((wide, wide))) * rng.uniform(0.1, 2, wide) + 1
    return np.moveaxis(x, -1, 1).astype(np.float32)


def by_data(proto, x, *steps, ctx=None):
    ctx = ctx or PassContext()
    ctx.reader, ctx.workers = Unlabelled(*({"x": part} for part in np.array_split(x, 3))), 1
    return prune(proto, *steps, ctx=ctx)


def chosen_by(pattern, geometry, way):
    def choose(scores, rate):
        view = to_slabs(way.weight(scores), geometry)
        return way.matrix(from_slabs(parse_pattern(pattern).mask(view, rate), geometry))

    return choose


@settings(max_examples=20)
@given(
    st.sampled_from(PATTERNS),
    st.sampled_from(SCORES),
    st.integers(0, 999).map(lambda n: n / 1000),
    st.integers(1, 2),
    st.integers(1, 5),
    st.lists(st.integers(1, 3), min_size=1, max_size=2),
)
def test_counts_are_exact_whatever_the_score(pattern, score, rate, groups, outputs, kernel):
    shape = (groups * outputs, 32, *kernel)
    proto = random_net(shape, groups, seed=outputs)
    x = mixed((3, 3, *(9 for _ in kernel)))
    step = PruneBlocks(pattern=pattern, rate=rate, score=score)
    model, ctx, record = by_data(proto, x, step)
    _, other, _ = prune(proto, PruneBlocks(pattern=pattern, rate=rate))
    keep = ctx.masks["w"].keep
    assert keep.sum() == other.masks["w"].count
    geometry = next(f.geometry for f in layers(model) if f.weight == "w")
    assert parse_pattern(pattern).valid(to_slabs(keep, geometry))
    np.testing.assert_array_equal(model.weight("w"), ctx.dense.weight("w") * keep)
    assert record.stats["score"] == score
    assert not record.stats["by_magnitude"]
    assert not by_data(model, x, step, ctx=ctx)[2].modified


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("score", SCORES)
def test_masks_are_those_of_the_float_models_activations(score, pattern):
    """Of each layer, whatever masks the layers before it get."""
    proto = mlp(64, 64, 64, 64, 8)
    x = mixed((200, 64))
    step = PruneBlocks(pattern=pattern, rate=0.7, score=score)
    _, ctx, record = by_data(proto, x, step)
    assert set(ctx.masks) == {"fc1.weight", "fc2.weight"}
    dense, values = ctx.dense, x.astype(np.float64)
    for i in range(3):
        weight, bias = (dense.weight(f"fc{i}.{part}") for part in ("weight", "bias"))
        if i:
            deviations = values - values.mean(axis=0)
            h = deviations.T @ deviations / len(values)
            matrix = weight.astype(np.float64)[None]
            way = Unfolding(WeightGeometry.gemm((64, 64), trans_b=True, block=1))
            choose = chosen_by(pattern, WeightGeometry.gemm((64, 64), trans_b=True), way)
            if score == "activation":
                want = choose(activation(matrix, damped(np.diag(h)[None])), 0.7)
            else:
                unit = 32 if pattern == "block" else 1
                want = second_order_mask(matrix, damped(h[None]), choose, 0.7, unit=unit)
            got = ctx.masks[f"fc{i}.weight"].keep
            assert (got == want[0]).mean() > 0.998  # float32 may decide between near ties
            assert (got == (choose(np.abs(matrix), 0.7)[0])).mean() < 0.95
        values = np.maximum(values @ weight.T + bias, 0)
    kept = record.stats["layers"]["fc1"]["kept_magnitude"]["l1"]
    magnitudes = np.abs(dense.weight("fc1.weight"))
    want = magnitudes[ctx.masks["fc1.weight"].keep].sum() / magnitudes.sum()
    assert kept == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("groups", [1, 2])
def test_activation_weighs_each_channel_of_a_conv_at_all_kernel_positions(groups):
    shape = (6, 64 // groups, 3, 2)
    proto = random_net(shape, groups, seed=0)
    x = mixed((4, 3, 9, 9))
    _, ctx, _ = by_data(proto, x, PruneBlocks(pattern="row", rate=0.7, score="activation"))
    dense = ctx.dense
    read = np.einsum("nihw,oi->nohw", x.astype(np.float64), dense.weight("a")[..., 0, 0])
    variances = read.var(axis=(0, 2, 3)).reshape(groups, 1, -1, 1, 1)
    variances = variances + 0.1 * variances.mean(axis=2, keepdims=True)
    weight = np.abs(dense.weight("w")).reshape(groups, -1, *shape[1:])
    ranks = (weight * np.sqrt(variances)).reshape(shape)
    geometry = WeightGeometry.conv(shape, groups)
    want = from_slabs(parse_pattern("row").mask(to_slabs(ranks, geometry), 0.7), geometry)
    assert (ctx.masks["w"].keep == want).mean() > 0.998
    assert variances.std() > 0.5 * variances.mean()


@pytest.mark.parametrize("pattern", ["block", "flex-nm"])
def test_repaired_outputs_are_nearer_with_second_order_masks(pattern):
    proto = conv_net(32)
    x = mixed((64, 3, 8, 8)) @ np.tri(8, dtype=np.float32)  # neighbours are alike
    (want,) = outputs_of(proto, {"x": x})
    errors = {}
    for score in ("magnitude", "second-order"):
        steps = PruneBlocks(pattern=pattern, rate=0.7, score=score), RefitWeights()
        model, _, _ = by_data(proto, x, *steps)
        (got,) = outputs_of(model, {"x": x})
        errors[score] = np.square(got - want).mean() / want.var()
    assert 0 < errors["second-order"] < 0.8 * errors["magnitude"]


@pytest.mark.parametrize("score", ["magnitude", *SCORES])
@pytest.mark.parametrize("pattern", [*PATTERNS, "nm:2:4"])
def test_masks_of_steps_are_nested_and_end_at_the_rate(pattern, score):
    proto = mlp(64, 64, 64, 8)
    x = mixed((100, 64))
    x[:, :5] = 0  # dead inputs give scores of 0
    rate = 0.5 if pattern == "nm:2:4" else 0.7
    ctx, model, before, shares = PassContext(), Model.from_proto(proto), None, []
    for step in (1, 2, 3):
        options = {"pattern": pattern, "rate": rate, "score": score}
        model, ctx, _ = by_data(model, x, PruneBlocks(**options, step=step, steps=3), ctx=ctx)
        mask = ctx.masks["fc1.weight"]
        if before is not None:
            assert before & mask == mask
        before = mask
        shares.append(1 - mask.sparsity)
    assert ctx.rates == {"fc1.weight": rate}
    want = [(1 - rate) ** (i / 3) for i in (1, 2, 3)]
    np.testing.assert_allclose(shares, want, atol=0.13 if pattern == "nm:2:4" else 0.016)
    _, once, _ = by_data(proto, x, PruneBlocks(pattern=pattern, rate=rate, score=score))
    assert once.masks["fc1.weight"].count == mask.count
    if score == "magnitude" and pattern != "flex-nm":
        assert once.masks["fc1.weight"] == mask


def test_what_was_pruned_before_stays_pruned_though_it_would_rank_high():
    proto = mlp(64, 64, 64, 8)
    ctx = PassContext()
    model, ctx, _ = prune(proto, PruneBlocks(pattern="row", rate=0.7, step=1, steps=2), ctx=ctx)
    first = ctx.masks["fc1.weight"]
    weight = model.weight("fc1.weight").copy()
    weight[first.keep] = 0  # all scores are alike now
    model.set_weight("fc1.weight", weight)
    _, ctx, _ = prune(model, PruneBlocks(pattern="row", rate=0.7, step=2, steps=2), ctx=ctx)
    assert ctx.masks["fc1.weight"] & first == ctx.masks["fc1.weight"]


def test_a_shared_weight_is_ranked_by_the_inputs_of_all_its_layers():
    weights = {n: normal((64, 64), i) for i, n in enumerate("awb")}
    nodes = [
        helper.make_node("MatMul", [x, w], [y], f"{w}.{y}")
        for x, w, y in ("xah", "hwi", "iwj", "jby")
    ]
    proto = make_model(nodes, [value("x", ["N", 64])], [value("y", None)], weights)
    x = mixed((150, 64))
    h = x.astype(np.float64) @ weights["a"]
    inputs = [h, h @ weights["w"]]
    powers = [np.cov(v.T, bias=True) for v in inputs]
    way = Unfolding(WeightGeometry.gemm((64, 64), trans_b=False, block=1))
    choose = chosen_by("row", WeightGeometry.gemm((64, 64), trans_b=False), way)
    matrix = way.matrix(weights["w"]).astype(np.float64)
    for score in SCORES:
        _, ctx, _ = by_data(proto, x, PruneBlocks(pattern="row", rate=0.7, score=score))
        got = way.matrix(ctx.masks["w"].keep)
        masks = []
        for power in (sum(powers) / 2, powers[0]):
            if score == "activation":
                masks.append(choose(activation(matrix, damped(np.diag(power)[None])), 0.7))
            else:
                masks.append(second_order_mask(matrix, damped(power[None]), choose, 0.7))
        assert (got == masks[0]).mean() > 0.998
        assert (got == masks[1]).mean() < 0.98


def test_moments_too_large_for_memory_leave_activation_and_a_warning():
    proto = mlp(64, 64, 64, 8)
    x = mixed((100, 64))
    limited = PruneBlocks(rate=0.7, score="second-order", moments_limit=8 * 5 * 64 * 64 - 1)
    _, ctx, record = by_data(proto, x, limited)
    _, other, _ = by_data(proto, x, PruneBlocks(rate=0.7, score="activation"))
    assert ctx.masks == other.masks
    assert set(record.stats["by_activation"]) == {"fc1.weight"}
    assert any("'fc1.weight' is ranked by activation: its" in w for w in record.stats["warnings"])
    enough = PruneBlocks(rate=0.7, score="second-order", moments_limit=8 * 5 * 64 * 64)
    _, ctx, record = by_data(proto, x, enough)
    assert ctx.masks != other.masks
    assert not record.stats["by_activation"]


def test_weights_that_would_take_too_long_are_named(monkeypatch):
    monkeypatch.setattr(scores, "_WORK", 64**4 - 1)
    step = PruneBlocks(rate=0.7, score="second-order")
    _, ctx, record = by_data(mlp(64, 64, 64, 8), mixed((100, 64)), step)
    assert "64 rows of 64 weights take too long" in record.stats["by_activation"]["fc1.weight"]
    monkeypatch.setattr(scores, "_WORK", 64**4)
    _, other, record = by_data(mlp(64, 64, 64, 8), mixed((100, 64)), step)
    assert not record.stats["by_activation"]
    assert ctx.masks != other.masks


@pytest.mark.parametrize("score", SCORES)
def test_depthwise_and_quantized_weights_are_ranked_by_data_too(score):
    rng = np.random.default_rng(0)
    weights = {
        "a": normal((64, 3, 1, 1), 0),
        "d": normal((64, 1, 3, 3), 2),
        "c": rng.integers(100, 160, (64, 64, 1, 1)).astype(np.uint8),
        "s": np.float32(0.01),
        "z": np.uint8(130),
        "b": normal((8, 64, 1, 1), 3),
    }
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"], "first"),
        helper.make_node("Conv", ["h", "d"], ["i"], "dw", group=64),
        helper.make_node("DequantizeLinear", ["c", "s", "z"], ["cf"], "dq"),
        helper.make_node("Conv", ["i", "cf"], ["j"], "middle"),
        helper.make_node("Conv", ["j", "b"], ["y"], "last"),
    ]
    proto = make_model(nodes, [value("x", ["N", 3, 9, 9])], [value("y", None)], weights)
    x = mixed((20, 3, 9, 9))
    select = SelectLayers(prune_depthwise=True, rate=0.7)
    for pattern in ("block", "nm"):
        step = PruneBlocks(pattern=pattern, score=score)
        model, ctx, record = by_data(proto, x, select, step)
        _, other, _ = prune(proto, select, PruneBlocks(pattern=pattern))
        assert not record.stats["by_magnitude"]
        for name in "dc":
            assert ctx.masks[name].count == other.masks[name].count
            assert ctx.masks[name] != other.masks[name]
        assert (model.weight("c")[~ctx.masks["c"].keep] == 130).all()


def test_weights_whose_inputs_do_not_vary_are_ranked_by_magnitude_and_it_is_said():
    weights = {n: normal((64, 64), i) for i, n in enumerate("awbk")}
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], "first"),
        helper.make_node("MatMul", ["h", "w"], ["i"], "middle"),
        helper.make_node("Neg", ["k"], ["same"], "neg"),
        helper.make_node("MatMul", ["same", "w"], ["j"], "constant"),
        helper.make_node("Add", ["i", "j"], ["l"], "add"),
        helper.make_node("MatMul", ["l", "b"], ["y"], "last"),
    ]
    proto = make_model(nodes, [value("x", [64, 64])], [value("y", [64, 64])], weights)
    ctx = PassContext(Unlabelled({"x": mixed((64, 64))}), rates={"w": 0.7}, workers=1)
    _, ctx, record = prune(proto, PruneBlocks(score="second-order"), ctx=ctx)
    _, other, _ = prune(proto, PruneBlocks(), ctx=PassContext(rates={"w": 0.7}))
    assert record.stats["by_magnitude"] == {
        "w": "its layer reads what is the same for every sample"
    }
    assert ctx.masks == other.masks


def test_a_score_of_data_needs_data():
    with pytest.raises(PassError, match="pruning by activation needs data") as error:
        prune(mlp(64, 64, 64, 8), PruneBlocks(score="activation"))
    assert isinstance(error.value.__cause__, DataError)


@pytest.mark.parametrize("score", SCORES)
def test_weights_that_are_not_finite_are_named_whatever_the_score(score):
    proto = mlp(64, 64, 64, 8)
    weight = normal((64, 64), 0)
    weight[3, 7] = np.inf
    tensor = next(t for t in proto.graph.initializer if t.name == "fc1.weight")
    tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    with pytest.raises(PassError, match=r"weight 'fc1\.weight'.*infinity"):
        by_data(proto, mixed((30, 64)), PruneBlocks(rate=0.7, score=score))


@pytest.mark.parametrize(
    "options",
    [
        {"score": "luck"},
        {"step": 0},
        {"step": 3, "steps": 2},
        {"positions": 0},
        {"memory_limit": 0},
        {"moments_limit": 0},
    ],
)
def test_options_of_scores_are_refused_when_given(options):
    with pytest.raises(OptionError, match=next(iter(options))):
        PruneBlocks(**options)
