"""The two functions of DRP-AI Quantizer's Python API: words translated, work done by onnxdrp."""

import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from onnxruntime.quantization import CalibrationMethod

from onnxdrp import api
from onnxdrp.compat.drpai_quantizer.readers import FOLDER, folder_reader, rereadable
from onnxdrp.compat.drpai_quantizer.values import Advanced, method_of, names_of
from onnxdrp.datareaders import take
from onnxdrp.datareaders.opening import open_reader
from onnxdrp.errors import OptionError
from onnxdrp.exclusions import Exclusions
from onnxdrp.files import check_output
from onnxdrp.model import Model
from onnxdrp.targets import Target, load_target

if TYPE_CHECKING:
    from onnxdrp.pipeline import Instrument, Pass
    from onnxdrp.report import Report

__all__ = [
    "SHOWN",
    "do_preprocess",
    "preprocessed",
    "quantize",
    "quantize_interface",
]

log = logging.getLogger(__name__)

TARGET: Final = "drp-ai3"
SHOWN = 16  # calibration samples on which the result is compared with the float model


def do_preprocess(
    input_model_path: str,
    preprocessed_model_output: str,
    do_symbolic_shape_inference: bool = True,
    do_onnx_shape_inference: bool = True,
    do_optimization: bool = True,
    skip_preprocess: bool = False,
    verbose: int = 1,
    preprocess_mode: str | None = "default",
    **kwargs: Any,
) -> None:
    """Write the preprocessed model, as `onnxdrp.preprocess` makes it.

    Args:
        input_model_path: the model's file.
        preprocessed_model_output: where the result goes.
        do_symbolic_shape_inference: infer shapes symbolically where something is still unknown.
        do_onnx_shape_inference: infer shapes by ONNX's own inference.
        do_optimization: optimize, fold constants, fuse BatchNormalization, clean.
        skip_preprocess: all three are False: the output is the model as it is. (On the command
            line --skip_preprocess means that this function is not called at all.)
        verbose: 0: nothing is told; 1: warnings; 2 and more: each pass, too.
        preprocess_mode: "default"; there is no other.
        kwargs: options of `quantize_interface`, which have no effect here: that is told.

    Raises:
        OnnxDrpError: an option or the model cannot be used; PassError if a pass failed.
    """
    if preprocess_mode not in ("default", None):
        raise OptionError(f"preprocess_mode {preprocess_mode!r}: there is only 'default'")
    Advanced.of(kwargs)
    check_output(preprocessed_model_output, input_model_path)
    symbolic, shapes = do_symbolic_shape_inference, do_onnx_shape_inference
    if skip_preprocess:
        symbolic = shapes = do_optimization = False
    with _told(verbose):
        for key in kwargs:
            log.warning("%s belongs to quantize_interface; do_preprocess does nothing with it", key)
        model = preprocessed(input_model_path, symbolic, shapes, do_optimization)
        model.save(preprocessed_model_output)


def preprocessed(
    path: str, symbolic: bool = True, shapes: bool = True, optimization: bool = True
) -> Model:
    """The model of a file after what is asked for of `onnxdrp.preprocess`."""
    if symbolic and shapes and optimization:
        return _tell(api.preprocess(path, target=TARGET)).model
    from onnxdrp import passes as p

    steps: list[Pass] = []
    if symbolic or shapes:
        steps = [p.InferShapes(standard=shapes, symbolic=symbolic)]
    if optimization:  # what it folds makes more shapes known, as in `onnxdrp.preprocess`
        steps = [*steps, p.Optimize(), p.FoldConstants(), p.FuseBatchNorm(), p.Clean(), *steps]
    return _tell(api.run(path, steps, target=TARGET)).model if steps else Model.load(path)


