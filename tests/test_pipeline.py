"""Passes, the manager and its records."""

import dataclasses
import logging
from typing import Any

import pytest
from builders import conv_net
from toy_passes import Break, Nothing, Options, Prune, Scale

import onnxdrp
from onnxdrp.errors import CheckError, ModelError, OnnxDrpError, PassError
from onnxdrp.model import Model
from onnxdrp.pipeline import Instrument, Pass, PassContext, PassManager, PassRecord
from onnxdrp.report import Report


class Diary(Instrument):
    """Writes down what it is told; fails where it is told to."""

    def __init__(self, name: str, lines: list[str], fails_in: str = "") -> None:
        self.name, self.lines, self.fails_in = name, lines, fails_in

    def _note(self, hook: str, step: Pass) -> None:
        self.lines.append(f"{self.name}.{hook} {step.name}")
        if hook == self.fails_in:
            raise CheckError(f"{self.name} is not content")

    def start(self, passes: Any, model: Model, ctx: PassContext) -> None:
        self.lines.append(f"{self.name}.start {len(passes)}")

    def before(self, index: int, step: Pass, model: Model, ctx: PassContext) -> None:
        self._note("before", step)

    def after(
        self, index: int, step: Pass, model: Model, ctx: PassContext, record: PassRecord
    ) -> None:
        self._note("after", step)

    def failed(
        self, index: int, step: Pass, model: Model, ctx: PassContext, error: Exception
    ) -> None:
        self._note("failed", step)


@pytest.fixture
def model() -> Model:
    return Model.from_proto(conv_net())


def test_passes_are_frozen_and_keep_no_state(model: Model) -> None:
    step = Scale("fc.weight")
    with pytest.raises(dataclasses.FrozenInstanceError):
        step.factor = 3.0  # type: ignore[misc]
    before = step.options()
    first = PassManager([step]).run(model).records[0]
    second = PassManager([step]).run(model).records[0]
    assert step.options() == before == {"weight": "fc.weight", "factor": 2.0, "claim": True}
    assert first.stats == second.stats
    assert step == Scale("fc.weight")


def test_every_pass_is_a_frozen_dataclass_with_a_kebab_name() -> None:
    from onnxdrp.recipe import PASSES

    for name, kind in PASSES.items():
        assert kind.name == name
        assert name == name.lower().replace("_", "-").replace(" ", "-")
        assert dataclasses.is_dataclass(kind)
        assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
        assert kind.__doc__
        assert isinstance(kind.keeps_results, bool)


def test_a_run_edits_the_model_and_reports(model: Model) -> None:
    want = model.weight("fc.weight") * 6
    report = PassManager([Scale("fc.weight"), Nothing(), Scale("fc.weight", 3.0)]).run(model)
    assert isinstance(report, Report)
    assert report.model is model
    assert (model.weight("fc.weight") == want).all()
    assert [r.name for r in report.records] == ["scale", "nothing", "scale"]
    assert [r.index for r in report.records] == [0, 1, 2]
    assert [r.modified for r in report.records] == [True, False, True]
    assert 0 < sum(r.seconds for r in report.records) <= report.seconds


def test_steps_runs_one_pass_a_turn(model: Model) -> None:
    first = model.weight("fc.weight").copy()
    steps = PassManager([Scale("fc.weight"), Scale("fc.weight")]).steps(model)
    assert (model.weight("fc.weight") == first).all()
    next(steps)
    assert (model.weight("fc.weight") == 2 * first).all()
    next(steps)
    assert (model.weight("fc.weight") == 4 * first).all()
    with pytest.raises(StopIteration):
        next(steps)


def test_the_context_is_shared_by_the_passes_of_a_run(model: Model) -> None:
    ctx = PassContext(seed=3)
    PassManager([Prune(), Nothing()]).run(model, ctx)
    assert set(ctx.masks) == {"conv2.weight"}
    assert PassContext().masks == {}  # and by no other


# -------------------------------------------------------------------------------------- instruments


def test_instruments_stand_around_passes_like_a_stack(model: Model) -> None:
    lines: list[str] = []
    PassManager([Nothing(), Scale("fc.weight")], [Diary("a", lines), Diary("b", lines)]).run(model)
    assert lines == [
        "a.start 2", "b.start 2",
        "a.before nothing", "b.before nothing", "b.after nothing", "a.after nothing",
        "a.before scale", "b.before scale", "b.after scale", "a.after scale",
    ]  # fmt: skip


@pytest.mark.parametrize("stage", ["requires", "run", "ensures", "bug"])
def test_all_instruments_hear_of_a_failed_pass(model: Model, stage: Any) -> None:
    lines: list[str] = []
    manager = PassManager([Break(stage), Nothing()], [Diary("a", lines), Diary("b", lines)])
    with pytest.raises(ZeroDivisionError if stage == "bug" else PassError):
        manager.run(model)
    assert lines[2:] == ["a.before break", "b.before break", "b.failed break", "a.failed break"]


