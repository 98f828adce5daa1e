from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from runtime import InputFileError
from tests.conftest import DATA
from train import subjects

SLICES = DATA / "t1ce-slices"


def touch(folder: Path, *paths: str) -> list[Path]:
    """Empty files: what a file holds is nobody's business here."""
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()
    return [folder / path for path in paths]


LAYOUTS = {  # path below the folder → its subject
    "BIDS, raw and derived": {
        "rawdata/sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz": "sub-01",
        "derivatives/fmriprep/sub-01/anat/sub-01_desc-preproc_T1w.nii.gz": "sub-01",
        "derivatives/other/sub-02/x.nii.gz": "sub-02",
        "group/mean_of_sub-02.nii": "sub-02",
    },
    "BIDS, flat": {"sub-03_ses-1_T1w.nii": "sub-03", "sub-03_ses-2_T1w.nii": "sub-03", "sub-4_T1w.nii": "sub-4"},
    "BIDS, loose slices": {"sub-1_slice-1.png": "sub-1", "sub-1_slice-2.png": "sub-1", "sub-2_slice-1.png": "sub-2"},
    "derivatives without BIDS": {"derivatives/a/anna/x.nii": "anna", "derivatives/b/anna/x.nii": "anna", "bert/x.nii": "bert"},
    "a folder a sequence": {
        "t1/IXI002-Guys-0828-T1.nii.gz": "IXI002-Guys-0828",
        "t2/IXI002-Guys-0828-T2.nii.gz": "IXI002-Guys-0828",
        "t2/IXI012-HH-1211-T2.nii.gz": "IXI012-HH-1211",
    },
    "a folder a sequence, above the subjects": {"T1/a/x.nii": "a", "FLAIR/a/x.nii": "a", "FLAIR/b/x.nii": "b"},
    "a folder a grade": {
        "HGG/Brats18_CBICA_AAB_1/Brats18_CBICA_AAB_1_flair.nii.gz": "Brats18_CBICA_AAB_1",
        "HGG/Brats18_CBICA_AAB_1/Brats18_CBICA_AAB_1_t1ce.nii.gz": "Brats18_CBICA_AAB_1",
        "HGG/Brats18_CBICA_AAG_1/Brats18_CBICA_AAG_1_t1ce.nii.gz": "Brats18_CBICA_AAG_1",
        "LGG/Brats18_TCIA09_177_1/Brats18_TCIA09_177_1_t1ce.nii.gz": "Brats18_TCIA09_177",
    },
    "BraTS 2023: the second number is a date": {
        "BraTS-GLI-00003-000/BraTS-GLI-00003-000-t1c.nii.gz": "BraTS-GLI-00003",
        "BraTS-GLI-00003-001/BraTS-GLI-00003-001-t1c.nii.gz": "BraTS-GLI-00003",
        "BraTS-GLI-00017-000/BraTS-GLI-00017-000-t2f.nii.gz": "BraTS-GLI-00017",
    },
    "Decathlon": {"imagesTr/BRATS_001.nii.gz": "BRATS_001", "imagesTs/BRATS_002.nii.gz": "BRATS_002"},
    "nnU-Net: the second number is a sequence": {
        "imagesTr/BRATS_001_0000.nii.gz": "BRATS_001",
        "imagesTr/BRATS_001_0001.nii.gz": "BRATS_001",
        "imagesTr/BRATS_002_0000.nii.gz": "BRATS_002",
    },
    "flat, numbers": {"000_T1_ax.nii.gz": "000", "000_T2_ax.nii.gz": "000", "001_T1_ax.nii.gz": "001"},
    "flat, a word and numbers": {
        "patient_0_T1.nii": "patient_0",
        "patient_0_T2.nii": "patient_0",
        "patient_1_T1.nii": "patient_1",
    },
    "folders, a word and numbers": {
        "HC_1/a.nii": "HC_1",
        "HC_2/a.nii": "HC_2",
        "my_pat-1/a.nii": "my_pat-1",
        "my_pat-2/a.nii": "my_pat-2",
    },
    "flat, dates": {"btp01_pre.nii": "btp01", "btp01_post.nii": "btp01", "btp02_20240131.nii": "btp02"},
    "flat, BraTS 2020": {
        "BraTS20_Training_001_t1ce.nii": "BraTS20_Training_001",
        "BraTS20_Training_001_flair.nii": "BraTS20_Training_001",
        "BraTS20_Training_002_t1ce.nii": "BraTS20_Training_002",
    },
    "flat, TCGA in capitals": {"TCGA-02-0003_T1.NII.GZ": "TCGA-02-0003", "TCGA-02-0006_T1.NII.GZ": "TCGA-02-0006"},
    "flat, the sequence first or glued on": {
        "T1_anna.nii": "anna",
        "annaT2w.nii": "anna",
        "anna.T1c+.nii": "anna",
        "PAT1.nii": "PAT1",
    },
    "flat, names": {"anna.nii": "anna", "bert.nii": "bert"},
    "a folder a subject": {"doe john/t1.nii": "doe john", "doe jane/t1.nii": "doe jane", "doe jane/a/b/1.nii": "doe jane"},
    "a folder a date": {"anna_pre/1.png": "anna", "anna_post/1.png": "anna", "bert_ses-2/1.png": "bert"},
    "two folders of many slices, named as subjects": {f"p{k % 2}/{k}.png": f"p{k % 2}" for k in range(40)},
    "five folders of many slices": {f"{'abcde'[k % 5]}/{k}.png": "abcde"[k % 5] for k in range(100)},
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_usual_layouts_name_their_subjects(tmp_path: Path, layout: dict[str, str]) -> None:
    files = touch(tmp_path, *layout)
    assert subjects.subjects(tmp_path, files) == list(layout.values())
    assert subjects.find_files(tmp_path) == sorted(files)  # none of them is taken for a segmentation


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_no_subject_is_on_both_sides(tmp_path: Path, layout: dict[str, str]) -> None:
    of = {tmp_path / path: subject for path, subject in layout.items()}
    if len(set(layout.values())) > 1:
        split = subjects.split_by_subject(tmp_path, list(of), fraction=0.5)
        assert sorted([*split.train, *split.validation]) == sorted(of)
        assert {of[f] for f in split.train}.isdisjoint(of[f] for f in split.validation)
        assert split.train
        assert split.validation


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        (["sub-1/x.nii", "template.nii"], r"sub-1/x.nii, which has a BIDS label, and template.nii, which has none"),
        (
            ["anna/t1.nii", "anna/cover.png", "bert/t1.nii"],
            "volumes such as anna/t1.nii beside pictures such as anna/cover.png",
        ),
        (["README.png", "anna/0.png", "bert/0.png"], "anna/0.png in a subject's folder and README.png in none"),
        (["anna/t1.nii", "bert.nii"], "anna/t1.nii in a subject's folder and bert.nii in none"),
        (["t1/0001.png", "t2/0001.png"], "t1/0001.png, whose path names no subject"),
        (["t1.nii", "t2.nii"], "t1.nii, whose path names no subject"),
        (["anna_1.nii", "anna_2.nii"], "anna_1 and anna_2, which may be one subject or two"),
        (["anna_1/x.nii", "anna_2/x.nii"], "anna_1 and anna_2, which may be one subject or two"),
        (["anna.nii", "anna_2.nii"], "anna and anna_2, which may be one subject or two"),
        (["7_bold/x.nii", "7_xyz/x.nii", "8_xyz/x.nii"], "7_bold and 7_xyz, which may be one subject or two"),
        (["anna_bold.nii", "anna_xyz.nii", "bert_xyz.nii"], "anna_bold and anna_xyz, which may be one subject or two"),
        (["anna_bold_9.nii", "anna_xyz_9.nii", "bert.nii"], "anna_bold_9 and anna_xyz_9, which may be one subject or two"),
        (["anna_s1.nii", "anna_s2.nii"], "anna_s1 and anna_s2, which may be one subject or two"),
        (["patient_1.nii", "patient_1_xyz.nii"], "patient_1 and patient_1_xyz, which may be one subject or two"),
        (["anna_001.nii", "anna_002.nii", "bert_001.nii"], "anna_001 and anna_002, which may be one subject or two"),
        ([f"{kind}/{k:04}.jpg" for kind in ("glioma", "none") for k in range(10)], r"may be classes.*\(glioma, none\)"),
        (["seqA/anna.nii", "seqA/bert.nii", "seqB/anna.nii", "seqB/bert.nii"], r"may be classes or sequences \(seqA, seqB\)"),
    ],
)
def test_what_may_leak_is_refused_with_the_way_out(tmp_path: Path, paths: list[str], said: str) -> None:
    with pytest.raises(InputFileError, match=rf"{said}.*subject=REGEX") as caught:
        subjects.split_by_subject(tmp_path, [tmp_path / path for path in paths])
    assert "\n" not in str(caught.value)


