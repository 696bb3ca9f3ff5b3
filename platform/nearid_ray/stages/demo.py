"""The demo: every job in turn on toy data, in one Ray session. The same functions as the jobs, small settings."""

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Thread
from typing import Any

from nearid_ray import job, presets
from nearid_ray.cluster import ray_session
from nearid_ray.data.importers.photos import PhotosSettings
from nearid_ray.data.importers.toybox import ToyboxSettings
from nearid_ray.data.pipeline import RunSettings
from nearid_ray.data.store import Location
from nearid_ray.embedding.plan import EmbedSettings
from nearid_ray.reporting.inputs import ReportInputs
from nearid_ray.reporting.model import ReportSettings
from nearid_ray.settings import build, dump_json, to_dict
from nearid_ray.stages.embed import Embed, run_embed
from nearid_ray.stages.evaluate import Evaluate, run_evaluate
from nearid_ray.stages.ingest import IngestPhotos, IngestToybox, run_ingest
from nearid_ray.stages.report import Report, run_report
from nearid_ray.stages.synthesize import Synthesize, run_synthesize
from nearid_ray.stages.train import HEADS_FOLDER, Train, run_train
from nearid_ray.synthesis.settings import SynthesisSettings
from nearid_ray.text_tables import percent
from nearid_ray.tracking import TrackingSettings, prepare_store, without_password
from nearid_ray.training.outputs import BEST
from nearid_ray.training.settings import TrainSettings, WorkerSettings

HEADLINE = ("object-level", "train", "unseen", "part-level")


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Everything end to end: on toy data, or with `photos` on your own pictures (no training then)."""

    output: str = ""
    """Folder or s3://bucket/prefix; each job writes one folder in it. Empty: runs/demo, or runs/photos with photos."""
    photos: str = ""
    """Folder with one folder of photos an identity. Distractors then come from the exemplar engine, and the frozen
    backbone is measured beside `heads`."""
    categories: str = ""
    """With photos: CSV file with identity and category; identities of one category paint each other."""
    backbone: str = "toybox-siglip2"
    """toybox-siglip2 (shipped toy backbone), a folder in transformers' layout, or a hub id of a SigLIP model."""
    heads: tuple[str, ...] = ()
    """With photos: trained heads to measure as NAME=FOLDER."""
    train_identities: int = 1600
    """Toy identities to train on; fewer than about 1,000 train no better than frozen."""
    val_identities: int = 150
    """Toy identities that choose the best step."""
    test_identities: int = 400
    """Toy identities that are measured."""
    alphas: tuple[float, ...] = (0.5, 0.0, 0.1, 2.0)
    """A head is trained for each of these weights of the ranking term; the first one is the headline."""
    max_steps: int = 400
    """Training steps a head."""
    train_workers: int = 2
    """Ray Train workers."""
    break_lock: bool = False
    """Take over an output whose other writer, on another machine, has certainly ended."""
    tracking: TrackingSettings = TrackingSettings()

    def __post_init__(self) -> None:
        if not self.alphas:
            raise ValueError("alphas is empty; expected at least one weight, e.g. 0.5")
        if (self.categories or self.heads) and not self.photos:
            raise ValueError("categories and heads go with photos; give --photos FOLDER too")

    @property
    def folder(self) -> str:
        """Where the jobs write."""
        return self.output or ("runs/photos" if self.photos else "runs/demo")


def run_demo(settings: Demo) -> job.Job:
    """Run every job, or see that it is done; then print what came out and write summary.json."""
    output = job.output_of(settings.folder, settings.tracking)
    with job.owning(output, "demo", break_lock=settings.break_lock):
        return _run(settings, output)


def _run(settings: Demo, output: Location) -> job.Job:
    began = time.monotonic()
    stages = _stages(settings, output)
    storing = Thread(target=prepare_store, args=(output.child("x"), settings.tracking))
    storing.start()  # creating the tracking database takes seconds; Ray starts meanwhile
    with ray_session():
        storing.join()
        done, seconds = {}, {}
        for name, stage in stages.items():
            print(f"\n=== {name} ===", flush=True)
            start = time.monotonic()
            done[name] = stage()
            seconds[name] = round(time.monotonic() - start, 1)
            if done[name].failed:
                return done[name]
    result = job.Job(done["evaluate"].tracker)
    result.summary = _summary(settings, done) | {"seconds": round(time.monotonic() - began, 1), "stages_s": seconds}
    output.child("summary.json").write_bytes(dump_json({"job": "demo", "output": output.uri, **result.summary}))
    _print_outcome(output, result.summary, done["report"].summary["page"])
    return result


