"""What to do about a warning that does not say so itself."""

import re

__all__ = ["advice"]

_ADVICE = (
    (
        r"gains nothing in \d+ of \d+ layers if the hardware works as in reading",
        (
            "Find out how your hardware skips zeros; --pattern block gains in every reading, and "
            "onnxdrp info shows the cycles that each makes of a model."
        ),
    ),
    (r"^without calibration data", "Give some hundred images or arrays with --calib."),
    (
        r"none was held back",
        "Give more samples with --calib, or other data for the figures with --data.",
    ),
    (
        r"share a scale: .* keeps? \d+ of \d+ levels",
        (
            "Leave the nodes that join them float with --exclude, or look whether it costs "
            "anything: onnxdrp compare --layers."
        ),
    ),
    (
        r"samples were left out",
        "Look at these samples: they give NaN or infinity. Mend them or take them out of the data.",
    ),
    (
        r"is rounded to the nearest: ",
        "Nothing need be done; where its layer costs accuracy, leave that float with --exclude.",
    ),
    (
        r"shape inference",
        (
            "Give the inputs fixed shapes with --input-shape; layers without known shapes are not "
            "counted."
        ),
    ),
    (
        r"^target \S+: ",
        "onnxdrp targets shows all that the target asks for; change the export, or the options.",
    ),
)
_TELLS = re.compile(
    r"; (give|check|measure|lower|freeze|name|calibrate|take|leave|run|more samples|ask|raise|save|"
    r"export|use|set|cut|add|pick|is it)\b|--\w"
)


def advice(warning: str) -> str:
    """What to do, or "" where the warning says it, or nothing is known."""
    if _TELLS.search(warning):
        return ""
    return next((told for pattern, told in _ADVICE if re.search(pattern, warning)), "")
