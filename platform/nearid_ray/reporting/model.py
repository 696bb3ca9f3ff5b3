"""What a report shows, as plain data: filled by the loader from run folders, or by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nearid_ray.evaluation.measures import Measure
from nearid_ray.evaluation.summary import MetricsRow
from nearid_ray.reporting.figures.figure import Figure


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """What the page shows."""

    title: str = "Near-identity embeddings"
    """Heading of the page."""
    statement: tuple[str, ...] = ()
    """What the data is, one paragraph each; shown below what the data says of itself."""
    headline_group: str = ""
    """Group of engines whose rates stand on top; empty: the headline of the engines there are."""
    projected_identities: int = 7
    """Identities in the projection of embeddings; 0 leaves it out."""
    sheet_tuples: int = 8
    """Tuples on the sheet, and at most 4 of them on that of parts; 0 leaves both out."""
    attention_identities: int = 6
    """Identities with attention maps; 0 leaves them out."""
    thumbnail_px: int = 192
    """Larger pictures are brought to this width in pixels."""
    report_seed: int = 0
    """Chooses the identities of projection, sheets and attention maps."""

    def __post_init__(self) -> None:
        least = {"projected_identities": 0, "sheet_tuples": 0, "attention_identities": 0, "thumbnail_px": 16}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {low}")


@dataclass(frozen=True, kw_only=True)
class TrainingCurve:
    """What one training run logged. Steps without a value are left out of the lists."""

    name: str
    """The scorer the run became."""
    loss: Sequence[tuple[float, float]]
    """(step, training loss)."""
    validation_ssr: Sequence[tuple[float, float]]
    """(step, SSR on the validation split, 0..1)."""
    kept_step: int | None = None
    """Step whose head was kept, where that is known."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """Settings of the run."""


@dataclass(frozen=True, kw_only=True)
class Projection:
    """Images of a few identities as one scorer embeds them; projected to two dimensions by the report."""

    scorer: str
    embedding_ND: NDArray[np.floating]
    identities: Sequence[str]
    """Identity of each row."""
    is_view: Sequence[bool]
    """A view of the identity, or a distractor in the background of one."""


@dataclass(frozen=True, kw_only=True)
class SheetPicture:
    """One picture of a tuple."""

    image: bytes
    """Encoded PNG, JPEG or WebP, already small."""
    label: str
    """What it is in a few words, e.g. the engine."""
    similarities: Mapping[str, float | None] = field(default_factory=dict)
    """Similarity to the anchor by scorer."""
    oracle: float | None = None
    """Share of the object that stayed the same, where that is known."""


@dataclass(frozen=True, kw_only=True)
class SheetTuple:
    """An anchor with its identity's other views and the distractors in its own background."""

    identity_id: str
    category: str
    anchor: SheetPicture
    positives: Sequence[SheetPicture]
    distractors: Sequence[SheetPicture]


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything the page shows. Sections without data are left out, apart from the metrics."""

    title: str
    statement: Sequence[str]
    """What the data is, in plain paragraphs: toy, real, random weights; shown on top."""
    rows: Sequence[MetricsRow]
    baseline: str = "frozen"
    """The scorer others are compared with."""
    confidence: float = 0.95
    """Share of the resamples inside the rows' intervals."""
    headline_group: str = ""
    """The group whose numbers stand on top; the headline of the engines there are where it is empty or absent."""
    group_engines: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Engines of each group, for the captions."""
    engine_sheet: bytes = b""
    """A picture (JPEG): view, mask and what each engine made of it, one identity a row."""
    engine_counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Engine -> verdict -> distractors."""
    curves: Sequence[TrainingCurve] = ()
    measures: Sequence[Measure] = ()
    """Every number, by benchmark."""
    gaps: Sequence[str] = ()
    """What should have been compared and was not, with names, a sentence each."""
    figures: Sequence[Figure] = ()
    """In the order of the page."""
    not_drawn: Mapping[str, str] = field(default_factory=dict)
    """Figures that are not there, each with the reason."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Facts about the run: data sizes, times, versions."""
    commands: Sequence[str] = ()
    """Commands that make the same result."""
    settings: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """Resolved settings of each stage."""
