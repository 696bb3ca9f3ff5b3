"""What all engines on diffusers share: seeds and batches, refusals, speed settings, LoRAs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from nearid_ray.errors import UsageError
from nearid_ray.synthesis.engines import loading, runtime
from nearid_ray.synthesis.engines.diffusion import DiffusionEngine, DiffusionSettings
from nearid_ray.synthesis.engines.sdxl import SdxlEngine
from tests.synthesis.tiny import pipelines
from tests.synthesis.tiny.engines import TEXT_TO_PICTURE, difference, engine, row, settings, shared_engine, view

FAMILIES = sorted(TEXT_TO_PICTURE)


@pytest.fixture
def loaded(tiny_weights):
    """`loaded("sdxl")`: the family's engine on tiny weights."""
    return lambda family: shared_engine(family, tiny_weights(TEXT_TO_PICTURE[family][2]))


class Canned(DiffusionEngine):
    """An engine that gives back the pictures it was made with, in place of a model's."""

    family, multiple_px, licence, model_card = "canned", 8, "", ""

    def __init__(self, output, **changes):
        super().__init__(
            DiffusionSettings(name="canned", weights="own/model", resolution_px=16, dilation_px=1, **changes)
        )
        self.output, self.sizes = output, []

    def build(self, dtype):
        raise NotImplementedError

    def call(self, images, masks, requests, generators):
        self.sizes.append({image.shape for image in images} | {mask.shape for mask in masks})
        return self.output(images) if callable(self.output) else self.output


class Output:
    def __init__(self, images, nsfw_content_detected=None):
        self.images, self.nsfw_content_detected = images, nsfw_content_detected


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_is_the_same_in_any_batch_and_to_the_bit_in_the_same_one(loaded, family):
    rows = [row(seed, view_HW3=view(seed=seed)) for seed in (3, 4, 5)]
    together = loaded(family).generate(rows)
    again = loaded(family).generate(rows)
    alone = [loaded(family).generate([request])[0] for request in rows]
    turned = loaded(family).generate(rows[::-1])[::-1]
    assert [difference(a, b) for a, b in zip(together, again, strict=True)] == [0, 0, 0]
    assert max(difference(a, b) for a, b in zip(together, alone, strict=True)) <= 1
    assert max(difference(a, b) for a, b in zip(together, turned, strict=True)) <= 1


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_drawn_from_the_global_generator(loaded, family):
    torch.manual_seed(1)
    first = loaded(family).generate([row()])[0]
    torch.manual_seed(2)
    assert difference(first, loaded(family).generate([row()])[0]) == 0
    drawn = torch.rand(1)
    torch.manual_seed(2)
    assert torch.equal(drawn, torch.rand(1))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_result_has_the_views_size_and_names_the_painted_region(loaded, family):
    request = row(size_px=60)
    (made,) = loaded(family).generate([request])
    assert made.image_HW3.shape == (60, 60, 3) and made.image_HW3.dtype == np.uint8
    assert np.array_equal(made.mask_HW, loaded(family).region(request))
    assert made.flagged is None


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_several_sizes_keep_their_order_and_bad_rows_fail_alone(loaded, family):
    empty = row(mask_HW=np.zeros((48, 48), np.uint8))
    full = row(mask_HW=np.full((48, 48), 255, np.uint8))
    tiny = row(view_HW3=np.zeros((6, 6, 3), np.uint8), mask_HW=np.pad(np.full((2, 2), 255, np.uint8), 2))
    wide = row(view_HW3=view(96)[:48], mask_HW=np.pad(np.full((24, 24), 255, np.uint8), ((12, 12), (36, 36))))
    made = loaded(family).generate([row(1), empty, wide, full, row(2), tiny])
    assert [str(made[place]).split(";")[0].split(",")[0] for place in (1, 3)] == [
        "the mask is empty: there is nothing to paint",
        "the mask",
    ]
    assert isinstance(made[5], ValueError)
    assert made[2].image_HW3.shape == (48, 96, 3)
    for place, seed in ((0, 1), (4, 2)):
        assert difference(made[place], loaded(family).generate([row(seed)])[0]) <= 1


