"""Functions and extractors of the user's: found by name, asked in batches, and told apart from their mistakes."""

import math
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

from nearid_ray.errors import UsageError
from nearid_ray.evaluation.pairwise.extractors import TwoLayers
from nearid_ray.evaluation.pairwise.function import FunctionScorer
from nearid_ray.evaluation.pairwise.imported import Imported
from nearid_ray.evaluation.pairwise.scorer import Batches, Judgement, Pair, PairScorer, Picture
from nearid_ray.evaluation.pairwise.vsm import EXAMPLE, NOT_VALID, VsmScorer, VsmSettings

SIDE_PX = 32
CODE = """
import numpy as np, torch

def difference(first, second, power="1"):
    return np.array([np.abs(a.astype(float) - b).mean() ** int(power) for a, b in zip(first, second)])

def as_tensor(first, second):
    return torch.from_numpy(difference(first, second)).float()

class Made:
    def __init__(self, device, offset="0"):
        self.offset = float(offset)
        if self.offset < 0:
            raise RuntimeError("no weights")
    def __call__(self, first, second):
        return [self.offset + len(first)] * len(first)

def one_nan(first, second):
    return [float("nan") if a.max() == 0 else 1.0 for a in first]

def black_raises(first, second):
    if any(a.max() == 0 for a in first):
        raise RuntimeError("a black picture")
    return [1.0] * len(first)

def too_many(first, second):
    return [1.0] * (len(first) + 1)

def texts(first, second):
    return ["alike"] * len(first)

def nothing(first, second):
    return None

def cells(image):
    grid = image.reshape(4, 8, 4, 8, 3).mean((1, 3)) - 127.5
    return grid, grid[..., :2]

def one_map(image):
    return cells(image)[0]

def flat(image):
    return cells(image)[0].reshape(16, 3), cells(image)[1].reshape(16, 2)

def other_sizes(image):
    return cells(image)[0], cells(image)[1][:2]

def fails_on_black(image):
    if image.max() == 0:
        raise RuntimeError("a black picture")
    return cells(image)

number = 3
"""


@pytest.fixture
def mine(tmp_path: Path) -> str:
    file = tmp_path / "my metrics.py"
    file.write_text(CODE)
    return str(file)


def picture(number: int, *, black: bool = False, mask: bool = True) -> Picture:
    coarse = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    image = np.kron(coarse, np.ones((8, 8, 1), np.uint8)) * np.uint8(not black)
    outline = np.zeros((SIDE_PX, SIDE_PX), np.uint8)
    outline[8:24, 8:24] = 255
    return Picture(image_id=f"{number}{black}", image_HW3=image, mask_HW=outline if mask else None)


PAIRS = [Pair(picture(n), picture(n + 10)) for n in range(5)]
WITH_BLACK = [*PAIRS[:2], Pair(picture(2, black=True), picture(12)), *PAIRS[3:]]


def ready(scorer: Any) -> Any:
    scorer.check()
    scorer = pickle.loads(pickle.dumps(scorer))  # as on its way to a worker
    scorer.load("cpu")
    return scorer


def scores(judgements: Sequence[Judgement]) -> list[float]:
    return [judgement.similarity for judgement in judgements]


def test_a_function_scores_and_a_distance_turns_its_sign(mine: str) -> None:
    expected = [np.abs(p.first.image_HW3.astype(float) - p.second.image_HW3).mean() for p in PAIRS]
    assert scores(Batches(ready(FunctionScorer(f"{mine}:difference"))).run(PAIRS)) == pytest.approx(expected)
    distance = ready(FunctionScorer(f"distance:{mine}:as_tensor", batch_size=2))
    assert scores(Batches(distance).run(PAIRS)) == pytest.approx([-value for value in expected])
    squared = ready(FunctionScorer(f"{mine}:difference", ("power=2",)))
    assert scores(squared.score(PAIRS)) == pytest.approx([value**2 for value in expected])


def test_a_class_is_made_once_with_its_arguments_and_batches_have_the_asked_size(mine: str) -> None:
    scorer = ready(FunctionScorer(f"{mine}:Made", ("offset=10",), batch_size=2))
    assert scores(Batches(scorer).run(PAIRS)) == [12, 12, 12, 12, 11]
    with pytest.raises(UsageError, match=r"Made\('cpu', ...\) cannot be made: RuntimeError: no weights"):
        ready(FunctionScorer(f"{mine}:Made", ("offset=-1",)))


