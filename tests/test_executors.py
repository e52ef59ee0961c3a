import pickle
import re
import threading
import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from builders import conv_net, normal
from datareaders_fakes import images
from executors import workers

from onnxdrp import job as jobs
from onnxdrp import observe as engine
from onnxdrp.datareaders import ArrayReader, DataReader, NCHWDataReader
from onnxdrp.errors import DataError, OptionError
from onnxdrp.executing import in_order, own_or_threads
from onnxdrp.job import Job
from onnxdrp.model import Model
from onnxdrp.observe import Tap, observe
from onnxdrp.observers import Error, Histogram, MinMax

NAMES = ["x", "h1", "r1", "h3", "p", "y"]
PAGE = Path(__file__).parents[1] / "docs" / "calibrate-on-a-cluster.md"


# ---------------------------------------------------------------------------- in_order


class Steps(Executor):
    """Begins work at once, ends it when asked; counts what is under way."""

    def __init__(self):
        self.futures = []

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        future.work = lambda: fn(*args, **kwargs)
        self.futures.append(future)
        return future


def test_results_come_in_the_order_of_the_items_though_others_end_first():
    with ThreadPoolExecutor(4) as pool:
        delays = [0.03, 0.0, 0.02, 0.0, 0.01]
        ended = []

        def work(i):
            time.sleep(delays[i])
            ended.append(i)
            return i * i

        assert list(in_order(pool, work, range(5), 4)) == [0, 1, 4, 9, 16]
    assert ended[0] != 0


def test_no_more_is_begun_than_was_allowed():
    pool, taken = Steps(), []
    results = in_order(pool, str, (taken.append(i) or i for i in range(10)), 3)
    thread = threading.Thread(target=lambda: next(results))
    thread.start()
    while len(pool.futures) < 3:
        time.sleep(0.001)
    time.sleep(0.02)
    assert taken == [0, 1, 2]
    pool.futures[0].set_result("0")
    thread.join()
    assert taken == [0, 1, 2]
    pool.futures[1].set_result("1")
    assert next(results) == "1"
    assert taken == [0, 1, 2, 3]
    results.close()
    assert [future.cancelled() for future in pool.futures] == [False, False, True, True]


def test_an_error_of_the_work_comes_after_the_results_before_it_and_ends_the_rest():
    pool, seen = Steps(), []
    with pytest.raises(ZeroDivisionError):
        seen.extend(in_order(pool, None, _settling(pool), 4))
    assert seen == [0, 1]
    assert [future.cancelled() for future in pool.futures[3:]] == [True, True, True]


def _settling(pool):
    """Items, of which the first three are done by the time that the fourth is begun."""
    for i in range(6):
        if i == 3:
            pool.futures[0].set_result(0)
            pool.futures[1].set_result(1)
            pool.futures[2].set_exception(ZeroDivisionError())
        yield i


def test_an_error_of_the_items_ends_what_waits():
    pool = Steps()

    def items():
        yield from range(2)
        raise KeyError("no third")

    with pytest.raises(KeyError, match="no third"):
        list(in_order(pool, str, items(), 4))
    assert all(future.cancelled() for future in pool.futures)


def test_an_executor_that_was_given_stays_open():
    with ThreadPoolExecutor(1) as mine:
        with own_or_threads(mine, 3) as pool:
            assert pool is mine
        assert mine.submit(int).result() == 0
    with own_or_threads(None, 3) as pool:
        pass
    with pytest.raises(RuntimeError, match="shutdown"):
        pool.submit(int)


# ---------------------------------------------------------------------------- the same bits


@pytest.fixture(scope="module", params=["spawn", "forkserver", "threads", "dask"])
def executor(request):
    """Two workers of any kind; processes are started once for all tests."""
    with workers(request.param) as pool:
        yield pool


class Raw(DataReader):
    """Arrays without a look into them."""

    def __init__(self, x):
        self.x, self.samples = x, len(x)

    def batches(self):
        yield {"x": self.x}


