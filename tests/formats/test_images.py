"""Reading photos: every pixel type, turned as the masks say; finding them by name and id."""

from __future__ import annotations

import os
import struct
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from transfiner_refine.errors import InputError
from transfiner_refine.formats.png import read_pixels
from transfiner_refine.image_folders import ImageFolder
from transfiner_refine.images import opened, read_image, upright_size

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
    pixels, turned = read_image(path, {upright.shape[:2]})
    assert np.array_equal(pixels, upright)
    assert turned == (orientation != 1)
    assert upright_size(path) == upright.shape[:2]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_masks_of_the_stored_size_leave_the_image_as_stored(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    pixels, turned = read_image(save(tmp_path / f"photo{suffix}", CORNERS, orientation), {(24, 40)})
    assert not turned
    assert np.abs(pixels.astype(int) - CORNERS).max() < 12  # JPEG is not exact


def test_masks_of_neither_size_are_an_error_that_names_both(tmp_path: Path) -> None:
    path = save(tmp_path / "photo.jpg", CORNERS, 6)
    with pytest.raises(InputError, match=r"is 40×24 upright and 24×40 as stored .* its masks are 10×10"):
        read_image(path, {(10, 10)})


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P", "RGBA", "CMYK"])
def test_every_kind_of_pixels_becomes_rgb(tmp_path: Path, mode: str) -> None:
    grey = np.where(np.arange(40) < 20, 0, 255).astype(np.uint8)[None].repeat(24, 0)
    path = tmp_path / ("photo.tif" if mode == "CMYK" else "photo.png")
    Image.fromarray(grey).convert("RGB").convert(mode).save(path)
    pixels, _ = read_image(path)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, grey[..., None].repeat(3, 2))


def test_sixteen_bit_grey_is_scaled_and_not_cut_off(tmp_path: Path) -> None:
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png")[0][0, :, 0].tolist() == [0, 1, 128, 255]


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
    assert np.array_equal(read_image(tmp_path / "photo.png")[0], CORNERS)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_makes_no_sense_leaves_the_image_as_stored(tmp_path: Path, value: object) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    Image.fromarray(CORNERS).save(tmp_path / "photo.png", exif=exif)
    pixels, turned = read_image(tmp_path / "photo.png")
    assert not turned
    assert np.array_equal(pixels, CORNERS)


def test_the_exif_of_a_png_may_come_after_its_pixels(tmp_path: Path) -> None:
    data = save(tmp_path / "photo.png", CORNERS, 6).read_bytes()
    at = data.index(b"eXIf") - 4
    end = at + 12 + int.from_bytes(data[at : at + 4], "big")
    (tmp_path / "photo.png").write_bytes(data[:at] + data[end:-12] + data[at:end] + data[-12:])
    assert upright_size(tmp_path / "photo.png") == (40, 24)
    assert read_image(tmp_path / "photo.png", {(40, 24)})[1]


@pytest.mark.parametrize("suffix", [".png", ".gif", ".webp", ".tif", ".mpo"])
def test_of_several_frames_the_first_is_taken(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (40, 24), (shade, shade, shade)) for shade in (200, 100, 0)]
    frames[0].save(tmp_path / f"photo{suffix}", save_all=True, append_images=frames[1:])
    assert np.abs(read_image(tmp_path / f"photo{suffix}")[0].astype(int) - 200).max() <= 2


def test_sixteen_bit_colours_and_cmyk_jpeg_become_rgb(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "deep.png"), np.full((4, 5, 3), 0x80FF, np.uint16))
    assert (read_image(tmp_path / "deep.png")[0] == 128).all()
    Image.new("CMYK", (40, 24), (0, 0, 0, 255)).save(tmp_path / "print.jpg")
    assert read_image(tmp_path / "print.jpg")[0].max() <= 2


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 5), np.float32)).save(tmp_path / "photo.tif")
    with pytest.raises(InputError, match="floating point pixels; convert the image"):
        read_image(tmp_path / "photo.tif")


def test_a_flipped_bit_in_the_pixels_of_a_png_is_noticed(tmp_path: Path) -> None:
    path = save(tmp_path / "photo.png", CORNERS)
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 20] ^= 4
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"has a wrong checksum in its chunk b'IDAT'; the file is damaged"):
        read_image(path)


