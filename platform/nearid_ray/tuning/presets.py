"""The paper's sweeps (arXiv 2604.01973): the trials of its ablation tables, by name."""

from collections.abc import Callable, Mapping
from typing import Any

from nearid_ray import presets
from nearid_ray.errors import UsageError
from nearid_ray.training.losses import OBJECTIVE_NAMES

Points = dict[str, dict[str, Any]]
"""Settings of each trial, by the trial's name; {} is one named after its settings."""

_DATA = ("sources", "validation_sources", "engines", "repeats")
_TOY_WHOLE = ("toybox-redraw", "toybox-recolor", "toybox-retexture", "toybox-reshape")


def table8() -> Points:
    """Weight of the ranking term."""
    return {f"alpha-{alpha:g}": {"alpha": alpha} for alpha in (0.0, 0.1, 0.25, 0.5, 1.0, 2.0)}


def table9() -> Points:
    """Weight of cohesion at alpha 1; its first trial is table 8's alpha 1."""
    betas = {f"alpha-1_beta-{beta:g}": {"alpha": 1.0, "beta": beta} for beta in (0.1, 0.2, 0.3)}
    return {"alpha-1": {"alpha": 1.0}} | betas


def table3() -> Points:
    """Objectives, in the order of the table's rows; that of the recipe is replaced."""
    return {objective: {"objective": objective} for objective in OBJECTIVE_NAMES}


def table3_toybox() -> Points:
    """Objectives without those that rank by an oracle, which the toybox's training split does not have."""
    return {name: point for name, point in table3().items() if "oracle" not in name}


def table6() -> Points:
    """Training data: which sources and engines, how often an epoch goes through each."""
    recipes = {
        "nearid+mtg": presets.paper,
        "nearid-only": presets.nearid_only,
        "mtg-only": presets.mtg_only,
        "single-engine": presets.single_engine,
    }
    return {name: {key: recipe().get(key, ()) for key in _DATA} for name, recipe in recipes.items()}


def table6_toybox() -> Points:
    """Training data as far as the toybox goes: all engines of its training split, half of them, one."""
    return {
        "four-engines": {"engines": _TOY_WHOLE},
        "two-engines": {"engines": _TOY_WHOLE[:2]},
        "single-engine": {"engines": _TOY_WHOLE[:1]},
    }


SWEEPS: Mapping[str, Callable[[], Points]] = {
    "table3": table3,
    "table3-toybox": table3_toybox,
    "table6": table6,
    "table6-toybox": table6_toybox,
    "table8": table8,
    "table9": table9,
}


def sweep_points(preset: str) -> Points:
    """The trials of a preset, or of several joined by +; one that two of them have is there once.

    >>> len(sweep_points("table8+table9"))
    9

    Raises:
        UsageError: an unknown preset.
    """
    points: Points = {}
    for name in preset.split("+"):
        if name not in SWEEPS:
            raise UsageError(
                f"preset {name!r} is none of {', '.join(SWEEPS)} (several are joined by +, as in table8+table9)"
            )
        points |= SWEEPS[name]()
    return points


def _with_recipe(recipe: Callable[[], dict[str, Any]], sweep: str) -> Callable[[], dict[str, Any]]:
    return lambda: {**recipe(), "preset": sweep}


_NAMED = ("table3", "table6", "table8", "table9", "table8+table9")
TUNE: Mapping[str, presets.Preset] = {
    "paper": presets.paper,
    "toybox": presets.toybox,
    **{name: _with_recipe(presets.paper, name) for name in _NAMED},
    **{
        f"toybox/{name}": _with_recipe(presets.toybox, f"{name}-toybox" if f"{name}-toybox" in SWEEPS else name)
        for name in _NAMED
    },
}
"""Presets of the command line: a recipe (the paper's, or toybox/...) and a sweep over it."""
