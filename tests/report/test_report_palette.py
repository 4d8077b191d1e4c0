"""The palette and the type of the figures, held to numbers."""

import itertools

import numpy as np
import pytest

from esa.report.theme import GROUPS, PALETTE, PRINTED_POINTS, TYPE, WIDTH

# Machado, Oliveira and Fernandes, A physiologically-based model for simulation of color vision deficiency, 2009, severity 1.
SIMULATIONS = {
    "normal": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
WHITE = np.array([0.95047, 1.0, 1.08883])


def linear(color: str) -> np.ndarray:
    rgb = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    xyz = TO_XYZ @ np.clip(rgb, 0, 1) / WHITE
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def ciede2000(one: np.ndarray, two: np.ndarray) -> float:
    """Return the colour difference of Sharma, Wu and Dalal, 2005."""
    (l1, a1, b1), (l2, a2, b2) = one, two
    mean = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    stretch = 1.5 - 0.5 * np.sqrt(mean**7 / (mean**7 + 25**7))
    c1, c2 = np.hypot(stretch * a1, b1), np.hypot(stretch * a2, b2)
    h1, h2 = (np.degrees(np.arctan2(b, stretch * a)) % 360 for a, b in ((a1, b1), (a2, b2)))
    turn = 0.0 if c1 * c2 == 0 else (h2 - h1 + 180) % 360 - 180
    hue = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2))
    middle = h1 + h2 if c1 * c2 == 0 else (h1 + turn / 2) % 360
    light, chroma = (l1 + l2) / 2, (c1 + c2) / 2
    weight = (
        1
        - 0.17 * np.cos(np.radians(middle - 30))
        + 0.24 * np.cos(np.radians(2 * middle))
        + 0.32 * np.cos(np.radians(3 * middle + 6))
        - 0.20 * np.cos(np.radians(4 * middle - 63))
    )
    s_l = 1 + 0.015 * (light - 50) ** 2 / np.sqrt(20 + (light - 50) ** 2)
    s_c, s_h = 1 + 0.045 * chroma, 1 + 0.015 * chroma * weight
    rotation = (
        -2 * np.sqrt(chroma**7 / (chroma**7 + 25**7)) * np.sin(np.radians(60 * np.exp(-(((middle - 275) / 25) ** 2))))
    )
    parts = np.array([(l2 - l1) / s_l, (c2 - c1) / s_c, hue / s_h])
    return float(np.sqrt(parts @ parts + rotation * parts[1] * parts[2]))


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    [
        ((50.0, 2.6772, -79.7751), (50.0, 0.0, -82.7485), 2.0425),
        ((50.0, 2.49, -0.001), (50.0, -2.49, 0.0009), 7.1792),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
        ((22.7233, 20.0904, -46.6940), (23.0331, 14.9730, -42.5619), 2.0373),
        ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
    ],
)
def test_the_difference_is_that_of_the_published_pairs(one: tuple, two: tuple, expected: float) -> None:
    """The tests' own CIEDE2000 reproduces the test data of Sharma, Wu and Dalal."""
    assert ciede2000(np.array(one), np.array(two)) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("vision", SIMULATIONS)
def test_any_two_colours_stay_apart(vision: str) -> None:
    """Every pair of the palette differs by at least 15 in every simulated vision."""
    seen = {name: lab(np.asarray(SIMULATIONS[vision]) @ linear(color)) for name, color in PALETTE.items()}
    near = {(a, b): ciede2000(seen[a], seen[b]) for a, b in itertools.combinations(seen, 2)}
    assert min(near.values()) >= 15, near


def test_the_palette_test_can_fail() -> None:
    """Red and green of equal lightness fall together under deuteranopia."""
    seen = [lab(np.asarray(SIMULATIONS["deuteranopia"]) @ linear(color)) for color in ("#c05a3c", "#7d7d2a")]
    assert ciede2000(*seen) < 15


def test_groups_differ_in_shape_too() -> None:
    """No two groups share a colour or a shape, and each colour is of the palette."""
    colors, shapes = zip(*GROUPS.values(), strict=True)
    assert len(set(colors)) == len(set(shapes)) == len(GROUPS)
    assert set(colors) <= set(PALETTE)


def test_type_is_legible_in_print() -> None:
    """The type of a figure of full width is 7 points or more at 85 mm."""
    assert TYPE * PRINTED_POINTS / WIDTH >= 7
