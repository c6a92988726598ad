"""Reading: the right array, or an error that names the file."""

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from segvid.data.reading import (
    IGNORED,
    UNKNOWN,
    DataError,
    identity_table,
    map_labels,
    read_image,
    read_mask,
    read_stored_image,
    voc_palette,
)
from segvid.errors import UserError

IDS = np.array([[0, 1, 2], [20, 254, 255]], dtype=np.uint8)
COLOURS = [(0, 0, 0), (128, 0, 0), (0, 128, 0)]


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def png(path: Path, chunks: list[tuple[bytes, bytes]]) -> Path:
    content = b"\x89PNG\r\n\x1a\n"
    for name, inside in [*chunks, (b"IEND", b"")]:
        content += struct.pack(">I", len(inside)) + name + inside + struct.pack(">I", zlib.crc32(name + inside))
    path.write_bytes(content)
    return path


def grey_png(path: Path, bits: int, rows: list[bytes], width: int) -> Path:
    """A grey PNG of 2 or 4 bits a pixel, which Pillow reads but does not write."""
    header = struct.pack(">IIBBBBB", width, len(rows), bits, 0, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row for row in rows))
    return png(path, [(b"IHDR", header), (b"IDAT", content)])


# Images


def test_images_are_rgb_whatever_the_file_holds(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", rgb)), rgb)
    alpha = np.dstack([rgb, np.full((5, 7), 9, dtype=np.uint8)])
    np.testing.assert_array_equal(read_image(save(tmp_path / "b.png", alpha)), rgb)
    grey = read_image(save(tmp_path / "c.png", rgb[..., 0]))
    np.testing.assert_array_equal(grey, np.repeat(rgb[..., :1], 3, axis=2))
    Image.fromarray(rgb).convert("CMYK").save(tmp_path / "d.jpg")
    assert read_image(tmp_path / "d.jpg").shape == (5, 7, 3)
    palette = Image.fromarray(IDS)
    palette.putpalette([value for colour in voc_palette(256) for value in colour])
    palette.save(tmp_path / "e.png")
    np.testing.assert_array_equal(read_image(tmp_path / "e.png"), np.array(voc_palette(256), dtype=np.uint8)[IDS])


def test_exif_orientation_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "a.jpg", np.zeros((5, 7, 3), dtype=np.uint8), exif=exif)
    assert cv2.imread(str(path)).shape == (7, 5, 3)  # what OpenCV would do
    assert read_image(path).shape == (5, 7, 3)


@pytest.mark.parametrize("name", ["grey.png", "rgb.png", "rgba.png", "rgb.tif", "float.tif"])
def test_images_of_16_bits_are_refused(tmp_path: Path, name: str) -> None:
    channels = {"rgb": (3,), "rgba": (4,)}.get(name.split(".")[0], ())
    pixels = np.full((8, 8, *channels), 1000, dtype=np.float32 if name.startswith("float") else np.uint16)
    cv2.imwrite(str(tmp_path / name), pixels)
    with pytest.raises(DataError, match=rf"{name}: has more than 8 bits a channel \(mode .*\)\. Convert it to 8-bit"):
        read_image(tmp_path / name)


