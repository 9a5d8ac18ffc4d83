"""Labelled images from a file, a folder, or scikit-learn's digits, as the program takes them.

    cifar10-test.parquet   Hugging Face hub layout: `img` or `image` {bytes, path}, `label`
    inputs.npz             x [B, C, H, W] or [B, H, W], and y [B] where there are labels; events x [B, T, C, H, W]
    photos/                one folder per class, labels in the order of the folders' names
    digits, digits:train   1,797 handwritten digits, 8x8, enlarged to the program's image; a fifth is held out as `test`

Pixels stay bytes until a batch of them is asked for; a batch is scaled to 0..1, then normalised per channel. Floating
point images of an .npz are taken as they are: they are already what the model was trained on. Events are counts, and
are not scaled either.

Inputs are numbered by their rows in the source; where only some rows are asked for, only those are decoded.
"""

import hashlib
import io
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isa.errors import CStepError
from runtime.rows import npz_rows, parquet_rows

Rows = Sequence[int] | None  # which rows, in this order; None: all
Shape = tuple[int, ...]  # channels, height, width of an image; timesteps before them of events

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
GREY_MODES = ("1", "L", "LA")  # Pillow's names
COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
EVENT_RANK = 4
DIGITS_WHITE = 16
DIGITS_SIDE = 8


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images [B, C, H, W], or events [B, T, C, H, W], with labels [B], int64, or None where the source has none."""

    name: str
    pixels: NDArray[Any]  # uint8, or float32 taken as it is
    labels: NDArray[np.int64] | None
    white: int | None  # the pixel value that counts as 1.0; None: no scaling, no normalisation
    mean: tuple[float, ...]  # per channel
    std: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> Shape:
        """Channels, height, width of one image; timesteps before them of events."""
        return self.pixels.shape[1:]

    @property
    def images(self) -> NDArray[np.float32]:
        """All images at once, float32 [B, C, H, W]: four times the bytes of `pixels`."""
        return self.batch(0, len(self))

    @cached_property
    def digest(self) -> str:
        """sha256 of all that the program sees: pixels, normalisation, labels."""
        return digest_of(self.fingerprints)

    @cached_property
    def fingerprints(self) -> NDArray[np.uint8]:
        """sha256 of what the program sees of each input, uint8 [B, 32]."""
        about = f"{self.pixels.dtype} {self.shape} {self.white} {self.mean} {self.std}".encode()
        labels = np.full(len(self), -1, np.int64) if self.labels is None else self.labels
        found = np.empty((len(self), 32), np.uint8)
        for row, (pixels, label) in enumerate(zip(self.pixels, labels, strict=True)):
            digest = hashlib.sha256(about + int(label).to_bytes(8, "little", signed=True))
            digest.update(np.ascontiguousarray(pixels).data)
            found[row] = np.frombuffer(digest.digest(), np.uint8)
        return found

    def batch(self, start: int, stop: int) -> NDArray[np.float32]:
        """Images start..stop-1 (fewer at the end), float32 [b, C, H, W], normalised."""
        part = self.pixels[start:stop].astype(np.float32)
        if self.white is None:
            return part
        part /= np.float32(self.white)
        part -= np.array(self.mean, np.float32)[:, None, None]
        part /= np.array(self.std, np.float32)[:, None, None]
        return part

    def take(self, count: int, seed: int | None = None) -> "Dataset":
        """The first `count` images, or with a seed that many at random, none twice.

        Raises CStepError where there are fewer.
        """
        if not 1 <= count <= len(self):
            raise CStepError(f"{self.name}: {count} images asked for, it holds {len(self)}")
        return self.rows(slice(count) if seed is None else drawn(len(self), count, seed))

    def rows(self, chosen: Any) -> "Dataset":
        """Some inputs: a slice, or row numbers."""
        labels = None if self.labels is None else self.labels[chosen]
        return replace(self, pixels=self.pixels[chosen], labels=labels)


def digest_of(fingerprints: NDArray[np.uint8]) -> str:
    """A data set's digest, from its inputs' fingerprints."""
    return hashlib.sha256(np.ascontiguousarray(fingerprints).data).hexdigest()


def drawn(total: int, count: int, seed: int) -> NDArray[np.int64]:
    """Which `count` of `total` images are taken at random."""
    return np.random.default_rng(seed).permutation(total)[:count]


def load_dataset(
    source: str,
    *,
    split: str = "test",
    shape: Shape | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    rows: Rows = None,
) -> Dataset:
    """Read `source` (see the top of this file) for a program that takes images, or events, of `shape`.

    `split` chooses between the parts of `digits`, or the folder of that name where the source has one; a file is one
    split already. `rows` chooses some of that part, none twice. Without `shape` the first image decides. Without
    `mean` and `std` pixels are only scaled to 0..1.

    Raises CStepError naming file and row for what cannot be read, has another shape, or is not a finite number.
    """
    word, _, part = source.partition(":")
    path = Path(source)
    if shape is not None and len(shape) == EVENT_RANK and path.suffix != ".npz":
        raise CStepError(f"{source}: no events; the program takes {by(shape)}, from an .npz with x [B, T, C, H, W]")
    if word == "digits":
        name, (pixels, labels, white) = f"digits:{part or split}", read_digits(part or split, shape, rows)
    else:
        name, (pixels, labels, white) = path.name, reader(path)(split, shape, rows)
    channels = pixels.shape[-3]
    means = (0.0,) * channels if mean is None else tuple(mean)
    stds = (1.0,) * channels if std is None else tuple(std)
    if white is not None and not len(means) == len(stds) == channels:
        raise CStepError(f"{source}: {channels} channels, but mean has {len(means)} numbers and std {len(stds)}")
    return Dataset(name, pixels, labels, white, means, stds)


Content = tuple[NDArray[Any], NDArray[np.int64] | None, int | None]  # pixels, labels, white


def reader(path: Path) -> Callable[[str, Shape | None, Rows], Content]:
    """What reads this path, given split, shape and rows."""
    if path.is_dir():
        return lambda split, shape, rows: read_folder(path / split if (path / split).is_dir() else path, shape, rows)
    if not path.exists():
        raise CStepError(f"{path}: no such dataset; give a .parquet, an .npz, a folder of class folders, or digits")
    if path.suffix == ".parquet":
        return lambda _, shape, rows: read_parquet(path, shape, rows)
    if path.suffix == ".npz":
        return lambda _, shape, rows: read_npz(path, shape, rows)
    raise CStepError(f"{path}: not a dataset by its name; expected .parquet, .npz, or a folder of class folders")


def read_parquet(path: Path, shape: Shape | None, rows: Rows) -> Content:
    """The hub's image layout; CIFAR-100 calls its labels fine_label."""
    import pyarrow
    import pyarrow.parquet

    try:
        table: Any = pyarrow.parquet.ParquetFile(path)
        columns: list[str] = table.schema_arrow.names
        images = next((column for column in ("img", "image") if column in columns), None)
        labels = next((column for column in ("label", "fine_label") if column in columns), None)
        if images is None:
            raise CStepError(f"{path}: no column img or image; it has {', '.join(columns)}")
        read = [images] if labels is None else [images, labels]
        cells: Any = table.read(read) if rows is None else parquet_rows(table, read, rows)
    except (pyarrow.ArrowException, OSError) as error:
        raise CStepError(f"{path}: truncated, or not a parquet file ({first_line(error)})") from None

    field = table.schema_arrow.field(images).type
    numbers = range(len(cells)) if rows is None else rows
    nested = pyarrow.types.is_struct(field) and "bytes" in {field.field(at).name for at in range(field.num_fields)}

    def files() -> Iterator[tuple[str, bytes | None]]:
        for row, cell in zip(numbers, cells[images], strict=True):
            value: Any = cell.as_py()
            content: Any = value["bytes"] if value and nested else value
            yield f"{path}: row {row}", content if isinstance(content, bytes) else None

    pixels = decode_all(str(path), files(), shape)
    return pixels, None if labels is None else as_labels(path, cells[labels].to_numpy(), numbers), 255


