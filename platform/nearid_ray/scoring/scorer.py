"""The scorer: pictures in, embeddings and similarities out. Plain PyTorch, no Ray.

Axes: N pictures or pairs, D embedding width.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from nearid_ray.data.store import Location, locate
from nearid_ray.errors import UsageError
from nearid_ray.models.backbone import TOYBOX_BACKBONE, Precision, load_backbone, resolve_dtype
from nearid_ray.models.checkpoint import CALIBRATION_FILE, CARD_FILE, load_head
from nearid_ray.models.release import local_copy
from nearid_ray.scoring.calibrated import ConditionCalibration, StoredCalibration, read_calibration
from nearid_ray.scoring.embedders import Embedder, ModelEmbedder, load_function
from nearid_ray.scoring.pictures import Picture, as_list, described, masks_list, read_foreground, read_picture
from nearid_ray.user_code import is_named

BATCH_SIZE = 32
_DECODERS = 8
"""Most threads that decode pictures while the model runs."""


class Scorer:
    """Embeds pictures and says how alike two of them are.

    Whole pictures are resized to the model's square as its preprocessor does it (SigLIP squeezes the longer side, CLIP
    and DINOv2 cut out the middle); nothing else is cropped. The evaluation's squares around the object give the same
    numbers here as there, up to the rounding of cached tokens to float16.

    Attributes:
        name: what it is called in tables and answers.
        batch_size: pictures that go through the model at a time.
        embedder: what makes the embeddings.
        calibration: what lay beside the weights, or was given; None where there is none.
    """

    def __init__(
        self,
        embedder: Embedder,
        *,
        name: str,
        batch_size: int = BATCH_SIZE,
        calibration: StoredCalibration | None = None,
    ) -> None:
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}; expected 1 or more")
        self.embedder, self.name, self.batch_size, self.calibration = embedder, name, batch_size, calibration

    def __repr__(self) -> str:
        return f"Scorer({self.embedder.spec!r}, name={self.name!r}, device={self.embedder.device!r})"

    @property
    def fingerprint(self) -> str:
        """Name of what it computes: of backbone, preprocessor and head, or of a function's file."""
        return self.embedder.fingerprint

    def embed(
        self,
        images: Picture | Sequence[Picture],
        *,
        masks: Picture | Sequence[Picture | None] | None = None,
        batch_size: int | None = None,
    ) -> NDArray[np.float32]:
        """Unit vectors (N, D) of one picture or several.

        Args:
            images: paths (also s3://bucket/key), Pillow images of any mode, uint8 arrays (H, W, 3), encoded bytes. The
                EXIF orientation is applied, transparency laid over white.
            masks: for each picture its object's mask (or None: the whole picture): the background is blacked out.
            batch_size: pictures at a time; `self.batch_size` when left out.

        Raises:
            UsageError: a picture cannot be read, or has no finite embedding; the message names it.
        """
        pictures = as_list(images)
        given = [None] * len(pictures) if masks is None else masks_list(masks)
        if len(given) != len(pictures):
            raise UsageError(f"{len(given)} masks for {len(pictures)} pictures; expected one a picture (None for none)")
        size = self.batch_size if batch_size is None else batch_size
        if size < 1:
            raise UsageError(f"batch_size is {size}; expected 1 or more")
        if not pictures:
            raise UsageError("no pictures were given; expected one or more")
        parts: list[NDArray[np.float32]] = []
        for batch in self._batches(pictures, given, size):
            parts.append(self.embedder.embed(batch))
            if parts[-1].shape[1] != parts[0].shape[1]:
                raise UsageError(
                    f"the scorer {self.name} gave {parts[0].shape[1]} numbers a picture, then {parts[-1].shape[1]}; "
                    "expected the same for all"
                )
        embedding_ND = np.concatenate(parts)
        bad = np.flatnonzero(~np.isfinite(embedding_ND).all(axis=1)).tolist()
        if bad:
            named = ", ".join(described(pictures[place], place) for place in bad[:3])
            raise UsageError(
                f"the scorer {self.name} gives no finite embedding of {len(bad)} of {len(pictures)} picture(s): {named}"
            )
        return embedding_ND

    def similarity(self, a: Picture, b: Picture, *, mask_a: Any = None, mask_b: Any = None) -> float:
        """Cosine of two pictures' embeddings, -1..1: higher = more alike."""
        first_D, second_D = self.embed([a, b], masks=[mask_a, mask_b])
        return cosines(first_D[None], second_D[None]).item()

    def similarities(
        self, a: Picture | Sequence[Picture], b: Picture | Sequence[Picture], *, batch_size: int | None = None
    ) -> NDArray[np.float64]:
        """Cosines (N,) of the pairs (a[i], b[i]). One picture on a side is compared with all of the other side.

        A path that stands several times is read once.

        Raises:
            UsageError: as `embed` does; or the sides differ in length.
        """
        first, second = as_list(a), as_list(b)
        if len(first) != len(second) and 1 not in (len(first), len(second)):
            raise UsageError(f"{len(first)} and {len(second)} pictures; expected as many of each, or one on a side")
        distinct: list[Any] = []
        place_of: dict[Any, int] = {}
        places = []
        for image in (*first, *second):
            key = str(image) if isinstance(image, str | os.PathLike) else ("object", id(image))
            if key not in place_of:
                place_of[key] = len(distinct)
                distinct.append(image)
            places.append(place_of[key])
        if not distinct:
            return np.empty(0)
        embedding_ND = self.embed(distinct, batch_size=batch_size)
        first_ND, second_ND = embedding_ND[places[: len(first)]], embedding_ND[places[len(first) :]]
        count = max(len(first), len(second))
        return cosines(*(np.broadcast_to(side, (count, side.shape[1])) for side in (first_ND, second_ND)))

    def probability(
        self, a: Picture, b: Picture, *, mask_a: Any = None, mask_b: Any = None, same_share: float = 0.5
    ) -> float:
        """Probability that two pictures show the same identity, 0..1, by the scorer's calibration.

        Args:
            same_share: share of same pairs to expect where it is used, above 0 and below 1. That of the pairs it was
                calibrated with says nothing: it follows from how many distractors the benchmark has.

        Raises:
            UsageError: as `embed` does; or there is no calibration, or it is another scorer's.
        """
        found = self.calibrated(_condition(mask_a, mask_b))
        similarity = self.similarity(a, b, mask_a=mask_a, mask_b=mask_b)
        return found.calibration.probability(similarity, same_share=same_share).item()

    def same(
        self, a: Picture, b: Picture, *, false_accept_rate: float = 0.01, mask_a: Any = None, mask_b: Any = None
    ) -> bool:
        """Whether two pictures count as the same identity at the threshold for a wished rate of false accepts.

        Raises:
            UsageError: as `probability` does; or the calibration has no threshold for this rate.
        """
        threshold = self.calibrated(_condition(mask_a, mask_b)).threshold(false_accept_rate)
        return self.similarity(a, b, mask_a=mask_a, mask_b=mask_b) >= threshold

    def calibrated(self, condition: str = "full") -> ConditionCalibration:
        """What turns this scorer's similarities into probabilities; "full" or "foreground" (backgrounds blacked out).

        Raises:
            UsageError: there is none, or it is another scorer's.
        """
        if self.calibration is None:
            raise UsageError(
                f"the scorer {self.name} has no calibration; fit one on validation pairs with jobs/calibrate.py, or "
                "give a calibration.json"
            )
        self.calibration.check(self.fingerprint, f"the scorer {self.name}")
        return self.calibration.of(condition)

    def _batches(self, pictures: list[Any], masks: list[Any], size: int) -> Iterator[list[NDArray[np.uint8]]]:
        """Decoded pictures, `size` at a time; the next batch is decoded while the model works on one."""

        def prepared(place: int) -> NDArray[np.uint8]:
            image, mask = pictures[place], masks[place]
            read = read_picture(image, place) if mask is None else read_foreground(image, mask, place)
            return self.embedder.shrunk(read)

        starts = range(0, len(pictures), size)
        if len(pictures) == 1:
            yield [prepared(0)]
            return
        pool = ThreadPoolExecutor(min(_DECODERS, os.cpu_count() or 1), "decode")
        try:
            ahead: deque[list[Future[NDArray[np.uint8]]]] = deque()
            for start in starts:
                ahead.append([pool.submit(prepared, p) for p in range(start, min(start + size, len(pictures)))])
                if len(ahead) > 1:
                    yield [future.result() for future in ahead.popleft()]
            while ahead:
                yield [future.result() for future in ahead.popleft()]
        finally:
            pool.shutdown(cancel_futures=True)


