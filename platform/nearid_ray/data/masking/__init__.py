"""Ways to find the object's mask of a picture that came without one."""

from nearid_ray.data.masking.masker import Masker, make_masker
from nearid_ray.data.masking.settings import MaskSettings

__all__ = ["MaskSettings", "Masker", "make_masker"]