def test_few_folders_of_few_things_are_subjects(tmp_path: Path) -> None:
    """Up to nine slices, and a sequence by the same name in each, are what subjects have."""
    paths = [f"{name}/{k}.png" for name in ("anna", "bert") for k in range(9)]
    assert set(subjects.subjects(tmp_path, [tmp_path / p for p in paths])) == {"anna", "bert"}
    paths = [f"{name}/{kind}.nii" for name in ("anna", "bert") for kind in ("t1", "t2", "flair", "special")]
    assert set(subjects.subjects(tmp_path, [tmp_path / p for p in paths])) == {"anna", "bert"}


@pytest.mark.parametrize(
    ("subject", "expected"),
    [("[a-z]+(?=_)", ["anna", "anna", "bert"]), (r"_(\d)", ["1", "2", "1"]), ("^[^/]+", ["glioma", "glioma", "none"])],
)
def test_a_given_expression_decides_for_every_file(tmp_path: Path, subject: str, expected: list[str]) -> None:
    files = [tmp_path / path for path in ("glioma/anna_1.png", "glioma/anna_2.nii", "none/bert_1_sub-7.png")]
    assert subjects.subjects(tmp_path, files, subject) == expected


@pytest.mark.parametrize("subject", [r"p\d+", r"p\d+|other(x)?|n.*(x)", "p?", ""])
def test_an_expression_that_leaves_a_file_out_is_refused_by_name(tmp_path: Path, subject: str) -> None:
    with pytest.raises(InputFileError, match=rf"{re.escape(repr(subject))} finds none in new/x\.nii"):
        subjects.subjects(tmp_path, [tmp_path / "new" / "x.nii"], subject)


