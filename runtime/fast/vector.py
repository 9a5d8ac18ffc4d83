"""Vectors of integers as values inside numba functions: LLVM vector instructions on bare addresses.

numba has no vector type, so this module adds one: `Vector(lanes, bits)`, with loads and stores at an int64 address
and the arithmetic that the kernels need. Locals of this type live in registers. Comparisons give their result as the
bits of an int64, lane 0 in bit 0: sixteen lanes compared are one spike word. Everything here is portable LLVM IR;
a machine without AVX-512 gets narrower instructions for the same values.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownParameterType=false
# pyright: reportMissingParameterType=false, reportUnknownArgumentType=false, reportUnknownLambdaType=false
from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import models, register_model

from runtime.fast.scalar import WORD, operation


class Vector(types.Type):
    """`lanes` integers of `bits` bits."""

    def __init__(self, lanes: int, bits: int) -> None:
        self.lanes, self.bits = lanes, bits
        super().__init__(name=f"Vector({lanes} x i{bits})")

    @property
    def llvm(self) -> ir.VectorType:
        return ir.VectorType(ir.IntType(self.bits), self.lanes)


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type) -> None:
        super().__init__(dmm, fe_type, fe_type.llvm)


def _constant(kind: Vector, value: int) -> ir.Constant:
    return ir.Constant(kind.llvm, [value] * kind.lanes)


def _declare(builder, name: str, result, arguments):
    """An LLVM intrinsic by its full name."""
    return builder.module.declare_intrinsic(name, fnty=ir.FunctionType(result, arguments))


def _as_bits(builder, mask, lanes: int):
    """<lanes x i1> as the low bits of an int64."""
    bits = builder.bitcast(mask, ir.IntType(lanes))
    return bits if lanes == 64 else builder.zext(bits, WORD)


def _as_mask(builder, bits, lanes: int):
    """The low bits of an int64 as <lanes x i1>."""
    narrow = bits if lanes == 64 else builder.trunc(bits, ir.IntType(lanes))
    return builder.bitcast(narrow, ir.VectorType(ir.IntType(1), lanes))


_ARITHMETIC: dict[Any, str] = {
    operator.add: "add",
    operator.iadd: "add",
    operator.sub: "sub",
    operator.mul: "mul",
    operator.and_: "and_",
    operator.or_: "or_",
    operator.ior: "or_",
    operator.xor: "xor",
    operator.lshift: "shl",
    operator.rshift: "ashr",
}
"""Lane by lane, wrapping; >> is the arithmetic shift. Both sides have the same lanes and bits."""


class _SameVectors(AbstractTemplate):
    def generic(self, args, kws):
        if len(args) == 2 and isinstance(args[0], Vector) and args[0] == args[1]:
            return signature(args[0], *args)
        return None


def _register(python: Any, name: str) -> None:
    typing = type(f"Vector_{python.__name__}", (_SameVectors,), {"key": python})
    infer_global(python)(typing)  # pyright: ignore[reportOptionalCall]

    @lower_builtin(python, Vector, Vector)
    def lower(context, builder, sig, args):
        return getattr(builder, name)(*args)


for _python, _name in _ARITHMETIC.items():
    _register(_python, _name)


def vector_load(lanes: int, bits: int) -> Callable[..., Any]:
    """Load at any byte address."""
    kind = Vector(lanes, bits)

    @operation
    def load(typingctx, address):
        def generate(context, builder, sig, args):
            return builder.load(builder.inttoptr(args[0], kind.llvm.as_pointer()), align=1)

        return kind(types.int64), generate

    return load


@operation
def vector_store(typingctx, address, vector):
    """Store at any byte address."""

    def generate(context, builder, sig, args):
        builder.store(args[1], builder.inttoptr(args[0], args[1].type.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, vector), generate


@operation
def store_lanes(typingctx, address, vector, bits):
    """Store only the lanes whose bit is set; the bytes of the others are not touched."""

    def generate(context, builder, sig, args):
        address, value, bits = args
        pointer = builder.inttoptr(address, value.type.as_pointer())
        mask = _as_mask(builder, bits, vector.lanes)
        arguments = [value.type, pointer.type, ir.IntType(32), mask.type]
        name = f"llvm.masked.store.v{vector.lanes}i{vector.bits}.p0"
        function = _declare(builder, name, ir.VoidType(), arguments)
        builder.call(function, [value, pointer, ir.Constant(ir.IntType(32), 1), mask])
        return context.get_dummy_value()

    return types.void(types.int64, vector, types.int64), generate


def vector_splat(lanes: int, bits: int) -> Callable[..., Any]:
    """The same number, cut to `bits` bits, in every lane."""
    kind = Vector(lanes, bits)

    @operation
    def splat(typingctx, value):
        def generate(context, builder, sig, args):
            scalar = args[0] if bits == 64 else builder.trunc(args[0], ir.IntType(bits))
            one = builder.insert_element(_constant(kind, 0), scalar, ir.Constant(ir.IntType(32), 0))
            zeros = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
            return builder.shuffle_vector(one, _constant(kind, 0), zeros)

        return kind(types.int64), generate

    return splat


def vector_widen(bits: int) -> Callable[..., Any]:
    """The same signed values in lanes of `bits` bits."""

    @operation
    def widen(typingctx, vector):
        kind = Vector(vector.lanes, bits)

        def generate(context, builder, sig, args):
            return args[0] if vector.bits == bits else builder.sext(args[0], kind.llvm)

        return kind(vector), generate

    return widen


def vector_narrow(bits: int) -> Callable[..., Any]:
    """The low `bits` bits of every lane."""

    @operation
    def narrow(typingctx, vector):
        kind = Vector(vector.lanes, bits)

        def generate(context, builder, sig, args):
            return args[0] if vector.bits == bits else builder.trunc(args[0], kind.llvm)

        return kind(vector), generate

    return narrow


@operation
def at_least(typingctx, left, right):
    """Bit i: left lane i >= right lane i, signed."""

    def generate(context, builder, sig, args):
        return _as_bits(builder, builder.icmp_signed(">=", *args), left.lanes)

    return types.int64(left, right), generate


@operation
def nonzero(typingctx, vector):
    """Bit i: lane i is not zero."""

    def generate(context, builder, sig, args):
        return _as_bits(builder, builder.icmp_unsigned("!=", args[0], _constant(vector, 0)), vector.lanes)

    return types.int64(vector), generate


@operation
def choose(typingctx, bits, yes, no):
    """Lane i of `yes` where bit i is set, of `no` elsewhere."""

    def generate(context, builder, sig, args):
        return builder.select(_as_mask(builder, args[0], yes.lanes), args[1], args[2])

    return yes(types.int64, yes, no), generate


@operation
def any_bits(typingctx, vector):
    """The bits that are set in any lane."""

    def generate(context, builder, sig, args):
        name = f"llvm.vector.reduce.or.v{vector.lanes}i{vector.bits}"
        merged = builder.call(_declare(builder, name, ir.IntType(vector.bits), [args[0].type]), args)
        return merged if vector.bits == 64 else builder.zext(merged, WORD)

    return types.int64(vector), generate


@operation
def count_bits(typingctx, vector):
    """How many bits are set in all lanes together."""

    def generate(context, builder, sig, args):
        suffix = f"v{vector.lanes}i{vector.bits}"
        ones = builder.call(_declare(builder, f"llvm.ctpop.{suffix}", args[0].type, [args[0].type]), args)
        add = _declare(builder, f"llvm.vector.reduce.add.{suffix}", ir.IntType(vector.bits), [args[0].type])
        total = builder.call(add, [ones])
        return total if vector.bits == 64 else builder.zext(total, WORD)

    return types.int64(vector), generate


@operation
def low_lanes(typingctx, vector, bits):
    """Keep the lanes whose bit is set, moved together to the low end, in order; what lies above is unspecified."""

    def generate(context, builder, sig, args):
        mask = _as_mask(builder, args[1], vector.lanes)
        name = f"llvm.experimental.vector.compress.v{vector.lanes}i{vector.bits}"
        function = _declare(builder, name, args[0].type, [args[0].type, mask.type, args[0].type])
        return builder.call(function, [args[0], mask, ir.Constant(args[0].type, ir.Undefined)])

    return vector(vector, types.int64), generate


def vector_count(lanes: int, bits: int) -> Callable[..., Any]:
    """The lanes' own numbers: 0, 1, 2 ..."""
    kind = Vector(lanes, bits)

    @operation
    def lane_numbers(typingctx):
        def generate(context, builder, sig, args):
            return ir.Constant(kind.llvm, list(range(lanes)))

        return kind(), generate

    return lane_numbers


def vector_unsigned(bits: int) -> Callable[..., Any]:
    """The same unsigned values in wider lanes of `bits` bits."""

    @operation
    def widen(typingctx, vector):
        kind = Vector(vector.lanes, bits)

        def generate(context, builder, sig, args):
            return builder.zext(args[0], kind.llvm)

        return kind(vector), generate

    return widen


def vector_part(lanes: int, first: int) -> Callable[..., Any]:
    """`lanes` lanes of a longer vector, from lane `first` on."""

    @operation
    def part(typingctx, vector):
        kind = Vector(lanes, vector.bits)
        numbers = ir.Constant(ir.VectorType(ir.IntType(32), lanes), list(range(first, first + lanes)))

        def generate(context, builder, sig, args):
            return builder.shuffle_vector(args[0], _constant(vector, 0), numbers)

        return kind(vector), generate

    return part
