"""Datasets: every source gives the same images, and everything that is wrong with one is said in a line."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from numpy.typing import NDArray
from PIL import Image

from isa.errors import CStepError
from runtime.dataset import Dataset, load_dataset
from runtime.stored import stored

SHAPE = (3, 4, 6)
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.5, 1.0)


def pictures(count: int = 5) -> NDArray[np.uint8]:
    """Colour images [B, 3, 4, 6] of noise."""
    return np.random.default_rng(7).integers(0, 256, (count, *SHAPE), dtype=np.uint8)


def png(pixels: NDArray[Any], mode: str | None = None) -> bytes:
    """[C, H, W] as the bytes of a PNG."""
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    stream = io.BytesIO()
    (image.convert(mode) if mode else image).save(stream, "PNG")
    return stream.getvalue()


def write_parquet(path: Path, cells: list[bytes | None], **columns: Any) -> Path:
    """The hub's layout: img {bytes, path}, and whatever other columns."""
    images = [None if cell is None else {"bytes": cell, "path": "x.png"} for cell in cells]
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    table = pyarrow.table({"img": pyarrow.array(images, kind), **columns})
    pyarrow.parquet.write_table(table, path, row_group_size=2)
    return path


def load(source: Path | str, **options: Any) -> Dataset:
    return load_dataset(str(source), **{"shape": SHAPE, "mean": MEAN, "std": STD, **options})


def refused(source: Path | str, **options: Any) -> str:
    with pytest.raises(CStepError) as error:
        load(source, **options)
    assert "\n" not in str(error.value)
    return str(error.value).replace(str(source), "SOURCE")


def normalised(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (MEAN, STD))
    return (pixels.astype(np.float32) / np.float32(255) - mean) / std


def test_every_source_gives_the_same_images(tmp_path: Path) -> None:
    pixels, labels = pictures(), np.array([1, 0, 1, 0, 0])
    cells: list[bytes | None] = [png(image) for image in pixels]
    write_parquet(tmp_path / "a.parquet", cells, label=labels)
    np.savez(tmp_path / "a.npz", x=pixels, y=labels)
    for number, (label, image) in enumerate(zip(labels, pixels, strict=True)):
        folder = tmp_path / "photos" / ("ant", "bee")[label]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(png(image))
    (tmp_path / "photos" / "ant" / "notes.txt").touch()
    (tmp_path / "photos" / ".cache").mkdir()

    table, arrays, photos = load(tmp_path / "a.parquet"), load(tmp_path / "a.npz"), load(tmp_path / "photos")
    order = np.argsort(labels, kind="stable")
    for dataset in (table, arrays, photos):
        assert dataset.labels is not None
        assert dataset.pixels.dtype == np.uint8
        assert (dataset.labels.dtype, dataset.shape, len(dataset)) == (np.int64, SHAPE, 5)
    assert table.labels is not None
    assert photos.labels is not None
    assert table.digest == arrays.digest != photos.digest
    assert np.array_equal(table.images, normalised(pixels))
    assert np.array_equal(table.labels, labels)
    assert np.array_equal(photos.images, normalised(pixels)[order])
    assert np.array_equal(photos.labels, labels[order])
    assert (table.name, photos.name) == ("a.parquet", "photos")


def test_a_folder_of_splits(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("test", 2)):
        (tmp_path / split / "ant").mkdir(parents=True)
        for number, image in enumerate(pictures(count)):
            (tmp_path / split / "ant" / f"{number}.PNG").write_bytes(png(image))
    assert len(load(tmp_path, split="train")) == 3
    assert len(load(tmp_path, split="test")) == 2


def test_other_column_names_and_no_labels(tmp_path: Path) -> None:
    images = pyarrow.array([{"bytes": png(image)} for image in pictures()])
    pyarrow.parquet.write_table(pyarrow.table({"image": images, "fine_label": [0, 1, 2, 3, 4]}), tmp_path / "a.parquet")
    labels = load(tmp_path / "a.parquet").labels
    assert labels is not None
    assert labels.tolist() == [0, 1, 2, 3, 4]
    pyarrow.parquet.write_table(pyarrow.table({"image": images}), tmp_path / "b.parquet")
    assert load(tmp_path / "b.parquet").labels is None


