"""Pictures that are broken, odd or made to do harm, through the real ingest: each a row, right or with its reason."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import schemas
from nearid_ray.data.images import decode_rgb
from nearid_ray.data.store import Dataset
from tests.e2e.conftest import photo, run_job, summary_of  # noqa: F401  (a fixture)

pytestmark = pytest.mark.usefixtures("ray_session")
SIZE_PX = 64
GREY_RED = (200, 60, 60)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def flat(mode: str, colour: object) -> Image.Image:
    return Image.new(mode, (80, 70), colour)


def noisy() -> Image.Image:
    return Image.fromarray(np.random.default_rng(5).integers(0, 256, (70, 80, 3), np.uint8))


def png_claiming(width: int, height: int, body: bytes = b"") -> bytes:
    """A PNG whose header claims a size, with zeros of a few bytes for pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = zlib.compress(body or bytes(64), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


PNG, JPEG = encoded(noisy(), "PNG"), encoded(noisy(), "JPEG", quality=95)
REFUSED = {
    "zero bytes.jpg": (b"", "the file is empty (0 bytes)"),
    "text.jpg": (b"no picture at all", "not a picture in a known format"),
    "postscript.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture in a known format"),
    "truncated.jpg": (JPEG[: len(JPEG) // 2], "the JPEG picture is broken or cut off"),
    "truncated.png": (PNG[: len(PNG) // 2], "the PNG picture is broken or cut off"),
    "header alone.png": (PNG[:40], "or broken from its start"),
    "corrupt.png": (flipped(PNG, len(PNG) // 2), "the PNG picture is broken or cut off"),
    "bomb that claims.png": (png_claiming(60_000, 60_000), "claims"),
    "bomb that holds.png": (png_claiming(9_000, 9_000, bytes(9_000 * 1_126)), "the picture claims 9000 x 9000 pixels"),
    "bomb.webp": (encoded(flat("RGB", 0).resize((16_000, 6_000)), "WEBP"), "the picture claims 16000 x 6000 pixels"),
    "floats.png": (encoded(flat("F", 0.5), "TIFF"), "floating-point"),
}
READ = {
    "cmyk.jpg": encoded(flat("CMYK", (0, 178, 178, 55)), "JPEG", quality=95),
    "palette.png": encoded(flat("RGB", GREY_RED).quantize(4), "PNG"),
    "transparent palette.png": encoded(flat("RGB", GREY_RED).quantize(4), "PNG", transparency=3),
    "animated.webp": encoded(flat("RGB", GREY_RED), "WEBP", save_all=True, append_images=[flat("RGB", 0)], quality=95),
    "gif by another name.png": encoded(flat("RGB", GREY_RED), "GIF", save_all=True, append_images=[flat("RGB", 0)]),
    "grün & ungewöhnlich (1).PNG": encoded(flat("RGB", GREY_RED), "PNG"),
    "opaque.png": encoded(flat("RGBA", (*GREY_RED, 255)), "PNG"),
}
GREY = {
    "16 bit.png": encoded(Image.fromarray(np.full((70, 80), 0x8034, np.uint16)), "PNG"),
    "grey.jpg": encoded(flat("L", 128), "JPEG"),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """One identity with two good photos for each hostile one."""
    folder = tmp_path / "meine Fotos (größer)"
    pictures = {name: data for name, (data, _) in REFUSED.items()} | READ | GREY
    for number, (name, data) in enumerate(pictures.items()):
        place = folder / f"thing {number:02} von Zoë"
        for view in range(2):
            photo(place / f"good-{view}.png", seed=number)
        (place / name).write_bytes(data)
    return folder


def ingest(run_job, root: Path, output: Path, *more: object):  # noqa: F811
    options = ("--size-px", SIZE_PX, "--mask-method", "none", "--tracking-uri", "off", *more)
    return run_job("ingest", "photos", "--root", root, "--output", output, *options)


def test_each_is_a_row_with_the_right_picture_or_its_reason_and_costs_nothing_else(run_job, root, tmp_path):  # noqa: F811
    os.mkfifo(root / "thing 00 von Zoë" / "pipe.png")  # a reader would wait for ever
    (root / "thing 01 von Zoë" / "folder.jpg").mkdir()
    ended = ingest(run_job, root, tmp_path / "tuples")
    assert ended.code == 1
    assert f"{len(REFUSED)} of {len(REFUSED) + len(READ) + len(GREY)} rows have an error" in ended.err
    assert "Traceback" not in ended.err
    assert summary_of(tmp_path / "tuples")["rows_with_error"] == len(REFUSED)
    assert schemas.validate(tmp_path / "tuples") == []
    seen = {}
    for row in Dataset(tmp_path / "tuples").read().to_pylist():
        views = {view["name"]: view for view in (named(view) for view in row["views"])}
        assert len(views) == 3
        for view in range(2):
            assert views[f"good-{view}.png"]["error"] == ""
            assert decode_rgb(views[f"good-{view}.png"]["image"]["bytes"]).shape == (SIZE_PX, SIZE_PX, 3)
        (hostile,) = (view for name, view in views.items() if not name.startswith("good"))
        seen[hostile["name"]] = hostile
        assert row["error"] == "" or f"1 of 3 views: {hostile['name']}: {hostile['error']}" in row["error"]
    assert seen.keys() == REFUSED.keys() | READ.keys() | GREY.keys()
    for name, (_, reason) in REFUSED.items():
        assert reason in seen[name]["error"], name
        assert seen[name]["image"] is None
    for names, colour in ((READ, GREY_RED), (GREY, (128, 128, 128))):
        for name in names:
            assert seen[name]["error"] == "", name
            pixels = decode_rgb(seen[name]["image"]["bytes"])
            assert pixels.shape == (SIZE_PX, SIZE_PX, 3)
            assert np.abs(pixels.astype(int) - colour).max() <= 12, name


def named(view: dict) -> dict:
    import json

    return view | {"name": Path(json.loads(view["provenance"])["file"]).name}


def _link_out(root: Path) -> str:
    (root.parent / "secret.png").write_bytes(PNG)
    (root / "thing 03 von Zoë" / "link.png").symlink_to(root.parent / "secret.png")
    return "link.png is a link that leads out of"


def _link_to_nothing(root: Path) -> str:
    (root / "thing 03 von Zoë" / "link.png").symlink_to(root / "gone.png")
    return "link.png is a link to nothing"


def _binary_table(root: Path) -> str:
    (root.parent / "kinds.csv").write_bytes(b"\xff\xfe\x00m\x00u\x00g")
    return "cannot be read as CSV in UTF-8"


def _table_of_nul(root: Path) -> str:
    (root.parent / "kinds.csv").write_bytes(b"thing 00,\0\n")
    return "kinds.csv"


@pytest.mark.parametrize("spoil", [_link_out, _link_to_nothing, _binary_table, _table_of_nul])
def test_what_cannot_be_meant_is_refused_in_one_message_before_anything_is_written(run_job, root, tmp_path, spoil):  # noqa: F811
    said = spoil(root)
    table = root.parent / "kinds.csv"
    more = ("--categories", table) if table.exists() else ()
    ended = ingest(run_job, root, tmp_path / "tuples", *more)
    assert ended.code == 2
    assert ended.err.startswith("error: ")
    assert said in ended.err
    assert "Traceback" not in ended.err
    assert not (tmp_path / "tuples").exists()
