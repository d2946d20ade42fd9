"""Pictures and labels: data sets, letterboxing, sampling."""

from __future__ import annotations

from trtkit.data.dataset import Dataset, open_dataset
from trtkit.data.labels import Labels
from trtkit.data.letterbox import Fit, letterbox, to_input
from trtkit.data.pictures import read_picture
from trtkit.data.sampling import sample

__all__ = ["Dataset", "Fit", "Labels", "letterbox", "open_dataset", "read_picture", "sample", "to_input"]
