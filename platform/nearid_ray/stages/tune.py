"""The tune job: a Ray Tune search over settings of training, trials that read the same trained in one pass."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from nearid_ray import job
from nearid_ray.cluster import resources
from nearid_ray.data.plan import differences
from nearid_ray.data.store import Dataset, Location
from nearid_ray.errors import UsageError
from nearid_ray.identifiers import settings_digest
from nearid_ray.models.head import AttentionPoolingHead
from nearid_ray.settings import dump_json, to_dict
from nearid_ray.tracking import TrackingSettings
from nearid_ray.training.loop import HeadTraining, origin_of
from nearid_ray.training.outputs import BEST
from nearid_ray.training.planning import described_plan
from nearid_ray.training.settings import TrainSettings, WorkerSettings, grouped
from nearid_ray.training.sources import OnlineSettings, TokenSource, token_source
from nearid_ray.training.tokens import Cache
from nearid_ray.training.trainer import check_runs, initial_head
from nearid_ray.tuning.asha import AshaSettings, Halving, rungs
from nearid_ray.tuning.hub import start_hub
from nearid_ray.tuning.member import METRIC
from nearid_ray.tuning.plan import Pass, Trial, passes, planned_trials, single
from nearid_ray.tuning.presets import sweep_points
from nearid_ray.tuning.records import (
    HEADS_FOLDER,
    Record,
    best_of,
    export_best,
    keep_begun,
    read_begun,
    read_record,
    read_rows,
)
from nearid_ray.tuning.resources import room
from nearid_ray.tuning.results import CSV_FILE, PICTURE_FILE, TABLE_FILE, picture, rows_of, to_csv, to_markdown
from nearid_ray.tuning.search import Suggestions, check_optuna, planned_search
from nearid_ray.tuning.space import Dimension, check_space, described, drawn, grid, parse_space, value_text
from nearid_ray.tuning.sweep import Passes, quiet_tune, search
from nearid_ray.tuning.watching import Watch

Search = Literal["grid", "random", "optuna"]


@dataclass(frozen=True, kw_only=True)
class Tune:
    """Train many heads with different settings, find the best one, and show what the settings trade for what."""

    tokens: tuple[str, ...]
    """As in train: the token cache that embed wrote, several of one backbone, or `online`. The split val compares the
    trials."""
    output: str
    """Folder or s3://bucket/prefix for heads, records, table and picture."""
    space: tuple[str, ...] = ()
    """What varies, as NAME=VALUES: `alpha=0,0.1,0.5`, `objective=nearid,circle-rank`, `learning_rate=log:1e-5..1e-3`,
    `weight_decay=uniform:0..0.1`. Any setting of training."""
    preset: str = ""
    """Trials of the paper's tables: table3 (objectives), table6 (training data), table8 (alpha), table9 (beta at alpha
    1); several joined by +. On the command line also with the toybox's recipe, as in toybox/table8."""
    search: Search = "grid"
    """grid: all combinations. random: `trials` points drawn from the space. optuna: `trials` points, each suggested
    from what the ones before reached."""
    trials: int = 0
    """Number of trials of search random and optuna."""
    search_seed: int = 0
    """Names the points that random and optuna draw."""
    fuse: bool = True
    """Train trials that read the same tokens in one pass. Without: one after the other, or as many at once as there is
    room for. Optuna's trials are never fused, for each waits for those before."""
    fused_trials: int = 0
    """Most trials of one pass, where memory bounds it; 0 bounds nothing."""
    passes: int = 0
    """Passes that run at once; 0 takes as many as the cluster has room for."""
    asha: AshaSettings = AshaSettings()
    evaluate: str = ""
    """A token cache on which all best heads are measured afterwards; without it the trials are compared on the
    validation split alone."""
    evaluate_split: str = "test"
    """The split of `evaluate` that is measured."""
    init: str | None = None
    """As in train: what all trials start from."""
    dry_run: bool = False
    """Print trials, passes and resources, and write nothing."""
    online: OnlineSettings = OnlineSettings()
    training: TrainSettings = TrainSettings()
    where: WorkerSettings = WorkerSettings()
    break_lock: bool = False
    """Take over an output whose other writer, on another machine, has certainly ended."""
    tracking: TrackingSettings = TrackingSettings()

    def __post_init__(self) -> None:
        for name in ("trials", "search_seed", "fused_trials", "passes"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} is {getattr(self, name)}; expected 0 or more")
        if self.search not in ("grid", "random", "optuna"):
            raise UsageError(f"search is {self.search!r}; expected grid, random or optuna")

    def dimensions(self) -> list[Dimension]:
        """What varies, checked."""
        dimensions = parse_space(self.space)
        check_space(dimensions, self.training)
        return dimensions

    def planned(self) -> list[Trial]:
        """The trials that are known before any is trained; none of search optuna.

        Raises:
            UsageError: space, preset, search and trials do not go together.
        """
        dimensions = self.dimensions()
        if self.preset and (dimensions or self.search != "grid"):
            raise UsageError("a preset names its own trials; give either a preset or a space, and leave out --search")
        if self.search == "grid":
            if self.trials:
                raise UsageError("a grid has as many trials as combinations; leave out --trials, or --search random")
        elif not self.trials or not dimensions:
            raise UsageError(f"search {self.search} needs --trials N and a space, as in --space alpha=uniform:0..2")
        if self.preset:
            points = sweep_points(self.preset)
            return planned_trials(self.training, list(points.values()), list(points))
        if self.search == "optuna":
            return []
        if self.search == "random":
            return planned_trials(self.training, drawn(dimensions, self.trials, self.search_seed))
        return planned_trials(self.training, grid(dimensions) if dimensions else [])

    def source(self) -> TokenSource:
        """Where tokens come from."""
        return token_source(self.tokens, self.online)