def test_floating_point_images_are_taken_as_they_are(tmp_path: Path) -> None:
    images = np.random.default_rng(1).normal(size=(4, 4, 6))
    np.savez(tmp_path / "a.npz", x=images)
    dataset = load(tmp_path / "a.npz", shape=(1, 4, 6))
    assert dataset.labels is None
    assert dataset.images.dtype == np.float32
    assert np.array_equal(dataset.images, images.astype(np.float32)[:, None])


def test_without_normalisation_pixels_are_scaled(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=pictures())
    dataset = load_dataset(str(tmp_path / "a.npz"))
    assert np.array_equal(dataset.images, pictures().astype(np.float32) / np.float32(255))


def test_batches_and_taking(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=pictures(), y=np.arange(5))
    dataset = load(tmp_path / "a.npz")
    assert np.array_equal(np.concatenate([dataset.batch(0, 2), dataset.batch(2, 9)]), dataset.images)
    assert np.array_equal(dataset.take(2).images, dataset.images[:2])
    some, same = dataset.take(3, seed=1), dataset.take(3, seed=1)
    assert some.digest == same.digest != dataset.take(3, seed=2).digest
    assert some.labels is not None
    assert len(set(some.labels.tolist())) == 3
    assert np.array_equal(some.images, dataset.images[some.labels])
    for count in (0, 6):
        with pytest.raises(CStepError, match=f"a.npz: {count} images asked for, it holds 5"):
            dataset.take(count)


def test_some_rows_are_those_of_the_whole(tmp_path: Path) -> None:
    images, labels = pictures(7), np.arange(7)
    table = pyarrow.table({"img": [{"bytes": png(image), "path": ""} for image in images], "label": labels})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    np.savez(tmp_path / "stored.npz", x=images, y=labels)
    np.savez_compressed(tmp_path / "compressed.npz", x=images.astype(np.float32), y=labels)
    np.savez(tmp_path / "by_column.npz", x=np.asfortranarray(images), y=labels)
    for label, image in enumerate(images):
        (tmp_path / f"photos/{label}").mkdir(parents=True)
        (tmp_path / f"photos/{label}/a.png").write_bytes(png(image))
    rows = [5, 0, 3, 6]
    for name in ("a.parquet", "stored.npz", "compressed.npz", "by_column.npz", "photos"):
        whole, some = load(tmp_path / name), load(tmp_path / name, rows=rows)
        assert np.array_equal(some.images, whole.images[rows]), name
        assert some.labels is not None and some.labels.tolist() == rows
        assert np.array_equal(some.fingerprints, whole.fingerprints[rows])
        assert stored(str(tmp_path / name), "test").count == len(whole)
    digits, some = (load("digits", shape=(1, 8, 8), mean=(0,), std=(1,), rows=each) for each in (None, rows))
    assert np.array_equal(some.images, digits.images[rows])
    np.savez(tmp_path / "short.npz", x=images, y=labels[:5])
    with pytest.raises(CStepError, match="y has 5 rows, not 7"):
        load(tmp_path / "short.npz", rows=rows)


def test_what_is_stored_has_a_digest(tmp_path: Path) -> None:
    (tmp_path / "photos/cat").mkdir(parents=True)
    (tmp_path / "photos/cat/a.png").write_bytes(png(pictures(1)[0]))
    found = {stored(str(tmp_path / "photos"), "test").digest, stored("digits", "test").digest}
    (tmp_path / "photos/cat/a.png").rename(tmp_path / "photos/cat/b.png")
    found |= {stored(str(tmp_path / "photos"), "test").digest, stored("digits:train", "test").digest}
    np.savez(tmp_path / "a.npz", x=pictures(3))
    found.add(stored(str(tmp_path / "a.npz"), "test").digest)
    assert len(found) == 5
    (tmp_path / "a.npz").write_bytes(b"PK nothing")
    with pytest.raises(CStepError, match=r"truncated, or not a \.npz"):
        stored(str(tmp_path / "a.npz"), "test")


