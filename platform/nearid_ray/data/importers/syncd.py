"""SynCD: synthetic pictures of one object in several scenes, with masks and metadata.

<root>/*.jpg, <root>/masks/<stem>.jpg, <root>/metadata*.json; or folders of this form, directly in <root>.

A metadata file is a JSON list of records, one an identity: filenames, prompts, category (rigid or deformable),
objaverse_id ("" where deformable), and where there are any original_filenames, aesthetics_scores ({stem: number}) and
dino_scores (a row and a column a file, upper triangle).
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

import cv2
import numpy as np

from nearid_ray.data.folder import Folder, Tree
from nearid_ray.data.images import decode_rgb, encode_png
from nearid_ray.data.importers.importer import PictureImporter, Record, Rejected
from nearid_ray.data.importers.mask_files import fitted_mask
from nearid_ray.data.importers.syncd_metadata import (
    Entry,
    common_description,
    deformable_category,
    read_captions,
    read_metadata,
)
from nearid_ray.data.masking import MaskSettings
from nearid_ray.data.masks import rendered_mask
from nearid_ray.data.views import RawIdentity, RawView
from nearid_ray.errors import StoreError, UsageError

_PICTURES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True, kw_only=True)
class SyncdSettings:
    """Where SynCD lies and what becomes of it."""

    root: str
    """Folder or s3://bucket/prefix with pictures, masks/ and metadata*.json, or with folders of them."""
    kind: Literal["all", "rigid", "deformable"] = "all"
    """Which objects to read; the others are counted and left out."""
    captions: str = ""
    """CSV file without a header: objaverse_id, text on the object (Cap3D's file has this form). Used where a record has
    no text of its own."""
    mask_above: int = 0
    """A deformable object's mask holds all that is brighter, 0 to 254. SynCD's own loader takes all above 0; raise
    it where JPEG noise around the object counts as object."""
    masking: MaskSettings = field(default_factory=lambda: MaskSettings(mask_method="none"))
    """What happens to pictures without a mask file; SynCD has one for each."""
    size_px: int = 512
    """Side of the canonical square in pixels, 16 to 4096."""
    split: Literal["train", "val", "test"] = "train"
    """The split of all identities; curation draws others."""
    source_name: str = "syncd"
    """First part of every identity_id: small letters, digits, - and _."""

    def __post_init__(self) -> None:
        if not self.root:
            raise ValueError("root is empty; expected a folder with SynCD's pictures and metadata*.json")
        if self.kind not in ("all", "rigid", "deformable"):
            raise ValueError(f"kind is {self.kind!r}; expected all, rigid or deformable")
        if not 0 <= self.mask_above <= 254:
            raise ValueError(f"mask_above is {self.mask_above}; expected 0 to 254")
        if not 16 <= self.size_px <= 4096:
            raise ValueError(f"size_px is {self.size_px}; expected 16 to 4096")
        if self.split not in ("train", "val", "test"):
            raise ValueError(f"split is {self.split!r}; expected train, val or test")
        if not re.fullmatch(r"[a-z0-9_-]+", self.source_name):
            raise ValueError(f"source_name is {self.source_name!r}; expected small letters, digits, - and _")