def quantize_interface(
    input_model_path: str,
    output_model_path: str,
    datareader: Any = None,
    calibrate_method: Any = CalibrationMethod.MinMax,
    operate_to_exclude: str | Iterable[str] | None = None,
    node_to_exclude: str | Iterable[str] | None = None,
    **kwargs: Any,
) -> None:
    """Quantize a model as it is, on all calibration data, by `onnxdrp.quantize` for drp-ai3.

    Args:
        input_model_path: the model's file, mostly one that `do_preprocess` wrote.
        output_model_path: where the result goes.
        datareader: an NCHWDataReader, an NHWCDataReader, any onnxruntime CalibrationDataReader, or
            whatever `onnxdrp.open_reader` opens; None: the images in ./calibrate_images.
        calibrate_method: of CalibrationMethod, or its name: MinMax, Entropy, Percentile.
        operate_to_exclude: operators that stay float, with commas between, in any case.
        node_to_exclude: names of nodes that stay float, with commas between.
        kwargs: see `onnxdrp.compat.drpai_quantizer.values.Advanced`.

    Operators and nodes that the model has not are warned about.

    Raises:
        OnnxDrpError: the model, an option or the data cannot be used; PassError if a pass failed.
    """
    check_output(output_model_path, input_model_path)
    report = quantize(
        Model.load(input_model_path),
        _default(input_model_path) if datareader is None else datareader,
        calibrate_method,
        operate_to_exclude,
        node_to_exclude,
        Advanced.of(kwargs),
    )
    report.model.save(output_model_path)


def quantize(
    model: Model,
    datareader: Any,
    method: Any,
    operators: str | Iterable[str] | None,
    nodes: str | Iterable[str] | None,
    advanced: Advanced,
    instruments: "Sequence[Instrument]" = (),
) -> "Report":
    """The one call of `onnxdrp.quantize` that all words come down to."""
    reader = open_reader(rereadable(datareader), model)
    if advanced.optimize_model:
        model = _tell(api.preprocess(model, target=TARGET)).model
    options: dict[str, Any] = {
        "percentile": advanced.percentile_value,
        "per_channel": advanced.per_channel,
        "exclude_tail": advanced.exclude_tail,
    }
    report = api.quantize(
        model,
        reader,
        data=take(reader, SHOWN),  # nothing is held back: all samples are calibrated on
        target=_target(advanced),
        method=method_of(method),
        exclude=_excluded(model, operators, nodes, advanced.exclude_act_func_dir),
        skip_preprocess=True,
        instruments=instruments,
        **{name: value for name, value in options.items() if value is not None},
    )
    if tail := report.summary.get("float_tail"):
        log.warning(
            "%s nodes from %s to %s, which decode a detector's boxes and scores, stay float; "
            "exclude_tail none quantizes them", *tail.values(),
        )  # fmt: skip
    return _tell(report)


def _tell(report: "Report") -> "Report":
    """Log what the passes warn of; what the target lacks is logged as it is found."""
    found = [w for record in report.records for w in record.stats.get("warnings", ())]
    for warning in dict.fromkeys(found):
        log.warning(warning)
    return report


def _excluded(
    model: Model,
    operators: str | Iterable[str] | None,
    nodes: str | Iterable[str] | None,
    patterns: str | None,
) -> list[str]:
    """The names of the nodes that stay float; what names nothing is warned about."""
    exclude = [f"op:{name}" for name in names_of("operate_to_exclude", operators)]
    named, operators_here = {n.name for n in model.nodes()}, {n.op.lower() for n in model.nodes()}
    for name in names_of("node_to_exclude", nodes):
        if name not in named and name.lower() in operators_here:
            log.warning("node_to_exclude %s: is an operator; operate_to_exclude takes it", name)
        else:
            exclude.append(name)
    kept = Exclusions(
        tuple(exclude), exclude_patterns=patterns, exclude_tail="none", unmatched="warn"
    ).find(model)
    for note in kept.notes:
        log.warning(note)
    return list(kept.nodes)


def _target(advanced: Advanced) -> Target:
    return load_target(TARGET).with_zero_points(advanced.activation_zeropoint)


def _default(model: str) -> Any:
    log.warning("no datareader is given: the images in %s are read, with mean 0 and std 1", FOLDER)
    return folder_reader(None, None, None, model)


@contextmanager
def _told(verbose: int) -> Iterator[None]:
    """Let onnxdrp's messages of this level pass, to standard error if they go nowhere yet."""
    logger = logging.getLogger("onnxdrp")
    before, levels = logger.level, (logging.ERROR, logging.WARNING)
    level = levels[verbose] if 0 <= verbose < 2 else logging.INFO
    handler = None if logger.hasHandlers() else logging.StreamHandler(sys.stderr)
    logger.setLevel(level)
    if handler is not None:
        logger.addHandler(handler)
    try:
        yield
    finally:
        logger.setLevel(before)
        if handler is not None:
            logger.removeHandler(handler)
