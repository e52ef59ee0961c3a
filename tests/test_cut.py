"""Cut: the graph ends where told; what served only the rest is gone."""

import numpy as np
import onnx
import pytest
from builders import conv_net, feeds_for, make_model, outputs_of, value
from running import node, ops, run_pass

from onnxdrp.errors import ModelError, OptionError
from onnxdrp.model import Model
from onnxdrp.passes.cut import Cut
from onnxdrp.pipeline import PassContext


def test_ends_at_the_named_tensors_in_their_order():
    proto = conv_net()
    model, result = run_pass(Cut(("p", "r1")), Model.from_proto(proto))
    assert [o.name for o in model.outputs] == ["p", "r1"]
    assert ops(model) == ["Conv", "Relu", "Conv", "BatchNormalization", "Relu", "GlobalAveragePool"]
    assert result.stats == {"removed_nodes": 2, "removed_inputs": []}
    assert model.outputs[0].shape == ("N", 32, 1, 1)
    assert "fc.weight" not in {t.name for t in model.proto().graph.initializer}
    probe = onnx.ModelProto()
    probe.CopyFrom(proto)
    probe.graph.output.extend(onnx.ValueInfoProto(name=n) for n in ("p", "r1"))
    feeds = feeds_for(proto)
    _, *want = outputs_of(probe, feeds)
    for a, b in zip(want, outputs_of(model, feeds), strict=True):
        assert np.ptp(a) > 1e-3
        assert np.array_equal(a, b)


def test_inputs_that_nothing_reads_any_more_go():
    proto = make_model(
        [node("Relu", ["a"], ["r"], "relu"), node("Add", ["r", "b"], ["y"], "add")],
        [value("a", [2]), value("b", [2])],
        [value("y", [2])],
    )
    model, result = run_pass(Cut(("r",)), proto)
    assert [i.name for i in model.inputs] == ["a"]
    assert result.stats["removed_inputs"] == ["b"]


def refused(*outputs):
    with pytest.raises(OptionError) as error:
        Cut(outputs).requires(Model.from_proto(conv_net()), PassContext())
    assert "\n" not in str(error.value)
    return str(error.value)


def test_unknown_names_are_refused_with_the_nearest():
    assert refused("r1", "r22") == "no tensor is called 'r22'; near: 'r2'"


def test_the_name_of_a_node_gets_those_of_its_tensors():
    assert refused("conv2") == "no tensor is called 'conv2'; the node of that name computes 'h2'"


def test_only_computed_tensors_can_be_outputs():
    assert "cannot be an output" in refused("x")
    assert "cannot be an output" in refused("fc.weight")
    assert "named twice" in refused("r1", "r1")
    assert "no output is named" in refused()


def test_the_outputs_it_has_already_change_nothing():
    model = Model.from_proto(conv_net())
    assert not Cut(("y",)).run(model, PassContext()).modified


def test_a_tensor_of_unknown_shape_is_refused():
    proto = make_model(
        [
            node("Reshape", ["x", "to"], ["h"], "reshape"),
            node("ReduceSum", ["h"], ["y"], "sum", keepdims=0),
        ],
        [value("x", [2, 6]), value("to", ["rank"], np.int64)],
        [value("y", [])],
    )
    with pytest.raises(ModelError, match="'h' cannot be inferred"):
        Cut(("h",)).run(Model.from_proto(proto), PassContext())
