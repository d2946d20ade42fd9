"""Preprocessing and postprocessing of the model that `model.json` describes. NumPy is all it needs.

`Processor(folder)` reads `model.json`; `preprocess` turns images into the model's input, `postprocess` turns the
model's outputs into detections in pixels of the images. The arithmetic is trtkit's: from the same outputs it finds the
same detections.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Pixels between the boxes of one class and the next, so that NMS never compares them.
CLASS_OFFSET = 7680.0
# NMS considers this many highest-scoring boxes of an image.
MAX_CANDIDATES = 30000
PADDING = 114
# Keeps logarithm and square root away from zero.
EPSILON = 1e-7


class Processor:
    """What goes into the model and what comes out.

    Args:
        folder: The folder that holds `model.json`.

    Attributes:
        model: `model.json`.
        task: "detect", "segment", "pose", "obb" or "classify".
        names: Class names by number.
        size: Height and width of the input, pixels.
    """

    def __init__(self, folder: str | Path) -> None:
        self.model: dict[str, Any] = json.loads((Path(folder) / "model.json").read_text(encoding="utf-8"))
        self.task: str = self.model["task"]
        self.names = {int(number): name for number, name in self.model["names"].items()}
        height, width = self.model["input"]["imgsz"]
        self.size = (int(height), int(width))

    def preprocess(self, images: Sequence[np.ndarray]) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Turn images into the model's input.

        Args:
            images: uint8, shape (height, width, channels), BGR if there are three channels.

        Returns:
            Float32 of shape (images, channels, height, width), and where each image lies in it, for `postprocess`.
        """
        settings = self.model["preprocess"]
        images = [to_channels(image, settings["channels"]) for image in images]
        resized, places = zip(*(RESIZERS[settings["kind"]](image, self.size) for image in images), strict=True)
        batch = np.stack(resized)
        if settings["color"] == "rgb" and settings["channels"] == 3:
            batch = batch[..., ::-1]
        values = np.ascontiguousarray(batch.transpose(0, 3, 1, 2)).astype(np.float32)
        # Division rounds correctly, multiplication by 1 / 255 would not.
        values = values / np.float32(255) if settings["scale"] == 1 / 255 else values * np.float32(settings["scale"])
        if settings["mean"]:
            values -= np.array(settings["mean"], np.float32)[:, None, None]
        if settings["std"]:
            values /= np.array(settings["std"], np.float32)[:, None, None]
        return values, list(places)

    def postprocess(
        self,
        outputs: Mapping[str, np.ndarray],
        places: Sequence[Mapping[str, Any]],
        *,
        conf: float | None = None,
        iou: float | None = None,
        max_det: int | None = None,
    ) -> list[dict[str, Any]]:
        """Turn the model's outputs into detections.

        Args:
            outputs: Arrays by output name, one row per image.
            places: From `preprocess`.
            conf: The lowest score, exclusive; None takes that of `model.json`.
            iou: Of two boxes of a class with a larger IoU the lower-scoring is dropped; None as above.
            max_det: Maximum number of objects of an image; None as above.

        Returns:
            For each image `boxes` (n, 4) as x1, y1, x2, y2, `scores` (n,) and `classes` (n,), by falling score, and
            `masks` (list of boolean arrays of the image's shape), `keypoints` (n, points, 2 or 3) or `xywhr` (n, 5:
            center x, center y, width, height, angle in radians) by task. For classify `probabilities` (classes,).
        """
        limits = dict(self.model["thresholds"])
        given = {"conf": conf, "iou": iou, "max_det": max_det}
        limits.update({name: value for name, value in given.items() if value is not None})
        main = np.asarray(outputs[self.model["outputs"]["main"]], np.float32)[: len(places)]
        if self.task == "classify":
            return [{"probabilities": row} for row in main]
        found = [self._decode(image, limits) for image in main]
        prototypes = outputs.get(self.model["outputs"].get("prototypes") or "")
        return [
            self._to_image(decoded, place, None if prototypes is None else np.asarray(prototypes[row], np.float32))
            for row, (decoded, place) in enumerate(zip(found, places, strict=True))
        ]

    def predict(
        self, images: Sequence[np.ndarray], run: Callable[[np.ndarray], Mapping[str, np.ndarray]], **limits: Any
    ) -> list[dict[str, Any]]:
        """Preprocess, run and postprocess any number of images, batch by batch.

        Args:
            images: As `preprocess` takes them.
            run: Runs the model: input to outputs by name.
            **limits: `conf`, `iou` and `max_det` of `postprocess`.
        """
        most = self.model["input"]["batch"]
        found: list[dict[str, Any]] = []
        for start in range(0, len(images), most or 8):
            values, places = self.preprocess(images[start : start + (most or 8)])
            if most and not self.model["input"]["dynamic"] and len(values) < most:
                # The model takes full batches only.
                values = np.concatenate((values, np.zeros((most - len(values), *values.shape[1:]), np.float32)))
            found += self.postprocess(run(values), places, **limits)
        return found

    def describe(self, found: Mapping[str, Any]) -> str:
        """The detections of one image as lines of text."""
        if "probabilities" in found:
            best = np.argsort(-found["probabilities"], kind="stable")[:5].tolist()
            return "\n".join(f"{found['probabilities'][number]:.3f}  {self.names[number]}" for number in best)
        rows = zip(found["scores"], found["classes"].tolist(), found["boxes"].tolist(), strict=True)
        return "\n".join(
            f"{score:.3f}  {self.names.get(number, number)}  {', '.join(f'{value:.1f}' for value in box)}"
            for score, number, box in rows
        )

    def _decode(self, image: np.ndarray, limits: Mapping[str, float]) -> dict[str, np.ndarray]:
        """Decode one image's output: `boxes` in input pixels, `scores`, `classes` and `extra` by falling score."""
        kind = self.model["outputs"]["format"]
        conf, max_det = limits["conf"], int(limits["max_det"])
        count, rotated = len(self.names), self.task == "obb"
        scale = np.array([self.size[1], self.size[0]] * 2, np.float32)
        if kind == "dense":
            scores = image[4 : 4 + count]
            anchors = np.flatnonzero(scores.max(0) > conf)
            best, classes = scores[:, anchors].max(0), scores[:, anchors].argmax(0)
            boxes = np.ascontiguousarray(image[:4, anchors].T)
            if rotated:
                boxes = np.concatenate((boxes, image[-1:, anchors].T), 1)
                keep = nms_rotated(boxes, best, classes, limits["iou"], max_det)
            else:
                boxes = to_corners(boxes)
                keep = nms(boxes, best, classes, limits["iou"], max_det)
            extra = image[4 + count :, anchors[keep]].T
            return {"boxes": boxes[keep], "scores": best[keep], "classes": classes[keep], "extra": extra}
        if kind == "detr_queries":
            scores = image[:, 4 : 4 + count]
            best = scores.max(1)
            order = np.argsort(-best, kind="stable")
            order = order[best[order] > conf][:max_det]
            boxes = to_corners(image[order, :4] * scale)
            extra = image[order, 4 + count :]
            return {"boxes": boxes, "scores": best[order], "classes": scores[order].argmax(1), "extra": extra}
        rows = image[image[:, 4] > conf]
        rows = rows[np.argsort(-rows[:, 4], kind="stable")[:max_det]]
        boxes = rows[:, [0, 1, 2, 3, -1]] if rotated else rows[:, :4]
        if kind == "detr_rows":
            boxes = to_corners(boxes * scale)
        return {"boxes": boxes, "scores": rows[:, 4], "classes": rows[:, 5].astype(np.int64), "extra": rows[:, 6:]}

    def _to_image(
        self, decoded: dict[str, np.ndarray], place: Mapping[str, Any], prototypes: np.ndarray | None
    ) -> dict[str, Any]:
        boxes, extra = decoded["boxes"], decoded["extra"]
        found: dict[str, Any] = {"scores": decoded["scores"], "classes": decoded["classes"].astype(np.int64)}
        if self.task == "obb":
            found["xywhr"] = rotated_to_image(boxes, place)
            corners = rotated_corners(found["xywhr"])
            height, width = place["shape"]
            around = np.concatenate((corners.min(1), corners.max(1)), 1)
            found["boxes"] = np.clip(around, 0, np.array([width, height] * 2, np.float32))
            return found
        found["boxes"] = points_to_image(boxes, place)
        if self.task == "pose":
            points, values = self.model["kpt_shape"]
            keypoints = np.array(extra, np.float32).reshape(-1, points, values)
            keypoints[..., :2] = points_to_image(keypoints[..., :2], place, clip=False)
            found["keypoints"] = keypoints
        elif self.task == "segment" and prototypes is not None:
            objects = zip(extra[:, : len(prototypes)], boxes, strict=True)
            found["masks"] = [decode_mask(prototypes, one, box, place) for one, box in objects]
        return found


