import codecs
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from ffstream.config import Config, describe, load, options, validate
from ffstream.errors import ConfigError
from ffstream.ff.presets import PRESETS, recipe
from ffstream.ff.recipe import LayerOptions
from ffstream.ff.tables import LAYER_DEFAULTS, NETWORK_DEFAULTS
from ffstream.util.option_errors import show
from ffstream.util.option_sources import Given

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


def test_later_sources_override_earlier_ones(file: Path) -> None:
    from_file = load(file, environment={})
    assert (from_file.limits.clients_max, from_file.limits.window_messages) == (1, 1)
    environment = {"FFSTREAM_LIMITS__CLIENTS_MAX": "2", "FFSTREAM_LIMITS__WINDOW_MESSAGES": "2"}
    from_environment = load(file, environment=environment)
    assert (from_environment.limits.clients_max, from_environment.limits.window_messages) == (2, 2)
    set_last = load(file, ["limits.clients_max=3", "limits.clients_max = 4"], environment)
    assert (set_last.limits.clients_max, set_last.limits.window_messages) == (4, 2)
    units = [dict(layer.connection)["units"] for layer in set_last.network.layers]
    assert units == [64, 32], "what nobody else names stays as the file has it"
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
        ("security.http_token=a=b", "security", "http_token", "a=b"),
        ("security.insecure=true", "security", "insecure", True),
        ("network.image_shape=[32,32,3]", "network", "image_shape", (32, 32, 3)),
    ],
)
def test_values_are_parsed_as_toml(setting: str, section: str, key: str, value: Any) -> None:
    found = getattr(getattr(load(settings=[setting], environment={}), section), key)
    assert found == value
    assert type(found) is type(value)


def test_a_preset_sets_the_other_options() -> None:
    assert load(environment={}).network == recipe("stream")
    for name in PRESETS:
        assert load(settings=[f"network.preset={name}"], environment={}).network == recipe(name)
    mixed = load(settings=["network.preset=overlay", "network.batch_size=8"], environment={}).network
    assert mixed.batch_size == 8
    assert mixed.layers == recipe("overlay").layers != recipe("stream").layers


def test_layers_can_be_composed_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "ffstream.toml"
    path.write_text(
        """
        [network]
        preset = "fast"
        image_shape = [32, 32, 3]
        learning_rate = 1e-3
        [[network.layers]]
        connection = { kind = "dense", units = 600 }
        objective = { kind = "softmax", alpha = 4 }
        [[network.layers]]
        connection = { kind = "dense", units = 500 }
        label_scheme = "groups"
        learning_rate = 2e-3
        """,
        encoding="utf-8",
    )
    network = load(path, ["network.goodness=mean_squares"], environment={}).network
    assert [dict(layer.connection)["units"] for layer in network.layers] == [600, 500]
    assert [layer.learning_rate for layer in network.layers] == [1e-3, 2e-3]
    assert [dict(layer.objective)["alpha"] for layer in network.layers] == [4.0, 0.05]
    assert [layer.label_scheme.kind for layer in network.layers] == ["vectors", "groups"]
    assert {layer.goodness.kind for layer in network.layers} == {"mean_squares"}
    assert network.batch_size == 256


