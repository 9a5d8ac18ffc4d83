"""Vectors joined, repeated and interleaved, and the dot product of bytes (see fast/vector.py for what a vector is)."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownParameterType=false
# pyright: reportMissingParameterType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from runtime.fast.scalar import operation
from runtime.fast.vector import Vector

_SIXTEEN = ir.VectorType(ir.IntType(32), 16)


@operation
def dot(typingctx, sums, values, weights):
    """Each lane of `sums` and the products of its four bytes in `values` (unsigned) and `weights` (signed).

    All three have lanes of 32 bits, a multiple of 16. Only for CPUs with AVX-512 VNNI.
    """

    def generate(context, builder, sig, args):
        function = _declare_by_name(builder, "llvm.x86.avx512.vpdpbusd.512", _SIXTEEN, [_SIXTEEN] * 3)
        parts = [
            builder.call(function, [_shuffled(builder, whole, whole, range(first, first + 16)) for whole in args])
            for first in range(0, sums.lanes, 16)
        ]
        while len(parts) > 1:
            halves = zip(parts[::2], parts[1::2], strict=True)
            parts = [_shuffled(builder, a, b, range(2 * a.type.count)) for a, b in halves]
        return parts[0]

    return sums(sums, values, weights), generate


@operation
def interleave(typingctx, first, second, third, fourth):
    """The bytes of four vectors in turn, as lanes of 32 bits."""
    kind, lanes = Vector(first.lanes, 32), first.lanes

    def generate(context, builder, sig, args):
        low, high = (_shuffled(builder, args[i], args[i + 1], range(2 * lanes)) for i in (0, 2))
        order = [place * lanes + lane for lane in range(lanes) for place in range(4)]
        return builder.bitcast(_shuffled(builder, low, high, order), kind.llvm)

    return kind(first, second, third, fourth), generate


def vector_join(lanes: int) -> Callable[..., Any]:
    """Two vectors of lanes / 2, one behind the other."""

    @operation
    def join(typingctx, left, right):
        def generate(context, builder, sig, args):
            return _shuffled(builder, args[0], args[1], range(lanes))

        return Vector(lanes, left.bits)(left, right), generate

    return join


def vector_repeat(times: int) -> Callable[..., Any]:
    """A vector `times` times, one behind the other."""

    @operation
    def repeat(typingctx, vector):
        lanes = vector.lanes * times

        def generate(context, builder, sig, args):
            return _shuffled(builder, args[0], args[0], [lane % vector.lanes for lane in range(lanes)])

        return Vector(lanes, vector.bits)(vector), generate

    return repeat


def _shuffled(builder, left, right, numbers):
    """The numbered lanes of two vectors, one behind the other."""
    lanes = list(numbers)
    return builder.shuffle_vector(left, right, ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes))


def _declare_by_name(builder, name: str, result, arguments):
    """A target's intrinsic, which has no type in its name."""
    known = builder.module.globals.get(name)
    return known or ir.Function(builder.module, ir.FunctionType(result, arguments), name)
