"""Draws the picture of the home page, from a layer that lives the life it shows.

`python docs/figures/home.py` writes home.svg next to this file.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import masktorch

SIZE = 5
"""Entries along a side of the layer."""
CELL, GAP, LEFT, TOP, ROW = 17, 34, 15, 78, 156
"""Pixels: an entry, between panels, at the left, above the first panel, row to row."""
SIDE = SIZE * CELL
STEP = SIDE + GAP

STYLE = """
:root { --ink: #1f2937; --faint: #6b7280; --plus: #1d5fb4; --minus: #d97706;
  --learns: #15803d }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e5e7eb; --faint: #9ca3af; --plus: #7fb2f7; --minus: #fbbf24;
    --learns: #4ade80 }
}
text { fill: var(--ink); font: 14px system-ui, sans-serif; text-anchor: middle }
.left { text-anchor: start }
.title { font-weight: 600 }
.code { font: 12.5px ui-monospace, monospace }
.sign { font-size: 20px }
text.learns { fill: var(--learns); font-size: 12.5px }
text.frozen { fill: var(--faint); font-size: 12.5px }
rect { fill: none; stroke: var(--faint) }
rect.learns { stroke: var(--learns); stroke-width: 2.5 }
.plus, .minus, .kept { stroke: none }
.plus { fill: var(--plus) }
.minus { fill: var(--minus) }
.kept { fill: var(--ink) }
"""


class Panel(NamedTuple):
    values: Tensor
    state: str  # "learns", "frozen" or nothing
    deepest: float = 1.0  # the magnitude that has the full colour


def life() -> list[tuple[str, str, list[Panel]]]:
    """Title, code and panels of a phase: scores, mask, weights, what the layer uses."""
    torch.manual_seed(3)
    layer = nn.Linear(SIZE, SIZE, bias=False)
    inputs, wanted = torch.randn(64, SIZE), torch.randn(SIZE, SIZE) / 2

    def train() -> None:
        for _ in range(60):
            optimiser.zero_grad()
            nn.functional.mse_loss(layer(inputs), inputs @ wanted).backward()
            optimiser.step()

    def seen(mask_state: str, weight_state: str) -> list[Panel]:
        mask = layer.parametrizations.weight
        return [
            Panel(mask.scores.detach().clone(), mask_state, 2.0),
            Panel(masktorch.masks(layer)["weight"], mask_state),
            Panel(mask.original.detach().clone(), weight_state, 0.6),
            Panel(layer.weight.detach().clone(), "", 0.6),
        ]

    masktorch.wrap(layer)
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.05)
    train()
    phases = [("1  Learn a mask", "wrap(model)", seen("learns", "frozen"))]
    masktorch.freeze_mask(layer)
    masktorch.freeze_weights(layer, False)
    train()
    code = "freeze_mask(model); freeze_weights(model, False)"
    phases.append(
        ("2  Freeze it, train the weights under it", code, seen("frozen", "learns"))
    )
    masktorch.unwrap(layer)
    plain = [Panel(layer.weight.detach(), "", 0.6)]
    phases.append(
        ("3  Take it off: a plain layer, masked weights 0.0", "unwrap(model)", plain)
    )
    return phases


def text(x: float, y: float, words: str, kind: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{words}</text>\n'


def square(x: int, y: int, side: int, kind: str, opacity: float = 1.0) -> str:
    return (
        f'<rect x="{x}" y="{y}" width="{side}" height="{side}" class="{kind}" '
        f'opacity="{opacity:.2g}"/>'
    )


def drawn(panel: Panel, x: int, y: int) -> str:
    """A square per entry, coloured by sign and size or filled if a mask keeps it."""
    parts = [square(x - 1, y - 1, SIDE + 2, panel.state)]
    for row in range(SIZE):
        for column in range(SIZE):
            value = panel.values[row, column].item()
            kind = "kept" if value is True else "plus" if value > 0 else "minus"
            if value:
                opacity = (
                    1.0
                    if value is True
                    else min(1.0, 0.15 + abs(value) / panel.deepest)
                )
                corner = x + CELL * column + 1, y + CELL * row + 1
                parts.append(square(*corner, CELL - 2, kind, opacity))
    return (
        "".join(parts)
        + "\n"
        + text(x + SIDE / 2, y + SIDE + 18, panel.state, panel.state)
    )


def picture() -> str:
    parts, y = [], TOP
    for column, name in enumerate(("scores", "mask", "weights", "the layer uses")):
        parts.append(text(LEFT + column * STEP + SIDE / 2, 16, name))
    for title, code, panels in life():
        parts.append(text(LEFT, y - 27, title, "left title"))
        parts.append(text(LEFT, y - 9, code, "left code"))
        first = 4 - len(panels)
        for column, panel in enumerate(panels, first):
            x = LEFT + column * STEP
            parts.append(drawn(panel, x, y))
            if column > first:
                parts.append(
                    text(x - GAP / 2, y + SIDE / 2 + 6, "?→\u00d7="[column], "sign")
                )
        y += ROW
    width, height = 2 * LEFT + 4 * STEP - GAP, y - ROW + SIDE + 4
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">'
        f"<style>{STYLE}</style>\n{''.join(parts)}</svg>\n"
    )


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(picture(), encoding="utf-8")
