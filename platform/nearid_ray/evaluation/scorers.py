"""Which heads an evaluation applies: the frozen backbone's own and trained ones, by the name of their scorer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import pyarrow.compute as pc

from nearid_ray.data.pipeline import RunSettings, RunSummary
from nearid_ray.data.store import Dataset, Location
from nearid_ray.embedding.cache import TokenCache
from nearid_ray.errors import UsageError
from nearid_ray.evaluation.embed import embed_heads
from nearid_ray.evaluation.evaluate import EvaluateSettings, Evaluation, evaluate
from nearid_ray.models.checkpoint import load_head
from nearid_ray.models.head import AttentionPoolingHead

FROZEN = "frozen"
"""Scorer name of the backbone's own head."""


@dataclass(frozen=True, kw_only=True)
class Scorers:
    """Heads by scorer, and the engines the trained ones have seen."""

    heads: dict[str, AttentionPoolingHead]
    train_engines: tuple[str, ...]


def named_heads(entries: Sequence[str]) -> dict[str, str]:
    """{scorer: folder} from NAME=FOLDER entries.

    Raises:
        UsageError: an entry is not of that form, or a name stands twice or belongs to the backbone.

    >>> named_heads(["alpha-0.5=runs/a/best"])
    {'alpha-0.5': 'runs/a/best'}
    """
    found: dict[str, str] = {}
    for entry in entries:
        name, equals, folder = entry.partition("=")
        if not (name and equals and folder):
            raise UsageError(f"heads has the entry {entry!r}; expected NAME=FOLDER, e.g. alpha-0.5=runs/train/best")
        if name in found or name == FROZEN:
            said = "the backbone's own head" if name == FROZEN else f"{found[name]} already"
            raise UsageError(f"heads: the name {name!r} stands for {said}; give {folder} another name")
        found[name] = folder
    return found


def load_scorers(cache: TokenCache, heads: Mapping[str, str | Location]) -> Scorers:
    """The backbone's own head and the trained ones, checked against the backbone of the tokens.

    Args:
        heads: folder of each trained head.

    Raises:
        UsageError: a folder holds no head, or the head of another backbone.
    """
    backbone = cache.backbone
    loaded = {
        FROZEN: AttentionPoolingHead.from_state_dict(cache.head_state(), backbone["heads"], backbone["layer_norm_eps"])
    }
    engines: set[str] = set()
    for name, folder in heads.items():
        head, card = load_head(folder, backbone["fingerprint"])
        loaded[name] = head
        engines |= set(card.settings.get("engines") or _train_split_engines(cache))
    return Scorers(heads=loaded, train_engines=tuple(sorted(engines)))


def evaluate_tokens(
    tokens: str | Location, heads: Mapping[str, str | Location], output: Location, settings: EvaluateSettings,
    run: RunSettings, items_per_shard: int = 1024,
) -> tuple[Evaluation, RunSummary]:  # fmt: skip
    """Embed the pictures of a token cache with the backbone's own and the trained heads, and evaluate them all.

    Embeddings go to `output`/embeddings, records and metrics beside them. Needs a Ray session.
    """
    cache = TokenCache.open(tokens)
    scorers = load_scorers(cache, heads)
    embeddings = Dataset(output.child("embeddings"))
    made = embed_heads(
        partial(TokenCache.open, cache.uri),
        scorers.heads,
        embeddings,
        run,
        fingerprint=cache.fingerprint,
        split=settings.split,
        conditions=settings.conditions,
        items_per_shard=items_per_shard,
    )
    known = settings.train_engines or scorers.train_engines
    return evaluate([embeddings], output, replace(settings, train_engines=known)), made


def _train_split_engines(cache: TokenCache) -> list[str]:
    trained = cache.index.filter((pc.field("split") == "train") & (pc.field("engine") != ""))
    return sorted(trained["engine"].unique().to_pylist())
