"""The training loop: plain PyTorch, on one process or on the workers of a process group.

Axes: B anchors of this worker, S slots of a sample (anchor, positives, distractors), N filled slots, T tokens, D width.

No random state exists: what a step does follows from the settings, the step's number and the head so far. A run that
goes on from a saved state is therefore the run that was never interrupted, to the last bit on one process.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from nearid_ray.errors import UsageError
from nearid_ray.identifiers import content_hash, stable_hash
from nearid_ray.models.head import AttentionPoolingHead
from nearid_ray.settings import to_dict
from nearid_ray.training.items import item_table
from nearid_ray.training.losses import EmbeddedTuples, LossValue, Objective
from nearid_ray.training.pool import Workers, gather_pool
from nearid_ray.training.selection import Samples, Selection, StepItems
from nearid_ray.training.settings import Precision, TrainSettings
from nearid_ray.training.tokens import Cache, TokenReader
from nearid_ray.training.validation import Validation


@dataclass(frozen=True, kw_only=True)
class HistoryRow:
    """What one step did. The row of step 0 is the head before training, with validation alone."""

    step: int
    """Steps done."""
    epoch: float
    """Epochs done."""
    loss: float | None = None
    """Loss of the global batch, before the step."""
    disc: float | None = None
    """Its discrimination term."""
    rank: float | None = None
    """Its ranking term, without alpha."""
    cohesion: float | None = None
    """Its cohesion term, without beta."""
    learning_rate: float | None = None
    grad_norm: float | None = None
    """Norm of the gradient before clipping."""
    samples_per_s: float | None = None
    """Samples of the global batch per second; validation and checkpoints are not in the time."""
    val_ssr: float | None = None
    """Sample success rate on the validation split, 0 to 1; None between validations."""
    val_pa: float | None = None
    """Pairwise accuracy on the validation split, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """Tokens of the filled slots of this worker's samples."""

    tokens_NTD: Tensor
    valid_BS: Tensor
    """Which slots are filled, in the order of N."""
    positives: int
    """Positive slots; slot 0 is the anchor, the distractors come last."""
    padded_anchors: int
    """A number of anchors that no worker has more of."""


def step_loss(
    head: nn.Module, batch: StepBatch, objective: Objective, workers: Workers, precision: Precision = "fp32"
) -> LossValue:
    """The loss of one step: embed the filled slots, gather the positives, apply the objective in float32.

    Every worker must call it, one without samples too.
    """
    with _computing(precision, batch.tokens_NTD.device):
        embedding_ND = head(batch.tokens_NTD)
    # float64 heads stay float64; half precision goes up.
    embedding_ND = embedding_ND.to(torch.promote_types(embedding_ND.dtype, torch.float32))
    embedding_BSD = _in_slots(functional.normalize(embedding_ND, dim=-1), batch.valid_BS)
    first_distractor = 1 + batch.positives
    tuples = EmbeddedTuples(
        anchor_BD=embedding_BSD[:, 0],
        positive_BPD=embedding_BSD[:, 1:first_distractor],
        positive_valid_BP=batch.valid_BS[:, 1:first_distractor],
        distractor_BKD=embedding_BSD[:, first_distractor:],
        distractor_valid_BK=batch.valid_BS[:, first_distractor:],
    )
    pool = gather_pool(tuples.positive_BPD, tuples.positive_valid_BP, workers, batch.padded_anchors)
    return objective(tuples, pool, workers)


