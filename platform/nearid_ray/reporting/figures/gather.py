"""From the folders of a run to figures: each function gives its figure, or says in a sentence why there is none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nearid_ray.data.images import decode_mask, decode_rgb
from nearid_ray.data.store import locate
from nearid_ray.evaluation.calibration import reliability
from nearid_ray.evaluation.control import without_controls
from nearid_ray.evaluation.evaluate import embeddings_of
from nearid_ray.evaluation.measures import find
from nearid_ray.reporting.figures.attention import AttentionPicture, attention_figure
from nearid_ray.reporting.figures.ecdf import ecdf_figure
from nearid_ray.reporting.figures.figure import Figure
from nearid_ray.reporting.figures.pictures import drawn_identities, rows_of, sheet_tuples
from nearid_ray.reporting.figures.projection import projection_figure
from nearid_ray.reporting.figures.properties import PROPERTIES, property_figure
from nearid_ray.reporting.figures.radar import radar_figure
from nearid_ray.reporting.figures.reliability import reliability_figure
from nearid_ray.reporting.figures.sheets import part_figure, qualitative_figure
from nearid_ray.reporting.figures.weights import weight_curves, weight_figure, weights_of
from nearid_ray.reporting.inputs import Opened
from nearid_ray.reporting.model import Projection, ReportSettings, SheetTuple
from nearid_ray.scoring.calibrated import read_calibration
from nearid_ray.training.outputs import BEST

Made = Figure | str
"""A figure, or why there is none."""

DRAWN = "Drawn at random by a hash of the identity, not chosen."
DREAMBENCH, CATEGORY = "dreambench-plus", "category:"
_ATTENTION_PICTURES = 2
_MOST_PROJECTED = 6
"""Panels of the projection: the baseline and the scorers after it."""
_FULL = pc.field("condition") == "full"


def attention(opened: Opened, settings: ReportSettings) -> Made:
    """Figure 3, left: where the heads look."""
    if opened.cache is None or opened.tuples is None:
        return "attention maps need the tokens (--tokens) and the pictures (--tuples)"
    if not settings.attention_identities:
        return "no identities are asked for (attention_identities is 0)"
    cache = opened.cache
    prefix = int(cache.backbone.get("prefix_tokens", 0))
    grid = tuple(cache.backbone.get("grid") or [math.isqrt(cache.tokens - prefix)] * 2)
    heads = _attention_heads(opened)
    if not heads or math.prod(grid) != cache.tokens - prefix:
        return f"{cache.backbone['spec']} has no attention pooling over a grid of tokens, and no trained head is given"
    engines = without_controls(opened.engines)
    chosen = _identities_with_pairs(opened, settings.attention_identities, "attention", settings, engines[:1])
    index = cache.index.append_column("place", pa.array(np.arange(len(cache.index), dtype=np.int64)))
    wanted = pc.field("identity_id").isin(chosen) & (pc.field("draw") == 0) & ~pc.field("masked")
    rows = index.filter(wanted & (pc.field("error") == "")).to_pylist()
    pictures = _pictures_by_key(opened, chosen, engines)
    shown: dict[str, list[AttentionPicture]] = {}
    for identity in chosen:
        own = sorted((r for r in rows if r["identity_id"] == identity), key=lambda r: r["view_index"])
        own = [r for r in own if (identity, r["view_index"], r["engine"]) in pictures]
        views = [r for r in own if r["role"] == "view"][:1]
        first = views[0]["view_index"] if views else 0
        painted = [r for r in own if r["role"] == "distractor" and r["view_index"] == first and r["engine"] in engines]
        painted.sort(key=lambda r: engines.index(r["engine"]))
        shown[identity] = [
            _attention_picture(opened, row, pictures, heads, grid, prefix)
            for row in (views + painted)[:_ATTENTION_PICTURES]
        ]
    shown = {identity: some for identity, some in shown.items() if some}
    return attention_figure(shown) if shown else "none of the identities with pairs has clean pictures in the tokens"


def properties(opened: Opened, _: ReportSettings) -> Made:
    """Figure 3, right: what the scorers can do."""
    asked = {(p.benchmark, p.metric, p.condition) for p in PROPERTIES}
    able = {m.scorer for m in opened.measures if (m.benchmark, m.metric, m.condition) in asked}
    scorers = [s for s in dict.fromkeys([*opened.scorers, *(m.scorer for m in opened.measures)]) if s in able]
    return property_figure(opened.measures, scorers) if scorers else "nothing was measured that makes a property"


def radar(opened: Opened, _: ReportSettings) -> Made:
    """Figure 4: agreement with people by category."""
    found = [m for m in find(opened.measures, benchmark=DREAMBENCH, metric="m_h") if m.name.startswith(CATEGORY)]
    conditions = {m.condition for m in found}
    found = [m for m in found if m.condition == "full"] if "full" in conditions else found
    if not found:
        return (
            "agreement with people by category needs an alignment's measures of DreamBench++: run jobs/align.py and "
            "give its output as --measures"
        )
    gains = find(opened.measures, benchmark=DREAMBENCH, metric="m_h_gain")
    baseline = next((m.baseline for m in gains if m.baseline), opened.baseline)
    values: dict[str, dict[str, float]] = {}
    for one in sorted(found, key=lambda m: m.scorer != baseline):
        values.setdefault(one.scorer, {})[one.name.removeprefix(CATEGORY)] = one.value
    raters = [m for m in find(opened.measures, benchmark=DREAMBENCH, metric="h_h") if m.name.startswith(CATEGORY)]
    people = {m.name.removeprefix(CATEGORY): m.value for m in raters}
    return radar_figure(values, baseline=baseline, people=people)


def projection(opened: Opened, settings: ReportSettings) -> Made:
    """Figure 5: embeddings in two dimensions."""
    if not settings.projected_identities:
        return "no identities are asked for (projected_identities is 0)"
    if opened.embeddings is None:
        return f"{opened.folder.uri} holds no embeddings; a projection needs them"
    chosen = _identities_with_pairs(opened, settings.projected_identities, "projection", settings)
    where = pc.field("identity_id").isin(chosen) & _FULL
    embeddings = opened.embeddings.read(where=where)
    projections: list[Projection] = []
    for scorer in opened.scorers:
        if len(projections) == _MOST_PROJECTED:
            break
        images, embedding_ND = embeddings_of(embeddings, scorer)
        if len(images):
            projections.append(
                Projection(
                    scorer=scorer,
                    embedding_ND=embedding_ND,
                    identities=images["identity_id"].to_pylist(),
                    is_view=[role == "view" for role in images["role"].to_pylist()],
                )
            )
    return projection_figure(projections) if projections else "no scorer has embeddings of whole pictures"


def qualitative_tuples(opened: Opened, settings: ReportSettings) -> list[SheetTuple]:
    """The tuples of figure 7."""
    if opened.tuples is None or not settings.sheet_tuples:
        return []
    chosen = sheet_identities(opened, settings)
    return sheet_tuples(
        opened.tuples, opened.distractors, opened.similarities, opened.engines, chosen,
        thumbnail_px=settings.thumbnail_px,
    )  # fmt: skip


def sheet_identities(opened: Opened, settings: ReportSettings) -> list[str]:
    """Identities on the sheet of tuples."""
    return _identities_with_pairs(opened, settings.sheet_tuples, "sheet", settings)


def qualitative(opened: Opened, settings: ReportSettings) -> Made:
    """Figure 7: tuples with similarities."""
    if opened.tuples is None:
        return "a sheet of tuples needs the pictures (--tuples, --distractors)"
    tuples = qualitative_tuples(opened, settings)
    if not tuples:
        return "no tuple has two usable views"
    return qualitative_figure(tuples, baseline=opened.baseline, note=DRAWN)


def parts(opened: Opened, settings: ReportSettings) -> Made:
    """Figure 8: distractors in which a part changed."""
    graded = _graded(opened)
    if not len(graded):
        return "no distractor that was measured has an oracle; Mind-the-Glitch and part-level engines have one"
    if opened.tuples is None or opened.distractors is None:
        return "a sheet of parts needs the pictures (--tuples, --distractors)"
    engines = sorted(set(graded["engine"].to_pylist()))
    count = min(4, settings.sheet_tuples)
    chosen = _identities_with_pairs(opened, count, "parts", settings, engines) if count else []
    tuples = sheet_tuples(
        opened.tuples, opened.distractors, opened.similarities, engines, chosen,
        thumbnail_px=settings.thumbnail_px, contours=True,
    )  # fmt: skip
    tuples = [item for item in tuples if item.distractors]
    return part_figure(tuples, baseline=opened.baseline, note=DRAWN) if tuples else "no tuple has a part that changed"


def distribution(opened: Opened, _: ReportSettings) -> Made:
    """Figure 9: scores against the oracle."""
    graded = _graded(opened)
    if not len(graded):
        return "no distractor that was measured has an oracle; Mind-the-Glitch and part-level engines have one"
    scores = {}
    for scorer in opened.scorers:
        mine = graded.filter(pc.field("scorer") == scorer)
        if len(mine):
            scores[scorer] = (_numbers(mine["similarity"]), _numbers(mine["oracle"]))
    return ecdf_figure(scores, baseline=opened.baseline)


def weight(name: str, opened: Opened, _: ReportSettings) -> Made:
    """Curves over alpha or beta."""
    measured = {one.scorer for one in opened.measures}
    weights = weights_of(name, {curve.name: curve.settings for curve in opened.curves if curve.name in measured})
    if not weights:
        return f"curves over {name} need two measured heads (--train NAME=FOLDER) that differ in {name} alone"
    curves = weight_curves(name, weights, opened.measures, baseline=opened.baseline)
    return weight_figure(name, curves) if curves else f"no measure of the heads {', '.join(weights)} was found"


def calibrations(opened: Opened, _: ReportSettings) -> Made:
    """Reliability curves of calibrations, of whole pictures.

    Measured on the evaluation's pairs where it has the scorer and another split than the one they were fitted on; else
    what was stored with them: folds of identities that the fit had not seen.
    """
    if not opened.calibrations:
        return "a reliability curve needs a calibration (--calibrations NAME=FOLDER)"
    curves, said = {}, []
    for name, place in opened.calibrations.items():
        stored = read_calibration(place)
        found = stored.of("full")
        mine = opened.similarities.filter(_FULL & (pc.field("scorer") == name))
        if len(mine) and opened.asked.get("split") != stored.split:
            kinds = mine.filter(pc.is_in(mine["kind"], pa.array(["positive", *stored.kinds], pa.string())))
            kinds = kinds.filter(pc.invert(pc.is_in(kinds["engine"], pa.array(_controls(opened), pa.string()))))
            probability = found.calibration.probability(_numbers(kinds["similarity"]))
            curve = reliability(probability, np.asarray(pc.equal(kinds["kind"], "positive")))
            said.append(f"{name}: fitted on {stored.split}, measured on {opened.asked.get('split')}")
        else:
            curve = found.reliability
            said.append(f"{name}: measured on {stored.split} by folds of identities")
        curves[name] = (found.calibration, curve)
    return reliability_figure(curves, note=f"{'; '.join(said)}.")


def _controls(opened: Opened) -> list[str]:
    engines = opened.similarities["engine"].unique().to_pylist()
    return sorted(set(engines) - set(without_controls(engines)))


def _graded(opened: Opened) -> pa.Table:
    """Pairs of a view and its own distractor with an oracle, whole pictures."""
    table = opened.similarities
    return table.filter(_FULL & (pc.field("kind") == "distractor") & pc.is_valid(pc.field("oracle")))


def _identities_with_pairs(
    opened: Opened, count: int, purpose: str, settings: ReportSettings, engines: Sequence[str] = ()
) -> list[str]:
    """Identities with two views, drawn; of those with a distractor by any of the engines where some are named."""
    table = opened.similarities
    names = set(table.filter(pc.field("kind") == "positive")["identity_id"].unique().to_pylist())
    if engines:
        painted = table.filter((pc.field("kind") == "distractor") & pc.field("engine").isin(list(engines)))
        names &= set(painted["identity_id"].unique().to_pylist())
    return drawn_identities(sorted(names), count, purpose=purpose, seed=settings.report_seed)


def _attention_heads(opened: Opened) -> dict[str, Any]:
    """The backbone's own head where it has one, and the first trained one that was measured."""
    from nearid_ray.models.checkpoint import load_head

    cache = opened.cache
    assert cache is not None
    heads: dict[str, Any] = {}
    if cache.backbone.get("pooling", "attention") == "attention":
        heads[opened.baseline] = cache.pooling()
    trained = [name for name in opened.train if name in opened.scorers] or list(opened.train)
    for name in trained[:1]:
        heads[name], _ = load_head(locate(opened.train[name]).child(BEST), cache.backbone["fingerprint"])
    return heads


