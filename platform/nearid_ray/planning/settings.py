"""Settings of a cost plan."""

from dataclasses import dataclass

from nearid_ray.presets import TRAINING_ENGINES

HEADLINE_ENGINES = (*TRAINING_ENGINES, "powerpaint-512", "sdxl-512", "sdxl-1024")
"""The seven configurations of the published data set."""


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """Size of the data, kind of the machines, and what is assumed where nothing was measured."""

    identities: int = 19_386
    """Identities; 1 or more."""
    views: int = 45_215
    """Views of all identities together; at least two an identity."""
    test_identities: int = 500
    """Of these, identities that are measured."""
    engines: tuple[str, ...] = HEADLINE_ENGINES
    """Engine configurations; each paints one distractor into each view."""
    train_engines: tuple[str, ...] = TRAINING_ENGINES
    """Of these, the engines whose distractors are embedded for training."""
    mtg_samples: int = 5_600
    """Samples of Mind-the-Glitch beside them, two views and two distractors each; 0 for none."""
    backbone: str = "google/siglip2-so400m-patch14-384"
    """Backbone; for one that is not known give its size by the next four."""
    parameters: int | None = None
    """The backbone's parameters without its head."""
    layers: int | None = None
    """Its layers."""
    tokens: int | None = None
    """Tokens of a picture."""
    width: int | None = None
    """Width of a token."""
    draws: int = 1
    """Augmented draws of every training picture in the token cache; 1 or more."""
    global_batch: int = 128
    """Samples of a training step."""
    epochs: int = 11
    """Epochs of a training."""
    judge: bool = False
    """Count the VLM judge on every engine too."""
    gpu: str = "a100-80"
    """Kind of GPU, by name."""
    gpus: int = 8
    """Number of GPUs that synthesis and embedding may use at once; training of one head counts with one."""
    gpu_tflops: float | None = None
    """Its dense bf16 matrix products, 10^12 operations a second, where it is not the listed one."""
    price_per_gpu_hour: float | None = None
    """US dollars; by default the listed price of the GPU, which is an assumption."""
    utilisation: float = 0.35
    """Share of the matrix-product peak that models reach; above 0, at most 1. Assumed."""
    read_gib_s: float = 1.0
    """GiB of tokens a second that one training worker reads from its disk. Assumed."""
    storage_usd_gib_month: float = 0.023
    """Price of keeping a GiB for a month."""
    months: float = 1.0
    """How long the outputs are kept."""
    measured: tuple[str, ...] = ()
    """STAGE=FOLDER: outputs of jobs that ran on one such GPU a worker (ingest, synthesize, embed, train); their rows a
    second and bytes a row take the place of assumptions."""

    def __post_init__(self) -> None:
        for name in ("identities", "test_identities", "draws", "global_batch", "epochs", "gpus"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 1 or more")
        if self.views < 2 * self.identities:
            raise ValueError(
                f"views is {self.views} for {self.identities} identities; expected at least two an identity, "
                f"{2 * self.identities}"
            )
        if self.test_identities > self.identities:
            raise ValueError(f"test_identities is {self.test_identities} of {self.identities} identities")
        if not self.engines:
            raise ValueError("engines is empty; expected at least one engine configuration")
        if unknown := sorted(set(self.train_engines) - set(self.engines)):
            raise ValueError(f"train_engines has {', '.join(unknown)}, not among engines: {', '.join(self.engines)}")
        if self.mtg_samples < 0:
            raise ValueError(f"mtg_samples is {self.mtg_samples}; expected 0 or more")
        if not 0 < self.utilisation <= 1:
            raise ValueError(f"utilisation is {self.utilisation}; expected a share above 0, at most 1")
        for name in ("read_gib_s", "gpu_tflops"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} is {value}; expected a number above 0")
        for name in ("price_per_gpu_hour", "storage_usd_gib_month", "months"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} is {value}; expected 0 or more")