# Images


def read_image(path: str | Path) -> np.ndarray:
    """Read an image file as BGR uint8 with OpenCV or, where that is missing, Pillow; or a NumPy array as it is."""
    try:
        return decode_image(Path(path).read_bytes())
    except ValueError as error:
        raise SystemExit(f"{path}: {error}") from None


def decode_image(data: bytes) -> np.ndarray:
    """Decode an image file's bytes as BGR uint8, upright; or those of a NumPy file (height, width, channels), uint8.

    Raises:
        ValueError: They are no image.
    """
    if data[:6] == b"\x93NUMPY":
        return _decode_array(data)
    try:
        import cv2
    except ImportError:
        from PIL import Image, ImageOps, UnidentifiedImageError

        try:
            with Image.open(io.BytesIO(data)) as image:
                # Phones store how they were held; OpenCV turns the image by itself.
                upright = ImageOps.exif_transpose(image).convert("RGB")
                return np.ascontiguousarray(np.asarray(upright)[..., ::-1])
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError("the data is not an image that Pillow can read") from error
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if decoded is None:
        raise ValueError("the data is not an image that OpenCV can read")
    return np.asarray(decoded)


def _decode_array(data: bytes) -> np.ndarray:
    file = io.BytesIO(data)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("the array is of another version of NumPy's format than 1.0")
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
    pixels = data[file.tell() :]
    # A header may claim any size: nothing is allocated for it.
    if dtype != np.uint8 or is_fortran or len(shape) != 3 or min(shape) < 1 or math.prod(shape) != len(pixels):
        raise ValueError(f"the array is no image: {dtype} of shape {shape} in {len(pixels)} bytes")
    return np.frombuffer(pixels, np.uint8).reshape(shape)


