"""Judgements on shards: decode the pictures of a shard's pairs once, ask the scorer, write the rows."""

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from nearid_ray.data.images import foreground_only
from nearid_ray.data.pipeline import ShardResult
from nearid_ray.embedding.pictures import PLACES, Pictures
from nearid_ray.evaluation.pairwise.plan import SIDES
from nearid_ray.evaluation.pairwise.scorer import Batches, Judgement, Pair, PairScorer, Picture
from nearid_ray.synthesis.engines.runtime import device
from schemas import TABLES


@dataclass
class Prepared:
    """The pairs of a shard before the scorer has seen them."""

    pictures: dict[str, Picture]
    """By a name that the pairs of the shard share."""
    pairs: list[tuple[str, str]]
    errors: list[str]
    """What is wrong with the pictures of each pair; empty where nothing is."""


@dataclass
class Judged:
    """What the scorer said, one judgement a row."""

    judgements: list[Judgement]
    log: dict[str, Any]


@dataclass
class JudgeTask:
    """A shard of pairs past the scorer."""

    inputs: dict[str, str]
    """URIs of the input datasets by kind: tuples, distractors, generated."""
    scorer: PairScorer
    name: str
    """The column `scorer`."""
    table: str
    """judgements or judged_generated."""
    threads: int = 1
    uses_model: bool = True
    _batches: Batches | None = field(default=None, repr=False)

    def setup(self) -> None:
        """Load the scorer."""
        import torch

        torch.set_num_threads(self.threads)
        self.scorer.load(device())
        self._batches = Batches(self.scorer)

    def prepare(self, work: pa.Table) -> Prepared:
        """The pictures of the pairs, each read and decoded once for each condition."""
        rows = work.to_pylist()
        sides = [[_side(row, side) for side in SIDES] for row in rows]
        needed = {item["name"]: item for pair in sides for item in pair}
        for item in needed.values():
            item["masked"] = item["foreground"] or self.scorer.uses_masks
        # In the order in which they lie in their files: of a row's pictures and masks the last one is kept decoded.
        ordered = sorted(needed.values(), key=lambda item: tuple(map(str, (item[name] for name in PLACES))))
        source = Pictures(self.inputs, ordered)
        pictures: dict[str, Picture] = {}
        broken: dict[str, str] = {}
        for item in ordered:
            try:
                pictures[item["name"]] = self._picture(source, item)
            except ValueError as error:
                broken[item["name"]] = str(error)
        names = [(first["name"], second["name"]) for first, second in sides]
        errors = ["; ".join(_said(name, side, broken) for name, side in zip(pair, SIDES, strict=True) if name in broken)
                  for pair in names]  # fmt: skip
        return Prepared(pictures, names, errors)

    def compute(self, prepared: Prepared) -> Judged:
        """The scorer's judgements; pairs whose pictures cannot be read are not shown to it."""
        began = time.perf_counter()
        if self._batches is None:
            self.setup()
        assert self._batches is not None
        loaded = time.perf_counter()
        judgements = [Judgement(error=error) for error in prepared.errors]
        good = [place for place, error in enumerate(prepared.errors) if not error]
        pairs = [Pair(*(prepared.pictures[name] for name in prepared.pairs[place])) for place in good]
        for place, judgement in zip(good, self._batches.run(pairs), strict=True):
            judgements[place] = judgement
        return Judged(judgements, {"load_s": loaded - began, "score_s": time.perf_counter() - loaded})

    def finish(self, work: pa.Table, computed: Judged) -> ShardResult:
        """The shard's rows in the contract's schema."""
        made = computed.judgements
        similarity = np.array([one.similarity for one in made], np.float64)
        errors = [one.error or ("" if np.isfinite(value) or one.answer else "the scorer gave no finite number")
                  for one, value in zip(made, similarity, strict=True)]  # fmt: skip
        unusable = ~np.isfinite(similarity) | np.array([bool(error) for error in errors])
        columns: dict[str, Any] = {name: work[name] for name in work.column_names}
        columns |= {
            "scorer": pa.array([self.name] * len(made), pa.string()),
            "similarity": pa.array(similarity, pa.float64(), mask=unusable),
            "answer": pa.array([one.answer for one in made], pa.string()),
            "error": pa.array(errors, pa.string()),
        }
        schema = TABLES[self.table].schema
        return ShardResult(pa.table([columns[name] for name in schema.names], schema=schema), log=computed.log)

    def _picture(self, source: Pictures, item: dict[str, Any]) -> Picture:
        image = source.image(item)
        mask = source.mask(item, image.shape[:2]) if item["masked"] else None
        if item["foreground"] and mask is not None:
            image = foreground_only(image, mask)
        return Picture(image_id=item["name"], image_HW3=image, mask_HW=mask if self.scorer.uses_masks else None)


def _side(row: dict[str, Any], side: str) -> dict[str, Any]:
    foreground = row["condition"] == "foreground"
    item = {name: row[f"{side}_{name}"] for name in PLACES}
    return item | {"name": f"{row[f'{side}_row_id']}/{row['condition']}", "foreground": foreground}


def _said(name: str, side: str, broken: dict[str, str]) -> str:
    return f"{side} picture: {broken[name]}"
