"""What a site's scanner does to a signal: gain, contrast, shading, blur, noise, voxels, orientation, skull stripping.

A scanner is fixed by the seed of the cohort and the place of its site in the list, so a site keeps its habits however
many participants are drawn.
"""

from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from datamodules.phantoms import PhantomError
from datamodules.phantoms.geometry import Field, Triple, centred_affine, smooth_field

SkullChoice = Literal["mixed", "on", "off"]

ORIENTATIONS = ("RAS", "PSR", "LPS", "LAS", "ASR", "SRP", "LIA", "RSA")
VOXEL_SCALES = (1.0, 0.94, 1.05)
MAX_SITES = 26
_FWHM = 2.3548  # full width at half maximum of a Gaussian of standard deviation 1


@dataclass(frozen=True)
class Scanner:
    """A site's fixed habits.

    Args:
        site: Name of the site.
        orientation: Axis code of the stored array, such as `PSR`.
        voxel_scale: Voxel size along right, anterior and superior, relative to the cohort's spacing.
        gain: Stored value of a signal of 1.
        gamma: Exponent of the contrast curve.
        bias_amplitude: Standard deviation of the logarithm of the coil's shading.
        point_spread: Full width at half maximum of the blur, in voxels.
        noise: Standard deviation of the noise in each of the two receive channels (Rician), relative to white matter.
        skull: Whether the images are whole heads; otherwise they are skull-stripped, with zeros around the brain.
        coil_seed: Seed of the part of the shading that all scans of the site share.
    """

    site: str
    orientation: str
    voxel_scale: Triple
    gain: float
    gamma: float
    bias_amplitude: float
    point_spread: float
    noise: float
    skull: bool
    coil_seed: int

    def spacing(self, base: Triple) -> Triple:
        """Return the voxel size in mm along right, anterior and superior, where the cohort's is `base`."""
        x, y, z = (round(size * scale, 3) for size, scale in zip(base, self.voxel_scale, strict=True))
        return x, y, z

    def facts(self, base: Triple) -> dict[str, str | float]:
        """Return what belongs into the cohort table, by column, where the cohort's spacing in mm is `base`."""
        habits = {
            name: value for name, value in asdict(self).items() if name not in ("site", "voxel_scale", "coil_seed")
        }
        facts = {f"scanner_{name}": value if isinstance(value, str) else float(value) for name, value in habits.items()}
        sizes = zip("xyz", self.spacing(base), strict=True)
        return {**facts, **{f"scanner_voxel_{axis}": size for axis, size in sizes}}


@lru_cache(maxsize=16)  # every participant asks
def make_scanners(num_sites: int, seed: int, skull: SkullChoice) -> tuple[Scanner, ...]:
    """Draw the scanners of a cohort; the first sites stay the same when sites are added.

    Args:
        num_sites: Number of sites, 1 to 26, named `site-a`, `site-b`, ...
        seed: Seed of the cohort.
        skull: `on` for whole heads, `off` for skull-stripped images, `mixed` to alternate, beginning with whole heads.

    Raises:
        PhantomError: `num_sites` is out of range.
    """
    if not 1 <= num_sites <= MAX_SITES:
        raise PhantomError(f"A phantom cohort has 1 to {MAX_SITES} sites, not {num_sites}. Change --sites.")
    return tuple(_make_scanner(index, seed, skull) for index in range(num_sites))


def _make_scanner(index: int, seed: int, skull: SkullChoice) -> Scanner:
    rng = np.random.default_rng([seed, index, 0x5CA])
    order = rng.permutation(3) if index else range(3)
    x, y, z = (VOXEL_SCALES[place] if index else 1.0 for place in order)
    return Scanner(
        site=f"site-{chr(ord('a') + index)}",
        orientation=ORIENTATIONS[index % len(ORIENTATIONS)],
        voxel_scale=(x, y, z),
        gain=round(float(rng.uniform(300, 1500)), 1),
        gamma=round(float(rng.uniform(0.85, 1.2)), 3),
        bias_amplitude=round(float(rng.uniform(0.03, 0.12)), 3),
        point_spread=round(float(rng.uniform(0.6, 1.1)), 3),
        noise=round(float(rng.uniform(0.01, 0.035)), 4),
        skull=index % 2 == 0 if skull == "mixed" else skull == "on",
        coil_seed=int(rng.integers(2**31)),
    )


def diffusion_scanner(scanner: Scanner) -> Scanner:
    """Return the habits of a site's scanner in a map of ADC in 1e-3 mm2/s.

    The map is quantitative: gain, contrast and shading, which divide out but for imperfect gradients, vary little. It
    is noisier than a structural image.
    """
    return replace(
        scanner,
        gain=round((scanner.gain / 900) ** 0.05, 4),
        gamma=round(1 + 0.25 * (scanner.gamma - 1), 4),
        bias_amplitude=round(0.25 * scanner.bias_amplitude, 4),
        noise=round(2.5 * scanner.noise, 4),
    )


def acquire(signal: Field, spacing: Triple, scanner: Scanner, rng: np.random.Generator) -> Field:
    """Turn a true signal into what a scanner records, still in right-anterior-superior order.

    Args:
        signal: True signal (D, H, W), white matter near 1, air 0.
        spacing: Voxel size in mm.
        scanner: The site's habits.
        rng: The scan's own stream: the part of the shading that varies between scans, and the noise.

    Returns:
        Recorded magnitude (D, H, W), in the scanner's units.
    """
    blurred = ndimage.gaussian_filter(signal, scanner.point_spread / _FWHM, mode="nearest")
    np.clip(blurred, 0, None, out=blurred)
    coil = np.random.default_rng(scanner.coil_seed).standard_normal((4, 4, 4))
    shading = smooth_field(0.8 * coil + 0.6 * rng.standard_normal((4, 4, 4)), signal.shape, spacing)
    recorded = np.power(blurred, np.float32(scanner.gamma)) * np.exp(np.float32(scanner.bias_amplitude) * shading)
    real, imaginary = rng.standard_normal((2, *signal.shape), dtype=np.float32) * np.float32(scanner.noise)
    magnitude: Field = np.hypot(recorded + real, imaginary) * np.float32(scanner.gain)
    return magnitude


def store(
    recorded: Field,
    spacing: Triple,
    orientation: str,
    keep: NDArray[np.bool_] | None = None,
    slope: float | None = None,
) -> nib.Nifti1Image:
    """Put a recorded volume into a site's orientation, as int16.

    Args:
        recorded: Values (D, H, W) in right-anterior-superior order; the middle of the grid is at 0 mm.
        spacing: Voxel size in mm of that order.
        orientation: Axis code to store in.
        keep: Voxels outside it become 0 (skull stripping); None keeps all.
        slope: What a step of the integers means; the header says so, and whoever opens the file reads the value again.
            None stores whole numbers.
    """
    limits = np.iinfo(np.int16)
    steps = recorded if slope is None else recorded / np.float32(slope)
    values = np.rint(np.clip(steps, limits.min, limits.max)).astype(np.int16)
    if keep is not None:
        values *= keep
    codes = nib.orientations.axcodes2ornt(tuple("RAS")), nib.orientations.axcodes2ornt(tuple(orientation))
    change = nib.orientations.ornt_transform(*codes)
    affine = centred_affine(values.shape, spacing) @ nib.orientations.inv_ornt_aff(change, values.shape)
    image = nib.Nifti1Image(np.ascontiguousarray(nib.orientations.apply_orientation(values, change)), affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    if slope is not None:
        image.header.set_slope_inter(slope, 0)
    return image
