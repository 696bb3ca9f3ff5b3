"""A simulated engine: it waits as long as a model would take and paints smooth noise. For benchmarks and tests alone.

It takes the place of a model where none can run: what a pipeline does around the model, how it scales over workers and
what survives a fault can be measured with it. Its pictures are of no use.
"""

import time
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np

from nearid_ray.data.masks import check_mask
from nearid_ray.synthesis.engine import CONTROL, Engine, EngineRequest, EngineResult, PlainEngine

_GRAIN = 8
"""The noise has so many cells along a side."""


@dataclass(frozen=True, kw_only=True)
class SleepingSettings:
    """How long it takes and what it paints."""

    name: str = "sleeping"
    """Configuration; the column `engine`."""
    group: str = "simulation"
    """simulation, or control."""
    load_s: float = 0.0
    """Seconds that loading takes."""
    batch_s: float = 0.0
    """Seconds a call."""
    row_s: float = 0.0
    """Seconds a row, beside those of the call."""
    strength: float = 1.0
    """1 paints noise alone, less lets the object shine through; 0 to 1."""

    def __post_init__(self) -> None:
        for name in ("load_s", "batch_s", "row_s"):
            if not 0 <= getattr(self, name) <= 3600:
                raise ValueError(f"{self.name}: {name} is {getattr(self, name)}; expected 0 to 3600 s")
        if not 0 <= self.strength <= 1:
            raise ValueError(f"{self.name}: strength is {self.strength}; expected 0 to 1")


class SleepingEngine(PlainEngine):
    """Waits, then paints noise by the row's seed into the mask."""

    family = "sleeping"

    def __init__(self, settings: SleepingSettings) -> None:
        self.config = settings
        self.name, self.group = settings.name, settings.group
        # Like a model's, its pace is no part of what it paints.
        values = asdict(settings)
        self.settings: dict[str, Any] = {name: values[name] for name in ("name", "strength")}

    def control(self, strength: float) -> Engine | None:
        """The object under a little noise."""
        if self.group == "control":
            return None
        values = asdict(self.config) | {"name": self.name + CONTROL, "group": "control", "strength": strength}
        return SleepingEngine(SleepingSettings(**values))

    def load(self) -> None:
        """Waits."""
        time.sleep(self.config.load_s)

    def generate(self, requests: list[EngineRequest]) -> list[EngineResult | Exception]:
        """One result a request; an unusable mask gives a ValueError in its place."""
        time.sleep(self.config.batch_s + self.config.row_s * len(requests))
        return [self._one(request) for request in requests]

    def _one(self, request: EngineRequest) -> EngineResult | Exception:
        try:
            check_mask(request.mask_HW)
        except ValueError as error:
            return error
        height, width = request.view_HW3.shape[:2]
        cells = np.random.default_rng(request.seed).integers(0, 256, (_GRAIN, _GRAIN, 3), dtype=np.uint8)
        noise_HW3 = cv2.resize(cells, (width, height), interpolation=cv2.INTER_LINEAR)
        share = self.config.strength
        painted_HW3 = cv2.addWeighted(noise_HW3, share, request.view_HW3, 1 - share, 0)
        return EngineResult(image_HW3=painted_HW3, mask_HW=request.mask_HW)
