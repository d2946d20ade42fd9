"""The findings: which sentences appear, and the numbers in them."""

import polars as pl
from example_comparison import PYCOCOTOOLS, ULTRALYTICS, example_comparison

from trtkit.comparison.findings import describe_findings


def text(**about):
    return " ".join(example_comparison(**about).findings())


def accuracy_of_int8(low, high):
    comparison = example_comparison()
    ends = {f"delta {ULTRALYTICS} low": low, f"delta {ULTRALYTICS} high": high}
    rows = comparison.rows.with_columns(**{name: pl.lit(value) for name, value in ends.items()})
    return describe_findings(rows, comparison.about)[1]


def test_losses_by_both_rules_with_both_values():
    sentence = example_comparison().findings()[1]
    assert sentence.startswith("INT8 ")
    assert "loses 0.0041 mAP50-95 by Ultralytics' rule (0.7612 to 0.7571)" in sentence
    assert "loses 0.0051 pycocotools/AP by pycocotools' rule (0.7421 to 0.7370)" in sentence


def test_no_change():
    assert "does not change mAP50-95 by Ultralytics' rule (0.7612 to 0.7612)" in example_comparison().findings()[0]


def test_a_gain():
    comparison = example_comparison(
        reference="int8", metrics=[[ULTRALYTICS, "mAP50-95"], [PYCOCOTOOLS, "pycocotools/AP"]]
    )
    assert "gains 0.0041 mAP50-95 (0.7571 to 0.7612)" in comparison.findings()[0]


def test_a_loss_whose_interval_includes_zero_is_not_significant():
    sentence = accuracy_of_int8(-0.009, 0.001)
    assert "no significant change of mAP50-95 by Ultralytics' rule (0.7612 to 0.7571; change -0.0041" in sentence
    assert "-0.0090 to +0.0010" in sentence


def test_a_loss_whose_interval_excludes_zero_has_it():
    sentence = accuracy_of_int8(-0.006, -0.002)
    assert "loses 0.0041 mAP50-95" in sentence
    assert "-0.0060 to -0.0020" in sentence


def test_latency_of_onnx_runtime_is_never_called_tensorrt_s():
    cpu, gpu = text(where="cpu"), text(where="gpu")
    assert "Batch 1, ONNX Runtime 1.32.0 CPU, p50: FP32 " in cpu
    assert "not TensorRT's" in cpu
    assert "Batch 1, TensorRT 8.6.0 NVIDIA H100, p50: FP32 " in gpu
    assert "not TensorRT's" not in gpu


def test_latency_is_per_image_with_its_ratio():
    comparison = example_comparison(batches=(1, 8))
    sentences = [line for line in comparison.findings() if line.startswith("Batch ")]
    for size, sentence in zip((1, 8), sentences, strict=True):
        rows = comparison.rows.filter(batch=size)
        base, int8 = (rows.row(by_predicate=pl.col("precision") == name, named=True) for name in ("fp32", "int8"))
        assert sentence.startswith(f"Batch {size}, ")
        ratio = int8["p50_ms"] / base["p50_ms"]
        assert f"INT8 {int8['p50_ms'] / size:.2f} ms/image ({ratio:.2f}x FP32)" in sentence


def test_unsteady_latency_is_reported():
    assert "std/mean" not in text()
    comparison = example_comparison()
    rows = comparison.rows.with_columns(std_ms=comparison.rows["mean_ms"] * 0.25)
    assert "25 % (std/mean)" in " ".join(describe_findings(rows, comparison.about))


def test_images_and_skipped_images_are_reported():
    assert "Accuracy is measured on 40 images of val." in text(eval_images=40)
    assert "1 image was skipped." in text(skipped=["a.jpg"])
    assert "2 images were skipped." in text(skipped=["a.jpg", "b.jpg"])
    assert "skipped" not in text()


def test_notes_are_passed_on():
    assert "Note: class 3 has another name." in text(notes=["class 3 has another name"])


def test_calibration_with_its_split_and_percentile():
    assert "optimistic" in text(split="val")
    assert "optimistic" not in text(split="train")
    assert "calibrated" not in text(calibration=None)
    calibration = {"algorithm": "percentile", "percentile": 99.999, "image_count": 64, "split": "train", "hash": "0"}
    assert "64 images of train (percentile 99.999)." in text(calibration=calibration)
    assert "(minmax)." in text(calibration={**calibration, "algorithm": "minmax", "percentile": None})


def test_engines_and_whether_they_ran():
    assert "they did not run here: no GPU of sm89 was found." in text()
    assert "they ran here." in text(where="gpu")
    assert "No TensorRT engine was built: neither TensorRT nor TensorRT-RTX works here." in text(built=False)


def test_file_sizes():
    sizes = "FP32 10.6 MB, FP16 5.4 MB, INT8 3.2 MB; engines: FP32 11.9 MB, FP16 6.8 MB, INT8 4.9 MB"
    assert f"{sizes}." in text(builder="TensorRT 8.6.0")
    assert f"{sizes}; those of TensorRT-RTX hold the source code of their kernels" in text()
    assert "engines:" not in text(built=False)


def thresholds(*rows):
    """Rows of (target, class, threshold, differs), as `match_thresholds` has them."""
    return pl.DataFrame(
        [
            {"precision": "int8", "target": target, "name": name, "labels": 90, "reference": 0.81, "value": 0.79,
             "threshold": threshold, "low": threshold - 0.01, "high": threshold + 0.01, "differs": differs}
            for target, name, threshold, differs in rows
        ]
    )  # fmt: skip


def test_thresholds_that_differ_are_named():
    comparison = example_comparison(conf=0.25, recipes={"fp32": {}, "fp16": {}, "int8": {}})
    rows = thresholds(("recall", "", 0.21, True), ("recall", "cat", 0.18, True), ("recall", "dog", 0.24, False),
                      ("precision", "", 0.25, False))  # fmt: skip
    found = " ".join(describe_findings(comparison.rows, comparison.about, rows))
    assert (
        "INT8: confidence 0.210 gives the recall that FP16 has at 0.25 (0.8100; 0.25 gives 0.7900); "
        "by class for recall: cat 0.180." in found
    )
    rows = thresholds(("recall", "", 0.25, False), ("precision", "", 0.25, False))
    found = " ".join(describe_findings(comparison.rows, comparison.about, rows))
    assert "INT8 needs no other confidence threshold than FP16, 0.25." in found
