from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import multivariate_normal

from submanifold.evaluation.intervals import plus_minus
from submanifold.flows import RealNVP
from submanifold.models import Hierarchy, Stage
from submanifold.plots.paper import rejection_scheme
from submanifold.runs.experiments import CachedRun
from submanifold.studies.paper import (
    claims,
    convergence,
    divergences,
    figures,
    findings,
    statistics,
)
from submanifold.studies.paper.claims import FAILS, HOLDS, NOT_REPORTED, NOT_RUN, OPEN
from submanifold.studies.paper.tables import (
    TARGETS,
    control_cells,
    paper_cells,
    params_of,
    readable,
    results_table,
)

DIMS = {"DNF": "3072-500-500", "PR-D": "3072-500"}


def run(bpd=4.0, mse=0.01, dims=(3072, 500)):
    """A run whose metrics have the intervals bpd +- 0.1 and mse / 2 to 2 mse."""
    metrics = {
        "dims": dims,
        "features": "a network",
        "bits_per_dim": {"value": None, "why": "no"} if bpd is None else plus_minus(bpd, 0.1),
        "mse": {"value": mse, "low": mse / 2, "high": 2 * mse},
        "stage_1_mse": {"value": mse / 4},
        "kid": plus_minus(0.5, 0.1),
        "fid": {"value": None, "why": "not measured"},
        "parameters": 1_000_000,
        "baselines": {"pca": {"dim": 500, "mse": {"value": 0.001}}},
        "counts": {"train": 6000, "test": 800, "samples": 1000},
        "training_images": None,
    }
    return SimpleNamespace(load=lambda name: {"metrics": metrics}[name])


def test_results_are_next_to_the_papers_numbers():
    runs = {"DNF": [run(4.2, dims=(3072, 500, 500))], "PR-D": [run(4, 0.03)]}
    results = results_table(1, DIMS, runs)
    table = results.set_index(["method", "metric"])
    bpd = table.loc[("DNF", "bpd")]
    assert (bpd["value"], bpd["paper"], bpd["paper_spread"]) == (4.2, 3.98, 0.03)
    assert (bpd["low"], bpd["high"]) == pytest.approx((4.1, 4.3))
    assert (bpd["n_train"], bpd["n_test"], bpd["n_samples"], bpd["seeds"]) == (6000, 800, 1000, 1)
    assert table.loc[("PR-D", "mse"), "paper"] == 0.02
    assert table.loc[("PR-D", "parameters"), "paper"] == 44e6
    assert pd.isna(table.loc[("PR-D", "fid"), "value"])
    assert table.loc[("PR-D", "pca_mse"), "value"] == 0.001
    row = readable(results).iloc[0].to_dict()
    assert (row["method"], row["dimensions"]) == ("DNF", "3072 → 500 → 500")
    assert row["BPD"] == "4.20 [4.10, 4.30]"
    assert row["BPD, paper"] == "3.98 ± 0.03"
    assert row["parameters, paper"] == "59,000,000"
    assert not {"recall", "seeds"} & set(row)


def test_rows_are_labelled_by_the_dimensions_of_the_models():
    """Of 16 x 16 pixels with d = 250; a note has the paper's."""
    cells = control_cells(1) + paper_cells(1)
    runs = {method: [run(dims=(768, 250))] for _, method, _ in cells}
    content = TARGETS["table-1"].make(runs)
    table, verdicts = content.tables.values()
    assert content.conclusions[0].startswith(f"Of {len(verdicts)} comparisons")
    assert {"PR-M against DNF", "PR-D against PR-H"} <= {*verdicts["comparison"]}
    assert {*table["dimensions"]} == {"768 → 250"}
    paper = table.set_index("method")["BPD, paper"]
    assert paper["DNF"] == "3.98 ± 0.03", "the paper's numbers are found by its dimensions"
    assert any("The paper's dimensions: " in note for note in content.notes)
    assert any("DNF 3072 → 500 → 500" in note for note in content.notes)
    same = {method: [run(dims=dims.split("-"))] for _, method, dims in cells}
    assert not any("dimensions: " in note for note in TARGETS["table-1"].make(same).notes)


@pytest.mark.parametrize("table", range(1, 6))
def test_every_cell_of_the_papers_tables_is_valid_and_has_its_dimensions(table):
    for dataset, method, dims in paper_cells(table) + control_cells(table):
        params = params_of(dataset, method, dims)
        path = {"data.path": "somewhere"} if table > 2 else {}
        parameters = CachedRun("", {}, Path.cwd()).with_params(params | path).settings.parameters()
        assert parameters["dataset"] == dataset
        assert parameters["method"] == method.replace("*", "-star")
        if method != "Glow":
            stages = [parameters[name]["dim"] for name in sorted(parameters) if "stage_" in name]
            assert dims == "-".join(map(str, [3072, *stages]))


