"""Instruments: what they write, and what they find wrong."""

import dataclasses
import json
import logging
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from builders import conv_net, feeds_for, outputs_of, same_outputs
from click.testing import CliRunner
from toy_passes import Break, Nothing, Prune, Scale, Wobble

from onnxdrp.channels.choosing import ChannelScores
from onnxdrp.channels.sensitivity import ChannelSensitivity
from onnxdrp.contexts import load_context, save_context
from onnxdrp.datareaders import ArrayReader, DataReader
from onnxdrp.errors import CheckError, DataError, OptionError, PassError
from onnxdrp.instruments import (
    Dump,
    Equivalence,
    Progress,
    Reproducer,
    Timing,
    Verify,
    replay,
)
from onnxdrp.masks import Mask
from onnxdrp.memory import peak_rss_mb
from onnxdrp.model import Model
from onnxdrp.pipeline import Pass, PassContext, PassManager, PassResult
from onnxdrp.quantization import QuantParams, Range
from onnxdrp.ranges import Ranges, TensorRange
from onnxdrp.targets import load_target
from onnxdrp.terminal import pace
from onnxdrp.unit_sensitivity import Sensitivity


@pytest.fixture
def model() -> Model:
    return Model.from_proto(conv_net())


@dataclass(frozen=True)
class Quantize(Pass):
    """Store conv2.weight as int8 behind a DequantizeLinear, with a zero point that is not 0."""

    name: ClassVar[str] = "quantize"
    wrong: int = 0

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        weight = model.weight("conv2.weight")
        scale, zero = np.float32(np.abs(weight).max() / 100), np.int8(5)
        codes = (np.rint(weight / scale) + zero).astype(np.int8)
        places = np.argwhere(~ctx.masks["conv2.weight"].keep)[: self.wrong]
        codes[tuple(places.T)] += 1
        conv = model.node("conv2")
        model.set_weight("conv2.weight", codes)
        floats = gs.Variable("conv2.weight.float", np.float32, codes.shape)
        ends = [
            conv.inputs[1],
            gs.Constant("scale", np.array(scale)),
            gs.Constant("zero", np.array(zero)),
        ]
        model.graph.nodes.insert(
            0, gs.Node("DequantizeLinear", "dq", inputs=ends, outputs=[floats])
        )
        conv.inputs[1] = floats
        return PassResult(modified=True)


@dataclass(frozen=True)
class Rename(Pass):
    """Rename a pruned weight, and say nothing of it."""

    name: ClassVar[str] = "rename"

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        model.tensor("conv2.weight").name = "other"
        return PassResult(modified=True)


@dataclass(frozen=True)
class Spoil(Pass):
    """Make the model invalid."""

    name: ClassVar[str] = "spoil"

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        model.node("conv1").attrs["no_such"] = 1
        return PassResult(modified=True)


# --------------------------------------------------------------------------------------------- Dump


def test_dump_writes_the_model_after_each_pass(tmp_path: Path, model: Model) -> None:
    folder = tmp_path / "new" / "steps"
    first = model.clone()
    PassManager([Nothing(), Scale("fc.weight"), Prune()], [Dump(folder)]).run(model)
    files = sorted(p.name for p in folder.glob("*.onnx"))
    assert files == ["000_nothing.onnx", "001_scale.onnx", "002_prune.onnx"]
    feeds = feeds_for(conv_net())
    same_outputs(first, Model.load(folder / files[0]), feeds)
    same_outputs(model, Model.load(folder / files[2]), feeds)
    scaled = Model.load(folder / files[1])
    assert (scaled.weight("fc.weight") == 2 * first.weight("fc.weight")).all()


def test_dump_of_a_failing_run_keeps_what_went_before(tmp_path: Path, model: Model) -> None:
    with pytest.raises(PassError):
        PassManager([Nothing(), Break(), Nothing()], [Dump(tmp_path)]).run(model)
    assert [p.name for p in tmp_path.glob("*.onnx")] == ["000_nothing.onnx"]


