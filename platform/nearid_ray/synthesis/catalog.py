"""All engine configurations by name."""

from collections.abc import Callable, Sequence
from functools import partial

from nearid_ray.errors import UsageError
from nearid_ray.synthesis.engine import Engine
from nearid_ray.synthesis.engines.exemplar import ExemplarEngine
from nearid_ray.synthesis.engines.toybox import ToyboxEngine
from nearid_ray.toybox.identity import KINDS


def engine_factories() -> dict[str, Callable[[], Engine]]:
    """How to make each engine configuration; nothing is loaded yet."""
    factories: dict[str, Callable[[], Engine]] = {"exemplar": ExemplarEngine}
    for kind in KINDS:
        factories[f"toybox-{kind}"] = partial(ToyboxEngine, kind)
    return factories


def make_engines(names: Sequence[str]) -> list[Engine]:
    """The named configurations in the given order; `GROUP` names such as `toybox:train` stand for all of a group.

    Raises UsageError for an unknown name, naming the known ones.
    """
    factories = engine_factories()
    engines = {name: factory() for name, factory in factories.items()}
    chosen: dict[str, Engine] = {}
    for name in names:
        if name in engines:
            chosen[name] = engines[name]
            continue
        family, _, group = name.partition(":")
        matching = {n: e for n, e in engines.items() if e.family == family and group in ("", e.group)}
        if not matching:
            known = ", ".join(sorted(engines))
            raise UsageError(f"unknown engine {name!r}; known engines: {known}; or FAMILY:GROUP, e.g. toybox:train")
        chosen |= matching
    return list(chosen.values())