def test_a_failed_check_is_told_to_those_not_told_yet(model: Model) -> None:
    lines: list[str] = []
    watching = [Diary("a", lines), Diary("b", lines, "after"), Diary("c", lines)]
    with pytest.raises(PassError, match="b is not content") as caught:
        PassManager([Nothing()], watching).run(model)
    assert isinstance(caught.value.__cause__, CheckError)
    assert lines[-3:] == ["c.after nothing", "b.after nothing", "a.failed nothing"]


def test_those_not_yet_asked_hear_nothing_of_a_failure_before(model: Model) -> None:
    lines: list[str] = []
    watching = [Diary("a", lines), Diary("b", lines, "before"), Diary("c", lines)]
    with pytest.raises(PassError):
        PassManager([Nothing()], watching).run(model)
    assert lines[3:] == [
        "a.before nothing",
        "b.before nothing",
        "b.failed nothing",
        "a.failed nothing",
    ]


def test_an_instrument_need_not_write_every_hook(model: Model) -> None:
    class Counter(Instrument):
        count = 0

        def after(self, *_: Any) -> None:
            self.count += 1

    counter = Counter()
    PassManager([Nothing(), Nothing()], [counter]).run(model)
    assert counter.count == 2


# ------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("stage", "cause", "words"),
    [
        ("requires", ModelError, "no wheels"),
        ("run", ModelError, "'relu1' is stuck"),
        ("ensures", CheckError, "promise is broken"),
    ],
)
def test_errors_name_the_pass_and_those_before(
    model: Model, stage: Any, cause: type[Exception], words: str
) -> None:
    with pytest.raises(PassError) as caught:
        PassManager([Nothing(), Scale("fc.bias"), Break(stage), Nothing()]).run(model)
    message = str(caught.value)
    assert message.startswith("break: ")
    assert message.endswith("(after nothing, scale)")
    assert words in message
    assert "\n" not in message
    assert isinstance(caught.value.__cause__, cause)
    assert isinstance(caught.value, OnnxDrpError)


def test_the_first_pass_names_none_before(model: Model) -> None:
    with pytest.raises(PassError, match=r"^break: node 'relu1' is stuck; pull$"):
        PassManager([Break()]).run(model)


def test_bugs_are_not_dressed_up(model: Model) -> None:
    with pytest.raises(ZeroDivisionError, match="a bug"):
        PassManager([Break("bug")]).run(model)


# ------------------------------------------------------------------------------------------ records


def test_a_record_shows_what_changed(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    class Rewire(Nothing):
        name = "rewire"

        def run(self, model: Model, ctx: PassContext) -> Any:
            import numpy as np
            import onnx_graphsurgeon as gs

            model.node("relu1").op = "Tanh"
            fc = model.node("fc")
            fc.inputs[1] = gs.Constant("fc.weight.half", np.ones((10, 32), np.float16))
            return super().run(model, ctx)

    caplog.set_level(logging.INFO, "onnxdrp")
    scale, rewire = PassManager([Scale("conv2.weight", 0.5), Rewire(claim=True)]).run(model).records
    assert scale.nodes == (8, 8)
    assert scale.operators == {}
    assert scale.weights == {"added": 0, "removed": 0, "changed": 1}
    assert scale.bytes[0] == scale.bytes[1] > 32 * 32 * 9 * 4
    assert rewire.operators == {"Relu": -1, "Tanh": 1}
    assert rewire.weights == {"added": 1, "removed": 1, "changed": 0}
    assert rewire.bytes[1] - rewire.bytes[0] == -10 * 32 * 2
    text = repr(scale)
    assert text.startswith("000 scale (0.")
    assert "1 weights changed" in text
    assert "factor: 0.5" in text
    assert "skipped: other: no reason" in text
    assert "Relu -1, Tanh +1, 1 weights added, 1 weights removed" in str(rewire)
    assert "bytes" in str(rewire)
    assert str(rewire) in caplog.text
    assert repr(PassManager([Nothing()]).run(model).records[0]).endswith("unchanged")


def test_a_record_is_plain_data(model: Model) -> None:
    record = PassManager([Options(names=("a", "b"))]).run(model).records[0]
    table = record.as_dict()
    assert table["name"] == "options"
    assert table["options"]["names"] == ("a", "b")
    assert {"index", "modified", "stats", "nodes", "weights", "bytes", "seconds"} <= set(table)


def test_the_names_of_a_notebook_are_at_the_top() -> None:
    for name in ("Pass", "PassContext", "PassManager", "PassResult"):
        assert getattr(onnxdrp, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'PassManger'"):
        onnxdrp.PassManger  # type: ignore[attr-defined]  # noqa: B018