@pytest.mark.parametrize("read", [read_image, read_mask])
def test_files_that_are_no_images(tmp_path: Path, read: object) -> None:
    assert callable(read)
    with pytest.raises(DataError, match=r"missing\.png: there is no such file"):
        read(tmp_path / "missing.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(DataError, match=r"text\.png: is not an image"):
        read(tmp_path / "text.png")
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"empty\.png: is not an image"):
        read(tmp_path / "empty.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(DataError, match=r"folder\.png: cannot be read"):
        read(tmp_path / "folder.png")


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_truncated_images(tmp_path: Path, ending: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(tmp_path / f"half.{ending}", noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=rf"half\.{ending}: cannot be read as an image \("):
        read_image(path)


def test_a_picture_beyond_the_limit_of_pillow_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "large.png", np.zeros((64, 64), dtype=np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    for read in (read_image, read_mask):
        with pytest.raises(DataError) as caught:
            read(path)
        assert str(caught.value) == f"{path}: has more pixels than are read from one file (4,000). Cut it into pieces."


@pytest.mark.parametrize("exif", [b"garbage", b"MM", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x02ab\0\0\0\0\0\0"])
def test_a_broken_exif_counts_as_none(tmp_path: Path, exif: bytes) -> None:
    """The last has an orientation that is the word "ab"."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 4, 3, 8, 0, 0, 0, 0)), (b"eXIf", exif)]
    path = png(tmp_path / "a.png", [*chunks, (b"IDAT", zlib.compress(bytes(15)))])
    image, orientation = read_stored_image(path)
    assert (image.shape, orientation) == ((3, 4, 3), 1)
    assert read_image(path, upright=True).shape == (3, 4, 3)


# Masks


def test_palette_masks_keep_their_indices(tmp_path: Path) -> None:
    image = Image.fromarray(IDS)
    image.putpalette([value for colour in voc_palette(256) for value in colour])
    image.save(tmp_path / "mask.png")
    grey = cv2.imread(str(tmp_path / "mask.png"), cv2.IMREAD_GRAYSCALE)
    assert not np.array_equal(grey, IDS)  # the trap
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), IDS)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png", COLOURS), IDS)


def test_masks_of_few_bits(tmp_path: Path) -> None:
    image = Image.fromarray(IDS[:1])
    image.putpalette([value for colour in voc_palette(4) for value in colour])
    image.save(tmp_path / "two.png", bits=2)
    np.testing.assert_array_equal(read_mask(tmp_path / "two.png"), IDS[:1])
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "one.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "one.png"), [[1, 0]])
    four = grey_png(tmp_path / "four.png", 4, [b"\x01\x2f", b"\xa0\x03"], 4)
    np.testing.assert_array_equal(read_mask(four), [[0, 1, 2, 15], [10, 0, 0, 3]])
    grey = grey_png(tmp_path / "grey.png", 2, [b"\x1b"], 4)
    np.testing.assert_array_equal(read_mask(grey), [[0, 1, 2, 3]])


def test_grey_and_16_bit_masks(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_mask(save(tmp_path / "grey.png", IDS)), IDS)
    deep = read_mask(save(tmp_path / "deep.png", IDS.astype(np.uint16)))
    np.testing.assert_array_equal(deep, IDS)
    assert deep.dtype == np.uint8
    with pytest.raises(DataError, match=r"large\.png: holds label ids from 0 to 300; ids go from 0 to 255"):
        read_mask(save(tmp_path / "large.png", np.array([[0, 300]], dtype=np.uint16)))
    with pytest.raises(DataError, match=r"float\.tif: holds fractions"):
        read_mask(save(tmp_path / "float.tif", IDS.astype(np.float32)), COLOURS)


def test_masks_in_colours(tmp_path: Path) -> None:
    ids = np.array([[0, 1], [2, 255]], dtype=np.uint8)
    path = save(tmp_path / "rgb.png", np.array(voc_palette(256), dtype=np.uint8)[ids])
    np.testing.assert_array_equal(read_mask(path, COLOURS), ids)
    with pytest.raises(DataError, match=r"rgb\.png: is in colours \(mode RGB\), not label ids\. Give the palette"):
        read_mask(path)
    with pytest.raises(DataError, match=r"rgb\.png: has 1 colours that the palette does not have, such as \[\(0, 128"):
        read_mask(path, COLOURS[:2])
    # a class may have the colour of ignored pixels
    np.testing.assert_array_equal(read_mask(path, [*COLOURS, (224, 224, 192)]), [[0, 1], [2, 3]])


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "JPEG2000", "TIFF"])
def test_a_lossy_mask_is_refused_whatever_its_name(tmp_path: Path, kind: str) -> None:
    """Grey ids: half of them are others, but ids of classes still."""
    ids = np.random.default_rng(0).integers(0, 21, (32, 32), dtype=np.uint8)
    options = {"compression": "jpeg"} if kind == "TIFF" else {}
    path = save(tmp_path / "mask.png", ids, format=kind, **options)
    for palette in (None, COLOURS):
        with pytest.raises(DataError, match=rf"mask\.png: is a lossy {kind}, .* Save the mask as PNG again"):
            read_mask(path, palette)
    assert read_image(path).shape == (32, 32, 3)  # as an image it is as good as any


@pytest.mark.parametrize(("kind", "options"), [("WEBP", {"lossless": True}), ("TIFF", {}), ("BMP", {}), ("GIF", {})])
def test_a_lossless_mask_is_read_whatever_its_name(tmp_path: Path, kind: str, options: dict[str, bool]) -> None:
    ids = np.random.default_rng(0).integers(0, 3, (32, 32))
    path = save(tmp_path / "mask.png", np.array(COLOURS, dtype=np.uint8)[ids], format=kind, **options)
    if kind != "GIF":  # which has a palette, in an order of its own
        np.testing.assert_array_equal(read_mask(path, COLOURS), ids)
    assert read_mask(path, COLOURS).shape == ids.shape


# Labels


def test_identity_table_keeps_classes_and_255(tmp_path: Path) -> None:
    table = identity_table(21)
    np.testing.assert_array_equal(table[:21], np.arange(21))
    assert table[255] == IGNORED
    assert (table[21:255] == UNKNOWN).all()
    mask = np.array([[0, 20, 255]], dtype=np.uint8)
    np.testing.assert_array_equal(map_labels(mask, table, tmp_path), mask)


def test_unknown_ids_name_the_file_and_the_ids() -> None:
    with pytest.raises(DataError) as caught:
        map_labels(IDS, identity_table(20), Path("a/mask.png"))
    assert str(caught.value).startswith("a/mask.png: has the label ids [20, 254], which the data set does not know")
    assert "20 classes have ids 0 to 19" in str(caught.value)


def test_id_254_is_a_class_for_nobody() -> None:
    identity_table(254)
    with pytest.raises(UserError, match="255 classes are too many"):
        identity_table(255)


def test_voc_palette_has_the_published_colours() -> None:
    palette = voc_palette(256)
    assert palette[:5] == [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)]
    assert palette[15] == (192, 128, 128)  # person
    assert palette[20] == (0, 64, 128)  # tvmonitor
    assert palette[255] == (224, 224, 192)
    assert len(set(palette)) == 256


def test_errors_keep_their_sentence_across_processes() -> None:
    error = DataError(Path("a.png"), "is bad.")
    printed = f'Caught DataError in worker.\nTraceback:\n  File "x"\nsegvid.data.reading.DataError: {error}\n'
    assert str(DataError(printed)) == "a.png: is bad."
    assert str(UserError("Traceback\nsegvid.errors.UserError: a: b")) == "a: b"
    assert str(UserError("one\ntwo")) == "one\ntwo"
