"""Settings: from dataclasses to a command line, a strict YAML file, and a digest.

A job's settings are one frozen keyword-only dataclass whose fields are values or further dataclasses (sections). The
names of all values are flat and unique: the flag `--alpha`, the YAML key `alpha` and the preset key `alpha` mean the
same field, wherever it is nested. Later ones win: defaults, preset, `--config FILE.yaml`, flags.
"""

import dataclasses
import difflib
import json
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import tyro
import yaml

from nearid_ray.errors import UsageError
from nearid_ray.identifiers import settings_digest

T = TypeVar("T")
Preset = Callable[[], dict[str, Any]]


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice and reads `1e-4` as a number (YAML 1.1 says text)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # type: ignore[no-untyped-call]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise UsageError(f"key(s) given twice: {', '.join(twice)}")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse(
    cls: type[T],
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    presets: Mapping[str, Preset] | None = None,
) -> T:
    """Settings of type `cls` from a command line.

    `argv` is without the program's name. `presets` are functions that return {flat name: value}. Ends the process with
    exit code 2 and a message on wrong flags; raises UsageError for a wrong preset or YAML file.
    """
    preset_name, rest = _take_option(argv, "--preset")
    config, rest = _take_option(rest, "--config")
    overrides: dict[str, Any] = {}
    if preset_name is not None:
        overrides |= typed(cls, _preset(presets or {}, preset_name)(), f"preset {preset_name}")
    if config is not None:
        overrides |= typed(cls, read_yaml(config), config)
    known = f" Presets: {', '.join(sorted(presets))} (--preset NAME)." if presets else ""
    usage = (
        "Values come from defaults, then --preset, then --config FILE.yaml, then flags."
        if presets
        else ("Values come from defaults, then --config FILE.yaml, then flags.")
    )
    return tyro.cli(
        cls,
        args=list(rest),
        default=_with_overrides(cls, overrides),
        prog=prog,
        description=f"{description}\n\n{usage}{known}",
        config=(tyro.conf.OmitArgPrefixes,),
    )


