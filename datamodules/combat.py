"""ComBat: give the same feature the same mean and spread at every site, as fitted on training rows alone.

A value of feature f in row j of site i is modelled as mean_f + covariates_j @ coefficients_f + sd_f * (gamma_if +
delta_if * noise). What a site adds (gamma) and by how much it spreads (delta) are estimated per feature, drawn towards
what the site does to all features (empirical Bayes), and taken out. No outcome enters, and no row but those given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from datamodules.problems import CohortError

FloatArray = npt.NDArray[np.float64]

MIN_ROWS = 2  # of a site: fewer have no variance
CHUNK = 2**22  # numbers that are looked at together
MIN_CHUNK = 2**12  # features; reading fewer of a file at a time is slow
CONSTANT = 1e-9  # standard deviation, relative to the largest value, below which a feature does not vary
TOLERANCE = 1e-8  # relative change of a variance at which its iteration ends
MAX_ITERATIONS = 10_000
PER_IMAGE = "normalise every image by itself (data.preprocessing.normalisation zscore or percentile)"


class HarmonisationError(CohortError):
    """Images or tables that cannot be harmonised as asked; says why, and what can be done instead."""


@dataclass(frozen=True, eq=False)
class Combat:
    """A fitted ComBat of F features, S sites and K covariates.

    Args:
        sites: Names of the sites it was fitted on, sorted.
        num_rows: Training rows of each.
        mean: (F,) mean over the training rows.
        sd: (F,) standard deviation of what sites and covariates leave unexplained; 0 where a feature passes through.
        coefficients: (K, F) change of a feature for one unit of a covariate.
        covariate_mean: (K,) mean over the training rows.
        gamma: (S, F) shift of a site, in units of `sd`.
        delta: (S, F) spread of a site, relative to `sd`.

    References:
        Johnson WE, Li C, Rabinovic A. Adjusting batch effects in microarray expression data using empirical Bayes
        methods. Biostatistics 2007;8:118-127. doi:10.1093/biostatistics/kxj037
        Fortin JP et al. Harmonization of cortical thickness measurements across scanners and sites. NeuroImage
        2018;167:104-120. doi:10.1016/j.neuroimage.2017.11.024
    """

    sites: tuple[str, ...]
    num_rows: tuple[int, ...]
    mean: FloatArray
    sd: FloatArray
    coefficients: FloatArray
    covariate_mean: FloatArray
    gamma: FloatArray
    delta: FloatArray

    @classmethod
    def fit(
        cls,
        values: npt.ArrayLike,
        site: Sequence[str] | npt.NDArray[Any],
        covariates: npt.ArrayLike | None = None,
        *,
        empirical_bayes: bool = True,
        mean_only: bool = False,
    ) -> Combat:
        """Estimate what every site does to every feature.

        A feature that does not vary within the sites passes through unchanged. Where the rows of a single site do not
        vary, that site keeps its spread. With one site there is nothing to harmonise, and everything passes through.

        Args:
            values: (N, F) training rows.
            site: (N,) name of each row's site.
            covariates: (N, K) numbers whose effect is no site effect; NaN counts as the mean of the others.
            empirical_bayes: Draw the estimates of a feature towards those of all; false takes them as they are.
            mean_only: Leave the spread of every site as it is.

        Raises:
            HarmonisationError: Rows are too few or not finite, or covariates cannot be told apart from the sites.

        >>> values = np.array([[0.0], [2.0], [10.0], [14.0]])
        >>> combat = Combat.fit(values, ["a", "a", "b", "b"], empirical_bayes=False)
        >>> print(combat.transform(values, ["a", "a", "b", "b"]).ravel().round(3))
        [5.382 7.618 5.382 7.618]
        """
        matrix = np.asanyarray(values)
        if matrix.ndim != 2:
            raise HarmonisationError(f"ComBat takes values of shape (rows, features), not {matrix.shape}.")

        def read(part: slice) -> npt.NDArray[Any]:
            return matrix[:, part]

        return cls.fit_parts(
            read,
            matrix.shape[1],
            _names(site, len(matrix)),
            covariates,
            empirical_bayes=empirical_bayes,
            mean_only=mean_only,
        )

    @classmethod
    def fit_parts(
        cls,
        read: Callable[[slice], npt.NDArray[Any]],
        num_features: int,
        site: Sequence[str],
        covariates: npt.ArrayLike | None = None,
        *,
        empirical_bayes: bool = True,
        mean_only: bool = False,
    ) -> Combat:
        """Fit as `fit` does, on values that are never in memory as a whole.

        Args:
            read: Returns all rows of some features, (N, f); called once for each part.
            num_features: F.
            site: (N,) name of each row's site.
            covariates: (N, K), see `fit`.
            empirical_bayes: See `fit`.
            mean_only: See `fit`.
        """
        design = _Design.of(site, covariates)
        num_sites, num_covariates = len(design.sites), design.within.shape[1]
        mean, sd = np.empty(num_features), np.empty(num_features)
        coefficients = np.empty((num_covariates, num_features))
        gamma, variance = np.empty((num_sites, num_features)), np.empty((num_sites, num_features))
        for part in _parts(num_features, len(design.index)):
            block = np.asarray(read(part), dtype=np.float64)
            estimates = design.estimate(block)
            for whole, own in zip((mean, sd, coefficients, gamma, variance), estimates, strict=True):
                whole[..., part] = own
        counts = np.bincount(design.index)
        if num_sites == 1:
            gamma[:], variance[:] = 0.0, 1.0
        elif mean_only:
            variance[:] = 1.0
        varies = sd > 0
        if empirical_bayes and num_sites > 1 and varies.sum() > 1:  # one feature has no others to learn from
            for number, count in enumerate(counts):
                raw = gamma[number, varies], variance[number, varies]
                if not mean_only:
                    variance[number, varies] = _draw_in_variance(*raw, count)
                gamma[number, varies] = _draw_in_shift(raw[0], variance[number, varies], count)
        delta = np.sqrt(np.where(variance > 0, variance, 1.0))
        num_rows = tuple(int(count) for count in counts)
        return cls(design.sites, num_rows, mean, sd, coefficients, design.mean, gamma, delta)

    def site_map(self, site: str) -> tuple[FloatArray, FloatArray]:
        """Return what is done to a row of a site with the mean covariates: `scale` and `shift`, each (F,).

        Raises:
            HarmonisationError: The site is not one of those it was fitted on.
        """
        require_seen([site], self.sites)
        number = self.sites.index(site)
        scale = 1 / self.delta[number]
        return scale, self.mean * (1 - scale) - self.sd * self.gamma[number] * scale

    def transform(
        self,
        values: npt.ArrayLike,
        site: Sequence[str] | npt.NDArray[Any],
        covariates: npt.ArrayLike | None = None,
    ) -> npt.NDArray[np.float32]:
        """Take what the sites do out of rows; nothing is learned from them.

        Args:
            values: (M, F) rows of sites that it was fitted on.
            site: (M,) name of each row's site.
            covariates: (M, K); what they explain is put back as it was. Without them every row counts as one with the
                mean covariates of the training, and so does a NaN.

        Returns:
            (M, F) float32.

        Raises:
            HarmonisationError: A site was not among those of the training, or a shape is another.
        """
        rows = np.asanyarray(values)
        names = _names(site, len(rows))
        require_seen(names, self.sites)
        if rows.ndim != 2 or rows.shape[1] != len(self.mean):
            raise HarmonisationError(f"This ComBat takes rows of {len(self.mean)} features, not {rows.shape}.")
        offsets = np.zeros((len(rows), len(self.coefficients)))
        if covariates is not None:
            offsets = np.asarray(covariates, dtype=np.float64)
            if offsets.shape != (len(rows), len(self.coefficients)):
                raise HarmonisationError(
                    f"This ComBat takes covariates of shape {(len(rows), len(self.coefficients))}, not {offsets.shape}."
                )
            offsets = np.nan_to_num(offsets - self.covariate_mean, nan=0.0)
        result = np.empty(rows.shape, dtype=np.float32)
        for name in dict.fromkeys(names):
            scale, shift = self.site_map(name)
            for index in (index for index, other in enumerate(names) if other == name):
                explained = np.einsum("k,kf->f", offsets[index], self.coefficients)
                result[index] = rows[index] * scale + shift + (1 - scale) * explained
        return result


def require_seen(sites: Sequence[str], known: Sequence[str]) -> None:
    """Refuse sites that were not trained on.

    Args:
        sites: Sites of the rows to harmonise.
        known: Sites of the training.

    Raises:
        HarmonisationError: With the sites, the reason, and what can be done instead.
    """
    if unseen := sorted(set(sites) - set(known)):
        raise HarmonisationError(
            f"ComBat cannot harmonise a site it has not seen: it estimates what each scanner does from its training "
            f"images, and {', '.join(unseen)} has none among those of {', '.join(sorted(known)) or 'no site'}. Instead "
            f"{PER_IMAGE}, or test participants of the training sites (protocols k-fold or multi-site)."
        )


@dataclass(frozen=True, eq=False)
class _Design:
    """Sites and covariates of N training rows.

    Args:
        sites: Names of the S sites, sorted.
        index: (N,) which of them each row is from.
        mean: (K,) mean covariates.
        within: (N, K) covariates minus the mean of their site.
        between: (S, K) mean covariates of each site minus those of all rows.
        projection: (K, N) from values minus the mean of their site to the coefficients.
    """

    sites: tuple[str, ...]
    index: npt.NDArray[np.intp]
    mean: FloatArray
    within: FloatArray
    between: FloatArray
    projection: FloatArray

    @classmethod
    def of(cls, site: Sequence[str], covariates: npt.ArrayLike | None) -> _Design:
        """Check sites and covariates, and fill in missing covariates."""
        sites = tuple(sorted(set(site)))
        place = {name: number for number, name in enumerate(sites)}
        index = np.array([place[name] for name in site], dtype=np.intp)
        counts = np.bincount(index)
        if few := [f"{name} ({count})" for name, count in zip(sites, counts, strict=True) if count < MIN_ROWS]:
            raise HarmonisationError(
                f"ComBat needs at least {MIN_ROWS} training rows of every site to see how they vary; there are fewer "
                f"of {', '.join(few)}. Leave the site out (data.rows), give the training more of it, or {PER_IMAGE}."
            )
        table = np.zeros((len(index), 0)) if covariates is None else np.asarray(covariates, dtype=np.float64)
        if table.ndim != 2 or len(table) != len(index):
            raise HarmonisationError(f"ComBat takes covariates of shape ({len(index)}, K), not {table.shape}.")
        if len(index) <= len(sites) + table.shape[1]:
            raise HarmonisationError(
                f"{len(index)} training rows are too few to tell {len(sites)} sites and {table.shape[1]} covariates "
                "apart. Name fewer covariates (data.harmonise_covariates)."
            )
        known = np.isfinite(table)
        if not known.any(axis=0).all():
            raise HarmonisationError("A covariate of ComBat is missing in every training row. Leave it out.")
        mean = np.where(known, table, 0.0).sum(axis=0) / known.sum(axis=0)
        centred = np.where(known, table - mean, 0.0)
        between = _by_site(centred, index, len(sites))
        within = centred - between[index]
        size = np.sqrt((centred**2).sum(axis=0))
        relative = within / np.where(size > 0, size, 1.0)
        if table.shape[1] and np.linalg.matrix_rank(relative, tol=1e-6) < table.shape[1]:
            raise HarmonisationError(
                "The covariates of ComBat cannot be told apart from the sites or from one another: one of them is the "
                "same for all training rows of a site, or follows from the others. Leave it out "
                "(data.harmonise_covariates)."
            )
        projection = np.linalg.solve(np.einsum("nk,nl->kl", within, within), within.T)
        return cls(sites, index, mean, within, between, projection)

    def estimate(self, block: FloatArray) -> tuple[FloatArray, ...]:
        """Return mean (f,), sd (f,), coefficients (K, f), gamma (S, f) and delta squared (S, f) of values (N, f).

        Sums are numpy's own and not BLAS's, whose last bits depend on the number of threads.
        """
        if block.shape[0] != len(self.index) or not np.isfinite(block).all():
            raise HarmonisationError("The training values of ComBat are not finite, or not one row for each site.")
        counts = np.bincount(self.index)[:, np.newaxis]
        site_mean = _by_site(block, self.index, len(self.sites))
        residual = block - site_mean[self.index]
        coefficients = np.einsum("kn,nf->kf", self.projection, residual)
        residual -= np.einsum("nk,kf->nf", self.within, coefficients)
        squares = _by_site(residual**2, self.index, len(self.sites)) * counts
        sd = np.sqrt(squares.sum(axis=0) / len(block))
        varies = sd > CONSTANT * np.abs(block).max(axis=0)
        mean = (site_mean * counts).sum(axis=0) / len(block)
        unit = np.where(varies, sd, 1.0)
        gamma = (site_mean - np.einsum("sk,kf->sf", self.between, coefficients) - mean) / unit
        variance = squares / (counts - 1) / unit**2
        return (
            mean,
            np.where(varies, sd, 0.0),
            np.where(varies, coefficients, 0.0),
            np.where(varies, gamma, 0.0),
            np.where(varies, np.where(variance > CONSTANT**2, variance, 0.0), 1.0),
        )


def _by_site(values: FloatArray, index: npt.NDArray[np.intp], num_sites: int) -> FloatArray:
    """Return the mean of the rows of each site."""
    return np.stack([values[index == number].mean(axis=0) for number in range(num_sites)])


def _draw_in_shift(shift: FloatArray, variance: FloatArray, count: int) -> FloatArray:
    """Return the posterior mean of the shifts (F,) of a site's features, given the variance of its rows."""
    centre, spread = shift.mean(), shift.var(ddof=1)
    drawn: FloatArray = (spread * count * shift + variance * centre) / (spread * count + variance)
    return drawn


