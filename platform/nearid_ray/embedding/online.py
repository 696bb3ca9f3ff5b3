"""Tokens computed when they are asked for, with the interface of a token cache.

For data whose tokens would take more disk than there is: the items are those that embed would cache, their pictures are
decoded, augmented and sent through the frozen backbone each time.

Axes: N items, S the backbone's image side in pixels, T tokens, D token width.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from nearid_ray.data.store import Dataset
from nearid_ray.embedding.copies import Copies, copies_folder
from nearid_ray.embedding.pictures import PLACES, MappedPictures, model_picture
from nearid_ray.embedding.plan import EmbedSettings, plan_embed
from nearid_ray.errors import UsageError
from nearid_ray.identifiers import content_hash, settings_digest
from nearid_ray.models.backbone import Backbone
from nearid_ray.settings import to_dict
from schemas import TOKENS_INDEX

_GREY = 128
_KEPT_BYTES = 4 << 30
"""Tokens of clean pictures, which every validation asks for again, are kept up to this size."""


class OnlineTokens:
    """Items of one or several datasets, and a backbone that says their tokens.

    Attributes:
        index: one row an item, as in a token cache.
        fingerprint: name of what the tokens are.
        backbone: who makes them.
        tokens, width: shape (T, D) of an item.
    """

    disk_bytes = 0

    def __init__(
        self,
        inputs: Sequence[Mapping[str, str]],
        backbone: Backbone,
        settings: EmbedSettings,
        *,
        threads: int = 1,
        copies: Copies | None = None,
    ) -> None:
        """Plans the items; reads no picture.

        Args:
            inputs: for each dataset {"tuples": URI} and, where there are any, {"distractors": URI}.
            backbone: on the device where it computes.
            settings: what embed would be given; `backbone`, `revision` and `dtype` are not looked at.
            threads: pictures decoded at a time.
            copies: where pictures are laid out for reading; a folder beside those of token caches when left out.

        Raises:
            UsageError: a dataset is not there, there is nothing to embed, or the backbone gives no tokens.
        """
        backbone.check_tokens("training")
        self._model, self._settings = backbone, settings
        self._copies = copies
        works, self._inputs = [], [dict(entry) for entry in inputs]
        digests = []
        for place, entry in enumerate(self._inputs):
            sets = {kind: Dataset.open(uri, kind) for kind, uri in entry.items()}
            work, _ = plan_embed(sets["tuples"], sets.get("distractors"), _planned(settings))
            works.append(work.append_column("dataset", pa.array(np.full(len(work), place))))
            digests.append({kind: dataset.digest() for kind, dataset in sets.items()})
        work = _with_draws(pa.concat_tables(works).combine_chunks(), settings.draws)
        self._work = work.select([*PLACES, "image_id", "masked", "draw", "dataset"])
        self.index = _index_of(work)
        said = {"backbone": backbone.fingerprint, "inputs": digests, "settings": to_dict(settings.augment)}
        items = "".join(self.index["item_id"].to_pylist()).encode() + work["draw"].to_numpy().tobytes()
        self.fingerprint = f"{settings_digest(said | {'dtype': backbone.dtype})}-online-{content_hash(items)[:16]}"
        self.backbone: dict[str, Any] = backbone.describe()
        self.tokens, self.width = backbone.tokens, backbone.width
        self._pictures: list[MappedPictures] | None = None
        self._pool = ThreadPoolExecutor(threads, "pictures")
        self._kept: dict[int, NDArray[np.float16]] = {}

    def __len__(self) -> int:
        return self.index.num_rows

    def head_state(self) -> dict[str, Any]:
        """Weights of the backbone's own head."""
        return self._model.head_state()

    def blank_TD(self) -> NDArray[np.float16]:
        """Tokens of a mid-grey picture."""
        side = self._model.pixels.image_px
        return self._embedded(np.full((1, side, side, 3), _GREY, np.uint8))[0]

    def gather(
        self, index_rows: NDArray[np.int64], out: NDArray[np.float16], places: NDArray[np.int64] | None = None
    ) -> NDArray[np.float16]:
        """Write the tokens of the given rows of `index` into `out` (N, T, D); returns `out`. Each is computed once.

        Raises:
            UsageError: a picture cannot be read.
        """
        pictures = self._opened()
        where = np.arange(len(index_rows)) if places is None else places
        unique, place_N = np.unique(index_rows, return_inverse=True)
        wanted = [int(row) for row in unique if int(row) not in self._kept]
        found: dict[int, NDArray[np.float16]] = dict(self._kept)
        coming = [self._pool.submit(self._picture, pictures, row) for row in wanted]
        for start in range(0, len(wanted), self._settings.batch_size):
            rows = wanted[start : start + self._settings.batch_size]
            images = np.stack([picture.result() for picture in coming[start : start + len(rows)]])
            found |= dict(zip(rows, self._embedded(images), strict=True))
        for place, position in zip(where.tolist(), place_N.tolist(), strict=True):
            out[place] = found[int(unique[position])]
        self._keep({row: found[row] for row in wanted})
        return out

    def _picture(self, pictures: Sequence[MappedPictures], row: int) -> NDArray[np.uint8]:
        item = self._work.slice(row, 1).to_pylist()[0]
        try:
            return model_picture(pictures[item["dataset"]], item, self._model.pixels, self._settings.augment)
        except ValueError as error:
            name = self.index["identity_id"][row].as_py()
            raise UsageError(
                f"{name}, view {item['view_index']}: {error}; repair the dataset (its job with --retry-errors), or "
                "train on a token cache, which leaves such pictures out"
            ) from error

    def _opened(self) -> list[MappedPictures]:
        if self._pictures is None:
            copies = self._copies or Copies(copies_folder().with_name("pictures"))
            opened = []
            for place, entry in enumerate(self._inputs):
                mine = self._work.filter(pc.equal(self._work["dataset"], place))
                pictures = MappedPictures(entry, copies)
                for kind, shard in (("input_kind", "input_shard"), ("mask_kind", "mask_shard")):
                    pairs = mine.select([kind, shard]).group_by([kind, shard]).aggregate([])
                    pictures.open(zip(pairs[kind].to_pylist(), pairs[shard].to_pylist(), strict=True))
                opened.append(pictures)
            self._pictures = opened
        return self._pictures

    def _embedded(self, image_NSS3: NDArray[np.uint8]) -> NDArray[np.float16]:
        device_images = torch.from_numpy(image_NSS3).to(self._model.device)
        tokens_NTD = self._model.tokens_of(self._model.pixels.normalised(device_images))
        return tokens_NTD.to(torch.float16).cpu().numpy()

    def _keep(self, found: Mapping[int, NDArray[np.float16]]) -> None:
        room = _KEPT_BYTES // (2 * self.tokens * self.width)
        for row, tokens_TD in found.items():
            if len(self._kept) < room and self._work["draw"][row].as_py() == 0:
                self._kept[row] = tokens_TD.copy()


