"""What a person asks for: pictures as files, a folder of them, a CSV of them, or datasets."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from nearid_ray.data.folder import Folder
from nearid_ray.data.importers.dreambench import PICTURES, is_picture
from nearid_ray.data.store import Dataset, Location, locate, read_given
from nearid_ray.errors import UsageError
from nearid_ray.retrieving.places import PLACE_SCHEMA, places_of, places_of_files

_IMAGE_COLUMNS = ("image", "path", "file", "a")
_DEPTH = 4


@dataclass(frozen=True, kw_only=True)
class Queries:
    """Pictures to embed, and embeddings that are there already."""

    places: pa.Table
    """Pictures to embed."""
    files: Mapping[str, str]
    """Place of a file by its image_id."""
    embeddings: tuple[Dataset, ...]


def find_queries(entries: Sequence[str], roles: Sequence[str], identities: Mapping[str, str] | None = None) -> Queries:
    """What the entries mean.

    A folder's pictures show the identity that their sub-folder names, where they lie in sub-folders; a CSV names it in
    a column `identity`.

    Args:
        roles: of datasets' rows, those that are queries.
        identities: identity_id by the name that people use for it.

    Raises:
        UsageError: an entry is not there or holds no picture.
    """
    files: dict[str, str] = {}
    places, embeddings = [PLACE_SCHEMA.empty_table()], []
    for entry in entries:
        place = locate(entry)
        if not place.exists():
            raise UsageError(f"queries: {entry} does not exist; expected a picture, a folder, a CSV or a dataset")
        settings = Dataset(place).settings()
        if settings is not None and settings.get("table") == "embeddings":
            embeddings.append(Dataset.open(place, "embeddings"))
        elif settings is not None:
            table = places_of(Dataset.open(place))
            places.append(table.filter(pa.array([role in roles for role in table["role"].to_pylist()], pa.bool_())))
            if not places[-1].num_rows:
                raise UsageError(f"queries: {entry} has no picture of the role {' or '.join(roles)} (--query-roles)")
        elif entry.lower().endswith(".csv"):
            files |= _of_csv(entry, place)
        elif is_picture(entry):
            files[place.uri] = ""
        else:
            files |= _of_folder(entry)
    known = {file: (identities or {}).get(name, name) for file, name in files.items()}
    places.append(places_of_files(list(files), known))
    named = dict(zip(places[-1]["image_id"].to_pylist(), places[-1]["input_uri"].to_pylist(), strict=True))
    return Queries(places=pa.concat_tables(places), files=named, embeddings=tuple(embeddings))


def _of_folder(entry: str) -> dict[str, str]:
    """Identity's name (or empty) by file."""
    folder = Folder(entry)
    folder.check("a picture, a folder of pictures, a CSV or a dataset")
    found = {
        folder.location.child(*path.parts, file).uri: path.name
        for path, files in folder.tree(_DEPTH).items()
        for file in files
        if is_picture(file) and "masks" not in path.parts
    }
    if not found:
        raise UsageError(f"queries: {entry} holds no picture ({', '.join(PICTURES)})")
    return found


def _of_csv(entry: str, place: Location) -> dict[str, str]:
    text = read_given(entry, "queries", "a CSV of pictures").decode("utf-8-sig", errors="replace")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    columns = list(rows[0]) if rows else []
    column = next((name for name in _IMAGE_COLUMNS if name in columns), None)
    if column is None:
        raise UsageError(
            f"queries: {entry} has the columns {', '.join(columns) or 'none'}; expected one called image with a path a "
            "row, and one called identity where it is known"
        )
    base = place.uri.rpartition("/")[0]
    return {_absolute(row[column], base): row.get("identity") or "" for row in rows if row[column]}


def _absolute(file: str, base: str) -> str:
    return file if "://" in file or file.startswith(("/", "~")) else f"{base}/{file}"
