"""The trials of a sweep, and which of them train together: fixed before anything starts."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nearid_ray.errors import UsageError
from nearid_ray.identifiers import settings_digest
from nearid_ray.training.settings import TrainSettings, grouped
from nearid_ray.tuning.space import value_text

_LONGEST = 100
"""Characters of a trial's name; longer ones end in a digest."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One point of the space."""

    name: str
    """Names folders, MLflow runs and rows of tables."""
    values: Mapping[str, Any]
    """What this trial sets, by the setting's name."""
    settings: TrainSettings


@dataclass(frozen=True, kw_only=True)
class Pass:
    """Trials that train together in one group of workers, on one reading of the tokens."""

    name: str
    runs: Mapping[str, TrainSettings]


def make_trial(base: TrainSettings, values: Mapping[str, Any], name: str = "") -> Trial:
    """A trial with some settings changed.

    Raises:
        UsageError: the settings do not go together.
    """
    name = name or trial_name(values)
    try:
        return Trial(name=name, values=dict(values), settings=replace(base, **values))
    except UsageError as error:
        raise UsageError(f"trial {name}: {error}") from error


def trial_name(values: Mapping[str, Any]) -> str:
    """Name of a point, fit for a folder.

    >>> trial_name({"alpha": 0.25, "objective": "nearid", "engines": ("a", "b")})
    'alpha-0.25_objective-nearid_engines-a+b'
    """
    text = "_".join(f"{name}-{value_text(value)}" for name, value in values.items())
    safe = re.sub(r"[^A-Za-z0-9_.+-]", "-", text)
    return safe if len(safe) <= _LONGEST else f"{safe[: _LONGEST - 9]}-{settings_digest(dict(values))[:8]}"


def planned_trials(base: TrainSettings, points: Sequence[Mapping[str, Any]], names: Sequence[str] = ()) -> list[Trial]:
    """A trial for each point; points that mean the same settings are one trial, under the first one's name.

    Raises:
        UsageError: there is no point; the settings of one do not go together; different ones have one name.
    """
    if not points:
        raise UsageError("the sweep has no trials; give --space NAME=VALUES or a preset (table3, table6, ...)")
    trials: dict[str, Trial] = {}
    for place, point in enumerate(points):
        trial = make_trial(base, point, names[place] if names else "")
        trials.setdefault(settings_digest(trial.settings.resolved()), trial)
    found = list(trials.values())
    all_names = [trial.name for trial in found]
    if twice := sorted({name for name in all_names if all_names.count(name) > 1}):
        raise UsageError(f"different trials would be called {', '.join(twice)}; give values that differ in print")
    return found


def passes(trials: Sequence[Trial], *, fuse: bool, most: int = 0) -> list[Pass]:
    """The passes over the data: trials that read the same together, at most so many (0: any number); or one each."""
    if not fuse:
        return [single(trial) for trial in trials]
    result: list[Pass] = []
    for group in grouped({trial.name: trial.settings for trial in trials}):
        names = list(group)
        each = most or len(names)
        for start in range(0, len(names), each):
            runs = {name: group[name] for name in names[start : start + each]}
            result.append(Pass(name=f"pass-{settings_digest({'trials': sorted(runs)})[:8]}", runs=runs))
    return result


def single(trial: Trial) -> Pass:
    """The pass of a trial that trains alone."""
    return Pass(name=f"alone-{trial.name}", runs={trial.name: trial.settings})