def test_a_module_of_the_working_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "found_here").mkdir()
    (tmp_path / "found_here" / "__init__.py").write_text("")
    (tmp_path / "found_here" / "inner.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    found = Imported.find("found_here.inner:difference", "the function")
    assert found.root == str(tmp_path.resolve())
    assert found.source == Imported.find(f"{tmp_path}/found_here/inner.py:difference", "the function").source


def test_numbers_that_are_not_finite_are_errors_of_their_rows(mine: str) -> None:
    judged = Batches(ready(FunctionScorer(f"{mine}:one_nan"))).run(WITH_BLACK)
    assert [j.error for j in judged] == ["", "", "the pair function gave nan", "", ""]
    assert [math.isnan(j.similarity) for j in judged] == [False, False, True, False, False]


def test_a_batch_that_raises_is_tried_row_by_row(mine: str) -> None:
    judged = Batches(ready(FunctionScorer(f"{mine}:black_raises"))).run(WITH_BLACK)
    assert [j.error for j in judged] == ["", "", "RuntimeError: a black picture", "", ""]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("too_many", r"gave an array of shape \(6,\) for 5 pairs; expected one number a pair, shape \(5,\)"),
        ("texts", "gave list for 5 pairs .* expected 5 numbers"),
        ("nothing", r"gave an array of shape \(\) for 5 pairs"),
    ],
)
def test_what_is_wrong_with_every_pair_ends_the_run(mine: str, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Batches(ready(FunctionScorer(f"{mine}:{name}"))).run(PAIRS)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("compare", "expected module:function"),
        ("no_such_module:f", "no_such_module cannot be imported"),
        ("math:no_such_function", "no_such_function is not there"),
        ("{mine}:number", "number cannot be called"),
        ("{mine}x.py:f", "cannot be imported"),
    ],
)
def test_code_that_is_not_there_is_refused_before_a_worker_starts(mine: str, spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FunctionScorer(spec.format(mine=mine)).check()
    with pytest.raises(UsageError, match="expected KEY=VALUE"):
        FunctionScorer("math:hypot", ("power",)).check()


def test_the_description_follows_the_code_and_its_arguments(mine: str) -> None:
    def described(*given: Any) -> dict[str, Any]:
        scorer = FunctionScorer(*given)
        scorer.check()
        return scorer.described()

    first = described(f"{mine}:difference")
    assert first == described(f"{mine}:difference")
    assert first != described(f"{mine}:difference", ("power=2",)) and first != described(f"distance:{mine}:difference")
    Path(mine).write_text(CODE + "\n# changed\n")
    assert first != described(f"{mine}:difference")


class Limited:
    """Holds so many pairs at once."""

    batch_size, uses_masks = 8, False

    def __init__(self, room: int) -> None:
        self.room, self.sizes = room, []

    def score(self, pairs: Sequence[Pair]) -> list[Judgement]:
        self.sizes.append(len(pairs))
        if len(pairs) > self.room:
            raise torch.cuda.OutOfMemoryError("no room")
        return [Judgement(similarity=float(len(pairs)))] * len(pairs)


def test_a_batch_that_does_not_fit_is_halved_for_good_and_one_pair_that_does_not_is_a_row() -> None:
    scorer, told = Limited(3), []
    batches = Batches(scorer, told.append)  # type: ignore[arg-type]
    assert len(batches.run(PAIRS * 2)) == 10
    assert scorer.sizes == [8, 4, 2, 2, 2, 2, 2] and batches.fitting.most == 2
    assert len(told) == 2 and "8 pairs do not fit the GPU's memory; this worker goes on with 4" in told[0]
    (alone,) = Batches(Limited(0), told.append).run(PAIRS[:1])  # type: ignore[arg-type]
    assert alone.error == "OutOfMemoryError: no room"


def by_loops(pair: Pair, extract: Callable[[np.ndarray], Any], above: float = 0.6) -> float:
    """VSM with a loop over the cells of both objects; the mask covers the middle four of the sixteen."""
    inside = [(y, x) for y in (1, 2) for x in (1, 2)]
    (semantic, visual), (other_semantic, other_visual) = extract(pair.first.image_HW3), extract(pair.second.image_HW3)

    def best(own: np.ndarray, other: np.ndarray) -> float:
        return max(float(own @ other[place] / np.linalg.norm(own) / np.linalg.norm(other[place])) for place in inside)

    kept = [place for place in inside if best(semantic[place], other_semantic) > above]
    return sum(best(visual[place], other_visual) > above for place in kept) / len(kept) if kept else math.nan


def test_vsm_looks_at_the_object_alone_in_one_direction_or_both(mine: str) -> None:
    scope: dict[str, Any] = {}
    exec(CODE, scope)
    pairs = [Pair(picture(n), picture(n + 50)) for n in range(40)]
    one = scores(Batches(ready(VsmScorer(f"{mine}:cells"))).run(pairs))
    expected = [by_loops(pair, scope["cells"]) for pair in pairs]
    np.testing.assert_allclose(one, expected)
    assert np.isnan(one).any() and len(set(np.round(one, 6))) > 4
    both = scores(ready(VsmScorer(f"{mine}:cells", settings=VsmSettings(both_ways=True))).score(pairs))
    back = [by_loops(Pair(pair.second, pair.first), scope["cells"]) for pair in pairs]
    np.testing.assert_allclose(both, [(a + b) / 2 for a, b in zip(expected, back, strict=True)])
    alone = ready(VsmScorer(f"{mine}:cells")).score([Pair(pairs[0].first, pairs[0].first)])
    assert alone[0].similarity == 1.0


def test_a_pair_without_correspondences_or_whose_extractor_fails_is_a_row(mine: str) -> None:
    nothing = ready(VsmScorer(f"{mine}:cells", settings=VsmSettings(semantic_above=1.0))).score(PAIRS[:1])
    assert nothing[0].answer == NOT_VALID and not nothing[0].error and math.isnan(nothing[0].similarity)
    failed = ready(VsmScorer(f"{mine}:fails_on_black")).score(WITH_BLACK)
    assert failed[2].error == "the extractor failed: RuntimeError: a black picture" and not failed[0].error


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("one_map", "gave ndarray; expected two feature maps"),
        ("flat", r"shapes \(16, 3\) and \(16, 2\); expected two feature maps \(height, width, features\)"),
        ("other_sizes", r"shapes \(4, 4, 3\) and \(2, 4, 2\); .* of one height and width"),
    ],
)
def test_wrong_feature_maps_end_the_run(mine: str, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Batches(ready(VsmScorer(f"{mine}:{name}"))).run(PAIRS)


def test_vsm_without_an_extractor_or_masks_is_refused(mine: str) -> None:
    with pytest.raises(UsageError, match=f"give an extractor as vsm:module:function.*{EXAMPLE}"):
        VsmScorer("").check()
    with pytest.raises(UsageError, match="needs the masks of both pictures"):
        ready(VsmScorer(f"{mine}:cells")).score([Pair(picture(0), picture(1, mask=False))])
    with pytest.raises(ValueError, match="semantic_above is 2; expected a cosine"):
        VsmSettings(semantic_above=2)


def write_dino(folder: Path, registers: int) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    model: Any = (
        Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**sizes, num_register_tokens=registers))
        if registers
        else Dinov2Model(Dinov2Config(**sizes))
    )
    model.save_pretrained(folder)
    size = {"height": SIDE_PX, "width": SIDE_PX}
    BitImageProcessorPil(size={"shortest_edge": 40}, crop_size=size).save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("registers", [0, 3])
