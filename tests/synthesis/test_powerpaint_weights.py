"""PowerPaint's published folders: every tensor arrives, and what does not fit to the tensor is refused by name."""

import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from nearid_ray.errors import UsageError
from nearid_ray.synthesis.engines.powerpaint_weights import HUB_PATTERNS
from tests.synthesis.test_powerpaint import arguments, scene, tiny
from tests.synthesis.tiny import powerpaint
from tests.synthesis.tiny.powerpaint import BRUSHNET_FILE, TEXT_FILE


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return powerpaint.save(tmp_path_factory.mktemp("powerpaint"))


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "weights")


def test_every_published_tensor_arrives_in_the_model(folder):
    engine = tiny(folder)
    engine.load()
    published = load_file(folder / BRUSHNET_FILE)
    held = engine.pipeline.brushnet.state_dict()
    assert torch.equal(held["unet.conv_in.weight"], published.pop("conv_in_condition.weight"))
    assert torch.equal(held["unet.conv_in.bias"], published.pop("conv_in_condition.bias"))
    for name, value in published.items():
        assert torch.equal(held[name if name.startswith("brushnet_") else f"unet.{name}"], value), name
    assert len(held) == len(published) + 2
    assert not any(value.is_meta for value in held.values())


def test_a_base_saved_as_pickles_is_read_as_well(copied):
    for part, name in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        file = copied / powerpaint.BASE / part / f"{name}.safetensors"
        tensors = load_file(file)
        if part == "text_encoder":
            name = "pytorch_model"
            tensors = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in tensors.items()}
        torch.save(tensors, file.with_name(f"{name}.bin"))
        file.unlink()
    engine = tiny(copied)
    engine.load()
    assert engine.pipeline(**arguments([scene(1)]))[0].std() > 0.01


def changed(tensors, change, name):
    if change == "missing":
        del tensors[name]
    elif change == "unknown":
        tensors["conv_surplus.weight"] = torch.zeros(3)
    else:
        tensors[name] = torch.zeros(7, 7)
    return tensors


CHANGES = [
    ("missing", r"1 of \d+ tensors are missing: {name}"),
    ("unknown", r"1 of \d+ tensors are not known: conv_surplus\.weight"),
    ("shape", r"1 tensors have another shape: {name} \(7, 7\) instead of \("),
]


@pytest.mark.parametrize(("change", "said"), CHANGES, ids=[change for change, _ in CHANGES])
def test_a_brushnet_file_that_does_not_fit_to_the_tensor_is_refused(copied, change, said):
    name = "brushnet_up_blocks.3.weight"
    save_file(changed(load_file(copied / BRUSHNET_FILE), change, name), copied / BRUSHNET_FILE)
    with pytest.raises(UsageError, match=said.format(name=name.replace(".", r"\."))):
        tiny(copied).load()


@pytest.mark.parametrize(("change", "said"), CHANGES, ids=[change for change, _ in CHANGES])
def test_a_text_encoder_that_does_not_fit_to_the_tensor_is_refused(copied, change, said):
    name = "embeddings.token_embedding.trainable_embeddings.P_shape"
    tensors = changed(torch.load(copied / TEXT_FILE, weights_only=True), change, f"text_model.{name}")
    torch.save(tensors, copied / TEXT_FILE)
    with pytest.raises(UsageError, match=said.format(name=name.replace(".", r"\."))):
        tiny(copied).load()


def test_a_text_encoder_without_task_tokens_is_refused(copied):
    base = load_file(copied / powerpaint.BASE / "text_encoder" / "model.safetensors")
    torch.save(base, copied / TEXT_FILE)
    with pytest.raises(UsageError, match=r"4 of \d+ tensors are missing: .*trainable_embeddings\.P_ctxt"):
        tiny(copied).load()


class Trap:
    """Makes a folder when a pickle with it is opened without care."""

    def __init__(self, sprung):
        self.sprung = sprung

    def __reduce__(self):
        return os.mkdir, (str(self.sprung),)


