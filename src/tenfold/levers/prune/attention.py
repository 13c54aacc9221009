"""Multi-head attention with fewer heads than its width would hold, which PyTorch's own module cannot be."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class NarrowAttention(nn.Module):
    """Scaled dot-product attention over some of another module's heads; called as `nn.MultiheadAttention` is.

    Queries, keys and values are projected to heads × head_dim, which may be less than the width of the
    stream that they are read from and written to.
    """

    def __init__(self, source: nn.MultiheadAttention, keep: int) -> None:
        """
        Args:
            source: with one width for queries, keys and values.
            keep: heads that stay: those with the largest weights.
        """
        super().__init__()
        self.batch_first = source.batch_first
        self._qkv_same_embed_dim = False  # keeps a TransformerEncoderLayer from its fused path, which knows the full width only
        self.in_proj_bias = None
        self.num_heads, self.head_dim = keep, source.head_dim
        weights = source.in_proj_weight.detach().reshape(3, source.num_heads, self.head_dim, -1)
        out = source.out_proj.weight.detach().reshape(-1, source.num_heads, self.head_dim)
        size = weights.square().sum((0, 2, 3)) + out.square().sum((0, 2))
        kept = size.argsort(descending=True, stable=True)[:keep].sort().values
        width, inner = out.shape[0], keep * self.head_dim
        self.project = nn.Linear(weights.shape[-1], 3 * inner, bias=source.in_proj_bias is not None)
        self.out = nn.Linear(inner, width, bias=source.out_proj.bias is not None)
        with torch.no_grad():
            self.project.weight.copy_(weights[:, kept].reshape(3 * inner, -1))
            self.out.weight.copy_(out[:, kept].reshape(width, inner))
            if source.in_proj_bias is not None:
                self.project.bias.copy_(source.in_proj_bias.reshape(3, source.num_heads, self.head_dim)[:, kept].reshape(-1))
            if source.out_proj.bias is not None:
                self.out.bias.copy_(source.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """Attention of (batch, positions, width), or (positions, batch, width); the weights themselves are not given.

        Masks are those of `nn.MultiheadAttention`: boolean, True where there is nothing to attend to, or added to the scores.
        """
        del need_weights, average_attn_weights, is_causal  # a causal call comes with its mask
        parts = [functional.linear(x, w, b) for x, w, b in zip((query, key, value), self._weights(), self._biases(), strict=True)]
        if not self.batch_first:
            parts = [p.transpose(0, 1) for p in parts]
        q, k, v = (p.reshape(*p.shape[:2], self.num_heads, self.head_dim).transpose(1, 2) for p in parts)
        mask = None
        if attn_mask is not None:
            mask = _added(attn_mask, q.dtype)
            mask = mask.reshape(-1, self.num_heads, *mask.shape[1:]) if mask.ndim == 3 else mask
        if key_padding_mask is not None:
            padding = _added(key_padding_mask, q.dtype)[:, None, None, :]
            mask = padding if mask is None else mask + padding
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        mixed = self.out(mixed)
        return (mixed if self.batch_first else mixed.transpose(0, 1)), None

    def _weights(self) -> tuple[Tensor, ...]:
        return self.project.weight.chunk(3)

    def _biases(self) -> tuple[Tensor | None, ...]:
        return (None, None, None) if self.project.bias is None else self.project.bias.chunk(3)


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as it is added to scores."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf")) if mask.dtype == torch.bool else mask.to(dtype)


def narrow_attention(model: nn.Module, keep: float) -> None:
    """Replace every `nn.MultiheadAttention` of one width in `model`, in place, by one with the share `keep` of its heads."""
    for parent in list(model.modules()):
        if isinstance(parent, nn.TransformerEncoder):
            parent.use_nested_tensor = False  # its fast path looks for the weights of a whole nn.MultiheadAttention
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.MultiheadAttention) and child._qkv_same_embed_dim and child.bias_k is None and not child.add_zero_attn:
                heads = max(1, round(keep * child.num_heads))
                if heads < child.num_heads:
                    setattr(parent, name, NarrowAttention(child, heads))
