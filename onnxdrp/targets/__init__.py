"""Targets: what a hardware or runtime wants of a model, as data.

A profile is a TOML file whose keys are the fields of `Target`; its table `[operators]` has those
of `Operators`. `load_target` takes the name of a profile that comes along (`list_targets`), or the
path of a user's own file, which may name another profile as its `base` and change some keys.
`describe` says in words what a profile asks for.
"""

from onnxdrp.targets.describe import Description, describe
from onnxdrp.targets.files import list_targets, load_target
from onnxdrp.targets.profile import Operators, Target, least_ir

__all__ = [
    "Description",
    "Operators",
    "Target",
    "describe",
    "least_ir",
    "list_targets",
    "load_target",
]
