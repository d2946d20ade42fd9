"""Train the demo's models on generated scenes, from random weights, all side by side on one GPU.

usage:
  python tools/train_demo.py OUT --minutes 16 [--assets ASSETS.npz] [--models yolo11t ...] [--resume]

Each model is a process of its own. It trains until its minutes are over: the learning rate follows the clock, so that
any number of minutes ends in a finished model. Every minute it writes OUT/<model>.state, from which `--resume` goes on,
and OUT/<model>.pt, the checkpoint as it is. OUT/<model>.log has one line of JSON per minute.

The scenes come from seed 7 for training and 900 for the scores in the log; see scenes.py.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import datetime
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from criterion import Criterion
from demo_checkpoint import save_checkpoint
from demo_models import MODELS, DemoModel, build
from scene_batches import ScenePool
from scene_renderer import Renderer
from scenes import Assets
from torch import Tensor, nn
from torch.nn import functional as F
from validation import Validation

from trtkit.models import heads
from trtkit.models.yolo import Yolo

__all__ = ["Settings", "Trainer"]

TRAINING_SEED = 7
PEAK_RATE = 2e-3
LAST_RATE = 0.01
"""The learning rate at the end, as a part of the highest."""

WARM_UP = 0.03
"""The part of the time in which the learning rate rises; it does so again, for half as long, after resuming."""

PLAIN = 0.12
"""The last part of the time, in which scenes are letterboxed as they are, without augmentation."""

WEIGHT_DECAY = 0.02
LARGEST_GRADIENT = 10.0
AVERAGING = 0.999
"""Decay of the averaged weights per step, once enough steps were made."""

REUSE = 4
"""Times that a scene is used before a new one replaces it, on average."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How long and on what to train.

    Attributes:
        out: Where files are written.
        assets: As `scenes.Assets.load`.
        minutes: Time of training, resumed parts together.
        steps: Most steps, for tests; None for no limit.
        batch: Images per step; None for the model's own.
        imgsz: Side of the input; None for the model's own.
        scenes: Scenes in the pool.
        checked: Scenes for the score in the log.
        every: Seconds between the files.
        device: "cuda" or "cpu".
        resume: Go on from OUT/<model>.state if it exists.
    """

    out: Path
    assets: Path | None = None
    minutes: float = 16
    steps: int | None = None
    batch: int | None = None
    imgsz: int | None = None
    scenes: int = 1024
    checked: int = 128
    every: float = 60
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    resume: bool = False


class Trainer:
    """Trains one model.

    Args:
        model: The model.
        settings: How.
    """

    def __init__(self, model: DemoModel, settings: Settings) -> None:
        changes = {name: getattr(settings, name) for name in ("batch", "imgsz") if getattr(settings, name) is not None}
        self.model, self.settings = dataclasses.replace(model, **changes), settings
        self.device = torch.device(settings.device)
        self.on_gpu = self.device.type == "cuda"
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        torch.set_num_threads(min(torch.get_num_threads(), 2))
        self.yolo = build(self.model, self.device, TRAINING_SEED).to(memory_format=self.memory_format)
        self.average = copy.deepcopy(self.yolo).eval().requires_grad_(False)
        # Both lists share their tensors with the modules.
        self.averaged, self.current = list(_floats(self.average)), list(_floats(self.yolo))
        self.optimizer = self.build_optimizer()
        self.seconds, self.step, self.started = 0.0, 0, 0.0
        if settings.resume:
            self.restore()
        renderer = Renderer(Assets.load(settings.assets), self.device)
        vary = 0.0 if model.task in ("pose", "obb") else 1.0
        # After resuming the scenes are others: the pool is not part of the state.
        self.pool = ScenePool(renderer, (TRAINING_SEED, self.step), "train", settings.scenes, vary)
        self.validation = Validation(self.model, renderer, settings.checked)
        head = self.yolo.head
        self.criterion = Criterion(head, self.model.imgsz, self.device) if isinstance(head, heads.Detect) else None

    @property
    def memory_format(self) -> Any:
        """The order of a tensor's elements: what the GPU's convolutions take in bf16 without copying."""
        return torch.channels_last if self.on_gpu else torch.contiguous_format

    @property
    def state_path(self) -> Path:
        """The file to resume from."""
        return self.settings.out / f"{self.model.name}.state"

    def build_optimizer(self) -> torch.optim.Optimizer:
        """AdamW, with decay of the convolutions' weights only."""
        trained = [parameter for parameter in self.yolo.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in trained if p.dim() > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.99), fused=True)

    def progress(self) -> float:
        """The part of the time that is over, in 0..1."""
        if self.settings.steps is not None:
            return self.step / self.settings.steps
        return min((self.seconds + time.monotonic() - self.started) / (60 * self.settings.minutes), 1)

    def rate(self, progress: float, since: float) -> float:
        """The learning rate: a cosine after a linear rise.

        Args:
            progress: The part of the time that is over.
            since: The part of the time at which this run began.
        """
        length = WARM_UP if since == 0 else WARM_UP / 2
        rise = min((progress - since) / length, 1)
        return PEAK_RATE * rise * (LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * progress)) / 2)

    def compute_loss(self, augment: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a new batch, and its parts."""
        model = self.model
        with torch.no_grad():
            self.pool.renew(max(2, math.ceil(model.batch / (8 if model.task == "classify" else 1) / REUSE)))
            if model.task == "classify":
                batch: Any = self.pool.crops(model.batch, model.imgsz, augment=augment)
            else:
                batch = self.pool.batch(model.batch, model.imgsz, augment=augment, masks=model.task == "segment")
            images = batch.images.contiguous(memory_format=self.memory_format)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.on_gpu):
            outputs = self.yolo(images)
        if self.criterion is not None:
            return self.criterion(outputs, batch)
        entropy = F.cross_entropy(outputs.float(), batch.classes, reduction="none", label_smoothing=0.05)
        loss = (entropy * batch.valid).sum() / batch.valid.sum().clamp(min=1)
        return loss, {"entropy": loss.detach()}

    def take_step(self, progress: float, since: float) -> dict[str, Tensor]:
        """One step of training; returns the parts of the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(progress, since)
        loss, parts = self.compute_loss(augment=progress < 1 - PLAIN)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.yolo.parameters(), LARGEST_GRADIENT)
        # As torch's GradScaler does: a step of infinite or undefined gradients changes nothing, and nobody waits.
        self.optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.step += 1
        self.update_average()
        return {"loss": loss.detach(), **parts}

    @torch.no_grad()
    def update_average(self) -> None:
        """Move the averaged weights towards the current ones."""
        decay = AVERAGING * (1 - math.exp(-self.step / 300))
        torch._foreach_lerp_(self.averaged, self.current, 1 - decay)

    def train(self) -> dict[str, Any]:
        """Train until the time is over; returns the last line of the log."""
        self.settings.out.mkdir(parents=True, exist_ok=True)
        self.started = time.monotonic()
        since, written, sums, count = self.progress(), time.monotonic(), {}, 0
        while (progress := self.progress()) < 1:
            self.yolo.train()
            for name, value in self.take_step(progress, since).items():
                sums[name] = sums.get(name, 0) + value
            count += 1
            if time.monotonic() - written > self.settings.every:
                self.write(sums, count)
                written, sums, count = time.monotonic(), {}, 0
        return self.write(sums, count)

    def write(self, sums: dict[str, Any], count: int) -> dict[str, Any]:
        """Write the state, the checkpoint and a line of the log."""
        now = time.monotonic()
        means = {name: round(float(value) / max(count, 1), 4) for name, value in sums.items()}
        self.seconds += now - self.started
        self.started = now
        self.save_state()
        date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        save_checkpoint(self.settings.out / f"{self.model.name}.pt", self.model, self.average, {"date": date})
        line = {
            "model": self.model.name, "minutes": round(self.seconds / 60, 2), "step": self.step,
            "images": self.step * self.model.batch, "progress": round(self.progress(), 3), **means,
            **{name: round(value, 4) for name, value in self.validation.score(self.average).items()},
        }  # fmt: skip
        with (self.settings.out / f"{self.model.name}.log").open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
        return line

    def save_state(self) -> None:
        """Write what `restore` reads.

        The optimizer's moments, half of the bytes, are left out: they are back after some dozens of steps.
        """
        part = self.state_path.with_suffix(".part")
        weights = {"weights": self.yolo.state_dict(), "average": self.average.state_dict()}
        torch.save({**weights, "seconds": self.seconds, "step": self.step}, part)
        part.replace(self.state_path)

    def restore(self) -> None:
        """Go on from a state, if there is one."""
        if not self.state_path.exists():
            return
        state = torch.load(self.state_path, map_location=self.device, weights_only=True)
        self.yolo.load_state_dict(state["weights"])
        self.average.load_state_dict(state["average"])
        self.seconds, self.step = state["seconds"], state["step"]


