"""Work on the workers of a Dask scheduler: `executor=` of the verbs, `--scheduler` of the command line.

A verb cuts its images into shards, `Workers.map` runs them and yields their results in the order of the shards, however
many workers there are, whichever ends first, and whichever is killed: what is reduced in that order equals what one
process computes. Shards are tasks of `distributed`, which runs a lost one elsewhere.
"""

from trtkit.executor.engines import EngineWorkers, SentFile
from trtkit.executor.facts import WorkerFacts, describe_worker
from trtkit.executor.scheduler import GPU, open_executor
from trtkit.executor.tasks import StopToken
from trtkit.executor.workers import Workers, describe_executor, split_into_shards

__all__ = [
    "GPU",
    "EngineWorkers",
    "SentFile",
    "StopToken",
    "WorkerFacts",
    "Workers",
    "describe_executor",
    "describe_worker",
    "open_executor",
    "split_into_shards",
]
