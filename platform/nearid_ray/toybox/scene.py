"""Everything of a toybox view that is not the object: background, pose and light.

Axes: H, W image pixels (a scene is square), C colour channels (RGB).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import cv2
import numpy as np

from nearid_ray.toybox.identity import COLORS, pick, shade_of

LIGHTS = ("dim", "bright", "warm", "cool", "neutral")
PHOTO = "photo"

_NOISE_PX = 192
_NOISE_CROP_PX = 64
_PIVOT_Y = 0.92


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """One view's background, pose and light. An object and its sibling are drawn into the same scene."""

    background: str
    """One of BACKGROUNDS, or "photo"."""
    light: str
    """One of LIGHTS."""
    size_px: int
    yaw_rad: float
    """Turn of the object about its upright axis."""
    light_x: float
    """Where the light comes from, -0.6 (left) to 0.6 (right)."""
    gain_C: np.ndarray
    """Brightness and tint of the light, float32 (3,)."""
    homography_33: np.ndarray
    """Object coordinates to image coordinates (pixel centres at .5), float64 (3, 3)."""
    x_HW: np.ndarray
    """Object coordinate of every pixel, float32."""
    y_HW: np.ndarray
    backdrop_HWC: np.ndarray
    """The lit background with the object's contact shadow, float32, 0 to 255."""
    backdrop_u8_HWC: np.ndarray
    """The same, rounded: what a pixel shows where the object is not."""


def sample_scene(rng: np.random.Generator, size_px: int, exclude_backgrounds: Sequence[str] = ()) -> Scene:
    """Draw a scene of `size_px` x `size_px` pixels whose background is none of `exclude_backgrounds`."""
    background = sample_background(rng, exclude_backgrounds)
    light = pick(rng, LIGHTS)
    yaw, turn, lean_x, lean_y, shear, squash, shift_x, shift_y, light_x, brightness = (rng.random(10) * 2 - 1).tolist()
    scale = 0.66 + 0.24 * rng.random()
    homography_33 = _homography(
        size_px,
        scale=scale,
        turn_rad=0.22 * turn,
        lean=(0.10 * lean_x, 0.10 * lean_y),
        shear=0.07 * shear,
        squash=1 + 0.07 * squash,
        shift=(0.10 * shift_x, 0.08 * shift_y),
    )
    x_HW, y_HW = _object_coordinates(homography_33, size_px)
    gain_C = _light_gain(light) * np.float32(1 + 0.05 * brightness)
    plain_HWC = np.clip(_BACKGROUNDS[background](rng, size_px), 0, 1.2)
    backdrop_HWC, backdrop_u8_HWC = _backdrop(plain_HWC * gain_C, x_HW, y_HW)
    return Scene(
        background=background,
        light=light,
        size_px=size_px,
        yaw_rad=0.5 * yaw,
        light_x=0.6 * light_x,
        gain_C=gain_C,
        homography_33=homography_33,
        x_HW=x_HW,
        y_HW=y_HW,
        backdrop_HWC=backdrop_HWC,
        backdrop_u8_HWC=backdrop_u8_HWC,
    )


def sample_background(rng: np.random.Generator, exclude: Sequence[str] = ()) -> str:
    """The first draw of `sample_scene`: the kind of background. Raises ValueError when all are excluded."""
    if all(background in exclude for background in BACKGROUNDS):
        raise ValueError(f"all {len(BACKGROUNDS)} backgrounds are excluded; leave at least one of {BACKGROUNDS}")
    return pick(rng, BACKGROUNDS, but=exclude)


def on_photo(scene: Scene, photo_HWC: np.ndarray) -> Scene:
    """The same pose and light before a photo, uint8 RGB of the scene's size (it keeps its own light)."""
    expected = (scene.size_px, scene.size_px, 3)
    if photo_HWC.shape != expected or photo_HWC.dtype != np.uint8:
        raise ValueError(f"the photo is {photo_HWC.dtype} {photo_HWC.shape}; expected uint8 {expected}")
    backdrop_HWC, backdrop_u8_HWC = _backdrop(photo_HWC.astype(np.float32) / 255, scene.x_HW, scene.y_HW)
    return replace(scene, background=PHOTO, backdrop_HWC=backdrop_HWC, backdrop_u8_HWC=backdrop_u8_HWC)


