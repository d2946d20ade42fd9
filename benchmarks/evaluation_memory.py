"""Peak memory of evaluating segmentation, the heaviest task to evaluate: 300 detections with a mask in each image.

    python benchmarks/evaluation_memory.py MODEL DATA [IMAGES]

MODEL is a segment model's ONNX file, DATA its data.yaml. Where the split holds fewer images than IMAGES (300), they
are shown again under other names. Writes images, masks and the process's peak resident memory to
`results/evaluation_memory.{json,md}`; run by hand.
"""

from __future__ import annotations

import itertools
import resource
import sys
import tempfile
from pathlib import Path

from records import about, line_of, table, write

import trtkit
from trtkit.data import open_dataset
from trtkit.data.labels import label_path


def repeated(data: Path, count: int, folder: Path) -> Path:
    """A data set of `count` images, links to those of `data`."""
    images = open_dataset(data, task="segment").images("val")
    for kind in ("images", "labels"):
        (folder / kind / "val").mkdir(parents=True)
    for index, image in enumerate(itertools.islice(itertools.cycle(images), count)):
        (folder / "images" / "val" / f"{index:05d}{image.suffix}").symlink_to(image)
        (folder / "labels" / "val" / f"{index:05d}.txt").symlink_to(label_path(image))
    names = open_dataset(data, task="segment").names
    (folder / "data.yaml").write_text(
        "val: images/val\nnames:\n" + "".join(f"  {n}: '{v}'\n" for n, v in names.items())
    )
    return folder / "data.yaml"


def main() -> None:
    """Judge, and tell what it took."""
    model, data = Path(sys.argv[1]), Path(sys.argv[2]).resolve()
    count = int(sys.argv[3]) if len(sys.argv) > 3 else 300
    with tempfile.TemporaryDirectory() as folder:
        data = repeated(data, count, Path(folder))
        found = trtkit.evaluate(model, data)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    content = {
        **about("yolo11n-seg.onnx segment/data.yaml" + (f" {count}" if count != 300 else "")),
        "images": found.images, "masks": len(found.detections), "imgsz": found.provenance.settings["imgsz"],
        "peak_gb": peak,
    }  # fmt: skip
    row = [str(found.images), f"{len(found.detections):,}", f"{peak:.2f}"]
    lines = [
        "# Memory of an evaluation with masks", "", f"`{content['command']}`", "",
        *table(["images", "masks", "peak GB of the process"], [row]), "",
        "The whole of `trtkit.evaluate` in ONNX Runtime, box and mask AP by both rules; GB of 10^9 bytes.", "",
        line_of(content),
    ]  # fmt: skip
    write("evaluation_memory", content, lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
