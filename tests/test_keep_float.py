import json
import math

import numpy as np
import pytest
from builders import conv_net, normal
from quantizing import Feeds, parse

from onnxdrp.datareaders import ArrayReader
from onnxdrp.errors import CheckError, DataError, ModelError, OptionError, PassError
from onnxdrp.evaluation import accuracy, compare_models
from onnxdrp.model import Model
from onnxdrp.passes import Calibrate, InferShapes, InsertQdq, KeepFloat, QuantizeWeights
from onnxdrp.pipeline import PassContext, PassManager
from onnxdrp.targets import load_target

N = 8
LAYERS = ("a", "b", "c", "d", "e")


def chain(bad=("c",)) -> Model:
    """Conv-Relu five times; a weight of a bad layer has one channel 500 times the others."""
    weights = {}
    for i, name in enumerate(LAYERS):
        weight = normal((N, N, 3, 3), i)
        if name in bad:
            weight[1:] /= 500
            weight[0] *= 4
        weights[f"w_{name}"] = weight
    body = "".join(
        f"[{n}] h_{n} = Conv <pads = [1, 1, 1, 1]> ({before}, w_{n})\n"
        f"[relu_{n}] r_{n} = Relu (h_{n})\n"
        for before, n in zip(("x", *(f"r_{n}" for n in LAYERS[:-1])), LAYERS, strict=True)
    )
    stored = ", ".join(f"float[{N}, {N}, 3, 3] w_{n}" for n in LAYERS)
    text = f"""
    <ir_version: 10, opset_import: ["": 17]>
    net (float[N, {N}, 6, 6] x) => (float[N, {N}] y) <{stored}>
    {{ {body} [pool] p = GlobalAveragePool (r_e) [flat] y = Flatten (p) }}
    """
    model = parse(text, weights)
    for name in bad:  # the readers of a bad layer see channels of one size
        after = f"w_{LAYERS[LAYERS.index(name) + 1]}"
        weight = model.weight(after).copy()
        weight[:, 1:] *= 500
        weight[:, 0] /= 40
        model.set_weight(after, weight / 4)
    return model


def images(samples=48, seed=0):
    return np.random.default_rng(seed).standard_normal((samples, N, 6, 6)).astype(np.float32)


def quantized(model, reader, *more, per_channel=False, target="generic"):
    """The quantized model, the context, and the stats of the passes."""
    ctx = PassContext(reader=reader, target=load_target(target))
    steps = [InferShapes(), Calibrate(exclude_tail="none"), *more, QuantizeWeights(per_channel),
             InsertQdq()]  # fmt: skip
    before, model = model, model.clone()
    report = PassManager(steps).run(model, ctx)
    model.check()
    found = compare_models(before, model, reader)
    return found, ctx, {record.name: record.stats for record in report.records}


def test_the_one_layer_that_spoils_the_model_is_left_float():
    model, reader = chain(), Feeds({"x": images()})
    spoilt, *_ = quantized(model, reader)
    kept, ctx, stats = quantized(model, reader, KeepFloat(min_sqnr=25, per_channel=False))
    assert spoilt.sqnr_db < 15
    assert kept.sqnr_db > 25
    found = stats["keep-float"]
    assert "c" in found["kept"]
    assert set(found["kept"]) <= {"c", "d"}
    assert found["quantized"] == pytest.approx(spoilt.sqnr_db, abs=0.01)
    assert found["reached"] == pytest.approx(kept.sqnr_db, abs=0.01)
    assert found["float_share"] == pytest.approx(len(found["kept"]) / 5)
    assert ctx.kept_float["c"] == found["kept"]["c"]
    assert ctx.kept_float["c"].startswith("kept float: quantized alone it leaves ")
    json.dumps(found)


def test_a_goal_that_is_reached_already_leaves_everything_as_it_is():
    model, reader = chain(bad=()), Feeds({"x": images()})
    plain, before, _ = quantized(model, reader)
    found, ctx, stats = quantized(model, reader, KeepFloat(min_sqnr=15, per_channel=False))
    assert found.sqnr_db == plain.sqnr_db
    assert stats["keep-float"]["kept"] == {}
    assert stats["keep-float"]["trials"] == 1
    assert ctx.kept_float == before.kept_float


