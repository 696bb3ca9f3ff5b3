"""Which scorers a search compares, and which of them must embed pictures first."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from nearid_ray.data.store import Dataset
from nearid_ray.errors import UsageError
from nearid_ray.retrieving.embed import NamedScorer, known_scorers, named_scorers
from nearid_ray.retrieving.sheets import short
from nearid_ray.retrieving.vectors import scorers_in


def choose_scorers(
    entries: Sequence[str], embedded: Dataset | None, *, pictures: bool, embeddings: bool
) -> tuple[list[str], list[NamedScorer]]:
    """(names of the scorers to compare, those that must embed pictures).

    Args:
        entries: NAME, or NAME=SPEC where pictures are to be embedded.
        embedded: the gallery's embeddings; None where the gallery holds pictures.
        pictures, embeddings: whether there are queries of either kind.

    Raises:
        UsageError: it is not said what embeds pictures, or gallery and queries do not fit each other.
    """
    if embedded is None:
        if not entries:
            raise UsageError("the gallery holds pictures: say with --scorers NAME=SPEC what embeds them")
        if embeddings:
            raise UsageError("the gallery holds pictures and a query embeddings; give both as the same")
        specs = named_scorers(entries)
        return list(specs), known_scorers(specs)
    there, specs = scorers_in(embedded), {}
    if not pictures:
        names = list(entries) or there
    elif not entries:
        raise UsageError(
            f"the queries are pictures: say with --scorers NAME=SPEC what embeds them; {embedded.location.uri} has the "
            f"embeddings of {', '.join(there)}"
        )
    else:
        wrong = [entry for entry in entries if "=" not in entry]
        if wrong:
            raise UsageError(
                f"scorers has {wrong[0]!r}; expected NAME=SPEC, the gallery's name of a scorer and what embeds the "
                "queries the same way"
            )
        specs = named_scorers(entries)
        names = list(specs)
    unknown = sorted(set(names) - set(there))
    if unknown:
        raise UsageError(f"{embedded.location.uri} has no scorer {', '.join(unknown)}; it has {', '.join(there)}")
    scorers = known_scorers(specs)
    _check_same(embedded, scorers)
    return names, scorers


def identity_names(table: pa.Table) -> dict[str, str]:
    """identity_id by itself, and by the name behind its source where that means one identity alone.

    >>> identity_names(pa.table({"identity_id": ["photos:mug", "a:hat", "b:hat"]}))["mug"]
    'photos:mug'
    """
    found: dict[str, set[str]] = {}
    for identity in set(table["identity_id"].to_pylist()):
        found.setdefault(short(identity), set()).add(identity)
        found.setdefault(identity, set()).add(identity)
    return {name: next(iter(of)) for name, of in found.items() if len(of) == 1}


def _check_same(embedded: Dataset, scorers: Sequence[NamedScorer]) -> None:
    """Where the gallery says what computed it, the queries must come from the same."""
    columns = ["scorer", "scorer_fingerprint"]
    there: dict[str, set[str]] = {}
    for planned in embedded.plans():
        if "scorer_fingerprint" in planned.column_names:
            for row in planned.select(columns).group_by(columns).aggregate([]).to_pylist():
                there.setdefault(row["scorer"], set()).add(row["scorer_fingerprint"])
    for one in scorers:
        if one.fingerprint not in there.get(one.name, {one.fingerprint}):
            raise UsageError(
                f"{embedded.location.uri} was not embedded by {one.spec}: what it calls {one.name!r} computed other "
                "things; give the scorer that it was embedded by"
            )
