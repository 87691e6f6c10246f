"""SPARK-34448 (spark PR#31657): logistic regression wrong when features are far from zero mean (massive activations). And one positive
token, d > n, constant features. Product's separator: same direction as scikit-learn's optimum on the normalised rows, or a warning."""

import warnings
import numpy as np
from _tiny import *
from sklearn.linear_model import LogisticRegression
import sa_plugin as sa
from sa_plugin.passes import lay_out


def cosines(massive):
    tok = bytelevel(bos=True)
    m = llama(tok)
    if massive:
        with torch.no_grad():
            m.model.embed_tokens.weight[:, 3] += massive
            m.model.embed_tokens.weight[:, 7] = 5.0  # a massive and a constant feature
    host = attach(m, tok)
    data = animals(60)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        bank = sa.fit(host, data, "separator", layers=[0], sinks="keep")
    lay = lay_out(host, data.train.samples, data.concepts)
    X, Y = np.zeros((lay.n_rows, 32)), lay.labels
    for b in lay.batches:
        with torch.no_grad():
            hs = m.model(**b.inputs, output_hidden_states=True).hidden_states[1]
        X[lay.rows(b)] = hs[b.valid].double().numpy()
    mean, scale = bank.token.mean[0].double().numpy(), float(bank.token.scale[0])
    print(
        "mean agrees:",
        np.abs(mean - X.mean(0)).max(),
        "scale",
        scale,
        "warnings",
        [str(w.message)[:80] for w in seen],
    )
    Z = (X - X.mean(0)) / scale
    cos, rel = [], []
    for k, c in enumerate(bank.concepts):
        y = Y[:, k]
        w = np.where(y, 0.5 / y.sum(), 0.5 / (~y).sum())
        lr = LogisticRegression(
            C=1e4, fit_intercept=False, tol=1e-12, max_iter=100000, solver="newton-cholesky"
        ).fit(Z, y, sample_weight=w)
        v = bank.vector(c, 0).double().numpy()
        r = lr.coef_[0]
        cos.append(float(v @ r / np.linalg.norm(v) / np.linalg.norm(r)))
        rel.append(float(np.linalg.norm(v - r) / np.linalg.norm(r)))
    return cos, rel, seen


ok = True
for massive in (0, 100.0, 300.0, 1000.0, 3000.0):
    cos, rel, seen = cosines(massive)
    print(massive, "cos", cos, "relative error", rel)
    ok &= max(rel) < 5e-3 or bool(seen)
verdict(ok)