@dataclass(frozen=True, kw_only=True)
class _Planned:
    """A sweep before anything is started: checked, and compared with what the output holds."""

    source: TokenSource
    cache: Cache
    head: AttentionPoolingHead
    trials: list[Trial]
    steps: dict[str, int]
    records: dict[str, Record]
    passes: list[Pass]
    """Those with a trial that has not ended."""
    content: dict[str, Any]
    begun: dict[str, dict[str, Any]]
    """Values of the trials that Optuna suggested before."""

    @property
    def done(self) -> bool:
        """Whether nothing is left to train."""
        if self.content["search"]["kind"] == "optuna":
            return len(self.records) >= self.content["search"]["trials"]
        return not self.passes


def plan_tune(settings: Tune) -> dict[str, Any]:
    """What `run_tune` would do, by name; writes nothing."""
    planned = _plan(settings, None)
    where = settings.where
    pass_cpus = f"{where.workers} workers x {where.threads} CPUs"
    said: dict[str, Any] = {**planned.source.describe(), "search": planned.content["search"]}
    if settings.search != "optuna":
        said["trials"] = f"{len(planned.trials)}: {', '.join(trial.name for trial in planned.trials)}"
        said["passes"] = {one.name: f"{len(one.runs)} trials: {', '.join(one.runs)}" for one in planned.passes}
        said["steps"] = {str(planned.steps[next(iter(one.runs))]): one.name for one in planned.passes}
    if settings.asha.asha:
        said["rungs"] = {one.name: str(_rungs(settings, planned, one)) for one in planned.passes}
    said["a pass takes"] = pass_cpus + (" and a GPU each" if where.gpu else "")
    plans = [described_plan(one.runs, planned.cache, planned.head, where) for one in planned.passes[:1]]
    return said | {f"first pass: {name}": value for plan in plans for name, value in plan.items() if name != "heads"}


@job.owning_output("tune")
def run_tune(settings: Tune) -> job.Job:
    """Train what is left of the trials, then write the table, the picture and the best head.

    Raises:
        UsageError: the sweep is wrong, cannot be scheduled, or the output holds another one; nothing was trained.
    """
    output = job.output_of(settings.output, settings.tracking)
    planned = _plan(settings, output)
    with job.running(
        "tune",
        output,
        to_dict(settings),
        tracking=settings.tracking,
        inputs=planned.source.describe(),
        needs_ray=not planned.done,
    ) as running:
        watch = Watch(running.tracker, output, planned.cache.backbone)
        for trial in planned.trials:
            watch.add(trial, planned.steps[trial.name])
        for record in planned.records.values():
            watch.known(record)
        running.summary["trials_ended_before"] = len(planned.records)
        try:
            if not planned.done:
                _train(settings, planned, output, watch, running)
        finally:
            watch.close()
        names = [trial.name for trial in planned.trials] or sorted(watch.records)
        _tell(settings, output, [watch.records[name] for name in names], running)
    return running


