"""A small token cache on disk, as embed writes it."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch

from nearid_ray.data.store import locate
from nearid_ray.embedding.cache import BACKBONE_FILE, HEAD_FILE, TOKENS_FOLDER
from nearid_ray.embedding.shards import tokens_bytes
from nearid_ray.models.head import AttentionPoolingHead
from schemas import TOKENS_INDEX

TOKENS, WIDTH = 6, 16


@pytest.fixture(scope="session")
def cache_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """24 identities to train on, 8 for validation; two views each, two engines; a distractor shares the background."""
    folder = tmp_path_factory.mktemp("cache")
    generator, rows, tokens = np.random.default_rng(0), [], []
    for i in range(32):
        thing, split = generator.normal(size=WIDTH // 2), "train" if i < 24 else "val"
        for view in range(2):
            background = 2.0 * generator.normal(size=WIDTH // 2)
            for engine in ("", "fill", "paint"):
                seen = 0.5 * thing + generator.normal(size=WIDTH // 2) if engine else thing
                for draw in (0, 1):
                    rows.append(
                        {
                            "item_id": f"{i}-{view}-{engine}-{draw}",
                            "image_id": f"{i}-{view}-{engine}",
                            "role": "distractor" if engine else "view",
                            "identity_id": f"s:{i:02}",
                            "view_index": view,
                            "engine": engine,
                            "category": "mug",
                            "split": split,
                            "masked": False,
                            "draw": draw,
                            "shard": "0",
                            "row": len(rows),
                            "error": "",
                        }
                    )
                    clean = np.concatenate([seen, background])
                    tokens.append(clean + 0.3 * generator.normal(size=(TOKENS, WIDTH)))
    place = locate(folder)
    Path(folder, "data").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=TOKENS_INDEX.schema), folder / "data" / "0.parquet")
    place.child(TOKENS_FOLDER, "0.arrow").write_bytes(tokens_bytes(np.array(tokens, np.float16)))
    backbone = {"spec": "random", "fingerprint": "random", "heads": 2, "layer_norm_eps": 1e-6}
    place.child(BACKBONE_FILE).write_bytes(json.dumps(backbone | {"tokens": TOKENS, "width": WIDTH}).encode())
    head = AttentionPoolingHead.initialised(WIDTH, 2, 2 * WIDTH)
    place.child(HEAD_FILE).write_bytes(safetensors.torch.save(head.state_dict()))
    settings = {"table": "tokens_index", "content": {}, "content_digest": "test"}
    place.child("settings.json").write_bytes(json.dumps(settings).encode())
    return str(folder)
