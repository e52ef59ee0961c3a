"""EqualizeGates: what the model computes stays, small channels before a depthwise layer grow."""

import numpy as np
import pytest
from builders import normal
from quantizing import Feeds, parse, sqnr

from onnxdrp.errors import DataError, ModelError, OptionError
from onnxdrp.model import Model
from onnxdrp.passes import (
    Calibrate,
    ConvertOpset,
    EqualizeGates,
    InferShapes,
    InsertQdq,
    QuantizeWeights,
)
from onnxdrp.pipeline import PassContext, PassManager
from onnxdrp.quantization import Range, activation_params, fake_quantize
from onnxdrp.targets import load_target

HEAD = '<ir_version: 10, opset_import: ["" : 17]> g '
X = {"x": 4 * normal([32, 4, 8, 8], 7)}
GATES = {"silu": "Sigmoid(c)", "hard swish": "HardSigmoid<alpha=0.1666667, beta=0.5>(c)"}


def net(gate="Sigmoid(c)", low=0.002, outputs="", tail="y = Conv<group=8, pads=[1,1,1,1]>(m, w2)"):
    """Channels of quite other sizes, which the depthwise weights make up for."""
    text = (
        HEAD + f"(float[N, 4, 8, 8] x) => (float[N, 8, 8, 8] y{outputs})"
        "{ c = Conv<pads=[1,1,1,1]>(x, w1, b1) g = " + gate + f" m = Mul(c, g) {tail} }}"
    )
    sizes = np.geomspace(low, 1, 8).reshape(-1, 1, 1, 1)
    weights = {"w1": normal([8, 4, 3, 3], 0) * sizes, "w2": normal([8, 1, 3, 3], 1) / sizes}
    weights["b1"] = normal([8], 2) * sizes.ravel()
    weights["w1"][0, :2] = 0
    return parse(text, {k: v.astype(np.float32) for k, v in weights.items()})


def equalized(model, ctx=None, **options):
    ctx = ctx or PassContext()
    ctx.reader, ctx.workers = Feeds(X), 1
    before = model.clone()
    (record,) = PassManager([EqualizeGates(**options)]).run(model, ctx).records
    model.check()
    assert record.modified == (before.fingerprint() != model.fingerprint())
    return before, model, record.stats


def written(model, target):
    model, ctx = model.clone(), PassContext(reader=Feeds(X), target=load_target(target), workers=1)
    steps = [ConvertOpset(), InferShapes(), Calibrate(), QuantizeWeights(per_channel=True)]
    PassManager([*steps, InsertQdq()]).run(model, ctx)
    return model


def run(model):
    return model.session().run(["y"], X)[0]


@pytest.mark.parametrize("gate", GATES.values(), ids=GATES)
def test_the_results_stay_and_channels_become_one_size(gate):
    before, model, stats = equalized(net(gate))
    want, got = run(before), run(model)
    assert sqnr(want, got) > 110
    assert list(stats["equalized"]) == [model.nodes("Conv")[0].name]
    assert stats["equalized"][model.nodes("Conv")[0].name] > 20
    assert stats["skipped"] == {}
    product = model.nodes("Conv")[1].inputs[0].name
    (m,) = model.session(outputs=[product]).run([product], X)
    peaks = np.abs(m).max(axis=(0, 2, 3))
    (b,) = before.session(outputs=["m"]).run(["m"], X)
    old = np.abs(b).max(axis=(0, 2, 3))
    assert peaks.max() / peaks.min() < 0.05 * old.max() / old.min()


@pytest.mark.parametrize(("target", "least"), [("generic", 10), ("drp-ai3", 10)])
def test_the_quantized_model_is_far_closer(target, least):
    before, model, _ = equalized(net(), PassContext(target=load_target(target)))
    want = run(before)
    plain, mended = (sqnr(want, run(written(m, target))) for m in (before, model))
    assert mended > plain + least
    assert mended > 25


