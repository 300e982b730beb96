"""Pictures from strangers: what is taken, what is left of it, what is refused. The real child process opens them."""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Callable

import pytest
from PIL import Image, PngImagePlugin

from screentest.errors import BadRequest, Exhausted
from screentest.kit.store import Store
from screentest_scheduler import keyframes

NOWHERE: Store = None  # type: ignore[assignment]  # a refused picture never reaches the depot


def picture(size: tuple[int, int] = (64, 48), mode: str = "RGB") -> Image.Image:
    """Left half red, right half blue: an orientation can be seen."""
    made = Image.new("RGB", size, (220, 20, 20))
    made.paste((20, 20, 220), (size[0] // 2, 0, *size))
    return made.convert(mode)


def saved(image: Image.Image, format_name: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format_name, **options)
    return out.getvalue()


def noise(size: tuple[int, int]) -> Image.Image:
    return Image.frombytes("RGB", size, random.Random(1).randbytes(size[0] * size[1] * 3))


def opened(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png), formats=["PNG"])
    image.load()
    return image


def is_red(pixel: object) -> bool:
    assert isinstance(pixel, tuple)
    return pixel[0] > 150 > pixel[2]


async def reencoded(data: bytes) -> Image.Image:
    return opened(await keyframes._reencode("scene", data))


async def refusal(data: bytes) -> str:
    with pytest.raises(BadRequest) as caught:
        await keyframes.accept(NOWHERE, "scene.png", data)
    [violation] = caught.value.violations
    assert violation.field == "keyframe"
    assert violation.description == str(caught.value)
    return str(caught.value)


# ---- taken


@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "WEBP"])
async def test_a_picture_is_taken_with_its_size_and_colours(format_name: str) -> None:
    clean = await reencoded(saved(picture(), format_name))
    assert (clean.mode, clean.size) == ("RGB", (64, 48))
    assert is_red(clean.getpixel((5, 5)))
    assert not is_red(clean.getpixel((60, 5)))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "CMYK"])
async def test_any_kind_of_pixel_becomes_rgb(mode: str) -> None:
    format_name = "JPEG" if mode == "CMYK" else "PNG"
    assert (await reencoded(saved(picture(mode=mode), format_name))).mode == "RGB"