def _planned(settings: EmbedSettings) -> EmbedSettings:
    """The settings with a single augmented draw; the others are the same items again."""
    values = {name: getattr(settings, name) for name in settings.__dataclass_fields__}
    return EmbedSettings(**values | {"draws": min(settings.draws, 1)})


def _with_draws(work: pa.Table, draws: int) -> pa.Table:
    """The work rows, those of draw 1 once for each of the draws 1..V."""
    if draws <= 1:
        return work
    count_N = np.where(work["draw"].to_numpy() == 1, draws, 1)
    row_M = np.repeat(np.arange(len(work)), count_N)
    number_M = np.arange(len(row_M)) - np.repeat(np.cumsum(count_N) - count_N, count_N)
    taken = work.take(pa.array(row_M))
    draw_M = taken["draw"].to_numpy() + number_M
    place = taken.column_names.index("draw")
    return taken.set_column(place, "draw", pa.array(draw_M.astype(np.int32)))


def _index_of(work: pa.Table) -> pa.Table:
    """The work rows as the index of a cache. Draws of one item share its name."""
    columns = {
        "item_id": work["row_id"],
        "shard": pa.array(["online"] * len(work)),
        "row": pa.array(np.arange(len(work))),
        "error": pa.array([""] * len(work)),
    }
    named = [columns.get(name, work[name] if name in work.column_names else None) for name in TOKENS_INDEX.schema.names]
    return pa.table(dict(zip(TOKENS_INDEX.schema.names, named, strict=True)))
