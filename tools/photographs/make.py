"""Makes cli/tests/photographs: pictures as cameras, phones and programs save them, and what Pillow makes of each.

    python3 -m pip install pillow && python3 tools/photographs/make.py

expected.json has for every file its size and the mean colours of its four quarters, as people see it (turned as EXIF
says, over white), or the words that an error has.
"""

import io
import json
import math
import pathlib
import random

from PIL import Image, ImageDraw, ImageOps

FOLDER = pathlib.Path(__file__).parents[2] / "cli/tests/photographs"
ORIENTATION = 0x0112


def scene(width, height, mode="RGB"):
    """A house under a sun: no two quarters are alike, and no turn looks as it did."""
    random.seed(width * 10000 + height)
    image = Image.new("RGB", (width, height))
    pixels = image.load()
    for y in range(height):
        for x in range(width):
            sky = y < height * 0.6
            grain = random.gauss(0, 3)
            base = (90 + 120 * x // width, 150, 230) if sky else (60, 130 + 60 * x // width, 50)
            shade = 1 - 0.3 * math.cos(3 * y / height)
            pixels[x, y] = tuple(max(0, min(255, int(c * shade + grain))) for c in base)
    draw = ImageDraw.Draw(image)
    w, h = width / 100, height / 100
    draw.ellipse((70 * w, 8 * h, 90 * w, 28 * h), fill=(255, 220, 90))
    draw.rectangle((12 * w, 45 * h, 45 * w, 85 * h), fill=(170, 60, 50))
    draw.polygon((8 * w, 45 * h, 49 * w, 45 * h, 28 * w, 20 * h), fill=(90, 40, 40))
    return image.convert(mode)


def with_hole(image, hidden=(255, 0, 255)):
    """Transparent in the middle, where another colour is hidden, and half so in a corner."""
    image = image.convert("RGBA")
    w, h = image.size
    hole = Image.new("RGBA", (w // 2, h // 2), (*hidden, 0))
    image.paste(hole, (w // 4, h // 4))
    image.paste(Image.new("RGBA", (w // 5, h // 5), (0, 0, 0, 128)), (0, 0))
    return image


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def stored(image, orientation):
    """The pixels as a camera stores them that is held so."""
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return image.transpose(undo), exif


def files():
    yield "landscape.jpg", saved(scene(640, 480), "JPEG", quality=88)
    yield "portrait.jpg", saved(scene(300, 400), "JPEG", quality=88)
    for orientation in range(2, 9):
        image, exif = stored(scene(160, 120), orientation)
        yield f"orientation-{orientation}.jpg", saved(image, "JPEG", exif=exif)
    yield "progressive.jpg", saved(scene(200, 150), "JPEG", progressive=True)
    yield "grey.jpg", saved(scene(160, 120, "L"), "JPEG")
    yield "cmyk.jpg", saved(scene(160, 120, "CMYK"), "JPEG")
    yield "panorama.jpg", saved(scene(800, 100), "JPEG")
    yield "cut.jpg", saved(scene(160, 120), "JPEG")[:-900]
    yield "thin.jpg", saved(scene(400, 12), "JPEG")
    yield "plain.png", saved(scene(96, 128), "PNG")
    yield "alpha.png", saved(with_hole(scene(96, 64)), "PNG")
    palette = scene(96, 64).quantize(32)
    yield "palette.png", saved(palette, "PNG", transparency=3)
    yield "grey16.png", saved(scene(96, 64, "L").convert("I;16").point(lambda v: v * 257), "PNG")
    image, exif = stored(scene(64, 96), 6)
    yield "orientation-6.png", saved(image, "PNG", exif=exif)
    yield "cut.png", saved(scene(96, 64), "PNG")[:-2000]
    yield "lossy.webp", saved(scene(320, 240), "WEBP", quality=80)
    yield "alpha.webp", saved(with_hole(scene(96, 64)), "WEBP", lossless=True, exact=True)
    image, exif = stored(scene(64, 96), 8)
    yield "orientation-8.webp", saved(image, "WEBP", exif=exif, quality=90)
    frames = [scene(96, 64), scene(96, 64).rotate(180)]
    yield "animated.webp", saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    yield "cut.webp", saved(scene(160, 120), "WEBP", quality=80)[:-500]


REFUSED = {
    "cut.jpg": "it is cut off",
    "thin.jpg": "it has 400 x 12 pixels",
    "cut.png": "it is broken",
    "cut.webp": "it is broken",
}


def seen(data):
    image = Image.open(io.BytesIO(data))
    if image.mode == "I;16":
        image = image.point(lambda v: v / 257).convert("L")
    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    image = image.convert("RGB")
    w, h = image.size
    boxes = [(0, 0, w // 2, h // 2), (w // 2, 0, w, h // 2), (0, h // 2, w // 2, h), (w // 2, h // 2, w, h)]
    means = []
    for box in boxes:
        part = list(image.crop(box).getdata())
        means.append([round(sum(p[c] for p in part) / len(part), 1) for c in range(3)])
    return {"width": w, "height": h, "quarters": means}


def main():
    FOLDER.mkdir(exist_ok=True)
    expected = {}
    for name, data in files():
        (FOLDER / name).write_bytes(data)
        expected[name] = {"refused": REFUSED[name]} if name in REFUSED else seen(data)
    text = ",\n".join(f" {json.dumps(name)}: {json.dumps(value)}" for name, value in expected.items())
    (FOLDER / "expected.json").write_text("{\n" + text + "\n}\n")
    print(len(expected), "files,", sum(f.stat().st_size for f in FOLDER.iterdir()), "bytes")


main()
