"""The scorer in Python: what it takes, what it refuses, and that its numbers are those of evaluation and release."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import nearid_ray
from nearid_ray.data.pipeline import RunSettings, run_shard
from nearid_ray.data.store import Dataset
from nearid_ray.embedding.cache import TokenCache
from nearid_ray.embedding.extract import plan_embedding
from nearid_ray.embedding.plan import EmbedSettings
from nearid_ray.errors import UsageError
from nearid_ray.evaluation.embed import HeadTask, embedding_matrix
from nearid_ray.evaluation.evaluate import EvaluateSettings
from nearid_ray.evaluation.scorers import plan_evaluation
from nearid_ray.models import release
from nearid_ray.models.backbone import Backbone
from nearid_ray.models.checkpoint import HeadCard, load_head, save_head
from nearid_ray.scoring.scorer import Scorer
from tests.embedding.conftest import distractor_rows, tuple_rows, write_dataset
from tests.scoring.conftest import coarse, moved_head


@pytest.fixture(scope="module")
def scorer(head_folder: Path) -> Scorer:
    return nearid_ray.load(str(head_folder), device="cpu", batch_size=4)


def close(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal up to the order of sums, which depends on the place in a batch."""
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_importing_the_package_does_not_import_torch():
    code = "import sys, nearid_ray; nearid_ray.load; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_head_embeds_as_its_backbone_and_weights_say(scorer: Scorer, head_folder: Path, toy: Backbone, files):
    arrays = [np.array(Image.open(path)) for path in files[:5]]
    with torch.no_grad():
        pooled_BD = load_head(str(head_folder))[0](toy.tokens_of(toy.preprocess(arrays)))
    expected_BD = torch.nn.functional.normalize(pooled_BD, dim=-1).numpy()
    found_BD = scorer.embed(files[:5])
    assert found_BD.dtype == np.float32 and scorer.name == "nearid-toy"
    np.testing.assert_allclose(found_BD, expected_BD, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(found_BD, axis=1), 1, atol=1e-6)
    for batch_size in (1, 2, 99):
        np.testing.assert_allclose(scorer.embed(files[:5], batch_size=batch_size), expected_BD, atol=2e-6)


def test_paths_pillow_images_arrays_and_bytes_of_a_picture_are_the_same(scorer: Scorer, files):
    path = files[0]
    image = Image.open(path)
    as_given = (str(path), path, image, np.array(image), path.read_bytes())
    found_BD = scorer.embed(list(as_given))
    close(found_BD, np.repeat(found_BD[:1], len(as_given), axis=0))
    close(scorer.embed(path), found_BD[:1])
    close(scorer.embed(np.stack([np.array(image)] * 2)), found_BD[:2])


