"""Released checkpoints: written by us, read by transformers and by us, the published layout read the same way."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs as pafs
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipConfig, SiglipModel, SiglipVisionModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from nearid_ray.data.store import Location
from nearid_ray.errors import UsageError
from nearid_ray.models import release
from nearid_ray.models.backbone import TOYBOX_BACKBONE, Backbone, load_backbone
from nearid_ray.models.checkpoint import HeadCard, save_head
from nearid_ray.models.head import AttentionPoolingHead
from nearid_ray.models.release_card import CardText

SIDE_PX, WIDTH = 32, 48
VISION = {
    "hidden_size": WIDTH,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": SIDE_PX,
    "patch_size": 8,
}
TEXT = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}


def write_processor(folder: Path) -> None:
    SiglipImageProcessorPil(size={"height": SIDE_PX, "width": SIDE_PX}).save_pretrained(folder)


@pytest.fixture(scope="module")
def backbone_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full SigLIP checkpoint, text model and all, in float32."""
    folder = tmp_path_factory.mktemp("models") / "tiny-siglip"
    torch.manual_seed(0)
    text = TEXT | {"vocab_size": 40, "max_position_embeddings": 8}
    SiglipModel(SiglipConfig(vision_config=VISION, text_config=text)).save_pretrained(folder)
    write_processor(folder)
    return folder


@pytest.fixture(scope="module")
def backbone(backbone_folder: Path) -> Backbone:
    return load_backbone(str(backbone_folder), dtype="float32")


