"""Pretraining on tiny settings: it learns, and a killed run goes on as if nothing had happened."""

import numpy as np
import pytest
import torch

from nearid_ray.identifiers import seed_of
from nearid_ray.toybox.backbone import random_backbone, save_backbone
from nearid_ray.toybox.captions import SLOTS
from nearid_ray.toybox.pretrain import PretrainSettings, build, learning_rate_at, main, pretrain, run
from nearid_ray.toybox.pretrain_model import render_batch, to_pixels

TINY = {
    "batch_size": 16,
    "processes": 1,
    "images": 96,
    "final_images": 48,
    "full_token_images": 32,
    "warmup_steps": 2,
    "validation_images": 20,
}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _weights(folder):
    return torch.load(folder / "state.pt", weights_only=True)["model"]


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path):
    settings = PretrainSettings(**TINY)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    pretrain(settings, whole)
    pretrain(settings, parts, stop_at_step=2)
    stopped = _weights(parts)
    pretrain(settings, parts)
    for name, value in _weights(whole).items():
        assert torch.equal(value, _weights(parts)[name]), name
    assert any(not torch.equal(value, stopped[name]) for name, value in _weights(whole).items())


def test_a_finished_run_does_nothing_more(tmp_path):
    settings = PretrainSettings(**TINY)
    pretrain(settings, tmp_path)
    before = _weights(tmp_path)
    pretrain(settings, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in _weights(tmp_path).items())


def test_going_on_with_other_settings_is_refused_naming_them(tmp_path):
    pretrain(PretrainSettings(**TINY), tmp_path, stop_at_step=1)
    with pytest.raises(ValueError, match=r"batch_size was 16, is 8"):
        pretrain(PretrainSettings(**{**TINY, "batch_size": 8}), tmp_path)


def test_the_command_line_refuses_other_settings_with_exit_code_2(tmp_path, monkeypatch, capsys):
    pretrain(PretrainSettings(**TINY), tmp_path, stop_at_step=1)
    monkeypatch.setattr("sys.argv", ["pretrain", "--out", str(tmp_path), "--batch-size", "8", "--processes", "1"])
    with pytest.raises(SystemExit) as exit_code:
        main()
    assert exit_code.value.code == 2
    assert "batch_size was 16, is 8" in capsys.readouterr().err


def test_two_processes_take_a_step_with_the_mean_of_their_gradients(tmp_path):
    one_step = {"processes": 2, "batch_size": 8, "images": 16, "final_images": 0, "full_token_images": 16}
    settings = PretrainSettings(**{**TINY, **one_step, "warmup_steps": 0})
    run(settings, tmp_path)
    model = build(settings)
    for rank in range(2):
        start = rank * settings.batch_size
        batch = render_batch("toybox-pretrain", settings.seed, start, settings.batch_size, settings.black_background)
        generator = torch.Generator().manual_seed(seed_of("toybox-pretrain-dropout", settings.seed, start))
        (torch.stack(list(model.losses(batch, 1.0, generator).values())).sum() / 2).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    moments = torch.load(tmp_path / "state.pt", weights_only=True)["optimizer"]["state"]
    assert len(moments) == len(gradients)
    for index, (name, gradient) in enumerate(gradients.items()):
        # After one step AdamW's first moment is a tenth of the gradient it was given.
        torch.testing.assert_close(moments[index]["exp_avg"], 0.1 * gradient, atol=2e-5, rtol=2e-2, msg=name)


def test_a_few_steps_lower_every_loss_on_unseen_images():
    settings = PretrainSettings(batch_size=32, processes=1)
    model = build(settings)
    unseen = render_batch("test-unseen", 0, 0, 64, settings.black_background)

    def losses():
        with torch.no_grad():
            return model.losses(unseen, 1.0, torch.Generator().manual_seed(0))

    before = losses()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(12):
        batch = render_batch("test-seen", 0, 32 * step, 32, settings.black_background)
        optimizer.zero_grad()
        torch.stack(list(model.losses(batch, 0.6, torch.Generator().manual_seed(step)).values())).sum().backward()
        optimizer.step()
    after = losses()
    assert set(before) == {"contrast", "words", "pixels", "object", "patch words"}
    for name, value in after.items():
        assert torch.isfinite(value) and value < before[name], name