def test_orientation_transparency_and_other_modes_are_read_like_files(scorer: Scorer, tmp_path: Path):
    array = coarse(7, (60, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn clockwise
    Image.fromarray(array).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as image:
        upright = np.ascontiguousarray(np.rot90(array, -1))
        close(scorer.embed([tmp_path / "turned.png", image]), scorer.embed([upright, upright]))
    for mode in ("L", "P", "1", "LA", "RGBA", "CMYK", "I;16"):
        image = (
            Image.fromarray(array).convert("L").convert(mode)
            if mode == "I;16"
            else Image.fromarray(array).convert(mode)
        )
        stored = io.BytesIO()
        image.save(stored, "TIFF" if mode == "CMYK" else "PNG")
        close(scorer.embed(image), scorer.embed(stored.getvalue()))
    clear = Image.fromarray(np.dstack([array, np.zeros((40, 60), np.uint8)]))
    close(scorer.embed(clear), scorer.embed(np.full((40, 60, 3), 255, np.uint8)))


def test_similarity_is_the_cosine_of_embeddings(scorer: Scorer, files):
    first, second = scorer.embed(files[:2]).astype(np.float64)
    assert scorer.similarity(files[0], files[1]) == pytest.approx(first @ second, abs=1e-6)
    assert scorer.similarity(files[0], files[0]) == pytest.approx(1)
    each = scorer.similarities(files[:3], files[2:5])
    np.testing.assert_allclose(each, [scorer.similarity(files[n], files[n + 2]) for n in range(3)], atol=1e-6)
    np.testing.assert_allclose(scorer.similarities(files[0], files[:3])[1], first @ second, atol=1e-6)
    assert scorer.similarities([], []).shape == (0,)
    with pytest.raises(UsageError, match="2 and 3 pictures"):
        scorer.similarities(files[:2], files[:3])


def test_masks_black_out_the_background(scorer: Scorer, tmp_path: Path):
    array = coarse(3, (50, 50))
    mask = np.zeros((50, 50), np.uint8)
    mask[10:30, 10:40] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    black = np.where(mask[..., None] > 0, array, np.uint8(0))
    for given in (mask, mask > 0, Image.fromarray(mask), tmp_path / "mask.png"):
        close(scorer.embed(array, masks=given), scorer.embed(black))
    both = scorer.embed([array, array], masks=[mask, None])
    np.testing.assert_allclose(both, np.concatenate([scorer.embed(black), scorer.embed(array)]), atol=1e-6)
    assert scorer.similarity(array, black, mask_a=mask) == pytest.approx(1)
    with pytest.raises(UsageError, match=r"has 10 x 20 pixels; expected 50 x 50"):
        scorer.embed(array, masks=np.ones((20, 10), np.uint8))
    with pytest.raises(UsageError, match="is empty"):
        scorer.embed(array, masks=np.zeros((50, 50), np.uint8))
    with pytest.raises(UsageError, match="1 masks for 2 pictures"):
        scorer.embed([array, array], masks=mask)


def test_what_cannot_be_read_is_named(scorer: Scorer, files, tmp_path: Path):
    with pytest.raises(UsageError, match=r"broken.png: not a picture in a known format"):
        scorer.embed(files)
    with pytest.raises(UsageError, match=r"gone.png: there is no such file"):
        scorer.similarity(files[0], tmp_path / "gone.png")
    with pytest.raises(UsageError, match="it is a folder"):
        scorer.embed(tmp_path)
    with pytest.raises(UsageError, match=r"picture 1 \(array\) has type float64 and shape \(8, 8, 3\)"):
        scorer.embed([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3))])
    with pytest.raises(UsageError, match="picture 0 is a int"):
        scorer.embed([3])
    with pytest.raises(UsageError, match="ftp:// is not supported"):
        scorer.embed("ftp://host/a.png")
    with pytest.raises(UsageError, match="no side more than 200 times the other"):
        scorer.embed(np.zeros((1, 1000, 3), np.uint8))
    with pytest.raises(UsageError, match="no pictures were given"):
        scorer.embed([])


def test_a_release_and_the_head_it_was_made_of_are_the_same_scorer(scorer: Scorer, head_folder, toy, files, tmp_path):
    release.export(str(head_folder), toy, str(tmp_path / "my-release"))
    released = nearid_ray.load(str(tmp_path / "my-release"), device="cpu")
    assert released.fingerprint == scorer.fingerprint and released.name == "my-release"
    np.testing.assert_allclose(released.embed(files[:3]), scorer.embed(files[:3]), atol=5e-3)
    arrays = [np.array(Image.open(path)) for path in files[:3]]
    np.testing.assert_allclose(
        released.embed(files[:3]), release.load(str(tmp_path / "my-release")).embed(arrays).numpy(), atol=2e-6
    )
    frozen = nearid_ray.load("toybox-siglip2", device="cpu")
    assert frozen.fingerprint != scorer.fingerprint and frozen.name == "toybox-siglip2"


