"""Only how an image was acquired is read, never of whom."""

import json

import pytest
import SimpleITK as sitk  # noqa: N813 - the library's own idiom

from datamodules.scanner import read_scanner

BIDS = {"Manufacturer": "Philips", "ManufacturersModelName": "Intera", "MagneticFieldStrength": 1.5}
TIMES = {"RepetitionTime": 2.3, "EchoTime": 0.00298, "FlipAngle": 9}


def test_bids_has_seconds_and_the_page_milliseconds(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(BIDS | TIMES | {"PatientName": "Anna", "AcquisitionTime": "10:00"}))
    assert read_scanner(tmp_path / "a.nii.gz", tmp_path) == {
        "manufacturer": "Philips",
        "model": "Intera",
        "field strength": "1.5 T",
        "TR": "2300 ms",
        "TE": "2.98 ms",
        "flip angle": "9 °",
    }


def test_dicom_has_milliseconds_already(tmp_path):
    image = sitk.Image(4, 4, 1, sitk.sitkInt16)
    for tag, value in {"0008|0060": "MR", "0018|0080": "2300", "0018|0087": "3", "0010|0010": "Anna"}.items():
        image.SetMetaData(tag, value)
    (tmp_path / "series").mkdir()
    for path in (tmp_path / "a.dcm", tmp_path / "series" / "1"):
        sitk.WriteImage(image, tmp_path / "1.dcm")
        (tmp_path / "1.dcm").rename(path)
    expected = {"modality": "MR", "field strength": "3 T", "TR": "2300 ms"}
    assert read_scanner(tmp_path / "a.dcm", tmp_path) == expected
    assert read_scanner(tmp_path / "series", tmp_path) == expected


@pytest.mark.parametrize(
    "content",
    ["", "[1]", "{", '{"EchoTime": "soon", "FlipAngle": true, "Manufacturer": 7}', '{"EchoTime": NaN}'],
)
def test_what_says_nothing_is_passed_over(content, tmp_path):
    (tmp_path / "a.json").write_text(content)
    assert read_scanner(tmp_path / "a.nii.gz", tmp_path) == {}


def test_free_text_and_other_folders_are_not_read(tmp_path):
    (tmp_path / "cohort").mkdir()
    (tmp_path / "b.json").write_text(json.dumps(BIDS))
    (tmp_path / "cohort" / "b.json").symlink_to(tmp_path / "b.json")
    (tmp_path / "cohort" / "a.json").write_text(json.dumps({"Manufacturer": "Siemens; " + "for Anna " * 6}))
    for name in ("a", "b", "absent"):
        assert read_scanner(tmp_path / "cohort" / f"{name}.nii.gz", tmp_path / "cohort") == {}
