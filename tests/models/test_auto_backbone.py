"""Any image model of transformers gives the embedding that transformers' own classes give, or is refused in words."""

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from transformers.models.beit.image_processing_pil_beit import BeitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from nearid_ray.errors import UsageError
from nearid_ray.models.backbone import load_backbone

SIDE_PX = 32
SQUARE = {"height": SIDE_PX, "width": SIDE_PX}
VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
TEXT = VIT | {"vocab_size": 40, "max_position_embeddings": 8}
SEEN = VIT | {"image_size": SIDE_PX, "patch_size": 8}


@dataclass(frozen=True)
class Kind:
    model: Callable[[], Any]
    expected: Callable[[Any, Tensor], Tensor]
    taken: str
    processor: Callable[[], Any] = lambda: ViTImageProcessorPil(size=SQUARE)


def pooler(model: Any, pixels: Tensor) -> Tensor:
    return model(pixel_values=pixels).pooler_output


KINDS = {
    "vit": Kind(lambda: transformers.ViTModel(transformers.ViTConfig(**SEEN)), pooler, "pooler_output"),
    "vit without pooler": Kind(
        lambda: transformers.ViTModel(transformers.ViTConfig(**SEEN), add_pooling_layer=False),
        lambda model, pixels: torch.stack([t.sum(0) / len(t) for t in model(pixel_values=pixels).last_hidden_state]),
        "mean of last_hidden_state",
    ),
    "beit": Kind(
        lambda: transformers.BeitModel(transformers.BeitConfig(**SEEN, vocab_size=40)),
        pooler,
        "pooler_output",
        lambda: BeitImageProcessorPil(size=SQUARE, do_center_crop=False),
    ),
    "convnext": Kind(
        lambda: transformers.ConvNextModel(
            transformers.ConvNextConfig(hidden_sizes=[8, 16, 16, 24], depths=[1, 1, 1, 1], image_size=SIDE_PX)
        ),
        pooler,
        "pooler_output",
        lambda: ConvNextImageProcessorPil(size={"shortest_edge": SIDE_PX}, crop_pct=0.875),
    ),
    "swin": Kind(
        lambda: transformers.SwinModel(
            transformers.SwinConfig(
                image_size=SIDE_PX, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4
            )
        ),
        pooler,
        "pooler_output",
    ),
    "resnet": Kind(
        lambda: transformers.ResNetModel(
            transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
        ),
        lambda model, pixels: model(pixel_values=pixels).last_hidden_state.mean(dim=(2, 3)),
        "pooler_output",
    ),
    "aimv2": Kind(
        lambda: transformers.Aimv2VisionModel(transformers.Aimv2VisionConfig(**SEEN, use_head=False)),
        lambda model, pixels: model(pixel_values=pixels).last_hidden_state.mean(dim=1),
        "mean of last_hidden_state",
    ),
    "metaclip": Kind(
        lambda: transformers.MetaClip2Model(
            transformers.MetaClip2Config(text_config=TEXT | {"eos_token_id": 3}, vision_config=SEEN, projection_dim=20)
        ),
        lambda model, pixels: model.get_image_features(pixel_values=pixels).pooler_output,
        "get_image_features",
        lambda: CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size=SQUARE),
    ),
}


def randomised(model: torch.nn.Module, seed: int = 1) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def saved(folder: Path, kind: str, seed: int = 1) -> Any:
    model = randomised(KINDS[kind].model(), seed)
    model.save_pretrained(folder)
    KINDS[kind].processor().save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, shape, dtype=np.uint8) for shape in ((32, 32, 3), (40, 77, 3), (61, 33, 3))]


@pytest.mark.parametrize("kind", KINDS)
def test_the_embedding_is_that_of_transformers_and_says_what_it_is(
    tmp_path: Path, pictures: list[np.ndarray], kind: str
) -> None:
    model = saved(tmp_path, kind)
    backbone = load_backbone(str(tmp_path), dtype="float32")
    processor = KINDS[kind].processor()
    pixels = torch.cat([processor(images=[picture], return_tensors="pt")["pixel_values"] for picture in pictures])
    torch.testing.assert_close(backbone.preprocess(pictures), pixels, rtol=0, atol=0.51 / 255 / 0.2)
    with torch.inference_mode():
        expected = KINDS[kind].expected(model, backbone.preprocess(pictures))
        embedding = backbone.pooling()(backbone.tokens_of(backbone.preprocess(pictures)))
    torch.testing.assert_close(embedding, expected, rtol=1e-4, atol=1e-5)
    described = json.loads(json.dumps(backbone.describe()))
    assert described["embedding"] == KINDS[kind].taken
    assert (described["pooled_width"], described["grid"]) == (expected.shape[1], [0, 0])
    assert load_backbone(str(tmp_path)).fingerprint == backbone.fingerprint
    # Pictures are resized on other machines than the model's.
    again = pickle.loads(pickle.dumps(backbone.pixels))
    assert np.array_equal(again.resized(pictures[1]), backbone.pixels.resized(pictures[1]))


