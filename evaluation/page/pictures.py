"""Pictures of a run as data URIs: decoded and encoded again, so that only pixels reach the page."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.image_io import UnreadableError, read_image

MOST_PIXELS = 2**22  # larger pictures are reduced


@dataclass(frozen=True)
class Picture:
    """A picture that the page shows.

    Attributes:
        alt: description in words.
        uri: data URI; empty if the file cannot be read.
        width: width in pixels.
        height: height in pixels.
        fault: why it cannot be read; empty if it can.
    """

    alt: str
    uri: str = ""
    width: int = 0
    height: int = 0
    fault: str = ""


def read_picture(path: Path, alt: str) -> Picture:
    """Read an image file as a data URI of a PNG.

    Args:
        path: image file.
        alt: description in words.

    Returns:
        The picture, reduced to ``MOST_PIXELS`` if it is larger; or one with a ``fault``.
    """
    try:
        pixels = read_image(path, None, 3)
    except UnreadableError as error:
        return Picture(alt, fault=f"{path} cannot be read: {error}")
    grey = np.array_equal(pixels[..., 0], pixels[..., 1]) and np.array_equal(pixels[..., 0], pixels[..., 2])
    image = Image.fromarray(pixels[..., 0] if grey else pixels)
    if (share := MOST_PIXELS / (image.width * image.height)) < 1:
        image = image.resize([max(1, int(side * share**0.5)) for side in image.size], Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    uri = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return Picture(alt, uri, image.width, image.height)
