"""ConvertOpset: raised by the converter, lowered by our table, with equal results or not at all."""

import numpy as np
import onnx
import pytest
from builders import conv_net, feeds_for, make_model, outputs_of, value
from light_models import QUICK, feed, light_model
from onnx import helper
from quantizing import target_with
from running import run_pass

from onnxdrp.equivalence import compare_models, example_feeds
from onnxdrp.errors import ModelError, OptionError, PassError
from onnxdrp.model import Model
from onnxdrp.passes import Check, ConvertOpset, FoldConstants, InferShapes
from onnxdrp.pipeline import PassContext, PassManager
from onnxdrp.targets import load_target


def for_drp(proto, step=None):
    """Run ConvertOpset as drp-ai3 wants it (opset 12 to 13); the model and the result."""
    model = proto if isinstance(proto, Model) else Model.from_proto(proto)
    before = model.fingerprint()
    result = (step or ConvertOpset()).run(model, PassContext(target=load_target("drp-ai3")))
    assert result.modified == (model.fingerprint() != before)
    return model, result


def net_with(*nodes, weights=(), opset=17):
    """A conv_net that ends in these nodes on its output "y", the last of which gives "z"."""
    proto = conv_net(16, opset=opset)
    proto.graph.node.extend(nodes)
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for name, array in dict(weights).items()
    )
    proto.graph.output[0].name = "z"
    return proto


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
    ConvertOpset(maximum=12).run(model, ctx)
    assert model.opset == 12


@pytest.mark.parametrize("opset", [13, 17, 21])
def test_a_newer_model_is_left_alone_where_the_target_takes_any(opset):
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


def test_a_maximum_must_leave_something():
    with pytest.raises(OptionError, match="opset 12 at most: is below the 13 wanted at least"):
        ConvertOpset(minimum=13, maximum=12)
    with pytest.raises(OptionError, match="opset 9 at most: opsets are lowered to 10 and later"):
        ConvertOpset(maximum=9)


def test_a_minimum_beats_what_the_target_takes():
    model, ctx = Model.from_proto(conv_net(16, opset=17)), PassContext()
    ctx.target = load_target("drp-ai3")
    assert ConvertOpset(minimum=15).run(model, ctx).stats["opset"] == 15


def test_a_newer_model_is_lowered_to_what_the_target_takes():
    norm = helper.make_node("LayerNormalization", ["y", "s"], ["n"], "norm")
    softmax = helper.make_node("Softmax", ["n"], ["z"], "softmax", axis=1)
    proto = net_with(norm, softmax, weights={"s": np.linspace(1, 2, 10, dtype=np.float32)})
    model, result = for_drp(proto)
    assert (model.opset, model.ir_version) == (13, 8)
    assert result.stats["lowered_from"] == 17
    assert result.stats["ir_lowered_from"] == 10
    assert list(result.stats["rewritten"]) == ["norm"]
    before = Model.from_proto(proto)
    assert before.tensors().keys() <= model.tensors().keys()
    assert {n.name for n in before.nodes()} <= {n.name for n in model.nodes()}
    feeds = feeds_for(proto)
    (a,), (b,) = outputs_of(proto, feeds), outputs_of(model, feeds)
    assert np.ptp(a) > 1e-3
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    assert model.weights()[0] in before.weights()
    assert not for_drp(model)[1].modified


def test_a_newer_file_format_is_lowered_unless_the_opset_came_with_it():
    def converted(opset, ir, newest):
        model, ctx = Model.from_proto(conv_net(16, opset=opset)), PassContext()
        model.graph.ir_version = ir
        ctx.target = target_with("ort-cpu", ir_version_max=newest)
        result = ConvertOpset().run(model, ctx)
        return result, model

    result, model = converted(17, 10, 9)
    assert result.modified
    assert result.stats == {"opset": 17, "ir_lowered_from": 10}
    assert model.ir_version == model.proto().ir_version == 9
    for opset, ir, newest in ((17, 8, 9), (17, 10, None), (21, 10, 9)):  # opset 21 came with 10
        result, model = converted(opset, ir, newest)
        assert not result.modified
        assert model.ir_version == ir