def test_the_fingerprint_follows_weights_preprocessor_and_what_is_taken(tmp_path: Path) -> None:
    saved(tmp_path / "one", "vit")
    saved(tmp_path / "other", "vit", seed=2)
    saved(tmp_path / "bare", "vit without pooler")
    names = {load_backbone(str(tmp_path / name)).fingerprint for name in ("one", "other", "bare")}
    path = tmp_path / "one" / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"resample": 3}))
    assert len(names | {load_backbone(str(tmp_path / "one")).fingerprint}) == 4


def test_a_pooler_that_the_files_lack_is_not_drawn_at_random(tmp_path: Path) -> None:
    saved(tmp_path, "vit without pooler")
    state = torch.random.get_rng_state()
    backbones = [load_backbone(str(tmp_path)) for _ in range(2)]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert {b.describe()["embedding"] for b in backbones} == {"mean of last_hidden_state"}
    assert backbones[0].fingerprint == backbones[1].fingerprint


def test_tokens_are_refused_where_there_are_none(tmp_path: Path) -> None:
    saved(tmp_path, "convnext")
    with pytest.raises(UsageError, match=r"one embedding of a picture \(pooler_output\) and no tokens, which training"):
        load_backbone(str(tmp_path)).check_tokens("training")


def write(folder: Path, model: Any, processor: Any = None, **config: Any) -> None:
    model.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


def vit(**config: Any) -> Callable[[Path], None]:
    return lambda folder: write(folder, randomised(KINDS["vit"].model()), KINDS["vit"].processor(), **config)


def masked_at_random(folder: Path) -> None:
    sizes = SEEN | {"decoder_hidden_size": 16, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 16}
    model = transformers.ViTMAEModel(transformers.ViTMAEConfig(**sizes))
    write(folder, randomised(model), KINDS["vit"].processor())


def text_alone(folder: Path) -> None:
    write(folder, transformers.BertModel(transformers.BertConfig(**TEXT)))


def text_with_a_processor(folder: Path) -> None:
    write(folder, transformers.BertModel(transformers.BertConfig(**TEXT)), KINDS["vit"].processor())


def without_weights(folder: Path) -> None:
    vit()(folder)
    (folder / "model.safetensors").unlink()


def of_varying_shape(folder: Path) -> None:
    # Keeps the aspect, cuts nothing.
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE_PX}, do_center_crop=False)
    write(folder, randomised(KINDS["vit"].model()), processor)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (text_alone, "is a bert model, which does not read pictures"),
        (text_with_a_processor, "is a bert model, which gives no image embedding"),
        (masked_at_random, "is a vit_mae model whose embedding of one picture is another each time"),
        (vit(num_hidden_layers=3), "its weights lack .* tensor"),
        (vit(model_type="mine", auto_map={"AutoModel": "m.M"}), "Python code of its own.*--trust-remote-code"),
        (vit(model_type="mine"), "is a mine model, which AutoModel of this version of transformers does not load"),
        (without_weights, "its weights cannot be read"),
        (of_varying_shape, "its preprocessor cannot be used: it gives pictures of"),
    ],
)
def test_what_cannot_be_used_is_refused_in_words(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    make(tmp_path)
    with pytest.raises(UsageError, match=message):
        load_backbone(str(tmp_path))


def test_code_of_the_models_own_is_run_on_request_alone(tmp_path: Path, pictures: list[np.ndarray]) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "from types import SimpleNamespace\n"
        "from transformers import PreTrainedConfig, PreTrainedModel\n"
        "class MineConfig(PreTrainedConfig):\n"
        "    model_type = 'mine'\n"
        "class Mine(PreTrainedModel):\n"
        "    config_class = MineConfig\n"
        "    main_input_name = 'pixel_values'\n"
        "    def __init__(self, config):\n"
        "        super().__init__(config)\n"
        "        self.scale = torch.nn.Parameter(torch.ones(3))\n"
        "        self.post_init()\n"
        "    def forward(self, pixel_values):\n"
        "        return SimpleNamespace(pooler_output=pixel_values.mean((2, 3)) * self.scale)\n"
    )
    from safetensors.torch import save_file

    save_file({"scale": torch.full((3,), 2.0)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    auto_map = {"AutoConfig": "mine.MineConfig", "AutoModel": "mine.Mine"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": auto_map}))
    KINDS["vit"].processor().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="--trust-remote-code"):
        load_backbone(str(tmp_path))
    backbone = load_backbone(str(tmp_path), trust_remote_code=True)
    pixels = backbone.preprocess(pictures)
    torch.testing.assert_close(backbone.pooling()(backbone.tokens_of(pixels)), 2 * pixels.mean((2, 3)))
