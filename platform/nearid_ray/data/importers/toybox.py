"""The embedded source: procedural toybox identities with exact masks. Toy data, made to run anywhere."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from nearid_ray.data.images import encode_png
from nearid_ray.data.importers.importer import Record, Rejected, RowImporter
from nearid_ray.data.perceptual import perceptual_hash
from nearid_ray.data.views import empty_view, mask_columns
from nearid_ray.identifiers import content_hash, seed_of
from nearid_ray.toybox.captions import caption
from nearid_ray.toybox.identity import description
from nearid_ray.toybox.render import SIZE_PX, identity_from_seed, render, scene_from_seed, scene_seeds
from schemas import TUPLES


@dataclass(frozen=True, kw_only=True)
class ToyboxSettings:
    """How many toy identities to render."""

    data_seed: int = 0
    """Seed of the whole dataset; another seed gives other identities."""
    train_identities: int = 2000
    """Identities of the train split; 0 or more."""
    val_identities: int = 200
    """Identities of the val split; 0 or more."""
    test_identities: int = 500
    """Identities of the test split; 0 or more."""

    def __post_init__(self) -> None:
        counts = {"train": self.train_identities, "val": self.val_identities, "test": self.test_identities}
        for split, count in counts.items():
            if count < 0:
                raise ValueError(f"{split}_identities is {count}; expected 0 or more")
        if not any(counts.values()):
            raise ValueError("all of train_identities, val_identities and test_identities are 0; nothing to render")


class ToyboxImporter(RowImporter):
    """Renders toybox identities; see docs/toybox.md for what they are."""

    table = TUPLES
    source = "toybox"
    title = "Toybox tuples (procedural toy data)"
    about = (
        "Procedurally drawn toy objects at 64 px with exact masks, two or three views each on different backgrounds. "
        "Toy data: made to run and to test the whole pipeline anywhere, not to judge a model for real use."
    )
    licence = "apache-2.0"

    def __init__(self, settings: ToyboxSettings) -> None:
        self.settings = settings

    def content(self) -> dict[str, Any]:
        # The counts stay out: asking for more identities adds to a dataset, it does not change it.
        return {"data_seed": self.settings.data_seed, "size_px": SIZE_PX}

    def bytes_per_row(self) -> int:
        return 48 << 10

    def list_records(self) -> tuple[list[Record], list[Rejected]]:
        counts = {
            "train": self.settings.train_identities,
            "val": self.settings.val_identities,
            "test": self.settings.test_identities,
        }
        seed = self.settings.data_seed
        return [
            {
                "identity_id": f"toybox:{seed}-{split}-{index:06d}",
                "split": split,
                "identity_seed": seed_of("toybox", seed, split, index),
            }
            for split, count in counts.items()
            for index in range(count)
        ], []

    def rows(self, records: Sequence[Record]) -> Iterator[Record]:
        return map(self._row, records)

    def _row(self, record: Record) -> Record:
        identity = identity_from_seed(record["identity_seed"])
        views = []
        for place, scene_seed in enumerate(scene_seeds(record["identity_seed"])):
            scene = scene_from_seed(scene_seed)
            image_HW3, mask_HW = render(identity, scene)
            encoded, name = encode_png(image_HW3), f"{record['identity_id'].split(':')[1]}-{place}"
            views.append(
                empty_view("exact")
                | mask_columns(mask_HW, f"{name}-mask.png")
                | {
                    "view_id": content_hash(encoded),
                    "image": {"bytes": encoded, "path": f"{name}.png"},
                    "perceptual_hash": perceptual_hash(image_HW3),
                    "size_px": SIZE_PX,
                    "source_width_px": SIZE_PX,
                    "source_height_px": SIZE_PX,
                    "prompt": caption(identity, scene),
                    "provenance": json.dumps({"scene_seed": scene_seed}),
                }
            )
        return {
            "identity_id": record["identity_id"],
            "views": views,
            "category": identity.category,
            "description": description(identity),
            "object_kind": "rigid",
            "objaverse_id": "",
            "split": record["split"],
            "source": self.source,
            "provenance": json.dumps({"identity_seed": record["identity_seed"]}),
            "error": "",
        }
