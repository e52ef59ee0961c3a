"""Calibrate: ranges of the tensors that the plan wants, and of no others."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from builders import conv_net, feeds_for, make_model, normal, outputs_of, value
from onnx import helper
from quantizing import Feeds, parse, quantize_model

from onnxdrp import thresholds
from onnxdrp.errors import DataError, ModelError, OptionError
from onnxdrp.masks import Mask
from onnxdrp.model import Model
from onnxdrp.observers import Histogram
from onnxdrp.passes import Calibrate, InferShapes, PruneBlocks
from onnxdrp.pipeline import PassContext, PassManager
from onnxdrp.plan import make_plan
from onnxdrp.quantization import Range
from onnxdrp.ranges import Ranges, TensorRange, load_ranges, save_ranges, weights_digest
from onnxdrp.targets import load_target

METHODS = ("minmax", "mean-minmax", "percentile", "entropy", "mse", "sigma")


def calibrate(proto, *feeds, ctx=None, **options):
    model = Model.from_proto(proto) if not isinstance(proto, Model) else proto
    ctx = ctx or PassContext(reader=Feeds(*(feeds or (feeds_for(model.proto(), batch=8),))))
    InferShapes().run(model, ctx)
    before = model.fingerprint()
    step = Calibrate(**options)
    step.requires(model, ctx)
    result = step.run(model, ctx)
    assert not result.modified
    assert model.fingerprint() == before
    return model, ctx, result.stats


def taps_of(proto, names, feeds):
    """What plain onnxruntime computes for these tensors."""
    copy = type(proto).FromString(proto.SerializeToString())
    del copy.graph.output[:]
    copy.graph.output.extend(value(name, None) for name in names)
    return dict(zip(names, outputs_of(copy, feeds), strict=True))


def test_minmax_is_exactly_what_onnxruntime_computes_over_all_batches():
    proto = conv_net(16)
    feeds = [feeds_for(proto, seed, batch=4) for seed in range(3)]
    _, ctx, stats = calibrate(proto, *feeds, method="minmax")
    assert set(ctx.ranges) == {"x", "r1", "h2", "p"}  # not h1, which the Relu reads alone, nor y
    found = [taps_of(proto, ["r1", "h2", "p"], f) | f for f in feeds]
    for name, range_ in ctx.ranges.items():
        low, high = (np.min([f[name].min() for f in found]), np.max([f[name].max() for f in found]))
        assert (range_.low, range_.high) == pytest.approx((low, high), rel=1e-5)
        assert low < high
    assert stats["measured_tensors"] == 4
    assert ctx.kept_float == stats["skipped"]
    assert ctx.kept_float["bn"] == "target generic computes BatchNormalization in float"


def test_percentile_leaves_out_what_is_rare():
    proto = conv_net(16)
    feeds = feeds_for(proto, batch=64)
    feeds["x"][0, 0, 0, 0] = 1000.0
    feeds["x"][1, 0, 0, 0] = -500.0
    _, minmax, _ = calibrate(proto, feeds, method="minmax")
    assert minmax.ranges["x"] == Range(-500.0, 1000.0)
    _, percent, _ = calibrate(proto, feeds, method="percentile", percentile=99.9)
    low, high = np.percentile(feeds["x"], [0.05, 99.95], method="inverted_cdf")
    width = 1000 / 1024  # a bin: at least half of the 2048 are in use
    assert low - width <= percent.ranges["x"].low <= low
    assert high <= percent.ranges["x"].high <= high + width
    _, default, _ = calibrate(proto, feeds, method="percentile")
    _, named, _ = calibrate(proto, feeds, method="percentile", percentile=99.999)
    assert default.ranges == named.ranges != percent.ranges


def test_batches_and_memory_do_not_change_a_range():
    proto = conv_net(16)
    whole = feeds_for(proto, batch=12)
    parts = [{"x": whole["x"][i : i + 3]} for i in range(0, 12, 3)]
    for method in ("minmax", "percentile"):
        _, one, _ = calibrate(proto, whole, method=method)
        _, many, _ = calibrate(proto, *parts, method=method, memory_limit=1)
        assert one.ranges.keys() == many.ranges.keys()
        for name, a in one.ranges.items():
            b = many.ranges[name]
            assert (a.low, a.high) == pytest.approx((b.low, b.high), rel=1e-5)


def test_ranges_are_those_of_the_pruned_model():
    model = Model.from_proto(conv_net(64))
    _, dense, _ = calibrate(model.clone(), method="minmax")
    PassManager([PruneBlocks(rate=0.7)]).run(model, PassContext())
    _, sparse, _ = calibrate(model, method="minmax")
    assert sparse.ranges["r1"] == dense.ranges["r1"]  # the first layer is not pruned
    assert sparse.ranges["h2"].high < 0.9 * dense.ranges["h2"].high


def test_exclusions_by_name_glob_regex_and_operator():
    proto = conv_net(16)
    for selector, names in (
        ("conv2", ["conv2"]),
        ("conv*", ["conv1", "conv2"]),
        ("re:f.", ["fc"]),
        ("Conv", ["conv1", "conv2"]),
    ):
        _, ctx, _ = calibrate(proto, exclude=(selector,))
        why = {n: w for n, w in ctx.kept_float.items() if w.startswith("excluded")}
        assert why == dict.fromkeys(names, f"excluded by {selector!r}")
    _, both, _ = calibrate(proto, exclude=("conv1", "fc"))
    assert {"conv1", "fc"} <= both.kept_float.keys()
    with pytest.raises(OptionError, match=r"no node or operator matches 'conv3'; near: .*'conv2'"):
        calibrate(proto, exclude=("conv3",))
    _, _, stats = calibrate(proto, exclude=("Tanh",))
    assert stats["warnings"] == ["exclude 'Tanh': the model has no such operator"]
    _, _, stats = calibrate(proto, exclude=("conv3",), unmatched="warn")
    assert stats["warnings"][0].startswith("no node or operator matches 'conv3'")
    with pytest.raises(OptionError, match="not a regular expression"):
        Calibrate(exclude=("re:(",))


def test_a_node_named_as_an_operator_is_that_node():
    model = parse(
        '<ir_version: 10, opset_import: ["" : 17]> g (float[2, 4] x) => (float[2, 4] y) '
        "<float[4, 4] w = {1,0,0,0,0,1,0,0,0,0,1,0,0,0,0,1}> "
        "{ [MatMul] a = Add(x, x) b = MatMul(a, w) y = MatMul(b, w) }"
    )
    _, ctx, _ = calibrate(model, exclude=("MatMul",))
    assert list(ctx.kept_float) == ["MatMul"]


def test_exclusions_by_subgraph_pattern_and_tail(tmp_path):
    proto = conv_net(16)
    patterns = tmp_path / "act.csv"
    patterns.write_text("Relu, ^GlobalAveragePool")
    _, ctx, _ = calibrate(
        proto, exclude_subgraph=("r1..h2",), exclude_patterns=str(patterns), method="minmax"
    )
    assert ctx.kept_float["conv2"] == "excluded by the subgraph 'r1..h2'"
    assert ctx.kept_float["relu2"].startswith("excluded by the pattern 'Relu, ^GlobalAveragePool'")
    assert set(ctx.ranges) == {"x", "r1", "p"}  # r1, which conv1 gives, and not h2
    rng = np.random.default_rng(0)
    heads = parse(
        """<ir_version: 10, opset_import: ["" : 17]> g (float[2, 4] x) => (float[2, 6] y) {
            [a] p = MatMul(x, w) [b] q = MatMul(x, v) [s] r = Sigmoid(q)
            [cat] y = Concat<axis = 1>(p, r) }""",
        {f: rng.standard_normal((4, n)).astype(np.float32) for f, n in (("w", 4), ("v", 2))},
    )
    feeds = {"x": rng.standard_normal((2, 4)).astype(np.float32)}

    def on(**options):
        ctx = PassContext(reader=Feeds(feeds), target=load_target("drp-ai3"))
        return calibrate(heads.clone(), ctx=ctx, method="minmax", **options)

    _, ctx, stats = on()
    assert stats["tail"] == ["s", "cat"]
    assert ctx.kept_float["cat"].startswith("tail: decodes boxes and scores")
    assert set(ctx.ranges) == {"x", "p", "q"}
    _, ctx, stats = on(exclude_tail="none")
    assert stats["tail"] == []
    assert ctx.kept_float == {}
    assert set(ctx.ranges) == {"x", "p", "q", "r"}  # y takes what its inputs have


def test_bad_options():
    for options, message in (
        ({"method": "entropie"}, "there are minmax, mean-minmax, percentile, entropy, mse, sigma"),
        ({"percentile": 101.0}, r"outside \[50, 100\]"),
        ({"tails": "three"}, "there are two, one, abs"),
        ({"method": "sigma", "sigmas": 0.0}, r"outside \(0, 1000\]"),
        ({"method": "minmax", "percentile": 99.0}, "percentile belongs to the method percentile"),
        ({"method": "entropy", "tails": "abs"}, "tails belongs to the method percentile, not to e"),
        ({"sigmas": 4.0, "tails": "abs"}, "sigmas belongs to the method sigma, not to percentile"),
        ({"memory_limit": 0}, "give a number of bytes above 0"),
        ({"exclude": ("",)}, "no selector"),
        ({"exclude_subgraph": ("r1",)}, r"give its ends as A\.\.B"),
        ({"exclude_tail": "yes"}, "exclude_tail 'yes': there are auto, none"),
        ({"unmatched": "ignore"}, "unmatched 'ignore': there are error, warn"),
    ):
        with pytest.raises(OptionError, match=message):
            Calibrate(**options)


def test_data_is_needed():
    with pytest.raises(DataError, match="calibration needs data"):
        Calibrate().requires(Model.from_proto(conv_net(4)), PassContext())
    with pytest.raises(DataError, match="no samples"):
        calibrate(conv_net(4), {"x": np.zeros((0, 3, 8, 8), np.float32)})


def test_a_quantized_model_is_refused():
    quantized = quantize_model(conv_net(16))
    with pytest.raises(ModelError, match="'x_QuantizeLinear': the model is quantized already"):
        Calibrate().requires(quantized.model, quantized.ctx)


def test_nan_in_activations_names_tensor_node_and_sample():
    proto = conv_net(16)
    feeds = feeds_for(proto, batch=8)
    feeds["x"][5, 1, 2, 3] = np.nan
    for method in ("minmax", "percentile"):
        with pytest.raises(DataError, match="tensor 'x' of the input has NaN in sample 5"):
            calibrate(proto, feeds, method=method)
    node = helper.make_node("Log", ["x"], ["l"], "log")
    conv = helper.make_node("Conv", ["l", "w"], ["y"], "conv")
    inputs, outputs = [value("x", ["N", 2, 2, 2])], [value("y", ["N", 2, 2, 2])]
    logs = make_model([node, conv], inputs, outputs, {"w": normal([2, 2, 1, 1], 0)})
    x = np.ones((4, 2, 2, 2), np.float32)
    x[2, 0, 0, 0] = -1
    with pytest.raises(DataError, match="tensor 'l' of node 'log' has NaN in sample 2"):
        calibrate(logs, {"x": x})


def test_a_constant_activation_is_no_error_and_is_told():
    _, ctx, stats = calibrate(conv_net(8), {"x": np.zeros((2, 3, 8, 8), np.float32)})
    assert ctx.ranges["x"] == Range(0, 0)
    assert stats["zero_tensors"]["x"] == "of the input: always 0"
    assert any(w.startswith("'x' of the input: nothing but zeros") for w in stats["warnings"])


def test_constant_and_empty_tensors_are_told_with_their_nodes():
    model = parse(
        """<ir_version: 10, opset_import: ["" : 17]> g (float[N, 4, 4] x) => (
            float[N, 4, 4] y, float[N, n, 4] z)
        <float[4, 4] w = {1,0,0,0,0,1,0,0,0,0,1,0,0,0,0,1}, float none = {0}, float half = {0.5},
         int64[1] from = {0}, int64[1] axis = {1}> {
            [off] a = Mul(x, none)
            [shift] b = Add(a, half)
            [one] y = MatMul(b, w)
            [cut] s = Slice(x, from, from, axis)
            [more] e = Add(s, half)
            [two] z = MatMul(e, w)
        }"""
    )
    x = np.random.default_rng(0).standard_normal((6, 4, 4)).astype(np.float32)
    for method in METHODS:
        _, ctx, stats = calibrate(model.clone(), {"x": x}, method=method)
        assert stats["constant_tensors"] == {"b": "of node 'shift': always 0.5"}
        assert stats["empty_tensors"] == {"e": "of node 'more': no value"}
        assert ctx.ranges["e"] == Range(0, 0)
        assert ctx.ranges["b"].high == pytest.approx(0.5, rel=1e-3)
        told = "\n".join(stats["warnings"])
        assert "'b' of node 'shift': one value throughout; check that the data varies" in told
        assert "'e' of node 'more': no value in any sample" in told
        done = quantize_model(model.clone(), {"x": x}, method=method)
        assert done.model.session().run(["z"], {"x": x})[0].shape == (6, 0, 4)


def test_nothing_to_quantize_says_why():
    x, y = value("x", [1, 4]), value("y", [1, 4])
    exp = make_model([helper.make_node("Exp", ["x"], ["y"], "e")], [x], [y])
    with pytest.raises(ModelError, match=r"no node .* target generic computes Exp in float"):
        calibrate(exp)
    half = [value("x", [2, 4], np.float16)], [value("y", [2, 4], np.float16)]
    matmul = make_model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "m")],
        *half,
        {"w": normal([4, 4], 0, np.float16)},
    )
    with pytest.raises(ModelError, match="float16 tensors; export the model in float32"):
        calibrate(matmul)


def test_masks_and_tables_of_others_stay():
    ctx = PassContext(masks={"conv2.weight": Mask(np.ones((16, 16, 3, 3), bool))})
    done = quantize_model(conv_net(16), ctx=ctx)
    assert set(done.ctx.masks) == {"conv2.weight"}


def test_only_what_the_plan_wants_is_tapped(modB):
    model = Model.load(modB)
    ctx = PassContext(reader=Feeds(feeds_for(model.proto(), batch=2)))
    InferShapes().run(model, ctx)
    Calibrate().run(model, ctx)
    plan = make_plan(model, load_target("generic"), {})
    assert ctx.ranges.keys() == plan.observed.keys()
    assert len(ctx.ranges) == 23


# ------------------------------------------------------------------------------------------ methods


def test_the_mean_of_extremes_is_that_of_single_samples_whatever_the_batch():
    proto = conv_net(16)
    whole = feeds_for(proto, batch=12)
    whole["x"] *= np.arange(1, 13, dtype=np.float32).reshape(-1, 1, 1, 1)
    values = taps_of(proto, ["r1", "h2", "p"], whole) | whole
    _, ctx, _ = calibrate(proto, whole, method="mean-minmax")
    for name, range_ in ctx.ranges.items():
        rows = values[name].reshape(12, -1).astype(np.float64)
        low, high = rows.min(axis=1).mean(), rows.max(axis=1).mean()
        assert (range_.low, range_.high) == pytest.approx((low, high), rel=1e-5)
        assert high < 0.8 * rows.max()  # another range than minmax's
    _, single, _ = calibrate(
        proto, *[{"x": whole["x"][i : i + 1]} for i in range(12)], method="mean-minmax"
    )
    assert single.ranges == ctx.ranges


def test_every_method_stays_within_what_was_seen_and_says_what_it_was():
    proto = conv_net(16)
    feeds = feeds_for(proto, batch=64)
    found = {}
    for method in METHODS:
        options = {"percentile": 99.0} if method == "percentile" else {}
        options |= {"sigmas": 3.0} if method == "sigma" else {}
        _, ctx, _ = calibrate(proto, feeds, method=method, **options)
        assert options.items() <= ctx.calibration.method.items()
        found[method] = tuple(ctx.ranges.items())
        assert ctx.calibration.method["name"] == method
        for tensor in ctx.calibration.tensors.values():
            assert tensor.low < tensor.high
            if tensor.min is not None:
                assert tensor.min <= tensor.low
                assert tensor.high <= tensor.max
    assert len(set(found.values())) == len(METHODS)


def test_thresholds_are_those_of_the_target():
    proto = conv_net(16)
    feeds = feeds_for(proto, batch=64)
    seen = Histogram()
    seen.update(feeds["x"])
    for target in (load_target("generic"), load_target("drp-ai3")):
        for method, search in (("entropy", thresholds.entropy), ("mse", thresholds.mse)):
            ctx = PassContext(reader=Feeds(feeds), target=target)
            calibrate(proto, ctx=ctx, method=method)
            symmetric = target.activation_symmetric
            assert ctx.ranges["x"] == search(seen, target.activation_dtype, symmetric=symmetric)
    _, ctx, _ = calibrate(proto, feeds, method="sigma", sigmas=2.5)
    assert ctx.ranges["x"] == thresholds.sigma(seen, 2.5)


def test_tails_of_the_absolute_value_give_a_symmetric_range():
    proto = conv_net(16)
    _, ctx, _ = calibrate(proto, feeds_for(proto, batch=64), tails="abs", percentile=99.0)
    assert ctx.ranges["h2"].low == -ctx.ranges["h2"].high
    assert ctx.calibration.method == {"name": "percentile", "percentile": 99.0, "tails": "abs"}


def test_workers_and_executors_do_not_change_a_range():
    proto = conv_net(16)
    feeds = [feeds_for(proto, seed, batch=16) for seed in range(6)]
    for method in METHODS:
        found = []
        with ThreadPoolExecutor(2) as pool:
            for running in ({"workers": 1}, {"workers": 4}, {"executor": pool}):
                ctx = PassContext(reader=Feeds(*feeds), **running)
                calibrate(proto, ctx=ctx, method=method)
                found.append(ctx.calibration)
        assert found[0] == found[1] == found[2]


# -------------------------------------------------------------------------------- files of ranges


def measured(proto, folder, **options):
    """Ranges measured on some data, and the file that holds them."""
    feeds = feeds_for(proto, batch=16)
    _, ctx, _ = calibrate(proto, feeds, **options)
    return ctx, str(save_ranges(folder / "ranges.json", ctx.calibration))


def test_what_was_measured_is_told_as_a_file_has_it(tmp_path):
    proto = conv_net(16)
    model, ctx, _ = calibrate(proto, feeds_for(proto, batch=16))
    found = ctx.calibration
    assert list(found.tensors) == list(ctx.ranges)
    assert {name: t.range for name, t in found.tensors.items()} == ctx.ranges
    assert (found.samples, found.target) == (16, "generic")
    assert found.weights == weights_digest(model)
    assert found.tensors["x"].count == 16 * 3 * 8 * 8
    assert load_ranges(save_ranges(tmp_path / "r.json", found)) == found


def test_samples_are_counted_where_the_reader_does_not_know_them():
    proto = conv_net(16)
    reader = Feeds(*[feeds_for(proto, seed, batch=3) for seed in range(4)])
    reader.samples = None
    ctx = PassContext(reader=reader)
    calibrate(proto, ctx=ctx)
    assert ctx.calibration.samples == 12


def test_a_file_of_ranges_takes_the_place_of_data(tmp_path):
    proto = conv_net(16)
    first, path = measured(proto, tmp_path)
    ctx = PassContext()
    _, _, stats = calibrate(proto, ctx=ctx, ranges=(path,))
    assert ctx.ranges == first.ranges
    assert ctx.kept_float == first.kept_float
    assert ctx.calibration == first.calibration
    assert stats["measured_tensors"] == 0
    assert stats["warnings"] == []


def test_what_a_file_lacks_is_measured_and_nothing_else(tmp_path):
    proto = conv_net(16)
    _, path = measured(proto, tmp_path)
    ranges = load_ranges(path)
    del ranges.tensors["r1"]
    ranges.edit("x", low=-1, high=1)
    save_ranges(path, ranges)
    feeds = feeds_for(proto, seed=5, batch=16)
    feeds["x"] *= 3
    _, ctx, stats = calibrate(proto, feeds, ranges=(path,), method="minmax")
    assert stats["measured_tensors"] == 1
    assert ctx.ranges["x"] == Range(-1.0, 1.0)
    assert ctx.ranges["h2"] == ranges.tensors["h2"].range
    high = taps_of(proto, ["r1"], feeds)["r1"].max()
    assert ctx.ranges["r1"].high == pytest.approx(high, rel=1e-5)
    assert list(ctx.calibration.tensors) == ["x", "r1", "h2", "p"]
    with pytest.raises(DataError, match=r"ranges\.json: no range for 'r1'; give calibration data"):
        calibrate(proto, ctx=PassContext(), ranges=(path,))


def test_several_files_are_merged(tmp_path):
    proto = conv_net(16)
    first, path = measured(proto, tmp_path)
    wide = load_ranges(path)
    wide.tensors = {"h2": wide.tensors["h2"]}
    wide.edit("h2", high=99)
    other = str(save_ranges(tmp_path / "other.json", wide))
    ctx = PassContext()
    calibrate(proto, ctx=ctx, ranges=(path, other))
    assert ctx.ranges["h2"] == Range(first.ranges["h2"].low, 99.0)
    assert ctx.ranges["x"] == first.ranges["x"]


def test_names_that_do_not_fit_and_stale_weights_are_told(tmp_path):
    proto = conv_net(16)
    _, path = measured(proto, tmp_path)
    ranges = load_ranges(path)
    ranges.tensors |= {"pp": ranges.tensors["p"], "y": ranges.tensors["p"]}
    save_ranges(path, ranges)
    ctx = PassContext()
    _, _, stats = calibrate(proto, ctx=ctx, ranges=(path,))
    assert stats["unused_ranges"] == ["pp", "y"]
    assert stats["warnings"] == [f"{path}: the model has no tensor 'pp'; is 'p' meant?"]
    assert list(ctx.ranges) == ["x", "r1", "h2", "p"]
    _, _, stats = calibrate(conv_net(16, seed=9), ctx=PassContext(), ranges=(path,))
    assert stats["warnings"][0].startswith(f"{path}: was measured with other weights")


def test_a_file_of_another_model_names_what_is_missing(tmp_path):
    path = str(save_ranges(tmp_path / "r.json", Ranges({"q": TensorRange(0.0, 1.0)})))
    with pytest.raises(DataError, match="no range for 'x', 'r1', 'h2', and 1 more; give"):
        calibrate(conv_net(16), ctx=PassContext(), ranges=(path,))
    with pytest.raises(OptionError, match=r"none\.json: the ranges cannot be read"):
        calibrate(conv_net(16), ranges=(str(tmp_path / "none.json"),))


# --------------------------------------------------------------------------- what does not go well


def test_bad_samples_are_left_out_and_told():
    proto = conv_net(16)
    feeds = feeds_for(proto, batch=12)
    good = {"x": np.delete(feeds["x"], [3, 7], axis=0)}
    feeds["x"][3, 0, 0, 0] = np.nan
    feeds["x"][7, 1, 1, 1] = np.inf
    for method in METHODS:
        _, want, _ = calibrate(proto, good, method=method)
        _, ctx, stats = calibrate(proto, feeds, method=method, skip_bad_samples=True)
        assert ctx.ranges.keys() == want.ranges.keys()
        for name, range_ in want.ranges.items():
            got = ctx.ranges[name]
            assert (got.low, got.high) == pytest.approx((range_.low, range_.high), rel=1e-5)
        assert ctx.calibration.samples == 10
        assert stats["skipped_samples"] == [
            "tensor 'x' of the input has NaN in sample 3",
            "tensor 'x' of the input has infinity in sample 7",
        ]
        assert stats["warnings"] == [
            "2 of 12 samples were left out: " + "; ".join(stats["skipped_samples"])
        ]
    feeds["x"][:, 0, 0, 0] = np.nan
    with pytest.raises(DataError, match="none of the 12 samples can be used: tensor 'x'"):
        calibrate(proto, feeds, skip_bad_samples=True)


def test_an_interrupted_calibration_goes_on_where_it_was(tmp_path):
    proto = conv_net(16)
    feeds = [feeds_for(proto, seed, batch=16) for seed in range(40)]
    _, want, _ = calibrate(proto, *feeds)
    path = tmp_path / "out.calibration"
    done = []

    def interrupt(now, total):
        done.append(now)
        if now > 300:
            raise KeyboardInterrupt

    ctx = PassContext(reader=Feeds(*feeds), checkpoint=path, progress=interrupt)
    with pytest.raises(KeyboardInterrupt):
        calibrate(proto, ctx=ctx)
    assert path.exists()
    assert not ctx.ranges
    again = []
    ctx.progress = lambda now, total: again.append(now)
    calibrate(proto, ctx=ctx)
    assert again[0] > done[-1]  # what was done is not done again
    assert again[-1] == 640
    assert ctx.calibration == want.calibration
    assert not path.exists()


def test_an_option_chooses_its_method():
    assert Calibrate().method == "mse"
    assert Calibrate(percentile=99.0).method == Calibrate(tails="one").method == "percentile"
    assert Calibrate(sigmas=4.0).method == "sigma"
    assert Calibrate(exclude=("Add",)).method == "mse"
