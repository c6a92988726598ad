"""Reading of images and masks: one function each, which gives the right array or names the file and the reason."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from segvid.errors import UserError

Array = NDArray[np.uint8]

# A label id that the data set does not know; never a class, never the ignored id.
UNKNOWN = 254
IGNORED = 255

# Pillow stretches grey values of 2 and 4 bits to 0..255 as it reads them; label ids must not be stretched.
GREY_STEPS = {"L;2": 85, "L;4": 17}
DEEP = ("RGB;16", "RGBA;16", "RGBX;16", "LA;16", "CMYK;16")  # Pillow cuts these to 8 bits and gives no sign of it
VOID_COLOUR = (224, 224, 192)  # index 255 of VOC's palette, which VOC draws ignored pixels with
LOSSY = ("JPEG", "MPO", "JPEG2000", "AVIF")  # what a file is, whatever its name says


class DataError(UserError):
    """A file of the data set that cannot be used, and why."""

    def __init__(self, path: Path | str, reason: str | None = None) -> None:
        # Alone, the first argument is the whole sentence: so an error comes out of another process.
        super().__init__(str(path) if reason is None else f"{path}: {reason}")


def read_image(path: Path, *, upright: bool = False) -> Array:
    """An image as RGB, (H, W, 3) uint8.

    Args:
        path: of the image.
        upright: turn it as its EXIF orientation says. Masks are drawn on the stored pixels: data sets leave it.

    Raises:
        DataError: missing, truncated, not an image, or of more than 8 bits a channel.
    """
    image, stored = _open(path)
    if upright and _orientation(image) != 1:
        image = ImageOps.exif_transpose(image) or image
    return _rgb(image, stored, path)


def read_stored_image(path: Path) -> tuple[Array, int]:
    """An image as it is stored, and its EXIF orientation, 1 to 8; 1 is upright, and what a file without one has.

    Raises:
        DataError: see `read_image`.
    """
    image, stored = _open(path)
    return _rgb(image, stored, path), _orientation(image)


def read_mask(path: Path, palette: Sequence[Sequence[int]] | None = None) -> Array:
    """A mask as label ids, (H, W) uint8. Palette images give their indices, never their colours.

    Lossy files are refused, also where their name ends in ".png": they change the labels at every border.

    Args:
        path: a palette, grey or 16-bit image of ids, or an RGB image in the colours of `palette`.
        palette: RGB of every class, for RGB masks. VOC's colour of ignored pixels, (224, 224, 192), becomes 255.

    Raises:
        DataError: missing, truncated, not an image, lossy, in colours without a palette or that it lacks, or ids above
            255.
    """
    image, stored = _open(path)
    if _is_lossy(image, path):
        raise DataError(
            path,
            f"is a lossy {image.format}, whatever its name says: its labels are not those that were drawn. Save the "
            "mask as PNG again, from its source.",
        )
    if image.mode in ("P", "L"):
        ids8: Array = np.asarray(image)
        return ids8 // np.uint8(GREY_STEPS[stored]) if stored in GREY_STEPS else ids8
    if image.mode.startswith("I"):
        ids = np.asarray(image)
        if ids.max(initial=0) > IGNORED or ids.min(initial=0) < 0:
            raise DataError(path, f"holds label ids from {ids.min()} to {ids.max()}; ids go from 0 to 255.")
        return ids.astype(np.uint8)
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8)
    if image.mode == "F":
        raise DataError(path, "holds fractions (mode F), not label ids. Save the ids as an 8-bit image.")
    if palette is None:
        raise DataError(path, f"is in colours (mode {image.mode}), not label ids. Give the palette of the classes.")
    return _ids_from_colours(np.asarray(image.convert("RGB")), palette, path)


def map_labels(mask: Array, table: Array, path: Path) -> Array:
    """Label ids to class indices through a table of 256 entries.

    Raises:
        DataError: the mask has an id that the table maps to `UNKNOWN`.
    """
    mapped: Array = table[mask]
    if (mapped == UNKNOWN).any():
        unknown = np.unique(mask[mapped == UNKNOWN])[:5].tolist()
        known = np.flatnonzero(table < UNKNOWN)
        raise DataError(
            path,
            f"has the label ids {unknown}, which the data set does not know: its {len(known)} classes have ids "
            f"{known.min()} to {known.max()}, and 255 is ignored. Correct the mask or the list of classes.",
        )
    return mapped


def identity_table(num_classes: int) -> Array:
    """The table for masks that hold class indices: 0 to num_classes - 1 stay, 255 is ignored, the rest is unknown.

    Raises:
        UserError: there are more than 254 classes.
    """
    if num_classes > UNKNOWN:
        raise UserError(
            f"{num_classes} classes are too many: masks of 8 bits have room for {UNKNOWN} and the ignored id."
        )
    table = np.full(256, UNKNOWN, dtype=np.uint8)
    table[:num_classes] = np.arange(num_classes)
    table[IGNORED] = IGNORED
    return table


def voc_palette(num_colours: int) -> list[tuple[int, int, int]]:
    """The colour map of Pascal VOC: bit k of the channels comes from the bits 3k, 3k + 1, 3k + 2 of the index."""
    palette = []
    for index in range(num_colours):
        colour = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                colour[channel] |= ((index >> (3 * bit + channel)) & 1) << (7 - bit)
        palette.append((colour[0], colour[1], colour[2]))
    return palette


def colour_table(palette: Sequence[Sequence[int]]) -> Array:
    """The colours of all bytes of a mask, (256, 3): those of the classes, white for the ignored label and others."""
    table = np.full((256, 3), 255, dtype=np.uint8)
    table[: len(palette)] = np.array(palette, dtype=np.uint8).reshape(-1, 3)
    return table


def colour(mask: Array, palette: Sequence[Sequence[int]]) -> Array:
    """Class indices (H, W) in the colours of the palette, (H, W, 3)."""
    coloured: Array = colour_table(palette)[mask]
    return coloured


def palette_image(mask: Array, palette: Sequence[Sequence[int]]) -> Image.Image:
    """Class indices (H, W) as a palette image, which keeps them and shows the colours."""
    image = Image.fromarray(mask, mode="P")
    image.putpalette(colour_table(palette).tobytes())
    return image


def _open(path: Path) -> tuple[Image.Image, str]:
    """The image, and how the file stores its pixels in Pillow's words, such as "RGB;16B": a mode has no depth."""
    try:
        with Image.open(path) as image:
            stored = image.tile[0][3] if image.tile else image.mode
            image.load()
    except FileNotFoundError as error:
        raise DataError(path, "there is no such file.") from error
    except UnidentifiedImageError as error:
        raise DataError(path, "is not an image that can be read.") from error
    except Image.DecompressionBombError as error:
        limit = f"{2 * (Image.MAX_IMAGE_PIXELS or 0):,}"
        raise DataError(path, f"has more pixels than are read from one file ({limit}). Cut it into pieces.") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(path, f"cannot be read as an image ({error}).") from error
    if isinstance(stored, tuple):
        stored = stored[0] if stored else image.mode
    return image, stored if isinstance(stored, str) else image.mode


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1 where a camera or a program has written something else than one."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except (SyntaxError, ValueError):  # no EXIF but garbage
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _rgb(image: Image.Image, stored: str, path: Path) -> Array:
    if image.mode.startswith(("I", "F")) or stored.startswith(DEEP):
        raise DataError(path, f"has more than 8 bits a channel (mode {stored}). Convert it to 8-bit RGB first.")
    return np.asarray(image.convert("RGB"))


def _is_lossy(image: Image.Image, path: Path) -> bool:
    if image.format == "TIFF":
        return image.info.get("compression") in ("jpeg", "tiff_jpeg", "webp")
    if image.format == "WEBP":
        return b"VP8L" not in path.read_bytes()  # the chunk of the lossless form
    return image.format in LOSSY


def _ids_from_colours(colours: Array, palette: Sequence[Sequence[int]], path: Path) -> Array:
    packed = colours.astype(np.int32) @ np.array([65536, 256, 1], dtype=np.int32)
    mask = np.full(packed.shape, UNKNOWN, dtype=np.uint8)
    for index, (red, green, blue) in [(IGNORED, VOID_COLOUR), *enumerate(palette)]:
        mask[packed == red * 65536 + green * 256 + blue] = index
    unknown = np.unique(packed[mask == UNKNOWN])
    if unknown.size:
        first = [(int(c) >> 16, int(c) >> 8 & 255, int(c) & 255) for c in unknown[:3]]
        raise DataError(
            path, f"has {unknown.size} colours that the palette does not have, such as {first}. Correct either of them."
        )
    return mask
