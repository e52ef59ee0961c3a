import dataclasses
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from builders import conv_net, make_model, normal, value
from onnx import helper

from onnxdrp import checkpoint as file
from onnxdrp import observe as engine
from onnxdrp.checkpoint import Checkpoint, State
from onnxdrp.datareaders import DataReader
from onnxdrp.errors import DataError, OptionError
from onnxdrp.model import Model
from onnxdrp.moments import ChannelMoments, Moments
from onnxdrp.observe import Tap, observe
from onnxdrp.observers import Error, Histogram, MeanMinMax, MinMax
from onnxdrp.unfold import Unfolding

NAMES = ["x", "h1", "r1", "h3", "p", "y"]
X = normal([61, 3, 8, 8], 0)


class Rows(DataReader):
    """Notes which samples are read; an `error` comes after `until` samples, once."""

    def __init__(self, x=X, until=None, error=KeyboardInterrupt, known=True, first=0, log=None):
        self.x, self.until, self.error, self.known, self.first = x, until, error, known, first
        self.samples = len(x) if known else None
        self.read = [] if log is None else log

    def batches(self):
        for i, row in enumerate(self.x, self.first):
            if i == self.until:
                raise self.error
            self.read.append(i)
            yield {"x": row[None]}

    def pick(self, indices):
        if not self.known:
            return None
        return Rows(self.x[indices], self.until, self.error, True, int(indices[0]), self.read)


def model_of(seed=0):
    return Model.from_proto(conv_net(seed=seed))


def taps():
    kinds = (MinMax, MeanMinMax, Histogram)
    return {(kind.__name__, n): Tap(n, kind()) for n in NAMES for kind in kinds}


def run(reader, path=None, **more):
    return observe(model_of(), reader, taps(), workers=1, checkpoint=path, **more)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("memory_limit", [1, 20_000, 1 << 30])
def test_an_interrupted_observation_goes_on_where_it_was(tmp_path, memory_limit, known):
    path, more = tmp_path / "state", {"memory_limit": memory_limit}
    want = run(Rows(), **more)
    with pytest.raises(KeyboardInterrupt):
        run(Rows(until=43, known=known), path, **more)
    again = Rows(known=known)
    assert path.is_file()
    assert run(again, path, **more) == want
    assert list(tmp_path.iterdir()) == []
    assert again.read[:4] == [0, 1, 2, 3]  # what the batches are chosen by
    if known:
        # of a shard in hand when the reader fails, the result is not waited for
        assert again.read[4] in (32, 24)
        assert again.read[4 : 4 + 61 - again.read[4]] == list(range(again.read[4], 61))
    else:
        assert again.read[4:65] == list(range(61))


def test_each_pass_can_be_interrupted_and_every_sum_is_the_same(tmp_path):
    path = tmp_path / "state"
    models = {"a": model_of(), "b": model_of(1)}
    both = {n: Tap((("a", n), ("b", n)), Error()) for n in ("h1", "h3", "y")}
    want = observe(models, Rows(), both, memory_limit=1)
    interrupts = 0
    while True:
        merges = itertools.count(1)

        def stop(done, total, merges=merges):
            if next(merges) == 3:
                raise KeyboardInterrupt

        try:
            found = observe(
                models, Rows(), both, memory_limit=1, checkpoint=path, progress=stop, workers=2
            )
        except KeyboardInterrupt:
            interrupts += 1
            continue
        assert found == want
        break
    assert interrupts == 8  # in 3 passes of 8 shards, after 3 each time; at the very end too


def test_an_error_of_a_worker_leaves_the_state_too(tmp_path):
    path, x = tmp_path / "state", X.copy()
    x[50, 0, 0, 0] = np.nan
    with pytest.raises(DataError, match="sample 50;"):
        run(Rows(x), path)
    again = Rows(x)
    with pytest.raises(DataError, match="sample 50;"):
        run(again, path)
    assert again.read[4] == 48


