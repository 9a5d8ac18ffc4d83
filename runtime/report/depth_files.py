"""Pictures of how deep tokens go, as STAS draws them (Fig. 5a, 7): over the input image, timestep by timestep."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray

from isa.files import write_whole
from runtime.depth import Depths
from runtime.report.write import make_directory

DRAWN = 6
"""Inputs that are drawn."""


def write_depths(folder: Path, title: str, depths: Depths, images: NDArray[np.float32]) -> list[Path]:
    """depth.csv (tokens kept by input, block and timestep) and depth.svg, of images [B, C, H, W] or events."""
    make_directory(folder)
    written = [folder / "depth.csv", folder / "depth.svg"]
    write_whole(written[0], as_csv(depths).encode())
    write_whole(written[1], as_svg(depths, title, images[:DRAWN]))
    return written


def as_csv(depths: Depths) -> str:
    """A row an input and block: how many of its tokens go through at each timestep; measured on the emulator."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    steps, tokens = depths.kept.shape[2:]
    writer.writerow(["input", "block", "tokens", *(f"kept at t={step}" for step in range(steps))])
    for number, blocks in enumerate(depths.kept):
        for name, kept in zip(depths.blocks, blocks, strict=True):
            writer.writerow([number, name, tokens, *kept.sum(axis=1).tolist()])
    return text.getvalue()


def as_svg(depths: Depths, title: str, images: NDArray[np.float32]) -> bytes:
    """An input a row: the image, then its depth at each timestep; the same numbers give the same bytes."""
    steps, depth = depths.kept.shape[2], depths.depth
    with rc_context({"svg.hashsalt": "cstep", "svg.fonttype": "none"}):
        figure = Figure(figsize=(1.6 * (steps + 1) + 1, 1.6 * len(images) + 0.8), layout="constrained")
        axes = figure.subplots(len(images), steps + 1, squeeze=False)
        shown = None
        for row, image, maps in zip(axes, images, depth, strict=False):
            picture = _picture(image)
            height, width = picture.shape[:2]
            row[0].imshow(picture, cmap="gray", interpolation="nearest")
            for step, (axis, tokens) in enumerate(zip(row[1:], maps, strict=True)):
                axis.imshow(picture, cmap="gray", interpolation="nearest")
                shown = axis.imshow(
                    tokens.reshape(depths.rows, depths.columns), vmin=0, vmax=depths.most, cmap="viridis", alpha=0.6,
                    extent=(-0.5, width - 0.5, height - 0.5, -0.5), interpolation="nearest",
                )  # fmt: skip
                axis.set_title(f"t={step}: mean {tokens.mean():.2f}", fontsize=7)
        for axis in axes.flat:
            axis.set_axis_off()
        if shown is not None:
            figure.colorbar(shown, ax=axes, label=f"blocks that a token goes through, of {depths.most}; measured")
        figure.suptitle(title, fontsize=9)
        made = io.BytesIO()
        figure.savefig(made, format="svg", metadata={"Date": None})
    return made.getvalue()


def _picture(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """[H, W, 3] or [H, W] between 0 and 1; events are summed over timesteps and polarities."""
    if image.ndim == 4:
        image = image.sum(axis=(0, 1))[None]
    low, high = float(image.min()), float(image.max())
    scaled = (image - low) / (high - low) if high > low else np.zeros_like(image)
    return scaled.transpose(1, 2, 0) if len(scaled) == 3 else scaled.mean(axis=0)
