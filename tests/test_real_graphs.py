"""The passes of preprocessing on real graphs: simpler, valid, and the results those of before.

The graphs are the two models of models/, those of the shared folder, the light ones that the onnx
package ships (with weights that mean something, see light_models.py), and whatever files the
environment variable ONNXDRP_MODELS names.
"""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from light_models import QUICK, SLOW, feed, light_model

from onnxdrp.equivalence import compare_models, example_feeds
from onnxdrp.model import Model
from onnxdrp.passes import Clean, FoldConstants, FuseBatchNorm, InferShapes, Optimize
from onnxdrp.pipeline import PassContext

CHAIN = (InferShapes(), Optimize(), FoldConstants(), FuseBatchNorm(), Clean())
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
MORE = [Path(p) for p in os.environ.get("ONNXDRP_MODELS", "").split(os.pathsep) if p]


def preprocess(model, feeds):
    """Run the chain; hold every pass to its word; return nodes after each and its stats."""
    before = model.clone()
    kept = {n.name for n in model.nodes(*LAYERS)}
    nodes, stats = [len(model.nodes())], {}
    for step in CHAIN:
        assert step.keeps_results
        fingerprint = model.fingerprint()
        result = step.run(model, PassContext())
        assert result.modified == (model.fingerprint() != fingerprint), step.name
        assert "failed" not in result.stats
        nodes.append(len(model.nodes()))
        stats[step.name] = result.stats
    model.check()
    assert kept == {n.name for n in model.nodes(*LAYERS)}, "layers keep their names"
    assert (model.opsets, model.ir_version) == (before.opsets, before.ir_version)
    assert {n.domain for n in model.nodes()} <= {None, "", "ai.onnx"}
    # what is computed from free sizes can be inferred only when the arithmetic on them is folded
    again = CHAIN[1:] if stats["infer-shapes"]["unknown"] else CHAIN
    for step in again:
        assert not step.run(model, PassContext()).modified, f"{step.name} had more to do"
    prove_equal(before, model, feeds)
    return nodes, stats


def prove_equal(before, after, feeds):
    """Equal by the rule, on outputs that are no constants and not all but zero."""
    session = before.session(optimize=False)
    first, second = (session.run(None, f) for f in feeds[:2])
    for a, b in zip(first, second, strict=True):
        assert np.abs(a).max() > 1e-3
        assert np.abs(a - b).max() > 1e-2 * np.abs(a).max(), "the output depends on the input"
    assert compare_models(before, after, feeds) == []


def on_light(name):
    proto = light_model(name)
    model = Model.from_proto(proto)
    feeds = [feed(proto, np.random.default_rng(i)) for i in (1, 2)]
    return preprocess(model, feeds)


# nodes before, and after InferShapes, Optimize, FoldConstants, FuseBatchNorm, Clean
LIGHT_NODES = {
    "densenet121": [910, 910, 668, 668, 367, 367],
    "inception_v1": [144, 144, 144, 143, 143, 142],
    "inception_v2": [509, 509, 371, 371, 164, 164],
    "resnet50": [176, 176, 176, 176, 123, 123],
    "shufflenet": [203, 203, 203, 203, 154, 154],
    "squeezenet": [66, 66, 66, 66, 66, 65],
}


@pytest.mark.parametrize("name", QUICK)
def test_light_graphs(name):
    nodes, stats = on_light(name)
    assert nodes[-1] <= LIGHT_NODES[name][-1]
    left = stats["fuse-batchnorm"]["skipped"]
    # only those of densenet121 stand behind a Concat and before a Relu, with no weight beside them
    assert len(left) == (62 if name == "densenet121" else 0)
    assert all("has no weight" in why for why in left.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_light_graphs_with_many_weights(name):
    on_light(name)


def test_the_light_graphs_as_shipped_prove_nothing():
    proto = onnx.ModelProto.FromString(
        (Path(onnx.__file__).parent / "backend/test/data/light/light_squeezenet.onnx").read_bytes()
    )
    session = Model.from_proto(proto).session()
    a, b = (
        session.run(None, feed(light_model("squeezenet"), np.random.default_rng(i)))[0]
        for i in (1, 2)
    )
    assert np.array_equal(a, b)


def from_file(path):
    model = Model.load(path)
    return preprocess(model, example_feeds(model, seed=1, batch=2, count=2))


def test_mod_a(modA):
    nodes, stats = from_file(modA)
    assert nodes == [54, 54, 52, 52, 37, 37]
    assert stats["fuse-batchnorm"] == {"fused": 15, "skipped": {}}


def test_mod_b(modB):
    nodes, stats = from_file(modB)
    assert nodes[-1] == 39
    assert stats["fuse-batchnorm"]["skipped"] == {}


def test_pairs_after_the_relu_all_go_forward(shared):
    nodes, stats = from_file(shared / "models" / "cifar10_cnn_nhwc.onnx")
    assert nodes == [38, 38, 38, 38, 26, 25]
    assert stats["fuse-batchnorm"] == {"fused": 12, "skipped": {}}


def test_pads_that_an_exporter_computes_go_into_their_convs(shared):
    nodes, _ = from_file(shared / "models" / "efficientnet_lite0.onnx")
    assert nodes[-1] == 94


def test_a_detector(shared):
    model = Model.load(shared / "models" / "yolox_nano_416.onnx")
    nodes, _ = preprocess(model, example_feeds(model, seed=1, count=2))
    assert nodes[-1] == 367


@pytest.mark.parametrize("path", MORE, ids=lambda p: p.name)
def test_more_files(path):
    model = Model.load(path)
    feeds = example_feeds(model, seed=1, batch=2, count=2)
    if max(np.abs(a).max() for a in model.session().run(None, feeds[0])) < 1e-3:
        pytest.skip("its outputs are all but zero on random input, and would prove nothing")
    preprocess(model, feeds)
