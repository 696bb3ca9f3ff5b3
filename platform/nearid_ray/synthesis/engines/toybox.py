"""The toybox engine: renders the near-identity sibling of a toybox identity into the same scene. No model."""

from typing import Any

from nearid_ray.synthesis.engine import EngineRequest, EngineResult, PlainEngine
from nearid_ray.toybox.identity import KINDS, PART_KINDS, WITHHELD_KINDS
from nearid_ray.toybox.render import sibling_from_seeds


class ToyboxEngine(PlainEngine):
    """One kind of sibling. Works on views of the toybox importer alone, whose provenance holds the seeds."""

    family = "toybox"

    def __init__(self, kind: str) -> None:
        if kind not in KINDS:
            raise ValueError(f"unknown toybox kind {kind!r}; expected one of {', '.join(KINDS)}")
        self.kind = kind
        self.name = f"toybox-{kind}"
        self.group = "part" if kind in PART_KINDS else "unseen" if kind in WITHHELD_KINDS else "train"
        self.settings: dict[str, Any] = {"kind": kind}

    def generate(self, requests: list[EngineRequest]) -> list[EngineResult | Exception]:
        return [self._render(request) for request in requests]

    def _render(self, request: EngineRequest) -> EngineResult | Exception:
        try:
            identity_seed = request.identity_provenance["identity_seed"]
            scene_seed = request.view_provenance["scene_seed"]
        except KeyError as missing:
            return ValueError(f"{self.name} paints toybox views alone; this view's provenance has no {missing}")
        image = sibling_from_seeds(identity_seed, scene_seed, self.kind, request.seed, request.view_HW3.shape[0])
        return EngineResult(
            image_HW3=image.image_HWC,
            mask_HW=image.union_mask_HW,
            part_mask_HW=image.part_mask_HW,
            oracle=image.oracle,
        )
