"""Top-1 of a classifier on labelled images: chapter 4 of DRP-AI Quantizer's manual.

    python -m onnxdrp.compat.drpai_quantizer.inference --nchw model_q.onnx

Without --data the images are those that come with onnxdrp (`onnxdrp.demo`), prepared as its models
want them; nothing is downloaded.
"""

import sys
from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Sequence
from typing import Any

from onnxdrp import api, demo
from onnxdrp.compat.drpai_quantizer.commands import run_command
from onnxdrp.compat.drpai_quantizer.values import join_lists, numbers_of
from onnxdrp.datareaders import open_reader
from onnxdrp.datareaders.layouts import layout_of, spec
from onnxdrp.errors import DataError, OptionError
from onnxdrp.model import Model

__all__ = ["main"]

_PROGRAM = "python -m onnxdrp.compat.drpai_quantizer.inference"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code.

    Args:
        arguments: words of the command line after the program's name; default: this process's.
    """
    parser = ArgumentParser(_PROGRAM, description="Measure a classifier on labelled images.")
    add = parser.add_argument
    add("model", metavar="MODEL.onnx")
    layout = parser.add_mutually_exclusive_group()
    layout.add_argument(
        "--nchw",
        dest="layout",
        action="store_const",
        const="NCHW",
        help="the model wants channels first",
    )
    layout.add_argument(
        "--nhwc",
        dest="layout",
        action="store_const",
        const="NHWC",
        help="the model wants channels last",
    )
    add("--data", metavar="DATA", help="labelled images or arrays [those of onnxdrp.demo]")
    add("--labels", metavar="FILE.csv|folders", help="labels of a folder of images")
    add("--norm_mean", metavar="[r,g,b]", help="of pixels / 255 [0; the demo's for its images]")
    add("--norm_std", metavar="[r,g,b]", help="of pixels / 255 [1; the demo's for its images]")
    add("--limit", type=int, metavar="N", help="measure on so many images [all]")
    add("--debug", action="store_true", help=SUPPRESS)
    words = sys.argv[1:] if arguments is None else arguments
    try:
        options = parser.parse_args(join_lists(words))
    except OptionError as e:
        parser.error(str(e))
    return run_command(options, _measure)  # fmt: skip


def _measure(options: Namespace) -> None:
    model = Model.load(options.model)
    _check_layout(model, options.layout)
    mean = numbers_of("--norm_mean", options.norm_mean)
    std = numbers_of("--norm_std", options.norm_std)
    given: dict[str, Any] = {"mean": mean, "std": std, "limit": options.limit, "batch": 16}
    data = options.data
    if data is None:
        if options.labels is not None:
            raise OptionError("--labels belongs to --data; give the folder of the images")
        data = demo.TEST
        given |= {"mean": mean or demo.MEAN, "std": std or demo.STD}
    elif options.labels is not None:
        given |= {"labels": options.labels, "layout": options.layout}
    print(f"{options.model}: {api.evaluate(model, open_reader(data, model, **given))}")


def _check_layout(model: Model, layout: str | None) -> None:
    for info in model.inputs:
        if layout is not None and layout_of(info.shape) not in (None, layout):
            raise DataError(f"{spec(info)}; --{layout.lower()} does not fit it")


if __name__ == "__main__":
    sys.exit(main())
