"""DreamBench++: what people and metrics said of the generated pictures.

People: <human>/<group>/<method>-{cp,pf}.json, one flat object {"<collection_id>-<prompt>": 0..4}; cp is concept
preservation, pf is prompt following. Metrics: <folder>/<method>.json or <method>-{cp,pf}.json, keys alike or with the
picture's number behind: "<collection_id>-<prompt>_<image>". Everything is joined by key, never by order.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from nearid_ray.data.folder import Folder
from nearid_ray.data.importers.dreambench import SOURCE, category_of, identity_of, normal, read_categories
from nearid_ray.data.importers.dreambench_generated import method_of
from nearid_ray.data.importers.importer import Record, Rejected, RowImporter
from nearid_ray.data.store import Dataset, locate
from nearid_ray.errors import StoreError, UsageError
from nearid_ray.identifiers import stable_hash
from schemas import RATINGS

WHOLE_PROMPT = -1
"""image_index of a rating that is of all pictures of a prompt."""

_ASPECTS = {"cp": "concept", "pf": "prompt"}
_KEY = re.compile(r"(?P<name>.+)-(?P<prompt>\d+)(?:_(?P<image>\d+))?")
_METRIC = re.compile(r"(?P<rater>[\w.-]+)(?::(?P<aspect>concept|prompt))?=(?P<folder>.+)")
_HIGHEST = 4


class RatingKey(NamedTuple):
    """What a rating is of; `image_index` is -1 for the prompt as a whole."""

    collection_id: str
    prompt_index: int
    image_index: int


def parse_key(key: str) -> RatingKey | None:
    """A rating's key, taken apart; None where it has another form. The collection id itself may hold hyphens.

    >>> parse_key("object_03_t-shirt-7")
    RatingKey(collection_id='object_03_t-shirt', prompt_index=7, image_index=-1)
    >>> parse_key("object_03_t-shirt-7_0").image_index
    0
    """
    found = _KEY.fullmatch(normal(key))
    if not found:
        return None
    return RatingKey(found["name"], int(found["prompt"]), int(found["image"] or WHOLE_PROMPT))


@dataclass(frozen=True, kw_only=True)
class DreambenchRatingsSettings:
    """Where the ratings are."""

    human: str = ""
    """Folder or s3://bucket/prefix with a folder a group of people (DreamBench++ calls it merged_data)."""
    metrics: tuple[str, ...] = ()
    """Metrics as NAME=FOLDER or NAME:prompt=FOLDER, the folder holding a JSON file a method. NAME says who rates; the
    aspect is concept unless `:prompt` or the file's ending -pf says prompt."""
    methods: tuple[str, ...] = ()
    """Methods to read; none named reads all."""
    generated: str = ""
    """Dataset of the generated pictures. With it, ratings of what it does not hold are left out and counted."""
    categories: str = ""
    """JSON or CSV file with the category of each collection id; without one it is what the id begins with."""

    def __post_init__(self) -> None:
        if not self.human and not self.metrics:
            raise ValueError(
                "neither human nor metrics is given; expected a folder of ratings, e.g. --human merged_data"
            )
        wrong = [metric for metric in self.metrics if not _METRIC.fullmatch(metric)]
        if wrong:
            raise ValueError(f"metrics holds {', '.join(wrong)}; expected NAME=FOLDER or NAME:prompt=FOLDER")


class DreambenchRatingsImporter(RowImporter):
    """Reads ratings, one row each. A score that cannot be is a row with `error`; null and NaN are no score."""

    table = RATINGS
    source = SOURCE
    title = "DreamBench++ ratings"
    about = (
        "What two groups of people, and metrics, said of DreamBench++'s generated pictures: whether they keep the "
        "concept and follow the prompt."
    )
    licence = "unknown"

    def __init__(self, settings: DreambenchRatingsSettings) -> None:
        self.settings = settings
        self._facts: dict[str, Any] = {}

    def content(self) -> dict[str, Any]:
        human = locate(self.settings.human).uri if self.settings.human else ""
        metrics = [f"{rater}:{aspect}={locate(uri).uri}" for rater, aspect, uri in map(_metric, self.settings.metrics)]
        return {"human": human, "metrics": metrics}

    def facts(self) -> dict[str, Any]:
        return self._facts

    def bytes_per_row(self) -> int:
        return 500

    def list_records(self) -> tuple[list[Record], list[Rejected]]:
        """(records, rejected); the files are read here, they are small.

        Rejected are files of another name, keys of another form and, with `generated`, keys that no picture has. Raises
        UsageError for missing folders, files that are no JSON object of keys and scores, and a rating given twice.
        """
        s = self.settings
        listing = _Listing(s)
        if s.human:
            folder = Folder(s.human)
            folder.check("a folder a group of people, e.g. group1, with METHOD-cp.json and METHOD-pf.json")
            for place, files in folder.tree(depth=1).items():
                for file in files:
                    listing.read(folder, place / file, place.name, "human", "")
        for rater, aspect, uri in map(_metric, s.metrics):
            folder = Folder(uri)
            folder.check("a JSON file a method, e.g. dreambooth_sd.json")
            for file in folder.tree(depth=0)[PurePosixPath()]:
                listing.read(folder, PurePosixPath(file), rater, "metric", aspect)
        records = list(listing.records.values())
        missing = sorted(listing.wanted - {record["method"] for record in records})
        if missing or not records:
            reasons = Counter(left_out["reason"] for left_out in listing.rejected)
            counts = ", ".join(f"{count} {reason}" for reason, count in reasons.items()) or "no file"
            what = f"no rating of {', '.join(missing)}" if missing else "no rating to read"
            raise UsageError(f"{' and '.join(filter(None, [s.human, *s.metrics]))}: {what} (left out: {counts})")
        self._facts = {
            "ratings_by": dict(sorted(Counter(f"{record['rater']}/{record['aspect']}" for record in records).items())),
            "methods": len({record["method"] for record in records}),
            "without_score": sum(record["score"] is None and not record["error"] for record in records),
            "without_category": sum(not record["category"] for record in records),
        }
        return records, listing.rejected

    def rows(self, records: Sequence[Record]) -> Iterator[Record]:
        """One row a rating."""
        for record in records:
            yield record | {"source": SOURCE}


