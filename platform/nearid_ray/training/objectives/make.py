"""Objectives by name, with their options."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from nearid_ray.errors import UsageError
from nearid_ray.training.objectives.base import GlobalObjective, Reduction
from nearid_ray.training.objectives.circle import CircleObjective, Hinge
from nearid_ray.training.objectives.infonce import InfoNceObjective
from nearid_ray.training.objectives.nearid import Mode, NearIdObjective
from nearid_ray.training.objectives.sigmoid import SigmoidObjective

ObjectiveName = Literal[
    "nearid",
    "nearid-cohesion",
    "infonce",
    "infonce-distractors",
    "infonce-oracle",
    "infonce-distractors-oracle",
    "siglip-rank",
    "circle-rank",
]
OBJECTIVE_NAMES: tuple[ObjectiveName, ...] = get_args(ObjectiveName)


@dataclass(frozen=True, kw_only=True)
class ObjectiveOptions:
    """Options of objectives; None is the objective's own default, anything else must be an option it has."""

    alpha: float | None = None
    """Weight of the ranking term, 0 or more: 0.5; for ranking by an oracle 1."""
    beta: float | None = None
    """Weight of cohesion, 0 or more; of nearid (0) and nearid-cohesion (0.1)."""
    temperature: float | None = None
    """What cosines are divided by, above 0: 0.07; of all but circle-rank."""
    reduction: Reduction | None = None
    """"paper": each slot averaged over the anchors that have it, then the slots; "pairs": all filled slots at once. Of
    nearid, siglip-rank and circle-rank: "paper"."""
    mode: Mode | None = None
    """"exact", or "reference" for what the released code computes; of nearid."""
    margin: float | None = None
    """Margin on cosines: of ranking by an oracle 0.05 (0 to 2), of circle-rank 0.25 (0 to 1)."""
    gamma: float | None = None
    """Scale of circle-rank, above 0: 64."""
    bias: float | None = None
    """Added to the logits of siglip-rank: -10."""
    hinge: Hinge | None = None
    """Of circle-rank, what distractors must exceed: the "largest" batch negative, or their "mean" hinge."""
    chunk: int | None = None
    """Pool entries handled at once, 1 or more: 8192."""


_EVERY_OPTION = frozenset(f.name for f in fields(ObjectiveOptions))


@dataclass(frozen=True, kw_only=True)
class _Recipe:
    objective: GlobalObjective
    options: tuple[str, ...]


_NEARID = ("alpha", "beta", "temperature", "reduction", "mode", "chunk")
_INFONCE = ("temperature", "chunk")
_ORACLE = ("alpha", "margin", *_INFONCE)
_RECIPES: Mapping[ObjectiveName, _Recipe] = {
    "nearid": _Recipe(objective=NearIdObjective(strict=True), options=_NEARID),
    "nearid-cohesion": _Recipe(objective=NearIdObjective(beta=0.1, strict=True), options=_NEARID),
    "infonce": _Recipe(objective=InfoNceObjective(strict=True), options=_INFONCE),
    "infonce-distractors": _Recipe(objective=InfoNceObjective(distractors=True, strict=True), options=_INFONCE),
    "infonce-oracle": _Recipe(objective=InfoNceObjective(oracle=True, strict=True), options=_ORACLE),
    "infonce-distractors-oracle": _Recipe(
        objective=InfoNceObjective(distractors=True, oracle=True, strict=True), options=_ORACLE
    ),
    "siglip-rank": _Recipe(
        objective=SigmoidObjective(strict=True), options=("alpha", "temperature", "bias", "reduction", "chunk")
    ),
    "circle-rank": _Recipe(
        objective=CircleObjective(strict=True), options=("alpha", "margin", "gamma", "hinge", "reduction", "chunk")
    ),
}


def options_of(name: ObjectiveName) -> tuple[str, ...]:
    """The options an objective has."""
    return _RECIPES[name].options


def make_objective(name: ObjectiveName, options: ObjectiveOptions | None = None, **named: Any) -> GlobalObjective:
    """An objective of Table 3 of arXiv 2604.01973 by its name.

    The names in the order of the table's rows: infonce (symmetric, one positive), infonce-distractors, infonce-oracle,
    infonce-distractors-oracle, siglip-rank, circle-rank, nearid, nearid-cohesion. All but infonce refuse a global
    batch without any distractor.

    Args:
        name: which one.
        options: see `ObjectiveOptions`; those that are not None must be options this objective has.
        named: the same by name, instead of `options` or over them.

    Raises:
        UsageError: an unknown name, an option the objective does not have, or a value out of range.
    """
    if name not in _RECIPES:
        raise UsageError(f"objective is {name!r}; expected one of {', '.join(OBJECTIVE_NAMES)}")
    recipe = _RECIPES[name]
    named = vars(options or ObjectiveOptions()) | named
    given = {option: value for option, value in named.items() if value is not None or option not in _EVERY_OPTION}
    unknown = sorted(set(given) - set(recipe.options))
    if unknown:
        raise UsageError(
            f"objective {name} has no option {', '.join(unknown)}; its options are {', '.join(recipe.options)}"
        )
    return replace(recipe.objective, **given)
