"""Plan the distractors of a tuples dataset and make them."""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nearid_ray.cluster import resources
from nearid_ray.data.card import licence_of, write_card
from nearid_ray.data.pipeline import RunSettings, RunSummary, run_plan, shards_to_make
from nearid_ray.data.plan import Plan, differences, make_plan
from nearid_ray.data.rejects import write_rejected
from nearid_ray.data.store import Dataset
from nearid_ray.errors import UsageError
from nearid_ray.synthesis.catalog import Chosen, Recipe, choose, needs_dtype
from nearid_ray.synthesis.engine import CONTROL, Engine
from nearid_ray.synthesis.engines.diffusion import DiffusionEngine
from nearid_ray.synthesis.gate import check_gate
from nearid_ray.synthesis.plan import ViewPlace, cut_into_batches, engine_hash, list_views, plan_synthesis
from nearid_ray.synthesis.settings import Selection, SynthesisSettings
from nearid_ray.synthesis.task import SynthesisTask
from schemas import DISTRACTORS

_PIXELS_PER_SHARD = 16 * 512 * 512
"""A shard holds rows of about this many pixels: seconds without a model, minutes with one, which a kill may cost."""

_DONOR_ADVICE = (
    "; a donor is another object of the same category: bring the categories in (for photos `--categories FILE.csv`), "
    "or more objects of a category"
)


def plan_distractors(
    tuples: Dataset,
    output: Dataset,
    settings: SynthesisSettings,
    embeddings: Dataset | None = None,
    *,
    gpus: float = 0.0,
) -> Plan:
    """Plan the distractors that `output` misses. Raises UsageError before anything is written.

    With `embeddings` of the same tuples, donors are the nearest identities. `gpus` of the cluster decide the precision
    `auto` of a new output.
    """
    dtype = settled_dtype(output, settings, gpus)
    chosen = choose(
        settings.engines,
        settings.engine_options,
        dtype=dtype,
        control=settings.control,
        control_strength=settings.control_strength,
    )
    engines = chosen.checked()
    check_gate(settings.gate)
    views = list(list_views(tuples))
    work, rejected = plan_synthesis(
        views,
        engines,
        run_seed=settings.run_seed,
        feather_px=settings.feather_px,
        eval_only_groups=settings.eval_only_groups,
        splits=settings.splits,
        embeddings=mean_embeddings(embeddings) if embeddings else None,
    )
    if not work.num_rows:
        reasons = ", ".join(sorted({r["reason"] for r in rejected})) or "no view in the chosen splits"
        advice = _DONOR_ADVICE if "no-donor" in reasons else ""
        raise UsageError(f"{tuples.location.uri}: no distractor can be made ({reasons}){advice}")
    _refuse_changed(engines, output, settings.feather_px)
    new = _not_planned(work, output)
    rows_per_shard, batch = _sizes(chosen, settings, views)
    plan = make_plan(
        output,
        cut_into_batches(new, rows_per_shard=rows_per_shard, batch=batch),
        table=DISTRACTORS.name,
        content={"tuples": tuples.digest(), **settings.content()},
        rows_per_shard=max(rows_per_shard.values()),
        break_on=("piece",),
    )
    write_rejected(output, "synthesize", rejected + (_without_control(chosen) if settings.control else []))
    return plan


def settled_dtype(output: Dataset, settings: SynthesisSettings, gpus: float) -> str:
    """The precision that `auto` means: that of earlier plans, else by the cluster. A setting that is not auto stays."""
    if settings.dtype != "auto":
        return settings.dtype
    return _planned_dtype(output) or ("bfloat16" if gpus else "float32")


def asks_for_gpus(output: Dataset, settings: SynthesisSettings) -> bool:
    """Whether the plan depends on the cluster: the first engines with a model in an output, precision auto."""
    return settings.dtype == "auto" and needs_dtype(settings.engines) and not _planned_dtype(output)


def make_task(
    tuples: Dataset, plan: Plan, settings: SynthesisSettings, shards: Sequence[str] | None = None
) -> SynthesisTask:
    """What makes the given shards of the plan (all that are missing, by default).

    Raises UsageError where the engine that a row was planned for cannot be made again.
    """
    wanted = {hash_ for shard in (plan.pending if shards is None else shards)
              for hash_ in plan.members(shard)["settings_hash"].unique().to_pylist()}  # fmt: skip
    engines: dict[str, Engine] = {}
    for name, hash_, recipe in _planned(plan.rows):
        if hash_ not in wanted:
            continue
        engine = engines[hash_] = recipe.make()
        engine.check()
        if engine_hash(engine, settings.feather_px) != hash_:
            raise UsageError(
                f"rows of {name} were planned by another version of its code or with other weights, and are not made "
                "yet; give another output, or make the other engines alone (--only-engine)"
            )
    uses_model = bool(settings.gate.gate_backbone) or any(engine.uses_model for engine in engines.values())
    settings = replace(settings, gate=check_gate(settings.gate))
    return SynthesisTask(tuples.location.uri, settings, engines, uses_model)