def test_dump_replaces_its_own_files_only(tmp_path: Path, model: Model) -> None:
    PassManager([Nothing(), Nothing(), Nothing()], [Dump(tmp_path)]).run(model)
    PassManager([Nothing()], [Dump(tmp_path)]).run(model)
    assert [p.name for p in tmp_path.glob("*.onnx")] == ["000_nothing.onnx"]
    (tmp_path / "001_nothing.onnx").write_text("mine")
    with pytest.raises(OptionError, match=r"'001_nothing\.onnx', which no dump wrote"):
        Dump(tmp_path)
    assert (tmp_path / "001_nothing.onnx").read_text() == "mine"
    assert (tmp_path / "000_nothing.onnx").exists()


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "000_nothing.onnx"])
def test_dump_refuses_a_folder_of_others(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(OptionError, match="which no dump wrote"):
        Dump(tmp_path)
    assert (tmp_path / name).exists()


def test_dump_refuses_sub_folders_files_and_the_folder_of_its_input(
    tmp_path: Path, model: Model
) -> None:
    (tmp_path / "sub").mkdir()
    with pytest.raises(OptionError, match="'sub'"):
        Dump(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match="is a file"):
        Dump(tmp_path / "file")
    steps = tmp_path / "steps"
    PassManager([Nothing()], [Dump(steps)]).run(model)
    dumped = Model.load(steps / "000_nothing.onnx")
    with pytest.raises(OptionError, match="holds the input"):
        PassManager([Nothing()], [Dump(steps)]).run(dumped)
    assert (steps / "000_nothing.onnx").exists()


# ------------------------------------------------------------------------------------------- Verify


def verified(model: Model, *passes: Pass, ctx: PassContext | None = None) -> None:
    PassManager(passes, [Verify()]).run(model, ctx)


def test_verify_is_content_with_what_is_right(model: Model) -> None:
    verified(model, Nothing(), Scale("fc.weight"), Prune(), Nothing(), Quantize(), Nothing())
    assert model.weight("conv2.weight").dtype == np.int8


@pytest.mark.parametrize("step", [Nothing(claim=True), Scale("fc.weight", claim=False)])
def test_verify_finds_a_lie_about_modified(model: Model, step: Pass) -> None:
    with pytest.raises(PassError, match=r"modified=(True|False), but the model") as caught:
        verified(model, step)
    assert isinstance(caught.value.__cause__, CheckError)


def test_a_weight_replaced_by_an_equal_one_is_a_change_of_the_file_but_not_of_a_replaced_one(
    model: Model,
) -> None:
    model.set_weight("fc.weight", model.weight("fc.weight") * 1)
    verified(model, Scale("fc.weight", 1.0, claim=False))


def test_verify_finds_an_invalid_model(model: Model) -> None:
    with pytest.raises(PassError, match=r"not valid ONNX.*no_such"):
        verified(model, Spoil())


def test_verify_finds_masked_weights_that_live(model: Model) -> None:
    with pytest.raises(PassError, match=r"'conv2\.weight' has 3 values"):
        verified(model, Prune(alive=3))
    model = Model.from_proto(conv_net())
    ctx = PassContext()
    verified(model, Prune(), ctx=ctx)
    model.set_weight("conv2.weight", model.weight("conv2.weight") + np.float32(0.5))
    with pytest.raises(PassError, match="nothing: pruned weight"):
        verified(model, Nothing(), ctx=ctx)


def test_verify_reads_masked_weights_through_dequantize_linear(model: Model) -> None:
    with pytest.raises(PassError, match=r"quantize: pruned weight 'conv2\.weight' has 2 values"):
        verified(model, Prune(), Quantize(wrong=2))


def test_verify_misses_a_masked_weight_that_is_gone(model: Model) -> None:
    with pytest.raises(PassError, match=r"'conv2\.weight' is gone"):
        verified(model, Prune(), Rename())


# ------------------------------------------------------------------------------------------- Timing


@dataclass(frozen=True)
class Allocate(Pass):
    """Hold some memory for a moment."""

    name: ClassVar[str] = "allocate"
    megabytes: int = 0

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        held = np.ones(self.megabytes * 10**6, np.uint8)
        return PassResult(modified=False, stats={"held": int(held.size)})


def test_timing_measures_the_peak_of_each_pass(model: Model) -> None:
    timing = Timing()
    sizes = (200, 1, 100)
    report = PassManager([Allocate(mb) for mb in sizes], [timing]).run(model)
    large, small, middle = (r.peak_rss_mb for r in report.records)
    assert large is not None
    assert small is not None
    assert middle is not None
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system cannot reset the peak")
    assert large - small > 150
    assert 60 < middle - small < 150
    assert peak_rss_mb() > large - 0.1


def test_timing_has_a_table(model: Model) -> None:
    timing = Timing()
    manager = PassManager([Nothing(), Scale("fc.weight")], [timing])
    manager.run(model)
    manager.run(model)  # begins anew
    lines = str(timing).splitlines()
    assert [line.split()[0] for line in lines] == ["pass", "nothing", "scale", "total"]
    assert lines[0].split() == ["pass", "seconds", "share", "peak", "MB"]
    total = sum(r.seconds for r in timing.records)
    assert float(lines[-1].split()[1]) == pytest.approx(total, abs=2e-3)


# -------------------------------------------------------------------------------------- Equivalence


def reader_of(samples: int, model: Model, batch: int = 4) -> DataReader:
    values = np.random.default_rng(1).standard_normal((samples, 3, 8, 8)).astype(np.float32)
    return ArrayReader(values, model=model, batch=batch)


@pytest.mark.parametrize("with_reader", [True, False])
def test_equivalence_proves_passes_that_keep_results(model: Model, with_reader: bool) -> None:
    ctx = PassContext(reader=reader_of(12, model) if with_reader else None)
    watching = [Equivalence()]
    PassManager([Scale("fc.weight"), Nothing(), Wobble("fc.weight", 1 + 1e-6)], watching).run(
        model, ctx
    )
    with pytest.raises(PassError, match=r"wobble: the results .*output 'y': differs by") as caught:
        PassManager([Wobble("fc.weight", 1.001)], watching).run(model, ctx)
    assert isinstance(caught.value.__cause__, CheckError)
    PassManager([Wobble("fc.weight", 1.001)], [Equivalence(tolerance=1e-2)]).run(model, ctx)


@pytest.mark.parametrize("batch", ["N", 1, 4])
def test_equivalence_feeds_the_batches_that_the_model_takes(batch: Any) -> None:
    model = Model.from_proto(conv_net(batch=batch))
    fed: list[int] = []

    class Counting(DataReader):
        samples = 10

        def batches(self) -> Iterator[dict[str, Any]]:
            for batch in reader_of(10, model, batch=5).batches():
                fed.append(len(next(iter(batch.values()))))
                yield dict(batch)

    ctx = PassContext(reader=Counting())
    PassManager([Wobble("fc.weight", 1 + 1e-6)], [Equivalence(samples=3)]).run(model, ctx)
    assert fed == [5]  # no more was read than was asked for
    PassManager([Wobble("fc.weight", 1 + 1e-6)], [Equivalence(samples=3)]).run(model)


def test_equivalence_looks_at_the_samples_it_is_given(model: Model) -> None:
    # a change that shows only on samples after the second
    values = np.zeros((4, 3, 8, 8), np.float32)
    values[2:] = np.random.default_rng(0).standard_normal((2, 3, 8, 8))
    model.set_weight("conv1.bias", np.zeros(32, np.float32))
    step = Wobble("conv1.weight", 1.5)
    for samples, fails in ((2, False), (3, True)):
        ctx = PassContext(reader=ArrayReader(values, model=model, batch=1))
        manager = PassManager([step], [Equivalence(samples=samples)])
        if fails:
            with pytest.raises(PassError, match="wobble: the results"):
                manager.run(model.clone(), ctx)
        else:
            manager.run(model.clone(), ctx)


@pytest.mark.parametrize("bad", [{"samples": 0}, {"tolerance": -1e-3}, {"tolerance": float("nan")}])
def test_equivalence_refuses_what_proves_nothing(bad: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(bad))):
        Equivalence(**bad)


