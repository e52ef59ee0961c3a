"""Opens a model in Netron, the graph viewer, where that is installed."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from onnxdrp.errors import ModelError, OptionError

__all__ = ["open_netron"]


def open_netron(path: str | Path) -> None:
    """Show a model file in the browser, from a server on this machine, until interrupted.

    Raises:
        OptionError: Netron is not there.
        ModelError: the file is not there.
    """
    if not Path(path).is_file():
        raise ModelError(f"{path}: no such file; name a model")
    if find_spec("netron") is None:
        raise OptionError("opening a model needs Netron; pip install netron, or give -o FILE.svg")
    netron = import_module("netron")
    netron.start(str(path))
    netron.wait()
