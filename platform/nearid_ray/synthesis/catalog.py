"""All engine configurations by name, and how to change one from the command line."""

import dataclasses
import json
import typing
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import yaml

from nearid_ray import settings as settings_reader
from nearid_ray.errors import UsageError
from nearid_ray.synthesis.engine import CONTROL, Engine
from nearid_ray.synthesis.engines import (
    flux_canny,
    flux_fill,
    flux_fill_partial,
    powerpaint,
    qwen_edit,
    qwen_edit_inpaint,
    qwen_image,
    sdxl,
)
from nearid_ray.synthesis.engines.diffusion import DiffusionEngine, DiffusionSettings
from nearid_ray.synthesis.engines.exemplar import ExemplarEngine, ExemplarSettings
from nearid_ray.synthesis.engines.sleeping import SleepingEngine, SleepingSettings
from nearid_ray.synthesis.engines.toybox import ToyboxEngine
from nearid_ray.text_tables import aligned
from nearid_ray.toybox.identity import KINDS

BATCH = "batch"
"""An option that every engine takes: rows given to it at once."""

_FIXED = ("name", "group")
_DIFFUSION: tuple[tuple[tuple[DiffusionSettings, ...], type[DiffusionEngine]], ...] = (
    (sdxl.SETTINGS, sdxl.SdxlEngine),
    (flux_fill.SETTINGS, flux_fill.FluxFillEngine),
    (flux_fill_partial.SETTINGS, flux_fill_partial.FluxFillPartialEngine),
    (flux_canny.SETTINGS, flux_canny.FluxCannyEngine),
    (qwen_image.SETTINGS, qwen_image.QwenImageEngine),
    (qwen_edit.SETTINGS, qwen_edit.QwenEditEngine),
    (qwen_edit_inpaint.SETTINGS, qwen_edit_inpaint.QwenEditInpaintEngine),
    (powerpaint.SETTINGS, powerpaint.PowerPaintEngine),
)


@dataclass(frozen=True)
class _Known:
    """A configuration: its settings (None where it has none to change) and the class that runs them."""

    settings: Any
    build: Callable[[Any], Engine]

    def fields(self) -> list[str]:
        """Names of what can be changed."""
        own = [f.name for f in dataclasses.fields(self.settings)] if self.settings is not None else []
        return [*(name for name in own if name not in _FIXED), BATCH]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that is needed to make an engine again, anywhere: its name and what differs from the catalog's preset."""

    name: str
    """The configuration; with `-control` at its end, the artefact control of it."""
    options: tuple[str, ...] = ()
    """`field=value` each."""
    dtype: str = ""
    """Precision of an engine with a model, where `options` name no other; empty for the others."""
    control_strength: float = 0.3
    """For a control alone: how far from the object it may go."""

    def make(self) -> Engine:
        """The engine, not loaded. Raises UsageError where name, field or value is unknown or wrong."""
        base = self.name.removesuffix(CONTROL)
        engine = _made(base, self.options, self.dtype)
        if base == self.name:
            return engine
        control = _control_of(engine, self.control_strength)
        if control is None:
            raise UsageError(f"{base} has no artefact control: it cannot paint the same object")
        return control

    def pinned(self, engine: Engine) -> "Recipe":
        """The same with the hub's commits that the engine's `check` found."""
        config = getattr(engine, "config", None)
        if not isinstance(config, DiffusionSettings):
            return self
        parts = {f"options.{name}": value for name, value in config.options.items() if name.endswith("_revision")}
        found = {name: value for name, value in ({"revision": config.revision} | parts).items() if value}
        others = (option for option in self.options if option.partition("=")[0] not in found)
        return dataclasses.replace(self, options=(*others, *(f"{name}={value}" for name, value in found.items())))

    def to_text(self) -> str:
        """As the plan keeps it."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_text(cls, text: str) -> "Recipe":
        """From what `to_text` gave."""
        values = json.loads(text)
        return cls(**values | {"options": tuple(values["options"])})


@dataclass(frozen=True)
class Chosen:
    """The engines of a run and how many rows each is given at once."""

    recipes: tuple[Recipe, ...]
    batches: dict[str, int]
    """By the configuration's name, where an option says so."""

    def unchecked(self) -> "list[tuple[Recipe, Engine]]":
        """Every recipe with its engine, which has not looked for its weights."""
        return [(recipe, recipe.make()) for recipe in self.recipes]

    def checked(self) -> "list[tuple[Recipe, Engine]]":
        """Every recipe with its engine, which has found its weights: the recipe then names them for good.

        Raises UsageError where something is missing.
        """
        found = []
        for recipe, engine in self.unchecked():
            engine.check()
            found.append((recipe.pinned(engine), engine))
        return found


def choose(
    names: Sequence[str],
    options: Sequence[str] = (),
    *,
    dtype: str = "float32",
    control: bool = False,
    control_strength: float = 0.3,
) -> Chosen:
    """The named configurations, in order, with the options applied; with `control`, each one's artefact control as
    well, where it has one.

    Args:
        names: a configuration, a family (toybox) or FAMILY:GROUP (toybox:train).
        options: `NAME.field=value` each.

    Raises:
        UsageError: an unknown engine, field or value, naming what is known; or options for an engine not named.
    """
    chosen = _resolved(names)
    mine: dict[str, list[str]] = {name: [] for name in chosen}
    batches: dict[str, int] = {}
    for option in options:
        name, assignment = _split_option(option, chosen)
        if assignment.partition("=")[0] == BATCH:
            batches[name] = _batch(option)
        else:
            mine[name].append(assignment)
    recipes = []
    for name in chosen:
        precision = dtype if isinstance(_known()[name].settings, DiffusionSettings) else ""
        recipe = Recipe(name=name, options=tuple(mine[name]), dtype=precision, control_strength=control_strength)
        recipes.append(recipe)
        if control and _control_of(recipe.make(), control_strength) is not None:
            recipes.append(dataclasses.replace(recipe, name=name + CONTROL))
    return Chosen(tuple(recipes), batches)


