"""Embed pictures with scorers, each picture once a scorer and condition, as resumable shards of an embeddings dataset.

A block of pictures is decoded once for all scorers. Which pictures a block holds is fixed by the plan, so the digits do
not depend on the number of workers. A scorer or a picture that is added later adds shards.

Axes: N pictures, H height, W width, D embedding width.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nearid_ray.data.images import decode_mask, decode_rgb, foreground_only
from nearid_ray.data.masking import Masker, MaskSettings, make_masker
from nearid_ray.data.pipeline import RunSettings, RunSummary, ShardResult, run_plan, run_shard, shards_to_make
from nearid_ray.data.plan import Plan, make_plan
from nearid_ray.data.store import Dataset
from nearid_ray.errors import UsageError
from nearid_ray.identifiers import stable_hash
from nearid_ray.retrieving.places import KEY, PLACE_SCHEMA, read_places
from schemas import EMBEDDINGS

if TYPE_CHECKING:
    from nearid_ray.scoring.scorer import Scorer

PICTURES_PER_SHARD = 32
"""A shard is what a kill costs, and what a GPU's worker holds decoded: some 100 MB of pictures of 1024 pixels."""

FEW = 64
"""So many embeddings are made sooner than a Ray session starts."""

_DECODERS = 8
Decoded = list["NDArray[np.uint8] | str"]
"""Pictures (H, W, 3), or why there is none."""


@dataclass(frozen=True, kw_only=True)
class NamedScorer:
    """A scorer by the name it has in records."""

    name: str
    spec: str
    """What `nearid_ray.load` takes; paths are absolute, since workers have other working directories."""
    fingerprint: str
    """Name of what it computes."""


def named_scorers(entries: Sequence[str], taken: Mapping[str, str] | None = None) -> dict[str, str]:
    """{name: spec} from NAME=SPEC entries, or SPEC alone, which names itself.

    Args:
        taken: names that stand for something else, and what.

    Raises:
        UsageError: an entry is empty, or a name stands twice.

    >>> named_scorers(["ours=runs/head/best", "my.metrics:dreamsim"])
    {'ours': 'runs/head/best', 'dreamsim': 'my.metrics:dreamsim'}
    """
    from nearid_ray.scoring.scorer import default_name

    found: dict[str, str] = {}
    for entry in entries:
        name, equals, spec = entry.partition("=")
        if not equals:
            name, spec = default_name(entry), entry
        if not name or not spec:
            raise UsageError(f"scorers has the entry {entry!r}; expected NAME=SPEC, e.g. siglip2=google/siglip2-base")
        said = (taken or {}).get(name) or found.get(name)
        if said:
            raise UsageError(f"scorers: the name {name!r} stands for {said} already; give {spec} another name")
        found[name] = spec
    return found


def known_scorers(specs: Mapping[str, str]) -> list[NamedScorer]:
    """The scorers with their fingerprints: each is loaded once here, so that what is wrong is said before any work.

    Raises:
        UsageError: a spec names nothing that can be loaded.
    """
    import nearid_ray
    from nearid_ray.scoring.scorer import everywhere

    found = []
    for name, spec in specs.items():
        spec = everywhere(spec)
        scorer = nearid_ray.load(spec, device="cpu", name=name)
        found.append(NamedScorer(name=name, spec=spec, fingerprint=scorer.fingerprint))
    return found


