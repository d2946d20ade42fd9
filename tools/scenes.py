"""Labeled scenes: handwritten digits drawn on photographs, with labels for all five tasks, from a seed.

A scene shows 1 to 12 digits of the UCI optical recognition set, as scikit-learn ships it, on one of 14 photographs that
scikit-learn and scikit-image ship. Digits of `train` and `val` come from different scans; the photographs are shared,
so that intervals over scenes say little about other photographs.

Seeds: 1 to 899 are for training (the demo's models: 7), 900 to 999 for choosing between settings (900), and those from
1000 on for claims alone: no published number comes from a scene that training or choosing has seen.

usage:
  python tools/scenes.py pack ASSETS.npz                   photographs and digits in one file, for a machine without the
                                                           two packages
  python tools/scenes.py write OUT --train 200 --val 1000 --seed 1001 [--assets ASSETS.npz] [--side 320]
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import multiprocessing
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scene_renderer import RenderedScenes, Renderer

__all__ = [
    "CELL",
    "CLAIM_SEEDS",
    "SIDES",
    "SLOTS",
    "SPLITS",
    "TASKS",
    "Assets",
    "Draws",
    "Labels",
    "draw",
    "label_scene",
    "make_folders",
    "render_scene",
    "shrink",
    "write_jpeg",
    "write_labels",
    "write_scene",
    "write_scenes",
]

SAMPLES = ("china.jpg", "flower.jpg")
"""Photographs of scikit-learn, CC BY 2.0."""

PHOTOGRAPHS = (
    "astronaut", "coffee", "chelsea", "rocket", "cat", "camera", "brick", "grass", "gravel", "page", "coins", "moon",
)  # fmt: skip
"""Photographs of scikit-image, CC0 or public domain."""

TRAIN_FRACTION = 0.8
"""The part of the digits, from the first on, of which `train` scenes are drawn; `val` scenes are drawn of the rest."""

CHOICE_SEEDS = range(900, 1000)
CLAIM_SEEDS = range(1000, 1_000_000)
SPLITS = ("train", "val")
TASKS = ("detect", "segment", "pose", "obb")
"""Tasks whose labels are one text file per image."""

SLOTS = 12
"""Most digits of a scene."""

SIDES = (360, 800)
"""A scene's height and width lie in this range, pixels."""

SMALLEST = 28
"""Least side of a digit's cell, pixels; the largest is `LARGEST` times the scene's shorter side."""

LARGEST = 0.55
CELL = 10
"""Pixels of a digit's scan, with one of padding on each side."""

CROPS = 3
"""Digits of a scene that become images of the classify task."""


@dataclasses.dataclass(frozen=True, eq=False)
class Assets:
    """What scenes are made of.

    Attributes:
        photographs: RGB, uint8, each (height, width, 3).
        digits: Ink in 0..1, shape (n, 10, 10), float32.
        classes: 0 to 9, shape (n,).
    """

    photographs: tuple[NDArray[np.uint8], ...]
    digits: NDArray[np.float32]
    classes: NDArray[np.int64]

    def digits_of(self, split: str) -> range:
        """The digits of which scenes of a split are drawn."""
        border = int(len(self.digits) * TRAIN_FRACTION)
        return range(border) if split == "train" else range(border, len(self.digits))

    @classmethod
    def collect(cls) -> Assets:
        """Take the photographs and digits from scikit-learn and scikit-image.

        Raises:
            SystemExit: A package or one of its photographs is missing: with fewer, a seed would give other scenes.
        """
        try:
            import skimage.data
            from sklearn.datasets import load_digits, load_sample_image

            photographs = [load_sample_image(name) for name in SAMPLES]
            photographs += [getattr(skimage.data, name)() for name in PHOTOGRAPHS]
        except Exception as error:
            raise SystemExit(
                f"Can't make scenes: a photograph or the digits are missing ({type(error).__name__}: {error}); "
                "pip install scikit-learn scikit-image, or pass --assets with a file that `scenes.py pack` wrote"
            ) from error
        colored = [np.stack([image] * 3, -1) if image.ndim == 2 else image[..., :3] for image in photographs]
        data = load_digits()
        digits = np.pad(data.images / 16, ((0, 0), (1, 1), (1, 1))).astype(np.float32)
        return cls(tuple(image.astype(np.uint8) for image in colored), digits, data.target.astype(np.int64))

    def save(self, path: Path) -> None:
        """Write all of it to one file, the photographs as PNG."""
        encoded = {
            f"photograph{index:02d}": cv2.imencode(".png", image[..., ::-1])[1]
            for index, image in enumerate(self.photographs)
        }
        np.savez_compressed(path, digits=(self.digits * 16).round().astype(np.uint8), classes=self.classes, **encoded)

    @classmethod
    def load(cls, path: Path | None) -> Assets:
        """Read a file of `save`; None takes the packages.

        Raises:
            SystemExit: The file is missing or lacks photographs.
        """
        if path is None:
            return cls.collect()
        if not path.exists():
            raise SystemExit(f"Can't read {path}: it does not exist; write it with `scenes.py pack {path}`")
        with np.load(path) as file:
            names = sorted(name for name in file.files if name.startswith("photograph"))
            if len(names) != len(SAMPLES) + len(PHOTOGRAPHS):
                raise SystemExit(f"{path} has {len(names)} photographs instead of {len(SAMPLES) + len(PHOTOGRAPHS)}")
            photographs = tuple(np.asarray(cv2.imdecode(file[name], cv2.IMREAD_COLOR))[..., ::-1] for name in names)
            return cls(photographs, file["digits"].astype(np.float32) / 16, file["classes"])