def test_a_pickle_that_would_run_code_is_refused_unread(copied, tmp_path):
    (copied / TEXT_FILE).write_bytes(pickle.dumps({"a": Trap(tmp_path / "sprung")}, protocol=2))
    with pytest.raises(UsageError, match=r"pytorch_model\.bin cannot be read as tensors"):
        tiny(copied).load()
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("file", [BRUSHNET_FILE, TEXT_FILE])
def test_a_damaged_file_is_named(copied, file):
    (copied / file).write_bytes((copied / file).read_bytes()[:1000])
    with pytest.raises(UsageError, match=f"{file} cannot be read"):
        tiny(copied).load()


@pytest.mark.parametrize(
    "file", [BRUSHNET_FILE, TEXT_FILE, f"{powerpaint.BASE}/model_index.json", f"{powerpaint.BASE}/unet/config.json"]
)
def test_a_missing_file_is_named_before_a_worker_starts(copied, file):
    (copied / file).unlink()
    with pytest.raises(UsageError, match=f"it has no {file}; get them with `hf download JunhaoZhuang/PowerPaint-v2-1"):
        tiny(copied).check()


def test_a_base_without_weights_is_told_before_a_worker_starts(copied):
    (copied / powerpaint.BASE / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"it has no realisticVisionV60B1_v51VAE/vae/\*\.safetensors or \*\.bin; get"):
        tiny(copied).check()


@pytest.mark.parametrize("inner", [powerpaint.BRUSHNET, powerpaint.BASE])
def test_one_of_the_two_folders_in_place_of_both_is_refused(folder, inner):
    with pytest.raises(UsageError, match="give the folder that holds both"):
        tiny(folder / inner).check()


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty cache of a hub that cannot be reached."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_the_published_id_is_loaded_from_the_hubs_cache_and_named_with_its_commit(folder, hub_cache):
    commit, stored = "0123456789abcdef0123456789abcdef01234567", hub_cache / "models--JunhaoZhuang--PowerPaint-v2-1"
    shutil.copytree(folder, stored / "snapshots" / commit)
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text(commit)
    engine = tiny("JunhaoZhuang/PowerPaint-v2-1")
    engine.check()
    assert engine.revision == f"JunhaoZhuang/PowerPaint-v2-1@{commit}"
    engine.load()
    assert engine.pipeline(**arguments([scene(1)], steps=1))[0].shape == (64, 64, 3)


def test_weights_that_cannot_be_had_from_the_hub_are_refused_with_the_command_that_gets_them(hub_cache):
    engine = tiny("JunhaoZhuang/PowerPaint-v2-1")
    for refused in (engine.check, engine.load):
        with pytest.raises(UsageError, match="run `hf download JunhaoZhuang/PowerPaint-v2-1 --local-dir FOLDER`"):
            refused()


def test_of_the_hubs_files_those_that_are_read_are_fetched():
    from huggingface_hub.utils import filter_repo_objects

    base = powerpaint.BASE
    needed = [BRUSHNET_FILE, TEXT_FILE, f"{base}/model_index.json", f"{base}/unet/config.json"]
    needed += [f"{base}/vae/diffusion_pytorch_model.bin", f"{base}/tokenizer/merges.txt"]
    others = [
        "README.md",
        f"{base}/safety_checker/pytorch_model.bin",
        f"{base}/feature_extractor/preprocessor_config.json",
    ]
    assert list(filter_repo_objects([*needed, *others], allow_patterns=list(HUB_PATTERNS))) == needed


def test_another_kind_of_base_is_refused(copied):
    from tests.synthesis.tiny import parts

    shutil.rmtree(copied / powerpaint.BASE / "unet")
    parts.sdxl_unet().save_pretrained(copied / powerpaint.BASE / "unet")
    with pytest.raises(UsageError, match="takes 9 channels; expected a text-to-image one"):
        tiny(copied).load()