def test_bad_samples_are_told_again_and_left_out_of_the_passes_before(tmp_path):
    """The sample turns out bad in the second pass, which is interrupted after that."""
    log = helper.make_node("Log", ["x"], ["y"], "log")
    proto = make_model([log], [value("x", ["N", 16])], [value("y", ["N", 16])])
    model, x = Model.from_proto(proto), np.abs(normal([40, 16], 0)) + np.float32(0.1)
    x[9, 2] = -77
    path = tmp_path / "state"
    two = {n: Tap(n, MinMax()) for n in ("x", "y")}
    want = observe(model, Rows(x), two, memory_limit=1, on_bad=[].append)

    def stop(done, total):
        if done == 40 + 24:
            raise KeyboardInterrupt

    for attempt in range(2):
        told = []
        more = {"memory_limit": 1, "checkpoint": path, "on_bad": told.append}
        if attempt == 0:
            with pytest.raises(KeyboardInterrupt):
                observe(model, Rows(x), two, progress=stop, **more)
        else:
            assert observe(model, Rows(x), two, **more) == want
        assert [bad.sample for bad in told] == [9]
    assert want["x"].low > 0


@pytest.fixture
def left(tmp_path):
    """A state that was left after 40 of 61 samples."""
    path = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        run(Rows(until=50), path)
    assert path.stat().st_size > 1000
    return path


def other_taps():
    return taps() | {("MinMax", "y"): Tap("y", Histogram())}


def other_options():
    return taps() | {("Histogram", "y"): Tap("y", Histogram(bins=2048))}


X_OTHER = np.concatenate([X[:1] + 1, X[1:]])


@pytest.mark.parametrize(
    "change",
    [
        {"models": model_of(1)},
        {"taps": other_taps()},
        {"taps": other_options()},
        {"taps": dict(reversed(taps().items()))},
        {"reader": Rows(X_OTHER)},
        {"reader": Rows(X[:60])},
        {"memory_limit": 1},
        {"on_bad": print},
    ],
    ids=["model", "taps", "options", "order", "samples", "number", "passes", "skipping"],
)
def test_a_state_of_other_work_is_not_used(left, change):
    more = {"models": model_of(), "reader": Rows(), "taps": taps(), "workers": 1} | change
    more["reader"].read.clear()
    want = observe(**more)
    count = len(more["reader"].read)
    more["reader"].read.clear()
    assert observe(**more, checkpoint=left) == want
    assert len(more["reader"].read) == count
    assert not left.exists()


def test_other_workers_use_the_same_state(left):
    reader = Rows()
    assert observe(model_of(), reader, taps(), workers=3, checkpoint=left) == run(Rows())
    assert reader.read[4] in (40, 32)


