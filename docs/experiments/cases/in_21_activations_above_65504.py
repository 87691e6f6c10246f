"""transformers#36822 / #39972, cactus#503, vllm#40290 (Gemma 3 and 4: residual values above 65,504; fine in bf16/fp32). Here the model is in
float32 with such a feature on every token. Right: fit, score and calibrate work (prototype and separator), as the model itself does."""

import warnings
import numpy as np
from _tiny import *
import sa_plugin as sa

tok = bytelevel(bos=True)
m = llama(tok)
with torch.no_grad():
    m.model.embed_tokens.weight[:, 3] += 90000.0
host = attach(m, tok)
data = animals(60)
out = {}
for kind in ("prototype", "separator", "lda", "kmeans"):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            bank = sa.fit(host, data, kind, layers=[0, 1])
            sc = sa.score(host, data, bank)
        out[kind] = bool(np.isfinite(sc.scores).all())
    except Exception as e:
        out[kind] = f"{type(e).__name__}: {e}"
print(*out.items(), sep="\n")
verdict(all(v is True for v in out.values()))
