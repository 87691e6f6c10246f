"""Every pooling on one table of scores, trained ones too, like for like.

SmolLM2, one layer, supersense passages: separator scores pooled in every way, and probes trained through
their pooling from sample labels and from token labels, on the same train documents. What is printed is
AUROC minus that of the maximum, TPR at 5 % minus that of the maximum, and F1 at the calibrated threshold,
means over concepts weighted by positive samples, intervals over documents (paired).

    python docs/experiments/rival_poolings.py [smollm2|minilm] [passages] [layer]
"""

from __future__ import annotations

import sys
import time
import warnings

from sa_plugin.concepts import fit
from sa_plugin.detection import Evaluation, calibrate
from sa_plugin.host import attach, find_folder
from sa_plugin.loaders import load
from sa_plugin.scores import score, train_poolings
from sa_plugin.statistics import Drawn

SKIPPED = ("always-positive", "RandTok", "length-only", "MaxTok permuted", "pooled", "CLS", "SuperActivators")


def _signed(drawn: Drawn) -> str:
    return f"{drawn.estimate:+.3f} [{drawn.low:+.3f}, {drawn.high:+.3f}]".replace("-", "−")


def table(found: Evaluation) -> list[str]:
    """One row a pooling, by AUROC."""
    base = {name: found.shown[name].sel(method="MaxTok") for name in ("auroc", "tpr_at_5_percent", "f1")}
    lines = [
        "| pooling | AUROC | minus MaxTok | TPR at 5 % | minus MaxTok | F1 | minus MaxTok | candidates |"
    ]
    lines.append("|---" * 8 + "|")
    shown = [name for name in found.methods if name not in SKIPPED]
    for name in sorted(shown, key=lambda n: -float(found.shown["auroc"].sel(method=n).estimate)):
        cells = [name]
        for metric, own in base.items():
            one = found.shown[metric].sel(method=name)
            cells += [f"{one.estimate:.3f}", "" if name == "MaxTok" else _signed(one - own)]
        lines.append("| " + " | ".join([*cells, str(found.chosen[name].candidates)]) + " |")
    return lines


def main() -> None:
    """Print the table."""
    name = sys.argv[1] if len(sys.argv) > 1 else "smollm2"
    passages = int(sys.argv[2]) if len(sys.argv) > 2 else 900
    layer = int(sys.argv[3]) if len(sys.argv) > 3 else 12
    warnings.simplefilter("ignore")
    from sa_transformer_lens.host import load_bridge

    host = attach(load_bridge(find_folder(name)), progress=False)
    data = load("supersense").subset(passages)
    bank = fit(host, data, "separator", layers=[layer])
    scores = score(host, data, bank)
    begun = time.process_time()
    scores = train_poolings(host, data, scores, layers=[layer])
    seconds = time.process_time() - begun
    found = calibrate(host, data, bank, scores=scores).evaluate(data.test, scores=scores)
    counts = " / ".join(f"{len(data.split(of))} {of}" for of in ("train", "cal", "test"))
    print(
        f"{name}, layer {layer}, {counts} samples, {found.ground.n_documents} test documents, "
        f"{len(data.concepts)} concepts; training and its pass {seconds:.0f} s of processor time."
    )
    print()
    print("\n".join(table(found)))
    print()
    print(found.rests_on())


if __name__ == "__main__":
    main()