def to_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """The image as a model of `channels` channels takes it: BGR becomes gray for one channel."""
    if image.shape[2] == channels:
        return image
    if channels == 1 and image.shape[2] == 3:
        # OpenCV's weights of blue, green and red, in 32768ths.
        return ((image @ np.array([[3735], [19235], [9798]], np.int64) + 16384) >> 15).astype(np.uint8)
    raise SystemExit(f"the image has {image.shape[2]} channels, the model takes {channels}")


def encode_image(image: np.ndarray) -> bytes:
    """Encode an image without loss: as PNG or, where it has neither 1 nor 3 channels, as a NumPy file."""
    buffer = io.BytesIO()
    if image.shape[2] not in (1, 3):
        np.save(buffer, np.ascontiguousarray(image))
        return buffer.getvalue()
    try:
        import cv2
    except ImportError:
        from PIL import Image

        pixels = image[..., 0] if image.shape[2] == 1 else image[..., ::-1]
        Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
        return buffer.getvalue()
    return bytes(cv2.imencode(".png", image)[1])


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize bilinearly to (height, width) in OpenCV's fixed-point arithmetic (INTER_LINEAR of uint8), bit for bit."""
    if image.shape[:2] == size:
        return image
    above, below, upper, lower = _taps(image.shape[0], size[0])
    left, right, first, second = _taps(image.shape[1], size[1])
    values = image.astype(np.int32)
    rows = (values[:, left] * first[:, None] + values[:, right] * second[:, None]) >> 4
    top, bottom = (upper[:, None, None] * rows[above]) >> 16, (lower[:, None, None] * rows[below]) >> 16
    return np.clip((top + bottom + 2) >> 2, 0, 255).astype(np.uint8)


