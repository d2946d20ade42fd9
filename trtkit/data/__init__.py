"""Images and labels: data sets, letterboxing, sampling."""

from __future__ import annotations

from trtkit.data.dataset import Dataset, open_dataset
from trtkit.data.images import ImageTransform, letterbox, read_image, sample_images, to_input
from trtkit.data.labels import Labels

__all__ = [
    "Dataset",
    "ImageTransform",
    "Labels",
    "letterbox",
    "open_dataset",
    "read_image",
    "sample_images",
    "to_input",
]
