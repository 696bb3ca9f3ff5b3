"""Datasets of a small toybox, and faults planted in them; the tests of `validate` find them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import schemas
from nearid_ray.data.card import write_card
from nearid_ray.data.images import decode_mask, decode_rgb, encode_png
from nearid_ray.data.perceptual import perceptual_hash
from nearid_ray.data.plan import make_plan, store_settings
from nearid_ray.data.store import Dataset, parquet_bytes
from nearid_ray.embedding.shards import tokens_bytes
from nearid_ray.evaluation.similarities import margin_records
from nearid_ray.identifiers import content_hash
from nearid_ray.settings import dump_json
from tests.data.test_card import painted, toys

TOKENS, WIDTH = 4, 8
ALL = ("tuples", "distractors", "tokens", "evaluation/embeddings", "evaluation/similarities", "evaluation/margins")


def written(
    folder: Path, table: str, rows: list[dict], key: str, per_shard: int = 100, content: dict | None = None
) -> Dataset:
    """Rows as a planned and finished dataset with a card."""
    output, contract = Dataset(folder), schemas.TABLES[table]
    work = pa.table({"row_id": [row[key] for row in rows]})
    plan = make_plan(output, work, table=table, content=content or {"made": "by hand"}, rows_per_shard=per_shard)
    by_id = {row[key]: row for row in rows}
    for shard in plan.pending:
        members = [by_id[name] for name in plan.members(shard)["row_id"].to_pylist()]
        output.shard(shard).write_bytes(parquet_bytes(pa.Table.from_pylist(members, schema=contract.schema)))
    write_card(output, title=table, about="", licence="other", facts={})
    return output


def images_of(tuples: Dataset, distractors: Dataset) -> list[dict]:
    """The columns that embeddings and tokens have of each picture."""
    some = {"oracle": None, "error": ""}
    rows = []
    for row in tuples.read().to_pylist():
        for index, view in enumerate(row["views"]):
            rows.append(some | {"image_id": view["view_id"], "role": "view", "engine": "", "view_index": index}
                        | {name: row[name] for name in ("identity_id", "category", "split")})  # fmt: skip
    shared = ("identity_id", "category", "split", "engine", "view_index")
    for row in distractors.read().to_pylist():
        kept = {name: row[name] for name in shared}
        rows.append(some | kept | {"image_id": row["distractor_id"], "role": "distractor"})
    return rows


def make_datasets(root: Path) -> None:
    """All kinds of datasets of a small toybox; tokens and embeddings are random numbers."""
    rng = np.random.default_rng(0)
    tuples = toys(root / "tuples", train=4, test=2)
    distractors = painted(tuples, root / "distractors")
    rows = images_of(tuples, distractors)
    items = [row | {"item_id": f"item {i}", "masked": False, "draw": 0, "shard": f"000-{i // 20:06d}", "row": i % 20}
             for i, row in enumerate(rows)]  # fmt: skip
    tokens = written(root / "tokens", "tokens_index", items, "item_id", per_shard=20)
    for shard in tokens.shards():
        count = pq.read_metadata(tokens.shard(shard).path).num_rows
        data = tokens_bytes(rng.normal(size=(count, TOKENS, WIDTH)).astype(np.float16))
        tokens.location.child("tokens", f"{shard}.arrow").write_bytes(data)
    tokens.location.child("backbone.json").write_bytes(dump_json({"tokens": TOKENS, "width": WIDTH}))
    units = rng.normal(size=(len(rows), WIDTH))
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    for row, unit in zip(rows, units, strict=True):
        row |= {"scorer": "random", "condition": "full", "embedding": unit.tolist(), "row_id": row["image_id"]}
    written(
        root / "evaluation" / "embeddings", "embeddings", [r | {"row_id": str(i)} for i, r in enumerate(rows)], "row_id"
    )
    pairs = [
        {f.name: "" if pa.types.is_string(f.type) else 0 for f in schemas.SIMILARITIES.fields}
        | {"pair_id": f"{i}", "identity_id": rows[0]["identity_id"], "other_identity_id": rows[0]["identity_id"]}
        | {"kind": kind, "split": rows[0]["split"], "scorer": "random", "condition": "full", "engine": engine}
        | {"view_index": 0, "other_view_index": other, "similarity": value}
        for i, (kind, engine, other, value) in enumerate([("positive", "", 1, 0.5), ("distractor", "e", 0, 0.25)])
    ]
    similarities = pa.Table.from_pylist(pairs, schema=schemas.SIMILARITIES.schema)
    for table, records in (("similarities", similarities), ("margins", margin_records(similarities))):
        output = Dataset(root / "evaluation" / table)
        output.shard("000-000000").write_bytes(parquet_bytes(records))
        store_settings(output, table, {})
        write_card(output, title=table, about="", licence="other", facts={})


def rewrite(folder: Path, change: Callable[[list[dict]], list[dict] | None], table: str, shard: int = 0) -> None:
    """Change the rows of a shard in place."""
    path = sorted((folder / "data").iterdir())[shard]
    rows = pq.read_table(path).to_pylist()
    rows = change(rows) or rows
    path.write_bytes(parquet_bytes(pa.Table.from_pylist(rows, schema=schemas.TABLES[table].schema)))


def tuples_row(change: Callable[[dict], object]) -> Callable[[Path], None]:
    return lambda root: rewrite(root / "tuples", lambda rows: change(rows[0]) and None, "tuples")


def view_with(**changes) -> Callable[[Path], None]:
    return tuples_row(lambda row: row["views"][0].update(changes))


def distractor_with(**changes) -> Callable[[Path], None]:
    return lambda root: rewrite(root / "distractors", lambda rows: rows[0].update(changes), "distractors")


def repaint(root: Path, where: str) -> None:
    """Change one pixel of a view's or distractor's background, or of its object."""

    def paint(rows: list[dict]) -> None:
        picture = rows[0]["image"]
        image_HW3, mask_HW = decode_rgb(picture["bytes"]), decode_mask(rows[0]["mask"]["bytes"])
        y, x = np.argwhere((mask_HW == 0) == (where == "background"))[7]
        image_HW3[y, x, 1] ^= 1
        picture["bytes"] = encode_png(image_HW3)

    rewrite(root / "distractors", paint, "distractors")


def cut_picture(row: dict) -> None:
    picture = row["views"][0]["image"]
    picture["bytes"] = picture["bytes"][:900]


def another_picture(row: dict, place: int = 0) -> None:
    """Put a new picture in a view, with every column right."""
    image_HW3 = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    encoded = encode_png(image_HW3)
    row["views"][place] |= {
        "image": {"bytes": encoded, "path": "x.png"},
        "view_id": content_hash(encoded),
        "perceptual_hash": perceptual_hash(image_HW3),
    }


def swap_views(root: Path) -> None:
    def swap(rows: list[dict]) -> None:
        rows[0]["views"][0], rows[1]["views"][0] = rows[1]["views"][0], rows[0]["views"][0]

    rewrite(root / "tuples", swap, "tuples")


def same_picture(root: Path, split: str) -> None:
    def copy(rows: list[dict]) -> None:
        rows[1]["views"][0] = next(row for row in rows if row["split"] == split)["views"][0]

    rewrite(root / "tuples", copy, "tuples")


def flip(root: Path) -> None:
    """One bit in the middle of a picture's bytes."""
    path = next((root / "tuples" / "data").iterdir())
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


