"""DreamBench++: the reference pictures, as identities with one view each.

<root>/images/**/<category>/<number>.jpg and <root>/captions/**/<category>/<number>.txt, whose first line is the subject
and whose other lines are the prompts. Everything else of DreamBench++ names a reference by its collection id, e.g.
live_subject_animal_00_kitten, object_57_leather_handbag, style_10_ukiyo-e: category, number and subject.
"""

import csv
import io
import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from nearid_ray.data.folder import Folder
from nearid_ray.data.importers.importer import PictureImporter, Record, Rejected
from nearid_ray.data.masking import MaskSettings
from nearid_ray.data.store import read_given
from nearid_ray.data.views import RawIdentity, RawView
from nearid_ray.errors import StoreError, UsageError

SOURCE = "dreambench"
CATEGORIES = ("animal", "human", "object", "style")

PICTURES = (".jpg", ".jpeg", ".png", ".webp")
"""Endings of pictures, in any case."""

_LIVE = ("animal", "human")
_ID_START = re.compile(rf"(?:live_subject_)?({'|'.join(CATEGORIES)})_")


def identity_of(collection_id: str) -> str:
    """identity_id of a reference."""
    return f"{SOURCE}:{collection_id}"


def collection_id(category: str, number: str, subject: str) -> str:
    """The id that DreamBench++ gives a reference.

    >>> collection_id("animal", "00", "Red kitten")
    'live_subject_animal_00_red_kitten'
    """
    start = f"live_subject_{category}" if category in _LIVE else category
    return normal(f"{start}_{number}_{subject.lower().replace(' ', '_')}")


def category_of(collection_id: str, table: dict[str, str]) -> str:
    """The category that the table gives, else the one with which the id begins, else empty.

    >>> category_of("live_subject_human_12_samurai", {}), category_of("object_50_rubber_duck", {}), category_of("x", {})
    ('human', 'object', '')
    """
    found = _ID_START.match(collection_id)
    return table.get(collection_id) or (found[1] if found else "")


def read_categories(uri: str) -> dict[str, str]:
    """Category by collection id, from a JSON object {id: category} or a CSV file of id,category without a header.

    Raises UsageError for a missing or unreadable file and for categories that DreamBench++ does not have. An empty
    `uri` is no table.
    """
    if not uri:
        return {}
    data = read_given(uri, "categories", "JSON or CSV with collection ids and categories")
    try:
        text = data.decode("utf-8-sig")
        if uri.lower().endswith(".json"):
            pairs = list(json.loads(text).items())
        else:
            pairs = [(row[0], row[1]) for row in csv.reader(io.StringIO(text, newline="")) if row]
    except (ValueError, AttributeError, IndexError, csv.Error) as error:
        raise UsageError(
            f"{uri} cannot be read ({error}); expected a JSON object {{collection id: category}}, or lines of "
            "collection id,category, in UTF-8"
        ) from error
    wrong = [f"{name}: {category!r}" for name, category in pairs if category not in CATEGORIES]
    if wrong:
        raise UsageError(f"{uri}: {', '.join(wrong[:5])}; expected one of {', '.join(CATEGORIES)}")
    return {normal(name): category for name, category in pairs}


def is_picture(file: str) -> bool:
    return file.lower().endswith(PICTURES)


def normal(name: str) -> str:
    """One spelling for names that look the same: composed letters."""
    return unicodedata.normalize("NFC", name)


@dataclass(frozen=True, kw_only=True)
class DreambenchSettings:
    """Where DreamBench++'s references are and what becomes of them."""

    root: str
    """Folder or s3://bucket/prefix with the pictures' folder, and with names_from=captions the captions' folder."""
    images: str = "images"
    """Name of the folder with the pictures; `.` where the root itself holds them."""
    captions: str = "captions"
    """Name of the folder with a text file a picture, at the same path: the subject, then a prompt a line."""
    names_from: Literal["captions", "file", "folder"] = "captions"
    """Where the collection id comes from: `captions` puts it together from the category's folder, the file's number and
    the subject, as published; `file` takes the picture's file name; `folder` the name of the folder that the picture
    is in, of which the first picture is read (this fits samples/METHOD/src_image)."""
    categories: str = ""
    """JSON or CSV file with the category of each collection id. Without one it is the folder's name where
    names_from=captions, else what the id begins with."""
    masking: MaskSettings = field(default_factory=lambda: MaskSettings(mask_method="none"))
    """How masks are found; DreamBench++ has none."""
    size_px: int = 512
    """Side of the canonical square in pixels, 16 to 4096."""
    split: Literal["test", "val", "train"] = "test"
    """The split of all references."""

    def __post_init__(self) -> None:
        if not self.root:
            raise ValueError("root is empty; expected DreamBench++'s folder with images/ and captions/")
        if not self.images or not self.captions:
            raise ValueError("images or captions is empty; expected the names of folders in the root, or .")
        if self.names_from not in ("captions", "file", "folder"):
            raise ValueError(f"names_from is {self.names_from!r}; expected captions, file or folder")
        if not 16 <= self.size_px <= 4096:
            raise ValueError(f"size_px is {self.size_px}; expected 16 to 4096")
        if self.split not in ("test", "val", "train"):
            raise ValueError(f"split is {self.split!r}; expected test, val or train")


