"""The training loop: plain PyTorch, on one process or on the workers of a process group.

Axes: B anchors of this worker, S slots of a sample (anchor, positives, distractors), K distractor slots.

Heads whose settings differ only in what is minimised and how are trained together, each batch being read once for all
of them. No random state exists: what a step does follows from the settings, the step's number and the head so far. A
run that goes on from a saved state is therefore the run that was never interrupted, to the last bit on one process.
"""

import gc
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch.nn.parallel import DistributedDataParallel

from nearid_ray.data.plan import differences
from nearid_ray.errors import UsageError
from nearid_ray.identifiers import content_hash
from nearid_ray.models.head import AttentionPoolingHead
from nearid_ray.training.checks import check_needs, not_finite
from nearid_ray.training.history import HistoryRow
from nearid_ray.training.items import item_table
from nearid_ray.training.pool import Workers
from nearid_ray.training.run import SMALLEST_SCALE, Run, copied
from nearid_ray.training.selection import Samples, Selection, StepItems
from nearid_ray.training.settings import TrainSettings, check_stackable
from nearid_ray.training.stack import HeadStack
from nearid_ray.training.step import StepBatch, backward_step, computing
from nearid_ray.training.tokens import Ahead, Cache, ResidentTokens, TokenReader
from nearid_ray.training.validation import NotFinite, Validation

Rows = dict[str, HistoryRow]
"""What a step did to each head, by the name of its run."""


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
        tolerant: bool = False,
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
            tolerant: a run whose loss or gradient is not finite leaves (`failed`), and the others go on.

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
        self.runs: dict[str, Run] = {}
        for name, head in heads.items():
            origin = origin_of(cache, head)
            self.runs[name] = Run(name, runs[name], head.to(self.device).train(), origin, self.device)
            runs[name].planned_steps(self.batches_per_epoch)
        self._oracle_M = _oracles(cache)
        check_needs({name: run.objective for name, run in self.runs.items()}, self.items, settings, self._oracle_M)
        self.step = 0
        self._micro_batch, self._resident = micro_batch, resident
        self._tolerant = tolerant
        self.failed: dict[str, str] = {}
        """Why runs left that could not go on."""
        self.blank = any(getattr(run.objective, "reference", False) for run in self.runs.values())
        self._stack_heads()
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
            first = self._validated({name: HistoryRow(step=0, epoch=0.0) for name in self.runs})
            if first:
                yield self._kept(first)
        ahead = Ahead(self._read, self.steps)
        try:
            while self.step < self.steps and self.runs:
                rows = self._advance(ahead)
                last = self.step == self.steps
                if rows and self.validation and (last or self.step % self.settings.evaluate_every == 0):
                    rows = self._validated(rows)
                    for name, row in rows.items():
                        self.runs[name].keep_if_best(row)
                if rows:
                    yield self._kept(rows)
        finally:
            ahead.close()

    def leave(self, names: Collection[str]) -> dict[str, dict[str, Any]]:
        """Take runs out of the stack after a step; nothing is computed for them any more, the others do not notice.

        Every worker must call it, with the same names.

        Returns:
            The states of the runs that left, see `state`.
        """
        left = self.state(names)
        for name in left:
            del self.runs[name]
        if left and self.runs:
            self._stack_heads()
        return left

    @property
    def checkpoint_due(self) -> bool:
        """Whether the state after the last row should be saved."""
        every = self.settings.checkpoint_every
        return self.step == self.steps or bool(every and self.step and self.step % every == 0)

    def state(self, names: Collection[str] | None = None) -> dict[str, dict[str, Any]]:
        """All that is needed to go on, for each run (of these names): tensors and plain values, on the CPU."""
        return {
            name: {
                "step": self.step,
                "origin": run.origin,
                "settings": run.settings.resolved(),
                "head": copied(run.head.state_dict()),
                "optimizer": copied(run.optimizer.state_dict()),
                "scaler": run.scaler.state_dict(),
                "best": run.best,
                "history": [asdict(row) for row in run.history],
            }
            for name, run in self.runs.items()
            if names is None or name in names
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
            self._model or self._stack,
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
        """Raises FloatingPointError where a loss or gradient is not finite; or lets such runs leave, if tolerant."""
        wrong: dict[str, str] = {}
        for name, run in self.runs.items():
            overflowed = run.scaler.is_enabled() and run.scaler.get_scale() > SMALLEST_SCALE
            if not np.isfinite(losses[name]) or not (np.isfinite(norms[name]) or overflowed):
                wrong[name] = f"{name}, step {self.step}: loss {losses[name]}, gradient norm {norms[name]}"
        if not wrong:
            return
        bad = not_finite(self.cache.index, read.rows_N, read.batch.tokens_NTD[: len(read.rows_N)], self.workers)
        if bad:
            said = f"the tokens of {bad} are not finite; embed them again"
            raise FloatingPointError(f"{next(iter(wrong.values()))}; {said}")
        said = "all tokens are finite: the learning rate is too high, or the head it started from is broken"
        self._fail({name: f"{text}; {said}" for name, text in wrong.items()})

    def _fail(self, wrong: Mapping[str, str]) -> None:
        if not self._tolerant:
            raise FloatingPointError(next(iter(wrong.values())))
        self.failed |= wrong
        self.leave(wrong)

    def _stack_heads(self) -> None:
        self._stack = HeadStack([run.head for run in self.runs.values()])
        self._model: DistributedDataParallel | None = None
        if self.workers.count > 1:
            gc.collect()  # a former wrapper takes its hooks off the parameters when it goes
            self._model = DistributedDataParallel(self._stack)

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
        try:
            with computing(self.settings.precision, self.device):
                counts = self.validation.measure(self._stack, self._validation_reader, self.workers)
        except NotFinite as error:
            if not self._tolerant:
                raise
            names = list(self.runs)
            self._fail({names[place]: f"{names[place]}, step {self.step}: {error}" for place in error.heads})
            left = {name: row for name, row in rows.items() if name in self.runs}
            return self._validated(left) if left else {}
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
