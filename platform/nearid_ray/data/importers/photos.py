"""Folders of photos, one folder an identity, with optional mask files and a table of categories.

<root>/<identity>/*.jpg|jpeg|png|webp
<root>/<identity>/masks/<stem>.png   or   <root>/masks/<identity>/<stem>.png
"""

import csv
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from nearid_ray.data.images import canonical_square, decode_mask, decode_rgb, encode_png
from nearid_ray.data.masks import check_mask, grabcut_mask, mask_quality
from nearid_ray.errors import UsageError
from nearid_ray.identifiers import content_hash, seed_of

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")
"""Endings of photos, in any case."""

_NAMES_SHOWN = 10

# The class has a method `list`, which hides the built-in type in its own annotations.
_CATEGORY_TITLES = ("category", "class", "kind", "type")
Records = list[dict[str, Any]]
Rejected = list[dict[str, str]]
Tree = dict[PurePosixPath, list[str]]
Names = list[str]


@dataclass(frozen=True, kw_only=True)
class PhotosSettings:
    """Where the photos are and what becomes of them."""

    root: str
    """Local folder with one folder of photos an identity."""
    categories: str = ""
    """CSV file: identity (folder name) in the first column, category in the second, e.g. `mug-03,mug`. Without one,
    every category is unknown, and no identity finds a donor."""
    masks: str = "masks"
    """Name of the folders with mask files, inside each identity's folder or beside the identities' folders."""
    mask_method: Literal["grabcut", "none"] = "grabcut"
    """For photos without a mask file: `grabcut` finds the object by its colours, `none` leaves them without a mask."""
    size_px: int = 512
    """Side of the canonical square in pixels, 16 to 4096."""
    min_views: int = 2
    """Photos that an identity must have, 1 or more."""
    max_views: int = 0
    """Photos read of an identity, the first by name; 0 reads all."""
    drop_small: bool = False
    """Leave identities with too few photos out, and count them, instead of refusing the folder."""
    split: Literal["test", "val", "train", "random"] = "test"
    """The split of all identities; `random` draws it by the identity's name and split_seed."""
    val_share: float = 0.1
    """With split=random: share of identities in val, 0 to 1."""
    test_share: float = 0.2
    """With split=random: share of identities in test, 0 to 1."""
    split_seed: int = 0
    """With split=random: another seed draws other splits."""
    source_name: str = "photos"
    """First part of every identity_id, `source_name:folder`: small letters, digits, - and _."""

    def __post_init__(self) -> None:
        if not self.root:
            raise ValueError("root is empty; expected a folder with one folder of photos an identity")
        if not 16 <= self.size_px <= 4096:
            raise ValueError(f"size_px is {self.size_px}; expected 16 to 4096")
        if self.min_views < 1:
            raise ValueError(f"min_views is {self.min_views}; expected 1 or more")
        if self.max_views < 0 or 0 < self.max_views < self.min_views:
            raise ValueError(f"max_views is {self.max_views}; expected 0 or at least min_views ({self.min_views})")
        if self.mask_method not in ("grabcut", "none"):
            raise ValueError(f"mask_method is {self.mask_method!r}; expected grabcut or none")
        if self.split not in ("test", "val", "train", "random"):
            raise ValueError(f"split is {self.split!r}; expected test, val, train or random")
        if min(self.val_share, self.test_share) < 0 or self.val_share + self.test_share > 1:
            raise ValueError(
                f"val_share is {self.val_share} and test_share {self.test_share}; expected 0 or more each, at most 1 "
                "together"
            )
        if not re.fullmatch(r"[a-z0-9_-]+", self.source_name):
            raise ValueError(f"source_name is {self.source_name!r}; expected small letters, digits, - and _")
        if not self.masks or "/" in self.masks:
            raise ValueError(f"masks is {self.masks!r}; expected the name of a folder, e.g. masks")


