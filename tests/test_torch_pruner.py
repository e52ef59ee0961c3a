"""Pruning while training: masks that hold, runs that go on as if nothing had happened."""

import copy
import io

import numpy as np
import pytest
from torch_nets import Manual, Residual, batches, nn, seeded, torch, train_steps

from onnxdrp.errors import ModelError, OptionError
from onnxdrp.patterns import make_mask, parse_pattern
from onnxdrp.torch import PrunedModelEMA, Pruner, info, masks
from onnxdrp.torch.layers import geometry_of

LAYERS = ["wide", "depthwise"]
GRADUAL = {"initial_pr": 0.1, "final_pr": 0.7, "begin_step": 2, "end_step": 14, "frequency": 4}


def optimizer_of(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("pattern", ["block", "flex-nm", "nm", "row", "unstructured", "nm:8:32"])
def test_one_shot_prunes_as_an_onnx_model_is_pruned(pattern):
    model = seeded(Residual)
    dense = {name: model.get_submodule(name).weight.detach().numpy().copy() for name in LAYERS}
    rate = 0.75 if pattern == "nm:8:32" else 0.7
    pruner = Pruner(model, LAYERS, final_pr=rate, pattern=pattern)
    assert pruner.is_finished
    for name, mask in masks(model).items():
        geometry = geometry_of(model.get_submodule(name))
        assert mask == make_mask(dense[name], geometry, parse_pattern(pattern), rate)
        weight = model.get_submodule(name).weight.numpy()
        assert np.array_equal(weight, dense[name] * mask.keep)
    assert set(masks(model)) == set(LAYERS)


def test_a_mask_never_changes_by_training():
    model = seeded(Residual)
    optimizer = optimizer_of(model)
    pruner = Pruner(model, LAYERS)
    before, values = masks(model), model.wide.weight.clone()
    train_steps(model, pruner, optimizer, batches(10))
    assert masks(model) == before
    model.eval()(batches(1)[0][0])
    for name, mask in before.items():
        assert np.array_equal(model.get_submodule(name).weight.detach().numpy() != 0, mask.keep)
    kept = torch.from_numpy(before["wide"].keep)
    assert (model.wide.weight[kept] != values[kept]).float().mean() > 0.99  # it was trained


def test_the_optimizer_goes_on_with_the_parameters_that_it_knows():
    model = seeded(Residual)
    parameters = list(model.parameters())
    Pruner(model, LAYERS)
    assert {id(p) for p in model.parameters()} == {id(p) for p in parameters}


def test_a_gradual_run_prunes_by_its_schedule():
    model = seeded(Residual)
    optimizer, pruner = optimizer_of(model), Pruner(model, ["wide"], **GRADUAL)
    seen, earlier = [], masks(model)
    for batch in batches(20):
        train_steps(model, pruner, optimizer, [batch])
        now = masks(model)
        assert not np.any(now["wide"].keep & ~earlier["wide"].keep)
        seen.append(round(now["wide"].sparsity, 2))
        earlier = now
        assert pruner.is_finished == (pruner.step > 14)
    rate = [0.7 - 0.6 * (1 - k / 3) ** 3 for k in range(4)]
    rounded = [round(np.floor(r * 288 + 0.5) / 288, 2) for r in rate]  # of a row of 32 * 9
    changes = [s for i, s in enumerate(seen) if i == 0 or s != seen[i - 1]]
    assert changes == [0.0, *rounded]
    assert [seen.index(r) for r in rounded] == [2, 6, 10, 14]


@pytest.mark.parametrize("stop", [1, 5, 9, 16])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(stop):
    data = batches(20)
    torch.manual_seed(5)
    whole = seeded(Residual)
    optimizer, pruner = optimizer_of(whole), Pruner(whole, LAYERS, **GRADUAL)
    train_steps(whole, pruner, optimizer, data)

    first = seeded(Residual)
    optimizer, pruner = optimizer_of(first), Pruner(first, LAYERS, **GRADUAL)
    train_steps(first, pruner, optimizer, data[:stop])
    file = io.BytesIO()
    states = {"model": first, "optimizer": optimizer, "pruner": pruner}
    torch.save({name: part.state_dict() for name, part in states.items()}, file)
    random = torch.random.get_rng_state()
    file.seek(0)

    second = seeded(Residual, seed=9)
    optimizer, pruner = optimizer_of(second), Pruner(second, LAYERS, **GRADUAL)
    stored = torch.load(file, weights_only=True)
    second.load_state_dict(stored["model"])
    optimizer.load_state_dict(stored["optimizer"])
    pruner.load_state_dict(stored["pruner"])
    torch.random.set_rng_state(random)
    train_steps(second, pruner, optimizer, data[stop:])
    assert equal(whole.state_dict(), second.state_dict())
    assert pruner.is_finished


def test_settings_are_taken_over_with_the_state():
    model = seeded(Residual)
    state = Pruner(model, LAYERS, **GRADUAL, pattern="block").state_dict()
    other = seeded(Residual)
    pruner = Pruner(other, LAYERS, **GRADUAL | {"final_pr": 0.5})
    pruner.load_state_dict(state)
    assert pruner.state_dict() == state
    with pytest.raises(OptionError, match="stored for other layers: depthwise"):
        Pruner(seeded(Residual), ["wide"], **GRADUAL).load_state_dict(state)
    with pytest.raises(OptionError, match=r"not what Pruner.state_dict\(\) gives"):
        pruner.load_state_dict(model.state_dict())


def test_a_model_that_is_pruned_already_keeps_its_masks():
    model = seeded(Residual)
    Pruner(model, ["wide"], final_pr=0.6)
    before = masks(model)
    Pruner(model, ["wide"], final_pr=0.0)
    assert masks(model) == before
    Pruner(model, ["wide"], final_pr=0.8)
    after = masks(model)["wide"]
    assert after.sparsity == pytest.approx(0.8, abs=0.005)
    assert not np.any(after.keep & ~before["wide"].keep)


def test_rate_0_makes_room_for_masks():
    model = seeded(Residual)
    Pruner(model, ["wide"], final_pr=0.0)
    assert masks(model)["wide"].sparsity == 0
    assert {"wide.weight_orig", "wide.weight_mask"} <= model.state_dict().keys()


def test_layers_that_cannot_be_pruned_are_left_dense_with_a_warning():
    model = seeded(Residual)
    with pytest.warns(UserWarning, match="stem is not pruned: its 3 input channels"):
        Pruner(model, ["stem", "wide"])
    assert list(masks(model)) == ["wide"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pruning_layer_list": ["wider"]}, "called 'wider'; did you mean 'wide'"),
        ({"pruning_layer_list": ["norm"]}, "no Conv2d or Linear called 'norm'"),
        ({"pruning_layer_list": "wide"}, "a list of names"),
        ({"final_pr": 1.0}, "final_pr is 1.0"),
        ({"pattern": "bloc"}, "did you mean block"),
        ({"pattern": "nm:2:4", "final_pr": 0.7}, "nm:2:4 is a rate of 0.5"),
    ],
)
def test_what_is_out_of_its_range_is_said_and_the_model_left_alone(options, said):
    model = seeded(Residual)
    with pytest.raises(OptionError, match=said):
        Pruner(model, **{"pruning_layer_list": LAYERS} | options)
    assert not masks(model)


