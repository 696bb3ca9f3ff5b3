"""The training loop: plain PyTorch, on one process or on the workers of a process group.

Axes: B anchors of this worker, S slots of a sample (anchor, positives, distractors), K distractor slots.

Heads whose settings differ only in what is minimised and how are trained together, each batch being read once for all
of them. No random state exists: what a step does follows from the settings, the step's number and the head so far. A
run that goes on from a saved state is therefore the run that was never interrupted, to the last bit on one process.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nearid_ray.data.plan import differences
from nearid_ray.errors import UsageError
from nearid_ray.identifiers import content_hash
from nearid_ray.models.head import AttentionPoolingHead
from nearid_ray.training.checks import check_needs, not_finite
from nearid_ray.training.history import HistoryRow
from nearid_ray.training.items import item_table
from nearid_ray.training.pool import Workers
from nearid_ray.training.selection import Samples, Selection, StepItems
from nearid_ray.training.settings import TrainSettings, check_stackable
from nearid_ray.training.stack import HeadStack
from nearid_ray.training.step import StepBatch, backward_step, computing
from nearid_ray.training.tokens import Ahead, Cache, ResidentTokens, TokenReader
from nearid_ray.training.validation import Validation

Rows = dict[str, HistoryRow]
"""What a step did to each head, by the name of its run."""


@dataclass
class _Run:
    """One head of the stack and what belongs to it alone."""

    name: str
    settings: TrainSettings
    head: AttentionPoolingHead
    origin: dict[str, Any]
    device: torch.device

    def __post_init__(self) -> None:
        self.objective = self.settings.make_objective()
        self.history: list[HistoryRow] = []
        self.best: dict[str, Any] | None = None
        # Of 16-bit gradients small ones vanish; scaled they do not.
        self.scaler = torch.amp.GradScaler(
            self.device.type, init_scale=_FIRST_SCALE, enabled=self.settings.precision == "fp16"
        )

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        # Made when training starts: whoever only checks settings is spared torch's slow import of its compiler.
        return torch.optim.AdamW(
            self.head.parameters(),
            lr=self.settings.learning_rate,
            betas=(self.settings.adam_beta1, self.settings.adam_beta2),
            weight_decay=self.settings.weight_decay,
            fused=True,
        )

    def update(self, learning_rate: float) -> float:
        """One step of the optimiser; the gradient's norm before it was clipped."""
        self.scaler.unscale_(self.optimizer)
        norm = float(nn.utils.clip_grad_norm_(self.head.parameters(), self.settings.clip or float("inf")))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        if self.scaler.is_enabled() or np.isfinite(norm):
            self.scaler.step(self.optimizer)
        self.scaler.update()
        return norm

    def keep_if_best(self, row: HistoryRow) -> None:
        """The best head so far: highest SSR, then highest PA, then earliest. The untrained head does not compete."""
        assert row.val_ssr is not None and row.val_pa is not None
        if self.best is None or (row.val_ssr, row.val_pa) > (self.best["val_ssr"], self.best["val_pa"]):
            self.best = {
                "step": row.step,
                "val_ssr": row.val_ssr,
                "val_pa": row.val_pa,
                "head": _copied(self.head.state_dict()),
            }


@dataclass(frozen=True, kw_only=True)
class _Read:
    """A step's batch as the reading thread leaves it."""

    samples: int
    """Samples of the global batch."""
    rows_N: np.ndarray
    """Index rows of the pictures."""
    batch: StepBatch


