"""RoundWeights: its rounding is OBQ's, never worse than the nearest, on the grid, zeros kept."""

import numpy as np
import pytest
from builders import conv_net, feeds_for, make_model, mlp, normal, outputs_of, value
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from quantizing import Feeds, parse, quantize_model, sqnr

from onnxdrp import rounding
from onnxdrp.errors import DataError, ModelError, OptionError
from onnxdrp.model import Model
from onnxdrp.passes import (
    Calibrate,
    InferShapes,
    InsertQdq,
    PruneBlocks,
    QuantizeWeights,
    RoundWeights,
)
from onnxdrp.pipeline import PassContext, PassManager
from onnxdrp.quantization import quantize
from onnxdrp.rounding import output_error, round_rows
from onnxdrp.unfold import Unfolding

# ------------------------------------------------------------------------------- one matrix alone


def obq(row, scale, h, limit, damping, order):
    """Optimal brain quantization as its paper has it, one weight of one row at a time."""
    at = np.flatnonzero(row)
    if order == "activation":
        at = at[np.argsort(-np.diag(h)[at], kind="stable")]
    h = h[np.ix_(at, at)]
    inverse = np.linalg.inv(h + damping * np.diag(h).mean() * np.eye(len(at)))
    steps, codes = (row / scale)[at], np.zeros(len(row))
    for j, column in enumerate(at):
        codes[column] = np.clip(np.rint(steps[j]), -limit, limit)
        steps = steps - (steps[j] - codes[column]) / inverse[j, j] * inverse[j]
        inverse = inverse - np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return codes


def layer(seed, groups, outputs, columns, zeros=0.0, rows=300):
    """A matrix, scales, and X'X of inputs that depend on each other."""
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((groups, outputs, columns))
    matrix[rng.random(matrix.shape) < zeros] = 0
    x = rng.standard_normal((groups, rows, columns))
    x = x @ rng.standard_normal((groups, columns, columns))
    scale = np.maximum(np.abs(matrix).max(axis=-1), 0.1)
    return matrix, scale, x.swapaxes(1, 2) @ x


def damped(xx, damping=0.02):
    return xx + damping * np.trace(xx) / len(xx) * np.eye(len(xx))


def cost(steps, codes, h):
    return float((steps - codes) @ h @ (steps - codes))


SHAPES = [(2, 16, 7), (3, 1, 9), (1, 4, 40), (1, 2, 150)]


@pytest.mark.parametrize("order", ["activation", "natural"])
@pytest.mark.parametrize("shape", SHAPES)
def test_rounding_starts_as_obq_row_by_row(shape, order, monkeypatch):
    monkeypatch.setattr(rounding, "_SWEEPS", 0)
    matrix, scale, xx = layer(0, *shape)
    scale = scale / 7
    found = round_rows(matrix, scale, xx, limit=7, damping=0.02, order=order)
    steps = matrix / scale[..., None]
    sums = np.diagonal(xx, axis1=1, axis2=2).sum(axis=0)  # groups have an order in common
    turn = np.argsort(-sums, kind="stable") if order == "activation" else np.arange(shape[2])
    better = 0
    for g, m in np.ndindex(shape[:2]):
        want = np.zeros(shape[2])
        h = xx[g][np.ix_(turn, turn)]
        want[turn] = obq(matrix[g, m][turn], scale[g, m], h, 7, 0.02, "natural")
        nearest = np.clip(np.rint(steps[g, m]), -7, 7)
        costs = [cost(steps[g, m], q, xx[g]) for q in (want, nearest)]
        better += costs[0] < costs[1]
        expected = want if costs[0] < costs[1] else nearest
        np.testing.assert_array_equal(found.codes[g, m], expected)
        unit = scale[g, m] ** 2
        np.testing.assert_allclose(found.error[g, m], min(costs) * unit, rtol=1e-8)
        np.testing.assert_allclose(found.nearest[g, m], costs[1] * unit, rtol=1e-8)
    assert better


