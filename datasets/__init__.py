"""Data sets as arrays of samples with values in a known range, and a loader of their batches."""

from datasets.folders import scan_once
from datasets.images import ImageDataset
from datasets.loader import Loader
from datasets.registry import load_configured, load_images
from datasets.shape import data_shape

__all__ = ["ImageDataset", "Loader", "data_shape", "load_configured", "load_images", "scan_once"]
