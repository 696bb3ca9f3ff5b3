"""NearID checkpoints in their released format: a trained head together with its backbone, written and read.

A release is a folder, or a repository on the hub, with `config.json` (model_type "nearid"), `model.safetensors`
(float16), `preprocessor_config.json`, two Python files and a README.md. transformers' `AutoModel` reads it with
`trust_remote_code=True`; `load` reads it without running any of its code. Backbones are models of the SigLIP family:
the format has no place for another one's pooling.

Axes: B images, D embedding width.
"""

import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from nearid_ray.data.store import Location, locate
from nearid_ray.errors import UsageError
from nearid_ray.models.backbone import Backbone, Precision, load_backbone
from nearid_ray.models.backbones.nearid import MODEL_TYPES, PREFIX, VISION_FIELDS, WEIGHTS_FILE
from nearid_ray.models.checkpoint import CALIBRATION_FILE, HeadCard, load_head
from nearid_ray.models.checkpoint import CARD_FILE as HEAD_CARD_FILE
from nearid_ray.models.files import ModelFiles
from nearid_ray.models.head import AttentionPoolingHead
from nearid_ray.models.pixels import PROCESSOR_FILE
from nearid_ray.models.release_card import CardText, model_card

CONFIG_FILE = "config.json"
README_FILE = "README.md"
CODE_FILES = ("configuration_nearid.py", "modeling_nearid.py")
FILES = (WEIGHTS_FILE, PROCESSOR_FILE, *CODE_FILES, README_FILE, CONFIG_FILE)
"""In the order in which they are written: who sees a config.json finds the rest. A head's calibration comes with it,
where there is one."""


class Release(NamedTuple):
    """A released checkpoint, loaded: what makes tokens of pictures, and what makes an embedding of tokens."""

    backbone: Backbone
    head: AttentionPoolingHead

    @torch.no_grad()
    def embed(self, images: Sequence[np.ndarray]) -> Tensor:
        """embedding_BD of length one, float32 on the CPU, of uint8 RGB pictures (H, W, 3)."""
        tokens_BTD = self.backbone.tokens_of(self.backbone.preprocess(images)).float()
        return functional.normalize(self.head(tokens_BTD.to(self.head.probe.device)), dim=-1).cpu()