def _plan(settings: Tune, output: Location | None) -> _Planned:
    if settings.search == "optuna":
        check_optuna()
    trials, source = settings.planned(), settings.source()
    cache = source.open()
    head = initial_head(cache, settings.init)
    runs = {trial.name: trial.settings for trial in trials}
    check_runs(runs or {"base": settings.training}, cache, head, settings.where)
    steps = _steps(runs, cache, head)
    content = {
        "tokens": cache.fingerprint,
        "initial_head": origin_of(cache, head)["initial_head"],
        "search": _search_content(settings),
        "asha": to_dict(settings.asha) if settings.asha.asha else {},
        "training": settings.training.resolved(),
        "trials": {t.name: {key: value_text(value) for key, value in t.values.items()} for t in trials},
    }
    begun: dict[str, dict[str, Any]] = {}
    records: dict[str, Record] = {}
    if output is not None:
        _check_output(output, content)
        begun = read_begun(output) if settings.search == "optuna" else {}
        found = {name: read_record(output, name) for name in [*runs, *begun]}
        records = {name: record for name, record in found.items() if record is not None}
    every = passes(trials, fuse=settings.fuse, most=settings.fused_trials)
    return _Planned(
        source=source,
        cache=cache,
        head=head,
        trials=trials,
        steps=steps,
        records=records,
        passes=[one for one in every if one.runs.keys() - records.keys()],
        content=content,
        begun=begun,
    )


def _search_content(settings: Tune) -> dict[str, Any]:
    """What decides the points, for the comparison with another call."""
    if settings.preset:
        return {"kind": "grid", "preset": settings.preset}
    seeded = {} if settings.search == "grid" else {"trials": settings.trials, "search_seed": settings.search_seed}
    return {"kind": settings.search, "space": [described(d) for d in settings.dimensions()], **seeded}


def _steps(runs: dict[str, TrainSettings], cache: Cache, head: AttentionPoolingHead) -> dict[str, int]:
    """How many steps each run has."""
    result: dict[str, int] = {}
    for group in grouped(runs):
        name, run = next(iter(group.items()))
        result |= dict.fromkeys(group, HeadTraining({name: head}, cache, {name: run}).steps)
    return result


def _check_output(output: Location, content: dict[str, Any]) -> None:
    """Refuse a folder of another kind, or of another sweep, saying what differs."""
    stored = Dataset(output).read_json("settings.json")
    if stored is None:
        return
    if stored.get("table") != "sweep":
        raise UsageError(f"{output.uri} holds {stored.get('table')!r}, this job writes a sweep; give another output")
    differing = differences(stored.get("content", {}), content)
    if differing:
        raise UsageError(
            f"{output.uri} holds another sweep:\n  "
            + "\n  ".join(differing)
            + "\nGive another output, or the settings "
            "it has, to go on with it."
        )


def _rungs(settings: Tune, planned: _Planned, one: Pass) -> tuple[int, ...]:
    name, run = next(iter(one.runs.items()))
    steps = planned.steps.get(name) or _steps({name: run}, planned.cache, planned.head)[name]
    return rungs(settings.asha, steps, run.evaluate_every)


