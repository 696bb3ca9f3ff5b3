"""The space of a sweep: which settings of training vary, and among which values.

A dimension is written NAME=VALUES:

    alpha=0,0.1,0.5                     these values
    objective=choice:nearid,circle-rank the same, said aloud
    engines=fill+paint,fill             values of a setting that takes several names join them with +
    learning_rate=log:1e-5..1e-3        a range, drawn evenly in the logarithm
    weight_decay=uniform:0..0.1         a range, drawn evenly (whole numbers for settings that are whole numbers)
"""

import difflib
import typing
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from nearid_ray.errors import UsageError
from nearid_ray.settings import flat_fields, typed
from nearid_ray.training.settings import TrainSettings

_KINDS = ("choice", "log", "uniform")
_DIGITS = 4
"""Digits of values drawn from a range: what is printed is what was trained with."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A setting that takes some values."""

    name: str
    values: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Range:
    """A setting that takes any value between two, both included."""

    name: str
    low: float
    high: float
    log: bool = False
    whole: bool = False

    def rounded(self, value: float) -> float | int:
        """A value of the range as it is used: whole, or of few digits."""
        if self.whole:
            return round(value)
        return float(np.clip(float(f"{value:.{_DIGITS}g}"), self.low, self.high))


Dimension = Choice | Range


def parse_space(entries: Sequence[str]) -> list[Dimension]:
    """The dimensions, each value of its setting's type and in its range.

    Raises:
        UsageError: an unknown setting, no values, a wrong type or range, a setting or value given twice.
    """
    dimensions = [_dimension(entry) for entry in entries]
    names = [dimension.name for dimension in dimensions]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"space names {', '.join(twice)} twice; give each setting once, with all its values")
    return dimensions


def check_space(dimensions: Sequence[Dimension], base: TrainSettings) -> None:
    """Raises UsageError where a value, or an end of a range, is not allowed beside the settings that do not vary."""
    varied = {dimension.name for dimension in dimensions}
    for dimension in dimensions:
        ends = dimension.values if isinstance(dimension, Choice) else (dimension.low, dimension.high)
        for value in ends:
            try:
                replace(base, **{dimension.name: value})
            except UsageError as error:
                # Whether an objective has an option is decided where both are known: trial by trial.
                if "objective" not in varied or "option" not in str(error):
                    raise UsageError(f"space {dimension.name}: {error}") from error


def grid(dimensions: Sequence[Dimension]) -> list[dict[str, Any]]:
    """All combinations, the last dimension varying fastest.

    Raises:
        UsageError: a dimension is a range.
    """
    points: list[dict[str, Any]] = [{}]
    for dimension in dimensions:
        if isinstance(dimension, Range):
            raise UsageError(
                f"space {dimension.name} is a range, of which a grid would have no end; list values "
                f"({dimension.name}=A,B,C), or draw some with --search random (or optuna) --trials N"
            )
        points = [{**point, dimension.name: value} for point in points for value in dimension.values]
    return points


def drawn(dimensions: Sequence[Dimension], trials: int, seed: int) -> list[dict[str, Any]]:
    """So many different points drawn at random by Ray Tune's own distributions; fewer where there are no more."""
    generator, points = np.random.RandomState(seed), []
    domains = {dimension.name: domain(dimension) for dimension in dimensions}
    for _ in range(20 * trials):
        point = {
            dimension.name: rounded(dimension, domains[dimension.name].sample(random_state=generator))
            for dimension in dimensions
        }
        if point not in points:
            points.append(point)
        if len(points) == trials:
            break
    return points


def domain(dimension: Dimension) -> Any:
    """The dimension as Ray Tune knows it."""
    from ray import tune

    if isinstance(dimension, Choice):
        return tune.choice(list(dimension.values))
    low, high = dimension.low, dimension.high
    if dimension.whole:  # Ray Tune leaves out the upper end
        return (tune.lograndint if dimension.log else tune.randint)(int(low), int(high) + 1)
    return (tune.loguniform if dimension.log else tune.uniform)(low, high)


def rounded(dimension: Dimension, value: Any) -> Any:
    """A drawn value as it is used."""
    return value if isinstance(dimension, Choice) else dimension.rounded(value)