def read_folder(path: Path, shape: Shape | None, rows: Rows) -> Content:
    """One folder per class, in the order of their names; files that are no images by name are left alone."""
    files = folder_files(path)
    files = files if rows is None else [files[row] for row in rows]
    pixels = decode_all(str(path), ((str(file), file.read_bytes()) for _, file in files), shape)
    return pixels, np.array([label for label, _ in files], np.int64), 255


def folder_files(path: Path) -> list[tuple[int, Path]]:
    """Label and file of every image. Raises CStepError where there is none."""
    classes = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    files = [
        (label, file)
        for label, folder in enumerate(classes)
        for file in sorted(folder.iterdir())
        if file.suffix.lower() in IMAGE_ENDINGS and not file.name.startswith(".")
    ]
    if not files:
        raise CStepError(f"{path}: no class folder with images in it ({', '.join(IMAGE_ENDINGS)})")
    return files


def decode_all(source: str, files: Iterable[tuple[str, bytes | None]], shape: Shape | None) -> NDArray[np.uint8]:
    """Encoded images, each with its place for errors, as uint8 [B, C, H, W]."""
    decoded: list[NDArray[np.uint8]] = []
    takes = "the program takes"
    for where, content in files:
        if content is None:
            raise CStepError(f"{where}: no image bytes; expected the bytes of a PNG or JPEG")
        decoded.append(decode(where, content, shape, takes))
        if shape is None:
            channels, height, width = decoded[0].shape
            shape, takes = (channels, height, width), "the first image is"
    if not decoded:
        raise CStepError(f"{source}: holds no image")
    return np.stack(decoded)


