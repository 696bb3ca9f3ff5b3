"""One head of a stack and what belongs to it alone: optimiser, loss scale, history, the best state so far."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nearid_ray.models.head import AttentionPoolingHead
from nearid_ray.training.history import HistoryRow
from nearid_ray.training.settings import TrainSettings

_FIRST_SCALE = 2.0**10
"""Loss scale of the first steps; torch's 2**16 overflows, which leaves out the steps until it has come down."""

SMALLEST_SCALE = 2.0**-10
"""Gradients that overflow even with this loss scale are not a matter of scale."""


@dataclass
class Run:
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
                "head": copied(self.head.state_dict()),
            }


def copied(value: Any) -> Any:
    """A copy on the CPU that further training does not change."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {key: copied(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [copied(entry) for entry in value]
    return value
