"""Single integers at bare addresses, and the bit counts of 64-bit words, inside numba functions."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownParameterType=false
# pyright: reportMissingParameterType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

WORD = ir.IntType(64)

operation = cast(Callable[[Callable[..., Any]], Callable[..., Any]], intrinsic)
"""A function that stands for LLVM code: it gets types and returns the signature and the code's generator. Seen from
outside, its first parameter does not exist."""


def scalar_load(bits: int, signed: bool) -> Callable[..., int]:
    """Load `bits` bits at any byte address as int64."""

    @operation
    def load(typingctx, address):
        def generate(context, builder, sig, args):
            value = builder.load(builder.inttoptr(args[0], ir.IntType(bits).as_pointer()), align=1)
            if bits == 64:
                return value
            return builder.sext(value, WORD) if signed else builder.zext(value, WORD)

        return types.int64(types.int64), generate

    return load


def scalar_store(bits: int) -> Callable[..., Any]:
    """Store the low `bits` bits of an int64 at any byte address."""

    @operation
    def store(typingctx, address, value):
        def generate(context, builder, sig, args):
            cut = args[1] if bits == 64 else builder.trunc(args[1], ir.IntType(bits))
            builder.store(cut, builder.inttoptr(args[0], cut.type.as_pointer()), align=1)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), generate

    return store


load_i8, load_i16, load_i32 = scalar_load(8, True), scalar_load(16, True), scalar_load(32, True)
load_u8, load_u16, load_u32 = scalar_load(8, False), scalar_load(16, False), scalar_load(32, False)
load_64 = scalar_load(64, False)
store_8, store_16, store_32, store_64 = scalar_store(8), scalar_store(16), scalar_store(32), scalar_store(64)


@operation
def popcount(typingctx, word):
    """How many bits of an int64 are set."""

    def generate(context, builder, sig, args):
        return builder.ctpop(args[0])

    return types.int64(types.int64), generate


@operation
def lowest_bit(typingctx, word):
    """Number of the lowest set bit; 64 for 0."""

    def generate(context, builder, sig, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.int64), generate


@operation
def copy_bytes(typingctx, target, source, count):
    """Copy `count` bytes between areas that do not overlap."""

    def generate(context, builder, sig, args):
        octet = ir.IntType(8).as_pointer()
        target, source = builder.inttoptr(args[0], octet), builder.inttoptr(args[1], octet)
        cgutils.raw_memcpy(builder, target, source, args[2], 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate
