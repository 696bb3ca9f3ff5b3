"""Masks by models that tell foreground from background: BiRefNet (Zheng et al. 2024) and its kin.

Such a model reads a square of 1024 pixels and says of each pixel how likely it belongs to the foreground; above one
half it is object. BiRefNet's own code comes with its weights (`--mask-trust-remote-code`). Models for semantic
segmentation that transformers knows serve as well, when they have one class: the foreground.

Axes: B pictures, H, W pixels of a picture, S the model's side.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nearid_ray.data.masking.masker import Found
from nearid_ray.data.masking.model import ModelPlace, device, find_model, in_batches, load_weights, precision
from nearid_ray.data.masking.settings import MaskSettings
from nearid_ray.data.masks import check_mask
from nearid_ray.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

_AUTO_CLASS = "AutoModelForImageSegmentation"
_THRESHOLD = 0.5


class ForegroundMasker:
    """Masks by a model whose answer is one map of logits, above 0 for the foreground."""

    name = "birefnet"
    uses_model = True

    def __init__(self, settings: MaskSettings) -> None:
        self._settings = settings
        self._place = find_model(settings)
        self._own_code = _needs_own_code(self._place, settings.mask_trust_remote_code)
        self._pixels = self._place.pixels(1024)
        self._model: Any = None

    def describe(self) -> dict[str, Any]:
        return {"mask_method": self.name, **self._place.describe(), "mask_dtype": self._settings.mask_dtype}

    def load(self) -> None:
        import transformers

        if self._own_code:
            self._model = load_weights(getattr(transformers, _AUTO_CLASS), self._place, trust_remote_code=True)
        else:
            self._model = load_weights(transformers.AutoModelForSemanticSegmentation, self._place)

    def masks(self, images: Sequence[np.ndarray]) -> list[Found]:
        return in_batches(images, self._settings.mask_batch, self._batch)

    def _batch(self, images_B: Sequence[np.ndarray]) -> list[Found]:
        import torch

        resized_BSS3 = torch.from_numpy(np.stack([self._pixels.resized(image) for image in images_B])).to(device())
        with precision(self._settings.mask_dtype):
            output = self._model(self._pixels.normalised(resized_BSS3))
        logits_BSS = foreground_logits(output, len(images_B), self._place.spec).float()
        return [_mask(logits_BSS[i], image_HW3.shape[:2]) for i, image_HW3 in enumerate(images_B)]


def foreground_logits(output: Any, pictures: int, spec: str) -> "Tensor":
    """The map (B, s, s) in a model's answer: its `logits`, or of several maps the last, which is the finest.

    UsageError when that is no map of one channel for each of the B = `pictures`.
    """
    import torch

    answer = getattr(output, "logits", output)
    if isinstance(answer, list | tuple) and len(answer):
        answer = answer[-1]
    if not isinstance(answer, torch.Tensor):
        raise UsageError(f"mask_model {spec} answered with {type(answer).__name__}; expected foreground logits")
    shape = tuple(answer.shape)
    if len(shape) == 4 and shape[1] == 1:
        answer = answer[:, 0]
    if answer.ndim != 3 or answer.shape[0] != pictures:
        raise UsageError(
            f"mask_model {spec} answered with values of shape {shape}; expected ({pictures}, 1, height, width): one "
            "map of foreground logits a picture"
        )
    return answer


def _mask(logits_SS: "Tensor", size: tuple[int, int]) -> Found:
    """The mask at the picture's `size` (H, W): its probability, resized, is above one half."""
    import torch.nn.functional as functional

    probability = functional.interpolate(logits_SS.sigmoid()[None, None], size=size, mode="bilinear", antialias=True)
    mask_HW = np.where(probability[0, 0].cpu().numpy() > _THRESHOLD, np.uint8(255), np.uint8(0))
    try:
        check_mask(mask_HW)
    except ValueError as error:
        return ValueError(f"the model found no object: {error}")
    return mask_HW


def _needs_own_code(place: ModelPlace, trusted: bool) -> bool:
    """Whether the model brings its own code; UsageError where that is not trusted or the model is of another kind."""
    if _AUTO_CLASS in place.config.get("auto_map", {}):
        if not trusted:
            raise UsageError(
                f"mask_model {place.spec} brings its own Python code, which would run here with your rights. Read it, "
                "then give --mask-trust-remote-code (and --mask-revision with the commit that you read)."
            )
        return True
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES as KNOWN

    if place.model_type not in KNOWN:
        raise UsageError(
            f"mask_model {place.spec} is a model of type {place.model_type or 'unknown'}; mask_method birefnet expects "
            f"one with its own code for {_AUTO_CLASS}, or a model for semantic segmentation with one class"
        )
    # transformers writes the classes' names; without them there are two.
    classes = len(place.config.get("id2label") or {"0": "", "1": ""})
    if classes != 1:
        raise UsageError(f"mask_model {place.spec} tells {classes} classes apart; expected one, the foreground")
    return False
