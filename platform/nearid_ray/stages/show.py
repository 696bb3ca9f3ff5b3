"""The show job: what is in a dataset, what differs from another, a sheet of pictures. Datasets stay as they are."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from nearid_ray import job
from nearid_ray.data.compare import compare
from nearid_ray.data.gallery import sheet
from nearid_ray.data.images import encode_png
from nearid_ray.data.show import describe, find_datasets
from nearid_ray.data.store import Dataset, Location, locate
from nearid_ray.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Show:
    """Say what is in a dataset, or in every dataset of a folder (an evaluation, a demo). Nothing is written to it."""

    dataset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
    """Folder or s3://bucket/prefix of a dataset, or a folder of datasets."""
    against: str = ""
    """Another dataset of the same table: say what differs, instead. The exit code is then 0 only where nothing does."""
    sheet: str = ""
    """PNG file, outside the dataset, for a sheet of pictures."""
    rows: int = 12
    """Rows of the dataset on the sheet, spread evenly over it; 1 to 200."""
    tuples: str = ""
    """With the sheet of a distractors dataset: its tuples, to show view, mask and what each engine made side by side,
    one identity a row."""
    identities: tuple[str, ...] = ()
    """With tuples: the identities to show, instead of `rows` that are drawn."""

    def __post_init__(self) -> None:
        if self.sheet and not self.sheet.lower().endswith(".png"):
            raise ValueError(f"sheet is {self.sheet!r}; expected the name of a .png file")
        if self.tuples and not self.sheet:
            raise ValueError("tuples is given without sheet; it is for the sheet alone")
        if self.identities and not self.tuples:
            raise ValueError(
                "identities is given without tuples; they are for the sheet of distractors with their views"
            )


def run_show(settings: Show) -> bool:
    """Print what is asked for; whether nothing differs (True without `against`)."""
    found = find_datasets(settings.dataset)
    same = True
    if settings.against:
        for here, there in _pairs(found, settings):
            same &= _print_differences(here, there)
    else:
        for dataset in found:
            job.print_table(dataset.location.uri, describe(dataset))
    if settings.sheet:
        _write_sheet(found, settings)
    return same


def _pairs(found: list[Dataset], settings: Show) -> list[tuple[Dataset, Dataset]]:
    """Datasets to compare: one with one, or those of the same place below two folders."""
    others = find_datasets(settings.against)
    if len(found) == len(others) == 1:
        return [(found[0], others[0])]
    mine = {_below(dataset, settings.dataset): dataset for dataset in found}
    theirs = {_below(dataset, settings.against): dataset for dataset in others}
    if mine.keys() != theirs.keys():
        raise UsageError(
            f"{settings.dataset} holds the datasets {', '.join(sorted(mine))}; {settings.against} holds "
            f"{', '.join(sorted(theirs))}; expected the same ones, or give one of each"
        )
    return [(mine[name], theirs[name]) for name in sorted(mine)]


def _below(dataset: Dataset, folder: str) -> str:
    return dataset.location.path.removeprefix(locate(folder).path).strip("/") or "."


def _print_differences(here: Dataset, there: Dataset) -> bool:
    found = compare(here, there)
    job.print_table(f"{here.location.uri} against {there.location.uri}", found.summary())
    return not found.any


def _write_sheet(found: list[Dataset], settings: Show) -> None:
    if len(found) != 1:
        raise UsageError(f"{settings.dataset} holds {len(found)} datasets; a sheet shows one, give its folder")
    place = locate(settings.sheet)
    for dataset in found:
        if _is_inside(place, dataset.location):
            raise UsageError(f"{settings.sheet} lies in the dataset, where nothing is written; give another place")
    tuples = Dataset.open(settings.tuples, "tuples") if settings.tuples else None
    place.write_bytes(encode_png(sheet(found[0], settings.rows, tuples, settings.identities)))
    print(f"\nsheet  {place.uri}")


def _is_inside(place: Location, folder: Location) -> bool:
    return place.is_local == folder.is_local and f"{place.path}/".startswith(f"{folder.path}/")
