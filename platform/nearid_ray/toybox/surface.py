"""Patterns and decals: scalar fields over surface coordinates, 0 = first colour, 1 = second colour.

Axes: H, W pixels of the drawn box. Surface coordinates u (across) and v (down) are in object units.
"""

from functools import cache

import cv2
import numpy as np

from nearid_ray.toybox.identity import Decal, Pattern

_GRAIN_PX = 192
_GRAINS = 8
_EDGE = 3.0
_TAU = 2 * np.pi


def pattern_field(pattern: Pattern, u_HW: np.ndarray, v_HW: np.ndarray, band_v: float) -> np.ndarray:
    """Share of the second colour, float32 (H, W) in [0, 1]; below `band_v` lies the band of a plain object."""
    if pattern.kind == "plain":
        # A plain object still shows its second colour, as a lower band, so that `trim` changes something.
        return np.clip((v_HW - band_v) * 16, 0, 1)
    if pattern.kind == "speckled":
        speckle_HW = _speckle(pattern, u_HW, v_HW)
        return np.clip((speckle_HW - (0.9 - 1.2 * pattern.duty)) * 2.5, 0, 1)
    f, phase = pattern.frequency, pattern.phase
    if pattern.kind == "ringed":
        center_u, center_v = 0.6 * (phase - 0.5), 0.6 * (pattern.duty - 0.5)
        wave_HW = np.cos(_TAU * 0.7 * f * np.sqrt((u_HW - center_u) ** 2 + (v_HW - center_v) ** 2))
        return _threshold(wave_HW, pattern.duty)
    cos, sin = float(np.cos(pattern.angle_rad)), float(np.sin(pattern.angle_rad))
    s_HW = (u_HW * cos + v_HW * sin) * f
    t_HW = (v_HW * cos - u_HW * sin) * f
    if pattern.kind == "striped":
        wave_HW = np.cos(_TAU * (0.6 * s_HW + phase))
    elif pattern.kind == "dotted":
        wave_HW = np.cos(_TAU * (0.6 * s_HW + phase)) + np.cos(_TAU * 0.6 * t_HW) - 0.4
    elif pattern.kind == "checked":
        wave_HW = 2 * np.cos(_TAU * (0.5 * s_HW + phase)) * np.cos(_TAU * 0.5 * t_HW)
    elif pattern.kind == "zigzag":
        fold_HW = np.abs((0.5 * t_HW) % 1.0 * 2 - 1)
        wave_HW = np.cos(_TAU * (0.6 * s_HW + phase + 0.55 * fold_HW))
    else:  # wavy
        wave_HW = np.cos(_TAU * (0.6 * s_HW + phase) + 1.9 * np.sin(_TAU * 0.4 * t_HW))
    return _threshold(wave_HW, pattern.duty)


def decal_field(decal: Decal, x_HW: np.ndarray, y_HW: np.ndarray) -> np.ndarray:
    """Coverage of the decal, float32 (H, W) in [0, 1], over coordinates where the decal fills [-1, 1]."""
    kind = decal.kind
    if kind == "disc":
        inside_HW = 0.95 - np.sqrt(x_HW * x_HW + y_HW * y_HW)
    elif kind == "square":
        inside_HW = 0.82 - np.maximum(np.abs(x_HW), np.abs(y_HW))
    elif kind == "triangle":
        inside_HW = np.minimum(0.75 - y_HW, (y_HW + 1.0) * 0.5 - np.abs(x_HW) + 0.03)
    elif kind == "star":
        radius_HW = np.sqrt(x_HW * x_HW + y_HW * y_HW)
        inside_HW = 0.64 + 0.36 * np.cos(5 * np.arctan2(x_HW, -y_HW)) - radius_HW
    elif kind == "heart":
        lifted_HW = 0.15 - 1.1 * y_HW - 0.6 * np.abs(x_HW)
        inside_HW = 0.6 - 0.72 * x_HW * x_HW - 0.6 * lifted_HW * lifted_HW
    elif kind == "ring":
        inside_HW = 0.27 - np.abs(np.sqrt(x_HW * x_HW + y_HW * y_HW) - 0.70)
    elif kind == "cross":
        across_HW, down_HW = np.abs(x_HW), np.abs(y_HW)
        upright_HW = np.minimum(0.29 - across_HW, 0.95 - down_HW)
        inside_HW = np.maximum(upright_HW, np.minimum(0.29 - down_HW, 0.95 - across_HW))
    else:  # bar
        inside_HW = np.minimum(0.32 - np.abs(y_HW), 1.25 - np.abs(x_HW))
    return np.clip(inside_HW * 9 + 0.5, 0, 1)


def _threshold(wave_HW: np.ndarray, duty: float) -> np.ndarray:
    return np.clip((wave_HW - (0.5 - duty) * 1.2) * _EDGE + 0.5, 0, 1)


def _speckle(pattern: Pattern, u_HW: np.ndarray, v_HW: np.ndarray) -> np.ndarray:
    """The speckle field sampled at the surface coordinates, so that it moves with the object."""
    scale = 13.0 + 11.0 * (pattern.frequency - 1.6) / 2.6
    columns_HW = (u_HW * scale + (96 + 24 * (pattern.phase - 0.5))).astype(np.float32)
    rows_HW = (v_HW * scale + 96).astype(np.float32)
    return cv2.remap(_grain_fields()[pattern.grain], columns_HW, rows_HW, cv2.INTER_LINEAR, None, cv2.BORDER_REFLECT)


@cache
def _grain_fields() -> np.ndarray:
    """Fixed band-limited noise, float32 (8, 192, 192), unit variance or a little more."""
    rng = np.random.Generator(np.random.PCG64(11))
    fields = [
        cv2.GaussianBlur(rng.standard_normal((_GRAIN_PX, _GRAIN_PX)).astype(np.float32), (0, 0), 1.0) * 3
        for _ in range(_GRAINS)
    ]
    return np.stack(fields)
