"""Peak resident memory of this process: since it began, and since a moment of one's choice.

Linux keeps one peak (VmHWM) and can forget it: writing 5 to /proc/self/clear_refs sets it to the
present size (man 5 proc). What was forgotten is kept here, so that the peak since the beginning
stays known. Where the peak cannot be reset, that since the beginning stands for any later one.
"""

import resource
import sys
from contextlib import suppress
from pathlib import Path

__all__ = ["peak_rss_mb", "peak_since_restart_mb", "restart_peak"]

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")

_forgotten = 0.0  # MB; the highest peak that was reset


def peak_rss_mb() -> float:
    """Peak resident memory since the process began, in MB (10^6 bytes)."""
    return max(_forgotten, peak_since_restart_mb())


def restart_peak() -> None:
    """Let `peak_since_restart_mb` begin anew, where the system can do that."""
    global _forgotten
    _forgotten = peak_rss_mb()
    with suppress(OSError):  # elsewhere than on Linux, or /proc is read-only
        _CLEAR_REFS.write_text("5")


def peak_since_restart_mb() -> float:
    """Peak resident memory since `restart_peak`, in MB; an upper bound where that cannot be had."""
    with suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
