import time

t0 = time.time()
import sa_plugin as sa

print("import", round(time.time() - t0, 1))
from mydata import ROWS, SENTS

W = [r[1] for r in ROWS]
L = [r[2] for r in ROWS]
data = sa.ConceptData.from_words(W, L, name="mine")
print(data)
print(repr(data)[:500])
# now the 40 sentence-only ones, as a newcomer: words with None labels + sample_labels
W2 = W + [t.split() for c, t in SENTS]
L2 = L + [[None] * len(t.split()) for c, t in SENTS]
SL = [[] for _ in ROWS] + [[c] for c, t in SENTS]
try:
    both = sa.ConceptData.from_words(W2, L2, sample_labels=SL, name="both")
    print(both)
    print(both.train.samples[0])
    print(vars(both).keys())
except Exception as e:
    print(type(e), e)
# only sentence labels
try:
    so = sa.ConceptData.from_words(
        [t.split() for c, t in SENTS],
        [[None] * len(t.split()) for c, t in SENTS],
        sample_labels=[[c] for c, t in SENTS],
        name="sentonly",
    )
    print(so)
except Exception as e:
    print("sentence only:", type(e), e)
# what newcomer would look for
try:
    so = sa.ConceptData.from_spans([t for c, t in SENTS], [[c] for c, t in SENTS])
except Exception as e:
    print("labels instead of spans:", type(e), e)
from sa_plugin.host import find_folder as folder
from sa_transformer_lens.host import load_bridge

t0 = time.time()
b = load_bridge(folder("smollm2"))
print("load", time.time() - t0)
t0 = time.time()
host = sa.attach(b, progress=False)
print(host, "attach", round(time.time() - t0, 1))
for d in (data, both, so):
    t0 = time.time()
    try:
        bank = sa.fit(host, d, "separator", layers=[4, 12, 20])
        print(bank, round(time.time() - t0, 1))
        sc = sa.score(host, d, bank)
        det = sa.calibrate(host, d, bank, scores=sc)
        print(det)
        print(det.evaluate(d.test, scores=sc))
    except Exception as e:
        import traceback

        traceback.print_exc()
