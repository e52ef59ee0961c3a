"""Ranges as a file: what is saved is read back the same; what makes no range is refused by name."""

import json
import math

import numpy as np
import pytest
from builders import conv_net
from hypothesis import given
from hypothesis import strategies as st

from onnxdrp.errors import OptionError
from onnxdrp.model import Model
from onnxdrp.passes import PruneBlocks
from onnxdrp.pipeline import PassContext
from onnxdrp.quantization import Range
from onnxdrp.ranges import (
    Ranges,
    TensorRange,
    load_ranges,
    merge_ranges,
    save_ranges,
    weights_digest,
)

FLOATS = st.floats(-3e38, 3e38)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@st.composite
def tensor_ranges(draw):
    low, high = sorted([draw(FLOATS), draw(FLOATS)])
    ends = sorted([draw(FLOATS), draw(FLOATS)])
    seen = draw(st.booleans())
    count = draw(st.integers(0, 2**62)) if seen else None
    return TensorRange(low, high, *(ends if seen else (None, None)), count, draw(st.booleans()))


@st.composite
def tables(draw):
    return Ranges(
        draw(st.dictionaries(NAMES, tensor_ranges(), max_size=5)),
        model=draw(NAMES),
        weights=draw(NAMES),
        target=draw(NAMES),
        method={"name": "percentile", "percentile": draw(st.floats(50, 100)), "tails": "two"},
        samples=draw(st.none() | st.integers(0, 10**9)),
    )


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("ranges") / "ranges.json"


def small():
    return Ranges(
        {
            "/head/x": TensorRange(-2.0, 2.5, -2.5, 3.0, 100),
            "/head/y": TensorRange(0.0, 6.0, 0.0, 9.0, 50),
            "z": TensorRange(-1.0, 1.0),
        },
        model="net.onnx",
        method={"name": "minmax"},
        samples=10,
    )


# ------------------------------------------------------------------------------------ save and load


@given(tables())
def test_what_is_saved_is_read_back_the_same_and_saved_again_in_the_same_bytes(file, ranges):
    save_ranges(file, ranges)
    before = file.read_bytes()
    again = load_ranges(file)
    assert again == ranges
    assert list(again.tensors) == list(ranges.tensors)  # the order too
    for name, tensor in ranges.tensors.items():  # to the sign of zero
        assert repr(again.tensors[name]) == repr(tensor)
    save_ranges(file, again)
    assert file.read_bytes() == before
    assert json.loads(before)["version"] == 1  # any JSON reader takes it


def test_a_file_has_a_line_for_each_tensor(file):
    save_ranges(file, small())
    lines = file.read_text().splitlines()
    assert '    "/head/y": {"low": 0.0, "high": 6.0, "min": 0.0, "max": 9.0, "count": 50},' in lines
    assert '    "z": {"low": -1.0, "high": 1.0}' in lines
    assert '  "method": {"name": "minmax"},' in lines
    assert len(lines) == 15


def test_a_file_written_by_hand_needs_little(file):
    text = '{"format": "onnxdrp ranges", "version": 1, "tensors": {"x": {"low": 0, "high": 6}}}'
    file.write_text(text)
    assert load_ranges(file) == Ranges({"x": TensorRange(0.0, 6.0)})
    assert type(load_ranges(file).tensors["x"].high) is float


def test_the_table_shows_every_tensor():
    text = str(small())
    assert text == repr(small())
    assert [line.split() for line in text.splitlines()][1:] == [
        ["/head/x", "-2", "2.5", "-2.5", "3", "100"],
        ["/head/y", "0", "6", "0", "9", "50"],
        ["z", "-1", "1"],
    ]