def test_one_node_that_cannot_go_keeps_the_whole_model():
    swish = helper.make_node("HardSwish", ["y"], ["h"], "swish")  # could
    triangle = helper.make_node("Trilu", ["h"], ["z"], "triangle")
    _, result = for_drp(net_with(swish, triangle))
    assert not result.modified
    assert result.stats == {
        "opset": 17,
        "wanted": 13,
        "skipped": {"triangle": "Trilu: the operator is new in opset 14"},
    }


def test_results_that_are_not_those_of_before_are_not_accepted(monkeypatch):
    wrong = {("HardSwish", 14): lambda n, t: [helper.make_node("Relu", n.input, n.output)]}
    monkeypatch.setattr("onnxdrp.opsets.STEPS", wrong)
    _, result = for_drp(net_with(helper.make_node("HardSwish", ["y"], ["z"], "swish")))
    assert not result.modified
    assert result.stats["skipped"]["model"].startswith("the results are not those before: output")


def test_what_the_checker_refuses_is_not_accepted(monkeypatch):
    wrong = {("HardSwish", 14): lambda n, t: [helper.make_node("Swish", n.input, n.output)]}
    monkeypatch.setattr("onnxdrp.opsets._lower", lambda n, f, t, ts: iter(
        wrong[n.op_type, 14](n, ts) if n.op_type == "HardSwish" else [n]))  # fmt: skip
    _, result = for_drp(net_with(helper.make_node("HardSwish", ["y"], ["z"], "swish")))
    assert not result.modified
    assert result.stats["skipped"]["model"].startswith("the model is not valid ONNX")


def test_check_lists_an_opset_that_stayed_and_strict_makes_it_an_error():
    proto = net_with(helper.make_node("Trilu", ["y"], ["z"], "triangle"))
    ctx = PassContext(target=load_target("drp-ai3"))
    report = PassManager([ConvertOpset(), Check()]).run(Model.from_proto(proto), ctx)
    assert report.records[0].stats["skipped"]
    assert any(wish.startswith("opset 17: ") for wish in report.records[1].stats["unmet"])
    with pytest.raises(PassError, match="opset 17"):
        PassManager([ConvertOpset(), Check(strict=True)]).run(Model.from_proto(proto), ctx)


@pytest.mark.parametrize("name", ["modA", "modB"])
def test_the_example_models_go_down_to_10_and_keep_their_results(name, request):
    before = Model.load(request.getfixturevalue(name))
    model = before.clone()
    for opset in (12, 11, 10):
        result = ConvertOpset(minimum=10, maximum=opset).run(model, PassContext())
        assert result.stats["lowered_from"] == opset + 1
    model.check()
    assert compare_models(before, model, example_feeds(before), 1e-6) == []


@pytest.mark.parametrize("name", ["cifar10_cnn_nhwc", "efficientnet_lite0"])
def test_the_shared_models_of_opset_17_are_lowered(shared, name):
    before = Model.load(shared / "models" / f"{name}.onnx")
    model, result = for_drp(before.clone())
    assert result.stats["lowered_from"] == 17
    assert before.opset == 17
    assert model.opset == 13
    assert compare_models(before, model, example_feeds(before), 1e-6) == []
    assert before.tensors().keys() <= model.tensors().keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_real_graphs_go_up_to_17_and_back_to_12(name):
    proto = light_model(name)
    model = Model.from_proto(proto)
    ConvertOpset(minimum=17).run(model, PassContext())
    for step in (InferShapes(), FoldConstants()):
        step.run(model, PassContext())
    before = model.clone()
    result = ConvertOpset(minimum=10, maximum=12).run(model, PassContext())
    assert result.stats["lowered_from"] == 17, result.stats
    model.check()
    feeds = feed(proto, np.random.default_rng(1))
    assert compare_models(before, model, [feeds], 1e-6) == []


def test_the_shared_detector_of_opset_11(shared):
    model = Model.load(shared / "models" / "yolox_nano_416.onnx")
    run_pass(ConvertOpset(), model, tolerance=1e-4)
    assert model.opset == 13