def _condition(mask_a: Any, mask_b: Any) -> str:
    if (mask_a is None) != (mask_b is None):
        raise UsageError("one picture has a mask, the other has none; calibrations hold for both or neither")
    return "full" if mask_a is None else "foreground"


def cosines(first_ND: NDArray[np.floating], second_ND: NDArray[np.floating]) -> NDArray[np.float64]:
    """Cosine of each pair of rows in float64, -1..1; nan where one is not finite.

    >>> cosines(np.array([[0.6, 0.8], [1.0, 0.0]]), np.array([[0.8, 0.6], [np.nan, 0.0]])).round(6).tolist()
    [0.96, nan]
    """
    first, second = first_ND.astype(np.float64), second_ND.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
        return np.clip(np.einsum("nd,nd->n", first, second) / lengths, -1.0, 1.0)


def load(
    spec: str,
    *,
    device: str = "auto",
    name: str | None = None,
    dtype: Precision | Literal["auto"] = "auto",
    batch_size: int = BATCH_SIZE,
    backbone: str | None = None,
    revision: str | None = None,
    image_px: int | None = None,
    calibration: str = "auto",
) -> Scorer:
    """A scorer; see `nearid_ray.load`.

    Args:
        spec: head folder, release, backbone, or function.
        device: auto, cpu, mps, cuda or cuda:N.
        name: of the scorer.
        dtype: what the backbone computes in; auto: bfloat16 on CUDA, else float32.
        batch_size: pictures that go through the model at a time.
        backbone: where a trained head's backbone lies now, if not where its card says.
        revision: branch, tag or commit of a model on the hub.
        image_px: side at which DINOv2 and DINOv3 read pictures, if not that of their preprocessor.
        calibration: auto: calibration.json beside the weights, where there is one; none; or such a file or its folder.

    Raises:
        UsageError: there is nothing of that kind, or it cannot be read, or there is no such device.
    """
    if not isinstance(spec, str):
        spec = os.fspath(spec)
    common: dict[str, Any] = {"name": name or default_name(spec), "batch_size": batch_size}
    if calibration not in ("auto", "none"):
        common["calibration"] = read_calibration(calibration)
    if is_named(spec) and not Path(spec).exists():
        return Scorer(load_function(spec), **common)
    device = find_device(device)
    precision = resolve_dtype(dtype, device) if dtype != "auto" or device.startswith("cuda") else "float32"
    place = locate(spec) if "://" in spec or Path(spec).expanduser().is_dir() else None
    options: dict[str, Any] = {"revision": revision, "dtype": precision, "device": device, "image_px": image_px}
    if calibration == "auto":
        common["calibration"] = _calibration_beside(spec, place, revision)
    if place is not None and place.child(CARD_FILE).exists():
        head, card = load_head(place)
        model = load_backbone(backbone or card.backbone, **options)
        card.check_backbone(model.fingerprint, f"the backbone {model.spec}")
        return Scorer(ModelEmbedder(model, head, spec, is_trained_head=True), **common)
    if place is not None and not place.child("config.json").exists():
        _refuse_folders_above(spec, place)
    if backbone is not None:
        raise UsageError(f"backbone is {backbone}, but {spec} is no folder of a trained head ({CARD_FILE} is missing)")
    with local_copy(spec) as here:
        model = load_backbone(here, **options)
    return Scorer(ModelEmbedder(model, model.pooling(), spec), **common)


