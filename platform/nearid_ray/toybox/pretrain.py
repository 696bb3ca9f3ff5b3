"""Pretraining of the toybox backbone, the SigLIP way: pictures and their captions, never an identity.

    python -m nearid_ray.toybox.pretrain --out DIR

A sigmoid image-text loss over captions of which words are left out at random (details of the object most often), and
helpers in the spirit of SigLIP 2's: the caption's words from the pooled embedding; from the tokens the share of object
in every patch, its pixels and, on the object, the caption's words about it. Every image is rendered for its step and
(nearly) none is seen twice. A run that is killed goes on from DIR/state.pt when started again.
"""

import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import torch
import torch.distributed as dist
from torch import nn

from nearid_ray.errors import UsageError
from nearid_ray.identifiers import seed_of
from nearid_ray.toybox.backbone import save_backbone
from nearid_ray.toybox.pretrain_model import GRID, Pretraining, render_batch, zero_shot


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """Settings of the pretraining.

    When a run goes on from its state, only the number of images and its two stretches at the end, the validation images
    and `save_every_s` may differ from before.
    """

    seed: int = 0
    """Seed of the parameters, the images and the dropped words (>= 0)."""
    images: int = 1_200_000
    """Images to see in all (> 0). The learning rate is constant until the final stretch, so a run can be lengthened."""
    final_images: int = 300_000
    """Length of the final stretch, in images: the learning rate falls to zero along a cosine (0 to `images`)."""
    full_token_images: int = 650_000
    """Length of the stretch at the end in which no tokens are dropped, in images (0 to `images`)."""
    kept_tokens: float = 0.6
    """Share of the tokens the encoder reads before that stretch, in (0, 1]."""
    processes: int = 2
    """Training processes, each with one thread and a batch of its own (>= 1)."""
    batch_size: int = 128
    """Images a step and process (>= 2); the contrastive loss is taken within one process."""
    learning_rate: float = 1.5e-3
    """Peak learning rate of AdamW (> 0)."""
    weight_decay: float = 0.03
    """Weight decay of AdamW (>= 0)."""
    warmup_steps: int = 100
    """Steps of linear warm-up (>= 0)."""
    background_dropout: float = 0.1
    """Probability that a caption leaves out the background word, in [0, 1]."""
    light_dropout: float = 0.3
    """The same for the light word."""
    detail_dropout: float = 0.7
    """The same for the second colour, the accent, the decal and its colour: what few captions of an object mention."""
    black_background: float = 0.1
    """Share of images whose background is blacked out, in [0, 1]."""
    validation_images: int = 1000
    """Images of the fixed validation list for the zero-shot accuracies (>= 1)."""
    save_every_s: float = 180.0
    """Seconds between two checkpoints (> 0)."""

    def __post_init__(self) -> None:
        for name in ("kept_tokens", "background_dropout", "light_dropout", "detail_dropout", "black_background"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; expected a number from 0 to 1")
        if self.kept_tokens * GRID**2 < 1:
            raise ValueError(f"kept_tokens is {self.kept_tokens}: less than one of {GRID**2} tokens; raise it")
        at_least = {"images": 1, "processes": 1, "batch_size": 2, "seed": 0, "warmup_steps": 0, "validation_images": 1}
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {least}")
        for name in ("final_images", "full_token_images"):
            if not 0 <= getattr(self, name) <= self.images:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 to `images` ({self.images})")
        if self.learning_rate <= 0 or self.weight_decay < 0 or self.save_every_s <= 0:
            raise ValueError("learning_rate and save_every_s must be above 0 and weight_decay at least 0")

    @property
    def images_a_step(self) -> int:
        return self.batch_size * self.processes

    @property
    def steps(self) -> int:
        return math.ceil(self.images / self.images_a_step)


def pretrain(settings: PretrainSettings, out: Path, rank: int = 0, stop_at_step: int | None = None) -> None:
    """Train one process's share into the existing folder `out`, of which rank 0 writes the files.

    `stop_at_step` ends the run as a kill right after that step's checkpoint would.
    """
    model = build(settings)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, betas=(0.9, 0.98)
    )
    first = _resume(settings, out, model, optimizer)
    saved_s = logged_s = time.monotonic()
    for step in range(first, settings.steps):
        losses = _train_step(settings, model, optimizer, step, rank)
        done = step + 1
        if rank == 0 and (done % 100 == 0 or done == settings.steps):
            rate = min(done - first, 100) * settings.images_a_step / (time.monotonic() - logged_s)
            logged_s = time.monotonic()
            _log(settings, done, losses, rate)
        due = time.monotonic() - saved_s > settings.save_every_s
        if rank == 0 and (due or done in (settings.steps, stop_at_step)):
            saved_s = time.monotonic()
            _save(settings, out, model, optimizer, done)
        if done == stop_at_step:
            break


def build(settings: PretrainSettings) -> Pretraining:
    """The model at step 0."""
    return Pretraining(
        seed=settings.seed,
        background_dropout=settings.background_dropout,
        light_dropout=settings.light_dropout,
        detail_dropout=settings.detail_dropout,
    )