def test_weights_that_are_not_numbers_are_named():
    model = seeded(Residual)
    with torch.no_grad():
        model.wide.weight[3, 2, 1, 1] = float("nan")
    with pytest.raises(ModelError, match="wide: the weight holds NaN"):
        Pruner(model, ["wide"])


# --------------------------------------------------------------------------- what goes on around it


def test_an_average_of_weights_has_the_masks_of_its_model_while_they_grow():
    model = seeded(Residual)
    optimizer, average = optimizer_of(model), PrunedModelEMA(model, 0.9)
    pruner = Pruner(model, LAYERS, **GRADUAL)
    values = model.wide.weight_orig.detach().clone()
    for count, batch in enumerate(batches(18), 1):
        train_steps(model, pruner, optimizer, [batch])
        average.update(model)
        decay = 0.9 * (1 - np.exp(-count / 2000))
        values = values * decay + model.wide.weight_orig.detach() * (1 - decay)
    assert masks(average.ema) == masks(model)
    assert masks(model)["wide"].sparsity == pytest.approx(0.7, abs=0.005)
    assert torch.allclose(average.ema.wide.weight_orig, values, rtol=0, atol=1e-6)
    product = average.ema.wide.weight_orig * average.ema.wide.weight_mask
    assert torch.equal(average.ema.wide.weight, product)  # without a forward pass
    average.ema(batches(1)[0][0])
    assert not average.ema.wide.weight[~torch.from_numpy(masks(model)["wide"].keep)].any()


def test_torchs_own_average_keeps_masks():
    model = seeded(Residual)
    optimizer, pruner = optimizer_of(model), Pruner(model, LAYERS)
    average = torch.optim.swa_utils.AveragedModel(model)
    train_steps(model, pruner, optimizer, batches(3))
    average.update_parameters(model)
    assert masks(average.module) == masks(model)


def test_compiled_models_follow_masks_that_grow():
    model, twin = seeded(Manual), seeded(Manual)
    compiled = torch.compile(model, backend="eager")
    options = {"initial_pr": 0.2, "final_pr": 0.7, "end_step": 4, "frequency": 2}
    pruners = [Pruner(m, ["linear_relu_stack.2"], **options) for m in (compiled, twin)]
    optimizers = [optimizer_of(m) for m in (model, twin)]
    data = batches(7, (4, 1, 28, 28))
    train_steps(compiled, pruners[0], optimizers[0], data)
    train_steps(twin, pruners[1], optimizers[1], data)
    assert masks(model) == masks(twin)
    assert masks(model)["linear_relu_stack.2"].sparsity == pytest.approx(0.7, abs=0.002)
    for (_, a), (_, b) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-5)


def test_automatic_mixed_precision_trains_what_is_kept():
    model = seeded(Manual)
    optimizer = optimizer_of(model)
    pruner = Pruner(model, ["linear_relu_stack.2"])
    before = masks(model)
    for x, y in batches(3, (4, 1, 28, 28)):
        pruner.update()
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        gone = ~torch.from_numpy(before["linear_relu_stack.2"].keep)
        assert not model.linear_relu_stack[2].weight_orig.grad[gone].any()
        assert model.linear_relu_stack[2].weight_orig.grad[~gone].any()
        optimizer.step()
    assert masks(model) == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_models_of_other_precisions_are_pruned(dtype):
    model = seeded(Manual).to(dtype)
    Pruner(model, ["linear_relu_stack.2"])
    assert info(model, [(1, 1, 28, 28)]).current_mac == 485_376
    assert model.linear_relu_stack[2].weight.dtype == dtype


def test_a_copy_trains_apart_from_its_model():
    model = seeded(Residual)
    Pruner(model, LAYERS)
    model.train()(batches(1)[0][0]).sum().backward()
    twin = copy.deepcopy(model)
    before = copy.deepcopy(model.state_dict())
    optimizer = optimizer_of(twin)
    train_steps(twin, Pruner(twin, LAYERS, final_pr=0.8), optimizer, batches(3))
    assert equal(model.state_dict(), before)
    assert masks(twin)["wide"].sparsity > masks(model)["wide"].sparsity
