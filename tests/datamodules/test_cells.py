"""Cells that name files: none may lead out of the cohort's folder, and none is opened to find out."""

import pytest

from datamodules.cohort import CohortError, check_table, read_cohort


@pytest.fixture
def write(tmp_path):
    def write(*paths):
        table = tmp_path / "cohort.tsv"
        rows = [f"p{number}\t{path}" for number, path in enumerate(paths, start=1)]
        table.write_text("\n".join(["participant_id\tt1w", *rows]) + "\n")
        return table

    return write


@pytest.mark.parametrize(
    "path",
    [
        "../x.nii.gz",
        "/etc/x.nii.gz",
        "a/../../x.nii.gz",
        "out/x.nii.gz",
        "file.nii.gz",
        "..\\x.nii.gz",
        "C:\\x.nii.gz",
        "\\\\server\\x.nii.gz",
        "loop/x.nii.gz",
        "a\0b.nii.gz",
    ],
)
def test_a_path_out_of_the_root_is_refused(write, tmp_path, path):
    table = write(path, "a/../in.nii.gz", "inner.nii.gz")
    (tmp_path / "out").symlink_to(tmp_path.parent)
    (tmp_path / "file.nii.gz").symlink_to("/etc/passwd")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "inner.nii.gz").symlink_to("in.nii.gz")
    problems = check_table(table)[1]
    assert [(p.row, p.participant_id, p.column, p.code) for p in problems] == [(1, "p1", "t1w", "path_escape")]
    with pytest.raises(CohortError, match="path_escape"):
        read_cohort(table)


def test_an_absolute_path_is_refused_even_inside_the_root(write, tmp_path):
    problems = check_table(write(f"{tmp_path}/1.nii.gz", "2.nii.gz"))[1]
    assert [(problem.row, problem.code) for problem in problems] == [(1, "path_escape")]
    assert "absolute" in problems[0].message


def test_a_link_at_the_root_itself_is_fine(write, tmp_path):
    write("1.nii.gz")
    (tmp_path.parent / f"{tmp_path.name}-link").symlink_to(tmp_path)
    assert not check_table(tmp_path.parent / f"{tmp_path.name}-link" / "cohort.tsv")[1]


def test_resolve_stays_under_the_root(write, tmp_path):
    (tmp_path / "images").mkdir()
    cohort = read_cohort(write("a/1.nii.gz"), root=tmp_path / "images")
    assert cohort.resolve("a/1.nii.gz") == tmp_path / "images/a/1.nii.gz"
    for path in ("../cohort.tsv", "/etc/passwd", ""):
        with pytest.raises(CohortError):
            cohort.resolve(path)
