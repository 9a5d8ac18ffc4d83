"""Work of the PEs where they share the weight port word by word: everyone waits for the fullest word."""

from __future__ import annotations

from numba import njit

from runtime.fast.pairs import EMPTY_CYCLES, MERGE_CYCLES
from runtime.fast.places import WINDOW
from runtime.fast.scalar import load_u16, popcount
from runtime.fast.tokens import kept_pairs


@njit
def word_at(row, spikes, r, c, tap, word):
    """Word `word` of the input pixel under a tap of output pixel (r, c), 0 outside; `spikes` is the step's address."""
    y = r * row[WINDOW.stride] + tap // row[WINDOW.kernel_columns] - row[WINDOW.top]
    x = c * row[WINDOW.stride] + tap % row[WINDOW.kernel_columns] - row[WINDOW.left]
    inside = 0 <= y < row[WINDOW.input_rows] and 0 <= x < row[WINDOW.input_columns]
    if not inside or c >= row[WINDOW.columns]:
        return 0
    bits = load_u16(spikes + (y * row[WINDOW.input_columns] + x) * row[WINDOW.pixel_stride] + 2 * word)
    left = row[WINDOW.inputs] - 16 * word
    return bits & ((1 << left) - 1) if left < 16 else bits


@njit
def work_in_lockstep(row, spikes, share, by_word, sizes, kept):
    """Sum over rounds, taps and words of the most weight rows that any PE fetches, plus each round's own cycles.

    `by_word` (depthwise): one row for each word that is not zero, and nothing shared. `kept`, unless 0, is where the
    latched tokens lie: pixels are then moved together, and rounds end with the last pair that is left.
    """
    half = (row[WINDOW.columns] + 1) >> 1
    pairs, steps, total = row[WINDOW.rows] * half, row[WINDOW.steps], 0
    words, taps = (row[WINDOW.inputs] + 15) >> 4, row[WINDOW.kernel_rows] * row[WINDOW.kernel_columns]
    for first_step in range(0, steps, sizes.window):
        left = pairs
        if kept != 0:
            left = kept_pairs(kept, row[WINDOW.columns], first_step, min(sizes.window, steps - first_step))
        for first in range(0, left, sizes.pairs):
            merging = False
            for tap in range(taps):
                for word in range(words):
                    fullest = 0
                    for step in range(first_step, min(first_step + sizes.window, steps)):
                        place = spikes + step * row[WINDOW.step_stride]
                        for pair in range(first, min(first + sizes.pairs, pairs)):
                            r, c = pair // half, 2 * (pair % half)
                            one = word_at(row, place, r, c, tap, word)
                            right = word_at(row, place, r, c + 1, tap, word)
                            if by_word:
                                rows = (one != 0) + (right != 0)
                            else:
                                rows = popcount(one | right) if share else popcount(one) + popcount(right)
                            fullest = max(fullest, rows)
                            merging = merging or (share and one & right != 0)
                    total += fullest
            total += EMPTY_CYCLES + (MERGE_CYCLES if merging else 0)
    return total
