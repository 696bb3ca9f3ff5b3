"""A tiny random Qwen3-VL through the real loading and generation: greedy, in batches, refused where it is none."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, SiglipVisionConfig, SiglipVisionModel

from nearid_ray.errors import UsageError
from nearid_ray.evaluation.pairwise.answers import UnreadableAnswer, similarity_of
from nearid_ray.evaluation.pairwise.scorer import Pair, Picture
from nearid_ray.evaluation.pairwise.vlm import VlmScorer, VlmSettings
from tests.evaluation.pairwise.tiny_judge import ANSWERS, REFUSAL, write_judge

SIDES = ((64, 64), (96, 64), (32, 64), (64, 96), (32, 32), (64, 64))


def picture(number: int, height: int = 64, width: int = 64) -> Picture:
    coarse = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    image = np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST))
    return Picture(image_id=str(number), image_HW3=image)


PAIRS = [Pair(picture(2 * n, *SIDES[n]), picture(2 * n + 1, *SIDES[-n])) for n in range(6)]


def loaded(folder: Path, **changes: Any) -> VlmScorer:
    scorer = VlmScorer(str(folder), VlmSettings(dtype="float32", **changes))
    scorer.check()
    scorer.load("cpu")
    return scorer


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Says any bytes."""
    return write_judge(tmp_path_factory.mktemp("talker"))


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Says whole answers, one a token."""
    return write_judge(tmp_path_factory.mktemp("judge"), only_answers=True)


def test_a_batch_answers_as_each_of_its_rows_alone_whatever_their_lengths(talker: Path) -> None:
    scorer = loaded(talker, max_new_tokens=12)
    together = [judgement.answer for judgement in scorer.score(PAIRS)]
    assert together == [scorer.score([pair])[0].answer for pair in PAIRS]
    assert len(set(together)) > 3, "the pictures do not move the answer, so that nothing is tested"


def test_answers_are_the_greedy_ones_of_the_bare_model(talker: Path) -> None:
    """Token by token without a cache and without `generate`."""
    scorer = loaded(talker, max_new_tokens=6)
    model = AutoModelForImageTextToText.from_pretrained(talker, dtype=torch.float32).eval()
    processor = scorer._processor
    for pair in PAIRS[:2]:
        images = [Image.fromarray(side.image_HW3) for side in (pair.first, pair.second)]
        inputs = dict(processor(text=[scorer._prompt()], images=[images], return_tensors="pt"))
        said = []
        for _ in range(6):
            with torch.inference_mode():
                token = model(**inputs).logits[0, -1].argmax()
            if int(token) in scorer._ends:
                break
            said.append(int(token))
            for name, value in (("input_ids", token), ("attention_mask", 1), ("mm_token_type_ids", 0)):
                inputs[name] = torch.cat([inputs[name], torch.tensor([[int(value)]])], dim=1)
        expected = processor.tokenizer.decode(said, skip_special_tokens=True).strip()
        assert scorer.score([pair])[0].answer == expected


def test_the_prompt_shows_two_pictures_in_order_and_both_parts_of_the_text(talker: Path) -> None:
    prompt = loaded(talker)._prompt()
    assert prompt.count("<|image_pad|>") == 2
    order = ["one and the same", "Photograph 1:", "<|image_pad|>", "Photograph 2:", "Use only evidence", '"score"']
    places = [prompt.index(text) for text in order]
    assert places == sorted(places) and prompt.endswith("<|im_start|>assistant\n")


def test_scores_are_read_from_answers_and_unreadable_ones_keep_their_words(judge: Path) -> None:
    scorer = loaded(judge, max_new_tokens=1)
    pairs = [Pair(picture(n), picture(100 + n)) for n in range(24)]
    judgements = scorer.score(pairs)
    assert {judgement.answer for judgement in judgements} <= set(ANSWERS)
    assert len({judgement.answer for judgement in judgements}) > 3
    assert REFUSAL in {judgement.answer for judgement in judgements}
    for judgement in judgements:
        try:
            assert judgement.similarity == similarity_of(judgement.answer) and not judgement.error
        except UnreadableAnswer:
            assert judgement.answer == REFUSAL and np.isnan(judgement.similarity)
            assert judgement.error.startswith("the answer cannot be read: it is no JSON object; it was cut off after 1")


def test_the_description_follows_weights_and_words_and_not_the_folder(judge: Path, tmp_path: Path) -> None:
    shutil.copytree(judge, tmp_path / judge.name)
    write_judge(tmp_path / "other", seed=9)
    first, again, other, longer = (
        VlmScorer(str(folder), settings)
        for folder, settings in (
            (judge, VlmSettings()),
            (tmp_path / judge.name, VlmSettings()),
            (tmp_path / "other", VlmSettings()),
            (judge, VlmSettings(max_new_tokens=9)),
        )
    )
    for scorer in (first, again, other, longer):
        scorer.check()
    assert first.described() == again.described()
    assert "Tell the instance from its category" in first.described()["instructions"]
    assert first.described()["fingerprint"] != other.described()["fingerprint"]
    assert first.described() != longer.described()
    # On a worker whose folder of that name holds another model.
    first.model = str(tmp_path / "other")
    with pytest.raises(UsageError, match="of this worker has the fingerprint"):
        first.load("cpu")


def changed(folder: Path, name: str, **values: Any) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def no_vlm(folder: Path) -> None:
    shutil.rmtree(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    SiglipVisionModel(SiglipVisionConfig(**sizes, image_size=16, patch_size=8)).save_pretrained(folder)


def deeper(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    changed(folder, "config.json", text_config=config["text_config"] | {"num_hidden_layers": 3})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_vlm, "is a siglip_vision_model model, which does not answer questions on pictures"),
        (lambda f: (f / "config.json").unlink(), "holds no model: config.json is missing"),
        (lambda f: (f / "model.safetensors").unlink(), "its weights cannot be read"),
        (deeper, r"its weights lack \d+ tensor\(s\), e.g. model.language_model.layers.2"),
        (lambda f: (f / "preprocessor_config.json").unlink(), "its processor cannot be loaded"),
        (lambda f: (f / "tokenizer.json").unlink(), "its tokenizer does not give back"),
        (lambda f: (f / "chat_template.jinja").unlink(), "has no chat template"),
        (lambda f: changed(f, "config.json", model_type="mine", auto_map={}), "trust its own code with --trust-remote"),
    ],
)
def test_what_is_no_judge_is_refused_in_words(
    judge: Path, tmp_path: Path, spoil: Callable[[Path], Any], message: str
) -> None:
    folder = Path(shutil.copytree(judge, tmp_path / "judge"))
    spoil(folder)
    with pytest.raises(UsageError, match=message):
        loaded(folder)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="max_new_tokens is 0; expected at least 1"):
        VlmSettings(max_new_tokens=0)
