"""GPUs by name: what they can do, and what an hour of one costs where nothing better is known."""

from dataclasses import dataclass

from nearid_ray.errors import UsageError

TERA = 1e12


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU."""

    name: str
    bf16_tflops: float
    """Dense bf16 matrix products, 10^12 operations a second, by the maker's data sheet."""
    memory_gib: float
    price_usd_h: float
    """Assumed price of an hour of one GPU: AWS on demand, us-east-1, an instance's price over its GPUs, rounded."""
    instance: str
    """The instance that price is of."""


GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu(name="t4", bf16_tflops=65, memory_gib=15, price_usd_h=0.75, instance="g4dn.2xlarge"),
        Gpu(name="a10g", bf16_tflops=70, memory_gib=22, price_usd_h=1.21, instance="g5.2xlarge"),
        Gpu(name="l4", bf16_tflops=121, memory_gib=22, price_usd_h=0.98, instance="g6.2xlarge"),
        Gpu(name="l40s", bf16_tflops=362, memory_gib=44, price_usd_h=2.24, instance="g6e.2xlarge"),
        Gpu(name="a100-40", bf16_tflops=312, memory_gib=39, price_usd_h=4.1, instance="p4d.24xlarge / 8"),
        Gpu(name="a100-80", bf16_tflops=312, memory_gib=79, price_usd_h=5.1, instance="p4de.24xlarge / 8"),
        Gpu(name="h100", bf16_tflops=989, memory_gib=79, price_usd_h=6.9, instance="p5.48xlarge / 8"),
        Gpu(name="h200", bf16_tflops=989, memory_gib=139, price_usd_h=7.9, instance="p5en.48xlarge / 8"),
    )
}
"""What T4 lists is float16: it has no bf16."""


def gpu_named(name: str) -> Gpu:
    """The GPU of that name.

    Raises:
        UsageError: it is not listed.

    >>> gpu_named("l40s").memory_gib
    44
    """
    if name not in GPUS:
        raise UsageError(
            f"gpu is {name!r}; expected one of {', '.join(GPUS)}. For another one give the nearest of these with "
            "--gpu-tflops and --price-per-gpu-hour"
        )
    return GPUS[name]
