"""Decoding, encoding and canonical squares, against Pillow and against explicit loops."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from nearid_ray.data.images import (
    canonical_square,
    decode_mask,
    decode_rgb,
    encode_png,
    foreground_only,
    mask_box,
    resize_mask,
    resize_rgb,
    square_box,
)

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def noise(height: int = 20, width: int = 30, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=2).astype(np.uint8)


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_png_returns_the_same_pixels_and_the_same_bytes():
    for array in (noise(), noise(1, 1), noise()[..., 0]):
        encoded = encode_png(array)
        assert encoded == encode_png(array.copy())
        decode = decode_rgb if array.ndim == 3 else lambda data: np.asarray(Image.open(io.BytesIO(data)))
        assert np.array_equal(decode(encoded), array)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(encode_png(noise())))), noise())  # red stays red


def test_a_decoded_picture_can_be_written_to():
    decode_rgb(encode_png(noise()))[0, 0] = 1


def test_encoding_refuses_other_types_and_shapes():
    for wrong in (noise().astype(np.float32), noise()[..., :2], np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match="expected uint8"):
            encode_png(wrong)


# Each EXIF orientation as the steps that make the stored picture upright, by the EXIF standard.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied_to_pictures_and_masks(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = noise()
    data = saved(Image.fromarray(stored), exif=exif)
    assert np.array_equal(decode_rgb(data), UPRIGHT[orientation](stored))
    mask = np.zeros((20, 30, 3), np.uint8)
    mask[2:5, 3:11] = 255
    upright = UPRIGHT[orientation](mask)[..., 0]
    assert np.array_equal(decode_mask(saved(Image.fromarray(mask), exif=exif)), upright)


def test_transparency_is_laid_over_white():
    image = Image.new("RGBA", (3, 1))
    image.putdata([(*RED, 255), (*RED, 0), (0, 0, 0, 128)])
    pixels = decode_rgb(saved(image))[0]
    assert pixels[0].tolist() == list(RED)
    assert pixels[1].tolist() == [255, 255, 255]
    assert np.abs(pixels[2].astype(int) - 127).max() <= 1


def test_palette_grey_and_cmyk_pictures_become_rgb():
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, *GREEN])
    palette.putdata([0, 1])
    assert decode_rgb(saved(palette))[0].tolist() == [list(RED), list(GREEN)]
    assert decode_rgb(saved(palette, transparency=0))[0].tolist() == [[255, 255, 255], list(GREEN)]
    assert decode_rgb(saved(Image.new("L", (1, 1), 77)))[0, 0].tolist() == [77, 77, 77]
    assert decode_rgb(saved(Image.new("1", (1, 1), 1)))[0, 0].tolist() == [255, 255, 255]
    cmyk = decode_rgb(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF"))
    assert cmyk[0, 0].tolist() == list(RED)


def test_sixteen_bit_pictures_keep_their_upper_eight_bits():
    values = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    data = saved(Image.fromarray(values))
    assert decode_rgb(data)[0, :, 0].tolist() == [0, 0, 1, 128, 255]
    assert decode_mask(data)[0].tolist() == [0, 255, 255, 255, 255]


def test_of_an_animation_the_first_frame_is_read():
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN, BLUE)]
    for kind in ("GIF", "WEBP"):
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
        assert decode_rgb(data)[0, 0].tolist() == list(RED)


def test_floating_point_pictures_are_refused():
    with pytest.raises(ValueError, match="floating-point"):
        decode_rgb(saved(Image.new("F", (2, 2)), "TIFF"))


def test_broken_bytes_are_refused_with_the_reason():
    png, jpeg = encode_png(noise(60, 60)), saved(Image.fromarray(noise(60, 60)), "JPEG")
    for data, reason in (
        (b"", "empty"),
        (b"this is no picture at all", "known format"),
        (png[: len(png) // 2], "broken or cut off"),
        (jpeg[: len(jpeg) // 2], "broken or cut off"),
        (png[:20], "known format|broken or cut off"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "known format"),
    ):
        for decode in (decode_rgb, decode_mask):
            with pytest.raises(ValueError, match=reason):
                decode(data)


def test_a_picture_that_claims_too_many_pixels_is_refused_before_decoding():
    bomb = bytearray(encode_png(noise(4, 4)))
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2  # the header alone; checksums are repaired below
    bomb[29:33] = zlib.crc32(bytes(bomb[12:29])).to_bytes(4, "big")
    with pytest.raises(ValueError, match="pixels"):
        decode_rgb(bytes(bomb))
    with pytest.raises(ValueError, match=r"claims 30 x 20 pixels; expected at most 599"):
        decode_rgb(encode_png(noise()), max_pixels=599)
    assert decode_rgb(encode_png(noise()), max_pixels=600).shape == (20, 30, 3)


def test_every_non_zero_and_visible_pixel_of_a_mask_is_object():
    assert decode_mask(saved(Image.fromarray(np.array([[0, 1, 128, 255]], np.uint8))))[0].tolist() == [0, 255, 255, 255]
    image = Image.new("RGBA", (3, 1))
    image.putdata([(255, 255, 255, 0), (0, 0, 1, 9), (0, 0, 0, 255)])
    assert decode_mask(saved(image))[0].tolist() == [0, 255, 0]


def test_the_square_is_the_largest_inside_the_photo_and_as_central_as_it_can_be():
    """Against a search over all squares inside the photo that hold the box."""
    random = np.random.default_rng(3)
    for _ in range(60):
        width, height = random.integers(8, 30, 2)
        side = min(width, height)
        w, h = random.integers(1, side + 1, 2)
        x, y = random.integers(0, width - w + 1), random.integers(0, height - h + 1)
        left, top, right, bottom = square_box((x, y, x + w, y + h), width, height)
        assert right - left == bottom - top == side

        def off(a, b, x=x, y=y, w=w, h=h, side=side):
            return abs(2 * a + side - 2 * x - w) + abs(2 * b + side - 2 * y - h)

        best = min(off(a, b) for a in range(width - side + 1) for b in range(height - side + 1))
        assert 0 <= left <= width - side and 0 <= top <= height - side
        assert off(left, top) <= best + 2  # half a pixel each way is rounding
        assert left <= x and x + w <= right and top <= y and y + h <= bottom


def test_where_the_photo_is_too_small_picture_and_mask_are_reflected_at_the_border():
    image, mask = noise(10, 30), np.zeros((10, 30), np.uint8)
    mask[4:7, 3:27] = 255
    square, square_mask, crop = canonical_square(image, mask, 24)
    assert crop == (3, -7, 27, 17)
    for y in range(24):
        source = y - 7
        source = -source - 1 if source < 0 else 19 - source if source > 9 else source
        assert np.array_equal(square[y], image[source, 3:27])
        assert np.array_equal(square_mask[y], mask[source, 3:27])


def test_squares_are_resized_by_lanczos_and_masks_by_covered_area():
    image, mask = smooth(40, 60), np.zeros((40, 60), np.uint8)
    mask[10:31, 20:41] = 255
    square, square_mask, (left, top, right, bottom) = canonical_square(image, mask, 16)
    expected = Image.fromarray(image[top:bottom, left:right]).resize((16, 16), Image.Resampling.LANCZOS)
    assert np.array_equal(square, np.asarray(expected))
    for i in range(8):  # a scale of 5 to 2: pairs of pixels cover five source rows
        area = mask[top:bottom, left:right][5 * i : 5 * i + 5, 15:25].mean()
        assert (square_mask[2 * i : 2 * i + 2, 6:10].mean() > 127) == (area >= 128)
    assert set(np.unique(square_mask)) <= {0, 255}


def test_without_a_mask_the_square_lies_in_the_middle():
    image = noise(10, 30)
    square, none, crop = canonical_square(image, None, 10)
    assert crop == (10, 0, 20, 10) and none is None
    assert np.array_equal(square, image[:, 10:20])


def test_unusable_masks_are_refused():
    image = noise(100, 100)
    with pytest.raises(ValueError, match="empty"):
        canonical_square(image, np.zeros((100, 100), np.uint8), 32)
    with pytest.raises(ValueError, match="30 x 20 pixels, the picture 100 x 100"):
        canonical_square(image, np.full((20, 30), 255, np.uint8), 32)
    dot = np.zeros((100, 100), np.uint8)
    dot[50, 50] = 255
    with pytest.raises(ValueError, match="vanishes"):
        canonical_square(image, dot, 8)


def test_resizing_to_the_same_size_changes_nothing_and_masks_stay_binary():
    image, mask = noise(), (noise()[..., 0] > 127).astype(np.uint8)
    assert np.array_equal(resize_rgb(image, 30, 20), image)
    assert np.array_equal(resize_mask(mask, 30, 20), mask * 255)
    assert set(np.unique(resize_mask(mask, 95, 71))) <= {0, 255}
    with pytest.raises(ValueError, match="at least 1 x 1"):
        resize_rgb(image, 0, 5)


def test_foreground_only_blackens_exactly_the_background():
    image, mask = noise(), (noise(seed=1)[..., 0] > 127).astype(np.uint8)
    result = foreground_only(image, mask)
    for y in range(20):
        for x in range(30):
            assert result[y, x].tolist() == (image[y, x].tolist() if mask[y, x] else [0, 0, 0])
    with pytest.raises(ValueError, match="same size"):
        foreground_only(image, mask[:-1])


def test_the_box_of_a_mask_ends_behind_its_last_pixels():
    mask = np.zeros((6, 9), np.uint8)
    mask[2, 3] = mask[4, 7] = 1
    assert mask_box(mask) == (3, 2, 8, 5)
