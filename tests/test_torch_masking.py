"""Masks as torch.nn.utils.prune keeps them: stored, loaded, copied, folded."""

import copy
import io

import numpy as np
import pytest
from torch_nets import Residual, batches, nn, prune, seeded, torch

from onnxdrp.errors import ModelError, OptionError
from onnxdrp.masks import Mask
from onnxdrp.torch import (
    Pruner,
    copy_masks,
    deepcopy_model,
    finalize,
    load_pruned_state_dict,
    masks,
    set_masks,
)

LAYERS = ["wide", "depthwise"]
X = batches(1)[0][0]


def pruned(seed=0):
    model = seeded(Residual, seed).eval()
    Pruner(model, LAYERS)
    return model


def same(a, b):
    return torch.equal(a.eval()(X), b.eval()(X))


def test_torch_itself_knows_the_model_as_pruned():
    model = pruned()
    assert prune.is_pruned(model)
    assert model.wide.weight_mask.dtype == model.wide.weight_orig.dtype
    prune.remove(model.wide, "weight")
    model(X)
    assert isinstance(model.wide.weight, nn.Parameter)
    model(X)


def test_checkpoints_that_torch_has_pruned_load():
    other = seeded(Residual, 3)
    prune.l1_unstructured(other.wide, "weight", amount=0.4)
    model = seeded(Residual)
    load_pruned_state_dict(model, other.state_dict())
    assert same(model, other)
    assert masks(model)["wide"].sparsity == pytest.approx(0.4, abs=1e-3)


@pytest.mark.parametrize("start", ["dense", "sparse"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_sparse_weights_load_into_dense_and_sparse_models(start, prefix):
    source = pruned(1)
    target = seeded(Residual, 2) if start == "dense" else pruned(2)
    state = {prefix + key: value for key, value in source.state_dict().items()}
    load_pruned_state_dict(target, state)
    assert same(source, target)
    assert masks(source) == masks(target)
    assert torch.equal(target.wide.weight, target.wide.weight_orig * target.wide.weight_mask)


@pytest.mark.parametrize("start", ["dense", "sparse"])
def test_dense_weights_are_refused(start):
    target = seeded(Residual) if start == "dense" else pruned()
    with pytest.raises(OptionError, match="of a model that is not pruned"):
        load_pruned_state_dict(target, seeded(Residual).state_dict())


def test_weights_of_another_model_are_refused_by_name():
    state = pruned().state_dict()
    state["nowhere"] = torch.zeros(1)
    with pytest.raises(OptionError, match="nowhere") as raised:
        load_pruned_state_dict(seeded(Residual), state)
    assert "\n" not in str(raised.value)
    load_pruned_state_dict(seeded(Residual), state, strict=False)


def test_the_settings_of_a_pruner_are_not_taken_for_weights():
    model = seeded(Residual)
    with pytest.raises(OptionError, match=r"save model.state_dict\(\)"):
        load_pruned_state_dict(model, Pruner(model, LAYERS).state_dict())


@pytest.mark.parametrize("copied", [copy.deepcopy, deepcopy_model])
@pytest.mark.parametrize("ran", [False, True])
def test_pruned_models_are_copied_and_pickled_whenever(copied, ran):
    model = pruned().train()
    if ran:
        model(X).sum().backward()
    twin = copied(model)
    assert same(model, twin)
    assert masks(model) == masks(twin)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert same(model, torch.load(file, weights_only=False))


def test_a_forward_pass_that_fails_leaves_a_model_that_can_be_copied():
    model = pruned().train()
    with pytest.raises(RuntimeError):
        model.wide(torch.rand(1, 5, 8, 8))
    copy.deepcopy(model)


def test_models_that_torch_has_pruned_are_copied():
    model = seeded(Residual).train()
    prune.l1_unstructured(model.wide, "weight", amount=0.4)
    model(X)
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)
    assert same(deepcopy_model(model), model)


def test_finalized_weights_are_plain_and_exactly_zero():
    model = pruned()
    expected, held, before = model(X), masks(model), model.wide.weight_orig
    with torch.no_grad():
        model.wide.weight_orig.neg_()
        model.wide.weight_orig.neg_()
    assert finalize(model) is model
    assert model.wide.weight is before
    assert not masks(model)
    assert model.state_dict().keys() == Residual().state_dict().keys()
    assert torch.equal(model(X), expected)
    gone = ~torch.from_numpy(held["wide"].keep)
    zeros = model.wide.weight.detach()[gone]
    assert not zeros.any()
    assert not torch.signbit(zeros).any()
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_load_state_dict_post_hooks")
    assert not any(getattr(model.wide, name) for name in hooks)
    assert not model.wide._forward_hooks_always_called
    Pruner(model, LAYERS, final_pr=0.0)  # from plain zeros: they may come back
    assert masks(model)["wide"].sparsity == 0


def test_masks_are_carried_from_model_to_model():
    source, target = pruned(), seeded(Residual, 4)
    copy_masks(source, target)
    assert masks(target) == masks(source)
    assert np.array_equal(target.wide.weight.numpy() != 0, masks(source)["wide"].keep)
    with pytest.raises(OptionError, match="no Conv2d or Linear called"):
        copy_masks(source, nn.Sequential(nn.Linear(2, 2)))


def test_masks_that_do_not_fit_are_refused_by_name():
    model = seeded(Residual)
    with pytest.raises(OptionError, match=r"the weight of 'wide' has shape \[64, 32, 3, 3\]"):
        set_masks(model, {"wide": Mask(np.ones((64, 32), np.bool_))})
    with pytest.raises(OptionError, match="called 'norm'"):
        set_masks(model, {"norm": Mask(np.ones(64, np.bool_))})
    assert not masks(model)


def test_a_weight_that_something_else_makes_is_refused():
    model = seeded(Residual)
    nn.utils.parametrizations.weight_norm(model.wide)
    with pytest.raises(ModelError, match="remove that before pruning"):
        Pruner(model, ["wide"])


def test_a_weight_that_is_replaced_computes():
    """As fusing BatchNormalization into a Conv does, in trainers that validate."""
    model = pruned()
    fused = nn.Parameter(model.wide.weight.detach() * 2)
    model.wide.weight = fused
    assert torch.equal(
        model.wide(X.new_ones(1, 32, 4, 4)),
        nn.functional.conv2d(X.new_ones(1, 32, 4, 4), fused, padding=1),
    )
    assert list(masks(model)) == ["depthwise"]


def test_inference_mode_leaves_a_model_that_trains_on():
    model = pruned()
    with torch.inference_mode():
        expected = model(X)
    assert not model.wide.weight.is_inference()
    copy.deepcopy(model)
    assert torch.equal(model(X), expected)
    model.train()(X).sum().backward()


def test_tensors_that_are_loaded_in_place_of_the_old_are_exported():
    source, target = pruned(1), pruned(2)
    target.load_state_dict(source.state_dict(), assign=True)
    given = torch.export.export(target, (X,)).module()(X)
    assert torch.allclose(given, source(X), rtol=1e-5, atol=1e-6)
