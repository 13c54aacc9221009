"""Augmentation of whole batches of images, on the device they are on."""

from __future__ import annotations

import torch
from torch import Tensor


def shift_and_flip(
    images_BCHW: Tensor, generator: torch.Generator, *, pad: int = 2, flip: bool = True, reflect: bool = False, cut: int = 0
) -> Tensor:
    """Each image moved by up to `pad` pixels and, at even odds, mirrored.

    Args:
        images_BCHW: (batch, channels, height, width), any dtype.
        generator: a CPU generator; the same state gives the same augmentation.
        reflect: what comes in at an edge is the image's own reflection there, instead of zeros.
        cut: side of a square, in pixels, that is filled with each channel's mean over the image (cutout: DeVries & Taylor
            2017, arXiv:1708.04552); 0: none.
    """
    batch, channels, height, width = images_BCHW.shape
    device = images_BCHW.device
    moves = torch.randint(0, 2 * pad + 1, (2, batch, 1), generator=generator).to(device)
    rows_BH = moves[0] + torch.arange(height, device=device)
    columns_BW = moves[1] + torch.arange(width, device=device)
    if flip:
        mirrored = torch.rand(batch, 1, generator=generator).to(device) < 0.5
        columns_BW = torch.where(mirrored, columns_BW.flip(1), columns_BW)
    if reflect:
        source = images_BCHW
        rows_BH, columns_BW = _reflected(rows_BH - pad, height), _reflected(columns_BW - pad, width)
    else:
        source = torch.nn.functional.pad(images_BCHW, (pad, pad, pad, pad))
    picked = source.gather(2, rows_BH[:, None, :, None].expand(batch, channels, height, source.shape[3]))
    moved = picked.gather(3, columns_BW[:, None, None, :].expand(batch, channels, height, width))
    return _cut(moved, generator, cut) if cut else moved


def _reflected(index: Tensor, length: int) -> Tensor:
    """An index up to length - 1 outside, reflected at the first and the last element."""
    return length - 1 - (length - 1 - index.abs()).abs()


def _cut(images_BCHW: Tensor, generator: torch.Generator, side: int) -> Tensor:
    batch, _, height, width = images_BCHW.shape
    device = images_BCHW.device
    corners = torch.rand(2, batch, 1, generator=generator).to(device)
    top_B1, left_B1 = (corners[0] * (height - side + 1)).floor(), (corners[1] * (width - side + 1)).floor()
    rows_H, columns_W = torch.arange(height, device=device), torch.arange(width, device=device)
    in_rows_BH = (rows_H >= top_B1) & (rows_H < top_B1 + side)
    in_columns_BW = (columns_W >= left_B1) & (columns_W < left_B1 + side)
    means_BC11 = images_BCHW.float().mean((2, 3), keepdim=True).to(images_BCHW.dtype)
    return torch.where((in_rows_BH[:, :, None] & in_columns_BW[:, None, :])[:, None], means_BC11, images_BCHW)
