"""What a report shows, as plain data: filled by the loader from run folders, or by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nearid_ray.evaluation.summary import MetricsRow


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
    headline_group: str = "object-level"
    """The group whose numbers stand on top; the last group where it is absent."""
    group_engines: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Engines of each group, for the captions."""
    engine_sheet: bytes = b""
    """A picture (JPEG): view, mask and what each engine made of it, one identity a row."""
    engine_counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Engine -> verdict -> distractors."""
    curves: Sequence[TrainingCurve] = ()
    projections: Sequence[Projection] = ()
    sheet: Sequence[SheetTuple] = ()
    sheet_note: str = "Drawn at random by a hash of the identity, not chosen."
    """How the tuples of the sheet were selected."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Facts about the run: data sizes, times, versions."""
    commands: Sequence[str] = ()
    """Commands that make the same result."""
    settings: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """Resolved settings of each stage."""
