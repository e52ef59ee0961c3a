from collections.abc import Iterator

import numpy as np
import pytest
from datareaders_fakes import Array, OneShot, fake, gathered, sizes
from hypothesis import given
from hypothesis import strategies as st

from onnxdrp.datareaders import (
    ArrayReader,
    DataReader,
    count,
    rebatch,
    split,
    subset,
    take,
    wrap,
)
from onnxdrp.errors import DataError, OptionError


class Counted(DataReader):
    """Samples 0..n-1 in batches of any sizes; pick is the default."""

    def __init__(self, batch_sizes: list[int], known: bool = True) -> None:
        self._sizes = batch_sizes
        self.given = 0
        if known:
            self.samples = sum(batch_sizes)
            self.labels = np.arange(self.samples, dtype=np.int64) * 10

    def batches(self) -> Iterator[dict[str, Array]]:
        start = 0
        for size in self._sizes:
            numbers = np.arange(start, start + size, dtype=np.float32)
            self.given += 1
            yield {"x": np.stack([numbers, numbers], axis=1), "z": numbers}
            start += size


batch_sizes = st.lists(st.integers(1, 7), min_size=1, max_size=8)


@given(batch_sizes, st.integers(1, 10))
def test_rebatch_keeps_samples_and_cuts_them_evenly(batch_sizes: list[int], size: int) -> None:
    source = Counted(batch_sizes)
    made = list(rebatch(source.batches(), size))
    np.testing.assert_array_equal(
        np.concatenate([batch["z"] for batch in made]), np.arange(sum(batch_sizes))
    )
    for batch in made:
        np.testing.assert_array_equal(batch["x"][:, 1], batch["z"])
    assert {len(batch["z"]) for batch in made[:-1]} <= {size}
    assert 1 <= len(made[-1]["z"]) <= size


def test_rebatch_never_joins_different_shapes() -> None:
    shapes = [(1, 2), (1, 2), (1, 3), (1, 2), (1, 2), (1, 2)]
    made = list(rebatch(({"x": np.zeros(shape)} for shape in shapes), 2))
    assert [batch["x"].shape for batch in made] == [(2, 2), (1, 3), (2, 2), (1, 2)]


@given(batch_sizes, st.data())
def test_subset_of_any_reader(batch_sizes: list[int], data: st.DataObject) -> None:
    reader = Counted(batch_sizes)
    total = sum(batch_sizes)
    picked = data.draw(st.lists(st.integers(0, total - 1), min_size=1, unique=True))
    part = subset(reader, np.array(picked))
    np.testing.assert_array_equal(gathered(part, "z"), sorted(picked))
    assert part.samples == len(picked)
    assert part.labels is not None
    np.testing.assert_array_equal(part.labels, np.sort(picked) * 10)
    assert set(sizes(part, "z")[:-1]) <= {batch_sizes[0]}
    inner = subset(part, np.array([0]))
    np.testing.assert_array_equal(gathered(inner, "z"), [min(picked)])


def test_subset_reads_no_further_than_it_must() -> None:
    reader = Counted([2] * 50)
    assert len(gathered(subset(reader, np.array([0, 3])), "z")) == 2
    assert reader.given == 2


def test_subset_of_a_reader_that_gives_less_the_second_time_is_an_error() -> None:
    reader = Counted([2, 2])
    part = subset(reader, np.array([3]))
    reader._sizes = [2]
    with pytest.raises(DataError, match="the reader gave 2 samples, but sample 3 was wanted"):
        gathered(part, "z")


@given(
    st.integers(2, 200),
    st.floats(0.001, 0.999),
    st.integers(0, 3),
    st.integers(1, 9),
)
def test_split_is_disjoint_complete_and_the_same_each_time(
    samples: int, held_out: float, seed: int, batch: int
) -> None:
    numbers = np.arange(samples, dtype=np.float32)[:, None]
    reader = ArrayReader(numbers, fake("N", 1), batch=batch)
    calibration, held = split(reader, held_out, seed)
    first, second = gathered(calibration)[:, 0], gathered(held)[:, 0]
    assert sorted([*first, *second]) == list(range(samples))
    assert (np.diff(first) > 0).all()
    assert (np.diff(second) > 0).all()
    assert len(second) == min(max(round(samples * held_out), 1), samples - 1)
    assert set(sizes(calibration)[:-1]) <= {batch}
    assert set(sizes(held)[:-1]) <= {batch}
    again = split(reader, held_out, seed)
    np.testing.assert_array_equal(gathered(again[1])[:, 0], second)
    np.testing.assert_array_equal(gathered(held)[:, 0], second)
    # spread evenly: one in each of as many equal stretches
    edges = np.arange(len(second) + 1) * samples // len(second)
    assert (edges[:-1] <= second).all()
    assert (second < edges[1:]).all()


def test_split_depends_on_the_seed() -> None:
    reader = ArrayReader(np.arange(100, dtype=np.float32)[:, None], fake("N", 1))
    held = {tuple(gathered(split(reader, seed=seed)[1])[:, 0]) for seed in range(3)}
    assert len(held) == 3


def test_split_counts_a_reader_that_does_not_know() -> None:
    batches = [{"x": np.full((2, 3), n, np.float32)} for n in range(5)]
    calibration, held = split(wrap(OneShot(batches)), 0.2)
    assert (calibration.samples, held.samples) == (8, 2)
    assert len(gathered(calibration)) == 8
    assert len(gathered(held)) == 2


def test_split_refuses() -> None:
    one = ArrayReader(np.zeros((1, 1), np.float32), fake("N", 1))
    with pytest.raises(DataError, match="cannot hold out a part of 1 samples"):
        split(one)
    for share in (0, 1, -0.5, 2):
        with pytest.raises(OptionError, match="must lie between 0 and 1"):
            split(one, share)


@given(batch_sizes, st.integers(1, 60), st.booleans())
def test_take_gives_the_first(batch_sizes: list[int], limit: int, known: bool) -> None:
    reader = Counted(batch_sizes, known)
    part = take(reader, limit)
    want = min(limit, sum(batch_sizes))
    for _ in range(2):
        np.testing.assert_array_equal(gathered(part, "z"), np.arange(want))
    if known:
        assert part.samples == want
    assert count(part) == want


def test_take_stops_reading() -> None:
    reader = Counted([3] * 50, known=False)
    assert len(gathered(take(reader, 4), "z")) == 4
    assert reader.given == 2
    with pytest.raises(OptionError, match="limit 0"):
        take(reader, 0)
