"""SynCD's metadata: reading and checking it, and what it says of an object in words."""

import csv
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from nearid_ray.data.folder import Folder
from nearid_ray.data.store import read_given
from nearid_ray.errors import StoreError, UsageError

_DESCRIPTIONS = ("category_description", "description", "caption")

# A prompt's words on the object end before one of these: the scene begins.
_SCENE_BEGINS = re.compile(
    "is|are|was|in|on|at|by|near|next|to|from|under|over|beside|inside|outside|against|among|along|atop|between"
    "|sits|sitting|stands|standing|lies|lying|rests|resting|placed|surrounded"
)
_LOOSE_END = re.compile("a|an|the|and|of|with")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One checked record of a metadata file. All sequences but `originals` have a place a picture."""

    where: str
    """Its file and number, for messages."""
    file: str
    """Its file."""
    names: tuple[str, ...]
    """The pictures' file names without folders."""
    prompts: tuple[str, ...]
    originals: tuple[str, ...]
    kind: str
    """rigid | deformable."""
    objaverse_id: str
    own_text: str
    """What the record itself says of the object, or empty."""
    aesthetics: tuple[float | None, ...]
    dino_scores: tuple[tuple[float | None, ...], ...] | None

    @property
    def has_scores(self) -> bool:
        return self.dino_scores is not None or any(score is not None for score in self.aesthetics)


def read_metadata(folder: Folder, files: Sequence[str]) -> list[Entry]:
    """The records of metadata files, in order. Those that two files hold, with scores and without, are taken once.

    Raises UsageError, naming file, record (the first is 1) and key, for a file that is no JSON list of records, for
    missing keys and values of another kind, and for a picture that two different records name.
    """
    entries: dict[tuple[str, ...], Entry] = {}
    for file in files:
        for number, record in enumerate(_read_list(folder, file), 1):
            entry = _entry(record, file, f"{file}, record {number}")
            before = entries.get(entry.names)
            if before is not None and before.file != file and before.has_scores != entry.has_scores:
                entries[entry.names] = entry if entry.has_scores else before
            elif before is not None:
                raise UsageError(f"{entry.where}: its pictures stand in {before.where} too; keep one of them")
            else:
                entries[entry.names] = entry
    owners: dict[str, str] = {}
    for entry in entries.values():
        for name in entry.names:
            stem = PurePosixPath(name).stem  # a mask belongs to a stem
            if stem in owners:
                raise UsageError(f"{entry.where}: the picture {name} stands in {owners[stem]} too")
            owners[stem] = entry.where
    return list(entries.values())


def common_description(prompts: Sequence[str]) -> str:
    """The words with which all prompts begin, up to where one begins to tell of the scene; empty where none is shared.

    >>> common_description(["a red mug on a table", "a red mug is placed by a window"])
    'a red mug'
    >>> common_description(["a red mug", "the beach with a mug"])
    ''
    """
    shared: list[str] = []
    for words in zip(*(prompt.split() for prompt in prompts), strict=False):
        word = words[0].strip(".,;:")
        alike = len({other.strip(".,;:").casefold() for other in words}) == 1
        if not alike or _SCENE_BEGINS.fullmatch(word.casefold()):
            break
        shared.append(word)
        if words[0][-1] in ".,;:":
            break
    while shared and _LOOSE_END.fullmatch(shared[-1].casefold()):
        shared.pop()
    return " ".join(shared)


def deformable_category(name: str) -> str:
    """The category in a deformable object's file name, which is CATEGORY_1_2_3_4.jpg; empty for other names.

    >>> deformable_category("guinea pig_0_12_0_2.jpg")
    'guinea pig'
    """
    found = re.fullmatch(r"(.+?)(?:_\d+){4}", PurePosixPath(name).stem)
    return found[1].replace("_", " ") if found else ""


