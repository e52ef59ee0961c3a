"""Removing channels is exact: on real graphs, and on random ones with all ways of joining them."""

import os
from pathlib import Path

import numpy as np
import pytest
from builders import feeds_for
from hypothesis import given, settings
from hypothesis import strategies as st
from light_models import QUICK, SLOW, feed, light_model
from random_nets import HEADS, MOVES, network
from slimming import check_exact, some_of

from onnxdrp.api import preprocess
from onnxdrp.channels import channels_of
from onnxdrp.layers import layers
from onnxdrp.model import Model
from onnxdrp.passes import InferShapes
from onnxdrp.pipeline import PassContext

ROOT = Path(__file__).parents[1]
MODELS = sorted((ROOT / "models").glob("*.onnx"))


def small(proto):
    model = Model.from_proto(proto)
    InferShapes().run(model, PassContext())
    return model


def check_all_named(model, channels):
    """Every layer is in one group, or there is a reason why not."""
    grouped = [name for group in channels.groups for name in group.makers]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) | channels.pinned.keys() == {layer.name for layer in layers(model)}
    assert not set(grouped) & channels.pinned.keys()
    assert all(channels.pinned.values())


def check_file(path, inputs=None):
    model = preprocess(path).model
    rng = np.random.default_rng(0)
    feeds = {
        i.name: rng.standard_normal([d if isinstance(d, int) else 2 for d in i.shape]).astype(
            np.float32
        )
        for i in model.inputs
    }
    slimmed = check_exact(model, inputs or feeds)
    check_all_named(model, slimmed.channels)
    lost = slimmed.removed.keys()
    assert lost == {group.name for group in slimmed.channels.groups}
    return slimmed


BUNDLED = {"modA.onnx": 9, "modB.onnx": 9, "signs.onnx": 6}


@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.name)
def test_models_that_are_here(path):
    slimmed = check_file(path)
    assert len(slimmed.channels.groups) == BUNDLED[path.name]
    assert list(slimmed.channels.pinned.values()) == ["'logits' is an output of the model"]
    assert slimmed.slim.inventory()[1] < 0.3 * slimmed.before.inventory()[1]


SHARED = {
    "cifar10_cnn_nhwc": (8, 1),
    "efficientnet_lite0": (24, 1),
    "yolox_nano_416": (67, 9),
}


@pytest.mark.parametrize("name", SHARED)
def test_shared_models(name, shared):
    slimmed = check_file(shared / "models" / f"{name}.onnx")
    channels = slimmed.channels
    assert (len(channels.groups), len(channels.pinned)) == SHARED[name]
    assert all("is an output of the model" in why for why in channels.pinned.values())


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_real_graphs(name, tmp_path):
    proto = light_model(name)
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    check_file(path, feed(proto, np.random.default_rng(1)))


@given(
    moves=st.lists(st.sampled_from(sorted(MOVES)), min_size=1, max_size=12),
    heads=st.lists(st.sampled_from(sorted(HEADS)), min_size=1, max_size=3),
    seed=st.integers(0, 1000),
    rank=st.sampled_from([1, 2, 2, 3]),
    batch=st.sampled_from(["N", 2]),
)
@settings(max_examples=int(os.environ.get("ONNXDRP_EXAMPLES", "60")))
def test_random_graphs(moves, heads, seed, rank, batch):
    proto = network(moves, heads, seed, rank, batch)
    model = small(proto)
    channels = channels_of(model)
    check_all_named(model, channels)
    check_exact(model, feeds_for(proto), some_of(channels, seed=seed), effect=0)


PINNED = {"counted", "mixed", "own_output", "repeated"}


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("move", sorted(MOVES))
def test_every_move_alone(move, rank):
    proto = network([move, move], sorted(HEADS), 0, rank)
    slimmed = check_exact(small(proto), feeds_for(proto), effect=1e-6)
    assert ("conv0" in slimmed.counts) == (move not in PINNED)
