"""Masks as a stage of its own: from a tuples dataset to the same dataset whose views have masks.

The pictures stay as they are, so views keep their view_id: what was made of them still belongs to them. (Ingest also
chooses the square by the mask; here the square is given.)

A view that the masker finds no object in is left as it was, without an error, since its picture is as good as before:
`mask_error` in its provenance says why, and the summary counts it. A view with an error has no picture to find a mask
in; it needs a new ingest.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from nearid_ray.data.card import licence_of, write_card
from nearid_ray.data.images import decode_mask, decode_rgb
from nearid_ray.data.mask_report import MaskPlace, list_masks, mask_facts
from nearid_ray.data.masking import Masker, MaskSettings, make_masker
from nearid_ray.data.masking.masker import Found
from nearid_ray.data.masks import check_mask, clean_mask
from nearid_ray.data.pipeline import RunSettings, RunSummary, ShardResult, run_plan
from nearid_ray.data.plan import Plan, make_plan, refuse_changed
from nearid_ray.data.store import Dataset, read_rows
from nearid_ray.data.views import mask_columns
from nearid_ray.errors import UsageError
from nearid_ray.identifiers import stable_hash
from schemas import TUPLES

_ROWS_PER_SHARD = 8
"""A view costs half a second by GrabCut, seconds by a large model on a CPU: small folders then use all cores."""

WORK_SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("input_shard", pa.string()),
        ("input_row", pa.int32()),
        ("state", pa.string()),
    ]
)
"""A work row is an identity; `state` names its views and their masks as they were when it was planned."""


@dataclass(frozen=True, kw_only=True)
class RemaskSettings:
    """Which views get a mask, and how."""

    which: Literal["missing", "all"] = "missing"
    """`missing`: views without a mask; `all`: every view, masks that are there are replaced."""
    clean: bool = False
    """Clean every mask, found or already there: specks and threads go, gaps are closed, holes are filled (also those
    that belong there, as in the handle of a mug)."""
    masking: MaskSettings = field(default_factory=MaskSettings)
    """How masks are found."""

    def __post_init__(self) -> None:
        if self.which not in ("missing", "all"):
            raise ValueError(f"which is {self.which!r}; expected missing or all")
        if self.masking.mask_method == "none" and not self.clean:
            raise ValueError("mask_method is none and clean is off: nothing would be done; expected one of them")


class RemaskTask:
    """A shard of identities whose views get their masks."""

    def __init__(self, tuples_uri: str, settings: RemaskSettings, masker: Masker, *, any_to_find: bool = True) -> None:
        self._tuples_uri, self._settings, self._masker = tuples_uri, settings, masker
        self.uses_model = masker.uses_model and any_to_find
        self._loaded = False

    def setup(self) -> None:
        if self.uses_model:
            self._load()

    def prepare(self, work: pa.Table) -> list[tuple[dict[str, Any], dict[int, "np.ndarray | ValueError"]]]:
        """(identity, picture by view) for each row; pictures of views that want a mask, or why one cannot be read."""
        tuples, rows = Dataset(self._tuples_uri), {}
        for shard in dict.fromkeys(work["input_shard"].to_pylist()):
            places = [row["input_row"] for row in work.to_pylist() if row["input_shard"] == shard]
            for place, row in zip(places, read_rows(tuples.shard(shard), places).to_pylist(), strict=True):
                rows[shard, place] = row
        identities = [rows[row["input_shard"], row["input_row"]] for row in work.to_pylist()]
        return [(identity, self._pictures(identity["views"])) for identity in identities]

    def compute(
        self, prepared: list[tuple[dict[str, Any], dict[int, "np.ndarray | ValueError"]]]
    ) -> list[tuple[dict[str, Any], dict[int, Found]]]:
        pictures = [p for _, by_view in prepared for p in by_view.values() if not isinstance(p, ValueError)]
        if pictures:
            self._load()
        found = iter(self._masker.masks(pictures) if pictures else [])
        return [
            (identity, {i: p if isinstance(p, ValueError) else next(found) for i, p in by_view.items()})
            for identity, by_view in prepared
        ]

    def finish(self, work: pa.Table, computed: list[tuple[dict[str, Any], dict[int, Found]]]) -> ShardResult:
        maker, clean = self._masker.describe(), self._settings.clean
        rows = [
            identity
            | {"views": [remasked(view, found.get(i), maker, clean) for i, view in enumerate(identity["views"])]}
            for identity, found in computed
        ]
        return ShardResult(pa.Table.from_pylist(rows, schema=TUPLES.schema))

    def _load(self) -> None:
        if not self._loaded:
            self._masker.load()
            self._loaded = True

    def _pictures(self, views: Sequence[dict[str, Any]]) -> dict[int, "np.ndarray | ValueError"]:
        if self._masker.name == "none":
            return {}
        every = self._settings.which == "all"
        wanted = [i for i, view in enumerate(views) if view["image"] and (every or view["mask"] is None)]
        return {i: _decoded(views[i]["image"]["bytes"]) for i in wanted}


def plan_remask(tuples: Dataset, output: Dataset, settings: RemaskSettings) -> tuple[Plan, RemaskTask]:
    """The plan of what `output` misses, and the task that makes it. Raises UsageError before anything is written."""
    views = list(list_masks(tuples))
    if not any(view.has_picture for view in views):
        raise UsageError(f"{tuples.location.uri}: none of the {len(views)} view(s) has a picture; ingest it again")
    if tuples.location.uri == output.location.uri:
        raise UsageError(f"{output.location.uri} is input and output; give another output")
    states: dict[tuple[str, str, int], list[str]] = {}
    for view in views:
        place = (view.identity_id, view.shard, view.row)
        states.setdefault(place, []).append(f"{view.view_id} {view.area} {view.source}")
    rows: list[dict[str, Any]] = [
        {"row_id": identity, "input_shard": shard, "input_row": row, "state": stable_hash(*state)}
        for (identity, shard, row), state in states.items()
    ]
    work = pa.Table.from_pylist(rows, schema=WORK_SCHEMA)
    masker = make_masker(settings.masking)
    state_of = {row["row_id"]: row["state"] for row in rows}
    said = "identity(ies) have changed in the tuples dataset since they were planned"
    refuse_changed(output, "state", state_of, said)
    plan = make_plan(
        output,
        work,
        table=TUPLES.name,
        content={
            "tuples": tuples.digest(),
            "which": settings.which,
            "clean": settings.clean,
            "masking": masker.describe(),
        },
        rows_per_shard=_ROWS_PER_SHARD,
        break_on=("input_shard",),
    )
    return plan, RemaskTask(tuples.location.uri, settings, masker, any_to_find=bool(asked_views(views, settings)))


def asked_views(views: Iterable[MaskPlace], settings: RemaskSettings) -> set[tuple[str, int]]:
    """(identity_id, view_index) of the views that a mask is looked for."""
    if settings.masking.mask_method == "none":
        return set()
    every = settings.which == "all"
    return {(v.identity_id, v.view_index) for v in views if v.has_picture and (every or v.area is None)}


def remask_facts(tuples: Dataset, output: Dataset, settings: RemaskSettings) -> dict[str, Any]:
    """For a summary: in how many views a mask was looked for and found, and how the masks of `output` are."""
    asked, views = asked_views(list_masks(tuples), settings), list(list_masks(output))
    failed = sum((v.identity_id, v.view_index) in asked and "mask_error" in json.loads(v.provenance) for v in views)
    return {"masks_looked_for": len(asked), "masks_found": len(asked) - failed, **mask_facts(views)}


def remask(tuples: Dataset, output: Dataset, plan: Plan, task: RemaskTask, run: RunSettings) -> RunSummary:
    """Make the planned rows; needs a Ray session where shards are pending."""
    summary = run_plan(task, output, plan, run, title="masks")
    write_card(
        output,
        title="Tuples with masks",
        about="The tuples of another dataset, row by row, with masks for the views that had none (or for all). "
        "Each view's `mask_source` and `provenance` say where its mask comes from.",
        licence=licence_of(tuples),
        facts={"identities": summary.rows, **mask_facts(list_masks(output))},
    )
    return summary


def remasked(view: dict[str, Any], found: Found, maker: dict[str, Any], clean: bool) -> dict[str, Any]:
    """An entry of the `views` column with its new mask, if one was found, and its columns.

    `found` is None where none was looked for; `maker` is what the masker says of itself. A mask that is empty or full,
    found or cleaned, is not taken.
    """
    provenance = json.loads(view["provenance"])
    mask_HW: np.ndarray | None = None
    fields: dict[str, Any] = {}
    if isinstance(found, ValueError):
        provenance["mask_error"] = str(found)
    elif found is not None:
        mask_HW = found
        provenance = {name: said for name, said in provenance.items() if name not in ("mask_error", "mask_cleaned")}
        provenance["mask"] = maker
        fields["mask_source"] = maker["mask_method"]
    if clean and (mask_HW is not None or view["mask"] is not None):
        mask_HW = _cleaned(decode_mask(view["mask"]["bytes"]) if mask_HW is None else mask_HW, provenance, mask_HW)
    if mask_HW is not None:
        file = PurePosixPath(view["image"]["path"] or "view.png")
        name = view["mask"]["path"] if view["mask"] else str(file.with_name(f"{file.stem}-mask.png"))
        fields |= mask_columns(mask_HW, name)
    if not fields and provenance == json.loads(view["provenance"]):
        return view
    return view | fields | {"provenance": json.dumps(provenance, ensure_ascii=False)}


def _cleaned(mask_HW: np.ndarray, provenance: dict[str, Any], otherwise: np.ndarray | None) -> np.ndarray | None:
    """The cleaned mask; `otherwise` where nothing, or nearly the whole picture, would be left of it."""
    cleaned = clean_mask(mask_HW)
    try:
        check_mask(cleaned)
    except ValueError:
        return otherwise
    provenance["mask_cleaned"] = True
    return cleaned


def _decoded(data: bytes) -> "np.ndarray | ValueError":
    try:
        return decode_rgb(data)
    except ValueError as error:
        return ValueError(f"the picture cannot be read: {error}")