class PhotosImporter:
    """Reads identities from folders of photos. A bad photo or mask costs its view alone."""

    title = "Photo tuples"
    about = "Photos of objects, one row an identity, each photo cut to a square around the object's mask."
    licence = "other"

    def __init__(self, settings: PhotosSettings) -> None:
        self.settings = settings
        self.source = settings.source_name
        self.without_category = 0
        """How many listed identities have no category; known after `list`."""

    def content(self) -> dict[str, Any]:
        s = self.settings
        splits: dict[str, Any] = {"split": s.split}
        if s.split == "random":
            splits |= {"val_share": s.val_share, "test_share": s.test_share, "split_seed": s.split_seed}
        root = str(Path(s.root).resolve())
        return {"root": root, "mask_method": s.mask_method, "size_px": s.size_px, **splits}

    def bytes_per_identity(self) -> int:
        return 6 * 3 * self.settings.size_px**2

    def list(self) -> tuple[Records, Rejected]:
        """(records, rejected) from file names alone, sorted; no photo is opened.

        A record has `identity_id`, `category`, `split`, `files` and, in the same order, `masks` ("" for none), both
        relative to the root. Rejected are folders without photos, masks without a photo and, with drop_small,
        identities with too few photos. Raises UsageError for a missing or empty folder, no photos at all, too few
        photos of an identity, names that cannot be told apart, links that leave the folder, and a wrong table of
        categories.
        """
        root = self._root()
        tree = dict(walk(root))
        names = sorted({path.parts[0] for path in tree if path.parts and path.parts[0] != self.settings.masks})
        if not names:
            loose = [file for file in tree.get(PurePosixPath(), []) if _is_photo(file)]
            found = f"holds {len(loose)} photo(s) but no folders" if loose else "is empty"
            raise UsageError(f"{root} {found}; expected one folder of photos an identity, e.g. {root}/mug-01/1.jpg")
        _refuse_alike(names)
        if not any(_is_photo(file) for name in names for file in tree.get(PurePosixPath(name), [])):
            raise UsageError(f"no photos in the {len(names)} folder(s) of {root}; looked for {', '.join(EXTENSIONS)}")
        categories = self._categories(names)
        records: Records = []
        rejected: Rejected = []
        small: Records = []
        for name in names:
            record = self._record(name, tree, categories.get(_normal(name), ""), rejected)
            if not record["files"]:
                rejected.append(self._reject(name, "no-photos", f"no file ends in {', '.join(EXTENSIONS)}"))
            elif len(record["files"]) < self.settings.min_views:
                small.append(record)
            else:
                records.append(record)
        self._refuse_small(small, records, rejected)
        self.without_category = sum(not record["category"] for record in records)
        return records, rejected

    def read(self, record: dict[str, Any]) -> dict[str, Any]:
        """One row of the `tuples` table; what cannot be read is said in the view's and the row's `error`."""
        views = [self._view(file, mask) for file, mask in zip(record["files"], record["masks"], strict=True)]
        failed = [f"{PurePosixPath(file).name}: {view['error']}" for file, view in
                  zip(record["files"], views, strict=True) if view["error"]]  # fmt: skip
        return {
            "identity_id": record["identity_id"],
            "views": views,
            "category": record["category"],
            "description": "",
            "split": record["split"],
            "source": self.source,
            "provenance": json.dumps({"folder": PurePosixPath(record["files"][0]).parts[0]}, ensure_ascii=False),
            "error": f"{len(failed)} of {len(views)} views: {'; '.join(failed)}" if failed else "",
        }

    def _root(self) -> Path:
        root = Path(self.settings.root).expanduser()
        if not root.exists():
            raise UsageError(f"root {root} does not exist; expected a folder with one folder of photos an identity")
        if not root.is_dir():
            raise UsageError(f"root {root} is a file; expected a folder with one folder of photos an identity")
        return root

    def _record(self, name: str, tree: Tree, category: str, rejected: Rejected) -> dict[str, Any]:
        folder = PurePosixPath(name)
        photos = [file for file in tree.get(folder, []) if _is_photo(file)]
        masks: dict[str, str] = {}
        for place in (PurePosixPath(self.settings.masks) / name, folder / self.settings.masks):
            masks |= {_stem(file): str(place / file) for file in tree.get(place, []) if file.lower().endswith(".png")}
        stems = [_stem(photo) for photo in photos]
        shared = sorted({stem for stem in stems if stem in masks and stems.count(stem) > 1})
        if shared:
            raise UsageError(f"{folder}: mask(s) {_shown(shared)} belong to several photos; rename the photos")
        for stem in sorted(set(masks) - set(stems)):
            rejected.append(self._reject(name, "mask-without-photo", f"no photo belongs to {masks[stem]}", masks[stem]))
        photos = photos[: self.settings.max_views or None]
        identity_id = f"{self.source}:{_normal(name)}"
        return {
            "identity_id": identity_id,
            "category": category,
            "split": self._split(identity_id),
            "files": [str(folder / photo) for photo in photos],
            "masks": [masks.get(_stem(photo), "") for photo in photos],
        }

    def _reject(self, name: str, reason: str, detail: str, record_id: str = "") -> dict[str, str]:
        identity_id = f"{self.source}:{_normal(name)}"
        return {"record_id": record_id or identity_id, "identity_id": identity_id, "reason": reason, "detail": detail}

    def _refuse_small(self, small: Records, records: Records, rejected: Rejected) -> None:
        least = self.settings.min_views
        names = [record["identity_id"].partition(":")[2] for record in small]
        if small and (not self.settings.drop_small or not records):
            raise UsageError(
                f"{len(small)} identity(ies) have fewer than {least} photos: {_shown(names)}; add photos, leave them "
                "out with --drop-small, or set --min-views 1"
            )
        for name, record in zip(names, small, strict=True):
            detail = f"{len(record['files'])} photo(s), expected at least {least}"
            rejected.append(self._reject(name, "too-few-views", detail))

    def _categories(self, names: Names) -> dict[str, str]:
        if not self.settings.categories:
            return {}
        table = Path(self.settings.categories).expanduser()
        if not table.is_file():
            raise UsageError(f"categories {table} is no file; expected a CSV file of identity and category")
        return read_categories(table, {_normal(name) for name in names})

    def _split(self, identity_id: str) -> str:
        s = self.settings
        if s.split != "random":
            return s.split
        drawn = seed_of("split", s.split_seed, identity_id) / 2**63
        return "test" if drawn < s.test_share else "val" if drawn < s.test_share + s.val_share else "train"

    def _view(self, file: str, mask_file: str) -> dict[str, Any]:
        provenance: dict[str, Any] = {"file": file}
        view = _empty_view("file" if mask_file else self.settings.mask_method)
        try:
            data = read_bytes(self.settings.root, file)
            provenance["sha256"] = content_hash(data)
            image_HW3 = decode_rgb(data)
            view["source_height_px"], view["source_width_px"] = image_HW3.shape[:2]
            mask_HW = self._mask(image_HW3, mask_file, provenance)
            square_HW3, square_HW, crop = canonical_square(image_HW3, mask_HW, self.settings.size_px)
            provenance["crop_box"] = crop
            view |= _pictures(PurePosixPath(file), square_HW3, square_HW)
        except (OSError, ValueError) as error:
            view["error"] = str(error)
        view["provenance"] = json.dumps(provenance, ensure_ascii=False)
        return view

    def _mask(self, image_HW3: np.ndarray, mask_file: str, provenance: dict[str, Any]) -> np.ndarray | None:
        if not mask_file:
            return grabcut_mask(image_HW3) if self.settings.mask_method == "grabcut" else None
        provenance["mask_file"] = mask_file
        try:
            mask_HW = decode_mask(read_bytes(self.settings.root, mask_file))
        except ValueError as error:
            raise ValueError(f"mask {mask_file}: {error}") from error
        height, width = image_HW3.shape[:2]
        if mask_HW.shape != (height, width):
            raise ValueError(
                f"mask {mask_file} has {mask_HW.shape[1]} x {mask_HW.shape[0]} pixels, the upright photo has "
                f"{width} x {height}; expected the same size"
            )
        check_mask(mask_HW)
        return mask_HW