def _taps(before: int, after: int) -> tuple[np.ndarray, ...]:
    """The two source pixels of each of `after` pixels and their weights, in 2048ths."""
    centers = ((np.arange(after) + 0.5) * (1 / (after / before)) - 0.5).astype(np.float32)
    start = np.floor(centers).astype(np.int64)
    weight = centers - start.astype(np.float32)
    weights = (np.rint(part * np.float32(2048)).astype(np.int32) for part in (np.float32(1) - weight, weight))
    return np.clip(start, 0, before - 1), np.clip(start + 1, 0, before - 1), *weights


def letterbox(image: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, dict[str, Any]]:
    """Resize with the aspect ratio kept and pad with gray."""
    shape = (image.shape[0], image.shape[1])
    ratio = min(size[0] / shape[0], size[1] / shape[1])
    resized = (min(math.ceil(shape[0] * ratio), size[0]), min(math.ceil(shape[1] * ratio), size[1]))
    top, left = (size[0] - resized[0]) // 2, (size[1] - resized[1]) // 2
    padded = np.full((*size, image.shape[2]), PADDING, np.uint8)
    padded[top : top + resized[0], left : left + resized[1]] = resize(image, resized)
    return padded, {"shape": shape, "resized": resized, "pad": (top, left), "size": size}


def stretch(image: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, dict[str, Any]]:
    """Resize to the input, the aspect ratio ignored."""
    return resize(image, size), {"shape": image.shape[:2], "resized": size, "pad": (0, 0), "size": size}


def center_crop(image: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, dict[str, Any]]:
    """Resize the shorter side with antialiasing, as Pillow does, and cut out the middle."""
    height, width = image.shape[:2]
    if size[0] != size[1]:
        resized = size
    elif height <= width:
        resized = size[0], int(size[0] * width / height)
    else:
        resized = int(size[1] * height / width), size[1]
    top, left = round((resized[0] - size[0]) / 2), round((resized[1] - size[1]) / 2)
    values = image.astype(np.float64)
    across, down = _triangle_weights(width, resized[1]), _triangle_weights(height, resized[0])
    if across is not None:
        values = np.floor(np.einsum("ow,hwc->hoc", across, values, optimize=True) + 0.5)
    if down is not None:
        values = np.floor(np.einsum("oh,hwc->owc", down, values, optimize=True) + 0.5)
    cropped = values.astype(np.uint8)[top : top + size[0], left : left + size[1]]
    return cropped, {"shape": (height, width), "resized": resized, "pad": (-top, -left), "size": size}


def _triangle_weights(before: int, after: int) -> np.ndarray | None:
    if before == after:
        return None
    scale = before / after
    distances = np.abs(np.arange(before) + 0.5 - ((np.arange(after) + 0.5) * scale)[:, None]) / max(scale, 1.0)
    weights = np.maximum(1 - distances, 0)
    weights /= weights.sum(1, keepdims=True)
    return np.floor(weights * (1 << 22) + 0.5) / (1 << 22)


RESIZERS: dict[str, Callable[..., tuple[np.ndarray, dict[str, Any]]]] = {
    "letterbox": letterbox,
    "stretch": stretch,
    "center_crop": center_crop,
}


# Boxes


