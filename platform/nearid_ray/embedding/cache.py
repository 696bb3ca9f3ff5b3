"""The token cache: what a frozen backbone says of every item, on disk, read without copying.

A cache is a dataset folder whose `data/*.parquet` hold the index (schemas.TOKENS_INDEX) and whose `tokens/*.arrow`
hold the tokens (`shards.py`). `backbone.json` describes the backbone, `head.safetensors` is its own attention-pooling
head and `blank.arrow` what it says of a mid-grey picture: training needs nothing else of it.

Axes: N items, T tokens, D token width.
"""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
from numpy.typing import NDArray

from nearid_ray.data.light import check_complete
from nearid_ray.data.plan import differences
from nearid_ray.data.store import Dataset, Location
from nearid_ray.embedding.copies import Copies, copies_folder
from nearid_ray.embedding.shards import AGAIN, VERIFY, MappedShard, RangedShard, Stored, TokenShard, item_bytes
from nearid_ray.errors import UsageError
from nearid_ray.identifiers import content_hash, stable_hash
from schemas import TOKENS_INDEX

TOKENS_FOLDER = "tokens"
BACKBONE_FILE = "backbone.json"
HEAD_FILE = "head.safetensors"
POOLING_FILE = "pooling.safetensors"
BLANK_FILE = "blank.arrow"

_RANGED_READS = 16
"""Items read at a time from a remote file."""
_COPIED_AT_ONCE = 4