@pytest.mark.parametrize("goal", [20, 30, 38])
def test_the_goal_is_reached_and_no_single_layer_more_could_be_quantized(goal):
    model, reader = chain(bad=("b", "d")), Feeds({"x": images()})
    found, _, stats = quantized(model, reader, KeepFloat(min_sqnr=goal, per_channel=False))
    assert found.sqnr_db >= goal
    kept = list(stats["keep-float"]["kept"])
    assert kept
    for name in kept:
        fewer = Calibrate(exclude=tuple(n for n in kept if n != name), exclude_tail="none")
        ctx = PassContext(reader=reader)
        trial = model.clone()
        PassManager([fewer, QuantizeWeights(False), InsertQdq()]).run(trial, ctx)
        assert compare_models(model, trial, reader).sqnr_db < goal


def test_a_goal_that_only_float_reaches_is_an_error_that_says_so():
    model, reader = chain(), Feeds({"x": images()})
    with pytest.raises(PassError, match=r"goal of 95.* dB is reached only with all layers float"):
        quantized(model, reader, KeepFloat(min_sqnr=95.0))
    with pytest.raises(PassError) as caught:
        quantized(model, reader, KeepFloat(min_sqnr=95.0))
    assert isinstance(caught.value.__cause__, CheckError)


def test_points_are_of_agreement_without_labels_and_of_accuracy_with_them():
    model, rng = chain(), np.random.default_rng(1)
    x = images(200) + rng.normal(0, 1, (200, N, 1, 1)).astype(np.float32)
    usual = model.session().run(None, {"x": x})[0].mean(0)
    model.set_weight("w_e", model.weight("w_e") / usual.reshape(-1, 1, 1, 1))  # so classes vary
    want = model.session().run(None, {"x": x})[0].argmax(1)
    assert len(set(want)) > 3
    reader = Feeds({"x": x})
    step = KeepFloat(max_drop=2.0, samples=200, per_channel=False)
    plain, *_ = quantized(model, reader)
    found, _, stats = quantized(model, reader, step)
    assert plain.top1_agreement < 0.9
    assert found.top1_agreement >= 0.98
    assert stats["keep-float"]["unit"] == "points of top-1 agreement"
    assert stats["keep-float"]["quantized"] == pytest.approx(100 * (1 - plain.top1_agreement))
    labels = (want + (np.arange(200) % 3 == 0)) % N  # a third of the labels is wrong for float, too
    labelled = ArrayReader({"x": x, "y": labels}, model, batch=40)
    _, ctx, stats = quantized(model, labelled, step)
    assert stats["keep-float"]["unit"] == "points of top-1 accuracy"
    assert stats["keep-float"]["reached"] <= 2.0
    assert ctx.reader is labelled
    assert 60 < accuracy(model, labelled).as_dict()["top1"] < 70


def test_a_goal_that_so_few_samples_cannot_tell_is_told_of():
    model, reader = chain(), Feeds({"x": images()})
    *_, stats = quantized(model, reader, KeepFloat(max_drop=0.5, per_channel=False))
    found = stats["keep-float"]
    low, high = found["interval"]
    assert low <= found["reached"] <= 0.5 < high
    (warning,) = found["warnings"]
    assert f"on 48 samples, {low:.2f} to {high:.2f} points, reaches beyond 0.5" in warning
    *_, stats = quantized(model, reader, KeepFloat(max_drop=50.0, per_channel=False))
    assert not stats["keep-float"]["warnings"]


