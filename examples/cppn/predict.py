"""Paints a picture from a prompt with a small random neural network (a CPPN), on any CPU, in a second or two.

The network maps a point of the picture (x, y, its radius) and a latent vector made of the prompt's words to a colour
and a height; light from one side falls over the heights. The seed chooses the network, the words move through it, so
alike prompts give alike pictures. Frames come from coarse to fine, so that there is something to look at at once.
"""

from __future__ import annotations

import hashlib
import random
import struct
import time
import zlib
from collections.abc import Iterator
from tempfile import mkdtemp

import numpy as np
from cog import BaseRunner, Input, Path, current_scope

LATENT = 8
WIDTH = 40
DEPTH = 5

# The colours of each palette, from one end of its gradient to the other.
PALETTES = {
    "aurora": ("0b1036", "1f3d7a", "1fa89b", "8fe3a6", "f4f0c0", "e58ab5", "5b2a86"),
    "ember": ("14080e", "5a1226", "c23b22", "f58f3c", "ffd98a", "fff4dc", "7a3b5e"),
    "lagoon": ("031c2b", "07506b", "12939a", "6fd6c2", "f2efd2", "f6a96c", "1b3a5c"),
    "orchid": ("1d0b2e", "5b1f69", "b53d84", "f08aa0", "fde2d4", "a7c5eb", "3a3f8f"),
    "meadow": ("10251c", "2f5d3a", "86a84a", "e7d77a", "fbf3d6", "e79a6b", "6b3f4a"),
    "moonlight": ("070b1a", "1a2a4f", "4b6a9b", "a9bfd9", "f5f3ea", "c9b48a", "3b2f46"),
}