def taps():
    both = {n: Tap((("a", n), ("b", n)), Error()) for n in ("h1", "y")}
    one = {
        (kind.__name__, n): Tap((("a", n),), kind()) for n in NAMES for kind in (MinMax, Histogram)
    }
    return both | one


def two_models():
    return {"a": Model.from_proto(conv_net()), "b": Model.from_proto(conv_net(seed=1))}


def test_any_executor_gives_the_same_bits(executor):
    models = two_models()
    reader = ArrayReader({"x": normal([37, 3, 8, 8], 0)}, models["a"], batch=3)
    want = observe(models, reader, taps(), workers=1)
    assert observe(models, reader, taps(), executor=executor) == want
    assert observe(models, reader, taps(), executor=executor, workers=5) == want
    assert want["Histogram", "h1"].counts.sum() == 37 * 32 * 64
    assert -5 < want["y"].sqnr_db < 5


def test_images_that_workers_read_give_the_same_bits(executor, tmp_path):
    images(tmp_path, 19, 12, 12)
    models = two_models()
    reader = NCHWDataReader(tmp_path, model=models["a"], batch=5)
    want = observe(models, reader, taps(), workers=1)
    assert observe(models, reader, taps(), executor=executor) == want
    assert want["MinMax", "y"].high > want["MinMax", "y"].low


def test_several_passes_and_bad_samples_do_not_change_that(executor):
    models = two_models()
    x = normal([21, 3, 8, 8], 0)
    for bad in (4, 13, 18):
        x[bad, 1, 2, 3] = np.nan
    reader = Raw(x)
    for memory_limit in (1, 1 << 30):
        told, want_told = [], []
        more = {"memory_limit": memory_limit}
        want = observe(models, reader, taps(), workers=1, on_bad=want_told.append, **more)
        found = observe(models, reader, taps(), executor=executor, on_bad=told.append, **more)
        assert found == want
        assert told == want_told
        assert [bad.sample for bad in told] == [4, 13, 18]


def test_errors_of_workers_are_those_of_threads(executor):
    x = normal([21, 3, 8, 8], 0)
    x[13, 1, 2, 3] = np.nan
    model = Model.from_proto(conv_net())
    with pytest.raises(DataError, match="'h1' of node 'conv1' has NaN in sample 13;"):
        observe(model, Raw(x), {"h1": Tap("h1", MinMax())}, executor=executor)


# ---------------------------------------------------------------------------- across the border


class Border(ThreadPoolExecutor):
    """Threads that are sent pickles, as processes are; notes how large each is."""

    def __init__(self, workers=2):
        super().__init__(workers)
        self.sent = []

    def submit(self, fn, /, *args, **kwargs):
        work = pickle.dumps(fn)
        self.sent.append(len(work))
        return super().submit(_unpickled, work, pickle.dumps(args))


class Remote(Executor):
    """A Border that is no pool of threads to those who look."""

    def __init__(self):
        self.border = Border()

    def submit(self, fn, /, *args, **kwargs):
        return self.border.submit(fn, *args, **kwargs)


def _unpickled(work, args):
    return pickle.loads(pickle.dumps(pickle.loads(work)(*pickle.loads(args))))


@pytest.fixture
def remote():
    pool = Remote()
    yield pool
    pool.border.shutdown()


