"""A small token cache in memory, with the interface of the one on disk."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray

from nearid_ray.models.head import AttentionPoolingHead

Picture = tuple[str, int, str]
"""(identity, view index, engine or "")."""


def build_index(
    views: dict[str, int],
    engines: Collection[str] = ("fill", "paint"),
    draws: Collection[int] = (0, 1, 2),
    masked: Collection[bool] = (False, True),
    broken: Collection[Picture] = (),
    split: str | Callable[[str], str] = "train",
) -> pa.Table:
    """Index of a cache with all items of so many views an identity; those of `broken` pictures carry an error."""
    rows = []
    for identity, count in views.items():
        for picture in [(identity, v, engine) for v in range(count) for engine in ("", *engines)]:
            for is_masked in masked:
                for draw in draws:
                    rows.append(
                        {
                            "item_id": f"{picture}-{is_masked}-{draw}",
                            "image_id": str(picture),
                            "role": "distractor" if picture[2] else "view",
                            "identity_id": identity,
                            "view_index": picture[1],
                            "engine": picture[2],
                            "split": split if isinstance(split, str) else split(identity),
                            "category": "mug",
                            "masked": is_masked,
                            "draw": draw,
                            "shard": "0",
                            "row": len(rows),
                            "error": "cannot read" if picture in broken else "",
                        }
                    )
    table = pa.Table.from_pylist(rows)
    order = np.random.default_rng(0).permutation(len(rows))
    place = table.column_names.index("view_index")
    return table.take(order).set_column(place, "view_index", table["view_index"].take(order).cast(pa.int32()))


@dataclass
class MemoryCache:
    """Tokens of every index row, held in one array."""

    index: pa.Table
    tokens_NTD: NDArray[np.float16]
    fingerprint: str = "memory"
    backbone: Mapping[str, Any] = field(
        default_factory=lambda: {"spec": "memory", "fingerprint": "memory", "heads": 2, "layer_norm_eps": 1e-6}
    )

    def head_state(self) -> dict[str, Any]:
        torch.manual_seed(0)
        return AttentionPoolingHead(self.width, 2, 2 * self.width).state_dict()

    @property
    def tokens(self) -> int:
        return self.tokens_NTD.shape[1]

    @property
    def width(self) -> int:
        return self.tokens_NTD.shape[2]

    @property
    def disk_bytes(self) -> int:
        return self.tokens_NTD.nbytes

    def blank_TD(self) -> NDArray[np.float16]:
        return np.full(self.tokens_NTD.shape[1:], 0.5, np.float16)

    def gather(self, index_rows: NDArray[np.int64], out: NDArray[np.float16]) -> None:
        np.take(self.tokens_NTD, index_rows, axis=0, out=out)


def build_cache(index: pa.Table, tokens: int = 6, width: int = 16, seed: int = 0) -> MemoryCache:
    """Tokens in which identity is hidden behind the background: distractors share their view's background tokens."""
    generator = np.random.default_rng(seed)
    names = sorted(set(index["identity_id"].to_pylist()))
    objects = {name: generator.normal(size=width // 2) for name in names}
    siblings: dict[Picture, NDArray[np.float64]] = {}
    backgrounds: dict[tuple[str, int], NDArray[np.float64]] = {}
    held = np.empty((len(index), tokens, width), np.float16)
    for i, row in enumerate(index.to_pylist()):
        view = (row["identity_id"], row["view_index"])
        background = backgrounds.setdefault(view, generator.normal(size=width - width // 2))
        if row["engine"]:
            sibling = siblings.setdefault((*view, row["engine"]), generator.normal(size=width // 2))
            thing = 0.5 * objects[view[0]] + sibling
        else:
            thing = objects[view[0]]
        clean = np.concatenate([thing, background * (0.2 if row["masked"] else 2.0)])
        held[i] = clean + 0.3 * generator.normal(size=(tokens, width))
    return MemoryCache(index=index, tokens_NTD=held)


@pytest.fixture(scope="session")
def make_index() -> Callable[..., pa.Table]:
    return build_index


@pytest.fixture(scope="session")
def make_cache() -> Callable[..., MemoryCache]:
    return build_cache
