"""Which heads a table needs, and training those that are not there yet, as many as possible in one pass."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow.compute as pc

from nearid_ray import job, presets
from nearid_ray.cluster import Terminated
from nearid_ray.data.plan import differences
from nearid_ray.data.store import Dataset, Location
from nearid_ray.errors import UsageError
from nearid_ray.identifiers import settings_digest
from nearid_ray.settings import build, dump_json, to_dict
from nearid_ray.toybox.identity import PART_KINDS, TRAIN_KINDS
from nearid_ray.tracking import TrackingSettings
from nearid_ray.training.history import HistoryRow
from nearid_ray.training.losses import OBJECTIVE_NAMES
from nearid_ray.training.outputs import BEST, save_trained
from nearid_ray.training.settings import TrainSettings, WorkerSettings
from nearid_ray.training.sources import CachedTokens
from nearid_ray.training.trainer import check_runs, initial_head, train_many

Data = Literal["toybox", "paper"]

TOYBOX_TRAINING = tuple(f"toybox-{kind}" for kind in TRAIN_KINDS)
TOYBOX_PARTS = tuple(f"toybox-{kind}" for kind in PART_KINDS)
"""Engines that change a part of a toy object: they stand for Mind-the-Glitch, in training and in measuring."""

_ALPHAS = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0)
_BETAS = (0.0, 0.1, 0.2, 0.3)

PEOPLE = "people"
"""What is read from finished align jobs alone: nothing is trained or measured for it."""
SUITES: Mapping[str, str] = {
    "table1": "nearid",
    "table2": PEOPLE,
    "table3": "objectives",
    "table5": "nearid",
    "table6": "data",
    "table7": "nearid",
    "table8": "alpha",
    "table9": "beta",
    "table10": "objectives",
    "alpha": "alpha",
    "beta": "beta",
    "figure3": "nearid",
    "figure4": PEOPLE,
    "figure5": "nearid",
    "figure7": "nearid",
    "figure8": "nearid",
    "figure9": "nearid",
    "reliability": "nearid",
}
"""The evaluation that each table and figure is read from: OUTPUT/evaluation-SUITE."""


def heads_of(
    suite: str, data: Data, *, max_steps: int = 0, left_out: tuple[str, ...] = (), trained: tuple[str, ...] = ()
) -> dict[str, TrainSettings]:
    """Settings of the heads of a suite, by the name of the head.

    Args:
        suite: a value of `SUITES`, or `engines` for a head without each of the training engines.
        data: toybox settings, or the paper's.
        max_steps: steps of every head; 0 takes the preset's.
        left_out: for the suite `engines`: those that are left out, one at a time.
        trained: the engines to train on; by default the toybox's four and its parts, or the paper's with MTG's.
    """
    table6 = {
        "toybox": {
            "nearid-only": {"engines": TOYBOX_TRAINING},
            "mtg-only": {"engines": TOYBOX_PARTS},
            "single-engine": {"engines": TOYBOX_TRAINING[:1]},
        },
        "paper": {
            "nearid-only": presets.nearid_only(),
            "mtg-only": presets.mtg_only(),
            "single-engine": presets.single_engine(),
        },
    }
    usual = {"toybox": (*TOYBOX_TRAINING, *TOYBOX_PARTS), "paper": (*presets.TRAINING_ENGINES, presets.MTG_ENGINE)}
    every = trained or usual[data]
    changes: dict[str, dict[str, Any]] = {"nearid": {}}
    if suite == "objectives":
        changes = {name: {"objective": name} for name in OBJECTIVE_NAMES}
    elif suite == "alpha":
        changes = {_name(alpha, 0.0): {"alpha": alpha} for alpha in _ALPHAS}
    elif suite == "beta":
        changes = {_name(1.0, beta): {"alpha": 1.0, "beta": beta} for beta in _BETAS}
    elif suite == "data":
        changes |= table6[data]
    elif suite == "engines":
        changes |= {
            f"without-{name}": {"engines": tuple(engine for engine in every if engine != name)} for name in left_out
        }
    base = presets.toybox() | {"engines": every} if data == "toybox" else presets.paper()
    settings = {name: base | change for name, change in changes.items()}
    steps = {"max_steps": max_steps} if max_steps else {}
    for values in settings.values():
        values.pop("backbone", None)  # the tokens'
    return {name: build(TrainSettings, values | steps, f"settings of {name}") for name, values in settings.items()}


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Trained heads: where each lies, which were there before, and which cannot be trained on these tokens."""

    folders: dict[str, str]
    before: list[str]
    refused: dict[str, str]
    """Why, by name: e.g. the tokens hold no distractors with an oracle."""


