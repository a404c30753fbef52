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
