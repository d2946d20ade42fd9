"""Read damaged files by the thousand and print what came of it: success, a clean error, a raw one, a hang, memory.

    python tests/fuzz/run.py --count 500 [--kind onnx] [--seed 0] [--markdown docs/fuzzing.md]

Each kind runs in worker processes of its own: one that hangs is stopped, one that crashes is replaced, and the peak of
its memory is read after every case. Exits with 1 if anything but "success" and "clean" came out.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import multiprocessing
import os
import platform
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

HANG = 20.0
"""Seconds after which a case counts as a hang."""

MEMORY = 2 << 30
"""Bytes by which a case may raise the memory of its process."""

OUTCOMES = ("success", "clean", "raw", "hang", "memory")


def read_status(key: str) -> int:
    """A value of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(key)


def work(connection: Any, name: str, parent: str) -> None:
    """A worker: receives seeds, sends outcomes."""
    from fuzz_kinds import KINDS, run_case

    kind = KINDS[name]
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    # A case beyond four times the limit fails instead of taking the machine's memory.
    run_case(kind, -1, Path(parent))
    resource.setrlimit(resource.RLIMIT_AS, (read_status("VmSize") + 4 * MEMORY, resource.RLIM_INFINITY))
    connection.send(("ready", "", 0))
    while (seed := connection.recv()) is not None:
        Path("/proc/self/clear_refs").write_text("5")
        before = read_status("VmRSS")
        outcome, found = run_case(kind, seed, Path(parent))
        grown = read_status("VmHWM") - before
        connection.send(("memory" if grown > MEMORY else outcome, found, grown))


class Worker:
    """A process that runs the cases of one kind, started again after a hang or a crash."""

    def __init__(self, name: str, parent: str) -> None:
        self.name, self.parent = name, parent
        self.process: Any = None

    def run(self, seed: int) -> tuple[str, str, int]:
        """The outcome of one case."""
        if self.process is None or not self.process.is_alive():
            self.start()
        self.connection.send(seed)
        try:
            if self.connection.poll(HANG):
                result: tuple[str, str, int] = self.connection.recv()
                return result
            outcome = ("hang", f"no answer within {HANG:.0f} s", 0)
        except (EOFError, ConnectionError):
            self.process.join(5)
            outcome = ("raw", f"the process ended with {self.process.exitcode}", 0)
        self.process.kill()
        self.process.join()
        return outcome

    def start(self) -> None:
        """Start the process and wait until it has imported everything."""
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=work, args=(other, self.name, self.parent), daemon=True)
        self.process.start()
        other.close()
        if not self.connection.poll(120):
            raise RuntimeError(f"the worker for {self.name} did not start")
        self.connection.recv()

    def stop(self) -> None:
        """End the process."""
        if self.process is not None and self.process.is_alive():
            self.connection.send(None)
            self.process.join(10)
            self.process.kill()


def run_kind(name: str, seeds: list[int], workers: int) -> dict[str, list[tuple[int, str]]]:
    """All cases of one kind: seeds and what was raised, by outcome."""
    results: dict[str, list[tuple[int, str]]] = {outcome: [] for outcome in OUTCOMES}
    queue = collections.deque(seeds)
    with tempfile.TemporaryDirectory(prefix="trtkit-fuzz-") as parent:

        def serve() -> None:
            worker = Worker(name, parent)
            while True:
                try:
                    seed = queue.popleft()
                except IndexError:
                    break
                outcome, found, _ = worker.run(seed)
                results[outcome].append((seed, found))
            worker.stop()

        threads = [threading.Thread(target=serve) for _ in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return results


def main() -> int:
    """Run the command line."""
    from fuzz_kinds import KINDS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="one kind; may be repeated")
    parser.add_argument("--count", type=int, default=500, help="cases of each kind")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--markdown", type=Path, help="write the rows of the kinds that ran into this document's table")
    parser.add_argument("--verbose", action="store_true", help="list every error code too")
    options = parser.parse_args()
    bad = 0
    rows = {}
    for name in options.kind or KINDS:
        start = time.monotonic()
        results = run_kind(name, list(range(options.seed, options.seed + options.count)), options.workers)
        counts = [len(results[outcome]) for outcome in OUTCOMES]
        bad += sum(counts[2:])
        rows[name] = counts
        print(f"{name}: {dict(zip(OUTCOMES, counts, strict=True))} in {time.monotonic() - start:.0f} s", flush=True)
        for outcome in OUTCOMES[2:]:
            for seed, found in results[outcome]:
                print(f"  {outcome} {seed}: {found}")
        if options.verbose:
            for found, count in collections.Counter(found for _, found in results["clean"]).most_common():
                print(f"  {count:4} {found}")
    if options.markdown:
        write_table(options.markdown, rows, options)
    return 1 if bad else 0


def write_table(path: Path, rows: dict[str, list[int]], options: argparse.Namespace) -> None:
    """Replace the rows of a document's table."""
    when = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    last = options.seed + options.count - 1
    lines = path.read_text().splitlines()
    for name, counts in rows.items():
        cells = [
            name,
            f"{options.seed} to {last}",
            *map(str, counts),
            f"{when}, {platform.machine()} {platform.system()}",
        ]
        row = f"| {' | '.join(cells)} |"
        place = next((index for index, line in enumerate(lines) if line.startswith(f"| {name} |")), None)
        if place is None:
            place = max(index for index, line in enumerate(lines) if line.startswith("|")) + 1
            lines.insert(place, row)
        lines[place] = row
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
