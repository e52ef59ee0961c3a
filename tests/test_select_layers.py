"""Which layers are chosen, at which rate, and every refusal of an option."""

import pytest
from builders import make_model, mlp, normal, value
from onnx import helper

from onnxdrp.errors import ModelError, OptionError
from onnxdrp.model import Model
from onnxdrp.passes.select_layers import SelectLayers
from onnxdrp.pipeline import PassContext, PassManager


def chosen(proto, **options):
    model, ctx = Model.from_proto(proto), PassContext()
    before = model.fingerprint()
    (record,) = PassManager([SelectLayers(**options)]).run(model, ctx).records
    assert model.fingerprint() == before
    assert not record.modified
    return ctx, record


def deep(*, wide=64):
    """fc0 .. fc4: the first and the last are not prunable by default."""
    return mlp(64, wide, 64, 64, 64, 8)


def test_defaults():
    ctx, record = chosen(deep())
    assert ctx.rates == {"fc1.weight": 0.7, "fc2.weight": 0.7, "fc3.weight": 0.7}
    assert {name: why.partition(":")[0] for name, why in ctx.refused.items()} == {
        "fc0": "first layer",
        "fc4": "last layer",
    }
    assert record.stats["skipped"] == ctx.refused
    assert record.stats["rates"] == ctx.rates
    assert record.stats["layers"] == 3


def test_the_pattern_is_that_of_the_target_unless_given():
    from dataclasses import replace

    ctx = PassContext()
    ctx.target = replace(ctx.target, patterns=("unstructured",))
    SelectLayers().run(Model.from_proto(deep(wide=40)), ctx)
    assert set(ctx.rates) == {"fc1.weight", "fc2.weight", "fc3.weight"}
    ctx, _ = chosen(deep(wide=40))
    assert set(ctx.rates) == {"fc2.weight", "fc3.weight"}
    assert ctx.refused["fc1"] == "input channels not a multiple of 32: 40"


@pytest.mark.parametrize(
    ("rates", "want"),
    [
        ({"fc1": 0.5}, [0.5, 0.7, 0.7]),
        ({"fc2.weight": 0.5}, [0.7, 0.5, 0.7]),
        ({"fc[12]": 0.5}, [0.5, 0.5, 0.7]),
        ({"*": 0.2, "re:fc[23]": 0.4, "fc3": 0.0}, [0.2, 0.4, 0.0]),
        ({"fc3": 0.0, "*": 0.2}, [0.2, 0.2, 0.2]),
    ],
)
def test_rates_by_name_glob_and_regex_the_last_that_matches_holds(rates, want):
    ctx, _ = chosen(deep(), rates=rates)
    assert list(ctx.rates.values()) == want


def test_excluded_layers_say_by_what():
    ctx, _ = chosen(deep(), exclude=("fc1", "re:.*3.*"))
    assert set(ctx.rates) == {"fc2.weight"}
    assert ctx.refused["fc1"] == "excluded: by 'fc1'"
    assert ctx.refused["fc3"] == "excluded: by 're:.*3.*'"
    assert ctx.refused["fc0"].startswith("first layer")


def test_prune_last():
    ctx, _ = chosen(deep(), prune_last=True)
    assert "fc4.weight" in ctx.rates


def shared(extra="m3"):
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], "m1"),
        helper.make_node("MatMul", ["h", "w"], ["i"], "m2"),
        helper.make_node("MatMul", ["i", "w"], ["j"], extra),
        helper.make_node("MatMul", ["j", "b"], ["y"], "m4"),
    ]
    weights = {n: normal((64, 64), i) for i, n in enumerate("awb")}
    return make_model(nodes, [value("x", ["N", 64])], [value("y", None)], weights)


def test_a_shared_weight_has_one_rate_whichever_layer_names_it():
    assert chosen(shared())[0].rates == {"w": 0.7}
    assert chosen(shared(), rates={"m3": 0.3})[0].rates == {"w": 0.3}
    assert chosen(shared(), rates={"m3": 0.3, "m2": 0.4})[0].rates == {"w": 0.4}


def test_a_layer_left_out_keeps_the_weight_it_shares_whole():
    with pytest.raises(ModelError, match="1 shared weight, 1 excluded"):
        SelectLayers(exclude=("m3",)).run(Model.from_proto(shared()), PassContext())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rates": {"fcc1": 0.5}}, r"no layer matches 'fcc1'; near: 'fc1'"),
        ({"exclude": ("re:fc9",)}, r"no layer matches 're:fc9'"),
        ({"rates": {"fc0": 0.5}}, r"the rate of 'fc0' is for layers not pruned: 'fc0'"),
        ({"pattern": "nm:2:4", "rate": 0.7}, r"nm:2:4 is a rate of 0.5; a rate of 0.7 conflicts"),
        ({"pattern": "nm:2:4", "rates": {"fc1": 0.25}}, r"a rate of 0.25 conflicts"),
        ({"pattern": "bloc"}, r"no pattern 'bloc': did you mean block"),
        ({"rate": 1.0}, r"outside \[0, 1\)"),
        ({"rate": -0.1}, r"outside \[0, 1\)"),
        ({"rates": {"fc1": 1.5}}, r"outside \[0, 1\)"),
        ({"rate": float("nan")}, r"not a number|outside"),
        ({"exclude": ("re:(",)}, r"not a regular expression"),
    ],
)
def test_options_that_cannot_be_honoured_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        SelectLayers(**options).run(Model.from_proto(deep()), PassContext())


def test_options_are_refused_when_given_not_when_run():
    for options in ({"rate": 1.0}, {"pattern": "nm:2:4", "rate": 0.7}, {"rates": {"re:(": 0.5}}):
        with pytest.raises(OptionError):
            SelectLayers(**options)


def test_the_targets_pattern_may_fix_the_rate_too():
    from dataclasses import replace

    ctx = PassContext()
    ctx.target = replace(ctx.target, patterns=("nm:2:4",))
    with pytest.raises(OptionError, match="conflicts"):
        SelectLayers(rate=0.7).run(Model.from_proto(deep()), ctx)
    SelectLayers().run(Model.from_proto(deep()), ctx)
    assert set(ctx.rates.values()) == {0.5}
    SelectLayers(rate=0.5).run(Model.from_proto(deep()), ctx)


def test_no_prunable_layer_is_one_line_of_counted_reasons():
    with pytest.raises(ModelError) as error:
        SelectLayers().run(Model.from_proto(mlp(64, 40, 40, 8)), PassContext())
    assert str(error.value) == (
        "no layer can be pruned: 1 first layer, 2 input channels not a multiple of 32"
    )


def test_a_model_without_layers_says_so():
    proto = make_model(
        [helper.make_node("Relu", ["x"], ["y"], "r")], [value("x", [2])], [value("y", [2])]
    )
    with pytest.raises(ModelError, match="no Conv, Gemm or MatMul"):
        SelectLayers().run(Model.from_proto(proto), PassContext())


def test_a_failed_choice_leaves_the_context_as_it_was():
    ctx = PassContext(rates={"old": 0.5}, refused={"a": "b"})
    with pytest.raises(ModelError):
        SelectLayers().run(Model.from_proto(mlp(64, 40, 40, 8)), ctx)
    assert (ctx.rates, ctx.refused) == ({"old": 0.5}, {"a": "b"})