def plan_pictures(
    places: pa.Table,
    scorers: Sequence[NamedScorer],
    output: Dataset,
    *,
    content: Mapping[str, Any],
    conditions: Sequence[str] = ("full",),
    masking: MaskSettings | None = None,
    pictures_per_shard: int = PICTURES_PER_SHARD,
) -> Plan:
    """Plan the embeddings of pictures into `output`, on top of what is planned there.

    Args:
        places: as `places.places_of` gives them; a picture that stands twice is embedded once.
        content: names what the pictures come from; an output made from other things is refused.
        conditions: full; foreground: backgrounds blacked out by the picture's mask, or by one that is found.
        masking: finds masks where the foreground of a picture without one is asked for.

    Raises:
        UsageError: nothing is to be embedded, or the output holds a scorer of the same name that computes other things.
    """
    _refuse_other_scorers(output, scorers)
    distinct = list({tuple(row[name] for name in KEY): row for row in places.to_pylist()}.values())
    distinct.sort(key=lambda row: tuple(row[name] for name in KEY))
    rows = []
    for number, place in enumerate(distinct):
        for condition in conditions:
            for scorer in scorers:
                name = stable_hash(*(place[key] for key in KEY), condition, scorer.name, scorer.fingerprint)
                rows.append(
                    place
                    | {"row_id": name, "condition": condition, "scorer": scorer.name}
                    | {"scorer_fingerprint": scorer.fingerprint, "block": number // pictures_per_shard}
                )
    work = pa.Table.from_pylist(rows, schema=_WORK_SCHEMA)
    found = (masking or MaskSettings(mask_method="none")).mask_method if "foreground" in conditions else "none"
    plan = make_plan(
        output,
        work,
        table=EMBEDDINGS.name,
        content={**content, "pictures_per_shard": pictures_per_shard, "masks": found},
        rows_per_shard=len(rows) + 1,
        break_on=("block",),
    )
    given = {scorer.name for scorer in scorers}
    mine = [shard for shard in plan.shard_names if set(plan.members(shard)["scorer"].unique().to_pylist()) <= given]
    return replace(plan, pending=tuple(name for name in plan.pending if name in set(mine)), chosen=frozenset(mine))


_WORK_SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        *PLACE_SCHEMA,
        ("condition", pa.string()),
        ("scorer", pa.string()),
        ("scorer_fingerprint", pa.string()),
        ("block", pa.int64()),
    ]
)


class _Prepared(NamedTuple):
    wanted: list[tuple[str, str]]
    """(scorer, condition) of the shard's rows."""
    pictures: list[tuple[Any, Any, str]]
    """(picture, its mask or None, problem)."""


@dataclass
class PictureTask:
    """Shards of an embeddings dataset: scorers on some pictures."""

    scorers: tuple[NamedScorer, ...]
    masking: MaskSettings = MaskSettings(mask_method="none")
    """Finds the masks that pictures do not bring, where their foreground is asked for."""
    uses_model: bool = True
    _loaded: dict[str, Scorer] = field(default_factory=dict, repr=False)
    _masker: Masker | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": {}, "_masker": None}

    def setup(self) -> None:
        """Load the scorers, on the GPU where this worker has one."""
        import nearid_ray

        if not self._loaded:
            self._loaded = {one.name: nearid_ray.load(one.spec, name=one.name) for one in self.scorers}
        if self._masker is None and self.masking.mask_method != "none":
            self._masker = make_masker(self.masking)
            self._masker.load()

    def prepare(self, work: pa.Table) -> _Prepared:
        """The shard's distinct pictures, decoded, in the order of their first rows."""
        wanted = list(dict.fromkeys(zip(work["scorer"].to_pylist(), work["condition"].to_pylist(), strict=True)))
        places = _distinct(work)
        if all(condition == "full" for _, condition in wanted):
            places = [place | {"has_mask": False} for place in places]
        with ThreadPoolExecutor(min(_DECODERS, os.cpu_count() or 1)) as threads:
            return _Prepared(wanted, list(threads.map(_decoded, places, read_places(places))))

    def compute(self, prepared: _Prepared) -> dict[tuple[str, str], Decoded]:
        """Embeddings, or why there is none, by (scorer, condition), for each distinct picture."""
        self.setup()
        pictures: dict[str, Decoded] = {"full": [problem or image for image, _, problem in prepared.pictures]}
        if any(condition == "foreground" for _, condition in prepared.wanted):
            pictures["foreground"] = self._foregrounds(prepared.pictures)
        return {(name, c): _embedded(self._loaded[name], pictures[c]) for name, c in prepared.wanted}

    def finish(self, work: pa.Table, computed: dict[tuple[str, str], Decoded]) -> ShardResult:
        number_of = {tuple(place[name] for name in KEY): i for i, place in enumerate(_distinct(work))}
        rows = []
        for row in work.to_pylist():
            made = computed[row["scorer"], row["condition"]][number_of[tuple(row[name] for name in KEY)]]
            failed = isinstance(made, str)
            rows.append(row | {"embedding": None if failed else made, "error": made if failed else ""})
        kept = [{name: row[name] for name in EMBEDDINGS.schema.names} for row in rows]
        return ShardResult(pa.Table.from_pylist(kept, schema=EMBEDDINGS.schema))

    def _foregrounds(self, prepared: Sequence[tuple[Any, Any, str]]) -> Decoded:
        bare = [i for i, (_, mask, problem) in enumerate(prepared) if mask is None and not problem]
        masks: dict[int, Any] = {}
        if bare and self._masker is not None:
            masks = dict(zip(bare, self._masker.masks([prepared[i][0] for i in bare]), strict=True))
        made: Decoded = []
        for number, (image, mask, problem) in enumerate(prepared):
            mask = masks.get(number) if mask is None else mask
            if problem or mask is None or isinstance(mask, ValueError):
                made.append(problem or (str(mask) if mask is not None else "it has no mask, and none was looked for"))
            else:
                made.append(foreground_only(image, mask))
        return made