WRONG = [
    ("limits.clients=1", "limits.clients"),
    ("limit.clients_max=1", "limit"),
    ("typo=1", "typo"),
    ("network.width=[1]", "network.width: there is no such option"),
    ("network.preset=best", 'network.preset = "best": expected one of '),
    ("network.preset=[1]", "network.preset = [1]"),
    ("network.widths=5", "network.widths = 5: expected a list of whole numbers from 1, for example [512, 512]"),
    ("network.goodness=cubes", 'network.goodness.kind = "cubes": expected one of mean_squares, sum, sum_squares'),
    ("network.batch_size=many", 'network.batch_size = "many": expected a whole number, at least 1'),
    ("network.objective.alpha=-1", "network.objective.alpha = -1: expected a number, at least 0"),
    ("network.objective.alfa=1", "network.objective.alfa: there is no such option"),
    ("network.layers=[{connection={units=0}}]", "network.layers[0].connection.units = 0: expected a whole number"),
    ("network.layers=[{learning=1}]", "network.layers[0].learning: there is no such option"),
    ("network.layers=[{connection={units=9},label_scheme='groups'}]", '"groups": 9 units cannot be divided among 10'),
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
    ("cluster.cpus=[1,-1]", "cluster.cpus = [1, -1]: expected numbers from 0"),
    ("cluster.gpus=[1.5,1]", "cluster.gpus = [1.5, 1]: expected a share of one GPU, or whole numbers"),
    ("cluster.resources=['big=2,GPU=1','']", "GPU is not a custom resource; set cluster.cpus or cluster.gpus"),
    ("cluster.resources=['big=0','']", "is not NAME=AMOUNT"),
    ("limits=1", "limits = 1: expected a section of options, not a value"),
    ("state.folder=x", 'state = {folder = "x"}: expected text in quotes'),
    ("limits.clients_max.more=1", "clients_max is an option, not a section"),
    ("limits.clients_max", "--set limits.clients_max: the value is missing"),
    ("=1", "--set =1: expected SECTION.KEY=VALUE"),
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
def test_an_invalid_toml_file_is_named(tmp_path: Path, content: bytes) -> None:
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
def test_the_description_can_be_loaded_again(preset: str, tmp_path: Path) -> None:
    stages = list(recipe(preset).stage_sizes())
    settings = [
        f"network.preset={preset}",
        "network.learning_rate=1e-7",
        "network.score_weight=0.5",
        f"pipeline.stages={stages}",
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
def test_any_path_survives_a_round_trip(state: str) -> None:
    config = Config(state=Path(state))
    assert Path(tomllib.loads(describe(config))["state"]) == config.state


def test_the_description_shows_every_option() -> None:
    lines = describe(Config()).splitlines()
    for name, section in SECTIONS.items():
        assert f"[{name}]" in lines
        for key, info in type(section).model_fields.items():
            if key != "layers":
                assert any(line.startswith(f"{key} = ") and line.endswith(f"# {info.description}") for line in lines)
    for key, info in LayerOptions.model_fields.items():
        assert any(line.startswith(f"{key} = ") and line.endswith(f"# {info.description}") for line in lines)
    assert lines.count("[[network.layers]]") == 2


def test_every_option_has_a_unique_description() -> None:
    options = [info for section in SECTIONS.values() for info in type(section).model_fields.values()]
    sentences = [info.description or "" for info in options]
    sentences += [info.description or "" for info in LayerOptions.model_fields.values()]
    sentences.append(Config.model_fields["state"].description or "")
    assert all(len(sentence) > 8 for sentence in sentences)
    assert len(set(sentences)) == len(sentences)


def test_every_section_has_a_description() -> None:
    assert set(SECTIONS) | {"state"} == set(Config.model_fields)
    assert all(type(section).__doc__ for section in SECTIONS.values())


def test_every_number_has_a_limit() -> None:
    for name, section in SECTIONS.items():
        for key, info in type(section).model_fields.items():
            if info.annotation in (int, float):
                assert info.metadata, f"{name}.{key} may be anything"


def test_options_survive_a_round_trip_through_json() -> None:
    options = json.loads(json.dumps(Config().model_dump(mode="json")))
    assert options["network"]["batch_size"] == Config().network.batch_size


def test_a_receive_queue_smaller_than_the_window_is_rejected() -> None:
    said = "limits.receive_queue_messages = 2048: must be greater than limits.window_messages = 2048"
    with pytest.raises(ConfigError, match=re.escape(said)):
        load(settings=["limits.window_messages=2048"], environment={})
    assert load(settings=["limits.window_messages=2047"], environment={}).limits.receive_queue_messages == 2048
    assert load(settings=["limits.receive_queue_messages=0"], environment={}).limits.window_messages == 1024


PARTITIONS = ("[1]", "[2,2]", "[3,0]", "[4,-1]")
PHASES = ("network.preset=fast", "network.objective=threshold", "network.activities=label_conditioned")
RAY = "pipeline.engine=ray"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["network.sleep=3", *PHASES], "network.sleep = 3: needs network.wake"),
        (["network.wake=3", "network.objective=softmax"], "network.wake = 3: objective = \"softmax\" cannot learn"),
        (["network.wake=3", "network.objective=paired"], "network.wake = 3: objective = \"paired\" cannot learn"),
        (["network.wake=3", *PHASES], "network.wake = 3: without network.sleep or learning.sleep_when_quiet_s"),
        (
            ["prequential.drift_detector=adwin", "prequential.fraction=0", "prequential.busy_fraction=0"],
            'prequential.drift_detector = "adwin": with fraction = 0 and busy_fraction = 0 nothing is predicted',
        ),
        *((["network.widths=[10,10,10]", f"pipeline.stages={wrong}"], "number of layers, 3") for wrong in PARTITIONS),
        (["network.image_shape=[12]", "network.replay=1"], "network.image_shape = [12] has no rows and columns"),
        (["cluster.replicas=2"], 'cluster.replicas = 2: replicas need pipeline.engine = "ray"'),
        (["cluster.cpus=[1,2,3]", "network.widths=[10,10]"], "cluster.cpus = [1, 2, 3]: expected an entry for each"),
        (["pipeline.overflow=skip", RAY], 'pipeline.overflow = "skip": between processes a full queue always blocks'),
        ([RAY, "pipeline.device=cuda"], "cluster.gpus = []: with pipeline.device"),
        ([RAY, "pipeline.device=cuda", "network.widths=[10,10]", "cluster.gpus=[1,0]"], "cluster.gpus = [1, 0]"),
    ],
)  # fmt: skip
def test_conflicting_options_are_named(settings: list[str], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(settings=settings, environment={})
    assert named in caught.value.message


@pytest.mark.parametrize(
    "settings",
    [
        ["network.wake=3", "network.sleep=2", *PHASES],
        ["network.wake=3", "learning.sleep_when_quiet_s=5", *PHASES],
        ["network.widths=[10,10,10]", "pipeline.stages=[1,2]"],
        ["network.image_shape=[12]", "network.replay=0", "network.replay_jitter=1"],
        [RAY, "pipeline.device=cuda", "network.widths=[10,10]", "cluster.gpus=[0.5,1]"],
    ],
)
def test_compatible_options_are_accepted(settings: list[str]) -> None:
    load(settings=settings, environment={})


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["network.drift=restart", "network.ema_samples=0"], "network.drift reason=there are no EMA weights"),
        (["network.drift.threshold=9", "network.preset=wake-sleep"], "network.drift reason=rows of both signs"),
        (["network.preset=fast", "network.replay_jitter=2"], "network.replay_jitter reason=no image is replayed"),
        (["network.preset=fast", "network.replay_flip=true"], "network.replay_flip reason=no image is replayed"),
        (
            ["network.replay_edges=repeat", "network.replay_jitter=0"],
            "network.replay_edges reason=no image is shifted",
        ),
        (
            ["network.preset=unsupervised", "network.score_weight=0"],
            'network.score_weight reason=readout = "softmax"',
        ),
    ],
)
def test_a_setting_without_effect_is_a_warning(
    settings: list[str], named: str, caplog: pytest.LogCaptureFixture
) -> None:
    load(settings=settings, environment={})
    (message,) = caplog.messages
    assert f"option={named}" in message


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_and_defaults_cause_no_warnings(preset: str, caplog: pytest.LogCaptureFixture) -> None:
    load(settings=[f"network.preset={preset}"], environment={})
    load(settings=["network.ema_samples=0", "network.replay=0"], environment={})
    assert not caplog.records


