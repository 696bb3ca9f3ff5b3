"""A grid of pictures with short captions, to look at what a job made."""

import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from nearid_ray.data.masks import mask_quality

_GAP_PX = 6
_LINE_PX = 16
_FONT_PX = 12
_PAPER = (255, 255, 255)
_INK = (20, 20, 20)
_EMPTY = (225, 225, 225)


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray | None]],
    captions: Sequence[Sequence[str]] | None = None,
    *,
    cell_px: int = 160,
) -> np.ndarray:
    """Pictures in a grid as one uint8 (H, W, 3) picture.

    `rows` holds uint8 pictures (h, w, 3) or masks (h, w) of any size; None leaves a grey cell. Each is fitted into a
    square of `cell_px`, keeping its aspect. `captions` has the rows' shape; a caption stands below its picture, lines
    that are too long shortened with an ellipsis. Rows may differ in length.

    Raises ValueError when there is nothing to show or when captions and rows differ in shape.
    """
    if not any(len(row) for row in rows):
        raise ValueError("no pictures given; expected at least one row with one picture")
    if captions is not None and [len(row) for row in captions] != [len(row) for row in rows]:
        raise ValueError(
            f"captions of lengths {[len(row) for row in captions]} for rows of lengths {[len(row) for row in rows]}; "
            "expected one caption a picture"
        )
    step_x = cell_px + _GAP_PX
    lines = max((text.count("\n") + 1 for row in captions for text in row), default=0) if captions is not None else 0
    step_y = cell_px + _GAP_PX + _LINE_PX * lines
    width = _GAP_PX + step_x * max(len(row) for row in rows)
    sheet = Image.new("RGB", (width, _GAP_PX + step_y * len(rows)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_FONT_PX)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            x, y = _GAP_PX + j * step_x, _GAP_PX + i * step_y
            cell = _fitted(picture, cell_px)
            sheet.paste(cell, (x + (cell_px - cell.width) // 2, y + (cell_px - cell.height) // 2))
            for number, line in enumerate(captions[i][j].split("\n") if captions is not None else ()):
                place = (x, y + cell_px + 1 + _LINE_PX * number)
                draw.text(place, _shortened(line, cell_px, font), fill=_INK, font=font)
    return np.array(sheet)


class MaskedView(NamedTuple):
    """A picture (H, W, 3), its mask (H, W) or None, and what to call it."""

    name: str
    image_HW3: np.ndarray
    mask_HW: np.ndarray | None


def mask_sheet(views: Sequence[MaskedView], *, columns: int = 8, cell_px: int = 160) -> np.ndarray:
    """Pictures with their masks outlined as one uint8 (H, W, 3) picture, in the order given, `columns` a row.

    Below each stands its name, and of its mask the share of the picture, the number of pieces where there are several,
    and whether it reaches the border; or that there is none. Raises ValueError without views.
    """
    if columns < 1:
        raise ValueError(f"columns is {columns}; expected at least 1")
    pictures = [v.image_HW3 if v.mask_HW is None else _outlined_cell(v.image_HW3, v.mask_HW, cell_px) for v in views]
    captions = [f"{view.name}\n{_said_of(view.mask_HW)}" for view in views]
    starts = range(0, len(views), columns)
    return contact_sheet(
        [pictures[start : start + columns] for start in starts],
        [captions[start : start + columns] for start in starts],
        cell_px=cell_px,
    )


def outlined(image_HW3: np.ndarray, mask_HW: np.ndarray, colour: tuple[int, int, int] = (255, 40, 40)) -> np.ndarray:
    """A copy of the picture with the mask's inner outline drawn in `colour`, a hundredth of the width thick."""
    thickness = max(1, round(image_HW3.shape[1] / 100))
    inside = np.pad(mask_HW > 0, 1)
    eroded = inside.copy()
    for _ in range(thickness):
        core = eroded.copy()
        core[1:-1, 1:-1] &= eroded[:-2, 1:-1] & eroded[2:, 1:-1] & eroded[1:-1, :-2] & eroded[1:-1, 2:]
        eroded = core
    edge = (inside & ~eroded)[1:-1, 1:-1]
    return np.where(edge[..., None], np.array(colour, np.uint8), image_HW3)


def _outlined_cell(image_HW3: np.ndarray, mask_HW: np.ndarray, cell_px: int) -> np.ndarray:
    """The picture at the cell's size with the outline drawn there: drawn before, shrinking would wash it out."""
    cell = _fitted(image_HW3, cell_px)
    mask = Image.fromarray(mask_HW).resize(cell.size, Image.Resampling.NEAREST)
    return outlined(np.array(cell), np.array(mask))


def _said_of(mask_HW: np.ndarray | None) -> str:
    if mask_HW is None:
        return "no mask"
    area, pieces, touches_border = mask_quality(mask_HW)
    said = [f"{area:.1%}"]
    said += [f"{pieces} pieces"] if pieces != 1 else []
    said += ["border"] if touches_border else []
    return ", ".join(said)


def _fitted(picture: np.ndarray | None, cell_px: int) -> Image.Image:
    if picture is None:
        return Image.new("RGB", (cell_px, cell_px), _EMPTY)
    image = Image.fromarray(picture).convert("RGB")
    scale = cell_px / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)


def _shortened(text: str, width_px: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    text = " ".join(_plain_letters(text).split())
    if font.getlength(text) <= width_px:
        return text
    while text and font.getlength(text + "...") > width_px:
        text = text[:-1]
    return text + "..."


def _plain_letters(text: str) -> str:
    """The font that comes with Pillow has no letters beyond ASCII: accents are dropped, others become `?`."""
    apart = unicodedata.normalize("NFKD", text.replace("ß", "ss"))
    return "".join(c if c.isascii() else "?" for c in apart if not unicodedata.combining(c))
