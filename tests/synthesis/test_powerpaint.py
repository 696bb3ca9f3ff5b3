"""PowerPaint from its published layout with tiny random weights: wiring, seeds, and steps written out by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from nearid_ray.errors import UsageError
from nearid_ray.synthesis.engine import EngineRequest
from nearid_ray.synthesis.engines.powerpaint import SETTINGS, PowerPaintEngine
from tests.synthesis.test_brushnet import slow_features, slow_noise
from tests.synthesis.tiny import powerpaint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return powerpaint.save(tmp_path_factory.mktemp("powerpaint"))


@pytest.fixture(scope="module")
def engine(folder):
    made = tiny(folder)
    made.load()
    return made


def tiny(folder, **changes):
    options = SETTINGS[0].options | changes.pop("options", {})
    small = {"weights": str(folder), "resolution_px": 64, "steps": 2, "dilation_px": 2, "dtype": "float32"}
    return PowerPaintEngine(replace(SETTINGS[0], **(small | changes), options=options))


def scene(seed, size=(64, 64), prompt="a photo of a red mug"):
    random = np.random.default_rng(seed)
    view = random.integers(0, 256, (*size, 3), dtype=np.uint8)
    mask = np.zeros(size, np.uint8)
    mask[16:40, 24:48] = 255
    return EngineRequest(view_HW3=view, mask_HW=mask, seed=seed, prompt=prompt, negative_prompt="blurry")


def arguments(requests, **changes):
    """Of a call of the pipeline itself."""
    given = {
        "prompts": [request.prompt for request in requests],
        "negative_prompts": [request.negative_prompt for request in requests],
        "images": [request.view_HW3 for request in requests],
        "masks": [request.mask_HW for request in requests],
        "generators": [torch.Generator().manual_seed(request.seed) for request in requests],
        "steps": 2,
    }
    return given | changes


def painted(engine, *requests):
    results = engine.generate(list(requests))
    for result in results:
        if isinstance(result, Exception):
            raise result
    return [result.image_HW3 for result in results]


def difference(one, other):
    return int(np.abs(one.astype(int) - other.astype(int)).max())


# What is painted


@torch.no_grad()
def test_a_picture_equals_its_steps_written_out_with_two_separate_branches(engine):
    """Each branch of the guidance is passed alone, through networks and embeddings written out by hand."""
    pipeline, request = engine.pipeline, scene(5)
    [picture] = pipeline(**arguments([request], guidance=4.0, conditioning_scale=0.8))

    def embedded(text):
        ids = pipeline.tokenizer(text, padding="max_length", max_length=77, return_tensors="pt").input_ids
        return pipeline.text_encoder(ids).last_hidden_state

    hole = torch.from_numpy(request.mask_HW > 0)
    pixels = torch.from_numpy(request.view_HW3).permute(2, 0, 1) / 127.5 - 1
    black = torch.where(hole, torch.tensor(-1.0), pixels)
    condition = torch.empty(1, 5, 8, 8)
    condition[:, :4] = pipeline.vae.encode(black[None]).latent_dist.mode() * 0.18215
    for row in range(8):
        for column in range(8):
            condition[0, 4, row, column] = 0.0 if hole[row * 8, column * 8] else 1.0
    assert 0 < condition[:, 4].mean() < 1

    task = pipeline.embed_task("text-guided")
    scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(2)
    latents = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(request.seed))[None]
    for timestep in scheduler.timesteps:
        features = [one * 0.8 for one in slow_features(pipeline.brushnet, latents, timestep, task, condition)]
        wanted = slow_noise(pipeline.unet, latents, timestep, embedded(request.prompt), features)
        unwanted = slow_noise(pipeline.unet, latents, timestep, embedded(request.negative_prompt), features)
        latents = scheduler.step(unwanted + 4.0 * (wanted - unwanted), timestep, latents).prev_sample
    expected = (pipeline.vae.decode(latents / 0.18215).sample[0] / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(picture, expected, atol=1e-3)
    assert picture.std() > 0.01


def test_a_row_is_the_same_alone_in_a_batch_and_in_a_second_run(engine):
    rows = [scene(1), scene(2), scene(3)]
    batch = painted(engine, *rows)
    assert all(np.array_equal(one, again) for one, again in zip(batch, painted(engine, *rows), strict=True))
    for row, together in zip(rows, batch, strict=True):
        [alone] = painted(engine, row)
        assert difference(alone, together) <= 1
    assert difference(batch[0], batch[1]) > 20


def test_seed_prompt_and_negative_prompt_change_the_picture(engine):
    request = scene(1)
    [first] = painted(engine, request)
    for change in ({"seed": 2}, {"prompt": "another teapot"}, {"negative_prompt": "green plant"}):
        assert difference(painted(engine, replace(request, **change))[0], first) > 1, change


def test_what_lies_under_the_hole_is_never_seen(engine):
    request = scene(1)
    other = request.view_HW3.copy()
    other[18:38, 26:46] = 255 - other[18:38, 26:46]
    assert np.array_equal(*painted(engine, request, replace(request, view_HW3=other)))
    other[:16] = 255 - other[:16]
    one, another = engine.pipeline(**arguments([request, replace(request, view_HW3=other)]))
    assert np.abs(one - another).max() > 1e-3


def test_a_lower_strength_starts_from_the_object_and_does_fewer_steps(engine, folder):
    request = scene(1)
    other = request.view_HW3.copy()
    other[18:38, 26:46] = 255 - other[18:38, 26:46]
    low = tiny(folder, strength=0.5)
    low._pipeline = engine.pipeline
    assert difference(*painted(low, request, replace(request, view_HW3=other))) > 1
    passes = []
    hook = engine.pipeline.unet.register_forward_hook(lambda *_: passes.append(1))
    engine.pipeline(**arguments([request], steps=6, strength=0.5))
    engine.pipeline(**arguments([request], steps=3, strength=0.01))
    hook.remove()
    assert len(passes) == 3 + 1
    assert engine.control(0.5).config.strength == 0.5


def test_the_brushnet_is_told_the_task_alone_and_the_unet_the_prompts_alone(engine):
    pipeline, heard = engine.pipeline, {"unet": [], "brushnet": []}
    hooks = [
        pipeline.unet.register_forward_pre_hook(lambda _, given: heard["unet"].append(given[2])),
        pipeline.brushnet.register_forward_pre_hook(lambda _, given: heard["brushnet"].append(given[2])),
    ]
    requests = [scene(1), scene(2, prompt="another teapot")]
    pipeline(**arguments(requests, steps=1))
    pipeline(**arguments(requests, steps=1, guidance=1.0))
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        task = pipeline.embed_task("text-guided")
        text = pipeline.embed_prompts(["blurry", "blurry", "a photo of a red mug", "another teapot"])
    for told, without_guidance in (heard["brushnet"],):
        assert told.shape[0] == 4 and without_guidance.shape[0] == 2
        assert all(torch.equal(row, task[0]) for row in (*told, *without_guidance))
    torch.testing.assert_close(heard["unet"][0], text)
    torch.testing.assert_close(heard["unet"][1], text[2:])


def test_a_task_is_its_ten_learned_vectors_between_start_and_end(engine, folder):
    saved = torch.load(folder / powerpaint.TEXT_FILE, weights_only=True)
    prefix = "text_model.embeddings.token_embedding"
    words, encoder = saved[f"{prefix}.wrapped.weight"], engine.pipeline.text_encoder_brushnet
    tokenizer, read, gave = engine.pipeline.tokenizer, [], []
    hooks = [
        encoder.get_input_embeddings().register_forward_hook(lambda _, __, output: read.append(output)),
        encoder.register_forward_hook(lambda _, __, output: gave.append(output[0])),
    ]
    with torch.no_grad():
        text, shaped = (engine.pipeline.embed_task(task) for task in ("text-guided", "shape-guided"))
        blend = engine.pipeline.embed_task("shape-guided", 0.25)
    for hook in hooks:
        hook.remove()
    ends = words[tokenizer.bos_token_id][None], words[tokenizer.eos_token_id][None]
    pads = words[tokenizer.pad_token_id].expand(77 - 12, -1)
    told = {"P_obj": read[0][0], "P_shape": read[1][0], "P_ctxt": read[1][1]}
    for token, embedded in told.items():
        vectors = saved[f"{prefix}.trainable_embeddings.{token}"]
        assert torch.equal(embedded, torch.cat([ends[0], vectors, ends[1], pads])), token
    shape, context = gave[1]
    torch.testing.assert_close(text[0], gave[0][0])
    torch.testing.assert_close(shaped[0], shape)
    torch.testing.assert_close(blend[0], 0.25 * shape + 0.75 * context)
    assert min((one - other).abs().max() for one, other in ((text[0], shape), (shape, context))) > 0.01


def test_a_view_that_is_no_square_keeps_its_aspect(engine):
    request = scene(1, size=(96, 80))  # 64 x 80 px, 8 x 10 cells: not every level halves evenly
    [picture] = painted(engine, request)
    assert picture.shape == (96, 80, 3)


def test_bfloat16_paints_numbers(folder):
    engine = tiny(folder, dtype="bfloat16")
    engine.load()
    assert engine.pipeline.brushnet.dtype == engine.pipeline.text_encoder_brushnet.dtype == torch.bfloat16
    [picture] = engine.pipeline(**arguments([scene(1)], steps=1))
    assert np.isfinite(picture).all() and picture.std() > 0.01


def test_with_parts_offloaded_the_picture_is_the_same(folder, engine):
    from accelerate import cpu_offload

    offloaded = tiny(folder)
    offloaded.load()
    pipeline = offloaded.pipeline
    for name in ("text_encoder", "text_encoder_brushnet", "unet", "brushnet", "vae"):
        cpu_offload(getattr(pipeline, name), torch.device("cpu"))
    assert pipeline.brushnet.device.type == "meta"
    assert np.array_equal(*(painted(one, scene(1))[0] for one in (engine, offloaded)))


# What is asked for


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"task": "outpainting"}, "expected one of text-guided, shape-guided"),
        ({"task": "shape-guided", "fitting_degree": 1.5}, "fitting_degree is 1.5; expected 0 to 1"),
        ({"fitting_degree": 0.5}, "has no effect on a text-guided task"),
        ({"conditioning_scale": -1.0}, "expected 0 or more"),
        ({"surplus": 1}, "expected conditioning_scale, fitting_degree, task"),
    ],
)
def test_an_option_that_cannot_be_meant_is_refused(folder, options, said):
    with pytest.raises(UsageError, match=said):
        tiny(folder, options=options)


@pytest.mark.parametrize("change", [{"attention": "flash"}, {"cache_threshold": 0.1}, {"resolution_px": 100}])
def test_what_the_class_cannot_do_is_refused(folder, change):
    with pytest.raises(UsageError, match=r"powerpaint-512"):
        tiny(folder, **change)


def test_the_preset_is_the_papers():
    [settings] = SETTINGS
    assert (settings.name, settings.group, settings.resolution_px) == ("powerpaint-512", "unseen", 640)
    assert (settings.steps, settings.guidance, settings.strength) == (45, 7.5, 1.0)
    assert settings.negative_prompt and settings.weights == "JunhaoZhuang/PowerPaint-v2-1"
    assert settings.options == {"task": "text-guided", "fitting_degree": 1.0, "conditioning_scale": 1.0}
