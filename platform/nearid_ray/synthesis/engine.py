"""What an engine is: it takes views with masks and paints another instance into them.

An engine runs without Ray. It returns its raw picture; pasting the background back, checking and encoding are the
pipeline's work and the same for every engine.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from schemas.distractors import CONTROL_SUFFIX

CONTROL = CONTROL_SUFFIX
"""Ends the name of an engine's artefact control."""
SAME_OBJECT = ("control", "context")
"""Groups of engines whose pictures show the same object: they are no distractors."""


@dataclass(frozen=True, kw_only=True)
class EngineRequest:
    """One row of the work list with its pictures decoded.

    `view_HW3` is uint8 RGB, `mask_HW` uint8 with 255 on the object. `view_provenance` and `identity_provenance` are
    what the importer said. Donor fields are set for engines with `needs_donor`.
    """

    view_HW3: np.ndarray
    mask_HW: np.ndarray
    seed: int
    prompt: str = ""
    negative_prompt: str = ""
    category: str = ""
    description: str = ""
    view_provenance: dict[str, Any] = field(default_factory=dict)
    identity_provenance: dict[str, Any] = field(default_factory=dict)
    donor_HW3: np.ndarray | None = None
    donor_mask_HW: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class EngineResult:
    """What an engine made.

    `image_HW3` uint8 RGB; `mask_HW` uint8, 255 = the region the engine may have painted (outside of it the view is
    pasted back). `part_mask_HW` and `oracle` (share of the object that stayed the same) only where the engine knows.
    `flagged` is what the engine's own safety check said; None where it has none.
    """

    image_HW3: np.ndarray
    mask_HW: np.ndarray
    part_mask_HW: np.ndarray | None = None
    oracle: float | None = None
    flagged: bool | None = None


class Engine(Protocol):
    """One engine configuration."""

    @property
    def name(self) -> str:
        """The configuration; the column `engine`."""

    @property
    def family(self) -> str:
        """The code that runs it."""

    @property
    def group(self) -> str:
        """What it is for: train (used in training), unseen (held out from training), extra (neither), part (part-level
        edits), control (the same object painted anew), context (the same object elsewhere), simulation (no pictures of
        use)."""

    @property
    def needs_donor(self) -> bool:
        """Whether a row needs another identity's picture."""

    @property
    def uses_model(self) -> bool:
        """Whether it wants a GPU where the cluster has any."""

    @property
    def licence(self) -> str:
        """Licence of the published weights, empty where there are none."""

    @property
    def model_card(self) -> str:
        """Where the published weights are described."""

    @property
    def revision(self) -> str:
        """Name of its weights or code."""

    @property
    def settings(self) -> dict[str, Any]:
        """Every value that changes pixels, JSON-like; with `revision` it makes the settings hash."""

    @property
    def negative_prompt(self) -> str:
        """What is not wanted, or empty."""

    def prompt(self, category: str, description: str) -> str:
        """What is asked for of an identity."""

    def control(self, strength: float) -> "Engine | None":
        """The engine that paints the same object anew, named `NAME-control`; None where this one cannot.

        `strength`, above 0 to 1, is how far from the object it may go where the engine can choose.
        """

    def check(self) -> None:
        """Refuse, with UsageError, what cannot work, before a worker starts."""

    def load(self) -> None:
        """Bring weights into memory; called once a worker, before the first `generate`."""

    def generate(self, requests: list[EngineRequest]) -> "list[EngineResult | Exception]":
        """One result a request, in order; an exception in place of a result marks that row alone as failed."""


class PlainEngine:
    """What engines without a model have in common."""

    group = "train"
    needs_donor = False
    uses_model = False
    licence = ""
    model_card = ""
    revision = "1"
    negative_prompt = ""

    def prompt(self, category: str, description: str) -> str:
        """What is known of the identity; these engines do not read it."""
        return description or category

    def control(self, strength: float) -> Engine | None:
        """None: it cannot paint the same object."""
        return None

    def check(self) -> None:
        """Nothing can be missing."""

    def load(self) -> None:
        """Nothing to load."""