class HeadTraining:
    """Some runs that share their data: heads, a token cache and settings, from step 0 or a saved state to the end."""

    def __init__(
        self,
        heads: Mapping[str, AttentionPoolingHead],
        cache: Cache,
        runs: Mapping[str, TrainSettings],
        *,
        workers: Workers | None = None,
        device: torch.device | str = "cpu",
        micro_batch: int = 0,
        resident: bool = False,
    ) -> None:
        """Prepares the runs; the heads are trained in place.

        Args:
            heads: the head of each run, by the run's name.
            cache: where tokens come from.
            runs: the settings of each run; they may differ in `PER_HEAD` settings alone.
            workers: the processes that train together.
            device: where the heads compute.
            micro_batch: pictures that are embedded at a time; 0 embeds a worker's whole part at once.
            resident: hold all training tokens on the device.

        Raises:
            UsageError: head and tokens differ in width, the cache lacks what the settings ask for, or the settings do
                not fit its size or each other.
        """
        settings = check_stackable(runs)
        for name, head in heads.items():
            if cache.width != head.width:
                raise UsageError(
                    f"{name}: the head takes tokens of width {head.width}, the token cache holds width {cache.width}"
                )
        self.settings, self.cache = settings, cache
        self.workers = workers or Workers()
        if settings.global_batch < self.workers.count:
            raise UsageError(
                f"global_batch {settings.global_batch} is smaller than the number of workers, {self.workers.count}; "
                "some would never have a sample. Raise global_batch or lower workers"
            )
        self.device = torch.device(device)
        self.items = item_table(cache.index, split="train", engines=settings.engines, sources=settings.sources)
        self.selection = Selection(self.items, settings.selection())
        self.batches_per_epoch = self.selection.batches_per_epoch(settings.global_batch)
        self.steps = settings.planned_steps(self.batches_per_epoch)
        self.validation = (
            Validation(cache, self.items.engines, sources=settings.validation_sources)
            if settings.evaluate_every
            else None
        )
        self.runs: dict[str, _Run] = {}
        for name, head in heads.items():
            origin = origin_of(cache, head)
            self.runs[name] = _Run(name, runs[name], head.to(self.device).train(), origin, self.device)
            runs[name].planned_steps(self.batches_per_epoch)
        self._oracle_M = _oracles(cache)
        check_needs({name: run.objective for name, run in self.runs.items()}, self.items, settings, self._oracle_M)
        self.step = 0
        self._micro_batch, self._resident = micro_batch, resident
        self._stack = HeadStack([run.head for run in self.runs.values()])
        self.blank = any(getattr(run.objective, "reference", False) for run in self.runs.values())
        self._model = DistributedDataParallel(self._stack) if self.workers.count > 1 else self._stack
        self._epoch_batches: tuple[int, list[Samples]] = (-1, [])

    @cached_property
    def _reader(self) -> TokenReader | ResidentTokens:
        if self._resident:
            rows = [rows_OA.ravel() for rows_OA in (self.items.plain_OA, self.items.masked_OA)]
            return ResidentTokens(self.cache, self.device, np.concatenate(rows))
        return TokenReader(self.cache, self.device, buffers=2)

    @cached_property
    def _validation_reader(self) -> TokenReader:
        return TokenReader(self.cache, self.device)

    def run(self) -> Iterator[Rows]:
        """Train to the last step, yielding each step's rows. Every worker must go through all of it."""
        if self.step == 0 and not self._history() and self.validation:
            yield self._kept(self._validated({name: HistoryRow(step=0, epoch=0.0) for name in self.runs}))
        ahead = Ahead(self._read, self.steps)
        try:
            while self.step < self.steps:
                rows = self._advance(ahead)
                last = self.step == self.steps
                if self.validation and (last or self.step % self.settings.evaluate_every == 0):
                    rows = self._validated(rows)
                    for name, row in rows.items():
                        self.runs[name].keep_if_best(row)
                yield self._kept(rows)
        finally:
            ahead.close()

    @property
    def checkpoint_due(self) -> bool:
        """Whether the state after the last row should be saved."""
        every = self.settings.checkpoint_every
        return self.step == self.steps or bool(every and self.step and self.step % every == 0)

    def state(self) -> dict[str, dict[str, Any]]:
        """All that is needed to go on, for each run: tensors and plain values, on the CPU."""
        return {
            name: {
                "step": self.step,
                "origin": run.origin,
                "settings": run.settings.resolved(),
                "head": _copied(run.head.state_dict()),
                "optimizer": _copied(run.optimizer.state_dict()),
                "scaler": run.scaler.state_dict(),
                "best": run.best,
                "history": [asdict(row) for row in run.history],
            }
            for name, run in self.runs.items()
        }

    def restore(self, state: Mapping[str, dict[str, Any]]) -> None:
        """Go on from a saved state.

        Raises:
            UsageError: see `check_resumable`; or the state is of other runs.
        """
        if set(state) != set(self.runs):
            raise UsageError(f"the checkpoint is of the runs {sorted(state)}, not of {sorted(self.runs)}")
        for name, run in self.runs.items():
            saved = state[name]
            check_resumable(saved, run.settings, run.origin)
            run.head.load_state_dict(saved["head"])
            run.optimizer.load_state_dict(saved["optimizer"])
            run.scaler.load_state_dict(saved["scaler"])
            run.best = saved["best"]
            run.history = [HistoryRow.saved(row) for row in saved["history"]]
            self.step = saved["step"]

    def _advance(self, ahead: "Ahead[_Read]") -> Rows:
        """One step of all heads."""
        started = time.perf_counter()
        read = ahead.take(self.step)
        waited = time.perf_counter() - started
        for run in self.runs.values():
            run.optimizer.zero_grad(set_to_none=True)
        values = backward_step(
            self._model,
            read.batch,
            [run.objective for run in self.runs.values()],
            self.workers,
            precision=self.settings.precision,
            micro_batch=self._micro_batch,
            scales=[run.scaler.scale(torch.ones((), device=self.device)) for run in self.runs.values()],
        )
        rates = {name: run.settings.learning_rate_at(self.step, self.steps) for name, run in self.runs.items()}
        scales = {name: run.scaler.get_scale() for name, run in self.runs.items()}
        losses = {name: float(value.loss.detach()) for name, value in zip(self.runs, values, strict=True)}
        parts = {name: value.parts for name, value in zip(self.runs, values, strict=True)}
        norms = {name: run.update(rates[name]) for name, run in self.runs.items()}
        self._check_finite(read, losses, norms)
        self.step += 1
        seconds = time.perf_counter() - started
        return {
            name: HistoryRow(
                step=self.step,
                epoch=self.step / self.batches_per_epoch,
                loss=losses[name],
                parts=parts[name],
                learning_rate=rates[name],
                grad_norm=norms[name],
                loss_scale=scales[name] if run.scaler.is_enabled() else None,
                samples_per_s=read.samples / seconds,
                read_wait_s=waited,
                device_gib=_device_gib(self.device),
            )
            for name, run in self.runs.items()
        }

    def _check_finite(self, read: _Read, losses: Mapping[str, float], norms: Mapping[str, float]) -> None:
        for name, run in self.runs.items():
            overflowed = run.scaler.is_enabled() and run.scaler.get_scale() > _SMALLEST_SCALE
            if np.isfinite(losses[name]) and (np.isfinite(norms[name]) or overflowed):
                continue
            bad = not_finite(self.cache.index, read.rows_N, read.batch.tokens_NTD[: len(read.rows_N)], self.workers)
            said = (
                f"the tokens of {bad} are not finite; embed them again"
                if bad
                else "all tokens are finite: the learning rate is too high, or the head it started from is broken"
            )
            raise FloatingPointError(
                f"{name}, step {self.step}: loss {losses[name]}, gradient norm {norms[name]}; {said}"
            )

    def _batches(self, epoch: int) -> list[Samples]:
        if self._epoch_batches[0] != epoch:
            self._epoch_batches = (epoch, self.selection.epoch(epoch, self.settings.global_batch))
        return self._epoch_batches[1]

    def _read(self, step: int) -> _Read:
        """This worker's part of a step's global batch."""
        epoch, place = divmod(step, self.batches_per_epoch)
        samples = self._batches(epoch)[place]
        own = samples[self.workers.part(len(samples))]
        items: StepItems = self.selection.choose(own, epoch)
        rows_BS = items.rows_BS()
        valid_BS = rows_BS >= 0
        rows_N = rows_BS[valid_BS]
        tokens_NTD = self._reader.read_NTD(rows_N, on_device=not self._micro_batch)
        if self.blank:
            blank_TD = torch.from_numpy(np.array(self.cache.blank_TD())).to(tokens_NTD.device)
            tokens_NTD = torch.cat([tokens_NTD, blank_TD[None]])
        oracle_BK = np.where(items.distractor_valid_BK, self._oracle_M[items.distractor_BK], np.nan)
        draw_B = self.selection.positive_draw(own, epoch)
        batch = StepBatch(
            tokens_NTD=tokens_NTD,
            valid_BS=torch.from_numpy(valid_BS).to(self.device),
            positives=self.settings.positives,
            padded_anchors=-(-len(samples) // self.workers.count),
            oracle_BK=torch.from_numpy(oracle_BK.astype(np.float32)).to(self.device),
            draw_B=torch.from_numpy(draw_B).to(self.device),
            blank=self.blank,
        )
        return _Read(samples=len(samples), rows_N=rows_N, batch=batch)

    def _validated(self, rows: Rows) -> Rows:
        assert self.validation is not None
        started = time.perf_counter()
        with computing(self.settings.precision, self.device):
            counts = self.validation.measure(self._stack, self._validation_reader, self.workers)
        seconds = time.perf_counter() - started
        return {
            name: replace(row, val_ssr=count.ssr(), val_pa=count.pa(), val_s=seconds)
            for (name, row), count in zip(rows.items(), counts, strict=True)
        }

    def _kept(self, rows: Rows) -> Rows:
        for name, row in rows.items():
            self.runs[name].history.append(row)
        return rows

    def _history(self) -> list[HistoryRow]:
        return next(iter(self.runs.values())).history


_FIRST_SCALE = 2.0**10
"""Loss scale of the first steps; torch's 2**16 overflows, which leaves out the steps until it has come down."""

_SMALLEST_SCALE = 2.0**-10
"""Gradients that overflow even with this loss scale are not a matter of scale."""


def check_resumable(state: Mapping[str, Any], settings: TrainSettings, origin: Mapping[str, Any]) -> None:
    """Raises UsageError when a saved state is not of a run with these settings, tokens and initial head."""
    settings.check_same(state["settings"])
    differing = differences(dict(state["origin"]), dict(origin))
    if differing:
        raise UsageError(
            "the checkpoint is of a run that started from another head or read other tokens:\n  "
            + "\n  ".join(differing)
            + "\nUse a new output folder."
        )


def origin_of(cache: Cache, head: AttentionPoolingHead) -> dict[str, Any]:
    """Name of what a run starts from: the tokens, and the head's architecture and weights."""
    weights = safetensors.torch.save({name: value.cpu().contiguous() for name, value in head.state_dict().items()})
    return {
        "tokens": cache.fingerprint,
        "backbone": cache.backbone["spec"],
        "architecture": f"width {head.width}, {head.heads} attention heads, MLP {head.mlp_width}",
        "initial_head": content_hash(weights),
    }


def _oracles(cache: Cache) -> np.ndarray:
    """The oracle of every index row; not a number where there is none."""
    if "oracle" not in cache.index.column_names:
        return np.full(len(cache.index), np.nan)
    return cache.index["oracle"].to_numpy(zero_copy_only=False).astype(np.float64)


def _device_gib(device: torch.device) -> float | None:
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None


def _copied(value: Any) -> Any:
    """A copy on the CPU that further training does not change."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {key: _copied(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_copied(entry) for entry in value]
    return value
