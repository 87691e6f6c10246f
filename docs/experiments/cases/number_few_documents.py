"""A 95 % interval over 2 to 8 documents is printed without a word; how often does it hold the truth, how often is a true zero starred?"""

from common import *
import warnings
from sa_plugin.statistics import bootstrap_mean

with warnings.catch_warnings(record=True) as w:
    warnings.simplefilter("always")
    print(bootstrap_mean(np.array([0.1, 0.5, 0.2, 0.9]), np.array(["a", "a", "b", "b"])))
    import sa_plugin as sa, detection_cases as DC

    for seed in range(300):
        c = DC.make_case(seed=seed, n=40, documents=10, bare=0.0)
        D = len({s.document for s in c.data.test.samples})
        if D == 2:
            break
    det = sa.calibrate(None, c.data, c.bank, scores=c.table)
    w.clear()
    ev = det.evaluate(c.data.test, scores=c.table)
    print(
        D,
        "documents:",
        ev.table()
        .query('measure == "weighted f1" or measure == "weighted f1 minus SuperActivators"')
        .head(8)
        .to_string(),
    )
    print("warnings from evaluate:", [str(x.message)[:80] for x in w])
for D in (2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 60):
    cov = star = 0
    R = 2000
    for r in range(R):
        rng = np.random.default_rng([D, r])
        k = 4
        doc = np.repeat(np.arange(D), k)
        x = rng.normal(size=D)[doc] * 0.5 + rng.normal(size=D * k)
        i = bootstrap_mean(x, doc, resampling=sa.Resampling(300, r))
        cov += float(i.low) <= 0 <= float(i.high)
        star += bool(i.excludes_zero)
    print(
        f"D={D:3d} paired mean difference, truth 0: 95 % interval covers {cov / R:.3f}; excludes_zero (a star) {star / R:.3f}",
        flush=True,
    )