def stating(height: int, width: int) -> bytes:
    """A PNG of 70 bytes that says it has that many pixels."""
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT", b"IEND")
    packed = [
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize("side", [20_001, 100_000, 2**31 - 1])
def test_an_image_bomb_is_refused_on_its_header(tmp_path: Path, side: int) -> None:
    (tmp_path / "photo.png").write_bytes(stating(side, side))
    reason = rf"states {side}×{side} = {side**2} pixels, more than the 400000000 allowed; raise --max-image"
    for read in (read_image, read_pixels):
        with pytest.raises(InputError, match=reason):
            read(tmp_path / "photo.png")


def test_no_limit_lets_through_more_than_masks_can_have(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(stating(30_000, 30_000))
    with pytest.raises(
        InputError, match="more than the 536870911 that run-length masks can have; cut the image"
    ):
        read_image(tmp_path / "photo.png", max_pixels=10**12)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".bmp", ".gif"])
def test_an_image_of_just_the_allowed_size_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"photo{suffix}"
    Image.fromarray(CORNERS).save(path)
    assert read_image(path, max_pixels=24 * 40)[0].shape == CORNERS.shape
    with pytest.raises(InputError, match="states 24×40 = 960 pixels, more than the 959 allowed"):
        read_image(path, max_pixels=24 * 40 - 1)


@pytest.mark.parametrize("kind", ["zTXt", "iCCP"])
def test_bombs_in_the_metadata_are_not_unpacked(tmp_path: Path, kind: str) -> None:
    data = save(tmp_path / "photo.png", CORNERS).read_bytes()
    bomb = kind.encode() + b"name\0\0" + zlib.compress(bytes(1 << 25))
    chunk = struct.pack(">I", len(bomb) - 4) + bomb + struct.pack(">I", zlib.crc32(bomb))
    (tmp_path / "photo.png").write_bytes(data[:33] + chunk + data[33:])
    tracemalloc.start()
    with pytest.raises(InputError, match="too large"):
        read_image(tmp_path / "photo.png")
    assert tracemalloc.get_traced_memory()[1] < 1 << 23
    tracemalloc.stop()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".bmp", ".gif"])
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("limit", [900, 100])  # above it Pillow warns, above twice it stops
def test_the_limit_of_pillow_neither_stops_nor_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, orientation: int, limit: int
) -> None:
    if suffix == ".webp" and limit == 100:
        pytest.skip("no WebP is so large that Pillow would stop at it")
    path = tmp_path / f"photo{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(CORNERS).save(path, exif=exif)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    assert read_image(path)[0].size == CORNERS.size
    assert limit == Image.MAX_IMAGE_PIXELS


def test_the_limit_of_pillow_is_the_same_after_any_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [save(tmp_path / f"{number}.tif", CORNERS, 1 + number % 8) for number in range(8)]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with ThreadPoolExecutor(8) as pool:
        shapes = list(pool.map(lambda path: read_image(path)[0].size, paths * 20))
    assert shapes == [CORNERS.size] * 160
    assert Image.MAX_IMAGE_PIXELS == 100
    with opened(paths[0]):
        Image.MAX_IMAGE_PIXELS = 123  # somebody else's decision, which stays
    assert Image.MAX_IMAGE_PIXELS == 123


def test_what_other_programs_would_have_to_draw_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(InputError, match="no image of a known format"):
        read_image(tmp_path / "photo.png")


def test_pipes_folders_and_links_to_nothing_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "nothing.jpg").symlink_to("elsewhere.jpg")
    (tmp_path / "itself.jpg").symlink_to("itself.jpg")
    for name, reason in [
        ("pipe", "no file"),
        ("folder", "no file"),
        ("nothing", "no such"),
        ("itself", "link"),
    ]:
        with pytest.raises(InputError, match=reason):
            read_image(tmp_path / f"{name}.jpg")


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
    with pytest.raises(
        InputError, match=r"image id 7 .*tried 000000000007, 7, in any case and with any ending.*--image-info"
    ):
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


def test_links_inside_the_folder_are_followed_wherever_they_lead(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "disk2").mkdir()
    save(tmp_path / "disk2" / "a.png", CORNERS)
    (tmp_path / "images" / "1.png").symlink_to(tmp_path / "disk2" / "a.png")
    (tmp_path / "images" / "val").symlink_to(tmp_path / "disk2")
    folder = ImageFolder(tmp_path / "images")
    for path in (folder.with_id(1), folder.named("1.png"), folder.named("val/a.png")):
        assert np.array_equal(read_image(path)[0], CORNERS)