class Runner(BaseRunner):
    def run(
        self,
        prompt: str = Input(description="What to paint; every word moves the picture", min_length=1, max_length=500),
        palette: str = Input(description="The colours", default="aurora", choices=list(PALETTES)),
        seed: int | None = Input(description="Which network paints; empty for any", default=None, ge=0, le=2**31 - 1),
        width: int = Input(description="Width in pixels", default=512, ge=64, le=2048),
        height: int = Input(description="Height in pixels", default=512, ge=64, le=2048),
        frames: int = Input(description="How many pictures from coarse to fine", default=5, ge=1, le=8),
        detail: float = Input(description="How far the eye roams; more is busier", default=1.0, ge=0.2, le=4.0),
    ) -> Iterator[Path]:
        seed = random.SystemRandom().randrange(2**31) if seed is None else seed
        print(f"seed {seed}")
        network = Network(seed, latent_of(prompt), detail)
        folder = Path(mkdtemp())
        for number in range(frames):
            began = time.perf_counter()
            shrink = 2 ** (frames - 1 - number)
            canvas = paint(network, PALETTES[palette], max(2, width // shrink), max(2, height // shrink))
            path = folder / f"frame-{number}.png"
            path.write_bytes(png(enlarge(canvas, width, height)))
            print(f"{bar(number + 1, frames)} {time.perf_counter() - began:.2f} s")
            yield path
        current_scope().record_metric("pixels", width * height)


class Network:
    """The random network: dense layers with smooth activations, the latent mixed into the first of them."""

    def __init__(self, seed: int, latent: np.ndarray, detail: float) -> None:
        dice = np.random.default_rng(seed)
        self.detail = detail
        self.first = dice.normal(0, 1.0, (5, WIDTH)).astype(np.float32)
        self.bias = (latent @ dice.normal(0, 0.9, (LATENT, WIDTH))).astype(np.float32)
        self.layers = [dice.normal(0, 1.45 / WIDTH**0.5, (WIDTH, WIDTH)).astype(np.float32) for _ in range(DEPTH)]
        self.shifts = [dice.normal(0, 0.35, WIDTH).astype(np.float32) for _ in range(DEPTH)]
        self.last = dice.normal(0, 1.6 / WIDTH**0.5, (WIDTH, 3)).astype(np.float32)

    def __call__(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Three values in -1..1 for each point: where in the palette, how high, how bright."""
        radius = np.hypot(x, y)
        # The points are bent before they enter, so that nothing in the picture is quite straight.
        u = x + 0.35 * np.sin(1.7 * y + self.bias[0]) + 0.12 * np.sin(3.1 * x + self.bias[1])
        v = y + 0.35 * np.sin(1.3 * x + self.bias[2]) + 0.12 * np.sin(2.7 * y + self.bias[3])
        points = np.stack([u, v, radius, np.sin(2 * u + v), np.cos(2 * v - u)], axis=-1) * np.float32(self.detail)
        signal = np.tanh(points @ self.first + self.bias)
        for number, (layer, shift) in enumerate(zip(self.layers, self.shifts, strict=True)):
            signal = signal @ layer + shift
            signal = np.sin(1.6 * signal) if number == 1 else np.tanh(1.25 * signal)
        return np.tanh(signal @ self.last)


def latent_of(prompt: str) -> np.ndarray:
    """A vector of about unit variance: the sum of a random vector for each word."""
    words = prompt.lower().split()
    seeds = [int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big") for word in words]
    vectors = [np.random.default_rng(seed).normal(size=LATENT) for seed in seeds] or [np.zeros(LATENT)]
    return np.sum(vectors, axis=0) / len(vectors) ** 0.5


def paint(network: Network, palette: tuple[str, ...], width: int, height: int) -> np.ndarray:
    """The picture as height x width x 3 values in 0..1."""
    scale = 1.6 / min(width, height)
    rows = (np.arange(height, dtype=np.float32) + 0.5 - height / 2) * 2 * scale
    columns = (np.arange(width, dtype=np.float32) + 0.5 - width / 2) * 2 * scale
    bands = [network(*np.meshgrid(columns, band)) for band in np.array_split(rows, max(1, height // 64))]
    hue, rise, glow = np.moveaxis(np.concatenate(bands), -1, 0)
    # Fine strands along the heights make it silk rather than plastic.
    colour = gradient(palette, 0.5 + 0.46 * hue + 0.05 * glow + 0.035 * np.sin(21 * rise + 9 * hue))
    colour *= (0.86 + 0.22 * glow)[..., None]
    colour = lit(colour, rise, 2 * scale)
    vignette = 1 - 0.16 * np.clip(np.hypot(*np.meshgrid(columns, rows)) - 0.9, 0, None) ** 2
    return np.clip(colour * vignette[..., None], 0, 1) ** 0.92


def gradient(palette: tuple[str, ...], place: np.ndarray) -> np.ndarray:
    """The palette's colours at those places (0..1), mixed as light mixes rather than as bytes do."""
    stops = np.array([list(bytes.fromhex(stop)) for stop in palette], dtype=np.float32) / 255
    places = np.linspace(0, 1, len(stops))
    channels = [np.interp(place, places, stops[:, channel] ** 2.0) for channel in range(3)]
    return np.sqrt(np.stack(channels, axis=-1)).astype(np.float32)


def lit(colour: np.ndarray, rise: np.ndarray, step: float) -> np.ndarray:
    """The colours under a light from the upper left, with a soft highlight where the surface faces it."""
    down, right = np.gradient(rise, step)
    length = np.sqrt(1 + 0.35 * (down**2 + right**2))
    facing = (0.62 - 0.30 * right - 0.36 * down) / length
    highlight = np.clip(facing, 0, 1.4) ** 14 * 0.22
    return colour * (0.70 + 0.50 * np.clip(facing, -0.3, 1.2))[..., None] + highlight[..., None]


def enlarge(canvas: np.ndarray, width: int, height: int) -> np.ndarray:
    """The picture stretched to that size, linear in both directions."""
    for axis, size in ((0, height), (1, width)):
        if canvas.shape[axis] != size:
            place = np.clip((np.arange(size) + 0.5) * canvas.shape[axis] / size - 0.5, 0, canvas.shape[axis] - 1)
            before = np.minimum(place.astype(int), canvas.shape[axis] - 2)
            share = (place - before).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
            canvas = np.take(canvas, before, axis) * (1 - share) + np.take(canvas, before + 1, axis) * share
    return canvas


def png(canvas: np.ndarray) -> bytes:
    """The picture as a PNG file; each row is stored as the difference to its left neighbours, which packs well."""
    height, width, _ = canvas.shape
    # A fixed grain hides the steps between 256 levels in the softest gradients.
    grain = np.random.default_rng(0).random((height, width, 1), dtype=np.float32)
    pixels = (canvas * 255 + grain * 0.9).clip(0, 255).astype(np.uint8)
    differences = np.diff(pixels, axis=1, prepend=np.zeros((height, 1, 3), np.uint8)).reshape(height, width * 3)
    rows = np.concatenate([np.ones((height, 1), np.uint8), differences], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 6)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def bar(done: int, of: int) -> str:
    """A progress bar of 20 places."""
    full = 20 * done // of
    return f"[{'█' * full}{'░' * (20 - full)}] {100 * done // of:3d}%"
