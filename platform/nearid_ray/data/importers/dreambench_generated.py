"""DreamBench++: what personalised generators made of the references.

<root>/<method>/tgt_image/<collection_id>/<prompt>_<image>.jpg and the prompts <root>/<method>/text/.../<...>.txt; the
copies of the reference in src_image are not read. A method's folder may carry its run's settings, as DreamBench++'s
own program names it: blip_diffusion_gs7_5_step100_seed42_torch_float16.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from nearid_ray.data.folder import Folder
from nearid_ray.data.images import decode_rgb
from nearid_ray.data.importers.dreambench import (
    SOURCE,
    category_of,
    identity_of,
    is_picture,
    normal,
    read_categories,
)
from nearid_ray.data.importers.importer import Record, Rejected, RowImporter
from nearid_ray.data.store import Dataset
from nearid_ray.errors import StoreError, UsageError
from nearid_ray.identifiers import stable_hash
from schemas import GENERATED

_RUN_SETTINGS = re.compile(r"(_scale[\d_]+)?_gs[\d_]+_step\d+_seed\d+_torch_\w+$")
_BYTES = 250_000
"""Rough size of a generated JPEG of 1024 pixels."""


def method_of(folder: str) -> str:
    """A method's name from the name of its folder or file.

    >>> method_of("ip_adapter_vit_g_sdxl_scale0_6_gs7_5_step100_seed42_torch_float16"), method_of("BLIP-Diffusion")
    ('ip_adapter_vit_g_sdxl', 'blip_diffusion')
    """
    return _RUN_SETTINGS.sub("", normal(folder)).replace("-", "_").replace(" ", "_").lower()


@dataclass(frozen=True, kw_only=True)
class DreambenchGeneratedSettings:
    """Where the generated pictures are."""

    root: str
    """Folder or s3://bucket/prefix with a folder a method (DreamBench++ calls it samples)."""
    images: str = "tgt_image"
    """Name of the folder with the generated pictures, in each method's folder."""
    texts: str = "text"
    """Name of the folder with the prompts, in each method's folder."""
    methods: tuple[str, ...] = ()
    """Methods to read; none named reads all."""
    categories: str = ""
    """JSON or CSV file with the category of each collection id; without one it is what the id begins with."""
    tuples: str = ""
    """Dataset of the references. With it, pictures of other collection ids are left out and counted."""

    def __post_init__(self) -> None:
        if not self.root:
            raise ValueError("root is empty; expected the folder with a folder of samples a method")
        for name in ("images", "texts"):
            if not getattr(self, name) or "/" in getattr(self, name):
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected the name of a folder")


