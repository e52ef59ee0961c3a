"""Exclusions: what each way of naming nodes finds, and that none fails in silence."""

import numpy as np
import pytest
from builders import conv_net
from hypothesis import given
from hypothesis import strategies as st
from onnx import defs
from quantizing import parse

from onnxdrp.errors import OptionError
from onnxdrp.exclusions import Exclusions
from onnxdrp.model import Model
from onnxdrp.passes import Clean, FuseBatchNorm, InferShapes
from onnxdrp.pipeline import PassContext, PassManager

NAMES = ["conv1", "relu1", "conv2", "bn", "relu2", "pool", "flatten", "fc"]
TAIL = (
    "[a] p = MatMul(x, w) [b] q = MatMul(x, v) [s] r = Sigmoid(q) [cat] y = Concat<axis = 1>(p, r)"
)


NET = Model.from_proto(conv_net(4))


def kept(model=NET, **options):
    found = Exclusions(**options).find(model)
    return list(found.nodes), found.notes


def net(body, **weights):
    head = '<ir_version: 10, opset_import: ["" : 17]> g (float[1, 4] x) => (float[] y)'
    return parse(f"{head} {{ {body} }}", {k: np.asarray(v, np.float32) for k, v in weights.items()})


def two_heads():
    rng = np.random.default_rng(0)
    return net(TAIL, w=rng.standard_normal((4, 4)), v=rng.standard_normal((4, 2)))


# -------------------------------------------------------------------------- names and operators


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ("conv2", ["conv2"]),
        ("conv*", ["conv1", "conv2"]),
        ("re:f.", ["fc"]),
        ("re:.*[12]", ["conv1", "relu1", "conv2", "relu2"]),
        ("Conv", ["conv1", "conv2"]),
        ("CONV", ["conv1", "conv2"]),
        ("relu", ["relu1", "relu2"]),
        ("globalaveragepool", ["pool"]),
        ("op:conv", ["conv1", "conv2"]),
        ("op:*Norm*", ["bn"]),
        ("op: Gemm", ["fc"]),
    ],
)
def test_what_a_selector_keeps_float(selector, names):
    found = Exclusions(exclude=(selector,)).find(NET)
    assert sorted(found.nodes) == sorted(names)
    assert set(found.nodes.values()) == {f"excluded by {selector!r}"}
    assert found.notes == []


@given(st.sampled_from(sorted({s.name for s in defs.get_all_schemas()})), st.data())
def test_an_operator_is_known_whatever_its_case(op, data):
    text = "".join(data.draw(st.sampled_from([c.lower(), c.upper()])) for c in op)
    names, notes = kept(exclude=(text,))
    own = {"conv": 2, "relu": 2}.get(op.lower(), op.lower() in
           ("batchnormalization", "globalaveragepool", "flatten", "gemm"))  # fmt: skip
    if text in NAMES:  # "flatten" is a node here
        assert names == [text]
    else:
        assert len(names) == own
    assert bool(notes) == (not own)


@given(st.text(st.characters(codec="ascii"), min_size=1, max_size=8))
def test_whatever_is_written_keeps_something_float_or_says_why_not(text):
    problem = ""
    try:
        names, notes = kept(exclude=(text,))
    except OptionError as e:
        problem = str(e)
    assert repr(text) in problem or names or notes


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        ("conv3", "no node or operator matches 'conv3'; near: 'Conv', 'conv2', 'conv1'"),
        ("Cnov", "no node or operator matches 'Cnov'; near: 'Conv'"),
        ("SoftMx", "near: 'Softmax'"),
        ("conv[3-9]", r"no node or operator matches 'conv\[3-9\]'"),
        ("re:conv[3-9]", "no node or operator matches 're:conv"),
        ("op:Cnov", "exclude 'op:Cnov': no operator is called 'cnov'; near: 'Conv'"),
        ("op:qqq*", "no operator is called 'qqq*'"),
        ("qqqqqq", "`onnxdrp quantize --explain MODEL` lists the names"),
    ],
)
def test_what_names_nothing_is_an_error_with_the_nearest_names(selector, message):
    with pytest.raises(OptionError, match=message.replace("*'", "[*]'")):
        kept(exclude=(selector,))
    names, notes = kept(exclude=(selector, "fc"), unmatched="warn")
    assert names == ["fc"]
    assert len(notes) == 1
    assert selector.removeprefix("op:").lower() in notes[0].lower()


def test_an_operator_that_the_model_lacks_is_a_note():
    for selector in ("Tanh", "tanh", "op:Tanh", "op:LSTM*", "Upsample"):  # Upsample: once
        names, notes = kept(exclude=(selector, "fc"))
        assert names == ["fc"]
        assert notes == [f"exclude {selector!r}: the model has no such operator"]


def test_a_name_goes_before_an_operator_and_that_is_told():
    model = net(
        "[MatMul] a = Add(x, x) [m] y = MatMul(a, w)",
        w=np.random.default_rng(0).standard_normal((4, 4)),
    )
    names, notes = kept(model, exclude=("MatMul",))
    assert names == ["MatMul"]
    assert notes == ["exclude 'MatMul': is the node of this name; op:MatMul is the operator"]
    assert kept(model, exclude=("op:MatMul",)) == (["m"], [])
    assert kept(model, exclude=("matmul",)) == (["m"], [])


