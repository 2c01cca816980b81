"""`ffstream journal`: what a journal holds and whether it is whole. Read-only, with or without a daemon on it."""

from pathlib import Path
from typing import Any

import click

from ffstream.checkpoint.inspection import look
from ffstream.cli import options, states
from ffstream.cli.output import print_json, progress_bar
from ffstream.daemon.state import StateLock
from ffstream.errors import ConfigError
from ffstream.journal import clean_close, identity, inspection
from ffstream.journal.inspection import Findings, Summary
from ffstream.journal.verification import Verification

_LARGEST = 5


@click.group()
def journal() -> None:
    """Look at a state folder's journal. Changes nothing, whether or not a daemon runs on it."""


@journal.command()
@options.config_file
@options.state_folder
@options.as_json
@click.pass_context
def stat(context: click.Context, file: Path | None, state: Path | None, as_json: bool) -> None:
    """Show what the journal holds, without reading images. Exit code 1 if it is damaged as far as that shows."""
    folder = states.folder(file, state)
    path = folder / "journal.sqlite"
    with inspection.opened(path) as connection:
        summary = inspection.summarize(connection)
    _look_for_log(path, summary.findings)
    result = _stat(path, summary, _newest(folder))
    if as_json:
        print_json(result)
    else:
        _show_stat(result)
        _show_problems(summary.findings)
    _end(context, path, summary.findings, result["checkpoint_seq"])


@journal.command()
@options.config_file
@options.state_folder
@options.as_json
@click.pass_context
def verify(context: click.Context, file: Path | None, state: Path | None, as_json: bool) -> None:
    """Read every byte: checksums, lengths, numbers, SQLite's own check. Exit code 1 if anything is wrong."""
    folder = states.folder(file, state)
    path = folder / "journal.sqlite"
    with inspection.opened(path) as connection, progress_bar(quiet=as_json) as bar:
        verification = Verification(connection)
        task = bar.add_task("verifying samples", total=verification.estimate())
        verification.run(lambda samples: bar.update(task, completed=samples), bar.refresh)
    _look_for_log(path, verification.findings)
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
        verdict = "whole" if not findings.count else "DAMAGED"
        click.echo(f"{path}: {verdict}; {verification.samples:,} samples in {verification.messages:,} messages read")
    _end(context, path, findings, newest)


@journal.command()
@options.config_file
@options.state_folder
def accept(file: Path | None, state: Path | None) -> None:
    """Take a journal for whole whose -wal file is missing. A daemon must not be running.

    A daemon refuses such a journal: it may be a copy that was made without that file, and then it lacks the samples
    that were acked last. Restore both files if you have them. Nothing is lost if another SQLite program opened the
    journal after a crash: it has written the -wal file's content into the journal.
    """
    folder = states.folder(file, state)
    path = folder / "journal.sqlite"
    if not path.is_file():
        raise ConfigError(f"no journal at {path}", hint="--state names a daemon's state folder")
    lock = StateLock(folder)
    if not lock.take():
        raise ConfigError(f"{folder} is in use by a daemon", hint="that daemon has accepted the journal, or stop it")
    try:
        if not clean_close.lacks_its_log(path):
            click.echo(f"{path}: nothing to accept")
            return
        clean_close.accept(path)
        with inspection.opened(path) as connection:
            summary = inspection.summarize(connection)
        click.echo(f"{path}: accepted as it is; it ends at sample {summary.next_seq - 1:,}")
    finally:
        lock.release()


def _look_for_log(path: Path, findings: Findings) -> None:
    if clean_close.lacks_its_log(path):
        findings.add(f"it was not closed cleanly and {path.name}-wal is missing: samples may be missing at the end")


def _newest(folder: Path) -> int:
    """The checkpoint from which a daemon would begin, by a cheap look; 0 without one."""
    return next((found.seq for found in look(folder / "checkpoints", thoroughly=False) if not found.problem), 0)


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
    held = states.samples(result["first_seq"], result["last_seq"]) if result["messages"] else "none"
    largest = ", ".join(
        f"{identity.show(each['key'], each['client'])} {each['samples']:,}" for each in result["largest_clients"]
    )
    states.show(
        {
            "journal": f"{result['path']}, version {result['version']}",
            "network": f"{result['inputs']} inputs, {result['labels']} labels",
            "began from": result["origin"] or "random weights",
            "held": f"{held}; {result['samples']:,} in {result['messages']:,} messages",
            "next": f"sample {result['next_seq']:,}",
            "to learn": f"{result['backlog']:,} samples behind checkpoint {result['checkpoint_seq']:,}",
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
    # Damage without a number may be anywhere, in what only the journal has as well.
    is_told = findings.count == len(findings.named) and all(problem.last_seq for problem in findings.named)
    if findings.count == 1 and clean_close.lacks_its_log(path):
        hint = clean_close.HINT
    elif findings.count and is_told and not lost:
        hint = f"checkpoint {newest} has learned all damaged samples: keep it; nothing is lost while it is whole"
    elif first > newest + 1:
        hint = f"a daemon learns up to sample {first - 1} and fails there: put the journal back from a copy, or begin"
        hint += " another --state folder and send again from there on"
    else:
        hint = "put the journal back from a copy, or begin another --state folder and send again"
    states.end(context, whole=not findings.count, hint=hint)
