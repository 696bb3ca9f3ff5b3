"""What `reproduce` makes data with: the jobs' own settings, one after the other, each as the command it stands for."""

import dataclasses
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nearid_ray import job, presets
from nearid_ray.data.curate_rules import CurateSettings
from nearid_ray.data.importers.mtg import MtgDistractorsSettings, MtgSettings
from nearid_ray.data.importers.nearid import NearidSettings
from nearid_ray.data.importers.nearid_distractors import ENGINES, NearidDistractorsSettings
from nearid_ray.data.importers.photos import PhotosSettings
from nearid_ray.data.importers.toybox import ToyboxSettings
from nearid_ray.data.pipeline import RunSettings
from nearid_ray.data.store import Location
from nearid_ray.embedding.plan import EmbedSettings
from nearid_ray.settings import flat_fields, to_dict
from nearid_ray.stages.curate import Curate, run_curate
from nearid_ray.stages.embed import Embed, run_embed
from nearid_ray.stages.ingest import IngestPhotos, IngestToybox, run_ingest
from nearid_ray.stages.ingest_published import IngestMtg, IngestMtgDistractors
from nearid_ray.stages.ingest_tables import IngestNearid, IngestNearidDistractors
from nearid_ray.stages.synthesize import Synthesize, run_synthesize
from nearid_ray.synthesis.settings import SynthesisSettings
from nearid_ray.tracking import TrackingSettings

NEARID_IDENTITIES = {"train": 18_786, "val": 100, "test": 500}
"""NearID's published splits."""
_VIEWS = 45_215
_MTG = {"train": 5_000, "val": 500, "test": 100}
_TOKEN_BYTES = 729 * 1152 * 2
"""An item of the paper's backbone as float16."""
_TOYBOX_VIEWS = 2.33
"""Views of a toy identity, on average."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One job of a reproduction."""

    name: str
    command: str
    """What a person would type to run it alone."""
    size: str
    """How much it makes, as far as that is known before."""
    run: Callable[[], job.Job]


@dataclass(frozen=True, kw_only=True)
class ToyboxSizes:
    """With --data toybox: how much of it."""

    train_identities: int = 1600
    """Toy identities to train on; fewer than about 1,000 train no better than frozen."""
    val_identities: int = 150
    """Toy identities that choose the best step."""
    test_identities: int = 400
    """Toy identities that are measured."""


@dataclass(frozen=True, kw_only=True)
class PaperData:
    """With --data paper: where the published data is."""

    nearid: str = "Aleksandar/NearID"
    """NearID's positives: hub id, folder written by `save_to_disk`, or Parquet."""
    nearid_distractors: tuple[str, ...] = tuple(f"Aleksandar/{name}" for name in ENGINES)
    """Its tables of distractors, one an engine configuration: hub ids, or ENGINE=PLACE."""
    train_index: str = ""
    """JSON file with the row numbers of NearID's train split. Without the three files the splits are drawn anew, of
    the published sizes."""
    val_index: str = ""
    """The same of the val split."""
    test_index: str = ""
    """The same of the test split."""
    mtg: str = "abdo-eldesokey/mtg-dataset"
    """Mind-the-Glitch: hub id, folder written by `save_to_disk`, or Parquet."""

    def __post_init__(self) -> None:
        given = [bool(place) for place in (self.train_index, self.val_index, self.test_index)]
        if any(given) and not all(given):
            raise ValueError("give all of train_index, val_index and test_index, or none of them")


