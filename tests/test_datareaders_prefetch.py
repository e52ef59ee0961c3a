import threading
import time
from collections.abc import Iterator

import pytest

from onnxdrp.datareaders import prefetch


def prefetching() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "onnxdrp-prefetch" and t.is_alive()]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    assert not prefetching()
    yield
    assert not prefetching()


def test_gives_what_the_source_gives() -> None:
    assert list(prefetch(range(100))) == list(range(100))
    assert list(prefetch([])) == []


def test_runs_on_another_thread() -> None:
    def source() -> Iterator[str]:
        yield threading.current_thread().name

    assert list(prefetch(source())) == ["onnxdrp-prefetch"]


def test_runs_ahead_but_not_further_than_depth() -> None:
    made = []

    def source() -> Iterator[int]:
        for number in range(50):
            made.append(number)
            yield number

    items = prefetch(source(), depth=3)
    assert next(items) == 0
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.05)
    assert len(made) == 4  # the one we hold, and three ahead
    items.close()  # type: ignore[attr-defined]


def test_works_while_the_consumer_does() -> None:
    second = threading.Event()

    def source() -> Iterator[int]:
        yield 0
        second.set()
        yield 1

    items = prefetch(source())
    assert next(items) == 0
    assert second.wait(5)  # nobody has asked for it yet
    assert list(items) == [1]


def test_raises_what_the_source_raises_after_its_items() -> None:
    def source() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("broken")

    items = prefetch(source())
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(ValueError, match="broken"):
        next(items)


def test_closing_early_stops_the_thread_and_the_source() -> None:
    closed = threading.Event()

    def source() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            closed.set()

    items = prefetch(source())
    next(items)
    assert prefetching()
    items.close()  # type: ignore[attr-defined]
    assert not prefetching()
    assert closed.is_set()


def test_dropping_the_generator_stops_the_thread() -> None:
    items = prefetch(iter(int, 1))
    next(items)
    del items
    assert not prefetching()


def test_no_thread_before_the_first_item() -> None:
    items = prefetch(range(3))
    assert not prefetching()
    assert next(items) == 0
    items.close()  # type: ignore[attr-defined]