@pytest.mark.parametrize(
    ("one", "other", "less", "equal"),
    [
        ([1.0], [2.0], HOLDS, FAILS),
        ([2.0], [1.0], FAILS, FAILS),
        ([1.0], [1.1], OPEN, OPEN),  # intervals of 0.1 each
        ([1.0, 2.0, 3.0], [1.1, 2.1, 3.11], HOLDS, FAILS),  # paired by seed
        ([1.0, 2.0, 3.0], [1.01, 2.01, 3.02], OPEN, HOLDS),  # within the paper's spread
        ([1.0, 2.0, 3.0], [1.1, 1.9, 3.1], OPEN, OPEN),
        ([None], [2.0], NOT_REPORTED, NOT_REPORTED),
        ([1.0, 1.1, None], [2.0, 3.0, 4.0], NOT_REPORTED, NOT_REPORTED),
    ],
)
def test_a_claim_is_judged_by_the_interval_of_the_difference(one, other, less, equal):
    runs = {"A": [*map(run, one)], "B": [*map(run, other)]}
    for expected, verdict in (("less", less), ("equal", equal)):
        found = claims.compare(runs, "claim", "bits_per_dim", "A", expected, "B")
        assert found.verdict == verdict


def coded_run(kurtosis, sharpness=1.0):
    """A run whose statistics have intervals of 0.1."""
    measured = {
        "excess_kurtosis": [plus_minus(value, 0.1) for value in kurtosis],
        "sharpness": plus_minus(sharpness, 0.1),
    }
    return SimpleNamespace(cached=lambda name, measure: measured[name])


def test_a_claim_compares_stages_of_a_method():
    runs = {"A": [coded_run([1.0, 0.5])]}
    first, second = "A after stage 1", "A after stage 2"
    holds = claims.compare(runs, "claim", "excess_kurtosis", second, "less", first)
    assert (holds.verdict, holds.found) == (HOLDS, "-0.50 excess kurtosis [-0.64, -0.36]")
    fails = claims.compare(runs, "claim", "excess_kurtosis", first, "less", second)
    assert fails.verdict == FAILS


def test_the_claims_of_a_table_compare_its_methods():
    runs = {"PR-M": [run(3.5)], "DNF": [run(4.0)], "EE-M on LSUN bedroom": [run()]}
    table = claims.claims_of(runs)
    assert [*table["comparison"]] == ["PR-M against DNF"]
    assert [*table["verdict"]] == [HOLDS]
    assert len(claims.claims_of({"PR-M": [run()]})) == 0


def test_models_of_equal_dimensions_do_not_decide_a_claim_about_dimensions():
    names = "EE-M on LSUN bedroom at d = 700", "EE-M on LSUN bedroom"
    for dims, verdict in (((3072, 500), NOT_RUN), ((3072, 400), HOLDS)):
        runs = dict(zip(names, ([run(3.0, dims=dims)], [run(4.0)]), strict=True))
        found = claims.compare(runs, "claim", "bits_per_dim", names[0], "less", names[1])
        assert found.verdict == verdict


def test_a_claim_compares_the_sharpness_of_samples():
    runs = {"A": [coded_run([], 0.3)], "B": [coded_run([], 0.9)], "C": [coded_run([], 0.95)]}
    verdicts = {
        name: claims.compare(runs, "claim", "sharpness", name, "less", "C").verdict
        for name in ("A", "B")
    }
    assert verdicts == {"A": HOLDS, "B": OPEN}


def test_the_errors_of_the_papers_methods_are_compared_with_pca():
    runs = {"A": [run(mse=0.002)], "B": [run(mse=0.005)], findings.OURS: [run(mse=0.0005)]}
    (line,) = findings.errors_over_pca(runs)
    assert line.endswith(" 2 (A) to 5 (B); density-first, which is ours, has 0.5.")


def test_scale_mixtures_have_their_excess_kurtosis_in_every_direction():
    """Of normal draws with scales 0.5 and 1.5: 3 (0.5^4 + 1.5^4) / 2 / 1.25^2 - 3 = 1.92."""
    normal = np.random.default_rng(0).standard_normal((40_000, 30))
    scales = np.random.default_rng(1).choice([0.5, 1.5], (len(normal), 1))
    assert statistics.excess_kurtosis(scales * normal) == pytest.approx(1.92, abs=0.1)
    assert statistics.excess_kurtosis(normal) == pytest.approx(
        np.sqrt(48 / (np.pi * len(normal))), rel=0.3
    )
    assert statistics.excess_kurtosis(7 * normal + 5) == pytest.approx(
        statistics.excess_kurtosis(normal)
    )


def test_codes_are_those_after_each_stage():
    stages = [Stage(RealNVP(8), dim=4), Stage(RealNVP(4), dim=2)]
    test = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    codes = statistics.codes_by_stage(Hierarchy(stages), test)
    assert [u.shape for u in codes] == [(50, 4), (50, 2)]
    u, _ = Hierarchy(stages).encode(torch.from_numpy(test))
    np.testing.assert_allclose(codes[-1], u.detach(), rtol=1e-5)