def test_models_are_written_once_and_loaded_once_by_a_process(remote, monkeypatch):
    events = []
    save, load = Model.save, Model.load.__func__
    monkeypatch.setattr(
        Model, "save", lambda self, path: events.append(("save", path)) or save(self, path)
    )
    monkeypatch.setattr(
        Model,
        "load",
        classmethod(lambda cls, path: events.append(("load", path)) or load(cls, path)),
    )
    models = two_models()
    reader = ArrayReader({"x": normal([50, 3, 8, 8], 0)}, models["a"])
    want = observe(models, reader, taps())
    assert events == []
    assert observe(models, reader, taps(), executor=remote) == want
    assert [kind for kind, _ in events] == ["save", "save", "load", "load"]
    assert len({path for _, path in events}) == 2
    assert len(remote.border.sent) == 7
    assert max(remote.border.sent) < 1000  # models and observers stay in the folder
    assert not any(path.parent.exists() for _, path in events)
    del events[:]
    observe(models, reader, taps(), executor=remote, memory_limit=1)
    assert [kind for kind, _ in events].count("save") == 2  # for all passes


def test_the_folder_is_deleted_where_the_work_fails(remote, monkeypatch):
    folders = []
    folder = engine.TemporaryDirectory
    monkeypatch.setattr(
        engine, "TemporaryDirectory", lambda **k: folders.append(folder(**k)) or folders[-1]
    )
    x = normal([9, 3, 8, 8], 0)
    x[3] = np.nan
    with pytest.raises(DataError, match="sample 3;"):
        observe(Model.from_proto(conv_net()), Raw(x), {"y": Tap("y", MinMax())}, executor=remote)
    assert len(folders) == 1
    assert not Path(folders[0].name).exists()


def test_a_worker_that_does_not_see_the_folder_says_so_in_a_line(tmp_path):
    model = Model.from_proto(conv_net())
    work = Job({"": model}, {"y": Tap("y", MinMax())}, frozenset(), folder=tmp_path)
    sent = pickle.dumps(work)
    for path in tmp_path.iterdir():
        path.unlink()
    shard = next(engine.Batching(("",)).shards(Raw(normal([1, 3, 8, 8], 0))))
    arrived = pickle.loads(sent)  # says nothing yet: that would end a process pool
    with pytest.raises(OptionError, match=r"^.*does not see this folder; let TMPDIR") as error:
        arrived(shard)
    assert str(error.value).startswith(str(tmp_path))
    assert "\n" not in str(error.value)
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)


def test_a_process_keeps_the_sessions_of_two_jobs_only(tmp_path):
    model = Model.from_proto(conv_net())
    tap = {"y": Tap("y", MinMax())}
    sent = [pickle.dumps(Job({"": model}, tap, frozenset(), folder=tmp_path)) for _ in range(5)]
    shard = next(engine.Batching(("",)).shards(Raw(normal([1, 3, 8, 8], 0))))
    results = [pickle.loads(work)(shard) for work in sent]
    assert all(result.observers["y"] == results[0].observers["y"] for result in results)
    assert len(jobs._HERE.works) == 2
    first, again = pickle.loads(sent[4]), pickle.loads(sent[4])
    assert first.runners() is again.runners()


def test_what_cannot_be_sent_is_told_before_the_work():
    class Local(MinMax):
        pass

    model = Model.from_proto(conv_net())
    reader = ArrayReader({"x": normal([9, 3, 8, 8], 0)}, model)
    with pytest.raises(OptionError, match=r"an observer cannot be pickled .* define its class at"):
        observe(model, reader, {"y": Tap("y", Local())})


# ---------------------------------------------------------------------------- the page


def test_the_example_of_the_page_finds_the_ranges_of_one_process(tmp_path):
    pytest.importorskip("distributed")
    images(tmp_path / "images", 11, 12, 12)
    model = Model.from_proto(conv_net())
    model.save(tmp_path / "model.onnx")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 1
    names: dict = {}
    exec(compile(blocks[0], str(PAGE), "exec"), names)
    found = names["ranges"](tmp_path / "images", tmp_path / "model.onnx", ["h1", "y"])
    reader = NCHWDataReader(tmp_path / "images", model=model)
    want = observe(model, reader, {n: Tap(n, Histogram()) for n in ("h1", "y")})
    assert found == {n: histogram.percentile(99.999) for n, histogram in want.items()}
    assert found["y"].high > found["y"].low
