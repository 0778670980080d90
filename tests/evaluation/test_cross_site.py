import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit

from evaluation.assessment import assess
from evaluation.cross_site import pool_sites, site_matrix, subgroups
from evaluation.discrimination import delong
from evaluation.predictions import PredictionsError
from evaluation.random_effects import random_effects


def table_of(sites="ABCD", num_participants=60, num_runs=2, effect=1.5, **columns):
    """Predictions of a binary outcome: every site was scored by models of the other ones."""
    generator = np.random.default_rng(81)
    frames = []
    for number, site in enumerate(sites):
        target = (np.arange(num_participants) % 3 == 0).astype(float)
        people = pd.DataFrame({"participant_id": [f"{site}{n:03}" for n in range(num_participants)], "target": target})
        people = people.assign(site=site, fold=site, train_sites="+".join(other for other in sites if other != site))
        people["sex"], people["age"] = np.resize(["F", "M"], num_participants), np.arange(num_participants) / 10
        for seed in range(num_runs):
            odds = number - 1 + effect * target + generator.normal(0, 1, num_participants)  # levels differ by site
            frames.append(people.assign(seed=seed, prediction=expit(odds)))
    frame = pd.concat(frames, ignore_index=True).assign(
        protocol="cross-site", arm="a", split="external", output="death"
    )
    return frame.assign(**columns)


def test_matrix_holds_each_pair_of_training_and_test_sites():
    frame = table_of("AB")
    frame = pd.concat([frame, frame.assign(split="test", train_sites="A+B")])
    frame = pd.concat([frame, frame[frame["split"] == "test"].assign(split="val")], ignore_index=True)
    matrix = site_matrix(frame.sample(frac=1, random_state=0), num_replicates=100)
    cells = matrix[["train_sites", "split", "test_site"]].apply(tuple, axis=1).tolist()
    assert cells == [("A", "external", "B"), ("A+B", "test", "A"), ("A+B", "test", "B"), ("B", "external", "A")]
    for cell in matrix.itertuples():
        chosen = (
            (frame["train_sites"] == cell.train_sites)
            & (frame["split"] == cell.split)
            & (frame["site"] == cell.test_site)
        )
        expected = assess(frame[chosen], "binary", num_replicates=0).metrics
        assert cell.estimate == pytest.approx(expected["auroc"].estimate)
        assert cell.oe_ratio == pytest.approx(expected["oe_ratio"].estimate)
        assert cell.calibration_slope == pytest.approx(expected["calibration_slope"].estimate)
        assert cell.low < cell.estimate < cell.high
        assert cell.oe_ratio_low < cell.oe_ratio < cell.oe_ratio_high
        assert (cell.num_participants, cell.num_events, cell.num_runs) == (60, 20, 2)


def test_matrix_of_a_regression_has_bias_instead_of_events():
    frame = table_of("AB", num_runs=1, output="age").assign(target=lambda table: table["age"] * 10)
    matrix = site_matrix(frame, num_replicates=50)
    assert matrix["metric"].tolist() == ["mae", "mae"]
    assert matrix["num_events"].isna().all()
    own = frame[frame["site"] == "A"]
    assert matrix.set_index("test_site")["mean_bias"]["A"] == pytest.approx((own["prediction"] - own["target"]).mean())


def test_pooled_auc_is_the_random_effects_mean_of_the_log_odds():
    found = pool_sites(table_of(num_runs=1))
    sites = found.sites
    for site, own in table_of(num_runs=1).groupby("site"):
        row = sites.set_index("site").loc[site]
        exact = delong(own["target"], own["prediction"])
        assert row["estimate"] == pytest.approx(exact.auc)
        assert row["standard_error"] == pytest.approx(np.sqrt(exact.variance), rel=0.08)
    effect = logit(sites["estimate"])
    variance = (sites["standard_error"] / (sites["estimate"] * (1 - sites["estimate"]))) ** 2
    for method in ("DerSimonian-Laird", "Paule-Mandel"):
        expected = random_effects(effect, variance, method)
        assert vars(found.effects[method]) == pytest.approx(vars(expected))
        pooled, (low, high) = found.auc(method), found.prediction(method)
        assert (pooled.estimate, pooled.low) == pytest.approx((expit(expected.mean), expit(expected.low)))
        assert low < pooled.low < pooled.high < high
        assert (
            f"{method}: AUC {pooled.estimate:.3f} ({pooled.low:.3f} to {pooled.high:.3f}, Hartung-Knapp)" in found.text
        )


