"""ComBat against its published equations written out in loops, its closed-form properties, and what it must not see."""

import math
import subprocess
import sys

import numpy as np
import pytest

from datamodules import combat as combat_module
from datamodules.combat import Combat, HarmonisationError

SITES = ["north"] * 9 + ["south"] * 6 + ["west"] * 7


def cohort(num_features=12, num_covariates=1, seed=0):
    """Return values with site effects, sites in a mixed order, and covariates that differ between the sites."""
    generator = np.random.default_rng(seed)
    site = np.array(SITES)[generator.permutation(len(SITES))]
    place = np.searchsorted(sorted(set(SITES)), site)
    covariates = generator.normal(place[:, None], 1.0, (len(site), num_covariates))
    values = generator.normal(5, 2, num_features) + covariates @ generator.normal(0, 1, (num_covariates, num_features))
    shift, spread = generator.normal(0, 2, (3, num_features)), generator.uniform(0.5, 2.5, (3, num_features))
    return values + shift[place] + spread[place] * generator.normal(0, 1, values.shape), site, covariates


def published(values, site, covariates, empirical_bayes=True, mean_only=False):
    """Harmonise as Johnson 2007 writes it (section 3), one feature and one site at a time."""
    sites = sorted(set(site))
    dummies = np.array([[float(own == name) for name in sites] for own in site])
    design = np.hstack([dummies, covariates])
    rows = {name: [j for j in range(len(site)) if site[j] == name] for name in sites}
    num_rows, num_features = values.shape
    standard, base, sds = np.empty(values.shape), np.empty(values.shape), []
    for g in range(num_features):
        beta = np.linalg.lstsq(design, values[:, g], rcond=None)[0]
        alpha = sum(len(rows[name]) / num_rows * beta[i] for i, name in enumerate(sites))
        sds.append(math.sqrt(sum((values[j, g] - design[j] @ beta) ** 2 for j in range(num_rows)) / num_rows))
        for j in range(num_rows):
            base[j, g] = alpha + covariates[j] @ beta[len(sites) :]
            standard[j, g] = (values[j, g] - base[j, g]) / sds[g]
    result = np.empty(values.shape)
    for name in sites:
        own, n = standard[rows[name]], len(rows[name])
        gamma_hat = [sum(own[:, g]) / n for g in range(num_features)]
        delta_hat = [1.0 if mean_only else np.var(own[:, g], ddof=1) for g in range(num_features)]
        gamma_bar, tau2 = np.mean(gamma_hat), np.var(gamma_hat, ddof=1)
        v, s2 = np.mean(delta_hat), np.var(delta_hat, ddof=1)
        for g in range(num_features):
            gamma, delta2 = gamma_hat[g], delta_hat[g]
            for _ in range(300 if empirical_bayes else 0):
                gamma = (n * tau2 * gamma_hat[g] + delta2 * gamma_bar) / (n * tau2 + delta2)
                if not mean_only:
                    shape, rate = (v**2 + 2 * s2) / s2, (v**3 + v * s2) / s2
                    delta2 = (rate + 0.5 * sum((z - gamma) ** 2 for z in own[:, g])) / (n / 2 + shape - 1)
            for j in rows[name]:
                result[j, g] = sds[g] / math.sqrt(delta2) * (standard[j, g] - gamma) + base[j, g]
    return result


@pytest.mark.parametrize("num_covariates", [0, 2])
@pytest.mark.parametrize("options", [{}, {"empirical_bayes": False}, {"mean_only": True}], ids=str)
def test_it_is_what_was_published(num_covariates, options):
    values, site, covariates = cohort(num_covariates=num_covariates)
    ours = Combat.fit(values, site, covariates, **options).transform(values, site, covariates)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, published(values, site, covariates, **options), rtol=2e-6, atol=2e-6)
    assert np.abs(ours - values).max() > 1


