"""Data sets, labels, image files, preprocessing and sampling."""

from __future__ import annotations

from trtkit.data.dataset import Dataset
from trtkit.data.image_files import list_images, read_image
from trtkit.data.images import ImageTransform, letterbox, resize_to_input, sample_images, to_input
from trtkit.data.labels import Labels
from trtkit.data.sources import DataSource, open_dataset

__all__ = [
    "DataSource",
    "Dataset",
    "ImageTransform",
    "Labels",
    "letterbox",
    "list_images",
    "open_dataset",
    "read_image",
    "resize_to_input",
    "sample_images",
    "to_input",
]