@pytest.mark.parametrize("family", FAMILIES)
def test_loading_and_painting_say_nothing(tiny_weights, family, capfd):
    engine(family, tiny_weights(TEXT_TO_PICTURE[family][2])).generate([row()])
    assert capfd.readouterr() == ("", "")


def test_rows_of_one_size_share_a_pass():
    canned = Canned(lambda images: [image.copy() for image in images])
    requests = [row(), row(view_HW3=view(72)[:48], mask_HW=np.pad(row().mask_HW, ((0, 0), (12, 12)))), row()]
    assert all(not isinstance(made, Exception) for made in canned.generate(requests))
    assert canned.sizes == [{(16, 16, 3), (16, 16)}, {(16, 24, 3), (16, 24)}]


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        (np.full((16, 16, 3), np.nan, np.float32), "gave pixels that are no numbers"),
        (np.zeros((16, 16), np.uint8), r"gave an array of shape \(16, 16\)"),
    ],
)
def test_a_picture_of_no_use_is_that_rows_error_alone(picture, said):
    good = np.linspace(0, 1, 16 * 16 * 3, dtype=np.float32).reshape(16, 16, 3)
    bad, fine = Canned([picture, good]).generate([row(), row()])
    with pytest.raises(ValueError, match=said):
        raise bad
    assert fine.image_HW3.min() < 10 and fine.image_HW3.max() > 245


def test_numbers_that_are_none_in_a_model_reach_the_row_as_an_error(tiny_weights):
    sick = engine("flux-fill", tiny_weights("flux-fill"))
    with torch.no_grad():
        sick.pipeline.vae.decoder.conv_out.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="no numbers"):
        raise sick.generate([row()])[0]


def test_a_safety_checks_verdict_is_handed_on_and_its_black_picture_is_no_error():
    black, good = np.zeros((16, 16, 3), np.uint8), view(48)[:16, :16]
    made = Canned(Output([black, good], [True, False])).generate([row(), row()])
    assert [result.flagged for result in made] == [True, False]
    assert [result.flagged for result in Canned(Output([good])).generate([row()])] == [None]


def test_a_model_that_loses_rows_is_no_silent_shift():
    with pytest.raises(RuntimeError, match="canned: 2 rows in, 1 pictures out"):
        Canned([view(48)]).generate([row(), row()])


def test_an_engine_that_was_not_loaded_says_so(tiny_weights):
    with pytest.raises(RuntimeError, match=r"sdxl-512: load\(\) was not called"):
        SdxlEngine(settings("sdxl", tiny_weights("sdxl"))).generate([row()])


