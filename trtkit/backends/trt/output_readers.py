"""Predictions from an engine's outputs: what is enqueued on the GPU, and what the host makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from trtkit.backends.stages import enter_stage
from trtkit.backends.trt import gpu_postprocess
from trtkit.backends.trt.gpu_objects import read_objects
from trtkit.models.model import DENSE, END2END_ROWS, NMS_ROWS, RAW_MAPS, TASKS
from trtkit.models.output_shapes import find_main_output
from trtkit.tasks import get_task
from trtkit.tasks.base import BoxLayout
from trtkit.tasks.detect import get_main_output
from trtkit.tasks.raw_maps import Level, find_levels

if TYPE_CHECKING:
    from trtkit.data import ImageTransform
    from trtkit.models.model import ModelInfo
    from trtkit.tasks import PostprocessSettings, Prediction

__all__ = ["BoxReader", "HostReader", "OutputReader", "choose_reader"]

OBJECTS, SUFFICES = "objects", "trtkit_suffices"
"""Names beside those of outputs: boxes after NMS, and whether there is room for all candidates."""


class OutputReader(Protocol):
    """Reads the outputs of one output format.

    Attributes:
        computes: Whether anything is computed on the GPU, which is worth a CUDA graph.
    """

    computes: bool

    def enqueue(
        self, outputs: Mapping[str, torch.Tensor], count: int, settings: PostprocessSettings
    ) -> Mapping[str, torch.Tensor]:
        """Enqueue what the GPU does; nothing waits for it.

        Args:
            outputs: The engine's, a row for each image.
            count: Images in the batch.
            settings: Thresholds; `multi_label` does not apply.

        Returns:
            What `read` needs on the host, float32.

        Raises:
            ModelError: The outputs do not fit the output format.
        """

    def read(
        self, values: Mapping[str, np.ndarray], transforms: Sequence[ImageTransform], settings: PostprocessSettings
    ) -> Sequence[Prediction] | None:
        """Predictions from what `enqueue` gave, in memory that is written again.

        Args:
            values: On the host.
            transforms: From `locate_images`, one per image.
            settings: Thresholds.

        Returns:
            One per image; None if there were more candidates than there is room for.
        """

    def read_all(
        self, outputs: Mapping[str, torch.Tensor], transforms: Sequence[ImageTransform], settings: PostprocessSettings
    ) -> Sequence[Prediction]:
        """Predictions from as many candidates as there are; waits for the GPU.

        Args:
            outputs: As for `enqueue`.
            transforms: From `locate_images`, one per image.
            settings: Thresholds; `multi_label` does not apply.

        Raises:
            ModelError: The outputs do not fit the output format.
        """


def choose_reader(info: ModelInfo) -> OutputReader:
    """The reader of a model's outputs.

    Args:
        info: The model's description.
    """
    is_boxes = get_task(info.task).kinds == ("B",)
    return BoxReader(info) if is_boxes and info.output_format.name in BOX_FORMATS else HostReader(info)


BOX_FORMATS = tuple(one.name for one in (DENSE, RAW_MAPS, NMS_ROWS, END2END_ROWS))
"""Output formats of detection that the GPU reads."""


class BoxReader:
    """Boxes of detection: decoding and NMS on the GPU.

    Args:
        info: The model's description.
    """

    computes = True

    def __init__(self, info: ModelInfo) -> None:
        self._info, self._format = info, info.output_format.name

    def enqueue(
        self, outputs: Mapping[str, torch.Tensor], count: int, settings: PostprocessSettings
    ) -> Mapping[str, torch.Tensor]:
        """Enqueue decoding and NMS; see `OutputReader`."""
        if self._format == RAW_MAPS.name:
            needs_nms = self._info.output_format.needs_nms
            levels = self._find_levels(outputs)
            objects = gpu_postprocess.enqueue_raw_maps(outputs, levels, count, settings, needs_nms=needs_nms)
            return {OBJECTS: objects}
        boxes = self._find_boxes(outputs)
        if self._format == DENSE.name:
            classes = len(self._info.names)
            return {OBJECTS: gpu_postprocess.enqueue_postprocess(boxes, classes, count, settings)}
        return {OBJECTS: gpu_postprocess.enqueue_rows(boxes, count, settings)}

    def read(
        self, values: Mapping[str, np.ndarray], transforms: Sequence[ImageTransform], settings: PostprocessSettings
    ) -> Sequence[Prediction] | None:
        """Read the objects; see `OutputReader`."""
        return read_objects(values[OBJECTS], transforms, settings)

    def read_all(
        self, outputs: Mapping[str, torch.Tensor], transforms: Sequence[ImageTransform], settings: PostprocessSettings
    ) -> Sequence[Prediction]:
        """Decode and apply NMS; see `OutputReader`. Rows of final boxes have no candidates and never come here."""
        if self._format == RAW_MAPS.name:
            levels, needs_nms = self._find_levels(outputs), self._info.output_format.needs_nms
            return gpu_postprocess.postprocess_raw_maps(outputs, levels, transforms, settings, needs_nms=needs_nms)
        return gpu_postprocess.postprocess(self._find_boxes(outputs), len(self._info.names), transforms, settings)

    def _find_boxes(self, outputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The output of dense boxes, or of rows."""
        boxes = outputs[find_main_output({name: value.ndim for name, value in outputs.items()}, self._info.task)]
        axis, columns = (1, 4 + len(self._info.names)) if self._format == DENSE.name else (2, 6)
        # The CPU path checks the shape on an empty batch, so that both raise the same errors.
        empty = {"output0": np.empty((0, *boxes.shape[1:]), np.float32)}
        get_main_output(empty, self._info, axis=axis, columns=columns)
        return boxes

    def _find_levels(self, outputs: Mapping[str, torch.Tensor]) -> list[Level]:
        shapes = {name: tuple(value.shape) for name, value in outputs.items()}
        return list(find_levels(shapes, self._info, BoxLayout()))


