"""YOLO models to TensorRT engines, with the proof of what each precision costs and buys.

>>> import trtkit as tk
>>> artifact = tk.export("yolo11n.pt", format="engine", int8=True, data="coco.yaml")
>>> comparison = tk.compare("yolo11n.pt", data="coco.yaml")

Importing this package imports nothing heavy: each name below is fetched when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from trtkit.errors import TrtkitError
from trtkit.version import __version__

if TYPE_CHECKING:
    from trtkit import backends as backends
    from trtkit import demo as demo
    from trtkit.backends import open as open
    from trtkit.backends.capabilities import capabilities as capabilities
    from trtkit.calibration import Calibration as Calibration
    from trtkit.calibration import calibrate as calibrate
    from trtkit.calibration.diagnosis import Diagnosis as Diagnosis
    from trtkit.calibration.diagnosis import examine as examine
    from trtkit.comparison.comparator import compare as compare
    from trtkit.comparison.comparison import Comparison as Comparison
    from trtkit.evaluation.evaluation import Evaluation as Evaluation
    from trtkit.evaluation.evaluator import evaluate as evaluate
    from trtkit.evaluation.latency import Timing as Timing
    from trtkit.evaluation.latency import benchmark as benchmark
    from trtkit.exporter import Artifact as Artifact
    from trtkit.exporter import export as export
    from trtkit.models import load as load
    from trtkit.models.model import Model as Model
    from trtkit.progress import Event as Event
    from trtkit.recipe import Recipe as Recipe
    from trtkit.tuning.search import Search as Search
    from trtkit.tuning.search_loop import search as search
    from trtkit.tuning.sensitivity import Sensitivity as Sensitivity
    from trtkit.tuning.sensitivity import sensitivity as sensitivity
    from trtkit.tuning.sweep import Sweep as Sweep
    from trtkit.tuning.sweep import sweep as sweep
    from trtkit.widgets.comparison.dashboard import dashboard as dashboard
    from trtkit.widgets.comparison.gallery import gallery as gallery
    from trtkit.widgets.explorer.explorer import explorer as explorer
    from trtkit.widgets.tuner.tuner import tuner as tuner
    from trtkit.widgets.wizard.wizard import wizard as wizard

# Names of the public interface and the module each lives in; None for a module that is itself the name.
_HOMES: dict[str, str | None] = {
    "Artifact": "trtkit.exporter",
    "Calibration": "trtkit.calibration",
    "Diagnosis": "trtkit.calibration.diagnosis",
    "Search": "trtkit.tuning.search",
    "Sensitivity": "trtkit.tuning.sensitivity",
    "Sweep": "trtkit.tuning.sweep",
    "examine": "trtkit.calibration.diagnosis",
    "search": "trtkit.tuning.search_loop",
    "sensitivity": "trtkit.tuning.sensitivity",
    "sweep": "trtkit.tuning.sweep",
    "Comparison": "trtkit.comparison.comparison",
    "Evaluation": "trtkit.evaluation.evaluation",
    "Event": "trtkit.progress",
    "Model": "trtkit.models.model",
    "Recipe": "trtkit.recipe",
    "Timing": "trtkit.evaluation.latency",
    "backends": None,
    "benchmark": "trtkit.evaluation.latency",
    "calibrate": "trtkit.calibration",
    "capabilities": "trtkit.backends.capabilities",
    "compare": "trtkit.comparison.comparator",
    "demo": None,
    "evaluate": "trtkit.evaluation.evaluator",
    "export": "trtkit.exporter",
    "load": "trtkit.models",
    "open": "trtkit.backends",
    "dashboard": "trtkit.widgets.comparison.dashboard",
    "explorer": "trtkit.widgets.explorer.explorer",
    "gallery": "trtkit.widgets.comparison.gallery",
    "tuner": "trtkit.widgets.tuner.tuner",
    "wizard": "trtkit.widgets.wizard.wizard",
}

__all__ = [
    "Artifact",
    "Calibration",
    "Comparison",
    "Diagnosis",
    "Evaluation",
    "Event",
    "Model",
    "Recipe",
    "Search",
    "Sensitivity",
    "Sweep",
    "Timing",
    "TrtkitError",
    "__version__",
    "backends",
    "benchmark",
    "calibrate",
    "capabilities",
    "compare",
    "dashboard",
    "demo",
    "evaluate",
    "examine",
    "explorer",
    "export",
    "gallery",
    "load",
    "open",
    "search",
    "sensitivity",
    "sweep",
    "tuner",
    "wizard",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'trtkit' has no attribute {name!r}")
    home = _HOMES[name]
    value = importlib.import_module(f"trtkit.{name}") if home is None else getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
