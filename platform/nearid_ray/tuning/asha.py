"""Asynchronous successive halving (Li et al. 2020, arXiv 1810.05934) for trials of which many train together.

Ray's own ASHA judges each trial when it comes to a rung, against those that were there before: of trials that train in
one pass, and so come at the same moment, the first would always go on. Here a pass is judged as a whole: when all its
trials have reported a rung, those go on that belong to the best share of all that ever came to it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from nearid_ray.errors import UsageError

Settle = Callable[[str, int, Sequence[str]], None]
"""Tells a pass which of its runs leave after a step."""


@dataclass(frozen=True, kw_only=True)
class AshaSettings:
    """Stopping trials early."""

    asha: bool = False
    """Stop trials that are behind on validation SSR at some steps (rungs), after which only a share goes on."""
    grace_steps: int = 0
    """Steps before the first rung; 0 takes a ninth of all steps, and at least two validations."""
    reduction_factor: float = 3.0
    """One in so many trials goes on at a rung; the next rung is so many times as many steps away. Above 1."""

    def __post_init__(self) -> None:
        if self.grace_steps < 0:
            raise UsageError(f"grace_steps is {self.grace_steps}; expected 0 or more")
        if not 1 < self.reduction_factor < float("inf"):
            raise UsageError(f"reduction_factor is {self.reduction_factor:g}; expected a number above 1")


def rungs(asha: AshaSettings, steps: int, evaluate_every: int) -> tuple[int, ...]:
    """Steps after which trials of so many steps are judged: the first validation at or after each level.

    >>> rungs(AshaSettings(asha=True, grace_steps=50), 400, 50)
    (50, 150)

    Raises:
        UsageError: there would be none.
    """
    if not evaluate_every:
        raise UsageError("asha compares validations, but evaluate_every is 0; set it, e.g. to an eighth of the steps")
    level = float(asha.grace_steps or max(2 * evaluate_every, steps // 9))
    found = []
    while (at := evaluate_every * -(-int(np.ceil(level)) // evaluate_every)) < steps:
        found.append(at)
        level *= asha.reduction_factor
    if not found:
        raise UsageError(
            f"asha would never stop a trial: the first rung is the first validation from step {level:g} on, trials "
            f"have {steps} steps; lower grace_steps or evaluate_every"
        )
    return tuple(dict.fromkeys(found))


def behind(values: Mapping[str, float], all_values: Sequence[float], reduction_factor: float) -> list[str]:
    """Those below the best 1/reduction_factor of all values ever seen at a rung; ties go on.

    >>> behind({"a": 0.9, "b": 0.5, "c": 0.4}, [0.9, 0.5, 0.4], 3)
    ['b', 'c']
    """
    kept = max(1, int(len(all_values) / reduction_factor))
    cutoff = sorted(all_values, reverse=True)[kept - 1]
    return [name for name, value in values.items() if value < cutoff]


class Halving(FIFOScheduler):
    """Ray Tune's scheduler of a sweep with successive halving."""

    def __init__(
        self,
        members: Mapping[str, Sequence[str]],
        rungs: Mapping[str, Sequence[int]],
        reduction_factor: float,
        settle: Settle,
        metric: str,
    ) -> None:
        """Settles who is judged with whom.

        Args:
            members: names of the runs of each pass.
            rungs: steps at which each pass is judged.
            reduction_factor: see `AshaSettings`.
            settle: told of each verdict.
            metric: what trials are compared by, higher is better.
        """
        super().__init__()
        self._rungs, self._factor, self._settle, self._by = dict(rungs), reduction_factor, settle, metric
        self._live = {name: set(names) for name, names in members.items()}
        self._pass_of = {run: name for name, names in members.items() for run in names}
        self._seen: dict[tuple[str, int], dict[str, float]] = {}
        self._at_rung: dict[int, list[float]] = {}
        self._told: set[tuple[str, int]] = set()
        self.stopped: dict[str, int] = {}
        """Step after which each stopped run was stopped."""

    def know(self, at_rung: Mapping[int, Sequence[float]]) -> None:
        """What trials that ended before this call had reached, by the rung's place."""
        for place, values in at_rung.items():
            self._at_rung.setdefault(place, []).extend(values)

    def add(self, of_pass: str, names: Sequence[str], rungs: Sequence[int]) -> None:
        """One more pass."""
        self._live.setdefault(of_pass, set()).update(names)
        self._pass_of |= dict.fromkeys(names, of_pass)
        self._rungs[of_pass] = tuple(rungs)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        name, step = trial.config["trial"], int(result["step"])
        of_pass = self._pass_of[name]
        if self.stopped.get(name, step + 1) <= step:
            return TrialScheduler.CONTINUE  # the pass ends this trial's rows
        if step:
            self._seen.setdefault((of_pass, step), {})[name] = float(result[self._by])
            self._judge(of_pass)
        return TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self._gone(trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self._gone(trial)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        self._gone(trial)

    def _gone(self, trial: Any) -> None:
        of_pass = self._pass_of[trial.config["trial"]]
        self._live[of_pass].discard(trial.config["trial"])
        self._judge(of_pass)

    def _judge(self, of_pass: str) -> None:
        """Settle the steps that all live runs of a pass have reported."""
        for key in sorted(key for key in self._seen if key[0] == of_pass and key not in self._told):
            step, values = key[1], self._seen[key]
            if not self._live[of_pass] <= values.keys():
                continue
            self._told.add(key)
            leaving: list[str] = []
            if step in self._rungs[of_pass]:
                place = self._rungs[of_pass].index(step)
                seen = self._at_rung.setdefault(place, [])
                seen.extend(values.values())
                leaving = behind({n: v for n, v in values.items() if n in self._live[of_pass]}, seen, self._factor)
                self.stopped |= dict.fromkeys(leaving, step)
                self._live[of_pass].difference_update(leaving)
            self._settle(of_pass, step, leaving)
