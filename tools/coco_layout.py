"""Write a data set of ours in COCO's layout: instances, keypoints, masks of each encoding, and crowd regions.

    python tools/coco_layout.py SCENES OUT [--images 24]

SCENES holds `segment/` and `pose/` with the same images, as `tools/scenes.py write` makes them. OUT gets
`annotations/instances_{train,val}.json`, `annotations/person_keypoints_{train,val}.json` and the folders `train` and
`val`. Masks are polygons, polygons of two parts, run lengths as a list and run lengths as text, in turn. In every third
image the last object is a crowd region that reaches beyond it, and in every fifth one is without keypoints. Category
ids have gaps, as COCO's have.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from trtkit.data import open_dataset, read_image
from trtkit.tasks.segment import encode_rle, polygon_area

__all__ = ["write_coco"]

CROWD_REACH = 9
"""Pixels by which a crowd region reaches beyond its object."""


def write_coco(scenes: Path, out: Path, *, images: int | None = None) -> Path:
    """Write a data set in COCO's layout.

    Args:
        scenes: Folder with `segment/data.yaml` and `pose/data.yaml`.
        out: The folder to write.
        images: Most images of each split; None takes all.

    Returns:
        `out`.
    """
    segment, pose = (open_dataset(scenes / task / "data.yaml", task=task) for task in ("segment", "pose"))
    assert pose.kpt_shape is not None
    ids = {number: 3 * number + 2 for number in segment.names}
    points = [f"point_{number}" for number in range(pose.kpt_shape[0])]
    (out / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (out / split).mkdir()
        contents = {
            name: {"images": [], "annotations": [], "categories": []} for name in ("instances", "person_keypoints")
        }
        for name, content in contents.items():
            more = {"keypoints": points, "skeleton": []} if name == "person_keypoints" else {}
            # Not in the order of their ids.
            content["categories"] = [
                {"id": ids[number], "name": segment.names[number], "supercategory": "", **more}
                for number in reversed(segment.names)
            ]
        for index, path in enumerate(segment.images(split)[:images]):
            shutil.copy(path, out / split / path.name)
            shape = read_image(path).shape[:2]
            entry = {"id": 100 + 7 * index, "file_name": path.name, "height": shape[0], "width": shape[1]}
            twin = next(one for one in pose.images(split) if one.stem == path.stem)
            labels = segment.labels(path).to_pixels(shape)
            rows = [
                make_annotation(
                    labels.segments[number],
                    (number + index) % 4,
                    shape,
                    crowd=index % 3 == 1 and number == len(labels) - 1,
                )
                | {"image_id": entry["id"], "category_id": ids[int(labels.classes[number])]}
                for number in range(len(labels))
            ]
            posed = pose.labels(twin).to_pixels(shape)
            assert posed.keypoints is not None
            for content in contents.values():
                content["images"].append(entry)
            for number, row in enumerate(rows):
                row["id"] = len(contents["instances"]["annotations"]) + 1
                contents["instances"]["annotations"].append(row)
                values = np.where(posed.keypoints[number][:, 2:] > 0, posed.keypoints[number], 0)
                if row["iscrowd"] or (index % 5 == 2 and number == 0):
                    values = np.zeros_like(values)
                visible = int((values[:, 2] > 0).sum())
                keypoints = {"keypoints": values.astype(np.float64).ravel().tolist(), "num_keypoints": visible}
                contents["person_keypoints"]["annotations"].append(row | keypoints)
        for name, content in contents.items():
            (out / "annotations" / f"{name}_{split}.json").write_text(json.dumps(content))
    return out


def make_annotation(outline: np.ndarray, encoding: int, shape: tuple[int, int], *, crowd: bool) -> dict[str, Any]:
    """One annotation without ids.

    Args:
        outline: Polygon in pixels.
        encoding: 0 a polygon, 1 one of two parts, 2 run lengths as a list, with a hole, 3 as text.
        shape: (height, width) of the image.
        crowd: Whether it is a crowd region.
    """
    mask = np.zeros(shape, np.uint8)
    cv2.fillPoly(mask, [np.round(outline).astype(np.int32)], (1,))
    if crowd:
        mask = cv2.dilate(mask, np.ones((2 * CROWD_REACH + 1,) * 2, np.uint8))
    elif encoding == 2:
        # A hole, which polygons can't have.
        column, row = np.round(outline.mean(0)).astype(int)
        mask[row - 1 : row + 2, column - 1 : column + 2] = 0
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    low, high = outline.min(0).astype(np.float64), outline.max(0).astype(np.float64)
    box, area = [*low, *(high - low)], polygon_area(outline)
    if crowd or (encoding >= 2 and len(rows)):
        box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
        area = float(mask.sum())
        segmentation: Any = encode_rle(mask > 0, (0, 0), shape)
        if crowd or encoding == 2:
            edges = np.flatnonzero(np.diff(np.concatenate(([0], mask.T.ravel(), [0]))))
            counts = np.diff(np.concatenate(([0], edges, [mask.size])))
            segmentation = {"size": list(shape), "counts": [int(count) for count in counts]}
    elif encoding == 1:
        middle = (low[0] + high[0]) / 2
        halves = [np.clip(outline, *span) for span in (((-1e6, -1e6), (middle, 1e6)), ((middle, -1e6), (1e6, 1e6)))]
        segmentation = [half.astype(np.float64).ravel().tolist() for half in halves]
    else:
        segmentation = [outline.astype(np.float64).ravel().tolist()]
    return {
        "bbox": [float(value) for value in box],
        "area": float(area),
        "iscrowd": int(crowd),
        "segmentation": segmentation,
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int)
    values = parser.parse_args()
    print(write_coco(values.scenes, values.out, images=values.images))


if __name__ == "__main__":
    main()