class DreambenchGeneratedImporter(RowImporter):
    """Reads generated pictures, encoded as they came, with their method, prompt and place."""

    table = GENERATED
    source = SOURCE
    title = "DreamBench++ generated pictures"
    about = "What personalised generators made of DreamBench++'s references: a picture a method, reference and prompt."
    licence = "unknown"

    def __init__(self, settings: DreambenchGeneratedSettings) -> None:
        self.settings = settings
        self._folder = Folder(settings.root)
        self._facts: dict[str, Any] = {}

    def content(self) -> dict[str, Any]:
        return {"root": self._folder.uri, "images": self.settings.images, "texts": self.settings.texts}

    def facts(self) -> dict[str, Any]:
        return self._facts

    def bytes_per_row(self) -> int:
        return _BYTES

    def list_records(self) -> tuple[list[Record], list[Rejected]]:
        """(records, rejected) from file names; nothing is opened.

        Rejected are files that are not named PROMPT_IMAGE.jpg and, with `tuples`, pictures of other references. Raises
        UsageError where there is no picture, a method that was asked for is missing, or two folders are one method.
        """
        s = self.settings
        self._folder.check("a folder of samples a method")
        tree = self._folder.tree(depth=3)
        folders = self._methods(tree)
        table = read_categories(s.categories)
        known = reference_names(s.tuples)
        records: list[Record] = []
        rejected: list[Rejected] = []
        for folder, names in tree.items():
            if len(folder.parts) != 3 or folder.parts[0] not in folders or folder.parts[1] != s.images:
                continue
            method, name = folders[folder.parts[0]], normal(folder.parts[2])
            texts = set(tree.get(PurePosixPath(folder.parts[0], s.texts, folder.parts[2]), []))
            for file in names:
                left_out = {"record_id": str(folder / file), "identity_id": identity_of(name)}
                found = re.fullmatch(r"(\d+)_(\d+)", PurePosixPath(file).stem)
                if not is_picture(file) or not found:
                    detail = f"{file} is not named PROMPT_IMAGE.jpg, e.g. 3_0.jpg"
                    rejected.append(left_out | {"reason": "unknown-name", "detail": detail})
                elif known is not None and identity_of(name) not in known:
                    detail = f"{name} is not in {s.tuples}"
                    rejected.append(left_out | {"reason": "no-reference", "detail": detail})
                else:
                    prompt, image = int(found[1]), int(found[2])
                    text = f"{PurePosixPath(file).stem}.txt"
                    text_file = str(PurePosixPath(folder.parts[0], s.texts, folder.parts[2], text))
                    records.append(
                        {
                            "generated_id": stable_hash(identity_of(name), method, prompt, image),
                            "identity_id": identity_of(name),
                            "method": method,
                            "prompt_index": prompt,
                            "image_index": image,
                            "category": category_of(name, table),
                            "file": str(folder / file),
                            "text_file": text_file if text in texts else "",
                        }
                    )
        if not records:
            reasons = ", ".join(sorted({left_out["reason"] for left_out in rejected})) or f"no {s.images} with pictures"
            raise UsageError(f"{self._folder.uri}: no generated picture to read ({reasons})")
        counts = Counter(record["method"] for record in records)
        self._facts = {
            "pictures_of": dict(sorted(counts.items())),
            "without_text": sum(not record["text_file"] for record in records),
            "without_category": sum(not record["category"] for record in records),
        }
        return sorted(records, key=_order), rejected

    def rows(self, records: Sequence[Record]) -> Iterator[Record]:
        """One row a picture; one that cannot be read or decoded is a row with `error`."""
        kept = ("generated_id", "identity_id", "method", "prompt_index", "image_index", "category")
        for record in records:
            row = {name: record[name] for name in kept}
            row |= {"prompt": "", "image": None, "width_px": 0, "height_px": 0, "source": SOURCE, "error": ""}
            try:
                data = self._folder.read(record["file"])
                height, width = decode_rgb(data).shape[:2]
                if record["text_file"]:
                    row["prompt"] = self._folder.read(record["text_file"]).decode("utf-8-sig").strip()
                name = PurePosixPath(record["file"])
                path = "/".join((record["method"], *name.parts[2:]))
                row |= {"image": {"bytes": data, "path": path}, "width_px": width, "height_px": height}
            except (StoreError, UsageError):
                raise  # the store fails, not this picture
            except UnicodeDecodeError as error:
                row["error"] = f"{record['text_file']} is no text in UTF-8 ({error})"
            except (OSError, ValueError) as error:
                row["error"] = str(error)
            yield row

    def _methods(self, tree: dict[PurePosixPath, list[str]]) -> dict[str, str]:
        """Method by folder, for those that are asked for."""
        s = self.settings
        found = sorted({folder.parts[0] for folder in tree if len(folder.parts) > 1 and folder.parts[1] == s.images})
        if not found:
            raise UsageError(
                f"{self._folder.uri}: no METHOD/{s.images} folder; expected samples as DreamBench++ has them"
            )
        methods = {folder: method_of(folder) for folder in found}
        double = sorted(method for method, count in Counter(methods.values()).items() if count > 1)
        if double:
            raise UsageError(
                f"{self._folder.uri}: several folders are the method {', '.join(double)}; keep one of each"
            )
        wanted = {method_of(method) for method in s.methods} or set(methods.values())
        missing = sorted(wanted - set(methods.values()))
        if missing:
            there = ", ".join(sorted(methods.values()))
            raise UsageError(f"{self._folder.uri} has no method {', '.join(missing)}; it has {there}")
        return {folder: method for folder, method in methods.items() if method in wanted}


def reference_names(tuples: str) -> set[str] | None:
    """identity_id of all references in a dataset; None where no dataset is given."""
    if not tuples:
        return None
    return set(Dataset.open(tuples, "tuples").read(columns=["identity_id"])["identity_id"].to_pylist())


def _order(record: Record) -> tuple[str, str, int, int]:
    return record["method"], record["identity_id"], record["prompt_index"], record["image_index"]
