"""No name in a header, in a file beside an image or in a folder is on the page of `fontanel preview`, or printed."""

import gzip
import json
import logging
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk  # noqa: N813 - the library's own idiom
from PIL import Image, PngImagePlugin

from experiments.cli import main

NAMES = [f"Geheim{letter}son" for letter in "ABCDEFGHIJKLMNOPQRSTUVWX"]
DICOM = {
    "0008|0060": "MR",
    "0008|0070": "Siemens",
    "0010|0010": NAMES[0],  # patient's name
    "0010|0020": NAMES[1],  # patient ID
    "0010|1001": NAMES[2],  # other names
    "0008|0090": NAMES[3],  # referring physician
    "0008|1050": NAMES[4],  # performing physician
    "0008|1070": NAMES[5],  # operators
    "0008|0080": NAMES[6],  # institution
    "0008|1030": NAMES[7],  # study description
    "0008|103e": NAMES[8],  # series description
    "0010|4000": NAMES[9],  # comments
    "0010|0030": "19010203",
}


def head():
    rng = np.random.default_rng(0)
    distance = np.linalg.norm((np.indices((18, 20, 16)).T - (9, 10, 8)) / (7, 8, 6), axis=-1).T
    return ((distance < 1) * (300 + 80 * rng.random((18, 20, 16)))).astype(np.int16)


def write_nifti(path):
    image = nib.Nifti1Image(head(), np.diag([4, 4, 4, 1]))
    image.header["descrip"], image.header["aux_file"], image.header["db_name"] = NAMES[10:13]
    image.header["intent_name"] = NAMES[13]
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", NAMES[14].encode()))
    nib.save(image, path)


def write_dicom(path, data=None, place=0):
    image = sitk.GetImageFromArray(head().T[8:9] if data is None else data)
    tags = DICOM | {"0020|0032": f"0\\0\\{place}", "0020|000e": "1.2.3", "0020|000d": "1.2", "0020|0013": str(place)}
    for tag, value in tags.items():
        image.SetMetaData(tag, value)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetFileName(str(path))
    writer.Execute(image)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """A table of images in every format, sound and broken, with a name wherever a format has room for one."""
    folder = tmp_path_factory.mktemp("lab") / NAMES[15]
    (folder / "series").mkdir(parents=True)
    (folder / "gap").mkdir()
    write_nifti(folder / "1.nii.gz")
    facts = {"PatientName": NAMES[16], "InstitutionName": NAMES[17], "Manufacturer": "Siemens", "EchoTime": 0.003}
    (folder / "1.json").write_text(json.dumps(facts), encoding="utf-8")
    write_nifti(folder / "2.nii.gz")
    (folder / "2.nii.gz").write_bytes((folder / "2.nii.gz").read_bytes()[:-600])
    write_nifti(folder / "3.nii")
    (folder / "3.nii").write_bytes((folder / "3.nii").read_bytes()[:-600])
    for name in ("4.mha", "5.nrrd"):
        image = sitk.GetImageFromArray(head().T)
        image.SetMetaData("Comment", NAMES[18])
        sitk.WriteImage(image, str(folder / name))
    torn = (folder / "5.nrrd").read_bytes()
    (folder / "6.nrrd").write_bytes(torn[: len(torn) // 2])
    nib.save(nib.MGHImage(head().astype(np.float32), np.diag([4, 4, 4, 1])), folder / "plain.mgh")
    (folder / "7.mgz").write_bytes(gzip.compress((folder / "plain.mgh").read_bytes() + NAMES[19].encode()))
    remark = PngImagePlugin.PngInfo()
    remark.add_text("Author", NAMES[20])
    Image.fromarray((head()[9] / 2).astype(np.uint8)).save(folder / "8.png", pnginfo=remark)
    write_dicom(folder / "9.dcm")
    (folder / "10.dcm").write_bytes((folder / "9.dcm").read_bytes()[:-300])
    for place in range(6):
        write_dicom(folder / "series" / f"{NAMES[21]}-{place}.dcm", head().T[place : place + 1], place)
        if place != 3:
            write_dicom(folder / "gap" / f"{NAMES[22]}-{place}.dcm", head().T[place : place + 1], place)
    for name in ("torn", "sizes", "link"):
        shutil.copytree(folder / "series", folder / name)
    torn = folder / "torn" / f"{NAMES[21]}-2.dcm"
    torn.write_bytes(torn.read_bytes()[:-300])
    write_dicom(folder / "sizes" / f"{NAMES[21]}-2.dcm", head().T[2:3, 2:, 2:], 2)
    shutil.copy(folder / "9.dcm", folder.parent / "elsewhere.dcm")
    (folder / "link" / f"{NAMES[23]}.dcm").symlink_to(folder.parent / "elsewhere.dcm")
    files = ["1.nii.gz", "2.nii.gz", "3.nii", "4.mha", "5.nrrd", "6.nrrd", "7.mgz", "8.png", "9.dcm", "10.dcm"]
    files += ["series", "gap", "torn", "sizes", "link"]
    rows = {"participant_id": [f"p{index}" for index in range(len(files))], "site": "a", "scan": files, "age": "40"}
    pd.DataFrame(rows).to_csv(folder / "cohort.tsv", sep="\t", index=False)
    return folder


def test_the_names_are_in_the_files(cohort):
    held = b"".join(path.read_bytes() for path in cohort.rglob("*") if path.is_file() and not path.is_symlink())
    held += b"".join(gzip.decompress((cohort / name).read_bytes()) for name in ("1.nii.gz", "7.mgz"))
    held += " ".join(str(path) for path in cohort.rglob("*")).encode()
    assert [name for name in NAMES if name.encode() not in held] == []


def test_no_name_leaves_the_files(cohort, tmp_path, capfd, caplog, monkeypatch):
    monkeypatch.chdir(cohort)
    with caplog.at_level(logging.DEBUG):
        assert main(["preview", "cohort.tsv", "--json", "--output", str(tmp_path / "page.html")]) == 0
    out, err = capfd.readouterr()
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<figure") >= 12, "the sound images are shown"
    assert "Siemens" in page
    for text in (page, out.replace(str(tmp_path), ""), err, caplog.text):
        assert [name for name in [*NAMES, "19010203", str(cohort)] if name.casefold() in text.casefold()] == []