class HostReader:
    """Masks, keypoints, oriented boxes and other formats: decoded on the host, of dense outputs the candidates alone.

    Args:
        info: The model's description.
    """

    def __init__(self, info: ModelInfo) -> None:
        self._info, self._task = info, get_task(info.task)
        self.computes = info.output_format == DENSE and info.task in TASKS

    def enqueue(
        self, outputs: Mapping[str, torch.Tensor], count: int, settings: PostprocessSettings
    ) -> Mapping[str, torch.Tensor]:
        """Enqueue the choice of candidates; see `OutputReader`."""
        values = {name: value.float() for name, value in outputs.items()}
        if self.computes:
            main = find_main_output({name: value.ndim for name, value in outputs.items()}, self._info.task)
            dense, classes = values[main], len(self._info.names)
            # Of another shape it goes to the host as it is, whose decoder raises the error.
            if dense.ndim == 3 and dense.shape[1] >= 4 + classes:
                chosen, suffices = gpu_postprocess.enqueue_candidates(dense, classes, settings)
                values |= {main: chosen, SUFFICES: suffices}
        return values

    def read(
        self, values: Mapping[str, np.ndarray], transforms: Sequence[ImageTransform], settings: PostprocessSettings
    ) -> Sequence[Prediction] | None:
        """Decode; see `OutputReader`."""
        if not values.get(SUFFICES, True):
            return None
        outputs = {name: value.copy() for name, value in values.items() if name != SUFFICES}
        return list(self._task.postprocess(outputs, self._info, transforms, settings))

    def read_all(
        self, outputs: Mapping[str, torch.Tensor], transforms: Sequence[ImageTransform], settings: PostprocessSettings
    ) -> Sequence[Prediction]:
        """Decode all outputs; see `OutputReader`."""
        enter_stage("download")
        values = {name: value.float().cpu().numpy() for name, value in outputs.items()}
        enter_stage("postprocess")
        return list(self._task.postprocess(values, self._info, transforms, settings))
