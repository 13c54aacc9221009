"""What each example of a batch adds to the gradient of a layer's parameters, from the layer's input and its output's gradient.

All are exact, for layers whose first dimension is the batch. For normalisation over the batch an example's share is what its own
values add; that it moves the statistics of the others belongs to their inputs' gradient, not to the layer's parameters.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Shares = dict[str, Tensor]
"""By a parameter's name within its layer: (examples, *shape of the parameter)."""
Layer = Callable[[nn.Module, Tensor, Tensor], Shares]


def shares_of(layer: nn.Module, *, normalised: bool = False) -> Layer | None:
    """The function for a layer; none where its kind is not known.

    Args:
        normalised: of batch normalisation, whose inputs are given as they are normalised.
    """
    if normalised:
        return _scale_and_shift
    if isinstance(layer, nn.Embedding) and layer.scale_grad_by_freq:  # an example's share depends on the others
        return None
    return next((f for kind, f in _KINDS.items() if type(layer) is kind), None)


def statistics_of(output: Tensor) -> tuple[Tensor, Tensor] | None:
    """Mean and reciprocal standard deviation (channels,) by which batch normalisation has normalised a batch, as autograd keeps them for the
    backward pass; None where it does not: to reckon them once more takes several times as long as all else that is done for the layer.

    Where somebody has hooks on what is kept (activation checkpointing computes it again when it is looked at), it is not looked at.
    """
    if torch._C._autograd._top_saved_tensors_default_hooks(False) is not None:  # no public name for it
        return None
    node = output.grad_fn
    found = [getattr(node, f"_saved_result{i}", None) for i in (1, 2)]
    if not getattr(node, "_saved_training", False) or not all(isinstance(f, Tensor) and f.shape == output.shape[1:2] for f in found):
        return None
    mean, scale = found
    assert mean is not None
    assert scale is not None
    return mean, scale


def as_normalised(x: Tensor, statistics: tuple[Tensor, Tensor]) -> Tensor:
    """Rows (n, channels, …) as batch normalisation has normalised them."""
    mean, scale = (s.reshape(-1, *[1] * (x.ndim - 2)) for s in statistics)
    return (x - mean) * scale


def squares_of(layer: nn.Module, x: Tensor, delta: Tensor, *, normalised: bool = False) -> dict[str, Tensor]:
    """Squared norms (examples,) of each example's share of each parameter, without making the shares where that is dear.

    Args:
        x: (examples, …), what the layer was given.
        delta: (examples, …), the gradient of what it answered.
        normalised: see `shares_of`.
    """
    if type(layer) is nn.Linear and x.ndim == 2:  # an outer product
        squares = {"weight": x.square().sum(1) * delta.square().sum(1)}
        return squares | ({} if layer.bias is None else {"bias": delta.square().sum(1)})
    if type(layer) is nn.Linear and x.ndim == 3 and x.shape[1] ** 2 < x.shape[2] * delta.shape[2]:
        return {"weight": _gram(x @ x.mT, delta)} | ({} if layer.bias is None else {"bias": delta.sum(1).square().sum(1)})
    if type(layer) is nn.Embedding:
        index, delta = x.reshape(len(x), -1), delta.reshape(len(x), -1, delta.shape[-1])
        same = index[:, :, None] == index[:, None, :]
        if layer.padding_idx is not None:
            same &= (index != layer.padding_idx)[:, :, None]
        return {"weight": _gram(same.to(delta.dtype), delta)}
    shares = shares_of(layer, normalised=normalised)
    assert shares is not None
    return {name: share.flatten(1).square().sum(1) for name, share in shares(layer, x, delta).items()}


def _gram(of_inputs: Tensor, delta: Tensor) -> Tensor:
    """|Σ_t x_t ⊗ δ_t|² = Σ_tu (x_t·x_u)(δ_t·δ_u) (Goodfellow 2015, arXiv:1510.01799; for sequences Li et al. 2022, arXiv:2110.05679).

    Args:
        of_inputs: (examples, T, T), products x_t·x_u.
        delta: (examples, T, outputs).
    """
    return (of_inputs * (delta @ delta.mT)).sum((1, 2))


def _linear(layer: nn.Module, x: Tensor, delta: Tensor) -> Shares:
    x, delta = x.reshape(len(x), -1, x.shape[-1]), delta.reshape(len(delta), -1, delta.shape[-1])
    return {"weight": delta.mT @ x} | ({} if layer.bias is None else {"bias": delta.sum(1)})