def test_columns_of_which_no_row_has_the_weight_cost_nothing(monkeypatch):
    monkeypatch.setattr(rounding, "_SWEEPS", 0)
    matrix, scale, xx = layer(1, 1, 5, 30)
    dead = np.random.default_rng(0).permutation(30)[:12]
    matrix[..., dead] = 0
    found = round_rows(matrix, scale / 7, xx, limit=7, order="natural")
    live = np.setdiff1d(np.arange(30), dead)
    mean = np.trace(xx[0]) / 30 / (np.trace(xx[0][np.ix_(live, live)]) / 18)
    alone = round_rows(
        matrix[..., live], scale / 7, xx[:, live[:, None], live], limit=7, order="natural",
        damping=0.01 * mean,
    )  # fmt: skip
    np.testing.assert_array_equal(found.codes[..., live], alone.codes)
    assert not found.codes[..., dead].any()


@pytest.mark.parametrize("zeros", [0.0, 0.4])
@pytest.mark.parametrize("shape", SHAPES)
def test_sweeps_end_where_no_weight_alone_can_move(shape, zeros, monkeypatch):
    matrix, scale, xx = layer(0, *shape, zeros)
    steps = matrix / (scale / 7)[..., None]
    ends = []
    for sweeps in (0, 3, 1000):
        monkeypatch.setattr(rounding, "_SWEEPS", sweeps)
        h = np.stack([damped(x) for x in xx])
        start = rounding._descend(steps, rounding._factor(h), 7)
        codes = rounding._settled(steps, start, h, 7)
        assert not codes[steps == 0].any()
        assert np.abs(codes).max() <= 7
        ends.append(output_error(steps - codes, h))
    assert np.all(ends[0] >= ends[1])
    assert np.all(ends[1] >= ends[2])
    assert ends[0].sum() > ends[2].sum() or shape[1] == 1  # three rows may be settled already
    for g, m, k in np.ndindex(shape):
        for move in (-1, 1):
            moved = codes[g, m].copy()
            moved[k] += move
            if abs(moved[k]) <= 7 and steps[g, m, k]:
                assert cost(steps[g, m], moved, h[g]) >= ends[2][g, m] * (1 - 1e-9)


@pytest.mark.parametrize("shape", [(2, 16, 20), (1, 8, 40), (1, 12, 150)])
def test_rows_that_lack_weights_err_little_more_than_with_a_factor_of_their_own(shape):
    matrix, scale, xx = layer(0, *shape, 0.4)
    scale = scale / 7
    steps = matrix / scale[..., None]
    found = round_rows(matrix, scale, xx, limit=7, damping=0.02)
    own = sum(
        cost(steps[g, m], obq(matrix[g, m], scale[g, m], xx[g], 7, 0.02, "activation"), xx[g])
        for g, m in np.ndindex(shape[:2])
    )
    ours = sum(
        cost(steps[g, m], found.codes[g, m].astype(float), xx[g]) for g, m in np.ndindex(shape[:2])
    )
    assert ours <= 1.2 * own
    assert ours < 0.8 * float((found.nearest / scale**2).sum())


@given(
    st.integers(0, 1000),
    st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 12)),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([1, 7, 127]),
    st.sampled_from([1e-3, 0.01, 10.0]),
    st.sampled_from([0, 2, 50]),
)
def test_no_row_errs_more_than_the_nearest(seed, shape, zeros, limit, damping, rows):
    matrix, scale, xx = layer(seed, *shape, zeros, rows)
    scale = scale / (limit * 0.7)  # some weights lie outside of the grid
    found = round_rows(matrix, scale, xx, limit=limit, damping=damping)
    assert found.codes.dtype == np.int8
    assert np.abs(found.codes.astype(int)).max(initial=0) <= limit
    assert not found.codes[matrix == 0].any()
    steps = matrix / scale[..., None]
    nearest = output_error(steps - np.clip(np.rint(steps), -limit, limit), xx)
    assert np.all(output_error(steps - found.codes, xx) <= nearest)


