"""What a training run leaves: its best and last head, and its history."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from torch import Tensor

from nearid_ray.data.store import Location
from nearid_ray.models.checkpoint import HeadCard, save_head
from nearid_ray.models.head import AttentionPoolingHead
from nearid_ray.training.history import HistoryRow, history_csv
from nearid_ray.training.settings import TrainSettings

BEST, LAST, HISTORY = "best", "last", "history.csv"


@dataclass(frozen=True, kw_only=True)
class TrainedHead:
    """The outcome of one run."""

    name: str
    settings: TrainSettings
    history: list[HistoryRow]
    last_step: int
    last_head: dict[str, Tensor]
    """State of the head after the last step."""
    best_step: int
    """The step with the highest validation SSR; the last one where nothing was validated."""
    best_head: dict[str, Tensor]
    """State of the head after that step."""
    best_val_ssr: float | None
    best_val_pa: float | None

    @classmethod
    def of(cls, name: str, settings: TrainSettings, state: Mapping[str, Any]) -> Self:
        """The outcome that the state after the last step (`HeadTraining.state`) holds."""
        best = state["best"] or {"step": state["step"], "head": state["head"], "val_ssr": None, "val_pa": None}
        return cls(
            name=name,
            settings=settings,
            history=[HistoryRow.saved(row) for row in state["history"]],
            last_step=state["step"],
            last_head=state["head"],
            best_step=best["step"],
            best_head=best["head"],
            best_val_ssr=best["val_ssr"],
            best_val_pa=best["val_pa"],
        )


def save_trained(folder: Location, trained: TrainedHead, backbone: Mapping[str, Any]) -> None:
    """Write `history.csv`, `last/` and `best/` (heads, see `save_head`) below a folder; `best/` comes last.

    Args:
        folder: where to.
        trained: the outcome of a run.
        backbone: who made the tokens (`TokenCache.backbone`).
    """
    folder.child(HISTORY).write_bytes(history_csv(trained.history))
    final = next((row for row in reversed(trained.history) if row.step == trained.last_step), None)
    last: dict[str, float | int | None] = {"step": trained.last_step}
    if final is not None:
        last |= {"val_ssr": final.val_ssr, "val_pa": final.val_pa}
    best: dict[str, float | int | None] = {
        "step": trained.best_step,
        "val_ssr": trained.best_val_ssr,
        "val_pa": trained.best_val_pa,
    }
    for part, state, metrics in ((LAST, trained.last_head, last), (BEST, trained.best_head, best)):
        head = AttentionPoolingHead.from_state_dict(state, backbone["heads"], backbone["layer_norm_eps"])
        card = HeadCard.of(head, backbone["spec"], backbone["fingerprint"])
        save_head(folder.child(part), head, replace(card, settings=trained.settings.resolved(), metrics=metrics))
