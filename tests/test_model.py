"""Model: nothing is lost between load and save, weights are never written into."""

import hashlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest
from builders import (
    contents,
    conv_net,
    external,
    feeds_for,
    make_model,
    mlp,
    nodes_in_order,
    normal,
    outputs_of,
    read_proto,
    same_outputs,
    value,
)  # fmt: skip
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper, parser

import onnxdrp
from onnxdrp.errors import CheckError, ModelError
from onnxdrp.model import Model, TensorInfo, _sort, load

BFLOATS = np.ones((40, 40), ml_dtypes.bfloat16)
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def through_file(proto: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """The model after load and save; a clone and a rebuilt model must say the same."""
    path = folder / "in.onnx"
    path.write_bytes(proto.SerializeToString())
    model = Model.load(path)
    saved = read_proto(model.save(folder / "out.onnx"))
    assert contents(read_proto(model.clone().save(folder / "clone.onnx"))) == contents(saved)
    model.rebuild(model.skeleton())
    assert contents(read_proto(model.save(folder / "rebuilt.onnx"))) == contents(saved)
    assert contents(Model.from_proto(proto).proto()) == contents(saved)
    return saved


def keeps(proto: onnx.ModelProto, folder: Path) -> None:
    saved = through_file(proto, folder)
    assert contents(saved) == contents(proto)
    assert nodes_in_order(saved.graph) == nodes_in_order(proto.graph)


# ---------------------------------------------------------------------------------- kept, as it was


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 17, 21])
def test_a_plain_model_is_kept(tmp_path: Path, opset: int) -> None:
    keeps(conv_net(opset=opset), tmp_path)


@pytest.mark.parametrize("path", sorted(LIGHT.glob("*.onnx")), ids=lambda p: p.stem)
def test_the_light_models_are_kept(tmp_path: Path, path: Path) -> None:
    proto = onnx.ModelProto.FromString(path.read_bytes())
    for i, node in enumerate(proto.graph.node):
        node.name = node.name or f"{node.op_type}_{i}"
    read = {name for node in proto.graph.node for name in node.input}
    for table in (proto.graph.initializer, proto.graph.input):  # what nobody reads is not kept
        for unread in [entry for entry in table if entry.name not in read]:
            table.remove(unread)
    keeps(proto, tmp_path)


@pytest.mark.parametrize("which", ["modA", "modB"])
def test_the_trained_models_are_kept(
    tmp_path: Path, which: str, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(which)
    saved = Model.load(path).save(tmp_path / "out.onnx")
    proto = onnx.ModelProto.FromString(path.read_bytes())
    same_outputs(proto, read_proto(saved), feeds_for(proto))
    assert {n.name for n in proto.graph.node} - {""} <= {
        n.name for n in read_proto(saved).graph.node
    }


def test_metadata_doc_strings_and_annotations_are_kept(tmp_path: Path) -> None:
    proto = conv_net()
    proto.doc_string, proto.producer_name, proto.producer_version = "about the model", "test", "1.2"
    proto.domain, proto.model_version = "org.example", 7
    proto.graph.doc_string = "about the graph"
    helper.set_model_props(proto, {"author": "me", "licence": "MIT"})
    proto.graph.metadata_props.add(key="graph", value="kept")
    for node in proto.graph.node[:3]:
        node.doc_string = f"about {node.name}"
        node.metadata_props.add(key="namespace", value=f"/model/{node.name}")
    for info in (proto.graph.input[0], proto.graph.output[0]):
        info.doc_string = "about an end"
        info.metadata_props.add(key="end", value="kept")
        info.type.denotation = "IMAGE"
        info.type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    info = value("r1", ["N", 32, 8, 8])
    info.doc_string = "about a tensor between"
    proto.graph.value_info.append(info)
    for tensor in (
        proto.graph.initializer[0],
        proto.graph.initializer[1],
    ):  # a mapped one, a small one
        tensor.doc_string = "about a weight"
        tensor.metadata_props.add(key="weight", value="kept")
    annotation = proto.graph.quantization_annotation.add(tensor_name="r1")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="bn.scale")
    keeps(proto, tmp_path)


def test_opset_imports_and_ir_version_are_kept(tmp_path: Path) -> None:
    node = helper.make_node("Gelu", ["x"], ["y"], "gelu", domain="com.microsoft")
    opsets = [helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("", 13)]
    opsets.append(helper.make_opsetid("ai.onnx.ml", 3))
    ends = [value("x", [2, 3])], [value("y", [2, 3])]
    for ir_version in (4, 7, 8, 10, 11):
        keeps(make_model([node], *ends, ir_version=ir_version, opset_imports=opsets), tmp_path)


