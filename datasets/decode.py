"""Decoding of an image file of any format into pixels of 8 bits, without executing anything in it."""

import functools
import os
import stat
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageColor, ImageFile, TiffImagePlugin, UnidentifiedImageError

from datasets.find import FORMATS, UNMARKED_FORMATS

WHITE = 65535  # white value of 16-bit images, unless the file or `data.white` gives another
PHOTOMETRIC, SAMPLE_FORMAT = 262, 339  # tags of TIFF
PAGED = ("TIFF", "GIF", "PNG", "WEBP", "AVIF", "MPO")  # formats that can have pages or frames
UNREAD_TIFF = (
    "a TIFF whose kind of values Pillow does not read: store it as 8- or 16-bit integers in grey or RGB, or as one "
    "channel of 32-bit floating point"
)
TRANSPOSES = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableError(Exception):
    """An image file that cannot be decoded; the message is the reason."""


@dataclass(frozen=True)
class DecodeOptions:
    """Size, channels and value range that image files are decoded to.

    Attributes:
        size: height and width; None for those of each file.
        num_channels: number of channels, 1 (grey), 3 (RGB) or 4 (RGB and alpha).
        background: colour that transparent parts are composited on, unless alpha is kept.
        white: value of white in 16-bit, 32-bit and floating-point images; None for that of their format.
    """

    size: int | None
    num_channels: int = 3
    background: str = "white"
    white: float | None = None


@dataclass(frozen=True)
class DecodeStats:
    """Statistics of decoded files.

    Attributes:
        transparent: number of images with parts that are not opaque.
        paged: number of files with more than one page or frame, of which the first is read.
        deep: number of images with 16 bits a channel whose format does not define which value is white.
        peak: largest value of the images counted in ``deep``.
        deep_colour: number of images counted in ``deep`` that have colours; Pillow reads their upper 8 bits.
        floating: number of floating-point images.
        float_peak: largest value of the floating-point images.
    """

    transparent: int = 0
    paged: int = 0
    deep: int = 0
    peak: int = 0
    deep_colour: int = 0
    floating: int = 0
    float_peak: float = 0.0

    def __add__(self, other: "DecodeStats") -> "DecodeStats":
        """Return the statistics of both sets of files."""
        return DecodeStats(
            self.transparent + other.transparent,
            self.paged + other.paged,
            self.deep + other.deep,
            max(self.peak, other.peak),
            self.deep_colour + other.deep_colour,
            self.floating + other.floating,
            max(self.float_peak, other.float_peak),
        )


def without_warnings() -> warnings.catch_warnings:
    """Return a context that ignores the warnings of decoders, which are about files that they can read."""
    return warnings.catch_warnings(action="ignore")


def read_image(path: Path, size: int | None, num_channels: int = 3) -> np.ndarray:
    """Read an image file as uint8 (size, size, num_channels), with a white background; see ``decode``.

    Raises:
        UnreadableError: if the file is damaged, truncated, not an image, or absurdly large.
    """
    with without_warnings():
        return decode(path, DecodeOptions(size, num_channels))[0]