def _floats(yolo: Yolo) -> Iterator[Tensor]:
    """Weights and running statistics."""
    for value in yolo.state_dict().values():
        if value.is_floating_point():
            yield value


def _run_side_by_side(names: list[str], arguments: list[str], out: Path) -> int:
    """Train each model in a process of its own; returns how many failed."""
    out.mkdir(parents=True, exist_ok=True)
    runs = {}
    for name in names:
        output = (out / f"{name}.txt").open("w")
        command = [sys.executable, str(Path(__file__).resolve()), *arguments, "--models", name]
        runs[name] = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    failed = [name for name, run in runs.items() if run.wait()]
    for name in failed:
        print(f"{name} failed:\n{(out / f'{name}.txt').read_text()[-2000:]}", flush=True)
    lines = {name: (out / f"{name}.log") for name in names}
    report = {name: json.loads(path.read_text().splitlines()[-1]) for name, path in lines.items() if path.exists()}
    (out / "training.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2), flush=True)
    return len(failed)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--assets", type=Path)
    parser.add_argument("--minutes", type=float, default=Settings.minutes)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--imgsz", type=int)
    parser.add_argument("--scenes", type=int, default=Settings.scenes)
    parser.add_argument("--checked", type=int, default=Settings.checked)
    parser.add_argument("--every", type=float, default=Settings.every)
    parser.add_argument("--device", default=Settings.device)
    parser.add_argument("--resume", action="store_true")
    given = vars(parser.parse_args())
    names = given.pop("models")
    if len(names) == 1:
        Trainer(MODELS[names[0]], Settings(**given)).train()
        return 0
    arguments = sys.argv[1:]
    if "--models" in arguments:
        start = arguments.index("--models")
        end = next((i for i in range(start + 1, len(arguments)) if arguments[i] not in MODELS), len(arguments))
        arguments = arguments[:start] + arguments[end:]
    return _run_side_by_side(names, arguments, given["out"])


if __name__ == "__main__":
    sys.exit(main())
