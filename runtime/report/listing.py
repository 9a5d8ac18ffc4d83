"""What a program is, without running it: `cstep inspect`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.table import Table

from isa.instructions import Layer, Load
from isa.program import Program
from isa.word import WORD_BYTES, Traffic
from runtime.report.numbers import scale_for


class ProgramListing:
    """Renders a program: header, provenance, layers with their code and weights, and an instruction histogram."""

    def __init__(self, program: Program) -> None:
        self.program = program

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from self._heading()
        yield ""
        yield layer_table(self.program)
        yield ""
        yield self._histogram()

    def _heading(self) -> Iterator[Table]:
        program, header = self.program, self.program.header
        image, output = header.input, header.output
        code = len(program.code) * WORD_BYTES
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_row("schema", header.schema_version)
        table.add_row("digest", program.digest)
        table.add_row("machine", f"{header.machine.name}: {header.machine.description}")
        table.add_row("timesteps", str(header.timesteps))
        shape = "x".join(map(str, image.shape))
        table.add_row("input", f"{image.kind} {shape}, {image.steps} step(s), one integer is {image.scale:.6g}")
        table.add_row("", f"mean {_numbers(image.mean)}, std {_numbers(image.std)}")
        table.add_row("output", f"{output.classes} logits, one integer is {output.scale:.6g}")
        table.add_row("code", f"{len(program.code):,} words, {code:,} bytes")
        table.add_row(
            "memory", f"image {len(program.memory):,} bytes (weights, constants) of {header.dram_bytes:,} in DRAM"
        )
        for key, value in header.provenance.model_dump().items():
            table.add_row(key, escape(str(value)))
        yield table

    def _histogram(self) -> Table:
        table = Table("instruction", "unit", "count", "share", box=None, pad_edge=False)
        table.columns[2].justify = table.columns[3].justify = "right"
        kinds = Counter(type(each) for each in self.program.code)
        for kind, count in kinds.most_common():
            table.add_row(kind.mnemonic, kind.unit.name.lower(), f"{count:,}", f"{count / len(self.program.code):.1%}")
        return table


def layer_table(program: Program) -> Table:
    """The layers of a program: their neurons, code words and weights, and the line that each was traced from."""
    table = Table("layer", "operation", "input", "neurons", "words", "weights", "source", box=None, pad_edge=False)
    table.columns[4].justify = table.columns[5].justify = "right"
    words, weights = _by_layer(program)
    for index, layer in enumerate(program.header.layers):
        scale = scale_for(weights[index], "bytes")
        table.add_row(
            escape(layer.name),
            layer.operation,
            "spikes" if layer.binary else "values",
            "x".join(map(str, layer.neurons)) if layer.neurons else "",
            f"{words[index]:,}",
            f"{scale.text(weights[index])} {scale.unit}" if weights[index] else "",
            escape(layer.source),
        )
    return table


def _by_layer(program: Program) -> tuple[Counter[int], Counter[int]]:
    """Code words of every layer, and the weight bytes that it loads (again for every reload)."""
    words: Counter[int] = Counter()
    weights: Counter[int] = Counter()
    layer = 0
    for each in program.code:
        layer = each.index if isinstance(each, Layer) else layer
        words[layer] += 1
        if isinstance(each, Load) and each.traffic == Traffic.WEIGHT:
            weights[layer] += each.blocks * each.rows * each.bytes
    return words, weights


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values) or "none"
