"""What a token cache would hold, and whether what it holds is still what was written."""

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from nearid_ray.data.store import Dataset, read_parquet
from nearid_ray.embedding.cache import BACKBONE_FILE, TOKENS_FOLDER
from nearid_ray.embedding.plan import EmbedSettings, plan_embed
from nearid_ray.embedding.shards import STORED, MappedShard, NoChecksums, item_bytes
from nearid_ray.errors import UsageError
from nearid_ray.models.backbone import load_backbone
from schemas import TOKENS_INDEX

_SLOTS = 3
"""Views of an identity that a training sample shows, each with a distractor in its background."""


def described_embedding(tuples: str, distractors: str | None, settings: EmbedSettings) -> dict[str, Any]:
    """What embed would make, by name, for people to read; writes nothing.

    Raises:
        UsageError: a dataset or the backbone is not there, or there is nothing to embed.
    """
    sets = (Dataset.open(tuples, "tuples"), Dataset.open(distractors, "distractors") if distractors else None)
    work, rejected = plan_embed(*sets, settings)
    backbone = load_backbone(
        settings.backbone,
        revision=settings.revision,
        dtype="float32",
        image_px=settings.image_px,
        trust_remote_code=settings.trust_remote_code,
    )
    splits = sorted(Counter(work["split"].to_pylist()).items())
    sizes = {
        f"{stored} on disk": f"{work.num_rows * item_bytes(backbone.tokens, backbone.width, stored) / 2**30:,.2f} GiB"
        for stored in STORED
    }
    views = work.filter(pc.and_(pc.equal(work["split"], "train"), pc.equal(work["engine"], "")))
    counts = views.group_by("identity_id").aggregate([("view_index", "count_distinct")])["view_index_count_distinct"]
    pictures = sum(2 * min(count, _SLOTS) for count in counts.to_pylist())
    return {
        "backbone": f"{backbone.spec}, {backbone.describe()['parameters']:,} parameters, all frozen",
        "items": f"{work.num_rows:,} of {backbone.tokens} x {backbone.width}"
        f" ({', '.join(f'{split} {count:,}' for split, count in splits)})",
        "left out": f"{len(rejected):,}" + (f" ({said})" if (said := _reasons(rejected)) else ""),
        **sizes,
        "instead, online": f"no disk; {pictures:,} pictures through the backbone in each epoch of training "
        f"(this cache: {work.num_rows:,} once)",
    }


def _reasons(rejected: list[dict[str, str]]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in sorted(Counter(r["reason"] for r in rejected).items()))


def forget_damaged(output: Dataset) -> list[str]:
    """Compare a cache's token files with their checksums and unmark the shards that fail, so that they are made again.

    Returns:
        Names of the shards that are now missing.

    Raises:
        UsageError: an earlier version wrote the cache, without checksums.
    """
    backbone = output.read_json(BACKBONE_FILE)
    if backbone is None or not _is_cache(output):
        raise UsageError(f"{output.location.uri} holds no token cache to verify")
    return [name for name in output.shards() if _forgotten(output, name, backbone["tokens"], backbone["width"])]


def forget_missing(output: Dataset) -> list[str]:
    """Unmark the shards of a cache whose token files are gone, so that they are made again; their names.

    Anything but a token cache is left alone.
    """
    if not _is_cache(output):
        return []
    there = set(output.location.child(TOKENS_FOLDER).names(".arrow"))
    lost = [name for name in output.shards() if f"{name}.arrow" not in there]
    for name in lost:
        output.shard(name).delete()
    return lost


def _is_cache(output: Dataset) -> bool:
    return (output.settings() or {}).get("table") == TOKENS_INDEX.name


def _forgotten(output: Dataset, name: str, tokens: int, width: int) -> bool:
    place = output.location.child(TOKENS_FOLDER, f"{name}.arrow")
    items = read_parquet(output.shard(name), columns=["row"]).num_rows
    with tempfile.TemporaryDirectory() as folder:
        path = Path(place.path)
        if not place.is_local and place.exists():
            path = Path(folder, "shard.arrow")
            path.write_bytes(place.read_bytes())
        try:
            fine = not MappedShard(path, items, tokens, width).damaged()
        except NoChecksums:
            raise
        except UsageError:
            fine = False
    if not fine:
        output.shard(name).delete()
    return not fine
