"""Python of the user's, named `module:name` or `FILE.py:name`."""

import importlib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

from nearid_ray.errors import UsageError

_NAMED = re.compile(r"(?P<module>[A-Za-z_][\w.]*|.+\.py):(?P<name>[A-Za-z_]\w*)")


def split_name(spec: str) -> tuple[str, str] | None:
    """(module or FILE.py, name in it); None of a text that names no such thing.

    >>> [split_name(spec) for spec in ("my.metrics:dreamsim", "./mine.py:embed", "s3://bucket/head", "owner/model")]
    [('my.metrics', 'dreamsim'), ('./mine.py', 'embed'), None, None]
    """
    match = _NAMED.fullmatch(spec)
    return None if match is None else (match["module"], match["name"])


def is_named(spec: str) -> bool:
    """Whether a text names Python code: module:name or FILE.py:name."""
    return split_name(spec) is not None


def import_module(name: str, what: str, root: str | None = None) -> ModuleType:
    """The module of that name, or of a file ending in .py; a module's own imports may come from `root`, too.

    Args:
        name: a.b.c, or the path of a file.
        what: names it in messages, e.g. "the scorer mine.py:embed".
        root: a folder to import from; the working directory when left out, as `python -m` has it.

    Raises:
        UsageError: there is no such module or file, or importing it fails.
    """
    root = str(Path.cwd()) if root is None else root
    if root not in sys.path:
        sys.path.append(root)
    try:
        return _of_file(Path(name).expanduser().resolve()) if name.endswith(".py") else importlib.import_module(name)
    except UsageError:
        raise
    except Exception as error:  # importing runs a person's code
        raise UsageError(
            f"{what}: {name} cannot be imported ({type(error).__name__}: {error}); it must be installed, or lie in the "
            "working directory, on every machine"
        ) from error


def _of_file(file: Path) -> ModuleType:
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    found = importlib.util.spec_from_file_location(f"given_{file.stem}", file)
    if found is None or found.loader is None:
        raise ImportError(f"{file} is no Python file")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module
