"""Proof that a model's samples do not touch each other along the batch axis.

Two samples that differ are run apart and together: every tensor of the run together must be the
others joined along the first axis, up to rounding. Only then may samples run in company.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxdrp.errors import DataError
from onnxdrp.taps import Runner, close

__all__ = ["are_independent"]

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]


def are_independent(
    runners: Mapping[str, Runner], samples: Sequence[Feed], whole: frozenset[str]
) -> bool:
    """Whether the runners' tensors show two of these samples to be independent.

    False also where no two of them have the same shapes and different values: nothing is proven.

    Args:
        runners: {model: what gives its tensors}.
        samples: feeds with a batch axis of 1.
        whole: inputs without a batch axis.
    """
    pair = _two(samples, whole)
    if pair is None:
        return False
    a, b = pair
    together = {n: v if n in whole else np.concatenate([v, b[n]]) for n, v in a.items()}
    return all(_joins(runner, a, b, together) for runner in runners.values())


def _two(samples: Sequence[Feed], whole: frozenset[str]) -> tuple[Feed, Feed] | None:
    for i, a in enumerate(samples):
        for b in samples[i + 1 :]:
            rows = [name for name in a if name not in whole]
            alike = all(a[n].shape == b[n].shape and a[n].dtype == b[n].dtype for n in rows)
            if alike and any(not np.array_equal(a[n], b[n]) for n in rows):
                return a, b
    return None


def _joins(runner: Runner, a: Feed, b: Feed, together: Feed) -> bool:
    first, second = runner.run(a), runner.run(b)
    try:
        both = runner.run(together)
    except DataError:  # such as a Reshape to one sample: the model's batch is free by name only
        return False
    return all(_is_joined(v, first[name], second[name]) for name, v in both.items())


def _is_joined(both: Array, a: Array, b: Array) -> bool:
    """Whether each sample has as many rows as the other, one after the other."""
    return bool(np.ndim(both)) and a.shape == b.shape and close(both, np.concatenate([a, b]))
