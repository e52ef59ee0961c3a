import pickle

import numpy as np
import pytest
from builders import conv_net, make_model, normal, value
from datareaders_fakes import fake, images
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from onnxdrp import batches
from onnxdrp.batches import (
    Batching,
    Shard,
    Source,
    aligned,
    fitting_size,
    samples_of,
    static_batch,
    whole_inputs,
)
from onnxdrp.datareaders import ArrayReader, DataReader, NCHWDataReader, SyntheticReader, subset
from onnxdrp.errors import DataError, OptionError
from onnxdrp.model import Model


class Cut(DataReader):
    """Samples (feeds without a batch axis) in batches that end where it is said, or shapes change.

    With `known`, it says how many there are, and picks among them; it notes which it gives.
    """

    def __init__(self, samples, ends=(), known=False, whole=None):
        self.rows, self.ends, self.known, self.whole = samples, ends, known, whole or {}
        self.samples = len(samples) if known else None
        self.given = []

    def batches(self):
        start = 0
        for stop in range(1, len(self.rows) + 1):
            last = stop == len(self.rows)
            if not last and stop not in self.ends and self.shapes(stop) == self.shapes(start):
                continue
            self.given += range(start, stop)
            joined = {n: np.stack([r[n] for r in self.rows[start:stop]]) for n in self.rows[0]}
            yield joined | self.whole
            start = stop

    def shapes(self, i):
        return {n: v.shape for n, v in self.rows[i].items()}

    def pick(self, indices):
        return Cut([self.rows[i] for i in indices], (), True, self.whole) if self.known else None


def numbered(shapes):
    """Samples whose values are their number, each with a second input of one value."""
    return [
        {"x": np.full(shape, i, np.float32), "t": np.full([1], i)} for i, shape in enumerate(shapes)
    ]


def said(shards):
    """All that matters of shards."""
    return [
        (s.index, s.first, s.count, [(b.samples, b.size, contents(b)) for b in s.batches])
        for s in shards
    ]


def contents(batch):
    return {
        (model, name): (v.shape, v.dtype, v.tobytes())
        for model, feed in batch.feeds.items()
        for name, v in feed.items()
    }


@given(data=st.data())
def test_batches_are_the_same_however_the_reader_cuts(data):
    runs = data.draw(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 12)), min_size=1))
    shapes = [(width, 2) for width, length in runs for _ in range(length)]
    samples, count = numbered(shapes), len(shapes)
    static, size = data.draw(st.booleans()), data.draw(st.integers(1, 9))
    rules = Batching(("a", "b"), size, static, frozenset("s"), data.draw(st.integers(1, 40)))
    whole = {"s": np.arange(3)}
    found = list(rules.shards(Cut(samples, whole=whole)))
    ends = data.draw(st.sets(st.integers(1, count)))
    known = data.draw(st.booleans())
    reader = Cut(samples, ends, known, whole)
    assert said(rules.shards(reader)) == said(found)

    assert [shard.index for shard in found] == list(range(len(found)))
    assert [shard.first for shard in found] == [i * rules.shard for i in range(len(found))]
    assert {shard.count for shard in found[:-1]} <= {rules.shard}
    assert sum(shard.count for shard in found) == count
    for shard in found:
        numbers = [n for batch in shard.batches for n in batch.samples]
        assert numbers == list(range(shard.first, shard.first + shard.count))
        for batch in shard.batches:
            a = batch.feeds["a"]
            assert batch.feeds["b"] is a
            assert a["s"] is whole["s"]
            assert len(a["x"]) == len(a["t"]) == batch.size
            assert batch.size == size if static else batch.size == len(batch.samples) <= size
            padding = [batch.samples[-1]] * (batch.size - len(batch.samples))
            for row, number in zip(a["x"], [*batch.samples, *padding], strict=True):
                np.testing.assert_array_equal(row, samples[number]["x"])
            assert a["t"][:, 0].tolist() == [*batch.samples, *padding]

    skip = data.draw(st.integers(0, len(found)))
    reader = Cut(samples, ends, known, whole)
    assert said(rules.shards(reader, skip)) == said(found[skip:])