@pytest.mark.parametrize("target", ["generic", "drp-ai3"])
def test_the_factors_lose_nothing_in_eight_bits(target):
    ctx = PassContext(target=load_target(target))
    _, model, _ = equalized(net(low=0.05), ctx, gain_db=1)
    factor = next(w for n in model.nodes("Mul") for t in n.inputs
                  if (w := model.constant(t)) is not None)  # fmt: skip
    assert factor.max() == 1
    assert len(np.unique(factor)) > 4
    symmetric = ctx.target.activation_symmetric
    params = activation_params(Range(0, 1), ctx.target.activation_dtype, symmetric=symmetric)
    np.testing.assert_allclose(fake_quantize(factor, params), factor, rtol=2e-6)


def test_zeros_stay_and_tensors_of_other_values_have_other_names():
    before, model, _ = equalized(net())
    names = [n.inputs[1].name for n in model.nodes("Conv")]
    old = [n.inputs[1].name for n in before.nodes("Conv")]
    for a, b in zip(old, names, strict=True):
        np.testing.assert_array_equal(before.weight(a) == 0, model.weight(b) == 0)
    assert (before.weight(old[0]) == 0).sum() >= 18
    assert not {"c", "m"} & {t for n in model.nodes() for t in [n.outputs[0].name]}


def test_a_pair_that_gains_little_is_left_with_the_reason():
    model = net(low=0.9)
    _, model, stats = equalized(model)
    assert stats["equalized"] == {}
    assert next(iter(stats["skipped"].values())).endswith("dB only")


OTHERS = {
    "no depthwise layer": {"tail": "y = Conv<pads=[1,1,1,1]>(m, w3)"},
    "the product is an output": {"outputs": ", float[N, 8, 8, 8] m"},
    "its input is an output": {"outputs": ", float[N, 8, 8, 8] c"},
    "the gate is read twice": {
        "tail": "e = Conv<group=8, pads=[1,1,1,1]>(m, w2) y = Add(e, g)"
    },
    "its input is read twice": {
        "tail": "e = Conv<group=8, pads=[1,1,1,1]>(m, w2) y = Add(e, c)"
    },
    "the product is read twice": {
        "tail": "e = Conv<group=8, pads=[1,1,1,1]>(m, w2) y = Add(e, m)"
    },
}  # fmt: skip


@pytest.mark.parametrize("options", OTHERS.values(), ids=OTHERS)
def test_where_something_else_reads_along_nothing_is_done(options):
    model = net(**options)
    if "w3" in options.get("tail", ""):
        model = parse_with_dense(options["tail"])
    _, _, stats = equalized(model, gain_db=0)
    assert stats == {"equalized": {}, "skipped": {}}


def parse_with_dense(tail):
    text = (
        HEAD + "(float[N, 4, 8, 8] x) => (float[N, 8, 8, 8] y)"
        "{ c = Conv<pads=[1,1,1,1]>(x, w1, b1) g = Sigmoid(c) m = Mul(c, g) " + tail + " }"
    )
    weights = {"w1": normal([8, 4, 3, 3], 0), "b1": normal([8], 1), "w3": normal([8, 8, 3, 3], 2)}
    return parse(text, weights)


def test_a_weight_that_others_read_too_is_left_as_it_is():
    tail = "d = Conv<group=8, pads=[1,1,1,1]>(m, w2) y = Conv<group=8, pads=[1,1,1,1]>(d, w2)"
    before, model, stats = equalized(net(tail=tail))
    assert stats["equalized"] == {}
    assert len(stats["skipped"]) == 1
    np.testing.assert_array_equal(run(before), run(model))


def test_what_it_needs_is_said_before_any_work():
    model, ctx = net(), PassContext()
    with pytest.raises(DataError, match="equalize-gates needs data"):
        EqualizeGates().requires(model, ctx)
    ctx.reader = Feeds(X)
    ctx.ranges = {"c": Range(0, 1)}
    with pytest.raises(ModelError, match="run equalize-gates first"):
        EqualizeGates().requires(model, ctx)
    with pytest.raises(ModelError, match="quantized already"):
        EqualizeGates().requires(written(net(), "generic"), PassContext(reader=Feeds(X)))
    with pytest.raises(OptionError, match="gain_db nan"):
        EqualizeGates(float("nan"))
    assert isinstance(model, Model)
