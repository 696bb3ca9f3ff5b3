"""Small datasets in the layouts in which the real ones are published, for tests. All pictures are drawn here."""

import io
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

SIZE_PX = 48


def scene(seed: int, size_px: int = SIZE_PX) -> np.ndarray:
    """A smooth coloured picture (H, W, 3), which JPEG hardly changes."""
    rough = np.random.default_rng(seed).integers(30, 226, (4, 4, 3), dtype=np.uint8)
    return cv2.resize(rough, (size_px, size_px), interpolation=cv2.INTER_CUBIC)


def disc(size_px: int = SIZE_PX, radius_px: int = 14, centre: tuple[int, int] = (26, 22)) -> np.ndarray:
    """A mask (H, W) of 0 and 255 with a disc at (x, y)."""
    return cv2.circle(np.zeros((size_px, size_px), np.uint8), centre, radius_px, 255, cv2.FILLED)


def rendered(mask_HW: np.ndarray) -> np.ndarray:
    """A grey object with a dark stripe on black, as a renderer saves it."""
    image_HW3 = np.zeros((*mask_HW.shape, 3), np.uint8)
    image_HW3[mask_HW > 0] = (150, 140, 120)
    middle = mask_HW.shape[0] // 2
    image_HW3[middle - 2 : middle + 1, middle - 4 : middle + 4] = 0
    return image_HW3


def encoded(array: np.ndarray, form: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, form, **options)
    return stream.getvalue()


def put(file: Path, data: bytes | str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data.encode() if isinstance(data, str) else data)
    return file


def syncd_record(stem: str, *, kind: str = "rigid", views: int = 3, scores: bool = False, **changes: Any) -> dict:
    """A record of SynCD's metadata whose pictures are STEM_0.jpg, STEM_1.jpg, ..."""
    record: dict[str, Any] = {
        "filenames": [f"{stem}_{place}.jpg" for place in range(views)],
        "prompts": [f"a red mug {where}" for where in ("on a table", "is by a window", "in the sand")[:views]],
        "objaverse_id": f"asset{stem}" if kind == "rigid" else "",
        "category": kind,
    }
    if kind == "rigid":
        record["original_filenames"] = [f"renders/asset{stem}/0000{place}.png" for place in range(views)]
    if scores:
        record["aesthetics_scores"] = {f"{stem}_{place}": 5.5 + place for place in range(views)}
        record["dino_scores"] = [[0.7 + 0.1 * j if j > i else 0.0 for j in range(views)] for i in range(views)]
    return record | changes


def write_syncd(root: Path, records: list[dict], metadata: str = "metadata.json") -> Path:
    """SynCD's folder: JPEG pictures, JPEG masks (rendered on black; an eighth of the size if deformable), metadata."""
    for number, record in enumerate(records):
        for place, name in enumerate(record["filenames"]):
            mask_HW = disc(centre=(22 + 2 * place, 24))
            small_HW = cv2.resize(disc(radius_px=16, centre=(24, 24)), (6, 6), interpolation=cv2.INTER_AREA)
            drawn = rendered(mask_HW) if record["category"] == "rigid" else small_HW
            put(root / name, encoded(scene(10 * number + place), "JPEG", quality=95))
            put(root / "masks" / f"{Path(name).stem}.jpg", encoded(drawn, "JPEG", quality=75))
    put(root / metadata, json.dumps(records))
    return root


def mtg_row(number: int) -> dict[str, bytes | None]:
    """A row of Mind-the-Glitch: two pictures, of each a copy with a part painted anew, and the masks; PNG."""
    row: dict[str, bytes | None] = {}
    for image in (1, 2):
        original_HW3 = scene(100 + 10 * number + image)
        object_HW = disc(radius_px=10 + image, centre=(20 + image, 24))
        part_HW = disc(radius_px=4 + image, centre=(22, 26))
        painted_HW3 = np.where(part_HW[..., None] > 0, 255 - original_HW3, original_HW3)
        row |= {
            f"image_{image}_original": encoded(original_HW3),
            f"image_{image}_inpainted": encoded(painted_HW3),
            f"image_{image}_object_mask": encoded(object_HW),
            f"image_{image}_part_mask": encoded(part_HW),
        }
    return row


