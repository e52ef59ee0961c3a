"""Calibrate: ranges of the tensors that the plan wants, and of no others."""

import numpy as np
import pytest
from builders import conv_net, feeds_for, make_model, normal, outputs_of, value
from onnx import helper
from quantizing import Feeds, parse, quantize_model

from onnxdrp.errors import DataError, ModelError, OptionError
from onnxdrp.masks import Mask
from onnxdrp.model import Model
from onnxdrp.passes import Calibrate, InferShapes, PruneBlocks
from onnxdrp.pipeline import PassContext, PassManager
from onnxdrp.plan import make_plan
from onnxdrp.quantization import Range
from onnxdrp.targets import load_target


def calibrate(proto, *feeds, **options):
    model = Model.from_proto(proto) if not isinstance(proto, Model) else proto
    ctx = PassContext(reader=Feeds(*(feeds or (feeds_for(model.proto(), batch=8),))))
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
    _, default, _ = calibrate(proto, feeds)
    _, named, _ = calibrate(proto, feeds, method="percentile", percentile=99.999)
    assert default.ranges == named.ranges


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
    with pytest.raises(OptionError, match="no node matches 'conv3'; near: 'conv"):
        calibrate(proto, exclude=("conv3",))
    with pytest.raises(OptionError, match="no node matches 'Tanh'"):
        calibrate(proto, exclude=("Tanh",))
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


def test_bad_options():
    for options, message in (
        ({"method": "entropie"}, "there are minmax and percentile"),
        ({"percentile": 101.0}, r"outside \[50, 100\]"),
        ({"memory_limit": 0}, "give a number of bytes above 0"),
        ({"exclude": ("",)}, "no selector"),
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
    assert "x" in stats["constant_tensors"]


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