def test_moments_and_damping_that_cannot_be_used_are_refused():
    matrix, scale, xx = layer(0, 1, 2, 4)
    with pytest.raises(DataError, match="not finite"):
        round_rows(matrix, scale, np.full_like(xx, np.inf))
    with pytest.raises(OptionError, match="damping 0"):
        round_rows(matrix, scale, xx, damping=0)
    ones = np.ones_like(xx)
    with pytest.raises(OptionError, match="damping is too small"):
        round_rows(matrix, scale, ones * 1e30, damping=1e-30)


# ----------------------------------------------------------------------------------------- passes


def rounded(proto, *feeds, ctx=None, per_channel=None, step=None, **options):
    """The model after RoundWeights and after QuantizeWeights, the context, and the figures."""
    model = proto if isinstance(proto, Model) else Model.from_proto(proto)
    ctx = ctx or PassContext()
    ctx.reader = Feeds(*(feeds or (feeds_for(model.proto(), batch=16),)))
    ctx.workers = ctx.workers or 1
    PassManager([InferShapes(), Calibrate(method="minmax")]).run(model, ctx)
    nearest, other = model.clone(), PassContext(reader=ctx.reader, ranges=dict(ctx.ranges))
    QuantizeWeights(per_channel).run(nearest, other)
    step = RoundWeights(per_channel, **options)
    (record,) = PassManager([step]).run(model, ctx).records
    model.check()
    return model, nearest, ctx, record.stats


def one_layer(op, weight, shape=(16, 8, 6, 6), **attrs):
    nodes = [helper.make_node(op, ["x", "w"], ["y"], "layer", **attrs)]
    outputs = [value("y", [None] * len(shape))]
    return make_model(nodes, [value("x", shape)], outputs, {"w": weight})


def smooth(shape, seed=0):
    """Inputs whose channels and places resemble each other, as those of images do."""
    x = np.random.default_rng(seed).standard_normal(shape).cumsum(axis=1).cumsum(axis=-1)
    return (x / x.std()).astype(np.float32)


LAYERS = {
    "Conv": ((6, 8, 3, 3), {}, (16, 8, 6, 6)),
    "Conv padded": ((6, 8, 3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 2]}, (16, 8, 6, 6)),
    "Conv grouped": ((6, 4, 3, 3), {"group": 2}, (16, 8, 6, 6)),
    "Conv depthwise": ((8, 1, 3, 3), {"group": 8}, (16, 8, 6, 6)),
    "Gemm": ((8, 6), {"alpha": 0.5}, (64, 8)),
    "Gemm turned": ((6, 8), {"transB": 1}, (64, 8)),
    "MatMul": ((8, 6), {}, (4, 16, 8)),
}


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
def test_every_output_of_every_kind_of_layer_errs_less_on_the_same_grid(kind, per_channel):
    shape, attrs, data = LAYERS[kind]
    weight = normal(shape, 0) * np.linspace(0.1, 3, shape[-1], dtype=np.float32)
    x = smooth(data)
    model, nearest, ctx, stats = rounded(
        one_layer(kind.split()[0], weight, data, **attrs), {"x": x}, per_channel=per_channel
    )
    (name,) = stats["error"]
    want = weight * np.float32(attrs.get("alpha", 1))
    params = ctx.quantization[name]
    codes = quantize(model.weight(name), params)
    assert codes.min() >= -127
    on_grid = codes * np.expand_dims(params.scale, ()) if params.axis is None else None
    if on_grid is not None:
        np.testing.assert_allclose(model.weight(name), on_grid, rtol=1e-6)
    assert np.any(model.weight(name) != nearest.weight(name))
    unfolding = Unfolding.of(model, model.node("layer"))
    spatial = unfolding.lines(x)[1]
    lines = unfolding.lines(x)[0]
    count = int(np.prod(unfolding.output(spatial)))
    rows = [unfolding.rows(line, spatial, np.arange(count)) for line in lines]
    big = np.concatenate(rows, axis=1).astype(np.float64)
    errors = [
        np.square(big @ (unfolding.matrix(w) - unfolding.matrix(want)).swapaxes(1, 2)).sum(axis=1)
        for w in (model.weight(name), nearest.weight(name))
    ]
    assert np.all(errors[0] <= errors[1] * (1 + 1e-5))
    assert errors[0].sum() < 0.97 * errors[1].sum()
    np.testing.assert_allclose(stats["error"][name], errors[0].sum() / errors[1].sum(), rtol=1e-3)


