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
    from onnxdrp.datareaders import DataReader as DataReader
    from onnxdrp.datareaders import NCHWDataReader as NCHWDataReader
    from onnxdrp.datareaders import NHWCDataReader as NHWCDataReader
    from onnxdrp.model import Model as Model
    from onnxdrp.pipeline import Pass as Pass
    from onnxdrp.pipeline import PassContext as PassContext
    from onnxdrp.pipeline import PassManager as PassManager
    from onnxdrp.pipeline import PassResult as PassResult

_HOMES = {
    "DataReader": "onnxdrp.datareaders",
    "Model": "onnxdrp.model",
    "NCHWDataReader": "onnxdrp.datareaders",
    "NHWCDataReader": "onnxdrp.datareaders",
    "Pass": "onnxdrp.pipeline",
    "PassContext": "onnxdrp.pipeline",
    "PassManager": "onnxdrp.pipeline",
    "PassResult": "onnxdrp.pipeline",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'onnxdrp' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value
