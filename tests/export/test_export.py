from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from export import build
from export.__main__ import main
from export.verify import TOLERANCE, verify
from runtime import BundleError, Upscaler, bundle, io, measure, volume
from runtime.acquired import NOTHING
from runtime.bundle import Bundle
from tests.conftest import ROOT, SCAN, bundle_of, random_generator, run_python
from train import checkpoint
from train.generator import Generator


@pytest.fixture(scope="module", params=["paper", "shallow"])
def ckpt(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(random_generator(request.param), tmp_path_factory.mktemp("ckpt"))


def saved(generator: Generator, folder: Path) -> Path:
    path = folder / "best.pt"
    checkpoint.save(path, {"generator": asdict(generator.config), "weights": generator.state_dict()})
    return path


@pytest.mark.parametrize("half", [False, True])
def test_onnx_runtime_equals_pytorch(generator: Generator, half: bool) -> None:
    with Upscaler.load(bundle_of(generator, half)) as up:
        errors = verify(up, generator, half)
    assert TOLERANCE == {False: 1e-4, True: 2e-3}  # of the range: what the project promises
    assert max(errors.values()) <= TOLERANCE[half]
    assert len(errors) == 11


@pytest.mark.parametrize("half", [False, True])
def test_a_told_network_equals_pytorch_at_every_noise(half: bool) -> None:
    generator = random_generator("told")
    with Upscaler.load(bundle_of(generator, half)) as up:
        errors = verify(up, generator, half)
    assert max(errors.values()) <= TOLERANCE[half]
    assert len(errors) == 11 * 3  # σ 0, 0.01 and 0.05


def test_a_wrong_bias_is_noticed() -> None:
    """Of a network that is right where there is no noise: its level is zero there."""
    generator, other = random_generator("told"), random_generator("told")
    with torch.no_grad():
        other.condition[0].weight[:] *= 1.1
    with Upscaler.load(bundle_of(other)) as up, pytest.raises(BundleError, match=r"of the range at .* σ 0\.0[15]"):
        verify(up, generator, half=False)


@pytest.mark.parametrize("half", [False, True])
def test_the_trunk_of_a_bundle_is_its_weights_and_the_rest(half: bool) -> None:
    generator = random_generator("told")
    made = bundle_of(generator, half=True)
    weights = onnx.load_from_string(made.files["trunk.onnx"][: made.model.weights]).graph
    assert len(weights.initializer) > 20
    assert not weights.node
    computes = onnx.TensorProto.FLOAT16 if half else onnx.TensorProto.FLOAT
    assert onnx.load_from_string(made.trunk(half)) == onnx.load_from_string(build.trunk(generator, True, computes))
    assert len(made.files[bundle.TRUNK_FP16]) < 30_000  # nodes alone: the weights have 0.9 MB


def test_a_told_trunk_takes_what_is_told_in_float32() -> None:
    told = bundle_of(random_generator("told"), half=True)
    models = [onnx.load_from_string(told.trunk(half)) for half in (False, True)]
    for model in models:
        assert [value.name for value in model.graph.input] == ["image", "told"]
        value = model.graph.input[1].type.tensor_type
        assert value.elem_type == onnx.TensorProto.FLOAT
        assert [d.dim_value for d in value.shape.dim] == [3]
    assert [m.graph.output[0].type.tensor_type.elem_type for m in models] == [onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16]
    onnx.checker.check_model(models[1], full_check=True)


def test_the_bias_keeps_the_blocks_in_the_layout_of_convolutions(tmp_path: Path) -> None:
    """On a processor with that layout, ONNX Runtime adds within convolutions: no sum of the blocks stands alone."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(build.trunk(random_generator("told"), half=True), options, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    if not kinds["ReorderOutput"]:
        pytest.skip("ONNX Runtime has no layout of its own here")
    # After the head, before the bias; after the basis, and after the skip's neighbours.
    assert kinds["ReorderOutput"] == 3
    assert kinds["Add"] == 3  # two of σ's biases, and theirs


def test_trunk_equals_pytorch_with_batch_norm_folded(generator: Generator) -> None:
    image = torch.rand(1, 1, 21, 34)
    with torch.no_grad():
        features = generator.encode(image)[0].permute(1, 2, 0).numpy()
    with Upscaler.load(bundle_of(generator)) as up:
        engine: Any = up.slices.engine
        responses = engine._run_trunk(False, image[0, 0].numpy(), NOTHING).numpy().reshape(21, 34, -1)
    wide = np.pad(features, ((1, 1), (1, 1), (0, 0)))
    patches = np.stack([wide[i : i + 21, j : j + 34] for i in range(3) for j in range(3)], 2).reshape(21, 34, -1)
    filters = build.predictor(generator)[1]
    expected = patches @ filters.T
    np.testing.assert_allclose(responses[..., : len(filters)], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    if generator.config.skip:
        wide = np.pad(image[0, 0].numpy(), 1, mode="edge")
        neighbours = np.stack([wide[i : i + 21, j : j + 34] for i in range(3) for j in range(3)], 2)
        np.testing.assert_array_equal(responses[..., len(filters) :], neighbours)


def test_trunk_is_dynamic_in_batch_height_and_width(generator: Generator) -> None:
    model = onnx.load_from_string(build.trunk(generator, half=False))
    assert [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == ["N", 1, "H", "W"]
    kinds = {node.op_type for node in model.graph.node}
    assert kinds <= {"Conv", "LeakyRelu", "Add", "Pad", "Concat", "Transpose", "Identity"}  # no BatchNorm, no PRelu


def test_half_precision_keeps_inputs_and_outputs_in_float32(generator: Generator) -> None:
    model = onnx.load_from_string(build.trunk(generator, half=True))
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    weights = [c for c in model.graph.initializer if c.data_type != onnx.TensorProto.INT64]
    assert {c.data_type for c in weights} == {onnx.TensorProto.FLOAT16}


def test_receptive_radius_is_what_an_impulse_reaches(generator: Generator) -> None:
    """Counted, not derived: which input pixels have a gradient at one output pixel."""
    image = torch.rand(1, 1, 45, 45, requires_grad=True)
    generator(image, (2, 2))[0, 0, 45, 45].backward()  # type: ignore[arg-type]
    assert image.grad is not None
    rows = torch.nonzero(image.grad[0, 0].abs().sum(1))[:, 0]
    source = 22
    assert max(source - int(rows.min()), int(rows.max()) - source) == build.receptive_radius(generator)


def test_command_writes_a_verified_bundle(ckpt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--ckpt", str(ckpt), "--fp16", "--force"]) == 0
    assert "best.bundle" in capsys.readouterr().out
    made = Bundle.read(ckpt.with_suffix(".bundle"))
    assert len(made.manifest["largest_error_of_range"]) == 11
    assert main(["inspect", str(ckpt.with_suffix(".bundle"))]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"sha256": made.sha256, **made.manifest}
    assert printed["model"]["precision"] == "float16"
    assert any("32/15" in case for case in printed["largest_error_of_range"])


def test_command_records_what_the_network_learned_from(ckpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = tmp_path / "images"
    images.mkdir()
    data = nib.load(SCAN).get_fdata(dtype=np.float32)
    for k in range(7):
        np.save(images / f"{k}.npy", data[..., k])
    out = tmp_path / "x.bundle"
    asked = ["--ckpt", str(ckpt), "--out", str(out), "--force", "--envelope", str(images), "--pixel", "0.5", "2"]
    assert main([*asked, "--images", "T1 of one patient"]) == 0
    first, envelope = out.read_bytes(), Bundle.read(out).envelope
    assert envelope is not None
    assert (envelope.images, envelope.pixel_mm, envelope.noise) == ("T1 of one patient", (0.5, 2), (0, 0.08))
    assert set(envelope.grey) == {"rim", "skew", "contrast", "detail", "saturated"}
    assert envelope.grey["contrast"][0] < envelope.grey["contrast"][1]
    scan = io.read(SCAN, None)
    intensity = volume.intensities(scan)[0]
    assert envelope.outside(scan, intensity, measure.of(scan.pixels, scan.in_plane, intensity)) == ()
    assert main([*asked, "--images", "T1 of one patient"]) == 0
    assert out.read_bytes() == first  # reproducible
    (empty := tmp_path / "empty").mkdir()
    np.save(empty / "0.npy", np.zeros((80, 80), np.float32))
    capsys.readouterr()
    assert main(["--ckpt", str(ckpt), "--out", str(out), "--force", "--envelope", str(empty), "--pixel", "1", "2"]) == 1
    assert "holds no image with enough tissue" in capsys.readouterr().err
    for half in (["--envelope", str(images)], ["--pixel", "1", "2"]):
        with pytest.raises(SystemExit):
            main(["--ckpt", str(ckpt), "--out", str(out), "--force", *half])


def test_a_told_checkpoint_becomes_a_told_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(random_generator("told"), tmp_path)
    assert main(["--ckpt", str(path), "--fp16"]) == 0
    assert Bundle.read(path.with_suffix(".bundle")).model.told
    capsys.readouterr()
    assert main(["inspect", str(path.with_suffix(".bundle"))]) == 0
    out = capsys.readouterr().out
    for said in ('"version": 4', '"told": true', "σ 0.05"):
        assert said in out


def test_command_keeps_an_existing_bundle_unless_forced(ckpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x.bundle"
    out.write_bytes(b"precious")
    assert main(["--ckpt", str(ckpt), "--out", str(out)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert out.read_bytes() == b"precious"
    assert main(["--ckpt", str(ckpt), "--out", str(out), "--force"]) == 0
    assert Bundle.read(out).files


def test_bundle_over_tolerance_is_not_written(
    ckpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TOLERANCE, False, 1e-9)
    assert main(["--ckpt", str(ckpt), "--out", str(tmp_path / "x.bundle")]) == 1
    assert "differs from its checkpoint by" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_finished_file_is_what_is_verified(
    ckpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damage between the verification in memory and the disk leaves no bundle, and the old one stays."""
    serialise = bundle.serialise

    def damaged(model: bundle.Model, files: dict[str, bytes], about: dict[str, object]) -> bytes:
        content = serialise(model, files, about)
        return content if "largest_error_of_range" not in about else content[:900] + b"!" + content[901:]

    monkeypatch.setattr(bundle, "serialise", damaged)
    out = tmp_path / "x.bundle"
    out.write_bytes(b"precious")
    assert main(["--ckpt", str(ckpt), "--out", str(out), "--force"]) == 1
    assert "error: " in capsys.readouterr().err
    assert out.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [out]


def test_the_checkpoint_is_not_overwritten_by_its_bundle(ckpt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = ckpt.read_bytes()
    assert main(["--ckpt", str(ckpt), "--out", str(ckpt), "--force"]) == 1
    assert "is the checkpoint itself" in capsys.readouterr().err
    assert ckpt.read_bytes() == before


def test_a_wrong_graph_is_noticed(generator: Generator) -> None:
    """The verification can fail: a bundle of other weights is over the tolerance."""
    other = random_generator("shallow" if generator.config.skip else "paper")
    with torch.no_grad():
        other.tail.bias[3] += 0.5
    with Upscaler.load(bundle_of(other)) as up, pytest.raises(BundleError, match="differs from its checkpoint"):
        verify(up, generator, half=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--ckpt", "none.pt"], "none.pt does not exist"),
        (["--ckpt", "README.md"], "README.md is "),
        (["inspect", "none.bundle"], "none.bundle cannot be read"),
        (["inspect", "README.md"], "is no bundle"),
    ],
)
def test_bad_arguments_are_one_clear_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1


def test_inspect_needs_neither_torch_nor_onnx() -> None:
    code = """
import sys; sys.modules['torch'] = sys.modules['onnx'] = None
from export.__main__ import main
sys.exit(main(['inspect', 'runtime/brain.bundle']))
"""
    run_python(code)
