"""Tables that others made, written here through the calls that make them in the wild, and read back."""

import io
import json
import pickle
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from nearid_ray.data.columns import Cell
from nearid_ray.data.sources import open_rows
from nearid_ray.data.table_files import DamagedError
from nearid_ray.errors import UsageError

datasets = pytest.importorskip("datasets")


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((6, 5, 3), value, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def dataset(first: int = 0, rows: int = 5):
    numbers = range(first, first + rows)
    return datasets.Dataset.from_dict(
        {
            "id": [100 + i for i in numbers],
            "kind": [i % 2 for i in numbers],
            "picture": [{"bytes": png(i), "path": f"{i}.png"} for i in numbers],
            "second": [None if i % 3 == 1 else {"bytes": png(50 + i), "path": None} for i in numbers],
        },
        features=datasets.Features(
            {
                "id": datasets.Value("int64"),
                "kind": datasets.ClassLabel(names=["cup", "car"]),
                "picture": datasets.Image(),
                "second": datasets.Image(),
            }
        ),
    )


def as_parquet(path: Path) -> str:
    dataset().to_parquet(path / "table.parquet", batch_size=2)
    return str(path / "table.parquet")


def as_parquet_folder(path: Path) -> str:
    (path / "data").mkdir()
    dataset(0, 2).to_parquet(path / "data" / "train-00000-of-00002.parquet")
    dataset(2, 3).to_parquet(path / "data" / "train-00001-of-00002.parquet")
    dataset(70, 1).to_parquet(path / "data" / "test-00000-of-00001.parquet")
    return str(path)


def as_glob(path: Path) -> str:
    dataset(0, 2).to_parquet(path / "b1.parquet")
    dataset(2, 3).to_parquet(path / "b2.parquet")
    dataset(9, 1).to_parquet(path / "c.parquet")
    return str(path / "b*.parquet")


def as_saved(path: Path) -> str:
    dataset().save_to_disk(path / "saved", num_shards=2)
    return str(path / "saved")


def as_saved_splits(path: Path) -> str:
    datasets.DatasetDict({"train": dataset(), "test": dataset(70, 1)}).save_to_disk(path / "saved")
    return str(path / "saved")


FORMS = [as_parquet, as_parquet_folder, as_glob, as_saved, as_saved_splits]


def refusal(source: object, **options: str) -> str:
    with pytest.raises(UsageError) as caught:
        open_rows(str(source), **options)
    return str(caught.value)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_rows(tmp_path, form):
    source = open_rows(form(tmp_path))
    assert len(source) == 5
    assert source.columns == ["id", "kind", "picture", "second"]
    assert source.picture_columns == ["picture", "second"]
    assert source.light(["kind", "id"]).to_pydict() == {
        "kind": ["cup", "car", "cup", "car", "cup"],
        "id": [100, 101, 102, 103, 104],
    }
    assert source.present(["picture", "second"]).to_pydict() == {
        "picture": [True] * 5,
        "second": [True, False, True, True, False],
    }
    rows = source.rows([3, 1, 3], ["id", "second", "picture", "kind"])
    assert [row["id"] for row in rows] == [103, 101, 103]
    assert rows[0] == rows[2]
    assert [row["kind"] for row in rows] == ["car", "car", "car"]
    assert rows[1] == {"id": 101, "kind": "car", "picture": Cell(data=png(1), path="1.png"), "second": None}
    assert rows[0]["second"] == Cell(data=png(53))


@pytest.mark.parametrize("form", FORMS)
def test_a_pickled_source_is_opened_again_and_its_fingerprint_follows_the_content(tmp_path, form):
    source = open_rows(form(tmp_path))
    again = pickle.loads(pickle.dumps(source))
    assert again.rows([4], ["picture"]) == source.rows([4], ["picture"])
    assert again.fingerprint() == source.fingerprint()
    (tmp_path / "other").mkdir()
    same = open_rows(form(tmp_path / "other"))
    assert same.fingerprint() == source.fingerprint()
    other = dataset(1, 5)
    other.to_parquet(tmp_path / "x.parquet")
    assert open_rows(str(tmp_path / "x.parquet")).fingerprint() != source.fingerprint()


@pytest.mark.parametrize("form", [as_parquet, as_saved])
def test_rows_and_columns_that_are_not_there_are_named(tmp_path, form):
    source = open_rows(form(tmp_path))
    with pytest.raises(IndexError, match="5 rows; row 5"):
        source.rows([0, 5], ["id"])
    with pytest.raises(IndexError, match="row -1"):
        source.rows([-1], ["id"])
    for call in (source.light, source.present, lambda names: source.rows([0], names)):
        with pytest.raises(UsageError, match="no column img1; found the columns: id, kind, picture, second"):
            call(["img1"])
    with pytest.raises(UsageError, match="picture hold pictures"):
        source.light(["id", "picture"])
    assert source.rows([], ["id"]) == []


def test_a_split_is_found_by_name_and_a_missing_one_refused_with_those_there_are(tmp_path):
    for form in (as_parquet_folder, as_saved_splits):
        path = tmp_path / form.__name__
        path.mkdir()
        uri = form(path)
        assert open_rows(uri, split="test").light(["id"])["id"].to_pylist() == [170]
        said = refusal(uri, split="val")
        assert "'val'" in said and "test" in said and "train" in said
    assert len(open_rows(as_parquet(tmp_path), split="val")) == 5  # a name without a split is every split's


def test_folders_named_after_splits_are_read(tmp_path):
    (tmp_path / "val").mkdir()
    dataset().to_parquet(tmp_path / "val" / "0000.parquet")
    assert len(open_rows(str(tmp_path), split="val")) == 5
    assert "holds no Parquet files" in refusal(tmp_path, split="train")


def test_of_a_row_group_only_the_rows_asked_for_stay_in_memory(tmp_path):
    """One row group of 60 MB, of which two rows are read: far less than the group is allocated at any time."""
    rng = np.random.default_rng(0)
    table = pa.table({"picture": [rng.bytes(1 << 20) for _ in range(60)]})
    pq.write_table(table, tmp_path / "big.parquet", row_group_size=60, write_batch_size=2)
    source = open_rows(str(tmp_path / "big.parquet"))
    expected = [table["picture"][i].as_py() for i in (7, 3)]
    del table
    pool = pa.proxy_memory_pool(pa.system_memory_pool())
    before = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        rows = source.rows([7, 3], ["picture"])
    finally:
        pa.set_memory_pool(before)
    assert [row["picture"].data for row in rows] == expected
    assert pool.max_memory() < 50 << 20


def test_null_pictures_are_told_without_reading_them_in_every_storage(tmp_path):
    whole = pa.array([{"bytes": b"a", "path": "x"}, None, {"bytes": None, "path": "y"}, {"bytes": None, "path": None}])
    plain = pa.array([b"a", None, b"c", None], pa.large_binary())
    pq.write_table(pa.table({"struct": whole, "plain": plain}), tmp_path / "t.parquet", row_group_size=2)
    source = open_rows(str(tmp_path / "t.parquet"))
    assert source.present(["struct", "plain"]).to_pydict() == {
        "struct": [True, False, True, False],
        "plain": [True, False, True, False],
    }


def test_pictures_kept_as_paths_are_read_beside_the_table_and_nowhere_else(tmp_path):
    folder = tmp_path / "a b"
    (folder / "ü").mkdir(parents=True)
    (folder / "ü" / "1.png").write_bytes(png(1))
    (tmp_path / "secret.png").write_bytes(png(2))
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    paths = ["ü/1.png", "../secret.png", str(tmp_path / "secret.png"), "link.png", "none.png", str(folder / "ü/1.png")]
    column = pa.array([{"bytes": None, "path": path} for path in paths])
    pq.write_table(pa.table({"picture": column}), folder / "t.parquet")
    cells = [row["picture"] for row in open_rows(str(folder / "t.parquet")).rows(range(6), ["picture"])]
    assert cells[0] == Cell(data=png(1), path="ü/1.png")
    assert [cell.data for cell in cells[1:5]] == [None] * 4
    for cell, words in zip(cells[1:5], ("outside", "outside", "outside", "is not in"), strict=True):
        assert words in cell.error
    assert cells[5].data == png(1)
    elsewhere = open_rows(str(folder / "t.parquet"), files=str(tmp_path)).rows([2], ["picture"])[0]["picture"]
    assert elsewhere.data == png(2)


def test_csv_values_are_text_and_paths_are_read_beside_it(tmp_path):
    (tmp_path / "1.png").write_bytes(png(1))
    (tmp_path / "t.csv").write_bytes('\ufeffid,file\r\n007,1.png\r\n"8\n8",\r\n'.encode())
    source = open_rows(str(tmp_path / "t.csv"))
    assert source.light(["id", "file"]).to_pydict() == {"id": ["007", "8\n8"], "file": ["1.png", ""]}
    assert source.rows([1], ["id"]) == [{"id": "8\n8"}]
    assert source.present(["file"]).to_pydict() == {"file": [True, False]}
    assert source.picture("1.png").data == png(1)
    (tmp_path / "t.tsv").write_text("id\tfile\n1\ta,b\n")
    assert open_rows(str(tmp_path / "t.tsv")).light(["file"]).to_pydict() == {"file": ["a,b"]}


def test_what_cannot_be_opened_is_refused_in_words(tmp_path):
    assert "does not exist; expected a hub id (owner/name), a folder" in refusal(tmp_path / "nowhere")
    assert "does not exist; expected a hub id" in refusal("mnist")
    assert "holds no Parquet files" in refusal(tmp_path)
    (tmp_path / "a.csv").write_text("a,b\n1\n")
    assert f"give one of its tables, e.g. {tmp_path}/a.csv" in refusal(tmp_path)
    assert "cannot be read as CSV" in refusal(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("")
    assert "cannot be read as CSV" in refusal(tmp_path / "b.csv")
    (tmp_path / "c.csv").write_text("a,b,a\n1,2,3\n")
    assert "column(s) a stand there more than once" in refusal(tmp_path / "c.csv")
    (tmp_path / "d.csv").write_bytes("a\nt\xe4sse\n".encode("latin-1"))
    assert "save it as UTF-8" in refusal(tmp_path / "d.csv")
    assert "no file in" in refusal(tmp_path / "x*.parquet")
    whole = as_parquet(tmp_path)
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(Path(whole).read_bytes()[:-20])
    assert "cut.parquet is no whole Parquet file" in refusal(cut)
    cut.write_bytes(b"")
    assert "is no whole Parquet file" in refusal(cut)
    cut.unlink()
    pq.write_table(pa.table({"id": [1]}), tmp_path / "z.parquet")
    assert "z.parquet has other columns than" in refusal(tmp_path)


def test_damage_in_one_row_group_costs_its_rows_alone_and_is_said_in_words(tmp_path):
    file = Path(as_parquet(tmp_path))
    chunk = pq.ParquetFile(file).metadata.row_group(1).column(2)
    assert chunk.path_in_schema == "picture.bytes"
    data = bytearray(file.read_bytes())
    first = chunk.dictionary_page_offset or chunk.data_page_offset
    data[first : first + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
    file.write_bytes(data)
    source = open_rows(str(file))
    with pytest.raises(DamagedError, match="row group 1 cannot be read, the file is damaged"):
        source.rows(range(5), ["id", "picture"])
    rows = source.rows_or_errors([4, 3, 0], ["id", "picture"])
    assert [isinstance(row, DamagedError) for row in rows] == [False, True, False]
    assert rows[2] == {"id": 100, "picture": Cell(data=png(0), path="0.png")}
    assert [row["id"] for row in source.rows_or_errors([3, 2], ["id"])] == [103, 102]  # this column is whole


def test_a_saved_dataset_that_misses_a_file_is_refused(tmp_path):
    saved = Path(as_saved(tmp_path))
    assert f"give its folder, {saved}" in refusal(saved / "data-00000-of-00002.arrow")
    (saved / "data-00001-of-00002.arrow").unlink()
    assert "the saved dataset cannot be opened" in refusal(saved)


def test_without_the_datasets_package_parquet_is_read_and_the_rest_asks_for_it(tmp_path, monkeypatch):
    saved, parquet = as_saved(tmp_path), as_parquet(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert len(open_rows(parquet)) == 5
    for source in (saved, "owner/name"):
        assert "read by the package `datasets`, which is not installed" in refusal(source)


def test_a_folder_here_wins_over_a_hub_id_and_the_hub_says_why_it_cannot_answer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "owner" / "name").mkdir(parents=True)
    dataset().to_parquet(tmp_path / "owner" / "name" / "t.parquet")
    source = open_rows("owner/name")
    assert source.uri == str(tmp_path / "owner" / "name") and source.revision == "" and len(source) == 5
    said = refusal("owner/other")
    assert "the hub cannot be reached" in said and "HF_HUB_OFFLINE" in said and "local copy" in said


def test_a_hub_dataset_is_read_at_its_commit_also_from_the_cache_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    commit = "0123456789" * 4
    fill_cache(tmp_path, "owner/mine", commit)
    source = open_rows("owner/mine")
    assert (source.uri, source.revision) == (f"owner/mine@{commit}", commit)
    assert source.light(["kind"])["kind"].to_pylist() == ["cup", "car", "cup", "car", "cup"]
    assert source.present(["second"])["second"].to_pylist() == [True, False, True, True, False]
    again = pickle.loads(pickle.dumps(source))
    assert again.rows([3, 0], ["picture"]) == source.rows([3, 0], ["picture"])
    assert again.rows([0], ["picture"])[0]["picture"] == Cell(data=png(0), path="0.png")
    assert again.fingerprint() == source.fingerprint()
    assert open_rows("owner/mine", revision=commit[:8]).revision == commit
    said = refusal("owner/mine", split="val")
    assert "split 'val', cannot be read: Unknown split" in said and "train" in said
    for other in ("v1", "f" * 40):
        said = refusal("owner/mine", revision=other)
        assert f"owner/mine at revision {other}" in said and f"in the cache is commit {commit}" in said


def fill_cache(folder: Path, hub_id: str, commit: str) -> None:
    """Leaves in the cache of `datasets` what loading the hub's dataset leaves there."""
    as_parquet_folder(folder)
    datasets.load_dataset(str(folder), cache_dir=str(folder / "made"), split="train")
    made = next((folder / "made").rglob("dataset_info.json")).parent
    owner, name = hub_id.split("/")
    cached = folder / "cache" / f"{owner}___{name}" / "default" / "0.0.0" / commit
    cached.mkdir(parents=True)
    info = json.loads((made / "dataset_info.json").read_text()) | {"dataset_name": name}
    for arrow in made.glob("*.arrow"):
        split = arrow.stem.rpartition("-")[2]
        (cached / f"{name}-{split}.arrow").write_bytes(arrow.read_bytes())
    (cached / "dataset_info.json").write_text(json.dumps(info))


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (401, "GatedRepo", "is a gated dataset on the Hub"),
        (403, "GatedRepo", "ask for access on its page and log in with `hf auth login`"),
        (401, "RepoNotFound", "doesn't exist on the Hub or cannot be accessed"),
        (404, "RevisionNotFound", "Revision 'v9' doesn't exist"),
    ],
)
def test_what_the_hub_refuses_is_said_in_words(tmp_path, monkeypatch, status, code, words):
    """A server that answers as the hub does where it refuses."""
    from http.server import BaseHTTPRequestHandler, HTTPServer

    import huggingface_hub

    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None: ...

    monkeypatch.chdir(tmp_path)
    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        said = refusal("owner/closed", revision="v9")
        server.shutdown()
    assert words in said and "owner/closed at revision v9 cannot be read from the hub" in said
