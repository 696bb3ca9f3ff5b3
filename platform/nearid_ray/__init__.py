"""NearID on Ray: make near-identity distractors, learn identity-aware image embeddings from them, and measure them.

import nearid_ray

scorer = nearid_ray.load("runs/demo/train/heads/nearid-alpha-0.5/best")
scorer.similarity("a.jpg", "b.jpg")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nearid_ray.scoring.scorer import Scorer

__version__ = "0.1.0"


def load(spec: str, *, device: str = "auto", name: str | None = None, **options: Any) -> "Scorer":
    """A scorer: embeds pictures and says how alike two of them are. Plain PyTorch, no Ray.

    Args:
        spec: folder of a trained head, local or on S3 (its card names the backbone); a NearID release or a backbone,
            as folder, s3://bucket/prefix or hub id; or `module:function` / `FILE.py:function`, a function of yours
            that makes an array (N, D) of a list of N uint8 arrays (H, W, 3).
        device: auto (the first of cuda, mps and cpu that is there), or one of them.
        name: what it is called in tables and answers; by default a name made of `spec`.
        options: what `nearid_ray.scoring.scorer.load` takes besides: dtype, batch_size, backbone, revision, image_px,
            calibration.

    Raises:
        UsageError: there is nothing of that kind, or it cannot be read.
    """
    from nearid_ray.scoring.scorer import load as load_scorer  # torch takes seconds to import

    return load_scorer(spec, device=device, name=name, **options)
