"""Runners judged: accuracy, time, and what changes between precisions."""
