"""Which heads an evaluation applies: the frozen backbone's own and trained ones, by the name of their scorer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import pyarrow.compute as pc
from torch import nn

from nearid_ray.data.card import licence_of, write_card
from nearid_ray.data.pipeline import RunSettings, RunSummary, run_plan
from nearid_ray.data.plan import Plan
from nearid_ray.data.store import Dataset, Location
from nearid_ray.embedding.cache import TokenCache
from nearid_ray.errors import UsageError
from nearid_ray.evaluation.embed import HeadTask, plan_heads
from nearid_ray.evaluation.evaluate import FROZEN, EvaluateSettings, Evaluation, choose_baseline, evaluate
from nearid_ray.evaluation.inputs import Given, read_given, refuse_mixture, refuse_same_names
from nearid_ray.models.checkpoint import load_head


@dataclass(frozen=True, kw_only=True)
class Scorers:
    """Heads by scorer, and the engines the trained ones have seen."""

    heads: dict[str, nn.Module]
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
    loaded: dict[str, nn.Module] = {FROZEN: cache.pooling()}
    engines: set[str] = set()
    for name, folder in heads.items():
        head, card = load_head(folder, backbone["fingerprint"])
        loaded[name] = head
        engines |= set(card.settings.get("engines") or _train_split_engines(cache))
    return Scorers(heads=loaded, train_engines=tuple(sorted(engines)))


@dataclass(frozen=True, kw_only=True)
class TokenEvaluation:
    """A planned evaluation of a token cache: what `plan_evaluation` found good."""

    cache_uri: str
    scorers: Scorers
    embeddings: Dataset
    """Where the embeddings go."""
    plan: Plan
    """Its pending shards are the embeddings still to make; with none, no Ray session is needed."""
    output: Location
    settings: EvaluateSettings
    """With the training engines filled in."""
    others: tuple[Given, ...] = ()
    """Embeddings and judgements of further scorers, measured beside the heads."""
    unpainted: tuple[str, ...] = ()
    """Engines of the tokens that have no distractor in the split: no result speaks of them."""

    def embed(self, run: RunSettings) -> RunSummary:
        """Make the planned embeddings; needs a Ray session where shards are pending."""
        task = HeadTask(partial(TokenCache.open, self.cache_uri), self.scorers.heads)
        summary = run_plan(task, self.embeddings, self.plan, run, title="embed pictures with heads")
        write_card(
            self.embeddings,
            title="Embeddings of an evaluation",
            about="Unit embeddings of every clean picture of one split by the backbone's own head and by trained ones.",
            licence=licence_of(Dataset(self.cache_uri)),
            facts={
                "rows": summary.rows,
                "rows with an error": summary.errors,
                "scorers": ", ".join(sorted(set(self.plan.rows["scorer"].unique().to_pylist()))),
            },
        )
        return summary

    def measure(self) -> Evaluation:
        """Write records and metrics of the embeddings; reads what is there where nothing has changed."""
        return evaluate(
            [self.embeddings], self.output, self.settings, scorers=list(self.scorers.heads), others=self.others
        )


def plan_evaluation(
    tokens: str | Location,
    heads: Mapping[str, str | Location],
    output: Location,
    settings: EvaluateSettings,
    *,
    others: Sequence[Given] = (),
    items_per_shard: int = 1024,
) -> TokenEvaluation:
    """Plan an evaluation of the backbone's own and the trained heads on a token cache.

    Embeddings go to `output`/embeddings, records and metrics beside them. A head added later adds to what is there.

    Args:
        tokens: a token cache that all workers see.
        heads: folder of each trained head by the name of its scorer.
        others: embeddings and judgements of the same pictures, measured beside the heads.
        items_per_shard: pictures a shard; part of what fixes the digits.

    Raises:
        UsageError: before anything is written, where tokens and heads do not fit each other, the split is empty, the
            output holds the embeddings of other tokens or heads, or the others are of another benchmark.
    """
    cache = TokenCache.open(tokens)
    scorers = load_scorers(cache, heads)
    _check_names(cache, scorers, settings, others)
    _check_pictures(cache, settings, others)
    embeddings = Dataset(output.child("embeddings"))
    plan = plan_heads(
        cache.index,
        scorers.heads,
        embeddings,
        fingerprint=cache.fingerprint,
        split=settings.split,
        conditions=settings.conditions,
        items_per_shard=items_per_shard,
    )
    return TokenEvaluation(
        cache_uri=cache.uri,
        scorers=scorers,
        embeddings=embeddings,
        plan=plan,
        output=output,
        settings=replace(settings, train_engines=settings.train_engines or scorers.train_engines),
        others=tuple(others),
        unpainted=_unpainted(cache, settings.split),
    )


def evaluate_tokens(
    tokens: str | Location,
    heads: Mapping[str, str | Location],
    output: Location,
    settings: EvaluateSettings,
    run: RunSettings,
) -> tuple[Evaluation, RunSummary]:
    """Plan, embed and measure in one go. Needs a Ray session where embeddings are missing."""
    planned = plan_evaluation(tokens, heads, output, settings)
    summary = planned.embed(run)
    return planned.measure(), summary


def _check_names(cache: TokenCache, scorers: Scorers, settings: EvaluateSettings, others: Sequence[Given]) -> None:
    named = [(cache.uri, list(scorers.heads)), *((one.origin, one.scorer_names()) for one in others)]
    refuse_same_names(named)
    choose_baseline(settings.baseline, [name for _, names in named for name in names])
    refuse_unknown_engines(settings, cache.index["engine"].unique().to_pylist(), "the tokens")


def refuse_unknown_engines(settings: EvaluateSettings, engines: Sequence[str], whose: str) -> None:
    """UsageError where `train_engines` names one that is not there."""
    known = sorted(set(engines) - {""})
    unknown = sorted(set(settings.train_engines) - set(known))
    if unknown:
        raise UsageError(f"train_engines has {', '.join(unknown)}; {whose} have the engines {', '.join(known)}")


def _check_pictures(cache: TokenCache, settings: EvaluateSettings, others: Sequence[Given]) -> None:
    """Before anything is embedded."""
    if others:
        mine = cache.index.filter((pc.field("draw") == 0) & (pc.field("split") == settings.split))
        parts = [(one.origin, read_given(one, settings.split, settings.conditions)) for one in others]
        refuse_mixture([(cache.uri, mine), *parts])


def _unpainted(cache: TokenCache, split: str) -> tuple[str, ...]:
    everywhere, here = cache.index["engine"], cache.index.filter(pc.field("split") == split)["engine"]
    return tuple(sorted(set(everywhere.unique().to_pylist()) - set(here.unique().to_pylist())))


def _train_split_engines(cache: TokenCache) -> list[str]:
    trained = cache.index.filter((pc.field("split") == "train") & (pc.field("engine") != ""))
    return sorted(trained["engine"].unique().to_pylist())