def build(cls: type[T], values: Mapping[str, Any], origin: str = "settings") -> T:
    """Settings of type `cls` from {flat name: value}, checked like a YAML file."""
    overrides = typed(cls, values, origin)
    missing = [name for name, field in flat_fields(cls).items() if _is_required(field) and name not in overrides]
    if missing:
        raise UsageError(f"{origin}: missing {', '.join(missing)}")
    return _construct(cls, overrides)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; UsageError when there is no file, no YAML or no mapping."""
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise UsageError(f"--config {path}: cannot be read ({error.strerror}); give the path of a YAML file") from error
    try:
        data = yaml.load(text, _Loader)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not YAML: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UsageError(f"{path}: expected `key: value` lines, found {type(data).__name__}")
    return data


def typed(cls: type, values: Mapping[Any, Any], origin: str) -> dict[str, Any]:
    """`values` with every name known and every value of its field's type; UsageError names all that is wrong."""
    fields = flat_fields(cls)
    result, wrong = {}, []
    for name, value in values.items():
        if name not in fields:
            close = difflib.get_close_matches(str(name), fields, n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; known keys: {', '.join(sorted(fields))}"
            wrong.append(f"unknown key {name}{hint}")
            continue
        try:
            result[name] = _cast(value, fields[name].type)
        except TypeError as error:
            wrong.append(f"{name}: {error}")
    if wrong:
        raise UsageError(f"{origin}: " + "\n  ".join(wrong))
    return result


def to_dict(settings: Any) -> dict[str, Any]:
    """Settings as a flat JSON-like dictionary {name: value}."""
    result: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        result |= to_dict(value) if dataclasses.is_dataclass(value) else {field.name: _plain(value)}
    return result


def digest(settings: Any) -> str:
    """Name of settings (a dataclass or a JSON-like dictionary), independent of the order of fields."""
    return settings_digest(settings if isinstance(settings, dict) else to_dict(settings))


def dump_json(values: Mapping[str, Any]) -> bytes:
    """Indented JSON with a final newline, keys in the given order."""
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()


@dataclasses.dataclass(frozen=True)
class _Leaf:
    type: Any
    field: dataclasses.Field


def flat_fields(cls: type) -> dict[str, "_Leaf"]:
    """Every value of a settings class by its flat name; a name used in two sections is an error of the programmer."""
    result: dict[str, _Leaf] = {}
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        inner = flat_fields(kind) if dataclasses.is_dataclass(kind) else {field.name: _Leaf(kind, field)}  # type: ignore[arg-type]
        doubled = result.keys() & inner.keys()
        if doubled:
            raise TypeError(f"{cls.__name__}: the name(s) {', '.join(sorted(doubled))} stand in two sections")
        result |= inner
    return result


def _is_required(leaf: _Leaf) -> bool:
    return leaf.field.default is dataclasses.MISSING and leaf.field.default_factory is dataclasses.MISSING


def _default(field: dataclasses.Field) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return tyro.MISSING


def _with_overrides(cls: Any, overrides: Mapping[str, Any], given: Any = tyro.MISSING) -> Any:
    """An instance for tyro to take defaults from; not checked yet, since flags may still mend it.

    `given` is the section that the enclosing settings have by default: its values win over those of its class.
    """
    instance = object.__new__(cls)
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        default = _default(field) if given is tyro.MISSING else getattr(given, field.name)
        if dataclasses.is_dataclass(hints[field.name]):
            value = _with_overrides(hints[field.name], overrides, default)
        else:
            value = overrides.get(field.name, default)
        object.__setattr__(instance, field.name, value)
    return instance


def _construct(cls: Any, overrides: Mapping[str, Any], given: Any = tyro.MISSING) -> Any:
    hints = typing.get_type_hints(cls)
    values = {}
    for field in dataclasses.fields(cls):
        default = _default(field) if given is tyro.MISSING else getattr(given, field.name)
        if dataclasses.is_dataclass(hints[field.name]):
            values[field.name] = _construct(hints[field.name], overrides, default)
        elif field.name in overrides:
            values[field.name] = overrides[field.name]
        elif default is not tyro.MISSING:
            values[field.name] = default
    try:
        return cls(**values)
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error


def _cast(value: Any, kind: Any) -> Any:
    """`value` as type `kind`, refusing what is not plainly of that type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return _cast_union(value, arguments)
    if origin is Literal:
        if value in arguments and type(value) in {type(a) for a in arguments}:
            return value
        raise TypeError(f"{value!r} is not one of {', '.join(map(repr, arguments))}")
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise TypeError(f"expected a list, found {_said(value)}")
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) != len(value):
            raise TypeError(f"expected {len(kinds)} entries, found {len(value)}")
        return tuple(_cast(entry, entry_kind) for entry, entry_kind in zip(value, kinds, strict=True))
    if kind is float and type(value) in (int, float):
        return float(value)
    if kind in (int, str, bool) and type(value) is kind:
        return value
    raise TypeError(f"expected {getattr(kind, '__name__', kind)}, found {_said(value)}")


def _cast_union(value: Any, kinds: tuple[Any, ...]) -> Any:
    if value is None and type(None) in kinds:
        return None
    problems = []
    for kind in kinds:
        if kind is not type(None):
            try:
                return _cast(value, kind)
            except TypeError as error:
                problems.append(str(error))
    raise TypeError("; or ".join(problems))


def _said(value: Any) -> str:
    return "nothing (null)" if value is None else f"{type(value).__name__} {value!r}"


def _plain(value: Any) -> Any:
    return [_plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _preset(presets: Mapping[str, Preset], name: str) -> Preset:
    if name not in presets:
        known = ", ".join(sorted(presets)) or "none for this job"
        raise UsageError(f"--preset {name} is unknown; known presets: {known}")
    return presets[name]


def _take_option(argv: Sequence[str], flag: str) -> tuple[str | None, list[str]]:
    """The value of a `--flag VALUE` or `--flag=VALUE` in argv (the last one wins), and the rest."""
    value, rest, entries = None, [], iter(argv)
    for entry in entries:
        if entry == flag:
            value = next(entries, None)
            if value is None:
                raise UsageError(f"{flag} needs a value after it")
        elif entry.startswith(f"{flag}="):
            value = entry[len(flag) + 1 :]
        else:
            rest.append(entry)
    return value, rest
