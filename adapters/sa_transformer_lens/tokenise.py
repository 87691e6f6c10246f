"""The tokenizer of a bridge as it was before TransformerLens made it add a BOS token.

TransformerLens rebuilds a tokenizer that has a BOS token so that it always puts it first, also for
models never trained with it (SmolLM2, GPT-2); `own_tokenizer` gives the tokenizer as it was.
`attach(bridge, tokenizer=bridge.tokenizer)` keeps the BOS of TransformerLens. How texts become
batches is `sa_plugin.tokenise`.
"""

from __future__ import annotations

from typing import Any

from sa_plugin.tokenise import check_tokenizer

LACKING = (
    "the bridge has no tokenizer, so texts cannot be read: boot it with tokenizer=..., or "
    "attach(bridge, tokenizer=...)."
)


def own_tokenizer(tokenizer: Any) -> Any:
    """The tokenizer by its own rule for special tokens.

    Raises:
        ValueError: There is none, it gives no offsets, or it cannot be told whether the BOS it
            puts first is its own.
    """
    check_tokenizer(tokenizer, LACKING)
    if not getattr(tokenizer, "add_bos_token", False):
        return tokenizer
    text = "The cat sat."
    ids = tokenizer(text).input_ids
    if not ids or ids[0] != tokenizer.bos_token_id:
        return tokenizer
    fresh = _as_saved(tokenizer)
    # The rebuilt tokenizer may also have lost a token it should put last.
    same = fresh(text).input_ids == ids
    plain, ours = (tok(text, add_special_tokens=False).input_ids for tok in (fresh, tokenizer))
    if not same and plain != ours:
        raise ValueError(
            f"the tokenizer at {tokenizer.name_or_path!r} and the bridge's differ beyond the BOS "
            "token that TransformerLens adds: say which to use, attach(bridge, tokenizer=...)."
        )
    return fresh


def _as_saved(tokenizer: Any) -> Any:
    from sa_plugin._optional import require

    transformers = require("transformers", "transformer-lens", "reading a tokenizer")
    source = tokenizer.name_or_path
    try:
        return transformers.AutoTokenizer.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"TransformerLens makes tokenizers add BOS, and {source!r} cannot be read again to "
            "see whether this one does so itself: say which to use, attach(bridge, tokenizer=tok) "
            "or, to keep the BOS, attach(bridge, tokenizer=bridge.tokenizer)."
        ) from error
