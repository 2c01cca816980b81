"""`ffstream journal`: shows the content of a journal and verifies it. Read-only; a daemon may be running."""

from pathlib import Path
from typing import Any

import click

from ffstream.checkpoint.inspection import inspect
from ffstream.checkpoint.manifest import CHECKPOINTS
from ffstream.cli import options, states
from ffstream.cli.output import print_json, progress_bar
from ffstream.daemon.state import StateLock
from ffstream.errors import ConfigError
from ffstream.journal import clean_close, identity, inspection
from ffstream.journal.inspection import Findings, Summary
from ffstream.journal.schema import JOURNAL
from ffstream.journal.verification import Verification

_LARGEST = 5


@click.group(epilog=options.example("ffstream journal stat --state STATE"))
def journal() -> None:
    """Inspect the journal of a state folder. A daemon may be running on it."""


@journal.command(epilog=options.example("ffstream journal stat --state STATE"))
@options.config_file
@options.state_folder
@options.as_json
@click.pass_context
def stat(context: click.Context, file: Path | None, state: Path | None, as_json: bool) -> None:
    """Show what the journal contains, without reading images. Exit code 1 if damage was found."""
    folder = states.folder(file, state)
    path = folder / JOURNAL
    with inspection.opened(path) as connection:
        summary = inspection.summarize(connection)
    _check_log(path, summary.findings)
    result = _stat(path, summary, _newest(folder))
    if as_json:
        print_json(result)
    else:
        _show_stat(result)
        _show_problems(summary.findings)
    _end(context, path, summary.findings, result["checkpoint_seq"])


@journal.command(epilog=options.example("ffstream journal verify --state STATE --json"))
@options.config_file
@options.state_folder
@options.as_json
@click.pass_context
def verify(context: click.Context, file: Path | None, state: Path | None, as_json: bool) -> None:
    """Verify every byte: checksums, lengths, numbers. Runs SQLite's own check. Exit code 1 if damage was found."""
    folder = states.folder(file, state)
    path = folder / JOURNAL
    with inspection.opened(path) as connection, progress_bar(quiet=as_json) as bar:
        verification = Verification(connection)
        task = bar.add_task("verifying samples", total=verification.estimate())
        verification.run(lambda samples: bar.update(task, completed=samples), bar.refresh)
    _check_log(path, verification.findings)
    findings, newest = verification.findings, _newest(folder)
    result = {
        "path": str(path),
        "messages": verification.messages,
        "samples": verification.samples,
        "first_seq": verification.first_seq,
        "last_seq": verification.last_seq,
        "checkpoint_seq": newest,
    } | _problems(findings)
    if as_json:
        print_json(result)
    else:
        _show_problems(findings)
        verdict = "intact" if not findings.count else "DAMAGED"
        click.echo(f"{path}: {verdict}; {verification.samples:,} samples in {verification.messages:,} messages read")
    _end(context, path, findings, newest)


@journal.command(epilog=options.example("ffstream journal accept --state STATE"))
@options.config_file
@options.state_folder
def accept(file: Path | None, state: Path | None) -> None:
    """Accept a journal whose -wal file is missing. No daemon may be running.

    A daemon does not start with such a journal, because it may be a copy without that file. Then the samples that
    were acked last are missing: restore both files if you have them. Nothing is lost if another SQLite program has
    opened the journal after a crash, because it has written the content of the -wal file into the journal.
    """
    folder = states.folder(file, state)
    path = folder / JOURNAL
    if not path.is_file():
        raise ConfigError(f"no journal at {path}", hint="use --state with the state folder of a daemon")
    lock = StateLock(folder)
    if not lock.take():
        raise ConfigError(
            f"{folder} is in use by a daemon", hint="that daemon has accepted the journal; if not, stop it"
        )
    try:
        if not clean_close.lacks_its_log(path):
            click.echo(f"{path}: nothing to accept")
            return
        clean_close.accept(path)
        with inspection.opened(path) as connection:
            summary = inspection.summarize(connection)
        click.echo(f"{path}: accepted; its last sample is {summary.next_seq - 1:,}")
    finally:
        lock.release()