def test_the_default_domain_may_be_written_out(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["h"], "a", domain="ai.onnx")]
    nodes.append(helper.make_node("Neg", ["h"], ["y"], "b"))
    opsets = [helper.make_opsetid("ai.onnx", 13)]
    proto = make_model(nodes, [value("x", [3])], [value("y", [3])], opset_imports=opsets)
    keeps(proto, tmp_path)
    assert Model.load(tmp_path / "in.onnx").opset == 13


def test_a_model_without_an_opset_is_refused(tmp_path: Path) -> None:
    proto = conv_net()
    proto.ClearField("opset_import")
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="opset"):
        Model.load(path)


@pytest.mark.parametrize(
    "attribute",
    [
        helper.make_attribute("a", 3), helper.make_attribute("a", 0),
        helper.make_attribute("a", 0.25),
        helper.make_attribute("a", "text"), helper.make_attribute("a", ""),
        helper.make_attribute("a", b"\xff\xfe raw"), helper.make_attribute("a", ["x", b"\xff"]),
        helper.make_attribute("a", ["x", "y"]), helper.make_attribute("a", [1, 2]),
        helper.make_attribute("a", [0.5, -1.0]),
        helper.make_attribute("a", [], attr_type=onnx.AttributeProto.INTS),
        helper.make_attribute("a", [], attr_type=onnx.AttributeProto.FLOATS),
        helper.make_attribute("a", [], attr_type=onnx.AttributeProto.STRINGS),
        helper.make_attribute("a", numpy_helper.from_array(normal([4, 4], 0), "t")),
        helper.make_attribute("a", numpy_helper.from_array(normal([40, 40], 0), "t")),
        helper.make_attribute("a", numpy_helper.from_array(BFLOATS, "t")),
        helper.make_attribute("a", helper.make_tensor_type_proto(TensorProto.FLOAT, ["N", 3])),
        helper.make_attribute("a", [helper.make_tensor_type_proto(TensorProto.FLOAT, [2])]),
        helper.make_attribute(
            "a",
            helper.make_sparse_tensor(
                helper.make_tensor("v", TensorProto.FLOAT, [2], [1, 2]),
                helper.make_tensor("i", TensorProto.INT64, [2], [0, 5]),
                [9],
            ),
        ),
        helper.make_attribute("a", 1, doc_string="about it"),
    ],
    ids=lambda a: helper.printable_attribute(a)[:24],
)  # fmt: skip
def test_attributes_of_every_kind_are_kept(tmp_path: Path, attribute: onnx.AttributeProto) -> None:
    node = helper.make_node("Inverse", ["x"], ["y"], "any", domain="com.microsoft")
    node.attribute.append(attribute)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    ends = [value("x", [3, 3])], [value("y", [3, 3])]
    keeps(make_model([node], *ends, opset_imports=opsets), tmp_path)


@pytest.mark.parametrize(
    "many",
    [[helper.make_graph([], "b", [], [])], [numpy_helper.from_array(normal([40, 40], 0), "t")]],
    ids=["graphs", "tensors"],
)
def test_attributes_that_are_lists_of_graphs_or_tensors_are_refused(
    tmp_path: Path, many: Any
) -> None:
    node = helper.make_node("Inverse", ["x"], ["y"], "many", domain="com.microsoft", bodies=many)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    proto = make_model([node], [value("x", [3])], [value("y", [3])], opset_imports=opsets)
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match=r"'many'.*'bodies'"):
        Model.load(path)


@pytest.mark.parametrize(
    "shape", [None, [], ["N", 3, "H", "W"], [1, None, 3], [None], [0, 2]], ids=str
)
def test_symbolic_and_unknown_dimensions_are_kept(tmp_path: Path, shape: Any) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["h"], "a"),
        helper.make_node("Neg", ["h"], ["y"], "b"),
    ]
    proto = make_model(nodes, [value("x", shape)], [value("y", shape)])
    proto.graph.value_info.append(value("h", shape))
    keeps(proto, tmp_path)
    (info,) = Model.from_proto(proto).inputs
    assert info == TensorInfo("x", np.dtype(np.float32), None if shape is None else tuple(shape))


def test_values_that_are_no_tensors_are_kept(tmp_path: Path) -> None:
    # a sequence between nodes and as an output, an optional one as an output
    floats = helper.make_tensor_type_proto(TensorProto.FLOAT, ["N", 3])
    sequence = helper.make_sequence_type_proto(floats)
    nodes = [
        helper.make_node("SequenceConstruct", ["x", "x"], ["s"], "make"),
        helper.make_node("SequenceAt", ["s", "one"], ["y"], "take"),
        helper.make_node("Optional", ["x"], ["o"], "maybe"),
    ]
    outputs = [
        value("y", ["N", 3]),
        helper.make_value_info("s", sequence),
        helper.make_value_info("o", helper.make_optional_type_proto(floats)),
    ]
    proto = make_model(nodes, [value("x", ["N", 3])], outputs, {"one": np.array(1)})
    keeps(proto, tmp_path)
    entry = make_model(
        nodes[1:2], [helper.make_value_info("s", sequence)], outputs[:1], {"one": np.array(1)}
    )
    keeps(entry, tmp_path)


