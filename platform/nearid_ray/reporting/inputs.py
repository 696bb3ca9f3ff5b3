"""What a report and its figures are made of: folders, opened when something needs them and checked to fit together."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from nearid_ray.data.light import iterate
from nearid_ray.data.store import Dataset, Location, locate
from nearid_ray.embedding.cache import TokenCache
from nearid_ray.errors import UsageError
from nearid_ray.evaluation.evaluate import METRICS_FILE, Evaluation, read_evaluation
from nearid_ray.evaluation.measures import Measure, read_measures
from nearid_ray.models.checkpoint import CARD_FILE
from nearid_ray.reporting.model import TrainingCurve
from nearid_ray.training.outputs import BEST, HISTORY


@dataclass(frozen=True, kw_only=True)
class ReportInputs:
    """The folders a report is made of."""

    evaluation: str
    """Output of an evaluate job; empty draws what the further measures alone hold (figure 4)."""
    tuples: str = ""
    """Tuples dataset: gives the sheets their views. Empty leaves the sheets out."""
    distractors: str = ""
    """Distractors dataset of these tuples: gives the sheets their distractors."""
    tokens: str = ""
    """Token cache the evaluation read: says which backbone it was, and gives the attention maps."""
    train: tuple[str, ...] = ()
    """NAME=FOLDER of each trained head to draw curves of: the folder with its history, by the name of its scorer."""
    measures: tuple[str, ...] = ()
    """Further folders with measures.csv, e.g. the output of align."""
    calibrations: tuple[str, ...] = ()
    """NAME=FOLDER of each calibrated scorer: a folder with calibration.json, or such a file."""


class Opened:
    """The inputs, each read once and when it is first asked for."""

    def __init__(self, inputs: ReportInputs) -> None:
        self.inputs = inputs
        self.folder = locate(inputs.evaluation or ".")
        self.train = named(inputs.train, "train")
        self.calibrations = named(inputs.calibrations, "calibrations")

    @cached_property
    def evaluation(self) -> Evaluation:
        """UsageError where the folder holds no finished evaluation."""
        return read_evaluation(self.folder)

    @cached_property
    def similarities(self) -> pa.Table:
        """All records of the evaluation; UsageError where the folder holds no finished one."""
        place = self.folder.child("similarities") if self._stored else self.folder
        return Dataset.open(place, "similarities").read()

    @cached_property
    def asked(self) -> dict[str, Any]:
        """Settings of the evaluation."""
        return self._stored.get("settings", {})

    @cached_property
    def _stored(self) -> dict[str, Any]:
        stored = Dataset(self.folder).read_json(METRICS_FILE)
        if stored is None:
            raise UsageError(
                f"{self.folder.uri} holds no {METRICS_FILE}; give the output folder of a finished evaluate job"
            )
        return stored

    @property
    def baseline(self) -> str:
        """Scorer that others are compared with."""
        return self.asked.get("baseline", "frozen") if self.inputs.evaluation else "frozen"

    @cached_property
    def scorers(self) -> list[str]:
        """Scorers of the evaluation, the baseline first."""
        names = self.similarities["scorer"].unique().to_pylist()
        return sorted(names, key=lambda name: name != self.baseline)

    @cached_property
    def engines(self) -> list[str]:
        """Engines in the order of their groups."""
        return list(dict.fromkeys(engine for members in self.evaluation.groups.values() for engine in members))

    @cached_property
    def measures(self) -> list[Measure]:
        """Every number of the evaluation and of the further folders; those of the evaluation first.

        Raises:
            UsageError: a folder has no measures, or a number that another one has too with another value.
        """
        found = {one.key: one for one in self.evaluation.measures} if self.inputs.evaluation else {}
        for place in self.inputs.measures:
            for one in read_measures(locate(place)):
                known = found.setdefault(one.key, one)
                if known.value != one.value and not (math.isnan(known.value) and math.isnan(one.value)):
                    raise UsageError(
                        f"{place}: {one.metric} of {one.scorer} on {one.name} ({one.benchmark}, {one.condition}) is "
                        f"{one.value:.4g} there and {known.value:.4g} in another folder; give one of them"
                    )
        return list(found.values())

    @cached_property
    def tuples(self) -> Dataset | None:
        """UsageError where it is no tuples dataset or lacks views that were measured."""
        if not self.inputs.tuples:
            return None
        tuples = Dataset.open(self.inputs.tuples, "tuples")
        self._check_tuples(tuples)
        return tuples

    @cached_property
    def distractors(self) -> Dataset | None:
        """UsageError where it is no distractors dataset or lacks distractors that were measured."""
        if not self.inputs.distractors:
            return None
        distractors = Dataset.open(self.inputs.distractors, "distractors")
        self._check_distractors(distractors)
        return distractors

    @cached_property
    def tokens(self) -> Dataset | None:
        """UsageError where it is no token cache or not the one that was measured."""
        if not self.inputs.tokens:
            return None
        tokens = Dataset.open(self.inputs.tokens, "tokens_index")
        self._check_tokens(tokens)
        return tokens

    @cached_property
    def cache(self) -> TokenCache | None:
        """The token cache, open; of a remote one nothing is copied, as a few items are read."""
        if self.tokens is None:
            return None
        return TokenCache.open(self.tokens.location, limit_bytes=0)

    @cached_property
    def embeddings(self) -> Dataset | None:
        """Embeddings beside the evaluation, where it made them itself."""
        place = self.folder.child("embeddings")
        return Dataset.open(place, "embeddings") if place.child("settings.json").exists() else None

    @property
    def backbone(self) -> str:
        """What made the tokens; empty where no tokens are given."""
        if self.tokens is None:
            return ""
        return str((self.tokens.read_json("backbone.json") or {}).get("spec", ""))

    @cached_property
    def curves(self) -> list[TrainingCurve]:
        """Histories of the training runs."""
        return [read_curve(name, locate(place)) for name, place in self.train.items()]

    def _check_tuples(self, tuples: Dataset) -> None:
        measured = self._measured_images("view")
        known: set[str] = set()
        for _, table in iterate(tuples, ["identity_id", "views.view_id"]):
            column = "view_id" if measured.by_image else "identity_id"
            known |= set(_flat(table, column))
        self._check(tuples, "tuples", measured, known)

    def _check_distractors(self, distractors: Dataset) -> None:
        measured = self._measured_images("distractor")
        column = "distractor_id" if measured.by_image else "identity_id"
        known: set[str] = set()
        for _, table in iterate(distractors, [column]):
            known |= set(table[column].to_pylist())
        self._check(distractors, "distractors", measured, known)

    def _check(self, given: Dataset, what: str, measured: _Measured, known: set[str]) -> None:
        lost = [name for name in measured.names if name not in known]
        if lost:
            kind = {"tuples": "views", "distractors": "distractors"}[what] if measured.by_image else "identities"
            raise UsageError(
                f"{given.location.uri} are not the {what} that {self.folder.uri} measured: {len(lost)} of its "
                f"{len(measured.names)} {kind} are not in them, e.g. {', '.join(lost[:3])}; give the {what} that were "
                "embedded for it, or evaluate again"
            )

    def _measured_images(self, role: str) -> _Measured:
        """What was measured of a role: by the images' own names where embeddings are there, else by identity."""
        if self.embeddings is not None:
            where = (pc.field("role") == role) & (pc.field("split") == self.asked.get("split", "test"))
            names = self.embeddings.read(["image_id"], where=where)["image_id"].unique().to_pylist()
            return _Measured(names=names, by_image=True)
        kinds = ["positive"] if role == "view" else ["distractor"]
        rows = self.similarities.filter(pc.is_in(self.similarities["kind"], pa.array(kinds)))
        return _Measured(names=rows["identity_id"].unique().to_pylist(), by_image=False)

    def _check_tokens(self, tokens: Dataset) -> None:
        settings = (self.embeddings.settings() or {}) if self.embeddings is not None else {}
        made_from = str(settings.get("content", {}).get("tokens", ""))
        digest = tokens.digest()
        # A cache that has grown since keeps its digest: what was measured is still in it.
        if made_from and made_from.partition("-")[0] != digest:
            raise UsageError(
                f"{tokens.location.uri} are not the tokens that {self.folder.uri} measured: they were made with other "
                f"settings or from other data (digest {digest}, measured {made_from.partition('-')[0]}); give the "
                "tokens that were evaluated, or evaluate again"
            )