def trained_head(backbone: Backbone, seed: int = 1) -> AttentionPoolingHead:
    """The backbone's head, moved as training would."""
    head, generator = backbone.head(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return head


@pytest.fixture(scope="module")
def head_folder(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads") / "nearid" / "best"
    head = trained_head(backbone)
    card = HeadCard(
        width=head.width,
        heads=head.heads,
        mlp_width=head.mlp_width,
        eps=head.eps,
        backbone=backbone.spec,
        backbone_fingerprint=backbone.fingerprint,
        settings={"alpha": 0.25},
        metrics={"step": 40, "val_ssr": 0.875},
    )
    save_head(str(folder), head, card)
    return folder


@pytest.fixture(scope="module")
def exported(head_folder: Path, backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("releases") / "tiny-nearid"
    release.export(str(head_folder), backbone, str(folder), metrics={"SSR": 0.9371, "identities": 12})
    return folder


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    coarse = [generator.integers(0, 256, (5, 5, 3), dtype=np.uint8) for _ in range(3)]
    sizes = ((32, 32), (60, 45), (90, 140))
    return [np.array(Image.fromarray(c).resize(size)) for c, size in zip(coarse, sizes, strict=True)]


def embedded(backbone: Backbone, head: AttentionPoolingHead, pictures: list[np.ndarray]) -> Tensor:
    with torch.no_grad():
        return torch.nn.functional.normalize(head(backbone.tokens_of(backbone.preprocess(pictures))), dim=-1)


def test_the_release_has_the_published_files_keys_and_types(exported: Path) -> None:
    assert sorted(path.name for path in exported.iterdir()) == sorted(release.FILES)
    weights = load_file(exported / "model.safetensors")
    parts = {re.match(r"backbone\.vision_model\.([a-z_]+)\.", name)[1] for name in weights}  # type: ignore[index]
    assert parts == {"embeddings", "encoder", "post_layernorm", "head"}
    assert "backbone.vision_model.encoder.layers.1.mlp.fc1.weight" in weights
    assert not any("import nearid_ray" in (exported / name).read_text() for name in release.CODE_FILES)
    assert {value.dtype for value in weights.values()} == {torch.float16}
    config = json.loads((exported / "config.json").read_text())
    assert (config["model_type"], config["embed_dim"], config["normalize_embeddings"]) == ("nearid", WIDTH, True)
    assert set(config["auto_map"]) == {"AutoConfig", "AutoModel"}
    assert VISION.items() <= config["vision_config"].items() and set(config["vision_config"]) == {
        *VISION, "num_channels", "hidden_act", "layer_norm_eps", "attention_dropout",
    }  # fmt: skip


def test_it_comes_back_as_it_was_up_to_float16(exported: Path, backbone: Backbone, pictures: list[np.ndarray]) -> None:
    loaded = release.load(str(exported), dtype="float32")
    expected_BD = embedded(backbone, trained_head(backbone), pictures)
    assert (loaded.embed(pictures) - expected_BD).abs().max() < 1e-3
    assert loaded.backbone.tower_fingerprint == backbone.tower_fingerprint
    for name, value in trained_head(backbone).state_dict().items():
        assert torch.equal(loaded.head.state_dict()[name], value.half().float()), name


def run_card(folder: Path, tmp_path: Path, pictures: list[np.ndarray], printed: str) -> Any:
    """What the Python of the model card computes, run word for word beside the release by another process."""
    block = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert block is not None
    for name, picture in zip(("a.jpg", "b.jpg"), pictures, strict=False):
        Image.fromarray(picture).save(folder.parent / name, quality=95)
    program = tmp_path / "usage.py"
    program.write_text(f"{block[1]}\nimport json\nprint(json.dumps({printed}))\n")
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)  # nothing of this package is needed
    done = subprocess.run(
        [sys.executable, str(program)], cwd=folder.parent, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_usage_on_its_model_card_runs_word_for_word_and_gives_our_embeddings(
    exported: Path, pictures: list[np.ndarray], tmp_path: Path
) -> None:
    printed = "[a.float().tolist(), b.float().tolist(), similarity, embeddings.float().tolist(), str(model.dtype)]"
    a, b, similarity, both, dtype = run_card(exported, tmp_path, pictures, printed)
    assert dtype == "torch.float16"
    seen = [np.asarray(Image.open(exported.parent / name)) for name in ("a.jpg", "b.jpg")]
    expected_BD = release.load(str(exported), dtype="float32").embed(seen)
    assert np.shape(a) == np.shape(b) == (1, WIDTH)
    assert (torch.tensor([a[0], b[0]]) - expected_BD).abs().max() < 1e-3
    assert (torch.tensor(both) - expected_BD).abs().max() < 1e-3
    assert similarity == pytest.approx((expected_BD[0] @ expected_BD[1]).item(), abs=1e-3)


FOREIGN_CONFIGURATION = """
from transformers import PretrainedConfig


class SomeConfig(PretrainedConfig):
    model_type = "nearid"
"""
FOREIGN_MODEL = """
raise RuntimeError("the code of a release was run")
"""


def write_published(folder: Path, backbone: Backbone, head: AttentionPoolingHead) -> None:
    """The published layout, written from its description, with other people's Python files."""
    folder.mkdir(parents=True)
    tensors = {f"backbone.vision_model.head.{name}": value for name, value in head.state_dict().items()}
    for name, value in SiglipVisionModel.from_pretrained(backbone.spec).state_dict().items():
        if not name.startswith("head."):
            tensors[f"backbone.vision_model.{name}"] = value
    halves = {name: value.half() for name, value in tensors.items()}
    save_file(halves, folder / "model.safetensors", metadata={"format": "pt"})
    vision = VISION | {"num_channels": 3, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
    config = {
        "model_type": "nearid",
        "vision_config": vision | {"attention_dropout": 0.0},
        "embed_dim": WIDTH,
        "normalize_embeddings": True,
        "auto_map": {"AutoConfig": "some_config.SomeConfig", "AutoModel": "some_model.SomeModel"},
        "torch_dtype": "float16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "some_config.py").write_text(FOREIGN_CONFIGURATION)
    (folder / "some_model.py").write_text(FOREIGN_MODEL)
    size = {"height": SIDE_PX, "width": SIDE_PX}
    processor = {"image_processor_type": "SiglipImageProcessorFast", "size": size, "resample": 3}
    ones = [0.5, 0.5, 0.5]
    (folder / "preprocessor_config.json").write_text(json.dumps(processor | {"image_mean": ones, "image_std": ones}))


def test_the_published_layout_is_read_without_running_its_code(
    tmp_path: Path, backbone: Backbone, pictures: list[np.ndarray]
) -> None:
    head = trained_head(backbone, seed=2)
    write_published(tmp_path / "published", backbone, head)
    loaded = release.load(str(tmp_path / "published"), dtype="float32")
    assert (loaded.embed(pictures) - embedded(backbone, head, pictures)).abs().max() < 1e-3


def test_a_release_is_a_backbone_whose_own_head_is_the_trained_one(exported: Path, backbone: Backbone) -> None:
    loaded = load_backbone(str(exported))
    assert loaded.has_own_head and loaded.fingerprint != backbone.fingerprint
    assert torch.equal(loaded.head().probe, trained_head(backbone).probe.half().float())


def test_what_transformers_5_saves_of_a_release_is_read_too(exported: Path, tmp_path: Path) -> None:
    kept = load_file(exported / "model.safetensors")
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((exported / name).read_bytes())
    save_file({name.replace(".vision_model.", "."): value for name, value in kept.items()}, tmp_path / release.FILES[0])
    assert load_backbone(str(tmp_path)).fingerprint == load_backbone(str(exported)).fingerprint


def test_training_starts_from_a_head_or_a_release_of_the_same_backbone(
    exported: Path, head_folder: Path, backbone: Backbone, tmp_path: Path
) -> None:
    expected = trained_head(backbone).state_dict()
    for source, tolerance in ((head_folder, 0.0), (exported, 1e-3)):
        for wanted in (backbone, json.loads(json.dumps(backbone.describe()))):
            state = release.initial_head(str(source), wanted).state_dict()
            for name, value in expected.items():
                torch.testing.assert_close(state[name], value, rtol=tolerance, atol=tolerance)
    assert release.initial_head(str(exported), load_backbone(str(exported))).width == WIDTH


def test_a_start_from_another_backbones_head_is_refused(exported: Path, head_folder: Path) -> None:
    toy = load_backbone(TOYBOX_BACKBONE)
    with pytest.raises(UsageError, match=r"was made with another backbone .*--backbone"):
        release.initial_head(str(exported), toy)
    with pytest.raises(UsageError, match="the head belongs to backbone"):
        release.initial_head(str(head_folder), toy)
    with pytest.raises(UsageError, match=r"holds no head to start from: neither head.json .* nor config.json"):
        release.initial_head(str(head_folder.parent), toy)


def test_the_same_export_again_changes_nothing(exported: Path, head_folder: Path, backbone: Backbone) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in exported.iterdir()}
    release.export(str(head_folder), backbone, str(exported), metrics={"SSR": 0.9371, "identities": 12})
    assert {path.name: path.stat().st_mtime_ns for path in exported.iterdir()} == before


def clip_backbone(folder: Path) -> str:
    CLIPVisionModel(CLIPVisionConfig(**VISION)).save_pretrained(folder)
    write_processor(folder)
    return str(folder)


def infinite(head: AttentionPoolingHead) -> AttentionPoolingHead:
    with torch.no_grad():
        head.probe[0, 0, 0] = 1e6
    return head


def test_what_cannot_be_released_is_refused_and_leaves_nothing(
    tmp_path: Path, head_folder: Path, backbone: Backbone
) -> None:
    output = tmp_path / "out" / "release"
    with pytest.raises(UsageError, match=r"class token; the released format holds models of the SigLIP family alone"):
        release.export(trained_head(backbone), clip_backbone(tmp_path / "clip"), str(output))
    with pytest.raises(UsageError, match=r"fingerprint .* the backbone toybox-siglip2 to one with fingerprint"):
        release.export(str(head_folder), TOYBOX_BACKBONE, str(output))
    with pytest.raises(UsageError, match=r"does not fit .* width 48 and 128, MLP width 80 and 512"):
        release.export(trained_head(backbone), TOYBOX_BACKBONE, str(output))
    with pytest.raises(UsageError, match=r"head.probe holds numbers that float16 cannot"):
        release.export(infinite(backbone.head()), backbone, str(output))
    with pytest.raises(UsageError, match="metrics hold nothing to show"):
        release.export(trained_head(backbone), backbone, str(output), metrics={"rows": "none"})
    assert not output.parent.exists()


def test_an_empty_folder_is_filled(tmp_path: Path, backbone: Backbone) -> None:
    (tmp_path / "release").mkdir()
    release.export(trained_head(backbone), backbone, str(tmp_path / "release"))
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted(["release", *release.FILES])


def test_a_full_folder_is_left_alone(tmp_path: Path, backbone: Backbone, exported: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"is not empty \(it holds notes.txt\)"):
        release.export(trained_head(backbone), backbone, str(tmp_path))
    with pytest.raises(UsageError, match="holds another release"):
        release.export(trained_head(backbone, seed=5), backbone, str(exported))
    with pytest.raises(UsageError, match="is a file"):
        release.export(trained_head(backbone), backbone, str(tmp_path / "notes.txt"))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "release").mkdir()
    monkeypatch.setattr(os, "replace", lambda source, target: (_ for _ in ()).throw(OSError(28, "no space")))
    with pytest.raises(OSError, match="no space"):
        release.export(trained_head(backbone), backbone, str(tmp_path / "release"))
    assert [path.name for path in tmp_path.rglob("*")] == ["release"]


def elsewhere(root: Path, name: str) -> Location:
    """A place that is not on this machine's disks, as far as the library can see."""
    (root / name).mkdir()
    return Location(f"far://{name}", pafs.SubTreeFileSystem(str(root), pafs.LocalFileSystem()), name)


def test_a_release_can_lie_elsewhere(
    tmp_path: Path, exported: Path, backbone: Backbone, pictures: list[np.ndarray]
) -> None:
    place = elsewhere(tmp_path, "release")
    release.export(trained_head(backbone), backbone, place)
    assert sorted(path.name for path in (tmp_path / "release").iterdir()) == sorted(release.FILES)
    loaded = release.load(place, dtype="float32")
    assert loaded.backbone.spec == "far://release"
    assert torch.equal(loaded.embed(pictures), release.load(str(exported), dtype="float32").embed(pictures))
    assert torch.equal(release.initial_head(place, backbone).probe, loaded.head.probe)
    with pytest.raises(UsageError, match="far://release holds another release"):
        release.export(trained_head(backbone, seed=5), backbone, place)


def test_an_upload_that_fails_leaves_nothing(
    tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Location.write_bytes

    def failing(self: Location, data: bytes) -> None:
        if self.path.endswith("README.md"):
            raise OSError("the store is gone")
        written(self, data)

    monkeypatch.setattr(Location, "write_bytes", failing)
    monkeypatch.setattr(Location, "delete", lambda self: self.filesystem.delete_file(self.path))
    with pytest.raises(OSError, match="the store is gone"):
        release.export(backbone.head(), backbone, elsewhere(tmp_path, "release"))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "is no NearID release: its config.json is missing"),
        (lambda f: (f / "config.json").write_text('{"model_type": "bert"}'), "it holds a bert model; expected"),
        (lambda f: (f / "config.json").write_text('{"model_type": "nearid"}'), "has no vision_config"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda f: (f / "model.safetensors").write_bytes(b"0" * 100), "model.safetensors cannot be read"),
        (
            lambda f: save_file({"a": torch.zeros(1)}, f / "model.safetensors"),
            r"no tensor under backbone.vision_model.",
        ),
        (
            lambda f: save_file({"backbone.vision_model.head.probe": torch.zeros(1, 1, WIDTH)}, f / release.FILES[0]),
            r"lack .* tensor.* e.g. backbone.vision_model.embeddings",
        ),
        (lambda f: (f / "preprocessor_config.json").unlink(), "preprocessor_config.json is missing"),
    ],
)
def test_a_damaged_release_is_refused_by_name(
    exported: Path, tmp_path: Path, spoil: Callable[[Path], Any], message: str
) -> None:
    for path in exported.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    spoil(tmp_path)
    with pytest.raises(UsageError, match=message):
        release.load(str(tmp_path))


def test_the_card_says_what_it_is_for_what_not_and_what_was_measured(exported: Path) -> None:
    card = (exported / "README.md").read_text()
    for title in ("Usage", "Metrics", "Training", "Intended uses", "Out of scope", "Limitations", "Licences"):
        assert f"## {title}\n" in card
    for said in ("Face recognition", "surveillance", "| SSR | 0.9371 |", "alpha: 0.25", "val_ssr 0.875", "unknown"):
        assert said in card
    assert str(exported.parent) not in card and "/tmp" not in card


ROWS = [
    {"scorer": scorer, "condition": "full", "name": "all", "is_group": True, "units": 9, "ssr": ssr, "ssr_low": 0.5,
     "ssr_high": 0.6, "pa": None}
    for scorer, ssr in (("frozen", 0.5), ("one", 0.51234), ("two", 0.52))
]  # fmt: skip


def test_the_card_shows_an_evaluation_of_the_released_head_beside_the_frozen_one(
    tmp_path: Path, backbone: Backbone
) -> None:
    head, metrics = trained_head(backbone), {"rows": ROWS}
    release.export(head, backbone, str(tmp_path / "a"), card=CardText(scorer="one", name="me/it"), metrics=metrics)
    card = (tmp_path / "a" / "README.md").read_text()
    assert "| full | all | **this** | 9 | 51.23 (50.00 to 60.00) |  |" in card
    assert "| full | all | backbone's own | 9 | 50.00 (50.00 to 60.00) |  |" in card and "52.00" not in card
    assert 'from_pretrained("me/it", trust_remote_code=True)' in card
    with pytest.raises(UsageError, match=r"the heads one, two; say which is released \(--scorer NAME\)"):
        release.export(head, backbone, str(tmp_path / "b"), metrics=metrics)
    with pytest.raises(UsageError, match="no scorer 'three', but frozen, one, two"):
        release.export(head, backbone, str(tmp_path / "b"), card=CardText(scorer="three"), metrics=metrics)


def test_a_toy_backbone_is_called_one_on_the_card(tmp_path: Path) -> None:
    backbone = load_backbone(TOYBOX_BACKBONE)
    release.export(backbone.head(), backbone, str(tmp_path / "toy"))
    card = (tmp_path / "toy" / "README.md").read_text()
    assert "**Toy data, toy model.**" in card and "license: apache-2.0" in card
