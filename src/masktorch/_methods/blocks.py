"""One score per block of a weight: whole channels, heads, experts or tiles.

The weight is laid out as tiles (blocks down, rows of a block, blocks across, columns of
a block, kernel positions...). The inner estimator's mask has one entry per block, so it
broadcasts to the tiles, and autograd hands its rule the sum of `g` over each block.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from masktorch._checks import is_whole_number
from masktorch._kernels.dtypes import at_least_float32
from masktorch._kernels.selecting import select
from masktorch._methods import protocol
from masktorch._methods.built_in import BuiltIn, times
from masktorch._methods.protocol import Estimator
from masktorch._sharding import whole

# The dimensions of tiles along which the rows and the columns of a block lie.
ROWS, COLUMNS = 1, 3


@dataclass(frozen=True)
class Blocks(BuiltIn):
    """Learn one score per block of entries, by any estimator.

    `block=(rows, columns)` tiles dimensions 0 and 1; `None` is a whole dimension, and
    the positions of a convolution's kernel belong together. `(1, None)` masks output
    channels (or the experts of an `(experts, out, in)` parameter), `(None, 1)` input
    channels, `(None, head_dim)` on an attention's output projection its heads,
    `(None, None)` the whole tensor. Rows are dimension 0, which is the input of a
    ConvTranspose and of transformers' Conv1D.

    Forward: the inner estimator's mask, one entry per block, repeated over the block.
    Backward: the inner estimator's rule, given the sum of `g` over the block. Scores
    have the shape (blocks down, blocks across, 1, ...), as many dimensions as the
    weight; the inner estimator's `init` gets the mean of `|W|` over each block. A
    density counts blocks.

    Args:
        estimator: the inner estimator, such as `TopK(0.5)`.
        block: how many rows and columns a block has.

    Raises:
        ValueError: if a length of `block` is less than 1.
        TypeError: if `block` is not a pair of ints or None, or `estimator` not an
            estimator.

    Examples:
        >>> import torch
        >>> from masktorch import TopK
        >>> channels = Blocks(TopK(0.5), (1, None))
        >>> channels.mode(torch.tensor([[3.0], [1.0]]))
        tensor([[ True],
                [False]])
    """

    estimator: Estimator
    block: tuple[int | None, int | None]

    @override
    def __post_init__(self) -> None:
        inner = self.estimator
        if isinstance(inner, type) or not isinstance(inner, Estimator):
            raise TypeError(
                "Blocks expected an estimator such as masktorch.TopK(), found "
                f"{inner!r}."
            )
        object.__setattr__(self, "block", _checked_block(self.block))

    @property
    def draws(self) -> bool:
        return protocol.is_stochastic(self.estimator)

    @override
    def init(self, weight: Tensor) -> Tensor:
        start = protocol.init(self.estimator)
        means = self.block_means(weight.abs())
        return start(means) if callable(start) else torch.full_like(means, start)

    def block_means(self, tensor: Tensor) -> Tensor:
        """Return the mean of each block, in the shape of block scores.

        `masktorch.wrap` asks for it if `init=` returns a tensor of the weight's shape.

        Args:
            tensor: of the weight's shape.
        """
        within = self._within_blocks(tensor)
        means = self._tiles(tensor).mean(within, keepdim=True, dtype=torch.float64)
        return means.squeeze((ROWS, COLUMNS)).to(at_least_float32(tensor.dtype))

    @override
    def product(self, scores: Tensor, weight: Tensor | None) -> Tensor:
        mask = self.estimator(scores)
        if weight is None:
            return self._repeat(mask)
        return times(self._tiles(weight), _on_tiles(mask)).reshape(weight.shape)

    @override
    def mode(self, scores: Tensor) -> Tensor:
        return whole(self._repeat, self.estimator.mode(scores))

    @override
    def mode_product(self, scores: Tensor, weight: Tensor) -> Tensor:
        mask = self.estimator.mode(scores)
        return select(_on_tiles(mask), self._tiles(weight)).reshape(weight.shape)

    def expected(self, scores: Tensor) -> Tensor:
        return whole(self._repeat, protocol.expected(self.estimator, scores))

    def sample(self, scores: Tensor) -> Tensor:
        return whole(self._repeat, protocol.sample(self.estimator, scores))

    @override
    def scores_for(self, scores: Tensor, mask: Tensor) -> Tensor:
        blocks = whole(self._block_mask, mask)
        return protocol.scores_for(self.estimator, scores, blocks)

    def _block_mask(self, mask: Tensor) -> Tensor:
        """Return the mask of the blocks, if the mask is constant on each of them."""
        tiles, within = self._tiles(mask), self._within_blocks(mask)
        some, every = tiles.amax(within, keepdim=True), tiles.amin(within, keepdim=True)
        if mask.numel() and not torch.equal(some, every):
            raise ValueError(
                f"the mask is not constant on blocks of {self.block}: "
                f"{int((some != every).sum())} of {some.numel()} are kept in part. "
                "Give every entry of a block the same value."
            )
        return some.squeeze((ROWS, COLUMNS))

    def _tiles(self, tensor: Tensor) -> Tensor:
        """View as (blocks down, rows, blocks across, columns, kernel positions...)."""
        (down, rows), (across, columns) = self._grid(tuple(tensor.shape))
        by_columns = torch.unflatten(tensor, 1, (across, columns))
        return torch.unflatten(by_columns, 0, (down, rows))

    def _within_blocks(self, tensor: Tensor) -> list[int]:
        """Return the dimensions of `_tiles` that lie within a block."""
        return [ROWS, COLUMNS, *range(COLUMNS + 1, tensor.dim() + 2)]

    def _grid(self, shape: tuple[int, ...]) -> list[tuple[int, int]]:
        """Return, for rows and for columns, how many blocks there are, and how long."""
        if len(shape) < 2:
            raise ValueError(
                f"blocks need two dimensions or more, found shape {shape}. Give the "
                f"tensor {self.estimator!r} itself, or leave it out."
            )
        grid = []
        for size, length in zip(shape, self.block, strict=False):
            length = max(size, 1) if length is None else length
            if size % length:
                raise ValueError(
                    f"blocks of {self.block} do not divide shape {shape}: {size} is no "
                    f"multiple of {length}. Choose a block that does, or leave it out."
                )
            grid.append((size // length, length))
        return grid

    def _repeat(self, mask: Tensor) -> Tensor:
        """Repeat a mask of blocks so that it broadcasts to the weight."""
        for dim, length in enumerate(self.block):
            if length is not None and length > 1:
                sizes = [*mask.shape[: dim + 1], length, *mask.shape[dim + 1 :]]
                mask = mask.unsqueeze(dim + 1).expand(sizes).flatten(dim, dim + 1)
        return mask


def _on_tiles(mask: Tensor) -> Tensor:
    """View a mask of blocks so that it broadcasts to the tiles of the weight."""
    return mask.unsqueeze(ROWS).unsqueeze(COLUMNS)


def _checked_block(block: Any) -> tuple[int | None, int | None]:
    """Return `block` as a tuple, if it is (rows, columns); JSON knows lists only."""
    message = (
        "Blocks expected block to be (rows, columns), positive ints or None for a "
        f"whole dimension, such as (1, None) for output channels, found {block!r}."
    )
    is_pair = isinstance(block, Sequence) and len(block) == 2
    if not is_pair or not all(n is None or is_whole_number(n) for n in block):
        raise TypeError(message)
    if any(n is not None and n < 1 for n in block):
        raise ValueError(message)
    rows, columns = block
    return rows, columns
