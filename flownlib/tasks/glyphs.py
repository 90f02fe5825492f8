"""Alphabets drawn from the fonts that matplotlib ships: real letter shapes, any number of images, no download."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

CANVAS, SIZE = 64, 28  # glyphs are drawn on 64 × 64 and delivered as 28 × 28

# name: (ten characters, strength of the distortion, tuned so that cnn_small scores 85-97 %)
ALPHABETS: dict[str, tuple[str, float]] = {
    "latin": ("ABCDEFGHIJ", 1.0),
    "greek": ("αβγδεζηθλξ", 1.0),
    "cyrillic": ("БДЖИЛФЦШЭЯ", 1.0),
    "armenian": ("ԱԲԳԴԵԶԷԸԹԺ", 1.0),
    "latin_late": ("KLMNOPQRST", 1.0),
    "greek_capital": ("ΓΔΘΛΞΠΣΦΨΩ", 1.0),
    "hebrew": ("אבגדהוזחטל", 1.2),
    "tifinagh": ("ⴰⴱⴳⴷⴹⴻⴼⴽⵀⵃ", 1.3),
    "georgian": ("აბგდევზთიკ", 0.9),
    "lao": ("ກຂຄງຈຊຍດຕຖ", 1.0),
    "arabic": ("ابتجدرسصطع", 1.1),
    "old_italic": ("𐌀𐌁𐌂𐌃𐌄𐌅𐌇𐌊𐌌𐌐", 1.2),
}
IN_DISTRIBUTION = tuple(list(ALPHABETS)[:8])
HELD_OUT = tuple(list(ALPHABETS)[8:])

# scripts whose characters make random tasks: inclusive Unicode ranges
SCRIPTS: dict[str, tuple[tuple[int, int], ...]] = {
    "latin": ((0x41, 0x5A), (0x61, 0x7A)),
    "greek": ((0x391, 0x3A9), (0x3B1, 0x3C9)),
    "cyrillic": ((0x410, 0x44F),),
    "armenian": ((0x531, 0x556), (0x561, 0x586)),
    "hebrew": ((0x5D0, 0x5EA),),
    "tifinagh": ((0x2D30, 0x2D65),),
    "syllabics": ((0x1401, 0x1676),),
    "lisu": ((0xA4D0, 0xA4F7),),
    "georgian": ((0x10D0, 0x10F0),),
    "lao": ((0xE81, 0xEAE),),
    "arabic": ((0x627, 0x64A),),
    "old_italic": ((0x10300, 0x1031E),),
    "nko": ((0x7CA, 0x7EA),),
    "digits": ((0x30, 0x39),),
}
TRAINING_SCRIPTS = ("latin", "greek", "cyrillic", "armenian", "hebrew", "tifinagh", "syllabics", "lisu")


@cache
def fonts() -> tuple[Path, ...]:
    """The text fonts in use, sorted: DejaVu, STIX General and Computer Modern."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    modern = ("cmr10", "cmb10", "cmss10", "cmti10", "cmtt10")
    families = ("DejaVuSans", "DejaVuSerif", "STIXGeneral")
    return tuple(
        path
        for path in sorted(folder.glob("*.ttf"))
        if (path.stem.startswith(families) and "Display" not in path.stem) or path.stem in modern
    )


@cache
def _charmap(path: Path) -> frozenset[int]:
    return frozenset(FT2Font(str(path)).get_charmap())


def characters(scripts: tuple[str, ...]) -> str:
    """Every character of the scripts that at least one font can draw, in Unicode order."""
    codes = [code for script in scripts for low, high in SCRIPTS[script] for code in range(low, high + 1)]
    drawable = frozenset().union(*(_charmap(path) for path in fonts()))
    return "".join(chr(code) for code in codes if code in drawable and chr(code).isalnum())


