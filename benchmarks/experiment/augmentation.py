"""From uint8 images to network inputs: one random affine map per image, then the scaling."""

import torch
from kornia.geometry.transform import get_affine_matrix2d, warp_affine
from torch import Generator, Tensor

MAX_ROTATION = 20.0  # degrees, either way
MAX_SHIFT = 0.2  # of the image's side, each way


def scale(images: Tensor, faithful_to_mnist: bool = False) -> Tensor:
    """Bytes to [-1, 1]; or to [-1, 509], the 2x - 1 that the blog's code applies to MNIST."""
    return 2 * images.float() - 1 if faithful_to_mnist else images.float() / 127.5 - 1


def augment(images: Tensor, generator: Generator) -> Tensor:
    """Flip, rotate and shift each image (N, C, H, W) by chance; bytes in, floats in 0..255 out."""
    u = torch.rand(4, len(images), generator=generator, device=images.device)
    flip, turn, right, down = u[0] < 0.5, *(2 * u[1:] - 1)
    shift = MAX_SHIFT * torch.stack([right, down], dim=1)
    return transform(images, flip, MAX_ROTATION * turn, shift)


def transform(images: Tensor, flip: Tensor, degrees: Tensor, shift: Tensor) -> Tensor:
    """Flip left to right where `flip` (N,), turn about the centre by `degrees` (N,), then move by
    `shift` (N, 2: x, y, in sides of the image): one bilinear resampling with the nearest pixel
    filling in at the border."""
    height, width = images.shape[-2:]
    size = torch.tensor([width, height], dtype=torch.float32, device=images.device)
    mirror = torch.stack([1 - 2 * flip.float(), torch.ones_like(degrees)], dim=1)
    centre = ((size - 1) / 2).expand(len(images), 2)
    matrix = get_affine_matrix2d(shift * size, centre, mirror, degrees)
    return warp_affine(images.float(), matrix[:, :2], (height, width), padding_mode="border")
