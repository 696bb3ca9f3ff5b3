"""What a run's steps did: one row a step, as the history file, the curves and MLflow hold it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

import pyarrow as pa
import pyarrow.csv


@dataclass(frozen=True, kw_only=True)
class HistoryRow:
    """What one step did. The row of step 0 is the head before training, with validation alone."""

    step: int
    """Steps done."""
    epoch: float
    """Epochs done."""
    loss: float | None = None
    """Loss of the global batch, before the step."""
    parts: dict[str, float] = field(default_factory=dict)
    """The objective's terms before their weights; columns of their own in tables."""
    learning_rate: float | None = None
    grad_norm: float | None = None
    """Norm of the gradient before clipping; infinite where a 16-bit gradient overflowed and the step was left out."""
    loss_scale: float | None = None
    """What 16-bit gradients were multiplied by; None where that is not needed."""
    samples_per_s: float | None = None
    """Samples of the global batch per second; validation and checkpoints are not in the time."""
    read_wait_s: float | None = None
    """Seconds of the step in which the head waited for tokens."""
    device_gib: float | None = None
    """Most memory of the GPU that was ever in use, in GiB; None on a CPU."""
    val_ssr: float | None = None
    """Sample success rate on the validation split, 0 to 1; None between validations."""
    val_pa: float | None = None
    """Pairwise accuracy on the validation split, 0 to 1."""
    val_s: float | None = None
    """Seconds that the validation took."""

    def flat(self) -> dict[str, float | int | None]:
        """The row as columns, the parts among them."""
        values = asdict(self)
        parts = values.pop("parts")
        return {**values, **parts}

    @classmethod
    def saved(cls, row: Mapping[str, Any]) -> Self:
        """The row that `asdict` made."""
        return cls(**row)


def history_table(history: Sequence[HistoryRow]) -> pa.Table:
    """The history as a table, one row a step, nulls where nothing was measured."""
    rows = [row.flat() for row in history]
    names = list(dict.fromkeys(name for row in rows for name in row))
    types = {"step": pa.int64()}
    return pa.table({name: pa.array([row.get(name) for row in rows], types.get(name, pa.float64())) for name in names})


def history_csv(history: Sequence[HistoryRow]) -> pa.Buffer:
    """The table as a CSV file."""
    sink = pa.BufferOutputStream()
    pyarrow.csv.write_csv(history_table(history), sink)
    return sink.getvalue()


def read_history(data: bytes) -> list[HistoryRow]:
    """The history that `history_csv` wrote."""
    own = {field.name for field in fields(HistoryRow)}
    rows = pyarrow.csv.read_csv(pa.BufferReader(data)).to_pylist()
    return [
        HistoryRow(
            **{name: value for name, value in row.items() if name in own},
            parts={name: value for name, value in row.items() if name not in own and value is not None},
        )
        for row in rows
    ]
