"""Targets: the profiles that come along, users' own files, and what they say of a model."""

import dataclasses
import json
import re

import numpy as np
import pytest
from builders import conv_net

from onnxdrp.contexts import load_context, save_context
from onnxdrp.errors import OptionError
from onnxdrp.model import Model
from onnxdrp.pipeline import PassContext
from onnxdrp.quantization import QuantParams, Range, activation_params
from onnxdrp.targets import Operators, Target, describe, list_targets, load_target

OWN = """
description = "mine"
patterns = ["nm:2:4"]
activation_dtype = "int8"
activation_symmetric = false
per_channel = true

[operators]
weighted = ["Conv"]
own_range = ["Add", "Concat", "Softmax"]
same_range = ["MaxPool"]
shared_inputs = ["Add"]

[operators.fixed_range]
Softmax = [0, 1]
"""


def test_the_profiles_that_come_along():
    assert list_targets() == ["drp-ai3", "generic", "ort-cpu", "qnn-htp", "tensorrt"]
    drp, generic = load_target("drp-ai3"), load_target("generic")
    assert (drp.name, generic.name) == ("drp-ai3", "generic")
    assert (drp.pattern, generic.pattern) == ("flex-nm", "block")
    assert (drp.activation_dtype, drp.activation_symmetric) == ("int8", True)
    assert (generic.activation_dtype, generic.activation_symmetric) == ("uint8", False)
    assert (drp.per_channel, generic.per_channel) == (False, True)
    assert (drp.opset_min, drp.opset_max, drp.static_shapes, drp.batch) == (12, 13, True, 1)
    assert drp.operators.shared_inputs == ("Add",)
    assert drp.operators.shared_inputs_and_output == ("Concat",)
    assert drp.operators.always_quantized == ("MaxPool", "Transpose")


def test_per_channel_weights_are_only_wanted_at_an_opset_that_has_them():
    for target in map(load_target, list_targets()):
        assert not target.per_channel or target.opset_min >= 13


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(OWN)
    for name in (path, str(path)):
        target = load_target(name)
        assert isinstance(target, Target)
        assert (target.name, target.pattern, target.per_channel) == ("mine", "nm:2:4", True)
        assert target.operators.fixed_range == {"Softmax": (0.0, 1.0)}
        assert target.operators.shared_inputs == ("Add",)
        assert (target.opset_min, target.opset_max, target.batch) == (10, None, None)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("per_channel", "per_chanel", "has no key 'per_chanel'; is 'per_channel' meant?"),
        ("same_range", "same_rang", "[operators] has no key 'same_rang'; is 'same_range' meant?"),
        ('description = "mine"', "", "lacks the key 'description'"),
        ("per_channel = true", "per_channel = 1", "per_channel is 1; give true or false"),
        ('"int8"', '"int4"', "activation_dtype is 'int4'; give one of 'int8', 'uint8'"),
        ('"nm:2:4"', '"blok"', "no pattern 'blok': did you mean block?"),
        ('"nm:2:4"', "4", "patterns[0] is 4; give text"),
        ('["Conv"]', '["Cov"]', "'Cov' is no ONNX operator; is 'Conv' meant?"),
        ('["Conv"]', '"Conv"', "[operators] weighted is 'Conv'; give list of text"),
        ('["Conv"]', "[1]", "[operators] weighted[0] is 1; give text"),
        ("[0, 1]", "[1, 0]", "fixed_range.Softmax: [1.0, 0.0] is empty"),
        ("[0, 1]", "[1]", "fixed_range.Softmax has 1 values; give 2"),
        ('shared_inputs = ["Add"]', 'shared_inputs = ["Mul"]', "'Mul', which own_range has not"),
        ('["MaxPool"]', '["MaxPool"]\nalways_quantized = ["Pad"]', "'Pad', which same_range"),
        ('["Conv"]', '["Conv"]\nfloat_output = ["Gemm"]', "'Gemm', which weighted has not"),
        ("per_channel", "opset_min = 9\nper_channel", "opset_min 9: QuantizeLinear exists"),
        ("per_channel", "opset_min = 13\nopset_max = 12\nper_channel", "12 is below opset_min 13"),
        ("per_channel", "minimum_sparsity = 1\nper_channel", "minimum_sparsity 1.0 is outside"),
        ("per_channel = true", "per_channel =", "not TOML"),
        ("per_channel", 'reduce_range = "maybe"\nper_channel', "give one of 'auto', 'on', 'off'"),
        ("per_channel", 'bias_dtype = "int8"\nper_channel', "give one of 'int32', 'float32'"),
        ("per_channel", "ir_version_max = 4\nper_channel", "ir_version_max 4: opset_min 10 came"),
        ("per_channel", "base = 3\nper_channel", "base is 3; give the name of a profile"),
        ("per_channel", 'base = "drp"\nper_channel', "no target is called 'drp'"),
        ('["Conv"]', '["Conv"]\nkeep_float = ["Cov"]', "'Cov' is no ONNX operator; is 'Conv'"),
        ('["Conv"]', '["Conv"]\nwhole_weights = ["Gemm"]', "'Gemm', which weighted has not"),
        ('["Conv"]', '["Conv"]\nfused_residual = ["Mul"]', "'Mul', which own_range has not"),
        ('["Conv"]', '["Conv"]\nfused_residual = ["Add"]', "fused_residual and shared_inputs both"),
    ],
)
def test_a_bad_file_is_refused_in_one_line_that_says_where(tmp_path, old, new, message):
    assert old in OWN
    path = tmp_path / "bad.toml"
    path.write_text(OWN.replace(old, new, 1))
    with pytest.raises(OptionError, match=re.escape(message)) as caught:
        load_target(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_may_change_some_keys_of_another(tmp_path):
    (tmp_path / "mine.toml").write_text(
        'base = "drp-ai3"\ndescription = "mine"\nopset_max = 17\n'
        '[operators]\nkeep_float = ["Sigmoid"]\n'
    )
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "third.toml").write_text('base = "../mine.toml"\nper_channel = true\n')
    drp, mine = load_target("drp-ai3"), load_target(tmp_path / "mine.toml")
    assert mine == dataclasses.replace(
        drp,
        name="mine",
        description="mine",
        opset_max=17,
        operators=dataclasses.replace(drp.operators, keep_float=("Sigmoid",)),
    )
    third = load_target(tmp_path / "sub" / "third.toml")
    assert third == dataclasses.replace(mine, name="third", per_channel=True)


