from __future__ import annotations

import tomllib
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from runtime import grid
from train import config, networks
from train.config import CONFIGS, Stage, load, parse
from train.generator import GeneratorConfig
from train.tables import ConfigError


def one() -> dict[str, Any]:
    return {"stage": {"brain": {}}}


def test_without_keys_a_stage_is_the_default_and_a_network_the_shipped_one() -> None:
    parsed = parse(one())
    assert parsed.stage == {"brain": Stage()}
    assert parsed.generator == networks.NAMED["edge"]


@pytest.mark.parametrize("name", sorted(p.stem for p in CONFIGS.glob("*.toml")))
def test_every_named_configuration_comes_back_from_a_checkpoint(name: str) -> None:
    chosen = load(name)
    assert not chosen.init or Path(chosen.init).is_file()
    again = parse(chosen.plain())
    assert again == chosen
    assert again.differences(chosen) == []


def test_the_paper_is_as_published() -> None:
    """Tan, Zhu, Liò 2020, section 3 and 4."""
    paper = load("paper")
    assert paper.generator == GeneratorConfig()
    assert list(paper.stage) == ["photos", "brain"]  # DIV2K, then BraTS
    for stage in paper.stage.values():
        assert (stage.updates, stage.batch, stage.patch, stage.patches_per_crop) == (360_000, 8, 96, 16)
        assert (stage.learning_rate, stage.step_factor, stage.step_updates) == (1e-4, 0.8, 60_000)
        assert (stage.adversarial, stage.perceptual) == (0.001, 0.006)
        assert stage.scales == tuple(Fraction(k, 10) for k in range(11, 41)) == grid.PAPER_SCALES
        assert 0 < stage.warmup < stage.updates
        assert stage.clamp


def test_settings_change_one_stage_or_all(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[stage.a]\nbatch = 2\n[stage.b]\n")
    settings = [
        "updates=7",
        "stage.b.batch=4",
        "generator.blocks=3",
        "degradations=['kspace']",
        "augment.strip=0.5",
        "subject=(s.)",
    ]
    chosen = load(str(file), [*settings, "scales=[2, 2.5, '7/3']"], data=tmp_path)
    a, b = chosen.stage.values()
    assert (a.updates, b.updates, a.batch, b.batch) == (7, 7, 2, 4)
    assert a.degradations == b.degradations == ("kspace",)
    assert a.augment.strip == 0.5
    assert a.subject == "(s.)"  # no TOML, so text
    assert a.scales == (Fraction(2), Fraction(5, 2), Fraction(7, 3))
    assert a.data == b.data == str(tmp_path)
    assert chosen.generator == replace(networks.NAMED["edge"], blocks=3)


def test_degradations_by_their_former_name_are_read(tmp_path: Path) -> None:
    """In configurations and checkpoints of before, and where a setting meets a newer recipe."""
    table = {"stage": {"a": {"kernels": ["kspace"]}, "b": {"degradations": ["bicubic"]}}}
    assert [s.degradations for s in parse(table).stage.values()] == [("kspace",), ("bicubic",)]
    assert {s.degradations for s in parse(table, ["kernels=['scanner']"]).stage.values()} == {("scanner",)}


def test_data_fills_what_names_none_and_the_last() -> None:
    table = {"stage": {"photos": {"data": "P"}, "more": {}, "brain": {"data": "Q"}}}
    assert [s.data for s in parse(table, data=Path("D")).stage.values()] == ["P", "D", "D"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "stage is {}: Dictionary should have at least 1 item"),
        ("[stage]\nbrain = 3", "stage.brain is 3: it should be an object"),
        ("[stage.brain]\nupdate = 3", "stage.brain.update is unknown: did you mean updates"),
        ("colour = 1\n[stage.brain]", "colour is unknown"),
        ("[stage.brain]\nupdates = 'many'", "stage.brain.updates is 'many': it should be a valid integer"),
        ("[stage.brain]\nupdates = 1.5", "stage.brain.updates is 1.5: it should be a valid integer"),
        ("[stage.brain]\nupdates = 0", "stage.brain.updates is 0: it should be greater than or equal to 1"),
        ("[stage.brain]\nseed = -1", "stage.brain.seed is -1: it should be greater than or equal to 0"),
        ("[stage.brain]\npatch = 5", "stage.brain.patch is 5: it should be greater than or equal to 32"),
        ("[stage.brain]\ndegradations = []", "stage.brain.degradations is .*at least 1 item"),
        (
            "[stage.brain]\ndegradations = ['sinc']",
            "stage.brain.degradations.0 is 'sinc': it should be 'bilinear', 'bicubic', 'kspace', 'canonical' or 'scanner'",
        ),
        ("[stage.brain]\ndegradations = 'kspace'", "stage.brain.degradations is 'kspace': it should be a valid array"),
        ("[stage.brain]\nscales = [0.5]", "stage.brain.scales.0: scale 0.5"),
        ("[stage.brain]\nscales = [13]", "stage.brain: scales is 13.0: give 1 to 12, an eighth of the patch"),
        ("[stage.brain]\nschedule = 'linear'", "stage.brain.schedule is 'linear': it should be 'cosine' or 'steps'"),
        ("[stage.brain]\nlearning_rate = inf", "stage.brain.learning_rate is inf"),
        ("[stage.brain]\nema = 1.0", "stage.brain.ema is 1.0"),
        ("[stage.brain]\nanisotropic = 2", "stage.brain.anisotropic is 2: it should be less than or equal to 1"),
        ("[stage.brain.augment]\nstrip = 3", "stage.brain.augment.strip is 3: it should be less than or equal to 1"),
        ("[stage.brain.augment]\ngain = [1]", "stage.brain.augment.gain.1 is .*: Field required"),
        ("[stage.brain]\naugment = 1", "stage.brain.augment is 1: it should be an object"),
        ("[stage.brain\n", "is no readable TOML"),
        ("init = 3\n[stage.brain]", "init is 3: it should be a valid string"),
        ("[stage.last]", "a stage's name is 'last'"),
        ("[stage.'a/b']", "a stage's name is 'a/b': give letters"),
        ("[stage.brain]\nupdates = 5\nwarmup = 5\nadversarial = 1", "warmup is 5: give fewer than the 5 updates"),
        ("[stage.brain]\nbatch = 100000", "stage.brain.batch is 100000: it should be less than or equal to 4096"),
        ("[stage.brain]\nseed = 99999999999999999999999", "stage.brain.seed is 9+: it should be less than 2147483648"),
        ("generator = 3\n[stage.brain]", "generator is 3: give a table"),
    ],
)
def test_what_no_run_can_have_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        load(str(file))
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("setting", "said"), [("batch.size=3", "batch"), ("updates", "give key=value")])
def test_a_setting_that_sets_nothing_is_refused(setting: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse({"stage": {"brain": {"batch": 1}}}, [setting])


def test_differences_are_told_by_key() -> None:
    before, after = parse(one()), parse(one(), ["batch=4", "generator.blocks=2"])
    assert sorted(after.differences(before)) == ["generator.blocks=2", "stage.brain.batch=4"]
    assert parse(one()).differences(parse({"stage": {"brain": {}, "more": {}}}))  # a stage fewer is a difference too


def test_a_checkpoints_configuration_is_plain(tmp_path: Path) -> None:
    def check(value: Any) -> None:
        assert type(value) in (dict, list, str, int, float, bool), value
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            check(item)

    check(load("paper").plain())
    assert tomllib.loads((config.CONFIGS / "paper.toml").read_text())["generator"] == {"name": "paper"}
