"""Shapes of a model's outputs: which output format they are, how many classes, and whether they fit a description."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trtkit.errors import ModelError
from trtkit.models.model import (
    CLASS_SCORES,
    DENSE,
    DETR_HEAD,
    DETR_QUERIES,
    DETR_ROWS,
    END2END_ROWS,
    NMS_ROWS,
    RAW_MAPS,
    TASKS,
    ModelInfo,
    OutputFormat,
    default_preprocess,
    parse_trtkit_entry,
)
from trtkit.models.model_arguments import ErrorType, names_mismatch

__all__ = [
    "RAW_EXTRA",
    "OutputShape",
    "check_outputs",
    "count_classes",
    "count_extra_values",
    "find_main_output",
    "fit_output_format",
    "format_shapes",
    "group_raw_maps",
    "infer_classes",
    "infer_output_format",
    "order_outputs",
    "with_output_format",
]

OutputShape = Sequence[int | None]
"""Sizes of an output, None where a size is dynamic."""

MAX_QUERIES = 1000
"""Rows of RT-DETR and of end-to-end heads; outputs of more rows are dense ones of another layout."""

EXTRA_VALUES = {"detect": 0, "obb": 1}
"""Values after box and class scores, where the task sets them alone."""

ROW_FORMATS = (NMS_ROWS, END2END_ROWS, DETR_ROWS)
"""Formats whose rows hold a class index."""

RAW_EXTRA = {"segment": "coefficients", "pose": "keypoints", "obb": "angles"}
"""What `RAW_MAPS` has besides boxes and scores, by task."""

_RAW_MAP = re.compile(r"(boxes|scores|coefficients|keypoints|angles)_s(\d{1,4})")

KNOWN_FORMATS = (DENSE, *ROW_FORMATS, DETR_QUERIES, CLASS_SCORES)


def find_main_output(dimensions: Mapping[str, int], task: str) -> str:
    """The output that holds boxes or class scores: `output0`, else the first with as many dimensions as the task needs.

    Exporters name outputs in their own ways, and some put mask prototypes first.

    Args:
        dimensions: Number of dimensions of each output by name, in the file's order; not empty.
        task: One of `TASKS`, or a registered task, whose outputs may have any number of dimensions.

    Returns:
        A name; without a fitting output `output0` or the first.
    """
    names = sorted(dimensions, key=lambda name: name != "output0")
    rank = 2 if task == "classify" else 3 if task in TASKS else None
    return next((name for name in names if rank in (None, dimensions[name])), names[0])


def group_raw_maps(names: Iterable[str]) -> dict[int, dict[str, str]]:
    """The outputs of `RAW_MAPS` by stride in rising order, and by what they hold.

    Args:
        names: Names of outputs; those of other forms, such as mask prototypes, are left out.
    """
    groups: dict[int, dict[str, str]] = {}
    for name in names:
        match = _RAW_MAP.fullmatch(name)
        if match is not None:
            groups.setdefault(int(match[2]), {})[match[1]] = name
    return dict(sorted(groups.items()))


def order_outputs(shapes: Mapping[str, OutputShape], task: str) -> list[OutputShape]:
    """The shapes of a file's outputs, that of `find_main_output` first.

    Args:
        shapes: Shape of each output by name, in the file's order; not empty.
        task: As in `find_main_output`.
    """
    main = find_main_output({name: len(shape) for name, shape in shapes.items()}, task)
    return [shapes[main], *(shape for name, shape in shapes.items() if name != main)]


def count_classes(
    task: str, shapes: Sequence[OutputShape], names: int | None, asked: str, error_type: ErrorType
) -> tuple[int, tuple[int, int] | None]:
    """The number of classes and, for pose, the keypoint shape, of a model with `DENSE` or `CLASS_SCORES` output.

    Args:
        task: One of `TASKS`.
        shapes: Shapes of the outputs in order, None where a size is dynamic.
        names: Number of class names that the caller passed, or None.
        asked: What was asked for, for errors.
        error_type: The error to raise.

    Returns:
        Classes, and (keypoints, values per keypoint) for pose or None. If the keypoint values divide by both 2 and 3,
        they are taken as x, y, visibility.

    Raises:
        ModelError: The shapes do not fit the task, or they are ambiguous and no names were passed.
    """
    rank = 2 if task == "classify" else 3
    if not shapes or len(shapes[0]) != rank or (task == "segment" and (len(shapes) < 2 or len(shapes[1]) != 4)):
        raise error_type(
            asked,
            f"outputs of shape {format_shapes(shapes)} do not fit {task}",
            "pass the task it was made for",
            code="model-outputs-mismatch",
            task=task,
            shapes=[list(shape) for shape in shapes],
        )
    values = shapes[0][1]
    box_values = {"classify": 0, "detect": 4, "obb": 5}.get(task, 4)
    if task == "segment":
        masks = shapes[1][1]
        values = None if masks is None or values is None else values - masks
    if task == "pose":
        if names is None:
            raise error_type(
                asked,
                "its output shape does not separate classes from keypoints",
                "pass names=",
                code="model-names-missing",
            )
        extra = 0 if values is None else values - 4 - names
        if extra < 2 or (extra % 3 and extra % 2):
            raise error_type(
                asked,
                f"{values} values per anchor leave no keypoints for {names} classes",
                "pass names= with one name for each class",
                code="model-names-mismatch",
                names=names,
            )
        width = 2 if extra % 3 else 3
        return names, (extra // width, width)
    if values is None and names is None:
        raise error_type(asked, "its number of classes is dynamic", "pass names=", code="model-names-missing")
    classes = names if values is None else values - box_values
    if classes is None or classes < 1 or (names is not None and names != classes):
        raise names_mismatch(names, classes, asked, error_type)
    return classes, None


def infer_classes(
    task: str,
    output_format: OutputFormat,
    shapes: Sequence[OutputShape],
    names: int | None,
    asked: str,
    error_type: ErrorType,
) -> tuple[int, tuple[int, int] | None]:
    """The number of classes and, for pose, the keypoint shape, of a model of any output format.

    Args:
        task: One of `TASKS`, or a registered task, which needs names.
        output_format: What the model returns; rows, and formats that trtkit does not know, need names.
        shapes: As in `count_classes`, like the arguments below.
        names: Number of class names that the caller passed, or None.
        asked: What was asked for, for errors.
        error_type: The error to raise.

    Raises:
        ModelError: The shapes do not fit the task, or names are needed and were not passed.
    """
    if task in TASKS and output_format in (DENSE, CLASS_SCORES):
        return count_classes(task, shapes, names, asked, error_type)
    last = shapes[0][-1] if shapes and len(shapes[0]) == 3 else None
    if (task, output_format) == ("detect", DETR_QUERIES) and last is not None:
        if last < 5 or names not in (None, last - 4):
            raise names_mismatch(names, last - 4, asked, error_type)
        return last - 4, None
    if names is None:
        raise error_type(
            asked,
            f"the number of classes does not follow from {output_format.name} output of {task}",
            "pass names=",
            code="model-names-missing",
            output_format=output_format.name,
        )
    if task == "pose" and output_format in (NMS_ROWS, END2END_ROWS) and last is not None and last > 6:
        width = 2 if (last - 6) % 3 else 3
        return names, ((last - 6) // width, width)
    return names, None


def infer_output_format(
    task: str,
    shapes: Sequence[OutputShape],
    *,
    classes: int | None = None,
    kpt_shape: tuple[int, int] | None = None,
    detr: bool = False,
) -> OutputFormat:
    """The output format that fits the shapes, for a model that does not name it.

    `DENSE` has its columns first and many anchors; rows and queries have few, with their columns last. Two formats can
    fit one shape; then `DENSE` is taken first, `DETR_QUERIES` last.

    Args:
        task: One of `TASKS`.
        shapes: Shapes of the outputs in order.
        classes: Number of classes; None if unknown.
        kpt_shape: Keypoints and values per keypoint of pose, if known.
        detr: Whether the model is known as an RT-DETR: its rows are `DETR_ROWS`, and its queries come first.

    Returns:
        The first format that fits, or the task's default if none does.
    """
    if task == "classify" or not shapes or len(shapes[0]) != 3:
        return CLASS_SCORES if task == "classify" else DENSE
    _, first, last = shapes[0]
    extra = count_extra_values(task, shapes, kpt_shape)
    few = first is not None and first <= MAX_QUERIES
    if classes is None:
        # Without a number of classes the longer side tells rows from columns.
        few = few and last is not None and first is not None and first > last
        is_dense = not few
        is_rows = few and (last == 6 + extra if extra is not None else (last or 0) > 6)
        is_queries = few and task == "detect"
    else:
        is_dense = extra is None or first in (None, 4 + classes + extra)
        is_rows = few and last is not None and (extra is None or last == 6 + extra)
        is_queries = few and task == "detect" and (last == 4 + classes or (detr and last is None))
        if extra is None:
            # Mask coefficients or keypoints of unknown number: one of the two sides holds them.
            is_dense = first is None or last is None or last >= first
    candidates = [(is_dense, DENSE), (is_rows, END2END_ROWS), (is_queries, DETR_QUERIES)]
    if detr:
        candidates = [(is_queries, DETR_QUERIES), (is_rows, DETR_ROWS), (is_dense, DENSE)]
    return next((output_format for fits, output_format in candidates if fits), DENSE)


def fit_output_format(info: ModelInfo, shapes: Sequence[OutputShape], metadata: Mapping[str, Any]) -> ModelInfo:
    """Take the output format, and the preprocessing that goes with it, from the shapes if the file does not state them.

    trtkit states them; Ultralytics states rows of a one-to-one head or of NMS. Of an RT-DETR it states the head since
    it writes `DETR_ROWS`, and nothing in older files, of `DETR_QUERIES`; old files of YOLOv10 state nothing.

    Args:
        info: From `ModelInfo.from_metadata`.
        shapes: Shapes of the outputs in order.
        metadata: The file's metadata.
    """
    ours = parse_trtkit_entry(metadata.get("trtkit"))
    if "output_format" in ours or info.output_format != DENSE or info.task not in TASKS:
        return info
    text = f"{metadata.get('description', '')} {info.architecture}".lower()
    # With two classes queries have as many columns as rows.
    has_rows = metadata.get("head") == DETR_HEAD and shapes and len(shapes[0]) == 3 and shapes[0][2] in (6, None)
    output_format = (
        DETR_ROWS
        if has_rows
        else infer_output_format(
            info.task,
            shapes,
            classes=len(info.names),
            kpt_shape=info.kpt_shape,
            detr="rtdetr" in text or "rt-detr" in text,
        )
    )
    return with_output_format(info, output_format, metadata)


def with_output_format(info: ModelInfo, output_format: OutputFormat, metadata: Mapping[str, Any]) -> ModelInfo:
    """A description with another output format, and the preprocessing that goes with it if the file states none.

    Args:
        info: From `ModelInfo.from_metadata`.
        output_format: What the model returns.
        metadata: The file's metadata.
    """
    preprocess = info.preprocess
    if "preprocess" not in parse_trtkit_entry(metadata.get("trtkit")):
        preprocess = default_preprocess(info.task, channels=info.channels, output_format=output_format)
    return dataclasses.replace(info, output_format=output_format, preprocess=preprocess)


def check_outputs(info: ModelInfo, shapes: Sequence[OutputShape], asked: str, error_type: ErrorType) -> None:
    """Check that the outputs fit a description: task, output format, class names, keypoints.

    Other tasks than `TASKS` and other formats than trtkit's are not checked.

    Args:
        info: The description.
        shapes: Shapes of the outputs in order.
        asked: What was asked for, for errors.
        error_type: The error to raise.

    Raises:
        ModelError: They do not fit.
    """
    if info.task in TASKS and info.output_format.name == RAW_MAPS.name:
        _check_raw_maps(info, shapes, asked, error_type)
    if info.task not in TASKS or info.output_format not in KNOWN_FORMATS:
        return
    classes, columns = len(info.names), None
    is_classifier = info.output_format == CLASS_SCORES
    if is_classifier:
        columns = classes
    else:
        extra = count_extra_values(info.task, shapes, info.kpt_shape)
        box = 6 if info.output_format in ROW_FORMATS else 4 + classes
        columns = None if extra is None else box + extra
    rank, axis = (2, 1) if is_classifier else (3, 1 if info.output_format == DENSE else 2)
    has_masks = info.task != "segment" or any(len(shape) == 4 for shape in shapes[1:])
    if is_classifier != (info.task == "classify") or not shapes or len(shapes[0]) != rank or not has_masks:
        raise _outputs_mismatch(
            info, shapes, f"{info.output_format.name} output of {info.task} has another form", asked, error_type
        )
    size = shapes[0][axis]
    if size is not None and columns is not None and size != columns:
        raise _outputs_mismatch(
            info,
            shapes,
            f"{info.output_format.name} output of {info.task} with {classes} classes has {columns} values, not {size}",
            asked,
            error_type,
            expected=columns,
            value=size,
        )


def _check_raw_maps(info: ModelInfo, shapes: Sequence[OutputShape], asked: str, error_type: ErrorType) -> None:
    kinds = 2 + (info.task in RAW_EXTRA)
    maps = len(shapes) - (info.task == "segment")
    has_scores = sum(len(shape) == 4 and shape[1] in (None, len(info.names)) for shape in shapes) >= maps // kinds
    if info.task == "classify" or maps < kinds or maps % kinds or not has_scores or {len(one) for one in shapes} != {4}:
        raise _outputs_mismatch(
            info,
            shapes,
            f"raw maps of {info.task} are {kinds} of each stride, one of them of {len(info.names)} classes",
            asked,
            error_type,
        )


def _outputs_mismatch(
    info: ModelInfo, shapes: Sequence[OutputShape], reason: str, asked: str, error_type: ErrorType, **fields: int
) -> ModelError:
    return error_type(
        asked,
        f"its output is {format_shapes(shapes)}; {reason}",
        "check task and names, or pass output_format= if the file does not say what it returns",
        code="model-outputs-mismatch",
        task=info.task,
        output_format=info.output_format.name,
        names=len(info.names),
        shapes=[list(shape) for shape in shapes],
        **fields,
    )


def format_shapes(shapes: Sequence[OutputShape]) -> str:
    """Such as "1x84x8400, 1x32x160x160"; "?" where a size is dynamic.

    Args:
        shapes: Shapes of the outputs.
    """
    texts = ["x".join("?" if size is None else str(size) for size in shape) or "a scalar" for shape in shapes]
    return ", ".join(texts) or "nothing"


def count_extra_values(task: str, shapes: Sequence[OutputShape], kpt_shape: tuple[int, int] | None) -> int | None:
    """Mask coefficients, keypoint values or the angle of each object; None if unknown.

    Args:
        task: One of `TASKS`.
        shapes: Shapes of the outputs, that with the boxes first.
        kpt_shape: Keypoints and values per keypoint of pose, if known.
    """
    if task == "segment":
        return next((shape[1] for shape in shapes[1:] if len(shape) == 4), None)
    if task == "pose":
        return math.prod(kpt_shape) if kpt_shape is not None else None
    return EXTRA_VALUES.get(task, 0)
