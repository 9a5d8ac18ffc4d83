"""Integer modules as text, one for each form that the back end takes, and weights that make every neuron layer fire.

Types are short: `<5x7x17xacc>` is a train of that shape, T as asked for, with the element that ELEMENTS says.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from compiler.ir import spike
from compiler.ir.meaning import MEANINGS
from compiler.ir.network import Network, parse
from compiler.ir.operation import SpikeOperation

ROWS, COLUMNS, IMAGE_CHANNELS = 5, 7, 3
ELEMENTS = {
    "acc": "int<-8388608, 8388607>",
    "cur": "int<-32768, 32767>",
    "str": "fixed<16, 6>",
    "fix": "fixed<8, 2>",
}
IMAGE = """
%x = spike.input : !spike.tensor<3x5x7xf32>
%x.q = spike.quantise_image %x scale=0.02 : !spike.tensor<3x5x7xi8>
%x.t = spike.transpose %x.q order=[1, 2, 0] : !spike.tensor<5x7x3xi8>
%x.r = spike.repeat %x.t : <5x7x3xi8>
"""
EVENTS = """
%x = spike.input : <3x5x7xf32>
%x.q = spike.quantise_image %x scale=0.02 : <3x5x7xi8>
%x.r = spike.transpose %x.q order=[1, 2, 0] : <5x7x3xi8>
"""
STEM = """
%stem = spike.conv %x.r, @stem.w kernel=3, padding=1 : <5x7x34xacc>
%stem.a = spike.align %stem, @stem.b shift=-2 : <5x7x34xacc>
%s = spike.integer_lif %stem.a, @stem.t multiplier=1, divisor=1 : <5x7x34xi1>
%stem2 = spike.conv %s, @stem2.w kernel=3, padding=1 : <5x7x34xacc>
%stem2.a = spike.align %stem2, @stem2.b shift=1 : <5x7x34xacc>
%u = spike.integer_lif %stem2.a, @stem2.t multiplier=21845, divisor=15, reset=soft : <5x7x34xi1>
%c = spike.add %s, %u : <5x7x34xcount<2>>
%sn = spike.reshape %s : <35x34xi1>
%un = spike.reshape %u : <35x34xi1>
%cn = spike.reshape %c : <35x34xcount<2>>
"""
"""Spikes %s and %u and counts %c, of 5x7 pixels and 34 channels; %sn, %un, %cn are the same as tokens."""
STREAM = """
%to = spike.conv %s, @to.w kernel=3, padding=1 : <5x7x34xacc>
%r = spike.rescale %to, @to.m, @to.b divisor=8 : <5x7x34xstr>
"""


def _head(value: str, shape: str, element: str = "i1") -> str:
    """Classes from a train: its sum over pixels and timesteps."""
    sizes = shape.split("x")
    text, rest = "", value
    if len(sizes) == 3:
        text += f"%h.n = spike.reshape {value} : <{int(sizes[0]) * int(sizes[1])}x{sizes[2]}x{element}>\n"
        rest, sizes = "%h.n", ["n", sizes[2]]
    if len(sizes) == 2:
        text += f"%h.s = spike.sum {rest} axis=0 : <{sizes[1]}xacc>\n"
        rest = "%h.s"
    return text + (
        f"%h.t = spike.sum_time {rest} : !spike.tensor<{sizes[-1]}xacc>\n"
        "%head = spike.linear %h.t, @head.w, @head.b : !spike.tensor<6xacc>\n"
        "spike.output %head scale=0.1\n"
    )


def _lif(name: str, value: str, shape: str, shift: int = 0, keys: str = "multiplier=1, divisor=1") -> str:
    """Neurons %name on a current."""
    return (
        f"%{name}.a = spike.align {value}, @{name}.b shift={shift} : <{shape}xacc>\n"
        f"%{name} = spike.integer_lif %{name}.a, @{name}.t {keys} : <{shape}xi1>\n"
    )


def _level(name: str, value: str, shape: str, levels: int, ties: str, shift: int = 0) -> str:
    """Level neurons %name on a current."""
    return (
        f"%{name}.a = spike.align {value}, @{name}.b shift={shift} : <{shape}xacc>\n"
        f"%{name} = spike.integer_level %{name}.a, @{name}.t levels={levels}, ties={ties} : "
        f"<{shape}xcount<{levels}>>\n"
    )


TOKENS, CHANNELS = "35x34", "34"
QKV = "".join(
    f"%{name}.l = spike.linear %cn, @{name}.w : <35x34xacc>\n" + _lif(name, f"%{name}.l", TOKENS) for name in "qkv"
)
FORMS: dict[str, str] = {
    "neurons on spikes, counts and the image": IMAGE + STEM + (
        "%f = spike.linear %cn, @f.w : <35x17xacc>\n"
        + _lif("y", "%f", "35x17", keys="multiplier=1, divisor=1, charge=if")
        + _head("%y", "35x17")
    ),
    "events": EVENTS + STEM + _head("%c", "5x7x34", "count<2>"),
    "a residual": IMAGE + STEM + (
        "%f = spike.linear %cn, @f.w : <35x34xacc>\n" + _lif("y", "%f", TOKENS)
        + "%z = spike.add %y, %cn : <35x34xcount<3>>\n" + _head("%z", TOKENS, "count<3>")
    ),
    "levels with ties up, then even": IMAGE + STEM + (
        "%f = spike.conv %c, @f.w kernel=3, stride=2, padding=1 : <3x4x17xacc>\n"
        + _level("y", "%f", "3x4x17", 4, "up", 1)
        + "%g = spike.conv %y, @g.w kernel=1, stride=2 : <2x2x18xacc>\n" + _level("z", "%g", "2x2x18", 8, "even", -1)
        + _head("%z", "2x2x18", "count<8>")
    ),
    "depthwise": IMAGE + STEM + (
        "%f = spike.conv %c, @f.w kernel=5, padding=2, groups=34 : <5x7x34xacc>\n" + _lif("y", "%f", "5x7x34")
        + _head("%y", "5x7x34")
    ),
    "depthwise of an 8-bit stream": IMAGE + STEM + (
        "%p = spike.linear %s, @p.w : <5x7x34xacc>\n"
        "%e = spike.rescale %p, @p.m, @p.b divisor=13 : <5x7x34xfix>\n"
        "%f = spike.conv %e, @f.w kernel=3, padding=1, groups=34 : <5x7x34xacc>\n" + _lif("y", "%f", "5x7x34", -3)
        + _head("%y", "5x7x34")
    ),
    "groups of whole words": IMAGE + STEM + (
        "%f = spike.conv %c, @f.w kernel=3, padding=1 : <5x7x32xacc>\n" + _lif("y", "%f", "5x7x32")
        + "%g = spike.conv %y, @g.w kernel=3, stride=2, padding=1, groups=2 : <3x4x64xacc>\n"
        + _lif("z", "%g", "3x4x64") + _head("%z", "3x4x64")
    ),
    "groups that are no whole words": IMAGE + STEM + (
        "%f = spike.conv %c, @f.w kernel=3, padding=1, groups=2 : <5x7x18xacc>\n" + _lif("y", "%f", "5x7x18")
        + _head("%y", "5x7x18")
    ),
    "windows of one row": IMAGE + STEM + (
        "%f = spike.conv %c, @f.w kernel=3, padding=1, rows=1 : <5x7x17xacc>\n" + _lif("y", "%f", "5x7x17")
        + _head("%y", "5x7x17")
    ),
    "a stream from the image": IMAGE + (
        "%f = spike.conv %x.r, @f.w kernel=7, stride=2, padding=3 : <3x4x17xacc>\n"
        "%r = spike.rescale %f, @f.m, @f.b divisor=8 : <3x4x17xstr>\n" + _lif("y", "%r", "3x4x17", 1)
        + _head("%y", "3x4x17")
    ),
    "a membrane residual with several readers": IMAGE + STEM + STREAM + (
        _lif("y", "%r", "5x7x34", -1) + _level("z", "%r", "5x7x34", 3, "even")
        + "%g = spike.conv %z, @g.w kernel=3, padding=1 : <5x7x34xacc>\n"
        "%w = spike.rescale %g, @g.m, @g.b divisor=7 : <5x7x34xstr>\n"
        "%o = spike.add %r, %w : <5x7x34xstr>\n" + _lif("n", "%o", "5x7x34")
        + "%l = spike.linear %y, @l.w : <5x7x34xacc>\n"
        "%k = spike.rescale %l, @l.m, @l.b divisor=8 : <5x7x34xstr>\n"
        "%i = spike.add %k, %o : <5x7x34xstr>\n" + _lif("j", "%i", "5x7x34")
        + "%v = spike.add %j, %n : <5x7x34xcount<2>>\n" + _head("%v", "5x7x34", "count<2>")
    ),
    "streams added and pooled": IMAGE + STEM + STREAM + (
        "%p = spike.max_pool %r kernel=3, stride=2, padding=1 : <3x4x34xstr>\n"
        "%o = spike.add %p, %p : <3x4x34xstr>\n"
        "%g = spike.conv %u, @g.w kernel=1, stride=2 : <3x4x34xacc>\n"
        "%w = spike.rescale %g, @g.m, @g.b divisor=6 : <3x4x34xstr>\n"
        "%i = spike.add %o, %w : <3x4x34xstr>\n" + _lif("y", "%i", "3x4x34") + _head("%y", "3x4x34")
    ),
    "an 8-bit stream into a linear layer": IMAGE + STEM + (
        "%f = spike.conv %s, @f.w kernel=3, padding=1, groups=34 : <5x7x34xacc>\n"
        "%e = spike.rescale %f, @f.m, @f.b divisor=9 : <5x7x34xfix>\n"
        "%g = spike.linear %e, @g.w : <5x7x17xacc>\n"
        "%r = spike.rescale %g, @g.m, @g.b divisor=8 : <5x7x17xstr>\n" + _lif("y", "%r", "5x7x17")
        + _head("%y", "5x7x17")
    ),
    "max-pool of currents": IMAGE + (
        "%f = spike.conv %x.r, @f.w kernel=3, padding=1 : <5x7x34xacc>\n"
        "%r = spike.rescale %f, @f.m, @f.b divisor=8 : <5x7x34xcur>\n"
        "%p = spike.max_pool %r kernel=3, stride=2, padding=1 : <3x4x34xcur>\n" + _lif("y", "%p", "3x4x34")
        + _head("%y", "3x4x34")
    ),
    "max-pool of spikes and of counts": IMAGE + STEM + (
        "%p = spike.max_pool %u kernel=2, stride=2 : <2x3x34xi1>\n"
        "%o = spike.max_pool %c kernel=3, stride=2, padding=1 : <3x4x34xcount<2>>\n"
        "%f = spike.linear %p, @f.w : <2x3x17xacc>\n" + _lif("y", "%f", "2x3x17")
        + _head("%o", "3x4x34", "count<2>")
    ),
    "attention with counts": IMAGE + STEM + QKV + (
        "%kc = spike.add %k, %un : <35x34xcount<2>>\n"
        "%m = spike.attention %q, %kc, %cn heads=2 : <35x34xacc>\n" + _lif("y", "%m", TOKENS)
        + "%z = spike.add %y, %cn : <35x34xcount<3>>\n" + _head("%z", TOKENS, "count<3>")
    ),
    "attention that ends in a stream": IMAGE + STEM + STREAM + QKV + (
        "%rn = spike.reshape %r : <35x34xstr>\n"
        "%m = spike.attention %q, %k, %v heads=2, order=values : <35x34xacc>\n"
        "%w = spike.rescale %m, @m.m, @m.b divisor=2 : <35x34xstr>\n"
        "%o = spike.add %w, %rn : <35x34xstr>\n" + _lif("y", "%o", TOKENS) + _head("%y", TOKENS)
    ),
    "attention that fits head by head": IMAGE + STEM + QKV + (
        "%m = spike.attention %q, %k, %v heads=2 : <35x34xacc>\n" + _lif("y", "%m", TOKENS)
        + "%p = spike.linear %y, @p.w : <35x34xacc>\n" + _lif("z", "%p", TOKENS)
        + _head("%z", TOKENS)
    ),
    "token attention": IMAGE + STEM + QKV + (
        "%n = spike.head_sum %q heads=2 : <35x2xacc>\n" + _lif("g", "%n", "35x2")
        + "%m = spike.mask %k, %g : <35x34xi1>\n"
        "%f = spike.linear %m, @f.w : <35x17xacc>\n" + _lif("y", "%f", "35x17") + _head("%y", "35x17")
    ),
    "Hadamard attention": IMAGE + STEM + QKV + (
        "%kv = spike.multiply %k, %v : <35x34xi1>\n"
        "%n = spike.sum %kv axis=0 : <34xacc>\n" + _lif("g", "%n", CHANNELS)
        + "%m = spike.mask %q, %g : <35x34xi1>\n" + _head("%m", TOKENS)
    ),
    "Hadamard attention of events": EVENTS + STEM + QKV + (
        "%kv = spike.multiply %k, %v : <35x34xi1>\n"
        "%kd = spike.dilate %kv heads=2 : <35x34xi1>\n"
        "%n = spike.sum %kd axis=0 : <34xacc>\n" + _lif("g", "%n", CHANNELS, 1)
        + "%m = spike.mask %q, %g : <35x34xi1>\n"
        "%d = spike.dilate %m heads=2 : <35x34xi1>\n" + _head("%d", TOKENS)
    ),
    "neurons on the mean of a stream": IMAGE + STEM + STREAM + (
        "%rn = spike.reshape %r : <35x34xstr>\n"
        "%n = spike.sum %rn axis=0 : <34xacc>\n" + _lif("y", "%n", CHANNELS, -2)
        + "%l = spike.linear %y, @l.w, @l.b : <6xacc>\n"
        "%lt = spike.sum_time %l : !spike.tensor<6xacc>\n"
        "spike.output %lt scale=0.1\n"
    ),
    "levels of the mean of counts": IMAGE + STEM + (
        "%n = spike.sum %cn axis=0 : <34xacc>\n" + _level("y", "%n", CHANNELS, 4, "even", 2)
        + _head("%y", "34", "count<4>")
    ),
    "two heads, on a raw stream and on levels": IMAGE + STEM + STREAM + (
        "%rn = spike.reshape %r : <35x34xstr>\n"
        "%n = spike.sum %rn axis=0 : <34xacc>\n" + _level("y", "%n", CHANNELS, 4, "even", -1)
        + "%yt = spike.sum_time %y : !spike.tensor<34xacc>\n"
        "%ya = spike.align %yt shift=4 : !spike.tensor<34xacc>\n"
        "%l = spike.linear %ya, @l.w, @l.b : !spike.tensor<6xacc>\n"
        "%nt = spike.sum_time %n : !spike.tensor<34xacc>\n"
        "%na = spike.align %nt shift=-5 : !spike.tensor<34xacc>\n"
        "%m = spike.linear %na, @m.w, @m.b : !spike.tensor<6xint<-2147483648, 2147483647>>\n"
        "%o = spike.add %m, %l : !spike.tensor<6xint<-2147483648, 2147483647>>\n"
        "spike.output %o scale=0.1\n"
    ),
    "a head on a raw stream": IMAGE + STEM + STREAM + (
        "%rn = spike.reshape %r : <35x34xstr>\n"
        "%n = spike.sum %rn axis=0 : <34xacc>\n"
        "%nt = spike.sum_time %n : !spike.tensor<34xacc>\n"
        "%na = spike.align %nt shift=-3 : !spike.tensor<34xacc>\n"
        "%l = spike.linear %na, @l.w, @l.b : !spike.tensor<6xint<-2147483648, 2147483647>>\n"
        "spike.output %l scale=0.1\n"
    ),
}  # fmt: skip
"""By name: a module of every form."""


def form(name: str, timesteps: int, image: NDArray[np.float32]) -> Network:
    """The network of a form; `image` is what its thresholds are set on."""
    return network_of(FORMS[name], timesteps, image)


def network_of(text: str, timesteps: int, image: NDArray[np.float32]) -> Network:
    """The network of a text in which types are short."""
    for short, element in ELEMENTS.items():
        text = re.sub(rf"(?<=x){short}>", f"{element}>", text)
    text = re.sub(r": <", f": !spike.train<T={timesteps}, ", text)
    network = Network(parse(text))
    generator = np.random.default_rng(len(text))
    for op in network.operations():
        for key, shape in op.weight_shapes().items() if op.symbol_keys() else ():
            symbol = op.symbol(key)
            if symbol is not None:
                network.weights[symbol] = _drawn(key, shape, generator)
    network.verify()
    _set_thresholds(network, image, generator)
    return network


def _drawn(key: str, shape: tuple[int, ...], generator: np.random.Generator) -> NDArray[Any]:
    if key == "weight":
        return generator.integers(-127, 128, shape).astype(np.int8)
    if key == "multiplier":
        return generator.integers(150, 350, shape).astype(np.int32)
    return generator.integers(-60, 60, shape).astype(np.int32)


@torch.no_grad()
def _set_thresholds(network: Network, image: NDArray[np.float32], generator: np.random.Generator) -> None:
    """One run, which gives every neuron layer thresholds in the upper half of its currents."""
    values: dict[Any, torch.Tensor] = {}
    for op in network.operations():
        if isinstance(op, spike.Input):
            values[op.results[0]] = torch.from_numpy(image)
        elif not isinstance(op, spike.Output):
            assert isinstance(op, SpikeOperation)
            operands = [values[operand] for operand in op.operands]
            threshold = op.symbol("threshold") if "threshold" in op.symbol_keys() else None
            if threshold is not None:
                middle = float(operands[0].to(torch.float64).quantile(0.7))
                shape = network.weights[threshold].shape
                network.weights[threshold] = np.maximum(middle * generator.uniform(0.3, 0.6, shape), 1).astype(np.int32)
            values[op.results[0]] = MEANINGS[type(op)](
                op, lambda name: torch.from_numpy(network.weights[name]).to(torch.int64), *operands
            )
