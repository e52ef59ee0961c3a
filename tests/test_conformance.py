"""Conformance: what is made for a profile keeps all its rules, and each that is broken is found."""

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from builders import normal
from quantizing import Feeds, parse, quantize_model, target_with

from onnxdrp.conformance import departures
from onnxdrp.geometry import from_slabs
from onnxdrp.layers import by_weight, layers
from onnxdrp.masks import Mask
from onnxdrp.model import Model
from onnxdrp.passes import (
    Calibrate,
    Check,
    Clean,
    ConvertOpset,
    FoldConstants,
    FuseBatchNorm,
    InferShapes,
    InsertQdq,
    Optimize,
    QuantizeWeights,
)
from onnxdrp.passes.edit import producer
from onnxdrp.patterns import parse_pattern
from onnxdrp.pipeline import PassContext, PassManager
from onnxdrp.targets import list_targets, load_target

HEAD = '<ir_version: 8, opset_import: ["" : 13]>'
NET = (
    "a = Conv(x, w, b) r = Relu(a) c = Conv(r, v) s = Add(c, r) "
    "p = MaxPool<kernel_shape=[1, 1]>(s) g = Sigmoid(p) m = Mul(g, s) k = Concat<axis=1>(m, p) "
    "f = Flatten(k) n = MatMul(f, u) y = Add(n, d)"
)
WEIGHTS = {
    "w": normal([4, 4, 1, 1], 0),
    "v": normal([4, 4, 1, 1], 1),
    "b": normal([4], 2),
    "u": normal([72, 6], 3),
    "d": normal([6], 4),
}


def net(body=NET, shape="1, 6", **weights):
    text = f"{HEAD} g (float[1, 4, 3, 3] x) => (float[{shape}] y) {{ {body} }}"
    return parse(text, WEIGHTS | weights)


def quantized(target, body=NET, shape="1, 6", **weights):
    profile = load_target(target) if isinstance(target, str) else target
    return quantize_model(net(body, shape, **weights), target=profile).model


def broken(model, target, **more):
    """What is found, without the names of nodes."""
    profile = load_target(target) if isinstance(target, str) else target
    return [line.rpartition(": ")[0] for line in departures(model, profile, **more)]


@pytest.mark.parametrize("target", list_targets())
@pytest.mark.parametrize("which", ["modA", "modB"])
def test_what_is_made_for_a_profile_departs_from_nothing(which, target, request):
    model = Model.load(request.getfixturevalue(which))
    images = normal([8, *model.inputs[0].shape[1:]], 0)
    ctx = PassContext(target=load_target(target), reader=Feeds({model.inputs[0].name: images}))
    before = [InferShapes(), Optimize(), FoldConstants(), FuseBatchNorm(), Clean(), ConvertOpset()]
    steps = [*before, InferShapes(), Calibrate(), QuantizeWeights(), InsertQdq(), Check()]
    report = PassManager(steps).run(model, ctx)
    assert departures(model, ctx.target) == []  # nor by what was kept float
    unmet = report.records[-1].stats["unmet"]
    assert all("static shapes" in wish for wish in unmet)
    assert bool(unmet) == ctx.target.static_shapes
    assert len(model.nodes("QuantizeLinear")) > 15


@pytest.mark.parametrize("target", list_targets())
def test_so_does_a_net_with_a_bit_of_all(target):
    model = quantized(target)
    assert broken(model, target) == []
    assert len(model.nodes("QuantizeLinear")) >= 4


