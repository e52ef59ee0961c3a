"""16-bit activations: where they are asked for, on which numbers, and that onnxruntime agrees."""

import numpy as np
import pytest
from builders import normal, outputs_of
from quantizing import parse, planned, quantize_model, sqnr, target_with

from onnxdrp.conflicts import conflicts
from onnxdrp.conformance import departures
from onnxdrp.contexts import load_context, save_context
from onnxdrp.errors import OnnxDrpError
from onnxdrp.pipeline import PassContext
from onnxdrp.quantization import (
    QuantParams,
    Range,
    activation_params,
    dequantize,
    qlimits,
    quantize,
)
from onnxdrp.targets import load_target

WEIGHTS = {"w": normal([4, 4, 1, 1], 0), "v": normal([4, 4, 1, 1], 1), "b": normal([4], 2)}


def net(body, opset=17, channels=4):
    head = f'<ir_version: 10, opset_import: ["" : {opset}]>'
    shape = f"float[2, {channels}, 6, 6]"
    return parse(f"{head} g (float[2, 4, 6, 6] x) => ({shape} y) {{ {body} }}", WEIGHTS)


def quantized(body, *wide, opset=17, target="qnn-htp", **more):
    ctx = PassContext(wide=dict.fromkeys(wide, "asked for"))
    x = {"x": normal([2, 4, 6, 6], 5)}
    return quantize_model(net(body, opset, **more), x, target=target, ctx=ctx), x


BODY = "a = Conv(x, w, b) r = Relu(a) c = Conv(r, v) s = Sigmoid(c) y = Mul(c, s)"


def types(done):
    names = ("x", "r", "c", "s", "y")
    return {n: done.params(n)[1].dtype.name for n in names}


@pytest.mark.parametrize(("opset", "domain"), [(17, "com.microsoft"), (21, "")])
def test_outputs_of_the_named_nodes_have_16_bits(opset, domain):
    done, _ = quantized(BODY, "Conv_0", "Sigmoid_3", opset=opset)
    found = types(done)  # the unit of Conv_0 ends in Relu
    assert found == {"x": "uint8", "r": "uint16", "c": "uint8", "s": "uint16", "y": "uint8"}
    for node in done.model.nodes("QuantizeLinear", "DequantizeLinear"):
        wide = node.name.startswith(("r_", "s_"))
        assert (node.domain or "") == (domain if wide else "")
    assert departures(done.model, done.ctx.target) == []
    assert done.model.opset == opset


def test_more_bits_lose_less():
    results = []
    for wide in ((), ("Conv_0", "Conv_2", "Sigmoid_3", "Mul_4")):
        done, x = quantized(BODY, *wide)
        (want,), (got,) = outputs_of(done.before, x), outputs_of(done.model, x)
        results.append(sqnr(want, got))
    assert results[1] > results[0] + 3


def test_fixed_ranges_are_those_of_16_bits():
    done, _ = quantized(BODY, "Sigmoid_3")
    scale, zero = done.params("s")
    assert (scale, zero) == (np.float32(1 / 65536), 0)
    done.model.set_weight("s_scale", np.float32(1 / 65535))
    (line,) = departures(done.model, done.ctx.target)
    assert line.startswith("qnn-htp wants Sigmoid to give")


def test_what_shares_parameters_is_wide_together():
    target = target_with("qnn-htp", shared_inputs_and_output=("Concat",))
    body = "a = Conv(x, w) c = Conv(x, v) y = Concat<axis=1>(a, c)"
    done, _ = quantized(body, "Conv_0", target=target, channels=8)
    assert {done.params(n)[1].dtype.name for n in "acy"} == {"uint16"}
    assert len({done.params(n)[0].item() for n in "acy"}) == 1


def test_an_operator_that_reads_two_types_is_told():
    done, _ = quantized(BODY, "Conv_2")
    (line,) = done.stats["quantize-weights"]["conflicts"]
    assert (
        line
        == "Mul 'Mul_4' reads 'c' as uint16 and 's' as uint8; name the makers of both, or of none"
    )
    done, _ = quantized(BODY, "Conv_2", "Sigmoid_3")
    assert done.stats["quantize-weights"]["conflicts"] == []


def test_sixteen_bits_are_enough_for_what_shares_them():
    target = target_with("qnn-htp", shared_inputs_and_output=("Concat",))
    model = net("a = Conv(x, w) c = Conv(x, v) y = Concat<axis=1>(a, c)", channels=8)
    ranges = {"x": Range(-1, 1), "a": Range(0, 320), "c": Range(0, 1)}
    plan = planned(model, target)
    (line,) = conflicts(model, plan, ranges, target)
    assert "'c' keeps 1 of 256 levels" in line
    assert conflicts(model, plan, ranges, target, ["Conv_1"]) == []
    ranges["c"] = Range(0, 0.1)
    (line,) = conflicts(model, plan, ranges, target, ["Conv_1"])
    assert "'c' keeps 20 of 65536 levels" in line


def test_the_range_of_a_wide_tensor_is_all_that_was_seen():
    done, _ = quantized("a = Conv(x, w) y = Conv(a, v)", "Conv_0")
    seen = done.ctx.calibration.tensors["a"]
    chosen = Range(seen.low, seen.high)
    assert chosen != Range(seen.min, seen.max)  # 8 bits leave some out
    want = activation_params(chosen.union(Range(seen.min, seen.max)), "uint16")
    assert done.ctx.quantization["a"] == want


def test_a_target_without_a_wide_type_says_so():
    with pytest.raises(OnnxDrpError, match="target generic has no 16-bit activations"):
        quantized(BODY, "Conv_0", target="generic")


def test_the_wish_survives_a_saved_context(tmp_path):
    save_context(PassContext(wide={"Conv_0": "asked for"}), tmp_path)
    assert load_context(tmp_path).wide == {"Conv_0": "asked for"}


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", ["int16", "uint16"])
@pytest.mark.parametrize("opset", [17, 21])
def test_numbers_are_onnxruntimes_bit_for_bit(dtype, symmetric, opset):
    target = target_with("qnn-htp", wide_dtype=dtype, activation_symmetric=symmetric)
    done, _ = quantized("a = Conv(x, w, b) y = Sigmoid(a)", "Conv_0", opset=opset, target=target)
    model = done.model
    params = QuantParams(*done.params("a"), dtype)
    if symmetric:
        assert params.zero_point == (0 if dtype == "int16" else 32768)
    x = {"x": 9 * normal([2, 4, 6, 6], 7)}  # some values saturate
    conv = model.node("Conv_0").outputs[0].name
    names = ["a_QuantizeLinear_Output", "a_DequantizeLinear_Output", conv]
    session = model.session(outputs=names, optimize=False)
    codes, floats, before = session.run(names, x)
    assert codes.dtype == dtype
    assert len(np.unique(codes)) > 200
    assert set(qlimits(dtype)) & set(codes.ravel().tolist())
    np.testing.assert_array_equal(quantize(before, params), codes)
    np.testing.assert_array_equal(dequantize(codes, params), floats)


def test_only_qnn_has_a_wide_type():
    assert load_target("qnn-htp").wide_dtype == "uint16"
    for name in ("generic", "ort-cpu", "drp-ai3", "tensorrt"):
        assert load_target(name).wide_dtype is None