FOREIGN = (
    "input should",
    "valid",
    "unable to",
    "permitted",
    "pydantic",
    "value error",
    "validation",
    "errors.",
    "got ",
)
VALUES: tuple[Any, ...] = (
    "many",
    True,
    -1,
    -1.5,
    0,
    1.5,
    10**9,
    float("nan"),
    float("inf"),
    [],
    [0],
    ["x"],
    {},
    {"a": 1},
    "",
)


PARTS = [f"network.{key}" for key in ("preprocessing", *NETWORK_DEFAULTS, *LAYER_DEFAULTS)]


def tree_of(name: str, value: Any) -> dict[str, Any]:
    section, _, key = name.rpartition(".")
    return {section: {key: value}} if section else {key: value}


@pytest.mark.parametrize("name", [*options(), "network.preset"])
def test_errors_say_what_an_option_expects(name: str) -> None:
    """Errors name the option and the value, and do not quote the validation library."""
    refused = 0
    for value in VALUES:
        if isinstance(value, dict) and name in {*SECTIONS, *PARTS}:
            continue  # a table may be valid; its options have their own names
        sources = Given(())
        sources.tree = tree_of(name, value)
        try:
            validate(sources)
        except ConfigError as error:
            refused += 1
            message = error.message
            assert re.match(r"[a-z_.]+ = ", message)
            assert name in message
            assert show(value) in message or (value == 0 and "false" in message), message
            assert not any(word in message.lower() for word in FOREIGN), message
            assert error.hint  # noqa: PT017
    assert refused >= 2


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("limits.clients", "limits.clients_max"),
        ("limit.clients_max", "limits.clients_max"),
        ("clients_max", "limits.clients_max"),
        ("network.keep", "checkpoint.keep"),
        ("queue_depth", "pipeline.queue_depth or prequential.queue_depth"),
        ("Network.Seed", "network.seed"),
        ("network.widht", "network.widths"),
        ("network.presets", "network.preset"),
        ("stat", "state"),
    ],
)
def test_a_misspelt_option_gets_a_suggestion(written: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(written)}: there is no such option") as caught:
        load(settings=[f"{written}=1"], environment={})
    assert f"did you mean {meant}?" in caught.value.hint


