"""From cached tokens to embeddings: each head applied once to each clean picture of a split.

`embed_rows` is the plain function; `HeadTask` makes shards of an embeddings dataset with it, so that a head added
later adds shards and repeats nothing. A shard's members are fixed by the plan and its sums run on one thread, so the
digits do not depend on the number of workers.

Axes: N items, T tokens, D token width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from nearid_ray.data.pipeline import ShardResult
from nearid_ray.data.plan import Plan, make_plan
from nearid_ray.data.store import Dataset
from nearid_ray.errors import UsageError
from nearid_ray.identifiers import stable_hash
from schemas import EMBEDDINGS

CHUNK = 64
"""Items embedded at a time; part of what fixes the digits."""

_IMAGE_COLUMNS = (
    "image_id", "role", "identity_id", "view_index", "engine", "category", "split", "oracle", "error",
)  # fmt: skip


class TokenSource(Protocol):
    """What is needed of a token cache."""

    index: pa.Table
    tokens: int
    width: int

    def gather(self, index_rows: NDArray[np.int64], out: NDArray[np.float16]) -> object:
        """Copy the tokens of index rows into `out`, (rows, tokens, width)."""


@torch.inference_mode()
def embed_rows(
    cache: TokenSource, rows_N: NDArray[np.int64], heads: Sequence[nn.Module], device: str = "cpu"
) -> list[NDArray[np.float32]]:
    """L2-normalised embeddings of index rows, (N, D) a head; nan where tokens are not finite or pool to zero.

    The tokens are read once for all heads.
    """
    embedded: list[list[NDArray[np.float32]]] = [[] for _ in heads]
    buffer_NTD = np.empty((CHUNK, cache.tokens, cache.width), np.float16)
    with _one_thread():
        for start in range(0, len(rows_N), CHUNK):
            part_N = np.ascontiguousarray(rows_N[start : start + CHUNK], np.int64)
            cache.gather(part_N, buffer_NTD[: len(part_N)])
            tokens_NTD = torch.from_numpy(buffer_NTD[: len(part_N)]).to(device).float()
            for head, parts in zip(heads, embedded, strict=True):
                pooled_ND = head(tokens_NTD).float()
                length_N1 = pooled_ND.norm(dim=-1, keepdim=True)
                unit_ND = functional.normalize(pooled_ND, dim=-1)
                usable_N1 = torch.isfinite(length_N1) & (length_N1 > 0)
                parts.append(torch.where(usable_N1, unit_ND, torch.nan).cpu().numpy())
    return [np.concatenate(parts) if parts else np.empty((0, cache.width), np.float32) for parts in embedded]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in one order, whoever runs them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def head_digest(head: nn.Module) -> str:
    """Name of a head's weights."""
    state = sorted(head.state_dict().items())
    parts = [name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes() for name, tensor in state]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


@dataclass
class HeadTask:
    """Shards of the embeddings dataset: all new heads on some items of the cache."""

    open_cache: Callable[[], TokenSource]
    """Opens the token cache; called in the worker."""
    heads: Mapping[str, nn.Module]
    """Heads by scorer."""
    uses_model: bool = True
    _cache: TokenSource | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_cache": None}

    def setup(self) -> None:
        self._cache = self.open_cache()

    def prepare(self, work: pa.Table) -> pa.Table:
        return work

    def compute(self, prepared: pa.Table) -> NDArray[np.float32]:
        if self._cache is None:
            self.setup()
        assert self._cache is not None
        device = "cuda" if torch.cuda.is_available() else "cpu"
        names = list(dict.fromkeys(prepared["scorer"].to_pylist()))
        scorer_N = prepared["scorer"].to_numpy(zero_copy_only=False)
        row_N = prepared["index_row"].to_numpy()
        # An item with an error has no tokens to read.
        usable_N = prepared["error"].to_numpy(zero_copy_only=False) == ""
        embedding_ND = np.full((len(prepared), self._cache.width), np.nan, np.float32)
        by_rows: dict[bytes, list[str]] = {}
        for name in names:
            by_rows.setdefault(row_N[usable_N & (scorer_N == name)].tobytes(), []).append(name)
        for rows, group in by_rows.items():
            heads = [self.heads[name].to(device).eval() for name in group]
            found = embed_rows(self._cache, np.frombuffer(rows, np.int64), heads, device)
            for name, part_ND in zip(group, found, strict=True):
                embedding_ND[usable_N & (scorer_N == name)] = part_ND
        return embedding_ND

    def finish(self, work: pa.Table, computed: NDArray[np.float32]) -> ShardResult:
        error = work["error"].to_numpy(zero_copy_only=False)
        usable = np.isfinite(computed).all(axis=1) & (error == "")
        error = np.where((error == "") & ~usable, "the tokens give no finite embedding", error)
        values = {name: work[name] for name in EMBEDDINGS.schema.names if name in work.column_names}
        values["embedding"] = embedding_column(computed, usable)
        values["error"] = pa.array(error.tolist(), pa.string())
        schema = EMBEDDINGS.schema
        return ShardResult(pa.table([values[name] for name in schema.names], schema=schema))


