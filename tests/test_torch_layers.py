"""What runs, in which order, on what, and behind what; and the rules that follow from it."""

import copy
from functools import partial

import pytest
from torch_nets import Branches, Manual, Residual, nn, seeded, torch

from onnxdrp.compat.drpai_compaction_tool.pytorch import get_model_info, make_pruning_layer_list
from onnxdrp.errors import DataError, ModelError, OptionError
from onnxdrp.torch import Pruner, info
from onnxdrp.torch.tracing import trace

SIZE = [(2, 3, 8, 8)]
eager = partial(torch.compile, backend="eager")


def reasons(model, **options):
    return {row.name: row.why_not for row in info(model, SIZE, **options).layers}


def test_layers_come_in_the_order_in_which_they_run():
    traced, idle = trace(seeded(Residual), SIZE)
    assert [seen.name for seen in traced] == ["stem", "wide", "narrow", "depthwise", "head"]
    assert idle == ["unused"]


def test_each_refusal_has_its_reason():
    why = reasons(seeded(Residual))
    assert why["stem"].startswith("first layer")
    assert why["wide"] == ""
    assert why["narrow"] == "input channels not a multiple of 32: 16 in each group"
    assert why["depthwise"].startswith("depthwise layer")
    assert why["head"].startswith("last layer")
    assert why["unused"].startswith("did not run")


def test_last_and_depthwise_layers_are_pruned_when_asked():
    model = seeded(Residual)
    with pytest.warns(UserWarning, match=r"1 layers did not run and are not pruned: unused"):
        assert make_pruning_layer_list(model, SIZE) == ["wide"]
    with pytest.warns(UserWarning, match="unused"):
        names = make_pruning_layer_list(model, SIZE, prune_last=True, prune_dwise=True)
    assert names == ["wide", "depthwise", "head"]


def test_what_comes_before_is_followed_through_views_writes_and_detached_tensors():
    data = [torch.rand(3, 32), torch.rand(3, 32)]
    traced, idle = trace(seeded(Branches), input_data=data)
    before = {seen.name: seen.before for seen in traced}
    assert before["left"] == before["right"] == set()
    assert before["shared"] == {"left", "right", "shared"}
    assert before["boxes"] == before["scores"] == {"left", "right", "shared"}
    assert not idle
    named = {"a": data[0], "b": data[1]}
    found = info(seeded(Branches), input_data=named)
    assert [row.name for row in found.layers if row.prunable] == ["shared"]
    firsts = [row.name for row in found.layers if row.why_not.startswith("first")]
    lasts = [row.name for row in found.layers if row.why_not.startswith("last")]
    assert firsts == ["left", "right"]
    assert lasts == ["boxes", "scores"]


def test_a_layer_that_runs_twice_counts_twice_and_has_one_row():
    rows = info(seeded(Branches), input_data=[torch.rand(3, 32), torch.rand(3, 32)]).layers
    row = next(row for row in rows if row.name == "shared")
    assert row.baseline_mac == 2 * 64 * 64
    assert [r.name for r in rows].count("shared") == 1


def test_a_module_that_is_registered_twice_is_one_layer():
    middle = nn.Linear(32, 32)
    model = nn.Sequential(nn.Linear(4, 32), middle, nn.ReLU(), middle, nn.Linear(32, 2))
    assert make_pruning_layer_list(model, [(1, 4)]) == ["1"]


def test_layers_that_share_a_parameter_are_pruned_together_or_not_at_all():
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32))
    model[2].weight = model[1].weight
    why = {row.name: row.why_not for row in info(model, [(1, 32)]).layers}
    assert why["1"].startswith("shared weight: with '2'")
    found = info(model, [(1, 32)], prune_last=True)
    assert [row.name for row in found.layers if row.prunable] == ["1", "2"]
    assert found.params == 2 * 32 * 32 + 3 * 32