def _check_log(path: Path, findings: Findings) -> None:
    if clean_close.lacks_its_log(path):
        findings.add(f"it was not closed cleanly and {path.name}-wal is missing: samples may be missing at the end")


def _newest(folder: Path) -> int:
    """The checkpoint from which a daemon would start, judged by its manifest; 0 if there is none."""
    return next((found.seq for found in inspect(folder / CHECKPOINTS, thoroughly=False) if not found.problem), 0)


def _stat(path: Path, summary: Summary, newest: int) -> dict[str, Any]:
    log = path.with_name(path.name + "-wal")
    return {
        "path": str(path),
        "version": summary.meta.get("version"),
        "inputs": summary.meta.get("inputs"),
        "labels": summary.meta.get("labels"),
        "origin": summary.origin.source if summary.origin else None,
        "first_seq": summary.first_seq,
        "last_seq": summary.last_seq,
        "next_seq": summary.next_seq,
        "samples": summary.samples,
        "messages": summary.messages,
        "file_bytes": path.stat().st_size,
        "wal_bytes": log.stat().st_size if log.exists() else 0,
        "used_bytes": summary.used_bytes,
        "clients": summary.clients,
        "receipts": summary.receipts,
        "largest_clients": [_client(*each) for each in summary.by_client.most_common(_LARGEST)],
        "checkpoint_seq": newest,
        "backlog": max(0, summary.next_seq - 1 - newest),
        "gaps": states.as_dicts(summary.gaps),
    } | _problems(summary.findings)


def _client(client: str, samples: int) -> dict[str, Any]:
    key, name = identity.split(client)
    return {"key": key, "client": name, "samples": samples}


def _problems(findings: Findings) -> dict[str, Any]:
    return {
        "whole": not findings.count,
        "damaged_samples": findings.samples,
        "problems_count": findings.count,
        "problems": states.as_dicts(findings.named),
    }


def _show_stat(result: dict[str, Any]) -> None:
    content = states.samples(result["first_seq"], result["last_seq"]) if result["messages"] else "none"
    largest = ", ".join(
        f"{identity.show(each['key'], each['client'])} {each['samples']:,}" for each in result["largest_clients"]
    )
    states.show(
        {
            "journal": f"{result['path']}, version {result['version']}",
            "network": f"{result['inputs']} inputs, {result['labels']} labels",
            "started from": result["origin"] or "random weights",
            "content": f"{content}; {result['samples']:,} in {result['messages']:,} messages",
            "next": f"sample {result['next_seq']:,}",
            "to learn": f"{result['backlog']:,} samples after checkpoint {result['checkpoint_seq']:,}",
            "on disk": f"{states.size(result['used_bytes'])} in use; file {states.size(result['file_bytes'])}, "
            f"log {states.size(result['wal_bytes'])}",
            "clients": f"{result['clients']:,}, {result['receipts']:,} receipts"
            + (f"; {largest}" if largest else ""),
        }
    )


def _show_problems(findings: Findings) -> None:
    for problem in findings.named:
        where = f"{states.samples(problem.first_seq, problem.last_seq)} " if problem.last_seq else ""
        click.echo(f"damaged: {where}{problem.what}")
    more = findings.count - len(findings.named)
    if more:
        click.echo(f"damaged: and {more:,} more")


def _end(context: click.Context, path: Path, findings: Findings, newest: int) -> None:
    lost = [problem for problem in findings.named if problem.last_seq > newest]
    first = min((problem.first_seq for problem in lost), default=0)
    # Damage without a sequence number may concern samples that only the journal has.
    is_complete = findings.count == len(findings.named) and all(problem.last_seq for problem in findings.named)
    if findings.count == 1 and clean_close.lacks_its_log(path):
        hint = clean_close.HINT
    elif findings.count and is_complete and not lost:
        hint = f"checkpoint {newest} has learned all damaged samples: keep it; nothing is lost while it is intact"
    elif first > newest + 1:
        hint = (
            f"a daemon learns up to sample {first - 1} and fails there: restore the journal from a backup, or start"
        )
        hint += " with a new --state folder and send the samples again"
    else:
        hint = "restore the journal from a backup, or start with a new --state folder and send the samples again"
    states.end(context, intact=not findings.count, hint=hint)