def test_sparse_initializers_are_kept(tmp_path: Path) -> None:
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("w", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0]),
        helper.make_tensor("w_indices", TensorProto.INT64, [3], [0, 5, 8]),
        [3, 3],
    )
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "mul")
    proto = make_model([node], [value("x", [2, 3])], [value("y", [2, 3])])
    proto.graph.sparse_initializer.append(sparse)
    keeps(proto, tmp_path)
    model = Model.from_proto(proto)
    assert model.constant("w") is None
    same_outputs(proto, model, feeds_for(proto))


def test_training_info_is_kept(tmp_path: Path) -> None:
    proto = conv_net()
    step = proto.training_info.add()
    step.initialization.CopyFrom(helper.make_graph([], "init", [], []))
    step.algorithm.name = "sgd"
    step.update_binding.add(key="fc.weight", value="updated")
    keeps(proto, tmp_path)


CONSTANTS: dict[str, Any] = {
    "value": numpy_helper.from_array(normal([4], 0)),
    "value_float": 0.5,
    "value_floats": [0.5, 1.5, -2.0, 4.0],
    "value_int": 3,
    "value_ints": [1, 2, 3, 4],
    "value_string": "text",
    "value_strings": ["a", "b"],
    "sparse_value": helper.make_sparse_tensor(
        helper.make_tensor("v", TensorProto.FLOAT, [2], [1, 2]),
        helper.make_tensor("i", TensorProto.INT64, [2], [0, 3]),
        [4],
    ),
}


@pytest.mark.parametrize("kind", CONSTANTS)
def test_constant_nodes_of_every_kind(tmp_path: Path, kind: str) -> None:
    node = helper.make_node("Constant", [], ["c"], "const", **{kind: CONSTANTS[kind]})
    node.metadata_props.add(key="origin", value="kept")
    out = value("y", None)
    out.type.tensor_type.elem_type = (
        TensorProto.STRING if "string" in kind
        else TensorProto.INT64 if "int" in kind else TensorProto.FLOAT
    )  # fmt: skip
    use = helper.make_node("Identity", ["c"], ["y"], "use")
    proto = make_model([node, use], [], [out])
    saved = through_file(proto, tmp_path)
    (kept,) = [n for n in saved.graph.node if n.op_type == "Constant"]
    assert kept.name == "const"
    assert kept.metadata_props == node.metadata_props
    (want,), (got,) = outputs_of(proto, {}), outputs_of(saved, {})
    assert (want == got).all()
    model = Model.from_proto(proto)
    numeric = not kind.startswith(("value_string", "sparse"))
    assert (model.constant("c") is not None) == numeric
    if numeric:
        assert (model.weight("c") == want).all()
        assert model.nodes("Constant") == []
        model.set_weight("c", want * 2)
        assert (outputs_of(model, {})[0] == want * 2).all()


def test_large_constant_nodes_are_mapped_and_can_be_external(tmp_path: Path) -> None:
    proto = mlp(32, 32, 4)
    weights = {t.name: t for t in proto.graph.initializer}
    constant = helper.make_node(
        "Constant", [], ["fc0.weight"], "const", value=weights["fc0.weight"]
    )
    nodes = [constant, *proto.graph.node]
    kept = [t for name, t in weights.items() if name != "fc0.weight"]
    proto = make_model(nodes, proto.graph.input, proto.graph.output, kept)
    saved = through_file(proto, tmp_path)
    assert [n.op_type for n in saved.graph.node] == ["Constant", "Gemm", "Relu", "Gemm"]
    same_outputs(proto, saved, feeds_for(proto))
    outside = Model.from_proto(proto).save(tmp_path / "split.onnx", external_threshold=1)
    skeleton = onnx.ModelProto.FromString(outside.read_bytes())
    assert {t.name for t in skeleton.graph.initializer if t.external_data} == {"fc0.weight"}
    same_outputs(proto, read_proto(outside), feeds_for(proto))


