"""Calls to a server that may be away for a while: made at once, or kept in order and made when it answers again."""

import sys
import threading
import time
from collections import deque
from collections.abc import Callable

PATIENCE_S = 300.0
"""After so long without an answer the job goes on without the server."""

_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 15.0


class PatientCalls:
    """Makes calls to one server in the order in which they are given.

    While the server answers, a call is made at once, on the caller's thread. When one fails for an outage, it and those
    that follow are kept and made by a thread that tries again; the caller goes on. After `patience_s` of outage all of
    them are dropped, and said to be.
    """

    def __init__(self, server: str, is_outage: Callable[[Exception], bool], *, patience_s: float = PATIENCE_S) -> None:
        """`is_outage` tells whether an exception of a call means that the server is away; others are raised."""
        self._server, self._is_outage, self._patience_s = server, is_outage, patience_s
        self._kept: deque[Callable[[], object]] = deque()
        self._turn = threading.Lock()
        """Held by whoever makes a call, so that none overtakes another."""
        self._changed = threading.Condition()
        self._away_since: float | None = None
        self.given_up = False
        """Whether the server was away for too long; calls are then dropped."""

    def __call__(self, call: Callable[[], object]) -> None:
        """Make a call, now or later. Raises what it raises, unless that is an outage."""
        with self._turn:
            if self.given_up:
                return
            if not self._kept:
                try:
                    call()
                    return
                except Exception as error:
                    if not self._is_outage(error):
                        raise
                    self._begin_outage(error)
            self._kept.append(call)

    def close(self, wait_s: float | None = None) -> None:
        """Wait until all calls are made or dropped, `wait_s` at the most; what is then left is dropped."""
        with self._changed:
            done = self._changed.wait_for(lambda: self._away_since is None, wait_s)
        if not done:
            self._give_up()

    def _begin_outage(self, error: Exception) -> None:
        self._away_since = time.monotonic()
        _say(
            f"{self._server} does not answer ({_first_line(error)}); the job goes on, and what it logs is kept for "
            f"{self._patience_s / 60:.0f} min"
        )
        threading.Thread(target=self._try_again, daemon=True, name="patience").start()

    def _try_again(self) -> None:
        assert self._away_since is not None
        began, wait_s = self._away_since, _FIRST_WAIT_S
        while not self.given_up:
            time.sleep(min(wait_s, self._patience_s / 10))
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
            while self._kept:
                with self._turn:
                    if self.given_up or not self._make_next():
                        break
                wait_s = _FIRST_WAIT_S
            with self._turn:
                if not self._kept and not self.given_up:
                    _say(f"{self._server} answers again after {time.monotonic() - began:.0f} s; all is logged")
                    self._end_outage()
                    return
            if time.monotonic() - began > self._patience_s:
                self._give_up()

    def _make_next(self) -> bool:
        """Make the first kept call; whether it is done with."""
        try:
            self._kept[0]()
        except Exception as error:
            if self._is_outage(error):
                return False
            _say(f"{self._server} refused what was kept for it: {_first_line(error)}")
        self._kept.popleft()
        return True

    def _give_up(self) -> None:
        with self._turn:
            if self.given_up or self._away_since is None:
                return
            self.given_up = True
            _say(
                f"{self._server} has not answered for {time.monotonic() - self._away_since:.0f} s; {len(self._kept)} "
                "call(s) and all that follow are not logged. The job and its output are not affected."
            )
            self._kept.clear()
            self._end_outage()

    def _end_outage(self) -> None:
        with self._changed:
            self._away_since = None
            self._changed.notify_all()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
