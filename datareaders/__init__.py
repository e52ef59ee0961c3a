"""Calibration and evaluation data, as batches that any pass can read again.

`open_reader` finds the reader for a folder, a file, arrays or a reader that exists already;
`check_reader` says before any work whether its data fits the model.
"""

from onnxdrp.datareaders.arrays import ArrayReader
from onnxdrp.datareaders.base import Array, Batch, DataReader, Layout, first_batch
from onnxdrp.datareaders.batching import count, rebatch, split, subset, take
from onnxdrp.datareaders.check import check_reader
from onnxdrp.datareaders.geometry import Placement
from onnxdrp.datareaders.images import ImageReader, NCHWDataReader, NHWCDataReader
from onnxdrp.datareaders.layouts import infer_layout, to_layout
from onnxdrp.datareaders.opening import open_reader
from onnxdrp.datareaders.prefetch import prefetch
from onnxdrp.datareaders.recorded import RecordedReader
from onnxdrp.datareaders.spool import SpooledReader, wrap
from onnxdrp.datareaders.synthetic import SyntheticReader
from onnxdrp.datareaders.user import load_reader

__all__ = [
    "Array",
    "ArrayReader",
    "Batch",
    "DataReader",
    "ImageReader",
    "Layout",
    "NCHWDataReader",
    "NHWCDataReader",
    "Placement",
    "RecordedReader",
    "SpooledReader",
    "SyntheticReader",
    "check_reader",
    "count",
    "first_batch",
    "infer_layout",
    "load_reader",
    "open_reader",
    "prefetch",
    "rebatch",
    "split",
    "subset",
    "take",
    "to_layout",
    "wrap",
]
