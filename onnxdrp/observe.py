"""The tap engine: run models over a reader and feed chosen tensors to streaming observers.

Every statistic of activations comes from here. Memory is bounded whatever the number of samples: a
tensor is handed to its observer as soon as it is computed and then forgotten, and tensors that
together would exceed `memory_limit` are tapped in groups, a pass over the data each.
"""

import copy
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnx

from onnxdrp.errors import DataError, ModelError, OptionError
from onnxdrp.observers import Observer

if TYPE_CHECKING:
    from onnxdrp.datareaders import DataReader
    from onnxdrp.model import Model

__all__ = ["Tap", "observe", "pieces"]

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Tap:
    """What to observe: tensors, seen for the same samples, and the observer they go to.

    Attributes:
        tensors: the name of a tensor where there is one model; else (model, name) pairs, a pair for
            each argument of the observer's `update`.
        observer: as new; each `observe` works on a copy of it.
    """

    tensors: str | tuple[tuple[str, str], ...]
    observer: Observer

    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The tensors as (model, name) pairs; the name of an only model is ""."""
        return (("", self.tensors),) if isinstance(self.tensors, str) else self.tensors


def observe(
    models: "Model | Mapping[str, Model]",
    reader: "DataReader",
    taps: Mapping[Key, Tap],
    memory_limit: int = 1 << 30,
    progress: Callable[[int, int | None], None] | None = None,
) -> dict[Key, Any]:
    """Run `models` over all of `reader` and return {key: result of its tap's observer}.

    A reader's batch is cut where a model has a static batch size; a last batch that is too small is
    padded and the padding never observed.

    Args:
        models: one model, or {name: model}; all are fed the same samples.
        reader: the data, of which each pass must give the same.
        taps: what to observe.
        memory_limit: bytes that the tapped tensors of one batch may take; more means more passes
            over the data, never fewer statistics. A single tap that needs more is observed alone.
        progress: called with (samples done, samples in all or None) as the work goes on.

    Raises:
        DataError: the reader gives nothing, or a tapped tensor has NaN or infinity; names tensor,
            node and sample.
        ModelError: a tapped tensor is not in its model.
    """
    table: Mapping[str, Model] = models if isinstance(models, Mapping) else {"": models}
    batch_size = _static_batch(table.values())
    groups = _groups(table, reader, taps, memory_limit, batch_size)
    total = None if reader.samples is None else reader.samples * len(groups)
    results: dict[Key, Any] = {}
    done = 0
    for group in groups:
        observers = {key: copy.deepcopy(taps[key].observer) for key in group}
        runners = _runners(table, [pair for key in group for pair in taps[key].pairs()])
        seen = 0
        for feed, valid in pieces(reader, batch_size):
            values = {
                (name, tensor): value
                for name, runner in runners.items()
                for tensor, value in runner.run(feed, valid, batch_size).items()
            }
            for key, observer in observers.items():
                pairs = taps[key].pairs()
                observer.update(*(values[pair] for pair in pairs))
                if observer.nonfinite:
                    _refuse(table, pairs, values, seen)
            seen += valid
            done += valid
            if progress is not None:
                progress(done, total)
        if seen == 0:
            raise DataError("the reader gives no samples; check the path and the limit")
        results |= {key: observer.result() for key, observer in observers.items()}
    return {key: results[key] for key in taps}


def pieces(reader: "DataReader", batch_size: int | None) -> Iterator[tuple[Feed, int]]:
    """Yield (feed, number of valid samples) of the size that the model takes.

    Args:
        reader: gives batches of any size; the first input says how many samples there are, and
            an input of another length has no batch axis and is passed whole.
        batch_size: the model's static batch size, to which batches are cut and the last is padded
            (by its last sample); None: batches are passed as they come.
    """
    for batch in reader.batches():
        first = next(iter(batch.values()), None)
        samples = len(first) if first is not None and first.ndim else 1
        if batch_size is None:
            yield batch, samples
            continue
        for start in range(0, samples, batch_size):
            valid = min(batch_size, samples - start)
            rows = np.minimum(np.arange(start, start + batch_size), samples - 1)
            cut = slice(start, start + valid) if valid == batch_size else rows
            yield (
                {k: v[cut] if v.ndim and len(v) == samples else v for k, v in batch.items()},
                valid,
            )


def _static_batch(models: "Sequence[Model] | Any") -> int | None:
    """The batch size that the models are fixed to, or None where it is free."""
    sizes = {
        info.shape[0]
        for model in models
        for info in model.inputs[:1]
        if info.shape and isinstance(info.shape[0], int)
    }
    if len(sizes) > 1:
        raise OptionError(
            f"the models have different batch sizes, {sorted(sizes)}; make them equal"
        )
    return sizes.pop() if sizes else None


class _Runner:
    """One model with a session that gives the wanted tensors."""

    def __init__(self, model: "Model", wanted: Sequence[str]) -> None:
        inputs = {info.name for info in model.inputs}
        self.inputs = inputs
        self.stored = {name: v for name in wanted if (v := model.constant(name)) is not None}
        self.fed = [name for name in wanted if name in inputs]
        self.computed = [n for n in wanted if n not in inputs and n not in self.stored]
        self.session = model.session(outputs=self.computed) if self.computed else None

    def run(self, feed: Feed, valid: int, batch_size: int | None) -> dict[str, Array]:
        """The wanted tensors of one piece, without the rows that are padding."""
        values = dict(self.stored) | {name: feed[name] for name in self.fed}
        if self.session is not None:
            given = {name: feed[name] for name in self.inputs if name in feed}
            try:
                values |= zip(self.computed, self.session.run(self.computed, given), strict=True)
            except Exception as e:  # onnxruntime raises a dozen unrelated types
                raise DataError(f"onnxruntime fails on the data: {str(e).splitlines()[0]}") from e
        if batch_size is None or valid == batch_size:
            return values
        return {
            name: v[:valid] if np.ndim(v) and len(v) == batch_size else v
            for name, v in values.items()
        }


def _runners(models: "Mapping[str, Model]", pairs: Sequence[tuple[str, str]]) -> dict[str, _Runner]:
    wanted: dict[str, dict[str, None]] = {}
    for name, tensor in pairs:
        wanted.setdefault(name, {})[tensor] = None
    return {name: _Runner(models[name], list(tensors)) for name, tensors in wanted.items()}


def _groups(
    models: "Mapping[str, Model]",
    reader: "DataReader",
    taps: Mapping[Key, Tap],
    memory_limit: int,
    batch_size: int | None,
) -> list[list[Key]]:
    """Deal taps out to as few groups as memory allows, keeping their order."""
    pairs = {pair for tap in taps.values() for pair in tap.pairs()}
    unknown = {name for name, _ in pairs} - models.keys()
    if unknown:
        raise OptionError(f"no model is called {min(unknown)!r}; there is {sorted(models)}")
    first = next(pieces(reader, batch_size), None)
    if first is None:
        raise DataError("the reader gives no samples; check the path and the limit")
    sizes: dict[tuple[str, str], int] = {}
    for name, model in models.items():
        tensors = sorted(t for owner, t in pairs if owner == name)
        sizes |= {(name, t): n for t, n in _sizes(model, tensors, first[0]).items()}
    groups: list[list[Key]] = [[]]
    held: set[tuple[str, str]] = set()
    for key, tap in taps.items():
        more = set(tap.pairs()) - held
        if groups[-1] and sum(sizes[p] for p in held | more) > memory_limit:
            groups.append([])
            held, more = set(), set(tap.pairs())
        groups[-1].append(key)
        held |= more
    return [group for group in groups if group]


def _sizes(model: "Model", tensors: Sequence[str], feed: Feed) -> dict[str, int]:
    """The bytes of each tensor for this feed, measured without holding any of them.

    A copy of the graph gives the element count of each tensor (operator Size) in its place.
    """
    known = model.tensors()
    missing = [t for t in tensors if t not in known]
    if missing:
        model.tensor(missing[0])  # raises, with the nearest names
    inputs = {info.name for info in model.inputs}
    sizes = {t: feed[t].nbytes for t in tensors if t in inputs}
    sizes |= {t: 0 for t in tensors if t not in inputs and model.constant(known[t]) is not None}
    computed = [t for t in tensors if t not in sizes]
    if not computed:
        return sizes
    probe = model.clone()
    skeleton = probe.skeleton()
    names = [f"{t}/size" for t in computed]
    skeleton.graph.node.extend(
        onnx.helper.make_node("Size", [t], [n], name=n)
        for t, n in zip(computed, names, strict=True)
    )
    skeleton.graph.ClearField("output")
    skeleton.graph.output.extend(
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.INT64, []) for n in names
    )
    probe.rebuild(skeleton)
    given = {name: feed[name] for name in inputs if name in feed}
    try:
        counts = probe.session().run(names, given)
    except ModelError:
        raise
    except Exception as e:  # onnxruntime raises a dozen unrelated types
        raise DataError(f"onnxruntime fails on the data: {str(e).splitlines()[0]}") from e
    widths = [known[t].dtype for t in computed]
    return sizes | {
        t: int(n) * (np.dtype(w).itemsize if w is not None and not isinstance(w, int) else 4)
        for t, n, w in zip(computed, counts, widths, strict=True)
    }


def _refuse(
    models: "Mapping[str, Model]",
    pairs: Sequence[tuple[str, str]],
    values: Mapping[tuple[str, str], Array],
    seen: int,
) -> None:
    """Raise the error that says which of the tensors has NaN or infinity, and in which sample."""
    for name, tensor in pairs:
        value = values[name, tensor]
        bad = ~np.isfinite(value)
        if not bad.any():
            continue
        row = int(np.argwhere(bad)[0][0]) if value.ndim else 0
        made_by = models[name].tensor(tensor).inputs
        where = f"of node {made_by[0].name!r}" if made_by else "of the input"
        what = "NaN" if np.isnan(value).any() else "infinity"
        of = f" of model {name!r}" if name else ""
        raise DataError(
            f"tensor {tensor!r} {where}{of} has {what} in sample {seen + row}; "
            "check that sample, and the weights before this node"
        )
