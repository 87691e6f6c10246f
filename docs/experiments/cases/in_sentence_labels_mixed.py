"""Sentence-only positives mixed with word-labelled ones: what becomes of their tokens?"""

import warnings

warnings.simplefilter("ignore")
import sa_plugin as sa
from mydata import ROWS, SENTS
from sa_transformer_lens.host import load_bridge

host = sa.attach(load_bridge("smollm2"), progress=False)
W = [r[1] for r in ROWS]
L = [r[2] for r in ROWS]
W2 = W + [t.split() for c, t in SENTS]
L2 = L + [[None] * len(t.split()) for c, t in SENTS]
SL = [[] for _ in ROWS] + [[c] for c, t in SENTS]
both = sa.ConceptData.from_words(W2, L2, sample_labels=SL, name="both")
st = sa.collect(host, both, layers=[4])
print(type(st))
print([n for n in dir(st) if not n.startswith("_")])
print(st)
n_word = sum(len([l for l in s_labels if l]) for s_labels in L)
print(
    "sentence-only train samples:",
    sum(1 for s in both.train.samples if int(s.id) >= 80),
    "of",
    len(both.train.samples),
)
bank = sa.fit(host, both, "separator", layers=[4, 12, 20])
sc = sa.score(host, both, bank)
det = sa.calibrate(host, both, bank, scores=sc)
print(det.evaluate_tokens(both.test, scores=sc))
# same detector, but localisation only on the test samples with word labels
keep = [s.id for s in both.test.samples if int(s.id) < 80]
print(len(keep), "word-labelled test samples of", len(both.test.samples))
