"""What Ray Tune searches: a planned list of trials, or points that Optuna suggests one after the other."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray import tune
from ray.tune.search import Searcher
from ray.tune.search.basic_variant import BasicVariantGenerator

from nearid_ray.errors import UsageError
from nearid_ray.training.settings import TrainSettings
from nearid_ray.tuning.member import METRIC
from nearid_ray.tuning.plan import Trial, make_trial
from nearid_ray.tuning.space import Choice, Dimension, domain, rounded, value_text

_TRIES = 100
"""Suggestions that are passed over, because they were made before or do not go together, before the search ends."""


def check_optuna() -> None:
    """Raises UsageError where Optuna is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise UsageError("--search optuna needs the package optuna: pip install 'nearid-ray[optuna]'")


def planned_search(trials: Sequence[Trial]) -> tuple[BasicVariantGenerator, dict[str, Any]]:
    """A search that tries these trials in order, and its space as Ray Tune knows it."""
    points = [tune_config(trial) for trial in trials]
    names = dict.fromkeys(name for point in points for name in point)
    full = [{name: point.get(name) for name in names} for point in points]
    space = {name: tune.choice(list(dict.fromkeys(point[name] for point in full))) for name in names}
    return BasicVariantGenerator(points_to_evaluate=full), space


def tune_config(trial: Trial) -> dict[str, Any]:
    """A trial's point as Ray Tune keeps it; `trial` is the run's name."""
    plain = int | float | str | None
    return {"trial": trial.name} | {
        name: value if isinstance(value, plain) else value_text(value) for name, value in trial.values.items()
    }


class Suggestions(Searcher):
    """Optuna's suggestions, each begun as a trial of its own the moment it is made."""

    def __init__(
        self,
        dimensions: Sequence[Dimension],
        base: TrainSettings,
        trials: int,
        seed: int,
        begin: Callable[[Trial], None],
        *,
        known: Mapping[str, tuple[Mapping[str, Any], float | None]] | None = None,
        begun: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Settles the space.

        Args:
            dimensions: what varies.
            base: all other settings.
            trials: trials in all, those of earlier calls counted.
            seed: names Optuna's random choices.
            begin: called with each trial.
            known: values and score of each trial that an earlier call has ended; no score where it failed.
            begun: values of trials that an earlier call has begun and not ended; they come first.
        """
        super().__init__(metric=METRIC, mode="max")
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        known = known or {}
        self._dimensions, self._base, self._begin = list(dimensions), base, begin
        self._left = trials - len(known)
        self._values = [dict(values) for values, _ in known.values()]
        self._inner_of: dict[str, str] = {}
        self._optuna = OptunaSearch(
            space={dimension.name: _domain(dimension) for dimension in dimensions},
            metric=METRIC,
            mode="max",
            sampler=optuna.samplers.TPESampler(seed=seed + len(known)),
            points_to_evaluate=[_plain(values) for values in begun] or None,
        )
        for values, score in known.values():
            self._optuna.add_evaluated_point(_plain(values), score, error=score is None)  # type: ignore[arg-type]

    def suggest(self, trial_id: str) -> Any:
        if self._left <= 0:
            return Searcher.FINISHED
        for attempt in range(_TRIES):
            inner = f"{trial_id}-{attempt}"
            drawn = self._optuna.suggest(inner)
            if not isinstance(drawn, dict):
                return drawn
            values = {d.name: _back(d, drawn[d.name]) for d in self._dimensions}
            try:
                trial = make_trial(self._base, values)
            except UsageError:
                trial = None
            if trial is None or values in self._values:
                self._optuna.on_trial_complete(inner, error=True)
                continue
            self._left -= 1
            self._values.append(values)
            self._inner_of[trial_id] = inner
            self._begin(trial)
            return tune_config(trial)
        return Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if trial_id in self._inner_of:
            self._optuna.on_trial_complete(self._inner_of[trial_id], result, error)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: Optuna hears of the end alone."""

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict, **spec: Any) -> bool:
        return True

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune keeps a copy to restore from, which is not done here

    def save(self, checkpoint_path: str) -> None:
        """Nothing: an interrupted sweep goes on from the records of its trials."""

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""


def _domain(dimension: Dimension) -> Any:
    """Optuna keeps numbers and text alone; other values go by their text."""
    if isinstance(dimension, Choice):
        return tune.choice([_plain_value(value) for value in dimension.values])
    return domain(dimension)


def _back(dimension: Dimension, value: Any) -> Any:
    if isinstance(dimension, Choice):
        return next(one for one in dimension.values if _plain_value(one) == value)
    return rounded(dimension, value)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _plain_value(value) for name, value in values.items()}


def _plain_value(value: Any) -> Any:
    return value if isinstance(value, int | float | str) else value_text(value)