def test_an_expression_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match=r"'\(' is no regular expression"):
        subjects.subjects(tmp_path, [tmp_path / "x.nii"], "(")


def test_an_expression_splits_loose_slices_by_subject(tmp_path: Path) -> None:
    files = [tmp_path / f"{'abcd'[k % 4]}{k}.png" for k in range(20)]
    split = subjects.split_by_subject(tmp_path, files, "^[a-d]", 0.25)
    assert {f.name[0] for f in split.validation} == {"a"}  # 1 of 4 subjects
    assert len(split.validation) == 5
    assert {f.name[0] for f in split.train} == set("bcd")


@pytest.mark.parametrize(("fraction", "held"), [(0.0, 1), (0.2, 2), (1.0, 9)])
def test_both_sides_have_subjects_whatever_the_fraction(tmp_path: Path, fraction: float, held: int) -> None:
    files = [tmp_path / f"s{subject}" / "scan" / f"{k}.png" for subject in range(10) for k in range(3)]
    split = subjects.split_by_subject(tmp_path, files, fraction=fraction)
    assert len(split.validation) == 3 * held
    assert len(split.train) == 3 * (10 - held)
    assert split.how.startswith(f"{10 - held} subjects train, {held} validate: s0")


def test_one_subject_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match=r"one subject only \(anna\)"):
        subjects.split_by_subject(tmp_path, [tmp_path / "anna_pre.nii", tmp_path / "anna_post.nii"])


def test_numbered_slices_are_split_in_blocks_with_gaps(tmp_path: Path) -> None:
    files = [tmp_path / f"{n:04}_glioma.jpg" for n in range(1000)]
    split = subjects.split_by_subject(tmp_path, files)
    train, validation = ({int(f.name[:4]) for f in side} for side in (split.train, split.validation))
    assert len(validation) == 100
    assert len(train) == 1000 - 100 - 4 * 2 * subjects.GAP
    assert all(abs(t - v) > subjects.GAP for v in validation for t in train)
    assert len([v for v in validation if v + 1 not in validation]) == 4


