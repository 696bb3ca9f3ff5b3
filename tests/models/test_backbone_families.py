"""Every supported family gives the tokens, pooled embedding and pixels of transformers' own classes."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from nearid_ray.errors import UsageError
from nearid_ray.models.backbone import load_backbone, pooling_of
from nearid_ray.models.head import AttentionPoolingHead

SIDE_PX, PATCH_PX, WIDTH, REGISTERS = 32, 8, 32, 3
SIZES = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = SIZES | {"intermediate_size": 48, "image_size": SIDE_PX, "patch_size": PATCH_PX}
TEXT = SIZES | {"intermediate_size": 48, "vocab_size": 40, "max_position_embeddings": 8}
DINO = SIZES | {"image_size": SIDE_PX, "patch_size": PATCH_PX}
PIXEL_VALUES = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@dataclass(frozen=True)
class Family:
    """A tiny random model of one class, and what it is expected to give."""

    model: Callable[[], Any]
    expected: Callable[[Any, Tensor], tuple[Tensor, Tensor]]
    """(tokens, pooled embedding) by transformers alone."""
    heads: tuple[int, int] = (4, 48)
    """Attention heads and MLP width of the head that training starts from."""
    own_head: bool = False


def of_siglip(model: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    outputs = getattr(model, "vision_model", model)(pixel_values=pixels)
    return outputs.last_hidden_state, outputs.pooler_output


def of_clip(model: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    vision = getattr(model, "vision_model", model)
    outputs = vision(pixel_values=pixels)
    tokens = vision.post_layernorm(outputs.last_hidden_state)
    if isinstance(model, transformers.CLIPModel):
        return tokens, model.get_image_features(pixel_values=pixels).pooler_output
    if isinstance(model, transformers.CLIPVisionModelWithProjection):
        return tokens, model(pixel_values=pixels).image_embeds
    return tokens, outputs.pooler_output


def of_dino(model: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    outputs = model(pixel_values=pixels)
    registers = getattr(model.config, "num_register_tokens", 0)
    kept = [0, *range(1 + registers, outputs.last_hidden_state.shape[1])]
    return outputs.last_hidden_state[:, kept], outputs.pooler_output


def clip(**changes: Any) -> Any:
    return transformers.CLIPModel(
        transformers.CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=20, **changes)
    )


FAMILIES = {
    "siglip": Family(
        lambda: transformers.SiglipModel(transformers.SiglipConfig(vision_config=VISION, text_config=TEXT)),
        of_siglip,
        own_head=True,
    ),
    "siglip vision": Family(
        lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**VISION)), of_siglip, own_head=True
    ),
    "clip": Family(clip, of_clip),
    "clip vision": Family(lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION)), of_clip),
    "clip vision with projection": Family(
        lambda: transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**VISION, projection_dim=24)),
        of_clip,
    ),
    "dinov2": Family(lambda: transformers.Dinov2Model(transformers.Dinov2Config(**DINO)), of_dino, (4, 128)),
    "dinov2 swiglu": Family(
        lambda: transformers.Dinov2Model(transformers.Dinov2Config(**DINO, use_swiglu_ffn=True)), of_dino, (4, 128)
    ),
    "dinov2 with registers": Family(
        lambda: transformers.Dinov2WithRegistersModel(
            transformers.Dinov2WithRegistersConfig(**DINO, num_register_tokens=REGISTERS)
        ),
        of_dino,
        (4, 128),
    ),
    "dinov3": Family(
        lambda: transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**VISION, num_register_tokens=REGISTERS)),
        of_dino,
    ),
    "dinov3 gated": Family(
        lambda: transformers.DINOv3ViTModel(
            transformers.DINOv3ViTConfig(**VISION, num_register_tokens=0, use_gated_mlp=True)
        ),
        of_dino,
    ),
}


def randomised(model: torch.nn.Module, seed: int = 1) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def write_processor(folder: Path, processor: Any = None, **changes: Any) -> None:
    size = {"height": SIDE_PX, "width": SIDE_PX}
    (processor or SiglipImageProcessorPil(size=size, do_center_crop=False)).save_pretrained(folder)
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def saved(folder: Path, family: str, seed: int = 1) -> Any:
    model = randomised(FAMILIES[family].model(), seed)
    model.save_pretrained(folder)
    write_processor(folder)
    return model


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    shapes = ((32, 32, 3), (40, 77, 3), (61, 33, 3), (19, 12, 3))
    return [generator.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_and_pooled_embedding_are_those_of_transformers(
    tmp_path: Path, pictures: list[np.ndarray], family: str
) -> None:
    model = saved(tmp_path, family)
    backbone = load_backbone(str(tmp_path), dtype="float32")
    pixels = backbone.preprocess(pictures)
    tokens = backbone.tokens_of(pixels)
    with torch.inference_mode():
        expected_tokens, expected_pooled = FAMILIES[family].expected(model, pixels)
        pooled = backbone.pooling()(tokens)
    torch.testing.assert_close(tokens, expected_tokens)
    torch.testing.assert_close(pooled, expected_pooled)
    assert tuple(tokens.shape) == (len(pictures), backbone.tokens, backbone.width)
    assert backbone.tokens == backbone.prefix_tokens + backbone.grid[0] * backbone.grid[1]
    assert pooled.shape[1] == backbone.pooled_width
    # A reader of the tokens, far from the model, pools them the same way.
    described = json.loads(json.dumps(backbone.describe()))
    assert torch.equal(pooling_of(described, backbone.pooling_state())(tokens), pooled)


@pytest.mark.parametrize("family", FAMILIES)
def test_training_starts_from_the_models_own_head_or_a_new_one_of_its_sizes(tmp_path: Path, family: str) -> None:
    saved(tmp_path, family)
    backbone = load_backbone(str(tmp_path))
    heads, mlp_width = FAMILIES[family].heads
    assert (backbone.heads, backbone.mlp_width, backbone.width) == (heads, mlp_width, WIDTH)
    assert backbone.has_own_head == FAMILIES[family].own_head
    fresh = AttentionPoolingHead.initialised(WIDTH, heads, mlp_width, backbone.layer_norm_eps, seed=0).state_dict()
    same = all(torch.equal(value, fresh[name]) for name, value in backbone.head().state_dict().items())
    assert same != backbone.has_own_head


@pytest.mark.parametrize("family", FAMILIES)
def test_the_fingerprint_follows_weights_and_not_the_draw_of_what_they_lack(tmp_path: Path, family: str) -> None:
    saved(tmp_path / "one", family)
    saved(tmp_path / "other", family, seed=2)
    torch.manual_seed(0)
    first = load_backbone(str(tmp_path / "one"))
    state = torch.random.get_rng_state()
    again = load_backbone(str(tmp_path / "one"))
    assert torch.equal(torch.random.get_rng_state(), state)
    other = load_backbone(str(tmp_path / "other"))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert first.tower_fingerprint == again.tower_fingerprint != other.tower_fingerprint


def test_all_families_have_different_fingerprints(tmp_path: Path) -> None:
    for family in FAMILIES:
        saved(tmp_path / family, family)
    assert len({load_backbone(str(tmp_path / family)).fingerprint for family in FAMILIES}) == len(FAMILIES)


def test_a_clip_saved_by_older_transformers_is_read(tmp_path: Path, pictures: list[np.ndarray]) -> None:
    saved(tmp_path, "clip vision")
    expected = load_backbone(str(tmp_path), dtype="float32")
    path = tmp_path / "model.safetensors"
    kept = load_file(path)
    save_file({f"vision_model.{name.removeprefix('vision_model.')}": value for name, value in kept.items()}, path)
    again = load_backbone(str(tmp_path), dtype="float32")
    assert again.fingerprint == expected.fingerprint


def test_a_full_clip_whose_vision_part_does_not_say_the_projections_width_is_read(tmp_path: Path) -> None:
    saved(tmp_path, "clip")
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["vision_config"].pop("projection_dim", None)
    path.write_text(json.dumps(config))
    assert load_backbone(str(tmp_path)).pooled_width == 20


PROCESSORS = {
    "shorter side and cut": CLIPImageProcessorPil(
        size={"shortest_edge": 40}, crop_size={"height": SIDE_PX, "width": SIDE_PX}
    ),
    "shorter side, cut along the longer": CLIPImageProcessorPil(
        size={"shortest_edge": SIDE_PX}, crop_size={"height": SIDE_PX, "width": SIDE_PX}, resample=2
    ),
    "square and cut": BitImageProcessorPil(
        size={"height": 45, "width": 45}, crop_size={"height": SIDE_PX, "width": SIDE_PX}
    ),
    "square": SiglipImageProcessorPil(size={"height": SIDE_PX, "width": SIDE_PX}),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_the_digits_of_transformers_pillow_processors(
    tmp_path: Path, pictures: list[np.ndarray], name: str
) -> None:
    saved(tmp_path, "clip vision")
    write_processor(tmp_path, PROCESSORS[name])
    expected = [PROCESSORS[name](images=picture, return_tensors="pt")["pixel_values"] for picture in pictures]
    assert torch.equal(load_backbone(str(tmp_path)).preprocess(pictures), torch.cat(expected))


def test_an_old_processor_file_is_read_with_its_familys_defaults(tmp_path: Path, pictures: list[np.ndarray]) -> None:
    saved(tmp_path, "clip vision")
    old = {"feature_extractor_type": "CLIPFeatureExtractor", "size": SIDE_PX, "crop_size": SIDE_PX, "do_resize": True}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE_PX}, crop_size={"height": SIDE_PX, "width": SIDE_PX})
    expected = [processor(images=picture, return_tensors="pt")["pixel_values"] for picture in pictures]
    assert torch.equal(load_backbone(str(tmp_path)).preprocess(pictures), torch.cat(expected))


def test_dinov3_pixels_are_within_a_grey_level_of_resized_floating_point_numbers(
    tmp_path: Path, pictures: list[np.ndarray]
) -> None:
    saved(tmp_path, "dinov3")
    write_processor(tmp_path, image_mean=PIXEL_VALUES["mean"], image_std=PIXEL_VALUES["std"], resample=2)
    pixels = load_backbone(str(tmp_path)).preprocess(pictures)
    mean, std = (torch.tensor(PIXEL_VALUES[name]).view(3, 1, 1) for name in ("mean", "std"))
    for mine, picture in zip(pixels, pictures, strict=True):
        plain = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
        resized = torch.nn.functional.interpolate(plain, (SIDE_PX, SIDE_PX), mode="bilinear", antialias=True)[0]
        assert ((mine * std + mean - resized).abs() * 255).max() < 1.01


@pytest.mark.parametrize("family", ["dinov2", "dinov2 with registers", "dinov3"])
def test_dino_reads_other_sides(tmp_path: Path, pictures: list[np.ndarray], family: str) -> None:
    model = saved(tmp_path, family)
    backbone = load_backbone(str(tmp_path), dtype="float32", image_px=48)
    pixels = backbone.preprocess(pictures)
    assert tuple(pixels.shape) == (len(pictures), 3, 48, 48) and backbone.grid == (6, 6) and backbone.tokens == 37
    with torch.inference_mode():
        torch.testing.assert_close(backbone.tokens_of(pixels), FAMILIES[family].expected(model, pixels)[0])
    assert backbone.fingerprint != load_backbone(str(tmp_path)).fingerprint
    with pytest.raises(UsageError, match=r"50 px is no multiple of its patch of 8 px; give image_px, e.g. 48"):
        load_backbone(str(tmp_path), image_px=50)


def test_other_families_read_their_own_side_alone(tmp_path: Path) -> None:
    saved(tmp_path, "clip")
    assert load_backbone(str(tmp_path), image_px=SIDE_PX).image_px == SIDE_PX
    with pytest.raises(UsageError, match=r"image_px is 48, but .* reads 32 px alone; only DINOv2 and DINOv3"):
        load_backbone(str(tmp_path), image_px=48)


def spoilt(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("family", "spoil", "message"),
    [
        ("clip", lambda f: write_processor(f, do_center_crop=True, crop_size={"height": 64, "width": 64}), "cuts out"),
        ("clip", lambda f: write_processor(f, size={"shortest_edge": 32}, do_center_crop=False), "shortest_edge"),
        ("clip", lambda f: write_processor(f, size={"height": 32, "width": 48}), "its model reads 32 x 32"),
        ("dinov2", lambda f: write_processor(f, size={"longest_edge": 32}), "expected one that gives squares"),
        ("dinov2", lambda f: write_processor(f, size={"height": 30, "width": 30}), "30 px is no multiple of its patch"),
        ("dinov3", lambda f: (f / "model.safetensors").unlink(), "its weights cannot be read.*model.safetensors"),
        ("dinov2", lambda f: spoilt(f, num_hidden_layers=3), "its weights lack .* tensor.*encoder.layer.2"),
        ("dinov3", lambda f: spoilt(f, model_type="dinov9"), "dinov9 model, which AutoModel of this version"),
        ("clip", lambda f: spoilt(f, model_type="siglip2"), "NaFlex"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(
    tmp_path: Path, family: str, spoil: Callable[[Path], Any], message: str
) -> None:
    saved(tmp_path, family)
    spoil(tmp_path)
    with pytest.raises(UsageError, match=message):
        load_backbone(str(tmp_path))


def test_a_clip_text_model_is_refused(tmp_path: Path) -> None:
    transformers.CLIPTextModel(transformers.CLIPTextConfig(**TEXT)).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="clip_text_model model, which does not read pictures"):
        load_backbone(str(tmp_path))


def test_weights_of_another_pooling_are_refused() -> None:
    with pytest.raises(UsageError, match="not those of a class token's projection: probe"):
        pooling_of({"pooling": "cls"}, {"probe": torch.zeros(1)})
