from common import my_detector, sa, tryit, warnings

data, br, host, bank, sc, det = my_detector()
loc = tryit("localise text", lambda: det.localise("The dog and the storm were angry."))
print([n for n in dir(loc) if not n.startswith("_")])
tryit("sweep a text -> token scores?", lambda: loc.scores if hasattr(loc, "scores") else None)
s = next(s for s in data.test.samples if any(h.concept == "animal" for h in det.find(s)))
g = sa.objective("superactivator", detector=det, concept="animal", sample=s, host=host)
for m in ("integrated_gradients", "kernel_shap", "rise", "lime"):
    for pl in ("token", "kept"):
        tryit(
            f"{m} players={pl} top",
            lambda: sa.attribute(host, g, s, method=m, players=pl, preset="fast").top(3),
        )
tryit("unknown method", lambda: sa.attribute(host, g, s, method="ig"))
# BOS advice of the warning
h2 = tryit("attach with BOS tokenizer as the warning says", lambda: sa.attach(br, tokenizer=br.tokenizer))
if h2 is not None:
    b2 = sa.fit(h2, data, "separator", layers=[4, 12])
    warnings.simplefilter("always")
    s2 = sa.score(h2, data, b2)
    print(s2)
    warnings.simplefilter("ignore")
    d2 = sa.calibrate(h2, data, b2, scores=s2)
    print(repr(d2.evaluate(data.test, scores=s2, resampling=sa.Resampling(100))))
rank = tryit("rank_heads", lambda: sa.rank_heads(host, data, det, scores=sc))
tryit("rank dir", lambda: [n for n in dir(rank) if not n.startswith("_")])
ab = tryit(
    "ablate top heads",
    lambda: sa.ablate_heads(host, data, det, [(4, 2), (10, 8)], scores=sc, resampling=sa.Resampling(50)),
)
print(ab)
tryit(
    "ablate the strongest as the ledger prints them",
    lambda: sa.ablate_heads(host, data, det, ["L11H1"], scores=sc, resampling=sa.Resampling(20)),
)
tryit(
    "ablate from ledger.strongest",
    lambda: sa.head_ledger(host, data, det, scores=sc, resampling=sa.Resampling(20)).strongest()[:2],
)
