"""The token cache: what a frozen backbone says of every item, on disk, read without copying.

A cache is a dataset folder whose `data/*.parquet` hold the index (schemas.TOKENS_INDEX) and whose `tokens/*.arrow`
hold the tokens: one Arrow IPC file a shard, one record batch, one fixed-size-list column of T * D float16 numbers,
uncompressed, so that a memory map of the file is the array itself. `backbone.json` describes the backbone and
`head.safetensors` is its own attention-pooling head: training needs nothing else of it.

Axes: N items, T tokens, D token width.
"""

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
from numpy.typing import NDArray

from nearid_ray.data.plan import differences
from nearid_ray.data.store import Dataset, Location, locate
from nearid_ray.errors import UsageError
from nearid_ray.identifiers import content_hash, stable_hash
from schemas import TOKENS_INDEX

TOKENS_FOLDER = "tokens"
BACKBONE_FILE = "backbone.json"
HEAD_FILE = "head.safetensors"

_AGAIN = "run embed again with the same settings; it makes what is missing"


def tokens_bytes(tokens_NTD: NDArray[np.float16]) -> pa.Buffer:
    """A shard's token file; the same tokens give the same bytes."""
    items, tokens, width = tokens_NTD.shape
    flat = pa.array(np.ascontiguousarray(tokens_NTD).reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(flat, tokens * width)
    field = pa.field("tokens", column.type, nullable=False)
    schema = pa.schema([field], metadata={"tokens": str(tokens), "width": str(width)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch([column], schema=schema), custom_metadata={"items": str(items)})
    return sink.getvalue()


def map_tokens(path: str | Path, items: int, tokens: int, width: int) -> NDArray[np.float16]:
    """A token file as a read-only array (items, tokens, width) over its memory map.

    Raises UsageError, naming the file, when it is missing, cut off, no token file, or of another shape.
    """
    try:
        with pa.memory_map(str(path)) as source:
            batch = pa.ipc.open_file(source).get_batch(0)
        values = batch.column("tokens").flatten().to_numpy(zero_copy_only=True)
    except FileNotFoundError as error:
        raise UsageError(f"the token file {path} is missing; {_AGAIN}") from error
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        said = f"the token file {path} is broken or cut off ({error})"
        raise UsageError(f"{said}; delete it and its index, {_AGAIN}") from error
    if values.dtype != np.float16 or values.size != items * tokens * width:
        raise UsageError(
            f"the token file {path} holds {values.size} numbers of {values.dtype}; expected {items} items of "
            f"{tokens} x {width} float16. Delete it and its index, {_AGAIN}"
        )
    return values.reshape(items, tokens, width)


class TokenCache:
    """A complete token cache, open for reading.

    Attributes:
        index: one row an item over all shards (schemas.TOKENS_INDEX), in the order of shard name and row.
        uri: where it lies; what is read may be a copy on this machine's disk.
        tokens, width: shape (T, D) of an item's tokens.
        backbone: who made the tokens: spec, revision, fingerprint, tokens, width, heads, mlp_width, layer_norm_eps.
        content: the settings that decide what the tokens are; `content_digest` is their name and stays when the cache
            grows.
        fingerprint: the digest, and after a dash a name of the items with their order and errors.
    """

    def __init__(self, dataset: Dataset, uri: str = "") -> None:
        stored, backbone = dataset.settings(), dataset.read_json(BACKBONE_FILE)
        if stored is None or backbone is None:
            raise UsageError(f"{dataset.location.uri} holds no token cache ({BACKBONE_FILE} is missing); {_AGAIN}")
        self.uri = uri or dataset.location.uri
        self.content: dict[str, Any] = stored["content"]
        self.content_digest: str = stored["content_digest"]
        self.backbone: dict[str, Any] = backbone
        self.tokens: int = backbone["tokens"]
        self.width: int = backbone["width"]
        self._head_file = dataset.location.child(HEAD_FILE)
        self.index = dataset.read(columns=TOKENS_INDEX.schema.names).combine_chunks()
        self._shards, self._shard_of_N = self._map(dataset)
        self._row_of_N = self.index["row"].to_numpy()
        self._usable_N = np.asarray(self.index["error"].to_numpy(zero_copy_only=False) == "", bool)
        items = "".join(self.index["item_id"].to_pylist()).encode() + np.packbits(self._usable_N).tobytes()
        self.fingerprint: str = f"{self.content_digest}-{content_hash(items)[:16]}"

    @classmethod
    def open(
        cls,
        uri: str | Path | Location,
        *,
        fingerprint: str | None = None,
        content: Mapping[str, Any] | None = None,
        backbone: str | None = None,
        local_dir: str | Path | None = None,
    ) -> Self:
        """The cache in a dataset folder.

        Args:
            uri: the output of embed. One that is not on this machine's disks is copied to `local_dir` first.
            fingerprint: refuse a cache with another one: made with other settings, from other data, or grown since.
            content: the settings it must have been made with; the refusal says what differs.
            backbone: fingerprint of the backbone the tokens must come from.
            local_dir: folder for copies of remote caches, by default `copies_folder()`; what is there already is not
                copied again.

        Raises:
            UsageError: there is no cache, it is not complete, a token file is missing or broken, or it is not the one
                asked for.
        """
        dataset = Dataset.open(uri, TOKENS_INDEX.name)
        _check_asked(dataset, content, backbone)
        missing = dataset.missing_shards()
        if missing:
            raise UsageError(
                f"{dataset.location.uri} is not complete: {len(missing)} of its shards are missing, e.g. {missing[0]}; "
                f"{_AGAIN}"
            )
        uri = dataset.location.uri
        if not dataset.location.is_local:
            dataset = _local_copy(dataset, Path(local_dir or copies_folder()))
        cache = cls(dataset, uri)
        if fingerprint is not None and cache.fingerprint != fingerprint:
            raise UsageError(_other_fingerprint(cache, fingerprint))
        return cache

    def __len__(self) -> int:
        return self.index.num_rows

    def __repr__(self) -> str:
        return f"TokenCache({self.uri!r}, items={len(self)}, tokens={self.tokens}, width={self.width})"

    def gather(self, index_rows: NDArray[np.int64], out: NDArray[np.float16]) -> NDArray[np.float16]:
        """Copy the tokens of the given rows of `index` into `out` (N, T, D), in their order; returns `out`.

        Raises:
            IndexError: a row is outside the index.
            ValueError: `out` has another shape or type, or a row has an error and therefore no tokens.
        """
        rows = np.asarray(index_rows)
        if out.shape != (len(rows), self.tokens, self.width) or out.dtype != np.float16:
            expected = (len(rows), self.tokens, self.width)
            raise ValueError(f"out has shape {out.shape} and type {out.dtype}; expected {expected} of float16")
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"index rows {rows.min()} to {rows.max()} asked for; the cache has {len(self)} rows")
        usable = self._usable_N[rows]
        if not usable.all():
            bad = int(rows[~usable][0])
            raise ValueError(f"index row {bad} has no tokens: {self.index['error'][bad].as_py()}")
        shards = self._shards
        sources = zip(self._shard_of_N[rows].tolist(), self._row_of_N[rows].tolist(), strict=True)
        for place, (shard, row) in enumerate(sources):
            out[place] = shards[shard][row]
        return out

    def view(self, index_row: int) -> NDArray[np.float16]:
        """Tokens (T, D) of one row without copying. Read-only: the memory is the file."""
        return self._shards[int(self._shard_of_N[index_row])][int(self._row_of_N[index_row])]

    def head_state(self) -> dict[str, Any]:
        """Weights of the backbone's own attention-pooling head, as torch tensors in float32."""
        from safetensors.torch import load

        if not self._head_file.exists():
            raise UsageError(f"{self._head_file.uri} is missing; {_AGAIN}")
        return load(self._head_file.read_bytes())

    def _map(self, dataset: Dataset) -> tuple[list[NDArray[np.float16]], NDArray[np.int64]]:
        encoded = self.index["shard"].combine_chunks().dictionary_encode()
        names = encoded.dictionary.to_pylist()
        shard_of_N = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        folder = Path(dataset.location.child(TOKENS_FOLDER).path)
        counts = np.bincount(shard_of_N, minlength=len(names)).tolist()
        maps = [
            map_tokens(folder / f"{name}.arrow", count, self.tokens, self.width)
            for name, count in zip(names, counts, strict=True)
        ]
        return maps, shard_of_N


def _other_fingerprint(cache: TokenCache, expected: str) -> str:
    same_content = cache.fingerprint.partition("-")[0] == expected.partition("-")[0]
    others = f"holds other items (now {len(cache)})"
    what = others if same_content else "was made with other settings or from other data"
    return (
        f"{cache.uri} is not the token cache asked for: it {what}; its fingerprint is {cache.fingerprint}, expected "
        f"{expected}. Give the cache that was used before, or start anew with this one."
    )


def _check_asked(dataset: Dataset, content: Mapping[str, Any] | None, backbone: str | None) -> None:
    where, stored = dataset.location.uri, dataset.settings() or {}
    made_by = dataset.read_json(BACKBONE_FILE) or {}
    if backbone is not None and made_by.get("fingerprint") != backbone:
        raise UsageError(
            f"{where} holds tokens of the backbone {made_by.get('spec')} (fingerprint {made_by.get('fingerprint')}); "
            f"expected those of the backbone with fingerprint {backbone}. Embed with that backbone into another output."
        )
    differing = differences(stored.get("content", {}), dict(content)) if content is not None else []
    if differing:
        said = "".join(f"\n  {line}" for line in differing)
        raise UsageError(
            f"{where} is not the token cache asked for, it was made with other settings or from other data:{said}\n"
            "Give the cache that was used before, or embed again into another output."
        )


def copies_folder() -> Path:
    """Where copies of remote caches are kept: `nearid-ray/tokens` in XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nearid-ray" / "tokens"


def _local_copy(dataset: Dataset, folder: Path) -> Dataset:
    """A copy on disk that holds what the dataset holds now; files that have not changed are kept."""
    root = dataset.location
    copy = folder / stable_hash(root.uri, dataset.digest())
    found = root.filesystem.get_file_info(pafs.FileSelector(root.path, recursive=True))
    files = {entry.path.removeprefix(root.path).lstrip("/"): entry for entry in found if entry.is_file}
    wanted = {name: entry for name, entry in files.items() if not name.startswith(("plan/", "log/"))}
    with _one_at_a_time(copy):
        for name, entry in wanted.items():
            _copy(root.child(name), copy / name, entry)
        for path in [path for path in copy.rglob("*") if path.is_file()]:
            if path.relative_to(copy).as_posix() not in wanted:
                path.unlink()  # of an earlier cache at the same place
    return Dataset(copy)


def _copy(source: Location, target: Path, entry: pafs.FileInfo) -> None:
    """A copy carries the time of its source: equal time and size mean equal content."""
    if target.exists():
        there = target.stat()
        if (there.st_size, there.st_mtime_ns) == (entry.size, entry.mtime_ns):
            return
    locate(target).write_bytes(source.read_bytes())
    os.utime(target, ns=(entry.mtime_ns, entry.mtime_ns))


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Workers of one machine share a copy; the first one makes it while the others wait."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