def test_files_built_on_each_other_in_a_circle(tmp_path):
    (tmp_path / "a.toml").write_text('base = "b.toml"')
    (tmp_path / "b.toml").write_text('base = "a.toml"')
    with pytest.raises(OptionError, match=r"a\.toml: base 'a\.toml': .* in a circle"):
        load_target(tmp_path / "a.toml")


def test_ort_cpu_is_generic_but_for_what_it_says():
    generic, cpu = load_target("generic"), load_target("ort-cpu")
    assert (generic.reduce_range, cpu.reduce_range) == ("off", "auto")
    assert set(generic.operators.own_range) - set(cpu.operators.own_range) == {"Resize", "Upsample"}
    assert cpu.operators.keep_float == ("ConvTranspose",)
    assert cpu.operators.same_range == generic.operators.same_range


def test_the_rules_of_tensorrt_and_qnn():
    tensorrt, qnn = load_target("tensorrt"), load_target("qnn-htp")
    assert (tensorrt.activation_dtype, tensorrt.activation_symmetric) == ("int8", True)
    assert (tensorrt.bias_dtype, tensorrt.opset_min, tensorrt.per_channel) == ("float32", 13, True)
    assert tensorrt.patterns == ("nm:2:4",)
    assert set(tensorrt.operators.float_output) == set(tensorrt.operators.weighted)
    assert (qnn.activation_dtype, qnn.activation_symmetric) == ("uint8", False)
    assert (qnn.static_shapes, qnn.batch) == (True, None)
    for op in ("Sigmoid", "Softmax", "HardSigmoid"):
        assert activation_params(Range(*qnn.operators.fixed_range[op]), "uint8") == QuantParams(
            np.float32(1 / 256), np.asarray(0), "uint8"
        )
    assert activation_params(Range(*qnn.operators.fixed_range["Tanh"]), "uint8") == QuantParams(
        np.float32(1 / 128), np.asarray(128), "uint8"
    )