class SyncdImporter(PictureImporter):
    """Reads SynCD's folders. A missing or broken picture costs its view alone.

    The identity is named after its first file: `syncd:STEM`, with the folder before it where there are several. Its
    provenance has `dino_scores`, a view's has `aesthetics`, both as SynCD gives them, where it does.

    `description` is the record's own text; else the caption of its objaverse_id (`captions`); else the words with which
    all its prompts begin, up to where the scene begins, e.g. "a white plastic bottle"; else empty. `category` is known
    for deformable objects alone, from the file names that SynCD gives them: CATEGORY_1_2_3_4.jpg.
    """

    title = "SynCD tuples"
    about = (
        "Synthetic Customization Data (SynCD): generated pictures of one object in two or three scenes, one row an "
        "object, each picture cut to a square around the object's mask."
    )
    licence = "unknown"

    def __init__(self, settings: SyncdSettings) -> None:
        self.settings = settings
        self.source = settings.source_name
        self.size_px = settings.size_px
        self.masking = settings.masking
        self._folder = Folder(settings.root)
        self._facts: dict[str, Any] = {}

    def content(self) -> dict[str, Any]:
        s = self.settings
        return {
            "root": self._folder.uri,
            "mask_above": s.mask_above,
            "size_px": s.size_px,
            "split": s.split,
        }

    def facts(self) -> dict[str, Any]:
        return self._facts

    def list_records(self) -> tuple[list[Record], list[Rejected]]:
        """(records, rejected) from the metadata and file names; no picture is opened.

        In a record `names` are the pictures as the metadata names them; `files` and `masks` have a place for each, ""
        where there is no such file. Rejected are objects of another kind, records none of whose pictures is there, and
        pictures that no record names. Raises UsageError for a missing folder, no metadata, and metadata that cannot be
        read or names a picture twice.
        """
        self._folder.check("SynCD's folder with pictures, masks/ and metadata*.json")
        tree = self._folder.tree(depth=2)
        parts = [folder for folder, files in tree.items() if len(folder.parts) < 2 and any(map(_is_metadata, files))]
        if not parts:
            raise UsageError(
                f"{self._folder.uri}: no metadata*.json in it or directly below; expected SynCD's pictures, masks/ and "
                "metadata*.json"
            )
        captions = read_captions(self.settings.captions) if self.settings.captions else {}
        records: list[Record] = []
        rejected: list[Rejected] = []
        for part in parts:
            found, left_out = self._list_part(part, tree, captions)
            records += found
            rejected += left_out
        if not records:
            reasons = Counter(left_out["reason"] for left_out in rejected)
            counts = ", ".join(f"{count} {reason}" for reason, count in reasons.items()) or "the metadata has no record"
            raise UsageError(f"{self._folder.uri}: nothing to read ({counts})")
        self._facts = {
            "rigid": sum(record["kind"] == "rigid" for record in records),
            "deformable": sum(record["kind"] == "deformable" for record in records),
            "views": sum(len(record["names"]) for record in records),
            "missing_pictures": sum(record["files"].count("") for record in records),
            "views_without_mask_file": sum(record["masks"].count("") for record in records),
        }
        return sorted(records, key=lambda record: record["identity_id"]), rejected

    def fetch(self, records: Sequence[Record]) -> Iterator[RawIdentity]:
        """The identities with their pictures' bytes, masks cleaned and encoded as PNG."""
        for record in records:
            yield RawIdentity(
                identity_id=record["identity_id"],
                split=record["split"],
                views=[self._view(record, place) for place in range(len(record["names"]))],
                category=record["category"],
                description=record["description"],
                object_kind=record["kind"],
                objaverse_id=record["objaverse_id"],
                provenance=record["provenance"],
            )

    def _list_part(
        self, part: PurePosixPath, tree: Tree, captions: dict[str, str]
    ) -> tuple[list[Record], list[Rejected]]:
        files = {_normal(file): str(part / file) for file in tree[part] if _is_picture(file)}
        masks = {_stem(file): str(part / "masks" / file) for file in tree.get(part / "masks", []) if _is_picture(file)}
        records: list[Record] = []
        rejected: list[Rejected] = []
        named: set[str] = set()
        for entry in read_metadata(self._folder, [str(part / file) for file in tree[part] if _is_metadata(file)]):
            names = [_normal(name) for name in entry.names]
            named |= set(names)
            identity_id = f"{self.source}:{part / _stem(names[0])}"
            if self.settings.kind not in ("all", entry.kind):
                rejected.append(_left_out(identity_id, "other-kind", f"{entry.where}: the object is {entry.kind}"))
            elif not any(name in files for name in names):
                rejected.append(_left_out(identity_id, "no-pictures", f"{entry.where}: no {', no '.join(names)}"))
            else:
                places = {
                    "files": [files.get(name, "") for name in names],
                    "masks": [masks.get(_stem(name), "") for name in names],
                }
                records.append(self._record(identity_id, entry, captions) | places)
        for name in sorted(set(files) - named):
            left_out = _left_out("", "picture-without-record", f"no metadata names {files[name]}")
            rejected.append(left_out | {"record_id": files[name]})
        return records, rejected

    def _record(self, identity_id: str, entry: Entry, captions: dict[str, str]) -> Record:
        provenance: dict[str, Any] = {"metadata": entry.file}
        if entry.dino_scores is not None:
            provenance["dino_scores"] = entry.dino_scores
        caption = captions.get(entry.objaverse_id, "")
        return {
            "identity_id": identity_id,
            "split": self.settings.split,
            "kind": entry.kind,
            "category": deformable_category(entry.names[0]) if entry.kind == "deformable" else "",
            "description": entry.own_text or caption or common_description(entry.prompts),
            "objaverse_id": entry.objaverse_id,
            "names": entry.names,
            "prompts": entry.prompts,
            "originals": entry.originals,
            "aesthetics": entry.aesthetics,
            "provenance": provenance,
        }

    def _view(self, record: Record, place: int) -> RawView:
        name, file, mask_file = (record[key][place] for key in ("names", "files", "masks"))
        provenance: dict[str, Any] = {"file": file or name}
        if mask_file:
            provenance["mask_file"] = mask_file
        if place < len(record["originals"]):
            provenance["original_file"] = record["originals"][place]
        if record["aesthetics"][place] is not None:
            provenance["aesthetics"] = record["aesthetics"][place]
        known: dict[str, Any] = {"name": file or name, "prompt": record["prompts"][place], "provenance": provenance}
        if not file:
            return RawView(**known, error=f"the metadata names {name}, and there is no such file")
        try:
            known["image"] = image = self._folder.read(file)
            if mask_file:
                known |= {
                    "mask": self._read_mask(record["kind"], mask_file, image),
                    "mask_name": f"mask {mask_file}",
                    "mask_source": "rendered" if record["kind"] == "rigid" else "file",
                }
        except (StoreError, UsageError):
            raise  # the store fails, not this picture
        except OSError as error:
            return RawView(**known, error=str(error))
        except ValueError as error:
            return RawView(**known, error=f"mask {mask_file}: {error}")
        return RawView(**known)

    def _read_mask(self, kind: str, file: str, image: bytes) -> bytes:
        """The cleaned mask as PNG, at the picture's size: SynCD saves those of deformable objects smaller."""
        picture_HW3 = decode_rgb(self._folder.read(file))
        if kind == "rigid":
            mask_HW = rendered_mask(picture_HW3)
        else:
            above_HW = cv2.cvtColor(picture_HW3, cv2.COLOR_RGB2GRAY) > self.settings.mask_above
            mask_HW = np.where(above_HW, np.uint8(255), np.uint8(0))
        return encode_png(fitted_mask(mask_HW, image))


def _left_out(identity_id: str, reason: str, detail: str) -> Rejected:
    return {"record_id": identity_id, "identity_id": identity_id, "reason": reason, "detail": detail}


def _is_metadata(file: str) -> bool:
    return "metadata" in file.lower() and file.lower().endswith(".json")


def _is_picture(file: str) -> bool:
    return file.lower().endswith(_PICTURES)


def _stem(file: str) -> str:
    return PurePosixPath(_normal(file)).stem


def _normal(name: str) -> str:
    """One spelling for names that look the same: composed letters."""
    return unicodedata.normalize("NFC", name)