def test_an_unknown_name_that_is_not_similar_gets_no_suggestion() -> None:
    for written in ("network.hidden", "typo", "limits.x", "rubbish.more"):
        with pytest.raises(ConfigError, match="there is no such option") as caught:
            load(settings=[f"{written}=1"], environment={})
        assert "did you mean" not in caught.value.hint


def test_a_misspelt_choice_gets_a_suggestion() -> None:
    for setting, meant in (("pipeline.overflow=Blok", "block"), ("network.preset=steam", "stream")):
        with pytest.raises(ConfigError, match="expected one of") as caught:
            load(settings=[setting], environment={})
        assert f"did you mean {meant}?" in caught.value.hint


def test_an_error_says_where_the_option_was_set(file: Path) -> None:
    file.write_text("[limits]\nclients_max = 0\nclient_names_max = 0\n", encoding="utf-8")
    with pytest.raises(ConfigError) as from_file:
        load(file, environment={})
    assert f"limits.clients_max is set by {file}; " in from_file.value.hint
    with pytest.raises(ConfigError) as from_environment:
        load(file, ["limits.client_names_max=1"], {"FFSTREAM_LIMITS__CLIENTS_MAX": "-1"})
    assert from_environment.value.message.startswith("limits.clients_max = -1: ")
    assert "limits.clients_max is set by FFSTREAM_LIMITS__CLIENTS_MAX; " in from_environment.value.hint
    with pytest.raises(ConfigError) as from_setting:
        load(file, ["limits.clients_max=-2"], {"FFSTREAM_LIMITS__CLIENTS_MAX": "-1"})
    assert "is set by" not in from_setting.value.hint


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path, mark: bytes, end: bytes) -> None:
    path = tmp_path / "ffstream.toml"
    path.write_bytes(mark + end.join(('state = "é–"'.encode(), b"[limits]", b"clients_max = 7", b"")))
    config = load(path, environment={})
    assert (config.state, config.limits.clients_max) == (Path("é–"), 7)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_file_in_another_unicode_encoding_is_named(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "ffstream.toml"
    path.write_bytes("[limits]\n".encode(encoding))
    with pytest.raises(ConfigError, match=r"ffstream\.toml: the file is UTF-16 or UTF-32") as caught:
        load(path, environment={})
    assert caught.value.hint == "save it as UTF-8"


def test_a_line_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ffstream.toml"
    path.write_bytes("# a\n# é\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"ffstream\.toml: line 2 is not UTF-8"):
        load(path, environment={})


ENDPOINTS = [
    ("foo://x", "tcp://HOST:PORT or ipc://PATH"),
    ("inproc://x", "tcp://HOST:PORT or ipc://PATH"),
    ("127.0.0.1:5757", "tcp://HOST:PORT or ipc://PATH"),
    ("tcp://127.0.0.1", "there is no port"),
    ("tcp://[::1]", "there is no port"),
    ("tcp://127.0.0.1:", "'' is not a port"),
    ("tcp://127.0.0.1:99999", "from 1 to 65535"),
    ("tcp://127.0.0.1:-1", "'-1' is not a port"),
    ("tcp://127.0.0.1:http", "'http' is not a port"),
    ("tcp://::1:5757", "in brackets: [::1]"),
    ("tcp://[::g]:5757", "[::g] is not an IPv6 address"),
    ("tcp://[127.0.0.1]:5757", "[127.0.0.1] is not an IPv6 address"),
    ("tcp://999.0.0.1:5757", "999.0.0.1 is not an IPv4 address"),
    ("tcp://:5757", "'' is not a host"),
    ("tcp://a b:5757", "'a b' is not a host"),
    ("ipc://", "with the path of a socket"),
    ("ipc://" + "x" * 108, "at most 107 bytes, this one has 108"),
]


@pytest.mark.parametrize(("endpoint", "reason"), ENDPOINTS)
def test_invalid_endpoints_are_rejected(endpoint: str, reason: str) -> None:
    for name in ("learn", "predict", "control"):
        with pytest.raises(ConfigError) as caught:
            load(settings=[f"listen.{name}={endpoint}"], environment={})
        assert caught.value.message.startswith(f'listen.{name} = "')
        assert reason in caught.value.message


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("http://127.0.0.1:8757", "without a scheme"),
        ("127.0.0.1", "there is no port"),
        ("127.0.0.1:99999", "from 1 to 65535, or 0 for any"),
        ("127.0.0.1:*", "'*' is not a port"),
        ("*:8757", "'*' is not a host"),
        ("::1:8757", "in brackets: [::1]"),
        ("8757", "expected text in quotes"),
    ],
)
def test_invalid_http_addresses_are_rejected(address: str, reason: str) -> None:
    for name in ("http", "standby_http"):
        with pytest.raises(ConfigError, match=rf"^listen\.{name} = ") as caught:
            load(settings=[f"listen.{name}={address}"], environment={})
        assert reason in caught.value.message


