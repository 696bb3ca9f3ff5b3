"""How many passes the cluster can hold at once: a sweep that fits nowhere would wait for ever without a word."""

from dataclasses import dataclass

from nearid_ray.errors import UsageError
from nearid_ray.training.settings import WorkerSettings


@dataclass(frozen=True, kw_only=True)
class Room:
    """What a cluster has and what one pass takes of it."""

    cpus: float
    gpus: float
    pass_cpus: int
    pass_gpus: int
    passes: int
    """Passes that run at once."""

    def described(self) -> str:
        """The arithmetic."""
        have = f"{self.cpus:g} CPUs" + (f" and {self.gpus:g} GPUs" if self.gpus or self.pass_gpus else "")
        return f"a pass takes {_needs(self.pass_cpus, self.pass_gpus)}, the cluster has {have}: {self.passes} at once"


def room(where: WorkerSettings, cpus: float, gpus: float, wanted: int = 0) -> Room:
    """How many passes run at once; the settings' own number where one is wanted.

    Raises:
        UsageError: not even one has room, with the arithmetic.
    """
    on_gpu = where.gpu if where.gpu is not None else gpus >= where.fewest

    def fitting(workers: int) -> int:
        fits = int(cpus // (workers * where.threads))
        return min(fits, int(gpus // workers)) if on_gpu else fits

    pass_cpus, pass_gpus = where.workers * where.threads, where.workers if on_gpu else 0
    fits = fitting(where.workers) or min(1, fitting(where.fewest))
    found = Room(cpus=cpus, gpus=gpus, pass_cpus=pass_cpus, pass_gpus=pass_gpus, passes=wanted or fits)
    if not found.passes:
        kind = f"{where.workers} workers x {where.threads} CPUs" + (" and a GPU each" if on_gpu else "")
        raise UsageError(
            f"the sweep cannot be scheduled: a pass has {kind} = {_needs(pass_cpus, pass_gpus)}, the cluster has "
            f"{cpus:g} CPUs and {gpus:g} GPUs. Lower --workers or --threads, join a larger cluster (RAY_ADDRESS), or, "
            "where an autoscaler adds nodes, say with --passes how many passes are to run at once"
        )
    return found


def _needs(cpus: int, gpus: int) -> str:
    return f"{cpus} CPUs" + (f" and {gpus} GPUs" if gpus else "")