# ----------------------------------------------------------------------------------------- Progress


def test_progress_is_quiet_where_nobody_watches(
    model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    ctx = PassContext()
    PassManager([Nothing()], [Progress()]).run(model, ctx)
    assert capsys.readouterr() == ("", "")


def test_progress_shows_passes_on_a_terminal(
    model: Model, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclass(frozen=True)
    class Reading(Pass):
        name: ClassVar[str] = "reading"

        def run(self, model: Model, ctx: PassContext) -> PassResult:
            assert ctx.progress is not None
            for done in (1, 2, 3):
                ctx.progress(done, 700)
                time.sleep(0.02)
            return PassResult(modified=False)

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    ctx = PassContext()
    with pytest.raises(PassError):
        PassManager([Reading(), Break()], [Progress()]).run(model, ctx)
    out, err = capsys.readouterr()
    assert out == ""
    assert "[1/2] reading" in err
    assert "3/700" in err
    assert re.search(r"\d+/s, 0:00:\d\d left", err), err
    assert "[2/2] break" in err
    assert ctx.progress is None


@pytest.mark.parametrize(
    ("speed", "left", "text"),
    [
        (None, None, ""),
        (0.0, None, ""),
        (1234.5, None, "1,234/s"),
        (35.2, 0.0, "35/s, 0:00:00 left"),
        (0.253, 3725.9, "0.25/s, 1:02:05 left"),
    ],
)
def test_pace_is_told_as_far_as_it_is_known(
    speed: float | None, left: float | None, text: str
) -> None:
    assert pace(speed, left) == text


def test_progress_that_was_interrupted_can_be_taken_away(
    model: Model, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclass(frozen=True)
    class Interrupted(Pass):
        name: ClassVar[str] = "interrupted"

        def run(self, model: Model, ctx: PassContext) -> PassResult:
            raise KeyboardInterrupt

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    progress = Progress()
    with pytest.raises(KeyboardInterrupt):
        PassManager([Interrupted()], [progress]).run(model)
    shown, hidden = "\x1b[?25h", "\x1b[?25l"
    err = capsys.readouterr().err
    assert hidden in err
    assert shown not in err
    progress.close()
    progress.close()
    assert shown in capsys.readouterr().err


# --------------------------------------------------------------------------------------- Reproducer


def test_a_reproducer_leaves_all_that_replays_the_failure(
    tmp_path: Path, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "it failed"
    ctx = PassContext(reader=reader_of(20, model), seed=7, rates={"conv2.weight": 0.5})
    before = model.clone()
    passes = [Scale("fc.weight"), Prune(), Break("run"), Nothing()]
    with pytest.raises(PassError) as caught:
        PassManager(passes, [Reproducer(folder), Verify()]).run(model, ctx)
    assert {p.name for p in folder.iterdir()} == {
        "model.onnx", "recipe.toml", "context.json", "masks.npz", "samples.npz", "failure.json",
        "traceback.txt",
    }  # fmt: skip
    command = f"onnxdrp replay '{folder}'"
    assert caught.value.__cause__ is not None
    assert caught.value.__cause__.__notes__ == [f"to replay it: {command}"]
    assert command in caplog.text
    failure = json.loads((folder / "failure.json").read_text())
    assert failure["pass"] == "break"
    assert failure["error"] == "ModelError: node 'relu1' is stuck; pull"
    assert failure["replay"] == command
    assert {"onnxdrp", "onnx", "onnxruntime", "numpy"} <= set(failure["versions"])
    assert "in run" in (folder / "traceback.txt").read_text()
    kept = Model.load(folder / "model.onnx")
    assert kept.node("relu1").op == "Relu"  # before the failing pass changed it
    assert (kept.weight("fc.weight") == 2 * before.weight("fc.weight")).all()
    again = load_context(folder)
    assert again.rates == {"conv2.weight": 0.5}  # without what the failing pass added
    assert again.masks == ctx.masks
    assert again.seed == 7
    with pytest.raises(PassError, match=r"^break: node 'relu1' is stuck; pull$"):
        replay(folder)


def test_the_command_line_replays(tmp_path: Path, model: Model) -> None:
    from onnxdrp.cli import cli

    with pytest.raises(PassError):
        PassManager([Break("run")], [Reproducer(tmp_path / "failed")]).run(model)
    result = CliRunner().invoke(cli, ["replay", str(tmp_path / "failed")])
    assert result.exit_code == 1
    assert "break: node 'relu1' is stuck; pull" in result.output
    recipe = tmp_path / "failed" / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("toy_passes:Break", "toy_passes:Nothing"))
    result = CliRunner().invoke(cli, ["replay", str(tmp_path / "failed")])
    assert result.exit_code == 0


def test_failed_checks_are_reproduced_too(tmp_path: Path, model: Model) -> None:
    folder = tmp_path / "failed"
    watching = [Reproducer(folder), Verify(), Equivalence()]
    with pytest.raises(PassError, match="the results"):
        PassManager([Wobble("fc.weight", 2.0)], watching).run(model)
    with pytest.raises(PassError, match="wobble: the results"):
        replay(folder)


def test_nothing_is_written_where_nothing_fails(tmp_path: Path, model: Model) -> None:
    PassManager([Nothing()], [Reproducer(tmp_path / "failed")]).run(model)
    assert list(tmp_path.iterdir()) == []


def test_a_second_failure_replaces_the_first(tmp_path: Path, model: Model) -> None:
    folder = tmp_path / "failed"
    ctx = PassContext(reader=reader_of(4, model))
    with pytest.raises(PassError):
        PassManager([Prune(), Break()], [Reproducer(folder)]).run(model, ctx)
    assert (folder / "masks.npz").exists()
    with pytest.raises(PassError):
        PassManager([Break()], [Reproducer(folder)]).run(Model.from_proto(conv_net()))
    assert not (folder / "masks.npz").exists()
    assert not (folder / "samples.npz").exists()
    with pytest.raises(OptionError, match="holds the input"):
        PassManager([Break()], [Reproducer(folder)]).run(Model.load(folder / "model.onnx"))


def test_a_reproducer_refuses_a_folder_of_others(tmp_path: Path, model: Model) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(OptionError, match=r"'mine\.txt'"):
        Reproducer(tmp_path)
    with pytest.raises(OptionError, match="is a file"):
        Reproducer(tmp_path / "mine.txt")
    with pytest.raises(OptionError, match=r"failure\.json"):
        replay(tmp_path)


@dataclass(frozen=True)
class Read(Pass):
    """Read all data."""

    name: ClassVar[str] = "read"

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        assert ctx.reader is not None
        list(ctx.reader.batches())
        return PassResult(modified=False)


def test_a_reader_that_fails_does_not_hide_the_failure(
    tmp_path: Path, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    class Bad(DataReader):
        def batches(self) -> Iterator[dict[str, Any]]:
            raise DataError("the disk is on fire")

    folder = tmp_path / "failed"
    with pytest.raises(PassError, match=r"^read: the disk is on fire"):
        PassManager([Read()], [Reproducer(folder)]).run(model, PassContext(reader=Bad()))
    assert "not complete" in caplog.text
    assert {"model.onnx", "recipe.toml", "context.json"} <= {p.name for p in folder.iterdir()}


def test_a_pass_that_has_no_name_to_import_does_not_hide_the_failure(
    tmp_path: Path, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)

    class Local(Break):
        name = "local"

    with pytest.raises(PassError, match=r"^local: node 'relu1'"):
        PassManager([Local()], [Reproducer(tmp_path / "failed")]).run(model)
    assert "defined inside a function" in caplog.text
    assert (tmp_path / "failed" / "model.onnx").exists()


# ----------------------------------------------------------------------------------------- contexts


def test_contexts_survive_a_folder(tmp_path: Path, model: Model) -> None:
    scales = np.random.default_rng(0).uniform(1e-6, 1e3, 32).astype(np.float32)
    ctx = PassContext(
        reader=reader_of(20, model, batch=3),
        target=load_target("drp-ai3"),
        seed=11,
        rates={"a": 0.7, "b": float(np.float32(1) / 3)},
        refused={"first": "it is the first layer"},
        masks={"w": Mask(np.random.default_rng(0).random((8, 33)) < 0.3)},
        ranges={"t": Range(-1.25, float(np.float32(0.1))), "u": Range(0.0, 6.0)},
        quantization={
            "t": QuantParams(np.float32(0.013), np.int8(-3), "int8"),
            "w": QuantParams.symmetric(scales, axis=0),
        },
        calibration=Ranges({"t": TensorRange(-1.25, 0.1, -2.0, 0.1, 9)}, method={"name": "mse"}),
        kept_float={"n": "an operator of no known kind"},
        wide={"m": "8 bits are too few"},
        sensitivity=Sensitivity(target="drp-ai3", samples=4, identity="0a"),
        channel_scores=ChannelScores(
            "activation", {"conv": np.random.default_rng(1).random(7)}, {"fc": "always the same"}
        ),
        channel_curves=ChannelSensitivity(
            {"conv": {0.1: 0.75, 0.5: 1 / 3}}, {"conv": [0.5, 1 / 3]}, 0.9, "agreement", 8
        ),
        removed={"conv": (1, 4)},
        shortened=frozenset({"w"}),
        reference=model,
        dense=model,
        slim=model,
    )
    settings = {"reader", "held_out", "target", "seed"}
    settings |= {"progress", "checkpoint", "executor", "workers"}
    settings |= {"rounds", "histograms"}  # for the report alone: no pass reads them
    tables = {f.name for f in dataclasses.fields(ctx)} - settings
    assert all(getattr(ctx, name) for name in tables), "a new table needs a place here"
    save_context(ctx, tmp_path, samples=7)
    again = load_context(tmp_path)
    models = {"reference", "dense", "slim"}
    for name in models:
        kept = getattr(again, name)
        assert kept is not None
        same_outputs(kept, model, feeds_for(model.proto()))
    scores = again.channel_scores
    assert (scores.by, scores.unscored) == ("activation", {"fc": "always the same"})
    np.testing.assert_array_equal(scores["conv"], ctx.channel_scores["conv"])
    for name in (*tables - models - {"channel_scores"}, "target", "seed"):
        assert getattr(again, name) == getattr(ctx, name), name
    assert again.reader is not None
    assert ctx.reader is not None
    assert again.reader.samples == 7
    want = np.concatenate([b["x"] for b in ctx.reader.batches()])[:7]
    for _ in range(2):  # re-iterable
        got = [b["x"] for b in again.reader.batches()]
        assert [len(b) for b in got] == [3, 3, 1]
        assert (np.concatenate(got) == want).all()
        assert got[0].dtype == want.dtype


def test_an_empty_context_survives_a_folder(tmp_path: Path) -> None:
    save_context(PassContext(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["context.json"]
    assert load_context(tmp_path) == PassContext()


@pytest.mark.parametrize("text", [None, "", "{}", "[1]", '{"target": {}}'])
def test_what_is_no_context_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "context.json").write_text(text)
    with pytest.raises(OptionError, match=r"context\.json"):
        load_context(tmp_path)


def test_instruments_together_change_nothing(tmp_path: Path) -> None:
    passes = [Scale("fc.weight"), Nothing(), Prune()]
    alone, watched = Model.from_proto(conv_net()), Model.from_proto(conv_net())
    PassManager(passes).run(alone)
    PassManager(passes, [
        Progress(), Reproducer(tmp_path / "failed"), Dump(tmp_path / "steps"), Verify(),
        Equivalence(), Timing(),
    ]).run(watched)  # fmt: skip
    assert alone.fingerprint() == watched.fingerprint()
    feeds = feeds_for(conv_net())
    assert (outputs_of(alone, feeds)[0] == outputs_of(watched, feeds)[0]).all()