def embedding_column(embedding_ND: NDArray[np.float32], usable_N: NDArray[np.bool_]) -> pa.Array:
    """Vectors as an Arrow list column; null where not usable."""
    width = embedding_ND.shape[1]
    ends = np.concatenate([[0], np.cumsum(np.where(usable_N, width, 0))]).astype(np.int32)
    kept = pa.array(np.ascontiguousarray(embedding_ND[usable_N], np.float32).reshape(-1))
    return pa.ListArray.from_arrays(pa.array(ends), kept, mask=pa.array(~usable_N))


def embedding_matrix(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """The vectors of a list column as a matrix; nan rows where they are null. (N, 0) when all are.

    Raises:
        UsageError: the vectors differ in length.
    """
    lists = column.combine_chunks()
    valid = np.asarray(lists.is_valid())
    lengths = np.unique(np.asarray(pc.list_value_length(lists.drop_null())))
    if len(lengths) > 1:
        raise UsageError(f"embeddings of one scorer have lengths {lengths.tolist()}; expected one length")
    width = int(lengths[0]) if len(lengths) else 0
    matrix = np.full((len(lists), width), np.nan, np.float32)
    matrix[valid] = np.asarray(lists.drop_null().flatten(), np.float32).reshape(int(valid.sum()), width)
    return matrix


def embedding_work(
    index: pa.Table, heads: Mapping[str, str], *, split: str, conditions: Sequence[str], items_per_shard: int
) -> pa.Table:
    """The work list: one row an image, condition and scorer, with `block`, which a shard never crosses.

    Args:
        index: of the token cache.
        heads: digest of each scorer's head.

    Raises:
        UsageError: the split has no clean picture, or none of the conditions.
    """
    clean = index.append_column("index_row", pa.array(np.arange(len(index), dtype=np.int64)))
    clean = clean.filter((pc.field("draw") == 0) & (pc.field("split") == split))
    if not len(clean):
        present = sorted(set(index["split"].unique().to_pylist()))
        raise UsageError(f"the token cache has no clean pictures of split {split!r}; it has splits {present}")
    condition = pc.if_else(clean["masked"], "foreground", "full")
    clean = clean.append_column("condition", condition)
    clean = clean.filter(pc.is_in(clean["condition"], pa.array(list(conditions))))
    if not len(clean):
        raise UsageError(
            f"the token cache has no pictures of the condition {' or '.join(conditions)} in split {split!r}; embed "
            "them too (masked), or measure another condition"
        )
    block = pa.array([f"{n // items_per_shard:06d}" for n in range(len(clean))], pa.string())
    clean = clean.append_column("block", block)
    parts = []
    for scorer, digest in heads.items():
        ids = [stable_hash(item, scorer, digest) for item in clean["item_id"].to_pylist()]
        columns = {name: clean[name] for name in (*_IMAGE_COLUMNS, "condition", "index_row", "block")}
        constant = {name: pa.repeat(pa.scalar(text), len(clean)) for name, text in
                    (("scorer", scorer), ("head_digest", digest))}  # fmt: skip
        parts.append(pa.table({"row_id": pa.array(ids, pa.string()), **columns, **constant}))
    order = [("block", "ascending"), ("scorer", "ascending"), ("index_row", "ascending")]
    return pa.concat_tables(parts).sort_by(order)


def plan_heads(
    index: pa.Table,
    heads: Mapping[str, nn.Module],
    output: Dataset,
    *,
    fingerprint: str,
    split: str = "test",
    conditions: Sequence[str] = ("full", "foreground"),
    items_per_shard: int = 1024,
) -> Plan:
    """Plan the embeddings of all heads into `output`, on top of what is planned there.

    Args:
        index: of the token cache.
        heads: the head of each scorer.
        fingerprint: names the content of the cache; an output made from another cache is refused.

    Raises:
        UsageError: the split is empty, or the output holds a scorer of the same name with other weights, or
            unfinished embeddings of a head that is not given.
    """
    digests = {scorer: head_digest(head) for scorer, head in heads.items()}
    work = embedding_work(index, digests, split=split, conditions=conditions, items_per_shard=items_per_shard)
    _refuse_other_heads(output, digests)
    _refuse_unfinished_others(output, heads)
    content = {"tokens": fingerprint, "split": split, "items_per_shard": items_per_shard}
    return make_plan(
        output, work, table=EMBEDDINGS.name, content=content, rows_per_shard=len(work) + 1, break_on=("block",)
    )


def _refuse_other_heads(output: Dataset, digests: Mapping[str, str]) -> None:
    for planned in output.plans():
        pairs = planned.group_by(["scorer", "head_digest"]).aggregate([])
        for scorer, digest in zip(pairs["scorer"].to_pylist(), pairs["head_digest"].to_pylist(), strict=True):
            if digests.get(scorer, digest) != digest:
                raise UsageError(
                    f"{output.location.uri} holds embeddings of a scorer {scorer!r} with other weights; give the head "
                    "another name or the job another output, or remove the folder"
                )


def _refuse_unfinished_others(output: Dataset, heads: Mapping[str, nn.Module]) -> None:
    missing = pa.array(output.missing_shards(), pa.string())
    pending = [planned.filter(pc.is_in(planned["shard"], missing))["scorer"] for planned in output.plans()]
    unknown = sorted({name for scorers in pending for name in scorers.unique().to_pylist()} - set(heads))
    if unknown:
        raise UsageError(
            f"{output.location.uri} holds unfinished embeddings of {', '.join(unknown)}; give these heads too, or "
            "remove the folder"
        )