@pytest.mark.parametrize(
    ("target", "changes", "rule"),
    [
        ("generic", {"activation_dtype": "int8"}, "takes uint8 activations, not int8"),
        ("drp-ai3", {"activation_symmetric": False}, "takes symmetric activations, not a zero"),
        ("drp-ai3", {"per_channel": True}, "takes weights with one scale a tensor"),
        ("qnn-htp", {"whole_weights": ()}, "takes weights of Gemm with one scale a tensor"),
        ("drp-ai3", {"bias_dtype": "float32"}, "takes int32 biases"),
        ("tensorrt", {"bias_dtype": "int32"}, "takes float biases"),
        ("drp-ai3", {"shared_inputs": ()}, "wants the same parameters around Add"),
        ("drp-ai3", {"shared_inputs_and_output": ()}, "wants the same parameters around Concat"),
        ("qnn-htp", {"fixed_range": {}, "wide_fixed_range": {}}, "wants Sigmoid to give [0, 0.9"),
        ("tensorrt", {"fused_residual": ()}, "computes Add with the layer before it"),
        ("generic", {"matmul_add_is_fc": False, "float_output": ()}, "takes MatMul and Add of a"),
        ("generic", {"float_output": ()}, "leaves the output of Gemm float for float readers"),
    ],
)  # fmt: skip
def test_each_key_is_found_where_a_model_was_made_without_it(target, changes, rule):
    found = broken(quantized(target_with(target, **changes)), target)
    assert [line for line in found if f"{target} {rule}" in line]
    assert len(found) <= 1 + ("matmul_add_is_fc" in changes)


def test_a_reduced_range_is_found_where_it_is_missing():
    reduced = target_with(reduce_range="on")
    assert broken(quantized(reduced), reduced) == []
    assert broken(quantized(reduced), "generic") == []
    found = departures(quantized("generic"), reduced)
    assert found == ["generic takes weights from -64 to 64: Conv_0, Conv_2 and 1 more"]


def test_what_stays_float_is_not_rounded_for_nothing():
    body = "a = Conv(x, w) e = Sigmoid(a) y = Tanh(e)"
    target = target_with(keep_float=("Sigmoid",))
    assert broken(quantized(target, body, "1, 4, 3, 3"), target) == []
    found = departures(quantized("generic", body, "1, 4, 3, 3"), target)
    rule = "generic computes Sigmoid in float and rounds nothing behind it"
    assert found == [f"{rule}: e_QuantizeLinear"]


def test_float_layers_with_whole_weights_are_found():
    target = target_with(keep_float=("ConvTranspose",))
    body = "a = Conv(x, w) y = ConvTranspose(a, v)"
    model = quantized(target, body, "1, 4, 3, 3")
    assert model.weight("v").dtype == np.float32
    assert model.weight("w").dtype == np.int8
    assert broken(model, target) == []
    rule = "generic computes ConvTranspose in float, with float weights"
    assert rule in broken(quantized("generic", body, "1, 4, 3, 3"), target)


def test_an_operator_that_is_always_quantized_and_is_not():
    body = "e = Exp(x) m = MaxPool<kernel_shape=[1, 1]>(e) t = Exp(m) a = Conv(t, w) y = Relu(a)"
    model = quantized("drp-ai3", body, "1, 4, 3, 3")
    assert broken(model, "drp-ai3") == []
    without = target_with("drp-ai3", always_quantized=())
    model = quantized(without, body, "1, 4, 3, 3")
    assert broken(model, "drp-ai3") == ["drp-ai3 quantizes MaxPool wherever it stands"]
    assert broken(model, "drp-ai3", kept={"MaxPool_1": "excluded by 'MaxPool'"}) == []


# --- broken by hand ----------------------------------------------------------------------------


def renew(model, name, **changes):
    """Other numbers for the tensor `name`: of a pair, all of it."""
    for what, value in changes.items():
        model.set_weight(f"{name}_{what}", value)


def test_a_bias_with_another_scale_or_a_zero_point():
    for changes in ({"scale": np.float32([1, 1, 1, 1])}, {"zero_point": np.int32([0, 1, 0, 0])}):
        model = quantized("generic")
        renew(model, "b", **changes)
        (line,) = departures(model, load_target("generic"))
        assert line == "generic takes biases of scale s_in * s_w with zero point 0: Conv_0"


def test_the_bias_of_a_matmul_too():
    body = "n = MatMul(x, u) y = Add(n, d)"
    model = quantized("generic", body, "1, 4, 3, 6", u=normal([3, 6], 0))
    assert len(model.nodes("MatMul")) == 1
    assert broken(model, "generic") == []
    renew(model, "d", scale=np.float32([1] * 6))
    (line,) = departures(model, load_target("generic"))
    assert line == "generic takes biases of scale s_in * s_w with zero point 0: Add_1"


