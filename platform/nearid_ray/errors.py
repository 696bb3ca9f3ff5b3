"""Errors that are told in one message, without a traceback."""


class UsageError(ValueError):
    """A mistake in settings, paths or input data.

    The message says what was given, what was expected and what to do. Jobs print it without a traceback and end with
    exit code 2.
    """


class StoreError(OSError):
    """A store or machine that cannot do its part now: a full disk, a server that keeps failing, processes that die.

    Nothing is wrong with the command: run again later, it goes on. Jobs print the message without a traceback and end
    with exit code 1.
    """