MTG_COLUMNS = tuple(f"image_{image}_{kind}" for kind in ("original", "inpainted", "object_mask", "part_mask")
                    for image in (1, 2))  # fmt: skip


def mtg_dataset(rows: list[dict[str, Any]]) -> Any:
    """The rows as the `datasets` library holds them, pictures as its Image feature."""
    import datasets

    features = datasets.Features({name: datasets.Image() for name in MTG_COLUMNS})
    columns = {
        name: [None if row[name] is None else {"bytes": row[name], "path": None} for row in rows]
        for name in MTG_COLUMNS
    }
    return datasets.Dataset.from_dict(columns, features=features)


REFERENCES = {
    "live_subject_animal_00_kitten": ("live_subject/animal/00", "Kitten"),
    "live_subject_human_12_samurai": ("live_subject/human/12", "samurai"),
    "object_03_t-shirt": ("object/03", "T-shirt"),
    "style_10_ukiyo-e_größe": ("style/10", "Ukiyo-e Größe"),
}
"""DreamBench++ references drawn here: collection id -> (path of picture and captions without ending, subject)."""

METHODS = ("dreambooth_sd", "emu2")


def write_references(root: Path, prompts: int = 9) -> Path:
    """DreamBench++'s references: images/**/NN.jpg and captions/**/NN.txt (subject, then the prompts)."""
    for number, (path, subject) in enumerate(REFERENCES.values()):
        put(root / "images" / f"{path}.jpg", encoded(scene(200 + number), "JPEG", quality=95))
        lines = [subject, *(f"{subject} in scene {prompt}" for prompt in range(prompts))]
        put(root / "captions" / f"{path}.txt", "\n".join(lines) + "\n")
    return root


def write_samples(root: Path, methods: tuple[str, ...] = METHODS, prompts: int = 3) -> Path:
    """What DreamBench++'s methods generated: METHOD/{src_image,tgt_image,text}/COLLECTION_ID/PROMPT_0.jpg|txt."""
    for number, method in enumerate(methods):
        for name in REFERENCES:
            for prompt in range(prompts):
                for folder, seed in (("src_image", 0), ("tgt_image", 300 + 10 * number + prompt)):
                    put(root / method / folder / name / f"{prompt}_0.jpg", encoded(scene(seed), "JPEG", quality=95))
                put(root / method / "text" / name / f"{prompt}_0.txt", f"{name} in scene {prompt}\n")
        put(root / method / "negative_prompt.txt", "")
    return root


def rating(group: int, name: str, prompt: int) -> int:
    """A made-up score, 0 to 4."""
    return (3 * group + len(name) + prompt) % 5


def write_human_ratings(root: Path, prompts: int = 3) -> Path:
    """DreamBench++'s merged_data: GROUP/METHOD-{cp,pf}.json, each in an order of its own."""
    for group in (1, 2):
        for method in METHODS:
            for ending in ("cp", "pf"):
                keys = [(name, prompt) for name in REFERENCES for prompt in range(prompts)]
                ordered = keys if group == 1 else keys[::-1]
                scores = {f"{name}-{prompt}": rating(group, name, prompt) for name, prompt in ordered}
                put(root / f"group{group}" / f"{method}-{ending}.json", json.dumps(scores))
    return root


def write_metric(root: Path, prompts: int = 3) -> Path:
    """A metric's scores: METHOD.json, with the picture's number in the keys."""
    for method in METHODS:
        scores = {f"{name}-{prompt}_0": 50.0 + prompt for name in REFERENCES for prompt in range(prompts)}
        put(root / f"{method}.json", json.dumps(scores))
    return root
