"""A judge's answer counts where it is what was asked for; nothing is guessed from anything else."""

import json
from pathlib import Path

import pytest

from nearid_ray.evaluation.pairwise.answers import INSTRUCTIONS, SYSTEM_PROMPT, UnreadableAnswer, similarity_of

GOOD = {"matching_cues": ["logo"], "conflicting_cues": ["handle"], "confident": False, "score": 3}


@pytest.mark.parametrize("score", range(11))
def test_every_whole_score_is_its_tenth(score: int) -> None:
    assert similarity_of(json.dumps(GOOD | {"score": score})) == pytest.approx(score / 10)


@pytest.mark.parametrize(
    "text",
    [
        "  {}\n",
        "```json\n{}\n```",
        "```\n{}\n```",
        "```JSON\n{}```\n",
        "<think>\nBoth are {{mugs}}. ```json {{}} ```\n</think>\n\n{}",
    ],
)
def test_space_fences_and_thoughts_around_the_object_are_passed_over(text: str) -> None:
    assert similarity_of(text.replace("{{", "<").replace("}}", ">").replace("{}", json.dumps(GOOD, indent=1))) == 0.3


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("", "no JSON object"),
        ("They are the same, 9/10.", "no JSON object"),
        ("Here it is: " + json.dumps(GOOD), "no JSON object"),
        (json.dumps(GOOD) + json.dumps(GOOD), "no JSON object"),
        (json.dumps(GOOD)[:-1], "no JSON object"),
        ("```json\n" + json.dumps(GOOD), "no JSON object"),
        ("[7]", "JSON list, no object"),
        ("7", "JSON int, no object"),
        ("[" * 100_000, "no JSON object"),
        (json.dumps({"score": 7}), "no matching_cues, conflicting_cues, confident"),
        (json.dumps(GOOD | {"score": 11}), "score is 11"),
        (json.dumps(GOOD | {"score": -1}), "score is -1"),
        (json.dumps(GOOD | {"score": 7.0}), "score is 7.0"),
        (json.dumps(GOOD | {"score": "7"}), "score is '7'"),
        (json.dumps(GOOD | {"score": True}), "score is True"),
        (json.dumps(GOOD | {"score": None}), "score is None"),
        (json.dumps(GOOD).replace("3", "NaN"), "score is nan"),
        (json.dumps(GOOD)[:-1] + ', "score": 9}', "says score twice"),
        (json.dumps(GOOD | {"confident": "yes"}), "confident is 'yes'"),
        (json.dumps(GOOD | {"matching_cues": "logo"}), "matching_cues is no list"),
        (json.dumps(GOOD | {"conflicting_cues": [1]}), "conflicting_cues is no list"),
    ],
)
def test_anything_else_is_refused_with_the_reason(answer: str, said: str) -> None:
    with pytest.raises(UnreadableAnswer) as refused:
        similarity_of(answer)
    assert said in str(refused.value)


def test_the_instructions_ask_for_what_is_read() -> None:
    assert all(f'"{name}"' in INSTRUCTIONS for name in GOOD)


def test_the_documentation_shows_the_words_that_are_used() -> None:
    page = (Path(__file__).parents[3] / "docs" / "judges.md").read_text()
    assert INSTRUCTIONS in page and SYSTEM_PROMPT in page
