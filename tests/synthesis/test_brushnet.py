"""BrushNet on a stock UNet, against passes written out block by block."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.nn.functional import interpolate, silu

from nearid_ray.synthesis.engines.brushnet import BrushNet, adding, feature_places
from nearid_ray.synthesis.engines.powerpaint_weights import published_name
from tests.synthesis.tiny import parts, powerpaint


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return parts.sd15_unet()


@pytest.fixture(scope="module")
def brushnet(unet):
    return powerpaint.brushnet(unet.config)


def inputs(side: tuple[int, int] = (8, 8), rows: int = 2):
    """Noisy latents, timestep, text of the UNet, text of the BrushNet, condition."""
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape):
        return torch.randn(shape, generator=generator)

    text = drawn(rows, 77, parts.TEXT_WIDTH), drawn(rows, 77, parts.TEXT_WIDTH)
    return drawn(rows, 4, *side), torch.tensor(500), *text, drawn(rows, 5, *side)


def slow_pass(unet, latents, timestep, text, features=None):
    """(head's input, every output on the way): a UNet's blocks written out, with features added by hand."""
    waiting = list(features or [])
    seen = []

    def felt(hidden):
        seen.append(hidden)
        return hidden + waiting.pop(0) if features else hidden

    time = unet.time_embedding(unet.time_proj(timestep.expand(len(latents))))
    hidden = unet.conv_in(latents)
    skips = [hidden]
    hidden = felt(hidden)
    for block in unet.down_blocks:
        for place, resnet in enumerate(block.resnets):
            hidden = resnet(hidden, time)
            if hasattr(block, "attentions"):
                hidden = block.attentions[place](hidden, encoder_hidden_states=text).sample
            hidden = felt(hidden)
            skips.append(hidden)
        if block.downsamplers:
            hidden = felt(block.downsamplers[0].conv(hidden))
            skips.append(hidden)
    hidden = unet.mid_block.resnets[0](hidden, time)
    hidden = unet.mid_block.attentions[0](hidden, encoder_hidden_states=text).sample
    hidden = felt(unet.mid_block.resnets[1](hidden, time))
    for block in unet.up_blocks:
        for place, resnet in enumerate(block.resnets):
            hidden = resnet(torch.cat([hidden, skips.pop()], dim=1), time)
            if hasattr(block, "attentions"):
                hidden = block.attentions[place](hidden, encoder_hidden_states=text).sample
            hidden = felt(hidden)
        if block.upsamplers:
            hidden = interpolate(hidden, size=skips[-1].shape[-2:], mode="nearest")
            hidden = felt(block.upsamplers[0].conv(hidden))
    assert not waiting and not skips
    return hidden, seen


def slow_features(brushnet, latents, timestep, text, condition):
    _, seen = slow_pass(brushnet.unet, torch.cat([latents, condition], dim=1), timestep, text)
    convs = [*brushnet.brushnet_down_blocks, brushnet.brushnet_mid_block, *brushnet.brushnet_up_blocks]
    assert len(convs) == len(seen) == 28
    return [conv(hidden) for conv, hidden in zip(convs, seen, strict=True)]


def slow_noise(unet, latents, timestep, text, features):
    hidden, _ = slow_pass(unet, latents, timestep, text, features)
    return unet.conv_out(silu(unet.conv_norm_out(hidden)))


@pytest.mark.parametrize("side", [(8, 8), (9, 10)], ids=["multiple of 8 cells", "odd sides"])
@torch.no_grad()
def test_features_and_noise_equal_a_pass_written_out_by_hand(unet, brushnet, side):
    latents, timestep, text, task, condition = inputs(side)
    features = brushnet(latents, timestep, task, condition)
    expected = slow_features(brushnet, latents, timestep, task, condition)
    for feature, slow in zip(features, expected, strict=True):
        torch.testing.assert_close(feature, slow, rtol=1e-4, atol=1e-5)
    with adding(unet, features):
        noise = unet(latents, timestep, text).sample
    torch.testing.assert_close(noise, slow_noise(unet, latents, timestep, text, expected), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_every_single_feature_matters(unet, brushnet):
    latents, timestep, text, task, condition = inputs(rows=1)
    features = brushnet(latents, timestep, task, condition)
    with adding(unet, features):
        whole = unet(latents, timestep, text).sample
    for left_out in range(len(features)):
        others = [one * (place != left_out) for place, one in enumerate(features)]
        with adding(unet, others):
            assert (unet(latents, timestep, text).sample - whole).abs().max() > 1e-5, left_out


@torch.no_grad()
def test_a_fresh_brushnet_leaves_the_unet_as_it_is_to_the_bit(unet):
    latents, timestep, text, task, condition = inputs()
    features = BrushNet(dict(unet.config))(latents, timestep, task, condition)
    assert not any(feature.any() for feature in features)
    plain = unet(latents, timestep, text).sample
    with adding(unet, features):
        assert torch.equal(unet(latents, timestep, text).sample, plain)


@torch.no_grad()
def test_nothing_stays_behind_in_the_unet_also_after_an_error(unet, brushnet):
    latents, timestep, text, task, condition = inputs()
    plain = unet(latents, timestep, text).sample
    features = brushnet(latents, timestep, task, condition)
    with pytest.raises(RuntimeError), adding(unet, [feature[:, :, :1] for feature in features]):
        unet(latents[:, :3], timestep, text)
    with pytest.raises(RuntimeError):
        brushnet(latents[:, :3], timestep, task, condition)
    assert torch.equal(unet(latents, timestep, text).sample, plain)
    modules = [*unet.modules(), *brushnet.modules()]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def test_features_of_another_number_than_places_are_refused(unet):
    with pytest.raises(ValueError, match="5 features for a UNet with 28 places"), adding(unet, [torch.zeros(1)] * 5):
        pass
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in unet.modules())


def test_at_full_size_names_and_shapes_are_those_of_the_published_file():
    with torch.device("meta"):
        base = UNet2DConditionModel(cross_attention_dim=768, sample_size=64)  # Stable Diffusion 1.5
        tensors = BrushNet(dict(base.config)).state_dict()
    ours = {published_name(name): tuple(value.shape) for name, value in tensors.items()}
    published = {
        name: tuple(value.shape)
        for name, value in base.state_dict().items()
        if not name.startswith(("conv_in.", "conv_norm_out.", "conv_out."))
    }
    published |= {"conv_in_condition.weight": (320, 9, 3, 3), "conv_in_condition.bias": (320,)}
    down = [320, 320, 320, 320, 640, 640, 640, 1280, 1280, 1280, 1280, 1280]
    up = [1280] * 4 + [1280] * 4 + [640] * 4 + [320] * 3
    convs = {f"brushnet_down_blocks.{place}": width for place, width in enumerate(down)}
    convs |= {f"brushnet_up_blocks.{place}": width for place, width in enumerate(up)}
    convs |= {"brushnet_mid_block": 1280}
    for name, width in convs.items():
        published |= {f"{name}.weight": (width, width, 1, 1), f"{name}.bias": (width,)}
    assert ours == published
    assert len(ours) == 738
    assert round(sum(value.numel() for value in tensors.values()) * 4 / 1e9, 2) == 3.54  # GB, as the file's page says


def test_places_are_in_the_order_in_which_they_run(unet):
    latents, timestep, text, *_ = inputs()
    ran = []
    places = feature_places(unet)
    hooks = [place.register_forward_hook(lambda module, *_: ran.append(module)) for place in places]
    with torch.no_grad():
        unet(latents, timestep, text)
    for hook in hooks:
        hook.remove()
    assert [id(module) for module in ran] == [id(place) for place in places]
    assert len(places) == 27
