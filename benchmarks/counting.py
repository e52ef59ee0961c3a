"""What it costs to look at each value of an activation: nanoseconds a value, by way and by data.

Medians of one run in which the ways take turns. A value is float32, in arrays of 2^20 that do not
fit in the processor's cache together. Before it, what making the compiled code costs a process that
has numpy already, files in the system's cache: the median of CPU seconds, and on Linux its memory
before and after, of its own and in mapped files. Run: python benchmarks/counting.py
"""

import argparse
import copy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from onnxdrp import counting
from onnxdrp.observers import Histogram, MinMax

try:
    from numba import njit
except ImportError:
    njit = None

Array = npt.NDArray[np.float32]
SIZE = 1 << 20

DATA: dict[str, Callable[[Array], Array]] = {
    "normal": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(3 * x, 0, 6),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "constant": lambda x: np.full_like(x, 0.7),
}


class Numpy2048:
    """np.histogram of 2048 bins, given the range."""

    def __init__(self) -> None:
        self.counts = np.zeros(2048, np.int64)

    def update(self, values: Array) -> None:
        self.counts += np.histogram(values, 2048, (-8, 8))[0]


class UpperBits:
    """Counts of the upper 16 bits of each float, its bfloat16 code: no range is needed."""

    def __init__(self) -> None:
        self.counts = np.zeros(1 << 16, np.int64)

    def update(self, values: Array) -> None:
        for start in range(0, values.size, counting.BLOCK):
            codes = values[start : start + counting.BLOCK].view(np.uint32) >> 16
            self.counts += np.bincount(codes, minlength=1 << 16)


class CompiledUpperBits(UpperBits):
    """The same by numba, in four lanes of counters."""

    def __init__(self) -> None:
        self.counts = np.zeros((4, 1 << 16), np.int32)

    def update(self, values: Array) -> None:
        _upper_bits(values.view(np.uint32), self.counts)


def _upper_bits(bits: npt.NDArray[np.uint32], counts: npt.NDArray[np.int32]) -> None:
    for i in range(0, bits.size - bits.size % 4, 4):
        for lane in range(4):
            counts[lane, bits[i + lane] >> np.uint32(16)] += np.int32(1)
    for i in range(bits.size - bits.size % 4, bits.size):
        counts[0, bits[i] >> np.uint32(16)] += np.int32(1)


class MinAndMax:
    """np.min and np.max of the whole array."""

    def update(self, values: Array) -> None:
        values.min()
        values.max()


class NumpyHistogram(Histogram):
    """Histogram as it is without compiled code."""

    def update(self, *arrays: Array) -> None:
        way, counting.compiled_count = counting.compiled_count, lambda: None
        try:
            super().update(*arrays)
        finally:
            counting.compiled_count = way


def ways() -> dict[str, Callable[[], object]]:
    table: dict[str, Callable[[], object]] = {
        "np.min, np.max": MinAndMax,
        "MinMax": MinMax,
        "np.histogram, 2048 bins": Numpy2048,
        "upper 16 bits, numpy": UpperBits,
        "Histogram, numpy": NumpyHistogram,
    }
    if counting.compiled_count() is not None:
        counting._counted = counting._PAY  # from the first value on
        table["Histogram, compiled"] = Histogram
    if njit is not None:
        global _upper_bits
        _upper_bits = njit(nogil=True)(_upper_bits)
        table["upper 16 bits, numba"] = CompiledUpperBits
    return table


def measure(
    table: dict[str, Callable[[], object]], arrays: list[Array], repeats: int
) -> dict[str, float]:
    """The median nanoseconds a value of each way; each round runs all of them."""
    times: dict[str, list[float]] = {name: [] for name in table}
    observers = {name: kind() for name, kind in table.items()}
    for observer in observers.values():
        observer.update(arrays[0])
    for _ in range(repeats):
        for name, observer in observers.items():
            started = time.perf_counter()
            for values in arrays:
                observer.update(values)
            times[name].append(time.perf_counter() - started)
    size = sum(values.size for values in arrays)
    return {name: statistics.median(found) / size * 1e9 for name, found in times.items()}


LOADING = """
import time
from pathlib import Path
import onnxdrp.counting

def memory():
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return [int(x.split()[1]) / 1024 for x in lines if x.startswith(("RssAnon", "RssFile"))]

time.sleep(0.2)  # numpy's threads have come to rest
before, started = memory(), time.process_time()
onnxdrp.counting.compiled_count()
print(time.process_time() - started, *before, *memory())
"""


def loading(repeats: int) -> str:
    """What making the compiled code costs, told in a line."""
    command = [sys.executable, "-c", LOADING]
    printed = [subprocess.check_output(command, text=True).split() for _ in range(repeats + 1)]
    found = [[float(x) for x in line] for line in printed[1:]]  # the first may read from the disk
    seconds, *memory = map(statistics.median, zip(*found, strict=True))
    line = f"loading: {seconds:.3f} s of CPU"
    if memory:
        own, files, own_after, files_after = memory
        line += f", MB of its own {own:.0f} -> {own_after:.0f}, mapped {files:.0f} -> "
        line += f"{files_after:.0f}"
    return line


def overheads(repeats: int) -> dict[str, float]:
    """The median microseconds of what is done for each tensor and shard, not for each value."""
    small = np.random.default_rng(0).standard_normal(256, np.float32)
    new, filled, wider, extremes = Histogram(), Histogram(), Histogram(), MinMax()
    growing = Histogram()
    for observer in (filled, growing):
        observer.update(small)
    wider.update(small * 4)
    todo: dict[str, Callable[[], object]] = {
        "Histogram()": Histogram,
        "copy of a new one": lambda: copy.deepcopy(new),
        "copy of a filled one": lambda: copy.deepcopy(filled),
        "merge, equal widths": lambda: growing.merge(filled),
        "merge into a wider one": lambda: wider.merge(filled),
        "merge into a new one": lambda: Histogram().merge(filled),
        "MinMax, 256 values": lambda: extremes.update(small),
        "Histogram, 256 values": lambda: growing.update(small),
    }
    found = {}
    for name, do in todo.items():
        times = []
        for _ in range(repeats):
            started = time.perf_counter()
            for _ in range(500):
                do()
            times.append((time.perf_counter() - started) / 500 * 1e6)
        found[name] = statistics.median(times)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--elements", type=int, default=16 * SIZE, help="values of each kind")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(loading(options.repeats), end="\n\n")
    rng, table = np.random.default_rng(0), ways()
    columns = {}
    for name, shape in DATA.items():
        normal = (
            rng.standard_normal(min(SIZE, options.elements - start), np.float32)
            for start in range(0, options.elements, SIZE)
        )
        columns[name] = measure(table, [shape(x) for x in normal], options.repeats)
    print(f"{'ns a value':25}" + "".join(f"{name:>10}" for name in columns))
    for way in table:
        print(f"{way:25}" + "".join(f"{found[way]:10.2f}" for found in columns.values()))
    print("\nus a call")
    for name, microseconds in overheads(options.repeats).items():
        print(f"{name:25}{microseconds:10.1f}")


if __name__ == "__main__":
    main()