@dataclass(frozen=True)
class _Measured:
    names: list[str]
    by_image: bool


def named(entries: Sequence[str], field: str) -> dict[str, str]:
    """{name: folder} of NAME=FOLDER entries; UsageError where one is not of that form."""
    pairs = [entry.partition("=") for entry in entries]
    if any(not (name and equals and place) for name, equals, place in pairs):
        raise UsageError(f"{field} holds {list(entries)}; expected NAME=FOLDER entries")
    return {name: place for name, _, place in pairs}


def read_curve(name: str, folder: Location) -> TrainingCurve:
    """The history of a training run, and which step was kept.

    Raises:
        UsageError: the folder holds none.
    """
    place = folder.child(HISTORY)
    if not place.exists():
        raise UsageError(
            f"{folder.uri} holds no {HISTORY}; give the folder of one head that training wrote, OUTPUT/heads/NAME, "
            f"which holds {BEST} and last"
        )
    table = pyarrow.csv.read_csv(io.BytesIO(place.read_bytes()))
    step = table["step"].to_pylist()
    columns = {
        column: [(float(x), float(y)) for x, y in zip(step, table[column].to_pylist(), strict=True) if y is not None]
        for column in ("loss", "val_ssr")
        if column in table.column_names
    }
    card = Dataset(folder.child(BEST)).read_json(CARD_FILE) or {}
    return TrainingCurve(
        name=name,
        loss=columns.get("loss", []),
        validation_ssr=columns.get("val_ssr", []),
        kept_step=card.get("metrics", {}).get("step"),
        settings=card.get("settings", {}),
    )


def _flat(table: pa.Table, column: str) -> list[str]:
    if column in table.column_names:
        return table[column].to_pylist()
    return [view[column] for views in table["views"].to_pylist() for view in views or ()]