def points_to_image(points: np.ndarray, place: Mapping[str, Any], *, clip: bool = True) -> np.ndarray:
    """Map x, y pairs (last axis) from the input to the image."""
    pairs = points.shape[-1] // 2
    vertical, horizontal = (after / before for after, before in zip(place["resized"], place["shape"], strict=True))
    mapped = points - np.tile(np.array([place["pad"][1], place["pad"][0]], np.float32), pairs)
    mapped = mapped / np.tile(np.array([horizontal, vertical], np.float32), pairs)
    height, width = place["shape"]
    return np.clip(mapped, 0, np.tile(np.array([width, height], np.float32), pairs)) if clip else mapped


def to_corners(boxes: np.ndarray) -> np.ndarray:
    """Convert center x, center y, width, height to x1, y1, x2, y2."""
    half = boxes[:, 2:4] / 2
    return np.concatenate((boxes[:, :2] - half, boxes[:, :2] + half), 1)


def box_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """IoU of every pair of boxes."""
    width = np.minimum(first[:, None, 2], second[:, 2]) - np.maximum(first[:, None, 0], second[:, 0])
    height = np.minimum(first[:, None, 3], second[:, 3]) - np.maximum(first[:, None, 1], second[:, 1])
    shared = np.maximum(width, 0) * np.maximum(height, 0)
    areas = [(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) for boxes in (first, second)]
    return shared / np.maximum(areas[0][:, None] + areas[1] - shared, np.finfo(np.float32).tiny)


def nms(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, iou: float, max_det: int) -> np.ndarray:
    """Greedy class-wise NMS; the indices kept, by falling score."""
    order = np.argsort(-scores, kind="stable")[:MAX_CANDIDATES]
    shifted = boxes[order] + (classes[order] * CLASS_OFFSET).astype(np.float32)[:, None]
    kept: list[int] = []
    free = np.ones(len(order), bool)
    for index in range(len(order)):
        if free[index]:
            kept.append(index)
            if len(kept) == max_det:
                break
            free[index + 1 :] &= box_iou(shifted[index : index + 1], shifted[index + 1 :])[0].astype(np.float64) <= iou
    return order[kept]


def nms_rotated(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, iou: float, max_det: int) -> np.ndarray:
    """Class-wise Fast NMS of oriented boxes by `prob_iou`; the indices kept, by falling score."""
    order = np.argsort(-scores, kind="stable")[:MAX_CANDIDATES]
    keep = np.zeros(len(order), bool)
    for number in np.unique(classes[order]):
        mine = np.flatnonzero(classes[order] == number)
        overlap = np.triu(prob_iou(boxes[order[mine]]) > iou, 1)
        keep[mine] = ~overlap.any(0)
    return order[keep][:max_det]


def prob_iou(boxes: np.ndarray) -> np.ndarray:
    """One minus the Hellinger distance of every pair of oriented boxes as normal distributions (arXiv:2106.06072)."""
    boxes = boxes.astype(np.float64)
    along, across = boxes[:, 2] ** 2 / 12, boxes[:, 3] ** 2 / 12
    cos, sin = np.cos(boxes[:, 4]), np.sin(boxes[:, 4])
    a, b, c = along * cos**2 + across * sin**2, along * sin**2 + across * cos**2, (along - across) * cos * sin
    x, y = (boxes[:, None, axis] - boxes[:, axis] for axis in (0, 1))
    sums = a[:, None] + a, b[:, None] + b, c[:, None] + c
    both = sums[0] * sums[1] - sums[2] ** 2
    apart = (sums[0] * y**2 + sums[1] * x**2 - 2 * sums[2] * x * y) / (both + EPSILON) / 4
    own = np.maximum(a * b - c**2, 0)
    distance = apart + np.log(both / (4 * np.sqrt(own[:, None] * own) + EPSILON) + EPSILON) / 2
    similarity = 1 - np.sqrt(1 - np.exp(-np.clip(distance, EPSILON, 100)) + EPSILON)
    return np.maximum(similarity, 0).astype(np.float32)