def train_missing(
    runs: Mapping[str, TrainSettings],
    tokens: tuple[str, ...],
    output: Location,
    where: WorkerSettings,
    tracking: TrackingSettings,
) -> Heads:
    """Train those of the heads that OUTPUT/heads does not hold yet; needs a Ray session where there are any.

    Raises:
        UsageError: no head can be trained on these tokens, or one of that name was trained in another way.
    """
    source = CachedTokens(tokens)
    cache = source.open()
    head = initial_head(cache)
    refused: dict[str, str] = {}
    for name, settings in runs.items():
        try:
            check_runs({name: settings}, cache, head, where)
        except UsageError as error:
            refused[name] = str(error)
    if len(refused) == len(runs):
        raise UsageError(next(iter(refused.values())))
    wanted = {name: settings for name, settings in runs.items() if name not in refused}
    contents = {name: {"tokens": cache.fingerprint, **settings.resolved()} for name, settings in wanted.items()}
    place = output.child("heads")
    before = [name for name, content in contents.items() if _is_trained(place.child(name), content)]
    missing = {name: settings for name, settings in wanted.items() if name not in before}
    if missing:
        with job.running(
            "train", place, {"heads": list(missing)}, tracking=tracking, inputs=source.describe()
        ) as running:

            def tell(name: str, rows: list[HistoryRow]) -> None:
                running.tracker.history([_prefixed(name, row.flat()) for row in rows])
                validated = [row for row in rows if row.val_ssr is not None]
                if validated:
                    print(f"{name}: step {validated[-1].step}, val SSR {validated[-1].val_ssr:.1%}", flush=True)

            try:
                trained = train_many(
                    missing,
                    tokens=source,
                    storage=output.child("checkpoints"),
                    # The same heads missing again: the same name, so that training goes on where it stopped.
                    name=settings_digest({name: contents[name] for name in missing}),
                    opened=cache,
                    where=where,
                    on_row=None,
                    on_rows=tell,
                )
            except SystemExit as ended:  # Ray Train's answer to Ctrl-C and SIGTERM
                raise (Terminated if Terminated.received else KeyboardInterrupt) from ended
            for name, result in trained.items():
                save_trained(place.child(name), result, cache.backbone)
                stored = {"table": "heads", "content": contents[name]}
                place.child(name, "settings.json").write_bytes(dump_json(stored))  # last: the head is whole
                running.summary[name] = {"best_step": result.best_step, "val_ssr": result.best_val_ssr}
    folders = {name: place.child(name, BEST).uri for name in wanted}
    return Heads(folders=folders, before=before, refused=refused)


def trained_engines(tokens: tuple[str, ...]) -> tuple[str, ...]:
    """The engines whose distractors token caches hold for training."""
    index = CachedTokens(tokens).open().index
    found = index.filter((pc.field("split") == "train") & (pc.field("engine") != ""))
    return tuple(sorted(found["engine"].unique().to_pylist()))


def described_training(runs: Mapping[str, TrainSettings]) -> dict[str, str]:
    """The training for people to read: how many heads, and what each has that the published recipe has not."""
    usual = TrainSettings().resolved()
    heads = {
        f"  {name}": ", ".join(
            f"{key} {' '.join(map(str, value)) if isinstance(value, list) else value}"
            for key, value in to_dict(settings).items()
            if value is not None and value != usual.get(key)
        )
        or "the published recipe"
        for name, settings in runs.items()
    }
    return {"train": f"{len(runs)} head(s), those that read the same in one pass", **heads}


def _is_trained(folder: Location, content: dict[str, Any]) -> bool:
    stored = Dataset(folder).read_json("settings.json")
    if stored is None:
        return False
    differing = differences(stored.get("content", {}), content)
    if differing:
        raise UsageError(
            f"{folder.uri} was trained with other settings:\n  " + "\n  ".join(differing) + "\nGive another output."
        )
    return True


def _name(alpha: float, beta: float) -> str:
    if alpha == 0.5 and beta == 0:
        return "nearid"
    return f"nearid-alpha-{alpha:g}" + (f"-beta-{beta:g}" if beta else "")


def _prefixed(name: str, row: dict[str, Any]) -> dict[str, Any]:
    return {key if key == "step" else f"{name}.{key}": value for key, value in row.items()}