def decode(path: Path, options: DecodeOptions) -> tuple[np.ndarray, DecodeStats]:
    """Read an image file as its central square, resized with antialiasing (Lanczos), with its statistics.

    Without a size in ``options`` the result is the whole image at its own size, (H, W, num_channels). The EXIF
    orientation is applied, the colours are converted to those of ``options``, and the first of several pages or frames
    is read. The format is determined from the contents, not from the name.

    Args:
        path: path of the file.
        options: size, channels and value range of the result.

    Raises:
        UnreadableError: if the file is damaged, truncated, not an image, absurdly large, or has values whose white is
            not known.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UnreadableError("not a regular file")
        return _decode(path, options)
    except UnreadableError:
        raise
    except UnidentifiedImageError as error:  # whose message names the file
        raise UnreadableError(UNREAD_TIFF if _is_unread_tiff(path) else "cannot identify image file") from error
    except Exception as error:  # decoders raise exceptions of many types on damaged files
        raise UnreadableError(" ".join(str(error).split()) or type(error).__name__) from error


def _decode(path: Path, options: DecodeOptions) -> tuple[np.ndarray, DecodeStats]:
    """Decode an image file, see ``decode``; exceptions of the decoders pass through."""
    mode = "L" if options.num_channels == 1 else "RGB"
    # Given an open file: Pillow memory-maps a file that it opens itself, and then shears a TIFF that is transposed.
    with open(path, "rb") as opened, Image.open(opened, formats=_formats(path.suffix.lower())) as file:
        rawmodes, stated = _raw_modes(file)
        file.load()
        orientation = _orientation(file)
        image, alpha = _split_alpha(file, path, rawmodes)
        peak: int | float | None = None
        floating = image.mode == "F"
        tags = file.tag_v2 if isinstance(file, TiffImagePlugin.TiffImageFile) else {}
        if image.mode == "L" and tags.get(SAMPLE_FORMAT) in (2, (2,)):
            raise UnreadableError("its values are signed integers of 8 bits")
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            image, peak = _scale_to_8_bits(image, file, rawmodes, stated, options.white)
        elif image.mode in ("L", "LA", "RGB", "RGBA") and any(";16" in rawmode for rawmode in rawmodes):
            peak = _upper_bits(image, options.white)
        if image.mode == "LAB":
            image = _lab_to_srgb().apply(image)
        deep = int(peak) if peak is not None and not floating else None
        deep_colour = deep is not None and image.mode != "L"
        if image.mode != mode or file.format not in ("JPEG", "PNG"):  # else a copy: _has_more_frames seeks in the file
            image = image.convert(mode)
        paged = file.format in PAGED and _has_more_frames(file)
    transparent = alpha is not None and alpha.getextrema()[0] != 255
    if options.num_channels == 4:
        image.putalpha(255 if alpha is None else alpha)
    elif alpha is not None and transparent:
        background = Image.new(mode, image.size, ImageColor.getcolor(options.background, mode))
        image = Image.composite(image, background, alpha)
    if orientation in TRANSPOSES:
        image = image.transpose(TRANSPOSES[orientation])
    if options.size is not None:
        image = _center_crop(image, options.size)
    pixels = np.asarray(image).reshape(image.height, image.width, options.num_channels)
    float_peak = peak if floating and peak is not None else 0.0
    return pixels, DecodeStats(transparent, paged, deep is not None, deep or 0, deep_colour, floating, float_peak)


def _is_unread_tiff(path: Path) -> bool:
    """Return whether a file is an intact TIFF whose bits, sample format or number of channels Pillow does not read."""
    try:
        with open(path, "rb") as opened, TiffImagePlugin.TiffImageFile(opened):
            return False
    except SyntaxError as error:  # Pillow distinguishes these files only by the message
        return str(error) in ("unknown pixel mode", "Invalid value for samples per pixel")
    except Exception:  # the file is damaged
        return False


@functools.cache
def _formats(suffix: str) -> tuple[str, ...]:
    """Return the decoders to try on a file with this suffix, among those that this Pillow was built with."""
    Image.init()
    by_name = [name for name, suffixes in UNMARKED_FORMATS.items() if suffix in suffixes]
    return tuple(name for name in (*FORMATS, *by_name) if name in Image.OPEN)


def _raw_modes(file: ImageFile.ImageFile) -> tuple[list[str], bool]:
    """Return the raw modes by which Pillow will unpack an image, and whether the file states how many bits are used.

    Only PGM, with a largest value below that of its bits, and TIFF of 12 bits state that 16 bits have fewer in use.
    """
    parts = [tile[3] if isinstance(tile[3], tuple) else (tile[3],) for tile in file.tile]
    rawmodes = [part for arguments in parts for part in arguments if isinstance(part, str)]
    maxval = next((part for arguments in parts for part in arguments[1:2] if file.format == "PPM"), 65535)
    return rawmodes, maxval not in (0, 65535) or "I;12" in rawmodes


def _orientation(file: ImageFile.ImageFile) -> int | None:
    """Return the EXIF orientation, or None if there is none or the EXIF block is broken."""
    with suppress(Exception):
        return file.getexif().get(ExifTags.Base.Orientation)
    return None


def _split_alpha(file: ImageFile.ImageFile, path: Path, rawmodes: list[str]) -> tuple[Image.Image, Image.Image | None]:
    """Return an image without its alpha channel, and that channel, 255 where opaque; None if it has none."""
    if file.mode in ("P", "PA", "RGBa", "RGBA", "La", "LA") and file.has_transparency_data:
        image = file.convert("LA" if file.mode in ("La", "LA") else "RGBA")
        alpha = None if file.format == "TGA" and _alpha_is_unused(path) else image.getchannel("A")
        return image.convert(image.mode[:-1]), alpha
    transparent = file.info.pop("transparency", None)  # one grey level or colour of a file without alpha
    if transparent is None:
        return file, None
    levels = transparent if isinstance(transparent, tuple) else (transparent,)
    if file.mode == "RGB" and "RGB;16B" in rawmodes:
        levels = tuple(level >> 8 for level in levels)
    scale = {"L;2": 85, "L;4": 17}.get(rawmodes[0] if rawmodes else "", 1)  # Pillow scales the pixels, but not this
    values = np.asarray(file.convert("L") if file.mode == "1" else file)
    match = (values.reshape(file.height, file.width, -1) == np.array(levels) * scale).all(-1)
    return file, Image.fromarray(np.where(match, 0, 255).astype(np.uint8))


def _alpha_is_unused(path: Path) -> bool:
    """Return whether the header of a TGA defines no alpha bits; Pillow ignores this field."""
    with open(path, "rb") as file:
        return not file.read(18)[17] & 0x0F


def _scale_to_8_bits(
    image: Image.Image, file: ImageFile.ImageFile, rawmodes: list[str], stated: bool, white: float | None
) -> tuple[Image.Image, int | float | None]:
    """Convert a grey image of 16 or 32 bits or floating point to 8 bits.

    Args:
        image: image of mode I;16 (in any byte order), I or F.
        file: file that the image was read from.
        rawmodes: raw modes by which Pillow unpacked it, see ``_raw_modes``.
        stated: whether the file states which of its 16 bits are used.
        white: value of white; None for 65535 with 16 bits (4095 with 12), 1 with floating point in [0, 1].

    Returns:
        The image of mode L, and its largest value if its white was assumed; else None.

    Raises:
        UnreadableError: if the value of white is not known, or a value is above white or below 0.
    """
    values = np.asarray(image)
    if "I;32N" in rawmodes:  # unsigned
        values = values.view(np.uint32)
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise UnreadableError("it has values that are not finite")
    sixteen = image.mode.startswith("I;16") or (file.format == "PPM" and image.mode == "I")
    if file.format == "PPM" and stated:
        white = WHITE  # Pillow has scaled the values to it
    elif white is None and sixteen:
        white = 4095 if "I;12" in rawmodes else WHITE
    elif white is None and image.mode == "F" and low >= 0 and high <= 1:
        white = 1.0
    kind = "of floating point" if image.mode == "F" else "of 16 bits" if sixteen else "of signed or 32-bit integers"
    if white is None:
        raise UnreadableError(f"its values {kind} are {low:g} to {high:g}: data.white=VALUE says which value is white")
    if low < 0 or high > white:
        raise UnreadableError(f"its values {kind} are {low:g} to {high:g}, not in 0 to {white:g} (data.white)")
    if isinstance(file, TiffImagePlugin.TiffImageFile) and file.tag_v2.get(PHOTOMETRIC) == 0:  # 0 is white
        values = (int(white) - values.astype(np.int64)) if white == WHITE and image.mode != "F" else white - values
    if white == WHITE and values.dtype.kind in "iu":
        levels = values >> 8  # as Pillow does with colours of 16 bits
    else:
        levels = np.rint(values.astype(np.float64) * (255 / white))
    peak = float(high) if image.mode == "F" else int(high) if sixteen and not stated else None
    return Image.fromarray(levels.astype(np.uint8)), peak


def _upper_bits(image: Image.Image, white: float | None) -> int:
    """Return an upper bound of the values of an image of 16 bits a channel whose upper 8 bits Pillow read.

    Raises:
        UnreadableError: if ``white`` is not that of 16 bits, which would need the lower bits.
    """
    if white not in (None, WHITE):
        raise UnreadableError(f"colours of 16 bits are read by their upper 8: data.white={white:g} is not supported")
    ranges = image.getextrema()
    highest = max(high for _, high in ranges) if isinstance(ranges[0], tuple) else ranges[1]
    return int(highest) << 8 | 0xFF


@functools.cache
def _lab_to_srgb() -> ImageCms.ImageCmsTransform:
    """Return the conversion of CIELAB to RGB."""
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")


def _has_more_frames(file: ImageFile.ImageFile) -> bool:
    """Return whether a file has more than one page or frame."""
    with suppress(Exception):  # the file may be damaged after its first frame
        return bool(getattr(file, "is_animated", False))
    return False


def _center_crop(image: Image.Image, size: int) -> Image.Image:
    """Return the central square of an image, resized with antialiasing."""
    side = min(image.size)
    if image.width != image.height:
        left, top = ((length - side) // 2 for length in image.size)
        image = image.crop((left, top, left + side, top + side))
    return image if side == size else image.resize((size, size), Image.Resampling.LANCZOS)
