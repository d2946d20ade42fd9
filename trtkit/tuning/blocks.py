"""A graph's nodes in blocks, as their names tell, and in an order that computes one block after the other."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import onnx

from trtkit.graph.structure import View

if TYPE_CHECKING:
    import torch

__all__ = ["block_of", "block_types", "pattern_of", "segments_of"]

_NUMBERED = re.compile(r"^/?(model\.\d+)(?:/|$)")
_HEAD_BRANCH = re.compile(r"^/?(model\.\d+/(?:cv|one2one_cv)\d\.\d+)(?:/|$)")


def block_of(node: str) -> str:
    """The block that a node belongs to, by its name: `/model.4/m.0/cv1/conv/Conv` is in `model.4`.

    Branches of a detection head are blocks of their own (`model.23/cv2.0`): each is as long as a whole block before
    it. A node of another graph belongs to the first part of its path, or stands for itself.
    """
    for pattern in (_HEAD_BRANCH, _NUMBERED):
        found = pattern.match(node)
        if found is not None:
            return found[1]
    parts = [part for part in node.split("/") if part]
    return parts[0] if len(parts) > 1 else node


def segments_of(view: View) -> list[list[onnx.NodeProto]]:
    """The nodes in runs of one block each, every run after all that it reads.

    Blocks may interleave in the graph's own order; here a block goes on as long as one of its nodes is ready. A block
    that waits for another in its midst is cut in two.

    Args:
        view: The graph.
    """
    waiting = {
        node.name: len({view.producer[name].name for name in view.data_inputs(node) if name in view.producer})
        for node in view.graph.node
    }
    place = {node.name: index for index, node in enumerate(view.graph.node)}
    ready = [node for node in view.graph.node if not waiting[node.name]]
    runs: list[list[onnx.NodeProto]] = []
    current = ""
    while ready:
        mine = [node for node in ready if block_of(node.name) == current]
        node = min(mine or ready, key=lambda node: place[node.name])
        ready.remove(node)
        if not mine:
            current = block_of(node.name)
            runs.append([])
        runs[-1].append(node)
        for reader in {reader.name: reader for name in node.output for reader in view.consumers[name]}.values():
            waiting[reader.name] -= 1
            if not waiting[reader.name]:
                ready.append(reader)
    return _joined(runs)


def _joined(runs: list[list[onnx.NodeProto]]) -> list[list[onnx.NodeProto]]:
    """Runs without a weight (a lone reshape) joined to the one that follows or, at the end, to the one before."""
    result: list[list[onnx.NodeProto]] = []
    pending: list[onnx.NodeProto] = []
    for run in runs:
        pending += run
        if any(node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") for node in run):
            result.append(pending)
            pending = []
    if pending:
        if result:
            result[-1].extend(pending)
        else:
            result.append(pending)
    return result


def block_types(module: torch.nn.Module | None) -> dict[str, str]:
    """The class of each numbered block, by the block's name; {} where there is no torch module."""
    if module is None:
        return {}
    types = {name: type(part).__name__ for name, part in module.named_modules() if _NUMBERED.fullmatch(name)}
    # A head's branch is a block of its own, and says whose it is.
    types.update(
        {
            f"{block}/{branch}": types[block]
            for block in list(types)
            for branch, _ in module.get_submodule(block).named_modules()
            if _HEAD_BRANCH.fullmatch(f"{block}/{branch}")
        }
    )
    return types


def pattern_of(name: str) -> str:
    """The `keep=` pattern that matches this name and no other."""
    return re.sub(r"([\[*?])", r"[\1]", name)