class _Listing:
    """Collects the ratings of one file after the other."""

    def __init__(self, settings: DreambenchRatingsSettings) -> None:
        self.records: dict[str, Record] = {}
        self.rejected: list[Rejected] = []
        self.wanted = {method_of(method) for method in settings.methods}
        self._places: dict[str, str] = {}
        self._categories = read_categories(settings.categories)
        self._generated = settings.generated
        self._pictures = _pictures(settings.generated) if settings.generated else None

    def read(self, folder: Folder, path: PurePosixPath, rater: str, kind: str, aspect: str) -> None:
        """The ratings in one file; `aspect` counts where the file's name does not say it."""
        where = f"{folder.uri}/{path}"
        stem, _, ending = path.stem.rpartition("-")
        named = bool(stem) and ending in _ASPECTS
        if path.suffix.lower() != ".json" or not rater or (kind == "human" and not named):
            expected = "GROUP/METHOD-cp.json or GROUP/METHOD-pf.json" if kind == "human" else "METHOD.json"
            self._reject(where, "", "unknown-file", f"expected {expected}")
            return
        method = method_of(stem if named else path.stem)
        if not self.wanted or method in self.wanted:
            for key, score in _read_scores(folder, path).items():
                common = {"method": method, "rater": rater, "rater_kind": kind}
                self._add(f"{where}: {key}", key, score, common | {"aspect": _ASPECTS[ending] if named else aspect})

    def _add(self, where: str, key: str, score: Any, common: dict[str, str]) -> None:
        parsed = parse_key(key)
        if parsed is None:
            expected = "COLLECTION_ID-PROMPT or COLLECTION_ID-PROMPT_IMAGE"
            self._reject(where, "", "unknown-key", f"expected {expected}, e.g. object_57_leather_handbag-3")
            return
        identity_id, method = identity_of(parsed.collection_id), common["method"]
        if self._pictures is not None and (identity_id, method, *parsed[1:]) not in self._pictures:
            self._reject(where, identity_id, "no-sample", f"{self._generated} has no such picture of {method}")
            return
        value, error = _checked(score, common["rater_kind"])
        numbers = parsed.prompt_index, parsed.image_index
        rating_id = stable_hash(identity_id, method, *numbers, common["rater"], common["aspect"])
        if rating_id in self.records:
            raise UsageError(f"{where} is rated by {self._places[rating_id]} too; keep one of them")
        self._places[rating_id] = where
        self.records[rating_id] = common | {
            "rating_id": rating_id,
            "identity_id": identity_id,
            "prompt_index": parsed.prompt_index,
            "image_index": parsed.image_index,
            "category": category_of(parsed.collection_id, self._categories),
            "score": value,
            "error": error,
        }

    def _reject(self, where: str, identity_id: str, reason: str, detail: str) -> None:
        self.rejected.append({"record_id": where, "identity_id": identity_id, "reason": reason, "detail": detail})


def _metric(text: str) -> tuple[str, str, str]:
    """(rater, aspect, folder) of NAME=FOLDER or NAME:ASPECT=FOLDER."""
    said = _METRIC.fullmatch(text)
    if said is None:
        raise ValueError(f"{text!r} is no metric; expected NAME=FOLDER or NAME:prompt=FOLDER")
    return said["rater"], said["aspect"] or "concept", said["folder"]


def _pictures(generated: str) -> set[tuple[str, str, int, int]]:
    """(identity_id, method, prompt_index, image_index) of all pictures, and with -1 of their prompts."""
    names = ["identity_id", "method", "prompt_index", "image_index"]
    rows = Dataset.open(generated, "generated").read(columns=names)
    found = set(zip(*(rows[name].to_pylist() for name in names), strict=True))
    return found | {(*place[:3], WHOLE_PROMPT) for place in found}


def _read_scores(folder: Folder, path: PurePosixPath) -> dict[str, Any]:
    where = f"{folder.uri}/{path}"

    def without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        double = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        if double:
            raise UsageError(f"{where}: key(s) given twice: {', '.join(double[:3])}")
        return dict(pairs)

    try:
        data = json.loads(folder.read(str(path)), object_pairs_hook=without_doubles)
    except (StoreError, UsageError):
        raise
    except (OSError, ValueError) as error:
        raise UsageError(f"{where} cannot be read as JSON ({error})") from error
    if not isinstance(data, dict):
        raise UsageError(f"{where} holds a {type(data).__name__}; expected an object of keys and scores")
    return data


def _checked(score: Any, kind: str) -> tuple[float | None, str]:
    """(score, what is wrong with it): (None, "") where there is none."""
    if score is None or (isinstance(score, float) and math.isnan(score)):
        return None, ""
    if isinstance(score, bool) or not isinstance(score, int | float) or math.isinf(score):
        return None, f"the score is {score!r}; expected a number"
    if kind == "human" and not 0 <= score <= _HIGHEST:
        return None, f"the score is {score!r}; expected 0 to {_HIGHEST}"
    return float(score), ""
