"""What a pass did to a graph."""

import json
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from builders import conv_net, feeds_for, mlp
from quantizing import Feeds
from toy_passes import Nothing, Prune, Scale

from onnxdrp.diff import Diff, explained
from onnxdrp.errors import OptionError
from onnxdrp.instruments import Snapshots
from onnxdrp.model import Model
from onnxdrp.passes import Calibrate, FuseBatchNorm, InferShapes, InsertQdq, QuantizeWeights
from onnxdrp.pipeline import Pass, PassContext, PassManager, PassResult


def diffs(*passes: Pass) -> list[Diff]:
    proto = conv_net()
    ctx = PassContext(reader=Feeds(feeds_for(proto, batch=8)))
    report = PassManager(passes, [Snapshots()]).run(Model.from_proto(proto), ctx)
    return [record.diff for record in report.records]


@dataclass(frozen=True)
class Rebuild(Pass):
    """Turn a Relu into a Clip of its own, put an Abs behind the pool, and pad less.

        y = min(max(x, 0), 6)

    No more.
    """

    name: ClassVar[str] = "rebuild"

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        relu, pool = model.node("relu1"), model.node("pool")
        relu.op = "Clip"
        relu.inputs += [
            gs.Constant(n, np.array(v, np.float32)) for n, v in (("low", 0), ("high", 6))
        ]
        model.node("conv1").attrs["pads"] = [0] * 4
        after = gs.Variable("p_abs", np.float32)
        pool.outputs[0].outputs[0].inputs[0] = after
        model.graph.nodes.append(gs.Node("Abs", "abs", {}, [pool.outputs[0]], [after]))
        return PassResult(modified=True)


def test_nodes_added_rewired_and_attributes_are_told() -> None:
    found = diffs(Rebuild())[0]
    assert [(n.name, n.op, n.inputs, n.outputs) for n in found.added] == [
        ("abs", "Abs", ("p",), ("p_abs",))
    ]
    assert found.removed == ()
    by_name = {r.name: r for r in found.rewired}
    assert by_name.keys() == {"conv1", "relu1", "flatten"}
    assert by_name["conv1"].attributes == {"pads": ([1] * 4, [0] * 4)}
    assert (by_name["relu1"].before.op, by_name["relu1"].after.op) == ("Relu", "Clip")
    assert by_name["flatten"].after.inputs == ("p_abs",)
    assert [(w.name, w.what, w.change) for w in found.weights] == [
        ("low", "added", None), ("high", "added", None),
    ]  # fmt: skip
    text = str(found)
    assert "Relu -> Clip; reads r1" not in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "added: 1 Abs" in lines
    assert "Abs abs p -> p_abs" in lines
    assert "rewired: 1 Clip, 1 Conv, 1 Flatten" in lines
    assert "Clip relu1 Relu -> Clip; reads h1 -> h1, low, high" in lines
    assert "Flatten flatten reads p -> p_abs" in lines
    assert "Conv conv1 pads: [1, 1, 1, 1] -> [0, 0, 0, 0]" in lines
    assert str(by_name["flatten"]) == "Flatten 'flatten': reads p -> p_abs"
    assert str(found.added[0]) == "Abs 'abs': p -> p_abs"
    plain = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert plain["added"][0]["name"] == "abs"
    assert {r["before"]["name"]: r["attributes"] for r in plain["rewired"]}["conv1"] == {
        "pads": [[1] * 4, [0] * 4]
    }


def test_weights_are_told_with_sparsity_norm_and_largest_change() -> None:
    pruned, scaled = diffs(Prune(), Scale("fc.weight", -2.0))
    model = Model.from_proto(conv_net())
    before = model.weight("conv2.weight").astype(np.float64)
    keep = np.random.default_rng(0).random(before.shape) < 0.5
    (weight,) = pruned.weights
    assert (weight.name, weight.what) == ("conv2.weight", "changed")
    assert weight.sparsity == (0.0, pytest.approx(1 - keep.mean()))
    assert weight.norm == pytest.approx(
        (np.linalg.norm(before), np.linalg.norm(before * keep)), rel=1e-6
    )
    assert weight.change == pytest.approx(
        np.abs(before * ~keep).max() / np.abs(before).max(), rel=1e-6
    )
    (weight,) = scaled.weights
    assert weight.name == "fc.weight"
    assert weight.change == pytest.approx(3.0)
    assert weight.shape == ((10, 32), (10, 32))
    assert (pruned.added, pruned.removed, pruned.rewired) == ((), (), ())
    (mask, values) = pruned.pictures["conv2.weight"]
    assert f"{keep.sum():,} of {keep.size:,} kept" in mask.text
    assert f"after (orange) {1 - keep.mean():.1%} zeros" in values.text
    (values,) = scaled.pictures["fc.weight"]  # nothing was pruned
    assert values.uri.startswith("data:image/svg+xml")
    assert "pictures" not in pruned.as_dict()