@pytest.mark.parametrize("ir_version", [3, 8])
def test_initializers_that_are_inputs_stay_inputs(tmp_path: Path, ir_version: int) -> None:
    proto = conv_net(opset=9)
    proto.ir_version = ir_version
    for tensor in proto.graph.initializer:
        proto.graph.input.insert(0, value(tensor.name, tensor.dims))
    keeps(proto, tmp_path)
    model = Model.from_proto(proto)
    assert [t.name for t in model.inputs] == ["x"]
    feeds = feeds_for(proto)
    same_outputs(proto, model, feeds)
    w = model.weight("fc.weight")
    model.set_weight("fc.weight", np.ascontiguousarray(w[:5]))
    model.set_weight("fc.bias", model.weight("fc.bias")[:5].copy())
    model.graph.outputs[0].shape = ["N", 5]
    saved = read_proto(model.save(tmp_path / "cut.onnx"))
    assert [v.name for v in saved.graph.input] == [v.name for v in proto.graph.input]
    assert np.allclose(outputs_of(saved, feeds)[0], outputs_of(proto, feeds)[0][:, :5], atol=1e-6)


def test_a_weight_added_below_ir_4_becomes_a_constant_node(tmp_path: Path) -> None:
    proto = conv_net(opset=9)
    proto.ir_version = 3
    for tensor in proto.graph.initializer:
        proto.graph.input.append(value(tensor.name, tensor.dims))
    model = Model.from_proto(proto)
    (gemm,) = model.nodes("Gemm")
    gemm.inputs[2] = gs.Constant("new.bias", model.weight("fc.bias") + 1)
    saved = read_proto(model.save(tmp_path / "out.onnx"))
    assert saved.ir_version == 3
    onnx.checker.check_model(saved, full_check=True)
    assert np.allclose(outputs_of(saved, f := feeds_for(proto))[0], outputs_of(proto, f)[0] + 1)


# -------------------------------------------------------------------------------- bodies, functions

BRANCHES = """
<ir_version: 10, opset_import: ["" : 17]>
main (float[N, 32] x, bool flag) => (float[N, 32] y)
<float[32, 32] W, float[32] b>
{
    [first] h = MatMul(x, W)
    [choice] c = If (flag) <
        then_branch = yes () => (float[N, 32] t) {
            [inner] t1 = Add(h, b)
            [inner2] t = MatMul(t1, W)
        },
        else_branch = no () => (float[N, 32] e)
            <float[32] own = {%s}>
        {
            [other] e1 = Mul(h, own)
            [nested] e = If (flag) <
                then_branch = deep1 () => (float[N, 32] d1) { [d1] d1 = Add(e1, x) },
                else_branch = deep2 () => (float[N, 32] d2) { [d2] d2 = Sub(e1, b) }
            >
        }
    >
    [last] y = Add(c, b)
}
""" % ", ".join(str(i / 16) for i in range(32))  # noqa: UP031 - the text is full of braces

LOOP = """
<ir_version: 10, opset_import: ["" : 17]>
main (float[N, 32] x, int64 trips) => (float[N, 32] y, float[K, N, 32] states)
<float[32, 32] W, float[32] b>
{
    [start] go = Constant <value = bool {1}> ()
    [h] h = MatMul(x, W)
    [loop] y, states = Loop (trips, go, h) <
        body = step (int64 i, bool alive, float[N, 32] state) =>
            (bool more, float[N, 32] next, float[N, 32] scan) {
            [keep] more = Identity(alive)
            [mul] m = MatMul(state, W)
            [k] half = Constant <value = float {0.5}> ()
            [scale] s = Mul(m, half)
            [add] next = Add(s, b)
            [scan] scan = Relu(h)
        }
    >
}
"""


def with_weights(text: str) -> onnx.ModelProto:
    proto = parser.parse_model(text)
    proto.graph.ClearField("initializer")
    proto.graph.ClearField("value_info")
    weights = {"W": normal([32, 32], 1), "b": normal([32], 2)}
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in weights.items())
    return proto


def branch_feeds(flag: bool) -> dict[str, Any]:
    return {"x": normal([3, 32], 5), "flag": np.array(flag)}


@pytest.mark.parametrize("flag", [True, False])
def test_bodies_of_if_are_kept_with_what_they_capture(tmp_path: Path, flag: bool) -> None:
    proto = with_weights(BRANCHES)
    keeps(proto, tmp_path)
    model = Model.from_proto(proto)
    same_outputs(proto, model, branch_feeds(flag))
    model.set_weight("W", model.weight("W") * 2)  # used outside and inside
    changed = with_weights(BRANCHES)
    changed.graph.initializer[0].CopyFrom(numpy_helper.from_array(model.weight("W"), "W"))
    same_outputs(changed, model, branch_feeds(flag))
    same_outputs(changed, model.clone(), branch_feeds(flag))
    session = model.session()
    assert np.allclose(
        session.run(None, branch_feeds(flag))[0],
        outputs_of(changed, branch_feeds(flag))[0],
        atol=1e-5,
    )