def _refuse_folders_above(spec: str, place: Location) -> None:
    """UsageError with the folder that is meant, where heads lie below the one that is given."""
    if place.child("best", CARD_FILE).exists():
        meant = place.child("best")
    elif place.child("heads").exists():
        meant = place.child("heads", "NAME", "best")
    else:
        return
    raise UsageError(f"{spec} holds no head itself; give {meant.uri}, the folder with {CARD_FILE}")


def _calibration_beside(spec: str, place: Location | None, revision: str | None) -> StoredCalibration | None:
    """That of a folder, or of a repository on the hub; None where there is none."""
    if place is not None:
        return read_calibration(place) if place.child(CALIBRATION_FILE).exists() else None
    if spec == TOYBOX_BACKBONE or spec.count("/") != 1:
        return None
    from transformers.utils import cached_file

    with contextlib.suppress(OSError, ValueError):  # offline, or no such file: most repositories have none
        if found := cached_file(spec, CALIBRATION_FILE, revision=revision):
            return read_calibration(str(found))
    return None


def find_device(device: str) -> str:
    """The device that "auto" means, or the one named.

    Raises:
        UsageError: it is not there.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, number = device.partition(":")
    there = {
        "cpu": 1,
        "mps": int(torch.backends.mps.is_available()),
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
    }
    if kind not in there or (number and not number.isdecimal()):
        raise UsageError(f"device is {device!r}; expected auto, cpu, mps, cuda or cuda:N")
    if int(number or 0) >= there[kind]:
        found = ", ".join(f"{there[kind]} {kind}" for kind in there if there[kind])
        raise UsageError(f"device is {device!r}, which is not there; found {found}")
    return device


def everywhere(spec: str) -> str:
    """The spec with its local path made absolute: another process has another working directory."""
    file, colon, function = spec.rpartition(":")
    if colon and file.endswith(".py"):
        return f"{Path(file).expanduser().resolve()}:{function}"
    if is_named(spec) and Path(f"{file}.py").is_file():  # a module of the working directory
        return f"{Path(f'{file}.py').resolve()}:{function}"
    return str(Path(spec).expanduser().resolve()) if Path(spec).expanduser().is_dir() else spec


def default_name(spec: str) -> str:
    """The name of a scorer that was given none.

    >>> [default_name(s) for s in ("runs/heads/nearid-alpha-0.5/best", "owner/model", "mine.py:embed")]
    ['nearid-alpha-0.5', 'model', 'embed']
    """
    if is_named(spec):
        return spec.rpartition(":")[2]
    parts = [part for part in spec.rstrip("/").split("/") if part] or [spec]
    return parts[-2] if parts[-1] in ("best", "last") and len(parts) > 1 else parts[-1]
