"""The settings reader: what it accepts, what it refuses and in which words."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from nearid_ray.errors import UsageError
from nearid_ray.settings import build, digest, parse, read_yaml, to_dict


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Inner section."""

    alpha: float = 0.5
    """Weight, 0 or more."""
    names: tuple[str, ...] = ("a", "b")
    """Names."""
    mode: Literal["exact", "reference"] = "exact"
    """Mode."""
    limit: int | None = None
    """Limit, or none."""

    def __post_init__(self) -> None:
        if self.alpha < 0:
            raise ValueError(f"alpha is {self.alpha}; expected 0 or more")


@dataclass(frozen=True, kw_only=True)
class Outer:
    """A job."""

    output: str
    """Where to."""
    quick: bool = False
    """Be quick."""
    inner: Inner = Inner()


@dataclass(frozen=True, kw_only=True)
class Particular:
    """A job whose section has other defaults than the section's class."""

    output: str
    """Where to."""
    inner: Inner = field(default_factory=lambda: Inner(alpha=0.25, mode="reference"))


def _parse(*argv: str, presets=None) -> Outer:
    return parse(Outer, argv, prog="job", description="A job.", presets=presets)


def _yaml(tmp_path, text: str) -> str:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    return str(path)


def test_later_sources_win_defaults_preset_file_flags(tmp_path):
    presets = {"small": lambda: {"alpha": 1.0, "limit": 1, "mode": "reference", "output": "preset"}}
    file = _yaml(tmp_path, "alpha: 2.0\nlimit: 2")
    settings = _parse("--preset", "small", f"--config={file}", "--alpha", "3", presets=presets)
    assert settings == Outer(output="preset", inner=Inner(alpha=3.0, limit=2, mode="reference"))


def test_a_sections_own_default_wins_over_its_class_and_loses_to_file_and_flags(tmp_path):
    def particular(*argv: str) -> Particular:
        return parse(Particular, ["--output", "x", *argv], prog="job", description="A job.")

    assert particular() == build(Particular, {"output": "x"}) == Particular(output="x")
    assert particular("--config", _yaml(tmp_path, "alpha: 2.0")).inner == Inner(alpha=2.0, mode="reference")
    assert (
        particular("--mode", "exact").inner
        == Inner(alpha=0.25)
        == build(Particular, {"output": "x", "mode": "exact"}).inner
    )


@pytest.mark.parametrize(("text", "value"), [("1e-4", 1e-4), ("1E3", 1000.0), ("2", 2.0), ("-0.0", 0.0), (".5", 0.5)])
def test_numbers_in_yaml_are_numbers_in_every_spelling(tmp_path, text, value):
    assert _parse("--config", _yaml(tmp_path, f"output: x\nalpha: {text}")).inner.alpha == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("alhpa: 1", "unknown key alhpa; did you mean alpha?"),
        ("alpha: much", "alpha: expected float, found str 'much'"),
        ("alpha: true", "alpha: expected float, found bool True"),
        ("names: a", "names: expected a list, found str 'a'"),
        ("names: [a, 1]", "names: expected str, found int 1"),
        ("mode: fast", "mode: 'fast' is not one of 'exact', 'reference'"),
        ("limit: 1.5", "limit: expected int, found float 1.5"),
        ("quick: 1", "quick: expected bool, found int 1"),
        ("inner: {alpha: 1}", "unknown key inner"),
        ("- alpha", "expected `key: value` lines, found list"),
        ("alpha: 1\nalpha: 2", "key(s) given twice: alpha"),
        ("alpha: [", "is not YAML"),
    ],
)
def test_a_wrong_yaml_file_is_refused_in_words(tmp_path, text, said):
    with pytest.raises(UsageError) as refused:
        _parse("--output", "x", "--config", _yaml(tmp_path, text))
    assert said in str(refused.value)


def test_everything_wrong_in_a_file_is_said_at_once(tmp_path):
    with pytest.raises(UsageError) as refused:
        _parse("--output", "x", "--config", _yaml(tmp_path, "alpha: a\nquick: b\nnew: c"))
    assert all(name in str(refused.value) for name in ("alpha", "quick", "new"))


def test_a_missing_file_and_an_unknown_preset_are_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="--preset huge is unknown; known presets: small"):
        _parse("--preset", "huge", presets={"small": dict})


@pytest.mark.parametrize("argv", [(), ("--output", "x", "--alpha", "-1"), ("--output", "x", "--alhpa", "1")])
def test_wrong_flags_end_with_exit_code_2(argv, capsys):
    with pytest.raises(SystemExit) as ended:
        _parse(*argv)
    assert ended.value.code == 2
    assert capsys.readouterr().err


def test_a_value_out_of_range_names_the_field(capsys):
    with pytest.raises(SystemExit):
        _parse("--output", "x", "--alpha", "-1")
    assert "alpha is -1.0; expected 0 or more" in capsys.readouterr().err


def test_build_checks_like_a_file_and_names_what_is_missing():
    assert build(Outer, {"output": "x", "alpha": 1}).inner.alpha == 1.0
    with pytest.raises(UsageError, match="missing output"):
        build(Outer, {"alpha": 1.0})
    with pytest.raises(UsageError, match="alpha is -1"):
        build(Outer, {"output": "x", "alpha": -1.0})


def test_flat_dictionary_and_digest_follow_the_values_alone():
    settings = Outer(output="x", inner=Inner(names=("q",)))
    assert to_dict(settings) == {
        "output": "x", "quick": False, "alpha": 0.5, "names": ["q"], "mode": "exact", "limit": None,
    }  # fmt: skip
    assert digest(settings) == digest(dict(reversed(to_dict(settings).items())))
    assert digest(settings) != digest(Outer(output="x", inner=Inner(names=("q", "r"))))


def test_a_name_in_two_sections_is_the_programmers_error():
    @dataclass(frozen=True, kw_only=True)
    class Doubled:
        inner: Inner = Inner()
        alpha: float = 1.0

    with pytest.raises(TypeError, match="alpha"):
        build(Doubled, {})