def test_the_numbers_are_those_of_the_evaluate_job(scorer: Scorer, head_folder, toy, tmp_path):
    rows = tuple_rows(["test", "test"])
    tuples = write_dataset(tmp_path / "tuples", "tuples", rows)
    distractors = write_dataset(tmp_path / "distractors", "distractors", distractor_rows(rows))
    tokens = Dataset(tmp_path / "tokens")
    settings, run = EmbedSettings(dtype="float32"), RunSettings(gpus_per_worker=0)
    embed = plan_embedding("tokens", str(tmp_path / "tuples"), str(tmp_path / "distractors"), tokens, settings, run)
    embed.task.setup()
    for shard in embed.plan.pending:
        run_shard(embed.task, tokens, shard, embed.plan.members(shard))
    planned = plan_evaluation(
        tokens.location, {"mine": str(head_folder)}, Dataset(tmp_path / "evaluation").location, EvaluateSettings()
    )
    task = HeadTask(lambda: TokenCache.open(tokens.location), planned.scorers.heads)
    for shard in planned.plan.pending:
        run_shard(task, planned.embeddings, shard, planned.plan.members(shard))
    found = planned.embeddings.read()
    pictures = {("view", view["view_id"]): view for row in tuples.read().to_pylist() for view in row["views"]}
    pictures |= {("distractor", row["distractor_id"]): row for row in distractors.read().to_pylist()}
    views = {row["view_id"]: row for row in (view for key, view in pictures.items() if key[0] == "view")}
    compared = 0
    for row in found.to_pylist():
        if row["scorer"] != "mine":
            continue
        picture = pictures[row["role"], row["image_id"]]
        masked = row["condition"] == "foreground"
        mask = (picture if row["role"] == "view" else views[picture["view_id"]])["mask"]["bytes"] if masked else None
        mine_D = scorer.embed(picture["image"]["bytes"], masks=[mask])[0]
        np.testing.assert_allclose(mine_D, row["embedding"], atol=1e-3)
        assert float(mine_D @ np.array(row["embedding"], np.float32)) > 1 - 1e-5
        compared += 1
    assert compared == 2 * 2 * 3 * 2
    assert embedding_matrix(found["embedding"]).shape[1] == toy.width


def test_a_function_of_a_person_is_a_scorer(functions: Path, files, monkeypatch, tmp_path):
    mine = nearid_ray.load(f"{functions}:means")
    assert mine.name == "means"
    first, second = (np.array(Image.open(path)).reshape(-1, 3).mean(axis=0) - 127.5 for path in files[:2])
    expected = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
    assert mine.similarity(*files[:2]) == pytest.approx(expected, abs=1e-6)
    assert nearid_ray.load(f"{functions}:huge").similarity(*files[:2]) == pytest.approx(expected, abs=1e-6)
    (tmp_path / "my_scorer.py").write_text(functions.read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert nearid_ray.load("my_scorer:means").fingerprint == mine.fingerprint


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", r"mine.py:raises raised RuntimeError on 2 picture\(s\): no weights"),
        ("flat", r"gave an array of shape \(2,\) for 2 picture\(s\); expected \(2, D\)"),
        ("texts", "expected real numbers"),
        ("nans", r"gives no finite embedding of 2 of 2 picture\(s\): .*0.png"),
        ("absent", "has no function absent; it has flat, huge, means"),
    ],
)
def test_a_function_that_misbehaves_is_told_by_name(functions: Path, files, name: str, message: str):
    with pytest.raises(UsageError, match=message):
        nearid_ray.load(f"{functions}:{name}").embed(files[:2])


def test_what_is_no_scorer_is_refused(tmp_path: Path, toy: Backbone, head_folder, functions):
    with pytest.raises(UsageError, match="there is no such folder"):
        nearid_ray.load(str(tmp_path / "gone"))
    with pytest.raises(UsageError, match=r"config.json is missing"):
        nearid_ray.load(str(tmp_path))
    with pytest.raises(UsageError, match="there is no file"):
        nearid_ray.load(str(tmp_path / "gone.py:embed"))
    with pytest.raises(UsageError, match=r"no_such_module_here cannot be imported \(ModuleNotFoundError"):
        nearid_ray.load("no_such_module_here:embed")
    with pytest.raises(UsageError, match="device is 'tpu'"):
        nearid_ray.load(str(head_folder), device="tpu")
    with pytest.raises(UsageError, match="device is 'cuda:77', which is not there; found 1 cpu"):
        nearid_ray.load(str(head_folder), device="cuda:77")
    with pytest.raises(UsageError, match=r"is no folder of a trained head"):
        nearid_ray.load("toybox-siglip2", backbone="toybox-siglip2")
    head = moved_head(toy)
    save_head(str(tmp_path / "other"), head, HeadCard.of(head, toy.spec, "0123456789abcdef"))
    with pytest.raises(UsageError, match=r"the head belongs to backbone .*0123456789abcdef"):
        nearid_ray.load(str(tmp_path / "other"))


def test_a_folder_above_a_head_names_the_head(head_folder: Path):
    with pytest.raises(UsageError, match=r"holds no head itself; give .*nearid-toy/best"):
        nearid_ray.load(str(head_folder.parent), device="cpu")
