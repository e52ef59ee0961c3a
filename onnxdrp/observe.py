"""The tap engine: run models over a reader and feed chosen tensors to streaming observers.

Every statistic of activations comes from here. Memory is bounded whatever the number of samples:

    1. Only tensors that somebody asks for are fetched, and each is forgotten when it was observed.
    2. Tensors that together exceed `memory_limit` are tapped in groups, a pass over the data each.
    3. Samples run in batches of the engine's own (onnxdrp.batches), in shards shared out to
       workers; each shard has observers of its own, which are merged in the order of the shards.

So neither the reader's batches nor the number of workers change a bit of the result.
"""

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

import numpy.typing as npt

from onnxdrp.batches import Batching, Shard, Source, fitting_size
from onnxdrp.checkpoint import Checkpoint, State, identity, new_observers
from onnxdrp.counting import compiled_count, expect
from onnxdrp.errors import DataError, OptionError
from onnxdrp.executing import available_cores, in_order, own_or_threads
from onnxdrp.independence import are_independent
from onnxdrp.job import BadSample, Job, NotFinite, ShardResult, named
from onnxdrp.observers import Histogram
from onnxdrp.taps import Pair, Tap, tensor_bytes

if TYPE_CHECKING:
    from onnxdrp.datareaders import DataReader
    from onnxdrp.model import Model

__all__ = ["BadSample", "Tap", "observe"]

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]
Key = TypeVar("Key", bound=Hashable)
log = logging.getLogger(__name__)


