"""The demo: every job in turn on toy data, in one Ray session. The same functions as the jobs, small settings."""

import shlex
import time
from dataclasses import dataclass, replace
from threading import Thread
from typing import Any

from nearid_ray import job, presets
from nearid_ray.cluster import output_location, ray_session
from nearid_ray.data.importers.toybox import ToyboxSettings
from nearid_ray.data.store import Location
from nearid_ray.embedding.plan import EmbedSettings
from nearid_ray.evaluation.evaluate import EvaluateSettings
from nearid_ray.reporting.load import ReportInputs, ReportSettings
from nearid_ray.settings import build, dump_json, to_dict
from nearid_ray.stages.embed import Embed, run_embed
from nearid_ray.stages.evaluate import Evaluate, run_evaluate
from nearid_ray.stages.ingest import IngestToybox, run_ingest
from nearid_ray.stages.report import Report, run_report
from nearid_ray.stages.synthesize import Synthesize, run_synthesize
from nearid_ray.stages.train import HEADS_FOLDER, Train, head_folder, run_train
from nearid_ray.synthesis.synthesize import SynthesisSettings
from nearid_ray.tracking import TrackingSettings, prepare_store
from nearid_ray.training.settings import TrainSettings, WorkerSettings

HEADLINE = ("object-level", "train", "unseen", "part-level")


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Everything end to end on toy data."""

    output: str = "runs/demo"
    """Folder or s3://bucket/prefix; each job writes one folder in it."""
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
    workers: int = 2
    """Ray Train workers."""
    tracking: TrackingSettings = TrackingSettings()

    def __post_init__(self) -> None:
        if not self.alphas:
            raise ValueError("alphas is empty; expected at least one weight, e.g. 0.5")


def run_demo(settings: Demo) -> job.Job:
    """Run every job, or see that it is done; then print what came out and write summary.json."""
    began = time.monotonic()
    output = output_location(settings.output)
    storing = Thread(target=prepare_store, args=(output.child("x"), settings.tracking))
    storing.start()  # creating the tracking database takes seconds; Ray starts meanwhile
    with ray_session():
        storing.join()
        done, seconds = {}, {}
        for name, stage in _stages(settings, output).items():
            print(f"\n=== {name} ===", flush=True)
            start = time.monotonic()
            done[name] = stage()
            seconds[name] = round(time.monotonic() - start, 1)
            if done[name].failed:
                return done[name]
    result = job.Job(done["evaluate"].tracker)
    result.summary = _summary(settings, done) | {"seconds": round(time.monotonic() - began, 1), "stages_s": seconds}
    output.child("summary.json").write_bytes(dump_json({"job": "demo", "output": output.uri, **result.summary}))
    _print_outcome(settings, result.summary, done["report"].summary["page"])
    return result


def _stages(settings: Demo, output: Location) -> dict[str, Any]:
    where = {
        name: output.child(name).uri for name in ("tuples", "distractors", "tokens", "train", "evaluation", "report")
    }
    tracking = settings.tracking
    runs = Train(
        tokens=where["tokens"],
        output=where["train"],
        alphas=settings.alphas,
        training=build(TrainSettings, presets.toybox() | {"max_steps": settings.max_steps}, "the demo's settings"),
        where=WorkerSettings(workers=settings.workers),
        tracking=tracking,
    )
    heads = {name: head_folder(output.child("train"), name).uri for name in runs.runs()}
    ingest = IngestToybox(
        output=where["tuples"],
        source=ToyboxSettings(
            train_identities=settings.train_identities,
            val_identities=settings.val_identities,
            test_identities=settings.test_identities,
        ),
        tracking=tracking,
    )
    synthesize = Synthesize(
        tuples=where["tuples"],
        output=where["distractors"],
        synthesis=SynthesisSettings(engines=("toybox",)),
        tracking=tracking,
    )
    embed = Embed(
        tuples=where["tuples"],
        distractors=where["distractors"],
        output=where["tokens"],
        embedding=EmbedSettings(),
        tracking=tracking,
    )
    evaluate = Evaluate(
        tokens=where["tokens"],
        output=where["evaluation"],
        heads=tuple(f"{name}={folder}" for name, folder in heads.items()),
        evaluation=EvaluateSettings(),
        tracking=tracking,
    )
    report = Report(
        output=where["report"],
        inputs=ReportInputs(
            evaluation=where["evaluation"],
            tuples=where["tuples"],
            distractors=where["distractors"],
            tokens=where["tokens"],
            train=tuple(f"{name}={output.child('train', HEADS_FOLDER, name).uri}" for name in heads),
        ),
        page=ReportSettings(title="NearID on Ray: the demo on toy data"),
        tracking=tracking,
    )
    command = "python jobs/demo.py " + shlex.join(["--output", settings.output])
    return {
        "ingest": lambda: run_ingest(ingest),
        "synthesize": lambda: run_synthesize(synthesize),
        "embed": lambda: run_embed(embed),
        "train": lambda: run_train(runs),
        "evaluate": lambda: run_evaluate(evaluate),
        "report": lambda: run_report(report, commands=[command]),
    }


def _summary(settings: Demo, done: dict[str, job.Job]) -> dict[str, Any]:
    made = {
        "rows_made": sum(done[name].summary["rows_made"] for name in ("ingest", "synthesize", "embed")),
        "rows_done_before": sum(done[name].summary["rows_done_before"] for name in ("ingest", "synthesize", "embed")),
        "trained_before": done["train"].summary["trained_before"],
    }
    return {
        "data": "toybox (toy data) and toybox-siglip2 (toy backbone)",
        **made,
        "training": {name: done["train"].summary[name] for name in done["train"].summary if name.startswith("nearid-")},
        "scorers": done["evaluate"].details["scorers"],
        "settings": to_dict(replace(settings, tracking=TrackingSettings())),
    }


def _print_outcome(settings: Demo, summary: dict[str, Any], page: str) -> None:
    print("\nToy data, held-out identities: SSR / PA in percent, 95 % interval of the SSR over identities")
    names = [name for name in HEADLINE if name in summary["scorers"]["frozen"]]
    print("  " + " " * 18 + "".join(f"{name:>30}" for name in names))
    for scorer, rates in summary["scorers"].items():
        cells = [rates[name] for name in names]
        shown = [
            f"{_percent(c['ssr'])} ({_percent(c['ssr_low'])}-{_percent(c['ssr_high'])}) / {_percent(c['pa'])}"
            for c in cells
        ]
        print(f"  {scorer:<18}" + "".join(f"{cell:>30}" for cell in shown))
    if not summary["rows_made"] and summary["trained_before"]:
        print(f"\nNothing was made twice: all {summary['rows_done_before']} rows and the heads were there already.")
    print(f"\nreport   {page}\nnumbers  {settings.output}/summary.json\ntime     {summary['seconds']} s")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
