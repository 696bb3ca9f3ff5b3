"""Small datasets of tuples and distractors on disk, and a tiny random backbone in transformers' layout."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from nearid_ray.data.images import encode_png
from nearid_ray.data.plan import make_plan
from nearid_ray.data.store import Dataset, parquet_bytes
from nearid_ray.identifiers import content_hash, stable_hash
from schemas import DISTRACTORS, TUPLES

SIZE_PX = 32
ENGINES = ("redraw", "recolor")

_KINDS = {pa.string(): "", pa.int32(): 0, pa.int64(): 0, pa.float32(): 0.0, pa.bool_(): False}


def noise(seed: int, size_px: int = SIZE_PX) -> np.ndarray:
    """A smooth coloured picture, different for every seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    return np.kron(coarse, np.ones((size_px // 4, size_px // 4, 1), np.uint8))


def disc(size_px: int = SIZE_PX) -> np.ndarray:
    y, x = np.mgrid[:size_px, :size_px]
    return np.where((x - size_px / 2) ** 2 + (y - size_px / 2) ** 2 < (size_px / 3) ** 2, 255, 0).astype(np.uint8)


def painted() -> np.ndarray:
    """A painted region that is wider than the object, as engines leave it."""
    region = np.zeros((SIZE_PX, SIZE_PX), np.uint8)
    region[2:-2, 2:-2] = 255
    return region


def view_row(seed: int, **changes: Any) -> dict[str, Any]:
    image = encode_png(noise(seed))
    row = dict.fromkeys(("prompt", "error"), "") | {
        "view_id": content_hash(image),
        "image": {"bytes": image, "path": f"{seed}.png"},
        "mask": {"bytes": encode_png(disc()), "path": f"{seed}-mask.png"},
        "part_mask": None,
        "mask_source": "exact",
        "perceptual_hash": "",
        "size_px": SIZE_PX,
        "source_width_px": SIZE_PX,
        "source_height_px": SIZE_PX,
        "provenance": "{}",
    }
    return row | changes


def tuple_rows(splits: list[str], views: int = 2) -> list[dict[str, Any]]:
    return [
        {
            "identity_id": f"test:{number:03d}",
            "views": [view_row(100 * number + view) for view in range(views)],
            "category": "mug",
            "object_kind": "",
            "objaverse_id": "",
            "description": "",
            "split": split,
            "source": "test",
            "provenance": "{}",
            "error": "",
        }
        for number, split in enumerate(splits)
    ]


def distractor_rows(rows: list[dict[str, Any]], engines: tuple[str, ...] = ENGINES) -> list[dict[str, Any]]:
    """One distractor a view and engine."""
    made = []
    for number, row in enumerate(rows):
        for view_index, view in enumerate(row["views"]):
            for engine in engines:
                seed = 50_000 + 100 * number + 10 * view_index + engines.index(engine)
                known = {
                    "distractor_id": stable_hash(row["identity_id"], view_index, engine),
                    "identity_id": row["identity_id"],
                    "view_index": view_index,
                    "view_id": view["view_id"],
                    "engine": engine,
                    "image": {"bytes": encode_png(noise(seed)), "path": "d.png"},
                    "mask": {"bytes": encode_png(painted()), "path": "m.png"},
                    "verdict": "accepted",
                    "category": row["category"],
                    "split": row["split"],
                    "source": "test",
                    "oracle": 0.25 if engine == "recolor" else None,
                    "error": "",
                }
                blank = {f.name: None if f.nullable else _KINDS[f.type] for f in DISTRACTORS.fields}
                made.append(blank | known)
    return made


def write_dataset(folder: Path, table: str, rows: list[dict[str, Any]], rows_per_shard: int = 4) -> Dataset:
    """Rows as a finished dataset: plan, settings and shards, as a job leaves them."""
    schema = {"tuples": TUPLES, "distractors": DISTRACTORS}[table].schema
    key = {"tuples": "identity_id", "distractors": "distractor_id"}[table]
    dataset = Dataset(folder)
    ids = pa.array([row[key] for row in rows], pa.string())
    work = pa.table({"row_id": ids, "place": pa.array(range(len(rows)), pa.int64())})
    plan = make_plan(dataset, work, table=table, content={"source": "test"}, rows_per_shard=rows_per_shard)
    for shard in plan.pending:
        members = [rows[place] for place in plan.members(shard)["place"].to_pylist()]
        dataset.shard(shard).write_bytes(parquet_bytes(pa.Table.from_pylist(members, schema=schema)))
    return dataset


def write_backbone(folder: Path, seed: int = 0, image_px: int = SIZE_PX) -> Path:
    """A tiny SigLIP vision model with random weights."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = SiglipVisionConfig(**sizes, image_size=image_px, patch_size=8)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SiglipVisionModel(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    size = {"height": image_px, "width": image_px}
    processor = {"size": size, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="session")
def make_backbone() -> Callable[..., Path]:
    return write_backbone


@pytest.fixture(scope="session")
def rows_of() -> Callable[..., list[dict[str, Any]]]:
    return tuple_rows


@pytest.fixture(scope="session")
def distractors_of() -> Callable[..., list[dict[str, Any]]]:
    return distractor_rows


@pytest.fixture(scope="session")
def write() -> Callable[..., Dataset]:
    return write_dataset
