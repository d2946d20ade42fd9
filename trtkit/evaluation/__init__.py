"""Evaluation of runners: accuracy with confidence intervals, latency, significance of differences."""
