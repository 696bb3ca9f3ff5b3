"""Qwen-Image on tiny weights, taken apart as they are published: base, ControlNet and LoRA are loaded and heard."""

import math
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import QwenImageControlNetModel
from safetensors.torch import load_file, save_file

from nearid_ray.errors import UsageError
from nearid_ray.synthesis.engines.qwen import own_noise
from nearid_ray.synthesis.engines.qwen_image import LORA_FILE, SETTINGS, QwenImageEngine
from tests.synthesis.tiny import parts, pipelines
from tests.synthesis.tiny.engines import difference, object_mask, row, view
from tests.synthesis.tiny.qwen import as_lightning, publish

NAME = "qwen-image-512"


@pytest.fixture(scope="module")
def published(tiny_weights, tmp_path_factory):
    return publish(tiny_weights("qwen-image"), tmp_path_factory.mktemp("published"))


@pytest.fixture
def settings(published):
    """`settings(steps=3, lora="")`: the first preset on tiny weights; options by their names."""

    def made(**changes):
        options = {"controlnet": str(published.controlnet), "lora": str(published.lora)}
        options |= {name: changes.pop(name) for name in list(changes) if name in SETTINGS[0].options}
        small = {"weights": str(published.base), "resolution_px": 64, "dilation_px": 2, "dtype": "float32"}
        return replace(SETTINGS[0], options=options, **(small | changes))

    return made


@pytest.fixture
def engine(settings):
    def made(**changes):
        qwen = QwenImageEngine(settings(**changes))
        qwen.check()
        qwen.load()
        return qwen

    return made


@pytest.fixture(scope="module")
def shared(published):
    """Loaded once; tests must leave it as it is."""
    options = {"controlnet": str(published.controlnet), "lora": str(published.lora)}
    small = {"weights": str(published.base), "resolution_px": 64, "dilation_px": 2, "dtype": "float32"}
    qwen = QwenImageEngine(replace(SETTINGS[0], options=options, **small))
    qwen.check()
    qwen.load()
    return qwen


def test_the_presets_are_the_papers():
    assert [(s.name, s.resolution_px) for s in SETTINGS] == [("qwen-image-512", 512), ("qwen-image-1328", 1328)]
    for preset in SETTINGS:
        assert (preset.steps, preset.guidance, preset.group) == (8, 1.0, "train")
        assert (preset.weights, preset.options["controlnet"], preset.options["lora"], preset.options["lora_file"]) == (
            "Qwen/Qwen-Image",
            "InstantX/Qwen-Image-ControlNet-Inpainting",
            "lightx2v/Qwen-Image-Lightning",
            "Qwen-Image-Lightning-8steps-V1.1.safetensors",
        )
        QwenImageEngine(preset)


PROMPTS = ("a red mug", "another teapot, similar but not the same, in soft light beside a green plant", "text")


def test_a_row_is_the_same_in_any_batch_though_prompts_differ_in_length(shared):
    rows = [row(seed, view_HW3=view(seed=seed), prompt=prompt) for seed, prompt in zip((3, 4, 5), PROMPTS, strict=True)]
    together, again = shared.generate(rows), shared.generate(rows)
    turned = shared.generate(rows[::-1])[::-1]
    alone = [shared.generate([one])[0] for one in rows]
    assert [difference(a, b) for a, b in zip(together, again, strict=True)] == [0, 0, 0]
    assert max(difference(a, b) for a, b in zip(together, alone, strict=True)) <= 1
    assert max(difference(a, b) for a, b in zip(together, turned, strict=True)) <= 1
    assert difference(together[0], together[1]) > 5


def test_nothing_is_drawn_from_the_global_generators_and_their_state_stays(shared):
    torch.manual_seed(1)
    np.random.seed(1)
    first = shared.generate([row()])[0]
    torch.manual_seed(2)
    assert difference(first, shared.generate([row()])[0]) == 0
    drawn = torch.rand(1), np.random.rand()
    torch.manual_seed(2)
    np.random.seed(1)
    assert drawn == (torch.rand(1), np.random.rand())