def test_the_example_extractor_gives_two_layers_of_the_whole_picture(tmp_path: Path, registers: int) -> None:
    model = write_dino(tmp_path / "dino", registers)
    scorer = ready(VsmScorer(EXAMPLE, (f"model={tmp_path / 'dino'}", "visual_layer=1")))
    semantic, visual = scorer._maps(picture(3).image_HW3)
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    pixels = torch.from_numpy(((picture(3).image_HW3 / 255 - mean) / std).transpose(2, 0, 1)[None]).float()
    with torch.inference_mode():
        states = model(pixels, output_hidden_states=True).hidden_states
    for found, layer in ((semantic, 4), (visual, 1)):
        np.testing.assert_allclose(found.reshape(16, 16), states[layer][0, 1 + registers :], atol=1e-4)
    assert 0 <= scorer.score([Pair(picture(3), picture(3))])[0].similarity <= 1


def test_the_example_extractor_refuses_other_models_and_layers(tmp_path: Path) -> None:
    write_dino(tmp_path / "dino", 0)
    with pytest.raises(UsageError, match=r"semantic_layer is '5'; the model has the layers 1 to 4"):
        TwoLayers("cpu", str(tmp_path / "dino"), semantic_layer="5")
    (tmp_path / "dino" / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(UsageError, match="is a vit model; expected a DINOv2"):
        TwoLayers("cpu", str(tmp_path / "dino"))


def test_scorers_are_what_the_job_expects(mine: str) -> None:
    every: list[PairScorer] = [FunctionScorer(f"{mine}:difference"), VsmScorer(f"{mine}:cells")]
    assert [scorer.uses_masks for scorer in every] == [False, True]