def export(
    head: AttentionPoolingHead | str | Location,
    backbone: Backbone | str,
    output: str | Location,
    *,
    card: CardText | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> Location:
    """Write a head with its backbone in the released format. The folder appears whole or not at all.

    Args:
        head: a head, or the folder of one that training wrote.
        backbone: the one it was trained on, or where that lies.
        output: a folder that does not exist or is empty, or s3://bucket/prefix. One that holds this very release is
            left as it is.
        card: what the model card says beyond what is known.
        metrics: for the model card: what evaluate wrote to metrics.json, or any {name: number}.

    Returns:
        where it was written.

    Raises:
        UsageError: head and backbone do not belong together, the backbone has no attention pooling, a weight does not
            fit float16, or the output holds something else.
    """
    place = output if isinstance(output, Location) else locate(output)
    there = _names(place)
    strange = sorted(set(there) - {*FILES, CALIBRATION_FILE})
    if strange:
        raise UsageError(f"{place.uri} is not empty (it holds {strange[0]}); give a folder that is new or empty")
    loaded = backbone if isinstance(backbone, Backbone) else load_backbone(backbone)
    _check_family(loaded)
    described: HeadCard | None = None
    calibration: dict[str, bytes] = {}
    if not isinstance(head, AttentionPoolingHead):
        beside = (head if isinstance(head, Location) else locate(head)).child(CALIBRATION_FILE)
        calibration = {CALIBRATION_FILE: beside.read_bytes()} if beside.exists() else {}
        head, described = load_head(head)
        described.check_backbone(loaded.fingerprint, f"the backbone {loaded.spec}")
    _check_sizes(head, loaded)
    name = place.path.rstrip("/").rpartition("/")[2]
    contents = {
        **calibration,
        WEIGHTS_FILE: _weights(head, loaded),
        PROCESSOR_FILE: _json(_processor(loaded)),
        **{file: resources.files("nearid_ray.models.released").joinpath(file).read_bytes() for file in CODE_FILES},
        README_FILE: model_card(card or CardText(), loaded, described, metrics, name).encode(),
        CONFIG_FILE: _json(_config(loaded)),
    }
    if there:
        other = [file for file, data in contents.items() if file not in there or place.child(file).read_bytes() != data]
        if set(other) <= {CALIBRATION_FILE}:  # the head may have been calibrated since
            for file in other:
                place.child(file).write_bytes(contents[file])
            return place
        raise UsageError(f"{place.uri} holds another release; give a folder that is new or empty")
    _write(place, contents)
    return place


def load(
    source: str | Location,
    *,
    revision: str | None = None,
    dtype: Precision | Literal["auto"] = "auto",
    device: str = "cpu",
) -> Release:
    """A released checkpoint, ours or the published one, without running code that lies beside it.

    Args:
        source: a folder, s3://bucket/prefix, or a hub id such as Aleksandar/nearid-siglip2.
        revision: branch, tag or commit on the hub.
        dtype: what the backbone computes in, as `load_backbone` takes it; auto: float32 on a CPU, so that scores are
            the same on every one.
        device: "cpu" or "cuda".

    Raises:
        UsageError: there is no release, or it cannot be reached or read.
    """
    uri = source.uri if isinstance(source, Location) else source
    if dtype == "auto" and device == "cpu":
        dtype = "float32"
    with local_copy(source) as folder:
        files = ModelFiles.find(folder, revision, what="release")
        config = files.json(CONFIG_FILE)
        kind = None if config is None else config.get("model_type")
        if kind not in MODEL_TYPES:
            said = "its config.json is missing" if config is None else f"it holds a {kind} model"
            raise UsageError(f"{uri} is no NearID release: {said}; expected model_type {MODEL_TYPES[0]}")
        backbone = load_backbone(folder, revision=revision, dtype=dtype, device=device)
    if isinstance(source, Location) or "://" in source:
        backbone.spec = uri
    return Release(backbone, backbone.head().to(device))


def initial_head(source: str | Location, backbone: Backbone | Mapping[str, Any]) -> AttentionPoolingHead:
    """The head to start training from: one that training wrote, or that of a release.

    Args:
        source: the head's folder, local or on S3, or a release: folder, s3://bucket/prefix or hub id.
        backbone: what makes the tokens it is trained on, or what `Backbone.describe` says of it.

    Raises:
        UsageError: there is neither, or it belongs to another backbone. The backbone of a release must have the weights
            of this one up to their rounding to float16.
    """
    wanted = backbone.describe() if isinstance(backbone, Backbone) else backbone
    uri = source.uri if isinstance(source, Location) else source
    is_path = isinstance(source, Location) or "://" in uri or Path(uri).expanduser().exists()
    if is_path:
        place = source if isinstance(source, Location) else locate(source)
        if place.child(HEAD_CARD_FILE).exists():
            return load_head(place, wanted["fingerprint"])[0]
        if not place.child(CONFIG_FILE).exists():
            raise UsageError(
                f"{uri} holds no head to start from: neither {HEAD_CARD_FILE} (a head that training wrote) nor "
                f"{CONFIG_FILE} (a NearID release)"
            )
    release = load(source)
    if wanted["fingerprint"] == release.backbone.fingerprint:
        return release.head
    if wanted.get("tower_fingerprint") != release.backbone.tower_fingerprint:
        raise UsageError(
            f"the release {uri} was made with another backbone than these tokens: its vision model has the fingerprint "
            f"{release.backbone.tower_fingerprint}, that of {wanted.get('spec')} "
            f"{wanted.get('tower_fingerprint', 'is not known (embed again)')}; "
            f"embed with the release as backbone (--backbone {uri}), or start from a head for this one"
        )
    return release.head


def _check_family(backbone: Backbone) -> None:
    if not backbone.has_own_head:
        raise UsageError(
            f"the backbone {backbone.spec} pools by its class token; the released format holds models of the SigLIP "
            "family alone (SigLIP, SigLIP 2 of fixed resolution). Keep its head as training wrote it"
        )


def _check_sizes(head: AttentionPoolingHead, backbone: Backbone) -> None:
    sizes = {
        name: (getattr(head, own), getattr(backbone, theirs))
        for name, own, theirs in (
            ("width", "width", "width"),
            ("attention heads", "heads", "heads"),
            ("MLP width", "mlp_width", "mlp_width"),
            ("layer norm epsilon", "eps", "layer_norm_eps"),
        )
    }
    different = [f"{name} {own} and {theirs}" for name, (own, theirs) in sizes.items() if own != theirs]
    if different:
        raise UsageError(
            f"the head does not fit the backbone {backbone.spec}: head and backbone have {', '.join(different)}"
        )


def _weights(head: AttentionPoolingHead, backbone: Backbone) -> bytes:
    import safetensors.torch

    state = {name: value for name, value in backbone.weights().items() if not name.startswith("head.")}
    state |= {f"head.{name}": value for name, value in head.state_dict().items()}
    halves = {PREFIX + name: value.detach().cpu().half().contiguous() for name, value in state.items()}
    for name, value in halves.items():
        if not torch.isfinite(value).all():
            raise UsageError(f"{name} holds numbers that float16 cannot: not finite, or beyond 65504")
    return safetensors.torch.save(halves, metadata={"format": "pt"})


def _config(backbone: Backbone) -> dict[str, Any]:
    vision = backbone.architecture() | {"attention_dropout": 0.0}
    return {
        "architectures": ["NearIDModel"],
        "auto_map": {
            "AutoConfig": "configuration_nearid.NearIDConfig",
            "AutoModel": "modeling_nearid.NearIDModel",
        },
        "dtype": "float16",
        "embed_dim": backbone.width,
        "model_type": MODEL_TYPES[0],
        "normalize_embeddings": True,
        "vision_config": {name: vision[name] for name in VISION_FIELDS},
    }


def _processor(backbone: Backbone) -> dict[str, Any]:
    pixels = backbone.pixels
    side = {"height": pixels.image_px, "width": pixels.image_px}
    resized = pixels.resized_px or pixels.image_px
    cut: dict[str, Any] = {"do_center_crop": True, "crop_size": side} if pixels.resized_px else {}
    return {
        **cut,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(pixels.mean),
        "image_processor_type": "SiglipImageProcessor",
        "image_std": list(pixels.std),
        "resample": pixels.resample,
        "rescale_factor": pixels.scale,
        "size": {"shortest_edge": resized} if pixels.keeps_aspect else {"height": resized, "width": resized},
    }


def _json(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(data, indent=2) + "\n").encode()


def _names(place: Location) -> list[str]:
    if place.is_local:
        path = Path(place.path)
        if path.exists() and not path.is_dir():
            raise UsageError(f"{place.uri} is a file; give a folder that is new or empty")
        return sorted(entry.name for entry in path.iterdir()) if path.exists() else []
    return place.names()


def _write(place: Location, contents: Mapping[str, bytes]) -> None:
    if not place.is_local:
        _upload(place, contents)
        return
    target = Path(place.path)
    making = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        for name, content in contents.items():
            locate(making / name).write_bytes(content)
        try:
            os.replace(making, target)
        except OSError as error:
            raise UsageError(
                f"{place.uri} cannot be made ({error.strerror}); give a folder that is new or empty"
            ) from error
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _upload(place: Location, contents: Mapping[str, bytes]) -> None:
    done: list[str] = []
    try:
        for name, content in contents.items():
            place.child(name).write_bytes(content)
            done.append(name)
    finally:
        if len(done) < len(contents):
            for name in done:
                with suppress(OSError, UsageError):  # the first failure is the one to tell
                    place.child(name).delete()


@contextmanager
def local_copy(source: str | Location) -> Iterator[str]:
    """A model as a folder of this machine or a hub id; one on S3 is copied for the time of the block."""
    if isinstance(source, str) and "://" not in source:
        yield source
        return
    place = source if isinstance(source, Location) else locate(source)
    if place.is_local:
        yield place.path
        return
    with tempfile.TemporaryDirectory() as folder:
        for name in (CONFIG_FILE, WEIGHTS_FILE, PROCESSOR_FILE):
            if place.child(name).exists():
                Path(folder, name).write_bytes(place.child(name).read_bytes())
        yield folder
