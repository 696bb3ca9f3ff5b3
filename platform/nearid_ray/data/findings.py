"""What a check of datasets found: counted by kind, with a few examples each."""

from collections import Counter
from dataclasses import dataclass, field

_EXAMPLES = 3

NOTES = ("lock", "no-card", "row-with-error", "shared-picture", "near-duplicate", "not-compared")
"""Kinds of findings that a person should know of and that make nothing wrong."""


@dataclass
class Findings:
    """Findings of one dataset, or of a part of it."""

    counts: Counter[str] = field(default_factory=Counter)
    """How many of each kind."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """Where and what, the first few of each kind."""
    checked: Counter[str] = field(default_factory=Counter)
    """How much was looked at, e.g. rows, pictures."""

    def add(self, kind: str, said: str, count: int = 1) -> None:
        """One more finding (or `count` of them that `said` sums up)."""
        self.counts[kind] += count
        examples = self.examples.setdefault(kind, [])
        if len(examples) < _EXAMPLES:
            examples.append(said)

    def merge(self, other: "Findings") -> None:
        """Take in what another part found."""
        self.counts.update(other.counts)
        self.checked.update(other.checked)
        for kind, said in other.examples.items():
            mine = self.examples.setdefault(kind, [])
            mine += said[: _EXAMPLES - len(mine)]

    def problems(self, also: tuple[str, ...] = ()) -> int:
        """How many findings make the data wrong; `also` names kinds of notes that count as such."""
        return sum(count for kind, count in self.counts.items() if kind not in NOTES or kind in also)
