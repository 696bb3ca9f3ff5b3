"""Saved states of training runs: one file, written whole, that holds tensors and plain values and no code."""

import io
from pathlib import Path
from typing import Any

import torch

from nearid_ray.data.store import Location, locate
from nearid_ray.errors import UsageError


def save_state(place: str | Path | Location, state: dict[str, Any]) -> None:
    """Write a state (`HeadTraining.state`) to a file, whole or not at all."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    location = place if isinstance(place, Location) else locate(place)
    location.write_bytes(buffer.getvalue())


def load_state(place: str | Path | Location) -> dict[str, Any]:
    """Read what `save_state` wrote.

    Raises:
        UsageError: there is no such file, or it holds something else.
    """
    location = place if isinstance(place, Location) else locate(place)
    if not location.exists():
        raise UsageError(f"{location.uri}: there is no checkpoint here")
    try:
        return torch.load(io.BytesIO(location.read_bytes()), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for damaged files
        raise UsageError(f"{location.uri} is not a checkpoint of training: {error}") from error
