"""What an engine is: it takes views with masks and paints another instance into them.

An engine runs without Ray. It returns its raw picture; pasting the background back, checking and encoding are the
pipeline's work and the same for every engine.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np


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
    """

    image_HW3: np.ndarray
    mask_HW: np.ndarray
    part_mask_HW: np.ndarray | None = None
    oracle: float | None = None


class Engine(Protocol):
    """One engine configuration.

    `settings` holds every value that changes pixels (JSON-like); with `revision` it makes the settings hash.
    `group` says what it is for: train (used in training), unseen (held out from training), part (part-level edits).
    """

    name: str
    family: str
    revision: str
    group: str
    needs_donor: bool
    settings: dict[str, Any]

    def load(self) -> None:
        """Bring weights into memory; called once a worker, before the first `generate`."""

    def generate(self, requests: list[EngineRequest]) -> "list[EngineResult | Exception]":
        """One result a request, in order; an exception in place of a result marks that row alone as failed."""