def draw(character: str, font: Path, box: int = 46) -> Tensor | None:
    """The glyph centred on a [64, 64] canvas with values in [0, 1], its longer side `box`; None if it has no ink."""
    image = Image.new("L", (256, 256), 0)
    ImageDraw.Draw(image).text((64, 64), character, font=_truetype(font), fill=255)
    bounds = image.getbbox()
    if bounds is None:
        return None
    ink = image.crop(bounds)
    scale = box / max(ink.size)
    ink = ink.resize((max(1, round(ink.width * scale)), max(1, round(ink.height * scale))), Image.Resampling.LANCZOS)
    canvas = Image.new("L", (CANVAS, CANVAS), 0)
    canvas.paste(ink, ((CANVAS - ink.width) // 2, (CANVAS - ink.height) // 2))
    return torch.from_numpy(np.asarray(canvas, dtype=np.float32) / 255)


@cache
def _truetype(font: Path) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(font), 96)


@cache
def drawings(character: str) -> Tensor:
    """The character in every font that has it: [f, 64, 64].

    Raises:
        ValueError: if no font has it.
    """
    glyphs = [draw(character, font) for font in fonts() if ord(character) in _charmap(font)]
    glyphs = [glyph for glyph in glyphs if glyph is not None]
    if not glyphs:
        raise ValueError(f"no font here can draw {character!r}")
    return torch.stack(glyphs)


def distort(glyphs: Tensor, generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """Random thickness, affine and elastic deformation, contrast and noise.

    Args:
        glyphs: [n, 64, 64] in [0, 1]. strength: 1 is the strength of the tutorial's Latin alphabet.

    Returns:
        [n, 1, 28, 28] in [0, 1].
    """
    n, x = len(glyphs), _thicken(glyphs[:, None], generator)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    angle = uniform(-1, 1) * math.radians(12) * strength
    shear = uniform(-1, 1) * 0.18 * strength
    stretch_x, stretch_y = (1 / uniform(1.05 - 0.27 * strength, 1.05) for _ in range(2))
    cos, sin = angle.cos(), angle.sin()
    affine = torch.stack(
        [
            torch.stack([cos * stretch_x, (shear * cos - sin) * stretch_x, uniform(-1, 1) * 0.12 * strength], dim=-1),
            torch.stack([sin * stretch_y, (shear * sin + cos) * stretch_y, uniform(-1, 1) * 0.12 * strength], dim=-1),
        ],
        dim=1,
    )
    grid = F.affine_grid(affine, (n, 1, CANVAS, CANVAS), align_corners=False)
    wobble = 0.05 * strength * torch.randn(n, 2, 5, 5, generator=generator)
    grid = grid + F.interpolate(wobble, (CANVAS, CANVAS), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    x = F.adaptive_avg_pool2d(F.grid_sample(x, grid, align_corners=False), SIZE)
    x = x * uniform(0.5, 1.0)[:, None, None, None]
    noise = torch.randn(x.shape, generator=generator) * uniform(0, 0.12 * strength)[:, None, None, None]
    return (x + noise).clamp(0, 1)


def _thicken(x: Tensor, generator: torch.Generator) -> Tensor:
    amount = 2 * torch.rand(len(x), 1, 1, 1, generator=generator) - 1
    bold, thin = F.max_pool2d(x, 5, 1, 2), -F.max_pool2d(-x, 3, 1, 1)
    return torch.where(amount > 0, x + (bold - x) * amount, x + (x - thin) * amount * 0.8)


def glyph_images(text: str, per_class: int, seed: int, strength: float = 1.0) -> Tensor:
    """Distorted images of each character: uint8 [len(text), per_class, 28, 28]. Each image draws its font at random."""
    generator = torch.Generator().manual_seed(seed)
    classes = []
    for character in text:
        glyphs = drawings(character)
        drawn = glyphs[torch.randint(len(glyphs), (per_class,), generator=generator)]
        images = torch.cat([distort(part, generator, strength)[:, 0] for part in drawn.split(512)])
        classes.append((images * 255).round().to(torch.uint8))
    return torch.stack(classes)


def without_lookalikes(text: str, avoid: str) -> str:
    """The characters of `text` whose mean drawing has a cosine below 0.88 with that of every one in `avoid`."""

    def unit(characters: str) -> Tensor:
        means = torch.stack([F.avg_pool2d(drawings(c)[:, None], 4).mean(0).flatten() for c in characters])
        return F.normalize(means, dim=1)

    closest = (unit(text) @ unit(avoid).T).max(dim=1).values
    return "".join(c for c, similarity in zip(text, closest.tolist(), strict=True) if similarity < 0.88)