def selected(plan: Plan, selection: Selection) -> Plan:
    """The plan with the shards that this run may make. UsageError for an engine that the plan does not have."""
    engine_of = {name: plan.members(name)["engine"][0].as_py() for name in plan.shard_names}
    engines = set(engine_of.values())
    unknown = sorted(set(selection.only_engine) - engines)
    if unknown:
        raise UsageError(f"only_engine names {', '.join(unknown)}; the plan has {', '.join(sorted(engines))}")
    part, parts = selection.part()
    chosen = {
        name
        for place, name in enumerate(plan.shard_names)
        if place % parts == part - 1 and (not selection.only_engine or engine_of[name] in selection.only_engine)
    }
    pending = [name for name in plan.pending if name in chosen]
    if selection.max_rows is not None:
        rows, kept = 0, []
        for name in pending:
            if rows >= selection.max_rows:
                chosen.discard(name)
                continue
            kept.append(name)
            rows += plan.members(name).num_rows
        pending = kept
    return replace(plan, pending=tuple(pending), chosen=frozenset(chosen))


def synthesize(
    tuples: Dataset, output: Dataset, plan: Plan, settings: SynthesisSettings, run: RunSettings
) -> RunSummary:
    """Make the planned distractors; needs a Ray session where shards are pending."""
    task = make_task(tuples, plan, settings, shards_to_make(output, plan, run))
    check_gpus(task, run)
    summary = run_plan(task, output, plan, run, title="synthesize")
    _write_card(output, summary, licence_of(tuples))
    return summary


def check_gpus(task: SynthesisTask, run: RunSettings) -> None:
    """Refuse billions of parameters on CPUs, unless that is asked for."""
    if run.gpus_per_worker is not None:
        return
    published = sorted(
        engine.name
        for engine in task.engines.values()
        if isinstance(engine, DiffusionEngine) and not Path(engine.config.weights).is_dir()
    )
    if published and not resources()[1]:
        raise UsageError(
            f"{', '.join(published)} need a GPU, and this cluster has none; join one that has (RAY_ADDRESS, "
            "docs/cluster.md), or give --gpus-per-worker 0 to compute on CPUs, which takes hours a picture"
        )


def outcome(output: Dataset) -> dict[str, Any]:
    """How many rows of each verdict and engine there are, and after how many attempts."""
    rows = output.read(columns=["engine", "verdict", "attempt"])
    by_engine: dict[str, Counter[str]] = {}
    for engine, verdict in zip(rows["engine"].to_pylist(), rows["verdict"].to_pylist(), strict=True):
        by_engine.setdefault(engine, Counter())[verdict] += 1
    rejected = {
        engine: dict(sorted(counts.items()))
        for engine, counts in sorted(by_engine.items())
        if set(counts) - {"accepted"}
    }
    said: dict[str, Any] = {"verdicts": dict(Counter(rows["verdict"].to_pylist()).most_common())}
    attempts = Counter(rows["attempt"].to_pylist())
    if set(attempts) - {0}:
        said["rows_by_attempt"] = {str(attempt): attempts[attempt] for attempt in sorted(attempts)}
    return said | ({"verdicts_by_engine": rejected} if rejected and len(by_engine) > 1 else {})


def mean_embeddings(embeddings: Dataset) -> dict[str, np.ndarray]:
    """identity_id -> mean of its full views' embeddings, unit length."""
    rows = embeddings.read(
        columns=["identity_id", "embedding"],
        where=(pc.field("role") == "view") & (pc.field("condition") == "full") & (pc.field("error") == ""),
    )
    sums: dict[str, np.ndarray] = {}
    for identity, vector in zip(rows["identity_id"].to_pylist(), rows["embedding"].to_pylist(), strict=True):
        sums[identity] = sums.get(identity, 0.0) + np.asarray(vector, np.float64)
    return {identity: total / np.linalg.norm(total) for identity, total in sums.items()}


