"""The families of checkpoints that trtkit loads: one table for the tests, the references and the README's list.

`python tests/models/families.py` writes the list into the README.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TASKS = {"": "detect", "-seg": "segment", "-cls": "classify", "-pose": "pose", "-obb": "obb"}
"""Tasks by their suffix in names of models."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """Architectures that share their layers.

    Attributes:
        title: The name people know.
        pattern: Names of Ultralytics' architecture files, of `size` and `task`.
        sizes: What `size` can be.
        tasks: What `task` can be: keys of `TASKS`.
        stored: Names whose outputs are in `references/`.
        nc: Classes of a detector; the other tasks' are in `make_references.py`.
    """

    title: str
    pattern: str
    sizes: tuple[str, ...] = ("n", "s", "m", "l", "x")
    tasks: tuple[str, ...] = ("",)
    stored: tuple[str, ...] = ()
    nc: int = 80

    def names(self) -> Iterator[tuple[str, str]]:
        """Every name with its task's suffix."""
        for task in self.tasks:
            for size in self.sizes:
                yield self.pattern.format(size=size, task=task), task


def _stored(family: str) -> tuple[str, ...]:
    return tuple(f"{family}{size}{task}" for size in "ns" for task in TASKS)


FAMILIES = (
    Family(title="YOLOv8", pattern="yolov8{size}{task}", tasks=tuple(TASKS), stored=_stored("yolov8")),
    Family(title="YOLO11", pattern="yolo11{size}{task}", tasks=tuple(TASKS), stored=_stored("yolo11")),
    Family(title="YOLO26", pattern="yolo26{size}{task}", tasks=tuple(TASKS), stored=_stored("yolo26")),
    Family(title="YOLOv10", pattern="yolov10{size}", sizes=("n", "s", "m", "b", "l", "x"), stored=("yolov10n",)),
    Family(title="YOLO12", pattern="yolo12{size}{task}", tasks=tuple(TASKS), stored=("yolo12n", "yolo12n-cls")),
    Family(title="YOLOv9", pattern="yolov9{size}", sizes=("t", "s", "m", "c", "e"), stored=("yolov9t",)),
    Family(title="YOLOv9", pattern="yolov9{size}{task}", sizes=("c", "e"), tasks=("-seg",)),
    Family(title="YOLOv8-P2", pattern="yolov8{size}-p2", stored=("yolov8n-p2",)),
    Family(title="YOLOv8-P6", pattern="yolov8{size}{task}-p6", tasks=("", "-seg", "-pose"), stored=("yolov8n-p6",)),
    Family(title="YOLOv8-ghost", pattern="yolov8{size}-ghost", stored=("yolov8n-ghost",)),
    Family(title="YOLOv8-ghost-P2", pattern="yolov8{size}-ghost-p2"),
    Family(title="YOLOv8-ghost-P6", pattern="yolov8{size}-ghost-p6"),
    Family(title="YOLOv8-cls-ResNet", pattern="yolov8n{task}-{size}", sizes=("resnet50", "resnet101"), tasks=("-cls",)),
    Family(title="YOLOv3u", pattern="yolov3{size}", sizes=("-tiny", "", "-spp"), stored=("yolov3-tiny",)),
    Family(title="YOLOv5u", pattern="yolov5{size}", stored=("yolov5n",)),
    Family(title="YOLOv5u-P6", pattern="yolov5{size}-p6", stored=("yolov5n-p6",)),
    Family(title="YOLOv6", pattern="yolov6{size}", stored=("yolov6n",)),
    Family(
        title="RT-DETR",
        pattern="rtdetr-{size}",
        sizes=("l", "x", "resnet50", "resnet101"),
        stored=("rtdetr-l",),
        nc=5,
    ),
    Family(title="YOLOv8-RT-DETR", pattern="yolov8{size}-rtdetr", nc=5),
)


# Small architectures of layers that only large models have, so that the tests stay fast.


def _conv(c: int, k: int = 3, s: int = 2) -> list[Any]:
    return [-1, 1, "Conv", [c, k, s]]


