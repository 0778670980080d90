"""MetaImage, NRRD, PNG and DICOM: read by SimpleITK, with the checks that it leaves out."""

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - the library's own idiom

from datamodules.inspection import inspect_image
from datamodules.voxels import Limits

VOXELS = np.random.default_rng(0).integers(0, 900, (9, 8, 7)).astype(np.int16)  # z, y, x


def image(voxels=VOXELS):
    result = sitk.GetImageFromArray(voxels)
    result.SetSpacing((2.0, 3.0, 1.5))
    result.SetOrigin((10.0, -20.0, 30.0))
    return result


def inspect(path):
    return inspect_image(path, path.parent, Limits())


def codes(path):
    return [finding.code for finding in inspect(path).findings]


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd"])
@pytest.mark.parametrize("compressed", [False, True])
def test_facts_and_affine(tmp_path, name, compressed):
    sitk.WriteImage(image(), tmp_path / name, compressed)
    sitk.WriteImage(image(), tmp_path / "same.nii.gz")
    result, same = inspect(tmp_path / name), inspect(tmp_path / "same.nii.gz")
    assert not result.findings
    assert (result.facts.shape, result.facts.spacing, result.facts.orientation) == ((7, 8, 9), (2.0, 3.0, 1.5), "LPS")
    np.testing.assert_allclose(result.affine, same.affine, atol=1e-5)
    assert result.facts.voxel_sha256 == same.facts.voxel_sha256


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd"])
def test_no_flipped_byte_of_compressed_data_passes(tmp_path, name):
    path = tmp_path / name
    sitk.WriteImage(image(), path, True)
    raw, voxels = path.read_bytes(), inspect(path).facts.voxel_sha256
    for place in range(0, len(raw), 7):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 4]) + raw[place + 1 :])
        result = inspect(path)
        assert result.findings or result.facts.voxel_sha256 == voxels


@pytest.mark.parametrize("name", ["a.mha", "ac.mha", "a.nrrd", "ac.nrrd", "a.png", "a.dcm"])
def test_what_is_cut_short_or_no_image_is_refused(tmp_path, name):
    path = tmp_path / name
    flat = image()[:, :, 4] if name == "a.png" else image()[:, :, 4:5] if name == "a.dcm" else image()
    sitk.WriteImage(sitk.Cast(flat, sitk.sitkUInt16), path, useCompression="c" in path.stem)
    raw = path.read_bytes()
    for content in (raw[:-40], raw[:100], b"garbage" * 99):
        path.write_bytes(content)
        assert set(codes(path)) <= {"corrupt_gzip", "unreadable", "bad_header"}
        assert len(codes(path)) == 1


def test_a_header_that_names_another_file_is_refused(tmp_path):
    sitk.WriteImage(image(), tmp_path / "a.mha")
    sitk.WriteImage(image(), tmp_path / "a.nrrd")
    for name, old, new in [
        ("a.mha", b"ElementDataFile = LOCAL", b"ElementDataFile = ../secret.raw"),
        ("a.nrrd", b"encoding: raw", b"encoding: raw\ndata file: ../secret.raw"),
    ]:
        path = tmp_path / name
        path.write_bytes(path.read_bytes().replace(old, new))
        assert codes(path) == ["path_escape"]


def test_sizes_colours_and_axes(tmp_path):
    path = tmp_path / "a.mha"
    sitk.WriteImage(image(), path)
    path.write_bytes(path.read_bytes().replace(b"DimSize = 7 8 9", b"DimSize = 9999 9999 9999"))
    assert codes(path) == ["too_large"]
    sitk.WriteImage(sitk.Compose([image(), image()]), path)
    assert codes(path) == ["bad_header"]
    sitk.WriteImage(sitk.JoinSeries([image(), image()]), path)
    assert codes(path) == ["not_3d"]
    floats = VOXELS.astype(np.float32)
    floats[1, 2, 3] = np.nan
    sitk.WriteImage(image(floats), path)
    assert codes(path) == ["non_finite"]


def test_a_png_has_two_axes(tmp_path):
    sitk.WriteImage(sitk.Cast(image()[:, :, 4], sitk.sitkUInt16), tmp_path / "a.png")
    result = inspect(tmp_path / "a.png")
    assert not result.findings
    assert (result.facts.shape, result.facts.dtype) == ((7, 8), "uint16")


@pytest.fixture
def series(tmp_path):
    def write(name, uid="1.2.826.1", skip=()):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        for index in sorted(set(range(len(VOXELS))) - set(skip)):
            part = image(VOXELS[index : index + 1])
            part.SetSpacing((2.0, 3.0, 1.5))
            tags = {"0008|0060": "MR", "0020|000d": "1.2.3", "0020|000e": uid, "0008|0018": f"{uid}.{index}"}
            tags |= {"0020|0032": f"10\\-20\\{30 + 1.5 * index}", "0020|0037": "1\\0\\0\\0\\1\\0", "0018|0050": "1.5"}
            for tag, value in tags.items():
                part.SetMetaData(tag, value)
            writer.SetFileName(str(folder / f"{name}{index}"))
            writer.SetImageIO("GDCMImageIO")
            writer.Execute(part)
        return folder

    return write


def test_a_dicom_series_is_one_volume(series, tmp_path):
    sitk.WriteImage(image(), tmp_path / "same.nii.gz")
    result, same = inspect(series("a")), inspect(tmp_path / "same.nii.gz")
    assert not result.findings
    assert result.facts.voxel_sha256 == same.facts.voxel_sha256
    np.testing.assert_allclose(result.affine, same.affine, atol=1e-4)
    for file in list((tmp_path / "a").iterdir()):
        file.rename(file.with_name(f"{file.name[::-1]}.dcm"))
    assert inspect(tmp_path / "a").facts.sha256 == result.facts.sha256
    assert inspect(tmp_path / "a" / "3a.dcm").facts.shape == (7, 8, 1)


def test_a_series_with_a_gap_a_stranger_or_a_link_is_refused(series, tmp_path):
    assert codes(series("gap", skip=[4])) == ["bad_affine"]
    series("two", uid="1.2.826.1")
    assert codes(series("two", uid="1.2.826.2").rename(tmp_path / "one")) == []
    for file in series("other", uid="1.2.826.3").iterdir():
        file.rename(tmp_path / "one" / file.name)
    assert codes(tmp_path / "one") == ["unreadable"]
    folder = series("link")
    (folder / "passwd").symlink_to("/etc/passwd")
    assert codes(folder) == ["path_escape"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no DICOM here")
    assert codes(tmp_path / "empty") == ["unreadable"]
