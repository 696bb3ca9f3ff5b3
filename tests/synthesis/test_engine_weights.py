"""Weights of the engines on diffusers: which are meant, and what is missing or damaged; nothing is made up for it."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from nearid_ray.errors import UsageError
from nearid_ray.synthesis.engines import loading
from nearid_ray.synthesis.engines.diffusion import DiffusionSettings
from nearid_ray.synthesis.engines.sdxl import SdxlEngine
from tests.synthesis.tiny.engines import settings


@pytest.fixture
def broken(tiny_weights, tmp_path):
    """A copy of SDXL's tiny weights to break."""
    return shutil.copytree(tiny_weights("sdxl"), tmp_path / "weights")


def test_weights_are_named_by_their_files_wherever_they_lie(tiny_weights, broken):
    here, there = (SdxlEngine(settings("sdxl", folder)) for folder in (tiny_weights("sdxl"), broken))
    for made in (here, there):
        made.check()
    digest = here.revision.partition("@")[2]
    assert len(digest) == 16 and there.revision == f"weights@{digest}"
    assert there.settings["weights"] == "weights" and str(broken) not in str(there.settings)
    (broken / ".cache").mkdir()
    (broken / ".cache" / "of_a_download.json").write_text("{}")
    there.check()
    assert there.revision == f"weights@{digest}"
    scheduler = broken / "scheduler" / "scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace("0.012", "0.013"))
    there.check()
    assert there.revision != f"weights@{digest}"


def test_an_engine_travels_to_a_worker_which_refuses_other_weights_than_the_drivers(broken):
    sdxl = SdxlEngine(settings("sdxl", broken))
    sdxl.check()
    pickle.loads(pickle.dumps(sdxl)).load()
    weights = load_file(broken / "unet" / "diffusion_pytorch_model.safetensors")
    save_file(
        {name: tensor + 1 for name, tensor in weights.items()}, broken / "unet" / "diffusion_pytorch_model.safetensors"
    )
    with pytest.raises(UsageError, match="holds other files here than on the driver"):
        pickle.loads(pickle.dumps(sdxl)).load()


def test_settings_of_speed_are_no_part_of_what_is_painted_unless_they_are_set(tiny_weights):
    plain = SdxlEngine(settings("sdxl", tiny_weights("sdxl"))).settings
    assert not {"compile", "attention", "cache_threshold", "offload", "name", "group"} & set(plain)
    assert {"steps", "guidance", "strength", "dilation_px", "dtype", "prompt_template", "weights"} <= set(plain)
    assert SdxlEngine(settings("sdxl", tiny_weights("sdxl"), compile=True)).settings["compile"] is True


def drop(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def drop_tensor(folder: Path) -> None:
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights.pop("encoder.conv_in.weight")
    save_file(weights, file, {"format": "pt"})


def drop_text_tensor(folder: Path) -> None:
    file = folder / "text_encoder_2" / "model.safetensors"
    weights = load_file(file)
    weights.pop("text_projection.weight")
    save_file(weights, file, {"format": "pt"})


def reshape_tensor(folder: Path) -> None:
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["encoder.conv_in.weight"] = weights["encoder.conv_in.weight"][:4].clone()
    save_file(weights, file, {"format": "pt"})


def cut_file(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


def lose_shard(folder: Path) -> None:
    part = folder / "unet"
    (part / "diffusion_pytorch_model.safetensors").rename(part / "diffusion_pytorch_model-00001-of-00002.safetensors")
    shards = {f"tensor{n}": f"diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)}
    (part / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


GET = "hf download diffusers/stable-diffusion-xl-1.0-inpainting-0.1 --include '{}/*' --local-dir FOLDER"


@pytest.mark.parametrize(
    ("damage", "said", "how"),
    [
        (lambda folder: drop(folder, "model_index.json"), "has no model_index.json; expected a folder in", ""),
        (lambda folder: drop(folder, "vae"), "the part vae/ (AutoencoderKL) is missing", "vae"),
        (lambda folder: drop(folder, "unet/diffusion_pytorch_model.safetensors"),
         "unet/diffusion_pytorch_model.safetensors is missing", "unet"),
        (lambda folder: drop(folder, "text_encoder/model.safetensors"), "text_encoder/model.safetensors is missing",
         "text_encoder"),
        (lambda folder: drop(folder, *(f"tokenizer/{f.name}" for f in (folder / "tokenizer").iterdir())),
         "tokenizer/ is empty", "tokenizer"),
        (lose_shard, "1 of 2 files of unet/ are missing, e.g. unet/diffusion_pytorch_model-00002-of-00002.safetensors",
         "unet"),
    ],
)  # fmt: skip
def test_a_missing_file_is_named_before_a_worker_starts_with_how_to_get_it(broken, damage, said, how):
    damage(broken)
    with pytest.raises(UsageError) as caught:
        SdxlEngine(settings("sdxl", broken)).check()
    assert said in str(caught.value) and (not how or GET.format(how) in str(caught.value))
    assert str(caught.value).startswith(f"sdxl-512: weights {broken}")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (drop_tensor, "vae/ lacks 1 tensor(s) of AutoencoderKL, e.g. encoder.conv_in.weight"),
        (
            drop_text_tensor,
            "text_encoder_2/ lacks 1 tensor(s) of CLIPTextModelWithProjection, e.g. text_projection.weight",
        ),
        (reshape_tensor, "vae/ cannot be read as AutoencoderKL"),
        (cut_file, "unet/ cannot be read as UNet2DConditionModel"),
    ],
)
def test_weights_that_are_not_whole_are_refused_and_never_filled_in_at_random(broken, damage, said):
    damage(broken)
    sdxl = SdxlEngine(settings("sdxl", broken))
    sdxl.check()
    with pytest.raises(UsageError) as caught:
        sdxl.load()
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ("/no/such/folder", "there is no such folder; expected one with model_index.json and the parts, or a hub id"),
        (
            "own/model",
            "is no folder here, and its model_index.json cannot be had from the hub: it is not in the local cache",
        ),
    ],
)
def test_weights_that_are_nowhere_are_refused_before_a_worker_starts(weights, said):
    with pytest.raises(UsageError) as caught:
        SdxlEngine(DiffusionSettings(name="sdxl-512", weights=weights)).check()
    assert said in str(caught.value)


def test_a_revision_of_a_folder_is_refused(tiny_weights):
    with pytest.raises(UsageError, match="revision is 'main', but weights is a folder; leave it out"):
        SdxlEngine(settings("sdxl", tiny_weights("sdxl"), revision="main")).check()


def test_a_package_that_is_not_installed_is_named_with_the_command_that_installs_it():
    with pytest.raises(UsageError, match=r"sdxl-512 needs no_such_package; install with: pip install 'nearid-ray\["):
        loading.need_packages("sdxl-512", "json", "no_such_package")