@pytest.mark.parametrize("family", FAMILIES)
def test_licence_and_model_card_are_told(family):
    made = TEXT_TO_PICTURE[family][0]
    assert made.licence and made.model_card.startswith("https://huggingface.co/")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 0}, "steps is 0; expected at least 1"),
        ({"guidance": -1.0}, "guidance is -1"),
        ({"strength": 0.0}, "strength is 0.0; expected above 0"),
        ({"strength": 1.5}, "strength is 1.5"),
        ({"steps": 3, "strength": 0.3}, "steps 3 x strength 0.3 leave no step"),
        ({"dilation_px": -1}, "dilation_px is -1"),
        ({"weights": ""}, "weights is empty"),
        ({"prompt_template": "a {colour} thing"}, "prompt_template 'a {colour} thing' cannot be filled in"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(changes, said):
    values = {"name": "sdxl-512", "weights": "own/model"} | changes
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        DiffusionSettings(**values)


def test_prompts_are_made_of_category_and_description():
    sdxl = SdxlEngine(DiffusionSettings(name="s", weights="own/model", prompt_template="a {category}: {description}"))
    assert sdxl.prompt("mug", "a red mug") == "a mug: a red mug"
    assert sdxl.prompt("mug", "") == "a mug: mug"
    assert sdxl.prompt("", "") == "a object: an object"


# Speed and memory.


@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_offload_without_a_gpu_is_refused(tiny_weights, offload):
    if runtime.device() != "cpu":
        pytest.skip("this machine has a GPU")
    with pytest.raises(UsageError, match=f"offload={offload} moves parts to a GPU; this worker has none"):
        engine("sdxl", tiny_weights("sdxl"), offload=offload)


def test_an_attention_backend_that_is_not_here_is_refused_and_a_known_one_is_used(tiny_weights):
    with pytest.raises(UsageError, match=r"FluxTransformer2DModel cannot run as asked for: .*must be one of"):
        engine("flux-fill", tiny_weights("flux-fill"), attention="fastest")
    chosen = engine("flux-fill", tiny_weights("flux-fill"), attention="_native_math")
    processors = chosen.pipeline.transformer.attn_processors.values()
    assert {processor._attention_backend.value for processor in processors} == {"_native_math"}
    plain = shared_engine("flux-fill", tiny_weights("flux-fill"))
    assert difference(chosen.generate([row()])[0], plain.generate([row()])[0]) <= 1


def test_an_attention_backend_is_that_engines_alone(tiny_weights):
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    before = _AttentionBackendRegistry.get_active_backend()
    engine("flux-fill", tiny_weights("flux-fill"), attention="_native_math")
    assert _AttentionBackendRegistry.get_active_backend() == before


@pytest.mark.parametrize(
    ("family", "block"), [("sdxl", "BasicTransformerBlock"), ("flux-fill", "FluxTransformerBlock")]
)
def test_compile_takes_the_repeated_blocks_of_the_denoiser(tiny_weights, family, block):
    compiled = engine(family, tiny_weights(family), compile=True)
    blocks = [m for m in runtime.denoiser(compiled.pipeline).modules() if type(m).__name__ == block]
    assert blocks and all(module._compiled_call_impl is not None for module in blocks)


# LoRAs.


def test_a_lora_is_added_to_the_weights_and_nothing_of_it_stays_beside_them(tiny_weights, tmp_path):
    file = pipelines.save_lora("flux-fill", tmp_path)
    pipeline = engine("flux-fill", tiny_weights("flux-fill")).pipeline
    before = {name: tensor.clone() for name, tensor in pipeline.transformer.state_dict().items()}
    loading.fuse_lora(pipeline, file, "lora")
    after = pipeline.transformer.state_dict()
    assert set(after) == set(before) and not pipeline.get_list_adapters()
    lora = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
    changed = set()
    for name in lora:
        if name.endswith("lora_A.weight"):
            target = name.removesuffix("lora_A.weight") + "weight"
            added = lora[name.replace("lora_A", "lora_B")] @ lora[name]
            assert torch.allclose(after[target], before[target] + added, atol=1e-5), target
            changed.add(target)
    assert len(changed) == 6
    assert all(torch.equal(after[name], before[name]) for name in set(before) - changed)


def test_a_lora_of_another_model_or_none_is_refused(tiny_weights, tmp_path):
    pipeline = engine("flux-fill", tiny_weights("flux-fill")).pipeline
    other = pipelines.save_lora("qwen-image", tmp_path)
    with pytest.raises(UsageError, match=r"lora .*lora\.safetensors"):
        loading.fuse_lora(pipeline, other, "lora")
    with pytest.raises(UsageError, match=r"there is no such file; expected a LoRA as \.safetensors"):
        loading.fuse_lora(pipeline, tmp_path / "nowhere.safetensors", "lora")


def test_a_lora_with_a_layer_that_the_model_has_not_is_refused(tiny_weights, tmp_path):
    file = pipelines.save_lora("flux-fill", tmp_path)
    tensors = load_file(file)
    tensors |= {name.replace("_blocks.0.", "_blocks.7."): tensor.clone() for name, tensor in tensors.items()}
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(UsageError, match="6 of its 12 layers have a place in transformer of FluxFillPipeline"):
        loading.fuse_lora(engine("flux-fill", tiny_weights("flux-fill")).pipeline, file, "lora")


def test_a_folder_of_another_pipeline_is_refused_in_words(tiny_weights):
    with pytest.raises(UsageError, match=r"sdxl-512: .* cannot be loaded: "):
        SdxlEngine(replace(settings("sdxl", tiny_weights("flux-fill")))).load()