def test_a_batch_is_as_full_as_it_can_be():
    rules = Batching(("",), 4, sample_bytes=24)
    shapes = [(2, 2)] * 6 + [(2, 4)] * 5
    reader = Cut(numbered(shapes), {1, 2, 9})
    numbers = [batch.samples for shard in rules.shards(reader) for batch in shard.batches]
    assert numbers == [(0, 1, 2, 3), (4, 5), (6, 7), (8, 9), (10,)]  # larger ones: two at once


def test_what_was_done_is_not_read_again_where_the_reader_can_pick():
    samples = numbered([(2,)] * 20)
    rules = Batching(("",), 4)
    for known, count in ((True, 0), (False, 20)):
        reader = Cut(samples, {3, 7}, known)
        assert [shard.first for shard in rules.shards(reader, 2)] == [16]
        assert len(reader.given) == count
    assert list(rules.shards(Cut(samples, known=True), 3)) == []


@pytest.mark.parametrize("static", [True, False])
def test_samples_taken_out_leave_the_others_where_they_were(static):
    rules = Batching(("",), 4, static, frozenset("s"), 16)
    reader = Cut(numbered([(2,)] * 10), whole={"s": np.arange(4)})
    shards = [shard.without({1, 3, 8, 9}, rules.whole) for shard in rules.shards(reader)]
    numbers = [[b.samples for b in shard.batches] for shard in shards]
    assert numbers == [[(0, 2), (4, 5, 6, 7)], []]
    assert [shard.count for shard in shards] == [8, 2]
    first = shards[0].batches[0]
    rows = [0, 2, 2, 2] if static else [0, 2]
    assert first.feeds[""]["x"][:, 0].tolist() == rows
    assert first.feeds[""]["s"].tolist() == [0, 1, 2, 3]
    assert first.padded == static
    assert first.size == len(rows)


def test_large_samples_make_small_shards():
    assert Batching(("",), sample_bytes=100).shard == 8
    assert Batching(("",), 3, sample_bytes=100).shard == 9
    assert Batching(("",), sample_bytes=3 << 20).shard == 2
    assert Batching(("",), sample_bytes=1 << 40).shard == 1
    assert Batching(("",), 32, True, sample_bytes=1 << 40).shard == 32
    assert [fitting_size(n) for n in (0, 1 << 20, 3 << 20, 1 << 30)] == [8, 8, 2, 1]


# ---------------------------------------------------------------------------- axes


def test_the_static_batch_is_that_of_the_first_input_with_axes():
    def model(*shapes):
        ins = [value(f"x{i}", shape) for i, shape in enumerate(shapes)]
        nodes = [helper.make_node("Identity", [f"x{i}"], [f"y{i}"]) for i in range(len(shapes))]
        return Model.from_proto(
            make_model(nodes, ins, [value(f"y{i}", s) for i, s in enumerate(shapes)])
        )

    assert static_batch([model([], [4, 3])]) == 4
    assert static_batch([model(["N", 3], [4, 3])]) is None
    assert static_batch([model([]), model([2])]) == 2
    with pytest.raises(OptionError, match=r"different batch sizes, \[1, 2\]"):
        static_batch([model([2, 1]), model([1, 2])])
    feed = {"x0": np.float32(1), "x1": normal([6, 3], 0), "x2": normal([5], 0)}
    assert whole_inputs([model([], [4, 3], [5])], feed) == {"x0", "x2"}
    assert whole_inputs([model([], ["N", 3], [6])], feed | {"x2": normal([6], 0)}) == {"x0", "x2"}
    assert whole_inputs([model([], ["N", 3], ["K"])], feed) == {"x0", "x2"}


