"""Jetson: what the target trtexec writes, and the graph cut for DLA: the backbone there, the head on the GPU."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import onnx

from trtkit.calibration.tensorrt_cache import format_cache
from trtkit.deployment.bundle import FILES, Bundle, Source
from trtkit.deployment.target import Target, register_target
from trtkit.deployment.trtexec import FILE_NOTES, format_settings, keep_fp32_options, write_trtexec
from trtkit.graph.analysis import GraphIndex
from trtkit.graph.dla import cut_at_head, find_head_inputs, fix_shape, list_fallbacks, read_activation_ranges
from trtkit.graph.fp16 import convert_to_fp16, convert_to_fp32
from trtkit.graph.onnx_file import write_onnx
from trtkit.graph.prequantized import is_quantized, remove_qdq

__all__ = ["write_jetson"]


def check_jetson(source: Source) -> None:
    """Check that the graph can be cut.

    Raises:
        OnnxError: It can't.
    """
    find_head_inputs(_to_float(onnx.load(source.path)))


def write_jetson(bundle: Bundle, folder: Path) -> Sequence[str]:
    """Write what `write_trtexec` does, and `dla/`: two graphs, the layers that fall back and a calibration cache."""
    notes = write_trtexec(bundle, folder)
    proto = onnx.load(folder / bundle.file_name)
    ranges = read_activation_ranges(proto)
    height, width = bundle.imgsz
    fixed = fix_shape(_to_float(proto), (bundle.batch or 1, bundle.info.channels, height, width))
    cut = cut_at_head(fixed)
    target = folder / "dla"
    target.mkdir()
    for name, part in (("backbone", cut.backbone), ("head", cut.head)):
        write_onnx(part, target / f"{name}.onnx")
        # Coordinates in pixels stay in FP32; the backbone has none.
        kept = GraphIndex(fixed).decode_nodes() & {node.name for node in part.graph.node}
        write_onnx(convert_to_fp16(part, protect=False, keep_nodes=kept), target / f"{name}-fp16.onnx")
    head_nodes = {node.name for node in cut.head.graph.node}
    options = keep_fp32_options(GraphIndex(fixed).decode_nodes() & head_nodes)
    with (folder / "settings.sh").open("a", encoding="utf-8") as file:
        file.write(format_settings({"HEAD_KEEP_FP32": options}))
    present = {name for node in cut.backbone.graph.node for name in (*node.input, *node.output)}
    if scales := {name: reach for name, reach in ranges.items() if name in present}:
        # trtexec reads caches as an entropy calibrator's.
        (target / "calibration.cache").write_text(format_cache(scales, algorithm="entropy"), encoding="utf-8")
    fallbacks = list_fallbacks(cut.backbone)
    (target / "layers.md").write_text(_render_layers(cut.backbone, fallbacks, cut.tensors), encoding="utf-8")
    shutil.copyfile(FILES / "jetson" / "check_dla.py", folder / "check_dla.py")
    count = sum(node.name not in fallbacks for node in cut.backbone.graph.node)
    return (
        *notes,
        "",
        f"DLA (not tried; from NVIDIA's lists for Orin): `./build.sh --dla 0` builds `dla/backbone.plan` for a "
        f"DLA core "
        f"and `dla/head.plan` for the GPU. {count} of the backbone's {len(cut.backbone.graph.node)} nodes should "
        f"run on "
        "DLA; `dla/layers.md` names the others, and each change between DLA and GPU costs a copy. DLA takes no "
        "open sizes "
        f"(here {bundle.batch or 1} x {bundle.info.channels} x {height} x {width}) and no Q/DQ: "
        + (
            "INT8 comes from `dla/calibration.cache`, layers without a scale run in FP16. "
            if scales
            else "it runs in FP16. "
        )
        + "TensorRT 11.0 to 11.3 have no DLA; 11.4 has it on AGX Orin from JetPack 7.2.2 on, in FP16 here. "
        "`python check_dla.py` runs the two plans one after the other.",
    )


def _to_float(proto: onnx.ModelProto) -> onnx.ModelProto:
    return convert_to_fp32(remove_qdq(proto) if is_quantized(proto) else proto)


def _render_layers(backbone: onnx.ModelProto, fallbacks: dict[str, str], tensors: Sequence[str]) -> str:
    lines = [
        "# The backbone on DLA",
        "",
        "From NVIDIA's lists of operators and restrictions (Orin, TensorRT 8.5 to 10); not run on a DLA. `trtexec "
        "--verbose` says what the compiler decided.",
        "",
        f"The graph is cut at {', '.join(f'`{name}`' for name in tensors)}: the head runs on the GPU.",
        "",
        "| operator | nodes | on DLA |",
        "|---|---|---|",
    ]
    operators = Counter(node.op_type for node in backbone.graph.node)
    on_dla = Counter(node.op_type for node in backbone.graph.node if node.name not in fallbacks)
    lines += [f"| {name} | {count} | {on_dla[name]} |" for name, count in sorted(operators.items())]
    if fallbacks:
        lines += ["", "| node on the GPU | why |", "|---|---|"]
        lines += [f"| `{name}` | {reason} |" for name, reason in fallbacks.items()]
    return "\n".join(lines) + "\n"


register_target(
    Target(
        name="jetson",
        formats=("onnx",),
        write=write_jetson,
        check=check_jetson,
        file_notes={
            **FILE_NOTES,
            "dla/": "the backbone for DLA and the head for the GPU, in FP32 and typed FP16; what falls back",
            "check_dla.py": "runs the two plans of `dla/` and compares the detections",
        },
    )
)
