"""An interval that excludes its own estimate: always-positive, balanced concepts."""

import warnings

warnings.simplefilter("ignore")
import sa_plugin as sa
from mydata import ROWS
from sa_transformer_lens.host import load_bridge

host = sa.attach(load_bridge("smollm2"), progress=False)
data = sa.ConceptData.from_words([r[1] for r in ROWS], [r[2] for r in ROWS], name="mine")
bank = sa.fit(host, data, "separator", layers=[4, 12, 20])
sc = sa.score(host, data, bank)
det = sa.calibrate(host, data, bank, scores=sc)
for n in (100, 1000):
    t = det.evaluate(data.test, scores=sc, resampling=sa.Resampling(n)).table()
    print(n, t[(t.method == "always-positive") & t.measure.str.contains("f1")].to_string())