def _stages(settings: Demo, output: Location) -> dict[str, Callable[[], job.Job]]:
    names = ("tuples", "distractors", "tokens", "train", "evaluation", "report")
    where = {name: output.child(name).uri for name in names}
    tracking, run = settings.tracking, RunSettings(break_lock=settings.break_lock)
    ingest = IngestPhotos if settings.photos else IngestToybox
    synthesize = Synthesize(
        tuples=where["tuples"],
        output=where["distractors"],
        synthesis=SynthesisSettings(engines=("exemplar",) if settings.photos else ("toybox",)),
        run=run,
        tracking=tracking,
    )
    embed = Embed(
        tuples=where["tuples"],
        distractors=where["distractors"],
        output=where["tokens"],
        embedding=EmbedSettings(backbone=settings.backbone),
        run=run,
        tracking=tracking,
    )
    train = Train(
        tokens=(where["tokens"],),
        output=where["train"],
        alphas=settings.alphas,
        training=build(TrainSettings, presets.toybox() | {"max_steps": settings.max_steps}, "the demo's settings"),
        where=WorkerSettings(workers=settings.train_workers),
        break_lock=settings.break_lock,
        tracking=tracking,
    )
    trained = {} if settings.photos else {name: output.child("train", HEADS_FOLDER, name) for name in train.runs()}
    heads = [f"{name}={folder.child(BEST).uri}" for name, folder in trained.items()] or settings.heads
    evaluate = Evaluate(
        tokens=where["tokens"], output=where["evaluation"], heads=tuple(heads), run=run, tracking=tracking
    )
    report = Report(
        output=where["report"],
        inputs=ReportInputs(
            evaluation=where["evaluation"],
            tuples=where["tuples"],
            distractors=where["distractors"],
            tokens=where["tokens"],
            train=tuple(f"{name}={folder.uri}" for name, folder in trained.items()),
        ),
        page=ReportSettings(title="NearID on Ray: " + ("your photos" if settings.photos else "the demo on toy data")),
        break_lock=settings.break_lock,
        tracking=tracking,
    )
    source = ingest(output=where["tuples"], source=_source(settings), run=run, tracking=tracking)  # type: ignore[arg-type]
    stages: dict[str, Callable[[], job.Job]] = {
        "ingest": lambda: run_ingest(source),
        "synthesize": lambda: run_synthesize(synthesize),
        "embed": lambda: run_embed(embed),
        "train": lambda: run_train(train),
        "evaluate": lambda: run_evaluate(evaluate),
        "report": lambda: run_report(report, commands=[_command(settings)]),
    }
    if settings.photos:
        del stages["train"]
    return stages


def _source(settings: Demo) -> PhotosSettings | ToyboxSettings:
    if settings.photos:
        return PhotosSettings(root=settings.photos, categories=settings.categories)
    return ToyboxSettings(
        train_identities=settings.train_identities,
        val_identities=settings.val_identities,
        test_identities=settings.test_identities,
    )


def _command(settings: Demo) -> str:
    given = ["--output", settings.folder]
    if settings.photos:
        given += ["--photos", settings.photos, "--categories", settings.categories, "--backbone", settings.backbone]
    return "python jobs/demo.py " + shlex.join(given)


def _summary(settings: Demo, done: dict[str, job.Job]) -> dict[str, Any]:
    counted = [done[name].summary for name in ("ingest", "synthesize", "embed")]
    toy = [] if settings.photos else ["toybox (toy data)"]
    toy += ["toybox-siglip2 (toy backbone)"] if settings.backbone == "toybox-siglip2" else []
    trained = done["train"].summary if "train" in done else {}
    return {
        "toy": toy,
        "rows_made": sum(summary["rows_made"] for summary in counted),
        "rows_done_before": sum(summary["rows_done_before"] for summary in counted),
        "trained_before": trained.get("trained_before", True),
        "training": {name: value for name, value in trained.items() if name.startswith("nearid-")},
        "scorers": done["evaluate"].details["scorers"],
        "settings": to_dict(settings) | {"tracking_uri": without_password(settings.tracking.tracking_uri or "")},
    }


def _print_outcome(output: Location, summary: dict[str, Any], page: str) -> None:
    said = f"With {' and '.join(summary['toy'])}" if summary["toy"] else "Your photos"
    print(f"\n{said}; held-out identities, percent: SSR (95 % interval over identities) / PA by group of engines;")
    print("ordering = how often a distractor ranks above a random identity (object-level engines)")
    names = [name for name in HEADLINE if name in summary["scorers"]["frozen"]]
    names = names or list(summary["scorers"]["frozen"])
    print(" " * 20 + "".join(f"{name:>28}" for name in names) + f"{'ordering':>12}")
    for scorer, rates in summary["scorers"].items():
        cells = "".join(f"{_cell(rates[name]):>28}" for name in names)
        print(f"  {scorer:<18}{cells}{percent(rates[names[0]]['ordering']):>12}")
    if not summary["rows_made"] and summary["trained_before"]:
        print(f"\nNothing was made twice: all {summary['rows_done_before']} rows and the heads were there already.")
    print(f"\nreport   {page}\nnumbers  {output.child('summary.json').uri}\ntime     {summary['seconds']} s")


def _cell(rates: dict[str, float | None]) -> str:
    ssr, low, high, pa = (percent(rates[name]) for name in ("ssr", "ssr_low", "ssr_high", "pa"))
    return f"{ssr} ({low}-{high}) / {pa}"
