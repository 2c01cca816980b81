import json
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from ffstream.config import Config, describe, load
from ffstream.errors import ConfigError
from ffstream.ff.presets import PRESETS, Recipe

SECTIONS = {name: value for name, value in Config() if isinstance(value, BaseModel)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "ffstream.toml"
    path.write_text(
        """
        state = "/from/file"
        [limits]
        clients_max = 1
        window_messages = 1
        [network]
        widths = [64, 32]
        [learning]
        linger_s = 0.5
        """
    )
    return path


def test_defaults() -> None:
    assert load(environment={}) == Config()
    assert load(environment={"HOME": "/", "FFSTREAM_CACHE": "/x", "FFSTREAM_MIRROR": "y"}) == Config()


def test_later_sources_win(file: Path) -> None:
    from_file = load(file, environment={})
    assert (from_file.limits.clients_max, from_file.limits.window_messages) == (1, 1)
    environment = {"FFSTREAM_LIMITS__CLIENTS_MAX": "2", "FFSTREAM_LIMITS__WINDOW_MESSAGES": "2"}
    from_environment = load(file, environment=environment)
    assert (from_environment.limits.clients_max, from_environment.limits.window_messages) == (2, 2)
    set_last = load(file, ["limits.clients_max=3", "limits.clients_max = 4"], environment)
    assert (set_last.limits.clients_max, set_last.limits.window_messages) == (4, 2)
    assert set_last.network.widths == (64, 32), "what nobody else names stays as the file has it"
    assert set_last.limits.commit_max_messages == Config().limits.commit_max_messages
    assert set_last.state == Path("/from/file")


def test_the_environment_is_read_unless_another_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FFSTREAM_PIPELINE__QUEUE_DEPTH", "9")
    assert load().pipeline.queue_depth == 9
    assert load(environment={}).pipeline.queue_depth == 4


@pytest.mark.parametrize(
    ("setting", "section", "key", "value"),
    [
        ("checkpoint.keep=7", "checkpoint", "keep", 7),
        ("checkpoint.every_s=0", "checkpoint", "every_s", 0.0),
        ("prequential.fraction=0.25", "prequential", "fraction", 0.25),
        ("pipeline.stages=[1, 1]", "pipeline", "stages", (1, 1)),
        ("pipeline.stages=[]", "pipeline", "stages", ()),
        ("pipeline.overflow=skip", "pipeline", "overflow", "skip"),
        ('pipeline.overflow="skip"', "pipeline", "overflow", "skip"),
        ("listen.learn=tcp://*:5757", "listen", "learn", "tcp://*:5757"),
        ("listen.http=a=b", "listen", "http", "a=b"),
        ("network.score_first_layer=false", "network", "score_first_layer", False),
    ],
)
def test_values_as_a_person_types_them(setting: str, section: str, key: str, value: Any) -> None:
    found = getattr(getattr(load(settings=[setting], environment={}), section), key)
    assert found == value
    assert type(found) is type(value)


def test_a_preset_fills_in_what_is_not_named() -> None:
    assert load(environment={}).network == PRESETS["stream"]
    for name, recipe in PRESETS.items():
        assert load(settings=[f"network.preset={name}"], environment={}).network == recipe
    mixed = load(settings=["network.preset=seed", "network.batch_size=8"], environment={}).network
    assert mixed.batch_size == 8
    assert mixed.objective == PRESETS["seed"].objective != PRESETS["stream"].objective


WRONG = [
    ("limits.clients=1", "limits.clients"),
    ("limit.clients_max=1", "limit"),
    ("typo=1", "typo"),
    ("network.width=[1]", "no option width"),
    ("network.preset=best", "no preset 'best'"),
    ("network.widths=5", "network"),
    ("network.goodness=cubes", "network"),
    ("network.batch_size=many", "network"),
    ("limits.clients_max=0", "limits.clients_max"),
    ("limits.clients_max=-1", "limits.clients_max"),
    ("limits.clients_max=1.5", "limits.clients_max"),
    ("limits.clients_max=x", "limits.clients_max"),
    ("limits.clients_max=[1]", "limits.clients_max"),
    ("limits.heartbeat_s=0", "limits.heartbeat_s"),
    ("limits.heartbeat_s=10000", "limits.heartbeat_s"),
    ("prequential.fraction=1.1", "prequential.fraction"),
    ("pipeline.overflow=drop", "pipeline.overflow"),
    ("pipeline.device=tpu", "pipeline.device"),
    ("limits=1", "limits"),
    ("state.folder=x", "state"),
    ("limits.clients_max.more=1", "limits.clients_max"),
    ("limits.clients_max", "limits.clients_max"),
    ("=1", "Extra inputs"),
    ("", "--set"),
]


@pytest.mark.parametrize(("setting", "named"), WRONG)
def test_a_wrong_setting_is_named(setting: str, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(settings=["limits.clients_max=5", setting], environment={})
    assert named in caught.value.message
    assert caught.value.hint


def test_a_wrong_variable_is_named() -> None:
    with pytest.raises(ConfigError, match=r"limits\.nothing"):
        load(environment={"FFSTREAM_LIMITS__NOTHING": "1"})


@pytest.mark.parametrize("content", [b"[limits\n", b"a = ", b"\xff\xfe", b"a = 1\na = 2\n", b"\0"])
def test_a_file_that_is_no_toml_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ffstream.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"ffstream\.toml") as caught:
        load(path, environment={})
    assert caught.value.hint


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(ConfigError, match=path.name):
            load(path, environment={})


def test_an_unknown_option_in_a_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ffstream.toml"
    path.write_text("[checkpoint]\nkeeep = 3\n")
    with pytest.raises(ConfigError, match=r"checkpoint\.keeep"):
        load(path, environment={})


def again(config: Config, tmp_path: Path) -> Config:
    path = tmp_path / "described.toml"
    path.write_text(describe(config))
    return load(path, environment={})


@pytest.mark.parametrize("preset", PRESETS)
def test_the_description_is_a_file_that_says_the_same(preset: str, tmp_path: Path) -> None:
    settings = [
        f"network.preset={preset}",
        "network.learning_rate=1e-7",
        "network.score_first_layer=false",
        "pipeline.stages=[1,1]",
        "checkpoint.every_s=1e20",
        "limits.clients_max=7",
        "listen.learn=ipc:///tmp/a b",
        "state=/a/b",
    ]
    config = load(settings=settings, environment={})
    assert config != Config()
    assert again(config, tmp_path) == config
    assert again(Config(), tmp_path) == Config()


@given(state=st.text(st.characters(exclude_characters="\0\x7f", exclude_categories=["Cs"]), min_size=1))
def test_any_path_survives_the_description(state: str) -> None:
    config = Config(state=Path(state))
    assert Path(tomllib.loads(describe(config))["state"]) == config.state


def test_the_description_shows_every_option_with_its_sentence() -> None:
    lines = describe(Config()).splitlines()
    for name, section in SECTIONS.items():
        assert f"[{name}]" in lines
        for key, info in type(section).model_fields.items():
            assert any(line.startswith(f"{key} = ") and line.endswith(f"# {info.description}") for line in lines)
    for field in fields(Recipe):
        assert any(line.startswith(f"{field.name} = ") and line.endswith(field.metadata["help"]) for line in lines)


def test_every_option_has_a_sentence_and_no_two_the_same() -> None:
    options = [info for section in SECTIONS.values() for info in type(section).model_fields.values()]
    sentences = [info.description or "" for info in options]
    sentences += [field.metadata["help"] for field in fields(Recipe)]
    sentences.append(Config.model_fields["state"].description or "")
    assert all(len(sentence) > 8 for sentence in sentences)
    assert len(set(sentences)) == len(sentences)


def test_every_section_but_the_network_has_a_sentence() -> None:
    assert set(SECTIONS) | {"state", "network"} == set(Config.model_fields)
    assert all(type(section).__doc__ for section in SECTIONS.values())


def test_every_number_has_a_limit() -> None:
    for name, section in SECTIONS.items():
        for key, info in type(section).model_fields.items():
            if info.annotation in (int, float):
                assert info.metadata, f"{name}.{key} may be anything"


def test_options_travel_as_json() -> None:
    options = json.loads(json.dumps(Config().model_dump(mode="json")))
    assert options["network"]["batch_size"] == Config().network.batch_size


def test_a_queue_that_a_polite_producer_could_fill_is_refused() -> None:
    with pytest.raises(ConfigError, match="above window_messages"):
        load(settings=["limits.window_messages=2048"], environment={})
    assert load(settings=["limits.window_messages=2047"], environment={}).limits.receive_queue_messages == 2048
    assert load(settings=["limits.receive_queue_messages=0"], environment={}).limits.window_messages == 1024


PARTITIONS = ("[1]", "[2,2]", "[3,0]", "[4,-1]")
PHASES = ("network.objective=threshold", "network.hand_on=labelled")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["learning.sleep=3", *PHASES], "learning.sleep without learning.wake"),
        (["learning.wake=3", "network.objective=softmax"], "learning.wake: network.objective must be threshold"),
        (["learning.wake=3", "network.objective=paired"], "learning.wake: network.objective must be threshold"),
        *((["network.widths=[8,8,8]", f"pipeline.stages={wrong}"], "3 layers") for wrong in PARTITIONS),
        (["network.inputs=12", "network.rehearsal=1", "network.rehearsal_jitter=1"], "network.rehearsal_jitter: 12"),
    ],
)  # fmt: skip
def test_options_that_do_not_go_together_are_named(settings: list[str], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(settings=settings, environment={})
    assert named in caught.value.message


@pytest.mark.parametrize(
    "settings",
    [
        ["learning.wake=3", "learning.sleep=2", *PHASES],
        ["network.widths=[8,8,8]", "pipeline.stages=[1,2]"],
        ["network.inputs=12", "network.rehearsal=0", "network.rehearsal_jitter=1"],
    ],
)
def test_options_that_go_together(settings: list[str]) -> None:
    load(settings=settings, environment={})