def test_every_parameter_gets_a_gradient():
    model = build(PretrainSettings(batch_size=8, processes=1))
    batch = render_batch("test", 0, 0, 8, 0.1)
    torch.stack(list(model.losses(batch, 0.5, torch.Generator().manual_seed(0)).values())).sum().backward()
    # The key bias shifts all scores of a query alike, so its gradient is zero but for rounding: it need only exist.
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_images_of_a_batch_do_not_depend_on_how_the_list_is_cut():
    whole, tail = render_batch("test", 3, 0, 12, 0.3), render_batch("test", 3, 8, 4, 0.3)
    assert torch.equal(whole.image_BHWC[8:], tail.image_BHWC)
    assert torch.equal(whole.word_BS[8:], tail.word_BS) and torch.equal(whole.object_BT[8:], tail.object_BT)


def test_blacked_out_images_say_so_in_their_caption_and_are_black_outside_the_object():
    batch = render_batch("test", 0, 0, 16, 1.0)
    background = list(SLOTS).index("background")
    assert (batch.word_BS[:, background] == len(SLOTS["background"]) - 1).all()
    patch_BTPP3 = batch.image_BHWC.unflatten(1, (8, 8)).unflatten(3, (8, 8)).permute(0, 1, 3, 2, 4, 5).flatten(1, 2)
    brightest_BT = patch_BTPP3.flatten(2).amax(2)
    assert (brightest_BT[batch.object_BT == 0] == 0).all() and (brightest_BT[batch.object_BT == 1] > 0).all()


def test_pixels_are_scaled_as_the_processor_does():
    image_BHWC = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 1, 1, 3)
    np.testing.assert_allclose(to_pixels(image_BHWC).flatten(), [-1.0, -0.6, 1.0], atol=1e-6)


def test_learning_rate_warms_up_stays_and_falls_to_nothing():
    settings = PretrainSettings(images=1000, final_images=400, full_token_images=0, processes=1, batch_size=10)
    settings_rates = [learning_rate_at(settings, step) / settings.learning_rate for step in range(settings.steps)]
    assert settings_rates[0] == pytest.approx(0.01)
    cold = PretrainSettings(
        images=1000, final_images=400, full_token_images=0, processes=1, batch_size=10, warmup_steps=0
    )
    rates = [learning_rate_at(cold, step) / cold.learning_rate for step in range(cold.steps)]
    assert rates[:61] == pytest.approx([1.0] * 61)
    assert rates[80] == pytest.approx(0.5) and rates[99] < 0.01
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kept_tokens": 1.5}, "kept_tokens is 1.5; expected a number from 0 to 1"),
        ({"kept_tokens": 0.0}, "less than one of 64 tokens"),
        ({"batch_size": 1}, "batch_size is 1; expected at least 2"),
        ({"images": 10}, "final_images is 300000; expected 0 to `images`"),
        ({"learning_rate": 0.0}, "must be above 0"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        PretrainSettings(**wrong)


def test_random_parameters_follow_the_seed_and_leave_torchs_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second, third = random_backbone(1), random_backbone(1), random_backbone(2)
    assert torch.equal(torch.rand(3), expected)
    weights = [model.state_dict()["encoder.layers.0.mlp.fc1.weight"] for model in (first, second, third)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_saving_leaves_the_model_in_float32(tmp_path):
    model = random_backbone(0)
    save_backbone(model, tmp_path)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert (tmp_path / "config.json").is_file() and (tmp_path / "preprocessor_config.json").is_file()
