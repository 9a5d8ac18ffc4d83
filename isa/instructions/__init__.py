"""Every instruction in opcode order: fields, unit, meaning, cycles, and what it counts whatever the data.

Layouts in the buffers (all little-endian):
  spikes        [plane][step][pixel][word]   16 channels a word, channel c is bit c % 16 of word c // 16; the unused
                                             high bits of the last word are zero. A count train has several planes,
                                             value = sum over planes of bit << plane.
  image, events [step][pixel][channel] int8
  weights       [kernel row][kernel column][input][output] int8
  accumulators  [step][pixel][output] int32 slots (values fit the machine's accumulator width)
  membranes     [pixel][output] int16
  constants     bias int32 [output], then threshold int32 [output] (multiplier, for `Rescale`)
  pairings      uint16 [row]: the partner of each row (see `Pair`)
  masks, counts one bit, or uint16, a channel, in the channel buffer (see `Guard`)
  streams       [step][pixel][channel] int16 in the output buffer, int8 in the spike buffer: fixed-point values
  halting       [step][token][total | weight] int16 in the output buffer (see `HaltSpikes`): a stream of two channels
  kept          [step][token] one spike word each, bit 0 (see `KeepRows`): a train of one channel
Pixels are tokens in row-major order; a linear layer is a window of one row and as many columns as tokens.

The word mask buffer has no addresses of its own: its bit i says whether word i of the spike buffer is non-zero.
"""

from isa.instructions.control import End, Exit, Layer
from isa.instructions.copy import Copy, Load, Store
from isa.instructions.guard import CountSpikes, Guard
from isa.instructions.halting import (
    BIAS_ZERO,
    STATE_BYTES,
    Halt,
    HaltSpikes,
    HaltValues,
    KeepBelow,
    Weigh,
    WeighSpikes,
    WeighValues,
)
from isa.instructions.neuron import Add, Fire, Mask, Rescale
from isa.instructions.pair import PARTNER_BYTES, Pair
from isa.instructions.pool import Dilate, Pool, PoolValues
from isa.instructions.sfu import Attend, Classify, Decide, Sum, SumHeads, SumValues
from isa.instructions.sizes import (
    ACCUMULATOR_BYTES,
    CONSTANT_BYTES,
    COUNT_BYTES,
    MEMBRANE_BYTES,
    MOST_COUNT,
    SPIKE_WORD_BYTES,
    SPIKES_PER_WORD,
    STREAM_BYTES,
    mask_bytes,
    words_of,
)
from isa.instructions.tokens import (
    PART_BYTES,
    Keep,
    KeepNeurons,
    KeepRows,
    KeepTokens,
    KeepTop,
    Score,
    ScoreSpikes,
    ScoreValues,
)
from isa.instructions.window import Accumulate, Depthwise, Multiply, Window

__all__ = [
    "ACCUMULATOR_BYTES", "BIAS_ZERO", "CONSTANT_BYTES", "COUNT_BYTES", "MEMBRANE_BYTES", "MOST_COUNT", "PARTNER_BYTES",
    "PART_BYTES", "SPIKES_PER_WORD", "SPIKE_WORD_BYTES", "STATE_BYTES", "STREAM_BYTES", "Accumulate", "Add", "Attend",
    "Classify", "Copy", "CountSpikes", "Decide", "Depthwise", "Dilate", "End", "Exit", "Fire", "Guard", "Halt",
    "HaltSpikes", "HaltValues", "Keep", "KeepBelow", "KeepNeurons", "KeepRows", "KeepTokens", "KeepTop", "Layer",
    "Load", "Mask", "Multiply", "Pair", "Pool", "PoolValues", "Rescale", "Score", "ScoreSpikes", "ScoreValues",
    "Store", "Sum", "SumHeads", "SumValues", "Weigh", "WeighSpikes", "WeighValues", "Window", "mask_bytes", "words_of",
]  # fmt: skip
