"""transformers#35897 'incorrect special_tokens_mask' (seen there on SmolLM2 itself) and tokenizers#722 'special_tokens_mask
doesn't include all special tokens': a chat-formatted text holds <|im_start|>, <|im_end|> as *text*; the mask says 0 for them.
Product: docs say special tokens are never rows. Chat markers must not become rows (evidence), or a warning must say so."""

import warnings
from _tiny import *
from sa_plugin.passes import lay_out
from sa_plugin.data import Sample
from sa_plugin.host import find_folder as folder

tok = hf.AutoTokenizer.from_pretrained(folder("smollm2"))
host = attach(llama(tok, ctx=256), tok)
text = tok.apply_chat_template(
    [{"role": "user", "content": "The dog sat."}, {"role": "assistant", "content": "A cat ran home."}],
    tokenize=False,
)
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    lay = lay_out(host, [Sample("a", text, "a")], ["x"])
rows = [text[s:e] for s, e in lay.offsets]
bad = [r for r in rows if r in set(tok.all_special_tokens)]
print("text:", repr(text))
print("rows:", rows)
verdict(
    not bad or any("special" in str(w.message) for w in seen),
    "special tokens that became rows:",
    bad,
    "counted special:",
    lay.special,
)
