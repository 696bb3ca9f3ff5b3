"""Named heads on a token cache as it lies on disk, from tokens to metrics."""

import dataclasses
import math

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import safetensors.torch
import torch

from nearid_ray.data.pipeline import RunSettings
from nearid_ray.data.plan import store_settings
from nearid_ray.data.store import Dataset, locate, parquet_bytes
from nearid_ray.embedding.cache import TokenCache
from nearid_ray.embedding.shards import tokens_bytes
from nearid_ray.errors import UsageError
from nearid_ray.evaluation.evaluate import EvaluateSettings
from nearid_ray.evaluation.inputs import Given
from nearid_ray.evaluation.pairs import IMAGE_COLUMNS, plan_pairs
from nearid_ray.evaluation.scorers import evaluate_tokens, load_scorers, named_heads, plan_evaluation
from nearid_ray.evaluation.similarities import scored_records
from nearid_ray.models.checkpoint import HeadCard, save_head
from nearid_ray.models.head import AttentionPoolingHead
from nearid_ray.settings import dump_json
from schemas import JUDGEMENTS, SCHEMA_VERSION, TOKENS_INDEX

TOKENS, WIDTH = 4, 8


def new_head(seed: int) -> AttentionPoolingHead:
    torch.manual_seed(seed)
    return AttentionPoolingHead(WIDTH, heads=2, mlp_width=16)


def write_cache(folder) -> None:
    """Six test identities and two of training, two views, engines redraw and (test alone) reshape; no masked items."""
    rows = []
    for n in range(8):
        split = "test" if n < 6 else "train"
        for view in range(2):
            for engine in ("", "redraw", "reshape")[: 3 if split == "test" else 2]:
                rows.append(
                    {
                        "item_id": f"{n}-{view}-{engine}",
                        "image_id": f"{n}-{view}-{engine}",
                        "role": "distractor" if engine else "view",
                        "identity_id": f"toy:{n}",
                        "view_index": view,
                        "engine": engine,
                        "category": "mug",
                        "split": split,
                        "oracle": None,
                        "masked": False,
                        "draw": 0,
                        "shard": "000-000000",
                        "row": len(rows),
                        "error": "",
                    }
                )
    output = Dataset(str(folder))
    place = output.location
    tokens = np.random.default_rng(0).normal(size=(len(rows), TOKENS, WIDTH)).astype(np.float16)
    place.child("tokens", "000-000000.arrow").write_bytes(tokens_bytes(tokens))
    output.shard("000-000000").write_bytes(parquet_bytes(pa.Table.from_pylist(rows, schema=TOKENS_INDEX.schema)))
    stored = {"table": "tokens_index", "schema_version": SCHEMA_VERSION, "content_digest": "abc", "content": {}}
    place.child("settings.json").write_bytes(dump_json(stored))
    backbone = {"spec": "random", "revision": "", "fingerprint": "f00", "tokens": TOKENS, "width": WIDTH, "heads": 2}
    backbone |= {"mlp_width": 16, "layer_norm_eps": 1e-6}
    place.child("backbone.json").write_bytes(dump_json(backbone))
    place.child("head.safetensors").write_bytes(safetensors.torch.save(new_head(0).state_dict()))


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    write_cache(folder / "tokens")
    card = HeadCard.of(new_head(1), "random", "f00")
    save_head(str(folder / "all"), new_head(1), card)
    save_head(str(folder / "some"), new_head(2), dataclasses.replace(card, settings={"engines": ["redraw", "x"]}))
    save_head(str(folder / "other"), new_head(1), dataclasses.replace(card, backbone_fingerprint="bad"))
    return folder


def test_the_frozen_head_comes_with_the_tokens_and_trained_ones_say_what_they_have_seen(cache_folder):
    cache = TokenCache.open(str(cache_folder / "tokens"))
    scorers = load_scorers(cache, {"a": str(cache_folder / "all")})
    assert list(scorers.heads) == ["frozen", "a"]
    assert scorers.train_engines == ("redraw",)
    assert torch.equal(scorers.heads["frozen"].probe, new_head(0).probe)
    assert torch.equal(scorers.heads["a"].probe, new_head(1).probe)
    assert load_scorers(cache, {"b": str(cache_folder / "some")}).train_engines == ("redraw", "x")


