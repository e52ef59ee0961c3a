"""Refuse NaN and infinity: one such value spoils every statistic that is taken of the data."""

import numpy as np

from onnxdrp.datareaders.base import Array, Batch
from onnxdrp.errors import DataError

__all__ = ["check_finite"]


def check_finite(batch: Batch, samples: Array, origin: str) -> None:
    """Raise if a float array holds NaN or infinity; `samples` are the numbers of its rows."""
    for name, array in batch.items():
        if not np.issubdtype(array.dtype, np.floating):
            continue
        finite = np.isfinite(array)
        if finite.all():
            continue
        row = int(np.argmin(finite.reshape(len(array), -1).all(axis=1)))
        what = "NaN" if np.isnan(array[row]).any() else "infinity"
        raise DataError(f"{origin}: sample {samples[row]} of {name!r} holds {what}")