def test_multiply_adds_are_of_one_sample():
    small, large = info(seeded(Residual), [(2, 3, 8, 8)]), info(seeded(Residual), [(5, 3, 8, 8)])
    figures = {row.name: row.baseline_mac for row in small.layers}
    assert figures == {row.name: row.baseline_mac for row in large.layers}
    assert figures["stem"] == 64 * 32 * 3 * 9
    assert figures["narrow"] == 64 * 64 * 16 * 9
    assert figures["depthwise"] == 64 * 64 * 9
    assert figures["head"] == 64 * 5
    assert figures["unused"] is None


def test_linear_layers_count_each_position_of_a_sequence():
    row = info(nn.Sequential(nn.Linear(8, 4)), [(2, 7, 8)]).layers[0]
    assert (row.baseline_mac, row.input_shape, row.output_shape) == (7 * 32, (7, 8), (7, 4))


def test_a_model_is_left_as_it_was():
    model = seeded(Residual).train()
    before = copy.deepcopy(model.state_dict())
    random = torch.random.get_rng_state()
    info(model, input_data=[torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(3))])
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(random, torch.random.get_rng_state())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("wrap", [nn.DataParallel, eager], ids=["parallel", "compiled"])
def test_wrapped_models_have_the_names_of_what_they_wrap(wrap):
    assert make_pruning_layer_list(wrap(Manual()), [(1, 1, 28, 28)]) == ["linear_relu_stack.2"]


def test_figure_3_11_is_met_to_the_digit():
    model = Manual()
    names = make_pruning_layer_list(model, [(1, 1, 28, 28)])
    Pruner(model, names, final_pr=0.7)
    found = get_model_info(model, [(1, 1, 28, 28)])
    assert list(found.columns) == [
        "module name",
        "input shape",
        "output shape",
        "params",
        "sparsity",
        "Baseline MAC",
        "Current MAC",
    ]
    assert found.values.tolist() == [
        ["linear_relu_stack.0", "784", "512", 401920.0, "0.000", "401,408.0", "401,408.0"],
        ["linear_relu_stack.2", "512", "512", 262656.0, "0.699", "262,144.0", "78,848.0"],
        ["linear_relu_stack.4", "512", "10", 5130.0, "0.000", "5,120.0", "5,120.0"],
        ["total", "", "", 669706.0, "", "668,672.0", "485,376.0"],
    ]
    assert list(found.index) == ["0", "1", "2", ""]


@pytest.mark.parametrize("pattern", ["block", "flex-nm", "row"])
def test_three_readings_of_the_pattern_meet_the_figure(pattern):
    model = Manual()
    Pruner(model, ["linear_relu_stack.2"], final_pr=0.7, pattern=pattern)
    found = info(model, [(1, 1, 28, 28)])
    assert found.current_mac == 485_376
    assert found.layers[1].sparsity == pytest.approx(0.699, abs=5e-4)


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({}, OptionError, "either input_size or input_data"),
        ({"input_size": SIZE, "input_data": []}, OptionError, "either input_size or input_data"),
        ({"input_size": (2, 3, 8, 8.5)}, OptionError, "input_size is"),
        ({"input_data": torch.rand(2, 3, 8, 8)}, OptionError, "a list of what forward takes"),
        ({"input_size": [(2, 4, 8, 8)]}, DataError, "does not run on the input given"),
        ({"input_data": {"y": 1}}, DataError, "unexpected keyword argument 'y'"),
    ],
)
def test_inputs_that_do_not_fit_are_errors_of_one_line(given, error, said):
    with pytest.raises(error, match=said) as raised:
        make_pruning_layer_list(seeded(Residual), **given)
    assert "\n" not in str(raised.value)


def test_batch_normalization_of_one_value_says_what_batch_it_needs():
    model = nn.Sequential(nn.Linear(4, 32), nn.BatchNorm1d(32), nn.Linear(32, 2))
    with pytest.raises(DataError, match="a batch of 2 or more"):
        make_pruning_layer_list(model, [(1, 4)])


def test_a_model_without_layers_is_refused():
    with pytest.raises(ModelError, match="neither Conv2d nor Linear"):
        make_pruning_layer_list(nn.Sequential(nn.ReLU()), [(1, 4)])
