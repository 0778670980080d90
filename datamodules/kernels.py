"""Compiled loops of `datamodules.fused`; numba infers their types.

A loop becomes a loop over vectors where its numbers are of one type, and its arrays known not to overlap: therefore the
many short loops, and an allocation of its own for every array.
"""

import functools
import math
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import llvmlite.binding
import numba
import numpy as np
import numpy.typing as npt
from filelock import FileLock

from tracking.files import json_hash

Single = npt.NDArray[np.float32]

ZERO, HALF, ONE = np.float32(0), np.float32(0.5), np.float32(1)
# log2((1 + t) / (1 - t)) = t * (LOG_0 + LOG_1 * t**2 + ...) and 2**t = 1 + EXP_1 * t + ..., within 3e-7 where used.
LOG_0, LOG_1, LOG_2, LOG_3 = (np.float32(2 / math.log(2) / power) for power in (1, 3, 5, 7))
EXP_1, EXP_2, EXP_3, EXP_4, EXP_5, EXP_6 = (
    np.float32(math.log(2) ** power / math.factorial(power)) for power in range(1, 7)
)
MANTISSA_BITS, EXPONENT_BIAS, SQRT_HALF_BITS = np.int32(23), np.int32(127), np.int32(0x3F3504F3)  # of a float32
# cos(2 * pi * t) and sin(2 * pi * t) / t in t**2, within 1e-6 for t from -0.5 to 0.5.
NODES = np.cos(np.pi * (np.arange(99) + 0.5) / 99) / 2
COS, SIN = (
    tuple(np.polynomial.Polynomial.fit(NODES**2, values, 5).convert().coef.astype(np.float32))
    for values in (np.cos(2 * np.pi * NODES), np.sin(2 * np.pi * NODES) / NODES)
)
SMALLEST = np.float32(-126)  # exponent of a number that is not denormal
MINUS_2_LN_2, STEP = np.float32(-2 * math.log(2)), np.float32(2.0**-24)
HASH_1, HASH_2 = np.uint32(0x7FEB352D), np.uint32(0x846CA68B)

BLOCK = 4096  # voxels of several lines that are worked on at once: what belongs to them fits the nearest caches

compiled = functools.partial(numba.njit, cache=True, nogil=True, fastmath=True, error_model="numpy")


class Lattice(NamedTuple):
    """Control values of a spline and the weights that expand them; without points it is left out.

    Args:
        control: (K, points, points, points).
        x: Weight of each point at each plane, (D, points).
        y: The same at each line of a plane, (H, points).
        z: The same at each voxel of a line, (points, W).
    """

    control: Single
    x: Single
    y: Single
    z: Single


class Sampling(NamedTuple):
    """Where voxels come from: padded index = linear @ output index + start + displacement.

    Args:
        padded: The volume with a border of one voxel; without voxels nothing is sampled.
        linear: (3, 3).
        start: (3,).
        displacement: Three fields.
    """

    padded: Single
    linear: Single
    start: Single
    displacement: Lattice


class Change(NamedTuple):
    """What happens to a voxel: low + span * ((voxel - below) * field / span) ** gamma + noise_sd * noise.

    Args:
        below: What the channel's minimum has become by now.
        low: The channel's minimum.
        field: One field.
        gamma: Exponent; 1 leaves out span and faint.
        log_scale: (1 - gamma) * log2(span).
        faint: What the exponent meets at least.
        noise_sd: Standard deviation of the noise; 0 leaves it out.
        noise_seed: Two seeds.
    """

    below: np.float32
    low: np.float32
    field: Lattice
    gamma: np.float32
    log_scale: np.float32
    faint: np.float32
    noise_sd: np.float32
    noise_seed: tuple[np.uint32, np.uint32]


NOTHING = np.zeros((0, 0, 0), np.float32)
NO_POINTS = np.zeros((0, 0), np.float32)
NO_LATTICE = Lattice(np.zeros((0, 0, 0, 0), np.float32), NO_POINTS, NO_POINTS, NO_POINTS)
NO_SAMPLING = Sampling(NOTHING, np.zeros((3, 3), np.float32), np.zeros(3, np.float32), NO_LATTICE)
NO_CHANGE = Change(ZERO, ZERO, NO_LATTICE, ONE, ZERO, ZERO, ZERO, (np.uint32(0), np.uint32(0)))


