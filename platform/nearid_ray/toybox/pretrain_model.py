"""What the toybox backbone is pretrained with: rendered images with captions, and five losses.

Axes: B images, T tokens (patches), S caption slots, D width, H, W pixels, C channels, P pixels of a pooled patch, N
words of a vocabulary, M patches on objects.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from nearid_ray.identifiers import seed_of
from nearid_ray.toybox.backbone import PATCH_PX, PIXEL_MEAN, PIXEL_STD, random_backbone
from nearid_ray.toybox.captions import NOTHING, SLOT_SIZES, SLOTS, caption_words, word_indices
from nearid_ray.toybox.render import SIZE_PX, identity_from_seed, render, rng_from_seed
from nearid_ray.toybox.scene import sample_scene

#: Patches a side, hence tokens = GRID**2.
GRID = SIZE_PX // PATCH_PX
#: Patches are reconstructed at half resolution.
_POOLED_PX = PATCH_PX // 2
#: Slots that speak of the object and not of its surroundings.
_OBJECT_SLOTS = [place for place, name in enumerate(SLOTS) if name not in ("background", "light")]


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Rendered images with their captions."""

    image_BHWC: torch.Tensor
    """uint8 RGB."""
    word_BS: torch.Tensor
    """Places of the words in their vocabularies, int64."""
    object_BT: torch.Tensor
    """Share of every patch that the object covers, float32."""


def render_batch(namespace: str, seed: int, start: int, count: int, black_background: float) -> Batch:
    """Images `start` to `start + count` of an endless, seeded list; half of them are mirrored."""
    images = np.empty((count, SIZE_PX, SIZE_PX, 3), np.uint8)
    words = np.empty((count, len(SLOTS)), np.int64)
    shares = np.empty((count, GRID, GRID), np.float32)
    for row in range(count):
        identity = identity_from_seed(seed_of(namespace, seed, start + row))
        rng = rng_from_seed(seed_of(namespace, "scene", seed, start + row))
        scene = sample_scene(rng, SIZE_PX)
        image_HWC, mask_HW = render(identity, scene)
        black, mirrored = rng.random() < black_background, rng.random() < 0.5
        if black:
            image_HWC = np.where(mask_HW[..., None] > 0, image_HWC, np.uint8(0))
        if mirrored:
            image_HWC, mask_HW = image_HWC[:, ::-1], np.ascontiguousarray(mask_HW[:, ::-1])
        images[row] = image_HWC
        words[row] = word_indices(caption_words(identity, NOTHING if black else scene.background, scene.light))
        shares[row] = cv2.resize(mask_HW, (GRID, GRID), interpolation=cv2.INTER_AREA)
    return Batch(
        image_BHWC=torch.from_numpy(images),
        word_BS=torch.from_numpy(words),
        object_BT=torch.from_numpy(shares.reshape(count, -1) / 255),
    )


class CaptionTower(nn.Module):
    """Embeds captions: one vector a word and slot (one more for a word left out), then a small MLP."""

    def __init__(self, width: int, word_width: int = 64) -> None:
        super().__init__()
        self.words = nn.ModuleList(nn.Embedding(size + 1, word_width) for size in SLOT_SIZES)
        self.mlp = nn.Sequential(nn.Linear(word_width * len(SLOT_SIZES), 256), nn.GELU(), nn.Linear(256, width))
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.bias = nn.Parameter(torch.tensor(-8.0))

    def forward(self, word_BS: torch.Tensor) -> torch.Tensor:
        parts = [table(word_BS[:, slot]) for slot, table in enumerate(self.words)]
        return F.normalize(self.mlp(torch.cat(parts, dim=1)), dim=1)


