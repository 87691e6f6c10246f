"""The stage "rivals": probes trained through their pooling in a study's detection table."""

import pytest
from planted import world

from sa_plugin.stages import Plan, study

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def methods(found, kind):
    return [row["method"] for row in found.record["kinds"][kind]["detection"]["methods"]]


def test_trained_rivals_stand_in_the_primary_kinds_table_and_are_kept(tmp_path):
    one = world(0, n_samples=50)
    plan = Plan(("prototype", "lda"), layers=[1], primary="prototype", stages=("rivals",))
    lines = []
    found = study(one.host, one.data, plan, folder=tmp_path, say=lines.append)
    assert any(line.startswith("rivals: computed") for line in lines)
    trained = [name for name in methods(found, "prototype") if name.endswith(" labels")]
    assert len(trained) == 8
    assert not any(name.endswith(" labels") for name in methods(found, "lda"))
    monitor = found.record["kinds"]["prototype"]["detection"]["monitor"]
    assert [row["method"] for row in monitor["methods"]] == methods(found, "prototype")
    passes = one.host.passes
    again = study(one.host, one.data, plan, folder=tmp_path, say=lines.append)
    assert one.host.passes == passes
    assert again.record["kinds"] == found.record["kinds"]
    # The table itself is made of what was kept.
    shown = again.results("prototype")["evaluation"]
    assert "MultiMax, token labels" in shown.methods
    assert (
        shown.chosen["MultiMax, token labels"].candidates
        == found.results()["evaluation"].chosen["MultiMax, token labels"].candidates
    )


def test_without_the_stage_nothing_is_trained():
    one = world(0, n_samples=40)
    found = study(one.host, one.data, Plan(("prototype",), layers=[1], stages=()))
    assert not any(name.endswith(" labels") for name in methods(found, "prototype"))