def test_zero_points_can_be_switched_on():
    drp = load_target("drp-ai3")
    assert not drp.with_zero_points().activation_symmetric
    assert drp.with_zero_points().with_zero_points(on=False) == drp


def test_profiles_survive_a_saved_context(tmp_path):
    for name in list_targets():
        ctx = PassContext(target=load_target(name))
        save_context(ctx, tmp_path)
        assert load_context(tmp_path).target == ctx.target


def test_every_profile_is_described_in_words_and_as_json(tmp_path):
    rows = describe()
    assert [row.name for row in rows] == list_targets()
    for row in rows:
        assert json.loads(json.dumps(row.as_dict()))["quantized"] == list(row.quantized)
        assert str(row).startswith(f"{row.name}: {row.description}\n  activations  ")
        assert "Conv" in row.quantized
    (drp,) = describe("drp-ai3")
    assert drp.activations == "int8, zero point 0"
    assert drp.weights == "int8 -127..127, one scale a tensor; int32 biases"
    assert drp.model == "opset 12 to 13, IR version 8 and earlier, static shapes, batch 1"
    assert drp.patterns == "flex-nm, block"
    assert drp.sharing == (
        "all inputs of Add",
        "all inputs and the output of Concat",
        "Softmax gives [0, 1], whatever was measured",
    )
    assert "not published" in drp.notes[0]
    (cpu,) = describe("ort-cpu")
    assert "ConvTranspose" not in cpu.quantized
    assert cpu.patterns == "none known (block is the default)"
    path = tmp_path / "mine.toml"
    path.write_text(OWN)
    assert describe(path)[0].activations == "int8, any zero point"


def test_operators_that_are_no_table(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text(OWN[: OWN.index("[operators]")] + "operators = 3")
    with pytest.raises(OptionError, match=r"operators is a table: \[operators\]"):
        load_target(path)


def test_unknown_names_and_files(tmp_path):
    with pytest.raises(OptionError, match=r"'drp_ai3'; is 'drp-ai3' meant\?; there are drp-ai3, "):
        load_target("drp_ai3")
    with pytest.raises(OptionError, match=r"none\.toml: cannot be read"):
        load_target(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b'description = "\xe9"')
    with pytest.raises(OptionError, match=r"latin\.toml: cannot be read"):
        load_target(tmp_path / "latin.toml")


def test_what_a_model_lacks_is_said():
    drp, generic = load_target("drp-ai3"), load_target("generic")
    good = Model.from_proto(conv_net(opset=12, batch=1))
    (format_,) = drp.unmet(good)
    assert format_ == "IR version 10: drp-ai3 reads 8 and earlier; convert-opset lowers it"
    assert drp.unmet(good, converted=True) == []
    good.graph.ir_version = 8
    assert drp.unmet(good) == []
    newer = Model.from_proto(conv_net(opset=21, batch=1))
    ort = dataclasses.replace(load_target("ort-cpu"), ir_version_max=9)
    (conflict,) = ort.unmet(newer)
    assert conflict == (
        "IR version 10: ort-cpu reads 9 and earlier, but opset 21 came with 10; "
        "export it with an older"
    )
    (wish,) = generic.unmet(good)
    assert wish == "opset 12: generic takes 13 and later; convert-opset raises it"
    opset, _, shape = drp.unmet(Model.from_proto(conv_net(opset=17)))
    assert opset == "opset 17: drp-ai3 takes 12 to 13; export the model with that"
    assert "'x' [N, 3, 8, 8]" in shape
    assert "--input-shape x:1,3,8,8" in shape
    _, batch = drp.unmet(Model.from_proto(conv_net(opset=13, batch=4)))
    assert batch == "input 'x' [4, 3, 8, 8] float32: drp-ai3 takes batch 1"
    assert generic.unmet(Model.from_proto(conv_net(opset=17))) == []


def test_advice_about_sparsity():
    drp = load_target("drp-ai3")
    assert "70 %" in drp.advice(0.5)
    assert drp.advice(0.7) == ""
    assert drp.advice(0.6998) == ""
    assert drp.advice(0.699) != ""
    assert load_target("generic").advice(0.0) == ""


def test_operators_of_one_target_do_not_leak_into_another():
    assert Operators().fixed_range == {}
    assert Operators().fixed_range is not Operators().fixed_range
