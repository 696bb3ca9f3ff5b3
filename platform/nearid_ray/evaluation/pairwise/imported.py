"""Code of the user's, named `module:name` or `FILE.py:name`: found on the driver and again on the workers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nearid_ray.errors import UsageError
from nearid_ray.identifiers import content_hash
from nearid_ray.user_code import import_module, split_name


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A function, or a class that is made once a worker, of the user's."""

    spec: str
    module: str
    """Name of the module, or the absolute path of its file."""
    name: str
    root: str
    """Folder from which the module is imported."""
    source: str
    """Hash of the module's file, so that other code counts as another scorer."""
    arguments: Mapping[str, str]

    @classmethod
    def find(cls, spec: str, what: str, arguments: Sequence[str] = ()) -> "Imported":
        """That of `module:name` or `FILE.py:name`; the working directory counts as a place to import from.

        Args:
            what: names it in messages, e.g. "the extractor".
            arguments: KEY=VALUE entries, passed on as keyword arguments (strings).

        Raises:
            UsageError: there is no such module or name, or it cannot be called.
        """
        named = split_name(spec)
        if named is None:
            raise UsageError(f"{what} {spec!r}: expected module:function or FILE.py:function, e.g. metrics:compare")
        module_name, name = named
        given = {}
        for entry in arguments:
            key, equals, value = entry.partition("=")
            if not equals or not key.isidentifier() or key in given:
                raise UsageError(f"arguments has the entry {entry!r}; expected KEY=VALUE, each key once")
            given[key] = value
        here = str(Path.cwd())
        if module_name.endswith(".py"):
            module_name = str(Path(module_name).expanduser().resolve())
        module = import_module(module_name, f"{what} {spec}", here)
        found = getattr(module, name, None)
        if not callable(found):
            why = "is not there" if found is None else "cannot be called"
            raise UsageError(f"{what} {spec}: {name} {why} in {module.__file__}; expected a function or a class")
        file = Path(module.__file__).resolve() if module.__file__ else None
        depth = len(module_name.split(".")) + (file is not None and file.name == "__init__.py")
        root = here if file is None or module_name.endswith(".py") else str(file.parents[depth - 1])
        source = content_hash(file.read_bytes()) if file else ""
        return cls(spec=spec, module=module_name, name=name, root=root, source=source, arguments=given)

    def described(self) -> dict[str, Any]:
        """What decides what it computes, as far as it can be seen from here."""
        return {
            "code": f"{Path(self.module).name}:{self.name}",
            "source": self.source,
            "arguments": dict(self.arguments),
        }

    def load(self, what: str, device: str) -> Callable[..., Any]:
        """The function with its arguments; of a class an object, made with `device` as its first argument.

        Raises:
            UsageError: the module is not there on this machine, or the object cannot be made.
        """
        found = getattr(import_module(self.module, f"{what} {self.spec}", self.root), self.name)
        if not isinstance(found, type):
            return partial(found, **self.arguments) if self.arguments else found
        try:
            return found(device, **self.arguments)
        except UsageError:
            raise
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            raise UsageError(f"{what} {self.spec}: {self.name}({device!r}, ...) cannot be made: {said}") from error