@pytest.mark.parametrize(
    "name", ["x" * 300, "x/" * 3000 + "a.jpg", "\ud800/a.jpg", "a\0/b.jpg", "C:\\photos\\a.jpg"]
)
def test_names_that_no_file_can_have_are_just_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="is not there") as caught:
        ImageFolder(tmp_path).named(name)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "name", ["ö ü.jpg", "a\nb.jpg", "two  blanks.jpg", " .jpg", "%2e%2e.jpg", "n" * 251 + ".jpg"]
)
def test_names_may_be_anything_a_file_can_be_called(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert ImageFolder(tmp_path).named(name) == tmp_path / name


@pytest.mark.parametrize(
    "name", ["../secret.jpg", "/etc/../{root}/secret.jpg", "val/../../secret.jpg", "a\0.jpg", ""]
)
def test_names_never_lead_out_of_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.jpg").touch()
    (tmp_path / "images" / "val").mkdir(parents=True)
    with pytest.raises(InputError, match="not there"):
        ImageFolder(tmp_path / "images").named(name.format(root=tmp_path))


@pytest.mark.parametrize(
    ("there", "asked"),
    [
        ("a.png", "a.jpg"),
        ("A.JPG", "a.jpg"),
        ("val/a.jpg", "a.jpg"),
        ("val/a.jpeg", "/home/me/set/val/a.jpg"),
        ("a b.jpg", "a%20b.jpg"),
        ("a.jpg", "https://example.org/set/a.jpg?token=1&x=2"),
        ("sub/a.jpg", "/data/local-files/?d=sub/a.jpg"),
        ("000000000139.jpg", "COCO_val2014_000000000139.jpg"),
        ("COCO_train2014_000000000139.jpg", "000000000139.jpg"),
        ("ulm/ulm_000001_000019_leftImg8bit.png", "ulm_000001_000019_gtFine_leftImg8bit.png"),
        ("u\u0308.jpg", "\u00fc.jpg"),
        ("a.v2.jfif", "a.v2"),
    ],
)
def test_images_are_found_under_another_spelling_of_their_name(
    tmp_path: Path, there: str, asked: str
) -> None:
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).touch()
    assert ImageFolder(tmp_path).named(asked) == tmp_path / there


def test_the_spelling_that_is_closest_is_taken_and_no_other_folders_image(tmp_path: Path) -> None:
    for name in ("A.jpg", "A.png", "train/b.jpg", "x/c.jpg", "y/c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    folder = ImageFolder(tmp_path)
    assert folder.named("a.png") == tmp_path / "A.png"
    with pytest.raises(InputError, match="not there"):
        folder.named("val/b.jpg")
    with pytest.raises(InputError, match=r"could be x/c.jpg or y/c.jpg"):
        folder.named("c.jpg")


def test_ids_are_found_with_cocos_prefix_and_in_subfolders(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    (tmp_path / "COCO_val2014_000000000139.jpg").touch()
    (tmp_path / "val/000000000285.jpg").touch()
    folder = ImageFolder(tmp_path)
    assert folder.with_id(139).name == "COCO_val2014_000000000139.jpg"
    assert folder.with_id(285) == tmp_path / "val/000000000285.jpg"


@pytest.mark.parametrize("suffix", [".jfif", ".gif", ".avif", ".heic", ".ppm", ".jp2"])
def test_images_of_all_these_kinds_are_found_and_read(tmp_path: Path, suffix: str) -> None:
    if suffix == ".heic":
        pytest.importorskip("pillow_heif").register_heif_opener()
    Image.fromarray(CORNERS).save(
        tmp_path / f"7{suffix}", **({"format": "JPEG"} if suffix == ".jfif" else {})
    )
    path = ImageFolder(tmp_path).with_id(7)
    assert np.abs(read_image(path)[0].astype(int) - CORNERS).mean() < 6


def test_heic_photos_are_turned_once(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(CORNERS).save(tmp_path / "photo.heic", exif=exif.tobytes())
    upright = np.rot90(CORNERS, -1)
    assert upright_size(tmp_path / "photo.heic") == upright.shape[:2]
    pixels, _ = read_image(tmp_path / "photo.heic", {upright.shape[:2]})
    assert np.abs(pixels.astype(int) - upright).mean() < 6