def described(dimension: Dimension) -> str:
    """The dimension as it is written.

    >>> described(Range(name="learning_rate", low=1e-5, high=1e-3, log=True))
    'learning_rate=log:1e-05..0.001'
    """
    if isinstance(dimension, Choice):
        return f"{dimension.name}={','.join(map(value_text, dimension.values))}"
    return f"{dimension.name}={'log' if dimension.log else 'uniform'}:{dimension.low:g}..{dimension.high:g}"


def value_text(value: Any) -> str:
    """A setting's value in a name or a table.

    >>> value_text(0.50), value_text(("fill", "paint")), value_text(None)
    ('0.5', 'fill+paint', 'default')
    """
    if value is None:
        return "default"
    if isinstance(value, tuple | list):
        return "+".join(map(str, value)) or "all"
    return f"{value:.{_DIGITS}g}" if isinstance(value, float) else str(value)


def _dimension(entry: str) -> Dimension:
    name, equals, text = entry.partition("=")
    name = name.strip().replace("-", "_")
    fields = flat_fields(TrainSettings)
    if not equals or not name:
        raise UsageError(f"space {entry!r} is not NAME=VALUES, as in alpha=0,0.1,0.5 or learning_rate=log:1e-5..1e-3")
    if name not in fields:
        close = difflib.get_close_matches(name, fields, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"settings are {', '.join(sorted(fields))}"
        raise UsageError(f"space {name}: training has no such setting; {hint}")
    kind, colon, rest = text.partition(":")
    if not colon:
        kind, rest = ("uniform" if ".." in text else "choice"), text
    if kind not in _KINDS:
        raise UsageError(f"space {name}: {kind!r} is none of {', '.join(_KINDS)}; e.g. {name}=log:1e-5..1e-3")
    return _choice(name, rest, fields[name].type) if kind == "choice" else _range(name, rest, kind, fields[name].type)


def _choice(name: str, text: str, kind: Any) -> Choice:
    given = [entry.strip() for entry in text.split(",") if entry.strip()]
    if not given:
        raise UsageError(f"space {name}= has no values, so there would be no trials; give some, e.g. {_example(name)}")
    values = tuple(_value(name, entry, kind) for entry in given)
    if twice := sorted({value_text(value) for value in values if values.count(value) > 1}):
        raise UsageError(f"space {name} holds {', '.join(twice)} twice; give each value once")
    return Choice(name=name, values=values)


def _range(name: str, text: str, kind: str, expected: Any) -> Range:
    kinds = {expected, *typing.get_args(expected)}
    if not kinds & {int, float}:
        raise UsageError(f"space {name}: its values are no numbers, so they form no range; list them: {_example(name)}")
    ends = [_value(name, end.strip(), expected) for end in text.split("..")]
    if len(ends) != 2 or not all(isinstance(end, int | float) and np.isfinite(end) for end in ends):
        raise UsageError(f"space {name}: {text!r} is not LOW..HIGH, as in {name}=log:1e-5..1e-3")
    low, high = ends
    if not low < high:
        raise UsageError(f"space {name}: the range {text} is empty; the lower end comes first")
    if kind == "log" and low <= 0:
        raise UsageError(f"space {name}: a range drawn in the logarithm begins above 0, not at {low:g}; say uniform:")
    return Range(name=name, low=low, high=high, log=kind == "log", whole=float not in kinds)


def _value(name: str, text: str, kind: Any) -> Any:
    """A value of a setting from what was written."""
    if typing.get_origin(kind) is tuple:
        given: Any = [part for part in text.split("+") if part and text != "all"]
    else:
        given = _number(text)
    return typed(TrainSettings, {name: given}, "space")[name]


def _number(text: str) -> int | float | str:
    """The number that a text is, or the text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _example(name: str) -> str:
    kind = flat_fields(TrainSettings)[name].type
    literal = next((k for k in (kind, *typing.get_args(kind)) if typing.get_origin(k) is Literal), None)
    if literal is not None:
        return f"{name}={','.join(map(str, typing.get_args(literal)[:2]))}"
    return f"{name}=0,0.5" if float in {kind, *typing.get_args(kind)} else f"{name}=A,B"