def test_grey_images_fit_grey_and_colour_programs(tmp_path: Path) -> None:
    grey = pictures(1)[:, :1]
    path = write_parquet(tmp_path / "a.parquet", [png(grey[0])])
    assert np.array_equal(load(path).pixels, np.repeat(grey, 3, axis=1))
    assert np.array_equal(load(path, shape=(1, 4, 6), mean=(0,), std=(1,)).pixels, grey)
    assert load(path, shape=None, mean=None, std=None).shape == (1, 4, 6)


def test_digits_are_split_without_chance() -> None:
    train, test = (load_dataset("digits", split=split, shape=(1, 16, 16)) for split in ("train", "test"))
    assert (len(train), len(test)) == (1442, 355)
    assert train.labels is not None
    assert test.labels is not None
    assert np.bincount(test.labels).tolist() == [35, 36, 35, 36, 36, 36, 36, 35, 34, 36]
    assert test.digest == "39aa3ba513873496c3815b1c82e04c8d2131a56ada64cf1933acf2e25d5ee2f5"
    seen = {image.tobytes() for image in train.pixels}
    assert not any(image.tobytes() in seen for image in test.pixels)


def test_digits_are_enlarged_to_the_program() -> None:
    small = load_dataset("digits:test", split="train")
    large = load_dataset("digits:test", shape=(3, 20, 32))
    assert (small.name, small.shape, large.shape) == ("digits:test", (1, 8, 8), (3, 20, 32))
    assert small.images.max() == 1.0
    assert np.array_equal(large.pixels[:, 1, 0, ::4], small.pixels[:, 0, 0])
    assert np.array_equal(large.pixels[:, 2, -1, 3::4], small.pixels[:, 0, -1])


def test_sources_that_are_none(tmp_path: Path) -> None:
    assert refused(tmp_path / "no.parquet").startswith("SOURCE: no such dataset; give a .parquet")
    (tmp_path / "a.csv").touch()
    assert refused(tmp_path / "a.csv").startswith("SOURCE: not a dataset by its name; expected .parquet, .npz")
    assert refused(tmp_path) == "SOURCE: no class folder with images in it (.png, .jpg, .jpeg, .bmp, .webp)"
    for ending in ("parquet", "npz"):
        (tmp_path / f"bad.{ending}").write_bytes(b"PAR1 nothing of the kind")
        assert refused(tmp_path / f"bad.{ending}").startswith("SOURCE: truncated, or not a")
    assert refused("digits:validation") == "SOURCE: no such part; it has digits:train and digits:test"
    assert refused("digits", shape=(2, 8, 8)) == "SOURCE: grey, 8x8 and larger; the program takes 2x8x8"
    assert refused("digits", shape=(1, 4, 8)) == "SOURCE: grey, 8x8 and larger; the program takes 1x4x8"
    assert refused("digits", shape=(1, 8, 8)) == "SOURCE: 1 channels, but mean has 3 numbers and std 3"