class Pretraining(nn.Module):
    """The backbone with everything that only pretraining needs."""

    def __init__(self, *, seed: int, background_dropout: float, light_dropout: float, detail_dropout: float) -> None:
        super().__init__()
        self.backbone = random_backbone(seed)
        width = self.backbone.config.hidden_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of("toybox-pretrain-heads", seed))
            self.captions = CaptionTower(width)
            self.slots = nn.ModuleList(nn.Linear(width, size) for size in SLOT_SIZES)
            self.decoder = nn.Linear(width, 3 * _POOLED_PX**2 + 1)
            self.patch_words = nn.Linear(width, sum(SLOT_SIZES[slot] for slot in _OBJECT_SLOTS))
        dropout = {"category": 0.1, "color": 0.2, "pattern": 0.4}
        dropout |= {"background": background_dropout, "light": light_dropout}
        self.word_dropout = [dropout.get(slot, detail_dropout) for slot in SLOTS]
        # Pattern and decal are learned last by far: the other words can be told from colours and outlines.
        weight = {"pattern": 3.0, "decal": 2.0, "decal color": 0.7, "light": 0.5}
        self.patch_weights = [weight.get(slot, 1.0) for slot in SLOTS]
        # What captions rarely say the pooled embedding need not hold.
        self.slot_weights = [
            weight.get(slot, 1.0) * (1 - drop) for slot, drop in zip(SLOTS, self.word_dropout, strict=True)
        ]

    def losses(self, batch: Batch, kept_tokens: float, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """The five losses of one batch, float32 scalars."""
        pixel_BCHW = to_pixels(batch.image_BHWC)
        pooled_BTP, object_BT = _patches(pixel_BCHW), batch.object_BT
        count, tokens = object_BT.shape
        with torch.autocast("cpu", torch.bfloat16):
            hidden_BTD = self.backbone.embeddings(pixel_BCHW)
            if kept_tokens < 1:
                kept_BT = torch.rand(count, tokens, generator=generator).argsort(1)[:, : int(tokens * kept_tokens)]
                hidden_BTD, pooled_BTP = _take(hidden_BTD, kept_BT), _take(pooled_BTP, kept_BT)
                object_BT = object_BT.gather(1, kept_BT)
            token_BTD = self.backbone.post_layernorm(self.backbone.encoder(hidden_BTD).last_hidden_state)
            pooled_BD = self.backbone.head(token_BTD)
            decoded_BTP = self.decoder(token_BTD)
            slot_logits = [slot(pooled_BD).float() for slot in self.slots]
        decoded_BTP = decoded_BTP.float()
        words = zip(self.slot_weights, slot_logits, batch.word_BS.unbind(1), strict=True)
        return {
            "contrast": self._contrast(pooled_BD.float(), batch.word_BS, generator),
            "words": torch.stack([weight * F.cross_entropy(logit, word) for weight, logit, word in words]).sum(),
            "pixels": (decoded_BTP[..., :-1] - pooled_BTP).square().mean(),
            "object": F.binary_cross_entropy_with_logits(decoded_BTP[..., -1], object_BT),
            "patch words": self._patch_words(token_BTD, object_BT, batch.word_BS),
        }

    def _patch_words(self, token_BTD: torch.Tensor, object_BT: torch.Tensor, word_BS: torch.Tensor) -> torch.Tensor:
        """The words that describe the object, read from every patch that it mostly covers."""
        on_object_BT = object_BT > 0.5
        word_MS = word_BS[on_object_BT.nonzero()[:, 0]]
        if not len(word_MS):
            return token_BTD.float().sum() * 0.0
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.patch_words(token_BTD[on_object_BT]).float()
        parts = logits.split([SLOT_SIZES[slot] for slot in _OBJECT_SLOTS], dim=1)
        losses = [
            self.patch_weights[slot] * F.cross_entropy(part, word_MS[:, slot])
            for slot, part in zip(_OBJECT_SLOTS, parts, strict=True)
        ]
        return torch.stack(losses).sum()

    def _contrast(self, pooled_BD: torch.Tensor, word_BS: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """SigLIP's loss; captions that read the same after words were left out count as pairs."""
        dropped_BS = torch.rand(word_BS.shape, generator=generator) < torch.tensor(self.word_dropout)
        caption_BS = torch.where(dropped_BS, torch.tensor(SLOT_SIZES), word_BS)
        logit_BB = F.normalize(pooled_BD, dim=1) @ self.captions(caption_BS).T
        logit_BB = logit_BB * self.captions.log_scale.exp() + self.captions.bias
        same_BB = (caption_BS[:, None] == caption_BS[None]).all(-1)
        return -F.logsigmoid(torch.where(same_BB, logit_BB, -logit_BB)).sum() / len(word_BS)


def to_pixels(image_BHWC: torch.Tensor) -> torch.Tensor:
    """uint8 images as the backbone reads them, float32 (B, C, H, W) in [-1, 1]."""
    return (image_BHWC.permute(0, 3, 1, 2).float() / 255 - PIXEL_MEAN) / PIXEL_STD


@torch.no_grad()
def zero_shot(model: Pretraining, batch: Batch) -> dict[str, float]:
    """Accuracy a slot: is the image nearest to its own caption among those that differ in that one word?

    `caption` is the share of images whose own caption is the nearest of all captions of the batch.
    """
    parts = [model.backbone(to_pixels(part)).pooler_output for part in batch.image_BHWC.split(250)]
    image_BD = F.normalize(torch.cat(parts), dim=1)
    word_BS = batch.word_BS
    nearest_B = (image_BD @ model.captions(word_BS).T).argmax(1)
    result = {"caption": float((word_BS[nearest_B] == word_BS).all(1).float().mean())}
    for slot, size in enumerate(SLOT_SIZES):
        option_BNS = word_BS[:, None].repeat(1, size, 1)
        option_BNS[..., slot] = torch.arange(size)
        option_BND = model.captions(option_BNS.flatten(0, 1)).unflatten(0, (len(word_BS), size))
        chosen_B = torch.einsum("bd,bnd->bn", image_BD, option_BND).argmax(1)
        result[list(SLOTS)[slot]] = float((chosen_B == word_BS[:, slot]).float().mean())
    return result


def _patches(pixel_BCHW: torch.Tensor) -> torch.Tensor:
    """Pixels of every patch at half resolution, (B, T, P)."""
    small = F.avg_pool2d(pixel_BCHW, 2)
    return F.unfold(small, _POOLED_PX, stride=_POOLED_PX).transpose(1, 2)


def _take(value_BTX: torch.Tensor, kept_BT: torch.Tensor) -> torch.Tensor:
    return value_BTX.gather(1, kept_BT[..., None].expand(-1, -1, value_BTX.shape[-1]))
