"""What the two commands share: warnings and errors in one line each, and exit codes.

0 done; 1 an error that the user can act on; 2 wrong usage; 130 interrupted.
"""

import logging
import sys
from argparse import Namespace
from collections.abc import Callable

from onnxdrp.errors import OnnxDrpError

__all__ = ["run_command"]


class _Once(logging.Filter):
    """Lets each message pass the first time."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        is_new = text not in self._seen
        self._seen.add(text)
        return is_new


def run_command(options: Namespace, work: Callable[[Namespace], None]) -> int:
    """Do the work of a command; returns its exit code.

    Args:
        options: the parsed ones; `debug` is one of them.
        work: what to do with them.
    """
    logger, handler = logging.getLogger("onnxdrp"), logging.StreamHandler(sys.stderr)
    handler.addFilter(_Once())
    handler.setFormatter(logging.Formatter("warning: %(message)s"))
    handler.setLevel(logging.WARNING)
    logger.addHandler(handler)
    try:
        work(options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130  # as shells have it: 128 and the number of the signal
    except Exception as e:
        if options.debug:
            raise
        text = (str(e).strip() or type(e).__name__).splitlines()[0]
        if not isinstance(e, OnnxDrpError):
            text += f" ({type(e).__name__}, a defect of onnxdrp; --debug shows where)"
        print(f"Error: {text}", file=sys.stderr)
        return 1
    finally:
        logger.removeHandler(handler)
    return 0