def cut(root: Path) -> None:
    path = next((root / "tuples" / "data").iterdir())
    path.write_bytes(path.read_bytes()[:-100])


def edit_json(path: str, change: Callable[[dict], object]) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        stored = json.loads((root / path).read_text())
        change(stored)
        (root / path).write_text(json.dumps(stored))

    return edit


def damage_tokens(root: Path, how: str) -> None:
    path = root / "tokens" / "tokens" / "000-000000.arrow"
    if how == "bit":
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    else:
        values = np.full((20, TOKENS, WIDTH), np.nan if how == "nan" else 1, np.float16)
        path.write_bytes(tokens_bytes(values if how != "short" else values[:3]))


def columns(root: Path) -> None:
    path = next((root / "tuples" / "data").iterdir())
    path.write_bytes(parquet_bytes(pq.read_table(path).drop_columns(["source"])))


PNG = encode_png(np.zeros((64, 64, 3), np.uint8))
HALF = np.zeros((64, 64), np.uint8)
HALF[10:20] = 255
SMALL = {"bytes": encode_png(np.full((32, 32), 255, np.uint8)), "path": "m"}
FAULTS: list[tuple[str, Callable[[Path], object], dict[str, dict[str, str]]]] = [
    ("a picture is cut", tuples_row(cut_picture),
     {"tuples": {"picture": "broken or cut off", "content-hash": "is not the hash"}}),
    ("a picture is another one", view_with(image={"bytes": PNG, "path": "x"}),
     {"tuples": {"content-hash": "is not the hash", "perceptual-hash": "the picture has"},
      "distractors": {"background": "differs from its view by up to"}}),
    ("a picture is gone", view_with(image=None), {"tuples": {"picture": "image is missing and the row has no error"}}),
    ("the size is wrong", view_with(size_px=32), {"tuples": {"size": "the picture is 64 x 64 px, size_px is 32"}}),
    ("the hash is wrong", view_with(perceptual_hash="0" * 16), {"tuples": {"perceptual-hash": "'0000000000000000'"}}),
    ("a mask is of another size", view_with(mask=SMALL), {"tuples": {"mask": "mask is 32 x 32 px, its picture"}}),
    ("a mask is empty", view_with(mask={"bytes": encode_png(HALF * 0), "path": ""}, mask_area=0.0, mask_pieces=0,
                                  mask_touches_border=False), {"tuples": {"mask": "mask is empty"}}),
    ("a mask is another one", view_with(mask={"bytes": encode_png(HALF), "path": ""}),
     {"tuples": {"mask-columns": f"the mask has ({round(float((HALF > 0).mean()), 6)}, 1, True)"}}),
    ("figures of a mask that is not there", view_with(mask=None), {"tuples": {"mask-columns": "without a mask"}}),
    ("provenance is no JSON", view_with(provenance="{"), {"tuples": {"row": "provenance is not JSON"}}),
    ("a view's error is not its row's", view_with(error="bad"), {"tuples": {"row": "a view has an error and the row"}}),
    ("views are swapped", swap_views, {"distractors": {"reference": "is not at toybox:"},
     "tokens": {"reference": "there is no view"}, "evaluation/embeddings": {"reference": "there is no view"}}),
    ("a new picture", tuples_row(another_picture), {"distractors": {"reference": "there is no view"},
     "tokens": {"reference": "there is no view"}, "evaluation/embeddings": {"reference": "there is no view"}}),
    ("an odd value", tuples_row(lambda r: r.update(object_kind="wooden")), {"tuples": {"values": "'wooden' (1)"}}),
    ("another split", tuples_row(lambda r: r.update(split="val")),
     {name: {"split": "here, val in"} for name in ("distractors", "tokens", "evaluation/embeddings",
                                                   "evaluation/similarities", "evaluation/margins")}),
    ("a column is gone", columns, {"tuples": {"columns": "source: missing column", "not-compared": "cannot be read"},
     **{name: {"not-compared": "no tuples were given"} for name in ALL[1:]}}),
    ("a distractor's background", lambda root: repaint(root, "background"),
     {"distractors": {"background": "differs from its view by up to 1 outside the mask"}}),
    ("a distractor's object may be anything", lambda root: repaint(root, "object"), {}),
    ("a measured background may differ", lambda root: (repaint(root, "background"),
     distractor_with(background_max_difference=1)(root)), {}),
    ("an orphan", distractor_with(identity_id="toybox:nobody"), {"distractors": {"reference": "no identity"},
     "tokens": {"reference": "no distractor"}, "evaluation/embeddings": {"reference": "no distractor"}}),
    ("a place that is not the view's", distractor_with(view_index=7), {"distractors": {"reference": "is not at"},
     "tokens": {"reference": "no distractor"}, "evaluation/embeddings": {"reference": "no distractor"}}),
    ("an error with a verdict", distractor_with(error="bad"), {"distractors": {"row": "the verdict is accepted",
     "row-with-error": "bad"}}),
    ("settings are edited", edit_json("tuples/settings.json", lambda s: s["content"].update(size_px=65)),
     {"tuples": {"settings": "content_digest is"}}),
    ("a shard is gone", lambda root: (root / "tokens/data/000-000000.parquet").unlink(),
     {"tokens": {"missing-shard": "data/000-000000.parquet (20 rows)"}}),
    ("a token file is gone", lambda root: (root / "tokens/tokens/000-000000.arrow").unlink(),
     {"tokens": {"missing-file": "tokens/000-000000.arrow"}}),
    ("tokens are damaged", lambda root: damage_tokens(root, "bit"), {"tokens": {"tokens": "is not what was written"}}),
    ("tokens are not finite", lambda root: damage_tokens(root, "nan"), {"tokens": {"tokens": "not finite"}}),
    ("tokens are too few", lambda root: damage_tokens(root, "short"), {"tokens": {"tokens": "expected 20 items"}}),
    ("a stray shard", lambda root: (root / "tokens/data/extra.txt").write_text(""),
     {"tokens": {"stray-file": "data/extra.txt"}}),
    ("a half-written file", lambda root: (root / "tuples/plan/.000.parquet.1-ab.tmp").write_text(""),
     {"tuples": {"temporary-file": "plan/.000.parquet.1-ab.tmp"}}),
    ("a lock", lambda root: (root / "tuples/.lock").write_text("{}"), {"tuples": {"lock": "a job is writing"}}),
    ("no card", lambda root: (root / "tuples/README.md").unlink(), {"tuples": {"no-card": "README.md"}}),
    ("a vector is too long", lambda root: rewrite(root / "evaluation/embeddings", lambda rows: rows[3].update(
        embedding=[1.0] * WIDTH), "embeddings"), {"evaluation/embeddings": {"row": "no unit vector"}}),
    ("a margin is wrong", lambda root: rewrite(root / "evaluation/margins", lambda rows: rows[0].update(margin=0.7),
                                               "margins"), {"evaluation/margins": {"row": "similarities differ by"}}),
    ("a success is wrong", lambda root: rewrite(root / "evaluation/margins", lambda rows: rows[0].update(success=False),
                                                "margins"), {"evaluation/margins": {"row": "success is False with"}}),
]  # fmt: skip