def test_a_bias_that_stayed_float():
    model = quantized("generic")
    model.node("Conv_0").inputs[2] = gs.Constant("other", normal([4], 0))
    assert broken(model, "generic") == ["generic takes int32 biases"]


def test_a_weight_that_reads_float_activations():
    model = quantized("generic")
    model.node("Conv_0").inputs[0] = model.tensors()["x"]
    assert broken(model, "generic") == ["generic takes quantized inputs of Conv"]


def test_scales_along_the_wrong_axis():
    model = quantized("generic")
    producer(model.node("Conv_0").inputs[1]).attrs["axis"] = 1
    assert broken(model, "generic") == ["generic takes scales along the outputs of Conv"]


def test_unsigned_weights():
    model = quantized("generic")
    model.set_weight("w", (model.weight("w").astype(int) + 128).astype(np.uint8))
    renew(model, "w", zero_point=np.full(4, 128, np.uint8))
    assert broken(model, "generic") == ["generic takes int8 weights with zero point 0"]


def test_what_keeps_values_but_not_their_parameters():
    model = quantized("generic")
    renew(model, "p", scale=np.float32(3))
    assert broken(model, "generic") == ["generic wants the same parameters around MaxPool"]


def test_constant_operands_of_another_type_or_with_a_zero_point():
    body = "a = Conv(x, w) y = Mul(a, c)"
    model = quantized("drp-ai3", body, "1, 4, 3, 3", c=np.float32(2))
    renew(model, "c", zero_point=np.int8(3))
    assert broken(model, "drp-ai3") == ["drp-ai3 takes symmetric activations, not a zero point"]
    found = broken(quantized("generic", body, "1, 4, 3, 3", c=np.float32(2)), "drp-ai3")
    assert "drp-ai3 takes int8 activations, not uint8" in found


def test_a_fixed_range_with_other_numbers():
    model = quantized("qnn-htp")
    assert model.weight("g_scale") == np.float32(1 / 256)
    assert model.weight("g_zero_point") == 0
    renew(model, "g", scale=np.float32(1 / 200))
    assert broken(model, "qnn-htp") == ["qnn-htp wants Sigmoid to give [0, 0.996094]"]


def test_masks_of_a_pattern_that_the_target_does_not_take():
    weights = {"w": normal([32, 64, 1, 1], 0)}
    text = f"{HEAD} g (float[1, 64, 3, 3] x) => (float[1, 32, 3, 3] y) {{ y = Conv(x, w) }}"
    done = quantize_model(parse(text, weights))

    def mask(text):
        pattern = parse_pattern(text)
        (layer,) = by_weight(layers(done.model, pattern.block))["w"]
        keep = pattern.mask(np.abs(normal(layer.geometry.view_shape, 1)), 0.5)
        return {"w": Mask(from_slabs(keep, layer.geometry))}

    drp, tensorrt = target_with(patterns=("flex-nm", "block")), target_with(patterns=("nm:2:4",))
    assert departures(done.model, drp, masks=mask("flex-nm")) == []
    assert departures(done.model, drp, masks=mask("block")) == []
    assert departures(done.model, tensorrt, masks=mask("nm:2:4")) == []
    (line,) = departures(done.model, drp, masks=mask("unstructured"))
    assert line == "generic is faster with flex-nm or block, not with other masks: w"
    assert departures(done.model, tensorrt, masks=mask("unstructured"))
    assert departures(done.model, load_target("generic"), masks=mask("unstructured")) == []


def test_numbers_are_compared_as_the_parameters_that_they_are():
    model = quantized("drp-ai3")
    renew(model, "k", scale=np.nextafter(model.weight("k_scale"), np.float32(9)))
    found = broken(model, "drp-ai3")
    assert "drp-ai3 wants the same parameters around Concat" in found
    assert "drp-ai3 wants the same parameters around Flatten" in found
