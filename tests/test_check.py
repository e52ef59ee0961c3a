"""Check: what is wrong with a result is found, what the target misses is listed."""

import numpy as np
import pytest
from builders import conv_net, feeds_for, make_model, normal, value
from onnx import helper
from quantizing import Feeds, parse, quantize_model, target_with

from onnxdrp.conformance import departures
from onnxdrp.errors import CheckError
from onnxdrp.masks import Mask
from onnxdrp.model import Model
from onnxdrp.passes import Check, PruneBlocks
from onnxdrp.pipeline import PassContext, PassManager
from onnxdrp.targets import load_target


def check(model, ctx=None, **options):
    before = model.fingerprint()
    result = Check(**options).run(model, ctx or PassContext())
    assert not result.modified
    assert model.fingerprint() == before
    return result.stats


def pruned_and_quantized():
    model, ctx = Model.from_proto(conv_net(64)), PassContext()
    PassManager([PruneBlocks(rate=0.7)]).run(model, ctx)
    return quantize_model(model, ctx=ctx)


def test_a_good_result_passes():
    done = pruned_and_quantized()
    stats = check(done.model, done.ctx, strict=True)
    assert stats == {"masks": 1, "ran_on": "the reader's first sample", "unmet": []}


def test_a_float_model_and_no_reader():
    assert check(Model.from_proto(conv_net(8)))["ran_on"] == "random numbers"


def test_inputs_of_unknown_size_cannot_be_made_up():
    nodes = [helper.make_node("Relu", ["x"], ["y"], "relu")]
    shape = ["N", "C", "H", "W"]
    model = Model.from_proto(make_model(nodes, [value("x", shape)], [value("y", shape)]))
    assert check(model)["ran_on"].startswith("nothing: ")
    ctx = PassContext(reader=Feeds({"x": np.ones((1, 2, 3, 4), np.float32)}))
    assert check(model, ctx)["ran_on"] == "the reader's first sample"


def test_a_pruned_weight_that_came_alive():
    done = pruned_and_quantized()
    codes = done.model.weight("conv2.weight").copy()
    dead = np.argwhere(~done.ctx.masks["conv2.weight"].keep)[0]
    codes[tuple(dead)] = 1
    done.model.set_weight("conv2.weight", codes)
    with pytest.raises(CheckError, match=r"'conv2\.weight' has 1 values that its mask"):
        check(done.model, done.ctx)


def test_a_mask_of_a_float_model():
    model, ctx = Model.from_proto(conv_net(8)), PassContext()
    ctx.masks["conv2.weight"] = Mask(np.zeros((8, 8, 3, 3), bool))
    with pytest.raises(CheckError, match=r"'conv2\.weight' has 576 values that its mask"):
        check(model, ctx)


def test_an_invalid_graph():
    model = Model.from_proto(conv_net(8))
    model.node("conv1").attrs["no_such"] = 1
    with pytest.raises(CheckError, match="not valid ONNX"):
        check(model)


def test_a_model_that_onnxruntime_does_not_load():
    done = quantize_model(conv_net(8))
    done.model.node("conv1").attrs["kernel_shape"] = [2, 2]  # not what the weight has
    with pytest.raises(CheckError):
        check(done.model, done.ctx)


def test_outputs_that_are_not_finite():
    nodes = [helper.make_node("Log", ["x"], ["y"], "log")]
    model = Model.from_proto(make_model(nodes, [value("x", [1, 4])], [value("y", [1, 4])]))
    ctx = PassContext(reader=Feeds({"x": np.float32([[1, -1, 2, 3]])}))
    with pytest.raises(CheckError, match="does not run: tensor 'y' of node 'log' has NaN"):
        check(model, ctx)


def test_unmet_wishes_are_listed_and_errors_only_if_strict():
    done = quantize_model(conv_net(8), target="drp-ai3")
    opset, ir, shape = check(done.model, done.ctx)["unmet"]
    assert ir.startswith("IR version 10: drp-ai3 reads 8")
    assert opset.startswith("opset 17: drp-ai3 takes 12 to 13")
    assert "static shapes" in shape
    with pytest.raises(CheckError, match="target drp-ai3 is not met: opset 17"):
        check(done.model, done.ctx, strict=True)


# --- what the graph itself shows of a profile --------------------------------------------------

BRANCHES = (
    '<ir_version: 10, opset_import: ["" : 13]> g (float[1, 4, 3, 3] x) => (float[1, 8, 3, 3] y) '
    "{ a = Conv(x, w, b) c = Conv(x, v) s = Add(a, c) y = Concat<axis=1>(s, c) }"
)


def branches(target, **options):
    weights = {"w": normal([4, 4, 1, 1], 0), "v": 5 * normal([4, 4, 1, 1], 1), "b": normal([4], 2)}
    return quantize_model(parse(BRANCHES, weights), target=target, **options).model


def test_what_was_made_for_a_target_conforms_to_it():
    for name in ("generic", "drp-ai3"):
        target = load_target(name)
        model = branches(name)
        assert len(model.nodes("QuantizeLinear")) == 5
        assert departures(model, target) == []


def test_what_was_made_for_another_does_not():
    drp = load_target("drp-ai3")
    found = departures(branches("generic"), drp)
    assert [line.split(":")[0] for line in found] == [
        "drp-ai3 takes int8 activations, not uint8",
        "drp-ai3 takes symmetric activations, not a zero point",
        "drp-ai3 takes weights with one scale a tensor",
        "drp-ai3 wants the same parameters around Add",
        "drp-ai3 wants the same parameters around Concat",
    ]
    assert "and 3 more" in found[0]


def test_each_departure_alone():
    drp = load_target("drp-ai3")
    for changes, what in (
        ({"activation_symmetric": False}, ["symmetric activations"]),
        ({"shared_inputs": ()}, ["around Add"]),
        ({"shared_inputs_and_output": ()}, ["around Concat"]),
        ({"per_channel": True}, ["one scale a tensor"]),
    ):
        found = departures(branches(target_with("drp-ai3", **changes)), drp)
        assert len(found) == len(what)
        assert what[0] in found[0]
    (line,) = departures(branches("drp-ai3"), load_target("generic"))
    assert line.startswith("generic takes uint8 activations, not int8")


def test_weights_with_a_zero_point_are_seen():
    model = branches("drp-ai3")
    model.set_weight("w_zero_point", np.int8(3))
    (line,) = departures(model, load_target("drp-ai3"))
    assert line == "drp-ai3 takes int8 weights with zero point 0: Conv_0"


def test_a_float_model_departs_from_nothing():
    assert departures(Model.from_proto(conv_net(8)), load_target("drp-ai3")) == []


def test_the_feeds_of_a_static_batch_are_cut():
    done = quantize_model(conv_net(8, batch=4), feeds_for(conv_net(8, batch=4)))
    assert check(done.model, done.ctx)["ran_on"] == "the reader's first sample"


def test_the_model_is_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxdrp.session

    opened, open_session = [], onnxdrp.session.open_session
    monkeypatch.setattr(
        onnxdrp.session, "open_session", lambda *a, **k: opened.append(1) or open_session(*a, **k)
    )
    proto = conv_net()
    PassManager([Check()]).run(Model.from_proto(proto), PassContext())
    assert len(opened) == 1