def test_the_first_samples_stand_alone():
    model = Model.from_proto(conv_net())
    x = normal([5, 3, 8, 8], 0)
    for batch in (1, 2, 8):
        found, whole = samples_of(ArrayReader({"x": x}, model, batch=batch), [model], 4)
        assert whole == frozenset()
        np.testing.assert_array_equal([feed["x"][0] for feed in found], x[:4])
    assert samples_of(Cut([]), [model], 4) == ([], frozenset())


# ---------------------------------------------------------------------------- addresses


def test_rows_of_a_larger_array_are_moved_to_an_aligned_address():
    x = normal([9, 9], 0)
    moved = 0
    for row in range(9):
        found = aligned(x[row : row + 1])
        assert found.ctypes.data % 64 == 0
        np.testing.assert_array_equal(found, x[row : row + 1])
        assert aligned(found) is found
        moved += not np.shares_memory(found, x)
    assert moved >= 8
    assert aligned(x.T).flags.c_contiguous
    np.testing.assert_array_equal(aligned(x.T), x.T)
    assert aligned(np.float32(3)).shape == ()
    assert aligned(np.zeros((0, 3), bool)).shape == (0, 3)
    words = np.array([["a", "bc"]], object)
    assert aligned(words).tolist() == words.tolist()


# ---------------------------------------------------------------------------- sources


def test_readers_that_are_smaller_than_their_samples_go_in_their_place(tmp_path):
    images(tmp_path / "pictures", 19, 24, 24)
    model = fake("N", 3, 24, 24)
    np.save(tmp_path / "x.npy", normal([19, 3, 24, 24], 0))
    rules = Batching(("",), 4, sample_bytes=3 * 24 * 24 * 4)
    readers = [
        NCHWDataReader(tmp_path / "pictures", model=model, batch=3),
        SyntheticReader(model, 19, batch=3),
        ArrayReader(tmp_path / "x.npy", model, batch=3),
    ]
    for reader in readers:
        found = list(rules.sources(reader))
        assert all(isinstance(source, Source) for source in found)
        assert all(len(pickle.dumps(source)) < 10_000 for source in found)
        read = [pickle.loads(pickle.dumps(source)).read() for source in found]
        assert said(read) == said(rules.shards(reader))
        assert said(s.read() for s in rules.sources(reader, 1)) == said(rules.shards(reader, 1))
        assert list(rules.sources(reader, 3)) == []


def test_other_readers_are_read_here(tmp_path):
    model = fake("N", 3, 24, 24)
    reader = SyntheticReader(model, 19)
    rules = Batching(("",), 4, sample_bytes=3 * 24 * 24 * 4)
    others = [
        ArrayReader({"x": normal([19, 3, 24, 24], 0)}, model),  # as large as the samples
        Cut(numbered([(3, 24, 24)] * 19), known=True),  # workers may not know the class
        subset(Cut(numbered([(3, 24, 24)] * 20)), np.arange(19)),  # would be read from its start
    ]
    for other in others:
        found = list(rules.sources(other))
        assert all(isinstance(shard, Shard) for shard in found)
        assert said(found) == said(rules.shards(other))
    tiny = Batching(("",), 4, sample_bytes=4)
    assert all(isinstance(shard, Shard) for shard in tiny.sources(reader))


def test_a_reader_that_gives_less_than_it_said_is_told_so(tmp_path):
    files = images(tmp_path, 9, 24, 24)
    assert len(files) == 9
    reader = NCHWDataReader(tmp_path, model=fake("N", 3, 24, 24))
    rules = Batching(("",), 4, sample_bytes=3 * 24 * 24 * 4)
    source = batches._source(rules, reader, 1)
    assert (source.first, source.count) == (8, 1)
    wrong = Source(source.first, 2, source.reader, rules)
    with pytest.raises(DataError, match="gives 1 samples from number 8 on, where it said 2"):
        wrong.read()
    (tmp_path / "008.png").unlink()
    with pytest.raises(DataError, match=r"008\.png"):
        source.read()
