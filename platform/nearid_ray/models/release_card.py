"""The model card of a release: what it is, how to use it, what was measured, what it is for and what not."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from nearid_ray.errors import UsageError
from nearid_ray.models.backbone import TOYBOX_BACKBONE, Backbone
from nearid_ray.models.checkpoint import HeadCard

_FROZEN = "frozen"


@dataclass(frozen=True, kw_only=True)
class CardText:
    """What a model card says beyond what is known from head and backbone."""

    name: str = ""
    """Where users will find it: a hub id such as owner/name, or a path; by default the name of its folder."""
    licence: str = ""
    """A hub's name of the licence of these weights, e.g. apache-2.0; by default that of the shipped toy backbone, or
    unknown."""
    training_data: str = ""
    """What it was trained on and under which licence, in words."""
    scorer: str = ""
    """Name of the released head in the metrics; needed where they hold several heads."""


def model_card(
    text: CardText, backbone: Backbone, head: HeadCard | None, metrics: Mapping[str, Any] | None, folder: str
) -> str:
    """The card as Markdown with the header that hubs read.

    Raises:
        UsageError: the metrics hold several heads and none is named, or nothing that can be shown.
    """
    toy = backbone.spec == TOYBOX_BACKBONE
    base = backbone.spec.rstrip("/").rpartition("/")[2] if backbone.spec.startswith("/") else backbone.spec
    name = text.name or folder
    licence = text.licence or ("apache-2.0" if toy else "unknown")
    header: dict[str, Any] = {
        "library_name": "transformers",
        "license": licence,
        "pipeline_tag": "image-feature-extraction",
        "tags": ["nearid", "image-embeddings", *(["toy-data"] if toy else [])],
    }
    if not toy and not backbone.spec.startswith("/"):
        header["base_model"] = backbone.spec
    sections = [
        f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n",
        f"# {name.rpartition('/')[2]}\n",
        _about(backbone, base, toy),
        _USAGE.format(name=name, width=backbone.width),
        "\n".join(_measured(metrics, text.scorer)),
        "\n".join(_training(backbone, base, head, text)),
        _USES,
        _limits(backbone),
        _licences(base, licence, text, toy),
    ]
    return "\n".join(section for section in sections if section)


def _about(backbone: Backbone, base: str, toy: bool) -> str:
    said = f"""An image embedding that tells one physical object from a similar one, whatever is behind it: the vision
model {base}, frozen, with its attention-pooling head trained against near-identity distractors (NearID, arXiv
2604.01973). The cosine of two embeddings is higher for two pictures of one object than for a picture of the object and
one of a look-alike in the same scene. {backbone.image_px} x {backbone.image_px} pixels in, {backbone.width} numbers
out; float16 weights.
"""
    if toy:
        said += """
**Toy data, toy model.** The backbone has seen nothing but procedurally drawn objects; it is of no use on photographs,
and no figure obtained with it says anything about real images.
"""
    return said


_USAGE = """## Usage

```python
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

model = AutoModel.from_pretrained("{name}", trust_remote_code=True).eval()
processor = AutoImageProcessor.from_pretrained("{name}")

with torch.no_grad():
    inputs = processor(images=Image.open("a.jpg").convert("RGB"), return_tensors="pt")
    a = model(**inputs).image_embeds  # [1, {width}], of length one
    inputs = processor(images=Image.open("b.jpg").convert("RGB"), return_tensors="pt")
    b = model.get_image_features(**inputs)  # the same, in short

similarity = (a @ b.T).item()  # higher: more likely the same object

with torch.no_grad():  # a batch
    images = [Image.open(name).convert("RGB") for name in ("a.jpg", "b.jpg")]
    embeddings = model(**processor(images=images, return_tensors="pt")).image_embeds
```

transformers 4.56 or later. `pooler_output` holds the embedding before normalisation, `last_hidden_state` the tokens.
Without remote code: `nearid_ray.models.release.load("{name}").embed(pictures)`.
"""

_USES = """## Intended uses

- Measuring whether personalised generation keeps the identity of an object.
- Retrieval and clustering of pictures by object.
- Benchmarks of identity-aware embeddings.

## Out of scope