def _draw_in_variance(shift: FloatArray, variance: FloatArray, count: int) -> FloatArray:
    """Return the posterior mean of the variances of a site's features, where shifts and variances fit one another.

    The prior is the inverse gamma distribution with the mean and the variance that the features' own estimates have.
    The formula is Johnson's, expanded so that it also holds where these estimates are all the same. A feature that does
    not vary at the site takes no part in it, and keeps its spread.

    Args:
        shift: (F,) estimates of gamma.
        variance: (F,) estimates of delta squared.
        count: Rows of the site.
    """
    centre, spread = shift.mean(), shift.var(ddof=1)
    result = np.where(variance > 0, variance, 1.0)
    waiting = np.flatnonzero(variance > 0)
    if len(waiting) < 2:
        return result
    mean, width = variance[waiting].mean(), variance[waiting].var(ddof=1)
    for _ in range(MAX_ITERATIONS):
        old, own = result[waiting], shift[waiting]
        drawn = (spread * count * own + old * centre) / (spread * count + old)
        squares = (count - 1) * variance[waiting] + count * (own - drawn) ** 2
        new = (squares / 2 * width + mean * width + mean**3) / (count / 2 * width + width + mean**2)
        result[waiting] = new
        waiting = waiting[np.abs(new - old) > TOLERANCE * old]
        if not waiting.size:
            return result
    raise HarmonisationError(
        f"The empirical Bayes estimates of ComBat have not settled for {waiting.size} features after {MAX_ITERATIONS} "
        f"iterations. Look for images that differ from all others, or {PER_IMAGE}."
    )


def _parts(num_features: int, num_rows: int) -> Iterator[slice]:
    """Yield the features in parts that fit into memory with all of their rows."""
    size = max(MIN_CHUNK, CHUNK // num_rows)
    for start in range(0, num_features, size):
        yield slice(start, min(start + size, num_features))


def _names(site: Sequence[str] | npt.NDArray[Any], num_rows: int) -> list[str]:
    names = [str(name) for name in site]
    if len(names) != num_rows:
        raise HarmonisationError(f"ComBat takes a site for each of {num_rows} rows, not {len(names)}.")
    return names
