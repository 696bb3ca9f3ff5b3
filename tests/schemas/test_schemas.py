"""The contract: every violation is named, and what is written opens elsewhere."""

import io
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import schemas
from schemas.document import document
from schemas.fields import is_required


def _distractor(**changes) -> dict:
    row = dict.fromkeys(schemas.DISTRACTORS.schema.names)
    for field in schemas.DISTRACTORS.fields:
        if not field.nullable:
            row[field.name] = {pa.string(): "x", pa.bool_(): False}.get(field.type, 1)
    return row | {"split": "test", "verdict": "accepted", "error": ""} | changes


def _distractors(*rows: dict) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=schemas.DISTRACTORS.schema)


def _said(violations: list[schemas.Violation]) -> str:
    return "\n".join(map(str, violations))


def test_a_right_table_has_no_violation():
    assert schemas.validate(_distractors(_distractor())) == []


def test_every_field_of_every_table_has_a_description():
    for table in schemas.TABLES.values():
        stack = list(table.fields)
        while stack:
            field = stack.pop()
            assert (field.metadata or {}).get(b"description"), f"{table.name}.{field.name}"
            if pa.types.is_list(field.type) and pa.types.is_struct(field.type.value_type):
                stack += [field.type.value_type.field(i) for i in range(field.type.value_type.num_fields)]


def test_missing_unknown_and_wrongly_typed_columns_are_all_named():
    table = _distractors(_distractor()).drop_columns(["seed"]).append_column("extra", pa.array([1]))
    place = table.schema.get_field_index("attempt")
    table = table.set_column(place, "attempt", pa.array(["0"]))
    said = _said(schemas.validate(table))
    assert "seed: missing column of type int64" in said
    assert "extra: unknown column" in said
    assert "attempt: type string, expected int32" in said


def test_nulls_odd_values_and_doubled_keys_are_counted_with_examples():
    loose = pa.schema(
        [pa.field(f.name, f.type) for f in schemas.DISTRACTORS.schema], schemas.DISTRACTORS.schema.metadata
    )
    rows = [_distractor(distractor_id=i, split=s) for i, s in (("a", "test"), ("a", "test"), ("b", "holdout"))]
    rows.append(_distractor(distractor_id="c", prompt=None))
    said = _said(schemas.validate(pa.Table.from_pylist(rows, schema=loose)))
    assert "distractor_id: 1 duplicate key(s), e.g. a" in said
    assert "split: value(s) outside train, val, test: 'holdout' (1)" in said
    assert "prompt: 1 null(s)" in said


def _tuples(**changes) -> pa.Table:
    row = {f.name: "" for f in schemas.TUPLES.fields if pa.types.is_string(f.type)}
    row |= {"identity_id": "i", "split": "val"}
    view = {f.name: ("" if pa.types.is_string(f.type) else 0) if is_required(f) else None for f in schemas.VIEW}
    view |= {"mask_source": "exact", "view_id": "v"} | changes
    return pa.Table.from_pylist([row | {"views": [view]}], schema=schemas.TUPLES.schema)


def test_values_inside_the_views_are_checked():
    assert schemas.validate(_tuples()) == []
    odd = _said(schemas.validate(_tuples(mask_source="magic")))
    assert odd == f"views.mask_source: value(s) outside {', '.join(schemas.MASK_SOURCES)}: 'magic' (1)"
    assert _said(schemas.validate(_tuples(prompt=None))) == "views.prompt: 1 null(s) in a column that allows none"


def test_references_to_identities_and_views_must_exist():
    good, lost = _distractor(identity_id="i", view_id="v"), _distractor(identity_id="j", view_id="v", distractor_id="d")
    assert schemas.validate(_distractors(good), references={"tuples": _tuples()}) == []
    said = _said(schemas.validate(_distractors(good, lost), references={"tuples": _tuples()}))
    assert said == "identity_id: 1 value(s) do not exist in tuples, e.g. j"


@pytest.mark.parametrize("table", ["tuples", "distractors"])
def test_datasets_shows_pictures_at_every_level(table, tmp_path):
    picture = {"bytes": _png(), "path": "a.png"}
    written = _tuples(image=picture) if table == "tuples" else _distractors(_distractor(image=picture))
    pq.write_table(written, tmp_path / "a.parquet")
    loaded = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "a.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    row = loaded[0]["views"][0] if table == "tuples" else loaded[0]
    assert isinstance(row["image"], Image.Image)
    assert row["image"].size == (3, 2)
    assert row["mask"] is None


def _png() -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (3, 2)).save(sink, "PNG")
    return sink.getvalue()


def test_another_version_and_a_table_without_a_name_are_refused():
    table = _distractors(_distractor())
    old = table.replace_schema_metadata({**table.schema.metadata, b"nearid_schema_version": b"0"})
    assert "schema version '0'" in _said(schemas.validate(old))
    assert "names no table" in _said(schemas.validate(table.replace_schema_metadata({})))
    with pytest.raises(FileNotFoundError, match="no data"):
        schemas.validate(Path("nowhere"))


def _written(folder: Path, *tables: pa.Table) -> Path:
    (folder / "data").mkdir(parents=True)
    for place, table in enumerate(tables):
        pq.write_table(table, folder / "data" / f"{place}.parquet")
    return folder


def test_a_folder_is_checked_like_a_table_and_no_picture_is_read(tmp_path):
    good = _tuples(image={"bytes": b"not read", "path": "a.png"})
    assert schemas.validate(_written(tmp_path / "one ä", good)) == []
    assert schemas.validate(f"file://{tmp_path}/one ä") == []
    odd, doubled = _tuples(mask_source="magic"), _tuples(prompt=None)
    said = _said(schemas.validate(_written(tmp_path / "three", good, odd, doubled)))
    assert "'magic' (1)" in said
    assert "views.prompt: 1 null(s)" in said
    assert "identity_id: 2 duplicate key(s), e.g. i" in said
    # A file whose pictures cannot be read is found out by nobody here: they are left where they are.
    path = tmp_path / "one ä" / "data" / "0.parquet"
    data = bytearray(path.read_bytes())
    start = data.index(b"not read")
    data[start - 20 : start] = bytes(20)
    path.write_bytes(data)
    assert schemas.validate(tmp_path / "one ä") == []


def test_a_file_of_another_schema_among_good_ones_is_named(tmp_path):
    good = _tuples()
    folder = _written(tmp_path / "d", good, good.drop_columns(["category"]), good.append_column("x", [[1]]))
    assert [str(v) for v in schemas.validate(folder)] == [
        "category: missing column of type string (in 1.parquet)",
        "x: unknown column (in 2.parquet)",
    ]


def test_references_may_be_folders(tmp_path):
    tuples, lost = _written(tmp_path / "t", _tuples()), _distractors(_distractor(identity_id="i", view_id="w"))
    said = _said(schemas.validate(_written(tmp_path / "d", lost), references={"tuples": tuples}))
    assert said == "view_id: 1 value(s) do not exist in tuples, e.g. w"


def test_the_documentation_page_is_the_one_the_schemas_give():
    page = Path(__file__).parents[2] / "docs" / "schemas.md"
    assert page.read_text().strip() == document().strip(), "run `python -m schemas.document > docs/schemas.md`"
