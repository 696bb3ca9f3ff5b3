"""Drawing toybox objects into scenes, and siblings into the scene of the original.

Everything follows from integers: an image can be drawn again from (identity_seed, scene_seed) and a sibling from
(identity_seed, scene_seed, kind, sibling_seed), by whoever asks and in any order.

Axes: H, W image pixels, C colour channels (RGB).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from nearid_ray.identifiers import seed_of
from nearid_ray.toybox.identity import PART_KINDS, ToyIdentity, sample_identity, sibling
from nearid_ray.toybox.scene import BACKGROUNDS, Scene, sample_background, sample_scene
from nearid_ray.toybox.shapes import BODY, DARK, FRONT, Outline, outline_of, rasterize
from nearid_ray.toybox.surface import decal_field, pattern_field

#: Side of toybox images.
SIZE_PX = 64

_ROUND_RADIUS = 0.85


@dataclass(frozen=True, kw_only=True, eq=False)
class SiblingImage:
    """A near-identity sibling drawn into the scene of the original."""

    image_HWC: np.ndarray
    """uint8 RGB."""
    union_mask_HW: np.ndarray
    """Original and sibling together, uint8, 0 or 255. No pixel outside differs from the original's image."""
    part_mask_HW: np.ndarray | None
    """Changed object pixels, uint8, 0 or 255; None for object-level kinds."""
    oracle: float | None
    """1 - changed / object pixels, for part-level kinds."""


def rng_from_seed(seed: int) -> np.random.Generator:
    """The generator every toybox draw starts from."""
    return np.random.Generator(np.random.PCG64(seed))


def identity_from_seed(seed: int) -> ToyIdentity:
    """The identity with this seed."""
    return sample_identity(rng_from_seed(seed))


def scene_from_seed(seed: int, size_px: int = SIZE_PX, exclude_backgrounds: Sequence[str] = ()) -> Scene:
    """The scene with this seed (and, where backgrounds are excluded, with these exclusions)."""
    return sample_scene(rng_from_seed(seed), size_px, exclude_backgrounds)


def views_of(identity_seed: int) -> int:
    """How many views an identity has: 2 (67 %) or 3 (33 %)."""
    return 3 if seed_of("toybox-views", identity_seed) % 100 < 33 else 2


def scene_seeds(identity_seed: int, n_views: int | None = None) -> list[int]:
    """Seeds of an identity's scenes, `views_of` many unless said otherwise, all on different kinds of background.

    Raises ValueError for more views than there are backgrounds.
    """
    count = views_of(identity_seed) if n_views is None else n_views
    if not 0 <= count <= len(BACKGROUNDS):
        raise ValueError(f"n_views is {count}; expected 0 to {len(BACKGROUNDS)}, the number of backgrounds")
    seeds: list[int] = []
    used: set[str] = set()
    attempt = 0
    while len(seeds) < count:
        seed = seed_of("toybox-scene", identity_seed, attempt)
        attempt += 1
        background = sample_background(rng_from_seed(seed))
        if background not in used:
            used.add(background)
            seeds.append(seed)
    return seeds


def scenes_for(identity_seed: int, n_views: int | None = None, size_px: int = SIZE_PX) -> list[Scene]:
    """The scenes of `scene_seeds`."""
    return [scene_from_seed(seed, size_px) for seed in scene_seeds(identity_seed, n_views)]


