"""DRP-AI Quantizer's command line: every option of its manual, sections 3.2, 3.5, 5 and 6.

    python -m onnxdrp.compat.drpai_quantizer.cli_interface --input_model_path in.onnx ...

Lists are `a,b`, `[a,b]`, or either with blanks. Options without -- are pairs `key value` after all
others, or after --opts (see `onnxdrp.compat.drpai_quantizer.values.Advanced`).
"""

import sys
from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnxdrp.compat.drpai_quantizer import interface
from onnxdrp.compat.drpai_quantizer.commands import run_command
from onnxdrp.compat.drpai_quantizer.readers import (
    FOLDER,
    folder_reader,
    recorded_reader,
    script_reader,
)
from onnxdrp.compat.drpai_quantizer.values import Advanced, join_lists, numbers_of
from onnxdrp.datareaders import DataReader
from onnxdrp.errors import ModelError, OptionError, PassError
from onnxdrp.files import check_output
from onnxdrp.instruments import Progress
from onnxdrp.model import Model

__all__ = ["main"]

log = interface.log
_PROGRAM = "python -m onnxdrp.compat.drpai_quantizer.cli_interface"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code.

    Args:
        arguments: words of the command line after the program's name; default: this process's.
    """
    parser = _parser()
    words = sys.argv[1:] if arguments is None else arguments
    try:
        options, rest = parser.parse_known_args(_with_flags(join_lists(words)))
        if unknown := next((word for word in rest if word.startswith("-")), None):
            parser.error(f"unrecognized option {unknown}")
        options.rest = rest
    except OptionError as e:
        parser.error(str(e))
    return run_command(options, _quantize)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        _PROGRAM,
        description="Quantize an ONNX model to int8 for the target drp-ai3.",
        epilog="All options: docs/migrating.md.",
    )
    add = parser.add_argument
    add(
        "--input_model_path",
        required=True,
        metavar="IN.onnx",
        help="float model; with --tvm also a folder with model.onnx and input/",
    )
    add("--output_model_path", required=True, metavar="OUT.onnx")
    add("--calibrate_dataset", metavar="DIR", help=f"calibration images [{FOLDER}]")
    add(
        "--calibrate_method",
        "-cm",
        default="MinMax",
        metavar="MinMax|Entropy|Percentile",
        help="[MinMax]",
    )
    add("--datareader_path", metavar="FILE.py", help="a data reader of your own")
    add(
        "--operate_to_exclude",
        "--exclude_operate",
        "-ex",
        action="append",
        default=[],
        metavar="a,b",
        help="operators that stay float",
    )
    add(
        "--node_to_exclude",
        "-exn",
        action="append",
        default=[],
        metavar="a,b",
        help="nodes that stay float",
    )
    add("--norm_mean", metavar="[r,g,b]", help="of pixels / 255 [0]")
    add("--norm_std", metavar="[r,g,b]", help="of pixels / 255 [1]")
    add(
        "--skip_preprocess",
        "-skip_preprocess",
        action="store_true",
        help="leave the graph as it is",
    )
    add("--preprocess_mode", "-ppm", default="default", choices=["default"])
    add(
        "--preprocessed_model_output",
        "-pmo",
        nargs="?",
        const="",
        metavar="FILE.onnx",
        help="keep the preprocessed model [OUT_preprocessed.onnx]",
    )
    add("--tvm", action="store_true", help="calibrate on tensors that DRP-AI TVM recorded")
    # not in the original's help either
    add("--opts", nargs="*", action="extend", default=[], help=SUPPRESS)
    add("-az", action="store_true", help=SUPPRESS)
    add("--debug", action="store_true", help=SUPPRESS)
    return parser  # fmt: skip


def _with_flags(words: Sequence[str]) -> list[str]:
    """The words, -pmo with an empty value where what follows it is no model's name but a key."""
    following = [*words[1:], ""]
    return [
        "--preprocessed_model_output="
        if (word == "-pmo" or word.startswith("--preprocessed")) and not after.endswith(".onnx")
        and "=" not in word
        else word
        for word, after in zip(words, following, strict=True)
    ]  # fmt: skip


def _advanced(options: Namespace) -> Advanced:
    """The pairs after --opts and at the end of the line."""
    given: dict[str, Any] = {"activation_zeropoint": True} if options.az else {}
    for pairs in (Advanced.pairs(options.opts), Advanced.pairs(options.rest)):
        for key in given.keys() & pairs.keys():
            log.warning("%s is given twice: %s counts", key, pairs[key])
        given |= pairs
    return Advanced.of(given)


def _quantize(options: Namespace) -> None:
    advanced = _advanced(options)
    model, output = Path(options.input_model_path), Path(options.output_model_path)
    recorded = options.calibrate_dataset
    if options.tvm and model.is_dir():
        recorded, model = recorded or str(model), _only_model(model)
    check_output(output, model)
    reader = _recorded(options, model, recorded) if options.tvm else _images(options, model)
    progress = Progress()
    try:
        report = interface.quantize(
            _prepared(options, model, output),
            reader,
            options.calibrate_method,
            options.operate_to_exclude,
            options.node_to_exclude,
            advanced,
            [progress],
        )
    finally:
        progress.close()
    report.model.save(output)
    found = report.summary.get("fidelity", {}).get("sqnr_db")
    fidelity = "" if found is None else f", SQNR {found:.1f} dB on calibration data"
    print(f"{output}: {output.stat().st_size:,} bytes{fidelity}")


def _prepared(options: Namespace, model: Path, output: Path) -> Model:
    kept = options.preprocessed_model_output
    if options.skip_preprocess:
        if kept is not None:
            log.warning("--preprocessed_model_output: --skip_preprocess leaves nothing to keep")
        return Model.load(model)
    try:
        prepared = interface.preprocessed(str(model))
    except PassError as e:
        raise PassError(
            f"Pre-processing before quantization was Failed: {e}; try --skip_preprocess"
        ) from e
    if kept is not None:
        place = Path(kept) if kept else output.with_name(f"{output.stem}_preprocessed.onnx")
        check_output(place, model)
        prepared.save(place)
    return prepared


def _images(options: Namespace, model: Path) -> DataReader:
    mean = numbers_of("--norm_mean", options.norm_mean)
    std = numbers_of("--norm_std", options.norm_std)
    for name, value, default in (("--norm_mean", mean, 0), ("--norm_std", std, 1)):
        if value is None:
            log.warning("%s is not given: %d is taken", name, default)
    folder = options.calibrate_dataset
    if options.datareader_path is None:
        return folder_reader(folder, mean, std, model)
    return script_reader(options.datareader_path, folder, mean, std, model)


def _recorded(options: Namespace, model: Path, folder: str | None) -> DataReader:
    if options.datareader_path is not None:
        raise OptionError("--datareader_path does not go with --tvm; leave one of them out")
    for name in ("norm_mean", "norm_std"):
        if getattr(options, name) is not None:
            log.warning("--%s is not used: recorded tensors are what the model reads", name)
    if folder is None and (model.parent / "input").is_dir():
        folder = str(model.parent)
    return recorded_reader(folder or FOLDER, model)


def _only_model(folder: Path) -> Path:
    """model.onnx of a folder, or the one .onnx file that is there."""
    files = sorted(folder.glob("*.onnx"))
    named = [f for f in files if f.name == "model.onnx"] or files
    if len(named) != 1:
        raise ModelError(f"{folder}: has {len(named)} .onnx files and no model.onnx; name the file")
    return named[0]


if __name__ == "__main__":
    sys.exit(main())
