"""Settings of mask finding."""

from dataclasses import dataclass
from typing import Any, Literal

_METHODS = ("grabcut", "sam2", "birefnet", "none")
_DEFAULT_MODELS = {"sam2": "facebook/sam2.1-hiera-large", "birefnet": "ZhengPeng7/BiRefNet"}


@dataclass(frozen=True, kw_only=True)
class MaskSettings:
    """How masks are found for pictures that come without one."""

    mask_method: Literal["grabcut", "sam2", "birefnet", "none"] = "grabcut"
    """For pictures without a mask: `grabcut` finds the object by its colours, `sam2` by a SAM 2 model that GrabCut's
    guess prompts, `birefnet` by a model of foreground and background; `none` leaves them without one."""
    mask_model: str = ""
    """Hub id or folder of the model; by default facebook/sam2.1-hiera-large for sam2, ZhengPeng7/BiRefNet for
    birefnet."""
    mask_revision: str = ""
    """Branch, tag or commit of a model on the hub; empty for its main branch."""
    mask_trust_remote_code: bool = False
    """Run Python code that comes with the model. BiRefNet and its kin need it; read it, and fix the revision, first."""
    mask_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision that the model computes in. 16 bits are quicker on a GPU and may move single pixels of outlines."""
    mask_batch: int = 1
    """Pictures in one pass of the model, at least 1; halved when the GPU's memory is too small. With 1, a picture's
    mask depends on that picture alone, to the last pixel; more may move single pixels of outlines."""

    def __post_init__(self) -> None:
        if self.mask_method not in _METHODS:
            raise ValueError(f"mask_method is {self.mask_method!r}; expected one of {', '.join(_METHODS)}")
        if self.mask_dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"mask_dtype is {self.mask_dtype!r}; expected float32, bfloat16 or float16")
        if self.mask_batch < 1:
            raise ValueError(f"mask_batch is {self.mask_batch}; expected at least 1")
        if not self.uses_model:
            self._refuse_what_belongs_to_models()

    @property
    def uses_model(self) -> bool:
        """Whether the method is a trained model."""
        return self.mask_method in _DEFAULT_MODELS

    @property
    def model(self) -> str:
        """Hub id or folder of the model, the default filled in; empty for methods without one."""
        return self.mask_model or _DEFAULT_MODELS.get(self.mask_method, "")

    def _refuse_what_belongs_to_models(self) -> None:
        standard: dict[str, Any] = {"mask_model": "", "mask_revision": "", "mask_trust_remote_code": False,
                                    "mask_dtype": "float32", "mask_batch": 1}  # fmt: skip
        given = [name for name, default in standard.items() if getattr(self, name) != default]
        if given:
            raise ValueError(
                f"{', '.join(given)} given, but mask_method is {self.mask_method!r}, which uses no model; expected "
                f"mask_method {' or '.join(_DEFAULT_MODELS)} with it"
            )
