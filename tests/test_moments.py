"""Moments: rows as onnxruntime's Conv, Gemm and MatMul take them; sums merged in any order."""

import copy
import itertools
import math
import pickle
import tracemalloc

import numpy as np
import pytest
from builders import make_model, outputs_of, value
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper

from onnxdrp.errors import DataError, ModelError, OptionError
from onnxdrp.geometry import WeightGeometry
from onnxdrp.model import Model
from onnxdrp.moments import ChannelMoments, Moments, MomentStats
from onnxdrp.unfold import Unfolding

ARRAYS = ("x", "t", "xx", "xt", "tt")


def normal(shape, seed=0, shift=0.0):
    return (np.random.default_rng(seed).standard_normal(shape) + shift).astype(np.float32)


def layer_of(op, shapes, weights, **attrs):
    """A one-node model; `shapes` of its fed inputs, `order` of all, unless fed ones come first."""
    order = attrs.pop("order", [*shapes, *weights])
    node = helper.make_node(op, order, ["y"], "layer", **attrs)
    inputs = [value(name, [None] * len(shape)) for name, shape in shapes.items()]
    return make_model([node], inputs, [value("y", None)], weights)


def unfolding_of(proto):
    model = Model.from_proto(proto)
    return Unfolding.of(model, model.nodes()[0])


def conv(weight, bias=None, **attrs):
    weights = {"w": weight} if bias is None else {"w": weight, "b": bias}
    return layer_of("Conv", {"x": weight.shape}, weights, **attrs)


def seen(unfolding, *updates, **options):
    moments = Moments(unfolding, **options)
    for arrays in updates:
        moments.update(*arrays)
    return moments


def brute(rows, targets):
    """The moments of rows [g, n, k] and targets [g, n, m], one line of algebra each."""
    x, t = rows.astype(np.float64), targets.astype(np.float64)
    xt, xx = np.einsum("gnk,gnm->gkm", x, t), np.einsum("gnk,gnl->gkl", x, x)
    return MomentStats(x.shape[1], x.sum(1), t.sum(1), xx, xt, (t**2).sum(1))


def same(a, b, tolerance=0.0):
    assert a.count == b.count
    for name in ARRAYS:
        one, two = getattr(a, name), getattr(b, name)
        assert one.shape == two.shape
        assert one.dtype == two.dtype == np.float64
        if one.size:
            assert np.abs(one - two).max() <= tolerance * np.abs(one).max(), name


def fitted(stats):
    """Weights [g, m, k] and bias [g, m] of least squares, from the moments alone."""
    centred = stats.centred()
    matrix = np.linalg.solve(centred.xx, centred.xt).swapaxes(1, 2)
    return matrix, (stats.t - np.einsum("gmk,gk->gm", matrix, stats.x)) / stats.count