def _attention_picture(
    opened: Opened, row: dict[str, Any], pictures: dict[tuple, dict[str, Any]], heads: dict[str, Any],
    grid: tuple[int, ...], prefix: int,
) -> AttentionPicture:  # fmt: skip
    import torch

    cache = opened.cache
    assert cache is not None
    tokens_1TD = cache.gather(np.array([row["place"]]), np.empty((1, cache.tokens, cache.width), np.float16))
    with torch.inference_mode():
        tokens = torch.from_numpy(tokens_1TD).float()
        maps = {name: head.mean_attention_BT(tokens)[0, prefix:].reshape(grid).numpy() for name, head in heads.items()}
    entry = pictures[row["identity_id"], row["view_index"], row["engine"]]
    image_HW3, mask = decode_rgb(entry["image"]["bytes"]), entry["mask"]
    mask_HW: NDArray[np.uint8] | None = decode_mask(mask["bytes"]) if mask and mask["bytes"] else None
    label = row["engine"] or f"view {row['view_index']}"
    return AttentionPicture(label=label, image_HW3=image_HW3, maps=maps, mask_HW=mask_HW)


def _pictures_by_key(opened: Opened, identities: Sequence[str], engines: Sequence[str]) -> dict[tuple, dict[str, Any]]:
    """(identity, view index, engine) -> row with image and mask; engine "" are views."""
    assert opened.tuples is not None
    found = {
        (row["identity_id"], index, ""): view
        for row in rows_of(opened.tuples, identities, ["identity_id", "views"])
        for index, view in enumerate(row["views"])
        if not view["error"]
    }
    if opened.distractors is not None:
        columns = ["identity_id", "view_index", "engine", "image", "mask"]
        rows = rows_of(opened.distractors, identities, columns, engines)
        found |= {(row["identity_id"], row["view_index"], row["engine"]): row for row in rows}
    return found


def _numbers(column: pa.ChunkedArray) -> NDArray[np.float64]:
    return np.asarray(column.to_numpy(zero_copy_only=False), np.float64)