def _train_step(
    settings: PretrainSettings, model: Pretraining, optimizer: torch.optim.Optimizer, step: int, rank: int
) -> dict[str, torch.Tensor]:
    """One step on the images that belong to this step and process; returns the losses."""
    seen = step * settings.images_a_step
    start = seen + rank * settings.batch_size
    batch = render_batch("toybox-pretrain", settings.seed, start, settings.batch_size, settings.black_background)
    generator = torch.Generator().manual_seed(seed_of("toybox-pretrain-dropout", settings.seed, start))
    kept_tokens = settings.kept_tokens if settings.images - seen > settings.full_token_images else 1.0
    for group in optimizer.param_groups:
        group["lr"] = learning_rate_at(settings, step)
    losses = model.losses(batch, kept_tokens, generator)
    optimizer.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    parameters = list(model.parameters())
    _average_gradients(parameters, settings.processes)
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    return losses


def learning_rate_at(settings: PretrainSettings, step: int) -> float:
    """Linear warm-up, constant, then a cosine to zero over the final stretch."""
    rate = settings.learning_rate * min(1.0, (step + 1) / max(1, settings.warmup_steps))
    left = settings.images - step * settings.images_a_step
    if left >= settings.final_images:
        return rate
    return rate * 0.5 * (1 - math.cos(math.pi * left / settings.final_images))


def _average_gradients(parameters: list[nn.Parameter], processes: int) -> None:
    if processes == 1:
        return
    flat = torch.cat([_gradient(parameter).reshape(-1) for parameter in parameters])
    dist.all_reduce(flat)
    flat /= processes
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)


def _gradient(parameter: nn.Parameter) -> torch.Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _log(settings: PretrainSettings, done: int, losses: dict[str, torch.Tensor], rate: float) -> None:
    parts = " ".join(f"{name} {value.item():.3f}" for name, value in losses.items())
    images = done * settings.images_a_step
    print(f"step {done}/{settings.steps} images {images} {parts} {rate:.0f} images/s", flush=True)


def _resume(settings: PretrainSettings, out: Path, model: Pretraining, optimizer: torch.optim.Optimizer) -> int:
    """Load the state of an earlier run, if there is one; returns the first step to do."""
    state = _earlier_state(settings, out)
    if state is None:
        return 0
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def _earlier_state(settings: PretrainSettings, out: Path) -> dict[str, Any] | None:
    """The state of an earlier run. Raises UsageError when that run had settings that cannot be continued."""
    path = out / "state.pt"
    if not path.is_file():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    free = {"images", "final_images", "full_token_images", "validation_images", "save_every_s"}
    now = {name: value for name, value in asdict(settings).items() if name not in free}
    changed = sorted(name for name, value in now.items() if state["settings"].get(name) != value)
    if changed:
        changes = ", ".join(f"{name} was {state['settings'].get(name)}, is {now[name]}" for name in changed)
        raise UsageError(f"{path} was made with other settings: {changes}; use the same ones or another --out")
    return state


def _save(
    settings: PretrainSettings, out: Path, model: Pretraining, optimizer: torch.optim.Optimizer, step: int
) -> None:
    """Write the resumable state, the float16 backbone (`out`/weights) and a line of zero-shot accuracies."""
    state = {"settings": asdict(settings), "step": step}
    state |= {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    partial = out / "state.pt.partial"
    torch.save(state, partial)
    partial.replace(out / "state.pt")
    save_backbone(model.backbone, out / "weights")
    validation = render_batch("toybox-pretrain-validation", 0, 0, settings.validation_images, settings.black_background)
    accuracies = {name: round(value, 3) for name, value in zero_shot(model, validation).items()}
    line = json.dumps({"images": step * settings.images_a_step, **accuracies})
    with (out / "zero_shot.jsonl").open("a") as log:
        log.write(line + "\n")
    print(line, flush=True)


def _process(rank: int, settings: PretrainSettings, out: Path) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    if settings.processes > 1:
        store = dist.FileStore(str(out / "rendezvous"), settings.processes)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=settings.processes)
    pretrain(settings, out, rank)
    if settings.processes > 1:
        dist.barrier()
        dist.destroy_process_group()


def run(settings: PretrainSettings, out: Path) -> None:
    """Pretrain with the given number of processes into the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "rendezvous").unlink(missing_ok=True)
    _earlier_state(settings, out)  # refused here, before any process starts
    if settings.processes == 1:
        _process(0, settings, out)
    else:
        torch.multiprocessing.spawn(_process, (settings, out), nprocs=settings.processes)


def main() -> None:
    """Command line."""
    import tyro

    @dataclass(frozen=True, kw_only=True)
    class Arguments:
        out: Path
        """Folder for the weights and the state."""
        settings: tyro.conf.OmitArgPrefixes[PretrainSettings] = PretrainSettings()

    arguments = tyro.cli(Arguments, description=__doc__)
    try:
        run(arguments.settings, arguments.out)
    except UsageError as mistake:
        print(mistake, file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
