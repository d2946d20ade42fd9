"""The ONNX graph of a recipe: traced, with NMS, and in the recipe's precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from trtkit.graph.analysis import GraphIndex
from trtkit.graph.fp16 import convert_to_fp16
from trtkit.graph.nms import add_nms
from trtkit.graph.onnx_file import update_metadata
from trtkit.graph.prequantized import check_placement, is_quantized, prepare_quantized
from trtkit.graph.qdq import insert_qdq
from trtkit.graph.raw_maps import cut_before_decoding, find_raw_maps
from trtkit.graph.torch_export import trace
from trtkit.models.model import RAW_MAPS

if TYPE_CHECKING:
    import onnx

    from trtkit.calibration import Calibration
    from trtkit.models import Model
    from trtkit.progress import Reporter
    from trtkit.recipe import Recipe

__all__ = ["build_graph", "cuts_decoding", "trace_with_nms"]


def build_graph(
    model: Model,
    recipe: Recipe,
    calibration: Calibration | None,
    *,
    imgsz: tuple[int, int],
    overflow: Mapping[str, float] | None = None,
    reporter: Reporter | None = None,
) -> onnx.ModelProto:
    """Build the ONNX graph of a recipe: traced, with NMS or without decoding if requested, in the recipe's precision.

    Args:
        model: From `load`.
        recipe: The settings.
        calibration: The calibration of INT8, else None.
        imgsz: Height and width, multiples of the stride, pixels.
        overflow: Largest magnitude of nodes that overflow in FP16, by name; None if that was not checked.
        reporter: Is told of the steps of `export`'s plan.
    """
    if reporter is not None:
        reporter.begin("trace the graph and add NMS" if recipe.nms and not model.nms else "trace the graph")
    graph = trace_with_nms(model, recipe, imgsz)
    # Behind Q/DQ a head's structure can't be read: its maps are found before, and become outputs after.
    maps = find_raw_maps(graph, model.info) if cuts_decoding(model, recipe) else ()
    if reporter is not None and recipe.precision != "fp32" and not is_quantized(graph):
        reporter.begin(f"convert to {recipe.precision}")
    if is_quantized(graph):
        check_placement(graph, model.stem, build=recipe.format == "engine")
        graph = prepare_quantized(graph)
    elif recipe.int8 and not recipe.implicit:
        assert calibration is not None
        graph = insert_qdq(graph, calibration.ranges, recipe.keep, corrections=calibration.corrections)
        update_metadata(graph, {}, {"calibration_hash": calibration.hash})
    elif recipe.int8:
        # TensorRT's calibrator would run decoding in INT8 too, where box coordinates have 127 steps.
        update_metadata(graph, {}, {"fp32": sorted(GraphIndex(graph).decode_nodes())})
    elif recipe.half:
        graph = convert_to_fp16(graph, recipe.keep, keep_nodes=overflow or ())
        update_metadata(graph, {}, {"overflow": None if overflow is None else dict(overflow)})
    if maps:
        graph = cut_before_decoding(graph, maps, model.info, half=recipe.half)
    return update_metadata(graph, {}, {"recipe": recipe.to_dict()})


def cuts_decoding(model: Model, recipe: Recipe) -> bool:
    """Whether decoding is left out of the graph; a file's own graph may end before it already.

    Args:
        model: From `load`.
        recipe: The settings.
    """
    return not recipe.decode and model.output_format.name != RAW_MAPS.name


def trace_with_nms(model: Model, recipe: Recipe, imgsz: tuple[int, int]) -> onnx.ModelProto:
    """Trace the FP32 graph of a recipe, with NMS if requested.

    Args:
        model: From `load`.
        recipe: The settings.
        imgsz: Height and width, multiples of the stride, pixels.
    """
    graph = trace(model, imgsz=imgsz, batch=recipe.batch, dynamic=recipe.is_dynamic, simplify=recipe.simplify)
    if recipe.nms and not model.nms:
        graph = add_nms(graph, model.info, conf=recipe.conf, iou=recipe.iou, max_det=recipe.max_det)
    return graph
