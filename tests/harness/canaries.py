"""The tiny cohort with a planted name wherever a file or a table can hold one."""

import nibabel as nib
import numpy as np
import pandas as pd
import SimpleITK as sitk  # noqa: N813 - the library's own idiom

SITES = {"north": "CanaryNorth", "south": "CanarySouth", "west": "CanaryWest"}


def plant(folder, make_tiny_cohort):
    """Write the tiny cohort with a canary wherever a name can be, and return its table."""
    table = make_tiny_cohort(folder)
    frame = pd.read_csv(table, sep="\t")
    for index, row in frame.iterrows():
        source, name = folder / row["t1w"], f"images/CanaryFile_{index:02d}.nii.gz"
        image = nib.load(source)
        if index == 3:
            name = write_series(folder / "images" / "CanaryDicom", image)
        else:
            for field in ("descrip", "db_name", "aux_file", "intent_name"):
                image.header[field] = f"Canary{field}"[:16].encode()
            nib.save(image, folder / name)
        source.unlink()
        frame.loc[index, "t1w"] = name
    frame["participant_id"] = [f"CanaryPerson{index:02d}" for index in range(len(frame))]
    frame["site"] = frame["site"].map(SITES)
    frame["referred_by"] = "CanaryDoctor"
    table.unlink()
    frame.to_csv(folder / "canary_table.tsv", sep="\t", index=False)
    return folder / "canary_table.tsv"


def write_series(folder, image):
    """Write a volume as a DICOM series in whose tags everybody is named."""
    folder.mkdir()
    voxels = np.asarray(image.dataobj).transpose(2, 1, 0).astype(np.int16)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for index, plane in enumerate(voxels):
        part = sitk.GetImageFromArray(plane[None])
        part.SetSpacing((4.0, 4.0, 4.0))
        tags = {"0008|0060": "MR", "0020|000d": "1.2.3", "0020|000e": "1.2.4", "0008|0018": f"1.2.4.{index}"}
        tags |= {"0020|0032": f"0\\0\\{4 * index}", "0020|0037": "1\\0\\0\\0\\1\\0", "0018|0050": "4"}
        tags |= {"0010|0010": "CanaryPatient", "0010|0020": "CanaryNumber", "0008|0080": "CanaryInstitution"}
        tags |= {"0008|0090": "CanaryPhysician", "0008|1010": "CanaryStation", "0008|103e": "CanaryDescription"}
        for tag, value in tags.items():
            part.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"CanarySlice{index:02d}.dcm"))
        writer.SetImageIO("GDCMImageIO")
        writer.Execute(part)
    return f"images/{folder.name}"
