"""What an importer is: it lists a source's records cheaply, and makes rows of them, shard by shard, on the workers."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from nearid_ray.data.masking import MaskSettings
from nearid_ray.data.views import RawIdentity
from nearid_ray.identifiers import stable_hash
from schemas import TUPLES, Table

Record = dict[str, Any]
"""JSON-like: the table's first key column, and what making its row needs. An identity's also has `split`."""

Rejected = dict[str, str]
"""What is left out: `record_id`, `identity_id`, `reason` (short and fixed, it is counted) and `detail` (in words)."""


class Importer(ABC):
    """A source of rows of one table. Objects are pickled to the workers.

    `list_records` is cheap, complete and sorted; it opens no picture. It raises UsageError where there is nothing to
    read or the source contradicts itself.
    """

    table: ClassVar[Table]
    source: str
    """First part of the identity ids, and the column `source`."""
    title: str
    about: str
    licence: str
    """As dataset hubs name it, e.g. cc-by-4.0, or `other`."""

    @abstractmethod
    def content(self) -> dict[str, Any]:
        """Settings that decide what a row is (JSON-like). How many rows there are stays out: more can be added."""

    @abstractmethod
    def bytes_per_row(self) -> int:
        """A rough size of one written row, from which the size of shards follows."""

    @abstractmethod
    def list_records(self) -> tuple[list[Record], list[Rejected]]:
        """(records, rejected)."""

    def facts(self) -> dict[str, Any]:
        """Figures for the job's summary that are known after `list_records`."""
        return {}


class RowImporter(Importer):
    """An importer that makes finished rows itself."""

    @abstractmethod
    def rows(self, records: Sequence[Record]) -> Iterator[Record]:
        """One row of the table a record, in order. A record that cannot be read is a row with `error`, never raised."""


class PictureImporter(Importer):
    """An importer of identities with pictures; masks, canonical squares and encoding are done for it."""

    table = TUPLES
    size_px: int
    """Side of the canonical square in pixels."""
    masking: MaskSettings
    """What happens to pictures without a mask."""

    @abstractmethod
    def fetch(self, records: Sequence[Record]) -> Iterator[RawIdentity]:
        """One identity a record, in order, pictures still encoded. What cannot be read is said in its views' `error`
        or its own; nothing is raised for bad data."""

    def bytes_per_row(self) -> int:
        return int(3 * 0.5 * 3 * self.size_px**2)  # three views; PNG halves a photo


def distractor_row_id(identity_id: str, view_id: str, engine: str, source: str) -> str:
    """distractor_id of a distractor that was made elsewhere: its engine's settings are known by name only."""
    return stable_hash("imported", source, identity_id, view_id, engine)