class DreambenchImporter(PictureImporter):
    """Reads the references as identities `dreambench:COLLECTION_ID` with one view.

    The subject is the description; the prompts stand in the identity's provenance, in order: their place is the
    prompt_index of generated pictures and ratings.
    """

    source = SOURCE
    title = "DreamBench++ references"
    about = "DreamBench++'s reference pictures of animals, humans, objects and styles, one view an identity."
    licence = "unknown"

    def __init__(self, settings: DreambenchSettings) -> None:
        self.settings = settings
        self.size_px = settings.size_px
        self.masking = settings.masking
        self._folder = Folder(settings.root)
        self._facts: dict[str, Any] = {}

    def content(self) -> dict[str, Any]:
        s = self.settings
        where = {"root": self._folder.uri, "images": s.images, "captions": s.captions, "names_from": s.names_from}
        return {**where, "size_px": s.size_px, "split": s.split}

    def facts(self) -> dict[str, Any]:
        return self._facts

    def list_records(self) -> tuple[list[Record], list[Rejected]]:
        """(records, rejected) from file names and captions; no picture is opened.

        Rejected are pictures without captions or in no category's folder (names_from=captions), captions without a
        picture, and further pictures in a folder (names_from=folder). Raises UsageError where there is no picture, and
        for a wrong table of categories.
        """
        s = self.settings
        self._folder.check("DreamBench++'s folder with images/ and captions/")
        files = sorted(str(folder / file) for folder, names in self._folder.tree(depth=6).items() for file in names)
        pictures = [file for file in files if is_picture(file) and _below(file, s.images) is not None]
        if not pictures:
            raise UsageError(f"{self._folder.uri}: no picture below {s.images}; looked for {', '.join(PICTURES)}")
        table = read_categories(s.categories)
        records: list[Record] = []
        rejected: list[Rejected] = []
        if s.names_from == "captions":
            self._list_captioned(pictures, files, table, records, rejected)
        else:
            seen: set[str] = set()
            for file in pictures:
                path = PurePosixPath(file)
                name = normal(path.stem if s.names_from == "file" else path.parent.name)
                if s.names_from == "folder" and name in seen:
                    rejected.append(_left_out(file, name, "further-picture", "one picture a folder is read"))
                    continue
                seen.add(name)
                records.append(self._record(name, file, category_of(name, table)))
        if not records:
            reasons = ", ".join(sorted({left_out["reason"] for left_out in rejected}))
            raise UsageError(f"{self._folder.uri}: none of {len(pictures)} pictures is a reference ({reasons})")
        self._facts = {
            f"references_{category or 'without_category'}": count
            for category in (*CATEGORIES, "")
            if (count := sum(record["category"] == category for record in records))
        }
        return sorted(records, key=lambda record: record["identity_id"]), rejected

    def fetch(self, records: Sequence[Record]) -> Iterator[RawIdentity]:
        """The references with their pictures' bytes."""
        for record in records:
            known: dict[str, Any] = {"name": record["file"], "provenance": {"file": record["file"]}}
            try:
                view = RawView(**known, image=self._folder.read(record["file"]))
            except StoreError:
                raise  # the store fails, not this picture
            except OSError as error:
                view = RawView(**known, error=str(error))
            yield RawIdentity(
                identity_id=record["identity_id"],
                split=record["split"],
                views=[view],
                category=record["category"],
                description=record["subject"],
                provenance={"collection_id": record["collection_id"], "prompts": record["prompts"]},
            )

    def _list_captioned(
        self,
        pictures: Sequence[str],
        files: Sequence[str],
        table: dict[str, str],
        records: list[Record],
        rejected: list[Rejected],
    ) -> None:
        captions: dict[str, str] = {}
        for file in files:
            inside = _below(file, self.settings.captions)
            if inside is not None and file.lower().endswith(".txt"):
                captions[normal(str(inside.with_suffix("")))] = file
        for file in pictures:
            inside = _below(file, self.settings.images) or PurePosixPath()
            text_file = captions.pop(normal(str(inside.with_suffix(""))), "")
            category = inside.parent.name
            if not text_file:
                rejected.append(_left_out(file, "", "no-captions", f"no text file {inside.with_suffix('.txt')}"))
                continue
            lines = self._lines(text_file)
            if category not in CATEGORIES or not lines:
                why = f"{text_file} is empty" if not lines else f"its folder is {category}, not {', '.join(CATEGORIES)}"
                rejected.append(_left_out(file, "", "no-subject" if not lines else "no-category", why))
                continue
            name = collection_id(category, inside.stem, lines[0])
            records.append(self._record(name, file, table.get(name) or category, lines[0], lines[1:]))
        for text_file in captions.values():
            rejected.append(_left_out(text_file, "", "captions-without-picture", "no picture at the same path"))

    def _record(self, name: str, file: str, category: str, subject: str = "", prompts: Sequence[str] = ()) -> Record:
        return {
            "identity_id": identity_of(name),
            "collection_id": name,
            "split": self.settings.split,
            "category": category,
            "subject": subject,
            "prompts": list(prompts),
            "file": file,
        }

    def _lines(self, file: str) -> list[str]:
        """The lines that are not empty: subject, prompts."""
        try:
            text = self._folder.read(file).decode("utf-8-sig")
        except StoreError:
            raise
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{self._folder.uri}/{file} cannot be read as text in UTF-8 ({error})") from error
        return [line.strip() for line in text.splitlines() if line.strip()]


def _below(file: str, folder: str) -> PurePosixPath | None:
    """The path inside `folder`, or None where the file is not in it; `.` holds all."""
    path = PurePosixPath(file)
    return path.relative_to(folder) if path.is_relative_to(folder) else None


def _left_out(file: str, name: str, reason: str, detail: str) -> Rejected:
    return {"record_id": file, "identity_id": identity_of(name) if name else "", "reason": reason, "detail": detail}