def test_numbers_without_leading_zeros_are_counted_not_spelled(tmp_path: Path) -> None:
    split = subjects.split_by_subject(tmp_path, sorted(tmp_path / f"{n}.png" for n in range(600)))
    train, validation = ({int(f.stem) for f in side} for side in (split.train, split.validation))
    assert min(abs(t - v) for t in train for v in validation) > subjects.GAP


def test_digits_that_are_no_numbers_are_letters(tmp_path: Path) -> None:
    assert subjects.split_by_subject(tmp_path, [tmp_path / f"²{n}.png" for n in range(600)]).validation


@pytest.mark.skipif(not SLICES.is_dir(), reason=f"the training slices are not at {SLICES}")
def test_the_shipped_model_was_split_like_this() -> None:
    """3,064 slices: 4 blocks of 77 (2.5 %) validate; 8 gaps of 40 are used for nothing, 2,436 train."""
    split = subjects.split_by_subject(SLICES, subjects.find_files(SLICES))
    assert (len(split.train), len(split.validation)) == (2436, 308)
    numbers = [int(f.name[:4]) for f in split.validation]
    assert numbers[::77] == [345, 1111, 1877, 2643]  # a quarter of the slices, 766, apart
    assert numbers == [first + k for first in numbers[::77] for k in range(77)]


@pytest.mark.parametrize("count", [1, 20, 300])
def test_too_few_loose_slices_are_refused(tmp_path: Path, count: int) -> None:
    with pytest.raises(InputFileError, match="too few to tell subjects apart"):
        subjects.split_by_subject(tmp_path, [tmp_path / f"{n}.png" for n in range(count)])


def test_a_file_on_both_sides_is_refused(tmp_path: Path) -> None:
    one, two = tmp_path / "1.png", tmp_path / "2.png"
    subjects.check_apart({"the run": subjects.split_as_given([one], [two])})
    with pytest.raises(InputFileError, match=r"2\.png would train in the run and validate in the run"):
        subjects.check_apart({"the run": subjects.split_as_given([one, two], [tmp_path / "x" / ".." / "2.png"])})


def test_segmentations_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = touch(tmp_path, "imagesTr/a.nii", "NIfTI_and_Segmentations/a.nii", "a_masked.nii", "Segal_T1.nii", "unlabelled.png")
    left_out = (
        "labelsTr/a.nii",
        "masks/a.png",
        "a_seg.nii.gz",
        "sub-1_dseg.nii",
        "a-segmentation.nii",
        "brainmask.nii",
        "labels.npy",
    )
    touch(tmp_path, *left_out, "notes.txt")
    with caplog.at_level(logging.INFO):
        assert subjects.find_files(tmp_path) == sorted(kept)
    assert f"5 files in {tmp_path}; {len(left_out)} segmentations or masks are left out" in caplog.text
    with pytest.raises(InputFileError, match=r"matches 'a_seg\*'; 1 segmentations"):
        subjects.find_files(tmp_path, "a_seg*")


def test_folders_and_hidden_files_are_no_images(tmp_path: Path) -> None:
    kept = touch(tmp_path, "series.nii/1.png")
    touch(tmp_path, "._a.nii.gz", ".x.png", ".cache/a.png", "b/.git/deep/a.png")
    assert subjects.find_files(tmp_path) == kept
    inside = tmp_path / ".cache"  # asked for by name, it is not hidden
    assert subjects.find_files(inside) == [inside / "a.png"]


@pytest.mark.parametrize("pattern", ["", "/abs/*.nii", "a**"])
def test_a_pattern_that_fits_no_name_is_named(tmp_path: Path, pattern: str) -> None:
    touch(tmp_path, "b.nii")
    with pytest.raises(InputFileError, match=f"matches {re.escape(repr(pattern))}"):
        subjects.find_files(tmp_path, pattern)


def test_a_pattern_chooses_below_the_folder_only(tmp_path: Path) -> None:
    below, beside = touch(tmp_path, "data/x/a_t1.png", "beside_t1.png")
    assert subjects.find_files(tmp_path / "data", "*t1*") == [below]
    with pytest.raises(InputFileError, match="holds no image"):
        subjects.find_files(tmp_path / "data", f"../{beside.name}")


def test_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="holds no image"):
        subjects.find_files(tmp_path)
    with pytest.raises(InputFileError, match="not a folder"):
        subjects.find_files(tmp_path / "nowhere")
