"""Run ahead of the consumer on one background thread, so that inference does not wait for data."""

import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["prefetch"]

T = TypeVar("T")


@dataclass(frozen=True)
class _End:
    error: BaseException | None


def prefetch(source: Iterable[T], depth: int = 2) -> Iterator[T]:
    """Yield the items of `source`, at most `depth` of them made ahead by a background thread.

    An exception of the source is raised here, after the items before it. The thread ends with
    the source, or when the consumer stops early: closing this generator waits for it.
    """
    items: queue.SimpleQueue[T | _End] = queue.SimpleQueue()
    slots = threading.Semaphore(depth)
    stopped = threading.Event()
    thread = threading.Thread(
        target=_produce, args=(source, items, slots, stopped), name="onnxdrp-prefetch", daemon=True
    )
    thread.start()
    try:
        while not isinstance(item := items.get(), _End):
            slots.release()
            yield item
        if item.error is not None:
            raise item.error
    finally:
        stopped.set()
        slots.release()
        # the garbage collector may close an abandoned generator from the thread itself
        if threading.current_thread() is not thread:
            thread.join()


def _produce(
    source: Iterable[T],
    items: "queue.SimpleQueue[T | _End]",
    slots: threading.Semaphore,
    stopped: threading.Event,
) -> None:
    error: BaseException | None = None
    iterator: Iterator[T] | None = None
    try:
        iterator = iter(source)
        while True:
            slots.acquire()
            if stopped.is_set():
                break
            items.put(next(iterator))
    except StopIteration:
        pass
    except BaseException as failure:  # handed to the consumer, who raises it
        error = failure
    finally:
        if (close := getattr(iterator, "close", None)) is not None:
            close()
        items.put(_End(error))
