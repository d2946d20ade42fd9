from __future__ import annotations

import pytest
from data_folders import IMAGE


@pytest.fixture
def folder(tmp_path):
    """images/{train,val}/{0,1}.png with one box each."""
    for split in ("train", "val"):
        for number in range(2):
            image = tmp_path / "images" / split / f"{number}.png"
            label = tmp_path / "labels" / split / f"{number}.txt"
            for path in (image, label):
                path.parent.mkdir(parents=True, exist_ok=True)
            image.write_bytes(IMAGE)
            label.write_text(f"{number} 0.5 0.5 0.5 0.5\n")
    return tmp_path
