"""Transformer blocks with weights in the memory layout of oneDNN's kernels.

`torch.nn.Linear` keeps a plain matrix. For bfloat16, oneDNN converts it to its own blocked layout on every call, which
for the few tokens of one query costs more than the product itself; in float32 torch calls MKL, which is slow on
processors of other makers. Packed once, both are faster, with the same sums in another order. Everything between the
products stays in float32, which costs next to nothing and makes the error of bfloat16 several times smaller: most of
the error comes from rounding the residual stream in each layer.

The operators are those that torch.compile emits for a model with frozen weights; compiling would add minutes to the
start.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from open_clip.transformer import ResidualAttentionBlock
from torch import nn


def can_pack(network: nn.Module) -> bool:
    """Return whether this torch has the operators and ``network`` has blocks that :func:`pack` supports."""
    operators = torch.ops.mkldnn
    return (
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(operators, "_reorder_linear_weight")
        and hasattr(operators, "_linear_pointwise")
        and any(_is_known(module) for module in network.modules())
    )


def pack(network: nn.Module, dtype: torch.dtype) -> None:
    """Replace the products in open_clip's own blocks by packed ones in ``dtype``, in place; for inference on a CPU.

    ``network`` is in float32, and everything between the products stays so. Other modules (convolutions, towers of timm
    or Hugging Face) are unchanged. The replaced weights are freed. Raises :class:`RuntimeError` if the processor has no
    such kernel.
    """
    for block in list(network.modules()):
        if _is_known(block):
            known: Any = block
            known.attn = PackedSelfAttention(known.attn, dtype)
            known.mlp = PackedMlp(known.mlp, dtype)


def _is_known(block: object) -> bool:
    if not isinstance(block, ResidualAttentionBlock) or hasattr(block, "ln_1_kv"):  # cross-attention
        return False
    attention = block.attn
    return (
        isinstance(attention, nn.MultiheadAttention)
        and attention.batch_first
        and attention.in_proj_weight is not None
        and attention.bias_k is None
        and not attention.add_zero_attn
    )


class PackedLinear(nn.Module):
    """A linear layer for x (..., inputs) in float32, its product in the dtype of ``weight``.

    ``activation`` is applied to the sums before they are rounded: a name that oneDNN knows, or none.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, activation: str = "none") -> None:
        super().__init__()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        self._bias = bias
        self._dtype = weight.dtype
        self._activation = activation
        self._product = torch.ops.mkldnn._linear_pointwise.default
        self.weight = torch.empty(0)
        """The attribute from which open_clip takes the dtype between layers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (..., outputs) in float32."""
        return self.reduced(x).to(x.dtype)

    def reduced(self, x: torch.Tensor) -> torch.Tensor:
        """Return (..., outputs) in the dtype of the product."""
        product: torch.Tensor = self._product(
            x.to(self._dtype), self._packed, self._bias, self._activation, [], _ALGORITHMS[self._activation]
        )
        return product


_ALGORITHMS = {"none": "", "gelu": "none"}
"""Arguments of an activation; GELU's ``none`` means exact, without the approximation by tanh."""


class PackedSelfAttention(nn.Module):
    """``torch.nn.MultiheadAttention`` as open_clip's blocks call it: self-attention, batch first."""

    def __init__(self, attention: nn.MultiheadAttention, dtype: torch.dtype) -> None:
        super().__init__()
        self._heads = attention.num_heads
        self._inputs = PackedLinear(*_cast(dtype, attention.in_proj_weight, attention.in_proj_bias))
        self._output = PackedLinear(*_cast(dtype, attention.out_proj.weight, attention.out_proj.bias))

    def forward(
        self,
        x: torch.Tensor,
        _key: torch.Tensor,
        _value: torch.Tensor,
        *,
        need_weights: bool,
        attn_mask: torch.Tensor | None,
    ) -> tuple[torch.Tensor, None]:
        """Return (batch, length, width) for x of the same shape, and no weights; key and value are x."""
        if need_weights:
            raise ValueError("attention weights are not available")
        batch, length, width = x.shape
        # (3, batch, heads, length, width of a head)
        parts = self._inputs(x).view(batch, length, 3, self._heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind()
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask)
        return self._output(attended.transpose(1, 2).reshape(batch, length, width)), None


class PackedMlp(nn.Module):
    """The two layers of a block and the activation between them."""

    def __init__(self, mlp: Any, dtype: torch.dtype) -> None:
        super().__init__()
        is_exact_gelu = isinstance(mlp.gelu, nn.GELU) and mlp.gelu.approximate == "none"
        activation = "gelu" if is_exact_gelu else "none"
        self.c_fc = PackedLinear(*_cast(dtype, mlp.c_fc.weight, mlp.c_fc.bias), activation)
        self._activation = nn.Identity() if is_exact_gelu else mlp.gelu
        self._c_proj = PackedLinear(*_cast(dtype, mlp.c_proj.weight, mlp.c_proj.bias))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (..., width) for x of the same shape."""
        return self._c_proj.reduced(self._activation(self.c_fc.reduced(x))).to(x.dtype)


def _cast(
    dtype: torch.dtype, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    return weight.detach().to(dtype), None if bias is None else bias.detach().to(dtype)
