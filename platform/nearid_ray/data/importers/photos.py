"""Folders of photos, one folder an identity, with optional mask files and a table of categories.

<root>/<identity>/*.jpg|jpeg|png|webp
<root>/<identity>/masks/<stem>.png   or   <root>/masks/<identity>/<stem>.png
"""

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from nearid_ray.data.folder import Folder, Tree
from nearid_ray.data.importers.importer import PictureImporter, Record, Rejected
from nearid_ray.data.masking import MaskSettings
from nearid_ray.data.store import read_given
from nearid_ray.data.views import RawIdentity, RawView
from nearid_ray.errors import UsageError
from nearid_ray.identifiers import seed_of

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")
"""Endings of photos, in any case."""

UNREAD = (".heic", ".heif", ".avif", ".jxl", ".tif", ".tiff", ".bmp", ".gif", ".jfif", ".dng", ".cr2", ".nef", ".arw")
"""Endings of pictures that are not read: they are listed as left out, so that none is missed in silence."""

_NAMES_SHOWN = 10

_CATEGORY_TITLES = ("category", "class", "kind", "type")


@dataclass(frozen=True, kw_only=True)
class PhotosSettings:
    """Where the photos are and what becomes of them."""

    root: str
    """Folder or s3://bucket/prefix with one folder of photos an identity."""
    categories: str = ""
    """CSV file: identity (folder name) in the first column, category in the second, e.g. `mug-03,mug`. Without one,
    every category is unknown, and no identity finds a donor."""
    masks: str = "masks"
    """Name of the folders with mask files, inside each identity's folder or beside the identities' folders."""
    masking: MaskSettings = field(default_factory=MaskSettings)
    """What happens to photos without a mask file."""
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


class PhotosImporter(PictureImporter):
    """Reads identities from folders of photos. A bad photo or mask costs its view alone."""

    title = "Photo tuples"
    about = "Photos of objects, one row an identity, each photo cut to a square around the object's mask."
    licence = "other"

    def __init__(self, settings: PhotosSettings) -> None:
        self.settings = settings
        self.source = settings.source_name
        self.size_px = settings.size_px
        self.masking = settings.masking
        self._folder = Folder(settings.root)
        self.without_category = 0
        """How many listed identities have no category; known after `list_records`."""

    def content(self) -> dict[str, Any]:
        s = self.settings
        splits: dict[str, Any] = {"split": s.split}
        if s.split == "random":
            splits |= {"val_share": s.val_share, "test_share": s.test_share, "split_seed": s.split_seed}
        return {"root": self._folder.uri, "size_px": s.size_px, **splits}

    def facts(self) -> dict[str, Any]:
        return {"identities_without_category": self.without_category}

    def list_records(self) -> tuple[list[Record], list[Rejected]]:
        """(records, rejected) from file names alone, sorted; no photo is opened.

        A record has `identity_id`, `category`, `split`, `files` and, in the same order, `masks` ("" for none), both
        relative to the root. Rejected are folders without photos, pictures of a kind or in a place that is not read,
        masks without a photo and, with drop_small, identities with too few photos. Raises UsageError for a missing or
        empty folder, no photos at all, too few photos of an identity, names that cannot be told apart, links that
        leave the folder, and a wrong table of categories.
        """
        root = self._folder.uri
        self._folder.check("a folder with one folder of photos an identity")
        tree = self._folder.tree(depth=2)
        names = sorted({path.parts[0] for path in tree if path.parts and path.parts[0] != self.settings.masks})
        if not names:
            loose = [file for file in tree.get(PurePosixPath(), []) if _is_photo(file)]
            found = f"holds {len(loose)} photo(s) but no folders" if loose else "is empty"
            raise UsageError(f"{root} {found}; expected one folder of photos an identity, e.g. {root}/mug-01/1.jpg")
        _refuse_alike(names)
        if not any(_is_photo(file) for name in names for file in tree.get(PurePosixPath(name), [])):
            raise UsageError(f"no photos in the {len(names)} folder(s) of {root}; looked for {', '.join(EXTENSIONS)}")
        categories = self._categories(names)
        records: list[Record] = []
        rejected: list[Rejected] = []
        small: list[Record] = []
        for name in names:
            record = self._record(name, tree, categories.get(_normal(name), ""), rejected)
            if not record["files"]:
                rejected.append(self._reject(name, "no-photos", f"no file ends in {', '.join(EXTENSIONS)}"))
            elif len(record["files"]) < self.settings.min_views:
                small.append(record)
            else:
                records.append(record)
        self._refuse_small(small, records, rejected)
        rejected += self._passed_over(tree)
        self.without_category = sum(not record["category"] for record in records)
        return records, rejected

    def fetch(self, records: Sequence[Record]) -> Iterator[RawIdentity]:
        """The identities with their photos' bytes; a file that cannot be read is said in its view's `error`."""
        for record in records:
            yield RawIdentity(
                identity_id=record["identity_id"],
                split=record["split"],
                category=record["category"],
                views=[self._view(file, mask) for file, mask in zip(record["files"], record["masks"], strict=True)],
                provenance={"folder": PurePosixPath(record["files"][0]).parts[0]},
            )

    def _record(self, name: str, tree: Tree, category: str, rejected: list[Rejected]) -> Record:
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

    def _reject(self, name: str, reason: str, detail: str, record_id: str = "") -> Rejected:
        identity_id = f"{self.source}:{_normal(name)}"
        return {"record_id": record_id or identity_id, "identity_id": identity_id, "reason": reason, "detail": detail}

    def _passed_over(self, tree: Tree) -> Iterator[Rejected]:
        for folder, files in tree.items():
            if self.settings.masks in folder.parts:
                continue
            for file in files:
                of = folder.parts[0] if folder.parts else ""
                if file.lower().endswith(UNREAD):
                    detail = f"only {', '.join(EXTENSIONS)} are read; convert it"
                    yield self._reject(of, "unread-format", detail, str(folder / file))
                elif _is_photo(file) and len(folder.parts) != 1:
                    detail = "photos are read directly from each identity's folder; move it there"
                    yield self._reject(of, "photo-elsewhere", detail, str(folder / file))

    def _refuse_small(self, small: list[Record], records: list[Record], rejected: list[Rejected]) -> None:
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

    def _categories(self, names: list[str]) -> dict[str, str]:
        if not self.settings.categories:
            return {}
        return read_categories(self.settings.categories, {_normal(name) for name in names})

    def _split(self, identity_id: str) -> str:
        s = self.settings
        if s.split != "random":
            return s.split
        drawn = seed_of("split", s.split_seed, identity_id) / 2**63
        return "test" if drawn < s.test_share else "val" if drawn < s.test_share + s.val_share else "train"

    def _view(self, file: str, mask_file: str) -> RawView:
        provenance: dict[str, Any] = {"file": file}
        mask: dict[str, Any] = {}
        try:
            if mask_file:
                provenance["mask_file"] = mask_file
                mask = {"mask": self._folder.read(mask_file), "mask_name": f"mask {mask_file}", "mask_source": "file"}
            return RawView(name=file, image=self._folder.read(file), provenance=provenance, **mask)
        except OSError as error:
            return RawView(name=file, provenance=provenance, error=str(error))