def walk(root: Path) -> Iterator[tuple[PurePosixPath, list[str]]]:
    """Every folder below `root` (itself first, as an empty path) with the sorted names of its files.

    Hidden files and folders are passed over. Links are followed inside the root; one that leads out of it, or names
    that cannot be printed, raise UsageError. The one place that lists files: another filesystem would be read here.
    """
    inside = root.resolve()
    pending = [PurePosixPath()]
    while pending:
        folder = pending.pop()
        files = []
        for entry in sorted(os.scandir(root / folder), key=lambda e: e.name):
            path = folder / entry.name
            if entry.name.startswith("."):
                continue
            if not entry.name.isprintable():
                raise UsageError(f"{root}: the name {entry.name!r} cannot be printed; rename it")
            if entry.is_symlink() and not (root / path).resolve().is_relative_to(inside):
                raise UsageError(f"{root / path} is a link that leads out of {root}; copy the files instead")
            if entry.is_dir():
                # A link to a folder above would be followed for ever; two levels hold everything.
                pending += [path] if len(path.parts) <= 2 else []
            elif entry.is_file():
                files.append(entry.name)
        yield folder, files


def read_bytes(root: str, file: str) -> bytes:
    """A listed file's bytes. The one place that reads photos and masks."""
    return (Path(root).expanduser() / file).read_bytes()