def _not_planned(work: pa.Table, output: Dataset) -> pa.Table:
    """The rows that no earlier plan has; an output with other settings is refused later, by `make_plan`."""
    earlier = output.plans()
    if not earlier:
        return work
    known = pa.concat_tables([plan.select(["row_id"]) for plan in earlier])["row_id"].combine_chunks()
    return work.filter(pc.invert(pc.is_in(work["row_id"], value_set=known)))


def _planned(rows: pa.Table) -> list[tuple[str, str, Recipe]]:
    """(engine, settings hash, recipe) of every engine in a plan."""
    kinds = rows.select(["engine", "settings_hash", "recipe"]).group_by(
        ["engine", "settings_hash", "recipe"], use_threads=False
    )
    found = kinds.aggregate([]).to_pylist()
    return [(row["engine"], row["settings_hash"], Recipe.from_text(row["recipe"])) for row in found]


def _planned_dtype(output: Dataset) -> str:
    recipes = [recipe for plan in output.plans() if "recipe" in plan.column_names for *_, recipe in _planned(plan)]
    return next((recipe.dtype for recipe in recipes if recipe.dtype), "")


def _refuse_changed(engines: Sequence[tuple[Recipe, Engine]], output: Dataset, feather_px: float) -> None:
    """One engine has one configuration in a dataset: who reads it tells distractors apart by the engine's name."""
    content = (output.settings() or {}).get("content", {})
    if content.get("feather_px", feather_px) != feather_px:
        return  # refused as a whole
    before = {
        name: (hash_, recipe) for plan in output.plans() if "recipe" in plan.column_names
        for name, hash_, recipe in _planned(plan)
    }  # fmt: skip
    for _, engine in engines:
        if engine.name not in before or before[engine.name][0] == engine_hash(engine, feather_px):
            continue
        said = "; ".join(differences(_settings_of(before[engine.name][1]), engine.settings))
        raise UsageError(
            f"{output.location.uri} holds {engine.name} with other settings ({said or 'another version of its code'}). "
            f"Give another output, or the options that it was made with: {_as_options(before[engine.name][1])}"
        )


def _settings_of(recipe: Recipe) -> dict[str, Any]:
    engine = recipe.make()
    with suppress(UsageError):  # its weights may be gone
        engine.check()
    return engine.settings


def _as_options(recipe: Recipe) -> str:
    base = recipe.name.removesuffix(CONTROL)
    said = [f"{base}.{option}" for option in recipe.options]
    return " ".join(said + ([f"--dtype {recipe.dtype}"] if recipe.dtype else [])) or "none"


def _without_control(chosen: Chosen) -> list[dict[str, str]]:
    names = {recipe.name for recipe in chosen.recipes}
    detail = "it has no strength to choose, or shows the same object anyway"
    return [
        {"record_id": name, "identity_id": "", "reason": "no-control", "detail": detail}
        for name in sorted(names)
        if not name.endswith(CONTROL) and name + CONTROL not in names
    ]


def _sizes(
    chosen: Chosen, settings: SynthesisSettings, views: Sequence[ViewPlace]
) -> tuple[dict[str, int], dict[str, int]]:
    """(rows a shard, rows a batch) by engine; a shard that is not asked for in rows holds whole batches."""
    largest = max((view.size_px for view in views), default=512) or 512
    room = max(1, min(512, _PIXELS_PER_SHARD // largest**2))
    rows, batch = {}, {}
    for recipe in chosen.recipes:
        base = recipe.name.removesuffix(CONTROL)
        batch[recipe.name] = chosen.batches.get(base, settings.engine_batch)
        whole = max(batch[recipe.name], room - room % batch[recipe.name])
        rows[recipe.name] = settings.rows_per_shard or whole
    return rows, batch


def _write_card(output: Dataset, summary: RunSummary, licence: str) -> None:
    rows = output.read(columns=["engine", "verdict", "error"])
    engines = rows["engine"].value_counts().to_pylist()
    verdicts = rows["verdict"].value_counts().to_pylist()
    write_card(
        output,
        title="Near-identity distractors",
        about="Each row is a similar but different instance painted into the exact background of a view: outside its "
        "mask every pixel equals the view. Rows with `control` show the same object, painted anew.",
        licence=licence,
        facts={
            "distractors": summary.rows,
            "with an error": summary.errors,
            **{f"engine {e['values']}": e["counts"] for e in sorted(engines, key=lambda e: e["values"])},
            **{f"verdict {v['values']}": v["counts"] for v in sorted(verdicts, key=lambda v: v["values"])},
        },
    )
