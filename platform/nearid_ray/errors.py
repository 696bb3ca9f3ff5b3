"""The one error type that means: the person at the keyboard can mend this."""


class UsageError(ValueError):
    """A mistake in settings, paths or input data.

    The message says what was given, what was expected and what to do. Jobs print it without a traceback and end with
    exit code 2.
    """