def toybox_steps(sizes: ToyboxSizes, output: Location, run: RunSettings, tracking: TrackingSettings) -> list[Step]:
    """Render, synthesize, embed. Engines that change a part are made for training as well: they stand for MTG."""
    tuples, distractors, tokens = (output.child(name).uri for name in ("tuples", "distractors", "tokens"))
    ingest = IngestToybox(output=tuples, source=ToyboxSettings(**vars(sizes)), run=run, tracking=tracking)
    synthesize = Synthesize(
        tuples=tuples,
        output=distractors,
        synthesis=SynthesisSettings(engines=("toybox",), eval_only_groups=("unseen", "extra")),
        run=run,
        tracking=tracking,
    )
    embed = Embed(tuples=tuples, distractors=distractors, output=tokens, run=run, tracking=tracking)
    identities = sizes.train_identities + sizes.val_identities + sizes.test_identities
    views = {"train": sizes.train_identities * _TOYBOX_VIEWS}
    views["measured"] = (sizes.val_identities + sizes.test_identities) * _TOYBOX_VIEWS
    painted = 7 * views["train"] + 9 * views["measured"]
    items = 2 * (8 * views["train"] + 10 * views["measured"])
    return [
        _step("ingest", ["ingest.py", "toybox"], ingest, f"{identities:,} identities", run_ingest),
        _step("synthesize", ["synthesize.py"], synthesize, f"about {painted:,.0f} distractors", run_synthesize),
        _step("embed", ["embed.py"], embed, f"about {items:,.0f} items of 64 x 128", run_embed),
    ]


def paper_steps(data: PaperData, output: Location, run: RunSettings, tracking: TrackingSettings) -> list[Step]:
    """Read NearID with its nine distractor tables and Mind-the-Glitch, and embed both with the paper's backbone."""
    names = ("nearid-all", "nearid", "nearid-distractors", "nearid-tokens", "mtg", "mtg-distractors", "mtg-tokens")
    place = {name: output.child(name).uri for name in names}
    common: dict[str, Any] = {"run": run, "tracking": tracking}
    indexed = bool(data.test_index)
    ingest = IngestNearid(
        output=place["nearid" if indexed else "nearid-all"],
        source=NearidSettings(
            source=data.nearid,
            train_index=data.train_index,
            val_index=data.val_index,
            test_index=data.test_index,
        ),
        **common,
    )
    curate = Curate(
        tuples=place["nearid-all"],
        output=place["nearid"],
        curation=CurateSettings(
            kinds=("rigid", "deformable", "unknown"),
            near_duplicates="off",
            train="rest",
            val=NEARID_IDENTITIES["val"],
            test=NEARID_IDENTITIES["test"],
        ),
        **common,
    )
    distractors = IngestNearidDistractors(
        output=place["nearid-distractors"],
        source=NearidDistractorsSettings(tuples=place["nearid"], sources=data.nearid_distractors),
        **common,
    )
    mtg = IngestMtg(output=place["mtg"], source=MtgSettings(source=data.mtg), **common)
    mtg_distractors = IngestMtgDistractors(
        output=place["mtg-distractors"],
        source=MtgDistractorsSettings(tuples=place["mtg"], source=data.mtg),
        **common,
    )
    embedding = EmbedSettings(**presets.paper_backbone())
    embeds = {
        "nearid": replace(embedding, train_engines=presets.TRAINING_ENGINES),
        "mtg": embedding,
    }
    share = {split: count / sum(NEARID_IDENTITIES.values()) for split, count in NEARID_IDENTITIES.items()}
    nearid_items = 2 * _VIEWS * (5 * share["train"] + 10 * (share["val"] + share["test"]))
    items = {"nearid": nearid_items, "mtg": 2 * 4 * sum(_MTG.values())}
    steps = [
        _step("ingest nearid", ["ingest.py", "nearid"], ingest, f"19,386 identities, {_VIEWS:,} views", run_ingest)
    ]
    if not indexed:
        sizes = ", ".join(f"{split} {count:,}" for split, count in NEARID_IDENTITIES.items())
        steps.append(_step("split nearid", ["curate.py"], curate, f"{sizes} identities", run_curate))
    tables = len(data.nearid_distractors)
    painted = f"{tables} engines x {_VIEWS:,} views = {tables * _VIEWS:,} distractors"
    said = f"{sum(_MTG.values()):,} pairs of pictures"
    steps += [
        _step("ingest nearid distractors", ["ingest.py", "nearid-distractors"], distractors, painted, run_ingest),
        _step("ingest mtg", ["ingest.py", "mtg"], mtg, said, run_ingest),
        _step(
            "ingest mtg distractors",
            ["ingest.py", "mtg-distractors"],
            mtg_distractors,
            f"{2 * sum(_MTG.values()):,} distractors",
            run_ingest,
        ),
    ]
    for name, settings in embeds.items():
        embed = Embed(
            tuples=place[name],
            distractors=place[f"{name}-distractors"],
            output=place[f"{name}-tokens"],
            embedding=settings,
            **common,
        )
        disk_gb = items[name] * _TOKEN_BYTES / 1e9
        size = f"about {items[name]:,.0f} items of 729 x 1152, {disk_gb:,.0f} GB"
        steps.append(_step(f"embed {name}", ["embed.py"], embed, size, run_embed))
    return steps