def test_names_that_preprocessing_removed_are_told_not_refused(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(conv_net(4).SerializeToString())
    model = Model.load(path)
    PassManager([InferShapes(), FuseBatchNorm(), Clean()]).run(model, PassContext())
    assert not model.nodes("BatchNormalization")
    names, (note,) = kept(model, exclude=("bn", "fc"))
    assert names == ["fc"]
    assert note.startswith("exclude 'bn': preprocessing has removed that node, or merged it")
    with pytest.raises(OptionError, match="'bnn'; near: "):
        kept(model, exclude=("bnn",))
    assert kept(model, exclude_subgraph=("conv2..bn",)) == (["conv2"], [])
    assert kept(model, exclude_subgraph=("r1..h3",)) == (["conv2"], [])
    with pytest.raises(OptionError, match=r"subgraph 'r1..h33': no tensor or node is called 'h33'"):
        kept(model, exclude_subgraph=("r1..h33",))
    path.unlink()
    with pytest.raises(OptionError, match="'bn'"):
        kept(model, exclude=("bn",))


# ------------------------------------------------------------------------------------- subgraphs


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("r1..h3", ["conv2", "bn"]),
        ("r1 .. h3", ["conv2", "bn"]),
        ("conv2..bn", ["conv2", "bn"]),  # nodes are included
        ("r1..bn", ["conv2", "bn"]),
        ("conv2..conv2", ["conv2"]),
        ("x..h1", ["conv1"]),
        ("x..y", NAMES),
        ("p..", ["flatten", "fc"]),
        ("..r1", ["conv1", "relu1"]),
        ("pool..", ["pool", "flatten", "fc"]),
    ],
)
def test_a_subgraph_is_what_lies_on_the_paths(text, names):
    found = Exclusions(exclude_subgraph=(text,)).find(NET)
    assert sorted(found.nodes) == sorted(names)
    assert set(found.nodes.values()) == {f"excluded by the subgraph {text!r}"}


def test_several_ends_and_branches_that_lead_elsewhere():
    body = """[a] a = Exp(x) [b] b = Tanh(x) [c] c = Add(a, b) [d] d = Neg(a) [e] e = Add(c, d)
              [side] z = Abs(b) [f] y = Add(e, z)"""
    model = net(body)
    assert kept(model, exclude_subgraph=("a..f",))[0] == ["c", "d", "e", "f"]  # of the tensor a
    assert kept(model, exclude_subgraph=("a,b..c",))[0] == ["c"]
    assert kept(model, exclude_subgraph=("x..c, d",))[0] == ["a", "b", "c", "d"]
    assert kept(model, exclude_subgraph=("b..z", "d..e"))[0] == ["side", "e"]
    assert kept(model, exclude_subgraph=("side, d..f",))[0] == ["e", "side", "f"]


def test_names_with_commas_are_names():
    rng = np.random.default_rng(0)
    model = net("m = MatMul(x, w) y = Tanh(m)", w=rng.standard_normal((4, 4)))
    tensor = model.tensor("m")
    tensor.name = "m,1"
    assert len(kept(model, exclude_subgraph=("m,1..y",))[0]) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("r11..h3", r"subgraph 'r11..h3': no tensor or node is called 'r11'; near: 'r1'"),
        ("r1..conv3", "called 'conv3'; near: 'conv"),
        ("h3..r1", r"no node lies between its ends; r1..h3 has some"),
        ("y..", "no node lies between"),
        ("..x", "no node lies between"),
    ],
)
def test_a_subgraph_of_nothing_is_an_error(text, message):
    with pytest.raises(OptionError, match=message):
        kept(exclude_subgraph=(text,))
    names, notes = kept(exclude_subgraph=(text, "p.."), unmatched="warn")
    assert names == ["flatten", "fc"]
    assert len(notes) == 1


@pytest.mark.parametrize("text", ["", "r1", "..", " .. ", "r1.h3"])
def test_what_is_no_subgraph_is_refused_at_once(text):
    with pytest.raises(OptionError, match=r"give its ends as A\.\.B"):
        Exclusions(exclude_subgraph=(text,))


# ------------------------------------------------------------------------------ patterns and tails


def test_patterns_keep_their_nodes_and_those_that_are_lacking_are_notes(tmp_path):
    path = tmp_path / "act.csv"
    path.write_text("Relu, GlobalAveragePool\nSoftplus, Tanh, ^Mul\n")
    found = Exclusions(exclude_patterns=str(path)).find(Model.from_proto(conv_net(4)))
    why = f"excluded by the pattern 'Relu, GlobalAveragePool' ({path}, line 1)"
    assert found.nodes == {"relu2": why, "pool": why}
    assert found.notes == [f"{path}, line 2: the model has no 'Softplus, Tanh, ^Mul'"]


def test_an_unknown_operator_in_a_pattern_is_an_error(tmp_path):
    path = tmp_path / "act.csv"
    path.write_text("Softpluss, Tanh, ^Mul\nRelu, GlobalAveragePool")
    message = r"act\.csv, line 1: no operator is called 'Softpluss'; near: 'Softplus'"
    with pytest.raises(OptionError, match=message):
        kept(exclude_patterns=str(path))
    names, notes = kept(exclude_patterns=str(path), unmatched="warn")
    assert names == ["relu2", "pool"]
    assert len(notes) == 1


def test_a_tail_is_kept_unless_told_otherwise_and_the_user_goes_first():
    found = Exclusions(exclude=("s",)).find(two_heads())
    assert list(found.tail) == ["cat"]
    assert found.nodes["s"] == "excluded by 's'"
    assert found.nodes["cat"].startswith("tail: ")
    assert Exclusions(exclude_tail="none").find(two_heads()).nodes == {}
    assert list(Exclusions().find(two_heads()).tail) == ["s", "cat"]


def test_the_first_to_name_a_node_is_the_reason():
    found = Exclusions(exclude=("fc", "Gemm"), exclude_subgraph=("p..",)).find(
        Model.from_proto(conv_net(4))
    )
    assert found.nodes["fc"] == "excluded by 'fc'"
    assert found.nodes["flatten"] == "excluded by the subgraph 'p..'"