def rotated_corners(boxes: np.ndarray) -> np.ndarray:
    """The four corners of oriented boxes, (n, 4, 2)."""
    cos, sin = np.cos(boxes[:, 4]), np.sin(boxes[:, 4])
    along, across = np.stack((cos, sin), 1) * boxes[:, 2:3] / 2, np.stack((-sin, cos), 1) * boxes[:, 3:4] / 2
    signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
    return np.stack([boxes[:, :2] + a * along + b * across for a, b in signs], 1)


def rotated_to_image(boxes: np.ndarray, place: Mapping[str, Any]) -> np.ndarray:
    """Map oriented boxes from the input to the image."""
    vertical, horizontal = (after / before for after, before in zip(place["resized"], place["shape"], strict=True))
    cos, sin = np.cos(boxes[:, 4]), np.sin(boxes[:, 4])
    mapped = np.empty_like(boxes)
    mapped[:, :2] = points_to_image(boxes[:, :2], place, clip=False)
    mapped[:, 2] = boxes[:, 2] * np.hypot(cos / horizontal, sin / vertical)
    mapped[:, 3] = boxes[:, 3] * np.hypot(sin / horizontal, cos / vertical)
    mapped[:, 4] = np.arctan2(sin / vertical, cos / horizontal)
    return mapped


# Masks


def decode_mask(
    prototypes: np.ndarray, coefficients: np.ndarray, box: np.ndarray, place: Mapping[str, Any]
) -> np.ndarray:
    """One object's mask in the image: weighted prototypes, interpolated bilinearly within the object's box."""
    mask = np.zeros(tuple(place["shape"]), bool)
    x1, y1, x2, y2 = (math.ceil(value) for value in points_to_image(box, place).tolist())
    if x1 >= x2 or y1 >= y2:
        return mask
    rows, down = _mask_taps(np.arange(y1, y2), prototypes.shape[1], place, axis=0)
    columns, across = _mask_taps(np.arange(x1, x2), prototypes.shape[2], place, axis=1)
    top, left = int(rows[0]), int(columns[0])
    part = prototypes[:, top : int(rows[-1]) + 2, left : int(columns[-1]) + 2]
    values = np.einsum("k,khw->hw", coefficients, part)
    values = _interpolate(values, rows - top, down)
    mask[y1:y2, x1:x2] = _interpolate(values.T, columns - left, across).T > 0
    return mask


def _mask_taps(pixels: np.ndarray, count: int, place: Mapping[str, Any], *, axis: int) -> tuple[np.ndarray, np.ndarray]:
    ratio = place["resized"][axis] / place["shape"][axis]
    centers = (pixels + 0.5) * ratio + place["pad"][axis]
    positions = np.clip(centers * (count / place["size"][axis]) - 0.5, 0, count - 1)
    before = np.minimum(positions.astype(np.int64), max(0, count - 2))
    return before, (positions - before).astype(np.float32)


def _interpolate(values: np.ndarray, before: np.ndarray, weights: np.ndarray) -> np.ndarray:
    after = np.minimum(before + 1, len(values) - 1)
    return values[before] * (1 - weights)[:, None] + values[after] * weights[:, None]


def encode_mask(mask: np.ndarray) -> bytes:
    """Lengths of unset and set runs in turn, down the columns (COCO's run-length encoding), as text with spaces."""
    flat = mask.T.ravel()
    edges = np.concatenate((np.flatnonzero(np.diff(flat)) + 1, [flat.size]))
    runs = np.diff(np.concatenate(([0], edges))).tolist()
    return " ".join(map(str, [0, *runs] if flat.size and flat[0] else runs)).encode()


def decode_mask_runs(runs: bytes, shape: Sequence[int]) -> np.ndarray:
    """The inverse of `encode_mask` for a mask of shape (height, width)."""
    counts = np.array(runs.split(), np.int64)
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(shape[1], shape[0]).T