def control_steps(output: Location, run: RunSettings, tracking: TrackingSettings) -> list[Step]:
    """The test views of the toybox once more with another identity's object, and as a control with their own."""
    tuples, distractors, tokens = (output.child(n).uri for n in ("tuples", "control-distractors", "control-tokens"))
    painted = SynthesisSettings(engines=("exemplar",), control=True, splits=("test",))
    embedded = EmbedSettings(augmented_splits=(), clean_splits=("test",), controls=True)
    synthesize = Synthesize(tuples=tuples, output=distractors, synthesis=painted, run=run, tracking=tracking)
    embed = Embed(tuples=tuples, distractors=distractors, output=tokens, embedding=embedded, run=run, tracking=tracking)
    return [
        _step("synthesize controls", ["synthesize.py"], synthesize, "two pictures a test view", run_synthesize),
        _step("embed controls", ["embed.py"], embed, "six items a test view", run_embed),
    ]


def photo_steps(
    photos: PhotosSettings, backbone: str, output: Location, run: RunSettings, tracking: TrackingSettings
) -> list[Step]:
    """Photos with distractors by the exemplar engine and their controls, embedded."""
    tuples, distractors, tokens = (output.child(f"photos-{n}").uri for n in ("tuples", "distractors", "tokens"))
    painted = SynthesisSettings(engines=("exemplar",), control=True)
    embedded = EmbedSettings(backbone=backbone, controls=True)
    ingest = IngestPhotos(output=tuples, source=photos, run=run, tracking=tracking)
    synthesize = Synthesize(tuples=tuples, output=distractors, synthesis=painted, run=run, tracking=tracking)
    embed = Embed(tuples=tuples, distractors=distractors, output=tokens, embedding=embedded, run=run, tracking=tracking)
    return [
        _step("ingest photos", ["ingest.py", "photos"], ingest, "every picture in the folders", run_ingest),
        _step("synthesize photos", ["synthesize.py"], synthesize, "two pictures a view", run_synthesize),
        _step("embed photos", ["embed.py"], embed, "six items a view", run_embed),
    ]


def command(words: Sequence[str], settings: Any) -> str:
    """The shell command that runs a job with these settings: the flags that are not at their defaults.

    >>> command(["ingest.py", "toybox"], IngestToybox(output="a b", source=ToyboxSettings(test_identities=9)))
    "python jobs/ingest.py toybox --output 'a b' --test-identities 9"
    """
    parts = ["python", f"jobs/{words[0]}", *words[1:]]
    leaves = flat_fields(type(settings))
    for name, value in to_dict(settings).items():
        field = leaves[name].field
        made = field.default_factory
        default = field.default if made is dataclasses.MISSING else made()
        if isinstance(value, list):
            default = list(default) if isinstance(default, tuple) else default
        if value is None or value == default:
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            parts.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            parts += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(parts)


def _step(name: str, words: Sequence[str], settings: Any, size: str, run: Callable[[Any], job.Job]) -> Step:
    return Step(name=name, command=command(words, settings), size=size, run=lambda: run(settings))
