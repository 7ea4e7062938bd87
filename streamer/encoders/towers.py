"""The two sides of an open_clip model, each with its own precision: bytes or text in, unit vectors out.

Text towers that are causal and pooled at the end-of-text token need no padding: a position depends only on earlier
positions, so nothing after that token affects the vector that is pooled there. open_clip nevertheless runs all
positions of the context, 77 for most models; running a batch at its own token length gives the same vectors for a
fraction of the arithmetic (:class:`CausalTextTower`).

Transformer blocks may have weights in the memory layout of oneDNN's kernels (:func:`pack`). `torch.nn.Linear`
keeps a plain matrix. For bfloat16, oneDNN converts it to its own blocked layout on every call, which for the few tokens
of one query costs more than the product itself; in float32 torch calls MKL, which is slow on processors of other
makers. Packed once, both are faster, with the same sums in another order. Everything between the products stays in
float32, which costs next to nothing and makes the error of bfloat16 several times smaller: most of the error comes from
rounding the residual stream in each layer. The operators are those that torch.compile emits for a model with frozen
weights; compiling would add minutes to the start.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from open_clip import CLIP, CustomTextCLIP
from open_clip.transformer import ResidualAttentionBlock, TextTransformer, text_global_pool
from tokenizers.models import BPE
from torch import nn

from streamer.encoders.protocol import EncoderError
from streamer.encoders.tuning import Arithmetic, name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import open_clip

    from streamer.encoders.protocol import Side
    from streamer.preprocessing import Frame

PROBE_QUERIES = (
    "a man on a red bicycle rides past",
    "dog",
    "two people in yellow jackets push a broken car along a wet road",
    " ".join(["a boat between large ships at night, the lights of a town on the water"] * 3),
)
"""Queries of one to some forty words; the first one, of eight words, is timed."""
PROBE_FRAMES = 2
_UPLOAD = 64
"""Frames per transfer to a device, which computes while the next ones are collected."""


def part_of(network: torch.nn.Module, side: Side, arithmetic: Arithmetic, device: torch.device) -> Any:
    """Return a copy of one side of an open_clip model with some precision, on a device.

    Unchanged parts share their memory with ``network``, which is not modified. Raises :class:`RuntimeError` if the
    processor does not support it.
    """
    # deepcopy takes an object's entry in the memo as its copy.
    memo: dict[int, Any] = {id(child): None for name, child in network.named_children() if not _belongs(name, side)}
    for tensor in (*network.parameters(), *network.buffers()):
        memo[id(tensor)] = _moved(tensor, arithmetic.between, device)
    part = copy.deepcopy(network, memo)
    if arithmetic.packed:
        pack(part, arithmetic.dtype)
    return part


def can_pack_side(network: torch.nn.Module, side: Side) -> bool:
    """Return whether that side of an open_clip model can be computed with packed weights."""
    return any(can_pack(child) for name, child in network.named_children() if _belongs(name, side))


def _belongs(name: str, side: Side) -> bool:
    return name == "visual" if side == "images" else name not in ("visual", "text_decoder")


def _moved(tensor: torch.Tensor, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    moved = tensor.detach().to(device, dtype if tensor.is_floating_point() else tensor.dtype)
    return torch.nn.Parameter(moved, requires_grad=False) if isinstance(tensor, torch.nn.Parameter) else moved


class ImageTower:
    """Encodes frames of the model's size."""

    def __init__(
        self, network: torch.nn.Module, preprocessing: Mapping[str, Any], arithmetic: Arithmetic, device: torch.device
    ) -> None:
        """``preprocessing``: the model's ``preprocess_cfg``, whose mean and std are applied here."""
        self.network = part_of(network, "images", arithmetic, device)
        self._arithmetic, self._device = arithmetic, device
        self._dtype = arithmetic.between
        mean, std = (torch.tensor(preprocessing[name]).view(-1, 1, 1) for name in ("mean", "std"))
        self._mean, self._std = mean.to(device), std.to(device)
        size = preprocessing["size"]
        self._probes = _probe_frames(*((size, size) if isinstance(size, int) else size))

    def encode(self, frames: Sequence[Frame]) -> npt.NDArray[np.float32]:
        """Encode frames (height, width, 3) in one batch: (n, dim)."""
        size = len(frames) if self._device.type == "cpu" else _UPLOAD
        with torch.inference_mode():
            features = [self._features(frames[start : start + size]) for start in range(0, len(frames), size)]
            return _unit(torch.cat(features), self._arithmetic)

    def _features(self, frames: Sequence[Frame]) -> torch.Tensor:
        # A copy from page-locked memory is asynchronous, so the CPU continues to queue the model's operations.
        shape = (len(frames), *frames[0].shape)
        batch = torch.empty(shape, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        np.stack(frames, out=batch.numpy())
        pixels = self.normalise(batch.to(self._device, non_blocking=True))
        features: torch.Tensor = self.network.encode_image(pixels.to(self._dtype))
        return features

    def normalise(self, batch: torch.Tensor) -> torch.Tensor:
        """Convert (n, height, width, 3) bytes as torchvision's ToTensor and Normalize do for each frame."""
        channels_first = batch.permute(0, 3, 1, 2).contiguous()
        return channels_first.float().div_(255).sub_(self._mean).div_(self._std)

    def run(self) -> object:
        """Encode the frames for timing: few on a CPU, more on a device, which few would not keep busy."""
        return self.run_batch(PROBE_FRAMES if self._device.type == "cpu" else _UPLOAD)

    def run_batch(self, size: int) -> object:
        """Encode ``count`` frames."""
        return self.encode([self._probes[number % PROBE_FRAMES] for number in range(size)])

    def vectors(self) -> npt.NDArray[np.float32]:
        """Encode the frames for measuring accuracy: (n, dim)."""
        return self.encode(self._probes)


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


class TextTower:
    """Encodes queries."""

    def __init__(
        self,
        network: torch.nn.Module,
        tokenize: Callable[[Sequence[str]], torch.Tensor],
        arithmetic: Arithmetic,
        device: torch.device,
    ) -> None:
        self.network = part_of(network, "texts", arithmetic, device)
        self._tokenize = tokenize
        self._arithmetic, self._device = arithmetic, device
        self._causal = CausalTextTower.of(self.network)

    def encode(self, queries: Sequence[str]) -> npt.NDArray[np.float32]:
        """Encode queries in one batch: (n, dim)."""
        tokens = self._tokenize(list(queries))
        with torch.inference_mode():
            if self._causal is None:
                features = self.network.encode_text(tokens.to(self._device))
            else:
                # Truncate while the tokens are on the CPU, to avoid synchronizing with a device.
                features = self._causal.encode(self._causal.truncate(tokens).to(self._device))
            return _unit(features, self._arithmetic)

    def run(self) -> object:
        """Encode one query, the reranker's usual case."""
        return self.encode(PROBE_QUERIES[:1])

    def vectors(self) -> npt.NDArray[np.float32]:
        """Encode the queries for measuring accuracy: (n, dim)."""
        return self.encode(PROBE_QUERIES)


_DISC = 0.25
"""Radius of the disc in a probe frame, as a share of the frame."""


def _probe_frames(height: int, width: int) -> list[Frame]:
    """Return frames with smooth areas, edges and noise; deterministic."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width] / np.array([height, width]).reshape(2, 1, 1)
    frames = []
    for number in range(PROBE_FRAMES):
        frame = 255 * np.stack([x, y, 1 - x], axis=-1)
        frame[np.hypot(x - 0.5, y - 0.3 * (number + 1)) < _DISC] = rng.integers(0, 256, 3)
        frame += rng.normal(0, 10 + 40 * number, frame.shape)
        frames.append(np.clip(frame, 0, 255).astype(np.uint8))
    return frames


def _unit(features: torch.Tensor, arithmetic: Arithmetic) -> npt.NDArray[np.float32]:
    vectors: npt.NDArray[np.float32] = torch.nn.functional.normalize(features.float(), dim=-1).cpu().numpy()
    if not np.isfinite(vectors).all():
        dtype = name_of(arithmetic.dtype)
        raise EncoderError(f"the model's vectors are not finite with dtype {dtype}", setting="dtype")
    return vectors


# -- packed weights ------------------------------------------------------------------------------------------


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


# -- text in ------------------------------------------------------------------------------------------------------

_END_OF_WORD = "</w>"
_CACHED_WORDS = 20_000
"""Of less than 256 letters; the library caches no longer ones."""
_WINDOW = 384  # symbols (bytes of UTF-8) that are encoded first; a context of 75 tokens takes 140 random letters


class BoundedTokenizer:
    """The tokens of open_clip's tokenizer for CLIP's vocabulary, at a cost that does not grow with a word's length.

    open_clip merges the pairs of a word by one pass over the whole word for each merge, which is quadratic: a word of
    2,000 letters takes 0.3 s. Here the merges are those of the `tokenizers` library, by a queue. It gives the same
    tokens because no pair of CLIP's vocabulary comes before the pairs that its two halves are made of, and no symbol is
    made of two pairs.

    And a word is encoded only as far as its tokens fit into the context. Cutting the word off would not do, because a
    token may depend on what follows. But tokens are the encoding of their text exactly if each two neighbours are that
    of theirs: the first merge across a boundary would happen between the two alone as well. So an encoding of a word's
    beginning can be cut at any boundary, and continued with any encoding that passes this test at the cut.
    """

    def __init__(self, tokenizer: open_clip.SimpleTokenizer) -> None:
        self._clean, self._pattern = tokenizer.clean_fn, tokenizer.pat
        self._letters = tokenizer.byte_encoder
        self._context = int(tokenizer.context_length)
        self._start, self._end = tokenizer.sot_token_id, tokenizer.eot_token_id
        self._special = {tokenizer.decoder[number]: number for number in tokenizer.all_special_ids}
        vocabulary, merges = tokenizer.encoder, list(tokenizer.bpe_ranks)
        self._whole = BPE(vocabulary, merges, cache_capacity=_CACHED_WORDS, end_of_word_suffix=_END_OF_WORD)
        self._parts = BPE(vocabulary, merges, cache_capacity=_CACHED_WORDS)
        self._longest = max(len(symbol.removesuffix(_END_OF_WORD)) for symbol in vocabulary)

    def __call__(self, queries: Sequence[str]) -> torch.Tensor:
        """Return (n, context): each query's tokens between those of start and end, then zeros."""
        result = torch.zeros(len(queries), self._context, dtype=torch.long)
        for row, query in zip(result, queries, strict=True):
            tokens = [self._start, *self._first_tokens(query, self._context - 2), self._end]
            row[: len(tokens)] = torch.tensor(tokens)
        return result

    def _first_tokens(self, query: str, wanted: int) -> list[int]:
        tokens: list[int] = []
        for found in self._pattern.finditer(self._clean(query)):
            word = "".join(map(self._letters.__getitem__, found[0].encode()))
            tokens += self._beginning(word, wanted - len(tokens))
            if len(tokens) >= wanted:
                break
        return tokens[:wanted]

    def _beginning(self, word: str, wanted: int) -> list[int]:
        """Return the tokens of a word, at least the first ``wanted`` of them, one or more."""
        if word in self._special:
            return [self._special[word]]
        size = _WINDOW
        while size + self._longest < len(word):
            tokens = self._settled(word, size)
            if len(tokens) >= wanted:
                return tokens
            size *= 2
        return [token.id for token in self._whole.tokenize(word)]

    def _settled(self, word: str, size: int) -> list[int]:
        """Return the tokens with which ``word`` begins, as far as its first ``size`` symbols show; none if they do not.

        The last boundary of the word's own tokens in there is at one of ``ends``, since no token is longer. Up to it,
        its tokens are the encoding of these symbols alone. So if that begins alike for each of them, the word does.
        """
        tokens = self._parts.tokenize(word[:size])
        ends = range(size - self._longest + 1, size + 1)
        cut = size
        while cut >= ends.start:
            cut -= len(tokens.pop().value)
        last = tokens[-1].value
        following = {self._parts.tokenize(word[cut:end])[0].value for end in ends}
        settled = all(self._encoded(last + first) == [last, first] for first in following)
        return [token.id for token in tokens] if settled else []

    def _encoded(self, symbols: str) -> list[str]:
        return [token.value for token in self._parts.tokenize(symbols)]
