"""Batches that fit the memory of a GPU, whatever its size. Torch is used only where it is imported already."""

import gc
import sys
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class FittingBatches(Generic[Item, Result]):
    """Gives items to a function in batches, and remembers how many fit the GPU's memory."""

    def __init__(
        self,
        call: Callable[[list[Item]], list[Result]],
        most: int | None = None,
        *,
        what: str = "rows",
        who: str = "",
        fatal: tuple[type[Exception], ...] = (),
        tell: Callable[[str], None] | None = None,
    ) -> None:
        """
        Args:
            call: one result an item, in order; what it raises is of the whole batch.
            most: items given to it at once, 1 or more; all of them when left out.
            what: names the items in messages.
            who: names the function in messages.
            fatal: what is wrong with all items: raised, not tried again.
            tell: is told when a batch did not fit; standard error by default.
        """
        self.most = most
        """Items that fit at once; halved whenever so many did not."""
        self._call, self._what, self._who = call, what, f"{who}: " if who else ""
        self._fatal, self._tell = fatal, tell or _tell

    def run(self, items: Sequence[Item]) -> list[Result | Exception]:
        """One result an item, in order. A batch too large for the GPU's memory is halved, and so are all later ones;
        of a batch that failed otherwise each item is tried alone once, and what that raises is its result.

        Raises:
            What is `fatal`.
        """
        results: list[Result | Exception] = []
        while len(results) < len(items):
            part = list(items[len(results) : len(results) + (self.most or len(items))])
            made = self._attempt(part)
            if isinstance(made, list):
                results += made
            elif len(part) == 1:
                results.append(made)
            elif is_out_of_memory(made):
                self.most = len(part) // 2
                self._tell(
                    f"{self._who}{len(part)} {self._what} do not fit the GPU's memory; this worker goes on with "
                    f"{self.most} at once"
                )
                free_memory()
            else:
                for item in part:
                    alone = self._attempt([item])
                    results += alone if isinstance(alone, list) else [alone]
        return results

    def _attempt(self, part: list[Item]) -> list[Result] | Exception:
        try:
            return self._call(part)
        except self._fatal:
            raise
        except Exception as error:
            return error.with_traceback(None)  # its frames would keep the GPU's memory


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch said that the GPU's memory is full."""
    return type(error).__name__ == "OutOfMemoryError"


def free_memory() -> None:
    """Give back the GPU memory of what nothing refers to any more."""
    gc.collect()
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        sys.modules["torch"].cuda.empty_cache()


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
