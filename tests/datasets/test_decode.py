"""Decoding of image files of all formats and modes, written as common programs write them."""

import io
import os
import stat
import struct
import subprocess
import zlib

import numpy as np
import pytest
from PIL import EpsImagePlugin, ExifTags, Image, ImageCms

from datasets.decode import DecodeOptions, UnreadableError, decode, read_image
from datasets.find import FORMATS, SUFFIXES, UNMARKED_FORMATS

RNG = np.random.default_rng(0)
WHOLE = DecodeOptions(None)
GREY = DecodeOptions(None, 1)

# A black drawing on a transparent ground, whose hidden colours are of a red that nobody has ever seen.
ALPHA = np.zeros((8, 8), np.uint8)
ALPHA[2:6, 2:6] = 255
ALPHA[0] = 51
DRAWING = np.zeros((8, 8, 4), np.uint8)
DRAWING[ALPHA == 0] = [200, 0, 0, 0]
DRAWING[..., 3] = ALPHA
ON_WHITE = np.rint(255 * (1 - ALPHA / 255.0))[..., None].repeat(3, -1).astype(int)


def pixels(path, options=WHOLE):
    return decode(path, options)[0].astype(int)


def test_suffixes_are_those_that_pillow_has_for_these_formats():
    Image.init()
    known = {**FORMATS, **UNMARKED_FORMATS}
    assert {suffix for suffix, name in Image.EXTENSION.items() if name in known} | {".pnm"} <= SUFFIXES
    left_out = {
        "EPS",
        "WMF",
        "BUFR",
        "GRIB",
        "HDF5",
        "MPEG",
        "FITS",
        "IPTC",
        "IM",
        "IMT",
        "MCIDAS",
        "SPIDER",
        "XVTHUMB",
    }
    assert set(Image.OPEN) - known.keys() <= left_out  # a newer Pillow may have more, to be looked at
    assert not left_out & known.keys()


@pytest.mark.parametrize("suffix", ["png", "webp", "tif", "tga", "avif", "jp2", "qoi", "dds", "ico", "gif"])
def test_transparent_parts_are_composited_on_the_background(tmp_path, suffix):
    lossless = {"webp": {"lossless": True, "exact": True}, "avif": {"quality": 100, "subsampling": "4:4:4"}}
    path = tmp_path / f"drawing.{suffix}"
    Image.fromarray(DRAWING).save(path, **lossless.get(suffix, {}))
    expected = ON_WHITE.copy()
    if suffix == "gif":  # has parts that are wholly transparent, or not at all
        expected[0] = 0
    got, seen = decode(path, WHOLE)
    assert (
        np.abs(got.astype(int) - expected).max() <= (2 if suffix in ("avif", "webp") else 1) and seen.transparent == 1
    )
    assert np.abs(pixels(path, GREY)[..., 0] - expected[..., 0]).max() <= 2
    black = pixels(path, DecodeOptions(None, background="black"))
    assert black.max() <= 1
    blue = pixels(path, DecodeOptions(None, background="#0000ff"))
    assert np.abs(blue[7, 7] - [0, 0, 255]).max() <= 2


def test_alpha_of_other_modes(tmp_path):
    grey = np.stack([np.full((8, 8), 100, np.uint8), ALPHA], -1)
    Image.fromarray(grey).save(tmp_path / "la.png")
    assert pixels(tmp_path / "la.png", GREY)[7, 7] == 255 and pixels(tmp_path / "la.png")[3, 3].tolist() == [100] * 3
    palette = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) % 4).convert("L")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 1, 2, 3])
    palette.save(tmp_path / "one.png", transparency=1)
    palette.save(tmp_path / "each.png", transparency=bytes([255, 0, 255, 0]))
    for name, hidden in (("one", [1]), ("each", [1, 3])):
        got = pixels(tmp_path / f"{name}.png")[0]
        for index, colour in enumerate([[10, 20, 30], [40, 50, 60], [70, 80, 90], [1, 2, 3]]):
            assert got[index].tolist() == ([255] * 3 if index in hidden else colour)
    Image.fromarray(grey).convert("RGBA").convert("PA").save(tmp_path / "pa.tif")
    assert pixels(tmp_path / "pa.tif")[7, 7].tolist() == [255] * 3
    values = RNG.integers(300, size=(8, 8)).astype(np.uint16) * 200
    values[0, :] = 257 * 7
    values[1, 0] = 257 * 7 + 1  # differs in its lower bits only
    Image.fromarray(values).save(tmp_path / "deep.png", transparency=257 * 7)
    got = pixels(tmp_path / "deep.png", GREY)[..., 0]
    assert (got[0] == 255).all() and got[1, 0] == 7 and np.array_equal(got[2:], values[2:] >> 8)
    for mode, level, hidden in (("1", 255, 1), ("L", 9, 9), ("RGB", 9, (9, 9, 9))):
        image = Image.fromarray(np.eye(8, dtype=np.uint8) * level).convert(mode)
        image.save(tmp_path / f"{mode}.png", transparency=hidden)
        expected = np.where(np.eye(8) > 0, 255, 0)
        assert np.array_equal(pixels(tmp_path / f"{mode}.png")[..., 1], expected), mode