def test_tensors_that_had_the_range_of_another_get_one_of_their_own():
    text = """
    <ir_version: 10, opset_import: ["": 17]>
    net (float[N, 4, 8, 8] x) => (float[N, 4] y)
    <float[4, 4, 3, 3] w1, float[4, 4, 3, 3] w2, float[4, 4, 3, 3] w3>
    {
        [one] a = Conv <pads = [1, 1, 1, 1]> (x, w1)
        [max] m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (a)
        [two] b = Conv <pads = [1, 1, 1, 1]> (m, w2)
        [three] c = Conv <pads = [1, 1, 1, 1]> (m, w3)
        [norm] n = Softsign (m)
        [sum] s = Sum (b, c, n)
        [pool] p = GlobalAveragePool (s)
        [flat] y = Flatten (p)
    }
    """
    weights = {f"w{i}": normal((4, 4, 3, 3), i) for i in (1, 2, 3)}
    weights["w1"][0] *= 300
    model = parse(text, weights)
    x = np.random.default_rng(0).standard_normal((32, 4, 8, 8)).astype(np.float32)
    reader = Feeds({"x": x})
    plain, before, _ = quantized(model, reader)
    assert "m" not in before.ranges  # it has that of "a"
    goal = plain.sqnr_db + 6
    found, ctx, stats = quantized(model, reader, KeepFloat(min_sqnr=goal, per_channel=False))
    assert found.sqnr_db >= goal
    assert "one" in stats["keep-float"]["kept"]
    low, high = ctx.ranges["m"].low, ctx.ranges["m"].high
    assert max(-low, high) == pytest.approx(
        max(-before.ranges["a"].low, before.ranges["a"].high), rel=0.02
    )


def test_options_and_what_must_come_before_are_checked_in_words():
    for options in ({}, {"min_sqnr": 30.0, "max_drop": 1.0}):
        with pytest.raises(OptionError, match="either min_sqnr or max_drop"):
            KeepFloat(**options)
    for options in ({"min_sqnr": 0.0}, {"min_sqnr": math.nan}, {"max_drop": -1.0}):
        with pytest.raises(OptionError, match="is outside"):
            KeepFloat(**options)
    with pytest.raises(OptionError, match="samples"):
        KeepFloat(min_sqnr=30.0, samples=0)
    model = Model.from_proto(conv_net())
    with pytest.raises(DataError, match="needs data"):
        KeepFloat(min_sqnr=30.0).requires(model, PassContext())
    with pytest.raises(ModelError, match="run calibrate first"):
        KeepFloat(min_sqnr=30.0).requires(model, PassContext(reader=Feeds({"x": images()})))


def test_a_model_without_classes_has_no_points():
    text = """
    <ir_version: 10, opset_import: ["": 17]>
    net (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) <float[4, 4, 3, 3] w>
    { [one] y = Conv <pads = [1, 1, 1, 1]> (x, w) }
    """
    model = parse(text, {"w": normal((4, 4, 3, 3), 0)})
    x = np.random.default_rng(0).standard_normal((8, 4, 8, 8)).astype(np.float32)
    with pytest.raises(PassError, match="there is no top-1; give min_sqnr"):
        quantized(model, Feeds({"x": x}), KeepFloat(max_drop=1.0))


def test_the_same_data_and_seed_keep_the_same_layers():
    model, reader = chain(bad=("b", "d")), Feeds({"x": images(100)})
    step = KeepFloat(min_sqnr=28, samples=20, per_channel=False)
    first, second = (quantized(model, reader, step)[2]["keep-float"] for _ in range(2))
    assert first == second
    assert first["samples"] == 20


def test_points_that_pruning_has_cost_count_in_the_budget():
    model, colours = chain(), np.random.default_rng(1).normal(0, 1, (200, N, 1, 1))
    x = images(200) + colours.astype(np.float32)
    pruned, reader = model.clone(), Feeds({"x": x})
    weight = np.array(model.weight("w_b"))
    weight[6] = 0
    pruned.set_weight("w_b", weight)
    own, now = (m.session().run(None, {"x": x})[0].argmax(1) for m in (model, pruned))
    lost = 100 * float(np.mean(own != now))
    assert 2 < lost < 30

    def kept(budget):
        ctx, found = PassContext(reader=reader, dense=model), pruned.clone()
        step = KeepFloat(max_drop=budget, samples=200, per_channel=False)
        steps = [InferShapes(), Calibrate(exclude_tail="none"), step, QuantizeWeights(False)]
        records = PassManager([*steps, InsertQdq()]).run(found, ctx).records
        stats = next(r.stats for r in records if r.name == "keep-float")
        return stats, 100 * (1 - compare_models(model, found, reader).top1_agreement)

    stats, reached = kept(lost + 5)
    assert stats["pruned"] == pytest.approx(lost)
    assert stats["reached"] == pytest.approx(reached)
    assert reached <= lost + 5
    with pytest.raises(PassError, match=rf"{lost:.2f} points are lost by what was pruned"):
        kept(lost - 1)
