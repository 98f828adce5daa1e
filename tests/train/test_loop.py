from __future__ import annotations

import copy
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from runtime import InputFileError, OutputFileError, grid
from tests.conftest import ROOT
from train import checkpoint, data, loop, networks
from train.__main__ import main
from train.config import CONFIGS as CONFIG_FILES
from train.config import Config, Stage, load, parse
from train.generator import CONFIGS, Generator
from train.learner import Learner
from train.loop import TrainingError, train

SMALL = {"kind": "meta", "channels": 8, "blocks": 1, "predictor_hidden": 16}
NO_NORM = {**SMALL, "batch_norm": False}
STAGE = {"updates": 6, "batch": 2, "patch": 32, "learning_rate": 1e-3, "validate_every": 3, "degradations": ["bilinear"]}

TOML = """
generator = { kind = "meta", channels = 8, blocks = 1, predictor_hidden = 16 }

[stage.brain]
degradations = ["bilinear"]
"""


def config(folder: Path, generator: dict[str, Any] = SMALL, **changes: Any) -> Config:
    return parse({"generator": dict(generator), "stage": {"brain": STAGE | changes}}, data=folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four subjects of two slices with structure to learn."""
    root = tmp_path_factory.mktemp("slices")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64]
    for subject in range(4):
        for k in range(2):
            waves = 120 + 60 * np.sin(x / rng.uniform(2, 5)) + 60 * np.sin(y / rng.uniform(2, 5))
            path = root / f"subject{subject}" / f"{k}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(waves.astype(np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def vgg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file like VGG-16's, two features a layer."""
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("vgg") / "vgg16.npz"
    arrays, width = {}, 3
    for block, count in enumerate((2, 2, 3, 3, 3), 1):
        for conv in range(1, count + 1):
            arrays[f"block{block}_conv{conv}.weight"] = rng.standard_normal((2, width, 3, 3)).astype(np.float16) / 4
            arrays[f"block{block}_conv{conv}.bias"] = np.zeros(2, np.float16)
            width = 2
    np.savez(path, **arrays)
    return path


def learner(folder: Path, generator: dict[str, Any] = SMALL, **changes: Any) -> tuple[Learner, data.Batches]:
    """What trains a stage on the CPU, without a moving average, and its batches."""
    chosen = config(folder, generator, **{"ema": 0, **changes})
    stage = chosen.stage["brain"]
    batches, _ = loop.load_stage(stage, loop.prepare(chosen)["brain"])
    return Learner(networks.build(chosen.generator), stage, torch.device("cpu")), batches


def run(*arguments: Any, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def weights(path: Path) -> dict[str, torch.Tensor]:
    content: dict[str, torch.Tensor] = checkpoint.load(path)["weights"]
    return content


def test_training_learns_and_leaves_checkpoints(folder: Path, tmp_path: Path) -> None:
    chosen = config(folder, {"name": "edge", "blocks": 5}, updates=80, validate_every=40, ema=0.9)
    best = train(chosen, tmp_path)
    content = checkpoint.load(best)
    assert content["update"] in (40, 80)
    _, held_out = loop.load_stage(chosen.stage["brain"], loop.prepare(chosen)["brain"])
    generator, _ = checkpoint.load_generator(best)
    torch.manual_seed(0)
    untrained = Generator(replace(CONFIGS["edge"], blocks=5)).eval()
    scores = [loop.validate(g, held_out, chosen.stage["brain"])[0] for g in (untrained, generator)]
    # From linear interpolation on: what 80 updates gain here is near 1 dB at ×2; half of it is asked for.
    before, after = (score["bilinear ×2"]["psnr"] for score in scores)
    assert after > before + 0.5
    assert content["validation"]["bilinear ×2"][0] == pytest.approx(after, abs=1e-3)
    assert {p.name for p in tmp_path.iterdir()} == {"best.pt", "last.pt", "brain.pt", "tensorboard"}
    assert weights(tmp_path / "brain.pt").keys() == content["weights"].keys()
    for name in ("best", "brain"):  # which are passed on
        assert str(folder).encode() not in (tmp_path / f"{name}.pt").read_bytes()


def stopping_after(count: int) -> Any:
    """Stands in for signals: a stop is seen before update `count` + 1."""

    class Stop(list[int]):
        seen = 0

        def __bool__(self) -> bool:
            self.seen += 1
            return self.seen > count

    @contextmanager
    def signals() -> Iterator[Stop]:
        yield Stop()

    return signals


@pytest.mark.parametrize("stop", [2, 3, 8])
@pytest.mark.parametrize("kind", ["l1", "gan"])
def test_resume_goes_on_to_the_same_weights(
    folder: Path, vgg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, stop: int
) -> None:
    """Through a stage with batch norm, a moving average and, for `gan`, a discriminator, and through one with Muon."""
    extra = {"warmup": 1, "adversarial": 0.01, "perceptual": 0.01, "features": str(vgg)} if kind == "gan" else {}
    first = STAGE | extra | {"augment": {"noise": 1.0, "zoom": 1.0}, "anisotropic": 0.5}
    second = first | {"updates": 4, "seed": 5, "ema": 0, "optimiser": "muon"}
    table = {"generator": SMALL, "stage": {"one": first, "two": second}}
    chosen = parse(table, data=folder)
    train(chosen, tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(loop, "_stop_signals", stopping_after(stop))
        with pytest.raises(KeyboardInterrupt):
            train(chosen, tmp_path / "halves")
    stopped = checkpoint.load(tmp_path / "halves" / "last.pt")
    assert (stopped["stage"], stopped["update"]) == (("one", stop) if stop < 6 else ("two", stop - 6))
    train(chosen, tmp_path / "halves", resume=True)

    whole, halves = (checkpoint.load(tmp_path / side / "last.pt") for side in ("whole", "halves"))
    assert (whole["stage"], whole["update"]) == (halves["stage"], halves["update"]) == ("two", 4)
    for part in ("generator", "discriminator") if kind == "gan" else ("generator",):
        for name, tensor in whole["networks"][part].items():
            assert torch.equal(tensor, halves["networks"][part][name]), (part, name)
    assert whole["running"] == halves["running"]
    assert whole["best"] == halves["best"]


def test_ctrl_c_saves_and_stops(folder: Path, tmp_path: Path) -> None:
    small = [f"generator.{k}={v}" for k, v in {"channels": 8, "blocks": 1}.items()]
    settings = [f"--set={s}" for s in [*small, "patch=48", "batch=2", "updates=100000", "validate_every=5"]]
    process = run("train", "--data", folder, "--out", tmp_path, *settings)
    deadline = time.monotonic() + 60
    while not (tmp_path / "last.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130  # as a shell expects of what was interrupted, so that nothing is exported next
    assert "go on with --resume" in errors
    assert "Traceback" not in errors
    stopped_at = checkpoint.load(tmp_path / "last.pt")["update"]
    assert f"stopped at update {stopped_at} of 100000 of stage brains" in errors
    assert not list(tmp_path.glob(".*"))  # no half-written checkpoint


def test_a_run_is_not_overwritten_and_not_resumed_otherwise(folder: Path, tmp_path: Path) -> None:
    chosen, out = config(folder), tmp_path / "run"
    with pytest.raises(InputFileError, match="no run to resume"):
        train(chosen, out, resume=True)
    train(chosen, out)
    before = (out / "last.pt").read_bytes()
    with pytest.raises(OutputFileError, match=r"last\.pt is there already: add --resume"):
        train(chosen, out)
    with pytest.raises(InputFileError, match=r"was trained otherwise, without stage.brain.batch=4"):
        train(config(folder, batch=4), out, resume=True)
    with pytest.raises(InputFileError, match=r"without generator.blocks=2"):
        train(config(folder, {**SMALL, "blocks": 2}), out, resume=True)
    other = tmp_path / "other"
    for file in folder.rglob("*.png"):
        (other / file.parent.name).mkdir(parents=True, exist_ok=True)
        Image.open(file).transpose(Image.Transpose.ROTATE_180).save(other / file.relative_to(folder))
    with pytest.raises(InputFileError, match="saw other images"):
        train(config(other), out, resume=True)
    assert (out / "last.pt").read_bytes() == before
    content = checkpoint.load(out / "last.pt")
    content["networks"]["optimiser"] = content["networks"].pop("Adam")
    checkpoint.save(out / "last.pt", content)
    with pytest.raises(InputFileError, match="of another release"):
        train(chosen, out, resume=True)
    (out / "last.pt").write_bytes((out / "best.pt").read_bytes())
    with pytest.raises(InputFileError, match="holds weights alone"):
        train(chosen, out, resume=True)


def test_a_resume_takes_the_runs_own_configuration(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(config(folder, updates=4), tmp_path)
    assert main(["--out", str(tmp_path), "--resume", "--set", "updates=5"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "best.pt")
    content = checkpoint.load(tmp_path / "last.pt")
    assert content["update"] == 5
    assert content["training"]["stage"]["brain"]["batch"] == 2


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_batch(folder: Path, tmp_path: Path) -> None:
    chosen = config(folder, NO_NORM)  # whose statistics would see the batch all the same
    split = loop.prepare(chosen)["brain"]
    stage = loop._Stage(chosen, "brain", split, networks.build(chosen.generator), tmp_path, torch.device("cpu"))
    for k, crop in enumerate(stage.batches.crops):
        if crop.source == "1.png":
            stage.batches.crops[k].pixels[:] = np.nan
    with pytest.raises(TrainingError, match=r"stage brain, update \d: the loss is nan, at ×\S+, ×\S+ with .*1.png"):
        stage.train([])
    assert "1.png" in stage.batches.sources_of(stage.update)
    assert all(tensor.isfinite().all() for tensor in stage.learner.generator.state_dict().values())


def test_weights_start_from_another_checkpoint(folder: Path, tmp_path: Path) -> None:
    train(config(folder), tmp_path / "first")
    init = tmp_path / "first" / "brain.pt"
    chosen = replace(config(folder, updates=1, learning_rate=1e-12, ema=0), init=str(init))
    train(chosen, tmp_path / "second")
    for name, tensor in weights(tmp_path / "second" / "last.pt").items():
        if tensor.is_floating_point() and "running" not in name:  # batch statistics move whatever the rate
            torch.testing.assert_close(tensor, weights(init)[name], rtol=0, atol=1e-9)
    for other in ({"name": "edge"}, {**SMALL, "mean": 0.0}):  # of other shapes, and of the same with another meaning
        with pytest.raises(InputFileError, match="another network"):
            train(replace(config(folder, other), init=str(init)), tmp_path / "third")


@pytest.fixture
def rounding(folder: Path, tmp_path: Path) -> Config:
    """A run with rounding, from a network in float."""
    plain = config(folder, NO_NORM, learning_rate=1e-2)
    return replace(
        config(folder, NO_NORM, rounding=True, mean_with_init=0.5, ema=0.5), init=str(train(plain, tmp_path / "float"))
    )


@pytest.mark.parametrize("stop", [2, 4])
def test_a_run_with_rounding_resumes_without_its_init(
    rounding: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    train(rounding, tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(loop, "_stop_signals", stopping_after(stop))
        with pytest.raises(KeyboardInterrupt):
            train(rounding, tmp_path / "halves")
    Path(rounding.init).unlink()
    train(rounding, tmp_path / "halves", resume=True)
    whole, halves = (checkpoint.load(tmp_path / side / "last.pt") for side in ("whole", "halves"))
    for part in ("generator", "average"):
        for name, tensor in whole["networks"][part].items():
            assert torch.equal(tensor, halves["networks"][part][name]), (part, name)
    assert whole["best"] == halves["best"]


def test_rounding_keeps_an_ordinary_checkpoint_half_way_to_its_init(rounding: Config, tmp_path: Path) -> None:
    train(rounding, tmp_path / "run")
    loaded, _ = checkpoint.load_generator(tmp_path / "run" / "brain.pt")
    start, last = checkpoint.load(Path(rounding.init))["weights"], checkpoint.load(tmp_path / "run" / "last.pt")
    assert type(loaded) is Generator
    for name, weight in loaded.state_dict().items():
        average = last["networks"]["average"][f"module.{name}"]
        torch.testing.assert_close(weight, (start[name] + average) / 2)
    assert not torch.equal(loaded.tail.weight, start["tail.weight"])
    state = last["networks"]["generator"]
    assert all(torch.equal(state[f"teacher.{name}"], weight) for name, weight in start.items())


def test_rounding_needs_a_network_to_start_from_without_batch_norm(folder: Path, rounding: Config) -> None:
    with pytest.raises(InputFileError, match="no network to start from: give --set init"):
        loop.prepare(replace(rounding, init=""))
    with pytest.raises(InputFileError, match="without batch norm"):
        loop.prepare(config(folder, rounding=True))


def test_network_that_is_told_the_noise_starts_from_one_that_was_not(folder: Path, tmp_path: Path) -> None:
    train(config(folder), tmp_path / "first")
    init = tmp_path / "first" / "brain.pt"
    told = loop.initial(replace(config(folder, {**SMALL, "told": True}), init=str(init)))
    for name, tensor in weights(init).items():
        torch.testing.assert_close(told.state_dict()[name], tensor, rtol=0, atol=0)
    assert not told.state_dict()["condition.2.weight"].any()


@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_loss_of_pixels_is_what_is_descended(folder: Path, loss: str) -> None:
    ours, batches = learner(folder, NO_NORM, loss=loss, precision="float32", clip_norm=0)
    twin = copy.deepcopy(ours.generator)
    parts = ours.step(batches[0], 0)
    lr, hr, told, scales = batches[0]
    error = twin(torch.from_numpy(lr), scales, torch.from_numpy(told)) - torch.from_numpy(hr)
    assert parts["l1"] == pytest.approx(error.abs().mean().item(), rel=1e-4)
    (error.abs().mean() if loss == "l1" else 10 * (error**2).mean()).backward()
    for descended, expected in zip(ours.generator.parameters(), twin.parameters()):
        torch.testing.assert_close(descended.grad, expected.grad, rtol=1e-3, atol=1e-6)


def test_faint_discs_are_weighed_beside_the_pixels(folder: Path) -> None:
    parts, gradients = [], []
    for faint in (0.1, 10.0):
        ours, batches = learner(folder, NO_NORM, faint=faint, batch=4, precision="float32", clip_norm=0)
        parts.append(ours.step(batches[0], 0))
        gradients.append([p.grad for p in ours.generator.parameters() if p.grad is not None])
    assert parts[0] == parts[1]
    assert set(parts[0]) == {"l1", "faint"}
    assert any(not torch.allclose(a, b, rtol=0.1) for a, b in zip(*gradients))


def test_learning_rate_warms_up_and_ends_at_zero() -> None:
    stage = Stage(updates=10_000, learning_rate=1.0)
    rates = [stage.rate(u) for u in range(10_001)]
    assert rates[0] == pytest.approx(1 / 500)
    assert max(rates) == pytest.approx(1, abs=0.01)
    assert rates[-1] == 0
    assert np.all(np.diff(rates[500:]) < 0)


def test_the_papers_learning_rate_falls_to_four_fifths_every_60000() -> None:
    for stage in load("paper").stage.values():
        assert [stage.rate(u) for u in (0, 59_999, 60_000, 359_999)] == pytest.approx([1e-4, 1e-4, 0.8e-4, 0.8**5 * 1e-4])


def test_the_moving_average_is_what_is_kept(folder: Path, tmp_path: Path) -> None:
    train(config(folder, NO_NORM, ema=0.5, updates=3), tmp_path)
    content = checkpoint.load(tmp_path / "last.pt")
    assert not torch.equal(content["weights"]["head.weight"], content["networks"]["generator"]["head.weight"])
    torch.testing.assert_close(content["weights"]["head.weight"], content["networks"]["average"]["module.head.weight"])


def test_adversarial_training_moves_both_networks_after_the_warmup(folder: Path, vgg: Path) -> None:
    ours, batches = learner(folder, warmup=2, adversarial=1e-3, perceptual=6e-3, features=str(vgg))
    assert ours.discriminator is not None
    for update in range(4):
        before = [copy.deepcopy(net.state_dict()) for net in (ours.generator, ours.discriminator)]
        parts = set(ours.step(batches[update], update))
        after = (ours.generator.named_parameters(), ours.discriminator.named_parameters())
        moved = [any(not torch.equal(p, old[name]) for name, p in net) for net, old in zip(after, before)]
        both = {"l1", "adversarial", "discriminator", "perceptual"}
        assert (parts, moved) == (({"l1"}, [True, False]) if update < 2 else (both, [True, True]))
    assert ours.state().keys() == {"generator", "Adam", "discriminator", "judge"}  # and not the features' weights


def test_discriminator_and_features_serve_every_scale_of_the_paper(folder: Path, vgg: Path) -> None:
    chosen = config(folder, adversarial=1e-3, perceptual=6e-3, features=str(vgg), patch=96)
    for scale in grid.PAPER_SCALES:
        stage = replace(chosen.stage["brain"], scales=(scale,))
        crop = data.Crop(np.random.default_rng(0).random((100, 100), np.float32), "x")
        learner = Learner(networks.build(chosen.generator), stage, torch.device("cpu"))
        parts = learner.step(data.Batches([crop], stage)[0], 0)
        assert all(np.isfinite(value) for value in parts.values())


@pytest.mark.parametrize(
    ("precision", "capabilities", "expected"),
    [
        ("auto", {"avx512_f": True, "avx512_bf16": True, "amx_bf16": False}, "bfloat16"),
        ("auto", {"neon": True, "bf16": True}, "bfloat16"),
        ("auto", {"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, "float32"),
        ("bfloat16", {"avx512_bf16": False}, "bfloat16"),
        ("float32", {"avx512_bf16": True}, "float32"),
    ],
)
def test_precision_is_what_the_processor_has_instructions_for(
    precision: str, capabilities: dict[str, bool], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    chosen = parse({"generator": SMALL, "stage": {"brain": STAGE | {"precision": precision}}})
    learner = Learner(networks.build(chosen.generator), chosen.stage["brain"], torch.device("cpu"))
    assert learner.precision == expected
    with learner._autocast():
        assert torch.zeros(1, 1).mm(torch.zeros(1, 1)).dtype == getattr(torch, expected)


@pytest.mark.parametrize("kind", ["l1", "gan"])
def test_two_processes_give_the_gradients_of_a_doubled_batch(folder: Path, vgg: Path, tmp_path: Path, kind: str) -> None:
    """One process of batch 4 and two of batch 2, with batch norm: as equal as sums in another order are."""
    # So small a rate that the discriminator, which steps first, judges the generator by the same weights.
    stage = STAGE | {"updates": 1, "ema": 0, "clip_norm": 0, "learning_rate": 1e-9, "precision": "float32"}
    stage |= {"adversarial": 1.0, "perceptual": 0.01, "features": str(vgg)} if kind == "gan" else {}
    train(parse({"generator": SMALL, "stage": {"brain": stage | {"batch": 4}}}, data=folder), tmp_path / "one")
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "train"]
    settings = [f"--set={key}={value}" for key, value in stage.items() if key != "degradations"]
    (tmp_path / "c.toml").write_text(TOML)
    arguments = ["--config", tmp_path / "c.toml", "--data", folder, "--out", tmp_path / "two", *settings]
    process = run(*torchrun, *arguments, OMP_NUM_THREADS="1")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert output.strip() == str(tmp_path / "two" / "best.pt")  # one process speaks
    last = [checkpoint.load(tmp_path / side / "last.pt") for side in ("two", "one")]
    for part in ("Adam", "judge") if kind == "gan" else ("Adam",):
        # Adam's first moment is a tenth of the first gradient. Seen: 4e-6 and less; with a process's own batch statistics a
        # discriminator's gradient is off by its own size, with half the batch a generator's by a tenth and more.
        ours, theirs = (torch.cat([s["exp_avg"].flatten() for s in side["networks"][part]["state"].values()]) for side in last)
        assert torch.norm(ours - theirs) <= 1e-4 * torch.norm(theirs), part
    for name, tensor in last[1]["networks"]["generator"].items():
        if "running" in name:
            torch.testing.assert_close(last[0]["networks"]["generator"][name], tensor, rtol=1e-4, atol=1e-5)
    assert main(["--out", str(tmp_path / "two"), "--resume", "--set", "updates=2"]) == 1  # one process now


def test_tensorboard_gets_scalars_and_pictures_and_keeps_them_through_a_resume(folder: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(config(folder, updates=50, validate_every=25), tmp_path)
    train(config(folder, updates=75, validate_every=25), tmp_path, resume=True)
    events = EventAccumulator(str(tmp_path / "tensorboard" / "brain"))
    events.Reload()
    assert {"l1", "learning rate"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("psnr bilinear ×2")] == [25, 50, 75]
    assert events.Tags()["images"] == [f"bilinear ×{r}: input, output, truth" for r in ("2", "2.5", "4")]


def test_weights_that_are_there_already_are_kept(folder: Path, tmp_path: Path) -> None:
    for name in ("best", "brain"):
        out = tmp_path / name
        out.mkdir()
        (out / f"{name}.pt").write_bytes(b"precious")
        with pytest.raises(OutputFileError, match=f"{name}.pt is there already"):
            train(config(folder), out)
        assert (out / f"{name}.pt").read_bytes() == b"precious"


def test_a_late_stage_resumes_without_what_the_earlier_ones_needed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").symlink_to(folder)
    train(config(folder), tmp_path / "first")
    stages = {"one": STAGE | {"data": str(tmp_path / "photos")}, "two": dict(STAGE)}
    init = str(tmp_path / "first" / "brain.pt")
    train(parse({"generator": SMALL, "stage": stages, "init": init}, data=folder), tmp_path / "run")
    (tmp_path / "photos").unlink()
    (tmp_path / "first" / "brain.pt").unlink()
    assert main(["--out", str(tmp_path / "run"), "--resume", "--set", "stage.two.updates=7"]) == 0
    assert checkpoint.load(tmp_path / "run" / "last.pt")["update"] == 7


def test_no_subject_trains_in_one_stage_and_validates_in_another(tmp_path: Path) -> None:
    for subject in range(6):
        (tmp_path / f"subject{subject}").mkdir()
        for name in ("t1", "t2")[: 1 if subject == 0 else 2]:
            Image.fromarray(np.eye(64, dtype=np.uint8)).save(tmp_path / f"subject{subject}" / f"{name}.png")
    stages = {name: STAGE | {"pattern": f"*{name}*"} for name in ("t1", "t2")}
    with pytest.raises(InputFileError, match=r"subject1 would train in stage t1 and validate in stage t2, 1 such"):
        loop.prepare(parse({"stage": stages}, data=tmp_path))


def test_a_resume_refuses_other_features(folder: Path, vgg: Path, tmp_path: Path) -> None:
    chosen = config(folder, perceptual=0.01, features=str(vgg))
    train(chosen, tmp_path / "run")
    arrays = dict(np.load(vgg))
    np.savez(tmp_path / "other.npz", **{name: 3 * array for name, array in arrays.items()})
    other = config(folder, perceptual=0.01, features=str(tmp_path / "other.npz"))
    with pytest.raises(InputFileError, match="saw other images or features"):
        train(other, tmp_path / "run", resume=True)


def test_photographs_validate_by_their_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "VALIDATION_SIZE", 40)
    picture = np.arange(60 * 90, dtype=np.float32).reshape(60, 90)
    np.testing.assert_array_equal(loop._middle(picture), picture[10:50, 25:65])
    np.testing.assert_array_equal(loop._middle(picture[:30, :33]), picture[:30, :33])


def test_a_dry_run_says_what_would_be_and_writes_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.toml").write_text(TOML)
    settings = ["--set", "patch=48", "--set", "batch=2", "--set", "updates=7200"]
    assert main(["--config", "c.toml", "--data", str(folder), "--dry-run", *settings]) == 0
    out = capsys.readouterr().out
    assert f"{sum(p.numel() for p in networks.build(networks.configure(SMALL)).parameters()):,} parameters" in out
    assert "6 crops train, 2 validate" in out
    said = re.search(r"([\d.]+) updates a second on \w+ in \w+, 7,200 updates: ([\d.]+) hours", out)
    assert said
    assert float(said[2]) == pytest.approx(2 / float(said[1]), abs=0.06)  # 7,200 updates at one a second are two hours
    assert [p.name for p in tmp_path.iterdir()] == ["c.toml"]


def test_a_dry_run_reads_a_sample(folder: Path) -> None:
    chosen = config(folder)
    batches, held_out = loop.load_stage(chosen.stage["brain"], loop.prepare(chosen)["brain"], most=3)
    assert [crop.source for crop in batches.crops] == ["0.png", "0.png", "1.png"]  # the first, the third and the last of six
    assert len(held_out) == 2


@pytest.mark.parametrize("name", sorted(p.stem for p in CONFIG_FILES.glob("*.toml")))
def test_every_named_configuration_loads_and_trains(folder: Path, vgg: Path, tmp_path: Path, name: str) -> None:
    """Each with its own stages, scales and losses, on a network and for a time that a test can afford."""
    small = {"generator.channels": 8, "generator.blocks": 1, "features": f"'{vgg}'", "batch": 2, "patch": 48,
             "updates": 2, "warmup": 1, "validate_every": 2, "subject": "'subject.'"}  # fmt: skip
    chosen = load(name, [f"{key}={value}" for key, value in small.items()], data=folder)
    init = tmp_path / "init.pt"
    checkpoint.save(init, {"generator": asdict(chosen.generator), "weights": networks.build(chosen.generator).state_dict()})
    chosen = replace(chosen, init=str(init), stage={n: replace(s, data=str(folder)) for n, s in chosen.stage.items()})
    best = train(chosen, tmp_path / "out")
    assert checkpoint.load(best)["stage"] == list(chosen.stage)[-1]


def test_command_line_errors_are_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = f"--data {folder}", f"--out {tmp_path / 'o'}"
    diverges = "--set learning_rate=1e30 --set clip_norm=0 --set ramp=0 --set patch=48 --set batch=2"
    for arguments, said in (
        (f"--data {tmp_path / 'none'} {out}", "is not a folder"),
        (f"{data} {out} --set patch=999", "has 999×999 pixels"),
        (f"{data} {out} --resume", "does not exist"),
        (f"{data} {out} --set updates=0", "updates is 0: it should be greater than or equal to 1"),
        (f"{data} {out} --set colour=1", "colour is unknown"),
        (f"{data} {out} --set patch", "give key=value"),
        (f"{data} {out} --config slow", "or one of best, edsr, fidelity"),
        (f"{data} {out} --config srgan", "has a perceptual loss but no features: give --set features="),
        (f"{data} {out} --set stage.brian.updates=3", "is no stage's key: write it like stage.brains"),
        (f"{data} {out} --set stage=3", "is no stage's key"),
        (f"{data} --dry-run {diverges}", "lower its learning_rate"),
        (out, "has no data: give --data"),
    ):
        assert main(arguments.split()) == 1, arguments
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ")
        assert said in error
    assert not (tmp_path / "o").exists()