def _embedding(layer: nn.Module, x: Tensor, delta: Tensor) -> Shares:
    assert isinstance(layer, nn.Embedding)
    index, delta = x.reshape(len(x), -1), delta.reshape(len(x), -1, delta.shape[-1])
    if layer.padding_idx is not None:
        delta = delta * (index != layer.padding_idx)[..., None]
    weight = delta.new_zeros(len(x), *layer.weight.shape)
    return {"weight": weight.scatter_add_(1, index[..., None].expand_as(delta), delta)}


def _convolution(layer: nn.Module, x: Tensor, delta: Tensor) -> Shares:
    """By treating examples as groups of channels: the weight's gradient of a grouped convolution has a part for each."""
    assert isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    n, dims = len(x), len(layer.kernel_size)
    padding = layer.padding
    if layer.padding_mode != "zeros" or isinstance(padding, str):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x, padding = nn.functional.pad(x, layer._reversed_padding_repeated_twice, mode=mode), (0,) * dims  # torch has no public name for it
    assert not isinstance(padding, str)
    weight = torch.ops.aten.convolution_backward(
        delta.reshape(1, -1, *delta.shape[2:]), x.reshape(1, -1, *x.shape[2:]),
        layer.weight.to(delta.dtype).expand(n, *layer.weight.shape).flatten(0, 1), None,
        layer.stride, padding, layer.dilation, False, [0] * dims, n * layer.groups, [False, True, False],
    )[1]  # fmt: skip
    shares = {"weight": weight.reshape(n, *layer.weight.shape)}
    return shares | ({} if layer.bias is None else {"bias": delta.flatten(2).sum(2)})


def _affine(normalised: Tensor, delta: Tensor, shape: torch.Size, *, channels: int | None) -> Shares:
    """Shares of a scale and a shift. With `channels`, parameters lie along that dimension; else along the last ones."""
    together = [d for d in range(1, delta.ndim) if d != channels] if channels is not None else list(range(1, delta.ndim - len(shape)))
    product = delta * normalised
    return {"weight": product.sum(together) if together else product, "bias": delta.sum(together) if together else delta}


def _batch_norm(layer: nn.Module, x: Tensor, delta: Tensor) -> Shares:
    assert isinstance(layer, nn.modules.batchnorm._BatchNorm)  # the common base of all sizes
    batch = layer.training or layer.running_mean is None
    mean, variance = (None, None) if batch else (layer.running_mean, layer.running_var)
    normalised = nn.functional.batch_norm(x, mean, variance, training=batch, eps=layer.eps)
    return _affine(normalised[: len(delta)], delta, layer.weight.shape, channels=1)


def _scale_and_shift(layer: nn.Module, x: Tensor, delta: Tensor) -> Shares:
    assert isinstance(layer, nn.modules.batchnorm._BatchNorm)
    return _affine(x, delta, layer.weight.shape, channels=1)


def _layer_norm(layer: nn.Module, x: Tensor, delta: Tensor) -> Shares:
    assert isinstance(layer, nn.LayerNorm)
    shares = _affine(nn.functional.layer_norm(x, layer.normalized_shape, eps=layer.eps), delta, layer.weight.shape, channels=None)
    return shares if layer.bias is not None else {"weight": shares["weight"]}


def _rms_norm(layer: nn.Module, x: Tensor, delta: Tensor) -> Shares:
    assert isinstance(layer, nn.RMSNorm)
    shares = _affine(nn.functional.rms_norm(x, layer.normalized_shape, eps=layer.eps), delta, layer.weight.shape, channels=None)
    return {"weight": shares["weight"]}


def _group_norm(layer: nn.Module, x: Tensor, delta: Tensor) -> Shares:
    assert isinstance(layer, nn.GroupNorm)
    return _affine(nn.functional.group_norm(x, layer.num_groups, eps=layer.eps), delta, layer.weight.shape, channels=1)


NORMALISATIONS: dict[type[nn.Module], Layer] = {
    nn.LayerNorm: _layer_norm, nn.RMSNorm: _rms_norm, nn.GroupNorm: _group_norm,
    nn.BatchNorm1d: _batch_norm, nn.BatchNorm2d: _batch_norm, nn.BatchNorm3d: _batch_norm,
}  # fmt: skip
_KINDS: dict[type[nn.Module], Layer] = NORMALISATIONS | {
    nn.Linear: _linear, nn.Embedding: _embedding,
    nn.Conv1d: _convolution, nn.Conv2d: _convolution, nn.Conv3d: _convolution,
}  # fmt: skip
