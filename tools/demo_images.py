"""The demo's embedded images: small scenes for the four tasks with boxes, and crops of single digits for classify.

usage: python tools/demo_images.py OUT [--assets ASSETS.npz]

OUT/<task>/data.yaml with images and labels of both splits, and OUT/classify/{train,val}/<digit>; less than 6 MB. The
scenes are those of a seed that nothing else uses, and each task has its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections import Counter
from pathlib import Path

import cv2
from scene_renderer import Renderer
from scenes import SPLITS, Assets, make_folders, render_scene, shrink, write_jpeg, write_labels

__all__ = ["AMOUNTS", "write_demo_images"]

SEED = 1010
QUALITY = 75
CROP_SIDE = 72
"""Longest side of a crop; the classifier's input has 64 pixels."""

BYTE_LIMIT = 6_000_000
HEADER = "# Handwritten digits on photographs; whose they are is in ../LICENSE.\n"
DIGITS = range(10)


@dataclasses.dataclass(frozen=True)
class Amount:
    """How many images a task has, and of which size.

    Attributes:
        train: Images for calibration; of classify, for each digit.
        val: Images for evaluation; likewise.
        side: Longest side, pixels.
    """

    train: int
    val: int
    side: int


AMOUNTS = {
    "detect": Amount(64, 400, 240),
    "segment": Amount(48, 64, 208),
    "pose": Amount(48, 64, 208),
    "obb": Amount(48, 64, 208),
    "classify": Amount(5, 10, CROP_SIDE),
}


def write_demo_images(out: Path, assets: Path | None = None) -> int:
    """Write all images and labels; returns the images' bytes.

    Args:
        out: The folder.
        assets: As `Assets.load`.

    Raises:
        SystemExit: They take more than 6 MB.
    """
    renderer = Renderer(Assets.load(assets))
    cv2.setNumThreads(1)
    for number, (task, amount) in enumerate(AMOUNTS.items()):
        if task == "classify":
            _write_crops(renderer, out, amount, first=10_000 * number)
            continue
        make_folders(out, (task,))
        yaml = out / task / "data.yaml"
        yaml.write_text(HEADER + yaml.read_text())
        for split in SPLITS:
            for index in range(getattr(amount, split)):
                image, labels = render_scene(renderer, split, 10_000 * number + index, seed=SEED)
                stem = f"{index:04d}"
                write_jpeg(out / task / "images" / split / f"{stem}.jpg", shrink(image, amount.side), QUALITY)
                write_labels(out / task / "labels" / split / f"{stem}.txt", labels.rows[task])
    size = sum(path.stat().st_size for path in out.rglob("*.jpg"))
    if size > BYTE_LIMIT:
        raise SystemExit(f"the images take {size:,} bytes, and may take {BYTE_LIMIT:,}")
    return size


def _write_crops(renderer: Renderer, out: Path, amount: Amount, first: int) -> None:
    """As many crops of every digit, from as many scenes as that takes."""
    for split in SPLITS:
        wanted, written = getattr(amount, split), Counter[int]()
        for digit in DIGITS:
            (out / "classify" / split / str(digit)).mkdir(parents=True, exist_ok=True)
        index = first
        while any(written[digit] < wanted for digit in DIGITS):
            image, labels = render_scene(renderer, split, index, seed=SEED)
            index += 1
            for digit, (x0, y0, x1, y1) in labels.crops:
                if written[digit] < wanted:
                    path = out / "classify" / split / str(digit) / f"{written[digit]:02d}.jpg"
                    write_jpeg(path, shrink(image[y0:y1, x0:x1], amount.side), QUALITY)
                    written[digit] += 1


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--assets", type=Path)
    given = parser.parse_args()
    print(f"{write_demo_images(given.out, given.assets):,} bytes of images")
    return 0


if __name__ == "__main__":
    sys.exit(main())