def read_captions(uri: str) -> dict[str, str]:
    """Text by objaverse_id from a CSV file without a header, id and text in the first two columns.

    Raises UsageError for a missing or unreadable file, a line without two columns, and an id with two texts.
    """
    data = read_given(uri, "captions", "a CSV file of objaverse_id and text")
    captions: dict[str, str] = {}
    try:
        text = data.decode("utf-8-sig")
        for number, row in enumerate(csv.reader(io.StringIO(text, newline="")), 1):
            if len(row) == 1:
                raise UsageError(f"{uri}: line {number} has one column; expected objaverse_id,text")
            if row and captions.setdefault(row[0].strip(), row[1].strip()) != row[1].strip():
                raise UsageError(f"{uri}: two texts for {row[0].strip()} (line {number}); keep one")
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{uri} cannot be read as CSV in UTF-8 ({error}); save it as UTF-8") from error
    return captions


def _read_list(folder: Folder, file: str) -> list[Any]:
    try:
        data = json.loads(folder.read(file))
    except (StoreError, UsageError):
        raise
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder.uri}/{file} cannot be read as JSON ({error})") from error
    if not isinstance(data, list):
        raise UsageError(f"{folder.uri}/{file} holds a {type(data).__name__}; expected a list of records")
    return data


def _entry(record: Any, file: str, where: str) -> Entry:
    if not isinstance(record, dict):
        raise UsageError(f"{where} is a {type(record).__name__}; expected an object with filenames, prompts, ...")
    names = _texts(record, "filenames", where)
    if not names or not all(PurePosixPath(name).name for name in names):
        raise UsageError(f"{where}: filenames is {names}; expected one file name or more")
    prompts = _texts(record, "prompts", where)
    if len(prompts) != len(names):
        raise UsageError(f"{where}: {len(prompts)} prompts for {len(names)} filenames; expected as many")
    kind, objaverse_id = (_need(record, key, where) for key in ("category", "objaverse_id"))
    if kind not in ("rigid", "deformable"):
        raise UsageError(f"{where}: category is {kind!r}; expected rigid or deformable")
    if not isinstance(objaverse_id, str):
        raise UsageError(f"{where}: objaverse_id is {objaverse_id!r}; expected text")
    scores = record.get("aesthetics_scores") or {}
    if not isinstance(scores, dict):
        raise UsageError(f"{where}: aesthetics_scores is a {type(scores).__name__}; expected an object of stem: number")
    stems = [PurePosixPath(name).stem for name in names]
    return Entry(
        where=where,
        file=file,
        names=tuple(PurePosixPath(name).name for name in names),
        prompts=tuple(prompts),
        originals=tuple(_texts(record, "original_filenames", where) if record.get("original_filenames") else ()),
        kind=kind,
        objaverse_id=objaverse_id,
        own_text=next((text for key in _DESCRIPTIONS if isinstance(text := record.get(key), str) and text), ""),
        aesthetics=tuple(_number(scores.get(stem), f"{where}: aesthetics_scores[{stem!r}]") for stem in stems),
        dino_scores=_dino_scores(record.get("dino_scores"), len(names), where),
    )


def _dino_scores(scores: Any, size: int, where: str) -> tuple[tuple[float | None, ...], ...] | None:
    if scores is None:
        return None
    square = isinstance(scores, list) and len(scores) == size
    if not square or not all(isinstance(row, list) and len(row) == size for row in scores):
        raise UsageError(f"{where}: dino_scores is no {size} x {size} list of lists; there are {size} filenames")
    return tuple(tuple(_number(value, f"{where}: dino_scores") for value in row) for row in scores)


def _need(record: dict[str, Any], key: str, where: str) -> Any:
    if key not in record:
        raise UsageError(f"{where} has no key {key!r}; it has {', '.join(sorted(record)) or 'none'}")
    return record[key]


def _texts(record: dict[str, Any], key: str, where: str) -> list[str]:
    values = _need(record, key, where)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise UsageError(f"{where}: {key} is {values!r:.80}; expected a list of texts")
    return values


def _number(value: Any, name: str) -> float | None:
    """A finite number; None for null and for NaN, which means that there is none."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{name} is {value!r}; expected a number")
    return float(value) if math.isfinite(value) else None
