"""A trained head of the toy backbone, pictures on disk, and functions as a person would write them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nearid_ray.models.backbone import TOYBOX_BACKBONE, Backbone, load_backbone
from nearid_ray.models.checkpoint import HeadCard, save_head
from nearid_ray.models.head import AttentionPoolingHead

FUNCTIONS = '''
import numpy as np

def means(images):
    """The mean colour, from the middle grey."""
    return np.stack([image.reshape(-1, 3).mean(axis=0) - 127.5 for image in images])

def raises(images):
    raise RuntimeError("no weights")

def flat(images):
    return np.zeros(len(images))

def nans(images):
    return np.full((len(images), 4), np.nan)

def texts(images):
    return [["a", "b"]] * len(images)

def huge(images):
    return means(images) * 1e300
'''


def coarse(seed: int, size: tuple[int, int] = (96, 80)) -> np.ndarray:
    """A smooth coloured picture (H, W, 3), different for every seed; size is (width, height)."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.array(Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC))


def moved_head(backbone: Backbone, seed: int = 1) -> AttentionPoolingHead:
    """The backbone's head, moved as training would."""
    head, generator = backbone.head(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return head


@pytest.fixture(scope="session")
def toy() -> Backbone:
    return load_backbone(TOYBOX_BACKBONE, dtype="float32")


@pytest.fixture(scope="session")
def head_folder(toy: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads") / "nearid-toy" / "best"
    head = moved_head(toy)
    save_head(str(folder), head, HeadCard.of(head, toy.spec, toy.fingerprint))
    return folder


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Six pictures of several sizes; the last is no picture."""
    folder = tmp_path_factory.mktemp("pictures")
    sizes = ((96, 80), (64, 64), (40, 120), (200, 150), (64, 64))
    paths = [folder / f"{number}.png" for number in range(len(sizes))]
    for number, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        Image.fromarray(coarse(number, size)).save(path)
    (folder / "broken.png").write_bytes(b"not a picture")
    return [*paths, folder / "broken.png"]


@pytest.fixture(scope="session")
def functions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("functions") / "mine.py"
    file.write_text(FUNCTIONS)
    return file
