"""Calibration data under the class names of DRP-AI Quantizer, as readers of onnxdrp.

    x = (pixels / 255 - norm_mean) / norm_std      of the image stretched to the model's size

by Pillow's bicubic filter, as in the manual's `preprocess_func`. A script of the user's may hold a
class of its own, or one derived from those here, with another `preprocess_func` or `size_limit`.
"""

import copy
import inspect
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

import numpy as np

from onnxdrp import datareaders
from onnxdrp.compat.drpai_quantizer.values import numbers_of
from onnxdrp.datareaders import Array, Batch, DataReader, RecordedReader, SpooledReader
from onnxdrp.datareaders.base import InputInfo, ModelLike, inputs_of
from onnxdrp.datareaders.files import IMAGES, TENSORS, existing_folder, find_files
from onnxdrp.datareaders.geometry import Fit
from onnxdrp.datareaders.layouts import layout_of, spec
from onnxdrp.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "FOLDER",
    "NCHWDataReader",
    "NHWCDataReader",
    "folder_reader",
    "recorded_reader",
    "rereadable",
    "script_reader",
]

_Reader = TypeVar("_Reader")
log = logging.getLogger(__name__)
FOLDER: Final = "./calibrate_images"
_RAW = (".bin", ".raw", ".dat", ".f32", ".float32")


class _Bicubic(Fit):
    """Stretching as the manual's listing has it: `Image.resize` as it is by default."""

    def apply(self, image: "Image") -> "Image":
        from PIL import Image

        return image.resize((self.width, self.height), Image.Resampling.BICUBIC)


class _Nchw(datareaders.NCHWDataReader):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.size = (self._fit.height, self._fit.width)
        self._fit = _Bicubic(*self.size)


class _Nhwc(datareaders.NHWCDataReader):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.size = (self._fit.height, self._fit.width)
        self._fit = _Bicubic(*self.size)


class _FolderReader(DataReader):
    """Images of a folder; see `NCHWDataReader`."""

    size_limit: int = 0
    _images: ClassVar[type[_Nchw | _Nhwc]]
    _folder: Any = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in cls.__dict__:
            cls.__init__ = _keeping_folder(cls.__init__)  # type: ignore[method-assign]

    def __init__(
        self,
        calibration_image_folder: str | os.PathLike[str],
        norm_mean: Sequence[float] | None,
        norm_std: Sequence[float] | None,
        augmented_model_path: str | os.PathLike[str],
    ) -> None:
        self._folder = calibration_image_folder
        self.augmented_model_path = augmented_model_path
        self.preprocess_flag = True
        self.enum_data_dicts: Any = []
        self.datasize = 0
        self.norm_mean = self.check_list_data("norm_mean", norm_mean)
        self.norm_std = self.check_list_data("norm_std", norm_std)
        _ = self._reader  # what does not fit is refused here, not after the work has begun

    @cached_property
    def image_names(self) -> list[str]:
        """Paths of the images, nested ones too, in order."""
        top = existing_folder(self._folder)
        return [str(top / name) for name in find_files(top, IMAGES)]

    @property
    def samples(self) -> int | None:  # type: ignore[override]  # it follows size_limit
        """How many images are read; None if a `preprocess_func` of the user's decides it."""
        return None if self._is_overridden else len(self._names(self.size_limit))

    @staticmethod
    def check_list_data(name: str, values: Any) -> list[float] | None:
        """The numbers of a list, or of its text; None stays None.

        Raises:
            OptionError: it holds something else.
        """
        return numbers_of(name, values)

    def preprocess_func(self, height: int, width: int, size_limit: int = 0) -> Iterable[Array]:
        """Make the samples; to prepare images in a way of your own, override this.

        Args:
            height: of the model's input.
            width: of the model's input.
            size_limit: read only so many of `image_names`; 0: all.

        Returns:
            float32 [samples, 1, C, H, W], or [samples, 1, H, W, C] of an NHWC reader.
        """
        del height, width  # those of the model, which the reader was made for
        names = self._names(size_limit)
        return np.stack([self._reader.read(Path(name))[np.newaxis] for name in names])

    def batches(self) -> Iterator[Batch]:
        """Begin a new pass: one sample a batch."""
        if not self._is_overridden:
            reader = copy.copy(self._reader)
            reader.files = [Path(file) for file in self._names(self.size_limit)]
            yield from reader.batches()
            return
        info = inputs_of(self.augmented_model_path)[0]
        for sample in self.preprocess_func(*self._reader.size, self.size_limit):
            array = np.asarray(sample)
            yield {info.name: array[np.newaxis] if array.ndim == 3 else array}

    @property
    def _is_overridden(self) -> bool:
        own = getattr(self.preprocess_func, "__func__", None)
        return own is not _FolderReader.preprocess_func

    def _names(self, size_limit: int) -> list[str]:
        names = self.image_names
        return names[:size_limit] if 0 < size_limit <= len(names) else names

    @cached_property
    def _reader(self) -> _Nchw | _Nhwc:
        return self._images(
            self._folder, self.norm_mean, self.norm_std, model=self.augmented_model_path
        )


def _keeping_folder(init: Callable[..., None]) -> Callable[..., None]:
    """The constructor, after which the folder is known.

    The one that the manual prints for users to edit (figure 6.1) does not keep it.
    """
    signature = inspect.signature(init)

    @wraps(init)
    def constructor(self: _FolderReader, *args: Any, **kwargs: Any) -> None:
        given = signature.bind(self, *args, **kwargs).arguments
        self._folder = given.get("calibration_image_folder")
        init(self, *args, **kwargs)

    return constructor


