"""Small valid inputs of every format, which mutations start from."""

from __future__ import annotations

import gzip
import io
import json
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK
from PIL import Image
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    MRImageStorage,
    RLELossless,
)

from runtime import Upscaler, bundle, job
from runtime.bundle import Bundle
from runtime.sizes import Size

VOXELS = np.random.default_rng(1).integers(0, 900, (8, 9, 3)).astype(np.int16)
PIXELS = np.random.default_rng(2).integers(0, 250, (11, 8), np.uint8)
TWICE = {"size": Size(scale="2")}


@dataclass(frozen=True)
class Case:
    """Files by their path, of which `source` is upscaled to `output` with the options of `request`; `model` is a bundle."""

    format: str
    files: dict[str, bytes] = field(repr=False)
    source: str
    output: str
    request: dict[str, Any] = field(default_factory=lambda: TWICE)
    model: str | None = None

    def write(self, folder: Path) -> None:
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def tiny_bundle() -> bytes:
    """A network of four channels, made by `export`."""
    import torch

    from export.build import build
    from train.generator import CONFIGS, Generator

    torch.manual_seed(7)
    config = replace(CONFIGS["edge"], told=False, channels=4, blocks=1, head_kernel=3, predictor_hidden=8, basis=4)
    return bundle.serialise(*build(Generator(config).eval(), half=False), {"parameters": 1})


def seeds(network: bytes) -> list[Case]:
    """Every seed; those that hold a sidecar were made by the product with this bundle."""
    cases = [*_nifti(), *_itk(), *_dicom(), *_pictures()]
    npy = _npy(PIXELS)
    cases.append(Case("bundle", {"in/a.bundle": network, "in/a.npy": npy}, "in/a.npy", "out/a.npy", model="in/a.bundle"))
    with Upscaler.load(Bundle.parse(network, "tiny"), device="cpu", threads=1) as upscaler:
        for case in (Case("sidecar", {"in/a.npy": npy}, "in/a.npy", "out/a.npy"), next(_dicom(folder=True))):
            case = replace(case, format="sidecar", request=TWICE | {"resume": True, "deterministic": True})
            cases.append(replace(case, files=dict(reversed(_made(upscaler, case).items()))))
    return cases


