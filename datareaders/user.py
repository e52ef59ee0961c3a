"""Readers in a user's own file: FILE.py[:Class]."""

import hashlib
import inspect
import os
import sys
from collections.abc import Iterator, Mapping
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from onnxdrp.datareaders.base import Batch, DataReader, ModelLike
from onnxdrp.datareaders.batching import take
from onnxdrp.datareaders.blame import blamed
from onnxdrp.datareaders.layouts import parse_layout
from onnxdrp.datareaders.spool import wrap
from onnxdrp.errors import DataError, OptionError

__all__ = ["load_reader"]

# The names under which constructors may ask for what we have to give
PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "data": (
        "folder", "data", "data_path", "data_dir", "data_folder", "path", "dataset", "dataset_path",
        "image_folder", "images", "images_folder", "image_dir", "input_folder", "calib",
        "calibration_data", "calibration_data_path", "calibration_dataset",
        "calibration_image_folder", "calibration_images", "calibration_folder", "calibrate_dataset",
    ),
    "model": ("model",),
    "model_path": ("model_path", "augmented_model_path", "input_model_path", "onnx_path"),
    "mean": ("mean", "norm_mean"),
    "std": ("std", "norm_std"),
    "limit": ("limit", "size_limit"),
    "batch": ("batch", "batch_size"),
}  # fmt: skip
KIND = "a class with get_next, or a DataReader with batches"
ALWAYS = ("data", "model", "model_path", "seed")


def load_reader(
    spec: str | os.PathLike[str],
    model: ModelLike,
    data: str | os.PathLike[str] | None = None,
    **options: Any,
) -> DataReader:
    """Import a reader class from a file and construct it with what its signature accepts.

    The class has `get_next` (as onnxruntime asks) or `batches`. Its parameters are found by
    name: `folder` or `calibration_image_folder` and the like for the data, `model` for the model,
    `augmented_model_path` or `model_path` for its file, `norm_mean`/`mean`, `norm_std`/`std`,
    `size_limit`/`limit`, `batch_size`/`batch`, and any other option under its own name.

    Args:
        spec: "FILE.py", which has one reader class, or "FILE.py:Class".
        model: the model, or its file.
        data: what the reader is to read, if it does not know itself.
        options: given by the user (None: not given). A `limit` that the class does not take is
            applied to its samples, a `layout` declares theirs; others that it does not take are
            refused.

    Raises:
        DataError: if the file, its class, or the construction fails, or a batch later on; it
            names file, line and exception.
        OptionError: if the class takes no parameter for an option.
    """
    file, name = _parse(str(spec))
    cls = _find(_import(file), file, name)
    given = {key: value for key, value in options.items() if value is not None}
    given |= {"model": model, "model_path": _model_path(model), "data": data}
    arguments, unused = _arguments(cls, {k: v for k, v in given.items() if v is not None}, file)
    if refused := set(unused) - {"layout", "limit"}:
        raise OptionError(
            f"{file}: {cls.__name__} takes no parameter for {', '.join(sorted(refused))}; "
            "add one, or drop the option"
        )
    made = _construct(_guarded(cls, file) if issubclass(cls, DataReader) else cls, arguments, file)
    reader = wrap(made, parse_layout(options["layout"]) if "layout" in unused else None)
    return take(reader, options["limit"]) if "limit" in unused else reader


def _parse(spec: str) -> tuple[Path, str | None]:
    path, colon, name = spec.rpartition(":")
    if not colon or not path.endswith(".py"):  # C:\reader.py has a colon too
        path, name = spec, ""
    file = Path(path)
    if file.suffix != ".py":
        raise OptionError(f"reader {spec!r} must be FILE.py or FILE.py:Class")
    if not file.is_file():
        raise DataError(f"{file}: no such reader file")
    return file, name or None


def _import(file: Path) -> ModuleType:
    key = hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:12]
    spec = spec_from_file_location(f"onnxdrp_reader_{file.stem}_{key}", file)
    if spec is None or spec.loader is None:
        raise DataError(f"{file}: cannot be imported as Python")
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look there
    sys.path.insert(0, str(file.parent))  # a reader may import its neighbours
    try:
        with blamed("cannot import this reader", str(file.absolute())):
            spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(file.parent))
    return module


def _find(module: ModuleType, file: Path, name: str | None) -> type[Any]:
    if name is not None:
        cls = getattr(module, name, None)
        if not isinstance(cls, type) or not _reads(cls):
            raise DataError(f"{file}: has no class {name!r} that is a reader: {KIND}")
        return cls
    own = [
        cls
        for cls in vars(module).values()
        if isinstance(cls, type) and cls.__module__ == module.__name__ and _reads(cls)
    ]
    leaves = [cls for cls in own if not any(cls in other.__mro__[1:] for other in own)]
    if len(leaves) != 1:
        found = ", ".join(cls.__name__ for cls in leaves)
        hint = f"several readers ({found}); pass {file}:Class" if found else (f"no reader: {KIND}")
        raise DataError(f"{file}: has {hint}")
    return leaves[0]


def _reads(cls: type[Any]) -> bool:
    readable = issubclass(cls, DataReader) or hasattr(cls, "get_next")
    return readable and not inspect.isabstract(cls)


def _arguments(
    cls: type[Any], given: Mapping[str, Any], file: Path
) -> tuple[dict[str, Any], list[str]]:
    """Return the arguments for the parameters of a class, and the options that found none."""
    sources = {alias: key for key, aliases in PARAMETERS.items() for alias in aliases}
    arguments, used = {}, set(ALWAYS) - {"data"}
    for parameter in inspect.signature(cls).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        key = sources.get(parameter.name, parameter.name)
        if key in given:
            arguments[parameter.name] = given[key]
            used.add(key)
        elif parameter.default is parameter.empty:
            raise DataError(f"{file}: {cls.__name__} wants {parameter.name!r}: {_missing(key)}")
    return arguments, sorted(set(given) - used)


def _missing(key: str) -> str:
    if key == "model_path":
        return "the model has no file; save it, and give the file"
    option = "calib" if key == "data" else key
    return f"give --{option}" if key in PARAMETERS else "give the parameter a default"


def _construct(cls: type[Any], arguments: Mapping[str, Any], file: Path) -> Any:
    with blamed(f"cannot construct {cls.__name__}", str(file.absolute())):
        return cls(**arguments)


def _guarded(cls: type[DataReader], file: Path) -> type[DataReader]:
    """Return the same class, whose passes blame the user's file for what they raise."""

    def batches(self: DataReader) -> Iterator[Batch]:
        with blamed(f"{cls.__name__}.batches", str(file.absolute())):
            yield from cls.batches(self)

    return type(cls.__name__, (cls,), {"batches": batches, "__doc__": cls.__doc__})


def _model_path(model: ModelLike) -> str | None:
    path = model if isinstance(model, (str, os.PathLike)) else getattr(model, "path", None)
    return None if path is None else os.fspath(path)
