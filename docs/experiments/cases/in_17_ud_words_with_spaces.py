"""udpipe#21, Finnish-dep-parser#21: UD v2 has words that contain spaces ('10 000', Vietnamese, Kazakh 'ған емес'). Right: read, with
the label on the whole word."""

from _tiny import *
import sa_plugin as sa

rows = [["Il", "y", "a", "20 000", "chats", f"ici{k}"] for k in range(12)]
lab = [[None, None, None, "number", "animal", None]] * 12
try:
    data = sa.ConceptData.from_words(rows, lab)
    s = data.samples[0]
    got = {s.text[a:b]: c for a, b, c in s.spans}
    verdict(got == {"20 000": "number", "chats": "animal"}, got)
except ValueError as e:
    verdict(False, "refused:", e)
