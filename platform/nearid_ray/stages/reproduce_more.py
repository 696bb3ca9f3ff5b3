"""Commands beside the paper's tables: does it generalise? Engines left out, the artefact control, real photos."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from nearid_ray import job
from nearid_ray.cluster import ray_session
from nearid_ray.data.importers.photos import PhotosImporter, PhotosSettings
from nearid_ray.data.store import Location, locate
from nearid_ray.errors import UsageError
from nearid_ray.evaluation.control import is_control
from nearid_ray.evaluation.measures import MTG, NEARID
from nearid_ray.evaluation.scorers import named_heads
from nearid_ray.presets import TRAINING_ENGINES
from nearid_ray.reporting.tables.generalisation import (
    control_sentences,
    control_table,
    left_out_sentences,
    left_out_table,
    photos_sentences,
    photos_table,
)
from nearid_ray.reporting.tables.measured import Measured
from nearid_ray.reporting.tables.model import Table
from nearid_ray.settings import to_dict
from nearid_ray.stages.reproduce import (
    TABLES_FOLDER,
    TOY_NOTE,
    Reproduce,
    data_notes,
    data_steps,
    evaluate_suite,
    given_measures,
    make_data,
    training_tokens,
    write_table,
)
from nearid_ray.stages.reproduce_data import Step, control_steps, photo_steps
from nearid_ray.stages.reproduce_heads import TOYBOX_TRAINING, described_training, train_missing, trained_engines
from nearid_ray.training.settings import TrainSettings
from nearid_ray.training.sources import CachedTokens

TOYBOX_BACKBONE = "toybox-siglip2"
_TOY_ON_PHOTOS = (
    "Real photos seen by a toy backbone that knows drawings alone, and heads trained on drawings: the numbers show "
    "that the command works, not what heads do on photos."
)
_MAKE_CONTROLS = (
    "make them with jobs/synthesize.py --control (engines that can paint the same object) and jobs/embed.py --controls"
)
_TOY_CONTROL = (
    f"{TOY_NOTE} Painted by the exemplar engine, which never trained; its control is the object's own cut-out set "
    "back, so this is the mildest of controls."
)


@dataclass(frozen=True, kw_only=True)
class LeaveOneOut(Reproduce):
    """Train without each engine in turn and measure on all: a table of trained-without against tested-on."""

    leave_out: tuple[str, ...] = ()
    """Engines that are left out, one at a time; by default those that replace the whole object; of given tokens all."""


@dataclass(frozen=True, kw_only=True)
class Control(Reproduce):
    """The artefact control's rate by scorer and engine, on the toybox's test views painted by the exemplar engine, or
    on given token caches that hold controls."""


@dataclass(frozen=True, kw_only=True)
class Photos(Reproduce):
    """Frozen against trained heads on real photos, with distractors by the exemplar engine."""

    photos: str = ""
    """Folder with one folder of photos an identity."""
    categories: str = ""
    """CSV file with identity and category; identities of one category paint each other."""
    heads: tuple[str, ...] = ()
    """Trained heads to measure as NAME=FOLDER; without any a head is trained on the toybox first."""
    backbone: str = TOYBOX_BACKBONE
    """The heads' backbone: toybox-siglip2, a folder in transformers' layout, or a hub id."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.photos:
            raise ValueError(
                "photos is empty; expected a folder with one folder of photos an identity: --photos FOLDER"
            )
        if self.tokens or self.evaluation:
            raise ValueError("photos are embedded and measured here; tokens and evaluation have no place in it")