SMALL: dict[str, dict[str, Any]] = {
    # YOLOv9-e: a second backbone to which the feature maps of the first are added; and ADown, ELAN1.
    "small-yolov9e": {
        "nc": 5,
        "backbone": [
            [-1, 1, "nn.Identity", []],
            _conv(8),
            _conv(16),
            [-1, 1, "RepNCSPELAN4", [32, 16, 8, 2]],
            [-1, 1, "ADown", [32]],
            [-1, 1, "RepNCSPELAN4", [48, 32, 16, 1]],
            [1, 1, "CBLinear", [[8]]],
            [3, 1, "CBLinear", [[8, 16]]],
            [5, 1, "CBLinear", [[8, 16, 32]]],
            [0, 1, "Conv", [8, 3, 2]],
            [[6, 7, 8, -1], 1, "CBFuse", [[0, 0, 0]]],
            _conv(16),
            [[7, 8, -1], 1, "CBFuse", [[1, 1]]],
            [-1, 1, "ELAN1", [32, 16, 8]],
            [-1, 1, "ADown", [32]],
            [[8, -1], 1, "CBFuse", [[2]]],
            [-1, 1, "SPPELAN", [32, 16]],
        ],
        "head": [[-1, 1, "AConv", [48]], [[13, 16, 17], 1, "Detect", ["nc"]]],
    },
    # RT-DETR with every kind of its layers, and fewer queries than positions.
    "small-rtdetr": {
        "nc": 5,
        "scales": {"l": [1.0, 1.0, 1024]},
        "scale": "l",
        "backbone": [
            [-1, 1, "HGStem", [8, 16]],
            [-1, 2, "HGBlock", [8, 32, 3]],
            [-1, 1, "DWConv", [32, 3, 2, 1, False]],
            [-1, 2, "HGBlock", [16, 64, 5, True, False]],
            [-1, 2, "HGBlock", [16, 64, 5, True, True]],
            [-1, 1, "DWConv", [64, 3, 2, 1, False]],
            [-1, 1, "ResNetLayer", [64, 16, 1, False, 1]],
        ],
        "head": [
            [-1, 1, "Conv", [32, 1, 1, "None", 1, 1, False]],
            [-1, 1, "AIFI", [64, 4]],
            [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
            [4, 1, "Conv", [32, 1, 1, "None", 1, 1, False]],
            [[-2, -1], 1, "Concat", [1]],
            [-1, 2, "RepC3", [32, 0.5]],
            [-1, 1, "Conv", [32, 3, 2]],
            [[-1, 8], 1, "Concat", [1]],
            [-1, 1, "RepC3", [32]],
            [[12, 15], 1, "RTDETRDecoder", ["nc", 32, 40, 2, 4, 2, 64]],
        ],
    },
    # Activations with options, and a first convolution of ResNet.
    "small-resnet": {
        "nc": 5,
        "activation": "nn.LeakyReLU(0.1)",
        "backbone": [
            [-1, 1, "ResNetLayer", [3, 8, 1, True, 1]],
            [-1, 1, "ResNetLayer", [8, 8, 1, False, 2]],
            [-1, 1, "ResNetLayer", [32, 8, 2, False, 1]],
        ],
        "head": [[-1, 1, "SPP", [32]], [[1, 3], 1, "Detect", ["nc"]]],
    },
}
"""Architectures in the form of Ultralytics' files, by name; their outputs are in `references/`."""

NAMES = {name: (family, task) for family in FAMILIES for name, task in family.names()}
"""Family and task's suffix of every name."""

STORED = (*(name for family in FAMILIES for name in family.stored), *SMALL)
"""Names whose outputs are in `references/`."""

GAINS = {"yolo12n": 1.0, "yolo12n-cls": 1.0, "small-yolov9e": 1.1}
"""`deterministic_weights`' gain where the default lets sums of many layers grow until all scores are 0 or 1."""


# The README's list.

README = Path(__file__).resolve().parents[2] / "README.md"
BEGIN, END = "<!-- families: python tests/models/families.py -->\n", "<!-- /families -->"


def render_table() -> str:
    """The families as a Markdown table: what `test_models_yolo.py` loads, and whose outputs it compares."""
    rows: dict[tuple[str, str, bool], list[tuple[str, tuple[str, ...]]]] = {}
    for title in dict.fromkeys(family.title for family in FAMILIES):
        families = [family for family in FAMILIES if family.title == title]
        sizes = families[0].sizes
        tasks = [
            TASKS[task] + ("" if family.sizes == sizes else f" ({', '.join(family.sizes)})")
            for family in families
            for task in family.tasks
        ]
        stored = tuple(name for family in families for name in family.stored)
        key = (
            ", ".join(size.strip("-") or "base" for size in sizes),
            "all five" if len(tasks) == len(TASKS) else ", ".join(tasks),
            bool(stored),
        )
        rows.setdefault(key, []).append((title, stored))
    lines = ["| families | sizes | tasks | outputs compared |", "|---|---|---|---|"]
    for (sizes_text, tasks_text, _), members in rows.items():
        names = [name for _, stored in members for name in stored]
        compared = ", ".join(f"`{name}`" for name in names) if len(names) <= 5 else f"{len(names)} networks"
        titles = ", ".join(title for title, _ in members)
        lines.append(f"| {titles} | {sizes_text} | {tasks_text} | {compared or 'weights only'} |")
    return "\n".join(lines) + "\n"


def write_readme() -> None:
    """Put the table between its two marks in the README."""
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    README.write_text(f"{before}{BEGIN}{render_table()}{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    write_readme()
