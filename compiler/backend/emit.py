"""From an allocated cstep module to a program: code words, memory image, source map, header."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from xdsl.ir import SSAValue

from compiler.ir.cstep import BufferOp, ConstantOp, InputOp, InstructionOp, LayerOp, OutputOp, units_mask
from compiler.ir.network import Network
from isa.errors import CStepError
from isa.instructions import Fire, Layer
from isa.machine import Machine
from isa.program import Header, Input, LayerInfo, Output, Program, Provenance
from isa.word import Instruction, Region

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]


def addresses(network: Network) -> dict[SSAValue, int]:
    """Where every buffer lies. Raises CStepError for one that `allocate` has not placed."""
    placed: dict[SSAValue, int] = {}
    used = {operand for op in network.operations() for operand in op.operands}
    for op in network.operations():
        if isinstance(op, BufferOp | ConstantOp) and op.results[0] in used:
            if op.get("at") < 0:
                raise CStepError(f"{op.label}: {op.name} has no address; run `allocate` first")
            placed[op.results[0]] = op.get("at")
    return placed


def layer_names(network: Network) -> list[str]:
    """Layers in the order of their first mark: their index in the program."""
    return list(dict.fromkeys(op.get("layer") for op in network.operations() if isinstance(op, LayerOp)))


def instructions(network: Network) -> list[Instruction]:
    """The code words, in order."""
    placed = addresses(network)
    index = {name: number for number, name in enumerate(layer_names(network))}
    code: list[Instruction] = []
    for op in network.operations():
        if isinstance(op, InstructionOp):
            code.append(op.encoded(placed))
        elif isinstance(op, LayerOp):
            code.append(Layer(index=index[op.get("layer")], wait=units_mask(op, "wait"), post=units_mask(op, "post")))
    return code


def neuron_labels(network: Network) -> dict[int, str]:
    """Layer index -> name of its neurons in the spike dialect."""
    index = {name: number for number, name in enumerate(layer_names(network))}
    return {
        index[op.get("layer")]: op.get("fires")
        for op in network.operations()
        if isinstance(op, LayerOp) and op.get("fires")
    }


def emit(network: Network, machine: Machine, provenance: Provenance, normalisation: Normalisation) -> Program:
    """The program of a cstep module whose buffers have addresses."""
    placed = addresses(network)
    code = instructions(network)
    declared = {type(op): op for op in network.operations() if isinstance(op, InputOp | OutputOp)}
    source, result = declared.get(InputOp), declared.get(OutputOp)
    if source is None or result is None:
        raise CStepError("the module declares no input or no output")
    header = Header(
        machine=machine,
        timesteps=source.get("timesteps"),
        dram_bytes=_dram_bytes(network, placed),
        input=Input(
            kind=source.get("kind"),
            shape=source.get("shape"),
            steps=source.get("steps"),
            address=placed[source.operands[0]],
            scale=source.get("scale"),
            mean=normalisation[0],
            std=normalisation[1],
        ),
        output=Output(address=placed[result.operands[0]], classes=result.get("classes"), scale=result.get("scale")),
        layers=_layer_table(network),
        provenance=provenance,
    )
    return Program(header, tuple(code), _memory(network, placed), _source_map(network))


def _layer_table(network: Network) -> tuple[LayerInfo, ...]:
    rows: dict[str, LayerInfo] = {}
    for op in network.operations():
        if isinstance(op, LayerOp):
            neurons = op.get("neurons")
            rows.setdefault(
                op.get("layer"),
                LayerInfo(
                    name=op.get("layer"),
                    operation=op.get("operation"),
                    source=op.source,
                    binary=bool(op.get("binary")),
                    neurons=(neurons[0], neurons[1], neurons[2]) if neurons else None,
                ),
            )
    return tuple(rows.values())


def _dram_bytes(network: Network, placed: dict[SSAValue, int]) -> int:
    """The end of the last buffer in DRAM."""
    ends = [0]
    for op in network.operations():
        if isinstance(op, BufferOp) and op.results[0] in placed and op.get("region") == Region.DRAM.name.lower():
            ends.append(placed[op.results[0]] + op.get("bytes"))
    return max(ends)


def _memory(network: Network, placed: dict[SSAValue, int]) -> NDArray[np.uint8]:
    """The memory image: every constant at its address."""
    constants: list[tuple[int, NDArray[np.uint8]]] = []
    for op in network.operations():
        if isinstance(op, ConstantOp) and op.results[0] in placed:
            name = op.symbol("content")
            assert name is not None
            constants.append((placed[op.results[0]], network.weights[name].view(np.uint8)))
    memory = np.zeros(max((address + content.size for address, content in constants), default=0), np.uint8)
    for address, content in constants:
        memory[address : address + content.size] = content
    return memory


def _source_map(network: Network) -> NDArray[np.int32]:
    """One row a fire: its code word, its layer, and where its first neuron sits."""
    index = {name: number for number, name in enumerate(layer_names(network))}
    rows: list[tuple[int, ...]] = []
    word, layer = 0, 0
    for op in network.operations():
        if isinstance(op, LayerOp):
            layer = index[op.get("layer")]
        elif isinstance(op, InstructionOp):
            if op.INSTRUCTION is Fire:
                rows.append((word, layer, *op.first_neuron))
        else:
            continue
        word += 1
    return np.array(rows, np.int32).reshape(-1, 6)