def _train(settings: Tune, planned: _Planned, output: Location, watch: Watch, running: job.Job) -> None:
    """Train what has not ended, and let Ray Tune report and stop it."""
    stops = {one.name: _rungs(settings, planned, one) for one in planned.passes} if settings.asha.asha else {}
    found = room(settings.where, *resources(), wanted=settings.passes)
    running.summary["room"] = found.described()
    stored = {"table": "sweep", "content_digest": settings_digest(planned.content), "content": planned.content}
    output.child("settings.json").write_bytes(dump_json(stored))
    hub = start_hub()
    scheduler = None
    if settings.asha.asha:
        scheduler = Halving(
            {one.name: list(one.runs) for one in planned.passes},
            stops,
            settings.asha.reduction_factor,
            settle=lambda of_pass, step, leaving: hub.settle.remote(of_pass, step, list(leaving)),
            metric=METRIC,
        )
        scheduler.know(_at_rungs(settings, planned, output))
    training = Passes(
        at_once=found.passes,
        hub=hub,
        source=planned.source,
        cache=planned.cache,
        init=settings.init,
        output=output,
        where=settings.where,
        waits=scheduler is not None,
        on_rows=watch.rows,
        on_end=watch.ended,
    )

    def begin(trial: Trial) -> None:
        """A trial that Optuna suggests."""
        keep_begun(output, trial)
        one = single(trial)
        watch.add(trial, _steps(dict(one.runs), planned.cache, planned.head)[trial.name])
        if scheduler is not None:
            scheduler.add(one.name, list(one.runs), _rungs(settings, planned, one))
        training.submit(one)

    if settings.search == "optuna":
        search_alg: Any = Suggestions(
            settings.dimensions(),
            settings.training,
            settings.trials,
            settings.search_seed,
            begin,
            known={name: (record.values, record.val_ssr) for name, record in planned.records.items()},
            begun=[values for name, values in planned.begun.items() if name not in planned.records],
        )
        space: dict[str, Any] = {}
        trials, at_once = settings.trials - len(planned.records), found.passes
    else:
        left = {name for one in planned.passes for name in one.runs}
        tried = [trial for one in planned.passes for trial in planned.trials if trial.name in one.runs]
        search_alg, space = planned_search(tried)
        sizes = sorted((len(one.runs) for one in planned.passes), reverse=True)
        trials = len(left)
        # Where a verdict needs all members of a pass, all of them must be there; else a few report for all.
        at_once = sum(sizes[: found.passes]) if scheduler else min(trials, max(2, found.passes))
        for one in planned.passes:
            training.submit(one)
    with quiet_tune():
        search(hub, search_alg, space, trials=trials, at_once=at_once, scheduler=scheduler)
        training.wait()
    running.summary["passes"] = training.ended


def _at_rungs(settings: Tune, planned: _Planned, output: Location) -> dict[int, list[float]]:
    """What trials of passes that ended before had reached at each rung."""
    pending = {name for one in planned.passes for name in one.runs}
    result: dict[int, list[float]] = {}
    for name in planned.records.keys() - pending:
        rows = [row for row in read_rows(output, name) if row.step and row.val_ssr is not None]
        if not rows:
            continue
        steps = planned.steps.get(name) or max(row.step for row in rows) + 1
        every = settings.training.evaluate_every
        for place, step in enumerate(rungs(settings.asha, steps, every)):
            reached = [row.val_ssr for row in rows if row.step <= step]
            if rows[-1].step >= step:
                result.setdefault(place, []).append(max(value for value in reached if value is not None))
    return result


def _tell(settings: Tune, output: Location, records: list[Record], running: job.Job) -> None:
    """The best head, the table and the picture; then the summary."""
    best = best_of(records)
    states = [record.state for record in records]
    running.summary["trials"] = {state: states.count(state) for state in dict.fromkeys(states)}
    if best is None:
        reasons = "\n  ".join(record.error for record in records)
        raise UsageError(f"no trial has a head; all of them failed:\n  {reasons}")
    export_best(output, best)
    evaluation = None
    if settings.evaluate:
        evaluation = _evaluate(settings, output, records, running)
    rows = rows_of(records, evaluation)
    files = {
        CSV_FILE: to_csv(rows),
        TABLE_FILE: to_markdown(rows),
        PICTURE_FILE: picture(rows, settings.evaluate_split),
    }
    for name, text in files.items():
        output.child(name).write_bytes(text.encode())
        running.tracker.text(text, name)
    print(f"\n{files[TABLE_FILE]}")
    for record in records:
        if record.state == "failed":
            print(f"failed: {record.error}")
    running.summary |= {"best": best.name, "best_val_ssr": best.val_ssr, "best_val_pa": best.val_pa}
    running.summary["best_head"] = output.child(BEST).uri
    running.tracker.tags({"best_trial": best.name})


def _evaluate(settings: Tune, output: Location, records: list[Record], running: job.Job) -> Location:
    """Measure the best head of every trial; the folder of the evaluation."""
    from nearid_ray.stages.evaluate import Evaluate, EvaluateSettings, run_evaluate

    with_head = [record.name for record in records if record.state != "failed"]
    place = output.child("evaluation")
    tracking = replace(settings.tracking, tracking_uri=running.tracker.uri or "off", run_name=None)
    outcome = run_evaluate(
        Evaluate(
            tokens=settings.evaluate,
            output=place.uri,
            heads=tuple(f"{name}={output.child(HEADS_FOLDER, name, BEST).uri}" for name in with_head),
            evaluation=EvaluateSettings(split=settings.evaluate_split),
            tracking=tracking,
        )
    )
    running.failed |= outcome.failed
    return place
