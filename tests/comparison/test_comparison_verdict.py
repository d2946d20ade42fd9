import polars as pl
from example_comparison import PYCOCOTOOLS, ULTRALYTICS, example_comparison

from trtkit.comparison.verdict import verdict_sentences


def text(**about):
    return " ".join(example_comparison(**about).verdict())


def test_losses_are_told_by_both_definitions_with_both_values():
    said = example_comparison().verdict()[1]
    assert said == (
        "INT8 loses 0.0041 mAP50-95 by Ultralytics' rule (0.7612 to 0.7571) "
        "and loses 0.0051 pycocotools/AP by pycocotools' rule (0.7421 to 0.7370)."
    )


def test_no_change_is_told_as_none():
    assert example_comparison().verdict()[0].startswith("FP16 keeps mAP50-95 by Ultralytics' rule (0.7612 to 0.7612)")


def test_times_of_onnx_runtime_are_never_called_tensorrt_s():
    assert "These times are not TensorRT's" in text(where="cpu")
    assert "ONNX Runtime 1.32.0 CPU takes" in text(where="cpu")
    assert "not TensorRT's" not in text(where="gpu")
    assert "TensorRT 8.6.0 NVIDIA H100 takes" in text(where="gpu")


def test_unsteady_times_are_called_so():
    assert "scatter" not in text()
    comparison = example_comparison()
    rows = comparison.rows.with_columns(std_ms=comparison.rows["mean_ms"] * 0.25)
    assert "scatter by up to 25% of their mean" in " ".join(verdict_sentences(rows, comparison.about))


def test_each_batch_has_its_times():
    said = text(batches=(1, 8))
    assert "At batch 1," in said
    assert "At batch 8," in said


def test_few_images_are_called_few():
    assert "can be chance" in text(eval_images=40)
    assert "can be chance" not in text(eval_images=5000)


def test_skipped_images_are_counted():
    assert "1 image could not be read and was left out." in text(skipped=["a.jpg"])
    assert "2 images could not be read and were left out." in text(skipped=["a.jpg", "b.jpg"])
    assert "left out" not in text()


def test_notes_of_the_evaluation_are_passed_on():
    assert "Note: class 3 is called otherwise." in text(notes=["class 3 is called otherwise"])


def test_calibrating_on_the_judging_split_is_said():
    assert "flatters INT8" in text(split="val")
    assert "flatters" not in text(split="train")
    assert "ranges" not in text(calibration=None)


def test_a_percentile_is_told_with_its_share():
    made = {"algorithm": "percentile", "percentile": 99.999, "images": 64, "split": "train", "hash": "0"}
    assert "INT8's ranges come from 64 images of train (percentile 99.999)." in text(calibration=made)
    assert "(minmax)." in text(calibration={**made, "algorithm": "minmax", "percentile": None})


def test_engines_that_did_not_run_are_said_not_to_have_run():
    told = "built the engines of FP32, FP16 and INT8 for sm89; they did not run here: no GPU of sm89 was found."
    assert told in text()
    assert "and they ran here." in text(where="gpu")
    assert "No TensorRT engine was built: neither TensorRT nor TensorRT-RTX works here." in text(built=False)


def test_sizes_are_told():
    assert (
        "The ONNX files of FP32, FP16 and INT8 have 10.6, 5.4 and 3.2 MB, the engines 11.9, 6.8 and 4.9 MB." in text()
    )
    assert "engines 11.9" not in text(built=False)


def test_a_gain_is_a_gain():
    comparison = example_comparison(
        reference="int8", metrics=[[ULTRALYTICS, "mAP50-95"], [PYCOCOTOOLS, "pycocotools/AP"]]
    )
    assert comparison.verdict()[0].startswith("FP32 gains 0.0041 mAP50-95 (0.7571 to 0.7612)")


def bounded(low, high):
    comparison = example_comparison()
    ends = {f"delta {ULTRALYTICS} low": low, f"delta {ULTRALYTICS} high": high}
    rows = comparison.rows.with_columns(**{name: pl.lit(value) for name, value in ends.items()})
    return verdict_sentences(rows, comparison.about)[1]


def test_a_loss_whose_interval_holds_zero_is_no_measurable_loss():
    said = bounded(-0.009, 0.001)
    assert said.startswith("INT8 shows no measurable loss of mAP50-95 by Ultralytics' rule (0.7612 to 0.7571; ")
    assert "change -0.0041, 95 % interval -0.0090 to +0.0010" in said


def test_a_loss_whose_interval_leaves_out_zero_is_told_with_it():
    assert bounded(-0.006, -0.002).startswith("INT8 loses 0.0041 mAP50-95")
    assert "95 % interval -0.0060 to -0.0020" in bounded(-0.006, -0.002)