def read_categories(uri: str, names: set[str]) -> dict[str, str]:
    """Category by identity from a CSV file with a comma between; `names` are the identities there are, normalised.

    A first line that names no identity is a header: its column category, class, kind or type is read, else the second.
    Raises UsageError for a missing or unreadable file, rows with fewer than two columns, identities that `names` does
    not hold, and an identity with two categories.
    """
    data = read_given(uri, "categories", "a CSV file of identity and category")
    try:
        text = data.decode("utf-8-sig")
        rows = [(number, row) for number, row in enumerate(csv.reader(io.StringIO(text, newline="")), 1) if any(row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{uri} cannot be read as CSV in UTF-8 ({error}); save it as UTF-8") from error
    column = 1
    if rows and _normal(rows[0][1][0]) not in names:
        header = [title.strip().lower() for title in rows.pop(0)[1]]
        column = next((place for place, title in enumerate(header) if place and title in _CATEGORY_TITLES), 1)
    short = [str(number) for number, row in rows if len(row) <= column]
    if short:
        raise UsageError(
            f"{uri}: line(s) {_shown(short)} have too few columns; expected identity,category with a comma between"
        )
    categories: dict[str, str] = {}
    double: list[str] = []
    for _, row in rows:
        name, category = _normal(row[0]), row[column].strip()
        if categories.setdefault(name, category) != category:
            double.append(f"{name} ({categories[name]}, {category})")
    if double:
        raise UsageError(f"{uri}: two categories for one identity: {_shown(double)}; keep one")
    unknown = sorted(set(categories) - names)
    if not categories:
        raise UsageError(f"{uri} gives no identity a category; expected lines like mug-03,mug")
    if unknown:
        raise UsageError(
            f"{uri} names {len(unknown)} identity(ies) without a folder: {_shown(unknown)}; correct the names or "
            "remove those lines"
        )
    return categories


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
