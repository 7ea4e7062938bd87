"""Text towers that need no padding: causal ones, pooled at the end-of-text token.

In a causal tower a position depends only on earlier positions, so nothing after the end-of-text token affects the
vector that is pooled there. open_clip nevertheless runs all positions of the context, 77 for most models; running a
batch at its own token length gives the same vectors for a fraction of the arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from open_clip import CLIP, CustomTextCLIP
from open_clip.transformer import TextTransformer, text_global_pool


@dataclass(frozen=True, slots=True)
class CausalTextTower:
    """The text side of an open_clip model, run only up to the last end-of-text token of a batch.

    ``tower`` is the module with the parts, under the same names in both of open_clip's layouts: the
    model itself (``CLIP``) or its ``text`` (``CustomTextCLIP``).
    """

    tower: Any
    pool_type: str
    eos_id: int

    @classmethod
    def of(cls, network: torch.nn.Module) -> CausalTextTower | None:
        """Return the text tower of ``network``, or None if it must run in full.

        It must if attention is not causal (SigLIP), if another position is pooled (``first``, ``last``, CoCa's appended
        class token), or if the tower is not open_clip's own (Hugging Face).
        """
        if isinstance(network, CLIP):
            found = cls(network, network.text_pool_type, network.text_eos_id)
        elif isinstance(network, CustomTextCLIP) and isinstance(network.text, TextTransformer):
            if network.text.cls_emb is not None:
                return None
            found = cls(network.text, network.text.pool_type, network.text.eos_id)
        else:
            return None
        is_causal = found.tower.attn_mask is not None
        return found if is_causal and found.pool_type in ("argmax", "eos") else None

    def truncate(self, tokens: torch.Tensor) -> torch.Tensor:
        """Truncate a batch (n, context) after the last position at which one of its queries is pooled."""
        is_end = tokens if self.pool_type == "argmax" else torch.eq(tokens, self.eos_id).int()
        return tokens[:, : int(is_end.argmax(dim=-1).max()) + 1]

    def encode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Encode a truncated batch (n, length) as ``encode_text`` does the full one: (n, dim)."""
        tower, length = self.tower, tokens.shape[1]
        dtype = tower.transformer.get_cast_dtype()
        x = tower.token_embedding(tokens).to(dtype) + tower.positional_embedding[:length].to(dtype)
        x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
        # The norm is computed per position, so it can be applied after pooling.
        pooled = tower.ln_final(text_global_pool(x, tokens, self.pool_type, self.eos_id))
        projection = tower.text_projection
        if projection is None:
            features = pooled
        elif isinstance(projection, torch.nn.Module):
            features = projection(pooled)
        else:
            features = pooled @ projection
        return features  # type: ignore[no-any-return]  # open_clip is untyped
