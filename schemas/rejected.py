"""Rejected records: what was left out of a plan, and why."""

import pyarrow as pa

from schemas.fields import Table, described

REJECTED = Table(
    name="rejected",
    purpose="One row a record that a stage left out of its plan, with the reason.",
    fields=(
        described(
            "stage", pa.string(), "The job that left it out: ingest, curate, masks, synthesize, embed, train, evaluate."
        ),
        described("record_id", pa.string(), "What was left out, e.g. identity_id or identity_id/view_index/engine."),
        described("identity_id", pa.string(), "The identity concerned."),
        described("reason", pa.string(), "A short fixed reason that can be counted, e.g. no-donor, no-mask."),
        described("detail", pa.string(), "The reason in words for a person."),
    ),
    key=("stage", "record_id"),
)