@functools.cache
def load_kernels() -> None:
    """Let a process of its own compile what is not compiled yet, so that every process loads the same machine code.

    The process that compiles links its functions otherwise than one that loads them, and rounds otherwise: without
    this, a training that was the first on a machine could not be resumed to the same bits.
    """
    folder = Path(render.stats.cache_path)
    done = folder / f"compiled-{_state_of_compilation()}"
    if done.is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "compile.lock"):
        if not done.is_file():
            program = (
                f"import sys; sys.path[:] = {sys.path!r}; from datamodules import kernels; kernels.compile_kernels()"
            )
            subprocess.run([sys.executable, "-c", program], check=True)
            done.touch()


def compile_kernels() -> None:
    """Compile everything that is called from outside, and keep it on the disk; of no plane, which takes no time."""
    weights = np.ones(1, np.float32)
    render(NO_SAMPLING, NO_CHANGE, NOTHING, 0, 0)
    for blur in (blur_between_planes, blur_planes):
        blur(NOTHING, weights, NOTHING.copy(), 0, 0)


def _state_of_compilation() -> str:
    """Return a hash of all that makes numba compile anew."""
    file, host = Path(__file__).stat(), llvmlite.binding.get_host_cpu_features().flatten()
    about = (file.st_mtime_ns, file.st_size, numba.__version__, sys.version, llvmlite.binding.get_host_cpu_name(), host)
    return json_hash(about)[:16]


@compiled
def render(sampling, change, out, first, last):
    """Write planes of the output."""
    recoloured = change.field.control.size > 0 or change.gamma != ONE or change.noise_sd > ZERO
    for i in range(first, last):
        if sampling.padded.size > 0:
            _sample_plane(sampling, i, out[i])
        if recoloured or change.below != change.low:
            _change_plane(change, i, out[i])


