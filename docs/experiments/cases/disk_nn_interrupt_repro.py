"""nnsight: Ctrl-C inside ablate_heads; then the same score() call gives other numbers?"""

from common import *
import signal, random, sys, time
import tiny
from word_data import word_data
import logging

logging.disable(50)
host = tiny.nnsight_host("llama")
mod = host.model._module
data = word_data(40, documents=20)
bank = fit(host, data, "prototype")
S = lambda: score(host, data, bank).scores.copy()
sc = score(host, data, bank)
det = calibrate(host, data, bank, scores=sc)
ref = S()


def hooks():
    return [
        (n, a, sorted(getattr(f, "__qualname__", repr(f)) for f in getattr(m, a).values()))
        for n, m in mod.named_modules()
        for a in ("_forward_hooks", "_forward_pre_hooks")
        if len(getattr(m, a))
    ]


print("same twice:", np.array_equal(ref, S()))
JOB = {
    "ablate": lambda: sa.ablate_heads(
        host, data, det, [(0, 0), (1, 1)], scores=sc, resampling=sa.Resampling(10)
    ),
    "patching": lambda: sa.rank_heads(host, data, det, scores=sc, by="patching"),
    "score": lambda: score(host, data, bank),
    "attribute": lambda: sa.attribute(host, ob, data.test.samples[0], "integrated_gradients", preset="fast"),
    "ledger": lambda: sa.head_ledger(host, data, det, scores=sc, resampling=sa.Resampling(10)),
}
ob = sa.objective("global", detector=det, concept=data.concepts[0], sample=data.test.samples[0], host=host)
which = sys.argv[1] if len(sys.argv) > 1 else "ablate"
N = int(sys.argv[2]) if len(sys.argv) > 2 else 60
f = JOB[which]
f()
t = time.time()
f()
D = time.time() - t
print(which, "takes", round(D, 2))
h0 = hooks()
rng = random.Random(int(sys.argv[3]) if len(sys.argv) > 3 else 1)


def al(*a):
    raise KeyboardInterrupt


signal.signal(signal.SIGALRM, al)
import traceback

hit = leak = wrong = 0
for n in range(N):
    where = None
    try:
        signal.setitimer(signal.ITIMER_REAL, max(0.002, rng.random() * D))
        f()
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt as e:
        hit += 1
        where = [
            (x.filename.split("/")[-1], x.name, x.lineno) for x in traceback.extract_tb(e.__traceback__)
        ][-6:]
    except BaseException as e:
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(n, "other", type(e).__name__, str(e)[:100])
        where = "other"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    h = hooks()
    try:
        s = S()
        same = np.array_equal(s, ref)
        ok = "ok"
    except BaseException as e:
        same = False
        ok = type(e).__name__ + ": " + str(e)[:120]
    if h != h0 or not same:
        leak += h != h0
        wrong += not same
        print(
            f"try {n}: interrupted at {where}\n  hooks changed: {h != h0} new: {[x for x in h if x not in h0][:3]}\n  score afterwards: {ok}, same as before: {same}, max difference {np.abs(s - ref).max() if ok == 'ok' else '-'}"
        )
        break
print("interrupted", hit, "leaks", leak, "wrong", wrong)
if leak or wrong:
    try:
        print(
            "Detector F1 before",
            det.evaluate(data.test, scores=sc, resampling=sa.Resampling(5)).to_dict()["methods"][
                "SuperActivators"
            ]
            if False
            else "",
            "check(host) says:",
            str(sa.check(host, ["a cat sat on the mat", "two cats"]))[-300:],
        )
    except BaseException as e:
        print("check raises", type(e).__name__, str(e)[:200])
    try:
        h2 = __import__("sa_nnsight").accept(host.model)
        print("attach again accepted", h2.info.fingerprint == host.info.fingerprint)
    except BaseException as e:
        print("attach again:", type(e).__name__, str(e)[:200])
