"""Wrong modules are refused in one line that says the op, what is wrong and what would be right."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from compiler.ir.network import Network, load_dump, parse
from isa.errors import CStepError

INPUT = "%x = spike.input : !spike.train<T=2, 4x4x3xf32>\n"
BUFFER = "%w = cstep.buffer region=weight, bytes=24 : !cstep.bytes\n"


def refusal(text: str) -> str:
    """What is said of a module."""
    with pytest.raises(CStepError) as caught:
        Network(parse(text, "x.spike")).verify()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("op", "message"),
    [
        (
            "%l = spike.linear %x, @w : !spike.train<T=2, 4x5x8xf32>",
            "l: spike.linear: !spike.train<T=2, 4x4x3xf32> becomes !spike.train<T=2, 4x5x8xf32>; only the last",
        ),
        (
            "%l = spike.linear %x, @w : !spike.train<T=3, 4x4x8xf32>",
            "l: spike.linear: operand 0 has T=2, the result T=3",
        ),
        (
            "%c = spike.conv %x, @w kernel=3 : !spike.train<T=2, 4x4x8xf32>",
            "c: spike.conv: the result is !spike.train<T=2, 4x4x8xf32>; its pixels must be (2, 2)",
        ),
        (
            "%c = spike.conv %x, @w kernel=3, stride=0 : !spike.train<T=2, 4x4x8xf32>",
            "c: spike.conv: stride=0; it must be positive",
        ),
        (
            "%r = spike.reshape %x : !spike.train<T=2, 16x3xf32>\n"
            "%p = spike.max_pool %r kernel=2, stride=2 : !spike.train<T=2, 8x3xf32>",
            "p: spike.max_pool: the input is !spike.train<T=2, 16x3xf32>; it must be HxWxC",
        ),
        (
            "%s = spike.lif %x tau=2.0, threshold=1.0, reset=gentle : !spike.train<T=2, 4x4x3xi1>",
            "s: spike.lif: reset=gentle; it must be one of hard, soft",
        ),
        (
            "%s = spike.lif %x tau=2.0, threshold=1.0 : !spike.train<T=2, 4x4x3xf32>",
            "s: spike.lif: the result holds f32, not i1",
        ),
        (
            "%s = spike.integer_lif %x, @t multiplier=1, divisor=1 : !spike.train<T=2, 4x4x3xi1>",
            "s: spike.integer_lif: the current is !spike.train<T=2, 4x4x3xf32>; no integers",
        ),
        (
            "%r = spike.reshape %x : !spike.train<T=2, 16x8xf32>",
            "r: spike.reshape: !spike.train<T=2, 4x4x3xf32> has not as many elements as !spike.train<T=2, 16x8xf32>",
        ),
        (
            "%t = spike.transpose %x order=[0, 0, 1] : !spike.train<T=2, 4x4x3xf32>",
            "t: spike.transpose: order=[0, 0, 1] is no order of 3",
        ),
        (
            "%r = spike.reshape %x : !spike.train<T=2, 16x3xf32>\n"
            "%a = spike.attention %r, %r, %r heads=2 : !spike.train<T=2, 16x3xf32>",
            "a: spike.attention: 3 channels do not divide into 2 heads",
        ),
        (
            "%m = spike.mean %x axis=3 : !spike.train<T=2, 4x4x3xf32>",
            "m: spike.mean: axis=3; the input has 3 dimensions",
        ),
        ("spike.output %x", "spike.output: !spike.train<T=2, 4x4x3xf32> should be of base attribute spike.tensor"),
    ],
)
def test_a_spike_module_that_does_not_fit(op: str, message: str) -> None:
    assert refusal(INPUT + op).startswith(f"the IR does not verify: {message}")


@pytest.mark.parametrize(
    ("op", "message"),
    [
        (
            "cstep.load source=%w, target=%w, region=weight, traffic=weight, blocks=1, rows=99999, bytes=8",
            "cstep.load: rows=99999 does not fit 14 bits (1..16383)",
        ),
        (
            "cstep.load source=%w, target=%w, region=shelf, traffic=weight, blocks=1, rows=1, bytes=8",
            "cstep.load: region=shelf; it must be one of dram, weight, spike, output, constant, channel",
        ),
        ("cstep.end wait=tea", "cstep.end: wait=tea: no unit tea; there are dma, pe, neuron, sfu, control"),
        (
            "%v = cstep.buffer region=shelf, bytes=8 : !cstep.bytes",
            "v: cstep.buffer: region=shelf; it must be one of dram, weight, spike, output, constant, channel",
        ),
    ],
)
def test_a_program_module_that_does_not_fit(op: str, message: str) -> None:
    assert refusal(BUFFER + op) == f"the IR does not verify: {message}"


@pytest.mark.parametrize(
    ("op", "message"),
    [
        ("%c = spike.conv %x, @w : !spike.train<T=2, 4x4x8xf32>", "spike.conv: property `kernel` is missing"),
        (
            "%c = spike.conv %x, @w kernel=1, dilation=2 : !spike.train<T=2, 4x4x8xf32>",
            "spike.conv: no property `dilation`; it takes kernel, stride, padding, groups, rows, "
            "sharing, over, partners",
        ),
        (
            "%c = spike.conv %x, @w, @b, @c kernel=1 : !spike.train<T=2, 4x4x8xf32>",
            "spike.conv: 3 symbols; it takes at most 2",
        ),
        ("%a = spike.add %x : !spike.train<T=2, 4x4x3xf32>", "spike.add: 1 operands; it takes 2"),
        ("%a = spike.add %x, %y : !spike.train<T=2, 4x4x3xf32>", "%y is used before any op makes it"),
        ("%a = spike.scale %x factor=2.0", "spike.scale: expected a type of its result after `:`"),
        ("%a = spike.dance %x : !spike.train<T=2, 4x4x3xf32>", "Operation spike.dance is not registered"),
        (
            "%a = spike.scale %x factor=2.0 : !spike.train<T=2, 4x4x3xf16>",
            "element `f16`: expected f32, f64, i1, count<k>, i8, int<low, high> or fixed<bits, fraction>",
        ),
        ("cstep.end colour=red", "cstep.end: no property `colour`; it takes wait, post, neuron"),
    ],
)
def test_text_that_does_not_parse(op: str, message: str) -> None:
    assert refusal(INPUT + op) == f"x.spike: line 2: {message}"


def test_only_house_ops_stand_in_a_dump() -> None:
    said = refusal('"builtin.module"() ({}) : () -> ()')
    assert said == "x.spike: a dump is a list of ops, one after the other"
    said = refusal(INPUT + '"builtin.module"() ({}) : () -> ()')
    assert said == "x.spike: builtin.module: only ops of the dialects spike and cstep stand in a dump"


def test_weights_are_in_the_store_and_have_the_shapes_that_ops_imply() -> None:
    network = Network(parse(INPUT + "%c = spike.conv %x, @w kernel=1 : !spike.train<T=2, 4x4x8xf32>"))
    with pytest.raises(CStepError, match=r"^c: spike.conv: no weight @w in the store$"):
        network.verify()
    network.weights["w"] = np.zeros((8, 3, 3, 3), np.float32)
    with pytest.raises(CStepError, match=r"^c: spike.conv: weight @w is \[8, 3, 3, 3\]; it must be \[8, 3, 1, 1\]$"):
        network.verify()


def test_a_dump_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "03-folded.spike"
    with pytest.raises(CStepError, match=rf"^{re.escape(str(path))}: cannot be read as a dump"):
        load_dump(path)
    path.write_text(INPUT)
    path.with_suffix(".safetensors").write_bytes(b"no store")
    with pytest.raises(CStepError, match=r"03-folded\.safetensors: cannot be read as a weight store"):
        load_dump(path)