def needs_ray(output: Dataset, plan: Plan, run: RunSettings) -> bool:
    """Whether so much is to be embedded that a Ray session pays; on a cluster, anything does."""
    todo = shards_to_make(output, plan, run)
    rows = sum(plan.members(shard).num_rows for shard in todo)
    return bool(todo) and (rows > FEW or bool(os.environ.get("RAY_ADDRESS")))


def embed_pictures(task: PictureTask, output: Dataset, plan: Plan, run: RunSettings, *, title: str) -> RunSummary:
    """Make the plan's pending shards: on Ray, or in this process where `needs_ray` says that few are missing."""
    if needs_ray(output, plan, run):
        return run_plan(task, output, plan, run, title=title)
    began = time.monotonic()
    todo = shards_to_make(output, plan, run)
    for shard in todo:
        run_shard(task, output, shard, plan.members(shard))
    seconds = time.monotonic() - began
    done = run_plan(task, output, replace(plan, pending=()), replace(run, retry_errors=False), title=title)
    made = sum(plan.members(shard).num_rows for shard in todo)
    return replace(done, rows_made=made, rows_before=done.rows - made, shards_made=len(todo), seconds=seconds)


def _distinct(work: pa.Table) -> list[dict[str, Any]]:
    """The shard's pictures, each once."""
    return list({tuple(row[name] for name in KEY): row for row in work.to_pylist()}.values())


def _decoded(place: Mapping[str, Any], encoded: tuple[bytes | None, bytes | None]) -> tuple[Any, Any, str]:
    data, mask = encoded
    if place["problem"] or data is None:
        return None, None, place["problem"] or "its picture is missing"
    try:
        image_HW3 = decode_rgb(data)
        mask_HW = decode_mask(mask) if mask is not None else None
    except ValueError as error:
        return None, None, str(error)
    if mask_HW is not None and (mask_HW.shape != image_HW3.shape[:2] or not mask_HW.any()):
        mask_HW = None
    return image_HW3, mask_HW, ""


def _embedded(scorer: Scorer, pictures: Decoded) -> Decoded:
    """One unit vector a picture (float32), or why there is none."""
    usable = [number for number, picture in enumerate(pictures) if not isinstance(picture, str)]
    made: Decoded = list(pictures)
    embedder = scorer.embedder
    for start in range(0, len(usable), scorer.batch_size):
        part = usable[start : start + scorer.batch_size]
        vectors_ND = embedder.embed([embedder.shrunk(pictures[number]) for number in part])  # type: ignore[arg-type]
        for number, vector_D in zip(part, vectors_ND, strict=True):
            finite = bool(np.isfinite(vector_D).all())
            made[number] = vector_D if finite else f"the scorer {scorer.name} gives no finite embedding"
    return made


def _refuse_other_scorers(output: Dataset, scorers: Sequence[NamedScorer]) -> None:
    given = {scorer.name: scorer.fingerprint for scorer in scorers}
    for planned in output.plans():
        if "scorer_fingerprint" not in planned.column_names:
            continue
        pairs = planned.group_by(["scorer", "scorer_fingerprint"]).aggregate([])
        for name, fingerprint in zip(pairs["scorer"].to_pylist(), pairs["scorer_fingerprint"].to_pylist(), strict=True):
            if given.get(name, fingerprint) != fingerprint:
                raise UsageError(
                    f"{output.location.uri} holds embeddings of a scorer {name!r} that computed other things; give the "
                    "scorer another name or the job another output, or remove the folder"
                )
