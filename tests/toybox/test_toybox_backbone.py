"""The shipped weights load, are what they say, and have learned something."""

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoImageProcessor, SiglipVisionModel

from nearid_ray.identifiers import seed_of
from nearid_ray.toybox.backbone import load_toybox_backbone, random_backbone, toybox_config, weights_folder
from nearid_ray.toybox.pretrain_model import to_pixels
from nearid_ray.toybox.render import identity_from_seed, render, scenes_for


@pytest.fixture(scope="module")
def backbone():
    return load_toybox_backbone()


@pytest.fixture(scope="module")
def views_NVHWC():
    """Two views each of 40 identities."""
    images = []
    for index in range(40):
        seed = seed_of("toybox-backbone-test", index)
        images.append([render(identity_from_seed(seed), scene)[0] for scene in scenes_for(seed, 2)])
    return torch.from_numpy(np.array(images))


def _same_more_alike_than_others(model: torch.nn.Module, views_NVHWC: torch.Tensor) -> float:
    """Share of (view, other identity) trials in which the view's own second view is the more similar one."""
    with torch.no_grad():
        pooled_ND = model(to_pixels(views_NVHWC.flatten(0, 1))).pooler_output
    embedding_NVD = torch.nn.functional.normalize(pooled_ND, dim=1).unflatten(0, (-1, 2))
    similarity_NN = embedding_NVD[:, 0] @ embedding_NVD[:, 1].T
    trials = [
        bool(similarity_NN[own, own] > similarity_NN[own, other])
        for own in range(len(similarity_NN))
        for other in range(len(similarity_NN))
        if own != other
    ]
    return sum(trials) / len(trials)


def test_the_backbone_is_in_float32_and_evaluation_mode(backbone):
    assert not backbone.training
    assert {parameter.dtype for parameter in backbone.parameters()} == {torch.float32}


def test_the_backbone_equals_a_plain_transformers_load(backbone, views_NVHWC):
    plain = SiglipVisionModel.from_pretrained(weights_folder(), dtype=torch.float32).eval()
    assert plain.state_dict().keys() == backbone.state_dict().keys()
    for name, value in plain.state_dict().items():
        assert torch.equal(value, backbone.state_dict()[name]), name
    pixels = to_pixels(views_NVHWC[:4, 0])
    with torch.no_grad():
        assert torch.equal(plain(pixels).pooler_output, backbone(pixels).pooler_output)


def test_the_shipped_folder_is_small_and_holds_float16(backbone):
    folder = weights_folder()
    for name in ("README.md", "config.json", "model.safetensors", "preprocessor_config.json"):
        assert (folder / name).is_file(), name
    assert sum(path.stat().st_size for path in folder.iterdir()) < 5 * 1024**2
    with safe_open(folder / "model.safetensors", "pt") as tensors:
        assert {tensors.get_tensor(name).dtype for name in tensors.keys()} == {torch.float16}  # noqa: SIM118


def test_the_architecture_is_the_documented_one(backbone):
    expected = toybox_config()
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        assert getattr(backbone.config, name) == getattr(expected, name)
    assert (backbone.config.image_size, backbone.config.patch_size) == (64, 8)
    assert 0.9e6 < sum(parameter.numel() for parameter in backbone.parameters()) < 1.2e6


def test_the_processor_prepares_images_as_pretraining_did(views_NVHWC):
    processor = AutoImageProcessor.from_pretrained(weights_folder())
    image_HWC = views_NVHWC[0, 0].numpy()
    prepared = processor(images=image_HWC, return_tensors="pt").pixel_values
    torch.testing.assert_close(prepared, to_pixels(views_NVHWC[:1, 0]), atol=1e-5, rtol=0)


def test_the_shipped_backbone_tells_identities_apart_and_a_random_one_does_not(backbone, views_NVHWC):
    assert _same_more_alike_than_others(backbone, views_NVHWC) > 0.9
    assert _same_more_alike_than_others(random_backbone(0).eval(), views_NVHWC) < 0.8