def _control_of(engine: Engine, strength: float) -> Engine | None:
    try:
        return engine.control(strength)
    except ValueError as error:
        raise UsageError(f"control_strength {strength}: {error}") from error


def make_engines(names: Sequence[str], options: Sequence[str] = ()) -> list[Engine]:
    """The engines of `choose`, neither checked nor loaded."""
    return [engine for _, engine in choose(names, options).unchecked()]


def needs_dtype(names: Sequence[str]) -> bool:
    """Whether any of the engines computes in a precision that can be chosen."""
    known = _known()
    return any(isinstance(known[name].settings, DiffusionSettings) for name in _resolved(names))


def list_engines() -> str:
    """A table of all configurations: name, group, resolution, steps, licence and model card."""
    rows = [("engine", "group", "px", "steps", "licence of the weights", "model card")]
    for name, known in _known().items():
        engine, config = known.build(known.settings), known.settings
        sizes = ("-", "-")
        if isinstance(config, DiffusionSettings):
            sizes = (str(config.resolution_px), str(config.steps))
        rows.append((name, engine.group, *sizes, engine.licence or "no weights", engine.model_card))
    return aligned(rows)


@cache
def _known() -> dict[str, _Known]:
    """Every configuration by name; nothing is loaded."""
    known = {"exemplar": _Known(ExemplarSettings(), ExemplarEngine)}
    for kind in KINDS:
        known[f"toybox-{kind}"] = _Known(None, lambda _, kind=kind: ToyboxEngine(kind))  # type: ignore[misc]
    for presets, engine in _DIFFUSION:
        known |= {settings.name: _Known(settings, engine) for settings in presets}
    for name in ("sleeping-1", "sleeping-2"):
        known[name] = _Known(SleepingSettings(name=name), SleepingEngine)
    return known


def _resolved(names: Sequence[str]) -> list[str]:
    known = _known()
    engines = {name: entry.build(entry.settings) for name, entry in known.items()}
    chosen: dict[str, None] = {}
    for name in names:
        family, _, group = name.partition(":")
        found = [name] if name in known else [
            n for n, e in engines.items() if e.family == family and group in ("", e.group)
        ]  # fmt: skip
        if not found:
            offered = sorted(n for n in known if engines[n].family != SleepingEngine.family)
            raise UsageError(
                f"unknown engine {name!r}; known engines: {', '.join(offered)}; or FAMILY:GROUP, e.g. toybox:train"
            )
        chosen |= dict.fromkeys(found)
    return list(chosen)


def _split_option(option: str, chosen: Sequence[str]) -> tuple[str, str]:
    """(engine, `field=value`)."""
    target, equals, _ = option.partition("=")
    name, dot, field = target.partition(".")
    if not (name and dot and field and equals):
        raise UsageError(f"engine option {option!r}; expected NAME.field=value, e.g. sdxl-512.steps=20")
    if name not in chosen:
        raise UsageError(f"engine option {option!r}: {name} is not among the engines of this run ({', '.join(chosen)})")
    return name, option[len(name) + 1 :]


def _batch(option: str) -> int:
    text = option.partition("=")[2]
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"engine option {option!r}; expected a number of rows, at least 1")
    return int(text)


def _made(name: str, options: Sequence[str], dtype: str) -> Engine:
    known = _known().get(name)
    if known is None:
        raise UsageError(f"unknown engine {name!r}; known engines: {', '.join(sorted(_known()))}")
    changes: dict[str, Any] = {"dtype": dtype} if dtype else {}
    for option in options:
        field, _, text = option.partition("=")
        changes |= _change(name, known, field, text, changes)
    if not changes:
        return known.build(known.settings)
    try:
        engine = known.build(dataclasses.replace(known.settings, **changes))
        engine.prompt("category", "description")
    except (KeyError, IndexError) as error:
        raise UsageError(
            f"{name}: its prompt_template names {error}; it may hold {{category}} and {{description}}"
        ) from error
    except ValueError as error:
        said = str(error)
        raise UsageError(said if said.startswith(name) else f"{name}: {said}") from error
    return engine


def _change(name: str, known: _Known, field: str, text: str, before: dict[str, Any]) -> dict[str, Any]:
    origin = f"engine option {name}.{field}={text}"
    inner, _, key = field.partition(".")
    if key and inner in known.fields() and isinstance(getattr(known.settings, inner), dict):
        old = before.get(inner, getattr(known.settings, inner))
        if key not in old:
            raise UsageError(f"{origin}: {inner} of {name} has no {key}; it has {', '.join(sorted(old)) or 'nothing'}")
        value = _plain(text, type(old[key]))
        if not isinstance(value, float if isinstance(old[key], float) else type(old[key])):
            raise UsageError(f"{origin}: expected {type(old[key]).__name__}, found {text!r}")
        return {inner: {**old, key: value}}
    if field not in known.fields() or field == BATCH:
        raise UsageError(f"{origin}: {name} has no {field!r}; it has {', '.join(known.fields())}")
    kind = typing.get_type_hints(type(known.settings))[field]
    try:
        return settings_reader.typed(type(known.settings), {field: _plain(text, kind)}, origin)
    except UsageError as error:
        raise UsageError(str(error).replace(f": {field}:", ":")) from None


def _plain(text: str, kind: Any) -> Any:
    """The value that a text means: itself for a text or a choice of texts, else as YAML reads it."""
    if kind is str or (typing.get_origin(kind) is typing.Literal):
        return text
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return float(value) if kind is float and type(value) is int else value
