"""What the configuration of a model may say: an allow-list, because a folder with a model may come from anybody.

open_clip passes most of ``model_cfg`` on as arguments, also to other libraries: ``tokenizer_kwargs`` to transformers,
which imports Python files of the folder if ``trust_remote_code`` is among them, or to a tokenizer that downloads a
corpus; the names of towers to timm and transformers, which fetch what they do not know. So every key is listed here
with the values that it may have. Names of other libraries' models are those of timm's own table, or those that
open_clip's own configurations have.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

import open_clip

from streamer.encoders.protocol import EncoderError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_WORD = re.compile(r"[A-Za-z0-9_.]{0,100}")
_TOKENIZER = re.compile(r"[A-Za-z0-9_./-]{0,200}")
_CLEANINGS = {"canonicalize", "lower", "whitespace"}


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _are_numbers(value: object) -> bool:
    return all(map(_is_number, value)) if isinstance(value, list) else _is_number(value)


def _is_flag(value: object) -> bool:
    return value is None or isinstance(value, bool)


def _is_word(value: object) -> bool:
    return value is None or (isinstance(value, str) and _WORD.fullmatch(value) is not None)


def _is_scalar(value: object) -> bool:
    return _is_number(value) or _is_flag(value) or _is_word(value)


def _are_scalars(value: object) -> bool:
    return value is None or (isinstance(value, dict) and all(map(_is_scalar, value.values())))


def _is_tokenizer(value: object) -> bool:
    # In a folder it only says that the folder has the files of a tokenizer of transformers.
    return value is None or (isinstance(value, str) and _TOKENIZER.fullmatch(value) is not None)


def _is_known_text_model(value: object) -> bool:
    return value is None or (isinstance(value, str) and value in _text_models())


@functools.cache
def _text_models() -> frozenset[str]:
    configs = map(open_clip.get_model_config, open_clip.list_models())
    return frozenset(name for config in configs if config and (name := config["text_cfg"].get("hf_model_name")))


Allowed = dict[str, "Callable[[object], bool] | Allowed"]

_TOWER: Allowed = {
    **dict.fromkeys(("width", "heads", "layers", "mlp_ratio", "ls_init_value"), _are_numbers),
    **dict.fromkeys(
        (
            "final_ln_after_pool", "output_tokens", "qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner",
            "scale_attn", "scale_fc",
        ),
        _is_flag,
    ),
    **dict.fromkeys(("pool_type", "block_type"), _is_word),
    **dict.fromkeys(("act_kwargs", "norm_kwargs"), _are_scalars),
}  # fmt: skip
_VISION: Allowed = {
    **_TOWER,
    **dict.fromkeys(
        (
            "head_width", "patch_size", "image_size", "patch_dropout", "attn_pooler_queries", "attn_pooler_heads",
            "timm_drop", "timm_drop_path",
        ),
        _are_numbers,
    ),
    **dict.fromkeys(("attentional_pool", "no_ln_pre", "timm_model_pretrained", "timm_proj_bias"), _is_flag),
    **dict.fromkeys(("pos_embed_type", "timm_model_name", "timm_pool", "timm_proj"), _is_word),
}  # fmt: skip
_TEXT: Allowed = {
    **_TOWER,
    **dict.fromkeys(("context_length", "vocab_size", "pad_id", "eos_id"), _is_number),
    **dict.fromkeys(("embed_cls", "no_causal_mask", "proj_bias", "hf_model_pretrained"), _is_flag),
    **dict.fromkeys(("proj_type", "hf_proj_type", "hf_pooler_type", "tokenizer_mode"), _is_word),
    "hf_model_name": _is_known_text_model,
    "hf_tokenizer_name": _is_tokenizer,
    "tokenizer_kwargs": {
        "clean": lambda value: value in _CLEANINGS,
        "strip_sep_token": _is_flag,
        "language": _is_word,
    },
}
_MODEL: Allowed = {
    **dict.fromkeys(("embed_dim", "init_logit_scale", "init_logit_bias"), _is_number),
    **dict.fromkeys(("quick_gelu", "custom_text", "nonscalar_logit_scale"), _is_flag),
    "vision_cfg": _VISION,
    "text_cfg": _TEXT,
    "multimodal_cfg": {**_TEXT, **dict.fromkeys(("dim_head", "n_queries", "attn_pooler_heads"), _is_number)},
}


def require_allowed(model: str, config: object) -> None:
    """Raise :class:`EncoderError`, which names the key, if an architecture (``model_cfg``) may not be used."""
    found = _forbidden(config, _MODEL, "model_cfg")
    if found is not None:
        raise EncoderError(f"model {model}: its configuration may not say {found}")


def _forbidden(config: object, allowed: Mapping[str, Any], place: str) -> str | None:
    if not isinstance(config, dict):
        return f"{place}: {config!r:.60}"
    for key, value in config.items():
        rule = allowed.get(key)
        found = _forbidden(value, rule, f"{place}.{key}") if isinstance(rule, dict) and value is not None else None
        if found is None and (rule is None or (not isinstance(rule, dict) and not rule(value))):
            found = f"{place}.{key!s:.60}: {value!r:.60}"
        if found is not None:
            return found
    return None
