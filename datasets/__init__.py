"""Images as uint8 arrays, and batches of them."""

from datasets.batches import Batches
from datasets.folders import one_look
from datasets.images import Images
from datasets.registry import load_configured, load_images

__all__ = ["Batches", "Images", "load_configured", "load_images", "one_look"]
