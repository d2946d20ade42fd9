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
    from trtkit.artifact import Artifact as Artifact
    from trtkit.artifact import export as export
    from trtkit.backends import open as open
    from trtkit.backends.capabilities import capabilities as capabilities
    from trtkit.calibration import Calibration as Calibration
    from trtkit.calibration import calibrate as calibrate
    from trtkit.calibration.doctor import Diagnosis as Diagnosis
    from trtkit.calibration.doctor import examine as examine
    from trtkit.judgement.comparing import compare as compare
    from trtkit.judgement.comparison import Comparison as Comparison
    from trtkit.judgement.evaluation import Evaluation as Evaluation
    from trtkit.judgement.evaluation import evaluate as evaluate
    from trtkit.judgement.timing import Timing as Timing
    from trtkit.judgement.timing import benchmark as benchmark
    from trtkit.progress import Event as Event
    from trtkit.recipe import Recipe as Recipe
    from trtkit.sources import load as load
    from trtkit.sources.model import Model as Model
    from trtkit.tuning.search import Search as Search
    from trtkit.tuning.search import search as search
    from trtkit.tuning.sensitivity import Sensitivity as Sensitivity
    from trtkit.tuning.sensitivity import sensitivity as sensitivity
    from trtkit.tuning.sweep import Sweep as Sweep
    from trtkit.tuning.sweep import sweep as sweep
    from trtkit.widgets.dashboard import dashboard as dashboard
    from trtkit.widgets.explorer import explorer as explorer
    from trtkit.widgets.gallery import gallery as gallery
    from trtkit.widgets.tuner import tuner as tuner
    from trtkit.widgets.wizard import wizard as wizard

# Names of the public interface and the module each lives in; None for a module that is itself the name.
_HOMES: dict[str, str | None] = {
    "Artifact": "trtkit.artifact",
    "Calibration": "trtkit.calibration",
    "Diagnosis": "trtkit.calibration.doctor",
    "Search": "trtkit.tuning.search",
    "Sensitivity": "trtkit.tuning.sensitivity",
    "Sweep": "trtkit.tuning.sweep",
    "examine": "trtkit.calibration.doctor",
    "search": "trtkit.tuning.search",
    "sensitivity": "trtkit.tuning.sensitivity",
    "sweep": "trtkit.tuning.sweep",
    "Comparison": "trtkit.judgement.comparison",
    "Evaluation": "trtkit.judgement.evaluation",
    "Event": "trtkit.progress",
    "Model": "trtkit.sources.model",
    "Recipe": "trtkit.recipe",
    "Timing": "trtkit.judgement.timing",
    "backends": None,
    "benchmark": "trtkit.judgement.timing",
    "calibrate": "trtkit.calibration",
    "capabilities": "trtkit.backends.capabilities",
    "compare": "trtkit.judgement.comparing",
    "demo": None,
    "evaluate": "trtkit.judgement.evaluation",
    "export": "trtkit.artifact",
    "load": "trtkit.sources",
    "open": "trtkit.backends",
    "dashboard": "trtkit.widgets.dashboard",
    "explorer": "trtkit.widgets.explorer",
    "gallery": "trtkit.widgets.gallery",
    "tuner": "trtkit.widgets.tuner",
    "wizard": "trtkit.widgets.wizard",
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
