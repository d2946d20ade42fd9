"""The words of the widgets, explained where they are used."""

from __future__ import annotations

from markupsafe import Markup

from trtkit.html import render

__all__ = ["WORDS", "render_words"]

WORDS = {
    "mAP50-95": "Mean average precision: the area below precision over recall, averaged over the classes and over IoU "
    "thresholds from 0.50 to 0.95. mAP50 takes 0.50 alone.",
    "95 % interval": "Confidence interval: in 95 of 100 samples of images it holds the change over all images of the "
    "same kind. It is narrower with more images.",
    "significant": "The interval excludes zero, so that the change is hardly chance; with several classes the limit is "
    "stricter (Holm's method).",
    "p50, p99": "The latency that 50 or 99 of 100 runs do not exceed; p50 is the median.",
    "false positive": "A detection that no label accounts for.",
    "calibration": "Running images through the model to find the range of each tensor, which INT8 maps to 256 values.",
    "range, scale": "What of a tensor's values INT8 covers; the scale is the step between two INT8 values.",
    "clipping": "Values beyond the range become its end. A smaller range clips more and rounds less.",
    "percentile": "The range leaves out the largest values: 99.999 clips one in 100,000.",
    "SQNR": "Signal to quantization noise ratio, dB: how much larger the model's outputs are than what INT8 changes in "
    "them. Higher is better; 3 dB more is half the noise.",
    "gain": "The SQNR that the whole model gains if one layer is kept in FP16.",
    "MACs": "Multiply-accumulates: the arithmetic of a layer; their share says how much of the work it is.",
    "Pareto front": "Assignments that no other one beats in both accuracy and share in INT8.",
    "reformat": "A layer that only changes the layout or the type of a tensor: time without arithmetic.",
    "tactic": "The kernel that TensorRT chose for a layer by timing.",
    "ONNX node": "An operation of the exported graph; TensorRT fuses several into one layer.",
    "Q/DQ": "Pairs of QuantizeLinear and DequantizeLinear in the graph, which tell TensorRT what runs in INT8.",
    "optimization profile": "The smallest, usual and largest shape that an engine with dynamic shapes accepts.",
}
"""Explanations by word, each one or two sentences."""


def render_words(*words: str) -> Markup:
    """Some words with their explanations, folded.

    Args:
        words: Keys of `WORDS`.
    """
    return render("widgets/ui/templates/words.html.j2", words={word: WORDS[word] for word in words})
