"""YOLO models to TensorRT engines, with the proof of what each precision costs and buys.

>>> import trtkit as tk
>>> artifact = tk.export("yolo11n.pt", format="engine", int8=True, data="coco.yaml")
>>> comparison = tk.compare("yolo11n.pt", data="coco.yaml")

Importing this package imports nothing heavy: each name below is fetched when it is first used. It turns ONNX Runtime's
telemetry off (`ORT_DISABLE_TELEMETRY`), which works only before ONNX Runtime is imported.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from trtkit.errors import TrtkitError
from trtkit.version import __version__

# ONNX Runtime 1.32 reports its use to its maker otherwise, and writes a device id below the cache folder.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from trtkit import backends as backends
    from trtkit import demo as demo
    from trtkit.backends import open as open
    from trtkit.backends.engine_file import Passport as Passport
    from trtkit.backends.requirements import capabilities as capabilities
    from trtkit.backends.runner import Runner as Runner
    from trtkit.calibration import Calibration as Calibration
    from trtkit.calibration import calibrate as calibrate
    from trtkit.calibration.diagnosis import Diagnosis as Diagnosis
    from trtkit.calibration.diagnosis import examine as examine
    from trtkit.comparison.comparator import compare as compare
    from trtkit.comparison.comparison import Comparison as Comparison
    from trtkit.data import Dataset as Dataset
    from trtkit.deployment import Deployment as Deployment
    from trtkit.deployment import deploy as deploy
    from trtkit.evaluation.evaluation import Evaluation as Evaluation
    from trtkit.evaluation.evaluation import evaluate as evaluate
    from trtkit.evaluation.latency import Timing as Timing
    from trtkit.evaluation.latency import benchmark as benchmark
    from trtkit.evaluation.load_test import LoadTest as LoadTest
    from trtkit.evaluation.load_test import load_test as load_test
    from trtkit.executor import open_executor as open_executor
    from trtkit.exporter import Artifact as Artifact
    from trtkit.exporter import export as export
    from trtkit.html import TableView as TableView
    from trtkit.inspection import LayerTable as LayerTable
    from trtkit.inspection import SpeedDiagnosis as SpeedDiagnosis
    from trtkit.inspection import precision_shares_figure as precision_shares_figure
    from trtkit.inspection import read_layers as read_layers
    from trtkit.inspection import summarize_layers as summarize_layers
    from trtkit.inspection import why_slow as why_slow
    from trtkit.model_zoo.table import Zoo as Zoo
    from trtkit.model_zoo.zoo import zoo as zoo
    from trtkit.models import load as load
    from trtkit.models.model import Model as Model
    from trtkit.plotting.comparison import losses_figure as losses_figure
    from trtkit.progress import Event as Event
    from trtkit.progress import Plan as Plan
    from trtkit.progress import plan as plan
    from trtkit.progress_line import ProgressLine as ProgressLine
    from trtkit.recipe import Recipe as Recipe
    from trtkit.tasks.base import Detections as Detections
    from trtkit.tuning.int8_evaluation import Int8Evaluation as Int8Evaluation
    from trtkit.tuning.int8_evaluation import evaluate_int8 as evaluate_int8
    from trtkit.tuning.search import Search as Search
    from trtkit.tuning.search_loop import search as search
    from trtkit.tuning.sensitivity import Sensitivity as Sensitivity
    from trtkit.tuning.sensitivity import sensitivity as sensitivity
    from trtkit.tuning.sweep import Sweep as Sweep
    from trtkit.tuning.sweep import sweep as sweep
    from trtkit.verification import Verification as Verification
    from trtkit.verification import verify as verify
    from trtkit.widgets.comparison import dashboard as dashboard
    from trtkit.widgets.comparison import gallery as gallery
    from trtkit.widgets.explorer import explorer as explorer
    from trtkit.widgets.tuner.tuner import tuner as tuner
    from trtkit.widgets.wizard.wizard import wizard as wizard

# Names of the public interface and the module each lives in; None for a module that is itself the name.
_HOMES: dict[str, str | None] = {
    "Artifact": "trtkit.exporter",
    "Calibration": "trtkit.calibration",
    "Comparison": "trtkit.comparison.comparison",
    "Dataset": "trtkit.data",
    "Deployment": "trtkit.deployment",
    "Detections": "trtkit.tasks.base",
    "Diagnosis": "trtkit.calibration.diagnosis",
    "Evaluation": "trtkit.evaluation.evaluation",
    "Event": "trtkit.progress",
    "Int8Evaluation": "trtkit.tuning.int8_evaluation",
    "LayerTable": "trtkit.inspection",
    "LoadTest": "trtkit.evaluation.load_test",
    "Model": "trtkit.models.model",
    "Passport": "trtkit.backends.engine_file",
    "Plan": "trtkit.progress",
    "ProgressLine": "trtkit.progress_line",
    "Recipe": "trtkit.recipe",
    "Runner": "trtkit.backends.runner",
    "Search": "trtkit.tuning.search",
    "Sensitivity": "trtkit.tuning.sensitivity",
    "SpeedDiagnosis": "trtkit.inspection",
    "Sweep": "trtkit.tuning.sweep",
    "TableView": "trtkit.html",
    "Timing": "trtkit.evaluation.latency",
    "Verification": "trtkit.verification",
    "Zoo": "trtkit.model_zoo.table",
    "backends": None,
    "benchmark": "trtkit.evaluation.latency",
    "calibrate": "trtkit.calibration",
    "capabilities": "trtkit.backends.requirements",
    "compare": "trtkit.comparison.comparator",
    "dashboard": "trtkit.widgets.comparison",
    "demo": None,
    "deploy": "trtkit.deployment",
    "evaluate": "trtkit.evaluation.evaluation",
    "evaluate_int8": "trtkit.tuning.int8_evaluation",
    "examine": "trtkit.calibration.diagnosis",
    "explorer": "trtkit.widgets.explorer",
    "export": "trtkit.exporter",
    "gallery": "trtkit.widgets.comparison",
    "load": "trtkit.models",
    "load_test": "trtkit.evaluation.load_test",
    "losses_figure": "trtkit.plotting.comparison",
    "open": "trtkit.backends",
    "open_executor": "trtkit.executor",
    "plan": "trtkit.progress",
    "precision_shares_figure": "trtkit.inspection",
    "read_layers": "trtkit.inspection",
    "search": "trtkit.tuning.search_loop",
    "sensitivity": "trtkit.tuning.sensitivity",
    "summarize_layers": "trtkit.inspection",
    "sweep": "trtkit.tuning.sweep",
    "tuner": "trtkit.widgets.tuner.tuner",
    "verify": "trtkit.verification",
    "why_slow": "trtkit.inspection",
    "wizard": "trtkit.widgets.wizard.wizard",
    "zoo": "trtkit.model_zoo.zoo",
}

# Without `open`, so that `from trtkit import *` does not shadow the builtin; `trtkit.open` is public all the same.
__all__ = [
    "Artifact",
    "Calibration",
    "Comparison",
    "Dataset",
    "Deployment",
    "Detections",
    "Diagnosis",
    "Evaluation",
    "Event",
    "Int8Evaluation",
    "LayerTable",
    "LoadTest",
    "Model",
    "Passport",
    "Plan",
    "ProgressLine",
    "Recipe",
    "Runner",
    "Search",
    "Sensitivity",
    "SpeedDiagnosis",
    "Sweep",
    "TableView",
    "Timing",
    "TrtkitError",
    "Verification",
    "Zoo",
    "__version__",
    "backends",
    "benchmark",
    "calibrate",
    "capabilities",
    "compare",
    "dashboard",
    "demo",
    "deploy",
    "evaluate",
    "evaluate_int8",
    "examine",
    "explorer",
    "export",
    "gallery",
    "load",
    "load_test",
    "losses_figure",
    "open_executor",
    "plan",
    "precision_shares_figure",
    "read_layers",
    "search",
    "sensitivity",
    "summarize_layers",
    "sweep",
    "tuner",
    "verify",
    "why_slow",
    "wizard",
    "zoo",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'trtkit' has no attribute {name!r}")
    home = _HOMES[name]
    value = importlib.import_module(f"trtkit.{name}") if home is None else getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "open"])
