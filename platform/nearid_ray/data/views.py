"""From pictures as a source holds them to rows of the `tuples` table; the same way for every importer of pictures.

decode -> find a mask where there is none -> canonical square -> encode. What is wrong with one picture is said in its
view's `error`, and costs no other view.

Axes: H height, W width, 3 colour channels.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from nearid_ray.data.images import canonical_square, cut_mask, decode_mask, decode_rgb, encode_png
from nearid_ray.data.masking import Masker
from nearid_ray.data.masks import check_mask, mask_quality
from nearid_ray.data.perceptual import perceptual_hash
from nearid_ray.identifiers import content_hash


@dataclass(frozen=True, kw_only=True)
class RawView:
    """One picture of an identity as its source holds it."""

    name: str
    """Its file name or path in the source; it stays with the picture."""
    image: bytes | None = None
    """Encoded picture; None where the source has none, and `error` says why."""
    mask: bytes | None = None
    """Encoded mask of the picture's size, non-zero = object."""
    mask_name: str = ""
    """What messages call the mask."""
    mask_source: str = "none"
    """Where the mask comes from, as `schemas.MASK_SOURCES` names it."""
    part_mask: bytes | None = None
    """Encoded mask of a part of the object, of the picture's size."""
    prompt: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class RawIdentity:
    """One identity as its source holds it: what is known of it, and its pictures in a fixed order."""

    identity_id: str
    split: str
    views: Sequence[RawView] = ()
    category: str = ""
    description: str = ""
    object_kind: str = ""
    objaverse_id: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    """What failed for the identity as a whole."""


@dataclass(kw_only=True)
class DecodedView:
    """A view between decoding and encoding."""

    raw: RawView
    image_HW3: np.ndarray | None = None
    mask_HW: np.ndarray | None = None
    part_mask_HW: np.ndarray | None = None
    mask_source: str = "none"
    mask_error: str = ""
    """Why no mask was found."""
    error: str = ""


def decode_view(raw: RawView) -> DecodedView:
    """The view's picture and masks as arrays; `error` where one of them cannot be read."""
    view = DecodedView(raw=raw, mask_source=raw.mask_source if raw.mask is not None else "none", error=raw.error)
    if view.error:
        return view
    if raw.image is None:
        view.error = "the source has no picture here"
        return view
    try:
        view.image_HW3 = decode_rgb(raw.image)
        if raw.mask is not None:
            view.mask_HW = _decode_mask(raw.mask, raw.mask_name or "the mask", view.image_HW3)
            check_mask(view.mask_HW)
        if raw.part_mask is not None:
            view.part_mask_HW = _decode_mask(raw.part_mask, "the part mask", view.image_HW3)
    except (OSError, ValueError) as error:
        view.error = str(error)
    return view


def find_masks(views: Sequence[DecodedView], masker: Masker) -> None:
    """Give a mask to every readable view that has none.

    Where none can be found the view keeps its picture and stays without; `mask_error` says why.
    """
    bare = [view for view in views if not view.error and view.mask_HW is None]
    found = masker.masks([view.image_HW3 for view in bare if view.image_HW3 is not None])
    for view, mask in zip(bare, found, strict=True):
        if isinstance(mask, ValueError):
            view.mask_error = str(mask)
        elif mask is not None:
            view.mask_source, view.mask_HW = masker.name, mask


def view_row(view: DecodedView, size_px: int) -> dict[str, Any]:
    """The view as an entry of the `views` column, at the canonical size."""
    raw, row = view.raw, empty_view(view.mask_source)
    provenance = dict(raw.provenance)
    if raw.image is not None:
        provenance["sha256"] = content_hash(raw.image)
    if view.mask_error:
        provenance["mask_error"] = view.mask_error
    row["prompt"] = raw.prompt
    try:
        if view.error or view.image_HW3 is None:
            raise ValueError(view.error)
        row["source_height_px"], row["source_width_px"] = view.image_HW3.shape[:2]
        square_HW3, mask_HW, crop = canonical_square(view.image_HW3, view.mask_HW, size_px)
        provenance["crop_box"] = crop
        part_HW = None if view.part_mask_HW is None else cut_mask(view.part_mask_HW, crop, size_px)
        row |= _pictures(PurePosixPath(raw.name), square_HW3, mask_HW, part_HW)
    except ValueError as error:
        row["error"] = str(error)
    row["provenance"] = json.dumps(provenance, ensure_ascii=False)
    return row


def identity_row(raw: RawIdentity, source: str, views: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One row of the `tuples` table from an identity and its finished views."""
    failed = [f"{PurePosixPath(view.name).name}: {row['error']}" for view, row in zip(raw.views, views, strict=True)
              if row["error"]]  # fmt: skip
    said = [raw.error] if raw.error else []
    said += [f"{len(failed)} of {len(views)} views: {'; '.join(failed)}"] if failed else []
    return {
        "identity_id": raw.identity_id,
        "views": list(views),
        "category": raw.category,
        "description": raw.description,
        "object_kind": raw.object_kind,
        "objaverse_id": raw.objaverse_id,
        "split": raw.split,
        "source": source,
        "provenance": json.dumps(raw.provenance, ensure_ascii=False),
        "error": "; ".join(said),
    }


def empty_view(mask_source: str = "none") -> dict[str, Any]:
    """An entry of the `views` column without a picture."""
    return {
        "view_id": "",
        "image": None,
        "mask": None,
        "part_mask": None,
        "mask_source": mask_source,
        "mask_area": None,
        "mask_pieces": None,
        "mask_touches_border": None,
        "perceptual_hash": "",
        "size_px": 0,
        "source_width_px": 0,
        "source_height_px": 0,
        "prompt": "",
        "provenance": "{}",
        "error": "",
    }


def mask_columns(mask_HW: np.ndarray, name: str) -> dict[str, Any]:
    """The columns of a view that say something of its mask (H, W), and the mask itself under the file name `name`."""
    area, pieces, touches_border = mask_quality(mask_HW)
    return {
        "mask": {"bytes": encode_png(mask_HW), "path": name},
        "mask_area": area,
        "mask_pieces": pieces,
        "mask_touches_border": touches_border,
    }


def _pictures(
    file: PurePosixPath, image_HW3: np.ndarray, mask_HW: np.ndarray | None, part_HW: np.ndarray | None
) -> dict[str, Any]:
    encoded = encode_png(image_HW3)
    fields: dict[str, Any] = {
        "view_id": content_hash(encoded),
        "image": {"bytes": encoded, "path": str(file.with_suffix(".png"))},
        "perceptual_hash": perceptual_hash(image_HW3),
        "size_px": image_HW3.shape[0],
    }
    if mask_HW is not None:
        check_mask(mask_HW)
        fields |= mask_columns(mask_HW, str(file.with_name(f"{file.stem}-mask.png")))
    if part_HW is not None:
        fields["part_mask"] = {"bytes": encode_png(part_HW), "path": str(file.with_name(f"{file.stem}-part.png"))}
    return fields


def _decode_mask(data: bytes, name: str, image_HW3: np.ndarray) -> np.ndarray:
    try:
        mask_HW = decode_mask(data)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    height, width = image_HW3.shape[:2]
    if mask_HW.shape != (height, width):
        raise ValueError(
            f"{name} has {mask_HW.shape[1]} x {mask_HW.shape[0]} pixels, the upright picture has {width} x {height}; "
            "expected the same size"
        )
    return mask_HW