@st.composite
def convolutions(draw):
    """Attributes of a Conv, the shape of its weight and of an image that it takes."""
    rank = draw(st.integers(1, 3))

    def sides(low, high):
        return draw(st.lists(st.integers(low, high), min_size=rank, max_size=rank))

    kernel, strides, dilations = sides(1, 3), sides(1, 3), sides(1, 2)
    attrs = {"strides": strides, "dilations": dilations}
    auto = draw(st.sampled_from(["NOTSET", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    if auto == "NOTSET":
        attrs["pads"] = sides(0, 2) + sides(0, 2)
    else:
        attrs["auto_pad"] = auto
    if auto.startswith("SAME"):  # onnxruntime takes no dilations there
        attrs["dilations"] = dilations = [1] * rank
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    spatial = [n + draw(st.integers(0, 5)) for n in reach]
    groups = draw(st.integers(1, 3))
    inputs, outputs = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    attrs["group"] = groups
    return attrs, (groups * outputs, inputs, *kernel), (groups * inputs, *spatial)


def kernel_rows(attrs, weight, x):
    """The rows [g, n, k] of a Conv: what onnxruntime's own gives for weights of a single 1."""
    groups, (inputs, *kernel) = attrs["group"], weight[1:]
    places = math.prod(kernel)
    columns = inputs * places
    ones = np.eye(columns, dtype=np.float32).reshape(columns, inputs, *kernel)
    picked = outputs_of(conv(np.concatenate([ones] * groups), **attrs), {"x": x})[0]
    found = np.moveaxis(picked, 1, -1).reshape(-1, groups, inputs, places)
    return found.transpose(1, 0, 3, 2).reshape(groups, -1, columns)


def per_group(t, groups):
    """Outputs [N, channels, ...] as [g, n, m]."""
    lines = np.moveaxis(t, 1, -1).reshape(-1, groups, t.shape[1] // groups)
    return lines.swapaxes(0, 1)


# --- a Conv ------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(convolutions(), st.integers(0, 999))
def test_rows_and_moments_are_those_of_onnxruntimes_conv(made, seed):
    attrs, weight, image = made
    x = normal((3, *image), seed, shift=0.5)
    w, b = normal(weight, seed + 1), normal(weight[:1], seed + 2)
    proto = conv(w, b, **attrs)
    t = outputs_of(proto, {"x": x})[0]
    layer = unfolding_of(proto)
    assert t.shape[2:] == layer.output(image[1:])
    stats = seen(layer, (x, t)).result()
    rows, targets = kernel_rows(attrs, weight, x), per_group(t, attrs["group"])
    same(stats, brute(rows, targets), 1e-12)
    lines, spatial = layer.lines(x)
    each = math.prod(t.shape[2:])
    for line, want in zip(lines, np.split(rows, 3, axis=1), strict=True):
        np.testing.assert_array_equal(layer.rows(line, spatial, np.arange(each)), want)
    # the layer's own weights leave no error, but the rounding of the float32 outputs
    error = stats.error(layer.matrix(w), b.reshape(stats.t.shape))
    assert np.abs(error).max() <= 1e-11 * stats.tt.max()


@settings(max_examples=40, deadline=None)
@given(convolutions(), st.integers(0, 999))
def test_least_squares_from_moments_finds_weights_and_bias_of_a_conv(made, seed):
    attrs, weight, image = made
    w, b = normal(weight, seed + 1), normal(weight[:1], seed + 2)
    proto = conv(w, b, **attrs)
    layer = unfolding_of(proto)
    samples = -(-8 * (layer.columns + 1) // math.prod(layer.output(image[1:])))
    x = normal((samples, *image), seed, shift=0.5)
    stats = seen(layer, (x, outputs_of(proto, {"x": x})[0])).result()
    assume(np.linalg.cond(stats.centred().xx).max() < 1e3)  # else the data does not determine it
    matrix, bias = fitted(stats)
    assert np.abs(layer.weight(matrix) - w).max() < 1e-6 * max(1, np.abs(w).max())
    assert np.abs(bias.ravel() - b).max() < 1e-6 * max(1, np.abs(w).max())


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"])
@pytest.mark.parametrize(("size", "kernel", "stride"), [(8, 3, 2), (7, 4, 2), (6, 2, 1), (5, 1, 3)])
def test_every_auto_pad_puts_the_padding_where_onnxruntime_does(auto_pad, size, kernel, stride):
    attrs = {"auto_pad": auto_pad, "strides": [stride, 1], "group": 1}
    w, x = normal((2, 2, kernel, 2)), normal((2, 2, size, 6), 1)
    proto = conv(w, **attrs)
    t = outputs_of(proto, {"x": x})[0]
    stats = seen(unfolding_of(proto), (x, t)).result()
    same(stats, brute(kernel_rows(attrs, w.shape, x), per_group(t, 1)), 1e-12)


def test_a_depthwise_conv_keeps_a_small_matrix_for_each_channel():
    w, b, x = normal((40, 1, 3, 3)), normal(40, 1), normal((4, 40, 9, 9), 2)
    proto = conv(w, b, group=40, pads=[1] * 4)
    layer = unfolding_of(proto)
    stats = seen(layer, (x, outputs_of(proto, {"x": x})[0])).result()
    assert stats.xx.shape == (40, 9, 9)
    matrix, bias = fitted(stats)
    np.testing.assert_allclose(layer.weight(matrix), w, atol=1e-6)
    np.testing.assert_allclose(bias.ravel(), b, atol=1e-6)


def test_masks_and_weights_go_to_columns_and_back():
    w = normal((6, 4, 3, 2))
    layer = unfolding_of(conv(w, group=2))
    matrix = layer.matrix(w)
    assert matrix.shape == (2, layer.outputs, layer.columns) == (2, 3, 24)
    assert matrix[1, 2, 5 * 4 + 3] == w[5, 3, 2, 1]  # kernel position * inputs + input
    np.testing.assert_array_equal(layer.weight(matrix), w)
    np.testing.assert_array_equal(layer.weight(layer.matrix(w > 0)), w > 0)


# --- Gemm and MatMul ---------------------------------------------------------------------------


@pytest.mark.parametrize(("a", "b", "alpha"), [*itertools.product([0, 1], [0, 1], [1.0, 0.25])])
@pytest.mark.parametrize("stored", ["right", "left"])
def test_least_squares_finds_the_weights_of_a_gemm(a, b, alpha, stored):
    w = normal((5, 4))
    if stored == "right":
        w, x = (w.T if b else w).copy(), normal((5, 60) if a else (60, 5), 1)
        order, turned, bias = ["x", "w", "c"], False, normal(4, 2)
    else:
        w, x = (w if a else w.T).copy(), normal((60, 5) if b else (5, 60), 1)
        order, turned, bias = ["w", "x", "c"], True, normal((4, 1), 2)
    attrs = {"transA": a, "transB": b, "alpha": alpha, "beta": 2.0, "order": order}
    proto = layer_of("Gemm", {"x": x.shape}, {"w": w, "c": bias}, **attrs)
    layer = unfolding_of(proto)
    assert layer.data == order.index("x")
    t = outputs_of(proto, {"x": x})[0]
    assert t.shape == ((4, 60) if turned else (60, 4))
    matrix, found = fitted(seen(layer, (x, t)).result())
    np.testing.assert_allclose(layer.weight(matrix), w, atol=2e-6)
    np.testing.assert_allclose(found.ravel(), 2 * bias.ravel(), atol=1e-6)


@pytest.mark.parametrize("shape", [(80, 5), (6, 11, 5), (3, 2, 13, 5)])
@pytest.mark.parametrize("stored", ["right", "left"])
def test_least_squares_finds_the_weights_of_a_matmul_with_batch_axes(shape, stored):
    x, w = normal(shape, 1), normal((5, 4))
    order = ["x", "w"]
    if stored == "left":
        x, w, order = x.swapaxes(-1, -2).copy(), w.T.copy(), ["w", "x"]
    proto = layer_of("MatMul", {"x": x.shape}, {"w": w}, order=order)
    layer = unfolding_of(proto)
    stats = seen(layer, (x, outputs_of(proto, {"x": x})[0])).result()
    assert stats.count == math.prod(shape[:-1])
    matrix, bias = fitted(stats)
    np.testing.assert_allclose(layer.weight(matrix), w, atol=1e-6)
    np.testing.assert_allclose(bias, 0, atol=1e-6)


def test_a_vector_is_one_row():
    w, x = normal((5, 4)), normal(5, 1)
    proto = layer_of("MatMul", {"x": x.shape}, {"w": w})
    stats = seen(unfolding_of(proto), (x, outputs_of(proto, {"x": x})[0])).result()
    same(stats, brute(x[None, None], (x @ w)[None, None]), 1e-6)
    np.testing.assert_array_equal(stats.x[0], x)


# --- a monoid ----------------------------------------------------------------------------------

LAYERS = {
    "conv": (unfolding_of(conv(normal((6, 4, 3, 3)), pads=[1] * 4)), (4, 20, 20), (6, 20, 20)),
    "grouped": (unfolding_of(conv(normal((6, 2, 3, 3)), group=2)), (4, 22, 22), (6, 20, 20)),
    "matmul": (
        unfolding_of(layer_of("MatMul", {"x": (1, 1, 4)}, {"w": normal((4, 6))})),
        (400, 4),
        (400, 6),
    ),
    "gemm": (unfolding_of(layer_of("Gemm", {"x": (1, 4)}, {"w": normal((4, 6))})), (4,), (6,)),
}
KINDS = pytest.mark.parametrize("kind", LAYERS)


def data_of(kind, samples, seed=0):
    layer, x, t = LAYERS[kind]
    return layer, normal((samples, *x), seed, shift=3), normal((samples, *t), seed + 1)


def merged(kind, shards):
    total = Moments(LAYERS[kind][0])
    for shard in shards:
        total.merge(shard)
    return total.result()


@KINDS
def test_batches_of_any_size_give_the_same_bits(kind):
    layer, x, t = data_of(kind, 24)
    whole = seen(layer, (x, t)).result()
    assert whole.count == 24 * math.prod(t.shape[1:]) // 6
    for size in (1, 5, 8):
        cut = [(x[i : i + size], t[i : i + size]) for i in range(0, 24, size)]
        same(seen(layer, *cut).result(), whole)


@KINDS
def test_shards_merge_in_any_order_within_rounding_and_in_one_order_to_the_same_bits(kind):
    layer, x, t = data_of(kind, 24)
    cuts = [slice(0, 1), slice(1, 13), slice(13, 24)]
    shards = [seen(layer, (x[cut], t[cut])) for cut in cuts]
    whole = seen(layer, (x, t)).result()
    for order in itertools.permutations(shards):
        same(merged(kind, copy.deepcopy(order)), whole, 1e-13)
    first, second, third = copy.deepcopy(shards)
    second.merge(third)
    first.merge(second)
    same(first.result(), whole, 1e-13)
    again = [pickle.loads(pickle.dumps(seen(layer, (x[cut], t[cut])))) for cut in cuts]
    same(merged(kind, again), merged(kind, shards))


@KINDS
def test_a_new_one_is_the_identity_and_merging_leaves_the_other_as_it_was(kind):
    layer, x, t = data_of(kind, 3)
    alone = seen(layer, (x, t))
    want = copy.deepcopy(alone).result()
    before, after = Moments(layer), copy.deepcopy(alone)
    before.merge(alone)
    after.merge(Moments(layer))
    before.update(x, t)  # of its own: not into the arrays of the other
    for one in (after, alone):
        same(one.result(), want)
    same(before.result(), seen(layer, (x, t), (x, t)).result(), 1e-13)


@KINDS
def test_copied_or_pickled_on_the_way_it_goes_on_to_the_same_bits(kind):
    layer, x, t = data_of(kind, 24)
    want = seen(layer, (x, t)).result()
    for carried in (copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))):
        first = seen(layer, (x[:13], t[:13]))
        second = carried(first)
        second.update(x[13:], t[13:])
        same(second.result(), want)
        assert first.result().count < want.count


def test_a_result_is_not_changed_by_what_is_seen_later():
    layer, x, t = data_of("conv", 3)
    moments = seen(layer, (x, t))
    result = moments.result()
    kept = copy.deepcopy(result)
    moments.update(x, t)
    assert moments.result().count == 2 * kept.count
    same(result, kept)


def test_nothing_seen_is_all_zero():
    layer, x, t = data_of("conv", 3)
    moments = Moments(layer)
    empty = moments.result()
    assert (empty.count, empty.xx.shape, empty.xt.shape) == (0, (1, 36, 36), (1, 36, 0))
    assert not empty.xx.any()
    moments.update(x[:0], t[:0])
    assert moments.result().xt.shape == (1, 36, 6)
    moments.update(x, t)
    same(moments.result(), seen(layer, (x, t)).result())


def test_a_weight_that_two_layers_share_has_the_moments_of_both():
    w = normal((6, 4, 3, 3))
    one, two = conv(w, normal(6, 1), strides=[2, 2]), conv(w, normal(6, 1), pads=[1] * 4)
    x = [normal((3, 4, 15, 15), 2), normal((2, 4, 8, 8), 3)]
    t = [outputs_of(p, {"x": a})[0] for p, a in zip((one, two), x, strict=True)]
    moments = seen(unfolding_of(one), (x[0], t[0]))
    moments.merge(seen(unfolding_of(two), (x[1], t[1])))
    stats = moments.result()
    assert stats.count == 3 * 49 + 2 * 64
    matrix, bias = fitted(stats)
    np.testing.assert_allclose(unfolding_of(two).weight(matrix), w, atol=1e-6)
    np.testing.assert_allclose(bias.ravel(), normal(6, 1), atol=1e-6)


def test_inputs_alone_have_the_same_inner_products():
    layer, x, t = data_of("conv", 4)
    alone, both = seen(layer, (x,)).result(), seen(layer, (x, t)).result()
    np.testing.assert_array_equal(alone.xx, both.xx)
    np.testing.assert_array_equal(alone.x, both.x)
    assert alone.xt.shape == (1, 36, 0)
    assert alone.centred().xx.shape == (1, 36, 36)


@pytest.mark.parametrize("kind", ["conv", "grouped"])
def test_centred_moments_and_errors_are_those_of_the_rows(kind):
    layer, x, t = data_of(kind, 5)
    stats = seen(layer, (x, t)).result()
    lines, spatial = layer.lines(x)
    rows = np.concatenate([layer.rows(li, spatial, np.arange(400)) for li in lines], 1)
    rows, targets = rows.astype(np.float64), per_group(t, layer.groups).astype(np.float64)
    same(stats, brute(rows, targets), 1e-12)
    deviations = rows - rows.mean(1, keepdims=True), targets - targets.mean(1, keepdims=True)
    want, centred = brute(*deviations), stats.centred()
    for name in ("xx", "xt", "tt"):
        a, b = getattr(centred, name), getattr(want, name)
        assert np.abs(a - b).max() <= 1e-11 * np.abs(getattr(stats, name)).max()
    np.testing.assert_array_equal(centred.xx, centred.xx.swapaxes(1, 2))
    matrix = np.random.default_rng(0).standard_normal((layer.groups, layer.outputs, layer.columns))
    bias = np.random.default_rng(1).standard_normal((layer.groups, layer.outputs))
    errors = targets - rows @ matrix.swapaxes(1, 2) - bias[:, None]
    np.testing.assert_allclose(stats.error(matrix, bias), (errors**2).sum(1), rtol=1e-10)


# --- positions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["conv", "grouped", "matmul"])
def test_sampled_positions_depend_neither_on_batch_nor_on_shard(kind):
    layer, x, t = data_of(kind, 8)
    whole = seen(layer, (x, t), positions=30, seed=5).result()
    assert whole.count == 8 * 30
    each = [(x[i : i + 1], t[i : i + 1]) for i in range(8)]
    same(seen(layer, *each, positions=30, seed=5).result(), whole)
    last = seen(layer, *each[3:], positions=30, seed=5)
    last.merge(seen(layer, *each[:3], positions=30, seed=5))
    same(last.result(), whole, 1e-13)
    other = seen(layer, (x, t), positions=30, seed=6).result()
    assert np.abs(other.xx - whole.xx).max() > 1e-3 * np.abs(whole.xx).max()
    same(seen(layer, (x, t), positions=400).result(), seen(layer, (x, t)).result())


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 2000), st.integers(0, 99))
def test_one_position_is_taken_from_each_of_equal_stretches(limit, total, seed):
    layer = LAYERS["matmul"][0]
    x = np.zeros((1, total, 4), np.float32)
    x[0, :, 0] = np.arange(total)
    t = np.zeros((1, total, 6), np.float32)
    taken = []
    moments = Moments(layer, limit, seed)
    moments._collect = lambda rows, target: taken.extend(rows[0, :, 0])
    moments.update(x, t)
    assert len(taken) == min(limit, total)
    if total <= limit:
        assert taken == list(range(total))
    for i, at in enumerate(taken):
        assert i * total // len(taken) <= at < (i + 1) * total // len(taken)


def test_rows_without_axes_of_positions_are_all_taken():
    layer, x, t = data_of("gemm", 50)
    assert seen(layer, (x, t), positions=1).result().count == 50


# --- what cannot be ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["conv", "grouped", "matmul"])
def test_rows_with_nan_or_infinity_are_left_out_and_counted(kind):
    layer, x, t = data_of(kind, 4)
    clean = seen(layer, (x[:1], t[:1]), (x[3:], t[3:])).result()
    bad_x, bad_t = x.copy(), t.copy()
    bad_x[1], bad_t[2] = np.inf, np.nan
    bad_x[1].flat[::2] = -np.inf
    moments = seen(layer, (bad_x, bad_t))
    assert moments.nonfinite == 800
    same(moments.result(), clean, 1e-13)
    one = t.copy()
    one.reshape(-1)[7] = np.nan
    moments = seen(layer, (x, one))
    assert moments.nonfinite == 1
    assert moments.result().count == 1599
    moments.merge(seen(layer, (bad_x, bad_t)))
    assert moments.nonfinite == 801


def test_infinity_outside_of_the_picture_does_not_reach_the_padding():
    layer = unfolding_of(conv(normal((1, 1, 3, 3)), pads=[1] * 4))
    x = normal((1, 1, 6, 6))
    x[0, 0, 0, 0] = np.inf
    moments = seen(layer, (x,))
    assert moments.nonfinite == 4  # the rows that read it; padding is clipped to such corners
    assert moments.result().count == 32


def test_shapes_that_do_not_fit_are_refused():
    layer, x, t = data_of("conv", 2)
    with pytest.raises(DataError, match=r"\[2, 3, 20, 20\] does not fit a layer .* \[6, 4, 3, 3\]"):
        Moments(layer).update(x[:, :3], t)
    with pytest.raises(DataError, match="does not fit"):
        Moments(layer).update(x[0], t)
    with pytest.raises(DataError, match="does not fit"):
        Moments(LAYERS["matmul"][0]).update(np.float32(1))
    for wrong in (t[:, :, :-1], t[:1], t[:, :3]):
        with pytest.raises(DataError, match="2 x 400 x 6 values"):
            Moments(layer).update(x, wrong)
    with pytest.raises(OptionError, match="give 1 or more"):
        Moments(layer, positions=0)
    moments = seen(layer, (x, t))
    with pytest.raises(ValueError, match="with targets"):
        moments.update(x)
    with pytest.raises(ValueError, match="with targets"):
        moments.merge(seen(layer, (x,)))
    with pytest.raises(ValueError, match="different ways"):
        moments.merge(Moments(LAYERS["grouped"][0]))


@pytest.mark.parametrize(
    ("proto", "why"),
    [
        (layer_of("MatMul", {"x": (2, 3, 4)}, {"w": normal((2, 4, 5))}), r"\[2, 4, 5\], not two"),
        (layer_of("ConvTranspose", {"x": (1, 2, 4, 4)}, {"w": normal((2, 3, 2, 2))}), "is no Conv"),
        (layer_of("MatMul", {"x": (3, 4), "z": (4, 5)}, {}), "computed weight"),
        (conv(normal((3, 2, 3, 3)), group=2), "do not divide into 2 groups"),
    ],
)
def test_a_layer_that_has_no_such_rows_is_refused_by_name(proto, why):
    with pytest.raises(ModelError, match=f"'layer'.*{why}"):
        unfolding_of(proto)


# --- memory ------------------------------------------------------------------------------------


def test_the_unfolded_input_is_never_held_whole():
    channels, side = 8, 160
    weight = WeightGeometry.conv((channels, channels, 3, 3), block=1)
    layer = Unfolding(weight, 0, 1, 1, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1))
    x = normal((3, channels, side, side))
    unfolded = 9 * x.size * 8
    moments = Moments(layer)
    tracemalloc.start()
    moments.update(x, x)
    _, peak = tracemalloc.get_traced_memory()
    first = peak
    moments.update(x, x)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < unfolded / 6  # rows collected, half as much for a block of them, one sample
    assert peak < 1.05 * first
    assert len(pickle.dumps(Moments(layer))) < 2000


