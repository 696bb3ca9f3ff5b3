"""NearID's positives and distractors as they are published, in small, for tests. All pictures are drawn here."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tests.data.published import disc, encoded, scene

SLOTS = (1, 2, 3)
GAPS = {(1, 3), (2, 2), (4, 3)}
"""(row, slot) without a view."""
WIDTH_PX, HEIGHT_PX = 56, 48


def mask_of(row: int, slot: int) -> np.ndarray:
    """The object's mask (H, W): a disc whose place follows from row and slot."""
    return np.pad(disc(HEIGHT_PX, 9 + row % 3, (14 + 5 * slot, 20 + row)), ((0, 0), (0, WIDTH_PX - HEIGHT_PX)))


def view_of(row: int, slot: int) -> np.ndarray:
    """A view (H, W, 3): the identity's colour inside the mask, a scene of its own outside."""
    ground = cv2.resize(scene(100 * row + slot), (WIDTH_PX, HEIGHT_PX))
    return np.where(mask_of(row, slot)[..., None] > 0, np.uint8([40 * row % 256, 200, 30]), ground)


def distractor_of(row: int, slot: int, shade: int = 90, scale: int = 1) -> np.ndarray:
    """A distractor: another colour inside the view's mask, the same pixels outside, `scale` times as large."""
    speckle = np.random.default_rng([row, slot, shade]).integers(0, 60, (HEIGHT_PX, WIDTH_PX, 3), dtype=np.uint8)
    painted = np.where(mask_of(row, slot)[..., None] > 0, np.uint8(shade) + speckle, view_of(row, slot))
    return cv2.resize(painted, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC) if scale > 1 else painted


def positives(rows: int = 6, *, spelling: str = "img", masks: bool = True, **changes: Any) -> Any:
    """The positives as a `datasets.Dataset`; `changes` replace columns (a list each) or remove them (None)."""
    import datasets

    columns: dict[str, Any] = {
        "id": [1000 + 7 * row for row in range(rows)],
        "category": ["mug" if row % 2 else "toy car" for row in range(rows)],
        "category_description": [f"thing number {row}" for row in range(rows)],
        "n_images": [sum((row, slot) not in GAPS for slot in SLOTS) for row in range(rows)],
        "objaverse_id": [f"asset-{row}" for row in range(rows)],
        "quality": [0.5 + row for row in range(rows)],
    }
    pictures = {f"{spelling}{slot}": [_picture(row, slot, view_of) for row in range(rows)] for slot in SLOTS}
    if masks:
        pictures |= {f"masks{slot}": [_picture(row, slot, mask_of) for row in range(rows)] for slot in SLOTS}
    columns |= {f"prompts{slot}": [f"prompt {row} {slot}" for row in range(rows)] for slot in SLOTS}
    columns |= pictures | changes
    columns = {name: values for name, values in columns.items() if values is not None}
    made = datasets.Dataset.from_dict(columns)
    for name in pictures.keys() & columns.keys():
        made = made.cast_column(name, datasets.Image())
    return made


def distractors(rows: int = 6, *, shade: int = 90, scale: int = 1, **changes: Any) -> Any:
    """One engine's distractors as a `datasets.Dataset`, aligned with `positives`."""
    import datasets

    def draw(row: int, slot: int) -> np.ndarray:
        return distractor_of(row, slot, shade, scale)

    pictures = {f"nimg{slot}": [_picture(row, slot, draw) for row in range(rows)] for slot in SLOTS}
    columns = {"id": [1000 + 7 * row for row in range(rows)]} | pictures | changes
    columns = {name: values for name, values in columns.items() if values is not None}
    made = datasets.Dataset.from_dict(columns)
    for name in pictures.keys() & columns.keys():
        made = made.cast_column(name, datasets.Image())
    return made


def as_parquet(dataset: Any, folder: Path) -> Path:
    """Written as hubs keep it: folder/data/train-*.parquet, in row groups of two."""
    (folder / "data").mkdir(parents=True)
    dataset.to_parquet(folder / "data" / "train-00000-of-00001.parquet", batch_size=2)
    return folder


def index_file(file: Path, value: Any) -> Path:
    file.write_text(value if isinstance(value, str) else json.dumps(value))
    return file


def _picture(row: int, slot: int, draw: Any) -> dict[str, Any] | None:
    return None if (row, slot) in GAPS else {"bytes": encoded(draw(row, slot)), "path": None}
