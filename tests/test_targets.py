"""Targets: the profiles that come along, users' own files, and what they say of a model."""

import re

import pytest
from builders import conv_net

from onnxdrp.errors import OptionError
from onnxdrp.model import Model
from onnxdrp.targets import Operators, Target, list_targets, load_target

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
    assert load_target("generic").advice(0.0) == ""


def test_operators_of_one_target_do_not_leak_into_another():
    assert Operators().fixed_range == {}
    assert Operators().fixed_range is not Operators().fixed_range