# --- channels ----------------------------------------------------------------------------------


def spread(kind, *arrays):
    for array in arrays:
        kind.update(array)
    return kind


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((5, 7, 6, 4), 1), ((3, 2, 70000), 1), ((4, 50, 9), -1), ((9, 3), 1), ((4, 3, 5), 0)],
)
def test_channels_have_the_mean_and_variance_of_numpy(shape, axis):
    x = normal(shape) * 3 + np.arange(shape[axis]).reshape(
        [-1 if i == axis % len(shape) else 1 for i in range(len(shape))]
    ).astype(np.float32)
    lines = np.moveaxis(x, axis, 0).reshape(shape[axis], -1).astype(np.float64)
    for view in (x, np.asfortranarray(x)):
        stats = spread(ChannelMoments(axis), view).result()
        assert stats.count.tolist() == [lines.shape[1]] * shape[axis]
        np.testing.assert_allclose(stats.mean, lines.mean(1), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(stats.variance, lines.var(1), rtol=1e-12)


def test_a_large_mean_costs_no_digits_of_the_variance():
    x = (1e3 + 1e-2 * np.random.default_rng(0).standard_normal((64, 3, 40, 40))).astype(np.float32)
    lines = x.swapaxes(0, 1).reshape(3, -1).astype(np.float64)
    want = lines.var(1)
    naive = (x.astype(np.float32) ** 2).mean((0, 2, 3)) - x.mean((0, 2, 3)) ** 2
    assert np.abs(naive / want - 1).min() > 0.1  # what float32 sums would make of it
    shards = [spread(ChannelMoments(), part) for part in np.split(x, 16)]
    for order in (shards, shards[::-1]):
        total = ChannelMoments()
        for shard in order:
            total.merge(copy.deepcopy(shard))
        stats = total.result()
        np.testing.assert_allclose(stats.mean, lines.mean(1), rtol=1e-14)
        np.testing.assert_allclose(stats.variance, want, rtol=1e-10)
    np.testing.assert_allclose(spread(ChannelMoments(), *x[:, None]).result().variance, want)


def test_channels_leave_out_nan_and_infinity():
    x = normal((6, 3, 50))
    bad = x.copy()
    bad[1, 0, 4], bad[2, 0, 5], bad[:, 2] = np.nan, -np.inf, np.inf
    moments = spread(ChannelMoments(), bad[:2], bad[2:])
    stats = moments.result()
    assert moments.nonfinite == 2 + 300
    assert stats.count.tolist() == [298, 300, 0]
    lines = bad.swapaxes(0, 1).reshape(3, -1).astype(np.float64)
    for channel in (0, 1):
        fine = lines[channel][np.isfinite(lines[channel])]
        np.testing.assert_allclose(stats.mean[channel], fine.mean(), rtol=1e-12)
        np.testing.assert_allclose(stats.variance[channel], fine.var(), rtol=1e-12)
    assert (stats.mean[2], stats.variance[2]) == (0, 0)


def test_channels_refuse_what_does_not_fit():
    assert ChannelMoments().result().count.shape == (0,)
    moments = spread(ChannelMoments(), normal((2, 3, 4)))
    with pytest.raises(DataError, match="no axis 1"):
        moments.update(normal(3))
    with pytest.raises(DataError, match="not the 3 channels"):
        moments.update(normal((2, 4, 4)))
    with pytest.raises(ValueError, match="different numbers"):
        moments.merge(spread(ChannelMoments(), normal((2, 4, 4))))
    before = moments.result()
    moments.merge(ChannelMoments())
    moments.update(normal((0, 3, 4)))
    np.testing.assert_array_equal(moments.result().mean, before.mean)
    fresh = pickle.loads(pickle.dumps(ChannelMoments()))
    fresh.merge(moments)
    np.testing.assert_array_equal(fresh.result().variance, before.variance)