def _made(upscaler: Upscaler, case: Case) -> dict[str, bytes]:
    """The files of a case and what the product makes of them, the sidecar last."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        case.write(folder)
        (folder / "out").mkdir()
        job.run(upscaler, job.Task(folder / case.source, folder / case.output), job.Request(**case.request))
        found = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    return found


def _nifti() -> Iterator[Case]:
    affine = np.diag([0.8, 0.9, 3.0, 1.0])
    affine[:3, 3] = -3, 4, 5

    def content(kind: Any = nib.Nifti1Image, data: Any = VOXELS, slope: float = 1.0) -> bytes:
        image = kind(data, affine, dtype=data.dtype)
        image.header.set_xyzt_units("mm", "sec")
        image.header.set_slope_inter(slope, 3 * (slope != 1))
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a comment"))
        return bytes(image.to_bytes())

    def case(name: str, data: bytes, out: str = ".nii", **more: Any) -> Case:
        return Case("nifti", {f"in/{name}": data}, f"in/{name}", f"out/a{out}", more or TWICE)

    yield case("a.nii", content())
    yield case("a.nii.gz", gzip.compress(content(), mtime=0), ".nii.gz")
    yield case("a.nii", content(nib.Nifti2Image), ".nrrd")
    yield case("a.nii", content(data=np.stack([VOXELS, VOXELS], -1)[:6, :6].astype(np.float32)), size=Size(scale="1.5"))
    yield case("a.nii", content(slope=0.25), ".mha", size=Size(isotropic=True))
    yield case("a.nii.gz", gzip.compress(content(slope=-2.0), mtime=0), size=Size(spacing=("0.5", "0.5", "1.7")), dtype="uint8")
    bids = {"PhaseEncodingDirection": "j-", "AcquisitionMatrixPE": 6, "ReconMatrixPE": 9, "BaseResolution": 6}
    files = {"in/a.json": json.dumps(bids | {"PercentSampling": 80}).encode(), "in/a.nii": content(data=VOXELS.repeat(2, 1))}
    yield Case("bids", files, "in/a.nii", "out/a.nii")


def _itk() -> Iterator[Case]:
    image = SimpleITK.GetImageFromArray(VOXELS.T)
    image.SetSpacing((0.8, 0.9, 3.0))
    image.SetMetaData("Name", "of a person")
    for suffix, compressed in ((".nrrd", 0), (".nrrd", 1), (".nhdr", 1), (".mha", 0), (".mha", 1), (".mhd", 0)):
        with tempfile.TemporaryDirectory() as folder:
            SimpleITK.WriteImage(image, f"{folder}/a{suffix}", useCompression=bool(compressed))
            files = {f"in/{path.name}": path.read_bytes() for path in sorted(Path(folder).iterdir())}
        written = suffix if suffix in (".nrrd", ".mha") else ".nii"
        kind = "nrrd" if suffix.startswith(".n") else "metaimage"
        yield Case(kind, files, f"in/a{suffix}", f"out/a{written}")


def _slice(k: int, **more: Any) -> Dataset:
    """Slice `k` of an MR series; `more` sets attributes."""
    dataset = Dataset()
    meta = dataset.file_meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID = more.pop("kind", MRImageStorage)
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = f"1.2.3.{k + 1}"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "1.2.4", "1.2.5", "1.2.6"
    dataset.PatientName, dataset.PatientID, dataset.Modality, dataset.ImageType = "Doe^J", "7", "MR", ["ORIGINAL", "PRIMARY"]
    dataset.SeriesNumber, dataset.InstanceNumber, dataset.SliceThickness = 4, k + 1, "3.5"
    dataset.AcquisitionMatrix, dataset.InPlanePhaseEncodingDirection = [0, 9, 8, 0], "COL"
    dataset.ImageOrientationPatient, dataset.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 4 * k]
    dataset.PixelSpacing, dataset.WindowCenter, dataset.WindowWidth = [0.75, 0.5], "300", "600"
    dataset.PhotometricInterpretation, dataset.SamplesPerPixel, dataset.PixelRepresentation = "MONOCHROME2", 1, 0
    dataset.RescaleSlope, dataset.RescaleIntercept = "1", "-4"
    for keyword, value in more.items():
        setattr(dataset, keyword, value)
    return dataset


def _pixels(dataset: Dataset, pixels: Any, stored: int, syntax: Any = None, packed: bytes | None = None) -> bytes:
    """The bytes of a DICOM file that holds these pixels."""
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8 * pixels.itemsize, stored, stored - 1
    if packed is None:
        order = ">" if syntax == ExplicitVRBigEndian else "<"
        raw = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
        dataset.add_new("PixelData", "OW", raw + b"\0" * (len(raw) % 2))
    else:
        dataset.add_new("PixelData", "OB", encapsulate([packed]))
        dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = syntax or ExplicitVRLittleEndian
    stream = io.BytesIO()
    dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()


def _dicom(folder: bool = False) -> Iterator[Case]:
    slices = VOXELS.T.astype(np.uint16)
    series = {f"in/s/{k}.dcm": _pixels(_slice(k), pixels, 12) for k, pixels in enumerate(slices)}
    yield Case("dicom", series, "in/s", "out/s" if folder else "out/a.nii")
    yield Case("dicom", dict(list(series.items())[:2]), "in/s", "out/s")
    for syntax in (ImplicitVRLittleEndian, ExplicitVRBigEndian):
        yield _one(_pixels(_slice(0, PhotometricInterpretation="MONOCHROME1"), slices[0], 12, syntax))
    dataset = _slice(0)
    _pixels(dataset, slices[0], 16)
    dataset.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
    yield _one(_pixels(dataset, slices[0], 16, RLELossless, _fragment(dataset.PixelData)))
    for syntax, name, options in ((JPEGBaseline8Bit, "JPEG", {}), (JPEG2000Lossless, "JPEG2000", {"no_jp2": True})):
        packed = _picture(PIXELS, name, **options)
        yield _one(_pixels(_slice(0), PIXELS, 8, syntax, packed))
    yield _one(_pixels(_enhanced(len(slices)), slices, 12))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in series.items():
            opened.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    yield Case("dicom", {"in/a.zip": archive.getvalue()}, "in/a.zip", "out/a.nii")


def _one(content: bytes) -> Case:
    return Case("dicom", {"in/a.dcm": content}, "in/a.dcm", "out/a.nii")


def _fragment(pixel_data: bytes) -> bytes:
    from pydicom.encaps import generate_frames

    return next(generate_frames(pixel_data, number_of_frames=1))


def _enhanced(count: int) -> Dataset:
    """A multi-frame file whose functional groups say where its frames lie."""
    dataset = _slice(0, kind=EnhancedMRImageStorage, NumberOfFrames=count)
    places = [
        ("PixelMeasuresSequence", ("PixelSpacing", "SliceThickness")),
        ("PlaneOrientationSequence", ("ImageOrientationPatient",)),
    ]
    shared = Dataset()
    for sequence, keywords in places:
        item = Dataset()
        for keyword in keywords:
            setattr(item, keyword, dataset[keyword].value)
            delattr(dataset, keyword)
        setattr(shared, sequence, [item])
    del dataset.ImagePositionPatient
    dataset.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for k in range(count):
        position, frame = Dataset(), Dataset()
        position.ImagePositionPatient = [0, 0, 4 * k]
        frame.PlanePositionSequence = [position]
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = frames
    return dataset


def _picture(pixels: Any, format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    first, *others = [Image.fromarray(page) for page in (pixels if isinstance(pixels, list) else [pixels])]
    first.save(stream, format, **options, **({"save_all": True, "append_images": others} if others else {}))
    return stream.getvalue()


def _pictures() -> Iterator[Case]:
    deep, real, colour = PIXELS.astype(np.uint16) * 200, PIXELS.astype(np.float32) / 7, np.stack([PIXELS] * 3, -1)

    def case(kind: str, suffix: str, content: bytes, out: str = "") -> Case:
        return Case(kind, {f"in/a{suffix}": content}, f"in/a{suffix}", f"out/a{out or suffix}")

    def palette() -> bytes:
        stream = io.BytesIO()
        Image.fromarray(PIXELS).convert("P").save(stream, "PNG", transparency=0)
        return stream.getvalue()

    for pixels in (PIXELS, deep, real, [deep, deep, deep]):
        yield case("tiff", ".tif", _picture(pixels, "TIFF"))
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):  # the last of which is libtiff's to read
        yield case("tiff", ".tif", _picture(PIXELS, "TIFF", compression=compression))
    for pixels in (PIXELS, deep, colour):
        yield case("png", ".png", _picture(pixels, "PNG"))
    yield case("png", ".png", palette(), ".npy")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    yield case("jpeg", ".jpg", _picture(PIXELS, "JPEG", exif=exif))
    yield case("jpeg", ".jpg", _picture(colour, "JPEG", progressive=True), ".png")
    yield case("bmp", ".bmp", _picture(PIXELS, "BMP"))
    yield case("bmp", ".bmp", _picture(colour, "BMP"))
    for array in (PIXELS, real, np.stack([deep] * 3), VOXELS.astype(">f8")[..., 0], PIXELS > 99):
        yield case("npy", ".npy", _npy(array))


def _npy(array: Any) -> bytes:
    return bundle.array_bytes(np.asarray(array))
