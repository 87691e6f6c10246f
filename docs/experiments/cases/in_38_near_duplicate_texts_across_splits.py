"""Leakage (repeated texts between train and test; cleanlab/dedup reports): exact repeats are warned of. The same text with a trailing space, other case of line end
or doubled space must be too."""

import warnings
from _tiny import *
import sa_plugin as sa
from sa_plugin.data import RepeatedTextWarning


def warned(change):
    T, S, W = [], [], []
    for k in range(12):
        t = f"in story {k} the cat sat down"
        T += [t, change(t)]
        S += [[(t.index("cat"), t.index("cat") + 3, "animal")], []]
        W += ["train", "test"]
    T += [f"c{k} cat here" for k in range(3)]
    S += [[(3, 6, "animal")]] * 3
    W += ["cal"] * 3
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        sa.ConceptData.from_spans(T, S, splits=W)
    return any(issubclass(w.category, RepeatedTextWarning) for w in seen)


out = {
    "exact": warned(lambda t: t),
    "trailing space": warned(lambda t: t + " "),
    "CRLF": warned(lambda t: t + "\r\n"),
    "double space": warned(lambda t: t.replace(" the", "  the")),
}
print(out)
verdict(all(out.values()))