def decode(where: str, content: bytes, shape: Shape | None, takes: str) -> NDArray[np.uint8]:
    """One PNG or JPEG as uint8 [C, H, W]. Grey is repeated for a colour program; nothing else is adapted."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            mode = image.mode
            colour = mode in COLOUR_MODES or (mode in GREY_MODES and shape is not None and shape[0] == 3)
            pixels = np.asarray(image.convert("RGB" if colour else "L"), np.uint8)
    except Exception as error:  # a damaged image can make the decoders fail in any way; the mistake is the image
        raise CStepError(f"{where}: unreadable image ({first_line(error)})") from None
    if mode not in GREY_MODES + COLOUR_MODES:
        raise CStepError(f"{where}: image of mode {mode}; expected 8 bits per channel")
    pixels = pixels.transpose(2, 0, 1) if colour else pixels[None]
    if shape is not None and pixels.shape != shape:
        raise CStepError(f"{where}: image {by(pixels.shape)}, {takes} {by(shape)}")
    return pixels


def read_npz(path: Path, shape: Shape | None, rows: Rows) -> Content:
    """Arrays x and y. uint8 images are scaled and normalised like any other; floating point and events are not."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays: dict[str, NDArray[Any]] = {
                key: file[key] if rows is None else npz_rows(file, key, rows) for key in file.files if key in ("x", "y")
            }
            found = ", ".join(file.files)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise CStepError(f"{path}: truncated, or not an .npz of plain arrays ({first_line(error)})") from None
    if "x" not in arrays:
        raise CStepError(f"{path}: no array x [B, C, H, W]; it has {found or 'none'}")
    x = arrays["x"]
    if x.dtype != np.uint8 and x.dtype.kind != "f":
        raise CStepError(f"{path}: x is {x.dtype}; expected uint8 pixels or floating point images")
    images = x[:, None] if x.ndim == 3 else x
    takes = by(shape) if shape else "CxHxW"
    rank = len(shape) if shape else images.ndim - 1
    if (
        images.ndim != rank + 1
        or images.ndim not in (4, 5)
        or images.size == 0
        or shape not in (None, images.shape[1:])
    ):
        raise CStepError(f"{path}: x is {by(x.shape)}; the program takes B x {takes}")
    numbers = range(len(images)) if rows is None else rows
    labels = as_labels(path, arrays["y"], numbers) if "y" in arrays else None
    if images.dtype == np.uint8 and rank < EVENT_RANK:
        return images, labels, 255
    with np.errstate(over="ignore"):  # what does not fit float32 becomes infinite, and is refused as such
        images = images.astype(np.float32)
    broken = np.flatnonzero(~np.isfinite(images).all(axis=tuple(range(1, images.ndim))))
    if broken.size:
        raise CStepError(
            f"{path}: row {numbers[broken[0]]}: x is not finite there (NaN or infinite in {broken.size} images)"
        )
    return images, labels, None


def as_labels(path: Path, labels: NDArray[Any], rows: Sequence[int]) -> NDArray[np.int64]:
    """Class numbers, one for each image of these rows."""
    if labels.dtype.kind not in "iu" or labels.shape != (len(rows),):
        raise CStepError(
            f"{path}: labels are {labels.dtype} of shape {by(labels.shape)}; expected one whole number for each of "
            f"the {len(rows)} images"
        )
    broken = np.flatnonzero(labels < 0)
    if broken.size:
        raise CStepError(f"{path}: row {rows[broken[0]]}: label {labels[broken[0]]}; classes count from 0")
    return labels.astype(np.int64)


def read_digits(split: str, shape: Shape | None, rows: Rows) -> Content:
    """scikit-learn's digits, each pixel 0..16, enlarged to its nearest neighbour.

    Held out as `test` is every fifth image of each class, in the data's own order: no random numbers, so every
    machine and every version holds out the same images.
    """
    from sklearn.datasets import load_digits  # pyright: ignore[reportUnknownVariableType]

    channels, height, width = shape or (1, DIGITS_SIDE, DIGITS_SIDE)
    if split not in ("train", "test"):
        raise CStepError(f"digits:{split}: no such part; it has digits:train and digits:test")
    if channels not in (1, 3) or min(height, width) < DIGITS_SIDE:
        raise CStepError(f"digits: grey, 8x8 and larger; the program takes {by((channels, height, width))}")
    data: Any = load_digits()
    labels = np.asarray(data.target, np.int64)
    held_out = np.zeros(len(labels), bool)
    for label in range(10):
        held_out[np.flatnonzero(labels == label)[4::5]] = True
    chosen = np.flatnonzero(held_out if split == "test" else ~held_out)
    chosen = chosen if rows is None else chosen[np.asarray(rows)]
    down = np.arange(height) * DIGITS_SIDE // height
    across = np.arange(width) * DIGITS_SIDE // width
    grey = np.asarray(data.images, np.uint8)[chosen][:, None, down[:, None], across]
    return np.repeat(grey, channels, axis=1), labels[chosen], DIGITS_WHITE


def by(shape: Sequence[int]) -> str:
    """`3x32x32`."""
    return "x".join(map(str, shape)) or "scalar"


def first_line(error: BaseException) -> str:
    """The first line of a library's message, or its kind where it has no words."""
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
