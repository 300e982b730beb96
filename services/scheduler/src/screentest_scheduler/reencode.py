"""The child that opens pictures from strangers: picture on stdin, clean PNG on stdout. Imports nothing but Pillow."""

from __future__ import annotations

import io
import resource
import sys
import warnings

MAX_PIXELS = 40_000_000
FORMATS = ("PNG", "JPEG", "WEBP")
# 40 megapixels as RGB, a copy of it and the encoder's buffers.
MEMORY_BYTES = 1024 * 1024 * 1024
REFUSED_STATUS = 3


def to_png(data: bytes) -> bytes:
    """An RGB PNG with nothing but pixels. ValueError says what is wrong. Runs in the child."""
    # Here, because the parent imports this module for its constants only.
    from PIL import Image, ImageOps, UnidentifiedImageError

    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    # By default Pillow only warns about a picture of up to twice that many pixels.
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if getattr(image, "n_frames", 1) > 1:
                raise ValueError("it is animated; give a single picture")
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):
                # 16 bit grey: Pillow would clip everything above 255 to white.
                upright = upright.convert("I").point(lambda value: value * (1 / 256)).convert("L")
            picture = upright.convert("RGB")
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(f"it has more than {MAX_PIXELS // 1_000_000} megapixels; scale it down") from error
    except UnidentifiedImageError as error:
        raise ValueError("it is none of PNG, JPEG and WebP; save it as one of them") from error
    except (OSError, SyntaxError, MemoryError) as error:
        raise ValueError(f"it is damaged ({error}); save it again from its source") from error
    clean = Image.new("RGB", picture.size)
    clean.paste(picture)  # a new image: nothing of the old one's metadata comes along
    out = io.BytesIO()
    clean.save(out, "PNG")
    return out.getvalue()


def main() -> int:
    """The child: picture on stdin, PNG on stdout, the reason for a refusal on stderr."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    try:
        sys.stdout.buffer.write(to_png(sys.stdin.buffer.read()))
    except ValueError as error:
        sys.stderr.write(str(error))
        return REFUSED_STATUS
    return 0


if __name__ == "__main__":
    sys.exit(main())
