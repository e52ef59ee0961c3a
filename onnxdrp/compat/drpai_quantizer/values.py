"""What option values may look like: lists in brackets or not, non-public keys and their values."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnxdrp.errors import OptionError
from onnxdrp.options import near

if TYPE_CHECKING:
    from onnxdrp.passes.calibrate import Method

__all__ = ["Advanced", "join_lists", "method_of", "names_of", "numbers_of"]

_METHODS: dict[str, "Method"] = {
    "minmax": "minmax",
    "entropy": "entropy",
    "percentile": "percentile",
}
_OPEN, _CLOSE = "[(", "])"


def names_of(option: str, value: str | Iterable[str] | None) -> list[str]:
    """The names in `a,b`, `[a, b]` or a list; blanks around them and empty ones do not count."""
    if value is None:
        return []
    if not isinstance(value, str):
        return [name for item in value for name in names_of(option, item)]
    text = value.strip()
    if text[:1] in ("[", "("):
        if text[-1:] != _CLOSE[_OPEN.index(text[0])]:
            raise OptionError(f"{option} {value!r}: the list is not closed; give [a, b]")
        text = text[1:-1]
    return [name for part in text.split(",") if (name := part.strip().strip("'\""))]


def numbers_of(option: str, value: Any) -> list[float] | None:
    """The numbers in `[a, b, c]`, `a,b,c`, `a b c`, or a sequence of numbers; None stays None."""
    if value is None:
        return None
    items = re.split(r"[,\s]+", value.strip("[]() \t")) if isinstance(value, str) else value
    try:
        numbers = [float(item) for item in items]
    except (TypeError, ValueError) as e:
        raise OptionError(f"{option} {value!r}: give numbers as [0.4914, 0.4822, 0.4465]") from e
    if not numbers:
        raise OptionError(f"{option} {value!r}: is empty; give one number a channel")
    return numbers


def join_lists(words: Sequence[str]) -> list[str]:
    """Words of a command line, those of a list, `[a,` `b]`, `a,` `b`, `a` `,b`, made one again.

    Raises:
        OptionError: a bracket is not closed.
    """
    joined: list[str] = []
    still_open = False
    for word in words:
        at_comma = joined and (joined[-1].endswith(",") or word.startswith(","))
        if still_open or (at_comma and not word.startswith("--")):
            joined[-1] += f" {word}"
        else:
            joined.append(word)
        text = joined[-1]
        value = text.partition("=")[2] if text.startswith("-") else text
        still_open = value[:1] in ("[", "(") and value[-1:] not in ("]", ")")
    if still_open:
        raise OptionError(f"{joined[-1].split()[0]!r}...: the list is not closed; give [a, b, c]")
    return joined


def method_of(method: Any) -> "Method":
    """The name that onnxdrp has for a CalibrationMethod, or for its name in any case."""
    name = method if isinstance(method, str) else getattr(method, "name", str(method))
    found = _METHODS.get(name.strip().rpartition(".")[2].lower())
    if found is None:
        raise OptionError(
            f"calibrate_method {name!r}: there are MinMax, Entropy and Percentile; "
            "`onnxdrp quantize --method` has more"
        )
    return found


def _truth(value: Any) -> bool:
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    return known[str(value).strip().lower()]


def _text(value: Any) -> str:
    return str(value)


def _tail(value: Any) -> str:
    return {"auto": "auto", "none": "none"}[str(value).strip().lower()]


_KINDS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "exclude_act_func_dir": (_text, "a CSV file or a folder of such"),
    "activation_zeropoint": (_truth, "True or False"),
    "optimize_model": (_truth, "True or False"),
    "percentile_value": (float, "percent, as 99.99"),
    "per_channel": (_truth, "True or False"),
    "exclude_tail": (_tail, "auto or none"),
}
# keywords of onnxruntime's quantize_static that other values than these would contradict
_FIXED = {
    "activation_type": "QInt8",
    "weight_type": "QInt8",
    "quant_format": "QDQ",
    "reduce_range": "False",
}


@dataclass(frozen=True)
class Advanced:
    """The keys that manual section 3.5 calls non-public, and keywords of quantize_interface.

    Attributes:
        exclude_act_func_dir: a CSV file of activation functions that stay float, or a folder.
        activation_zeropoint: activations have zero points; else they are symmetric about 0.
        optimize_model: preprocess the model that is to be quantized.
        percentile_value: percent of the values inside a range; of the method Percentile.
        per_channel: weight scales by output channel; None: the target's.
        exclude_tail: "auto" leaves the tail of a detector float, "none" does not.
    """

    exclude_act_func_dir: str | None = None
    activation_zeropoint: bool = False
    optimize_model: bool = False
    percentile_value: float | None = None
    per_channel: bool | None = None
    exclude_tail: str | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Advanced":
        """Those among keywords, whose values may be text.

        Raises:
            OptionError: a key is unknown, or cannot have this value.
        """
        values = {}
        for key, value in given.items():
            if key in _FIXED:
                _check_fixed(key, value)
                continue
            if key not in _KINDS:
                raise OptionError(f"{key}: there is no such option{near(key, _KINDS)}")
            if value is None:
                continue
            parse, kind = _KINDS[key]
            try:
                values[key] = parse(value)
            except (KeyError, ValueError) as e:
                raise OptionError(f"{key} {value!r}: give {kind}") from e
        return cls(**values)

    @classmethod
    def pairs(cls, words: Sequence[str]) -> dict[str, str]:
        """{key: value} of words `key value key value ...`; the last of equal keys counts."""
        if len(words) % 2:
            raise OptionError(
                f"{words[-1]!r} stands alone: options without -- are pairs of key and value"
            )
        return dict(zip(words[::2], words[1::2], strict=True))


def _check_fixed(key: str, value: Any) -> None:
    want, name = _FIXED[key], getattr(value, "name", str(value))
    if value is not None and str(name).rpartition(".")[2] != want:
        raise OptionError(f"{key} {name}: the target drp-ai3 has {want}; leave it out")