def read_categories(table: Path, names: set[str]) -> dict[str, str]:
    """identity -> category from a CSV file whose first row is a header unless it names one of `names`.

    The category is the column that the header calls category, class, kind or type, else the second one.

    Raises UsageError for rows with fewer than two columns, identities that `names` does not hold, and an identity with
    two categories.
    """
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            rows = [(number, row) for number, row in enumerate(csv.reader(file), start=1) if any(row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{table} cannot be read as CSV in UTF-8 ({error}); save it as UTF-8") from error
    column = 1
    if rows and _normal(rows[0][1][0]) not in names:
        header = [title.strip().lower() for title in rows.pop(0)[1]]
        column = next((place for place, title in enumerate(header) if place and title in _CATEGORY_TITLES), 1)
    short = [str(number) for number, row in rows if len(row) <= column]
    if short:
        raise UsageError(
            f"{table}: line(s) {_shown(short)} have too few columns; expected identity,category with a comma between"
        )
    categories: dict[str, str] = {}
    double: list[str] = []
    for _, row in rows:
        name, category = _normal(row[0]), row[column].strip()
        if categories.setdefault(name, category) != category:
            double.append(f"{name} ({categories[name]}, {category})")
    if double:
        raise UsageError(f"{table}: two categories for one identity: {_shown(double)}; keep one")
    unknown = sorted(set(categories) - names)
    if not categories:
        raise UsageError(f"{table} gives no identity a category; expected lines like mug-03,mug")
    if unknown:
        raise UsageError(f"{table} names {len(unknown)} identity(ies) without a folder: {_shown(unknown)}")
    return categories


def _empty_view(mask_source: str) -> dict[str, Any]:
    return {
        "view_id": "",
        "image": None,
        "mask": None,
        "part_mask": None,
        "mask_source": mask_source,
        "mask_area": None,
        "mask_pieces": None,
        "mask_touches_border": None,
        "size_px": 0,
        "source_width_px": 0,
        "source_height_px": 0,
        "prompt": "",
        "provenance": "{}",
        "error": "",
    }


def _pictures(file: PurePosixPath, image_HW3: np.ndarray, mask_HW: np.ndarray | None) -> dict[str, Any]:
    encoded = encode_png(image_HW3)
    fields: dict[str, Any] = {
        "view_id": content_hash(encoded),
        "image": {"bytes": encoded, "path": str(file.with_suffix(".png"))},
        "size_px": image_HW3.shape[0],
    }
    if mask_HW is None:
        return fields
    check_mask(mask_HW)
    area, pieces, touches_border = mask_quality(mask_HW)
    return fields | {
        "mask": {"bytes": encode_png(mask_HW), "path": str(file.with_name(f"{file.stem}-mask.png"))},
        "mask_area": area,
        "mask_pieces": pieces,
        "mask_touches_border": touches_border,
    }


def _refuse_alike(names: list[str]) -> None:
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(_normal(name).casefold(), []).append(name)
    double = [" and ".join(map(repr, same)) for same in alike.values() if len(same) > 1]
    if double:
        raise UsageError(f"duplicate identity ids: {_shown(double)} differ by case or accents alone; rename them")


def _is_photo(file: str) -> bool:
    return file.lower().endswith(EXTENSIONS)


def _stem(file: str) -> str:
    return _normal(file.rpartition(".")[0])


def _normal(name: str) -> str:
    """One spelling for names that look the same: composed letters, no spaces around."""
    return unicodedata.normalize("NFC", name).strip()


def _shown(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more
