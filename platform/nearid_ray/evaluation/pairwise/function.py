"""A function of the user's that compares pictures, e.g. a learned perceptual distance such as DreamSim's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nearid_ray.errors import UsageError
from nearid_ray.evaluation.pairwise.imported import Imported
from nearid_ray.evaluation.pairwise.scorer import Judgement, Pair

DISTANCE = "distance:"
"""Before module:function, of one that gives distances: smaller = more alike."""
WHAT = "the pair function"


@dataclass
class FunctionScorer:
    """Scores by a function of two lists of uint8 RGB pictures (H, W, 3) that gives a number a pair."""

    spec: str
    """module:function, or module:Class whose objects are such functions; `distance:` before it turns the sign."""
    arguments: tuple[str, ...] = ()
    batch_size: int = 32
    uses_masks: bool = False
    _code: Imported | None = field(default=None, repr=False)
    _function: Callable[..., Any] | None = field(default=None, repr=False)

    def check(self) -> None:
        """Find the code; UsageError where there is none."""
        self._code = Imported.find(self.spec.removeprefix(DISTANCE), WHAT, self.arguments)

    def described(self) -> dict[str, Any]:
        return {"kind": "function", "negated": self.spec.startswith(DISTANCE), **self._found().described()}

    def load(self, device: str) -> None:
        self._function = self._found().load(WHAT, device)

    def score(self, pairs: Sequence[Pair]) -> list[Judgement]:
        """UsageError where it is not given one number a pair; a number that is not finite is that pair's error."""
        if self._function is None:
            raise RuntimeError("the function is not loaded yet; call load first")
        values = self._function([pair.first.image_HW3 for pair in pairs], [pair.second.image_HW3 for pair in pairs])
        numbers = self._numbers(values, len(pairs))
        if self.spec.startswith(DISTANCE):
            numbers = -numbers
        return [
            Judgement(similarity=float(value))
            if np.isfinite(value)
            else Judgement(error=f"the pair function gave {value}")
            for value in numbers
        ]

    def _numbers(self, values: Any, expected: int) -> np.ndarray:
        if hasattr(values, "detach"):  # a tensor, perhaps on a GPU
            values = values.detach().float().cpu().numpy()
        try:
            numbers = np.asarray(values, np.float64)
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"{WHAT} {self.spec} gave {type(values).__name__} for {expected} pairs ({error}); expected {expected} "
                "numbers"
            ) from error
        if numbers.shape != (expected,):
            raise UsageError(
                f"{WHAT} {self.spec} gave an array of shape {numbers.shape} for {expected} pairs; expected one number "
                f"a pair, shape ({expected},)"
            )
        return numbers

    def _found(self) -> Imported:
        if self._code is None:
            raise RuntimeError("the code is not found yet; call check first")
        return self._code