def observe(
    models: "Model | Mapping[str, Model]",
    reader: "DataReader",
    taps: Mapping[Key, Tap],
    *,
    memory_limit: int = 1 << 30,
    executor: Executor | None = None,
    workers: int | None = None,
    checkpoint: Path | None = None,
    on_bad: Callable[[BadSample], None] | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> dict[Key, Any]:
    """Run `models` over all of `reader` and return {key: result of its tap's observer}.

    Args:
        models: one model, or {name: model}; all are fed the same samples.
        reader: the data, of which each pass must give the same.
        taps: what to observe.
        memory_limit: bytes that the tapped tensors of all workers may take at a time. Where they
            take more, fewer workers run, then more passes are made over the data; never is a
            statistic left out. A single tap that needs more is observed alone.
        executor: where shards are observed: any concurrent.futures.Executor, of threads, of
            processes or of machines (dask.distributed's `Client.get_executor()`). To others than
            threads models go through a file in the temporary folder. None: threads of this
            process.
        workers: shards under way at a time; default: as many as there are cores.
        checkpoint: a file that keeps what was observed so far: written now and then and when the
            work is interrupted, read where it fits the work, deleted when that is done.
        on_bad: told of each sample that gives NaN or infinity, which is left out of everything;
            None: the first of them is an error.
        progress: called with (samples done, samples in all or None) as the work goes on.

    Raises:
        DataError: the reader gives nothing, or a tapped tensor has NaN or infinity; names tensor,
            node and sample.
        ModelError: a tapped tensor is not in its model.
        OptionError: an observer cannot be pickled, or not kept in a checkpoint.
    """
    table: Mapping[str, Model] = models if isinstance(models, Mapping) else {"": models}
    if not taps:
        return {}
    saved = None if checkpoint is None else Checkpoint(checkpoint, taps)
    with TemporaryDirectory(prefix="onnxdrp-job-") as folder:
        study = _Study(table, reader, taps, memory_limit, workers or available_cores())
        study.prepare(skip=on_bad is not None, folder=Path(folder))
        state = (saved and saved.read(study.identity())) or State(new_observers(taps))
        study.first.clear()  # of no more use
        try:
            with own_or_threads(executor, study.workers) as pool:
                study.run(pool, state, saved, on_bad, progress, remote=_is_remote(executor))
        except BaseException:
            if saved is not None:
                saved.write(state, now=True)
            raise
    if saved is not None:
        saved.remove()
    if state.samples == len({b.sample for b in state.bad}):
        raise DataError(
            f"none of the {state.samples} samples can be used: {study.say(state.bad[0])}"
        )
    return {key: state.observers[key].result() for key in taps}


def _is_remote(executor: Executor | None) -> bool:
    return executor is not None and not isinstance(executor, ThreadPoolExecutor)


class _Study:
    """One observation: its rules, and its groups of taps with a job each."""

    def __init__(
        self,
        models: "Mapping[str, Model]",
        reader: "DataReader",
        taps: Mapping[Any, Tap],
        memory_limit: int,
        workers: int,
    ) -> None:
        self.models, self.reader, self.taps = models, reader, taps
        self.memory_limit, self.workers = memory_limit, workers
        self.batching, self.first = Batching.of(models, reader)
        self.skip = self.many = False
        self.groups: list[list[Hashable]] = []
        self.jobs: list[Job] = []

    def prepare(self, *, skip: bool, folder: Path) -> None:
        """Choose batch, workers and groups; where batches are possible, prove that they are."""
        sizes = self._sizes()
        total = max(1, sum(sizes.values()))
        counted = (t.pairs() for t in self.taps.values() if isinstance(t.observer, Histogram))
        values = sum(sizes[pair] // 4 for pairs in counted for pair in pairs)
        self.many = expect(values * (self.reader.samples or 0))
        size = min(fitting_size(total), max(1, self.memory_limit // total))
        self.groups = _grouped(self.taps, sizes, self.memory_limit)
        whole = self.batching.whole
        self.jobs = [
            Job(
                self.models,
                {key: self.taps[key] for key in group},
                whole,
                skip=skip,
                folder=folder,
                tapped=Counter(model for model, _ in sizes),
            )
            for group in self.groups
        ]
        self.skip = skip
        if not self.batching.static and size > 1 and all(map(self._is_free, self.jobs)):
            self.batching = replace(self.batching, size=size)
            total *= size
        self.workers = max(1, min(self.workers, self.memory_limit // total))
        log.info(
            "%d tensors, %.1f MB a batch of %d: %d passes, %d workers",
            *(len(sizes), total / 1e6, self.batching.size, len(self.groups), self.workers),
        )

    def _is_free(self, job: Job) -> bool:
        return are_independent(job.runners(), self.first, self.batching.whole)

    def identity(self) -> str:
        """What a checkpoint of this study belongs to."""
        b = self.batching
        rules = (b.models, b.size, b.static, sorted(b.whole), b.shard, self.groups, self.skip)
        return identity(self.models, self.taps, repr(rules), self.first, self.reader.samples)

    def run(
        self,
        pool: Executor,
        state: State,
        saved: Checkpoint | None,
        on_bad: Callable[[BadSample], None] | None,
        progress: Callable[[int, int | None], None] | None,
        *,
        remote: bool,
    ) -> None:
        """Bring the state to its end.

        A sample that turns out bad in a later pass was seen in those before, so these are repeated.
        """
        told = 0

        def tell() -> None:
            nonlocal told
            for bad in state.bad[told:]:
                assert on_bad is not None  # else the job would have refused it
                on_bad(named(self.models, bad))
            told = len(state.bad)

        tell()  # those in the checkpoint
        if not remote:
            if self.many:
                pool.submit(compiled_count)  # takes as long as opening the sessions beside it
            self.jobs[min(state.group, len(self.jobs) - 1)].runners()
        while state.group < len(self.groups):
            job = self.jobs[state.group]
            job.leave_out(frozenset(b.sample for b in state.bad))
            cut = self.batching.sources if remote else self.batching.shards
            shards: Iterator[Shard | Source] = cut(self.reader, state.shards)
            for result in in_order(pool, job, shards, self.workers + 1):
                self._take(result, state)
                tell()
                self._show(progress, state)
                if saved is not None:
                    saved.write(state)
            job.close()
            if state.samples == 0:
                raise DataError("the reader gives no samples; check the path and the limit")
            with state.changing():
                if state.group and len(state.bad) > state.left_out:
                    state.observers.update(new_observers(self.taps))
                    state.group = 0
                else:
                    state.group += 1
                state.shards, state.left_out = 0, len(state.bad)
                if state.group < len(self.groups):
                    state.samples = 0

    def _show(self, progress: Callable[[int, int | None], None] | None, state: State) -> None:
        if progress is None:
            return
        count = self.reader.samples
        if count is None:
            progress(state.samples, None)
        else:
            progress(state.samples + state.group * count, len(self.groups) * count)

    def _take(self, result: ShardResult, state: State) -> None:
        if result.refused is not None:
            raise DataError(
                f"{self.say(result.refused)}; check that sample, and the weights before this node"
            )
        with state.changing():
            while result.observers:  # each is let go at once
                key, observer = result.observers.popitem()
                state.observers[key].merge(observer)
            state.bad += result.bad
            state.shards += 1
            state.samples += result.count

    def say(self, bad: NotFinite) -> str:
        """Which tensor, which node, which sample."""
        return str(named(self.models, bad))

    def _sizes(self) -> dict[Pair, int]:
        """The bytes of each tapped tensor for the least batch that can run."""
        pairs = dict.fromkeys(pair for tap in self.taps.values() for pair in tap.pairs())
        unknown = {name for name, _ in pairs} - self.models.keys()
        if unknown:
            raise OptionError(
                f"no model is called {min(unknown)!r}; there is {sorted(self.models)}"
            )
        batch = next(self.batching.batches(self.first[:1], 0))
        sizes: dict[Pair, int] = {}
        for name, model in self.models.items():
            tensors = [t for owner, t in pairs if owner == name]
            found = tensor_bytes(model, tensors, batch.feeds[name])
            sizes |= {(name, t): n for t, n in found.items()}
        return sizes


def _grouped(
    taps: Mapping[Any, Tap], sizes: Mapping[Pair, int], memory_limit: int
) -> list[list[Hashable]]:
    """Deal taps out to as few groups as memory allows, keeping their order."""
    groups: list[list[Hashable]] = [[]]
    held: set[Pair] = set()
    for key, tap in taps.items():
        if groups[-1] and sum(sizes[p] for p in held.union(tap.pairs())) > memory_limit:
            groups.append([])
            held = set()
        groups[-1].append(key)
        held |= set(tap.pairs())
    return groups