def test_latents_are_drawn_by_each_rows_own_generator_and_the_vae_is_left_as_it_was(shared):
    vae = shared.pipeline.vae
    pictures = torch.rand(3, 3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    generators = [torch.Generator().manual_seed(seed) for seed in (7, 8, 9)]
    with torch.inference_mode(), own_noise(vae, generators):
        drawn = vae.encode(pictures).latent_dist.sample()
    for place, seed in enumerate((7, 8, 9)):
        with torch.inference_mode():
            latents = vae.encode(pictures[place : place + 1]).latent_dist
        noise = torch.randn(latents.mean.shape, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(drawn[place : place + 1], latents.mean + latents.std * noise)
    assert "encode" not in vars(vae)
    with pytest.raises(RuntimeError, match="planted"), own_noise(vae, generators):
        raise RuntimeError("planted")
    assert "encode" not in vars(vae)


@pytest.mark.parametrize("change", [{"prompt": "another blue teapot"}, {"seed": 1}])
def test_what_the_row_says_reaches_the_pipeline(shared, change):
    assert difference(shared.generate([row(**change)])[0], shared.generate([row()])[0]) > 2


@pytest.mark.parametrize(
    "change", [{"steps": 3}, {"resolution_px": 96}, {"conditioning_scale": 0.0}, {"conditioning_scale": 0.5}]
)
def test_what_the_settings_say_reaches_the_pipeline(engine, shared, change):
    assert difference(engine(**change).generate([row()])[0], shared.generate([row()])[0]) > 2


def test_what_lies_under_the_mask_is_not_seen_and_what_lies_around_it_is(shared):
    plain, hidden, seen = row(), row(), row()
    around_HW = shared.region(plain) == 0
    hidden.view_HW3[20:26, 20:30] = 0
    seen.view_HW3[around_HW] = 255 - seen.view_HW3[around_HW]
    first, under, around = shared.generate([plain, hidden, seen])
    assert difference(first, under) <= 1
    assert difference(first, around) > 3


def test_a_view_that_is_no_square_keeps_its_size_and_its_region(shared):
    mask_HW = np.pad(object_mask(24), ((12, 12), (36, 36)))
    request = row(view_HW3=view(96)[:48], mask_HW=mask_HW)
    (made,) = shared.generate([request])
    assert made.image_HW3.shape == (48, 96, 3)
    assert np.array_equal(made.mask_HW, shared.region(request)) and not made.mask_HW[:, :30].any()


# Guidance.


def test_guidance_above_one_listens_to_the_negative_prompt_even_to_none(engine, shared):
    guided = engine(guidance=4.0, negative_prompt="blurry")
    assert guided.negative_prompt == "blurry"
    plain = shared.generate([row()])[0]
    unwanted, nothing = guided.generate([row(negative_prompt="blurry"), row()])
    assert difference(unwanted, nothing) > 1
    assert difference(nothing, plain) > 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"negative_prompt": "blurry"}, "negative_prompt is set, but has no effect at guidance 1; raise guidance"),
        ({"guidance": 0.5}, "guidance is 0.5; expected 1"),
        ({"cache_threshold": 0.1}, "cache is set, which qwen-image does not support"),
        ({"strength": 0.5}, "strength is set, which qwen-image does not support"),
        ({"resolution_px": 520}, "a resolution of 520 px; the model needs a multiple of 16"),
        ({"controlnet": ""}, "options.controlnet is empty; expected a hub id or a folder"),
        ({"conditioning_scale": -1.0}, "options.conditioning_scale is -1.0; expected 0 or more"),
    ],
)
def test_what_it_cannot_do_is_refused_before_anything_is_loaded(settings, change, said):
    with pytest.raises(UsageError, match=f"{NAME}: .*{said}"):
        QwenImageEngine(settings(**change))


def test_an_unknown_option_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match=f"{NAME}: options has no loar; it has conditioning_scale, controlnet, "):
        QwenImageEngine(replace(SETTINGS[0], options={"loar": "x"}))


def test_it_has_no_artefact_control_because_it_has_no_strength(shared):
    assert shared.control(0.3) is None


# The LoRA.


def weights(qwen):
    return {name: tensor.clone() for name, tensor in qwen.pipeline.transformer.state_dict().items()}


def test_the_lora_is_added_to_the_weights_and_nothing_is_left_beside_them(engine, shared, published):
    with_lora, without = weights(shared), weights(engine(lora=""))
    lora = load_file(published.lora)
    assert set(with_lora) == set(without)
    changed = {name for name in without if not torch.equal(with_lora[name], without[name])}
    assert changed == {name.replace("lora_down", "_").replace("._", "") for name in lora if "lora_down" in name}
    for name in changed:
        layer = name.removesuffix(".weight")
        down, up = lora[f"{layer}.lora_down.weight"], lora[f"{layer}.lora_up.weight"]
        scale = lora[f"{layer}.alpha"] / down.shape[0]
        torch.testing.assert_close(with_lora[name], without[name] + scale * up @ down, rtol=1e-5, atol=1e-6)


def test_diffusers_own_layout_of_a_lora_gives_the_same_weights(engine, shared, published):
    plain = weights(engine(lora=str(published.lora.with_name("plain.safetensors"))))
    for name, tensor in weights(shared).items():
        torch.testing.assert_close(plain[name], tensor, rtol=1e-5, atol=1e-6)


def test_the_lora_changes_the_picture_beyond_its_scheduler(engine, shared, published, tmp_path):
    still = {name: torch.zeros_like(t) if "lora_up" in name else t for name, t in load_file(published.lora).items()}
    save_file(still, tmp_path / "still.safetensors")
    unmoved = engine(lora=str(tmp_path / "still.safetensors"))
    assert difference(unmoved.generate([row()])[0], shared.generate([row()])[0]) > 5
    # Without a LoRA the model's own scheduler remains.
    assert difference(unmoved.generate([row()])[0], engine(lora="").generate([row()])[0]) > 1


