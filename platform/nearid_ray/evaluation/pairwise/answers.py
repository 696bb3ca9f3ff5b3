"""What a vision-language judge is asked, and how its answer is read."""

import json
import math
import re
from typing import Any

SYSTEM_PROMPT = (
    "You examine photographs of physical objects. You are shown two photographs and decide whether they show one and "
    "the same individual object. Two different objects of one kind, make or model do not count as the same."
)

BEFORE_FIRST, BEFORE_SECOND = "Photograph 1:", "Photograph 2:"

INSTRUCTIONS = """Compare the main object of photograph 1 with the main object of photograph 2.

Use only evidence that lies on the object itself:
- marks: print, text, logos, patterns, scratches, wear, and where on the object each of them sits;
- fine geometry: outline, proportions, the number, shape and position of parts, edges, holes, joints.
Do not use the background, the scene, what stands nearby, the light, shadows, the camera's position, sharpness or \
anything else around the object, neither for nor against: the same scene can hold another object, and the same object \
can stand in another scene. A black surround only means that the background was cut away.
Tell the instance from its category: that both are, say, mugs, of the same colour even, is no evidence that they are \
one mug. One detail that is visible in both photographs and differs, and that neither the light nor the point of view \
explains, means two objects. What is hidden in one of the photographs is no evidence.

Answer with one JSON object and nothing else:
{"matching_cues": [short texts], "conflicting_cues": [short texts], "confident": true or false, "score": whole number}
The score runs from 0 to 10: 10 certainly the same object, 7 to 9 likely the same, 4 to 6 undecided, 1 to 3 likely \
different objects, 0 certainly different objects."""

TOP_SCORE = 10
_FENCED = re.compile(r"\A```(?:json)?\s*\n(.*?)\n?\s*```\Z", re.DOTALL | re.IGNORECASE)
_THOUGHT_ENDS = "</think>"


class UnreadableAnswer(ValueError):
    """An answer that is not what was asked for; says why."""


def similarity_of(answer: str) -> float:
    """The score of an answer as a similarity from 0 to 1.

    The answer must be one JSON object, alone or in one Markdown fence, with all four entries of the right types; what a
    model thought aloud before it (up to </think>) is passed over. Nothing is guessed from other texts.

    Raises:
        UnreadableAnswer: it is anything else, or its score is no whole number from 0 to 10.

    >>> text = '{"matching_cues": ["red lid"], "conflicting_cues": [], "confident": true, "score": 7}'
    >>> similarity_of(text), similarity_of("```json\\n" + text + "\\n```")
    (0.7, 0.7)
    """
    found = _object(answer)
    missing = [name for name in ("matching_cues", "conflicting_cues", "confident", "score") if name not in found]
    if missing:
        raise UnreadableAnswer(f"it has no {', '.join(missing)}")
    for name in ("matching_cues", "conflicting_cues"):
        if not isinstance(found[name], list) or not all(isinstance(cue, str) for cue in found[name]):
            raise UnreadableAnswer(f"its {name} is no list of texts")
    if not isinstance(found["confident"], bool):
        raise UnreadableAnswer(f"its confident is {found['confident']!r}, not true or false")
    score = found["score"]
    if type(score) is not int or not 0 <= score <= TOP_SCORE:
        raise UnreadableAnswer(f"its score is {score!r}, no whole number from 0 to {TOP_SCORE}")
    return score / TOP_SCORE


def _object(answer: str) -> dict[str, Any]:
    text = answer.rpartition(_THOUGHT_ENDS)[2].strip()
    if fenced := _FENCED.match(text):
        text = fenced[1]
    try:
        found = json.loads(text, object_pairs_hook=_once, parse_constant=lambda name: math.nan)
    except (ValueError, RecursionError) as error:
        if isinstance(error, UnreadableAnswer):
            raise
        raise UnreadableAnswer("it is no JSON object") from error
    if not isinstance(found, dict):
        raise UnreadableAnswer(f"it is a JSON {type(found).__name__}, no object")
    return found


def _once(entries: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in entries]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UnreadableAnswer(f"it says {', '.join(twice)} twice")
    return dict(entries)