@pytest.mark.parametrize(
    "setting",
    [
        "learn=tcp://[::1]:5757",
        "learn=tcp://[::]:*",
        "learn=tcp://[fe80::1%eth0]:5757",
        "learn=tcp://eth0:5757",
        "learn=tcp://*:0",
        "learn=tcp://host.example:65535",
        "learn=ipc:///run/ffstream/learn",
        "learn=ipc://@abstract",
        "http=[::1]:8757",
        "http=:0",
        "standby_http=",
        "http=localhost:8757",
    ],
)
def test_valid_endpoints_are_accepted(setting: str) -> None:
    load(settings=[f"listen.{setting}"], environment={})


@pytest.mark.parametrize(
    ("one", "other", "collide"),
    [
        ("learn=tcp://127.0.0.1:1234", "predict=tcp://127.0.0.1:1234", True),
        ("learn=tcp://localhost:1234", "http=127.0.0.1:1234", True),
        ("learn=tcp://localhost:1234", "standby_http=127.0.0.1:1234", True),
        ("learn=tcp://*:1234", "http=127.0.0.1:1234", True),
        ("learn=tcp://[::]:1234", "http=0.0.0.0:1234", True),
        ("learn=tcp://0.0.0.0:1234", "http=10.0.0.1:1234", True),
        ("learn=tcp://[::1]:1234", "predict=tcp://[0:0::1]:1234", True),
        ("learn=ipc:///a", "predict=ipc:///a", True),
        ("learn=tcp://127.0.0.1:1234", "predict=tcp://127.0.0.2:1234", False),
        ("learn=tcp://[::1]:1234", "predict=tcp://127.0.0.1:1234", False),
        ("learn=tcp://*:*", "predict=tcp://*:*", False),
        ("learn=tcp://*:0", "http=:0", False),
        ("learn=ipc:///a", "predict=ipc:///b", False),
        ("learn=ipc://*", "predict=ipc://*", False),
    ],
)
def test_two_sockets_on_one_address_are_rejected(one: str, other: str, collide: bool) -> None:
    settings = [f"listen.{one}", f"listen.{other}"]
    if not collide:
        load(settings=settings, environment={})
        return
    with pytest.raises(ConfigError, match="uses this address, too") as caught:
        load(settings=settings, environment={})
    name, _, address = other.partition("=")
    assert caught.value.message.startswith(f'listen.{name} = "{address}": listen.learn uses this address, too')
