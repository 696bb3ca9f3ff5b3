"""Where training gets its tokens from, in a form that travels to the workers."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol

from nearid_ray.data.store import locate
from nearid_ray.embedding.augment import AugmentSettings
from nearid_ray.embedding.cache import TokenCache
from nearid_ray.embedding.plan import EmbedSettings
from nearid_ray.errors import UsageError
from nearid_ray.training.joined import JoinedCache
from nearid_ray.training.tokens import Cache


class TokenSource(Protocol):
    """Opens tokens, on the driver and on every worker."""

    def open(self, device: str = "cpu", threads: int = 1) -> Cache:
        """The tokens; `device` is where they are computed if they are, `threads` how many items are read at a time."""
        ...

    def describe(self) -> dict[str, str]:
        """The inputs by name, for the record."""
        ...


@dataclass(frozen=True)
class CachedTokens:
    """Token caches that embed wrote, of different data and one backbone."""

    uris: tuple[str, ...]

    def open(self, device: str = "cpu", threads: int = 1) -> Cache:
        """The caches as one; those on S3 are read through copies on this machine's disk."""
        return open_caches(self.uris, threads)

    def describe(self) -> dict[str, str]:
        return _numbered("tokens", self.uris)


@dataclass(frozen=True, kw_only=True)
class OnlineSettings:
    """With `--tokens online`: the data, and how its tokens are computed in the training workers."""

    tuples: tuple[str, ...] = ()
    """Tuples datasets to train on."""
    distractor_data: tuple[str, ...] = ()
    """The distractors dataset of each, in the same order."""
    backbone: str = "toybox-siglip2"
    """As in embed: toybox-siglip2, a folder in transformers' layout, or a hub id."""
    revision: str | None = None
    """Branch, tag or commit of a backbone on the hub."""
    image_px: int | None = None
    """As in embed: side of the picture that DINOv2 and DINOv3 are to read; others have their own."""
    backbone_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision the backbone computes in."""
    draws: int = 1
    """Augmented draws of a picture, of which each use takes one; 0 takes clean pictures. Costs nothing here."""
    picture_batch: int = 64
    """Pictures in one pass through the backbone, at least 1."""
    masked: bool = True
    """Whether backgrounds are blacked out with the probabilities of the roles."""
    distractor_mask: Literal["view", "painted"] = "view"
    """As in embed: what is kept of a distractor whose background is blacked out."""
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    """How the draws are made."""

    def __post_init__(self) -> None:
        if self.distractor_data and len(self.distractor_data) != len(self.tuples):
            raise UsageError(
                f"tuples names {len(self.tuples)} datasets, distractor_data {len(self.distractor_data)}; give the "
                "distractors of each tuples dataset, in the same order"
            )
        self.embedding()

    def embedding(self) -> EmbedSettings:
        """What embed would be given."""
        return EmbedSettings(
            backbone=self.backbone,
            revision=self.revision,
            image_px=self.image_px,
            dtype=self.backbone_dtype,
            batch_size=self.picture_batch,
            draws=self.draws,
            masked=self.masked,
            distractor_mask=self.distractor_mask,
            augment=self.augment,
        )


@dataclass(frozen=True)
class ComputedTokens:
    """Tokens that the training workers compute themselves."""

    settings: OnlineSettings

    def open(self, device: str = "cpu", threads: int = 1) -> Cache:
        """The items, and the backbone on the device."""
        from nearid_ray.embedding.online import OnlineTokens
        from nearid_ray.models.backbone import load_backbone

        said = self.settings
        backbone = load_backbone(
            said.backbone,
            revision=said.revision,
            dtype=said.backbone_dtype,
            device=device,
            image_px=said.image_px,
        )
        pairs = zip(said.tuples, said.distractor_data or [""] * len(said.tuples), strict=True)
        inputs = [{"tuples": one} | ({"distractors": other} if other else {}) for one, other in pairs]
        return OnlineTokens(inputs, backbone, said.embedding(), threads=threads)

    def describe(self) -> dict[str, str]:
        return _numbered("tuples", self.settings.tuples) | _numbered("distractors", self.settings.distractor_data)


def token_source(tokens: Sequence[str], online: OnlineSettings) -> TokenSource:
    """What `--tokens` means: caches, or `online`. Paths become absolute: workers have other working directories.

    Raises:
        UsageError: both or neither are given, or `online` without data.
    """
    if "online" not in tokens:
        if online.tuples or online.distractor_data:
            raise UsageError("tuples and distractor_data go with --tokens online; token caches know their own")
        return CachedTokens(_absolute(tokens))
    if len(tokens) > 1:
        raise UsageError(f"tokens names {list(tokens)}; expected token caches, or `online` alone")
    if not online.tuples:
        raise UsageError("--tokens online needs data: give --tuples and --distractor-data")
    backbone = Path(online.backbone).expanduser()
    return ComputedTokens(
        replace(
            online,
            tuples=_absolute(online.tuples),
            distractor_data=_absolute(online.distractor_data),
            backbone=str(backbone.resolve()) if backbone.is_dir() else online.backbone,
        )
    )


def _absolute(uris: Sequence[str]) -> tuple[str, ...]:
    return tuple(locate(uri).uri for uri in uris)


def open_caches(uris: Sequence[str], threads: int = 1, *, verify: bool = False) -> Cache:
    """One cache, or several as one.

    Raises:
        UsageError: there is none, one is named twice, or they do not go together (`JoinedCache`).
    """
    if not uris or len(set(uris)) != len(uris):
        raise UsageError(f"tokens names {list(uris)}; expected one or more token caches, each once")
    caches = [TokenCache.open(uri, threads=threads, verify=verify) for uri in uris]
    return caches[0] if len(caches) == 1 else JoinedCache(caches)


def _numbered(name: str, uris: Sequence[str]) -> dict[str, str]:
    return {name: uris[0]} if len(uris) == 1 else {f"{name}{place}": uri for place, uri in enumerate(uris)}
