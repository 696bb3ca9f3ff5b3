"""Maskers: settings, what is refused before work starts, and masks by tiny random models of the real classes."""

import json
import pickle
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from nearid_ray.data.masking import MaskSettings, make_masker
from nearid_ray.data.masking.model import in_batches
from nearid_ray.data.masking.sam2 import choose, prompt_for
from nearid_ray.errors import UsageError

SIDE = 64
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}

# The layout of a model with its own code on the hub. Foreground is where red exceeds green by more than 0.3.
OWN_CONFIG_CODE = """
from transformers import PretrainedConfig

class ForegroundConfig(PretrainedConfig):
    model_type = "tiny_foreground"
"""
OWN_MODEL_CODE = """
import torch
from torch import nn
from transformers import PreTrainedModel
from .foreground_config import ForegroundConfig

class Foreground(PreTrainedModel):
    config_class = ForegroundConfig

    def __init__(self, config):
        super().__init__(config)
        self.conv = nn.Conv2d(3, CHANNELS, 1)
        self.post_init()

    def forward(self, x):
        fine = self.conv(x)
        return [torch.ones_like(fine[..., ::2, ::2]), fine]  # coarse to fine
"""


@pytest.fixture(scope="module")
def sam2_folder(tmp_path_factory) -> Path:
    """A SAM 2 with random weights that reads 64 pixels; as on the hub, a model for videos that holds the one for
    pictures."""
    import torch
    from transformers import Sam2VideoConfig, Sam2VideoModel

    backbone = {
        "model_type": "sam2_hiera_det_model", "hidden_size": 8, "num_attention_heads": 1, "image_size": [SIDE, SIDE],
        "blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 1, 2, 2], "window_size_per_stage": [4, 2, 2, 2],
        "global_attention_blocks": [3], "window_positional_embedding_background_size": [4, 4],
    }  # fmt: skip
    vision = {
        "model_type": "sam2_vision_model", "backbone_config": backbone, "backbone_channel_list": [64, 32, 16, 8],
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]], "fpn_hidden_size": 32,
    }  # fmt: skip
    decoder = {
        "hidden_size": 32, "mlp_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "iou_head_hidden_dim": 16,
    }  # fmt: skip
    config = Sam2VideoConfig(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": 32, "image_size": SIDE, "patch_size": 16},
        mask_decoder_config=decoder,
        image_size=SIDE,
        memory_attention_hidden_size=32,
        memory_attention_feed_forward_hidden_size=32,
        memory_attention_rope_feat_sizes=[4, 4],
        memory_encoder_hidden_size=32,
        memory_encoder_output_channels=16,
        memory_fuser_embed_dim=32,
        mask_downsampler_embed_dim=32,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sam2")
    Sam2VideoModel(config).save_pretrained(folder)
    said = {"image_processor": {"size": {"height": SIDE, "width": SIDE}, "resample": 2, **IMAGENET}}
    (folder / "processor_config.json").write_text(json.dumps(said))
    return folder


def foreground_folder(folder: Path, *, channels: int = 1, code: str = OWN_MODEL_CODE, bias: float = 0.3) -> Path:
    """A model that brings its own code, as BiRefNet does."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    own = {"AutoConfig": "foreground_config.ForegroundConfig",
           "AutoModelForImageSegmentation": "foreground.Foreground"}  # fmt: skip
    (folder / "config.json").write_text(json.dumps({"model_type": "tiny_foreground", "auto_map": own}))
    (folder / "foreground_config.py").write_text(OWN_CONFIG_CODE)
    (folder / "foreground.py").write_text(code.replace("CHANNELS", str(channels)))
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 80, "width": 80}}))
    mean, std = IMAGENET["image_mean"], IMAGENET["image_std"]
    weight = 100 * torch.tensor([std[0], -std[1], 0.0]).view(1, 3, 1, 1).repeat(channels, 1, 1, 1)
    state = {"conv.weight": weight, "conv.bias": torch.full((channels,), 100 * (mean[0] - mean[1] - bias))}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module", autouse=True)
def _own_code_stays_here(tmp_path_factory):
    """transformers copies a model's own code into a cache, a Python package, before it runs it."""
    from transformers import dynamic_module_utils

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
            patch.delitem(sys.modules, name)
        # Modules of other tests may be cached elsewhere.
        others = [place for place in sys.path if not Path(place, "transformers_modules").is_dir()]
        patch.setattr(sys, "path", others)
        yield


def pictures() -> list[np.ndarray]:
    """A blue disc on a shaded ground, noise, and a wide picture."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:90, :120]
    disc = np.stack([120 + y // 3, 150 - x // 4, 90 + 0 * x], axis=2).astype(np.uint8)
    cv2.circle(disc, (70, 40), 22, (30, 40, 200), cv2.FILLED)
    noise = rng.integers(0, 256, (50, 40, 3), dtype=np.uint8)
    return [disc, noise, np.ascontiguousarray(np.hstack([disc, disc[:, ::-1]]))]


def red_scene() -> tuple[np.ndarray, np.ndarray]:
    image = np.full((80, 80, 3), (90, 90, 60), np.uint8)
    image[20:60, 30:70] = (220, 40, 30)
    return image, (image[..., 0] > 200) * np.uint8(255)


def refusal(**settings) -> str:
    with pytest.raises(UsageError) as caught:
        make_masker(MaskSettings(**settings))
    return str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"mask_method": "magic"}, "mask_method is 'magic'; expected one of grabcut, sam2"),
        ({"mask_method": "sam2", "mask_batch": 0}, "mask_batch is 0"),
        ({"mask_method": "sam2", "mask_dtype": "int8"}, "mask_dtype is 'int8'"),
        ({"mask_model": "some/model"}, "mask_model given, but mask_method is 'grabcut'"),
        (
            {"mask_method": "none", "mask_batch": 4, "mask_trust_remote_code": True},
            "mask_trust_remote_code, mask_batch",
        ),
    ],
)
def test_settings_that_contradict_themselves_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        MaskSettings(**wrong)


def test_models_that_cannot_be_had_are_refused_before_work_starts(tmp_path, sam2_folder):
    assert "there is no such folder" in refusal(mask_method="sam2", mask_model=str(tmp_path / "none"))
    assert "config.json is missing" in refusal(mask_method="sam2", mask_model=str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    assert "the weights are missing" in refusal(mask_method="sam2", mask_model=str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert "config.json cannot be read" in refusal(mask_method="sam2", mask_model=str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert "is a model of type bert; mask_method sam2 expects" in refusal(mask_method="sam2", mask_model=str(tmp_path))
    assert "type bert; mask_method birefnet expects" in refusal(mask_method="birefnet", mask_model=str(tmp_path))
    said = refusal(mask_method="sam2", mask_model=str(sam2_folder), mask_revision="main")
    assert "mask_revision is 'main'" in said


@pytest.mark.parametrize(("method", "model"), [("sam2", "facebook/sam2.1-hiera-large"),
                                               ("birefnet", "ZhengPeng7/BiRefNet")])  # fmt: skip
def test_without_a_connection_the_message_says_how_to_get_the_model(method, model):
    said = refusal(mask_method=method)
    assert f"mask_model {model} is no folder here" in said
    assert f"hf download {model} --local-dir FOLDER" in said


def test_a_model_in_the_local_cache_is_found_without_a_connection_and_pinned_to_its_commit(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    commit = "0123456789abcdef0123456789abcdef01234567"
    foreground_folder(tmp_path / "hub" / "models--own--tiny" / "snapshots" / commit)
    (tmp_path / "hub" / "models--own--tiny" / "refs").mkdir()
    (tmp_path / "hub" / "models--own--tiny" / "refs" / "main").write_text(commit)
    masker = loaded(mask_method="birefnet", mask_model="own/tiny", mask_trust_remote_code=True)
    image, true = red_scene()
    assert np.array_equal(masker.masks([image])[0], true)
    said = {"mask_method": "birefnet", "mask_model": "own/tiny", "mask_revision": commit, "mask_dtype": "float32"}
    assert masker.describe() == said
    other = {"mask_model": "own/tiny", "mask_revision": "v2", "mask_trust_remote_code": True}
    assert "(revision v2): it is not in the local cache" in refusal(mask_method="birefnet", **other)


def test_code_that_comes_with_a_model_runs_only_when_trusted(tmp_path):
    folder = foreground_folder(tmp_path / "model", code="raise SystemExit('it ran')")
    said = refusal(mask_method="birefnet", mask_model=str(folder))
    assert "brings its own Python code" in said and "--mask-trust-remote-code" in said


def loaded(**settings):
    masker = pickle.loads(pickle.dumps(make_masker(MaskSettings(**settings))))  # as on its way to a worker
    masker.load()
    return masker


def test_a_foreground_model_with_its_own_code_masks_what_it_calls_foreground(tmp_path):
    folder = foreground_folder(tmp_path / "model")
    masker = loaded(mask_method="birefnet", mask_model=str(folder), mask_trust_remote_code=True)
    image, true = red_scene()
    large = cv2.resize(image, (320, 160), interpolation=cv2.INTER_NEAREST)
    green = np.full((40, 40, 3), (0, 200, 0), np.uint8)
    exact, scaled, nothing, everything = masker.masks([image, large, green, green[..., [1, 0, 2]]])
    assert np.array_equal(exact, true)
    assert scaled.shape == (160, 320)
    wrong = scaled != cv2.resize(true, (320, 160), interpolation=cv2.INTER_NEAREST)
    assert wrong.mean() < 0.01
    assert isinstance(nothing, ValueError) and "found no object: the mask is empty" in str(nothing)
    assert isinstance(everything, ValueError) and "covers 100.0%" in str(everything)
    assert masker.name == "birefnet"


def test_a_model_is_the_same_wherever_its_folder_lies_and_another_with_other_weights(tmp_path):
    settings = {"mask_method": "birefnet", "mask_trust_remote_code": True}
    first = foreground_folder(tmp_path / "model")
    said = make_masker(MaskSettings(**settings, mask_model=str(first))).describe()
    moved = Path(shutil.copytree(first, tmp_path / "elsewhere" / "model"))
    assert make_masker(MaskSettings(**settings, mask_model=str(moved))).describe() == said
    assert said["mask_method"] == "birefnet" and said["mask_model"] == "model"
    foreground_folder(tmp_path / "other" / "model", bias=0.5)
    other = make_masker(MaskSettings(**settings, mask_model=str(tmp_path / "other" / "model"))).describe()
    assert other["mask_model"] == "model" and other["mask_revision"] != said["mask_revision"]


def test_a_segmentation_model_of_one_class_needs_no_code_of_its_own(tmp_path):
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    small = {"hidden_sizes": [8] * 4, "depths": [1] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 8}
    SegformerForSemanticSegmentation(SegformerConfig(num_labels=1, **small)).save_pretrained(tmp_path / "one")
    (tmp_path / "one" / "preprocessor_config.json").write_text('{"size": {"height": 64, "width": 64}}')
    [mask] = loaded(mask_method="birefnet", mask_model=str(tmp_path / "one")).masks(pictures()[:1])
    assert isinstance(mask, ValueError) or mask.shape == (90, 120)
    SegformerForSemanticSegmentation(SegformerConfig(num_labels=3, **small)).save_pretrained(tmp_path / "three")
    said = refusal(mask_method="birefnet", mask_model=str(tmp_path / "three"))
    assert "tells 3 classes apart; expected one" in said


def test_answers_of_another_shape_and_models_that_cannot_be_loaded_say_so(tmp_path):
    def said(folder: Path) -> str:
        settings = {"mask_method": "birefnet", "mask_model": str(folder), "mask_trust_remote_code": True}
        with pytest.raises(UsageError) as caught:
            loaded(**settings).masks(pictures()[:1])
        return str(caught.value)

    two = said(foreground_folder(tmp_path / "two", channels=2))
    assert "values of shape (1, 2, 80, 80); expected (1, 1, height, width)" in two
    nested = OWN_MODEL_CODE.replace(", fine]", ", [fine]]")
    assert "answered with list; expected foreground logits" in said(foreground_folder(tmp_path / "nested", code=nested))
    needs = said(foreground_folder(tmp_path / "needs", code="import no_such_package\n" + OWN_MODEL_CODE))
    assert "a package that it needs is not installed here" in needs and "no_such_package" in needs
    more = OWN_MODEL_CODE.replace("self.post_init()", "self.extra = nn.Linear(2, 2); self.post_init()")
    assert "weights lack 2 tensor(s) of the model, e.g. extra.bias" in said(
        foreground_folder(tmp_path / "m", code=more)
    )
    broken = foreground_folder(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"not weights")
    assert f"mask_model {broken} cannot be loaded" in said(broken)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"size": {"shortest_edge": 64}}, "resizes to {'shortest_edge': 64}"),
        ({"size": {"height": 64, "width": 32}}, "expected one that resizes to a square"),
        ({"size": 64, "do_normalize": False}, "skips do_normalize"),
        ({"size": 64, "do_center_crop": True}, "and crops"),
    ],
)
def test_a_preprocessor_that_makes_anything_but_squares_is_refused(tmp_path, wrong, said):
    folder = foreground_folder(tmp_path / "model")
    (folder / "preprocessor_config.json").write_text(json.dumps(wrong))
    given = {"mask_method": "birefnet", "mask_model": str(folder), "mask_trust_remote_code": True}
    assert said in refusal(**given)


def test_sam2_gives_the_chosen_of_the_models_own_masks(sam2_folder):
    import torch
    from transformers import Sam2Model

    image = pictures()[0]
    [mask] = loaded(mask_method="sam2", mask_model=str(sam2_folder)).masks([image])
    prompt = prompt_for(image)
    resized = np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    pixels = (resized / 255 - IMAGENET["image_mean"]) / IMAGENET["image_std"]
    given = {"pixel_values": torch.tensor(pixels, dtype=torch.float32).permute(2, 0, 1)[None]}
    model = Sam2Model.from_pretrained(sam2_folder).eval()
    with torch.no_grad():
        by_box = model(**given, input_boxes=SIDE * torch.tensor([[prompt.box]]))
        by_point = model(**given, input_points=SIDE * torch.tensor([[[prompt.point]]]))
    best, best_score = None, -1.0
    for answer in (by_box, by_point):
        for logits, overlap in zip(answer.pred_masks[0, 0], answer.iou_scores[0, 0], strict=True):
            small = logits.numpy() > 0
            guess = cv2.resize(prompt.guess_HW, small.shape[::-1], interpolation=cv2.INTER_AREA) >= 128
            if not 0 < small.mean() < 0.98:
                continue
            score = float(overlap) * (1 + (small & guess).sum() / (small | guess).sum()) / 2
            if score > best_score:
                best, best_score = logits, score
    assert best is not None, "this random model gives no usable mask: take another seed"
    grown = torch.nn.functional.interpolate(best[None, None], size=(90, 120), mode="bilinear")[0, 0].numpy() > 0
    assert ((mask > 0) != grown).mean() < 0.005  # single pixels where a logit is 0 but for rounding


def test_equal_pictures_get_equal_masks_whatever_stands_beside_them(sam2_folder, tmp_path):
    folder = foreground_folder(tmp_path / "model")
    images = pictures()
    for settings in (
        {"mask_method": "grabcut"},
        {"mask_method": "sam2", "mask_model": str(sam2_folder)},
        {"mask_method": "birefnet", "mask_model": str(folder), "mask_trust_remote_code": True},
    ):
        masker = loaded(**settings)
        together = masker.masks([*images, images[0]])
        alone = [masker.masks([image])[0] for image in images]
        for found, again in zip(together, [*alone, alone[0]], strict=True):
            assert str(found) == str(again) if isinstance(found, ValueError) else np.array_equal(found, again)
            assert isinstance(found, ValueError) or set(np.unique(found)) == {0, 255}


def test_larger_batches_and_sixteen_bits_move_little(sam2_folder, tmp_path):
    images = pictures()
    settings = {"mask_method": "sam2", "mask_model": str(sam2_folder)}
    exact, batched = loaded(**settings).masks(images), loaded(**settings, mask_batch=3).masks(images)
    assert all((a != b).mean() < 0.005 for a, b in zip(exact, batched, strict=True))
    folder = foreground_folder(tmp_path / "rounded")
    image, true = red_scene()
    for dtype in ("bfloat16", "float16"):
        settings = {"mask_method": "birefnet", "mask_model": str(folder), "mask_trust_remote_code": True}
        assert np.array_equal(loaded(**settings, mask_dtype=dtype).masks([image])[0], true)
    rounded = loaded(mask_method="sam2", mask_model=str(sam2_folder), mask_dtype="bfloat16").masks(images)
    assert [mask.shape for mask in rounded] == [image.shape[:2] for image in images]


def test_the_prompt_is_the_guess_or_the_middle():
    disc, _, _ = pictures()
    prompt = prompt_for(disc)
    assert np.hypot(prompt.point[0] * 120 - 70, prompt.point[1] * 90 - 40) < 6
    assert np.allclose(np.array(prompt.box) * [120, 90, 120, 90], [48, 18, 92, 62], atol=6)
    assert prompt_for(np.full((60, 60, 3), 128, np.uint8)) == ((0.5, 0.5), (0.1, 0.1, 0.9, 0.9), None)


def test_the_choice_weighs_the_models_word_and_the_guess():
    guess = np.zeros((8, 8), np.uint8)
    guess[2:6, 2:6] = 255
    like_guess = np.where(guess > 0, 1.0, -1.0)
    elsewhere, everything, nothing = -like_guess, np.ones((8, 8)), -np.ones((8, 8))
    masks = np.stack([nothing, elsewhere, like_guess, everything])
    assert choose(masks, np.array([0.99, 0.9, 0.6, 0.99]), guess) == 2  # 0.9 / 2 against 0.6
    assert choose(masks, np.array([0.99, 0.9, 0.4, 0.99]), guess) == 1
    assert choose(masks, np.array([0.99, 0.9, 0.6, 0.99]), None) == 1
    with pytest.raises(ValueError, match="SAM 2 found no object"):
        choose(masks[[0, 3]], np.array([0.9, 0.9]), guess)


def test_a_batch_too_large_for_the_memory_is_halved():
    class OutOfMemoryError(RuntimeError):
        pass

    sizes = []

    def run(part):
        sizes.append(len(part))
        if len(part) > 2:
            raise OutOfMemoryError
        return [2 * item for item in part]

    assert in_batches(list(range(7)), 6, run) == [0, 2, 4, 6, 8, 10, 12]
    assert sizes == [6, 3] + 7 * [1]
    with pytest.raises(OutOfMemoryError):
        in_batches([1], 1, lambda part: (_ for _ in ()).throw(OutOfMemoryError()))
    with pytest.raises(RuntimeError, match="other"):
        in_batches([1, 2], 2, lambda part: (_ for _ in ()).throw(RuntimeError("other")))
