"""Which rows the paper's tables of trained heads have, and by which names heads are found for them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from nearid_ray.reporting.tables.measured import scorer_row

DREAMBENCH = "dreambench-plus"
"""Benchmark of how scorers agree with people."""

TITLES = {
    "table1": "Table 1: scorers on NearID, Mind-the-Glitch and DreamBench++",
    "table2": "Table 2: agreement with people on DreamBench++ by method",
    "table3": "Table 3: objectives",
    "table5": "Table 5: SSR and PA by engine",
    "table6": "Table 6: training data",
    "table7": "Table 7: whole pictures and foreground alone",
    "table8": "Table 8: weight α of the ranking term",
    "table9": "Table 9: weight β of the cohesion term at α = 1",
    "table10": "Table 10: components of InfoNCE",
}
"""The tables that can be laid out."""

SCORERS = {
    "qwen3-vl-30b": "Qwen3-VL 30B (judge)",
    "clip-vit-l-14": "CLIP ViT-L/14",
    "dinov2-vit-l-14": "DINOv2 ViT-L/14",
    "vsm": "VSM",
    "siglip2-so400m": "SigLIP2 so400m (frozen)",
    "nearid": "NearID",
}
FOREGROUND = {
    "clip-vit-l-14": "CLIP ViT-L/14",
    "dinov2-vit-l-14": "DINOv2 ViT-L/14",
    "siglip2-so400m": "SigLIP2 so400m (frozen)",
    "vsm": "VSM",
    "qwen3-vl-4b": "Qwen3-VL 4B (judge)",
    "qwen3-vl-8b": "Qwen3-VL 8B (judge)",
    "qwen3-vl-30b": "Qwen3-VL 30B (judge)",
    "nearid": "NearID",
}
OBJECTIVES = {
    "frozen": "frozen",
    "infonce": "InfoNCE (symmetric, one positive)",
    "infonce-distractors": "InfoNCE + distractors as negatives",
    "infonce-oracle": "InfoNCE + oracle ranking †",
    "infonce-distractors-oracle": "InfoNCE + distractors + oracle ranking",
    "siglip-rank": "SigLIP + ranking",
    "circle-rank": "Circle + ranking †",
    "nearid": "NearID",
    "nearid-cohesion": "NearID + cohesion",
}
COMPONENTS = {key: OBJECTIVES[key] for key in OBJECTIVES if key == "frozen" or key.startswith("infonce")} | {
    "nearid": "NearID"
}
TRAINING_DATA = {
    "frozen": "frozen",
    "nearid+mtg": "NearID (4 engines) + MTG",
    "nearid-only": "NearID (4 engines) alone",
    "mtg-only": "MTG alone",
    "single-engine": "NearID, one engine alone",
}
ALPHAS = {value: f"α = {value}" for value in ("0", "0.1", "0.25", "0.5", "1", "2")}
BETAS = {value: f"β = {value}" for value in ("0", "0.1", "0.2", "0.3")}

LABELS: Mapping[str, Mapping[str, str]] = {
    "table1": SCORERS,
    "table3": OBJECTIVES,
    "table6": TRAINING_DATA,
    "table7": FOREGROUND,
    "table8": ALPHAS,
    "table9": BETAS,
    "table10": COMPONENTS,
}
"""Rows of the tables that have one row a scorer, in the paper's order: {row: label}."""

_DEFAULT_ALPHA = {"infonce-oracle": 1.0, "infonce-distractors-oracle": 1.0}


def row_of(table: str, scorer: str, given: Mapping[str, str] | None = None) -> str:
    """The row of a table that a scorer is; empty where it is none that the table can have.

    Tables 1, 2, 5 and 7 take every scorer, as a row of its own where the paper has none. The others take the frozen
    backbone and heads whose name says what they are: as `jobs/reproduce.py`, `jobs/train.py` and sweeps name them.

    >>> row_of("table8", "nearid-alpha-0.25"), row_of("table8", "nearid"), row_of("table8", "nearid-alpha-1-beta-0.2")
    ('0.25', '0.5', '')
    >>> row_of("table9", "nearid-alpha-1-beta-0.2"), row_of("table9", "nearid-alpha-1"), row_of("table9", "frozen")
    ('0.2', '0', '')
    >>> row_of("table8", "alpha-0.1"), row_of("table9", "alpha-1_beta-0.3"), row_of("table1", "alpha-0.5")
    ('0.1', '0.3', 'nearid')
    >>> row_of("table3", "infonce-oracle-alpha-1"), row_of("table3", "nearid-alpha-2"), row_of("table6", "nearid")
    ('infonce-oracle', '', 'nearid+mtg')
    """
    if given and scorer in given:
        return given[scorer]
    if table == "table2":  # the metrics of the ratings are named by whoever brought them in
        found = re.fullmatch(r"(people|gpt|dino|clip)(-?4[vo]?)?", scorer.lower())
        return found[1] if found else scorer_row(scorer)
    if table in ("table1", "table5", "table7"):
        return "" if scorer == "people" else scorer_row(scorer)
    if table == "table6":
        named = {"nearid": "nearid+mtg", "nearid-alpha-0.5": "nearid+mtg"}.get(scorer, scorer)
        return named if named in TRAINING_DATA else ""
    if table in ("table3", "table10"):
        rows = LABELS[table]
        base, alpha = _objective(scorer)
        return base if base in rows and alpha in (None, _DEFAULT_ALPHA.get(base, 0.5)) else ""
    alpha_beta = _alpha_beta(scorer)
    if alpha_beta is None:
        return ""
    alpha, beta = alpha_beta
    if table == "table8":
        return f"{alpha:g}" if beta == 0 else ""
    return f"{beta:g}" if table == "table9" and alpha == 1 else ""


def scorers_of(table: str, scorers: Sequence[str], given: Mapping[str, str] | None = None) -> dict[str, str]:
    """{row: scorer}, the first scorer of each row; rows the paper has first and in its order."""
    found: dict[str, str] = {}
    for scorer in scorers:
        row = row_of(table, scorer, given)
        if row:
            found.setdefault(row, scorer)
    known = [row for row in LABELS.get(table, {}) if row in found]
    others = [row for row in found if row not in known]
    if table in ("table8", "table9"):
        others.sort(key=float)
    return {row: found[row] for row in (*known, *others)}


def _objective(scorer: str) -> tuple[str, float | None]:
    """(objective, alpha or None) of a head's name."""
    found = re.fullmatch(r"(.+?)-alpha[-=]([0-9.]+)", "nearid-alpha-0.5" if scorer == "alpha-0.5" else scorer)
    return (found[1], float(found[2])) if found else (scorer, None)


def _alpha_beta(scorer: str) -> tuple[float, float] | None:
    """(alpha, beta) of a NearID head's name; None for other scorers."""
    if scorer == "nearid":
        return 0.5, 0.0
    found = re.fullmatch(r"(?:nearid[-,_ ]?)?alpha[-=]([0-9.]+)(?:[-,_ ]beta[-=]([0-9.]+))?", scorer)
    return (float(found[1]), float(found[2] or 0)) if found else None
