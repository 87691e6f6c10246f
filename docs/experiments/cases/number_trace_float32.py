"""trace compares float32 scores with a Python float: NumPy 2 rounds the threshold to float32 first."""

from common import *
import detection_cases as DC
from sa_plugin.tracing import TraceOptions


def threshold(scores, labels, delta):
    """Quantile of the in-concept scores, as the tests' oracle has it."""
    return float(np.quantile(scores[labels].astype(np.float64), 1 - delta))


def per_sample(scores, sample_of):
    return np.array([scores[sample_of == k].max() for k in range(sample_of.max() + 1)])


for off in (0.0, 1e2, 1e4):
    bad = tot = 0
    worst = {}
    for seed in range(40):
        case = DC.make_case(seed=seed, n=150, documents=20, bare=0.0)
        t = DC.with_scores(case.table, case.table.scores + off)
        if len(set(s.document for s in case.data.test.samples)) < 2:
            continue
        tr = sa.trace(
            scores=t, delta=0.05, resampling=sa.Resampling(2), options=TraceOptions(quantile_draws=2)
        )
        det = sa.calibrate(None, case.data, case.bank, scores=t, deltas=[0.05])
        cal, te = t.split("cal"), t.split("test")
        for l in range(3):
            for c in range(3):
                s = te.scores[:, l, c].astype(np.float64)
                y = te.tokens.labels[:, c]
                Y = te.tokens.sample_labels[:, c]
                n = te.tokens.sample_of
                tau = threshold(cal.scores[:, l, c], cal.tokens.labels[:, c], 0.05)
                f = s >= tau
                assert tau == det.tail.thresholds[l, 0, c]
                q = np.quantile(
                    cal.scores[:, l, c].astype(np.float64)[
                        ~cal.tokens.sample_labels[:, c][cal.tokens.sample_of]
                    ],
                    0.995,
                )
                mx = per_sample(s, n)
                want = dict(
                    precision=y[f].mean() if f.any() else np.nan,
                    tail_coverage=(mx[Y] >= tau).mean(),
                    in_mass_at_fpr=(s[y] > q).mean(),
                    realised_fpr=(s[~Y[n]] > q).mean(),
                    coverage=(mx[Y] > q).mean(),
                    negative_coverage=(mx[~Y] > q).mean(),
                )
                for k, w in want.items():
                    g = float(tr[k].estimate[l, c])
                    tot += 1
                    if not (g == w or (np.isnan(g) and np.isnan(w)) or abs(g - w) < 1e-12):
                        bad += 1
                        worst.setdefault(k, []).append((abs(g - w), g, float(w), seed, l, c))
    print(
        f"offset {off:g}: {bad} of {tot} trace values differ from float64 comparison",
        {k: max(v)[:3] for k, v in worst.items()},
    )
print("numpy", np.__version__, (np.array([1 + 2**-23], np.float32) >= 1 + 2**-23 + 2**-26))
