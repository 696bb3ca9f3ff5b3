"""What is said of models that cannot be had, and of their files."""

import pytest

from nearid_ray import hub
from nearid_ray.errors import UsageError


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("GatedRepoError", "Accept them at https://huggingface.co/own/model, sign in with `hf auth login`"),
        ("RepositoryNotFoundError", "the hub has no such model, or it is private"),
        ("RevisionNotFoundError", "no such revision. Give a branch, tag or commit"),
        ("LocalEntryNotFoundError", "hf download own/model --local-dir FOLDER"),
    ],
)
def test_what_the_hub_answers_is_said_in_words(kind, said):
    from huggingface_hub import errors

    known = getattr(errors, kind)
    error = OSError("something long")
    error.__cause__ = known.__new__(known)  # as the libraries hand it on; its own text needs the hub's response
    assert said in hub.in_words(error, "own/model")


def test_code_of_a_model_that_is_older_than_transformers_is_said():
    error = NotImplementedError("Cannot copy out of meta tensor; no data!")
    assert "does not work with this version of transformers" in hub.in_words(error, "own/model")


@pytest.mark.parametrize(
    ("content", "said"), [(None, "cannot be read"), ("{", "cannot be read"), ("[1]", "holds no settings")]
)
def test_settings_that_are_none_are_refused_by_name(tmp_path, content, said):
    file = tmp_path / "config.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UsageError, match=f"^mask_model mine: config.json {said}"):
        hub.read_settings(file, "mask_model mine: config.json")
