"""Rows through an engine: in the plan's batches, judged, and painted again where the gate rejects them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nearid_ray.data.difference import background_max_difference
from nearid_ray.data.images import resize_mask, resize_rgb
from nearid_ray.gpu_batches import FittingBatches
from nearid_ray.identifiers import seed_of
from nearid_ray.synthesis.compose import compose
from nearid_ray.synthesis.engine import SAME_OBJECT, Engine, EngineRequest, EngineResult
from nearid_ray.synthesis.gate import Embed, GateSettings, Measured, judge, measure


@dataclass(frozen=True, kw_only=True)
class Row:
    """A planned row, its pictures decoded; `request` is None where `error` says why there are none."""

    row_id: str
    batch: int
    """Rows of a shard with the same number share a pass of the engine."""
    request: EngineRequest | None
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Painted:
    """A row's last attempt: pictures with the background pasted back and what the gate says, or an error."""

    attempt: int = 0
    error: str = ""
    image_HW3: np.ndarray | None = None
    mask_HW: np.ndarray | None = None
    part_mask_HW: np.ndarray | None = None
    oracle: float | None = None
    leak: int = -1
    """Largest difference to the view outside the mask; -1 where nothing was painted."""
    measured: Measured | None = None
    verdict: str = "none"


class Batches(FittingBatches[EngineRequest, EngineResult | Exception]):
    """Gives rows to one engine in batches, and remembers how many fit the GPU's memory."""

    def __init__(self, engine: Engine, tell: Callable[[str], None] | None = None) -> None:
        super().__init__(self._generate, who=engine.name, tell=tell)
        self.engine = engine

    def _generate(self, part: list[EngineRequest]) -> list[EngineResult | Exception]:
        made = self.engine.generate(part)
        if len(made) != len(part):
            raise RuntimeError(f"{self.engine.name}: {len(part)} rows in, {len(made)} results out")
        return made


@dataclass(frozen=True, kw_only=True)
class Painter:
    """Turns rows into painted ones."""

    batches: Batches
    gate: GateSettings
    feather_px: float = 0.0
    embed: Embed | None = None
    """The gate's backbone, where it has one."""

    def paint(self, rows: Sequence[Row]) -> list[Painted]:
        """The rows of one shard, in order. What is rejected is painted again with the seed of its next attempt, the
        rejected rows of the shard among themselves in the plan's order: the pixels follow from the plan alone.
        """
        results = [Painted(error=row.error) for row in rows]
        ready = [place for place, row in enumerate(rows) if row.request is not None]
        groups = list(_planned_batches(rows, ready))
        size = max((len(group) for group in groups), default=1)
        for attempt in range(self.gate.retries + 1):
            for group in groups:
                requests = [_seeded(rows[place], attempt) for place in group]
                for place, request, made in zip(group, requests, self.batches.run(requests), strict=True):
                    results[place] = self._judged(request, made, attempt)
            again = [place for place in ready if results[place].verdict not in ("accepted", "none")]
            groups = list(_batches_of_size(rows, again, size))
        return results

    def _judged(self, request: EngineRequest, made: EngineResult | Exception, attempt: int) -> Painted:
        if isinstance(made, Exception):
            return Painted(attempt=attempt, error=f"{type(made).__name__}: {made}")
        try:
            return self._composed(request, made, attempt)
        except ValueError as error:  # an engine's picture or mask of an impossible shape
            return Painted(attempt=attempt, error=str(error))

    def _composed(self, request: EngineRequest, made: EngineResult, attempt: int) -> Painted:
        view_HW3 = request.view_HW3
        height, width = view_HW3.shape[:2]
        mask_HW = resize_mask(made.mask_HW, width, height)
        painted_HW3 = resize_rgb(made.image_HW3, width, height)
        image_HW3 = compose(view_HW3, painted_HW3, mask_HW, self.feather_px)
        leak = background_max_difference(view_HW3, image_HW3, mask_HW)
        if leak:
            said = f"the background differs by up to {leak} outside the mask"
            return Painted(attempt=attempt, error=said, leak=leak)
        seen = measure(view_HW3, image_HW3, mask_HW, painted_HW3=painted_HW3, flagged=made.flagged, embed=self.embed)
        return Painted(
            attempt=attempt,
            image_HW3=image_HW3,
            mask_HW=mask_HW,
            part_mask_HW=made.part_mask_HW,
            oracle=made.oracle,
            leak=leak,
            measured=seen,
            verdict=judge(seen, self.gate, control=self.batches.engine.group in SAME_OBJECT),
        )


def _planned_batches(rows: Sequence[Row], ready: Sequence[int]) -> Iterator[list[int]]:
    numbers = dict.fromkeys(rows[place].batch for place in ready)
    for number in numbers:
        yield [place for place in ready if rows[place].batch == number]


def _batches_of_size(rows: Sequence[Row], places: Sequence[int], size: int) -> Iterator[list[int]]:
    """Batches of at most `size` rows whose pictures have one size, in order."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for place in places:
        request = rows[place].request
        if request is not None:
            by_shape.setdefault(request.view_HW3.shape, []).append(place)
    for same in by_shape.values():
        for start in range(0, len(same), size):
            yield same[start : start + size]


def _seeded(row: Row, attempt: int) -> EngineRequest:
    if row.request is None:
        raise RuntimeError(f"row {row.row_id} has no pictures")
    return replace(row.request, seed=seed_of(row.row_id, attempt))