def test_captured_names_are_protected_and_taken(tmp_path: Path) -> None:
    model = Model.from_proto(with_weights(BRANCHES))
    assert model.protected() == {"x", "flag", "y", "h", "W", "b"}
    assert model.is_protected("h")
    assert not model.is_protected("c")
    for name in ("e1", "inner", "own", "d2", "c", "first"):
        assert model.unique_name(name) == f"{name}_1"
    assert model.unique_name("new") == "new"


def test_bodies_of_loop_are_kept(tmp_path: Path) -> None:
    proto = with_weights(LOOP)
    feeds = {"x": normal([3, 32], 5), "trips": np.array(4)}
    saved = through_file(proto, tmp_path)
    same_outputs(proto, saved, feeds)
    model = Model.from_proto(proto)
    got = model.session().run(None, feeds)
    for a, b in zip(outputs_of(proto, feeds), got, strict=True):
        assert np.allclose(a, b, atol=1e-5)


def test_a_body_that_names_its_own_tensor_as_an_outer_weight_keeps_it(tmp_path: Path) -> None:
    # legal: a name in a body stands for nothing visible outside; here two bodies have the same
    body = """<ir_version: 10, opset_import: ["" : 17]>
    main (float[N, 32] x, bool flag) => (float[N, 32] y) {
        [choice] y = If (flag) <
            then_branch = yes () => (float[N, 32] t) <float[1] k = {2.0}> { [a] t = Mul(x, k) },
            else_branch = no () => (float[N, 32] t) <float[1] k = {-3.0}> { [b] t = Mul(x, k) }
        >
    }"""
    proto = parser.parse_model(body)
    keeps(proto, tmp_path)
    for flag in (True, False):
        same_outputs(proto, Model.from_proto(proto), branch_feeds(flag))