def test_parquet_mistakes_name_the_row(tmp_path: Path) -> None:
    good, path = png(pictures(1)[0]), tmp_path / "a.parquet"
    small, deep = png(pictures(1)[0][:, :2]), png(np.zeros((1, 4, 6), np.uint16))
    cells: tuple[tuple[list[bytes | None], str], ...] = (
        ([good, good[:-30]], "SOURCE: row 1: unreadable image ("),
        ([good, good, b"no image"], "SOURCE: row 2: unreadable image ("),
        ([good, None], "SOURCE: row 1: no image bytes; expected the bytes of a PNG or JPEG"),
        ([good, small], "SOURCE: row 1: image 3x2x6, the program takes 3x4x6"),
        ([deep], "SOURCE: row 0: image of mode I;16; expected 8 bits per channel"),
        ([], "SOURCE: holds no image"),
    )
    for content, message in cells:
        assert refused(write_parquet(path, content)).startswith(message)
    write_parquet(path, [good])
    assert refused(path, shape=(1, 4, 6)) == "SOURCE: row 0: image 3x4x6, the program takes 1x4x6"
    write_parquet(path, [good, small])
    assert refused(path, shape=None) == "SOURCE: row 1: image 3x2x6, the first image is 3x4x6"
    for labels, message in (
        ([0, -1], "SOURCE: row 1: label -1; classes count from 0"),
        ([0.5, 1], "SOURCE: labels are float64 of shape 2; expected one whole number for each of the 2 images"),
        (["cat", "dog"], "SOURCE: labels are object of shape 2; expected one whole number for each of the 2 images"),
    ):
        assert refused(write_parquet(path, [good, good], label=labels)) == message
    pyarrow.parquet.write_table(pyarrow.table({"pixels": [1], "label": [1]}), path)
    assert refused(path) == "SOURCE: no column img or image; it has pixels, label"


def test_npz_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    broken = np.zeros((3, *SHAPE), np.float32)
    broken[1, 0, 2, 2] = np.nan
    too_large = np.full((1, *SHAPE), 1e300)
    for arrays, message in (
        ({"images": pictures()}, "SOURCE: no array x [B, C, H, W]; it has images"),
        ({"x": pictures().astype(np.int64)}, "SOURCE: x is int64; expected uint8 pixels or floating point images"),
        ({"x": pictures()[:, :2]}, "SOURCE: x is 5x2x4x6; the program takes B x 3x4x6"),
        ({"x": pictures()[:0]}, "SOURCE: x is 0x3x4x6; the program takes B x 3x4x6"),
        ({"x": pictures()[0, 0]}, "SOURCE: x is 4x6; the program takes B x 3x4x6"),
        ({"x": broken}, "SOURCE: row 1: x is not finite there (NaN or infinite in 1 images)"),
        ({"x": too_large}, "SOURCE: row 0: x is not finite there (NaN or infinite in 1 images)"),
        (
            {"x": pictures(), "y": np.arange(4)},
            "SOURCE: labels are int64 of shape 4; expected one whole number for each of the 5 images",
        ),
    ):
        np.savez(path, **arrays)
        assert refused(path) == message
    np.savez(path, x=np.array([{"an": "object"}]))
    assert refused(path).startswith("SOURCE: truncated, or not an .npz of plain arrays (Object arrays")


def test_an_unreadable_photo_is_named(tmp_path: Path) -> None:
    (tmp_path / "ant").mkdir()
    (tmp_path / "ant" / "1.jpg").write_text("no photo")
    assert refused(tmp_path).startswith("SOURCE/ant/1.jpg: unreadable image (")


def test_events_are_counts(tmp_path: Path) -> None:
    counts = np.arange(2 * 3 * 2 * 4 * 6, dtype=np.uint8).reshape(2, 3, 2, 4, 6)
    np.savez(tmp_path / "events.npz", x=counts, y=np.array([1, 0]))
    for shape in (None, (3, 2, 4, 6)):
        dataset = load_dataset(str(tmp_path / "events.npz"), shape=shape, mean=(0.5, 0.5), std=(2, 2))
        assert np.array_equal(dataset.images, counts.astype(np.float32))
        assert dataset.shape == (3, 2, 4, 6)
        assert dataset.take(1).shape == (3, 2, 4, 6)
    with pytest.raises(CStepError, match="the program takes B x 2x4x6"):
        load_dataset(str(tmp_path / "events.npz"), shape=(2, 4, 6))
    with pytest.raises(CStepError, match="digits: no events; the program takes 3x2x4x6"):
        load_dataset("digits", shape=(3, 2, 4, 6))
