"""What a Pruner is asked for, checked in the same words in every framework."""

import difflib
import warnings
from collections.abc import Collection, Sequence

from onnxdrp.errors import OptionError
from onnxdrp.geometry import WeightGeometry
from onnxdrp.patterns import Pattern, Unstructured, parse_pattern

__all__ = ["check_names", "pattern_at", "prunable"]


def pattern_at(pattern: str | Pattern, final_pr: float) -> Pattern:
    """The pattern.

    Raises:
        OptionError: unknown, or it sets the rate itself and `final_pr` is another; 0 goes with all.
    """
    found = parse_pattern(pattern) if isinstance(pattern, str) else pattern
    if found.fixed_rate is not None and final_pr not in (0, float(found.fixed_rate)):
        raise OptionError(
            f"{found.name} is a rate of {float(found.fixed_rate):g}; final_pr {final_pr} conflicts"
        )
    return found


def check_names(names: Sequence[str], known: Collection[str], kinds: str) -> None:
    """Whether all layers that are named are there.

    Args:
        names: `pruning_layer_list`.
        known: names of the layers that could be pruned.
        kinds: what those are, for the message.

    Raises:
        OptionError: one is not, or it is no list.
    """
    if isinstance(names, str):
        raise OptionError(f"pruning_layer_list is a list of names, not {names!r}")
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise OptionError(f"the model has no {kinds} called {name!r}{hint}")


def prunable(name: str, geometry: WeightGeometry, pattern: Pattern, stacklevel: int = 3) -> bool:
    """Whether the pattern fits the layer; warns where it does not.

    Args:
        name: of the layer.
        geometry: how the pattern sees its weight.
        pattern: what is to prune it.
        stacklevel: of the warning, seen from here.
    """
    if geometry.aligned or isinstance(pattern, Unstructured):
        return True
    warnings.warn(
        f"{name} is not pruned: its {geometry.inputs} input channels are not a multiple of "
        f"{pattern.block}",
        stacklevel=stacklevel + 1,
    )
    return False
