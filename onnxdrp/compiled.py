"""onnxdrp.counting.count in machine code: importing this lets LLVM make it for this processor.

Blocks are read twice, for their extremes and to count, the second time from the processor's cache:

    for block in values:                        # blocks of BLOCK values
        low, high = min and max of key(x)       # which orders floats as integers
        if not -limit < low <= high < limit:    # nor are NaN and infinity
            return
        for strip in block:
            places = trunc(x * scale) - [x < 0] + bins
            for i, place in enumerate(places):
                table[i % LANES, place] += 1

key(x) is x's bits, all but the sign flipped below zero: with integers there is no care for NaN, and
the loop becomes vector code, as that of the places does, where the bare conversion instruction will
do: what it cannot convert has been kept out. Values repeat, and adding to a counter that has just
been stored to waits for the store; so neighbours count in different lanes of the table.

The text below writes LLVM's intermediate language by llvmlite: Python's loops and calls unroll into
it, `_loop` is a loop of its own, and `_Variable` becomes a register. Making the code takes 40 ms.
"""

import ctypes
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import binding as llvm
from llvmlite import ir

from onnxdrp.counting import BLOCK, Found

__all__ = ["count"]

Array = npt.NDArray[Any]
Code = Any  # ir.IRBuilder: a place to write instructions to
Value = Any  # ir.Value: what one of them gives

_LANES = 4
_PAD = 16  # further columns of the table: lanes then lie in different lines of the cache
_STRIP = 1 << 12  # values at a time whose places, 16 KiB, stay in the first cache
_FEW = 1 << 13  # up to here, emptying the lanes would take longer than counting in one

_I32, _I64, _F32, _F64 = ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.DoubleType()


class _Found(ctypes.Structure):
    """A Found that grows as blocks are counted."""

    _fields_ = (
        ("stop", ctypes.c_int64),
        ("low", ctypes.c_double),
        ("high", ctypes.c_double),
        ("zeros", ctypes.c_int64),
    )


# What `_count` takes: as LLVM's types, and as those of ctypes.
_FOUND = ir.LiteralStructType([_I64, _F64, _F64, _I64]).as_pointer()
_FLOATS, _INTS, _POINTER = _F32.as_pointer(), _I32.as_pointer(), ctypes.c_void_p
_TAKES = [_FLOATS, _I64, _F64, _F32, _I32, _INTS, _I64, _INTS, _FOUND]
_PROTOTYPE = ctypes.CFUNCTYPE(  # calls let go of Python's lock
    *(None, _POINTER, ctypes.c_int64, ctypes.c_double, ctypes.c_float, ctypes.c_int32),
    *(_POINTER, ctypes.c_int64, _POINTER, ctypes.POINTER(_Found)),
)


class _Variable:
    """A local variable; LLVM keeps it in a register."""

    def __init__(self, code: Code, value: Value) -> None:
        self._code = code
        with code.goto_entry_block():
            self._slot = code.alloca(value.type)
        self.set(value)

    def get(self) -> Value:
        return self._code.load(self._slot)

    def set(self, value: Value) -> None:
        self._code.store(value, self._slot)


@contextmanager
def _loop(code: Code, start: Value, stop: Value, step: int = 1) -> Iterator[Value]:
    """What is written within is done for each number in range(start, stop, step)."""
    index = _Variable(code, start)
    head, body, after = (code.append_basic_block() for _ in range(3))
    code.branch(head)
    code.position_at_end(head)
    now = index.get()
    code.cbranch(code.icmp_signed("<", now, stop), body, after)
    code.position_at_end(body)
    yield now
    index.set(code.add(now, _I64(step), flags=["nsw"]))
    code.branch(head)
    code.position_at_end(after)


def _at(code: Code, array: Value, *indices: Value) -> Value:
    """The address of an element."""
    return code.gep(array, indices, inbounds=True)


def _add(code: Code, address: Value, addend: Value) -> None:
    code.store(code.add(code.load(address), addend), address)


def _first(code: Code, order: str, one: Value, two: Value) -> Value:
    """The lesser of two, where the order is "<"; the greater where it is ">"."""
    compare = code.icmp_signed if isinstance(one.type, ir.IntType) else code.fcmp_ordered
    return code.select(compare(order, one, two), one, two)


def _key(code: Code, bits: Value) -> Value:
    """Orders the bits of floats by value; its own inverse."""
    return code.xor(bits, code.and_(code.ashr(bits, _I32(31)), _I32(0x7FFFFFFF)))


def _extremes(code: Code, values: Value, start: Value, stop: Value) -> list[Value]:
    """The least and the largest value, float64; NaN lies outside of all others."""
    bits = code.bitcast(values, _INTS)
    low, high = _Variable(code, _I32(0x7FFFFFFF)), _Variable(code, _I32(-0x80000000))
    with _loop(code, start, stop) as i:
        key = _key(code, code.load(_at(code, bits, i)))
        low.set(_first(code, "<", low.get(), key))
        high.set(_first(code, ">", high.get(), key))
    ends = (code.bitcast(_key(code, end.get()), _F32) for end in (low, high))
    return [code.fpext(end, _F64) for end in ends]