def png(width, height, depth, colour, rows, **chunks):
    """Encode a PNG of a kind that Pillow does not write."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    data = b"".join(b"\0" + row for row in rows)
    extra = b"".join(chunk(name.encode(), body) for name, body in chunks.items())
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def test_transparency_of_pngs_that_pillow_does_not_scale(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(png(4, 1, 2, 0, [bytes([0b00011011])], tRNS=struct.pack(">H", 1)))
    assert pixels(path, GREY)[0, :, 0].tolist() == [0, 255, 170, 255]
    path.write_bytes(png(2, 1, 4, 0, [bytes([0x35])], tRNS=struct.pack(">H", 3)))
    assert pixels(path, GREY)[0, :, 0].tolist() == [255, 85]
    row = struct.pack(">6H", 0x0102, 0x0304, 0x0506, 0x1000, 0x2000, 0x3000)
    path.write_bytes(png(2, 1, 16, 2, [row], tRNS=struct.pack(">3H", 0x0102, 0x0304, 0x0506)))
    assert pixels(path)[0].tolist() == [[255] * 3, [16, 32, 48]]


def test_four_channels_are_colours_and_alpha(tmp_path):
    Image.fromarray(DRAWING).save(tmp_path / "a.png")
    Image.fromarray(DRAWING[..., :3]).save(tmp_path / "b.png")
    four = DecodeOptions(None, 4)
    assert np.array_equal(pixels(tmp_path / "a.png", four), DRAWING)
    assert np.array_equal(pixels(tmp_path / "b.png", four)[..., 3], np.full((8, 8), 255))
    small = pixels(tmp_path / "a.png", DecodeOptions(4, 4))  # hidden red does not leak into what is seen
    assert small.shape == (4, 4, 4) and small[1:3, 1:3, :3].max() == 0 and small[1:3, 1:3, 3].min() > 200


def test_a_tga_whose_fourth_byte_is_no_alpha_is_opaque(tmp_path):
    """Many programs write such files; Pillow itself writes 8 bits of alpha into the header."""
    path = tmp_path / "x.tga"
    Image.fromarray(np.dstack([DRAWING[..., :3], np.zeros((8, 8), np.uint8)])).save(path)
    data = bytearray(path.read_bytes())
    assert data[17] & 0x0F == 8
    data[17] &= 0xF0
    path.write_bytes(data)
    assert np.array_equal(pixels(path), DRAWING[..., :3])


DEEP = np.array([[0, 1000, 30000, 65535]], np.uint16)
EXPECTED = [0, 3, 117, 255]


def tiff(path, array, photometric=1, sample_format=1, order="<", bits=None):
    """Write a TIFF as scientific programs do: uncompressed, in either byte order."""
    body = array.astype(array.dtype.newbyteorder(order)).tobytes() if bits is None else array
    height, width = (1, 4) if bits is not None else array.shape[:2]
    bands = array.shape[2] if bits is None and array.ndim == 3 else 1
    bits = bits or array.dtype.itemsize * 8
    tags = [(256, 3, width), (257, 3, height), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8)]
    tags += [(277, 3, bands), (278, 3, height), (279, 4, len(body)), (339, 3, sample_format)]
    entries = b""
    for tag, kind, value in tags:
        entries += struct.pack(order + "HHI", tag, kind, 1)
        entries += struct.pack(order + ("HH" if kind == 3 else "I"), *((value, 0) if kind == 3 else (value,)))
    directory = struct.pack(order + "H", len(tags)) + entries + bytes(4)
    mark = b"II*\0" if order == "<" else b"MM\0*"
    path.write_bytes(mark + struct.pack(order + "I", 8 + len(body)) + body + directory)
    return path


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
    for name in ("x.png", "x.tif", "x.pgm", "x.jp2"):
        Image.fromarray(DEEP).save(tmp_path / name)
        got, seen = decode(tmp_path / name, GREY)
        assert got[0, :, 0].tolist() == EXPECTED, name
        assert seen.deep == 1 and seen.peak == 65535 and not seen.deep_colour
    for order in "<>":
        assert pixels(tiff(tmp_path / "o.tif", DEEP, order=order), GREY)[0, :, 0].tolist() == EXPECTED
    inverted = tiff(tmp_path / "white.tif", 65535 - DEEP, photometric=0)
    assert pixels(inverted, GREY)[0, :, 0].tolist() == EXPECTED
    twelve_bits = bytes([0x00, 0x07, 0xFF, 0x80, 0x0F, 0xFF])  # 0, 2047, 2048, 4095
    assert pixels(tiff(tmp_path / "12.tif", twelve_bits, bits=12), GREY)[0, :, 0].tolist() == [0, 127, 128, 255]
    (tmp_path / "maxval.pgm").write_bytes(b"P5 4 1 4095\n" + np.array([0, 2048, 4094, 4095], ">u2").tobytes())
    got, seen = decode(tmp_path / "maxval.pgm", GREY)
    assert got[0, :, 0].tolist() == [0, 128, 255, 255] and not seen.deep
    (tmp_path / "plain.pgm").write_bytes(b"P2 3 1 15\n0 5 15\n")
    assert pixels(tmp_path / "plain.pgm", GREY)[0, :, 0].tolist() == [0, 85, 255]
    rows = [struct.pack(">6H", 0, 1000, 30000, 65535, 256, 255)]
    (tmp_path / "colour.png").write_bytes(png(2, 1, 16, 2, rows))
    got, seen = decode(tmp_path / "colour.png", WHOLE)
    assert got[0].tolist() == [[0, 3, 117], [255, 1, 0]] and seen.deep and seen.deep_colour and seen.peak == 65535


def test_data_white_scales_what_does_not_fill_its_bits(tmp_path):
    twelve = np.array([[0, 1000, 4000, 4095]], np.uint16)
    Image.fromarray(twelve).save(tmp_path / "x.png")
    got, seen = decode(tmp_path / "x.png", GREY)
    assert got.max() == 15 and seen.peak == 4095
    assert pixels(tmp_path / "x.png", DecodeOptions(None, 1, white=4095))[0, :, 0].tolist() == [0, 62, 249, 255]
    with pytest.raises(UnreadableError, match=r"values of 16 bits are 0 to 4095, not in 0 to 4000 \(data.white\)"):
        decode(tmp_path / "x.png", DecodeOptions(None, 1, white=4000))
    (tmp_path / "rgb.png").write_bytes(png(1, 1, 16, 2, [struct.pack(">3H", 0, 1000, 4095)]))
    with pytest.raises(UnreadableError, match=r"read by their upper 8: data\.white=4095 is not supported"):
        decode(tmp_path / "rgb.png", DecodeOptions(None, white=4095))
    Image.fromarray(np.array([[0, 128, 255]], np.uint8)).save(tmp_path / "eight.png")
    assert pixels(tmp_path / "eight.png", DecodeOptions(None, 1, white=4095))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("array", "sample_format", "message"),
    [
        (np.array([[0, 70000]], np.uint32), 1, "of signed or 32-bit integers are 0 to 70000: data.white=VALUE says"),
        (np.array([[0, 2**32 - 1]], np.uint32), 1, r"integers are 0 to 4.29497e\+09: data.white"),
        (np.array([[-1000, 3000]], np.int16), 2, "of signed or 32-bit integers are -1000 to 3000: data.white"),
        (np.array([[-5, 7]], np.int32), 2, "integers are -5 to 7"),
        (np.array([[-5, 7]], np.int8), 2, "signed integers of 8 bits"),
        (np.array([[0, 200.5]], np.float32), 3, "of floating point are 0 to 200.5: data.white=VALUE says which"),
        (np.array([[-0.5, 0.5]], np.float32), 3, "of floating point are -0.5 to 0.5"),
        (np.array([[0, np.nan]], np.float32), 3, "values that are not finite"),
        (np.array([[0, np.inf]], np.float32), 3, "values that are not finite"),
    ],
)
def test_values_whose_white_is_not_known_are_refused(tmp_path, array, sample_format, message):
    for order in "<>"[: 1 if array.dtype == np.uint32 else 2]:  # Pillow reads these in one order only
        with pytest.raises(UnreadableError, match=message):
            decode(tiff(tmp_path / "x.tif", array, sample_format=sample_format, order=order), GREY)


@pytest.mark.parametrize(
    ("dtype", "bands", "photometric", "sample_format"),
    [
        (np.float64, 1, 1, 3),
        (np.float16, 1, 1, 3),
        (np.float32, 3, 2, 3),
        (np.int16, 3, 2, 2),
        (np.uint32, 3, 2, 1),
        (np.uint16, 5, 1, 1),
        (np.uint8, 12, 1, 1),
    ],
)
def test_a_tiff_of_a_kind_of_values_that_pillow_does_not_read_is_named(
    tmp_path, dtype, bands, photometric, sample_format
):
    array = RNG.integers(100, size=(8, 8, bands)).astype(dtype)
    for order in "<>":
        path = tiff(tmp_path / "x.tif", array, photometric, sample_format, order)
        with pytest.raises(UnreadableError, match=r"^a TIFF whose kind of values Pillow does not read: store it as"):
            decode(path, WHOLE)


def test_a_truncated_tiff_is_reported_as_damaged_not_as_a_kind_of_values(tmp_path):
    path = tiff(tmp_path / "x.tif", np.ones((8, 8), np.float64), sample_format=3)
    data = path.read_bytes()
    for end in (4, 8, 300, len(data) - 124):  # the tags are at the end
        path.write_bytes(data[:end])
        with pytest.raises(UnreadableError, match=r"^cannot identify image file$"):
            read_image(path, 8)


def test_floating_point_and_32_bits_whose_white_is_known(tmp_path):
    unit = np.array([[0, 0.25, 0.5, 1]], np.float32)
    Image.fromarray(unit).save(tmp_path / "f.tif")
    Image.fromarray(unit).save(tmp_path / "f.pfm")
    for name in ("f.tif", "f.pfm"):
        got, seen = decode(tmp_path / name, GREY)
        assert got[0, :, 0].tolist() == [0, 64, 128, 255]
        assert (seen.floating, seen.float_peak, seen.deep) == (1, 1, 0)
    for dtype, sample_format in ((np.uint32, 1), (np.int32, 2), (np.int16, 2), (np.float32, 3)):
        path = tiff(tmp_path / "x.tif", np.array([[0, 1000, 2000]], dtype), sample_format=sample_format)
        assert pixels(path, DecodeOptions(None, 1, white=2000))[0, :, 0].tolist() == [0, 128, 255]
    path = tiff(tmp_path / "x.tif", np.array([[0, 2**31, 2**32 - 1]], np.uint32))
    assert pixels(path, DecodeOptions(None, 1, white=2**32 - 1))[0, :, 0].tolist() == [0, 128, 255]


def test_colours_of_all_modes_are_right(tmp_path):
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [250, 250, 250], [128, 128, 128], [0, 0, 0]]], np.uint8)
    colours = colours.repeat(16, 1).repeat(16, 0)  # so that subsampled chroma does not matter
    image = Image.fromarray(colours)
    image.convert("CMYK").save(tmp_path / "cmyk.tif")
    image.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    image.convert("YCbCr").save(tmp_path / "ycbcr.tif")
    image.convert("YCbCr").save(tmp_path / "ycbcr.jpg", quality=100, subsampling=0)
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    ImageCms.applyTransform(image, to_lab).save(tmp_path / "lab.tif")
    image.quantize(8).save(tmp_path / "palette.png")
    image.quantize(8).save(tmp_path / "palette.gif")
    image.save(tmp_path / "avif.avif", quality=100, subsampling="4:4:4")
    for suffix in (
        "ppm",
        "bmp",
        "dib",
        "tga",
        "pcx",
        "sgi",
        "qoi",
        "jp2",
        "j2k",
        "webp",
        "ico",
        "icns",
        "dds",
        "jfif",
    ):
        options = {"webp": {"lossless": True}, "jfif": {"format": "JPEG", "quality": 100, "subsampling": 0}}
        image.resize((96, 96) if suffix != "icns" else (128, 128), 0).save(
            tmp_path / f"x.{suffix}", **options.get(suffix, {})
        )
    files = sorted(tmp_path.iterdir())
    assert len(files) == 22
    for path in files:
        got = pixels(path)
        height, width = got.shape[:2]
        seen = got[height // 2, [width * (2 * k + 1) // 12 for k in range(6)]]
        limit = 23 if path.stem == "lab" else 5  # 8 bits of CIELAB are coarse where colours are purest
        assert np.abs(seen - colours[0, 8::16].astype(int)).max() <= limit, (path.name, seen.tolist())
    bits = np.eye(8, dtype=bool)
    for name in ("x.pbm", "x.xbm", "x.msp", "bits.png", "bits.tif", "bits.bmp"):
        Image.fromarray(bits).save(tmp_path / name)
        assert np.array_equal(pixels(tmp_path / name, GREY)[..., 0], np.where(bits, 255, 0)), name


MARKED = np.zeros((16, 24, 3), np.uint8)
MARKED[:8, :8] = [255, 255, 255]  # the corner that was at the top left
CORNERS = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}


def oriented(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


@pytest.mark.parametrize("orientation", CORNERS)
def test_exif_orientation_is_applied(tmp_path, orientation):
    sixteen = np.where(MARKED[..., 0] > 0, 60000, 0).astype(np.uint16)
    eight = Image.fromarray(MARKED)
    for name in ("x.jpg", "x.png", "x.webp", "x.tif", "x.avif", "grey.tif", "deep.png", "deep.tif", "alpha.png"):
        image = Image.fromarray(sixteen) if name.startswith("deep") else eight
        image = image.convert({"alpha": "RGBA", "grey": "L"}.get(name.split(".")[0], image.mode))
        image.save(tmp_path / name, exif=oriented(orientation))
        got = pixels(tmp_path / name, GREY)[..., 0]
        assert got.shape == ((24, 16) if orientation > 4 else (16, 24)), name
        corners = got[[3, -4]][:, [3, -4]] > 128
        assert np.argwhere(corners).tolist() == [list(CORNERS[orientation])], name


@pytest.mark.parametrize("damage", ["cut", "garbage", "endless", "beyond"])
def test_a_broken_exif_block_only_loses_the_orientation(tmp_path, damage):
    whole = oriented(6).tobytes()
    block = {
        "cut": whole[:-9],
        "garbage": b"Exif\0\0" + bytes(RNG.integers(256, size=40, dtype=np.uint8)),
        "endless": whole[:14] + b"\xff\xff" + whole[16:],
        "beyond": whole[:10] + b"\xff\xff\xff\x7f" + whole[14:],
    }[damage]
    for name in ("x.jpg", "x.png", "x.webp"):
        Image.fromarray(MARKED).save(tmp_path / name, exif=block, **({"lossless": True} if name == "x.webp" else {}))
        got = pixels(tmp_path / name)
        assert sorted(got.shape) == [3, 16, 24] and np.abs(got.sum() - MARKED.astype(int).sum()) < 20000, name
    Image.fromarray(MARKED).save(tmp_path / "x.tif", exif=oriented(6))
    data = (tmp_path / "x.tif").read_bytes()
    entry = struct.pack("<HHI", 274, 3, 1)
    assert entry in data
    for wrong in (struct.pack("<HHI", 274, 3, 0), struct.pack("<HHI", 274, 99, 1), struct.pack("<HHI", 274, 3, 2**31)):
        (tmp_path / "x.tif").write_bytes(data.replace(entry, wrong))
        got = pixels(tmp_path / "x.tif")
        assert sorted(got.shape) == [3, 16, 24] and got.sum() == MARKED.astype(int).sum()


def test_of_several_pages_or_frames_the_first_is_taken(tmp_path):
    frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (40, 120, 200)]
    for suffix in ("tif", "gif", "png", "webp", "avif", "mpo"):
        path = tmp_path / f"x.{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:])
        got, seen = decode(path, WHOLE)
        assert np.abs(got.astype(int) - 40).max() <= 2 and seen.paged == 1, suffix
        frames[0].save(path)
        assert decode(path, WHOLE)[1].paged == 0, suffix


def test_more_pixels_than_pillow_allows_are_refused(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(png(20000, 20000, 1, 0, [b""]))
    with pytest.raises(UnreadableError, match=r"Image size \(400000000 pixels\) exceeds limit of 178956970 pixels"):
        read_image(path, 8)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n0 0 8 8 rectfill\nshowpage\n%%EOF\n"


def wrapped_in_iptc(data):
    """Make an IPTC file, whose contents Pillow opens by any other decoder."""

    def record(number, dataset, body):
        return struct.pack(">BBBH", 0x1C, number, dataset, len(body)) + body

    fields = record(3, 60, b"\x01\x00") + record(3, 65, b"\x00") + record(3, 20, b"\x00\x08")
    return fields + record(3, 30, b"\x00\x08") + record(3, 120, b"\x05") + record(8, 10, data)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".tga", ".eps", ".ps", ".im", ".pcd", ""])
def test_no_file_starts_a_program_whatever_its_name(tmp_path, monkeypatch, suffix):
    program = tmp_path / "bin/gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # looked for on the path, as if for the first time
    path = tmp_path / f"x{suffix}"
    for content in (EPS, wrapped_in_iptc(EPS)):
        path.write_bytes(content)
        with Image.open(path) as image, pytest.raises(OSError, match="cannot identify"):
            image.load()
        assert (tmp_path / "started").exists()  # so does Pillow by itself
        (tmp_path / "started").unlink()

    def refuse(*args, **kwargs):
        raise AssertionError("a process is started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(os, "system", refuse)
    placeable = b"\xd7\xcd\xc6\x9a" + bytes(18) + b"\x01\x00\x09\x00" + bytes(40)
    for content in (
        EPS,
        b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 32, len(EPS)) + bytes(20) + EPS,
        wrapped_in_iptc(EPS),
        placeable,
    ):
        path.write_bytes(content)
        with pytest.raises(UnreadableError, match="cannot identify image file"):
            decode(path, WHOLE)
    assert not (tmp_path / "started").exists()


def test_a_file_that_is_not_regular_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", "/dev/zero", tmp_path):
        with pytest.raises(UnreadableError, match="not a regular file"):
            decode(path, WHOLE)


def test_other_files_are_no_images_by_their_name(tmp_path):
    """Formats without a magic number are only tried on files with their suffix."""
    buffer = io.BytesIO()
    Image.fromarray(MARKED).save(buffer, "TGA")
    for suffix, known in ((".tga", True), (".png", False), (".jpg", False)):
        (tmp_path / f"x{suffix}").write_bytes(buffer.getvalue())
        if known:
            assert np.array_equal(pixels(tmp_path / f"x{suffix}"), MARKED)
        else:
            with pytest.raises(UnreadableError, match="cannot identify"):
                decode(tmp_path / f"x{suffix}", WHOLE)


def test_a_grey_animation_keeps_its_first_frame(tmp_path):
    frames = [Image.fromarray(np.full((8, 12), value, np.uint8)) for value in (40, 120)]
    for suffix in ("gif", "png", "tif"):
        frames[0].save(tmp_path / f"x.{suffix}", save_all=True, append_images=frames[1:])
        got, seen = decode(tmp_path / f"x.{suffix}", DecodeOptions(4, 1))
        assert (got == 40).all() and seen.paged == 1
