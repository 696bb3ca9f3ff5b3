"""Who looks on while runs train together and may take some of them out, such as the scheduler of a sweep."""

from collections.abc import Collection, Mapping
from typing import Protocol

from nearid_ray.training.history import HistoryRow


class Steering(Protocol):
    """Called on the first worker. Travels to it, so it must be picklable; called again for a step that is repeated."""

    def validated(self, rows: Mapping[str, HistoryRow], steps: int) -> Collection[str]:
        """Hears of a validation of runs that train together for so many steps; names of those that are to leave."""
        ...

    def failed(self, reasons: Mapping[str, str]) -> None:
        """Hears of runs that have left because they could not go on."""
        ...
