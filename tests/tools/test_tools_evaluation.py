"""A checkpoint's score is compared with what was asked of it."""

import evaluate_demo
from demo_models import MODELS


def test_the_metric_of_each_task_is_found_and_compared():
    assert set(evaluate_demo.ASKED) == {model.task for model in MODELS.values()}
    metrics = {"metrics/mAP50-95(B)": 0.9, "metrics/mAP50-95(M)": 0.29, "metrics/mAP50(M)": 0.8}
    found = evaluate_demo.find_metric(metrics, "segment")
    assert found == {"metric": "mAP50-95(M)", "value": 0.29, "asked": 0.3, "reached": False}
    assert evaluate_demo.find_metric({"metrics/mAP50-95(B)": 0.6}, "detect")["reached"]
