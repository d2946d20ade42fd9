"""Average precision and recall by pycocotools' rule, computed by faster-coco-eval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["coco_metrics"]

OBJECTS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
KEYPOINTS = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")


def coco_metrics(
    labels: list[dict[str, Any]],
    found: list[dict[str, Any]],
    *,
    shapes: Sequence[tuple[int, int]],
    classes: Sequence[int],
    kind: str,
    iou_type: str,
    sigmas: Sequence[float] = (),
) -> dict[str, float]:
    """COCO's twelve numbers (ten for keypoints) over all pictures.

    Args:
        labels: COCO annotations: image_id (a place in `shapes`), category_id, bbox, area, ...; ids are added in place.
        found: COCO results: the same and score; ids are added in place.
        shapes: (height, width) of each picture.
        classes: The class numbers.
        kind: "B", "M" or "P"; the suffix of the names, left out for "B".
        iou_type: "bbox", "segm" or "keypoints".
        sigmas: Spread of each keypoint.

    Returns:
        Values by name, e.g. "coco/AP" or "coco/AP(M)". Sizes are pycocotools': small below 32^2 pixels of area, large
        above 96^2; a size without labels is left out (pycocotools writes -1 there).
    """
    from faster_coco_eval import COCO, COCOeval_faster

    # The evaluator takes id 0 for "not matched".
    for place, label in enumerate(labels, 1):
        label |= {"id": place, "iscrowd": 0}
    truth = COCO(
        {
            "images": [{"id": index, "height": height, "width": width} for index, (height, width) in enumerate(shapes)],
            "annotations": labels,
            "categories": [{"id": number, "name": str(number)} for number in classes],
        }
    )
    options = {"kpt_oks_sigmas": list(sigmas)} if sigmas else {}
    evaluator = COCOeval_faster(truth, truth.loadRes(found), iou_type, print_function=_silent, **options)
    evaluator.run()
    names = KEYPOINTS if iou_type == "keypoints" else OBJECTS
    tail = "" if kind == "B" else f"({kind})"
    values = zip(names, evaluator.stats, strict=False)
    return {f"coco/{name}{tail}": float(value) for name, value in values if value >= 0}


def _silent(*_: object) -> None:
    """Where the evaluator's own report goes."""
