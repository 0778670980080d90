import pytest
import torch
from torch.nn import functional

from lightning_modules import numerics
from lightning_modules.numerics import SHAPES, TOLERANCE, ConvShape, conv3d_errors

CPU = torch.device("cpu")
HEALTHY = [ConvShape((4, 4, 4)), ConvShape((3, 4, 5)), ConvShape((4, 4, 4), 2)]
convolve = functional.conv3d


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(numerics, "CHANNELS", (8, 16))


def test_rounding_is_seen_and_tolerated():
    errors = conv3d_errors(CPU, torch.bfloat16, HEALTHY)
    assert list(errors) == HEALTHY
    assert all(0.001 < error < TOLERANCE / 4 for error in errors.values())


def corrupted(spoil):
    """Stand in for a kernel that is wrong for one shape in reduced precision."""

    def conv3d(image, weight, **options):
        if torch.is_autocast_enabled("cpu") and image.shape[2] == 3:
            return spoil(image, weight, options)
        return convolve(image, weight, **options)

    return conv3d


SPOILERS = {
    "output": lambda image, weight, options: convolve(image, weight, **options) * 1.05,
    "weight gradient": lambda image, weight, options: convolve(image, 1.1 * weight - 0.1 * weight.detach(), **options),
    "image gradient": lambda image, weight, options: convolve(1.1 * image - 0.1 * image.detach(), weight, **options),
    "not a number": lambda image, weight, options: convolve(image, weight, **options) * torch.nan,
}


@pytest.mark.parametrize("what", SPOILERS)
def test_a_corrupted_convolution_is_found(what, monkeypatch):
    monkeypatch.setattr(functional, "conv3d", corrupted(SPOILERS[what]))
    errors = conv3d_errors(CPU, torch.bfloat16, HEALTHY)
    assert [shape for shape, error in errors.items() if not error < TOLERANCE] == [ConvShape((3, 4, 5))]
    if what == "not a number":
        assert errors[ConvShape((3, 4, 5))] == torch.inf


def test_one_bad_repeat_of_several_is_enough(monkeypatch):
    calls = []

    def now_and_then(image, weight, options):
        calls.append(1)
        return convolve(image, weight, **options) * (2.0 if len(calls) == 2 else 1.0)

    monkeypatch.setattr(functional, "conv3d", corrupted(now_and_then))
    shape = ConvShape((3, 4, 5))
    assert conv3d_errors(CPU, torch.bfloat16, [shape], repeats=3)[shape] > TOLERANCE
    assert len(calls) == 3


def test_memory_that_nobody_wrote_is_read(monkeypatch):
    """A kernel that adds a scratch buffer it never cleared: right on fresh memory, wrong in a training."""

    def careless(image, weight, options):
        right = convolve(image, weight, **options)
        return right + torch.empty(right.shape)

    monkeypatch.setattr(functional, "conv3d", corrupted(careless))
    shape = ConvShape((3, 4, 5))
    assert conv3d_errors(CPU, torch.bfloat16, [shape], repeats=1)[shape] > TOLERANCE


def test_the_random_state_stays_and_gradients_need_not_be_on():
    torch.manual_seed(3)
    with torch.no_grad():
        conv3d_errors(CPU, torch.bfloat16, HEALTHY[:1], repeats=1)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), drawn)


def test_the_known_shapes_are_among_those_checked():
    names = {str(shape) for shape in SHAPES}
    assert {"2x2x1", "2x2x2", "4x4x4", "8x8x8", "1x1x1 with stride 2", "2x2x1 with stride 2"} <= names


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_gpu_is_right(dtype):
    assert max(conv3d_errors(torch.device("cuda"), dtype).values()) < TOLERANCE
