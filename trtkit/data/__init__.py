"""Pictures and labels: data sets, letterboxing, sampling."""

from __future__ import annotations

from trtkit.data.dataset import Dataset, open_dataset
from trtkit.data.images import Fit, letterbox, read_picture, sample, to_input
from trtkit.data.labels import Labels

__all__ = ["Dataset", "Fit", "Labels", "letterbox", "open_dataset", "read_picture", "sample", "to_input"]