def render(identity: ToyIdentity, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Draw an object into a scene.

    Returns the image, uint8 RGB (H, W, 3), and its mask, uint8 (H, W), 255 wherever the object covers any part of a
    pixel.
    """
    outline = outline_of(identity.category, identity.form, scene.yaw_rad)
    layers_4HW = rasterize(outline, scene.homography_33, scene.size_px)
    cover_HW = layers_4HW.max(axis=0)
    mask_HW = np.where(cover_HW > 0, np.uint8(255), np.uint8(0))
    image_HWC = scene.backdrop_u8_HWC.copy()
    left, top, width, height = cv2.boundingRect(mask_HW)
    if width and height:
        box = (slice(top, top + height), slice(left, left + width))
        image_HWC[box] = _paint(identity, outline, layers_4HW, cover_HW, scene, box)
    return image_HWC, mask_HW


def render_sibling(identity: ToyIdentity, other: ToyIdentity, kind: str, scene: Scene) -> SiblingImage:
    """Draw `other`, a sibling of `identity` of the given kind, in the place of `identity`."""
    original_HWC, original_mask_HW = render(identity, scene)
    image_HWC, mask_HW = render(other, scene)
    union_HW = np.maximum(original_mask_HW, mask_HW)
    if kind not in PART_KINDS:
        return SiblingImage(image_HWC=image_HWC, union_mask_HW=union_HW, part_mask_HW=None, oracle=None)
    changed_HW = (image_HWC != original_HWC).any(axis=2)
    oracle = 1.0 - float(changed_HW.sum()) / float((original_mask_HW > 0).sum())
    part_HW = np.where(changed_HW, np.uint8(255), np.uint8(0))
    return SiblingImage(image_HWC=image_HWC, union_mask_HW=union_HW, part_mask_HW=part_HW, oracle=oracle)


def sibling_from_seeds(
    identity_seed: int, scene_seed: int, kind: str, sibling_seed: int, size_px: int = SIZE_PX
) -> SiblingImage:
    """A sibling's image from the numbers a row stores."""
    identity = identity_from_seed(identity_seed)
    other = sibling(rng_from_seed(sibling_seed), identity, kind)
    return render_sibling(identity, other, kind, scene_from_seed(scene_seed, size_px))


def _paint(
    identity: ToyIdentity,
    outline: Outline,
    layers_4HW: np.ndarray,
    cover_HW: np.ndarray,
    scene: Scene,
    box: tuple[slice, slice],
) -> np.ndarray:
    """Colour the pixels of `box` and blend them over the backdrop; uint8."""
    scale = np.float32(1 / 255)
    x_HW, y_HW = scene.x_HW[box], scene.y_HW[box]
    body_HW, front_HW, dark_HW = (layers_4HW[layer][box] * scale for layer in (BODY, FRONT, DARK))
    alpha_HW = cover_HW[box] * scale
    # Relative to what covers the pixel: the accent must not bleed into the rim of a body that stands alone.
    body_HW1 = (body_HW * (1 - front_HW) / np.maximum(alpha_HW, scale))[..., None]
    if outline.round:
        u_HW = np.arcsin(np.clip(x_HW / _ROUND_RADIUS, -0.99, 0.99)) * _ROUND_RADIUS + np.float32(0.5 * scene.yaw_rad)
    else:
        u_HW = x_HW / np.float32(np.cos(scene.yaw_rad))
    color_HWC = _surface(identity, outline, u_HW, y_HW)
    accent_C = np.array(identity.accent.rgb, np.float32)
    color_HWC = (1 - body_HW1) * accent_C + body_HW1 * color_HWC
    tone_HW = _shading(outline, cover_HW, scene, box) * (1 - np.float32(0.78) * dark_HW)
    lit_HWC = np.clip(color_HWC * tone_HW[..., None] * (scene.gain_C * np.float32(255)), 0, 255)
    backdrop_HWC = scene.backdrop_HWC[box]
    return np.rint(backdrop_HWC + alpha_HW[..., None] * (lit_HWC - backdrop_HWC)).astype(np.uint8)


def _surface(identity: ToyIdentity, outline: Outline, u_HW: np.ndarray, v_HW: np.ndarray) -> np.ndarray:
    """Colour of the body before light, float32 (H, W, 3): the pattern with the decal on it."""
    main_C, second_C = np.array(identity.main.rgb, np.float32), np.array(identity.second.rgb, np.float32)
    share_HW = pattern_field(identity.pattern, u_HW, v_HW, outline.decal_y + 0.75 * outline.decal_size)
    color_HWC = main_C + share_HW[..., None] * (second_C - main_C)
    decal = identity.decal
    if decal.kind == "none":
        return color_HWC
    half = outline.decal_size * decal.size
    center_u = outline.decal_x + outline.decal_size * decal.shift_x
    center_v = outline.decal_y + outline.decal_size * decal.shift_y
    cover_HW = decal_field(decal, (u_HW - center_u) / half, (v_HW - center_v) / half)
    return color_HWC + cover_HW[..., None] * (np.array(decal.color.rgb, np.float32) - color_HWC)


def _shading(outline: Outline, cover_HW: np.ndarray, scene: Scene, box: tuple[slice, slice]) -> np.ndarray:
    """Brightness from the form and darker rims, float32 (H, W)."""
    x_HW, y_HW = scene.x_HW[box], scene.y_HW[box]
    if outline.round:
        form_HW = 0.74 + 0.28 * np.cos(np.clip(1.3 * x_HW - scene.light_x, -1.6, 1.6))
    else:
        form_HW = 0.93 + 0.14 * scene.light_x * x_HW - 0.10 * y_HW
    side = max(3, int(scene.size_px * 0.09) | 1)
    nearby_HW = cv2.blur(cover_HW, (side, side))[box]
    return form_HW * (0.68 + np.float32(0.35 / 255) * nearby_HW)