Face recognition and re-identification of persons, surveillance, biometric authentication, demographic profiling. It was
neither made for people nor tested on them.
"""


def _limits(backbone: Backbone) -> str:
    return f"""## Limitations

- The distractors it learned from are synthetic inpaintings of common, mostly rigid objects; other kinds of objects and
  of differences may be told apart worse.
- One picture of {backbone.image_px} x {backbone.image_px} pixels at a time: smaller details are lost.
- Artefacts of generators that it has not seen may move the similarity.
- A similarity is no probability; thresholds have to be set on data of one's own.
"""


def _licences(base: str, licence: str, text: CardText, toy: bool) -> str:
    backbone = "apache-2.0" if toy else f"as stated by the owner of {base}; it holds for these weights too"
    data = text.training_data or "not stated"
    return f"""## Licences

| | |
| --- | --- |
| these weights | {licence} |
| the backbone | {backbone} |
| training data | {_cell(data)} |
| the Python files here | apache-2.0 |
"""


def _training(backbone: Backbone, base: str, head: HeadCard | None, text: CardText) -> Iterator[str]:
    yield "## Training\n"
    revision = f", revision {backbone.revision}" if backbone.revision else ""
    yield f"Backbone: {base}{revision}, fingerprint {backbone.fingerprint}; its weights were not changed."
    if text.training_data:
        yield f"Data: {text.training_data}"
    if head is None:
        yield ""
        return
    measured = ", ".join(f"{name} {_number(value)}" for name, value in head.metrics.items() if value is not None)
    if measured:
        yield f"Of the checkpoint, during training: {measured}."
    if head.settings:
        yield f"\n```yaml\n{yaml.safe_dump(head.settings, allow_unicode=True).strip()}\n```"
    yield ""


def _measured(metrics: Mapping[str, Any] | None, scorer: str) -> Iterator[str]:
    if metrics is None:
        return
    yield "## Metrics\n"
    rows = metrics.get("rows")
    if isinstance(rows, list):
        yield from _evaluated([row for row in rows if isinstance(row, Mapping)], scorer)
    else:
        numbers = {name: value for name, value in metrics.items() if _is_number(value)}
        if not numbers:
            raise UsageError(
                "the metrics hold nothing to show; expected metrics.json of an evaluation, or {name: number}"
            )
        yield "| metric | value |\n| --- | --- |"
        yield from (f"| {_cell(name)} | {_number(value)} |" for name, value in numbers.items())
    yield ""


def _evaluated(rows: list[Mapping[str, Any]], scorer: str) -> Iterator[str]:
    """The rows of an evaluation that are means over groups of engines, of the released head and the frozen one."""
    present = list(dict.fromkeys(str(row.get("scorer")) for row in rows))
    trained = [name for name in present if name != _FROZEN]
    if not scorer and len(trained) != 1:
        raise UsageError(f"the metrics hold the heads {', '.join(trained)}; say which is released (--scorer NAME)")
    released = scorer or trained[0]
    if released not in present:
        raise UsageError(f"the metrics hold no scorer {released!r}, but {', '.join(present)}")
    yield "SSR: share of objects whose views are always nearer to each other than to their distractors. PA: share"
    yield "of single comparisons of which that is true. In percent, in brackets a confidence interval over objects.\n"
    yield "| pictures | distractors | head | objects x engines | SSR | PA |\n| --- | --- | --- | --- | --- | --- |"
    for row in rows:
        if row.get("is_group", True) and row.get("scorer") in (released, _FROZEN):
            head = "backbone's own" if row["scorer"] == _FROZEN else "**this**"
            cells = [row.get("condition", ""), row.get("name", ""), head, row.get("units", "")]
            yield f"| {' | '.join(map(_cell, cells))} | {_percent(row, 'ssr')} | {_percent(row, 'pa')} |"


def _percent(row: Mapping[str, Any], name: str) -> str:
    values: list[Any] = [row.get(key) for key in (name, f"{name}_low", f"{name}_high")]
    if not _is_number(values[0]):
        return ""
    value, *bounds = (f"{100 * number:.2f}" for number in values if _is_number(number))
    return f"{value} ({' to '.join(bounds)})" if len(bounds) == 2 else value


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