def test_lightnings_steps_have_a_shift_of_three_at_every_size_and_end_without_noise(shared):
    for request in (row(), row(size_px=96)):
        shared.generate([request])
        linear = [1 - step / 8 for step in range(8)]
        expected = [3 * sigma / (1 + 2 * sigma) for sigma in linear] + [0.0]
        assert shared.pipeline.scheduler.sigmas.tolist() == pytest.approx(expected, abs=1e-6)
    assert shared.pipeline.scheduler.config.base_shift == pytest.approx(math.log(3))


def test_a_folder_of_loras_is_searched_for_the_named_file(engine, shared, published, tmp_path):
    shutil.copy(published.lora, tmp_path / LORA_FILE)
    for name, tensor in weights(engine(lora=str(tmp_path))).items():
        assert torch.equal(tensor, weights(shared)[name])


# Wrong weights.


def refused(settings, said, **changes):
    with pytest.raises(UsageError, match=said):
        QwenImageEngine(settings(**changes)).check()


def test_a_missing_lora_file_is_found_before_a_worker_starts(settings, tmp_path):
    said = rf"options.lora .*: there is no such file; .*hf download lightx2v/Qwen-Image-Lightning {LORA_FILE}"
    refused(settings, said, lora=str(tmp_path / "none.safetensors"))
    refused(settings, said, lora=str(tmp_path))
    refused(settings, "options.lora '/nowhere/at/all': there is no such folder", lora="/nowhere/at/all")


def test_without_peft_a_lora_is_refused_with_the_command_that_installs_it(settings, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    refused(settings, r"\(its LoRA\) needs peft; install with: pip install")
    qwen = QwenImageEngine(settings(lora=""))
    qwen.check()


def test_a_lora_of_another_model_is_refused(engine, tmp_path):
    lora = pipelines.save_lora("flux-fill", tmp_path)
    with pytest.raises(UsageError, match=r"options\.lora"):
        engine(lora=str(lora))


def test_a_missing_controlnet_says_which_file_and_how_to_get_it(settings, published, tmp_path):
    refused(settings, "options.controlnet '/nowhere': there is no such folder", controlnet="/nowhere")
    how = "hf download InstantX/Qwen-Image-ControlNet-Inpainting --local-dir FOLDER"
    refused(settings, f"options.controlnet .* has no config.json; get it with `{how}", controlnet=str(tmp_path))
    shutil.copy(published.controlnet / "config.json", tmp_path)
    refused(settings, "diffusion_pytorch_model.safetensors is missing", controlnet=str(tmp_path))


def test_a_controlnet_that_lacks_a_tensor_is_refused(engine, published, tmp_path):
    folder = shutil.copytree(published.controlnet, tmp_path / "controlnet")
    file = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors.pop("controlnet_x_embedder.weight")
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(
        UsageError, match=r"lacks 1 tensor\(s\) of QwenImageControlNetModel, e.g. controlnet_x_embedder"
    ):
        engine(controlnet=str(folder))


def test_a_controlnet_of_another_kind_is_refused(engine, tmp_path):
    config = dict(parts.qwen_controlnet().config) | {"extra_condition_channels": 0}
    parts.randomised(QwenImageControlNetModel.from_config(config)).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="takes 64 channels; expected the 68 of an inpainting ControlNet"):
        engine(controlnet=str(tmp_path))


def test_a_base_model_without_its_vae_is_refused(settings, published, tmp_path):
    base = shutil.copytree(published.base, tmp_path / "base")
    shutil.rmtree(base / "vae")
    refused(settings, r"vae/ \(AutoencoderKLQwenImage\) is missing; .*hf download Qwen/Qwen-Image", weights=str(base))


def test_a_hub_that_cannot_be_reached_is_told_in_words(settings, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said = "is no path here, and its {} cannot be had from the hub: it is not in the local cache"
    refused(settings, "options.controlnet own/net " + said.format("config.json"), controlnet="own/net")
    refused(settings, "options.lora own/lora " + said.format(LORA_FILE), lora="own/lora")


# Which weights were meant.


def test_parts_are_named_by_their_contents_wherever_they_lie(settings, published, tmp_path):
    moved = shutil.copytree(published.controlnet.parent, tmp_path / "moved")
    here = QwenImageEngine(settings())
    there = QwenImageEngine(
        settings(
            weights=str(moved / "base"),
            controlnet=str(moved / "controlnet"),
            lora=str(moved / "lora" / published.lora.name),
        )
    )
    for qwen in (here, there):
        qwen.check()
    assert here.settings == there.settings and here.revision == there.revision
    assert str(tmp_path) not in str(there.settings)
    other = as_lightning(published.lora.with_name("plain.safetensors"), moved / "lora" / published.lora.name, alpha=1.0)
    changed = QwenImageEngine(settings(lora=str(other)))
    changed.check()
    assert changed.settings != here.settings
    with pytest.raises(UsageError, match=r"options\.lora .* holds something else here than on the driver"):
        there.load()


def test_a_revision_of_a_path_is_refused(settings):
    refused(settings, "options.lora_revision is set, but lora is a path", lora_revision="v1")
    refused(settings, "options.controlnet_revision is set, but controlnet is a path", controlnet_revision="v1")
