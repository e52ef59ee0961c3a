"""Work on any concurrent.futures.Executor, with results in the order of the items."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from threadpoolctl import threadpool_limits

__all__ = ["available_cores", "in_order", "own_or_threads"]

T = TypeVar("T")
R = TypeVar("R")


def available_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def own_or_threads(executor: Executor | None, workers: int) -> Iterator[Executor]:
    """The executor that the caller has, which stays open; else a pool of threads for the time.

    Beside the threads the BLAS has one: threads of both kinds take turns on the cores, which costs
    up to six times the time. So bits do not depend on the number of cores.
    """
    if executor is not None:
        yield executor
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="onnxdrp-worker")
    with threadpool_limits(1, user_api="blas"):
        try:
            yield pool
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def in_order(
    executor: Executor, work: Callable[[T], R], items: Iterable[T], ahead: int
) -> Iterator[R]:
    """Yield work(item) for each item, at most `ahead` of them begun before they are asked for.

    An exception of the work is raised here, after the results before it; what is waiting then, or
    when the consumer stops, is cancelled.
    """
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(executor.submit(work, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