def test_without_empirical_bayes_the_sites_become_equal_and_covariates_keep_their_effect():
    values, site, covariates = cohort(num_covariates=2)
    combat = Combat.fit(values, site, covariates, empirical_bayes=False)
    residual = combat.transform(values, site, covariates) - combat.mean
    residual = residual - (covariates - combat.covariate_mean) @ combat.coefficients
    for name in set(SITES):
        np.testing.assert_allclose(residual[site == name].mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(residual[site == name].std(axis=0, ddof=1), combat.sd, rtol=1e-5)
    moved = Combat.fit(values, site, covariates, empirical_bayes=False, mean_only=True)
    again = Combat.fit(moved.transform(values, site, covariates), site, covariates, empirical_bayes=False)
    np.testing.assert_allclose(again.coefficients, moved.coefficients, atol=1e-5)
    np.testing.assert_allclose(again.gamma, 0, atol=1e-5)
    assert np.abs(moved.gamma).max() > 1


def test_empirical_bayes_draws_every_estimate_towards_the_others():
    values, site, _ = cohort(num_features=300)
    plain, drawn = (Combat.fit(values, site, empirical_bayes=choice) for choice in (False, True))
    for number in range(3):
        for raw, own in ((plain.gamma, drawn.gamma), (plain.delta**2, drawn.delta**2)):
            assert own[number].std() < raw[number].std()
            assert np.corrcoef(own[number], raw[number])[0, 1] > 0.98


def test_without_covariates_a_row_counts_as_the_mean_one_and_so_does_a_missing_value():
    values, site, covariates = cohort()
    combat = Combat.fit(values, site, covariates)
    mean = np.broadcast_to(combat.covariate_mean, covariates.shape)
    plain = combat.transform(values, site)
    np.testing.assert_array_equal(plain, combat.transform(values, site, mean))
    np.testing.assert_array_equal(plain, combat.transform(values, site, np.full(covariates.shape, np.nan)))
    scale, shift = combat.site_map("south")
    np.testing.assert_allclose(plain[site == "south"], values[site == "south"] * scale + shift, rtol=1e-6)
    gap = covariates.copy()
    gap[4] = np.nan
    filled = np.where(np.isnan(gap), np.nanmean(gap), gap)
    np.testing.assert_allclose(Combat.fit(values, site, gap).gamma, Combat.fit(values, site, filled).gamma)


def test_one_site_is_left_as_it_is_and_so_is_what_does_not_vary():
    values, site, _ = cohort()
    alone = Combat.fit(values, ["only"] * len(values))
    np.testing.assert_array_equal(alone.transform(values, ["only"] * len(values)), values.astype(np.float32))
    values[:, 3], values[:, 5] = 0.1, np.where(site == "west", 7.3, -1.1)  # the same everywhere, or within every site
    values[site == "north", 7] = 2.5
    for options in ({}, {"empirical_bayes": False}, {"mean_only": True}):
        combat = Combat.fit(values, site, **options)
        new = values + 1
        ours = combat.transform(new, site)
        np.testing.assert_array_equal(ours[:, [3, 5]], new[:, [3, 5]].astype(np.float32))
        assert combat.delta[0, 7] == 1
        assert np.isfinite(ours).all()
    assert Combat.fit(values[:, [7]], site).delta[1:, 0].std() > 0  # a single feature is fitted as it is


def test_parts_of_any_size_give_the_same(monkeypatch):
    values, site, covariates = cohort(num_features=500)
    whole = Combat.fit(values, site, covariates)
    monkeypatch.setattr(combat_module, "CHUNK", 1)
    monkeypatch.setattr(combat_module, "MIN_CHUNK", 7)
    parts = Combat.fit(values.astype(np.float64), site, covariates)
    for name in ("mean", "sd", "coefficients", "gamma", "delta"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-9, atol=1e-12)


def test_the_order_of_rows_and_the_names_of_sites_do_not_matter():
    values, site, _ = cohort()
    order = np.random.default_rng(1).permutation(len(site))
    renamed = {"north": "z", "south": "y", "west": "x"}
    one = Combat.fit(values, site).transform(values, site)
    other = Combat.fit(values[order], [renamed[name] for name in site[order]])
    np.testing.assert_allclose(other.transform(values, [renamed[name] for name in site]), one, rtol=1e-6, atol=1e-6)


def test_what_cannot_be_harmonised_is_refused():
    values, site, covariates = cohort()
    combat = Combat.fit(values, site, covariates)
    with pytest.raises(HarmonisationError, match=r"has not seen.* east has none .*zscore or percentile.*k-fold"):
        combat.transform(values[:2], ["north", "east"])
    lonely = site.copy()
    lonely[0] = "east"
    with pytest.raises(HarmonisationError, match=r"fewer of east \(1\)"):
        Combat.fit(values, lonely)
    for confounded in ((site == "west").astype(float), np.ones(len(site)), 2 * covariates[:, 0]):
        with pytest.raises(HarmonisationError, match="cannot be told apart"):
            Combat.fit(values, site, np.column_stack([covariates, confounded]))
    with pytest.raises(HarmonisationError, match="too few to tell 3 sites and 19"):
        Combat.fit(values, site, np.random.default_rng(0).normal(size=(22, 19)))
    with pytest.raises(HarmonisationError, match="not finite"):
        Combat.fit(np.where(values == values[2, 2], np.nan, values), site)
    with pytest.raises(HarmonisationError, match=r"covariates of shape \(22, 1\), not \(22, 2\)"):
        combat.transform(values, site, np.zeros((22, 2)))
    with pytest.raises(HarmonisationError, match="12 features"):
        combat.transform(values[:, :3], site)


def test_it_needs_no_torch():
    code = "import sys, datamodules.combat; assert 'torch' not in sys.modules and 'pandas' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