@dataclass(frozen=True)
class PruneAll(Pass):
    """Prune each layer a little more than the one before it."""

    name: ClassVar[str] = "prune-all"

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        rng = np.random.default_rng(0)
        for i in range(40):
            weight = model.weight(f"fc{i}.weight").copy()
            order = np.argsort(np.abs(weight), axis=None)[: (i + 1) * weight.size // 45]
            weight.reshape(-1)[rng.permutation(order)] = 0
            model.set_weight(f"fc{i}.weight", weight)
        return PassResult(modified=True)


def test_pictures_are_few_and_small_however_many_layers_there_are() -> None:
    model = Model.from_proto(mlp(*[256] * 41))
    (record,) = PassManager([PruneAll()], [Snapshots()]).run(model).records
    found = record.diff
    assert len(found.weights) == 40
    assert list(found.pictures) == [f"fc{i}.weight" for i in range(39, 31, -1)]
    assert all(len(p.uri) < 8_000 for pictures in found.pictures.values() for p in pictures)
    html = found._repr_html_()
    assert html.count("<details>") == 8
    assert html.count("<img") == 16
    assert "the other 32 tensors changed less" in html
    assert len(html) < 120_000
    assert "<img" not in str(found)


def test_what_is_fused_and_quantized_is_seen_as_layers_see_it() -> None:
    found = diffs(InferShapes(), FuseBatchNorm(), Calibrate(), QuantizeWeights(), InsertQdq())
    assert "as before" in str(found[0])
    fused, rounded, inserted = found[1], found[3], found[4]
    assert [n.op for n in fused.removed] == ["BatchNormalization"]
    assert {w.name: w.what for w in fused.weights}["bn.mean"] == "removed"
    assert (rounded.added, rounded.removed, rounded.rewired) == ((), (), ())
    change = {w.name: w for w in rounded.weights}["conv2.weight"].change
    assert change is not None
    assert 0 < change < 1 / 127
    (weight,) = (w for w in inserted.weights if w.name == "conv2.weight")
    assert weight.dtype == ("float32", "int8")
    assert weight.change == pytest.approx(0, abs=1e-6)  # it was on that grid before
    assert weight.norm[0] == pytest.approx(weight.norm[1])
    assert "DequantizeLinear" in {n.op for n in inserted.added}
    assert "w' = s * saturate(round(w / s))" in rounded.explanation
    assert "more" in str(inserted)
    assert len(inserted.table().splitlines()) > len(str(inserted).splitlines())


def test_the_explanation_is_the_first_words_and_the_formula() -> None:
    text = "Turn a Relu into a Clip of its own, put an Abs behind the pool, and pad less."
    assert explained(Rebuild()) == f"{text}\n\n    y = min(max(x, 0), 6)"
    assert explained(Nothing()) == "Do nothing, and say what one likes of it."


def test_a_diff_is_found_when_it_is_asked_for_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxdrp.diff

    calls, find = [], onnxdrp.diff.find_diff
    monkeypatch.setattr(onnxdrp.diff, "find_diff", lambda *args: calls.append(args) or find(*args))
    model = Model.from_proto(conv_net())
    (record,) = PassManager([Scale("fc.weight")], [Snapshots()]).run(model).records
    assert calls == []
    assert record.diff is record.diff
    assert len(calls) == 1
    assert "ends" not in record.as_dict()
    json.dumps(record.as_dict())


def test_a_record_without_models_says_how_to_keep_them() -> None:
    (record,) = PassManager([Nothing()]).run(Model.from_proto(conv_net())).records
    with pytest.raises(OptionError, match="instrument Snapshots"):
        _ = record.diff
