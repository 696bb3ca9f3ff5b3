"""Masks by SAM 2 (Ravi et al. 2024), without a person who clicks: GrabCut's guess is the prompt.

SAM 2 outlines whatever a point or box shows it. Shown are the box around GrabCut's guess and the guess's innermost
point; each answer is three masks (whole, part, part of a part) with the overlap that the model predicts for them. Of
these six the one with the highest

    predicted overlap * (1 + overlap with the guess) / 2

is taken: the guess decides which object is meant, SAM 2 where its outline runs. Where GrabCut finds nothing the middle
of the picture is shown, and the prediction decides alone.

Axes: B pictures, H, W pixels, S the model's side, M masks, L the side of the model's masks (S / 4).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import cv2
import numpy as np

from nearid_ray.data.images import mask_box, resize_mask
from nearid_ray.data.masking.masker import Found
from nearid_ray.data.masking.model import device, find_model, in_batches, load_weights, precision
from nearid_ray.data.masking.settings import MaskSettings
from nearid_ray.data.masks import FULL_SHARE, check_mask, grabcut_mask
from nearid_ray.errors import UsageError

_TYPES = ("sam2", "sam2_video")
"""Checkpoints for pictures, and those for videos, which hold the same model and more."""
_BOX_MARGIN = 0.03
"""The box is larger than the guess by this share of the picture on each side: guesses cut legs and handles short."""
_MIDDLE = (0.1, 0.1, 0.9, 0.9)
"""The box that is shown where there is no guess, as shares of the picture."""


class Prompt(NamedTuple):
    """What the model is shown, in shares of the picture (0 to 1): `point` (x, y), `box` (left, top, right, bottom); and
    the guess it was taken from, (H, W), or None."""

    point: tuple[float, float]
    box: tuple[float, float, float, float]
    guess_HW: np.ndarray | None


class Sam2Masker:
    """Masks by a SAM 2 model in transformers' layout."""

    name = "sam2"
    uses_model = True

    def __init__(self, settings: MaskSettings) -> None:
        self._settings = settings
        self._place = find_model(settings)
        if self._place.model_type not in _TYPES:
            found = self._place.model_type or "unknown"
            raise UsageError(
                f"mask_model {self._place.spec} is a model of type {found}; mask_method sam2 expects one of type "
                f"{' or '.join(_TYPES)}, e.g. facebook/sam2.1-hiera-large"
            )
        self._pixels = self._place.pixels(1024)
        self._model: Any = None

    def describe(self) -> dict[str, Any]:
        return {"mask_method": self.name, **self._place.describe(), "mask_dtype": self._settings.mask_dtype}

    def load(self) -> None:
        from transformers import Sam2Model

        model = load_weights(Sam2Model, self._place)
        side = model.config.prompt_encoder_config.image_size
        if side != self._pixels.image_px:
            raise UsageError(
                f"mask_model {self._place.spec}: its preprocessor makes squares of {self._pixels.image_px} pixels, the "
                f"model reads {side}"
            )
        self._model = model

    def masks(self, images: Sequence[np.ndarray]) -> list[Found]:
        return in_batches(images, self._settings.mask_batch, self._batch)

    def _batch(self, images_B: Sequence[np.ndarray]) -> list[Found]:
        prompts = [prompt_for(image_HW3) for image_HW3 in images_B]
        logits_BMLL, overlap_BM = self._answers(images_B, prompts)
        return [
            _chosen(logits_MLL, overlap_M, prompt, image_HW3.shape[:2])
            for logits_MLL, overlap_M, prompt, image_HW3 in zip(logits_BMLL, overlap_BM, prompts, images_B, strict=True)
        ]

    def _answers(self, images_B: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> tuple[np.ndarray, np.ndarray]:
        """(logits (B, M, L, L), predicted overlap (B, M)) of the box's answers and then the point's, float32."""
        import torch

        side = self._pixels.image_px
        resized_BSS3 = torch.from_numpy(np.stack([self._pixels.resized(image) for image in images_B])).to(device())
        box_B14 = torch.tensor([[prompt.box] for prompt in prompts], device=device()) * side
        point_B112 = torch.tensor([[[prompt.point]] for prompt in prompts], device=device()) * side
        with precision(self._settings.mask_dtype):
            embeddings = self._model.get_image_embeddings(self._pixels.normalised(resized_BSS3))
            ask = partial(self._model, image_embeddings=embeddings, multimask_output=True)
            answers = [
                ask(input_boxes=box_B14),
                ask(input_points=point_B112, input_labels=torch.ones_like(point_B112[..., 0], dtype=torch.int32)),
            ]
        logits = torch.cat([answer.pred_masks[:, 0] for answer in answers], dim=1)
        overlap = torch.cat([answer.iou_scores[:, 0] for answer in answers], dim=1)
        return logits.float().cpu().numpy(), overlap.float().cpu().numpy()


def prompt_for(image_HW3: np.ndarray) -> Prompt:
    """What to show the model of a picture, from GrabCut's guess; the middle where there is none."""
    try:
        guess_HW = grabcut_mask(image_HW3)
    except ValueError:
        return Prompt((0.5, 0.5), _MIDDLE, None)
    height, width = guess_HW.shape
    depth_HW = cv2.distanceTransform(np.pad(guess_HW, 1), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth_HW.argmax()), depth_HW.shape)
    left, top, right, bottom = mask_box(guess_HW)
    box = (
        max(left / width - _BOX_MARGIN, 0.0),
        max(top / height - _BOX_MARGIN, 0.0),
        min(right / width + _BOX_MARGIN, 1.0),
        min(bottom / height + _BOX_MARGIN, 1.0),
    )
    return Prompt(((int(x) + 0.5) / width, (int(y) + 0.5) / height), box, guess_HW)


def choose(logits_MLL: np.ndarray, overlap_M: np.ndarray, guess_LL: np.ndarray | None) -> int:
    """Which of the masks to take, see the top of this file; the first of equals.

    `guess_LL` is the guess at the masks' size, non-zero = object. Raises ValueError when every mask is empty or covers
    the picture.
    """
    best, best_score = -1, -1.0
    for m in range(len(logits_MLL)):
        inside = logits_MLL[m] > 0
        if not 0 < inside.mean() < FULL_SHARE:
            continue
        agreement = 1.0
        if guess_LL is not None:
            agreement = float((inside & (guess_LL > 0)).sum() / (inside | (guess_LL > 0)).sum())
        score = float(overlap_M[m]) * (1 + agreement) / 2
        if score > best_score:
            best, best_score = m, score
    if best < 0:
        raise ValueError("SAM 2 found no object: each of its masks is empty or covers the whole picture")
    return best


def _chosen(logits_MLL: np.ndarray, overlap_M: np.ndarray, prompt: Prompt, size: tuple[int, int]) -> Found:
    """The chosen mask at the picture's `size` (H, W)."""
    height, width = size
    guess_LL = None if prompt.guess_HW is None else resize_mask(prompt.guess_HW, *logits_MLL.shape[:0:-1])
    try:
        logits_LL = logits_MLL[choose(logits_MLL, overlap_M, guess_LL)]
        # Linear interpolation of logits, as SAM 2 does it, keeps the outline finer than the masks' own pixels.
        mask_HW = cv2.resize(logits_LL, (width, height), interpolation=cv2.INTER_LINEAR) > 0
        mask_HW = np.where(mask_HW, np.uint8(255), np.uint8(0))
        check_mask(mask_HW)
    except ValueError as error:
        return error
    return mask_HW