@dataclasses.dataclass(frozen=True, eq=False)
class Draws:
    """The random numbers of n scenes: all that decides what they show, but for the noise.

    Attributes:
        size: Height and width, pixels, (n, 2).
        photograph: (n,).
        zoom: The photograph's size over the least that covers the scene, (n,).
        offset: The part of the photograph's margin before the scene, y and x, in 0..1, (n, 2).
        brightness: Factor of the photograph, (n,).
        count: Digits that are tried, (n,).
        digit: (n, SLOTS), like all below.
        cell: Side of the digit's cell, pixels.
        angle: Radians, clockwise as seen.
        center: x and y, pixels, (n, SLOTS, 2).
        warp: Stretching and shearing of the digit before it is turned, (n, SLOTS, 2, 2).
        ink: Least ink that is drawn.
        color: RGB, (n, SLOTS, 3).
        inverts: Whether a color too near to the photograph's is replaced by the opposite instead of black.
        texture: Variation of the color over the scene, (n, SLOTS, 8, 8).
        blur: Standard deviation of a Gaussian blur over the scene, pixels; 0 for none, (n,).
        noise: Standard deviation of the noise, gray levels, (n,).
        noise_seed: (n,).
    """

    size: NDArray[np.int64]
    photograph: NDArray[np.int64]
    zoom: NDArray[np.float64]
    offset: NDArray[np.float64]
    brightness: NDArray[np.float64]
    count: NDArray[np.int64]
    digit: NDArray[np.int64]
    cell: NDArray[np.float64]
    angle: NDArray[np.float64]
    center: NDArray[np.float64]
    warp: NDArray[np.float64]
    ink: NDArray[np.float64]
    color: NDArray[np.float64]
    inverts: NDArray[np.bool_]
    texture: NDArray[np.float64]
    blur: NDArray[np.float64]
    noise: NDArray[np.float64]
    noise_seed: NDArray[np.int64]

    @property
    def affine(self) -> NDArray[np.float64]:
        """Scene pixels per pixel of the scan, (n, SLOTS, 2, 2)."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        turn = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)
        result: NDArray[np.float64] = (self.cell / CELL)[..., None, None] * (turn @ self.warp)
        return result


def draw(rng: np.random.Generator, count: int, assets: Assets, split: str, *, vary: float = 0) -> Draws:
    """Draw the random numbers of `count` scenes.

    Args:
        rng: Where they come from.
        count: Number of scenes.
        assets: Photographs and digits.
        split: Whose digits are drawn.
        vary: Augmentation of the digits' shapes: 0 for none, as in scenes that are written; 1 for the usual amount.
    """
    sides = rng.integers(*SIDES, (count, 2))
    shorter = sides.min(1, keepdims=True)
    digits = assets.digits_of(split)
    shape = (count, SLOTS)
    warp = vary * rng.normal(0, 1, (*shape, 3))
    stretch, shear = 0.08 * warp[..., 0], 0.06 * warp[..., 1]
    zero = np.zeros(shape)
    upper = np.log(LARGEST * shorter)
    return Draws(
        size=sides,
        photograph=rng.integers(len(assets.photographs), size=count),
        zoom=rng.uniform(1, 2, count),
        offset=rng.uniform(0, 1, (count, 2)),
        brightness=rng.uniform(0.5, 1.1, count),
        count=rng.integers(1, SLOTS + 1, count),
        digit=rng.integers(digits.start, digits.stop, shape),
        cell=np.exp(rng.uniform(0, 1, shape) * (upper - np.log(SMALLEST)) + np.log(SMALLEST)),
        angle=rng.uniform(-np.pi / 3, np.pi / 3, shape),
        center=rng.uniform(0.1, 0.9, (*shape, 2)) * sides[:, None, ::-1],
        warp=np.stack([np.stack([np.exp(stretch), shear], -1), np.stack([zero, np.exp(-stretch)], -1)], -2),
        ink=0.35 + 0.03 * np.clip(warp[..., 2], -1.5, 1.5),
        color=rng.uniform(0, 255, (*shape, 3)),
        inverts=rng.random(shape) < 0.5,
        texture=rng.standard_normal((*shape, 8, 8)),
        blur=np.where(rng.random(count) < 0.3, rng.uniform(0.4, 1.5, count), 0),
        noise=rng.uniform(0, 10, count),
        noise_seed=rng.integers(1 << 62, size=count),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Labels:
    """The labels of one scene.

    Attributes:
        rows: The lines of the label file of each task.
        crops: Class and crop of the first digits: x0, y0, x1, y1.
    """

    rows: dict[str, list[str]]
    crops: list[tuple[int, tuple[int, int, int, int]]]


def label_scene(scenes: RenderedScenes) -> Labels:
    """The labels of a single scene that was rendered with `keep_masks`."""
    height, width = (int(side) for side in scenes.size[0])
    shape = np.array([width, height], np.float64)
    rows: dict[str, list[str]] = {task: [] for task in TASKS}
    crops: list[tuple[int, tuple[int, int, int, int]]] = []
    for slot, (left, top, mask) in scenes.masks.items():
        outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_TC89_L1)
        outline = max(outlines, key=cv2.contourArea).reshape(-1, 2) + np.array([left, top])
        if len(outline) < 3:
            continue
        number = int(scenes.classes[0, slot])
        x0, y0, x1, y1 = (int(value) for value in scenes.boxes[0, slot])
        corners = scenes.corners[0, slot].double().numpy()
        center = np.array([x0 + x1, y0 + y1]) / 2 / shape
        box = _join([*center, (x1 - x0) / width, (y1 - y0) / height])
        visible = ((corners >= 0) & (corners < shape)).all(1)
        points = np.clip(corners / shape, 0, 1)
        keypoints = " ".join(f"{_join(point)} {2 * int(seen)}" for point, seen in zip(points, visible, strict=True))
        rows["detect"].append(f"{number} {box}")
        rows["segment"].append(f"{number} {_join(np.clip(outline / shape, 0, 1).ravel())}")
        rows["obb"].append(f"{number} {_join(points.ravel())}")
        rows["pose"].append(f"{number} {box} {keypoints}")
        if len(crops) < CROPS:
            crops.append((number, crop_of((x0, y0, x1, y1), (height, width))))
    return Labels(rows, crops)


def crop_of(box: tuple[int, int, int, int], shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """The square around a digit that is an image of the classify task, moved into the scene of (height, width)."""
    x0, y0, x1, y1 = box
    longer = max(x1 - x0, y1 - y0)
    side = min(longer + 2 * (int(0.15 * longer) + 2), *shape)
    left = min(max((x0 + x1 - side) // 2, 0), shape[1] - side)
    top = min(max((y0 + y1 - side) // 2, 0), shape[0] - side)
    return left, top, left + side, top + side


def _join(values: Any) -> str:
    return " ".join(f"{value:.6f}" for value in values)


@dataclasses.dataclass(frozen=True)
class _Job:
    """One scene to write."""

    out: Path
    assets: Path | None
    split: str
    index: int
    seed: int
    side: int | None


@functools.lru_cache(1)
def _renderer(path: Path | None) -> Any:
    """The renderer of a process, made when it is first needed."""
    import torch
    from scene_renderer import Renderer

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    return Renderer(Assets.load(path))


def _write_job(job: _Job) -> None:
    write_scene(_renderer(job.assets), job.out, job.split, job.index, seed=job.seed, side=job.side)


def render_scene(renderer: Renderer, split: str, index: int, *, seed: int) -> tuple[NDArray[np.uint8], Labels]:
    """One scene of a seed: its image, BGR, and its labels."""
    draws = draw(np.random.default_rng([seed, SPLITS.index(split), index]), 1, renderer.assets, split)
    scenes = renderer.render(draws, keep_masks=True)
    return np.ascontiguousarray(scenes.images[0].permute(1, 2, 0).numpy()[..., ::-1]), label_scene(scenes)


def write_scene(renderer: Renderer, out: Path, split: str, index: int, *, seed: int, side: int | None = None) -> None:
    """Write one scene into the folders of `make_folders`; arguments as in `write_scenes`."""
    image, labels = render_scene(renderer, split, index, seed=seed)
    name = f"{index:06d}"
    for number, (digit, (x0, y0, x1, y1)) in enumerate(labels.crops):
        folder = out / "classify" / split / str(digit)
        folder.mkdir(parents=True, exist_ok=True)
        write_jpeg(folder / f"{name}_{number}.jpg", image[y0:y1, x0:x1])
    first = out / TASKS[0] / "images" / split / f"{name}.jpg"
    write_jpeg(first, image if side is None else shrink(image, side))
    for task, rows in labels.rows.items():
        linked = out / task / "images" / split / first.name
        if linked != first:
            linked.unlink(missing_ok=True)
            linked.hardlink_to(first)
        write_labels(out / task / "labels" / split / f"{name}.txt", rows)


def shrink(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The image with its longest side at most `side` pixels."""
    ratio = side / max(image.shape[:2])
    if ratio >= 1:
        return image
    size = max(round(image.shape[1] * ratio), 1), max(round(image.shape[0] * ratio), 1)
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def write_labels(path: Path, rows: Sequence[str]) -> None:
    """Write a label file."""
    path.write_text("".join(f"{row}\n" for row in rows))


