"""The score job: similarity of the pictures of every pair of a list."""

from contextlib import nullcontext
from dataclasses import dataclass

import tyro

from nearid_ray import job
from nearid_ray.cluster import ray_session
from nearid_ray.data.pipeline import RunSettings
from nearid_ray.data.store import Dataset
from nearid_ray.scoring.pair_files import PairsFile
from nearid_ray.scoring.score import CSV_FILE, ScoreSettings, check_csv, plan_scores, write_csv
from nearid_ray.settings import to_dict
from nearid_ray.stages.outputs import refuse_others
from nearid_ray.tracking import TrackingSettings


@dataclass(frozen=True, kw_only=True)
class Score:
    """Say how alike the two pictures of every pair of a list are; each distinct picture is embedded once."""

    pairs: tyro.conf.Positional[str]
    """CSV or Parquet file with the columns a and b: paths or s3:// places of pictures. Other columns are kept."""
    scorer: str
    """Folder of a trained head; a NearID release or a backbone (folder, s3:// or hub id); or FILE.py:function."""
    output: str
    """Folder or s3://bucket/prefix to write to."""
    csv: bool = False
    """Write the scores as OUTPUT/scores.csv too."""
    scoring: ScoreSettings = ScoreSettings()
    run: RunSettings = RunSettings()
    tracking: TrackingSettings = TrackingSettings()


@job.owning_output("score")
def run_score(settings: Score) -> job.Job:
    """Plan, embed what is missing, join."""
    output = job.output_of(settings.output, settings.tracking)
    refuse_others(output, "score")
    if settings.csv:
        file = PairsFile.open(settings.pairs, root=settings.scoring.root, delimiter=settings.scoring.delimiter)
        check_csv(file.schema)
    # A new output's precision depends on what the cluster's workers compute on.
    with nullcontext() if Dataset(output.child("images")).settings() else ray_session():
        planned = plan_scores(settings.pairs, settings.scorer, output, settings.scoring, settings.run)
        with job.running(
            "score",
            output,
            to_dict(settings),
            tracking=settings.tracking,
            inputs={"pairs": settings.pairs, "scorer": settings.scorer},
            needs_ray=planned.needs_ray(settings.run),
        ) as running:
            images, pairs = planned.run(settings.run)
            running.summary |= {
                "scorer": planned.scorer.name,
                "pictures": images.rows,
                "pictures_made": images.rows_made,
                "pictures_with_error": images.errors,
                "pictures_a_second": round(images.rows_made / images.seconds, 1) if images.rows_made else 0.0,
            }
            job.report_run(running, planned.scores, pairs)
            running.details["fingerprint"] = planned.scorer.fingerprint
            if settings.csv:
                write_csv(planned.scores, output.child(CSV_FILE))
                running.summary["csv"] = output.child(CSV_FILE).uri
    return running