def test_tokens_are_evaluated_end_to_end_and_a_second_time_for_nothing(cache_folder, tmp_path, ray_session):
    settings = EvaluateSettings(resamples=10, random_views=1)
    heads = {"a": str(cache_folder / "all")}
    runs = [
        evaluate_tokens(str(cache_folder / "tokens"), heads, locate(str(tmp_path)), settings, RunSettings(workers=1))
        for _ in range(2)
    ]
    (first, made), (second, again) = runs
    assert (made.rows_made, again.rows_made, second.reused) == (6 * 2 * 3 * 2, 0, True)
    assert first.groups == {"train": ["redraw"], "unseen": ["reshape"], "object-level": ["redraw", "reshape"]}
    row = first.row("a", "object-level")
    assert (row.identities, row.units, row.trials) == (6, 12, 24)
    assert math.isfinite(row.ssr_gain)
    assert {r.condition for r in first.rows} == {"full"}


def test_a_head_of_another_backbone_and_ill_named_heads_are_refused(cache_folder):
    cache = TokenCache.open(str(cache_folder / "tokens"))
    with pytest.raises(UsageError, match="bad"):
        load_scorers(cache, {"a": str(cache_folder / "other")})
    with pytest.raises(UsageError, match="holds no head"):
        load_scorers(cache, {"a": str(cache_folder)})
    for entries in (["runs/x"], ["=x"], ["a="], ["a=x", "a=y"], ["frozen=x"]):
        with pytest.raises(UsageError, match="heads"):
            named_heads(entries)


def test_engines_without_a_distractor_in_the_split_are_named(cache_folder, tmp_path):
    for split, engines in (("test", ()), ("train", ("reshape",))):
        settings = EvaluateSettings(split=split)
        planned = plan_evaluation(str(cache_folder / "tokens"), {}, locate(str(tmp_path / split)), settings)
        assert planned.unpainted == engines


def judged(folder, images: pa.Table, scorer: str) -> Given:
    plan = plan_pairs(images)
    records = scored_records(plan, np.linspace(0, 1, len(plan)), scorer=scorer, condition="full")
    for name in ("answer", "error"):
        records = records.append_column(name, pa.array([""] * len(plan)))
    dataset = Dataset(str(folder))
    dataset.shard("000-000000").write_bytes(parquet_bytes(records.select(JUDGEMENTS.schema.names)))
    store_settings(dataset, "judgements", {})
    return Given(dataset=dataset, table="judgements")


def test_judgements_of_other_pictures_are_refused_before_anything_is_embedded(cache_folder, tmp_path):
    tokens = str(cache_folder / "tokens")
    index = TokenCache.open(tokens).index
    images = index.filter(pc.field("split") == "test").select(IMAGE_COLUMNS)
    moved = pc.replace_substring(images["identity_id"], "toy:", "mtg:")
    foreign = images.set_column(images.schema.get_field_index("identity_id"), "identity_id", moved)

    def plan(given):
        return plan_evaluation(tokens, {}, locate(str(tmp_path / "out")), EvaluateSettings(), others=[given])

    with pytest.raises(UsageError, match=r"6 identities that .*tokens has not: mtg:0"):
        plan(judged(tmp_path / "foreign", foreign, "judge"))
    with pytest.raises(UsageError, match="both have a scorer 'frozen'"):
        plan(judged(tmp_path / "same", images, "frozen"))
    assert not (tmp_path / "out").exists()
    assert plan(judged(tmp_path / "fine", images, "judge")).others[0].scorer_names() == ["judge"]


def test_names_that_nothing_has_are_refused_before_anything_is_written(cache_folder, tmp_path):
    cases = [({"baseline": "clip"}, "expected one of frozen"), ({"train_engines": ("redrow",)}, "redraw, reshape")]
    cases += [({"conditions": ("foreground",)}, "no pictures of the condition foreground")]
    for change, said in cases:
        settings = EvaluateSettings(**change)
        with pytest.raises(UsageError, match=said):
            plan_evaluation(str(cache_folder / "tokens"), {}, locate(str(tmp_path)), settings)
    assert list(tmp_path.iterdir()) == []