def _place(code: Code, value: Value, scale: Value, bins: Value) -> Value:
    """The column of a value."""
    whole = code.fptosi(code.fmul(value, scale), _I32)
    below = code.zext(code.fcmp_ordered("<", value, _F32(0)), _I32)
    return code.add(code.sub(whole, below), bins)


def _count(code: Code, *parameters: Value) -> None:
    """The loops above, from found.stop on; a lane has so many columns, or all are one if 0."""
    values, size, limit, scale, bins, table, columns, places, found = parameters
    stop, low, high, zeros = (_at(code, found, _I32(0), _I32(k)) for k in range(4))

    def tally(index: Value, lane: int) -> None:
        place = code.zext(code.load(_at(code, places, index)), _I64)
        _add(code, _at(code, table, code.add(code.mul(columns, _I64(lane)), place)), _I32(1))

    with _loop(code, code.load(stop), size, BLOCK) as block:
        end = _first(code, "<", code.add(block, _I64(BLOCK)), size)
        lowest, highest = _extremes(code, values, block, end)
        above = code.fcmp_ordered(">", lowest, code.fneg(limit))
        fits = code.and_(above, code.fcmp_ordered("<", highest, limit))
        with code.if_then(code.not_(fits), likely=False):
            code.ret_void()
        code.store(_first(code, "<", lowest, code.load(low)), low)
        code.store(_first(code, ">", highest, code.load(high)), high)
        with _loop(code, block, end, _STRIP) as strip:
            many = _first(code, "<", code.sub(end, strip), _I64(_STRIP))
            nought = _Variable(code, _I32(0))
            with _loop(code, _I64(0), many) as i:
                value = code.load(_at(code, values, code.add(strip, i)))
                code.store(_place(code, value, scale, bins), _at(code, places, i))
                is_zero = code.zext(code.fcmp_ordered("==", value, _F32(0)), _I32)
                nought.set(code.add(nought.get(), is_zero))
            _add(code, zeros, code.zext(nought.get(), _I64))
            whole = code.and_(many, _I64(-_LANES))
            with _loop(code, _I64(0), whole, _LANES) as i:
                for lane in range(_LANES):
                    tally(code.add(i, _I64(lane)), lane)
            with _loop(code, whole, many) as i:
                tally(i, 0)
        code.store(end, stop)
    code.ret_void()


def _text(machine: Any) -> str:
    """`_count` in LLVM's language."""
    module = ir.Module()
    module.triple, module.data_layout = machine.triple, str(machine.target_data)
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), _TAKES), "count")
    for parameter in function.args:
        if parameter.type.is_pointer:
            parameter.add_attribute("noalias")
    _count(ir.IRBuilder(function.append_basic_block()), *function.args)
    return str(module)


def _machine() -> Any:
    """LLVM for this processor, and what it can do; for any of its kind if it cannot be told."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    try:
        features, cpu = llvm.get_host_cpu_features().flatten(), llvm.get_host_cpu_name()
    except RuntimeError:
        features, cpu = "", ""
    target = llvm.Target.from_triple(llvm.get_process_triple())
    return target.create_target_machine(cpu, features, opt=3, jit=True)


def _compiled() -> tuple[Any, Callable[..., None]]:
    """The engine that owns the code, and the code."""
    llvm.check_jit_execution()
    machine = _machine()
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    module = llvm.parse_assembly(_text(machine))
    builder.getModulePassManager().run(module, builder)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    return engine, _PROTOTYPE(engine.get_function_address("count"))


class _Scratch(threading.local):
    """A thread's own; the table is left all zero."""

    def __init__(self) -> None:
        self.places = np.empty(_STRIP, np.int32)
        self.places_at = self.places.ctypes.data
        self.make_table(0)

    def make_table(self, columns: int) -> None:
        self.table = np.zeros((_LANES, columns), np.int32)
        self.table_at = self.table.ctypes.data


_engine, _run = _compiled()
_scratch = _Scratch()


def count(values: Array, start: int, limit: float, scale: float, counts: Array) -> Found:
    """What onnxdrp.counting.count does, for float32 values, of which there are fewer than 2^31."""
    scratch, bins, columns = _scratch, counts.size // 2, counts.size + _PAD
    if scratch.table.shape[1] != columns:
        scratch.make_table(columns)
    few = values.size - start <= _FEW and counts.dtype == np.int32
    found = _Found(start, math.inf, -math.inf, 0)
    _run(
        *(values.ctypes.data, values.size, limit, scale, bins),
        *((counts.ctypes.data, 0) if few else (scratch.table_at, columns)),
        *(scratch.places_at, found),
    )
    if not few and found.stop > start:
        first = bins + int(found.low * scale) - (found.low < 0)
        used = slice(first, bins + int(found.high * scale) + 1)
        counts[used] += scratch.table[:, used].sum(0, dtype=np.int32)
        scratch.table[:, used] = 0
    return Found(found.stop, found.low, found.high, found.zeros)