class HeadTraining:
    """One run: a head, a token cache and settings, from step 0 or a saved state to the last step."""

    def __init__(
        self,
        head: AttentionPoolingHead,
        cache: Cache,
        settings: TrainSettings,
        *,
        workers: Workers | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Prepares the run; `head` is trained in place.

        Raises:
            UsageError: head and tokens differ in width, the cache lacks what the settings ask for, or the settings do
                not fit its size.
        """
        if cache.width != head.width:
            raise UsageError(f"the head takes tokens of width {head.width}, the token cache holds width {cache.width}")
        self.settings = settings
        self.workers = workers or Workers()
        self.device = torch.device(device)
        self.items = item_table(cache.index, split="train", engines=settings.engines)
        self.selection = Selection(self.items, settings.selection())
        self.batches_per_epoch = self.selection.batches_per_epoch(settings.global_batch)
        self.steps = settings.planned_steps(self.batches_per_epoch)
        self.validation = Validation(cache, self.items.engines) if settings.evaluate_every else None
        self.origin = _origin(cache, head)
        self.head = head.to(self.device).train()
        self.step = 0
        self.history: list[HistoryRow] = []
        self.best: dict[str, Any] | None = None
        self._objective = settings.objective()
        self._reader = TokenReader(cache, self.device)
        self._model = DistributedDataParallel(self.head) if self.workers.count > 1 else self.head
        self._epoch_batches: tuple[int, list[Samples]] = (-1, [])

    @cached_property
    def _optimizer(self) -> torch.optim.Optimizer:
        # Made when training starts: whoever only checks settings is spared torch's slow import of its compiler.
        return torch.optim.AdamW(
            self.head.parameters(),
            lr=self.settings.learning_rate,
            betas=(self.settings.adam_beta1, self.settings.adam_beta2),
            weight_decay=self.settings.weight_decay,
            fused=True,
        )

    def run(self) -> Iterator[HistoryRow]:
        """Train to the last step, yielding each step's row. Every worker must go through all of it."""
        if self.step == 0 and not self.history and self.validation:
            yield self._validated(HistoryRow(step=0, epoch=0.0))
        while self.step < self.steps:
            row = self._advance()
            last = self.step == self.steps
            if self.validation and (last or self.step % self.settings.evaluate_every == 0):
                row = self._validated(row)
                self._keep_if_best(row)
            else:
                self.history.append(row)
            yield row

    @property
    def checkpoint_due(self) -> bool:
        """Whether the state after the last row should be saved."""
        every = self.settings.checkpoint_every
        return self.step == self.steps or bool(every and self.step and self.step % every == 0)

    def state(self) -> dict[str, Any]:
        """All that is needed to go on: tensors and plain values, on the CPU."""
        return {
            "step": self.step,
            "origin": self.origin,
            "settings": to_dict(self.settings),
            "head": _copied(self.head.state_dict()),
            "optimizer": _copied(self._optimizer.state_dict()),
            "best": self.best,
            "history": [asdict(row) for row in self.history],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            UsageError: see `check_resumable`.
        """
        check_resumable(state, self.settings, self.origin)
        self.head.load_state_dict(state["head"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        self.best = state["best"]
        self.history = [HistoryRow(**row) for row in state["history"]]

    def _advance(self) -> HistoryRow:
        """One step of the optimiser."""
        started = time.perf_counter()
        epoch, place = divmod(self.step, self.batches_per_epoch)
        samples = self._batches(epoch)[place]
        value = step_loss(
            self._model,
            self._read(samples, epoch),
            self._objective,
            self.workers,
            self.settings.precision,
        )
        self._optimizer.zero_grad(set_to_none=True)
        value.loss.backward()
        grad_norm = nn.utils.clip_grad_norm_(self.head.parameters(), self.settings.clip or float("inf"))
        loss = float(value.loss.detach())
        if not torch.isfinite(grad_norm) or loss != loss:
            raise FloatingPointError(
                f"step {self.step}: loss {loss}, gradient norm {float(grad_norm)}; the tokens or the head hold values "
                "that are not finite, or the learning rate is too high"
            )
        learning_rate = self.settings.learning_rate_at(self.step, self.steps)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        self.step += 1
        return HistoryRow(
            step=self.step,
            epoch=self.step / self.batches_per_epoch,
            loss=loss,
            **value.parts,
            learning_rate=learning_rate,
            grad_norm=float(grad_norm),
            samples_per_s=len(samples) / (time.perf_counter() - started),
        )

    def _batches(self, epoch: int) -> list[Samples]:
        if self._epoch_batches[0] != epoch:
            self._epoch_batches = (epoch, self.selection.epoch(epoch, self.settings.global_batch))
        return self._epoch_batches[1]

    def _read(self, samples: Samples, epoch: int) -> StepBatch:
        """This worker's part of a global batch."""
        items: StepItems = self.selection.choose(samples[self.workers.part(len(samples))], epoch)
        rows_BS = items.rows_BS()
        valid_BS = rows_BS >= 0
        return StepBatch(
            tokens_NTD=self._reader.read_NTD(rows_BS[valid_BS]),
            valid_BS=torch.from_numpy(valid_BS).to(self.device),
            positives=self.settings.positives,
            padded_anchors=-(-len(samples) // self.workers.count),
        )

    def _validated(self, row: HistoryRow) -> HistoryRow:
        assert self.validation is not None
        with _computing(self.settings.precision, self.device):
            counts = self.validation.measure(self.head, self._reader, self.workers)
        row = replace(row, val_ssr=counts.ssr(), val_pa=counts.pa())
        self.history.append(row)
        return row

    def _keep_if_best(self, row: HistoryRow) -> None:
        """The best head so far: highest SSR, then highest PA, then earliest. The untrained head does not compete."""
        assert row.val_ssr is not None and row.val_pa is not None
        if self.best is None or (row.val_ssr, row.val_pa) > (self.best["val_ssr"], self.best["val_pa"]):
            self.best = {
                "step": row.step,
                "val_ssr": row.val_ssr,
                "val_pa": row.val_pa,
                "head": _copied(self.head.state_dict()),
            }


def check_resumable(state: Mapping[str, Any], settings: TrainSettings, origin: str) -> None:
    """Raises UsageError when a saved state is not of a run with these settings, tokens and initial head."""
    settings.check_same(state["settings"])
    if state["origin"] != origin:
        raise UsageError(
            "the checkpoint is of a run that started from another head or read other tokens; use a new output folder"
        )


def _origin(cache: Cache, head: AttentionPoolingHead) -> str:
    """Name of what a run starts from: the tokens and the head's weights."""
    weights = safetensors.torch.save({name: value.cpu().contiguous() for name, value in head.state_dict().items()})
    return stable_hash(cache.fingerprint, content_hash(weights))


def _computing(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def _in_slots(embedding_ND: Tensor, valid_BS: Tensor) -> Tensor:
    """Embeddings of the filled slots at their places; zeros elsewhere."""
    samples, slots = valid_BS.shape
    flat = embedding_ND.new_zeros(samples * slots, embedding_ND.shape[-1])
    return flat.index_copy(0, valid_BS.flatten().nonzero()[:, 0], embedding_ND).view(samples, slots, -1)


def _copied(value: Any) -> Any:
    """A copy on the CPU that further training does not change."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {key: _copied(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_copied(entry) for entry in value]
    return value
