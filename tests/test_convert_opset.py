"""ConvertOpset: raised by the converter, with equal results; never lowered, never by number."""

import numpy as np
import onnx
import pytest
from builders import conv_net, feeds_for, make_model, outputs_of, value
from onnx import helper
from running import run_pass

from onnxdrp.errors import ModelError, OptionError
from onnxdrp.model import Model
from onnxdrp.passes import ConvertOpset
from onnxdrp.pipeline import PassContext
from onnxdrp.targets import load_target


@pytest.mark.parametrize("opset", [8, 9, 11, 12])
def test_an_older_model_is_raised_with_equal_results(opset):
    proto = conv_net(16, opset=opset)
    model, result = run_pass(ConvertOpset(), proto)
    assert result.modified
    assert result.stats == {"opset": 13, "raised_from": opset}
    assert model.opset == 13
    assert model.ir_version == 10
    assert {n.name for n in Model.from_proto(proto).nodes()} <= {n.name for n in model.nodes()}
    assert "conv2.weight" in model.weights()


def test_operators_whose_meaning_changed_are_rewritten():
    nodes = [
        helper.make_node("Squeeze", ["x"], ["s"], "squeeze", axes=[1]),
        helper.make_node("Softmax", ["s"], ["y"], "softmax", axis=1),  # flattens, before opset 13
    ]
    proto = make_model(nodes, [value("x", [2, 1, 3, 4])], [value("y", [2, 3, 4])], opset=11)
    model = run_pass(ConvertOpset(13), proto)[0]
    assert len(model.node("squeeze").inputs) == 2  # its axes are an input now
    assert len(model.nodes()) > 2


def test_the_target_says_how_far():
    model, ctx = Model.from_proto(conv_net(16, opset=9)), PassContext()
    ctx.target = load_target("drp-ai3")
    ConvertOpset().run(model, ctx)
    assert model.opset == 12
    ConvertOpset(minimum=13).run(model, ctx)
    assert model.opset == 13


@pytest.mark.parametrize("opset", [13, 17, 21])
def test_a_newer_model_is_left_alone(opset):
    _, result = run_pass(ConvertOpset(), conv_net(16, opset=opset))
    assert not result.modified
    assert result.stats == {"opset": opset}


def test_an_old_file_with_weights_as_inputs_keeps_them_and_its_ir_version(tmp_path):
    proto = conv_net(16, opset=8)
    proto.ir_version = 3
    proto.graph.input.extend(value(t.name, list(t.dims)) for t in proto.graph.initializer)
    (tmp_path / "old.onnx").write_bytes(proto.SerializeToString())
    model = Model.load(tmp_path / "old.onnx")
    ConvertOpset().run(model, PassContext())
    saved = onnx.load_model(model.save(tmp_path / "new.onnx"))
    onnx.checker.check_model(saved, full_check=True)
    assert saved.ir_version == 3
    assert [i.name for i in saved.graph.input] == [i.name for i in proto.graph.input]
    feeds = feeds_for(proto)
    (a,), (b,) = outputs_of(proto, feeds), outputs_of(saved, feeds)
    np.testing.assert_allclose(a, b, rtol=1e-6)


def test_what_the_converter_cannot_do_is_an_error_in_one_line():
    node = helper.make_node("GRU", ["x", "w", "r"], ["y"], "gru", hidden_size=2)
    inputs = [value("x", [3, 1, 4]), value("w", [1, 6, 4]), value("r", [1, 6, 2])]
    proto = make_model([node], inputs, [value("y", [3, 1, 1, 2])], opset=6)
    with pytest.raises(ModelError, match=r"opset 6 cannot be raised to 13: .*export") as caught:
        ConvertOpset().run(Model.from_proto(proto), PassContext())
    assert "\n" not in str(caught.value)


def test_opsets_that_do_not_exist():
    for opset in (0, 999):
        with pytest.raises(OptionError, match=f"opset {opset}: this onnx knows 1 to"):
            ConvertOpset(minimum=opset)


def test_the_shared_detector_of_opset_11(shared):
    model = Model.load(shared / "models" / "yolox_nano_416.onnx")
    run_pass(ConvertOpset(), model, tolerance=1e-4)
    assert model.opset == 13
