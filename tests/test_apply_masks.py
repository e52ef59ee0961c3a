"""Masks saved, loaded, applied again, and read back from zeros."""

import numpy as np
import pytest
from builders import make_model, mlp, normal, value
from onnx import helper

from onnxdrp.errors import CheckError, OptionError, PassError
from onnxdrp.masks import Mask, save_masks
from onnxdrp.model import Model
from onnxdrp.passes.apply_masks import ApplyMasks, masks_from_zeros
from onnxdrp.passes.prune_blocks import PruneBlocks
from onnxdrp.pipeline import PassContext, PassManager


def pruned(pattern="block"):
    model, ctx = Model.from_proto(mlp(64, 64, 64, 64, 8)), PassContext()
    PassManager([PruneBlocks(pattern=pattern, rate=0.7)]).run(model, ctx)
    return model, ctx.masks


def apply(model, path=None, ctx=None):
    ctx = ctx or PassContext()
    (record,) = PassManager([ApplyMasks(path=path)]).run(model, ctx).records
    return record, ctx


@pytest.mark.parametrize("pattern", ["block", "flex-nm", "unstructured"])
def test_saved_masks_make_the_same_model_again(tmp_path, pattern):
    model, masks = pruned(pattern)
    path = str(save_masks(tmp_path / "m.npz", masks))
    again = Model.from_proto(mlp(64, 64, 64, 64, 8))
    record, ctx = apply(again, path)
    assert record.modified
    assert ctx.masks == masks
    assert again.fingerprint() == model.fingerprint()
    assert record.stats["changed"] == ["fc1.weight", "fc2.weight"]
    assert record.stats["sparsity"] == pytest.approx(0.7, abs=0.01)
    record, _ = apply(again, path)
    assert not record.modified


def test_masks_of_the_context_are_put_back_on_weights_that_moved():
    model, masks = pruned()
    model.set_weight("fc1.weight", normal((64, 64), 9))
    record, _ = apply(model, ctx=PassContext(masks=dict(masks)))
    assert record.stats["changed"] == ["fc1.weight"]
    assert masks["fc1.weight"].holds(model.weight("fc1.weight"))
    kept = masks["fc1.weight"].keep
    assert (model.weight("fc1.weight")[kept] == normal((64, 64), 9)[kept]).all()


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"fc9.weight": (64, 64)}, r"mask 'fc9\.weight': the model has no layer"),
        ({"fc1.bias": (64,)}, r"mask 'fc1\.bias': the model has no layer"),
        ({"fc1.weight": (64, 32)}, r"weight 'fc1\.weight' has shape \[64, 64\]"),
    ],
)
def test_masks_that_do_not_fit_are_named_and_nothing_is_changed(tmp_path, masks, message):
    model = Model.from_proto(mlp(64, 64, 64, 64, 8))
    before = model.fingerprint()
    fitting = {"fc2.weight": Mask(np.zeros((64, 64), bool))}
    others = {name: Mask(np.ones(shape, bool)) for name, shape in masks.items()}
    path = str(save_masks(tmp_path / "m.npz", fitting | others))
    with pytest.raises(PassError, match=message):
        apply(model, path)
    assert model.fingerprint() == before
    with pytest.raises(OptionError, match=message):
        ApplyMasks(path).run(model, PassContext())
    assert model.fingerprint() == before


def test_files_and_contexts_without_masks_are_refused(tmp_path):
    model = Model.from_proto(mlp(64, 64, 64, 8))
    with pytest.raises(PassError, match="the context: holds no masks"):
        apply(model)
    path = str(save_masks(tmp_path / "none.npz", {}))
    with pytest.raises(PassError, match=r"none\.npz: holds no masks"):
        apply(model, path)
    with pytest.raises(PassError, match=r"missing\.npz"):
        apply(model, str(tmp_path / "missing.npz"))


def test_masks_are_read_back_from_zeros():
    model, masks = pruned()
    assert masks_from_zeros(model) == masks
    assert masks_from_zeros(Model.from_proto(mlp(64, 64, 8))) == {}


def test_masks_are_read_back_from_quantized_zeros_and_applied_to_them():
    rng = np.random.default_rng(0)
    q = rng.integers(140, 160, (64, 64)).astype(np.uint8)
    keep = rng.random((64, 64)) < 0.3
    q[~keep] = 130
    weights = {"q": q, "s": np.float32(0.1), "z": np.uint8(130)}
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], "dq"),
        helper.make_node("MatMul", ["x", "w"], ["y"], "m"),
    ]
    proto = make_model(nodes, [value("x", ["N", 64])], [value("y", None)], weights)
    model = Model.from_proto(proto)
    masks = masks_from_zeros(model)
    assert masks == {"q": Mask(keep)}
    model.set_weight("q", rng.integers(140, 160, (64, 64)).astype(np.uint8))
    apply(model, ctx=PassContext(masks=masks))
    assert (model.weight("q")[~keep] == 130).all()
    assert masks_from_zeros(model) == masks


def test_reading_masks_changes_nothing():
    model, _ = pruned()
    before = model.fingerprint()
    masks_from_zeros(model)
    assert model.fingerprint() == before


def test_the_check_after_the_pass_can_fail():
    model, masks = pruned()
    ctx = PassContext(masks=masks)
    ApplyMasks().ensures(model, ctx)
    model.set_weight("fc1.weight", normal((64, 64), 9))
    with pytest.raises(CheckError, match=r"'fc1\.weight' has 2,880 values"):
        ApplyMasks().ensures(model, ctx)
