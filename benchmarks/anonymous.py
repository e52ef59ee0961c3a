"""The memory that a process has of its own: without mapped files, which the system can drop."""

import threading
from pathlib import Path

__all__ = ["AnonymousMemory"]


class AnonymousMemory:
    """The peak of RssAnon (man 5 proc), in bytes, sampled every 2 ms."""

    def __init__(self) -> None:
        self.peak = self.now()
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.sample, daemon=True)
        self.thread.start()

    @staticmethod
    def now() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

    def sample(self) -> None:
        while not self.stopped.wait(0.002):
            self.peak = max(self.peak, self.now())

    def stop(self) -> int:
        self.stopped.set()
        self.thread.join()
        return self.peak
