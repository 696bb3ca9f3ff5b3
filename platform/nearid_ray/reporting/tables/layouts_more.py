"""Tables 2, 5 and 7: other shapes than one row a scorer and columns that all tables share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean

from nearid_ray.evaluation.measures import MTG, NEARID
from nearid_ray.reporting.tables.measured import Measured
from nearid_ray.reporting.tables.model import Address, Claim, Column, Row, Table
from nearid_ray.reporting.tables.published import ROLES, published, published_value
from nearid_ray.reporting.tables.rows import DREAMBENCH, FOREGROUND, SCORERS, TITLES, scorers_of

_METHODS = {
    "textual_inversion_sd": "Textual Inversion (SD 1.5)",
    "dreambooth_sd": "DreamBooth (SD 1.5)",
    "dreambooth_lora_sdxl": "DreamBooth LoRA (SDXL)",
    "blip_diffusion": "BLIP-Diffusion (SD 1.5)",
    "emu2": "Emu2 (SDXL)",
    "ip_adapter_plus_vit_h_sdxl": "IP-Adapter-Plus ViT-H (SDXL)",
    "ip_adapter_vit_g_sdxl": "IP-Adapter ViT-G (SDXL)",
    "fisher_z_mean": "mean (Fisher z)",
}
_SPREAD_NOTE = "±: half the difference of the two groups of people; of the mean, its standard error over the methods."
_POOLED = {"headline": ("train", "unseen"), "train": ("train",), "unseen": ("unseen",), "extra": ("extra",)}
"""Pooled rows of table 5: the roles whose engines they pool."""


def by_method(measured: Measured, given: Mapping[str, str], notes: tuple[str, ...]) -> Table:
    """Table 2: methods down, scorers across."""
    scorers = scorers_of("table2", measured.scorers_on(DREAMBENCH), given)
    shown = {"people": "h_h", "gpt": "gpt_h", "dino": "dino_h", "clip": "clip_h"}
    shown |= {"siglip2-so400m": "siglip2_h", "nearid": "nearid_h"}
    labels = {"people": "people", "gpt": "GPT", "dino": "DINO", "clip": "CLIP", "siglip2-so400m": "SigLIP2"}
    labels |= {"nearid": "NearID"}
    others = [row for row in scorers if row not in shown]
    columns = [Column(key=key, header=labels[row], best=row != "people", resolution=0.02) for row, key in shown.items()]
    columns += [Column(key=row, header=scorers[row], resolution=0.02) for row in others]
    total = measured.headline(DREAMBENCH)
    rows = []
    for method, label in _METHODS.items():
        name = total if method == "fisher_z_mean" else method
        cells = []
        for row, key in [*shown.items(), *((row, row) for row in others)]:
            cells.append(
                measured.cell(
                    scorers.get(row, ""),
                    DREAMBENCH,
                    "h_h" if row == "people" else "m_h",
                    name=name,
                    published=published_value("table2", method, key),
                    published_spread=published_value("table2", method, f"{key}_pm"),
                    against=None if key == "siglip2_h" else (method, "siglip2_h"),
                )
            )
        rows.append(Row(key=method, label=label, cells=tuple(cells)))
    claims = tuple(
        Claim(first=(method, "siglip2_h"), second=(method, "nearid_h"), says=f"{label}, SigLIP2 → NearID: M-H")
        for method, label in _METHODS.items()
    )
    return Table(
        name="table2",
        title=TITLES["table2"],
        corner="method",
        columns=tuple(columns),
        rows=tuple(rows),
        notes=(*notes, _SPREAD_NOTE),
        claims=claims,
    )


def by_source(measured: Measured, given: Mapping[str, str], notes: tuple[str, ...]) -> Table:
    """Table 5: engines down, SSR and PA of each scorer across; pooled rows below."""
    scorers = scorers_of("table5", measured.scorers, given)
    keys = {"siglip2-so400m": "siglip2", "qwen3-vl-30b": "qwen3vl30b", "vsm": "vsm", "nearid": "nearid"}
    shown = {**keys, **{row: row for row in scorers if row not in keys}}
    columns = [
        Column(
            key=f"{short}_{metric}",
            header=metric.upper(),
            over=SCORERS.get(row, scorers.get(row, row)),
            percent=True,
            best=False,
            resolution=0.02,
        )
        for row, short in shown.items()
        for metric in ("ssr", "pa")
    ]
    engines = [engine for engine in measured.names(NEARID, "ssr") if not engine.endswith("-control")]
    pooled = [name for name in (*_POOLED, "object-level") if measured.cell_known(scorers.values(), NEARID, "ssr", name)]
    known = engines if engines and not set(engines) & set(ROLES) else [*ROLES, *(e for e in engines if e not in ROLES)]
    rows = []
    for name in [*known, *(pooled or ["headline"])]:
        is_pooled = name not in known
        cells = []
        for row, short in shown.items():
            for metric in ("ssr", "pa"):
                key = f"{short}_{metric}"
                against = None if short == "siglip2" else (name, f"siglip2_{metric}")
                printed = _pooled_published(name, key) if is_pooled else published_value("table5", name, key)
                cells.append(
                    measured.cell(scorers.get(row, ""), NEARID, metric, name=name, published=printed, against=against)
                )
        label = f"all of {name}" if is_pooled else f"{name} ({ROLES[name]})" if name in ROLES else name
        rows.append(Row(key=name, label=label, cells=tuple(cells), ours_only=not is_pooled and name not in ROLES))
    claims = tuple(
        Claim(first=(row.key, "siglip2_ssr"), second=(row.key, "nearid_ssr"), says=f"{row.label}, frozen → NearID: SSR")
        for row in rows
        if not row.ours_only
    )
    return Table(
        name="table5",
        title=TITLES["table5"],
        corner="engine",
        columns=tuple(columns),
        rows=tuple(rows),
        notes=(*notes, "Published numbers of pooled rows are means of the paper's rows."),
        claims=claims,
    )


def by_condition(measured: Measured, given: Mapping[str, str], notes: tuple[str, ...]) -> Table:
    """Table 7: scorers down; whole pictures and foreground alone across. The foreground is compared with the whole."""
    scorers = scorers_of("table7", measured.scorers, given)
    columns, sources = [], []
    for condition, short, over in (("full", "full", "whole picture"), ("foreground", "fg", "foreground")):
        for metric, key, benchmark, percent in (
            ("ssr", "ssr", NEARID, True),
            ("pa", "pa", NEARID, True),
            ("m_o", "mo", MTG, False),
        ):
            header = {"ssr": "SSR", "pa": "PA", "mo": "M-O"}[key]
            columns.append(
                Column(
                    key=f"{short}_{key}",
                    header=header,
                    over=over,
                    percent=percent,
                    resolution=0.005 if percent else 0.05,
                )
            )
            sources.append((condition, benchmark, metric))
    rows = []
    for key in (*FOREGROUND, *(row for row in scorers if row not in FOREGROUND)):
        cells = []
        for column, (condition, benchmark, metric) in zip(columns, sources, strict=True):
            against: Address | None = None
            if condition == "foreground":
                against = (key, column.key.replace("fg_", "full_"))
            cells.append(
                measured.cell(
                    scorers.get(key, ""),
                    benchmark,
                    metric,
                    condition=condition,
                    published=published_value("table7", key, column.key),
                    against=against,
                )
            )
        label = FOREGROUND.get(key, f"{scorers.get(key, key)} (ours only)")
        rows.append(Row(key=key, label=label, cells=tuple(cells), ours_only=key not in FOREGROUND))
    claims = tuple(
        Claim(first=(row, f"full_{metric}"), second=(row, f"fg_{metric}"), says=f"{said}, whole → foreground: {name}")
        for row, said in (("siglip2-so400m", "frozen"), ("nearid", "NearID"))
        for metric, name in (("ssr", "SSR"), ("mo", "M-O"))
    ) + tuple(
        Claim(
            first=("siglip2-so400m", f"fg_{metric}"),
            second=("nearid", f"fg_{metric}"),
            says=f"foreground, frozen → NearID: {name}",
        )
        for metric, name in (("ssr", "SSR"), ("mo", "M-O"))
    )
    return Table(
        name="table7",
        title=TITLES["table7"],
        corner="scorer",
        columns=tuple(columns),
        rows=tuple(rows),
        notes=notes,
        claims=claims,
    )


def _pooled_published(name: str, column: str) -> float:
    roles = _POOLED.get(name, _POOLED["headline"])
    values = [published("table5")[engine].get(column, math.nan) for engine, role in ROLES.items() if role in roles]
    return fmean(values)
