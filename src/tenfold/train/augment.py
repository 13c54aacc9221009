"""Augmentation of whole batches of images, on the device they are on."""

from __future__ import annotations

import torch
from torch import Tensor


def shift_and_flip(images_BCHW: Tensor, generator: torch.Generator, *, pad: int = 2, flip: bool = True) -> Tensor:
    """Each image moved by up to `pad` pixels (zeros come in) and, at even odds, mirrored.

    Args:
        images_BCHW: (batch, channels, height, width), any dtype.
        generator: a CPU generator; the same state gives the same augmentation.
    """
    batch, channels, height, width = images_BCHW.shape
    device = images_BCHW.device
    padded = torch.nn.functional.pad(images_BCHW, (pad, pad, pad, pad))
    moves = torch.randint(0, 2 * pad + 1, (2, batch, 1), generator=generator).to(device)
    rows_BH = moves[0] + torch.arange(height, device=device)
    columns_BW = moves[1] + torch.arange(width, device=device)
    if flip:
        mirrored = torch.rand(batch, 1, generator=generator).to(device) < 0.5
        columns_BW = torch.where(mirrored, columns_BW.flip(1), columns_BW)
    picked = padded.gather(2, rows_BH[:, None, :, None].expand(batch, channels, height, padded.shape[3]))
    return picked.gather(3, columns_BW[:, None, None, :].expand(batch, channels, height, width))