class NCHWDataReader(_FolderReader):
    """A folder of images for a model that wants channels first, with the manual's parameters.

    Args:
        calibration_image_folder: JPEG, PNG, BMP and WebP files, nested ones too.
        norm_mean: of each channel, after division by 255; None: 0.
        norm_std: of each channel, after division by 255; None: 1.
        augmented_model_path: the model's file; tells the input's name, type and size.

    Attributes:
        size_limit: read only so many images, the first by name; 0: all. May be set at any time.
        image_names: paths of the images.
    """

    layout = "NCHW"
    _images = _Nchw


class NHWCDataReader(_FolderReader):
    """A folder of images for a model that wants channels last; all else is as `NCHWDataReader`."""

    layout = "NHWC"
    _images = _Nhwc


def folder_reader(
    folder: str | os.PathLike[str] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    model: str | os.PathLike[str],
) -> DataReader:
    """The reader of a folder of images for the layout that the model's input shows."""
    inputs = inputs_of(model)
    last = len(inputs) == 1 and layout_of(inputs[0].shape) == "NHWC"
    return (NHWCDataReader if last else NCHWDataReader)(folder or FOLDER, mean, std, model)


def script_reader(
    script: str,
    folder: str | os.PathLike[str] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    model: str | os.PathLike[str],
) -> DataReader:
    """The reader in a user's file; of several, the one that is called as in the manual.

    What is None is the default where the script's constructor, by the manual's names, wants it.
    `nchw_datareader.py` and `nhwc_datareader.py` of the manual's own folder, where they are
    missing, are the readers of this module; that is said.
    """
    path = Path(script)
    shipped = {"nchw_datareader.py": NCHWDataReader, "nhwc_datareader.py": NHWCDataReader}
    if path.name in shipped and not path.exists():
        log.warning("%s: no such file; onnxdrp's reader of that name is used", path)
        return shipped[path.name](folder or FOLDER, mean, std, model)
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    last = any(layout_of(info.shape) == "NHWC" for info in inputs_of(model))
    order = ("NHWC", "NCHW") if last else ("NCHW", "NHWC")
    names = [f"{layout}DataReader" for layout in order]
    name = next((f":{n}" for n in names if re.search(rf"^class {n}\b", text, re.MULTILINE)), "")
    given: dict[str, Any] = {"mean": mean, "std": std}
    is_ours = "__init__" not in text  # then the constructor is that of this module
    if is_ours or "norm_mean" in text:
        given = {"mean": mean or [0.0] * 3, "std": std or [1.0] * 3}
    if folder is None and (is_ours or "calibration_image_folder" in text):
        folder = FOLDER
    reader: DataReader = datareaders.load_reader(f"{script}{name}", model, folder, **given)
    return rereadable(reader)


def rereadable(reader: _Reader) -> _Reader | SpooledReader:
    """The reader; one of ours whose `get_next` is the user's is read by that, once, and kept."""
    if isinstance(reader, _FolderReader) and type(reader).get_next is not DataReader.get_next:
        return SpooledReader(reader, reader.layout)
    return reader


def recorded_reader(folder: str | os.PathLike[str], model: ModelLike) -> DataReader:
    """What the recorder of DRP-AI TVM left in a folder: .npy, .npz, or raw float32.

    Several inputs lie in sub-folders named after them, with the same file names in each. Files are
    read in the order of their names.

    Args:
        folder: holds the files, or has a sub-folder `input` that does.
        model: the model, or its file.
    """
    top = existing_folder(folder)
    top = top / "input" if (top / "input").is_dir() else top
    return RecordedReader(top, model) if find_files(top, TENSORS) else _RawReader(top, model)


class _RawReader(DataReader):
    """Files of raw float32, each of whole samples of the shape that the model's input has."""

    def __init__(self, top: Path, model: ModelLike) -> None:
        self._inputs = inputs_of(model)
        files = {info.name: self._find(top, info) for info in self._inputs}
        samples = [[_samples(i, file) for file in files[i.name]] for i in self._inputs]
        if any(other != samples[0] for other in samples):
            counts = ", ".join(f"{n} {sum(s)}" for n, s in zip(files, samples, strict=True))
            raise DataError(f"{top}: the inputs have other numbers of samples in a file: {counts}")
        self._files = list(zip(*files.values(), strict=True))
        self.samples = sum(samples[0])

    def batches(self) -> Iterator[Batch]:
        """Begin a new pass: a file a batch."""
        for files in self._files:
            yield {
                info.name: np.fromfile(file, np.float32).reshape(-1, *_sample_shape(info))
                for info, file in zip(self._inputs, files, strict=True)
            }

    def _find(self, top: Path, info: InputInfo) -> list[Path]:
        place = top / info.name if len(self._inputs) > 1 else top
        files = [place / file for file in find_files(place, _RAW)] if place.is_dir() else []
        if not files:
            kinds = ", ".join((*TENSORS, *_RAW))
            raise DataError(f"{place}: holds no recorded tensor of input {info.name!r} ({kinds})")
        return files


def _samples(info: InputInfo, file: Path) -> int:
    size, one = file.stat().st_size, int(np.prod(_sample_shape(info))) * 4
    if size == 0 or size % one:
        raise DataError(f"{file}: has {size} bytes, but {spec(info)}, {one} bytes a sample")
    return size // one


def _sample_shape(info: InputInfo) -> tuple[int, ...]:
    shape = [] if info.shape is None else [d for d in info.shape[1:] if isinstance(d, int)]
    if info.dtype != np.float32 or info.shape is None or len(shape) != len(info.shape) - 1:
        raise DataError(
            f"{spec(info)}: raw files are float32 of a known shape; record .npy files instead"
        )
    return tuple(shape)