class TokenCache:
    """A complete token cache, open for reading.

    Attributes:
        index: one row an item over all shards (schemas.TOKENS_INDEX), in the order of shard name and row.
        uri: where it lies; what is read may be a copy on this machine's disk.
        tokens, width: shape (T, D) of an item's tokens; stored: how they lie on disk; disk_bytes: what all take there.
        backbone: who made the tokens: spec, revision, fingerprint, tokens, width, heads, mlp_width, layer_norm_eps.
        content: the settings that decide what the tokens are; `content_digest` is their name and stays when the cache
            grows.
        fingerprint: the digest, and after a dash a name of the items with their order and errors.
    """

    def __init__(self, dataset: Dataset, copies: Copies | None = None, threads: int = 1) -> None:
        stored, backbone = dataset.settings(), _made_by(dataset)
        if stored is None or backbone is None:
            raise UsageError(f"{dataset.location.uri} holds no token cache ({BACKBONE_FILE} is missing); {AGAIN}")
        self.uri = dataset.location.uri
        self.content: dict[str, Any] = stored["content"]
        self.content_digest: str = stored["content_digest"]
        self.backbone: dict[str, Any] = backbone
        self.tokens: int = backbone["tokens"]
        self.width: int = backbone["width"]
        self._place = dataset.location
        self.stored: Stored = self.content.get("stored", "float16")
        try:
            self.index = dataset.read(columns=TOKENS_INDEX.schema.names).combine_chunks()
        except pa.ArrowInvalid as error:
            raise UsageError(f"the index of {self.uri} is broken ({error}). Delete that file and {AGAIN}") from error
        self._copies = copies
        self._names, self._shard_of_N = _encoded(self.index["shard"])
        self._counts = np.bincount(self._shard_of_N, minlength=len(self._names)).tolist()
        self._shards: list[TokenShard] = self._mapped() if copies is None else self._fetched(copies)
        ranged = any(isinstance(shard, RangedShard) for shard in self._shards)
        self._threads = max(threads, _RANGED_READS if ranged else 1)
        self._pool: ThreadPoolExecutor | None = None
        self._blank_TD: NDArray[np.float16] | None = None
        self.disk_bytes = len(self.index) * item_bytes(self.tokens, self.width, self.stored)
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
        limit_bytes: int | None = None,
        threads: int = 1,
        verify: bool = False,
    ) -> Self:
        """The cache in a dataset folder.

        Args:
            uri: the output of embed. Of one that is not on this machine's disks the token files are copied to
                `local_dir` first, as many as the limit allows; items of the others are read one by one.
            fingerprint: refuse a cache with another one: made with other settings, from other data, or grown since.
            content: the settings it must have been made with; the refusal says what differs.
            backbone: fingerprint of the backbone the tokens must come from.
            local_dir: folder for copies of remote caches, by default `copies_folder()`; what is there already is not
                copied again, and what was used least recently goes first when room is needed.
            limit_bytes: what the copies in that folder may take; `default_limit_bytes` when left out.
            threads: how many items are read at a time.
            verify: read everything and compare it with the checksums.

        Raises:
            UsageError: there is no cache, it is not complete, a token file is missing, broken or damaged, or it is not
                the one asked for.
        """
        dataset = Dataset.open(uri, TOKENS_INDEX.name)
        _check_asked(dataset, content, backbone)
        check_complete(dataset)
        copies = None if dataset.location.is_local else Copies(local_dir or copies_folder(), limit_bytes)
        cache = cls(dataset, copies, threads)
        if fingerprint is not None and cache.fingerprint != fingerprint:
            raise UsageError(_other_fingerprint(cache, fingerprint))
        if verify:
            cache.verify()
        return cache

    def __len__(self) -> int:
        return self.index.num_rows

    def __repr__(self) -> str:
        return f"TokenCache({self.uri!r}, items={len(self)}, tokens={self.tokens}, width={self.width})"

    def gather(
        self, index_rows: NDArray[np.int64], out: NDArray[np.float16], places: NDArray[np.int64] | None = None
    ) -> NDArray[np.float16]:
        """Copy the tokens of the given rows of `index` into `out` (N, T, D); returns `out`.

        They come in their order, or, where `places` are given, each at its place of a larger `out`.

        Raises:
            IndexError: a row is outside the index.
            ValueError: `out` has another shape or type, or a row has an error and therefore no tokens.
        """
        rows = np.asarray(index_rows)
        expected = (len(rows) if places is None else len(out), self.tokens, self.width)
        if out.shape != expected or out.dtype != np.float16:
            raise ValueError(f"out has shape {out.shape} and type {out.dtype}; expected {expected} of float16")
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"index rows {rows.min()} to {rows.max()} asked for; the cache has {len(self)} rows")
        usable = self._usable_N[rows]
        if not usable.all():
            bad = int(rows[~usable][0])
            raise ValueError(f"index row {bad} has no tokens: {self.index['error'][bad].as_py()}")
        where = range(len(rows)) if places is None else places.tolist()
        jobs = list(zip(where, self._shard_of_N[rows].tolist(), self._row_of_N[rows].tolist(), strict=True))
        if self._threads == 1:
            self._copy(jobs, out)
        else:
            self._pool = self._pool or ThreadPoolExecutor(self._threads, "tokens")
            list(self._pool.map(lambda first: self._copy(jobs[first :: self._threads], out), range(self._threads)))
        return out

    def view(self, index_row: int) -> NDArray[np.float16]:
        """Tokens (T, D) of one row of a float16 cache on disk, without copying. Read-only: the memory is the file.

        Raises:
            ValueError: the row is stored otherwise.
        """
        shard = self._shards[int(self._shard_of_N[index_row])]
        if not isinstance(shard, MappedShard) or shard.scale_NT is not None:
            raise ValueError(f"row {index_row} does not lie on this machine's disk as float16; use gather")
        return shard.values_NTD[int(self._row_of_N[index_row])]

    def damaged(self) -> list[int]:
        """Index rows whose tokens are not those that were written, by their checksums; reads the whole cache.

        Raises:
            UsageError: an earlier version wrote the cache, without checksums; or parts of it are not on this machine.
        """
        rows: list[int] = []
        for place, shard in enumerate(self._shards):
            if not isinstance(shard, MappedShard):
                raise UsageError(f"{self.uri}: not all token files are on this machine's disk, so none are compared")
            bad = set(shard.damaged())
            rows += [int(r) for r in np.flatnonzero(self._shard_of_N == place) if int(self._row_of_N[r]) in bad]
        return sorted(rows)

    def verify(self) -> None:
        """Raises UsageError when an item's tokens are not those that were written, naming items and files."""
        if rows := self.damaged():
            shards = sorted({self._names[int(self._shard_of_N[row])] for row in rows})
            named = ", ".join(self.index["item_id"][row].as_py() for row in rows[:3])
            raise UsageError(
                f"{self.uri}: the tokens of {len(rows)} item(s) are damaged (e.g. {named}), in "
                f"{', '.join(f'{TOKENS_FOLDER}/{name}.arrow' for name in shards)}. {VERIFY}"
            )

    def blank_TD(self) -> NDArray[np.float16]:
        """Tokens of a mid-grey picture.

        Raises:
            UsageError: an earlier version wrote the cache, without them.
        """
        if self._blank_TD is None:
            place = self._place.child(BLANK_FILE)
            if not place.exists():
                raise UsageError(f"{place.uri} is missing, which the reference mode needs; {AGAIN}")
            self._blank_TD = read_blank(place.read_bytes(), self.tokens, self.width)
        return self._blank_TD

    def head_state(self) -> dict[str, Any]:
        """Weights of the attention-pooling head that training starts from, as torch tensors in float32: the backbone's
        own, or a new one where it has none."""
        return self._weights(HEAD_FILE)

    def pooling(self) -> Any:
        """The frozen backbone's own way from tokens to an embedding, a torch module in float32."""
        from nearid_ray.models.backbone import pooling_of

        own_head = self.backbone.get("pooling", "attention") == "attention"
        return pooling_of(self.backbone, self._weights(HEAD_FILE if own_head else POOLING_FILE))

    def _weights(self, name: str) -> dict[str, Any]:
        from safetensors import SafetensorError
        from safetensors.torch import load

        place = self._place.child(name)
        if not place.exists():
            raise UsageError(f"{place.uri} is missing; {AGAIN}")
        try:
            return load(place.read_bytes())
        except SafetensorError as error:
            raise UsageError(f"{place.uri} is broken ({error}). Delete it and {AGAIN}") from error

    def _copy(self, jobs: Sequence[tuple[int, int, int]], out: NDArray[np.float16]) -> None:
        for place, shard, row in jobs:
            self._shards[shard].copy(row, out[place])

    def _mapped(self) -> list[TokenShard]:
        folder = Path(self._place.child(TOKENS_FOLDER).path)
        return [
            MappedShard(folder / f"{name}.arrow", count, self.tokens, self.width)
            for name, count in zip(self._names, self._counts, strict=True)
        ]

    def _fetched(self, copies: Copies) -> list[TokenShard]:
        """The shards of a remote cache: copies, as many as there is room for."""
        folder = self._place.child(TOKENS_FOLDER)
        selector = pafs.FileSelector(folder.path, allow_not_found=True)
        files = {entry.base_name: entry for entry in folder.filesystem.get_file_info(selector)}

        def fetch(place: int) -> TokenShard:
            name = f"{self._names[place]}.arrow"
            if name not in files:
                raise UsageError(f"the token file {folder.child(name).uri} is missing; {AGAIN}")
            source, shape = folder.child(name), (self._counts[place], self.tokens, self.width)
            path = copies.fetch(source, files[name])
            if path is not None:
                return MappedShard(path, *shape)
            scratch = copies.folder / f"{stable_hash(source.uri, os.getpid())}.ends"
            return RangedShard(source, files[name].size, scratch, *shape)

        with ThreadPoolExecutor(_COPIED_AT_ONCE, "copies") as pool:
            return list(pool.map(fetch, range(len(self._names))))


def read_blank(data: bytes, tokens: int, width: int) -> NDArray[np.float16]:
    """The one item (T, D) of a float16 token file in memory."""
    batch = pa.ipc.open_file(pa.BufferReader(data)).get_batch(0)
    return batch.column("tokens").flatten().to_numpy(zero_copy_only=True).reshape(tokens, width)


def _made_by(dataset: Dataset) -> dict[str, Any] | None:
    """What a cache's file says of its backbone; None where there is no such file."""
    try:
        return dataset.read_json(BACKBONE_FILE)
    except ValueError as error:
        place = dataset.location.child(BACKBONE_FILE)
        raise UsageError(f"{place.uri} is broken ({error}). Delete it and {AGAIN}") from error


def _encoded(column: pa.ChunkedArray) -> tuple[list[str], NDArray[np.int64]]:
    """The different values of a column of text, and the place of each row's value among them."""
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)


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
    made_by = _made_by(dataset) or {}
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
