"""The train job: head-only training on cached or online tokens with Ray Train, one head or one for each alpha."""

from dataclasses import dataclass, replace
from typing import Any

from nearid_ray import job
from nearid_ray.cluster import Terminated
from nearid_ray.data.plan import differences
from nearid_ray.data.store import Dataset, Location
from nearid_ray.errors import UsageError
from nearid_ray.identifiers import settings_digest
from nearid_ray.models.checkpoint import load_head
from nearid_ray.settings import dump_json, to_dict
from nearid_ray.tracking import TrackingSettings
from nearid_ray.training.following import OnRows
from nearid_ray.training.history import HistoryRow, read_history
from nearid_ray.training.loop import origin_of
from nearid_ray.training.outputs import BEST, HISTORY, save_trained
from nearid_ray.training.planning import described_plan
from nearid_ray.training.settings import TrainSettings, WorkerSettings
from nearid_ray.training.sources import CachedTokens, OnlineSettings, TokenSource, open_caches, token_source
from nearid_ray.training.tokens import Cache
from nearid_ray.training.trainer import check_runs, initial_head, train_many

HEADS_FOLDER = "heads"
"""OUTPUT/heads/NAME/ holds best/, last/ and the history."""


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train the attention-pooling head of a frozen backbone on its cached tokens."""

    tokens: tuple[str, ...]
    """The token cache that embed wrote, or several of one backbone to train on their mix; the splits train and, for
    validation, val are read. `online` computes tokens in the training workers from `tuples` and
    `distractor_data`."""
    output: str
    """Folder or s3://bucket/prefix for checkpoints, the trained heads and their history."""
    alphas: tuple[float, ...] = ()
    """Train one head for each of these alphas in place of `alpha`, all on one reading of the tokens."""
    init: str | None = None
    """What to start from: folder of a trained head, or a NearID release (folder, s3://bucket/prefix, hub id) of the
    same backbone; the backbone's own head when left out."""
    dry_run: bool = False
    """Print the plan (parameters, steps, tokens on disk, bytes read a step, memory) and write nothing."""
    verify_tokens: bool = False
    """Read all cached tokens first and compare them with their checksums."""
    online: OnlineSettings = OnlineSettings()
    training: TrainSettings = TrainSettings()
    where: WorkerSettings = WorkerSettings()
    break_lock: bool = False
    """Take over an output whose other writer, on another machine, has certainly ended."""
    tracking: TrackingSettings = TrackingSettings()

    def runs(self) -> dict[str, TrainSettings]:
        """Settings of each head by its name."""
        if len(set(self.alphas)) != len(self.alphas):
            raise UsageError(f"alphas holds a value twice: {', '.join(f'{alpha:g}' for alpha in self.alphas)}")
        each = [replace(self.training, alpha=alpha) for alpha in self.alphas] or [self.training]
        return {run_name(settings): settings for settings in each}

    def source(self) -> TokenSource:
        """Where tokens come from."""
        return token_source(self.tokens, self.online)


def plan_train(settings: Train) -> dict[str, Any]:
    """What `run_train` would do, by name; writes nothing."""
    source, runs = settings.source(), settings.runs()
    cache = source.open()
    head = initial_head(cache, settings.init)
    check_runs(runs, cache, head, settings.where)
    return {**source.describe(), **described_plan(runs, cache, head, settings.where)}


def run_name(settings: TrainSettings) -> str:
    """Name of a run: its objective, and the weight of the ranking term where it has one."""
    alpha = settings.resolved()["alpha"]
    return settings.objective if alpha is None else f"{settings.objective}-alpha-{alpha:g}"


@job.owning_output("train")
def run_train(settings: Train) -> job.Job:
    """Train, or read what was trained before; then write heads, history and settings."""
    output = job.output_of(settings.output, settings.tracking)
    runs, source = settings.runs(), settings.source()
    cache = source.open()
    head = initial_head(cache, settings.init)
    content = {
        "tokens": cache.fingerprint,
        "initial_head": origin_of(cache, head)["initial_head"],
        "runs": {name: run.resolved() for name, run in runs.items()},
    }
    done = _check_output(output, content)
    if not done:
        check_runs(runs, cache, head, settings.where)
        if settings.verify_tokens and isinstance(source, CachedTokens):
            open_caches(source.uris, verify=True)
    with job.running(
        "train",
        output,
        to_dict(settings),
        tracking=settings.tracking,
        inputs=source.describe(),
        needs_ray=not done,
    ) as running:
        told: set[tuple[str, int]] = set()

        def tell(name: str, rows: list[HistoryRow]) -> None:
            fresh = [row for row in rows if (name, row.step) not in told]
            told.update((name, row.step) for row in fresh)
            running.tracker.history([_named(row.flat(), f"{name}." if len(runs) > 1 else "") for row in fresh])

        if not done:
            _train(settings, output, source, cache, runs, content, tell)
        running.summary |= {"trained_before": done}
        for name in runs:
            rows = read_history(output.child(HEADS_FOLDER, name, HISTORY).read_bytes())
            tell(name, rows)  # what an earlier call trained
            running.summary[name] = _summary(output, name, rows)
    return running


def head_folder(output: Location, name: str, which: str = BEST) -> Location:
    """Where a trained head lies; `which` is best (by validation SSR) or last."""
    return output.child(HEADS_FOLDER, name, which)


def _train(
    settings: Train,
    output: Location,
    source: TokenSource,
    cache: Cache,
    runs: dict[str, TrainSettings],
    content: dict[str, Any],
    on_rows: OnRows,
) -> None:
    try:
        trained = train_many(
            runs,
            tokens=source,
            storage=output,
            name="checkpoints",
            init=settings.init,
            opened=cache,
            where=settings.where,
            on_rows=on_rows,
        )
    except SystemExit as ended:  # Ray Train's answer to Ctrl-C and SIGTERM
        raise (Terminated if Terminated.received else KeyboardInterrupt) from ended
    for name, result in trained.items():
        save_trained(output.child(HEADS_FOLDER, name), result, cache.backbone)
    stored = {"table": "heads", "content_digest": settings_digest(content), "content": content}
    output.child("settings.json").write_bytes(dump_json(stored))  # last: it says that the rest is complete


def _named(row: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name if name == "step" else prefix + name: value for name, value in row.items()}


def _summary(output: Location, name: str, rows: list[HistoryRow]) -> dict[str, Any]:
    _, card = load_head(head_folder(output, name))
    speeds = sorted(row.samples_per_s for row in rows if row.samples_per_s)
    memory = [row.device_gib for row in rows if row.device_gib is not None]
    return {
        "best_step": card.metrics["step"],
        "steps": max(row.step for row in rows),
        "val_ssr": card.metrics["val_ssr"],
        "val_pa": card.metrics["val_pa"],
        "samples_per_s": round(speeds[len(speeds) // 2]) if speeds else None,
        **({"device_gib": round(max(memory), 2)} if memory else {}),
    }


def _check_output(output: Location, content: dict[str, Any]) -> bool:
    """Whether the same training is finished there; refused when another one is."""
    stored = Dataset(output).read_json("settings.json")
    if stored is None:
        return False
    if stored.get("table") != HEADS_FOLDER:
        raise UsageError(f"{output.uri} holds {stored.get('table')!r}, this job writes heads; give another output")
    differing = differences(stored.get("content", {}), content)
    if differing:
        raise UsageError(
            f"{output.uri} exists with other settings:\n  " + "\n  ".join(differing) + "\nGive another output."
        )
    return True