@pytest.mark.parametrize("harm", ["half", "empty", "text", "flip", "member"])
def test_a_damaged_file_is_told_and_begun_anew(left, harm, caplog):
    whole = bytearray(left.read_bytes())
    if harm == "half":
        whole = whole[: len(whole) // 2]
    elif harm == "empty":
        whole = b""
    elif harm == "text":
        whole = b"no archive"
    elif harm == "flip":
        whole[len(whole) // 2] ^= 0xFF
    left.write_bytes(whole)
    if harm == "member":
        with left.open("wb") as stream:
            np.savez(stream, a=np.arange(3))
    reader = Rows()
    assert run(reader, left) == run(Rows())
    assert reader.read[4] == 0
    assert "is no whole checkpoint" in caplog.text
    assert not left.exists()


def test_nothing_is_left_where_nothing_was_done(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(Rows(until=6), tmp_path / "state")
    assert list(tmp_path.iterdir()) == []


def test_a_state_is_written_now_and_then(tmp_path, monkeypatch):
    monkeypatch.setattr(file, "_INTERVAL", 0.0)
    path, seen = tmp_path / "state", []
    run(Rows(), path, progress=lambda done, total: seen.append(path.exists()))
    assert seen == [False, *[True] * 7]
    assert not path.exists()


def test_a_state_that_an_interrupt_tore_is_not_written(tmp_path, monkeypatch):
    """The interrupt comes between the merging of two observers."""
    monkeypatch.setattr(file, "_INTERVAL", 0.0)
    path, calls = tmp_path / "state", itertools.count(1)
    merge = MinMax.merge

    def torn(self, other):
        merge(self, other)
        if next(calls) == 40:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MinMax, "merge", torn)
        with pytest.raises(KeyboardInterrupt):
            run(Rows(), path)
    reader = Rows()
    assert run(reader, path) == run(Rows())
    assert reader.read[4] > 0


# ---------------------------------------------------------------------------- observers


class Plain:
    nonfinite = 0

    def update(self, *arrays):
        raise AssertionError("work has begun")

    def merge(self, other):
        pass

    def result(self):
        return None


@dataclasses.dataclass
class Keeper(Plain):
    seen: list = dataclasses.field(default_factory=list)


def test_observers_that_cannot_be_kept_are_refused_before_the_work(tmp_path):
    reader, model = Rows(), model_of()
    with pytest.raises(OptionError, match="Plain is no dataclass of numbers and arrays"):
        observe(model, reader, {"y": Tap("y", Plain())}, checkpoint=tmp_path / "state")
    with pytest.raises(OptionError, match=r"Keeper\.seen is a list, which a checkpoint does not"):
        observe(model, reader, {"y": Tap("y", Keeper())}, checkpoint=tmp_path / "state")
    assert reader.read == []


def test_a_path_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    reader = Rows()
    with pytest.raises(OptionError, match=r"there is no folder .*nowhere; create it"):
        run(reader, tmp_path / "nowhere" / "state")
    with pytest.raises(OptionError, match="is a folder; name a file"):
        run(reader, tmp_path)
    assert reader.read == []


@dataclasses.dataclass
class Mixed:
    """Every kind of field that is kept."""

    number: float
    flag: bool
    word: str
    pair: tuple[int, ...]
    zero_d: np.ndarray
    table: np.ndarray
    small: np.float32
    nothing: int | None = None
    later: MinMax | None = None
    nonfinite: int = 0


def test_every_field_comes_back_as_it_was(tmp_path):
    fresh = Mixed(0.0, False, "", (), np.array(0.0), np.zeros(0), np.float32(0))
    state = Mixed(
        0.1,
        True,
        "é",
        (3, 4),
        np.array(2.5),
        np.arange(6.0).reshape(2, 3).T,
        np.float32(0.1),
        7,
        MinMax(-1.0, 2.0, 5),
    )
    table = {"k": Tap("y", fresh)}
    saved = Checkpoint(tmp_path / "state", table)
    assert saved.read("key") is None
    saved.write(State({"k": state}, group=1, shards=2, samples=16), now=True)
    found = saved.read("key")
    assert (found.group, found.shards, found.samples, found.bad) == (1, 2, 16, [])
    got = found.observers["k"]
    for f in dataclasses.fields(Mixed):
        a, b = getattr(got, f.name), getattr(state, f.name)
        assert type(a) is type(b), f.name
        np.testing.assert_array_equal(a, b)
    assert fresh.table.size == 0
    assert Checkpoint(tmp_path / "state", table).read("another") is None


def test_moments_go_on_too(tmp_path):
    """Their sums are not there in a new one."""
    model, path = model_of(), tmp_path / "state"
    conv = next(node for node in model.nodes("Conv") if node.name == "conv2")
    some = {
        "m": Tap((("", "r1"), ("", "h3")), Moments(Unfolding.of(model, conv), positions=9)),
        "c": Tap("h1", ChannelMoments()),
    }
    want = observe(model, Rows(), some, workers=1)
    with pytest.raises(KeyboardInterrupt):
        observe(model, Rows(until=43), some, workers=1, checkpoint=path)
    reader = Rows()
    got = observe(model, reader, some, workers=1, checkpoint=path)
    assert reader.read[4] in (32, 24)
    for key in some:
        for f in dataclasses.fields(want[key]):
            np.testing.assert_array_equal(getattr(got[key], f.name), getattr(want[key], f.name))
    assert want["m"].count == 61 * 9


def test_another_process_knows_the_state_again(tmp_path):
    """Sets of names have another order there."""
    code = """
import numpy as np
from onnxdrp.batches import Batching
from onnxdrp.checkpoint import identity
from onnxdrp.observe import _Study, Tap
from onnxdrp.observers import Histogram
study = _Study.__new__(_Study)
study.batching = Batching(("",), whole=frozenset(["one", "two", "three", "four"]))
study.groups, study.skip, study.models, study.first = [["y"]], False, {}, [{"x": np.arange(3)}]
study.taps, study.reader = {"y": Tap("y", Histogram())}, type("R", (), {"samples": 3})
print(study.identity())
"""
    keys = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[1],
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(keys) == 1
    assert len(keys.pop().strip()) == 32
    assert engine.identity is file.identity