def test_local_functions_are_inlined_with_equal_results(tmp_path: Path) -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 17, "local" : 1]>
    main (float[N, 32] x) => (float[N, 32] y) <float[32, 32] W, float[32] b> {
        [one] h = local.layer <alpha: float = 0.25> (x, W)
        [two] y = local.layer <alpha: float = 0.5> (h, W)
    }
    <domain: "local", opset_import: ["" : 17]>
    layer <alpha> (a, w) => (out) {
        m = MatMul(a, w)
        out = LeakyRelu <alpha: float = @alpha> (m)
    }"""
    proto = with_weights(text)
    proto.graph.initializer.pop()  # b is used by nobody
    saved = through_file(proto, tmp_path)
    assert not saved.functions
    assert [n.op_type for n in saved.graph.node] == ["MatMul", "LeakyRelu"] * 2
    names = [n.name for n in saved.graph.node]
    assert len(set(names)) == 4
    same_outputs(proto, saved, {"x": normal([3, 32], 5)})


# -------------------------------------------------------------------------------------------- names


def test_nodes_get_unique_names_and_keep_theirs() -> None:
    proto = conv_net()
    names = ["", "same", "same", "Relu_4", "", "", "same_1", "x"]
    for node, name in zip(proto.graph.node, names, strict=True):
        node.name = name
    model = Model.from_proto(proto)
    got = [n.name for n in model.nodes()]
    assert len(set(got)) == len(got)
    assert got[0] == "Conv_0"
    assert got[1:4] == ["same", "same_2", "Relu_4"]
    assert got[4] == "Relu_4_1"
    assert got[6] == "same_1"
    assert [n.name for n in Model.from_proto(model.proto()).nodes()] == got
    same_outputs(conv_net(), model, feeds_for(proto))  # onnxruntime refuses names given twice


def test_unknown_names_are_refused_with_near_ones() -> None:
    model = Model.from_proto(conv_net())
    assert model.node("conv1").op == "Conv"
    assert model.tensor("conv1.weight").name == "conv1.weight"
    with pytest.raises(ModelError, match=r"'conv3'.*'conv1'|'conv3'.*'conv2'"):
        model.node("conv3")
    with pytest.raises(ModelError, match=r"'conv1\.wieght'.*'conv1\.weight'"):
        model.weight("conv1.wieght")
    with pytest.raises(ModelError, match="'h1' is computed"):
        model.weight("h1")
    with pytest.raises(ModelError, match="'h1' is computed"):
        model.set_weight("h1", np.ones(3))


# ------------------------------------------------------------------------------------------ weights


@pytest.mark.parametrize("name", ["fc.weight", "fc.bias"], ids=["large", "small"])
def test_weights_are_read_only_and_clones_keep_theirs(tmp_path: Path, name: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(conv_net().SerializeToString())
    model = Model.load(path)
    clone = model.clone()
    before = model.weight(name).copy()
    with pytest.raises(ValueError, match="read-only"):
        model.weight(name)[0] = 1
    new = before * 2
    model.set_weight(name, new)
    assert not new.flags.writeable or not np.shares_memory(new, model.weight(name))
    assert (model.weight(name) == before * 2).all()
    assert (clone.weight(name) == before).all()
    other = model.clone()
    other.set_weight(name, before * 3)
    assert (model.weight(name) == before * 2).all()
    assert (Model.load(path).weight(name) == before).all()
    (fc,) = model.nodes("Gemm")
    fc.attrs["alpha"] = 2.0
    assert "alpha" not in clone.node("fc").attrs
    assert contents(clone.proto()) == contents(Model.load(path).proto())


def test_weights_may_change_shape_and_type(tmp_path: Path) -> None:
    model = Model.from_proto(mlp(32, 32, 4))
    model.set_weight("fc1.weight", normal([6, 32], 3))
    model.set_weight("fc1.bias", normal([6], 4))
    model.graph.outputs[0].shape = ["N", 6]
    assert outputs_of(model, {"x": normal([2, 32], 0)})[0].shape == (2, 6)
    for dtype in (np.float16, ml_dtypes.bfloat16, ml_dtypes.int4, np.int8):
        model.set_weight("fc1.weight", np.arange(192).reshape(6, 32).astype(dtype))
        saved = read_proto(model.save(tmp_path / "m.onnx"))
        tensor = next(t for t in saved.graph.initializer if t.name == "fc1.weight")
        assert tensor.data_type == helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        assert (numpy_helper.to_array(tensor) == model.weight("fc1.weight")).all()
    layouts = (
        np.asfortranarray,
        lambda a: a[::-1],
        lambda a: a.astype(">f4"),
        lambda a: a.T.copy().T,
    )
    for turn in layouts:  # other memory layouts
        array = normal([40, 32], 5)
        model.set_weight("fc1.weight", turn(array))
        assert (model.weight("fc1.weight") == turn(array)).all()
        again = Model.from_proto(model.proto())
        assert (again.weight("fc1.weight") == turn(array)).all()


@pytest.mark.parametrize(
    "array", [np.array(2.5, np.float32), np.array(["a", "b"], object)], ids=str
)
def test_scalars_and_strings_can_be_set(array: Any) -> None:
    model = Model.from_proto(make_model(
        [helper.make_node("Identity", ["c"], ["y"], "use")], [], [value("y", None)],
        {"c": np.array([1.0, 2.0], np.float32)},
    ))  # fmt: skip
    model.set_weight("c", array)
    assert model.weight("c").shape == array.shape
    assert model.proto().graph.initializer[0].dims == list(array.shape)


def test_a_new_constant_is_stored_like_the_others(tmp_path: Path) -> None:
    model = Model.from_proto(conv_net())
    (gemm,) = model.nodes("Gemm")
    gemm.inputs[2] = gs.Constant(model.unique_name("shift"), np.full(10, 3, np.float32))
    array = normal([10, 32], 8)
    gemm.inputs[1] = gs.Constant("new.weight", array)
    skeleton = model.skeleton()
    assert skeleton.ByteSize() < 3500
    assert {"shift", "new.weight"} <= set(model.weights())
    saved = Model.load(model.save(tmp_path / "m.onnx"))
    assert (saved.weight("new.weight") == array).all()


def test_constant_looks_through_constant_nodes_and_gives_none_for_computed_tensors() -> None:
    model = Model.from_proto(conv_net())
    assert model.constant("h1") is None
    assert model.constant("x") is None
    assert model.constant(model.tensor("fc.bias")) is not None


# ------------------------------------------------------------------------------------- fingerprints


def test_fingerprints_change_with_content_only(tmp_path: Path) -> None:
    path = external(conv_net(), tmp_path / "m.onnx")
    model = Model.load(path)
    first = model.fingerprint()
    assert first == Model.load(path).fingerprint()
    assert first == model.clone().fingerprint()
    seen = {first}
    for name in ("fc.weight", "fc.bias"):
        array = model.weight(name).copy()
        array.flat[3] += 1
        model.set_weight(name, array)
        seen.add(model.fingerprint())
    model.node("conv1").attrs["pads"] = [1, 1, 1, 0]
    seen.add(model.fingerprint())
    model.node("relu1").op = "Tanh"
    seen.add(model.fingerprint())
    model.graph.outputs[0].shape = ["M", 10]
    seen.add(model.fingerprint())
    model.graph.nodes[0], model.graph.nodes[0] = model.graph.nodes[0], model.graph.nodes[0]
    assert len(seen) == 6
    assert model.fingerprint() in seen


@pytest.mark.parametrize("typed", [False, True], ids=["raw", "typed"])
def test_looking_is_not_touching(tmp_path: Path, typed: bool) -> None:
    proto = conv_net()
    for tensor in proto.graph.initializer if typed else ():
        tensor.CopyFrom(
            helper.make_tensor(
                tensor.name, tensor.data_type, tensor.dims, numpy_helper.to_array(tensor)
            )
        )
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    model = Model.load(path)
    # no clone may live here: it would keep weights alive that the model should keep itself
    first, inventory = model.fingerprint(), model.inventory()
    for name in model.weights():
        assert model.weight(name).size
        assert model.tensor(name).values.size  # as graphsurgeon's users look
        model.set_weight("fc.bias", model.weight("fc.bias"))
    model.node("conv1").inputs[1].values.sum()
    assert model.inventory() == inventory
    model.proto(), model.skeleton(), model.session(), model.check()
    assert model.fingerprint() == first
    model.rebuild(model.skeleton())
    for name in model.weights():
        assert model.weight(name).size
    assert model.inventory() == inventory


def test_equal_replacements_have_equal_fingerprints() -> None:
    model = Model.from_proto(conv_net())
    a, b = model.clone(), model.clone()
    for clone in (a, b):
        clone.set_weight("fc.weight", normal([10, 32], 77))
    assert a.fingerprint() == b.fingerprint() != model.fingerprint()
    b.set_weight("fc.weight", normal([10, 32], 78))
    assert a.fingerprint() != b.fingerprint()


def test_a_file_written_over_has_another_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(conv_net().SerializeToString())
    model = Model.load(path)
    first = model.fingerprint()
    model.set_weight("fc.weight", normal([10, 32], 77))  # same size, so the same offsets
    model.save(path, overwrite=True)
    assert Model.load(path).fingerprint() != first


def test_fingerprints_read_replaced_arrays_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(mlp(64, 256, 64).SerializeToString())
    model = Model.load(path)
    model.set_weight("fc0.weight", normal([256, 64], 9))
    hashed = []
    blake2b = hashlib.blake2b

    def counting(data: Any = b"", **options: Any) -> Any:
        hashed.append(memoryview(data).nbytes)
        return blake2b(data, **options)

    monkeypatch.setattr(hashlib, "blake2b", counting)
    model.fingerprint()
    large = [n for n in hashed if n > 4096]
    assert large == [256 * 64 * 4]
    hashed.clear()
    model.fingerprint()
    assert max(hashed) < 4096  # and those once only


# ---------------------------------------------------------------------------------------- the graph


def test_nodes_keep_their_order_where_it_is_one_and_are_sorted_where_not() -> None:
    model = Model.from_proto(conv_net())
    order = [n.name for n in model.nodes()]
    _sort(model.graph)
    assert [n.name for n in model.nodes()] == order
    model.graph.nodes.reverse()
    assert [n.name for n in model.skeleton().graph.node] == order


@given(st.permutations(range(12)), st.integers(0, 2**32 - 1))
def test_any_order_of_a_graph_becomes_topological(order: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    nodes = [helper.make_node("Relu", ["x"], ["t0"], "n0")]
    for i in range(1, 12):
        a, b = (f"t{j}" for j in rng.integers(0, i, 2))
        nodes.append(helper.make_node("Add", [a, b], [f"t{i}"], f"n{i}"))
    proto = make_model(nodes, [value("x", [2])], [value("t11", [2])])
    model = Model.from_proto(proto)
    model.graph.nodes[:] = [model.graph.nodes[i] for i in order]
    done = {"x"}
    for node in model.skeleton().graph.node:
        assert set(node.input) <= done
        done |= set(node.output)
    got = [n.name for n in model.nodes()]
    again = [n.name for n in Model.from_proto(model.proto()).nodes()]
    assert again == got


def test_a_body_waits_for_what_it_captures() -> None:
    model = Model.from_proto(with_weights(BRANCHES))
    model.graph.nodes.reverse()
    assert [n.name for n in model.skeleton().graph.node] == ["first", "choice", "last"]


def test_a_cycle_is_refused() -> None:
    model = Model.from_proto(conv_net())
    model.node("conv2").inputs[0] = model.tensor("r2")
    with pytest.raises(ModelError, match="cycle through node 'conv2'"):
        model.skeleton()


# -------------------------------------------------------------------------------- refused operators


@pytest.mark.parametrize(
    ("node", "opset", "words"),
    [
        (helper.make_node("Magic", ["x"], ["y"], "m"), 17, "'m'.*'Magic' is unknown in opset 17"),
        (helper.make_node("Gelu", ["x"], ["y"], "m"), 17, "'Gelu' is unknown in opset 17"),
        (helper.make_node("Relu", ["x"], ["y"], "m"), 999, "opset 999 is unknown"),
        (helper.make_node("Relu", ["x"], ["y"], "m"), 0, "opset 0 is unknown"),
        (helper.make_node("Op", ["x"], ["y"], "m", domain="my.own"), 17, "domain 'my.own'"),
    ],
)
def test_unknown_operators_and_opsets_are_refused(
    tmp_path: Path, node: onnx.NodeProto, opset: int, words: str
) -> None:
    proto = make_model([node], [value("x", [2])], [value("y", [2])], opset=opset)
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match=words) as caught:
        Model.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_operators_in_bodies_are_refused(tmp_path: Path) -> None:
    proto = with_weights(BRANCHES.replace("Sub(e1, b)", "Magic(e1, b)"))
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match=r"'d2'.*'Magic'"):
        Model.load(path)


def test_check_finds_what_is_not_valid() -> None:
    model = Model.from_proto(conv_net())
    model.check()
    model.set_weight("fc.weight", normal([10, 31], 0))
    with pytest.raises(CheckError, match="not valid ONNX"):
        model.check()
    model = Model.from_proto(conv_net())
    model.node("conv1").attrs["no_such_attribute"] = 1
    with pytest.raises(CheckError, match="no_such_attribute"):
        model.check()


# ----------------------------------------------------------------------------------------- sessions


@pytest.mark.parametrize("split", [False, True], ids=["inline", "external"])
def test_a_session_gives_what_plain_onnxruntime_gives(tmp_path: Path, split: bool) -> None:
    proto = conv_net(64)
    path = tmp_path / "m.onnx"
    if split:
        external(proto, path)
    else:
        path.write_bytes(proto.SerializeToString())
    plain = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    model = Model.load(path)
    feeds = feeds_for(proto, batch=4)
    (want,) = plain.run(None, feeds)
    assert np.ptp(want) > 0.1
    for optimize in (True, False):
        (got,) = model.session(optimize=optimize, threads=1).run(None, feeds)
        assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()
    names = ["r1", "h3", "y"]
    session = model.session(outputs=names)
    assert [o.name for o in session.get_outputs()] == ["y", "r1", "h3"]
    (tapped,) = session.run(["r1"], feeds)
    assert tapped.shape == (4, 64, 8, 8)
    assert (tapped >= 0).all()
    assert tapped.max() > 0.1
    assert model.fingerprint() == Model.load(path).fingerprint()


def test_a_session_outlives_its_model() -> None:
    proto = conv_net(64)
    model = Model.from_proto(proto)
    model.set_weight("fc.weight", model.weight("fc.weight") * 2)
    model.set_weight("fc.bias", model.weight("fc.bias") * 2)
    session = model.session()
    del model
    feeds = feeds_for(proto)
    assert np.allclose(session.run(None, feeds)[0], outputs_of(proto, feeds)[0] * 2, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, ml_dtypes.int4, ml_dtypes.uint4])
def test_sessions_take_weights_that_numpy_has_no_type_for(dtype: Any) -> None:
    wide = np.arange(4096).reshape(64, 64) % 7
    nodes = [helper.make_node("Cast", ["w"], ["f"], "cast", to=TensorProto.FLOAT)]
    nodes.append(helper.make_node("MatMul", ["x", "f"], ["y"], "mul"))
    ends = [value("x", [2, 64])], [value("y", [2, 64])]
    proto = make_model(nodes, *ends, {"w": wide.astype(dtype)}, opset=21)
    x = normal([2, 64], 0)
    (got,) = Model.from_proto(proto).session().run(None, {"x": x})
    assert np.allclose(got, x @ wide.astype(np.float32), rtol=1e-5, atol=1e-4)


def test_what_onnxruntime_cannot_run_is_said_in_one_line() -> None:
    proto = conv_net()
    model = Model.from_proto(proto)
    model.node("relu1").op = "Magic"
    with pytest.raises(ModelError, match=r"^onnxruntime cannot run the model: [^\n]*Magic"):
        model.session()


def test_load_gives_a_model_back_as_it_is(tmp_path: Path) -> None:
    model = Model.from_proto(conv_net())
    assert load(model) is model
    assert isinstance(load(str(model.save(tmp_path / "m.onnx"))), onnxdrp.Model)


def test_a_tensor_info_reads_well() -> None:
    assert str(TensorInfo("x", np.dtype(np.float32), ("N", 3, None))) == "'x' [N, 3, ?] float32"
    assert str(TensorInfo("x", np.dtype(np.int8), None)) == "'x' [?] int8"
