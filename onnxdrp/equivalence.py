"""Whether two runs gave the same results, by the rule that passes which keep results must meet.

    float outputs     max|a - b| <= tolerance * max|a|, for the whole and for each part
    integer outputs   equal, but for ties: positions that point to scores which differ by less
    NaN               equals NaN; an infinity equals itself

Elementwise relative tolerance would be too strict: sums that cancel differ by rounding even between
onnxruntime's own optimization levels. One tolerance for a whole tensor would be too lax where it
holds things of different scale, such as boxes in pixels beside probabilities. So slices along the
channel axis (1, and the last) are sorted by their maximum, and where that jumps by 10 or more a new
part begins, judged by its own maximum. Slices of fewer than 8 values are not told apart (one value
near zero is no scale), and no part is judged more finely than the rounding (one epsilon) of the
largest value, since exact zeros come out of sums of large terms. Where a Sigmoid, Softmax or Tanh
gives the output, what is below 0.01 is judged like 0.01: kernels compute these to so many places,
not digits, and they make relative errors of the absolute ones of their input. Below float32 the
tolerance is at least 8 epsilon of the type.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onnxdrp.errors import ModelError

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from onnxdrp.model import Model

__all__ = ["Scores", "compare_models", "example_feeds", "same_results"]

Array = npt.NDArray[Any]

TOLERANCE = 1e-4
JUMP = 10.0  # between the maxima of two parts
FEWEST = 8  # values in a slice that may be a part
SMALL = 0.01  # values of bounded functions below this are judged like this
SIZES = (32, 48, 64, 224, 320, 640)  # tried for free spatial dimensions, in order
# They move or retype positions, and leave what the positions mean.
_CARRIERS = {"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
_MOVERS = _CARRIERS | {"Concat", "Gather", "Slice", "Split"}
_BOUNDED = {"HardSigmoid", "Sigmoid", "Softmax", "Softsign", "Tanh"}


@dataclass(frozen=True)
class Scores:
    """The float values that an output of positions (ArgMax, ArgMin, TopK) points into.

    Attributes:
        values: of the model before.
        axis: along which the positions count.
        kept: whether the positions have that axis too (TopK, or keepdims).
    """

    values: Array
    axis: int
    kept: bool = True

    def differ(self, a: Array, b: Array) -> float:
        """How far the scores that `a` and `b` point to are apart, in terms of the largest."""
        if not self.kept:
            a, b = np.expand_dims(a, self.axis), np.expand_dims(b, self.axis)
        at_a, at_b = (np.take_along_axis(self.values, i, self.axis) for i in (a, b))
        largest = float(np.max(np.abs(self.values), initial=0.0))
        apart = float(np.max(np.abs(at_a - at_b), initial=0.0))
        return apart / largest if largest else 0.0


def same_results(
    before: Mapping[str, Array],
    after: Mapping[str, Array],
    tolerance: float = TOLERANCE,
    scores: Mapping[str, Scores] | None = None,
    bounded: Collection[str] = (),
) -> list[str]:
    """Compare two runs, output by output.

    Args:
        before: {output name: array}, taken as right.
        after: the same outputs of the changed model.
        tolerance: of floats, in terms of the largest value of each part.
        scores: for outputs of positions, what they point into; without it they must be equal.
        bounded: the outputs that a function with values up to 1 gives.

    Returns:
        The differences in words; empty if the results are the same.
    """
    found = [f"output {name!r} is missing" for name in before if name not in after]
    found += [f"output {name!r} is new" for name in after if name not in before]
    for name in before:
        if name in after:
            a, b = np.asarray(before[name]), np.asarray(after[name])
            why = _difference(a, b, tolerance, (scores or {}).get(name), name in bounded)
            found += [f"output {name!r}: {why}"] if why else []
    return found


def _difference(a: Array, b: Array, tolerance: float, scores: Scores | None, bounded: bool) -> str:
    if a.dtype != b.dtype or a.shape != b.shape:
        return f"was {a.dtype} {list(a.shape)}, is {b.dtype} {list(b.shape)}"
    if a.dtype.kind in "fc" or a.dtype.name == "bfloat16":
        return _float_difference(a, b, tolerance, bounded)
    differing = int(np.count_nonzero(a != b))
    if not differing:
        return ""
    if scores is not None and (apart := scores.differ(a, b)) <= tolerance:
        return ""
    tied = f", and are no ties: their scores are {apart:.1e} of the largest apart" if scores else ""
    return f"{differing} of {a.size} values differ{tied}"


def _float_difference(a: Array, b: Array, tolerance: float, bounded: bool) -> str:
    import ml_dtypes

    epsilon = float(ml_dtypes.finfo(a.dtype).eps)  # type: ignore[no-untyped-call]
    if a.dtype.itemsize < 4:
        tolerance = max(tolerance, 8 * epsilon)
    wide = np.complex128 if a.dtype.kind == "c" else np.float64
    a, b = a.astype(wide), b.astype(wide)
    with np.errstate(invalid="ignore"):
        error = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    if not np.all(np.isfinite(error)):
        return f"{np.count_nonzero(~np.isfinite(error))} of {a.size} values are finite in one only"
    size = np.where(np.isfinite(a), np.abs(a), 0.0)
    floor = max(epsilon * float(size.max(initial=0.0)), tolerance * SMALL if bounded else 0.0)
    worst = max(_judge(error, size, floor, tolerance), key=lambda j: j[0], default=(0.0, ""))
    return worst[1] if worst[0] > 1 else ""


def _judge(
    error: Array, size: Array, floor: float, tolerance: float
) -> Iterator[tuple[float, str]]:
    """Yield (error in terms of what is allowed, words) of the whole and of each part."""

    def judged(wrong: float, largest: float, where: str) -> tuple[float, str]:
        allowed = max(tolerance * largest, floor)
        relative = f", {wrong / largest:.1e} of the largest value" if largest else ""
        ratio = wrong / allowed if allowed else (np.inf if wrong else 0.0)
        return ratio, f"differs by {wrong:.3g}{relative}{where} (allowed: {tolerance:g})"

    yield judged(float(error.max(initial=0.0)), float(size.max(initial=0.0)), "")
    for axis in sorted({1, error.ndim - 1}) if error.ndim > 1 else ():
        if error.size < FEWEST * error.shape[axis] or not error.size:
            continue
        others = tuple(i for i in range(error.ndim) if i != axis)
        largest, wrong = size.max(axis=others), error.max(axis=others)
        for part in _parts(largest):
            where = f" in slices {_listed(part)} of axis {axis}"
            yield judged(float(wrong[part].max()), float(largest[part].max()), where)


def _parts(largest: Array) -> list[Array]:
    """Indices of slices, grouped so that from one group to the next the maximum jumps by JUMP."""
    order = np.argsort(largest, kind="stable")
    steps = largest[order]
    starts = np.flatnonzero(steps[1:] > JUMP * steps[:-1]) + 1
    return [np.sort(part) for part in np.split(order, starts)]


def _listed(indices: Array, most: int = 4) -> str:
    shown = ", ".join(map(str, indices[:most].tolist()))
    return shown if len(indices) <= most else f"{shown}, ... ({len(indices)})"


def compare_models(
    before: "Model",
    after: "Model",
    feeds: Iterable[Mapping[str, Array]],
    tolerance: float = TOLERANCE,
) -> list[str]:
    """Run two models, onnxruntime's own optimizations off, and compare their outputs.

    Args:
        before: the model taken as right.
        after: the changed one; its outputs must have the same names.
        feeds: what both are fed with, batch by batch; comparison ends at the first that differs.
        tolerance: as in `same_results`.

    Returns:
        The differences in words; empty if there are none.

    Raises:
        ModelError: one of the models cannot be run, or there was nothing to feed.
    """
    names = [info.name for info in before.outputs]
    if names != [info.name for info in after.outputs]:
        return [f"outputs were {names}, are {[info.name for info in after.outputs]}"]
    bounded = {name for name in names if _is_bounded(before, name)}
    tapped = {name: tap for name in names if (tap := _positions(before, name))}
    more = [name for tap in tapped.values() for name in tap[:2]]
    more += [n for name in tapped if (tap := _positions(after, name)) for n in tap[:1]]
    old = before.session(outputs=[n for n in more if _has(before, n)], optimize=False)
    new = after.session(outputs=[n for n in more if _has(after, n)], optimize=False)
    count = 0
    for count, feed in enumerate(feeds, 1):  # noqa: B007 - counted, to tell if there were any
        a, b = _run(old, feed), _run(new, feed)
        scores = {}
        for name, (indices, values, axis, kept) in tapped.items():
            changed = _positions(after, name)
            if changed is not None:
                a[name], b[name] = a[indices], b[changed[0]]
                scores[name] = Scores(a[values], axis, kept)
        old_values, new_values = {n: a[n] for n in names}, {n: b[n] for n in names}
        found = same_results(old_values, new_values, tolerance, scores, bounded)
        if found:
            return found
    if not count:
        raise ModelError("there is nothing to compare the models on: no data was given")
    return []


def _has(model: "Model", name: str) -> bool:
    return name in model.tensors()


def _is_bounded(model: "Model", output: str) -> bool:
    """Whether an output, or a part of it, comes out of a function with values up to 1."""
    waiting: list[gs.Tensor] = [model.tensor(output)]
    seen: set[int] = set()
    while waiting:
        for node in waiting.pop().inputs:
            if node.op in _BOUNDED:
                return True
            if node.op in _MOVERS and id(node) not in seen:
                seen.add(id(node))
                waiting += node.inputs
    return False


def _positions(model: "Model", output: str) -> tuple[str, str, int, bool] | None:
    """For an output of positions: the tensor in which they arise, their scores, axis, axis kept."""
    tensor: gs.Tensor = model.tensor(output)
    while tensor.inputs and tensor.inputs[0].op in _CARRIERS:
        tensor = tensor.inputs[0].inputs[0]
    node = tensor.inputs[0] if tensor.inputs else None
    if node is None or node.op not in ("ArgMax", "ArgMin", "TopK"):
        return None
    top = node.op == "TopK"
    if top and tensor is not node.outputs[1]:
        return None
    axis = int(node.attrs.get("axis", -1 if top else 0))
    return tensor.name, node.inputs[0].name, axis, top or bool(node.attrs.get("keepdims", 1))


def _run(session: Any, feed: Mapping[str, Array]) -> dict[str, Array]:
    names = [output.name for output in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, dict(feed)), strict=True))
    except Exception as e:  # onnxruntime raises a dozen unrelated types
        raise ModelError(f"onnxruntime cannot run the model: {str(e).strip()}") from e


def example_feeds(
    model: "Model", seed: int = 0, batch: int = 1, count: int = 1
) -> list[dict[str, Array]]:
    """Random inputs that a model takes: floats are normal, integers 0 or 1, both seeded.

    Free dimensions get `batch` where they come first, 3 as channels of an image, and else the first
    of a few sizes with which the model runs.

    Raises:
        ModelError: it runs with none of them.
    """
    session = model.session(optimize=False)
    failure: ModelError | None = None
    for size in SIZES:
        feeds = [_feed(model, np.random.default_rng((seed, i)), batch, size) for i in range(count)]
        try:
            _run(session, feeds[0])
        except ModelError as e:
            failure = e
            continue
        return feeds
    raise ModelError(f"no example input was found with which the model runs: {failure}")


def _feed(model: "Model", rng: np.random.Generator, batch: int, size: int) -> dict[str, Array]:
    feed = {}
    for info in model.inputs:
        shape = info.shape if info.shape is not None else (None,)
        dims = [
            d
            if isinstance(d, int)
            else batch
            if i == 0
            else 3
            if (i, len(shape)) == (1, 4)
            else size
            for i, d in enumerate(shape)
        ]
        if info.dtype.kind in "biu":
            feed[info.name] = rng.integers(0, 2, dims).astype(info.dtype)
        else:
            feed[info.name] = rng.standard_normal(dims).astype(info.dtype)
    return feed