def test_the_same_twice_and_on_any_number_of_workers():
    first, *_ = rounded(conv_net(16))
    second, *_ = rounded(conv_net(16), ctx=PassContext(workers=3))
    assert first.fingerprint() == second.fingerprint()


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("pattern", ["block", "unstructured"])
def test_pruned_zeros_stay_and_the_rest_still_errs_less(pattern, per_channel):
    model, ctx = Model.from_proto(conv_net(64)), PassContext()
    PassManager([PruneBlocks(rate=0.7, pattern=pattern)]).run(model, ctx)
    model, nearest, ctx, stats = rounded(model, ctx=ctx, per_channel=per_channel)
    keep = ctx.masks["conv2.weight"].keep
    assert 0.68 < 1 - keep.mean() < 0.72
    assert not model.weight("conv2.weight")[~keep].any()
    assert np.any(model.weight("conv2.weight") != nearest.weight("conv2.weight"))
    assert stats["error"]["conv2.weight"] < 0.9


def test_the_integers_in_the_file_are_those_that_were_chosen():
    model, _, ctx, _ = rounded(conv_net(16))
    weight, params = model.weight("conv2.weight"), ctx.quantization["conv2.weight"]
    codes = quantize(weight, params)
    PassManager([InsertQdq()]).run(model, ctx)
    model.check()
    stored = [model.weight(n) for n in model.weights() if n.startswith("conv2.weight")]
    assert any(s.dtype == np.int8 and np.array_equal(s, codes) for s in stored)


def test_four_bits_have_fifteen_levels_and_lose_less_than_the_nearest():
    proto, x = mlp(16, 32, 32, 4), {"x": smooth((256, 16), 1)}
    model, _, ctx, _ = rounded(proto, x, bits=4)
    for i in range(3):
        name = f"fc{i}.weight"
        codes = quantize(model.weight(name), ctx.quantization[name])
        assert np.abs(codes.astype(int)).max() == 7
        want = np.abs(Model.from_proto(proto).weight(name)).max(axis=1) / 7
        np.testing.assert_allclose(ctx.quantization[name].scale, want, rtol=1e-6)
    plain = Model.from_proto(proto)
    for i in range(3):
        w = plain.weight(f"fc{i}.weight")
        scale = np.abs(w).max(axis=1, keepdims=True) / 7
        plain.set_weight(f"fc{i}.weight", (np.rint(w / scale) * scale).astype(np.float32))
    (want,), (a,), (b,) = (outputs_of(m, x) for m in (proto, model, plain))
    assert sqnr(want, a) > sqnr(want, b) + 3


def test_a_reduced_range_is_kept():
    model, nearest, ctx, stats = rounded(conv_net(16), reduce_range=True)
    assert stats["reduced_range"] is True
    assert np.any(model.weight("conv2.weight") != nearest.weight("conv2.weight"))
    for name, error in stats["error"].items():
        codes = quantize(model.weight(name), ctx.quantization[name]).astype(int)
        assert np.abs(codes).max() == 64
        assert error < 1


