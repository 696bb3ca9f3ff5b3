"""The paper's groups of engine configurations (NearID, tables 1 and 5)."""

from __future__ import annotations

from collections.abc import Sequence

TRAIN = ("flux-fill-512", "flux-fill-1024", "qwen-image-512", "qwen-image-1328")
"""Used in the paper's training."""
UNSEEN = ("powerpaint-512", "sdxl-512", "sdxl-1024")
"""Fill configurations not used in training."""
EXTRA = ("flux-canny-512", "flux-canny-1024")
"""Reported apart; no part of the headline."""


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
