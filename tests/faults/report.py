"""The table of the fault matrix in its page of the docs: `python -m tests.faults.report CELLS.jsonl docs/faults.md`."""

import json
import sys
from pathlib import Path
from typing import Any

from tests.faults.cells import KINDS, SENSELESS
from tests.faults.jobs_under_test import BY_NAME

BEGIN, END = "<!-- seen: begin -->", "<!-- seen: end -->"


def table(lines: list[dict[str, Any]]) -> str:
    """What was last seen of each cell, by fault and job."""
    last = {(line["fault"], line["job"]): line for line in lines}
    rows = [
        "| Fault | Job | What was hit | Came through | Rows in flight there | Rows begun again | Seconds |",
        "|---|---|---|---|--:|--:|--:|",
    ]
    for fault, kind in KINDS.items():
        for job in BY_NAME:
            name = f"| {kind.title} | {job} |"
            if (fault, job) in SENSELESS:
                rows.append(f"{name} no such cell: {SENSELESS[fault, job]} | | | | |")
            elif seen := last.get((fault, job)):
                how = _how(seen)
                numbers = (
                    f"{seen['in_flight'] or ''} | {seen['made_again'] or 0} of {seen['rows']} | {seen['seconds']:.0f}"
                )
                rows.append(f"{name} {seen['what']} | {how} | {numbers} |")
            else:
                rows.append(f"{name} not run | | | | |")
    good = sum(not seen["wrong"] for seen in last.values())
    cells = sum((fault, job) not in SENSELESS for fault in KINDS for job in BY_NAME)
    head = f"{good} of {cells} cells came through as promised; {len(last)} were run, on a cluster of three nodes."
    return "\n".join([head, "", *rows])


def _how(seen: dict[str, Any]) -> str:
    if seen["wrong"]:
        return "**no**: " + "; ".join(text.splitlines()[0][:80].replace("|", "/") for text in seen["wrong"][:2])
    return (
        ("the same command once more", "the same command twice more")[seen["again"] - 1]
        if seen["again"]
        else "by itself"
    )


def main(cells: Path, page: Path) -> None:
    """Put the table between its marks on the page."""
    if not cells.exists():
        sys.exit(f"{cells} is not there; run the matrix first (make faults)")
    lines = [json.loads(line) for line in cells.read_text().splitlines()]
    before, _, rest = page.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n{table(lines)}\n{END}{after}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
