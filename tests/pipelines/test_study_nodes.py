"""The table, the plot and the page of a study."""

import numpy as np
import pandas as pd
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from submanifold.common.errors import UserError
from submanifold.pipelines.study import nodes

SPACE = {"weight": FloatDistribution(0, 99), "method": CategoricalDistribution(["A", None])}
KNOWN = [(3.0, 0.2), (4.0, 0.1), (3.5, 0.3), (5.0, 0.05), (4.0, 0.1), (5.0, 0.3)]
FRONT = [True, True, False, True, True, False]


@pytest.fixture
def known(tmp_path):
    """A study of known trials: two without values, and one that was repeated."""
    path = tmp_path / "studies" / "known" / "trials.db"
    path.parent.mkdir(parents=True)
    study = nodes.open_study(path, "known")
    study.set_user_attr("search", {"weight": "0.0..99", "method": "A,null"})
    study.set_user_attr("params", {"dataset": "photos"})
    study.set_user_attr("base", {"dataset": "photos", "seed": 0})
    for number, values in enumerate(KNOWN):
        about = {"test": [v + 0.5 for v in values], "run": f"run-{number}", "model": f"m-{number}"}
        about["test_ends"] = {"test_bpd_low": values[0], "test_bpd_high": values[0] + 1}
        add(study, number, values=values, user_attrs=about)
    add(study, 6, state=TrialState.PRUNED, user_attrs={"why": "at step <8>"})
    add(study, 7, state=TrialState.FAIL, user_attrs={})
    add(study, 8, state=TrialState.FAIL, user_attrs={})
    add(study, 8, state=TrialState.WAITING, user_attrs={"retry_of": 8})
    return path, study


def add(study, weight, **what):
    params = {"weight": float(weight), "method": [None, "A"][weight % 2]}
    study.add_trial(create_trial(params=params, distributions=SPACE, **what))


def test_the_table_lists_each_trial_once_with_the_pareto_front(known):
    table = nodes.collect_study("known", known[0])
    assert table["trial"].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 9]
    assert table["state"].tolist() == ["complete"] * 6 + ["pruned", "failed", "waiting"]
    assert table["front"].tolist() == [*FRONT, False, False, False]
    assert list(zip(table["bpd"], table["mse"], strict=True))[:6] == KNOWN
    assert table.loc[0, ["test_bpd", "test_bpd_low", "test_bpd_high"]].tolist() == [3.5, 3.0, 4.0]
    assert pd.isna(table["test_mse_low"]).all()
    assert table["method"][:2].tolist() == ["none", "A"]
    assert table["why"][6:8].tolist() == ["at step <8>", "its process died"]
    assert pd.isna(table["bpd"][6:]).all()


def test_plot_and_page_show_the_front_and_count_trials_without_values(known):
    table = nodes.collect_study("known", known[0])
    off, on = nodes.draw_study(table).data
    assert list(zip(on.y, on.x, strict=True)) == sorted(
        (KNOWN[number] for number in range(6) if FRONT[number]), key=lambda point: point[1]
    )
    assert len(off.x) == 2
    nothing = nodes.draw_study(table[table["state"] != "complete"])
    assert nothing.layout.title.text == "Not shown: 1 pruned, 1 failed"
    page = nodes.write_study("known", known[0], table, nodes.draw_study(table))
    assert "<strong>9 trials:</strong>\n6 complete, 1 pruned, 1 failed, 1 waiting." in page
    assert "<li>Trial 6, pruned: at step &lt;8&gt;</li>" in page
    assert "dataset photos, seed 0, search space:\n<code>weight=0.0..99</code>" in page
    best = "Trial 0 (weight=0, method=none) has the best BPD on validation data; on test data it is"
    error = "Trial 3 (weight=3, method=A) has the best MSE of encoder projections"
    assert f"{best} 3.50 [3.00, 4.00]. {error}" in page
    assert "4 of 6 complete trials are on the Pareto front" in page
    assert "submanifold score data/06_models/m-3 PICTURES" in page
    more = "submanifold sweep --study=known --trials=18 weight=0.0..99 method=A,null"
    assert f"{more} --params=dataset=photos " in page
    assert "Effects of the parameters" not in page
    assert "<script src" not in page


def test_effects_have_a_sign_and_those_of_chance_are_left_out(known):
    path, study = known
    for weight in range(10, 40):
        add(study, weight, values=[-float(weight), 0.1 + (weight % 2) + weight % 3 / 100])
    table = nodes.collect_study("known", path)
    done = table[table["trial"] > 9]
    assert nodes.effects(done) == {"weight": ("-1.00", "–"), "method": ("–", "0.88")}
    assert nodes.effects(done[:9]) == {}
    chance = np.random.default_rng(1).random((len(done), 2))
    assert nodes.effects(done.assign(bpd=chance[:, 0], mse=chance[:, 1])) == {}
    page = nodes.write_study("known", path, table, nodes.draw_study(table))
    assert "Effects of the parameters" in page


def test_a_missing_study_is_an_error(known):
    path = known[0].parents[1] / "other" / "trials.db"
    with pytest.raises(UserError, match=r"expected one of known, got other. Make one with"):
        nodes.collect_study("other", path)