def _backdrop(lit_HWC: np.ndarray, x_HW: np.ndarray, y_HW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Add the contact shadow. It follows from the pose alone: an object and its sibling cast the same."""
    shadow_HW = 0.42 * np.exp(-((x_HW / 0.55) ** 2 + ((y_HW - _PIVOT_Y) / 0.13) ** 2))
    backdrop_HWC = np.clip(lit_HWC * (255 * (1 - shadow_HW))[..., None], 0, 255).astype(np.float32)
    return backdrop_HWC, np.rint(backdrop_HWC).astype(np.uint8)


def _homography(
    size_px: int,
    *,
    scale: float,
    turn_rad: float,
    lean: tuple[float, float],
    shear: float,
    squash: float,
    shift: tuple[float, float],
) -> np.ndarray:
    cos, sin = np.cos(turn_rad) * scale, np.sin(turn_rad) * scale
    lean_33 = np.array([[squash, shear, 0], [0, 1 / squash, 0], [lean[0], lean[1], 1]])
    place_33 = np.array([[cos, -sin, shift[0]], [sin, cos, shift[1]], [0, 0, 1]])
    half = size_px / 2
    return np.array([[half, 0, half], [0, half, half], [0, 0, 1]]) @ place_33 @ lean_33


def _object_coordinates(homography_33: np.ndarray, size_px: int) -> tuple[np.ndarray, np.ndarray]:
    inverse_33 = np.linalg.inv(homography_33).astype(np.float32)
    columns_HW, rows_HW = _unit_grid(size_px)
    columns_HW, rows_HW = columns_HW * np.float32(size_px), rows_HW * np.float32(size_px)
    x_HW, y_HW, w_HW = (row[0] * columns_HW + row[1] * rows_HW + row[2] for row in inverse_33)
    return x_HW / w_HW, y_HW / w_HW


def _light_gain(light: str) -> np.ndarray:
    return np.array(
        {
            "dim": (0.76, 0.76, 0.76),
            "bright": (1.08, 1.08, 1.08),
            "warm": (1.01, 0.95, 0.83),
            "cool": (0.84, 0.94, 1.03),
            "neutral": (0.95, 0.95, 0.95),
        }[light],
        np.float32,
    )


@cache
def _unit_grid(size_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Column and row of every pixel centre as a share of the side, float32."""
    centers = (np.arange(size_px, dtype=np.float32) + 0.5) / size_px
    columns_HW, rows_HW = np.meshgrid(centers, centers)
    return columns_HW, rows_HW


@cache
def _cloud_fields() -> np.ndarray:
    """Fixed noise of several octaves, float32 (16, 192, 192), mean 0, deviation 1."""
    rng = np.random.Generator(np.random.PCG64(5))
    fields = []
    for _ in range(16):
        field = np.zeros((_NOISE_PX, _NOISE_PX), np.float32)
        for cells, weight in ((6, 1.0), (12, 0.6), (24, 0.4), (48, 0.3), (96, 0.25)):
            octave = rng.standard_normal((cells, cells)).astype(np.float32)
            field += weight * cv2.resize(octave, (_NOISE_PX, _NOISE_PX), interpolation=cv2.INTER_CUBIC)
        fields.append((field - field.mean()) / field.std())
    return np.stack(fields)


@cache
def _blade_fields() -> np.ndarray:
    """Fixed fine noise, float32 (8, 192, 192), deviation about 0.85."""
    rng = np.random.Generator(np.random.PCG64(6))
    fields = [rng.standard_normal((_NOISE_PX, _NOISE_PX)).astype(np.float32) for _ in range(8)]
    return np.stack([cv2.GaussianBlur(field, (0, 0), 1.0) * 3 for field in fields])


def _noise(
    rng: np.random.Generator, size_px: int, fields: np.ndarray, width: float = 1.0, height: float = 1.0
) -> np.ndarray:
    """A random crop of a random field, stretched to the image; smaller width or height: longer features."""
    index, left, top = rng.random(3).tolist()
    crop_width, crop_height = max(4, int(_NOISE_CROP_PX * width)), max(4, int(_NOISE_CROP_PX * height))
    x, y = int(left * (_NOISE_PX - crop_width)), int(top * (_NOISE_PX - crop_height))
    crop = fields[int(index * len(fields))][y : y + crop_height, x : x + crop_width]
    return crop if crop.shape == (size_px, size_px) else cv2.resize(crop, (size_px, size_px))


def _any_color(rng: np.random.Generator) -> np.ndarray:
    color = shade_of(rng, pick(rng, COLORS), spread=2.0)
    return np.array(color.rgb, np.float32) * np.float32(0.55 + 0.45 * rng.random())


def _one_color(rng: np.random.Generator, *names: str) -> np.ndarray:
    return np.array(shade_of(rng, pick(rng, names), spread=1.5).rgb, np.float32)


def _flat(size_px: int, color_C: np.ndarray) -> np.ndarray:
    image_HWC = np.empty((size_px, size_px, 3), np.float32)
    image_HWC[:] = color_C
    return image_HWC


def _mix(first_C: np.ndarray, second_C: np.ndarray, share_HW: np.ndarray) -> np.ndarray:
    return first_C + share_HW[..., None] * (second_C - first_C)


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * rng.random()


def _wood_table(rng: np.random.Generator, size_px: int) -> np.ndarray:
    _, rows_HW = _unit_grid(size_px)
    wall_HWC = _mix(_any_color(rng), _any_color(rng), 0.4 * rows_HW)
    along = rng.random() < 0.8
    grain_HW = _noise(rng, size_px, _cloud_fields(), *((1.0, 0.14) if along else (0.14, 1.0)))
    wood_C = _one_color(rng, "brown") * np.float32(_uniform(rng, 0.9, 1.7))
    table_HWC = wood_C * (1 + 0.17 * grain_HW)[..., None]
    return np.where((rows_HW > _uniform(rng, 0.3, 0.62))[..., None], table_HWC, wall_HWC)


def _brick_wall(rng: np.random.Generator, size_px: int) -> np.ndarray:
    columns_HW, rows_HW = _unit_grid(size_px)
    courses = _uniform(rng, 4.5, 8.5)
    row_HW = rows_HW * courses
    course_HW = np.floor(row_HW)
    column_HW = columns_HW * (courses / 2) + 0.5 * (course_HW % 2) + np.float32(rng.random())
    tone_HW = 1 + 0.12 * np.sin(7.3 * course_HW + 12.9 * np.floor(column_HW))
    tone_HW = tone_HW * (1 + 0.08 * _noise(rng, size_px, _cloud_fields()))
    brick_C = _one_color(rng, "red", "brown", "orange", "grey") * np.float32(_uniform(rng, 0.6, 1.0))
    mortar = np.float32(_uniform(rng, 0.5, 0.85))
    is_mortar_HW = (row_HW - course_HW < 0.13) | (column_HW % 1 < 0.07)
    return np.where(is_mortar_HW[..., None], mortar, brick_C * tone_HW[..., None])


def _tiled_floor(rng: np.random.Generator, size_px: int) -> np.ndarray:
    columns_HW, rows_HW = _unit_grid(size_px)
    tiles, horizon, shift_x, shift_y = _uniform(rng, 2.5, 6.0), _uniform(rng, -0.9, -0.2), rng.random(), rng.random()
    depth_HW = 1 / (rows_HW - horizon)
    odd_HW = (np.floor((columns_HW - 0.5) * depth_HW * tiles + shift_x) + np.floor(depth_HW * tiles + shift_y)) % 2
    return _mix(_any_color(rng), _any_color(rng), odd_HW.astype(np.float32))


def _grass(rng: np.random.Generator, size_px: int) -> np.ndarray:
    blades_HW = _noise(rng, size_px, _blade_fields(), 1.0, 0.5)
    tone_HW = 0.8 + 0.25 * blades_HW + 0.15 * _noise(rng, size_px, _cloud_fields())
    return _one_color(rng, "green") * (tone_HW * np.float32(_uniform(rng, 0.7, 1.3)))[..., None]


def _sky(rng: np.random.Generator, size_px: int) -> np.ndarray:
    _, rows_HW = _unit_grid(size_px)
    blue_C = np.array([0.36, 0.56, 0.86], np.float32) * np.float32(_uniform(rng, 0.6, 1.1))
    clouds_HW = np.clip(0.5 * _noise(rng, size_px, _cloud_fields(), 0.6, 0.4) + _uniform(rng, -0.1, 0.3), 0, 1)
    sky_HWC = blue_C * (1 - 0.3 * rows_HW)[..., None]
    return sky_HWC + (np.float32(0.95) - sky_HWC) * clouds_HW[..., None]


def _bokeh(rng: np.random.Generator, size_px: int) -> np.ndarray:
    image_HWC = _flat(size_px, _any_color(rng) * np.float32(0.35))
    for _ in range(8 + int(rng.random() * 8)):
        x, y, radius = rng.random(3).tolist()
        disc_HW = np.zeros((size_px, size_px), np.uint8)
        center = (int(x * size_px), int(y * size_px))
        cv2.circle(disc_HW, center, int((0.05 + 0.09 * radius) * size_px), 1, -1)
        image_HWC[disc_HW > 0] += _any_color(rng) * np.float32(0.7)
    return cv2.GaussianBlur(image_HWC, (0, 0), size_px / 42)


def _clutter(rng: np.random.Generator, size_px: int) -> np.ndarray:
    image_HWC = _flat(size_px, _any_color(rng))
    for _ in range(10 + int(rng.random() * 9)):
        color = _any_color(rng).tolist()
        x, y, width, height, round_ = rng.random(5).tolist()
        left, top = int(x * size_px), int(y * size_px)
        if round_ < 0.5:
            right, bottom = left + int((0.08 + 0.32 * width) * size_px), top + int((0.08 + 0.32 * height) * size_px)
            cv2.rectangle(image_HWC, (left, top), (right, bottom), color, -1)
        else:
            cv2.circle(image_HWC, (left, top), int((0.06 + 0.14 * width) * size_px), color, -1)
    return image_HWC


def _wallpaper(rng: np.random.Generator, size_px: int) -> np.ndarray:
    columns_HW, rows_HW = _unit_grid(size_px)
    stripes, angle = _uniform(rng, 4.0, 10.0), _uniform(rng, 0.0, np.pi)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    wave_HW = np.cos(2 * np.pi * stripes * (columns_HW * cos + rows_HW * sin))
    return _mix(_any_color(rng), _any_color(rng), np.clip(3 * wave_HW + 0.5, 0, 1))


def _stone(rng: np.random.Generator, size_px: int) -> np.ndarray:
    tone_HW = 1 + 0.28 * _noise(rng, size_px, _cloud_fields()) + 0.10 * _noise(rng, size_px, _blade_fields())
    tint_C = 1 + np.float32(0.12) * (_any_color(rng) - np.float32(0.5))
    return tint_C * (tone_HW * np.float32(_uniform(rng, 0.35, 0.65)))[..., None]


def _water(rng: np.random.Generator, size_px: int) -> np.ndarray:
    _, rows_HW = _unit_grid(size_px)
    waves = np.float32(2 * np.pi * _uniform(rng, 6.0, 12.0))
    ripple_HW = np.sin(waves * rows_HW + 0.9 * _noise(rng, size_px, _cloud_fields(), 0.5, 1.0))
    tone_HW = 0.85 + 0.2 * ripple_HW * rows_HW + 0.1 * _noise(rng, size_px, _cloud_fields(), 1.0, 0.3)
    return _one_color(rng, "blue", "teal") * tone_HW[..., None]


def _bookshelf(rng: np.random.Generator, size_px: int) -> np.ndarray:
    image_HWC = _flat(size_px, _one_color(rng, "brown") * np.float32(0.6))
    shelves = 2 + int(rng.random() * 2)
    for shelf in range(shelves):
        bottom = int((shelf + 1) * size_px / shelves - 0.045 * size_px)
        left = 0.0
        while left < 1:
            width, gap, headroom = rng.random(3).tolist()
            right = left + 0.06 + 0.09 * width
            top = int((shelf / shelves + 0.03 + 0.10 * headroom) * size_px)
            corner = (int(right * size_px) - 1, bottom)
            cv2.rectangle(image_HWC, (int(left * size_px), top), corner, _any_color(rng).tolist(), -1)
            left = right + (0.05 if gap < 0.2 else 0.0)
    return image_HWC


def _studio(rng: np.random.Generator, size_px: int) -> np.ndarray:
    columns_HW, rows_HW = _unit_grid(size_px)
    image_HWC = _mix(_any_color(rng), _any_color(rng), rows_HW * np.float32(_uniform(rng, 0.3, 1.0)))
    return image_HWC * (1.1 - 0.5 * ((columns_HW - 0.5) ** 2 + (rows_HW - 0.5) ** 2))[..., None]


_BACKGROUNDS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "wood table": _wood_table,
    "brick wall": _brick_wall,
    "tiled floor": _tiled_floor,
    "grass": _grass,
    "sky": _sky,
    "bokeh": _bokeh,
    "clutter": _clutter,
    "wallpaper": _wallpaper,
    "stone": _stone,
    "water": _water,
    "bookshelf": _bookshelf,
    "studio": _studio,
}
BACKGROUNDS = tuple(_BACKGROUNDS)
