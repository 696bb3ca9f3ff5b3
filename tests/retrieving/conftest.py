"""Small datasets with pictures, and scorers that are functions."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from nearid_ray.data.importers.photos import PhotosImporter, PhotosSettings
from nearid_ray.data.ingest import ingest_task, plan_ingest
from nearid_ray.data.pipeline import run_shard
from nearid_ray.data.store import Dataset

FUNCTIONS = """
import numpy as np

def colours(images):
    return np.stack([np.concatenate([np.histogram(i[..., c], 8, (0, 256))[0] for c in range(3)]) + 1.0 for i in images])

def mean(images):
    return np.stack([i.reshape(-1, 3).mean(axis=0) + 1 for i in images])

def black_is_nothing(images):
    return np.stack([i.reshape(-1, 3).max(axis=0).astype(float) for i in images])
"""


def draw(file: Path, colour: tuple[int, int, int], seed: int) -> None:
    """A disc of one colour on a noisy ground, with its mask beside it."""
    random = np.random.default_rng(seed)
    image = random.integers(90, 160, (40, 40, 3), dtype=np.uint8)
    mask = np.zeros((40, 40), np.uint8)
    centre = (int(random.integers(16, 24)), int(random.integers(16, 24)))
    cv2.circle(image, centre, 12, colour, cv2.FILLED)
    cv2.circle(mask, centre, 12, 255, cv2.FILLED)
    (file.parent / "masks").mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(file), image[..., ::-1])
    cv2.imwrite(str(file.parent / "masks" / file.name), mask)


COLOURS = {"mug": (220, 30, 30), "car": (20, 200, 40), "hat": (30, 40, 220), "owl": (230, 220, 20)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder an identity, three photos each."""
    root = tmp_path_factory.mktemp("retrieving") / "my photos"
    for number, (name, colour) in enumerate(COLOURS.items()):
        for view in range(3):
            draw(root / name / f"{view}.png", colour, 10 * number + view)
    return root


@pytest.fixture(scope="module")
def tuples(photos: Path) -> Dataset:
    """The first two photos of each identity as tuples."""
    root = photos.parent / "gallery"
    for name in COLOURS:
        for view in range(2):
            for folder in ("", "masks"):
                target = root / name / folder / f"{view}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes((photos / name / folder / f"{view}.png").read_bytes())
    importer = PhotosImporter(PhotosSettings(root=str(root), size_px=32))
    dataset = Dataset(photos.parent / "tuples")
    plan = plan_ingest(importer, dataset)
    for shard in plan.shard_names:
        run_shard(ingest_task(importer), dataset, shard, plan.members(shard))
    return dataset


@pytest.fixture(scope="module")
def functions(photos: Path) -> Path:
    """A file of functions that embed."""
    file = photos.parent / "mine.py"
    file.write_text(FUNCTIONS)
    return file
