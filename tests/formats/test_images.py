"""Reading photos: every pixel type, turned as the masks say; finding them by name and id."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from transfiner_refine.formats.images import ImageFolder, read_image, upright_size
from transfiner_refine.types import InputError

CORNERS = np.zeros((24, 40, 3), np.uint8)
CORNERS[:12, :20], CORNERS[:12, 20:], CORNERS[12:, :20] = (250, 0, 0), (0, 250, 0), (0, 0, 250)


def save(path: Path, pixels: np.ndarray, orientation: int = 1) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {".webp": {"lossless": True}, ".jpg": {"quality": 100, "subsampling": 0}}
    Image.fromarray(pixels).save(path, exif=exif, **lossless.get(path.suffix, {}))
    return path


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_of_the_upright_size_turn_the_image_upright(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    path = save(tmp_path / f"photo{suffix}", CORNERS, orientation)
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    decoded = read_image(path, {upright.shape[:2]})
    assert np.array_equal(decoded.pixels, upright)
    assert decoded.turned == (orientation != 1)
    assert upright_size(path) == upright.shape[:2]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_masks_of_the_stored_size_leave_the_image_as_stored(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    decoded = read_image(save(tmp_path / f"photo{suffix}", CORNERS, orientation), {(24, 40)})
    assert not decoded.turned
    assert np.abs(decoded.pixels.astype(int) - CORNERS).max() < 12  # JPEG is not exact


def test_masks_of_neither_size_are_an_error_that_names_both(tmp_path: Path) -> None:
    path = save(tmp_path / "photo.jpg", CORNERS, 6)
    with pytest.raises(InputError, match=r"is 40×24 upright and 24×40 as stored .* its masks are 10×10"):
        read_image(path, {(10, 10)})


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P", "RGBA", "CMYK"])
def test_every_kind_of_pixels_becomes_rgb(tmp_path: Path, mode: str) -> None:
    grey = np.where(np.arange(40) < 20, 0, 255).astype(np.uint8)[None].repeat(24, 0)
    path = tmp_path / ("photo.tif" if mode == "CMYK" else "photo.png")
    Image.fromarray(grey).convert("RGB").convert(mode).save(path)
    pixels = read_image(path).pixels
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, grey[..., None].repeat(3, 2))


def test_sixteen_bit_grey_is_scaled_and_not_cut_off(tmp_path: Path) -> None:
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png").pixels[0, :, 0].tolist() == [0, 1, 128, 255]


def test_a_truncated_image_is_an_error_and_not_a_grey_area(tmp_path: Path) -> None:
    path = save(tmp_path / "photo.jpg", np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(
        InputError, match=r"photo\.jpg: cannot be read as an image \(.*truncated.*\); replace"
    ):
        read_image(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "no such file"), (b"", "no image of a known format"), (b"<html>", "no image of a known format")],
)
def test_what_is_no_image_is_an_error_of_one_line(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "photo.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=reason) as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


def test_damaged_exif_does_not_hide_sound_pixels(tmp_path: Path) -> None:
    Image.fromarray(CORNERS).save(tmp_path / "photo.png", exif=b"Exif\0\0MM\0*garbage")
    assert np.array_equal(read_image(tmp_path / "photo.png").pixels, CORNERS)


@pytest.mark.parametrize(
    ("files", "image_id", "expected"),
    [
        (["000000000139.jpg"], 139, "000000000139.jpg"),
        (["139.jpg"], 139, "139.jpg"),
        (["139.png", "1390.jpg"], 139, "139.png"),
        (["0139.jpg"], 139, "0139.jpg"),
        (["street_7.webp"], "street_7", "street_7.webp"),
        (["street_7.webp"], "street_7.webp", "street_7.webp"),
    ],
)
def test_images_are_found_by_their_id(
    tmp_path: Path, files: list[str], image_id: int | str, expected: str
) -> None:
    for name in files:
        (tmp_path / name).touch()
    assert ImageFolder(tmp_path).with_id(image_id) == tmp_path / expected


def test_an_id_without_photo_lists_the_names_tried(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"image id 7 .*tried 000000000007\.jpg, .*7\.png.*--image-info"):
        ImageFolder(tmp_path).with_id(7)


def test_an_id_with_two_photos_is_not_guessed(tmp_path: Path) -> None:
    (tmp_path / "007.jpg").touch()
    (tmp_path / "07.jpg").touch()
    with pytest.raises(InputError, match=r"could be 007\.jpg or 07\.jpg"):
        ImageFolder(tmp_path).with_id(7)


def test_names_are_found_in_subfolders_and_without_their_folder(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "a.jpg").touch()
    (tmp_path / "b.jpg").touch()
    folder = ImageFolder(tmp_path)
    assert folder.named("val/a.jpg") == tmp_path / "val/a.jpg"
    assert folder.named("train/b.jpg") == tmp_path / "b.jpg"


@pytest.mark.parametrize(
    "name", ["../secret.jpg", "/etc/../{root}/secret.jpg", "val/../../secret.jpg", "a\0.jpg", ""]
)
def test_names_never_lead_out_of_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.jpg").touch()
    (tmp_path / "images" / "val").mkdir(parents=True)
    with pytest.raises(InputError, match="not there"):
        ImageFolder(tmp_path / "images").named(name.format(root=tmp_path))