def with_tensor(text):
    return f'{{"format": "onnxdrp ranges", "version": 1, "tensors": {{"conv": {text}}}}}'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["line 1", "not JSON"]),
        ('{\n"format": "onnxdrp ranges",\n"version" 1}', ["line 3", "not JSON", "':'"]),
        ("[1, 2]", ["no file of ranges"]),
        ("[" * 100_000, ["no file of ranges"]),
        ("{}", ["no file of ranges", '"format": "onnxdrp ranges"']),
        ('{"format": "onnxdrp ranges"}', ["version None", "reads 1"]),
        ('{"format": "onnxdrp ranges", "version": 2, "tensors": {}}', ["version 2", "reads 1"]),
        ('{"format": "onnxdrp ranges", "version": 1}', ["tensors"]),
        ('{"format": "onnxdrp ranges", "version": 1, "tensors": []}', ["tensors"]),
        (
            '{"format": "onnxdrp ranges", "version": 1, "tensor": {}}',
            ["no key 'tensor'", "is 'tensors' meant"],
        ),
        (
            '{"format": "onnxdrp ranges", "version": 1, "tensors": {}, "samples": "many"}',
            ["samples is 'many'; give integer"],
        ),
        (
            '{"format": "onnxdrp ranges", "version": 1, "tensors": {"x": {}, "x": {}}}',
            ["'x' stands twice"],
        ),
        (with_tensor("6"), ["tensor 'conv'", '{"low": ..., "high": ...}']),
        (with_tensor('{"low": 0}'), ["tensor 'conv': has no high"]),
        (with_tensor('{"low": 0, "hihg": 1}'), ["'conv': no key 'hihg'; is 'high' meant"]),
        (with_tensor('{"low": "0", "high": 1}'), ["'conv': low is '0'; give number"]),
        (with_tensor('{"low": true, "high": 1}'), ["'conv': low is True; give number"]),
        (with_tensor('{"low": null, "high": 1}'), ["'conv': low is None; give number"]),
        (with_tensor('{"low": NaN, "high": 1}'), ["'conv': low is nan; give a finite"]),
        (with_tensor('{"low": 0, "high": Infinity}'), ["'conv': high is inf; give a finite"]),
        (with_tensor('{"low": 0, "high": 1e999}'), ["'conv': high is inf; give a finite"]),
        (with_tensor('{"low": 0, "high": 4e38}'), ["'conv': high is 4e+38; give a finite"]),
        (with_tensor(f'{{"low": 0, "high": 1{"0" * 5000}}}'), ["'conv': high is inf"]),
        (with_tensor('{"low": 2, "high": 1}'), ["'conv': low 2.0 is above high 1.0"]),
        (with_tensor('{"low": 0, "high": 1, "min": 3, "max": 1}'), ["'conv': min 3.0 is above"]),
        (with_tensor('{"low": 0, "high": 1, "min": NaN}'), ["'conv': min is nan"]),
        (with_tensor('{"low": 0, "high": 1, "count": -1}'), ["'conv': count is -1"]),
        (with_tensor('{"low": 0, "high": 1, "count": 1.5}'), ["'conv': count is 1.5"]),
    ],
)
def test_what_is_no_file_of_ranges_is_refused_in_one_line(file, text, words):
    file.write_text(text)
    with pytest.raises(OptionError) as caught:
        load_ranges(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert len(message.splitlines()) == 1
    for word in words:
        assert word in message


def test_a_file_that_cannot_be_read_or_written_is_refused(tmp_path):
    with pytest.raises(OptionError, match=r"none\.json: the ranges cannot be read \(No such file"):
        load_ranges(tmp_path / "none.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(OptionError, match=r"bytes\.json: the ranges cannot be read"):
        load_ranges(tmp_path / "bytes.json")
    with pytest.raises(OptionError, match="cannot be read"):
        load_ranges(tmp_path)


# ----------------------------------------------------------------------------------- edit and merge


def test_ranges_are_edited_by_name_glob_and_expression(file):
    ranges = small()
    assert ranges.edit("z", low=-3) == ["z"]
    assert ranges.tensors["z"] == TensorRange(-3.0, 1.0, edited=True)
    assert ranges.edit("/head/*", high=4.0) == ["/head/x", "/head/y"]
    assert ranges.tensors["/head/y"] == TensorRange(0.0, 4.0, 0.0, 9.0, 50, edited=True)
    assert ranges.edit("re:.*x", low=-1.0, high=1.0) == ["/head/x"]
    assert ranges.tensors["/head/x"].range == Range(-1.0, 1.0)
    save_ranges(file, ranges)
    assert '"edited": true' in file.read_text()
    assert load_ranges(file) == ranges


def test_an_edit_that_makes_no_range_changes_nothing():
    ranges = small()
    for selector, ends, message in (
        ("/head/X", {"low": 0}, "no tensor matches '/head/X'; near: '/head/"),
        ("z", {}, "give low, high or both"),
        ("z", {"low": 2}, "tensor 'z': low 2.0 is above high 1.0"),
        ("*", {"low": 2.2}, "tensor 'z': low 2.2 is above"),
        ("z", {"high": math.nan}, "tensor 'z': high is nan"),
        ("re:(", {"low": 0}, "not a regular expression"),
    ):
        with pytest.raises(OptionError, match=message.replace("(", r"\(")):
            ranges.edit(selector, **ends)
    assert ranges == small()


def test_merging_takes_the_widest_of_each_tensor():
    one = small()
    two = Ranges(
        {
            "z": TensorRange(-0.5, 7.0, -9.0, 9.0, 5),
            "/head/y": TensorRange(0.5, 5.0, -1.0, 2.0, 7, edited=True),
            "new": TensorRange(1.0, 2.0),
        },
        model="net.onnx",
        method={"name": "entropy"},
        samples=4,
    )
    both = merge_ranges([one, two])
    assert both.tensors == {
        "/head/x": TensorRange(-2.0, 2.5, -2.5, 3.0, 100),
        "/head/y": TensorRange(0.0, 6.0, -1.0, 9.0, 57, edited=True),
        "z": TensorRange(-1.0, 7.0),
        "new": TensorRange(1.0, 2.0),
    }
    assert (both.model, both.method, both.samples) == ("net.onnx", {}, 14)
    assert merge_ranges([two, one]).tensors == both.tensors
    assert merge_ranges([one]) == one
    assert merge_ranges([]) == Ranges(samples=0)
    one.samples = None
    assert merge_ranges([one, two]).samples is None


def test_a_part_that_saw_nothing_adds_nothing():
    nothing, some = TensorRange(0.0, 0.0, count=0), TensorRange(2.0, 5.0, 2.0, 5.0, 9)
    for parts in ((nothing, some), (some, nothing)):
        merged = merge_ranges([Ranges({"x": part}) for part in parts])
        assert merged.tensors == {"x": some}
    assert merge_ranges([Ranges({"x": nothing})] * 2).tensors == {"x": nothing}


@given(st.lists(tensor_ranges(), min_size=3, max_size=3))
def test_merging_does_not_depend_on_order_or_grouping(parts):
    a, b, c = parts
    assert a.union(b) == b.union(a)
    assert a.union(b).union(c).range == a.union(b.union(c)).range
    assert a.union(a).range == a.range


def test_bad_tensor_ranges_cannot_be_made():
    with pytest.raises(OptionError, match="low is nan"):
        TensorRange(math.nan, 1.0)
    with pytest.raises(OptionError, match="high is inf"):
        TensorRange(0.0, math.inf)


# -------------------------------------------------------------------------------------- the weights


def test_the_digest_of_the_weights_says_whether_ranges_are_stale():
    model = Model.from_proto(conv_net(32))
    first = weights_digest(model)
    assert weights_digest(Model.from_proto(conv_net(32, opset=13, batch=4))) == first
    assert weights_digest(Model.from_proto(conv_net(32, seed=1))) != first
    bias = model.weight("fc.bias")
    model.set_weight("fc.bias", bias + 1)  # rank 1: not looked at
    assert weights_digest(model) == first
    PruneBlocks(rate=0.5).run(model, PassContext())
    assert np.count_nonzero(model.weight("conv2.weight")) < model.weight("conv2.weight").size
    assert weights_digest(model) != first
