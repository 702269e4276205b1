"""Images as uint8 arrays, and batches of them."""

from datasets.batches import Batches
from datasets.images import Images, load_images

__all__ = ["Batches", "Images", "load_images"]
