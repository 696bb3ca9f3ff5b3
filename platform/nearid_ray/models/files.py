"""A model's files: those of a folder, or those of a repository on the hub, which are fetched one by one."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nearid_ray import hub
from nearid_ray.errors import UsageError

TOYBOX_BACKBONE = "toybox-siglip2"
"""The backbone that ships with the package."""

EXPECTED_FILES = "config.json, model.safetensors and preprocessor_config.json"


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """Where a model's files lie.

    Attributes:
        spec: what was asked for; a name for messages.
        source: what transformers is to load: a folder or a hub id.
        local: whether it is a folder.
        revision: branch, tag or commit on the hub.
        what: what it is wanted as, for messages.
    """

    spec: str
    source: str
    local: bool
    revision: str | None = None
    what: str = "backbone"

    @classmethod
    def find(cls, spec: str, revision: str | None = None, *, what: str = "backbone") -> "ModelFiles":
        """Those of "toybox-siglip2" (shipped), of a folder, or of a hub id; the hub is not asked yet.

        Raises:
            UsageError: it is a file, or a path at which there is nothing.
        """
        if spec == TOYBOX_BACKBONE:
            from nearid_ray.toybox.backbone import weights_folder

            return cls(spec=spec, source=str(weights_folder()), local=True, what=what)
        if hub.is_folder(spec, what, EXPECTED_FILES):
            return cls(spec=spec, source=str(Path(spec).expanduser()), local=True, what=what)
        return cls(spec=spec, source=spec, local=False, revision=revision, what=what)

    def path(self, name: str) -> Path | None:
        """A file of the model, fetched where it lies on the hub; None where a folder has no such file.

        Raises:
            UsageError: it could not be fetched; says how to get it.
        """
        if self.local:
            path = Path(self.source, name)
            return path if path.is_file() else None
        from transformers.utils import cached_file

        try:
            return Path(str(cached_file(self.source, name, revision=self.revision)))
        except (OSError, ValueError) as error:
            raise self.not_fetched(name, error) from error

    def json(self, name: str) -> dict[str, Any] | None:
        """What a JSON file of the model says; None where a folder has no such file.

        Raises:
            UsageError: it could not be fetched, or is no JSON object.
        """
        path = self.path(name)
        return None if path is None else hub.read_settings(path, f"{self.what} {self.spec}: {name}")

    def load(
        self,
        model_class: Any,
        config: Any = None,
        state: dict[str, Tensor] | None = None,
        *,
        attention: str | None = "sdpa",
        trust_remote_code: bool = False,
    ) -> tuple[Any, str, list[str]]:
        """(a transformers model of the class in float32, the hub's commit, names of tensors it lacks).

        Args:
            model_class: a class of transformers.
            config: its config; the model's own when left out.
            state: its weights; the model's own when left out.
            attention: how attention is computed; None leaves it to transformers.
            trust_remote_code: run Python code that the model brings along.

        Raises:
            UsageError: the weights are missing, damaged or of other shapes.
        """
        from safetensors import SafetensorError

        try:
            # What the weights lack is drawn at random.
            with hub.quiet_transformers(), torch.random.fork_rng(devices=[]):
                model, report = model_class.from_pretrained(
                    self.source if state is None else None,
                    **({} if config is None else {"config": config}),
                    **({} if state is None else {"state_dict": state}),
                    revision=self.revision or "main",
                    local_files_only=self.local,
                    dtype=torch.float32,
                    **({} if attention is None else {"attn_implementation": attention}),
                    **({"trust_remote_code": True} if trust_remote_code else {}),
                    output_loading_info=True,
                )
        except pickle.UnpicklingError as error:
            raise UsageError(
                f"{self.what} {self.spec}: its weights are a pickle with more than tensors in it, which is not loaded. "
                f"Expected {EXPECTED_FILES}"
            ) from error
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            if not self.local and _is_of_the_hub(error):
                raise self.not_fetched("model.safetensors", error) from error
            raise UsageError(
                f"{self.what} {self.spec}: its weights cannot be read: {str(error).splitlines()[0]} "
                f"Expected {EXPECTED_FILES}"
            ) from error
        return model, getattr(model.config, "_commit_hash", None) or "", sorted(report["missing_keys"])

    def commit(self) -> str:
        """The hub's commit that the files are of; empty for a folder."""
        config = None if self.local else self.path("config.json")
        # The hub's cache keeps files by commit: .../snapshots/COMMIT/config.json
        return "" if config is None else config.parent.name

    def lacking(self, missing: list[str]) -> UsageError:
        """The error of weights that are not all there."""
        return UsageError(
            f"{self.what} {self.spec}: its weights lack {len(missing)} tensor(s) of the vision model, e.g. {missing[0]}"
        )

    def not_fetched(self, name: str, error: Exception) -> UsageError:
        """The error of a file that the hub did not give: which, why, and how to get it."""
        at = f" (revision {self.revision})" if self.revision else ""
        return UsageError(
            f"{self.what} {self.spec} is no folder here, and {name} could not be fetched from the hub{at}: "
            f"{hub.in_words(error, self.spec)}"
        )


def _is_of_the_hub(error: Exception) -> bool:
    return any(type(cause).__module__.startswith("huggingface_hub") for cause in hub.causes(error))
