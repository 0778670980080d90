"""Files are read by several threads with the same result, and an interruption does not wait for the rest."""

import time

import pytest

from datamodules import verify
from datamodules.verify import verify_cohort


def test_threads_change_nothing(tiny_cohort):
    alone, together = verify_cohort(tiny_cohort), verify_cohort(tiny_cohort, num_workers=3)
    assert alone.files == together.files
    assert list(alone.files) == list(together.files)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_interruption_ends_it(tiny_cohort, monkeypatch, num_workers):
    inspected = []

    def slow(path, *_):
        inspected.append(path)
        time.sleep(0.02)
        return verify.Inspection()

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(verify, "inspect_image", slow)
    with pytest.raises(KeyboardInterrupt):
        verify_cohort(tiny_cohort, num_workers=num_workers, on_file=interrupt)
    assert len(inspected) < 15  # of 30
