"""What `ffstream config check` refuses, `serve` refuses in the same words, and neither needs torch for that."""

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from ffstream.checkpoint import manifest as manifests
from ffstream.cli import main
from ffstream.config import load
from ffstream.daemon import preflight
from ffstream.errors import CheckpointIncompatible, ConfigError, JournalIncompatible
from ffstream.journal.journal import Journal
from ffstream.security import keys
from tests.harness.commands import COMMAND_S
from tests.support import folder_contents, owned_by_another_user

TOKEN = "a-token-of-enough-letters"


class Site:
    """A folder with a key pair, folders of clients and a token, and options that name them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.public, self.secret = keys.create(folder / "keys", "daemon")
        self.token = folder / "token"
        self.token.touch(0o600)
        self.token.write_text(TOKEN, encoding="utf-8")
        self.options = {"state": str(self.state), "security.http_token": str(self.token)}
        self.options["security.server_key"] = str(self.secret)
        for name in ("learn", "predict", "control"):
            (folder / name).mkdir(0o700)
            self.options[f"security.{name}_clients"] = str(folder / name)

    def settings(self, **changed: str) -> list[str]:
        options = self.options | {name.replace("__", "."): value for name, value in changed.items()}
        return [f"{name}={json.dumps(value)}" for name, value in options.items()]

    def check(self, *more: str, **changed: str) -> None:
        preflight.check(load(settings=[*self.settings(**changed), *more], environment={}))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_valid_options_pass_and_nothing_is_created(site: Site) -> None:
    before = folder_contents(site.folder)
    site.check()
    assert folder_contents(site.folder) == before
    assert not site.state.exists()


def test_a_wrong_file_of_keys_is_refused_and_named(site: Site) -> None:
    garbage = site.folder / "garbage"
    garbage.write_text("public-key = short", encoding="utf-8")
    garbage.chmod(0o600)
    for wrong in (site.folder / "none", site.folder, garbage, site.public, site.token):
        with pytest.raises(ConfigError) as caught:
            site.check(security__server_key=str(wrong))
        assert caught.value.message.startswith(f"security.server_key: {wrong}")
        assert caught.value.hint
    site.secret.chmod(0o640)
    with pytest.raises(ConfigError, match=r"security\.server_key: .* can be accessed by users other"):
        site.check()


def test_a_wrong_token_file_is_refused_and_named(site: Site) -> None:
    short = site.folder / "short"
    short.touch(0o600)
    for wrong in (site.folder / "none", site.folder, short, site.public, site.secret):
        with pytest.raises(ConfigError) as caught:
            site.check(security__http_token=str(wrong))
        assert caught.value.message.startswith(f"security.http_token: {wrong}")
        assert caught.value.hint
    site.token.chmod(0o644)
    with pytest.raises(ConfigError, match=r"security\.http_token: .* can be accessed by users other"):
        site.check()


@pytest.mark.parametrize("name", ["learn", "predict", "control"])
def test_a_wrong_folder_of_clients_is_refused_and_named(site: Site, name: str) -> None:
    option = f"security.{name}_clients"
    for wrong in ("", str(site.folder / "none"), str(site.public)):
        with pytest.raises(ConfigError, match=f"^{option}"):
            site.check(**{f"security__{name}_clients": wrong})
    (site.folder / name).chmod(0o777)
    with pytest.raises(ConfigError, match=f"^{option}: other users may write"):
        site.check()


def test_an_exposed_socket_without_keys_is_refused(site: Site) -> None:
    site.check(listen__learn="tcp://*:5757", listen__http="[::]:8757")
    with pytest.raises(ConfigError, match=r"listen\.http"):
        site.check(listen__http="[::]:8757", security__http_token="")


def test_an_ipc_socket_in_a_folder_that_is_missing_is_refused(site: Site) -> None:
    site.check(listen__learn=f"ipc://{site.folder}/learn.sock")
    with pytest.raises(ConfigError, match=r"^listen\.learn = .*there is no folder"):
        site.check(listen__learn=f"ipc://{site.folder}/none/learn")


def test_a_state_that_cannot_be_a_folder_is_refused(site: Site) -> None:
    for wrong in (site.token, site.token / "below", site.token / "far" / "below"):
        with pytest.raises(ConfigError, match=r"^state = .*token is not a folder"):
            site.check(state=str(wrong))
    site.state.mkdir(0o777)
    site.state.chmod(0o777)
    with pytest.raises(ConfigError, match=r"^state: other users may write"):
        site.check()
    site.state.chmod(0o700)
    site.check()
    with owned_by_another_user(site.state), pytest.raises(ConfigError, match="belongs to another user"):
        preflight.check(load(settings=[f"state={site.state}"], environment={}))


def test_a_state_of_another_network_is_refused(site: Site) -> None:
    site.state.mkdir(0o700)
    with closing(Journal(site.state / "journal.sqlite", inputs=784, labels=10)):
        site.check()
        before = folder_contents(site.state)
        with pytest.raises(JournalIncompatible) as caught:
            site.check("network.labels=11")
        assert folder_contents(site.state) == before
    assert caught.value.message.startswith("network.labels = 11: the journal ")
    assert caught.value.message.endswith("was created with network.labels = 10")
    assert "network.labels=10" in caught.value.hint
    with pytest.raises(JournalIncompatible, match=r"network\.image_shape: its images have 900 numbers, .* have 784"):
        site.check("network.image_shape=[30,30]")


def test_checkpoints_of_another_recipe_are_refused(site: Site) -> None:
    folder = manifests.folder_of(site.state / "checkpoints", 7)
    folder.mkdir(0o700, parents=True)
    site.state.chmod(0o700)
    recipe = json.loads(json.dumps(load(environment={}).model_dump(mode="json")["network"]))
    (folder / manifests.STATE).write_bytes(b"12")
    files = {manifests.STATE: {"bytes": 2, manifests.CHECKSUM: "0"}}
    manifest = {"format": 1, "seq": 7, "recipe": recipe, "progress": {}, "files": files}
    (folder / manifests.MANIFEST).write_text(json.dumps(manifests.sign(manifest)), encoding="utf-8")
    site.check()
    with pytest.raises(
        CheckpointIncompatible, match=r"checkpoint 7 .*: network.layers\[0\]\.connection\.units = 20, not 500 "
    ):
        site.check("network.widths=[20,500]")


def test_a_restored_backup_of_a_newer_format_is_refused(site: Site) -> None:
    site.state.mkdir(0o700)
    for content, error in (
        (b"", None),
        ({"format": 1, "ffstream": "0.1"}, None),
        ({"format": 2, "ffstream": "9.1"}, "9.1"),
    ):
        (site.state / "backup.json").write_bytes(
            content if isinstance(content, bytes) else json.dumps(content).encode()
        )
        if error is None:
            site.check()
            continue
        with pytest.raises(ConfigError, match="backup of format 2, and this ffstream reads format 1") as caught:
            site.check()
        assert f"use ffstream {error}" in caught.value.hint


def test_a_device_that_is_not_there_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"pipeline\.device"):
        site.check("pipeline.device=cuda")


def test_nodes_of_a_cluster_may_have_a_device_that_this_machine_has_not(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    site.check("pipeline.engine=ray", "pipeline.device=cuda", "cluster.gpus=[1,1]")


def test_config_check_and_serve_say_the_same_with_code_2(site: Site) -> None:
    for changed in (
        {"security__server_key": str(site.public)},
        {"security__http_token": "/none"},
        {"listen__learn": "foo://x"},
        {"listen__http": "127.0.0.1:99999"},
        {"state": str(site.token)},
    ):
        arguments = [part for setting in site.settings(**changed) for part in ("--set", setting)]
        checked = CliRunner().invoke(main, ["config", "check", *arguments])
        served = subprocess.run(
            [sys.executable, "-m", "ffstream.cli", "serve", *arguments],
            capture_output=True,
            encoding="utf-8",
            timeout=COMMAND_S,
            check=False,
        )
        assert checked.exit_code == served.returncode == 2
        assert served.stderr == checked.output
        assert served.stderr.startswith("error: ")
        assert len(served.stderr.splitlines()) == 2, "nothing but what is wrong and what to do"


@pytest.mark.parametrize(
    "arguments",
    [
        ["config", "check"],
        ["config", "show"],
        ["config", "check", "--set", "limits.clients=1"],
        ["serve", "--set", "typo"],
        ["serve", "--set", "network.preset=best"],
        ["serve", "--set", "listen.http=127.0.0.1:99999"],
        ["serve", "--set", "security.http_token=/none"],
    ],
)
def test_options_are_checked_without_torch(arguments: list[str], tmp_path: Path) -> None:
    """Which takes seconds to import. So do numba and numpy, a little."""
    program = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('imported', {'torch', 'numba', 'numpy', 'rich'} & set(sys.modules)))\n"
        "from ffstream.cli import main\n"
        f"main({arguments!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        encoding="utf-8",
        env=os.environ | {"FFSTREAM_STATE": str(tmp_path / "state")},
        timeout=COMMAND_S,
        check=False,
    )
    assert done.returncode == (0 if arguments[-1] in ("check", "show") else 2), done.stderr
    assert done.stdout.splitlines()[-1] == "imported set()"