MORE: Mapping[str, type[Reproduce]] = {"leave-one-engine-out": LeaveOneOut, "control": Control, "photos": Photos}
"""Settings by the command's name."""


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What a command runs."""

    steps: list[Step]
    """Data to train on."""
    heads: dict[str, TrainSettings]
    """Heads to train on it; none where heads are given."""
    measured_steps: list[Step]
    """Data to measure on, where it is other data."""
    caches: tuple[str, ...]
    """Token caches to measure on."""
    suite: str
    """Name of the evaluation."""


def plan_more(settings: Reproduce) -> dict[str, Any]:
    """What `run_more` would run, by name; writes nothing."""
    plan = _plan(settings, locate(settings.output))
    steps = (*plan.steps, *plan.measured_steps)
    shown: dict[str, Any] = {step.name: {"command": step.command, "makes": step.size} for step in steps}
    if plan.heads:
        shown |= described_training(plan.heads)
    return shown | {"evaluate": list(plan.caches)}


@job.owning_output("reproduce")
def run_more(settings: Reproduce) -> job.Job:
    """Run what is missing, then write and print the table and what it says."""
    output = job.output_of(settings.output, settings.tracking)
    plan = _plan(settings, output)
    with nullcontext() if settings.evaluation else ray_session():
        measured = given_measures(settings) if settings.evaluation else _measure(settings, plan, output)
    table, said = _table(settings, plan, measured)
    place = output.child(TABLES_FOLDER)
    with job.running(
        "reproduce", place, to_dict(settings), tracking=settings.tracking, inputs={}, needs_ray=False
    ) as running:
        write_table(table, "\n".join(said), place, running)
        running.summary["table"] = place.child(f"{table.name}.md").uri
    return running


def _measure(settings: Reproduce, plan: _Plan, output: Location) -> Measured:
    heads = named_heads(settings.heads) if isinstance(settings, Photos) else {}
    make_data(plan.steps)
    if plan.heads:
        tokens = training_tokens(settings, output)
        heads |= train_missing(plan.heads, tokens, output, settings.where, settings.tracking).folders
    make_data(plan.measured_steps)
    return evaluate_suite(settings, output, plan.suite, heads, plan.caches)


def _plan(settings: Reproduce, output: Location) -> _Plan:
    steps, caches = data_steps(settings, output), settings.test_tokens or training_tokens(settings, output)
    if isinstance(settings, LeaveOneOut):
        usual = TOYBOX_TRAINING if settings.data == "toybox" else TRAINING_ENGINES
        if settings.tokens:
            usual = trained_engines(settings.tokens)
        _check_left_out(settings.leave_out, settings.suite_heads("nearid")["nearid"].engines)
        heads = settings.suite_heads("engines", settings.leave_out or usual)
        return _Plan(steps=steps, heads=heads, measured_steps=[], caches=caches, suite="engines")
    heads = settings.suite_heads("nearid")
    if isinstance(settings, Photos):
        photos = PhotosSettings(root=settings.photos, categories=settings.categories)
        PhotosImporter(photos).list_records()  # a missing or empty folder is told of before anything is trained
        made = photo_steps(photos, settings.backbone, output, settings.run, settings.tracking)
        if settings.heads or settings.backbone != TOYBOX_BACKBONE:
            steps, heads = [], {}
        return _Plan(
            steps=steps,
            heads=heads,
            measured_steps=made,
            caches=(output.child("photos-tokens").uri,),
            suite="photos",
        )
    if settings.data == "paper" and not settings.tokens and not settings.evaluation:
        raise UsageError(f"the published data has no artefact controls; {_MAKE_CONTROLS}, then give --tokens")
    if settings.tokens:
        found = CachedTokens(caches).open().index["engine"].unique().to_pylist()
        if not any(map(is_control, found)):
            raise UsageError(f"{', '.join(caches)}: these tokens hold no artefact controls; {_MAKE_CONTROLS}")
        return _Plan(steps=steps, heads=heads, measured_steps=[], caches=caches, suite="control")
    controls = control_steps(output, settings.run, settings.tracking)
    return _Plan(
        steps=steps,
        heads=heads,
        measured_steps=controls,
        caches=(output.child("control-tokens").uri,),
        suite="control",
    )


def _check_left_out(wanted: tuple[str, ...], there: tuple[str, ...]) -> None:
    unknown = sorted(set(wanted) - set(there))
    if unknown:
        raise UsageError(f"leave_out has {', '.join(unknown)}; heads are trained on {', '.join(there)}")


def _table(settings: Reproduce, plan: _Plan, measured: Measured) -> tuple[Table, list[str]]:
    if isinstance(settings, LeaveOneOut):
        engines = measured.names(NEARID, "ssr") + measured.names(MTG, "ssr")
        trained_on = {name: head.engines for name, head in plan.heads.items()}
        trained_first = sorted(engines, key=lambda engine: engine not in trained_on["nearid"])
        table = left_out_table(measured, trained_on, trained_first, data_notes(settings, measured))
        return table, left_out_sentences(table)
    if isinstance(settings, Photos):
        toy = settings.backbone == TOYBOX_BACKBONE
        table = photos_table(measured, [_TOY_ON_PHOTOS if toy else f"Backbone {settings.backbone}."])
        return table, photos_sentences(table)
    toy_data = settings.data == "toybox" and not settings.tokens
    table = control_table(measured, [_TOY_CONTROL] if toy_data else data_notes(settings, measured))
    if not table.columns:
        raise UsageError(f"artefact controls were not measured; {_MAKE_CONTROLS}, and evaluate again")
    return table, control_sentences(table)
