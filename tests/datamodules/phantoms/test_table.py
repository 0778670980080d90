import gzip
import hashlib
import json
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import pytest

from datamodules.cohort import read_cohort
from datamodules.phantoms import PHANTOMS, PhantomError
from datamodules.phantoms.brain_age import BrainAgePhantom
from datamodules.phantoms.hie_outcome import HIEOutcomePhantom
from datamodules.phantoms.table import save_image, write_cohort
from datamodules.schema import Column
from datamodules.verify import check_manifest


@dataclass(frozen=True)
class NoisePhantom:
    """Images of noise, made from the last participant to the first."""

    num_participants: int = 3
    scale: float = 1000.0

    def columns(self):
        return Column("participant_id", "id", "text"), Column("t1w", "image", "path"), Column("age", "target", "number")

    def order(self):
        return list(reversed(range(self.num_participants)))

    def make(self, index, folder):
        values = self.scale * np.random.default_rng(index).uniform(size=(7, 8, 9))
        image = nib.Nifti1Image(values.astype(np.int16), np.diag([3.0, 2.0, 4.0, 1.0]))
        save_image(image, folder / f"images/p{index}.nii.gz")
        return {"participant_id": f"p{index}", "t1w": f"images/p{index}.nii.gz", "age": 20.5 + index}


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file() and "manifest" not in path.name)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_table_is_verified_and_in_order(tmp_path):
    calls = []
    table = write_cohort(NoisePhantom(), tmp_path / "new" / "cohort", on_image=lambda *call: calls.append(call))
    cohort = read_cohort(table)
    assert list(cohort.frame["participant_id"]) == ["p0", "p1", "p2"]
    assert list(cohort.frame["age"]) == [20.5, 21.5, 22.5]
    assert set(check_manifest(cohort).files) == {f"images/p{index}.nii.gz" for index in range(3)}
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_a_cohort_is_not_replaced_unasked(tmp_path):
    table = write_cohort(NoisePhantom(), tmp_path)
    before = digests(tmp_path)
    with pytest.raises(PhantomError, match="--overwrite"):
        write_cohort(NoisePhantom(2), tmp_path)
    assert digests(tmp_path) == before
    write_cohort(NoisePhantom(2), tmp_path, overwrite=True)
    assert len(read_cohort(table).frame) == 2


def test_what_does_not_verify_is_said(tmp_path):
    with pytest.raises(PhantomError, match="constant_image"):
        write_cohort(NoisePhantom(scale=0.0), tmp_path)
    problems = json.loads((tmp_path / "cohort.tsv.manifest.json").read_text())["problems"]
    assert {problem["code"] for problem in problems} >= {"constant_image"}


def test_an_interrupted_cohort_has_no_table(tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_cohort(NoisePhantom(), tmp_path, on_image=stop)
    assert not (tmp_path / "cohort.tsv").exists()
    write_cohort(NoisePhantom(), tmp_path)


def test_gzip_header_has_no_name_and_no_time(tmp_path):
    image = nib.Nifti1Image(np.arange(504, dtype=np.int16).reshape(7, 8, 9), np.diag([3.0, 2.0, 4.0, 1.0]))
    save_image(image, tmp_path / "a" / "one.nii.gz")
    save_image(image, tmp_path / "two.nii.gz")
    content = (tmp_path / "two.nii.gz").read_bytes()
    assert (tmp_path / "a" / "one.nii.gz").read_bytes() == content
    assert content[3] == 0  # no file name
    assert content[4:8] == bytes(4)  # no time
    assert gzip.decompress(content) == image.to_bytes()


def test_bytes_do_not_depend_on_the_number_of_workers(tmp_path, label_folder):
    phantom = BrainAgePhantom(34, 2, shape=(16, 18, 16), labels=label_folder)
    phantom.write(tmp_path / "alone")
    phantom.write(tmp_path / "together", num_workers=2)
    assert len(digests(tmp_path / "alone")) == 34 + 2
    assert digests(tmp_path / "alone") == digests(tmp_path / "together")


def test_every_listed_phantom_can_be_loaded():
    assert PHANTOMS["brain-age"].load() is BrainAgePhantom
    assert PHANTOMS["hie-outcome"].load() is HIEOutcomePhantom
    for name, phantom in PHANTOMS.items():
        assert phantom.name == name
        assert callable(phantom.load().write)
