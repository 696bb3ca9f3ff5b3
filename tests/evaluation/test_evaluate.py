"""Heads on cached tokens, embeddings as a dataset, and what an evaluation writes and reads again."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

import schemas
from nearid_ray.data.pipeline import RunSettings, run_plan, run_shard
from nearid_ray.data.plan import make_plan
from nearid_ray.data.store import Dataset, locate
from nearid_ray.errors import UsageError
from nearid_ray.evaluation.embed import (
    CHUNK,
    HeadTask,
    embed_rows,
    embedding_column,
    embedding_matrix,
    embedding_work,
    head_digest,
    plan_heads,
)
from nearid_ray.evaluation.evaluate import EvaluateSettings, evaluate, measure, read_evaluation, records_of
from nearid_ray.models.head import AttentionPoolingHead

TOKENS, WIDTH, IDENTITIES = 5, 8, 12


class ArrayCache:
    """Tokens in memory, made from a seed."""

    def __init__(self, index: pa.Table, seed: int = 0) -> None:
        self.index, self.tokens, self.width = index, TOKENS, WIDTH
        self.tokens_NTD = np.random.default_rng(seed).normal(size=(len(index), TOKENS, WIDTH)).astype(np.float16)
        self.tokens_NTD[0] = np.inf

    def gather(self, index_rows: np.ndarray, out: np.ndarray) -> None:
        if any(self.index["error"][int(row)].as_py() for row in index_rows):
            raise ValueError("a row without tokens was asked for")
        out[:] = self.tokens_NTD[index_rows]


def token_index() -> pa.Table:
    """Twelve identities of three views and two engines; whole and masked, clean and one augmented draw; two splits."""
    rows = []
    for n in range(IDENTITIES):
        for view in range(3):
            for engine in ("", "redraw", "decal"):
                for masked in (False, True):
                    for draw in (0, 1):
                        name = f"{n}-{view}-{engine}"
                        rows.append(
                            {
                                "item_id": f"{name}-{masked}-{draw}",
                                "image_id": name,
                                "role": "distractor" if engine else "view",
                                "identity_id": f"toy:{n:02d}",
                                "view_index": view,
                                "engine": engine,
                                "category": "mug",
                                "split": "val" if n < 2 else "test",
                                "oracle": 0.1 * view if engine == "decal" else None,
                                "masked": masked,
                                "draw": draw,
                                "shard": "s",
                                "row": len(rows),
                                "error": "no picture" if name == "3-1-redraw" else "",
                            }
                        )
    return pa.Table.from_pylist(rows, schema=schemas.TOKENS_INDEX.schema)


def open_cache() -> ArrayCache:
    return ArrayCache(token_index())


def head_of(seed: int) -> AttentionPoolingHead:
    torch.manual_seed(seed)
    return AttentionPoolingHead(WIDTH, heads=2, mlp_width=16)


HEADS = {"frozen": head_of(0), "trained": head_of(1)}
SETTINGS = EvaluateSettings(resamples=20, random_views=2, train_engines=("redraw",))


def embedded(output: Dataset, heads=HEADS) -> Dataset:
    """The embeddings dataset, made without Ray."""
    plan = plan_heads(token_index(), heads, output, fingerprint="f", items_per_shard=40)
    task = HeadTask(open_cache, heads)
    for shard in plan.pending:
        run_shard(task, output, shard, plan.members(shard))
    return output


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory) -> Dataset:
    return embedded(Dataset(str(tmp_path_factory.mktemp("embeddings"))))


def test_rows_are_embedded_by_the_head_alone_and_normalised():
    cache, head = open_cache(), HEADS["trained"]
    rows = np.array([7, 3, 1, 9])
    (found,) = embed_rows(cache, rows, [head])
    for row, vector in zip(rows, found, strict=True):
        with torch.no_grad():
            one = head(torch.from_numpy(cache.tokens_NTD[[row]]).float())[0].numpy()
        np.testing.assert_allclose(vector, one / np.linalg.norm(one), atol=1e-6)


def test_tokens_that_are_not_finite_give_nan_and_no_rows_give_no_rows():
    (found,) = embed_rows(open_cache(), np.arange(CHUNK + 3), [HEADS["frozen"]])
    assert np.isnan(found[0]).all()
    assert np.isfinite(found[1:]).all()
    assert embed_rows(open_cache(), np.array([], np.int64), [HEADS["frozen"]])[0].shape == (0, WIDTH)


def test_work_is_the_clean_pictures_of_the_split_once_a_scorer():
    work = embedding_work(
        token_index(), {"a": "1", "b": "2"}, split="test", conditions=("full", "foreground"), items_per_shard=50
    )
    assert len(work) == 10 * 3 * 3 * 2 * 2
    assert set(work["split"].to_pylist()) == {"test"}
    assert len(set(work["row_id"].to_pylist())) == len(work)
    only_full = embedding_work(token_index(), {"a": "1"}, split="val", conditions=("full",), items_per_shard=50)
    assert len(only_full) == 2 * 3 * 3
    with pytest.raises(UsageError, match=r"no clean pictures of split 'train'.*test"):
        embedding_work(token_index(), {"a": "1"}, split="train", conditions=("full",), items_per_shard=50)


def test_embeddings_meet_the_contract_and_say_what_failed(embeddings):
    assert schemas.validate(embeddings.location.path) == []
    table = embeddings.read()
    assert len(table) == 10 * 3 * 3 * 2 * 2
    failed = [r for r in table.to_pylist() if r["error"]]
    assert {r["image_id"] for r in failed} == {"3-1-redraw"}
    assert all(r["embedding"] is None for r in failed)


def test_ray_gives_the_same_bytes_with_any_number_of_workers(embeddings, tmp_path, ray_session):
    made = {}
    for workers in (1, 3):
        other = Dataset(str(tmp_path / str(workers)))
        plan = plan_heads(token_index(), HEADS, other, fingerprint="f", items_per_shard=40)
        run = RunSettings(workers=workers, max_error_share=0.1)
        summary = run_plan(HeadTask(open_cache, HEADS), other, plan, run, title="test")
        assert (summary.rows, summary.rows_made, summary.errors) == (360, 360, 4)
        assert other.shards() == embeddings.shards()
        assert len(other.shards()) > 3
        for shard in other.shards():
            assert other.shard(shard).read_bytes() == embeddings.shard(shard).read_bytes()
        output = locate(str(tmp_path / f"evaluation {workers}"))
        evaluate([other], output, SETTINGS)
        made[workers] = {str(f.relative_to(output.path)): f.read_bytes() for f in Path(output.path).rglob("*.*")}
    assert made[1] == made[3]
    assert {"similarities/data/000-000000.parquet", "measures.csv", "metrics.json", "missing.csv"} <= set(made[1])


def test_a_new_head_adds_shards_and_another_head_of_the_same_name_is_refused(tmp_path):
    output = embedded(Dataset(str(tmp_path)), {"frozen": HEADS["frozen"]})
    before = {shard: output.shard(shard).read_bytes() for shard in output.shards()}
    embedded(output)
    assert set(output.read(["scorer"])["scorer"].to_pylist()) == {"frozen", "trained"}
    assert all(output.shard(shard).read_bytes() == data for shard, data in before.items())
    assert len(output.shards()) == 2 * len(before)
    with pytest.raises(UsageError, match="'trained' with other weights"):
        embedded(output, {"trained": head_of(5)})
    output.shard(output.shards()[-1]).delete()
    with pytest.raises(UsageError, match="unfinished embeddings of trained"):
        embedded(output, {"frozen": HEADS["frozen"]})


def test_evaluation_writes_records_that_meet_the_contract_and_metrics_that_follow_from_them(embeddings, tmp_path):
    output = locate(str(tmp_path))
    evaluation = evaluate([embeddings], output, SETTINGS)
    similarities, margins = (Dataset.open(output.child(n), n).read() for n in ("similarities", "margins"))
    assert schemas.validate(similarities) == schemas.validate(margins) == []
    again = measure(similarities, margins, SETTINGS)
    assert read_evaluation(output).groups == evaluation.groups == again.groups
    assert [repr(row) for row in read_evaluation(output).rows] == [repr(row) for row in evaluation.rows]
    assert [repr(row) for row in again.rows] == [repr(row) for row in evaluation.rows]
    row = evaluation.row("trained", "redraw")
    assert (row.identities, row.trials) == (10, 10 * 6 - 2)
    assert evaluation.row("trained", "decal", "foreground").oracle_pairs == 30
    assert evaluation.groups["object-level"] == ["redraw"] and evaluation.groups["part-level"] == ["decal"]
    with pytest.raises(KeyError):
        evaluation.row("nobody", "redraw")


def test_a_finished_evaluation_is_read_and_another_question_is_asked_anew(embeddings, tmp_path):
    output = locate(str(tmp_path))
    assert not evaluate([embeddings], output, SETTINGS).reused
    assert evaluate([embeddings], output, SETTINGS).reused
    other = dataclasses.replace(SETTINGS, conditions=("full",))
    changed = evaluate([embeddings], output, other)
    assert not changed.reused
    assert {row.condition for row in changed.rows} == {"full"}
    assert set(Dataset(output.child("similarities")).read()["condition"].to_pylist()) == {"full"}


def test_only_the_wanted_scorers_are_measured(embeddings, tmp_path):
    output = locate(str(tmp_path))
    assert {row.scorer for row in evaluate([embeddings], output, SETTINGS, scorers=["trained"]).rows} == {"trained"}
    assert not evaluate([embeddings], output, SETTINGS, scorers=["frozen"]).reused
    with pytest.raises(UsageError, match="no embeddings of nobody"):
        evaluate([embeddings], output, SETTINGS, scorers=["nobody"])


def test_the_same_embeddings_in_another_order_give_the_same_records(embeddings):
    table = embeddings.read()
    shuffled = table.take(pa.array(np.random.default_rng(0).permutation(len(table))))
    for first, second in zip(records_of(table, SETTINGS), records_of(shuffled, SETTINGS), strict=True):
        assert first.equals(second)


def test_wrong_input_is_refused_by_name(embeddings, tmp_path):
    with pytest.raises(UsageError, match=r"no embeddings of split 'val'.*\['test'\]"):
        evaluate([embeddings], locate(str(tmp_path)), dataclasses.replace(SETTINGS, split="val"))
    with pytest.raises(UsageError, match=r"no metrics\.json"):
        read_evaluation(locate(str(tmp_path)))
    for change in ({"split": "tset"}, {"conditions": ("masked",)}, {"resamples": 0}, {"confidence": 95.0}):
        with pytest.raises(ValueError, match=next(iter(change))):
            dataclasses.replace(SETTINGS, **change)
    planned = Dataset(str(tmp_path / "planned"))
    work = embedding_work(token_index(), {"a": "1"}, split="test", conditions=("full",), items_per_shard=50)
    make_plan(planned, work, table="embeddings", content={}, rows_per_shard=20)
    with pytest.raises(UsageError, match="is not complete"):
        evaluate([planned], locate(str(tmp_path / "out")), SETTINGS)


def test_vectors_survive_the_list_column_and_odd_lengths_are_refused():
    matrix = np.array([[1, 2], [np.nan, np.nan], [3, 4]], np.float32)
    column = pa.chunked_array([embedding_column(matrix, np.isfinite(matrix).all(axis=1))])
    assert column.to_pylist() == [[1, 2], None, [3, 4]]
    np.testing.assert_array_equal(embedding_matrix(column), matrix)
    np.testing.assert_array_equal(embedding_matrix(column.slice(1, 2)), matrix[1:])
    assert embedding_matrix(pa.chunked_array([pa.array([None], pa.list_(pa.float32()))])).shape == (1, 0)
    with pytest.raises(UsageError, match=r"lengths \[1, 2\]"):
        embedding_matrix(pa.chunked_array([pa.array([[1.0], [1.0, 2.0]], pa.list_(pa.float32()))]))


def test_a_digest_names_the_weights():
    assert head_digest(head_of(0)) == head_digest(HEADS["frozen"]) != head_digest(head_of(1))