def write_jpeg(path: Path, image: NDArray[np.uint8], quality: int = 88) -> None:
    """Write a BGR image."""
    if not cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, quality]):
        raise SystemExit(f"Can't write {path}")


def make_folders(out: Path, tasks: Sequence[str] = TASKS) -> None:
    """Make the folders of tasks with boxes and their data.yaml."""
    for split in SPLITS:
        for task in tasks:
            for kind in ("images", "labels"):
                (out / task / kind / split).mkdir(parents=True, exist_ok=True)
    names = "".join(f"  {number}: '{number}'\n" for number in range(10))
    for task in tasks:
        extra = "kpt_shape: [4, 3]\nflip_idx: [1, 0, 3, 2]\n" if task == "pose" else ""
        (out / task / "data.yaml").write_text(f"train: images/train\nval: images/val\n{extra}names:\n{names}")


def write_scenes(
    out: Path, *, train: int, val: int, seed: int, assets: Path | None = None, side: int | None = None, workers: int = 0
) -> None:
    """Write scenes as images and label files.

    Writes OUT/{detect,segment,pose,obb} with data.yaml, labels/{train,val} and images/{train,val} (the same files,
    linked), and OUT/classify/{train,val}/<digit>.

    Args:
        out: The folder.
        train: Number of scenes of the split.
        val: Likewise.
        seed: The same seed gives the same scenes; see the top of the file for which one to take.
        assets: A file of `Assets.save`; None takes the packages.
        side: Longest side of the images; None keeps the scenes' own.
        workers: Processes; 0 for one per core.
    """
    Assets.load(assets)  # Before anything is written.
    make_folders(out)
    counts = {"train": train, "val": val}
    jobs = [_Job(out, assets, split, i, seed, side) for split, count in counts.items() for i in range(count)]
    with multiprocessing.get_context("spawn").Pool(workers or os.cpu_count() or 1) as pool:
        for _ in pool.imap_unordered(_write_job, jobs, chunksize=8):
            pass


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    pack = commands.add_parser("pack")
    pack.add_argument("out", type=Path)
    write = commands.add_parser("write")
    write.add_argument("out", type=Path)
    write.add_argument("--train", type=int, default=200)
    write.add_argument("--val", type=int, default=160)
    write.add_argument("--seed", type=int, required=True)
    write.add_argument("--assets", type=Path)
    write.add_argument("--side", type=int)
    write.add_argument("--workers", type=int, default=0)
    given = vars(parser.parse_args())
    if given.pop("command") == "pack":
        Assets.collect().save(given["out"])
    else:
        write_scenes(**given)


if __name__ == "__main__":
    main()
