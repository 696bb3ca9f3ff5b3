"""Reading what is small in a dataset: every column but pictures and vectors, shard by shard."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from nearid_ray.data.store import Dataset, Location, parquet_file
from nearid_ray.errors import UsageError
from schemas import IMAGE

_AHEAD = 8
"""Shards read at the same time: on S3 a small read waits for the network most of the time."""


def picture_columns(schema: pa.Schema) -> list[str]:
    """Names of the columns that hold pictures; a dot reaches into the structs of a list column."""
    return [name for name, kind in flat_columns(schema) if kind.equals(IMAGE)]


def flat_columns(schema: pa.Schema) -> Iterator[tuple[str, pa.DataType]]:
    """(name, type) of every column; those of the structs in a list column one by one, as `views.x`."""
    for field in schema:
        if pa.types.is_list(field.type) and pa.types.is_struct(field.type.value_type):
            yield from ((f"{field.name}.{inner.name}", inner.type) for inner in field.type.value_type.fields)
        else:
            yield field.name, field.type


def schema_of(dataset: Dataset) -> pa.Schema:
    """The Arrow schema of the dataset's first shard."""
    with parquet_file(dataset.shard(dataset.shards()[0])) as file:
        return file.schema_arrow


def parquet_paths(names: Sequence[str]) -> list[str]:
    """Column names as the Parquet reader wants them: `views.x` is a field of the structs in the list `views`."""
    return [name.replace(".", ".list.element.", 1) for name in names]


def read_columns(place: Location, names: Sequence[str]) -> pa.Table:
    """Some columns of one shard; nothing else of it is read. Raises OSError or pyarrow's errors on a broken file."""
    with parquet_file(place) as file:
        return file.read(columns=parquet_paths(names))


def iterate(dataset: Dataset, names: Sequence[str]) -> Iterator[tuple[str, pa.Table]]:
    """(shard, its columns `names`) in the order of the shards; a few are read ahead."""
    shards = dataset.shards()
    with ThreadPoolExecutor(_AHEAD) as threads:
        for start in range(0, len(shards), _AHEAD):
            part = shards[start : start + _AHEAD]
            yield from zip(part, threads.map(lambda name: read_columns(dataset.shard(name), names), part), strict=True)


def check_complete(dataset: Dataset) -> None:
    """UsageError where planned shards of the dataset are missing."""
    missing = dataset.missing_shards()
    if missing:
        raise UsageError(
            f"{dataset.location.uri} is not complete: {len(missing)} of its shards are missing, e.g. {missing[0]}; "
            "run the job that writes it again"
        )
