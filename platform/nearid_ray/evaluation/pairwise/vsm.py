"""VSM as a scorer of pairs: features from an extractor of the user's, correspondences by `evaluation.vsm`.

Axes: H, W size of a feature map, D width of its features.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nearid_ray.errors import UsageError
from nearid_ray.evaluation.pairwise.imported import Imported
from nearid_ray.evaluation.pairwise.scorer import Judgement, Pair, Picture
from nearid_ray.evaluation.vsm import SEMANTIC_ABOVE, VISUAL_ABOVE, object_locations, vsm_score

EXAMPLE = "nearid_ray.evaluation.pairwise.extractors:TwoLayers"
WHAT = "the extractor"
NOT_VALID = "not valid: no location of the object corresponds, or a feature is not finite"
_KEPT = 64
"""Pictures whose features are kept: an identity's pairs stand together and share most of theirs."""


@dataclass(frozen=True, kw_only=True)
class VsmSettings:
    """What counts as corresponding and as looking the same."""

    semantic_above: float = SEMANTIC_ABOVE
    """VSM: locations with a best semantic cosine above it correspond; -1 to 1."""
    visual_above: float = VISUAL_ABOVE
    """VSM: of these, locations with a best visual cosine above it look the same; -1 to 1."""
    both_ways: bool = False
    """VSM: the mean of the scores from first to second and from second to first, instead of the first alone."""

    def __post_init__(self) -> None:
        for name in ("semantic_above", "visual_above"):
            if not -1 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a cosine from -1 to 1")


@dataclass
class VsmScorer:
    """Share of the object's corresponding locations that look the same."""

    extractor: str
    """module:function (or module:Class): image (H, W, 3) -> (semantic features, visual features), each (H, W, D)."""
    arguments: tuple[str, ...] = ()
    settings: VsmSettings = VsmSettings()
    batch_size: int = 32
    uses_masks: bool = True
    _code: Imported | None = field(default=None, repr=False)
    _extract: Callable[..., Any] | None = field(default=None, repr=False)
    _features: "OrderedDict[str, tuple[np.ndarray, np.ndarray]]" = field(default_factory=OrderedDict, repr=False)

    def check(self) -> None:
        """Find the code; UsageError where there is none."""
        if not self.extractor:
            raise UsageError(
                "VSM needs features: give an extractor as vsm:module:function, an image to (semantic, visual) feature "
                f"maps, e.g. vsm:{EXAMPLE} (two layers of a DINOv2)"
            )
        self._code = Imported.find(self.extractor, WHAT, self.arguments)

    def described(self) -> dict[str, Any]:
        s = self.settings
        thresholds = {"semantic_above": s.semantic_above, "visual_above": s.visual_above, "both_ways": s.both_ways}
        return {"kind": "vsm", **thresholds, **self._found().described()}

    def load(self, device: str) -> None:
        self._extract = self._found().load(WHAT, device)

    def score(self, pairs: Sequence[Pair]) -> list[Judgement]:
        """UsageError where the extractor gives no feature maps; an exception of its own is that pair's error."""
        return [self._judged(pair) for pair in pairs]

    def _judged(self, pair: Pair) -> Judgement:
        try:
            first, second = self._object_features(pair.first), self._object_features(pair.second)
        except UsageError:
            raise
        except Exception as error:  # of the user's code
            return Judgement(error=f"the extractor failed: {type(error).__name__}: {error}")
        above = {"semantic_above": self.settings.semantic_above, "visual_above": self.settings.visual_above}
        try:
            value = vsm_score(*first, *second, **above)
            if self.settings.both_ways:
                value = (value + vsm_score(*second, *first, **above)) / 2
        except ValueError as error:  # widths that differ between two pictures
            raise UsageError(f"{WHAT} {self.extractor}: {error}") from error
        if np.isfinite(value):
            return Judgement(similarity=value)
        return Judgement(answer=NOT_VALID)

    def _object_features(self, picture: Picture) -> tuple[np.ndarray, np.ndarray]:
        """(semantic, visual) features at the object's locations."""
        if picture.mask_HW is None:
            raise UsageError("VSM compares objects: it needs the masks of both pictures")
        if picture.image_id not in self._features:
            semantic_HWD, visual_HWD = self._maps(picture.image_HW3)
            rows, columns = semantic_HWD.shape[:2]
            kept = object_locations(picture.mask_HW, rows, columns)
            found = semantic_HWD.reshape(rows * columns, -1)[kept], visual_HWD.reshape(rows * columns, -1)[kept]
            self._features[picture.image_id] = found
            if len(self._features) > _KEPT:
                self._features.popitem(last=False)
        self._features.move_to_end(picture.image_id)
        return self._features[picture.image_id]

    def _maps(self, image_HW3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self._extract is None:
            raise RuntimeError("the extractor is not loaded yet; call load first")
        made = self._extract(image_HW3)
        if not isinstance(made, tuple | list) or len(made) != 2:
            said = f"{len(made)} values" if isinstance(made, tuple | list) else type(made).__name__
            raise UsageError(f"{WHAT} {self.extractor} gave {said}; expected two feature maps (semantic, visual)")
        semantic, visual = (_array(value) for value in made)
        maps = all(value.ndim == 3 and value.size for value in (semantic, visual))
        if not maps or semantic.shape[:2] != visual.shape[:2]:
            raise UsageError(
                f"{WHAT} {self.extractor} gave arrays of shapes {semantic.shape} and {visual.shape}; expected two "
                "feature maps (height, width, features) of one height and width"
            )
        return semantic, visual

    def _found(self) -> Imported:
        if self._code is None:
            raise RuntimeError("the code is not found yet; call check first")
        return self._code


def _array(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):  # a tensor, perhaps on a GPU
        value = value.detach().float().cpu().numpy()
    return np.asarray(value, np.float32)