def test_two_sites_are_given_and_not_pooled():
    found = pool_sites(table_of("AB"), num_replicates=100)
    assert (found.effects, found.auc(), found.prediction()) == ({}, None, None)
    assert "needs >= 3 sites, and there are 2" in found.text
    for row in found.sites.itertuples():
        assert f"{row.site} {row.estimate:.3f} ({row.low:.3f} to {row.high:.3f})" in found.text


def test_sites_without_a_class_are_named_and_perfect_ones_refuse_the_pool():
    frame = table_of()
    empty = frame[(frame["site"] != "B") | (frame["target"] == 0)]
    found = pool_sites(empty, num_replicates=100)
    assert found.effects["Paule-Mandel"].num_studies == 3
    assert "Left out, for too few participants of a class: B." in found.text
    perfect = frame.assign(prediction=frame["prediction"].where(frame["site"] != "C", frame["target"]))
    found = pool_sites(perfect, num_replicates=100)
    assert found.effects == {}
    assert "the AUC of C is 0 or 1" in found.text


def test_subgroups_have_values_or_too_few_participants():
    frame = table_of("AB", num_runs=1, train_sites="A+B", dataset="d")
    frame.loc[frame["participant_id"] == "A059", "sex"] = ""
    found = subgroups(frame, ["sex", "site", "age"], bins={"age": [0, 2, 5, 5.8]}, num_replicates=100)
    rows = found.set_index(["column", "level"])
    assert rows.index.tolist() == [
        ("sex", "F"),
        ("sex", "M"),
        ("sex", "missing"),
        ("site", "A"),
        ("site", "B"),
        ("age", "0 to 2"),
        ("age", "2 to 5"),
        ("age", "5 to 5.8"),
        ("age", "missing"),
    ]
    for key, chosen in {
        ("sex", "M"): frame["sex"] == "M",
        ("site", "B"): frame["site"] == "B",
        ("age", "2 to 5"): frame["age"].between(2, 4.95),
    }.items():
        expected = assess(frame[chosen], "binary", num_replicates=0)
        row = rows.loc[key]
        assert row["estimate"] == pytest.approx(expected.metrics["auroc"].estimate)
        assert row["low"] < row["estimate"] < row["high"]
        assert (row["num_participants"], row["num_events"]) == (chosen.sum(), frame["target"][chosen].sum())
        assert row["note"] == ""
    few = rows.loc["age", "5 to 5.8"]
    assert (few["num_participants"], few["num_events"], few["note"]) == (18, 6, "too few")
    assert np.isnan(few["estimate"])
    text = frame.assign(age=frame["age"].astype(str))  # as a CSV file gives it
    again = subgroups(text, ["age"], bins={"age": [0, 2, 5, 5.8]}, num_replicates=100)
    pd.testing.assert_frame_equal(again, found[found["column"] == "age"].reset_index(drop=True))


def test_a_subgroup_over_sites_of_several_models_is_a_mean_over_sites():
    frame = table_of("ABC", num_participants=90)
    row = subgroups(frame, ["sex"], num_replicates=20).iloc[0]
    women = frame[frame["sex"] == "F"]
    per_site = [assess(own, "binary", num_replicates=0).metrics["auroc"].estimate for _, own in women.groupby("site")]
    assert row["estimate"] == pytest.approx(np.mean(per_site))
    assert row["note"] == "mean over sites"


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ("income", "no column 'income'"),
        ("age", "60 different numbers. Give it bins"),
        ("prediction_of", "differs within"),
    ],
)
def test_columns_that_make_no_subgroups_are_refused(columns, words):
    frame = table_of("AB").assign(prediction_of=lambda table: table["seed"].astype(str))
    with pytest.raises(PredictionsError, match=words):
        subgroups(frame, [columns])


def test_nothing_held_out_is_refused():
    with pytest.raises(PredictionsError, match="is held out; its splits are 'val'"):
        site_matrix(table_of("AB", split="val"))
