"""Flips, rotations, shifts and scaling of images."""

import numpy as np
import pytest
import torch

from benchmarks.experiment.data import augment, scale, transform


def images(count=4, channels=3, size=8):
    generator = torch.Generator().manual_seed(0)
    shape = (count, channels, size, size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def move(x, flip=False, degrees=0.0, shift=(0.0, 0.0)):
    n = len(x)
    return transform(
        x,
        torch.full((n,), flip),
        torch.full((n,), degrees),
        torch.tensor(shift).expand(n, 2),
    )


def test_nothing_drawn_gives_the_scaled_image():
    x = images()
    torch.testing.assert_close(scale(move(x)), scale(x), atol=1e-5, rtol=0)


def test_flip_is_left_to_right():
    x = images()
    torch.testing.assert_close(move(x, flip=True), x.flip(3).float(), atol=1e-3, rtol=0)


def test_a_quarter_turn():
    x = images()
    turned = move(x, degrees=90.0)
    clockwise = torch.rot90(x, -1, (2, 3)).float()
    torch.testing.assert_close(turned, clockwise, atol=1e-3, rtol=0)


def test_shift_fills_with_the_nearest_pixel():
    x = images(size=10)
    shifted = move(x, shift=(0.2, -0.1))  # two pixels right, one up
    torch.testing.assert_close(
        shifted[..., :-1, 2:], x[..., 1:, :-2].float(), atol=1e-3, rtol=0
    )
    column = shifted[..., :-1, 2]
    torch.testing.assert_close(shifted[..., :-1, 0], column, atol=1e-3, rtol=0)
    torch.testing.assert_close(shifted[..., :-1, 1], column, atol=1e-3, rtol=0)
    torch.testing.assert_close(
        shifted[..., -1, :], shifted[..., -2, :], atol=1e-3, rtol=0
    )


def test_each_image_has_its_own_map_and_all_channels_share_it():
    one = images(count=1, channels=1)
    out = augment(one.expand(16, 3, -1, -1), torch.Generator().manual_seed(1))
    assert (out[:, 0] == out[:, 1]).all()
    assert (out[:, 0] == out[:, 2]).all()
    assert len({image.numpy().tobytes() for image in out}) == 16


def test_what_is_drawn_stays_in_the_blogs_ranges(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "benchmarks.experiment.data.transform", lambda *args: drawn.append(args)
    )
    augment(images(count=4000, channels=1, size=2), torch.Generator().manual_seed(0))
    _, flip, degrees, shift = drawn[0]
    assert 0.45 < flip.float().mean() < 0.55
    for values, limit in ((degrees, 20), (shift[:, 0], 0.2), (shift[:, 1], 0.2)):
        assert -limit <= values.min() < -0.98 * limit
        assert 0.98 * limit < values.max() <= limit
    assert (
        abs(torch.corrcoef(torch.stack([degrees, *shift.T, flip.float()])))
        .triu(1)
        .max()
        < 0.06
    )


def test_the_generator_decides():
    x = images()
    first, again, other = (
        augment(x, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize(("faithful", "top"), [(False, 1), (True, 509)])
def test_scaling(faithful, top):
    ends = scale(torch.tensor([0, 255], dtype=torch.uint8), faithful)
    assert ends.tolist() == [-1, top]


def test_all_together_against_numpy():
    """Turned by 20 degrees and shifted: bilinear by hand, clipped at the border."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (7, 7)).astype(np.uint8)
    degrees, shift = 20.0, (0.1, -0.2)
    out = transform(
        torch.from_numpy(image)[None, None],
        torch.tensor([True]),
        torch.tensor([degrees]),
        torch.tensor([shift]),
    )[0, 0]
    a, centre = np.deg2rad(degrees), 3.0
    best = []
    for sign in (
        1,
        -1,
    ):  # which way is up is kornia's choice, as the direction is random anyway
        expected = np.empty((7, 7))
        for y in range(7):
            for x in range(7):
                dx, dy = x - centre - 7 * shift[0], y - centre - 7 * shift[1]
                u = np.cos(a) * dx - sign * np.sin(a) * dy
                v = sign * np.sin(a) * dx + np.cos(a) * dy
                u, v = (
                    centre - u,
                    centre + v,
                )  # the flip comes first, so it is undone last
                u, v = min(max(u, 0), 6), min(max(v, 0), 6)
                i, j = min(int(v), 5), min(int(u), 5)
                p, q = v - i, u - j
                expected[y, x] = (1 - p) * (
                    (1 - q) * image[i, j] + q * image[i, j + 1]
                ) + p * ((1 - q) * image[i + 1, j] + q * image[i + 1, j + 1])
        best.append(np.abs(expected - out.numpy()).max())
    assert min(best) < 0.05, best
