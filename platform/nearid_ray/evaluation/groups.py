"""Groups of engines that results are pooled over: the paper's configurations (NearID, tables 1 and 5), or by kind."""

from __future__ import annotations

from collections.abc import Sequence

TRAIN = ("flux-fill-512", "flux-fill-1024", "qwen-image-512", "qwen-image-1328")
"""Used in the paper's training."""
UNSEEN = ("powerpaint-512", "sdxl-512", "sdxl-1024")
"""Fill configurations not used in training."""
EXTRA = ("flux-canny-512", "flux-canny-1024")
"""Reported apart; no part of the headline."""


OBJECT_LEVEL, PART_LEVEL, ALL = "object-level", "part-level", "all"
"""Engines that replace the whole object; engines that change a part and say how much; both."""
HEADLINES = ("headline", OBJECT_LEVEL, PART_LEVEL)
"""Groups that can stand on top, the first that is there."""


def benchmark_groups(
    engines: Sequence[str], part_level: Sequence[str] = (), train_engines: Sequence[str] = ()
) -> dict[str, list[str]]:
    """The groups of a benchmark's engines, name -> engines: the headline, what it is made of, and all.

    With a configuration of the paper among the engines these are the paper's: train, unseen, extra, and their headline.
    Otherwise train and unseen by what the heads were trained on (neither where that is not known), and object-level,
    both together. Then part-level, engines with an oracle, and all.

    A group that an earlier one names in full is left out, the headline and part-level never. Empty ones are left out.

    Args:
        engines: the engines there are, controls left out.
        part_level: those with an oracle.
        train_engines: those the heads were trained on; empty: unknown.

    >>> benchmark_groups(["toybox-decal", "toybox-redraw"], ["toybox-decal"], ["toybox-redraw"])
    {'object-level': ['toybox-redraw'], 'part-level': ['toybox-decal'], 'all': ['toybox-decal', 'toybox-redraw']}
    >>> benchmark_groups(["sdxl-512", "flux-fill-512"])
    {'train': ['flux-fill-512'], 'unseen': ['sdxl-512'], 'headline': ['flux-fill-512', 'sdxl-512']}
    """
    engines = sorted(set(engines))
    whole = [engine for engine in engines if engine not in part_level]
    if set(whole) & {*TRAIN, *UNSEEN, *EXTRA}:
        groups = paper_groups(whole, train_engines or None)
    else:
        groups = {
            "train": [engine for engine in whole if engine in train_engines],
            "unseen": [engine for engine in whole if train_engines and engine not in train_engines],
            OBJECT_LEVEL: whole,
        }
    groups |= {PART_LEVEL: [engine for engine in engines if engine in part_level], ALL: engines}
    kept: dict[str, list[str]] = {}
    on_top = [members for name, members in groups.items() if name in HEADLINES]
    for name, members in groups.items():
        if members and (name in HEADLINES or members not in [*kept.values(), *on_top]):
            kept[name] = members
    return kept


def paper_groups(engines: Sequence[str], train_engines: Sequence[str] | None = None) -> dict[str, list[str]]:
    """train, unseen, extra, and headline (train and unseen together), each with those of `engines` that are in it.

    Engines the paper does not know belong to train or to unseen. Groups without an engine are left out.

    Args:
        engines: the engines there are.
        train_engines: those a head was trained on; the paper's four when left out. An engine named here is in train
            even where the paper has it elsewhere.

    >>> paper_groups(["sdxl-512", "flux-fill-512", "flux-canny-512"])  # doctest: +NORMALIZE_WHITESPACE
    {'train': ['flux-fill-512'], 'unseen': ['sdxl-512'], 'extra': ['flux-canny-512'],
     'headline': ['flux-fill-512', 'sdxl-512']}
    >>> paper_groups(["toybox"], train_engines=["toybox"])
    {'train': ['toybox'], 'headline': ['toybox']}
    """
    trained = set(TRAIN if train_engines is None else train_engines)
    known = sorted(set(engines))
    train = [engine for engine in known if engine in trained]
    extra = [engine for engine in known if engine in EXTRA and engine not in trained]
    unseen = [engine for engine in known if engine not in (*train, *extra)]
    groups = {"train": train, "unseen": unseen, "extra": extra, "headline": sorted([*train, *unseen])}
    return {name: members for name, members in groups.items() if members}
