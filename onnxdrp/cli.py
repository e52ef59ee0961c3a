"""The command line: options in, a file and a report out. No logic of its own.

Standard output carries the result (with --json one JSON object and nothing else), standard error
progress and logs. Exit codes: 0 done; 1 an error that the user can act on, in one line; 2 wrong
usage; 130 interrupted.
"""

import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from onnxdrp import __version__
from onnxdrp.errors import OnnxDrpError, OptionError
from onnxdrp.files import atomic_write, check_output
from onnxdrp.terminal import StderrHandler, painted, shown

if TYPE_CHECKING:
    from onnxdrp.datareaders import DataReader
    from onnxdrp.instruments import Progress
    from onnxdrp.model import Model
    from onnxdrp.pipeline import Instrument
    from onnxdrp.report import Report

__all__ = ["cli", "main"]

F = TypeVar("F", bound=Callable[..., Any])


class _Commands(click.Group):
    """Commands whose errors end in one line, unless --debug asks for the traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what a user can act on becomes click's own error, with its exit code."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.exceptions.Abort):
            raise
        except KeyboardInterrupt:
            click.echo(f"interrupted{ctx.meta.get(_GO_ON, '')}", err=True)
            ctx.exit(130)  # as shells have it: 128 and the number of the signal
        except Exception as e:
            if ctx.meta.get(_DEBUG):
                raise
            text = (str(e).strip() or type(e).__name__).splitlines()[0]
            if not isinstance(e, OnnxDrpError):
                text += f" ({type(e).__name__}, a defect of onnxdrp; --debug shows where)"
            raise click.ClickException(text) from e


_DEBUG = "onnxdrp.debug"
_GO_ON = "onnxdrp.go_on"
_QUIET = "onnxdrp.quiet"
_SAID = "onnxdrp.said"


def _set_debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.meta[_DEBUG] = value or ctx.meta.get(_DEBUG, False)


def _set_quiet(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.meta[_QUIET] = value or ctx.meta.get(_QUIET, False)


def _set_verbose(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        root = logging.getLogger()
        ctx.call_on_close(partial(root.setLevel, root.level))
        root.setLevel(logging.INFO)


# ------------------------------------------------------------------------------------------ options


class _Pairs(click.ParamType):  # type: ignore[type-arg]
    """`NAME:VALUE`, where the name may have colons of its own."""

    name = "NAME:VALUE"

    def __init__(self, parse: Callable[[str], Any]) -> None:
        self.parse = parse

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, Any]:
        name, colon, text = value.rpartition(":")
        try:
            return (name, self.parse(text)) if colon and name else self.fail(f"{value!r}: no colon")
        except ValueError:
            self.fail(f"{value!r}: {text!r} is not understood", param, ctx)


class _Numbers(click.ParamType):  # type: ignore[type-arg]
    """Numbers with commas between, or one."""

    name = "a,b,c"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[float, ...]:
        try:
            return tuple(float(v) for v in value.strip("[]() ").split(","))
        except ValueError:
            self.fail(
                f"{value!r}: give one number, or one for each channel, as 0.5,0.5,0.5", param, ctx
            )


class _Size(click.ParamType):  # type: ignore[type-arg]
    """`HxW`, or one number for both."""

    name = "HxW"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, int]:
        height, _, width = value.lower().partition("x")
        try:
            return int(height), int(width or height)
        except ValueError:
            self.fail(f"{value!r}: give height and width, as 224x224", param, ctx)


class _Bytes(click.ParamType):  # type: ignore[type-arg]
    """A number of bytes, or one with a unit: 500MB, 1.5GB, 2GiB."""

    name = "BYTES"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        found = re.fullmatch(r"(\d+\.?\d*)\s*(?:([KMGT])(I?))?B?", value.strip().upper())
        if found is None:
            self.fail(f"{value!r}: give bytes, as 500MB, 2GB or 1GiB", param, ctx)
        number, unit, binary = found.groups()
        count = int(float(number) * (1024 if binary else 1000) ** " KMGT".index(unit or " "))
        return count or self.fail(f"{value!r}: give 1 byte or more", param, ctx)


def _dims(text: str) -> tuple[int, ...]:
    return tuple(int(d) for d in text.split(","))


def _options(*options: Callable[[F], F]) -> Callable[[F], F]:
    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def _targets(_: click.Context, __: click.Parameter, begun: str) -> list[CompletionItem]:
    """What a shell completes a target to: profiles, and files."""
    from onnxdrp.targets import list_targets

    found = [CompletionItem(name) for name in list_targets() if name.startswith(begun)]
    return found or [CompletionItem(begun, type="file")]


_reading = _options(
    click.option("--layout", type=click.Choice(["nchw", "nhwc"]), help="Axis order of the data."),
    click.option("--size", type=_Size(), help="Images are brought to this size [the model's]."),
    click.option("--resize", type=click.Choice(["stretch", "crop", "letterbox"]), help="[stretch]"),
    click.option("--pad-color", type=_Numbers(), help="Of a letterbox, 0..255 [114]."),
    click.option("--pad-place", type=click.Choice(["centre", "top-left"]), help="[centre]"),
    click.option("--color", type=click.Choice(["rgb", "bgr"]), help="Order of channels [rgb]."),
    click.option("--scale", type=float, help="(pixel * SCALE - mean) / std [1/255]."),
    click.option("--mean", type=_Numbers(), help="One number, or one a channel [0]."),
    click.option("--std", type=_Numbers(), help="One number, or one a channel [1]."),
    click.option("--limit", type=click.IntRange(1), help="Samples, spread evenly [all]."),
    click.option("--batch", type=click.IntRange(1), help="Samples read at a time [1]."),
    click.option("--reader", metavar="FILE.py[:Class]", help="A data reader of your own."),
)
_shaping = _options(
    click.option(
        "--input-shape", multiple=True, type=_Pairs(_dims), metavar="NAME:1,3,640,640",
        help="Make an input's shape static.",
    ),
    click.option("--outputs", metavar="a,b", help="Cut the graph at these tensors."),
    click.option("--target", shell_complete=_targets, help="A profile, or its TOML [generic]."),
)  # fmt: skip
_repairing = _options(
    click.option("--recover", type=click.Choice(["none", "moments", "refit", "distill"]),
                 help="Repair what is left, from unlabelled data [refit with data]."),
    click.option("--distill-minutes", type=float, metavar="MINUTES",
                 help="How long --recover distill may take [5]."),
)  # fmt: skip
_whole_layers = click.option(
    "--exclude", multiple=True, metavar="LAYER", help="Leave these layers whole."
)
_slimming = _options(
    click.option("--ratio", type=float, help="Share of the multiply-adds to remove."),
    click.option("--rate", type=float, help="Share of the channels to remove, instead."),
    click.option("--score", type=click.Choice(["l1", "activation", "second-order"]),
                 help="Which go first in a group [second-order with data, else l1]."),
    click.option("--sens", "curves", type=click.Path(), metavar="FILE.json",
                 help="What that costs each group, and in which order, from sensitivity "
                      "--of channels."),
    click.option("--search", type=click.IntRange(1), metavar="N",
                 help="Try N sub-networks, take the best."),
    click.option("--ratios", type=_Numbers(), metavar="R,R,...",
                 help="Of --search: shares of a group that may stay [any]."),
    click.option("--index", type=click.IntRange(0), metavar="K",
                 help="Take this one of the search, or of the front in --spec."),
    click.option("--auto", is_flag=True, help="As many as --max-drop allows."),
    click.option("--max-drop", type=float, metavar="POINTS",
                 help="Of --auto: top-1 that may be lost, or agreement [1]."),
    click.option("--sure", is_flag=True,
                 help="Of --auto: so that it holds on other images, too."),
    click.option("--spec", type=click.Path(), metavar="FILE.json",
                 help="Remove what was decided before; of a front with --index."),
    click.option("--save-spec", type=click.Path(), metavar="FILE.json",
                 help="Keep the decision, for the same model fine-tuned."),
    click.option("--multiple", type=click.IntRange(1),
                 help="That the channels left are of [the target's]."),
    _whole_layers,
    click.option("--auto-excludes/--no-auto-excludes", default=True, show_default=True,
                 help="Leave the first and the last convolution whole."),
    click.option("--sparse", is_flag=True, help="Only zero the channels; the shapes stay."),
)  # fmt: skip
_pruning = _options(
    click.option("--sparsity", type=float, help="Share to prune of the layers that may be [0.7]."),
    click.option(
        "--pattern", metavar="PATTERN",
        help="block, flex-nm, nm, nm:N:M, row, unstructured or module:Name [the target's].",
    ),
    click.option(
        "--rate", "rates", multiple=True, type=_Pairs(float), metavar="LAYER:RATE",
        help="A layer's own rate; LAYER is a name, a glob, or re:EXPRESSION.",
    ),
    click.option("--rates", "allocation", type=click.Choice(["uniform", "auto"]),
                 help="One for all layers, or more where it costs less [auto with data]."),
    click.option("--sparsity-of", type=click.Choice(["weights", "macs"]),
                 help="What --sparsity is a share of, with --rates auto [weights]."),
    click.option("--score", type=click.Choice(["magnitude", "activation", "second-order"]),
                 help="What is pruned first [second-order with data, else magnitude]."),
    click.option("--prune-steps", type=click.IntRange(1), metavar="K",
                 help="Prune in K steps, re-fit after each [1]."),
    _repairing,
    _whole_layers,
    click.option("--prune-last", is_flag=True, help="Prune the last layers too."),
    click.option("--prune-depthwise", is_flag=True, help="Prune depthwise convolutions too."),
    click.option("--masks", type=click.Path(), help="Apply these masks (.npz) instead."),
    click.option("--save-masks", type=click.Path(), metavar="FILE.npz", help="Keep the masks."),
)  # fmt: skip
_NODES = "Leave float: a node, an operator (op:NAME), a glob, or re:EXPRESSION."
_AUTO = f"{_NODES[:-1]}; auto: the cheapest layers."
_keep_float = click.option("--keep-float", multiple=True, metavar="NODE|auto", help=_AUTO)
_exclude_or_auto = click.option(
    "--exclude", "--keep-float", "exclude", multiple=True, metavar="NODE|auto", help=_AUTO
)
_exclude = click.option(
    "--exclude", "--keep-float", "exclude", multiple=True, metavar="NODE", help=_NODES
)
_excluding = _options(
    click.option("--exclude-subgraph", multiple=True, metavar="A..B",
                 help="Leave float what lies between these tensors or nodes (a,b..c; A..; ..B)."),
    click.option("--exclude-patterns", type=click.Path(), metavar="FILE.csv|FOLDER",
                 help="Leave float these sequences of operators."),
    click.option("--exclude-tail", type=click.Choice(["auto", "none"]),
                 help="Leave what decodes a detector's boxes and scores float [auto]."),
)  # fmt: skip
_memory = _options(
    click.option("--memory-limit", type=_Bytes(), help="Activations held at a time [1GiB]."),
    click.option("--workers", type=click.IntRange(1), help="Samples under way at a time [cores]."),
)
_measuring = _options(
    click.option("--method",
                 type=click.Choice(
                     ["minmax", "mean-minmax", "percentile", "entropy", "mse", "sigma"]),
                 help="How ranges are taken [mse]."),
    click.option("--percentile", type=float, help="Share inside the range [99.999]."),
    click.option("--tails", type=click.Choice(["two", "one", "abs"]),
                 help="Where the percentile leaves values out [two]."),
    click.option("--sigmas", type=float, help="Standard deviations of --method sigma."),
    click.option("--skip-bad-samples", is_flag=True,
                 help="Leave samples that give NaN or infinity out."),
    _memory,
)  # fmt: skip
_quantizing = _options(
    _measuring,
    click.option("--ranges", multiple=True, type=click.Path(), metavar="FILE.json",
                 help="Ranges to use instead of measuring; of several files the widest."),
    click.option("--save-ranges", type=click.Path(), metavar="FILE.json", help="Keep the ranges."),
    click.option("--per-channel/--per-tensor", default=None, help="Weight scales [the target's]."),
    click.option("--reduce-range/--full-range", default=None, help="Weights of 7 bits or of 8."),
    click.option("--rounding", type=click.Choice(["nearest", "second-order"]),
                 help="Of weights: each alone, or so that errors cancel [second-order]."),
    click.option("--weight-bits", type=click.Choice([8, 4]), help="Of weights [8]."),
    click.option("--bias-correction", type=click.Choice(["none", "fast", "sequential"]),
                 help="Take the mean error out of each layer [sequential]."),
    click.option("--min-sqnr", type=float, metavar="DB",
                 help="Of --keep-float auto: no output has less than this."),
    click.option("--max-drop", type=float, metavar="POINTS",
                 help="Of --keep-float auto: accuracy, or agreement, falls by no more than this."),
    click.option("--strict", is_flag=True, help="A wish of the target not met is an error."),
)  # fmt: skip
_converting = _options(
    click.option(
        "--activation-zeropoint",
        is_flag=True,
        help="Activations have zero points although the target wants none.",
    ),
    click.option("--opset", type=int, help="Opset of the result [what the target takes]."),
    click.option(
        "--equalize",
        type=click.Choice(["none", "gates", "all"]),
        help="Share sizes out between layers: through SiLU (gates), or wherever it goes.",
    ),
)
_figures = _options(
    click.option("--data", type=click.Path(), help="Data for the figures [a part of --calib]."),
    click.option("--labels", metavar="FILE.csv|folders", help="Labels of --data."),
    click.option("--seed", type=int, help="Of everything random [0]."),
)
_reporting = click.option(
    "--report", type=click.Path(), metavar="FILE.html|json",
    help="Write the report: a page to look at, or its figures.",
)  # fmt: skip
_watching = _options(
    click.option("--dump", type=click.Path(), metavar="DIR", help="Keep the model of each pass."),
    click.option("--verify/--no-verify", default=True, show_default=True,
                 help="Check model and masks after each pass."),
    click.option("--equivalence", is_flag=True,
                 help="Prove on data that passes which must keep results do."),
    click.option("--reproduce", type=click.Path(), metavar="DIR",
                 help="On failure leave all that replays it in DIR."),
    _reporting,
)  # fmt: skip
_output = _options(
    click.option("-o", "--output", required=True, type=click.Path(), metavar="OUT.onnx"),
)
_debug = click.option(
    "--debug", is_flag=True, expose_value=False, callback=_set_debug, help="Show tracebacks."
)
_telling = _options(
    click.option("-q", "--quiet", is_flag=True, expose_value=False, callback=_set_quiet,
                 help="No progress, and no report of what is written to a file."),
    click.option("-v", "--verbose", is_flag=True, expose_value=False, callback=_set_verbose,
                 help="Log each pass in full to standard error."),
    _debug,
)  # fmt: skip
_common = _options(
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object, nothing else."),
    _telling,
)
_model = click.argument("model", type=click.Path(), metavar="MODEL")
_input = click.argument("model", type=click.Path(), metavar="IN.onnx")
_READING = (
    "layout", "size", "resize", "pad_color", "pad_place", "color", "scale", "mean", "std",
    "limit", "batch", "reader",
)  # fmt: skip


# ------------------------------------------------------------------------------------------ helpers


def _take(options: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: options.pop(name) for name in names}


def _load(path: str) -> "Model":
    """A model, which may take its time."""
    from onnxdrp.model import Model
    from onnxdrp.pipeline import watched

    with watched(f"load {Path(path).name}", _progress()):
        return Model.load(path)


def _open(
    model: "Model", data: str | None, reading: dict[str, Any], **more: Any
) -> "DataReader | None":
    from onnxdrp.datareaders import open_reader

    if data is None and reading["reader"] is None:
        return None
    single = {k: v[0] if isinstance(v, tuple) and len(v) == 1 else v for k, v in reading.items()}
    if single["pad_color"] is not None:
        color = single["pad_color"]
        single["pad_color"] = tuple(map(int, color)) if isinstance(color, tuple) else int(color)
    return open_reader(data, model, **single, **more)


def _check_outputs(
    model: str, output: str | None, report_file: str | None, *more: str | None
) -> None:
    for path in filter(None, (output, report_file, *more)):
        check_output(path, model)
    if report_file is not None and Path(report_file).suffix not in (".html", ".json"):
        raise OptionError(
            f"--report {report_file}: reports are HTML or JSON; name a file that ends in .html or "
            ".json"
        )


def _write_report(report: "Report", path: str | None) -> None:
    if path is not None:
        (report.to_html if Path(path).suffix == ".html" else report.to_json)(path)


def _write_figures(figures: dict[str, Any], path: str | None) -> None:
    """Write the report of what is no run of passes."""
    if path is None:
        return
    if Path(path).suffix == ".html":
        from onnxdrp.html import save_html

        save_html(path, figures)
    else:
        with atomic_write(Path(path)) as file:
            file.write(json.dumps(figures, indent=2).encode() + b"\n")


def _show(found: Any, options: dict[str, Any], **files: str) -> None:
    """Print what was found, and write its report, in which these files are named."""
    figures = {**files, **found.as_dict()}
    _write_figures(figures, options["report"])
    click.echo(json.dumps(figures, indent=2) if options["as_json"] else str(found))


def _check_plot(path: str | None) -> None:
    if path is not None:
        from onnxdrp.plots import check_plot

        check_plot(path)


@contextmanager
def _checkpoint(output: str) -> Iterator[Path]:
    """The file beside an output that keeps a calibration that was interrupted.

    An error that the user can act on leaves none behind, but for one that was there before.
    """
    path = Path(f"{output}.calibration")
    earlier = path.exists()
    try:
        yield path
    except OnnxDrpError:
        if not earlier:
            path.unlink(missing_ok=True)
        raise
    except KeyboardInterrupt:
        if path.exists():
            meta = click.get_current_context().meta
            meta[_GO_ON] = "; run the same command again to go on"
        raise


def _is_quiet() -> bool:
    return bool(click.get_current_context().meta.get(_QUIET))


def _progress() -> "list[Progress]":
    """What shows progress; nothing with --quiet."""
    from onnxdrp.instruments import Progress

    return [] if _is_quiet() else [Progress()]


def _say(text: object, warnings: Sequence[str] = (), *, as_json: bool, file: bool = False) -> None:
    """Print a result. Of a report of what went to a `file`, --quiet leaves its warnings.

    But for those that stand on standard error already.
    """
    if file and not as_json and _is_quiet():
        said = click.get_current_context().meta[_SAID]
        for warning in (w for w in warnings if w not in said):
            click.echo(f"warning: {warning}", err=True)
    else:
        click.echo(str(text) if as_json else painted(str(text)))


def _instruments(options: dict[str, Any]) -> "list[Instrument]":
    from onnxdrp.instruments import Dump, Equivalence, Reproducer, Timing, Verify

    watching: list[Instrument] = [*_progress()]  # the last stands nearest to the passes
    dump, verify = options.pop("dump"), options.pop("verify")
    equivalence, reproduce = options.pop("equivalence"), options.pop("reproduce")
    if reproduce is not None:
        watching.append(Reproducer(reproduce))
    if dump is not None:
        watching.append(Dump(dump))
    if verify:
        watching.append(Verify())
    if equivalence:
        watching.append(Equivalence())
    return [*watching, Timing()]


def _transform(verb: str, model: str, options: dict[str, Any]) -> None:
    """Load, run one of the verbs of `onnxdrp.api`, save, and show the report."""
    output, as_json, report_file = (options.pop(k) for k in ("output", "as_json", "report"))
    masks_file, ranges_file = options.pop("save_masks", None), options.pop("save_ranges", None)
    spec_file = options.pop("save_spec", None)
    _check_outputs(model, output, report_file, masks_file, ranges_file, spec_file)
    report = _run(verb, model, output, options)
    if masks_file is not None:
        from onnxdrp.masks import save_masks

        save_masks(masks_file, report.masks)
    if spec_file is not None:
        decision = next(r.stats["decision"] for r in report.records if "decision" in r.stats)
        with atomic_write(Path(spec_file)) as file:
            file.write(json.dumps(decision).encode() + b"\n")
    if ranges_file is not None:
        from onnxdrp.ranges import save_ranges

        if report.ranges is None:
            raise OptionError("--save-ranges: no pass of the recipe calibrates; leave it out")
        save_ranges(ranges_file, report.ranges)
    _finish(report, model, output, report_file, as_json)


def _run(verb: str, model: str, output: str | None, options: dict[str, Any]) -> "Report":
    """The report of a verb of `onnxdrp.api`, whose words the options are."""
    from onnxdrp import api
    from onnxdrp.instruments import Progress

    loaded = _load(model)
    reading = _take(options, [n for n in _READING if n in options])
    if "calib" in options:
        more = {} if "data" in options else _take(options, [n for n in ("labels",) if n in options])
        options["calib"] = _open(loaded, options["calib"], reading, **more)
    if "data" in options:
        options["data"] = _labelled(loaded, options["data"], options.pop("labels"), reading)
    if "input_shape" in options:
        options["input_shape"] = dict(options["input_shape"]) or None
        options["outputs"] = _names(options["outputs"])
    if "rates" in options:
        options["rates"] = dict(options["rates"])
    if "min_sqnr" in options:
        _goal(options, "exclude" if verb == "quantize" else "keep_float")
    watching = _instruments(options)
    # None: the verb's default
    options = {k: v for k, v in options.items() if v is not None or k == "calib"}
    measures = options.get("calib") is not None and verb != "preprocess"
    try:
        with _checkpoint(output) if measures and output else nullcontext() as checkpoint:
            if checkpoint is not None:
                options["checkpoint"] = checkpoint
            report: Report = getattr(api, verb)(loaded, instruments=watching, **options)
    finally:
        for instrument in watching:
            if isinstance(instrument, Progress):
                instrument.close()
    return report


def _goal(options: dict[str, Any], where: str) -> None:
    """Take `auto` out of the nodes that stay float: it says that there is a goal."""
    names = options[where]
    has_goal = options["min_sqnr"] is not None or options["max_drop"] is not None
    if "auto" in names and not has_goal:
        raise OptionError("--keep-float auto has no goal; add --min-sqnr DB or --max-drop POINTS")
    if has_goal and "auto" not in names:
        raise OptionError("--min-sqnr and --max-drop are goals of --keep-float auto; add that")
    options[where] = tuple(name for name in names if name != "auto")


def _labelled(
    model: "Model", data: str | None, labels: str | None, reading: dict[str, Any]
) -> "DataReader | None":
    if data is None and labels is not None:
        raise OptionError("--labels belongs to --data; give the folder of the labelled images")
    return None if data is None else _open(model, data, {**reading, "limit": None}, labels=labels)


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",")]


def _finish(
    report: "Report", model: str, output: str, report_file: str | None, as_json: bool
) -> None:
    path = report.model.save(output)
    report.summary = {
        "input": model,
        "output": output,
        "model_bytes": path.stat().st_size,
        **report.summary,
    }
    with atomic_write(path.with_name(path.name + ".recipe.toml")) as file:
        file.write(report.recipe.encode())
    _write_report(report, report_file)
    text = report.to_json() if as_json else report.table()
    _say(text, report.warnings, as_json=as_json, file=True)


# ----------------------------------------------------------------------------------------- commands


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__)
@_options(_telling)
@click.pass_context
def cli(context: click.Context) -> None:
    """Prune, quantize and check an exported ONNX model for an accelerator."""
    context.with_resource(shown())
    handler = StderrHandler()
    context.meta[_SAID] = handler.said
    logging.basicConfig(format="%(levelname)s %(message)s", handlers=[handler])


@cli.command()
@_input
@_output
@click.option(
    "--calib", type=click.Path(), metavar="DATA", help="Images or arrays to calibrate on."
)
@click.option("--slim", type=float, metavar="RATIO",
              help="Share of the multiply-adds to remove with whole channels first.")  # fmt: skip
@_options(_shaping, _pruning, _keep_float, _excluding, _quantizing, _converting, _figures)
@_options(_reading, _watching, _common)
@click.option("--recipe", type=click.Path(), metavar="FILE.toml", help="Run these passes instead.")
def optimize(model: str, **options: Any) -> None:
    """Preprocess, prune, quantize and check: the whole job.

    Example: onnxdrp optimize in.onnx -o out.onnx --calib images --target drp-ai3 --sparsity 0.7
    """
    _transform("optimize", model, options)


@cli.command()
@_input
@_output
@_options(_shaping, _watching, _common)
def preprocess(model: str, **options: Any) -> None:
    """Infer shapes, optimize, fold constants, fuse BatchNormalization.

    Example: onnxdrp preprocess in.onnx -o out.onnx --input-shape images:1,3,640,640
    """
    _transform("preprocess", model, options)


@cli.command()
@_input
@_output
@click.option(
    "--calib", type=click.Path(), metavar="DATA", help="Images or arrays to choose and repair by."
)
@_options(_shaping, _pruning, _memory, _figures, _reading, _watching, _common)
@click.option("--max-drop", type=float, metavar="POINTS",
              help="Find the highest sparsity with which no more of top-1 is lost.")  # fmt: skip
@click.option("--skip-preprocess", is_flag=True, help="Leave the graph as it is.")
def prune(model: str, **options: Any) -> None:
    """Zero the weights that matter least, in the pattern's units, and repair the rest.

    Example: onnxdrp prune in.onnx -o out.onnx --calib images --pattern flex-nm --sparsity 0.7
    """
    _transform("prune", model, options)


@cli.command()
@_input
@_output
@click.option("--calib", type=click.Path(), metavar="DATA", help="Images or arrays to repair by.")
@_options(_slimming, _shaping, _repairing, _memory, _figures, _reading, _watching, _common)
@click.option("--skip-preprocess", is_flag=True, help="Leave the graph as it is.")
def slim(model: str, **options: Any) -> None:
    """Remove channels from the graph, and repair the rest: faster on every device.

    Example: onnxdrp slim in.onnx -o out.onnx --calib images --ratio 0.5
    """
    _transform("slim", model, options)


@cli.command()
@_input
@click.option("-o", "--output", type=click.Path(), metavar="OUT.onnx")
@click.option(
    "--calib", type=click.Path(), metavar="DATA", help="Images or arrays to calibrate on."
)
@_options(_shaping, _exclude_or_auto, _excluding, _quantizing, _converting, _figures)
@_options(_reading, _watching, _common)
@click.option("--skip-preprocess", is_flag=True, help="Leave the graph as it is.")
@click.option("--explain", "explains", is_flag=True,
              help="Only list every node: quantized, or why not; needs no data.")  # fmt: skip
def quantize(model: str, explains: bool, **options: Any) -> None:
    """Insert QuantizeLinear/DequantizeLinear, with ranges from the data.

    Example: onnxdrp quantize in.onnx -o out.onnx --calib images --mean 0.485,0.456,0.406
    """
    if explains:
        _explain(model, options)
    elif options["output"] is None:
        raise click.UsageError("Missing option '-o' / '--output'.")
    else:
        _transform("quantize", model, options)


_PLANNING = (
    "target", "per_channel", "opset", "exclude", "exclude_subgraph", "exclude_patterns",
    "exclude_tail", "input_shape", "outputs", "skip_preprocess",
)  # fmt: skip


def _explain(model: str, options: dict[str, Any]) -> None:
    """Show the plan, and refuse options that have no say in it."""
    from onnxdrp import api
    from onnxdrp.pipeline import watched

    telling, planning = _take(options, ("as_json", "report")), _take(options, _PLANNING)
    _check_outputs(model, None, telling["report"])
    source = click.get_current_context().get_parameter_source
    ignored = [name for name in options if source(name) is ParameterSource.COMMANDLINE]
    if ignored:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in ignored)
        raise OptionError(f"{names} does not go with --explain, which only plans; leave it out")
    planning["input_shape"] = dict(planning["input_shape"]) or None
    planning["outputs"] = _names(planning["outputs"])
    with watched("explain", _progress()):
        found = api.explain(model, **{k: v for k, v in planning.items() if v is not None})
    _show(found, telling, input=model)


@cli.command()
@_model
@click.option("-o", "--output", required=True, type=click.Path(), metavar="RANGES.json")
@click.option(
    "--calib", type=click.Path(), metavar="DATA", help="Images or arrays to calibrate on."
)
@_options(_shaping, _exclude, _excluding, _measuring, _converting)
@_options(_reading, _watching, _common)
@click.option("--skip-preprocess", is_flag=True, help="Leave the graph as it is.")
def calibrate(model: str, **options: Any) -> None:
    """Measure the ranges that `quantize --ranges` takes.

    Example: onnxdrp calibrate in.onnx -o ranges.json --calib images --method entropy
    """
    from onnxdrp.ranges import save_ranges

    output, as_json, report_file = (options.pop(k) for k in ("output", "as_json", "report"))
    _check_outputs(model, output, report_file)
    report = _run("calibrate", model, output, options)
    assert report.ranges is not None  # Calibrate is among the passes
    save_ranges(output, report.ranges)
    report.summary = {
        "input": model,
        "output": output,
        "tensors": len(report.ranges.tensors),
        "samples": report.ranges.samples,
        "peak_rss_mb": report.summary["peak_rss_mb"],
    }
    _write_report(report, report_file)
    warnings = [f"warning: {warning}" for warning in report.warnings]
    text = report.to_json() if as_json else "\n".join([str(report.ranges), *warnings])
    _say(text, report.warnings, as_json=as_json, file=True)


@cli.command()
@_model
@click.option("--of", type=click.Choice(["quant", "channels"]), default="quant", show_default=True)
@click.option(
    "--mode",
    type=click.Choice(["outputs", "moments"]),
    help="Of channels: the model's outputs, or, quick at any size, moments [outputs].",
)
@click.option(
    "--score", metavar="SCORE", help="Of channels: agreement, top-1, signal or FILE.py:function."
)
@click.option("--labels", metavar="FILE.csv|folders", help="Labels of --calib, for top-1.")
@click.option("--rates", "shares", type=_Numbers(), metavar="R,R,...",
              help="Of channels: shares of a group that go, rising [0.1 to 0.9].")  # fmt: skip
@click.option(
    "--auto-excludes/--no-auto-excludes",
    default=True,
    show_default=True,
    help="Of channels: leave the first and the last convolution out.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    metavar="SENS.json",
    help="Keep the figures; an interrupted measuring goes on from there.",
)
@click.option("--plot", type=click.Path(), metavar="FILE.svg|png|pdf",
              help="Of channels: draw a line a group; needs matplotlib.")  # fmt: skip
@click.option("--calib", type=click.Path(), metavar="DATA", help="Images or arrays to measure on.")
@click.option(
    "--samples",
    type=click.IntRange(1),
    help="Of the data, for the units [16; of channels by outputs 500].",
)
@click.option("--per-channel/--per-tensor", default=None, help="Weight scales [the target's].")
@_options(_shaping, _exclude, _excluding, _measuring, _converting)
@_options(_reading, _watching, _common)
@click.option("--seed", type=int, help="Of everything random [0].")
@click.option("--skip-preprocess", is_flag=True, help="Leave the graph as it is.")
def sensitivity(model: str, **options: Any) -> None:
    """Show what quantizing each layer alone costs, or removing channels; needs no labels.

    Example: onnxdrp sensitivity in.onnx --calib images --target drp-ai3 -o in.sens.json
    """
    output, as_json, report_file = (options.pop(k) for k in ("output", "as_json", "report"))
    plot = options.pop("plot")
    _check_outputs(model, output, report_file, plot)
    for name, value in (("labels", options["labels"]), ("plot", plot)):
        if value is not None and options["of"] != "channels":
            raise OptionError(f"--{name} belongs to --of channels; leave it out")
    _check_plot(plot)
    report = _run("sensitivity", model, output, {**options, "file": output})
    report.summary = {"input": model, **report.summary}
    _write_report(report, report_file)
    found: Any = report.sensitivity
    assert found is not None  # it was measured by the last pass
    if plot is not None:
        found.plot(plot)
    warnings = [f"warning: {warning}" for warning in report.warnings]
    text = json.dumps(found.as_dict(), indent=2) if as_json else "\n".join([str(found), *warnings])
    _say(text, report.warnings, as_json=as_json, file=output is not None)


@cli.command()
@_model
@click.option("-o", "--output", required=True, type=click.Path(), metavar="FRONT.json")
@click.option("--plot", type=click.Path(), metavar="FILE.svg|png|pdf",
              help="Draw score against cost; needs matplotlib.")  # fmt: skip
@click.option("--calib", type=click.Path(), metavar="DATA", help="Images or arrays to measure on.")
@click.option(
    "--sens",
    "curves",
    type=click.Path(),
    metavar="FILE.json",
    help="Predict by this, from sensitivity --of channels, and measure only the front.",
)
@click.option("--cost", type=click.Choice(["macs", "latency"]), default="macs", show_default=True)
@click.option(
    "--by",
    type=click.Choice(["sqnr", "agreement", "top-1"]),
    default="sqnr",
    show_default=True,
    help="What sub-networks are scored by.",
)
@click.option("--labels", metavar="FILE.csv|folders", help="Labels of --calib, for top-1.")
@click.option("--min-macs", type=float, help="Share of the multiply-adds, at least [0.25].")
@click.option("--max-macs", type=float, help="At most [0.95].")
@click.option("--ratios", type=_Numbers(), metavar="R,R,...",
              help="Shares of a group that may stay, such as 0.5,0.75,1 [any].")  # fmt: skip
@click.option("--points", type=click.IntRange(1), help="Of the front, about half as many [10].")
@click.option(
    "--multiple", type=click.IntRange(1), help="That the channels left are of [the target's]."
)
@_whole_layers
@click.option(
    "--auto-excludes/--no-auto-excludes",
    default=True,
    show_default=True,
    help="Leave the first and the last convolution whole.",
)
@_options(_shaping, _memory, _reading, _watching, _common)
@click.option("--seed", type=int, help="Of everything random [0].")
@click.option("--skip-preprocess", is_flag=True, help="Leave the graph as it is.")
def pareto(model: str, **options: Any) -> None:
    """Search for sub-networks, from small to large, none of which is worse than another.

    Example: onnxdrp pareto in.onnx --calib images -o front.json
    Then: onnxdrp slim in.onnx -o out.onnx --calib images --spec front.json --index 3
    """
    output, as_json, report_file = (options.pop(k) for k in ("output", "as_json", "report"))
    plot = options.pop("plot")
    _check_outputs(model, output, report_file, plot)
    _check_plot(plot)
    if options["labels"] is not None and options["by"] != "top-1":
        raise OptionError("--labels belongs to --by top-1; add that, or leave it out")
    report = _run("pareto", model, output, options)
    report.summary = {"input": model, **report.summary}
    assert report.front is not None  # it was searched for
    report.front.save(output)
    if plot is not None:
        report.front.plot(plot)
    _write_report(report, report_file)
    front = report.front
    text = json.dumps(front.as_dict(), indent=2) if as_json else front.table()
    _say(text, report.warnings, as_json=as_json, file=True)


@cli.command()
@_model
@click.option("--pattern", metavar="PATTERN", help="Whose rules say what is prunable [block].")
@_options(_reporting, _common)
def info(model: str, pattern: str | None, **options: Any) -> None:
    """Show each layer: shapes, parameters, sparsity, MACs.

    Example: onnxdrp info model.onnx
    """
    from onnxdrp import api
    from onnxdrp.pipeline import watched

    _check_outputs(model, None, options["report"])
    with watched("info", _progress()):
        table = api.info(model, pattern=pattern)
    _show(table, options, input=model)


@cli.command()
@_model
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    metavar="FILE.svg",
    help="Draw the graph to a file, instead of opening it in Netron.",
)
@click.option("--around", metavar="NODE", help="Draw what is near a node.")
@click.option("--hops", type=click.IntRange(0), help="How far from it [3].")
@click.option("--color", type=click.Choice(["sparsity", "precision"]), help="What colours say.")
@click.option("--expand", multiple=True, metavar="SCOPE", help="Open /a/b, where /a/b/c lies.")
@click.option("--collapse", multiple=True, metavar="SCOPE", help="Draw it as one box.")
@click.option("--most", type=click.IntRange(1), help="Boxes, as far as scopes allow [150].")
@click.option("--qdq", is_flag=True, default=None, help="Draw Q and DQ as nodes of their own.")
@_telling
def view(model: str, output: str | None, **options: Any) -> None:
    """Draw a model's graph as SVG, or open it in Netron.

    Example: onnxdrp view model.onnx --around NODE -o part.svg
    """
    given = {name: value for name, value in options.items() if value not in (None, ())}
    if output is None:
        if given:
            raise OptionError(f"--{next(iter(given))} is for drawings; give -o FILE.svg")
        from onnxdrp.viewer import open_netron

        return open_netron(model)
    from onnxdrp.drawing import draw

    check_output(output, model)
    drawing = draw(model, **given)
    path = drawing.save(output)
    if not _is_quiet():
        click.echo(f"{path}: {drawing.text}", err=True)
    return None


@cli.command()
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@click.option("--calib", type=click.Path(), metavar="DATA", help="Images or arrays to run on.")
@click.option("--layers", is_flag=True, help="Compare every tensor that both models compute.")
@click.option("--memory-limit", type=_Bytes(), default="1GiB", show_default=True,
              help="Activations held at a time.")  # fmt: skip
@_options(_reading, _reporting, _common)
def compare(a: str, b: str, layers: bool, **options: Any) -> None:
    """Measure how far model B is from model A on the same data.

    Example: onnxdrp compare float.onnx int8.onnx --calib images --layers
    """
    from onnxdrp import api
    from onnxdrp.pipeline import watched

    for path in (a, b):
        _check_outputs(path, None, options["report"])
    reference = _load(a)
    reader = _required(_open(reference, options.pop("calib"), _take(options, _READING)), "--calib")
    compared, limit = _load(b), options["memory_limit"]
    with watched("compare", _progress()) as progress:
        found = api.compare(
            reference, compared, reader, layers=layers, memory_limit=limit, progress=progress
        )
    _show(found, options, input=a, output=b)


@cli.command()
@_model
@click.option("--data", type=click.Path(), help="Labelled images or arrays.")
@click.option("--labels", help="FILE.csv, 'folders', or the labels of boxes.")
@click.option("--task", type=click.Choice(["classification", "detection"]),
              default="classification", show_default=True)  # fmt: skip
@click.option("--decoder", metavar="yolox|yolov8|FILE.py", default="yolox", show_default=True)
@click.option("--conf", type=float, default=0.001, show_default=True, help="Least score of a box.")
@click.option("--nms", type=float, default=0.65, show_default=True, help="Most overlap of boxes.")
@click.option("--names", type=click.Path(), metavar="FILE", help="Class names, one a line.")
@_options(_reading, _reporting, _common)
def evaluate(model: str, task: str, **options: Any) -> None:
    """Measure accuracy on labelled data: top-1 and top-5, or mAP.

    Example: onnxdrp evaluate model.onnx --data images --labels labels.csv
    """
    from onnxdrp import api
    from onnxdrp.pipeline import watched

    _check_outputs(model, None, options["report"])
    loaded, reading = _load(model), _take(options, _READING)
    data, labels = options.pop("data"), options.pop("labels")
    detector = {k: options.pop(k) for k in ("decoder", "conf", "nms", "names")}
    if task == "detection":
        reader = _required(_open(loaded, data, reading), "--data")
        with watched("evaluate", _progress()) as progress:
            found: Any = api.evaluate_detection(
                loaded, reader, labels, **detector, progress=progress
            )
    else:
        source = click.get_current_context().get_parameter_source
        for name in detector:
            if source(name) is ParameterSource.COMMANDLINE:
                raise click.UsageError(f"--{name} belongs to --task detection.")
        reader = _required(_open(loaded, data, reading, labels=labels), "--data")
        with watched("evaluate", _progress()) as progress:
            found = api.evaluate(loaded, reader, progress=progress)
    _show(found, options, input=model)


def _required(reader: "DataReader | None", option: str) -> "DataReader":
    if reader is None:
        raise click.UsageError(f"Missing option '{option}'.")
    return reader


@cli.command(name="report")
@click.argument("file", type=click.Path(), metavar="FILE.json")
@click.option("-o", "--output", required=True, type=click.Path(), metavar="OUT.html")
@_telling
def report_(file: str, output: str) -> None:
    """Make a page of figures that --report or --json wrote, of any command.

    Example: onnxdrp report report.json -o report.html
    """
    from onnxdrp.html import save_html
    from onnxdrp.report import load_report

    check_output(output, file)
    _say(str(save_html(output, load_report(file))), [], as_json=False, file=True)


@cli.command()
@_common
def passes(as_json: bool) -> None:
    """List every pass, its options and their defaults.

    Example: onnxdrp passes
    """
    from onnxdrp.recipe import describe_passes

    described = describe_passes()
    if as_json:
        click.echo(json.dumps(described, indent=2, default=str))
        return
    for entry in described:
        click.echo(f"{entry['name']}: {entry['summary']}")
        for option in entry["options"]:
            click.echo(f"    {option['name']} = {option['default']!r}  ({option['type']})")


@cli.command()
@click.argument("names", nargs=-1, metavar="[NAME|FILE.toml]...", shell_complete=_targets)
@_common
def targets(names: tuple[str, ...], as_json: bool) -> None:
    """Show what targets ask of a model: all that come along, or those named.

    Example: onnxdrp targets drp-ai3
    """
    from onnxdrp.targets import describe

    found = describe(*names)
    if as_json:
        click.echo(json.dumps([target.as_dict() for target in found], indent=2))
    elif names:
        click.echo("\n\n".join(map(str, found)))
    else:
        click.echo("\n".join(f"{target.name}: {target.description}" for target in found))


@cli.command()
@click.argument("folder", type=click.Path())
@_telling
def replay(folder: str) -> None:
    """Run again what failed, from a folder that --reproduce left.

    Example: onnxdrp replay failed
    """
    from onnxdrp.instruments import replay as run_again

    run_again(folder)
    click.echo("it does not fail here")


@cli.command()
@click.option("-o", "--output", default="demo-output", show_default=True, type=click.Path(),
              help="Folder for the optimized model and the report.")  # fmt: skip
@_options(_reporting, _common)
def demo(output: str, report: str | None, as_json: bool) -> None:
    """Run the main job on a bundled model and bundled images.

    Example: onnxdrp demo --output demo-output
    """
    from onnxdrp.demo import MODEL
    from onnxdrp.demonstrate import demonstrate

    _check_outputs(str(MODEL), None, report)
    result = demonstrate(Path(output), _progress())
    _write_figures(result.as_dict(), report)
    text = json.dumps(result.as_dict(), indent=2) if as_json else str(result)
    _say(text, result.report.warnings, as_json=as_json, file=True)


main = cli  # what the installed script calls