@compiled
def _sample_plane(sampling, i, out):
    num_lines, length = out.shape
    block = max(1, BLOCK // length)
    size = block * length
    x, y, z = np.empty(size, np.float32), np.empty(size, np.float32), np.empty(size, np.float32)
    index = np.empty(size, np.int32)
    flat = out.ravel()
    displacement, linear, start = sampling.displacement, sampling.linear, sampling.start
    plane = _expand_plane(displacement, i)
    line = np.empty((3, plane.shape[2]), np.float32)
    x_step, y_step, z_step = linear[0, 2], linear[1, 2], linear[2, 2]
    for first in range(0, num_lines, block):
        last = min(first + block, num_lines)
        for j in range(first, last):
            x_0 = start[0] + linear[0, 0] * np.float32(i) + linear[0, 1] * np.float32(j)
            y_0 = start[1] + linear[1, 0] * np.float32(i) + linear[1, 1] * np.float32(j)
            z_0 = start[2] + linear[2, 0] * np.float32(i) + linear[2, 1] * np.float32(j)
            begin, end = (j - first) * length, (j - first + 1) * length
            x_line, y_line, z_line = x[begin:end], y[begin:end], z[begin:end]
            for k in range(length):
                x_line[k] = x_0 + x_step * np.float32(k)
                y_line[k] = y_0 + y_step * np.float32(k)
                z_line[k] = z_0 + z_step * np.float32(k)
            if displacement.control.size > 0:
                _expand_line(displacement, plane, j, line)
                _add_line(displacement, line[0], x_line)
                _add_line(displacement, line[1], y_line)
                _add_line(displacement, line[2], z_line)
        _sample(sampling.padded, x, y, z, index, flat[first * length : last * length])


@compiled
def _sample(padded, x, y, z, index, out):
    """Interpolate between the eight voxels around each point; outside lies what the border holds."""
    x_last, y_last, z_last = (
        np.float32(padded.shape[0] - 1),
        np.float32(padded.shape[1] - 1),
        np.float32(padded.shape[2] - 1),
    )
    y_stride, z_stride = np.int32(padded.shape[1] * padded.shape[2]), np.int32(padded.shape[2])
    for k in range(len(out)):
        at_x, at_y, at_z = min(max(x[k], ZERO), x_last), min(max(y[k], ZERO), y_last), min(max(z[k], ZERO), z_last)
        i, j, h = (
            min(np.floor(at_x), x_last - ONE),
            min(np.floor(at_y), y_last - ONE),
            min(np.floor(at_z), z_last - ONE),
        )
        x[k], y[k], z[k] = at_x - i, at_y - j, at_z - h
        index[k] = np.int32(np.int32(i) * y_stride + np.int32(j) * z_stride + np.int32(h))
    flat = padded.ravel()
    next_x, next_y, next_z = np.uint64(y_stride), np.uint64(z_stride), np.uint64(1)
    for k in range(len(out)):
        at = np.uint64(index[k])  # an unsigned index is not checked for being negative
        share = z[k]
        near_near = flat[at] + share * (flat[at + next_z] - flat[at])
        near_far = flat[at + next_y] + share * (flat[at + next_y + next_z] - flat[at + next_y])
        at += next_x
        far_near = flat[at] + share * (flat[at + next_z] - flat[at])
        far_far = flat[at + next_y] + share * (flat[at + next_y + next_z] - flat[at + next_y])
        near = near_near + y[k] * (near_far - near_near)
        far = far_near + y[k] * (far_far - far_near)
        out[k] = near + x[k] * (far - near)


@compiled
def _change_plane(change, i, out):
    num_lines, length = out.shape
    block = max(1, BLOCK // length)
    size = block * length
    above, field, scratch = np.empty(size, np.float32), np.empty(size, np.float32), np.empty(size, np.float32)
    bits = np.empty(size, np.int32)
    flat = out.ravel()
    plane = _expand_plane(change.field, i)
    line = np.empty((1, plane.shape[2]), np.float32)
    for first in range(0, num_lines, block):
        last = min(first + block, num_lines)
        voxels = flat[first * length : last * length]
        number = len(voxels)
        for k in range(number):
            above[k] = voxels[k] - change.below
        if change.field.control.size > 0:
            field[:] = ZERO
            for j in range(first, last):
                _expand_line(change.field, plane, j, line)
                _add_line(change.field, line[0], field[(j - first) * length : (j - first + 1) * length])
            for k in range(number):
                above[k] *= field[k]
        if change.gamma != ONE:
            _bend(change, above[:number], field, scratch, bits)
        for k in range(number):
            voxels[k] = above[k] + change.low
        if change.noise_sd > ZERO:
            _draw_noise(change.noise_seed, (i * num_lines + first) * length, field[:number], scratch, above, bits)
            for k in range(number):
                voxels[k] += change.noise_sd * field[k]


@compiled
def _bend(change, above, log, fraction, bits):
    """Replace v by 2 ** (gamma * log2(v) + log_scale)."""
    for k in range(len(above)):
        above[k] = max(above[k], change.faint)
    _log2(above, log, bits)
    power = bits.view(np.float32)
    for k in range(len(above)):
        value = max(change.gamma * log[k] + change.log_scale, SMALLEST)
        log[k] = np.floor(value + HALF)
        fraction[k] = value - log[k]
    for k in range(len(above)):
        bits[k] = (np.int32(log[k]) + EXPONENT_BIAS) << MANTISSA_BITS
    for k in range(len(above)):
        t = fraction[k]
        above[k] = ONE + t * (EXP_1 + t * (EXP_2 + t * (EXP_3 + t * (EXP_4 + t * (EXP_5 + t * EXP_6)))))
        above[k] *= power[k]


@compiled
def _log2(values, log, bits):
    """Take logarithms to the base 2."""
    value_bits, mantissa = values.view(np.int32), bits.view(np.float32)
    for k in range(len(values)):
        exponent = (value_bits[k] - SQRT_HALF_BITS) >> MANTISSA_BITS
        log[k] = np.float32(exponent)
        bits[k] = value_bits[k] - (exponent << MANTISSA_BITS)
    for k in range(len(values)):
        t = (mantissa[k] - ONE) / (mantissa[k] + ONE)
        square = t * t
        log[k] += t * (LOG_0 + square * (LOG_1 + square * (LOG_2 + square * LOG_3)))


@compiled
def _draw_noise(seed, first, noise, log, turn, bits):
    """Draw standard normal numbers from the seed and the voxel; two uniform ones give one in each half.

    Box & Muller. A note on the generation of random normal deviates. 1958. doi:10.1214/aoms/1177706645
    """
    half = (len(noise) + 1) // 2
    uniform = noise[:half]
    for k in range(half):
        drawn = _hash(np.uint32(_hash(np.uint32(first + k)) + seed[0]))
        uniform[k] = (np.float32(np.int32(drawn >> np.uint32(8))) + HALF) * STEP
        turn[k] = np.float32(np.int32(_hash(np.uint32(drawn + seed[1])) >> np.uint32(8))) * STEP - HALF
    _log2(uniform, log, bits)
    for k in range(half):
        log[k] = np.sqrt(MINUS_2_LN_2 * log[k])
    for k in range(half):
        square = turn[k] * turn[k]
        cos = COS[0] + square * (COS[1] + square * (COS[2] + square * (COS[3] + square * (COS[4] + square * COS[5]))))
        noise[k] = log[k] * cos
    for k in range(len(noise) - half):
        square = turn[k] * turn[k]
        sin = SIN[0] + square * (SIN[1] + square * (SIN[2] + square * (SIN[3] + square * (SIN[4] + square * SIN[5]))))
        noise[half + k] = log[k] * turn[k] * sin


@compiled
def _hash(number):
    """Mix 32 bits (Wellons 2018, github.com/skeeto/hash-prospector)."""
    number = np.uint32((number ^ (number >> np.uint32(16))) * HASH_1)
    number = np.uint32((number ^ (number >> np.uint32(15))) * HASH_2)
    return np.uint32(number ^ (number >> np.uint32(16)))


@compiled
def _expand_plane(lattice, i):
    """Return the control values that hold in a plane, (K, points, points)."""
    control = lattice.control
    plane = np.zeros(control.shape[:1] + control.shape[2:], np.float32)
    for field in range(control.shape[0]):
        for a in range(control.shape[1]):
            for b in range(control.shape[2]):
                for c in range(control.shape[3]):
                    plane[field, b, c] += lattice.x[i, a] * control[field, a, b, c]
    return plane


@compiled
def _expand_line(lattice, plane, j, line):
    """Write the control values that hold on a line, (K, points)."""
    line[:] = ZERO
    for field in range(plane.shape[0]):
        for b in range(plane.shape[1]):
            for c in range(plane.shape[2]):
                line[field, c] += lattice.y[j, b] * plane[field, b, c]


@compiled
def _add_line(lattice, line, out):
    for c in range(len(line)):
        for k in range(len(out)):
            out[k] += line[c] * lattice.z[c, k]


@compiled
def blur_between_planes(source, weights, out, first, last):
    """Blur along the first axis; the outermost planes repeat."""
    num_planes, num_lines, length = source.shape
    for i in range(first, last):
        for j in range(num_lines):
            for k in range(length):
                out[i, j, k] = weights[0] * source[i, j, k]
            for distance in range(1, len(weights)):
                before, after = max(i - distance, 0), min(i + distance, num_planes - 1)
                for k in range(length):
                    out[i, j, k] += weights[distance] * (source[before, j, k] + source[after, j, k])


@compiled
def blur_planes(source, weights, out, first, last):
    """Blur along the second and the third axis; the outermost voxels repeat."""
    _, num_lines, length = source.shape
    radius = len(weights) - 1
    line = np.empty(length + 2 * radius, np.float32)
    inner = line[radius : radius + length]
    for i in range(first, last):
        for j in range(num_lines):
            for k in range(length):
                inner[k] = weights[0] * source[i, j, k]
            for distance in range(1, len(weights)):
                before, after = max(j - distance, 0), min(j + distance, num_lines - 1)
                for k in range(length):
                    inner[k] += weights[distance] * (source[i, before, k] + source[i, after, k])
            line[:radius] = inner[0]
            line[radius + length :] = inner[length - 1]
            for k in range(length):
                out[i, j, k] = weights[0] * inner[k]
            for distance in range(1, len(weights)):
                for k in range(length):
                    out[i, j, k] += weights[distance] * (line[radius - distance + k] + line[radius + distance + k])