def test_a_weight_of_two_layers_is_rounded_for_both():
    text = (
        '<ir_version: 10, opset_import: ["" : 17]> g (float[64, 8] x) => (float[64, 8] y) '
        "{ a = Gemm<transB=1>(x, w, b) r = Relu(a) y = Gemm<transB=1>(r, w, b) }"
    )
    weights = {"w": normal([8, 8], 0), "b": normal([8], 1)}
    model, nearest, _, stats = rounded(parse(text, weights), {"x": smooth((64, 8))}, bits=8)
    assert stats["error"]["w"] < 0.95
    assert np.any(model.weight("w") != nearest.weight("w"))


def test_what_has_no_rows_is_rounded_to_the_nearest_with_a_reason():
    proto = one_layer("ConvTranspose", normal((8, 6, 2, 2), 0))
    model, nearest, _, stats = rounded(proto)
    assert "ConvTranspose is no Conv" in stats["nearest"]["w"]
    assert stats["error"] == {}
    np.testing.assert_array_equal(model.weight("w"), nearest.weight("w"))
    text = (
        '<ir_version: 10, opset_import: ["" : 17]> g (float[8, 8] x) => (float[8, 8] y) '
        "{ a = Gemm<transB=1>(x, w) r = Relu(a) y = Gemm(r, w) }"
    )
    model, nearest, _, stats = rounded(parse(text, {"w": normal([8, 8], 0)}))
    assert stats["nearest"] == {"w": "its layers see it in different ways"}
    np.testing.assert_array_equal(model.weight("w"), nearest.weight("w"))


def test_a_weight_with_too_many_inputs_for_memory_is_rounded_to_the_nearest():
    proto = one_layer("Conv", normal([4, 8, 3, 3], 1))
    figures = {}
    for limit in (5 * 8 * 72**2, 5 * 8 * 72**2 - 1):
        figures[limit] = rounded(proto, moments_limit=limit)[-1]
    enough, short = figures.values()
    assert enough["nearest"] == {}
    assert enough["warnings"] == []
    assert "more than moments_limit" in short["nearest"]["w"]
    assert "weight 'w' is rounded to the nearest" in short["warnings"][0]
    assert (list(enough["error"]), list(short["error"])) == (["w"], [])


def test_later_layers_see_what_rounded_ones_make():
    """With weights of four bits before it, a layer's inputs are others than the float ones."""
    proto, x = mlp(8, 32, 32), {"x": smooth((256, 8))}
    model, _, ctx, stats = rounded(proto, x, bits=4, positions=8)
    assert ctx.reference is not None
    seen = [
        np.maximum(x["x"] @ m.weight("fc0.weight").T + m.weight("fc0.bias"), 0).astype(np.float64)
        for m in (model, ctx.reference)
    ]
    want, params = ctx.reference.weight("fc1.weight"), ctx.quantization["fc1.weight"]
    own, other = (
        round_rows(want[None], params.scale[None], (h.T @ h)[None], limit=7).codes[0] for h in seen
    )
    assert np.any(own != other)
    np.testing.assert_array_equal(quantize(model.weight("fc1.weight"), params), own)
    assert set(stats["error"]) == {"fc0.weight", "fc1.weight"}


def test_what_it_needs_is_said_before_any_work():
    model, ctx = Model.from_proto(conv_net(16)), PassContext()
    with pytest.raises(DataError, match="rounding needs data"):
        RoundWeights().requires(model, ctx)
    ctx.reader = Feeds(feeds_for(model.proto()))
    with pytest.raises(ModelError, match="run calibrate first"):
        RoundWeights().requires(model, ctx)
    done = quantize_model(conv_net(16))
    with pytest.raises(ModelError, match="quantized already"):
        RoundWeights().requires(done.model, done.ctx)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bits": 5}, "bits 5: there are 8 and 4"),
        ({"order": "up"}, "order 'up': there are"),
        ({"damping": 0.0}, "damping 0"),
        ({"positions": 0}, "0 positions"),
    ],
)
def test_options_out_of_range_are_refused(options, words):
    with pytest.raises(OptionError, match=words):
        RoundWeights(**options)
