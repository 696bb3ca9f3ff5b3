"""Which group of a benchmark stands for the whole of it."""

from __future__ import annotations

from collections.abc import Iterable

from nearid_ray.evaluation.groups import HEADLINES
from nearid_ray.evaluation.measures import Measure

ALL = "all"
"""Group of everything, where a benchmark has one."""


def whole(measures: Iterable[Measure]) -> str:
    """The headline group of one benchmark's measures; else its group of everything; else its last group; else "".

    >>> whole([])
    ''
    """
    names = list(dict.fromkeys(one.name for one in measures if one.is_group))
    return next((name for name in (*HEADLINES, ALL) if name in names), names[-1] if names else "")
