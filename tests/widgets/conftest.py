from __future__ import annotations

import warnings
from pathlib import Path

import polars as pl
import pytest
from layer_rows import FP16_LAYERS, INT8_LAYERS

import trtkit as tk
from trtkit import demo
from trtkit.calibration import Calibration
from trtkit.calibration.algorithm_comparison import AlgorithmComparison
from trtkit.comparison.comparison import Comparison
from trtkit.inspection import LayerTable, read_layers
from trtkit.results import Provenance
from trtkit.tuning.layers import QuantizableLayers, find_quantizable_layers
from trtkit.tuning.search import Search
from trtkit.tuning.sensitivity import Sensitivity

SIDE = 96


@pytest.fixture(autouse=True)
def measure_shortly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wizard measures latency for a moment: how long is no matter of its tests."""
    monkeypatch.setattr("trtkit.widgets.wizard.actions.SECONDS", 0.1)


@pytest.fixture(scope="session")
def model() -> tk.Model:
    return tk.load(demo.model_path())


@pytest.fixture(scope="session")
def calibration(model: tk.Model) -> Calibration:
    return tk.calibrate(
        model, demo.data_path(), calibration_images=4, imgsz=SIDE, algorithm="minmax", histograms=True, device="cpu"
    )


@pytest.fixture(scope="session")
def algorithm_comparison(calibration: Calibration) -> AlgorithmComparison:
    return AlgorithmComparison(calibration).compute_all()


@pytest.fixture(scope="session")
def quantizable_layers(model: tk.Model) -> QuantizableLayers:
    return find_quantizable_layers(model, SIDE)


@pytest.fixture(scope="session")
def layer_sensitivity(quantizable_layers: QuantizableLayers, model: tk.Model) -> Sensitivity:
    """A synthetic sensitivity: the later a layer, the higher its SQNR."""
    frame = quantizable_layers.layers.filter(pl.col("kept").is_null()).select("node", "block", "operator", "macs")
    count = len(frame)
    frame = frame.with_columns(
        sqnr_only=pl.Series([30.0 + index for index in range(count)]),
        sqnr_without=pl.lit(25.0),
        gain=pl.Series([1.0 - index / count for index in range(count)]),
    )
    provenance = Provenance(model_hash=model.hash, settings={"algorithm": "minmax"})
    return Sensitivity(
        layers=frame, blocks=frame.select("block"), metric="mAP50-95(B)", sqnr=24.0, metric_float=0.8,
        metric_int8=0.79, kept={}, image_count=2, provenance=provenance,
    )  # fmt: skip


@pytest.fixture(scope="session")
def search(quantizable_layers: QuantizableLayers, calibration: Calibration) -> Search:
    """A synthetic search: full INT8 exceeds the allowed loss, with two layers in FP16 it does not."""
    kept = quantizable_layers.quantizable[:2]
    nodes = list(quantizable_layers.quantizable)
    base = {"bias_corrected": True, "sqnr": 20.0, "unit": "relative", "pareto": True}
    trials = pl.DataFrame(
        [
            {"assignment": "all FP16", **base, "algorithm": None, "kept_layers": len(nodes), "int8_share": 0.0,
             "metric": 0.8, "loss": 0.0, "loss_low": 0.0, "loss_high": 0.0, "cost": 1.0, "chosen": False,
             "keep": nodes},
            {"assignment": "best ranges", **base, "algorithm": "mse", "kept_layers": 0,
             "int8_share": quantizable_layers.int8_share(), "metric": 0.77, "loss": 0.03, "loss_low": 0.02,
             "loss_high": 0.04, "cost": 0.5, "chosen": False, "keep": []},
            {"assignment": "best ranges, 2 layers in FP16", **base, "algorithm": "mse", "kept_layers": 2,
             "int8_share": quantizable_layers.int8_share(kept), "metric": 0.797, "loss": 0.003, "loss_low": -0.001,
             "loss_high": 0.006, "cost": 0.55, "chosen": True, "keep": list(kept)},
        ]
    )  # fmt: skip
    return Search(
        trials=trials, layers=pl.DataFrame(), keep=kept, calibration=calibration.with_algorithm("mse"), reached=True,
        max_drop=0.005, metric="mAP50-95(B)", value_float=0.8, cost_source="synthetic",
        provenance=calibration.provenance,
    )  # fmt: skip


@pytest.fixture(scope="session")
def comparison(model: tk.Model, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """A small real comparison without engines."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tk.compare(
            model, demo.data_path(), imgsz=160, eval_images=8, build=False, calibration_images=4, runs=5, seconds=0.1,
            batch=(1, 2), output=tmp_path_factory.mktemp("compare"),
        )  # fmt: skip


@pytest.fixture
def engines() -> tuple[LayerTable, LayerTable]:
    """Two synthetic engines of one model: FP16, and INT8 with a reformat and one FP16 layer."""
    return read_layers(FP16_LAYERS, name="half"), read_layers(INT8_LAYERS, name="low")


@pytest.fixture
def saved(tmp_path: Path, calibration: Calibration, layer_sensitivity: Sensitivity, search: Search) -> Path:
    """A folder with a saved calibration and a cache folder of the tuner."""
    calibration.save(tmp_path / "calibration")
    layer_sensitivity.save(tmp_path / "tuner" / "sensitivity")
    search.save(tmp_path / "tuner" / "search")
    return tmp_path
