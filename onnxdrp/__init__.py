"""onnxdrp: prune, quantize and check an exported ONNX model for an accelerator.

The names below load their modules when first used, so that `import onnxdrp` costs next to nothing.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# In a source checkout passes/ and datareaders/ stand beside this package, not in it.
if (Path(__file__).parents[1] / "setup.cfg").is_file():
    __path__.append(str(Path(__file__).parents[1]))

if TYPE_CHECKING:
    from onnxdrp.api import calibrate as calibrate
    from onnxdrp.api import compare as compare
    from onnxdrp.api import debug as debug
    from onnxdrp.api import evaluate as evaluate
    from onnxdrp.api import evaluate_detection as evaluate_detection
    from onnxdrp.api import explain as explain
    from onnxdrp.api import info as info
    from onnxdrp.api import optimize as optimize
    from onnxdrp.api import pareto as pareto
    from onnxdrp.api import preprocess as preprocess
    from onnxdrp.api import prune as prune
    from onnxdrp.api import quantize as quantize
    from onnxdrp.api import run as run
    from onnxdrp.api import sensitivity as sensitivity
    from onnxdrp.api import slim as slim
    from onnxdrp.datareaders import DataReader as DataReader
    from onnxdrp.datareaders import NCHWDataReader as NCHWDataReader
    from onnxdrp.datareaders import NHWCDataReader as NHWCDataReader
    from onnxdrp.datareaders import open_reader as open_reader
    from onnxdrp.drawing import draw as draw
    from onnxdrp.model import Model as Model
    from onnxdrp.model import load as load
    from onnxdrp.pipeline import Pass as Pass
    from onnxdrp.pipeline import PassContext as PassContext
    from onnxdrp.pipeline import PassManager as PassManager
    from onnxdrp.pipeline import PassResult as PassResult

# where each public name lives; a module has it loaded when the name is first used
_HOMES = {
    "onnxdrp.api": (
        "calibrate",
        "compare",
        "debug",
        "evaluate",
        "evaluate_detection",
        "explain",
        "info",
        "optimize",
        "pareto",
        "preprocess",
        "prune",
        "quantize",
        "run",
        "sensitivity",
        "slim",
    ),
    "onnxdrp.datareaders": ("DataReader", "NCHWDataReader", "NHWCDataReader", "open_reader"),
    "onnxdrp.drawing": ("draw",),
    "onnxdrp.model": ("Model", "load"),
    "onnxdrp.pipeline": ("Pass", "PassContext", "PassManager", "PassResult"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'onnxdrp' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
