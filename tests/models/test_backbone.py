"""Loading a frozen backbone: the same digits as transformers, and a plain refusal of what is no such model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import GatedRepoError
from safetensors.torch import load_file, save_file
from transformers import SiglipConfig, SiglipModel, SiglipVisionConfig, SiglipVisionModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from nearid_ray.errors import UsageError
from nearid_ray.models.backbone import TOYBOX_BACKBONE, load_backbone, resolve_dtype

SIDE_PX = 32
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = SIZES | {"image_size": SIDE_PX, "patch_size": 8}


def randomised(model: torch.nn.Module, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def write_processor(folder: Path, **changes: Any) -> None:
    processor = SiglipImageProcessorPil(size={"height": SIDE_PX, "width": SIDE_PX})
    processor.save_pretrained(folder)
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def vision_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "vision"
    randomised(SiglipVisionModel(SiglipVisionConfig(**VISION)), 1).save_pretrained(folder)
    write_processor(folder)
    return folder


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, shape, dtype=np.uint8) for shape in ((32, 32, 3), (40, 77, 3), (19, 12, 3))]


@pytest.mark.parametrize(
    "changes", [{"resample": 2}, {"resample": 3}, {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}]
)
def test_preprocessing_gives_the_digits_of_transformers_pillow_processor(
    vision_folder: Path, pictures: list[np.ndarray], changes: dict[str, Any]
) -> None:
    write_processor(vision_folder, **changes)
    processor = SiglipImageProcessorPil.from_pretrained(vision_folder)
    expected = torch.cat([processor(images=picture, return_tensors="pt")["pixel_values"] for picture in pictures])
    assert torch.equal(load_backbone(str(vision_folder)).preprocess(pictures), expected)


def test_tokens_and_pooled_embedding_are_those_of_transformers(vision_folder: Path, pictures: list[np.ndarray]) -> None:
    backbone = load_backbone(str(vision_folder), dtype="float32")
    pixels = backbone.preprocess(pictures)
    model = SiglipVisionModel.from_pretrained(vision_folder).eval()
    with torch.inference_mode():
        expected = model(pixel_values=pixels)
        tokens = backbone.tokens_of(pixels)
        pooled = backbone.head()(tokens)
    assert tokens.shape == (3, backbone.tokens, backbone.width) == (3, 16, 32)
    torch.testing.assert_close(tokens, expected.last_hidden_state)
    torch.testing.assert_close(pooled, expected.pooler_output)


def test_of_a_full_checkpoint_the_vision_tower_alone_is_loaded(tmp_path: Path, pictures: list[np.ndarray]) -> None:
    text = SIZES | {"vocab_size": 40, "max_position_embeddings": 8}
    full = randomised(SiglipModel(SiglipConfig(vision_config=VISION, text_config=text)), 2)
    full.save_pretrained(tmp_path / "full")
    full.vision_model.save_pretrained(tmp_path / "tower")
    for name in ("full", "tower"):
        write_processor(tmp_path / name)
    backbone = load_backbone(str(tmp_path / "full"), dtype="float32")
    pixels = backbone.preprocess(pictures)
    with torch.inference_mode():
        expected = full.vision_model(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(backbone.tokens_of(pixels), expected)
    assert backbone.fingerprint == load_backbone(str(tmp_path / "tower")).fingerprint


def test_an_images_tokens_do_not_depend_on_its_batch(vision_folder: Path) -> None:
    pictures = np.random.default_rng(3).integers(0, 256, (13, SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
    backbone = load_backbone(str(vision_folder), dtype="float32")
    together = backbone.tokens_of(backbone.preprocess(pictures))
    alone = torch.cat([backbone.tokens_of(backbone.preprocess(pictures[i : i + 1])) for i in range(13)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_reduced_precision_stays_near_float32(pictures: list[np.ndarray]) -> None:
    exact, reduced = (load_backbone(TOYBOX_BACKBONE, dtype=dtype) for dtype in ("float32", "bfloat16"))
    tokens = exact.tokens_of(exact.preprocess(pictures))
    difference = reduced.tokens_of(reduced.preprocess(pictures)).float() - tokens
    assert 0 < difference.norm() / tokens.norm() < 0.01
    assert exact.fingerprint == reduced.fingerprint


def test_the_shipped_backbone_is_known_by_name() -> None:
    from nearid_ray.toybox import backbone as toybox

    assert toybox.TOYBOX_BACKBONE == TOYBOX_BACKBONE
    backbone = load_backbone(TOYBOX_BACKBONE)
    assert (backbone.image_px, backbone.tokens, backbone.width, backbone.heads) == (64, 64, 128, 4)
    assert backbone.describe()["fingerprint"] == backbone.fingerprint


def change_one_weight(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if name.endswith("head.probe"))
    weights[name][0, 0, 0] += 1e-3
    save_file(weights, path, metadata={"format": "pt"})


def change_filter(folder: Path) -> None:
    write_processor(folder, resample=2)


def change_epsilon(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"layer_norm_eps": 1e-5}))


@pytest.mark.parametrize("change", [change_one_weight, change_filter, change_epsilon])
def test_the_fingerprint_tells_other_weights_preprocessors_and_architectures(
    vision_folder: Path, change: Callable[[Path], None]
) -> None:
    before = load_backbone(str(vision_folder)).fingerprint
    assert load_backbone(str(vision_folder)).fingerprint == before
    change(vision_folder)
    assert load_backbone(str(vision_folder)).fingerprint != before


def test_the_fingerprint_does_not_depend_on_the_place(vision_folder: Path, tmp_path: Path) -> None:
    before = load_backbone(str(vision_folder)).fingerprint
    assert load_backbone(str(vision_folder.rename(tmp_path / "elsewhere"))).fingerprint == before


def test_a_relative_folder_is_remembered_as_an_absolute_one(
    vision_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(vision_folder.parent)
    assert load_backbone("./vision").spec == str(vision_folder.resolve())


def test_loading_leaves_the_random_state_alone(vision_folder: Path) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    load_backbone(str(vision_folder))
    assert torch.equal(torch.rand(3), expected)


def set_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:3000])


def drop_a_tensor(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    del weights[next(name for name in weights if name.endswith("post_layernorm.weight"))]
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "holds no model: config.json is missing; expected config.json, model"),
        (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda f: (f / "model.safetensors").unlink(), "its weights cannot be read.*model.safetensors"),
        (lambda f: (f / "preprocessor_config.json").unlink(), "preprocessor_config.json is missing"),
        (cut_weights, "its weights cannot be read"),
        (drop_a_tensor, "its weights lack 1 tensor.s. of the vision model.*post_layernorm.weight"),
        (lambda f: set_config(f, model_type="vit"), "its weights lack .* of the vision model, e.g. embeddings"),
        (lambda f: set_config(f, model_type="siglip2"), "NaFlex"),
        (lambda f: set_config(f, vision_use_head=False), "has no attention-pooling head"),
        (lambda f: set_config(f, hidden_act="relu"), "activation relu; expected gelu_pytorch_tanh"),
        (lambda f: write_processor(f, size={"height": 16, "width": 16}), "resizes to .*its model reads 32 x 32"),
        (lambda f: write_processor(f, do_resize=False), "skips do_resize"),
    ],
)
def test_a_folder_without_a_usable_model_is_refused(
    vision_folder: Path, spoil: Callable[[Path], Any], message: str
) -> None:
    spoil(vision_folder)
    with pytest.raises(UsageError, match=message):
        load_backbone(str(vision_folder))


def test_a_text_model_is_refused(tmp_path: Path) -> None:
    text = SIZES | {"vocab_size": 40, "max_position_embeddings": 8}
    SiglipModel(SiglipConfig(vision_config=VISION, text_config=text)).text_model.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="siglip_text_model model, which AutoModel of this version"):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize("spec", ["/no/such/folder", "./nothing", "a/b/c", " "])
def test_a_path_that_is_not_there_is_refused(spec: str) -> None:
    with pytest.raises(UsageError, match="there is no such folder"):
        load_backbone(spec)


def test_a_hub_that_cannot_be_reached_is_said_with_a_way_round_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match=r"config.json could not be fetched from the hub \(revision main\)") as caught:
        load_backbone("nobody/no-such-model-0", revision="main")
    assert "hf download nobody/no-such-model-0 --local-dir FOLDER" in str(caught.value)


def test_a_model_whose_terms_are_not_accepted_yet_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, name: str, **options: Any) -> None:
        raise OSError("You are trying to access a gated repo.") from GatedRepoError.__new__(GatedRepoError)

    monkeypatch.setattr("transformers.utils.cached_file", refuse)
    with pytest.raises(UsageError, match=r"config.json could not be fetched.*terms to be accepted") as caught:
        load_backbone("facebook/dinov3-vitl16-pretrain-lvd1689m")
    assert "https://huggingface.co/facebook/dinov3-vitl16-pretrain-lvd1689m" in str(caught.value)
    assert "hf auth login" in str(caught.value)


def test_auto_precision_is_one_the_device_is_fast_in() -> None:
    assert resolve_dtype("auto", "cuda") == "bfloat16"
    assert resolve_dtype("auto", "cpu") in ("float32", "bfloat16")
    assert resolve_dtype("float16", "cpu") == "float16"
