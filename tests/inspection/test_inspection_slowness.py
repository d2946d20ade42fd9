"""why_slow(): planted causes in layer tables are named, with their cost and the nodes to change."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import polars as pl
import pytest
from layer_rows import layer_rows

from trtkit import cli
from trtkit.errors import EngineError
from trtkit.inspection import LayerTable, SpeedDiagnosis, read_layers, why_slow

NODES = tuple(f"/model.{number}/Conv" for number in range(6))


def table(*rows, name="int8", reformats=(), batch=8, **columns) -> LayerTable:
    frame = layer_rows(*rows, reformats=reformats)
    for column, values in columns.items():
        frame = frame.with_columns(pl.Series(column, values, dtype=pl.List(pl.String)))
    made = read_layers(frame, name=name)
    return LayerTable(
        name=name, frame=made.frame, facts={"batch": batch, "precision": name}, untimed_reason=made.untimed_reason
    )


def engine(precision: str, us: float, **settings) -> LayerTable:
    """One convolution per node, each of this latency."""
    return table(*((node, "conv", node, precision, us / 1000) for node in NODES), name=precision, **settings)


def codes(diagnosis: SpeedDiagnosis) -> list[str]:
    return [cause.code for cause in diagnosis.causes]


def test_forced_reformats_are_named_with_the_nodes_between_which_they_stand() -> None:
    rows = []
    for node in NODES:
        is_float = node == NODES[2]
        if is_float:
            rows.append(("to fp16", "reformat", "", "fp16", 0.030))
        rows.append((node, "conv", node, "fp16" if is_float else "int8", 0.040))
        if is_float:
            rows.append(("to int8", "reformat", "", "int8", 0.020))
    slow = table(*rows, reformats=("to fp16", "to int8"))
    diagnosis = why_slow(slow, engine("fp16", 50))
    cause = diagnosis.causes[0]
    assert (cause.code, cause.nodes, cause.cost_us) == ("reformats", (NODES[2],), pytest.approx(50))
    assert cause.node_us == (pytest.approx(50),)
    assert cause.evidence == f"2 reformats against 0 in fp16, 50 of 290 us: {NODES[2]} (50.0 us)"
    assert "keep=" in cause.advice
    # The node in FP16 is a cause of its own.
    assert codes(diagnosis) == ["reformats", "kept-layers"]
    assert diagnosis.layers.filter(node=NODES[2])["cause"].item() == "reformats,kept-layers"


def test_reformats_are_placed_by_their_tensors_not_by_their_order() -> None:
    slow = table(
        (NODES[0], "conv", NODES[0], "int8", 0.04),
        (NODES[1], "conv", NODES[1], "fp16", 0.04),
        ("copy", "reformat", "", "int8", 0.05),
        (NODES[2], "conv", NODES[2], "int8", 0.04),
        (NODES[3], "conv", NODES[3], "int8", 0.04),
        reformats=("copy",),
        inputs=[["x"], ["y"], ["a"], ["b"], ["copied"]],
        outputs=[["a"], ["b"], ["copied"], ["c"], ["d"]],
    )
    (cause,) = [one for one in why_slow(slow, engine("fp16", 50)).causes if one.code == "reformats"]
    # Between two INT8 layers: the layout changes.
    assert cause.nodes == (NODES[3],)
    assert "pad channels" in cause.advice


def test_what_converts_the_images_is_named_with_what_to_do() -> None:
    slow = table(
        ("images_QuantizeLinear", "kgen", "images_QuantizeLinear", "int8", 0.020),
        ("copy of images", "reformat", "", "int8", 0.110),
        *((node, "conv", node, "int8", 0.050) for node in NODES),
        reformats=("copy of images",),
    )
    diagnosis = why_slow(slow, engine("fp16", 60))
    (cause,) = diagnosis.causes
    assert (cause.code, cause.cost_us) == ("input-conversion", pytest.approx(130))
    assert "space_to_depth=True" in cause.advice
    assert cause.evidence == (
        "2 layers convert the images to int8, 130 of 430 us: copy of images (110.0 us), images_QuantizeLinear (20.0 us)"
    )
    # TensorRT-RTX has no such input, and short ones are not worth it.
    assert codes(why_slow(dataclasses.replace(slow, facts={"backend": "tensorrt_rtx"}), engine("fp16", 60))) == []
    short = table(
        ("images_QuantizeLinear", "kgen", "images_QuantizeLinear", "int8", 0.005),
        *((node, "conv", node, "int8", 0.050) for node in NODES),
    )
    assert codes(why_slow(short, engine("fp16", 60))) == []


def test_a_tiny_model_is_launch_bound_and_its_batch_small() -> None:
    diagnosis = why_slow(engine("int8", 3.0, batch=1), engine("fp16", 3.1, batch=1))
    assert codes(diagnosis) == ["launch-bound", "small-batch"]
    launches, batch = diagnosis.causes
    assert launches.evidence.startswith("launch-bound: 6 of 6 layers take 6 us or less, 18 of 18 us")
    assert (launches.nodes, launches.cost_us) == ((), pytest.approx(18))
    assert "batch 1" in batch.evidence
    assert codes(why_slow(engine("int8", 3.0, batch=8), engine("fp16", 3.1, batch=8))) == ["launch-bound"]
    assert codes(why_slow(engine("int8", 30.0, batch=1), engine("fp16", 50.0, batch=1))) == []


def test_layers_kept_in_fp16_are_named_the_costliest_first() -> None:
    kept = {NODES[1]: 0.020, NODES[4]: 0.090}
    slow = table(*((node, "conv", node, "fp16" if node in kept else "int8", kept.get(node, 0.030)) for node in NODES))
    (cause,) = why_slow(slow, engine("fp16", 50)).causes
    assert (cause.code, cause.nodes) == ("kept-layers", (NODES[4], NODES[1]))
    assert cause.node_us == (pytest.approx(90), pytest.approx(20))
    assert cause.evidence.startswith("2 of 6 layers with weights or products run in fp16, 110 of 230 us")


def test_layers_kept_in_fp32_of_an_fp16_engine_too() -> None:
    slow = table(*((node, "conv", node, "fp32" if node == NODES[0] else "fp16", 0.050) for node in NODES), name="fp16")
    (cause,) = why_slow(slow, engine("fp32", 60)).causes
    assert (cause.code, cause.nodes) == ("kept-layers", (NODES[0],))


def test_kernels_that_are_no_longer_fused() -> None:
    rows = [(node, "conv", node, "int8", 0.040) for node in NODES]
    rows += [(f"silu {node}", "kgen", node, "int8", 0.020) for node in NODES[:2]]
    (cause,) = why_slow(table(*rows), engine("fp16", 50)).causes
    assert (cause.code, cause.nodes, cause.cost_us) == ("unfused-layers", NODES[:2], pytest.approx(20))
    assert cause.evidence.startswith("2 kernels more than fp16 for the same nodes, 20 of 280 us")


def test_a_faster_engine_has_no_causes() -> None:
    diagnosis = why_slow(engine("int8", 30), engine("fp16", 50))
    assert diagnosis.causes == ()
    assert "int8 180 us, fp16 300 us (0.60x)" in repr(diagnosis)
    assert "no cause" in repr(diagnosis)
    assert diagnosis.layers["delta_us"].to_list() == pytest.approx([-20.0] * 6)


def test_without_latencies_only_counts_are_named() -> None:
    slow = engine("int8", 30)
    slow = read_layers(slow.frame.drop("index", "share").with_columns(ms=pl.lit(None, pl.Float64)), name="int8")
    kept = slow.frame.with_columns(
        precision=pl.when(pl.col("name") == NODES[3]).then(pl.lit("fp16")).otherwise("precision")
    )
    diagnosis = why_slow(kept.drop("index", "share"), slow)
    (cause,) = diagnosis.causes
    assert (cause.code, cause.cost_us, cause.nodes, cause.node_us) == ("kept-layers", None, (NODES[3],), ())
    assert diagnosis.total_us is None
    assert "not timed" in repr(diagnosis)


def test_the_command_prints_causes_and_layers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = table(*((node, "conv", node, "fp16" if node == NODES[4] else "int8", 0.03) for node in NODES))
    files = [str(one.save(tmp_path / f"{name}.parquet")) for name, one in (("a", kept), ("b", engine("fp16", 50)))]
    assert cli.main(["why-slow", *files]) == 0
    text = capsys.readouterr().out
    assert text.startswith("a 180 us, b 300 us (0.60x)")
    assert "kept-layers" in text
    assert "fp16 to int8" in text
    assert cli.main(["why-slow", *files, "--limit", "2"]) == 0
    assert "4 more" in capsys.readouterr().out
    assert cli.main(["why-slow", *files, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [cause["code"] for cause in content["causes"]] == ["kept-layers"]
    assert len(content["rows"]) == 6


def test_what_is_no_engine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError) as caught:
        why_slow(tmp_path / "a.onnx", engine("fp16", 50))
    assert caught.value.code == "layers-not-an-engine"
