"""Images as uint8 arrays, and batches of them."""

from datasets.folders import one_look
from datasets.images import ImageDataset
from datasets.loader import Loader
from datasets.registry import load_configured, load_images

__all__ = ["ImageDataset", "Loader", "load_configured", "load_images", "one_look"]
