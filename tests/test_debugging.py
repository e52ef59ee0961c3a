"""A run of passes back and forth: traces, what they share, and what they find."""

import dataclasses
import json
import tracemalloc
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from builders import conv_net, mlp
from toy_passes import Break, Nothing, Scale

import onnxdrp
from onnxdrp.datareaders import ArrayReader
from onnxdrp.debugging import Trace
from onnxdrp.errors import DataError, ModelError, OptionError, PassError
from onnxdrp.instruments import Timing
from onnxdrp.model import Model
from onnxdrp.passes import (
    Calibrate,
    CorrectBias,
    FuseBatchNorm,
    InferShapes,
    InsertQdq,
    PruneBlocks,
    QuantizeWeights,
    RefitWeights,
    RoundWeights,
    SelectLayers,
)
from onnxdrp.pipeline import Pass, PassContext, PassManager, PassResult


def data(samples: int = 24, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {"x": rng.standard_normal((samples, 3, 8, 8)).astype(np.float32)}


def net() -> Model:
    return Model.from_proto(conv_net())


def reader(samples: int = 24) -> ArrayReader:
    return ArrayReader(data(samples), net())


QUANTIZING = (InferShapes(), FuseBatchNorm(), Calibrate(), QuantizeWeights(), InsertQdq())
WHOLE = (
    *(InferShapes(), FuseBatchNorm(), SelectLayers(), PruneBlocks(), RefitWeights()),
    *(Calibrate(), RoundWeights(), CorrectBias(), InsertQdq()),
)


def state(trace: Trace) -> tuple[Any, ...]:
    """Everything that a pass could tell apart."""
    ctx = trace.ctx
    tables = {k: repr(v) for k, v in vars(ctx).items() if isinstance(v, dict)}
    models = {k: getattr(ctx, k).fingerprint() for k in ("dense", "reference") if getattr(ctx, k)}
    return trace.model.fingerprint(), tables, models


# ----------------------------------------------------------------------------------- back and forth


def test_a_trace_goes_forth_and_back() -> None:
    trace = onnxdrp.debug(net(), [Scale("fc.weight"), Nothing(), Scale("fc.weight", 3.0)])
    first = net().weight("fc.weight")
    assert trace.record is None
    assert trace.records == []
    assert trace.step().name == "scale"
    assert (trace.model.weight("fc.weight") == 2 * first).all()
    assert trace.jump(2).options["factor"] == 3.0  # type: ignore[union-attr]
    assert (trace.model.weight("fc.weight") == 6 * first).all()
    assert trace.back().name == "nothing"  # type: ignore[union-attr]
    assert (trace.model.weight("fc.weight") == 2 * first).all()
    assert len(trace.records) == 3
    assert trace.jump("start") is None
    assert (trace.model.weight("fc.weight") == first).all()
    assert [r.name for r in trace.run().records] == ["scale", "nothing", "scale"]
    assert "->  002" in str(trace)
    with pytest.raises(OptionError, match="last pass"):
        trace.step()
    trace.jump("start")
    with pytest.raises(OptionError, match="start"):
        trace.back()


def test_each_pass_runs_once_however_often_one_passes_by() -> None:
    timing = Timing()
    trace = onnxdrp.debug(net(), [Scale("fc.weight"), Nothing()], instruments=[timing])
    trace.run()
    for _ in range(3):
        trace.jump("start")
        trace.step()
        trace.run()
    assert len(timing.records) == 2


def test_the_model_that_is_given_and_what_a_trace_gives_are_ones_own() -> None:
    model = net()
    trace = onnxdrp.debug(model, [Scale("fc.weight"), Scale("fc.weight")])
    model.set_weight("fc.weight", model.weight("fc.weight") * 0)
    trace.step()
    kept = state(trace)
    given, ctx = trace.model, trace.ctx
    given.set_weight("fc.weight", given.weight("fc.weight") * 0)
    ctx.rates["fc.weight"] = 0.5
    assert state(trace) == kept
    assert np.ptp(trace.model.weight("fc.weight")) > 0


@pytest.mark.parametrize("where", [3, -1, "skale"])
def test_a_place_that_is_not_there_is_refused(where: Any) -> None:
    trace = onnxdrp.debug(net(), [Scale("fc.weight"), Nothing(), Nothing()])
    with pytest.raises(OptionError, match="no pass"):
        trace.jump(where)


def test_a_pass_that_fails_leaves_the_trace_where_it_was() -> None:
    trace = onnxdrp.debug(net(), [Scale("fc.weight"), Break("run"), Nothing()])
    trace.step()
    kept = state(trace)
    for _ in range(2):
        with pytest.raises(PassError, match="break: node 'relu1' is stuck"):
            trace.step()
        assert state(trace) == kept  # Break had edited model and context
    assert [r.name for r in trace.records] == ["scale"]


# --------------------------------------------------------------------------------- the same results


def test_a_trace_gives_bit_for_bit_what_a_plain_run_gives() -> None:
    model, ctx = net(), PassContext(reader=reader())
    want = []
    for _ in PassManager(WHOLE).steps(model, ctx):
        plain = Trace([Nothing()], model, ctx)
        want.append(state(plain))
    trace = Trace(WHOLE, net(), PassContext(reader=reader()))
    for number in (4, 1, 8, 0, 3, 7, 2, 6, 5):
        trace.jump(number)
        assert state(trace) == want[number]


def test_what_is_run_again_gives_the_same_bits() -> None:
    trace = Trace(WHOLE, net(), PassContext(reader=reader()))
    trace.run()
    for which in (0, 3, 4, 6, 8):
        assert state(trace.rerun(which)) == state(trace)


def test_run_again_with_other_options_is_a_fresh_run_with_these() -> None:
    trace = onnxdrp.debug(net(), QUANTIZING, data(), seed=3)
    trace.run()
    kept = state(trace)
    other = trace.rerun("calibrate", method="minmax")
    fresh = onnxdrp.debug(
        net(), [dataclasses.replace(p, method="minmax") if isinstance(p, Calibrate) else p
                for p in QUANTIZING], data(), seed=3
    )  # fmt: skip
    fresh.run()
    assert state(other) == state(fresh)
    assert state(other) != kept
    assert state(trace) == kept
    assert other.records[0] is trace.records[0]  # what is before is shared, not run again
    assert other.records[3] is not trace.records[3]


def test_two_traces_of_one_start_do_not_disturb_each_other() -> None:
    trace = onnxdrp.debug(net(), [Scale("fc.weight", f) for f in (2.0, 3.0, 5.0)])
    trace.step()
    other = trace.rerun(0, factor=7.0)
    first = net().weight("fc.weight")
    assert (other.model.weight("fc.weight") == first * 7 * 3 * 5).all()
    trace.run()
    assert (trace.model.weight("fc.weight") == first * 2 * 3 * 5).all()
    assert trace.records[1].diff.weights[0].norm == pytest.approx(
        (2 * np.linalg.norm(first), 6 * np.linalg.norm(first))
    )


def test_other_options_are_checked() -> None:
    trace = onnxdrp.debug(net(), [Scale("fc.weight")])
    with pytest.raises(OptionError, match="no option 'facto'; is 'factor' meant"):
        trace.rerun("scale", facto=3.0)
    with pytest.raises(OptionError, match="start"):
        trace.rerun("start")


def test_a_trace_does_what_the_run_of_its_recipe_does(tmp_path: Any) -> None:
    report = onnxdrp.quantize(net(), data())
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(report.recipe, encoding="utf-8")
    trace = onnxdrp.debug(net(), recipe, data())
    assert trace.run().model.fingerprint() == report.model.fingerprint()


# ------------------------------------------------------------------------------------------- memory


def test_to_go_back_costs_no_memory_of_the_models_size() -> None:
    model = Model.from_proto(mlp(64, 2048, 2048, 8))
    large, small = model.inventory()[1], model.weight("fc2.weight").nbytes
    assert large > 16 << 20
    passes = [Scale("fc2.weight", 1.0 + i) for i in range(8)]
    tracemalloc.start()
    try:
        trace = onnxdrp.debug(model, passes)
        trace.run()
        for where in (0, 7, 3, "start", 5):
            trace.jump(where)
            assert trace.model.weight("fc0.weight").shape == (2048, 64)
        other = trace.rerun(4, factor=9.0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.2 * large
    assert peak > 12 * small  # every weight that a pass replaced is kept
    places = [t.model_at(i).weight("fc1.weight") for t in (trace, other) for i in range(8)]
    assert all(np.shares_memory(model.weight("fc1.weight"), weight) for weight in places)


# ----------------------------------------------------------------------------------- what was found


@dataclass(frozen=True)
class Cheat(Pass):
    """Change a weight and deny it."""

    name: ClassVar[str] = "cheat"

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        model.set_weight("conv2.weight", model.weight("conv2.weight") * np.float32(1.5))
        return PassResult(modified=False)


def test_bisect_names_the_pass_and_the_first_tensor_beyond_the_limit() -> None:
    trace = onnxdrp.debug(net(), [Nothing(), Scale("conv2.weight", 1.01), Nothing()], data())
    trace.step()
    found = trace.bisect(60)
    assert trace.record is not None
    assert trace.record.name == "nothing"  # the place stays
    assert found.found is not None
    assert (found.found.index, found.found.name) == (1, "scale")
    assert found.tensor is not None
    assert (found.tensor.node, found.tensor.tensor) == ("conv2", "h2")
    assert found.tensor.before_db == np.inf
    assert found.tensor.after_db == pytest.approx(40, abs=0.01)  # a hundredth
    assert found.tensor.pass_db == pytest.approx(40, abs=0.01)
    assert [t.tensor for t in found.tensors] == ["h1", "r1", "h2", "h3", "r2", "p", "f", "y"]
    assert [p.modified for p in found.passes] == [False, True, False]
    assert found.passes[0].value == np.inf
    assert found.passes[1].value == found.passes[2].value < 60
    plain = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert plain["tensor"]["tensor"] == "h2"
    assert "pass 001 scale" in found.verdict
    assert "'h2' of Conv 'conv2', 3 of 8" in str(found)


def test_bisect_finds_nothing_within_the_limit() -> None:
    found = onnxdrp.debug(net(), [Scale("conv2.weight", 1.01)], data()).bisect(20)
    assert found.found is None
    assert found.tensor is None
    assert "no pass" in found.verdict


def test_bisect_does_not_trust_what_a_pass_says_of_itself() -> None:
    found = onnxdrp.debug(net(), [Nothing(), Cheat(), Nothing()], data()).bisect(30)
    assert found.found is not None
    assert found.found.name == "cheat"


def test_an_error_that_is_repaired_is_not_the_one_that_stays() -> None:
    passes = [
        *(Scale("conv2.weight", 2.0), Scale("conv2.weight", 0.5), Nothing()),
        *(Scale("fc.weight", 1.5), Scale("fc.weight", 1.01)),
    ]
    found = onnxdrp.debug(net(), passes, data()).bisect(20)
    assert found.found is not None
    assert found.found.index == 3
    assert found.tensor is not None
    assert found.tensor.tensor == "y"
    assert found.repaired == ""
    found = onnxdrp.debug(net(), passes[:3], data()).bisect(20)
    assert found.found is not None
    assert (found.found.index, found.repaired) == (0, "scale")
    assert "brings it back" in found.verdict


def test_a_tensor_that_was_beyond_before_the_pass_is_not_named() -> None:
    passes = [Scale("conv1.weight", 1.003), Scale("fc.weight", 1.02)]
    found = onnxdrp.debug(net(), passes, data()).bisect(40)
    assert found.found is not None
    assert found.found.index == 1
    assert found.tensor is not None
    assert found.tensor.tensor == "y"
    assert found.tensor.before_db is not None
    assert found.tensor.before_db > 40


def test_bisect_by_agreement_names_where_the_error_jumps() -> None:
    passes = [InferShapes(), Scale("conv2.weight", -1.0), Nothing()]
    found = onnxdrp.debug(net(), passes, data(100)).bisect(0.9, "agreement")
    assert found.found is not None
    assert found.found.name == "scale"
    assert 0 <= found.found.value < 0.9
    assert found.tensor is not None
    assert found.tensor.tensor == "h2"


@pytest.mark.parametrize(("limit", "what"), [(2.0, "agreement"), (np.nan, "sqnr"), (3.0, "cosine")])
def test_limits_that_say_nothing_are_refused(limit: float, what: Any) -> None:
    with pytest.raises(OptionError):
        onnxdrp.debug(net(), [Nothing()], data()).bisect(limit, what)


def test_bisect_and_tensor_need_data() -> None:
    trace = onnxdrp.debug(net(), [Nothing()])
    for ask in (lambda: trace.bisect(20), lambda: trace.tensor("h1"), trace.inputs):
        with pytest.raises(DataError, match="give a reader"):
            ask()


# ------------------------------------------------------------------------------------------ tensors


def test_a_quantized_tensor_shows_its_grid_saturation_and_error() -> None:
    model, given = net(), data()
    trace = Trace(QUANTIZING, model, PassContext(reader=ArrayReader(given, model)))
    trace.run()
    rows = [1, 5, 6]
    seen = trace.tensor("r1", samples=rows)
    want = model.session(outputs=["r1"]).run(["r1"], {"x": given["x"][rows]})[0]
    np.testing.assert_allclose(seen.original, want, rtol=1e-5, atol=1e-6)
    assert seen.samples == (1, 5, 6)
    assert seen.grid is not None
    assert seen.values is not None
    assert seen.unrounded is not None
    scale, zero = float(seen.grid.scale), int(seen.grid.zero_point)
    codes = np.rint(seen.unrounded / np.float32(scale)) + zero
    np.testing.assert_array_equal(
        seen.values, (np.clip(codes, 0, 255) - zero).astype(np.float32) * np.float32(scale)
    )
    assert seen.saturated == ((codes < 0).sum(), (codes > 255).sum())
    assert seen.saturated[0] > 0  # the Relu is in the grid
    noise = np.square(seen.original.astype(np.float64) - seen.values).sum()
    sqnr = 10 * np.log10(np.square(seen.original.astype(np.float64)).sum() / noise)
    assert seen.error is not None
    assert seen.error.sqnr_db == pytest.approx(sqnr, abs=1e-6)
    assert 20 < sqnr < 60
    assert seen.range is not None
    assert (seen.range.low, seen.range.high) == (seen.values.min(), seen.values.max())
    assert {side: int(h.counts.sum()) for side, h in seen.histogram().items()} == {
        "original": want.size, "values": want.size,
    }  # fmt: skip
    assert len({h.width for h in seen.histogram().values()}) == 1
    json.dumps(seen.as_dict(), allow_nan=False)
    assert "grid: uint8" in str(seen)
    assert f"saturated: {seen.saturated[0]:,} below (as the float model cuts them)" in str(seen)


def test_a_calibrated_tensor_tells_what_lies_outside_before_there_is_a_grid() -> None:
    trace = Trace(QUANTIZING, net(), PassContext(reader=reader()))
    trace = trace.rerun("calibrate", method="percentile", percentile=90.0)
    seen = trace.tensor("r1", "calibrate", samples=24)
    assert seen.at == "calibrate"
    assert seen.grid is None
    assert seen.calibrated is not None
    assert seen.values is not None
    assert seen.saturated == (0, (seen.values > seen.calibrated.high).sum())
    assert seen.saturated[1] > 0
    assert seen.error is not None
    assert seen.error.sqnr_db > 100  # fused, not rounded


def test_stored_tensors_are_compared_as_layers_see_them() -> None:
    trace = Trace(QUANTIZING, net(), PassContext(reader=reader()))
    trace.run()
    seen = trace.tensor("fc.weight")
    assert seen.samples == ()
    assert seen.grid is not None
    assert seen.grid.dtype == "int8"
    assert seen.error is not None
    assert 35 < seen.error.sqnr_db < 60
    np.testing.assert_array_equal(seen.original, net().weight("fc.weight"))


def test_tensors_that_only_one_model_has_are_shown_alone() -> None:
    trace = Trace(QUANTIZING, net(), PassContext(reader=reader()))
    trace.run()
    gone = trace.tensor("h2", samples=2)  # fused away
    assert gone.original is not None
    assert gone.values is None
    assert gone.error is None
    assert "not comparable" in str(gone)
    with pytest.raises(ModelError, match="no tensor is called 'h22'; near: 'h2'"):
        trace.tensor("h22")
    with pytest.raises(DataError, match="samples 0 to 23"):
        trace.tensor("h1", samples=[24])
    with pytest.raises(OptionError, match="samples 0"):
        trace.tensor("h1", samples=0)
