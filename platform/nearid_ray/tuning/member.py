"""One trial of Ray Tune: reports what its run does in a pass that may train many.

The trial itself computes nothing and takes no CPU. Tune sees an ordinary trial all the same: it has its own settings
and results, and its scheduler may stop it.
"""

from typing import Any

import ray
from ray import tune

METRIC = "best_val_ssr"
"""What trials are compared by: the validation SSR of the run's best head so far, which is the head it would leave."""


class Member(tune.Trainable):
    """Reports the validations of the run that `config["trial"]` names."""

    def setup(self, config: dict[str, Any], hub: Any) -> None:  # type: ignore[override]
        self._hub: Any = hub
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        self._trial, self._place = config["trial"], 0
        self._last: dict[str, Any] = {"step": 0}
        self._best = (-1.0, -1.0)

    def step(self) -> dict[str, Any]:
        """The next validation of the run; the last one again, with `done`, when the run has ended."""
        row: dict[str, Any] | None = ray.get(self._hub.take.remote(self._trial, self._place))
        if row is None:
            return {**self._last, "done": True}
        self._place += 1
        mine = (row["val_ssr"], row["val_pa"])
        if row["step"] and mine > self._best:
            self._best = mine
        best = {METRIC: self._best[0], "best_val_pa": self._best[1]} if row["step"] else {METRIC: 0.0}
        self._last = {**{name: value for name, value in row.items() if value is not None}, **best}
        return {**self._last, "done": row["step"] >= row["steps"]}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the pass keeps checkpoints of all its runs."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: a trial that starts anew reports its rows from the first one on."""