async def test_sixteen_bit_grey_keeps_its_brightness() -> None:
    """It used to become a white picture."""
    clean = await reencoded(saved(Image.new("I;16", (16, 16), 20_000), "PNG"))
    assert clean.getpixel((3, 3)) == (20_000 // 256,) * 3


async def test_the_camera_orientation_is_applied_before_it_is_lost() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees: left becomes top
    clean = await reencoded(saved(picture(), "JPEG", exif=exif))
    assert clean.size == (48, 64)
    assert is_red(clean.getpixel((24, 5)))
    assert not is_red(clean.getpixel((24, 60)))


async def test_nothing_but_pixels_is_left() -> None:
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    words = PngImagePlugin.PngInfo()
    words.add_text("prompt", "a secret prompt")
    words.add_itxt("workflow", "a secret workflow")
    noted = saved(picture(), "PNG", pnginfo=words, exif=exif, icc_profile=b"a secret profile", dpi=(72, 72))
    for data in (noted, saved(picture(), "JPEG", exif=exif, comment=b"a secret comment"), noted + b"a secret tail"):
        png = await keyframes._reencode("scene", data)
        assert b"secret" not in png
        assert b"home" not in png
        assert opened(png).info == {}


async def test_the_largest_picture_is_still_taken() -> None:
    clean = await reencoded(saved(Image.new("1", (8000, 5000)), "PNG"))
    assert clean.size == (8000, 5000)


async def test_an_accepted_picture_lies_in_the_depot_under_its_own_hash(store: Store) -> None:
    data = saved(picture(), "JPEG")
    keyframe = await keyframes.accept(store, "scene.jpg", data)
    png = await store.get(keyframe.key)
    assert keyframe.key == f"keyframes/{keyframe.sha256}.png"
    assert hashlib.sha256(png).hexdigest() == keyframe.sha256
    assert (keyframe.width_px, keyframe.height_px, keyframe.size_bytes) == (64, 48, len(png))
    assert opened(png).size == (64, 48)
    assert await keyframes.accept(store, "another name.jpg", data) == keyframe


# ---- refused


async def test_a_png_bomb_is_refused_before_it_is_unpacked() -> None:
    bomb = saved(Image.new("1", (12_000, 9_000)), "PNG")
    assert len(bomb) < 100_000
    assert "more than 40 megapixels; scale it down" in await refusal(bomb)


async def test_a_little_too_many_pixels_are_too_many() -> None:
    """Pillow by itself only warns up to twice the limit."""
    assert "more than 40 megapixels" in await refusal(saved(Image.new("1", (8001, 5000)), "PNG"))


@pytest.mark.parametrize("format_name", ["WEBP", "PNG"])
async def test_an_animation_is_refused(format_name: str) -> None:
    frames = [picture(), Image.new("RGB", (64, 48)), picture()]
    data = saved(frames[0], format_name, save_all=True, append_images=frames[1:], duration=100)
    assert "it is animated; give a single picture" in await refusal(data)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
SVG = b"<svg xmlns='http://www.w3.org/2000/svg' width='10' height='10'/>"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x89PNG\r\n\x1a\n",
        b"this is a prompt, not a picture\n" * 10,
        EPS,
        SVG,
        saved(picture(), "GIF"),
        saved(picture(), "GIF", save_all=True, append_images=[Image.new("RGB", (64, 48))]),
        saved(picture(), "TIFF"),
        saved(picture(), "BMP"),
        saved(picture(), "PDF"),
    ],
    ids=["empty", "png header", "text", "eps", "svg", "gif", "animated gif", "tiff", "bmp", "pdf"],
)
async def test_what_is_none_of_the_three_kinds_is_refused_naming_them(data: bytes) -> None:
    assert "none of PNG, JPEG and WebP; save it as one of them" in await refusal(data)


@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("share", [0.5, 0.9])
async def test_a_truncated_picture_is_refused(format_name: str, share: float) -> None:
    data = saved(noise((120, 90)), format_name)
    told = await refusal(data[: int(len(data) * share)])
    assert "it is damaged" in told
    assert "save it again" in told


def test_a_file_beyond_the_limit_is_refused_while_it_comes_in() -> None:
    keyframes.check_size("scene.png", keyframes.MAX_UPLOAD_BYTES)
    with pytest.raises(Exhausted, match=r"'scene.png' is larger than 20 MB; scale it down"):
        keyframes.check_size("scene.png", keyframes.MAX_UPLOAD_BYTES + 1)


async def test_a_file_beyond_the_limit_is_not_even_opened() -> None:
    with pytest.raises(Exhausted, match="larger than 20 MB"):
        await keyframes.accept(NOWHERE, "scene.png", bytes(keyframes.MAX_UPLOAD_BYTES + 1))


async def test_a_picture_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyframes, "CHILD_TIMEOUT_S", 0.01)
    assert "takes longer than" in await refusal(saved(picture(), "PNG"))


async def test_a_picture_that_breaks_the_library_is_refused_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyframes.sys, "executable", "/bin/false")
    assert "broke the image library; give a PNG, JPEG or WebP" in await refusal(saved(picture(), "PNG"))


@pytest.mark.parametrize("make", [lambda: saved(noise((40, 30)), "PNG"), lambda: saved(noise((40, 30)), "JPEG")])
async def test_damaged_bytes_are_refused_or_become_a_clean_picture(make: Callable[[], bytes]) -> None:
    whole, chance = make(), random.Random(5)
    for _ in range(6):
        data = bytearray(whole)
        for _ in range(8):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            png = await keyframes._reencode("scene", bytes(data))
        except BadRequest as error:
            assert "cannot be used" in str(error)
        else:
            assert opened(png).mode == "RGB"
