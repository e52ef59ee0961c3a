"""Which passes a verb runs, from its options."""

import pytest

from onnxdrp import chains
from onnxdrp import passes as p
from onnxdrp.errors import OptionError

PLAIN = {
    "per_channel": None,
    "reduce_range": None,
    "opset": None,
    "equalize": "none",
    "keep_float": {},
    "rounding": "nearest",
    "weight_bits": None,
    "bias_correction": "none",
    "strict": False,
}


def quantization(**options):
    return chains.quantization(**{**PLAIN, **options})


def one(steps, kind):
    (found,) = [step for step in steps if type(step) is kind]
    return found


def test_the_plain_chain_is_what_reads_no_weights_twice():
    assert [step.name for step in quantization()] == [
        "convert-opset", "infer-shapes", "calibrate", "quantize-weights", "insert-qdq", "check",
    ]  # fmt: skip


def test_each_option_adds_its_pass_at_its_place():
    steps = quantization(
        equalize="all",
        keep_float={"min_sqnr": 30.0, "max_drop": None},
        rounding="second-order",
        bias_correction="sequential",
    )
    assert [step.name for step in steps] == [
        "equalize-gates", "cross-layer-equalize", "convert-opset", "infer-shapes", "calibrate",
        "keep-float",
        "round-weights", "correct-bias", "insert-qdq", "check",
    ]  # fmt: skip
    assert one(steps, p.KeepFloat).min_sqnr == 30
    assert one(steps, p.CorrectBias).mode == "sequential"


def test_a_goal_without_a_number_is_none():
    assert "keep-float" not in [s.name for s in quantization(keep_float={"min_sqnr": None})]


@pytest.mark.parametrize("rounding", ["nearest", "second-order"])
@pytest.mark.parametrize("value", [True, False])
def test_grids_reach_the_pass_that_rounds(rounding, value):
    steps = quantization(rounding=rounding, per_channel=value, reduce_range=not value)
    kind = p.QuantizeWeights if rounding == "nearest" else p.RoundWeights
    assert (one(steps, kind).per_channel, one(steps, kind).reduce_range) == (value, not value)


def test_weights_of_four_bits_need_second_order_rounding():
    assert one(quantization(rounding="second-order", weight_bits=4), p.RoundWeights).bits == 4
    with pytest.raises(OptionError, match="4-bit weights need second-order rounding"):
        quantization(weight_bits=4)
    quantization(weight_bits=8)


@pytest.mark.parametrize(
    ("options", "span"),
    [
        ({}, (None, None)),
        ({"per_channel": True}, (13, None)),
        ({"per_channel": False}, (None, None)),
        ({"opset": 12}, (12, 12)),
        ({"opset": 17, "per_channel": True}, (17, 17)),
    ],
)
def test_the_opset_asked_for_is_the_oldest_and_the_newest(options, span):
    convert = one(quantization(**options), p.ConvertOpset)
    assert (convert.minimum, convert.maximum) == span


def test_strict_is_an_option_of_check():
    assert one(quantization(strict=True), p.Check).strict
    assert not one(quantization(), p.Check).strict


def test_calibration_ends_with_calibrate_and_hands_options_on():
    steps = chains.calibration(
        per_channel=None, opset=None, equalize="none", method="entropy", exclude=("a",), sigmas=None
    )
    assert steps[-1] == p.Calibrate(method="entropy", exclude=("a",))


def test_masks_stand_for_a_selection():
    assert chains.pruning("m.npz", None) == [p.ApplyMasks(path="m.npz")]
    select, prune = chains.pruning(None, "block", rate=0.5)
    assert select == p.SelectLayers(pattern="block", rate=0.5)
    assert prune == p.PruneBlocks(pattern="block")


def test_steps_have_a_refit_between_and_rates_are_shared_out_before():
    steps = chains.pruning(
        None, "row", score="second-order", steps=2, allocation="auto", of="macs",
        memory_limit=1 << 20, rate=0.6, rates={"conv2": 0.5},
    )  # fmt: skip
    assert steps == [
        p.SelectLayers(pattern="row", rate=0.6, rates={"conv2": 0.5}),
        p.AllocateRates(pattern="row", keep=("conv2",), of="macs", memory_limit=1 << 20),
        p.PruneBlocks("row", score="second-order", step=1, steps=2, memory_limit=1 << 20),
        p.RefitWeights(memory_limit=1 << 20),
        p.PruneBlocks("row", score="second-order", step=2, steps=2, memory_limit=1 << 20),
    ]


def test_recovery_is_what_it_is_called():
    assert chains.recovery("none") == []
    assert chains.recovery("moments") == [p.MatchMoments()]
    assert chains.recovery("refit", memory_limit=9) == [p.RefitWeights(memory_limit=9)]
    assert chains.recovery("distill", minutes=2.0) == [p.RefitWeights(), p.Distill(minutes=2.0)]


def test_preprocessing_freezes_and_cuts_first():
    steps = chains.preprocessing({"x": [1, 3, 8, 8]}, ["y"])
    assert steps[:2] == [p.FreezeShapes({"x": (1, 3, 8, 8)}), p.Cut(("y",))]
    assert [s.name for s in chains.preprocessing(None, None)] == [s.name for s in steps[2:]]


def test_the_memory_limit_holds_for_every_pass_that_runs_the_model():
    steps = quantization(
        memory_limit=1 << 20, rounding="second-order", bias_correction="sequential"
    )
    kinds = (p.Calibrate, p.RoundWeights, p.CorrectBias)
    assert [one(steps, kind).memory_limit for kind in kinds] == [1 << 20] * 3


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: quantization(equalize="weights"), "equalize is 'weights'; there are none, gates"),
        (lambda: quantization(rounding="sequential"), "rounding is 'sequential'"),
        (lambda: quantization(bias_correction="slow"), "bias_correction is 'slow'"),
        (lambda: chains.recovery("refitt"), "recover is 'refitt'; is 'refit' meant"),
        (lambda: chains.pruning(None, None, allocation="by-layer"), "allocation is 'by-layer'"),
    ],
)
def test_a_choice_that_there_is_not_is_refused_by_name(make, said):
    with pytest.raises(OptionError, match=said):
        make()