def test_blurred_images_are_less_sharp():
    images = np.random.default_rng(0).integers(0, 256, (40, 3, 16, 16), dtype=np.uint8)
    ratios = [
        statistics.sharpness(gaussian_filter(images, (0, 0, 0, sigma)), images)["value"]
        for sigma in (0.3, 0.6, 1.2)
    ]
    assert 1 > ratios[0] > ratios[1] > ratios[2] > 0
    same = statistics.sharpness(images, images)
    assert same["value"] == 1
    assert same["low"] < 1 < same["high"]


def test_averaging_three_pixels_of_a_wave_decreases_the_edge_energy_by_its_known_factor():
    k = 2 * np.pi / 8
    wave = np.tile(100 * np.cos(k * np.arange(34)), (2, 1, 34, 1))
    blurred = (wave[..., :-2] + wave[..., 1:-1] + wave[..., 2:]) / 3
    ratio = statistics.sharpness(blurred[..., 1:-1, :], wave[..., 1:-1, 1:-1])["value"]
    assert ratio == pytest.approx(((1 + 2 * np.cos(k)) / 3) ** 2)
    energy = statistics.edge_energies(wave[..., 1:-1, 1:-1])
    assert energy == pytest.approx((2 - 2 * np.cos(k)) ** 2 * 100**2 / 2, rel=0.1)


def test_every_method_of_a_claim_is_trained():
    assert set(findings.TARGET.needs) >= findings.CLAIMED


def test_claims_are_judged_and_drawn_after_each_number_of_steps():
    """The advantage in bits turns into its opposite."""
    runs = {
        "PR-H after 300 steps": [run(3.5, mse=0.02)],
        "DNF after 300 steps": [run(4.0)],
        "PR-H after 1200 steps": [run(4.0)],
        "DNF after 1200 steps": [run(3.75)],
        "PR-M after 300 steps": [run(mse=0.01)],
        "PR-M after 2400 steps": [run(mse=0.01)],
    }
    content = convergence.TARGET.make(runs)
    rows = content.data.set_index(["claim", "comparison"])
    assert rows["verdict"].to_dict() == {
        ("PR-H against DNF", "300 steps"): HOLDS,
        ("PR-H against DNF", "1,200 steps"): FAILS,
        ("PR-M against PR-H", "300 steps"): OPEN,
    }
    assert rows.loc[("PR-H against DNF", "300 steps"), "found"].startswith("-0.50 BPD")
    (figure,) = content.figures.values()
    line, *_ = figure.axes[0].lines
    np.testing.assert_allclose(line.get_xydata(), [[300, -0.5], [1200, 0.25]])
    assert len(figure.axes) == 2  # of end-to-end and hierarchical training nothing is trained


def test_trainings_of_each_length_have_a_need_of_their_own():
    needs = convergence.TARGET.needs
    assert len(needs) == len({str(sorted(need.items())) for need in needs.values()}) == 20
    assert needs["H-HH after 2400 steps"] == {
        "dataset": "celeba",
        "method": "H-HH",
        "stage_1.dim": 1000,
        "stage_2.dim": 500,
        "training.steps": 2400,
    }


def test_the_divergences_of_a_gaussian_from_its_fits_are_zero():
    truth = multivariate_normal([0.3, -0.2], [[0.5, 0.2], [0.2, 0.4]])
    density = truth.pdf(divergences.POINTS)
    fitted = divergences.fit_kl(density)
    np.testing.assert_allclose(fitted.mean, truth.mean, atol=1e-4)
    np.testing.assert_allclose(fitted.cov, truth.cov, atol=1e-4)
    assert divergences.kl_divergence(density, truth) == pytest.approx(0, abs=1e-4)
    assert divergences.js_divergence(density, truth) == pytest.approx(0, abs=1e-4)
    shifted = multivariate_normal([1.3, -0.2], truth.cov)  # KL = 1/2 shift^T cov^-1 shift
    assert divergences.kl_divergence(density, shifted) == pytest.approx(0.5 * 2.5, rel=1e-3)


def test_figure_1_needs_no_model():
    content = figures.TARGETS["figure-1"].content({})
    assert len(content.figures) == 1
    assert content.notes == []


def test_figure_2_shows_images_as_sums():
    """The first has an error of 28 levels, the second none."""
    images = np.full((2, 3, 4, 4), 100, np.uint8)
    projections = np.stack([images[0] - 28, images[1]])
    axes = rejection_scheme(images, projections).axes
    levels = [{*np.ravel(ax.images[0].get_array())} for ax in axes]
    assert levels == [{100}, {72}, {156}, {100}, {100}, {128}]
