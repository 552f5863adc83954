"""The commands as they are typed; each hands over to the module that does it.

What is heavy is imported when its command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from moss_voice.cli.shell import (
    EXIT_CODES,
    Cache,
    Cloud,
    Host,
    Journal,
    Json,
    KeyFile,
    Pace,
    ProjectId,
    ProjectKey,
    Shell,
    command,
)

__all__ = ["app"]

app = typer.Typer(
    name="moss-voice",
    help="The memory of voice agents: try it, replay calls, look after indexes.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # they would show local variables, and so transcripts
    context_settings={"help_option_names": ["-h", "--help"]},
)
index_app = typer.Typer(
    no_args_is_help=True, help="Create and look after indexes.", epilog=EXIT_CODES
)
project_app = typer.Typer(
    no_args_is_help=True,
    help="Make and end the keys of a server's projects, in its store.",
    epilog=EXIT_CODES,
)
session_app = typer.Typer(no_args_is_help=True, help="Look at stored calls.", epilog=EXIT_CODES)
recordings_app = typer.Typer(
    no_args_is_help=True,
    help="Recordings of calls, which hold text: list and delete them.",
    epilog=EXIT_CODES,
)
key_app = typer.Typer(
    no_args_is_help=True,
    help="Make encryption keys, and tell which are in use.",
    epilog=EXIT_CODES,
)
app.add_typer(index_app, name="index")
app.add_typer(session_app, name="session")
app.add_typer(project_app, name="project")
app.add_typer(key_app, name="key")
app.add_typer(recordings_app, name="recordings")


def _version(wanted: bool) -> None:
    if wanted:
        from moss_voice import __version__

        typer.echo(f"moss-voice {__version__}")
        raise typer.Exit


@app.callback()
def _start(
    ctx: typer.Context,
    cloud: Cloud = None,
    project_id: ProjectId = None,
    project_key: ProjectKey = None,
    cache: Cache = None,
    journal: Journal = None,
    key_file: KeyFile = None,
    as_json: Json = False,
    version: Annotated[  # noqa: ARG001 - its callback acts
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print it and leave."),
    ] = False,
) -> None:
    ctx.obj = Shell(cloud, project_id, project_key, cache, journal, key_file, as_json)


# --- options that several commands take ------------------------------------------------------------


def _duration(text: str | float) -> float:
    from moss_voice.cli.serving import seconds

    try:
        return seconds(str(text))
    except ValueError:
        raise typer.BadParameter("expected a duration such as 90s, 15m, 12h or 30d") from None


def _asked(yes: bool) -> None:
    """Refuse what somebody must be asked for, where nobody is there."""
    if not yes and not sys.stdin.isatty():
        raise typer.BadParameter("nobody is here to be asked: pass --yes", param_hint="--yes")


Files = Annotated[
    list[Path],
    typer.Argument(
        exists=True,
        help="FAQ files (.md .txt .json .jsonl .csv .tsv) or directories of them.",
        show_default=False,
    ),
]
Name = Annotated[str, typer.Argument(help="The index.", show_default=False)]
Names = Annotated[
    list[str] | None, typer.Argument(metavar="NAME", help="Indexes.", show_default=False)
]
AllOfThem = Annotated[bool, typer.Option("--all", help="Every index of the project.")]
Version = Annotated[
    int | None,
    typer.Option("--version", min=1, help="An older one; `index history` shows which there are."),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
MaxWords = Annotated[int, typer.Option(min=1, help="Longer passages are split between sentences.")]
PaceOption = Annotated[
    Pace, typer.Option("--pace", help="real takes as long as the speakers took.")
]
TopK = Annotated[int, typer.Option(min=1, help="The most hits in one context.")]
Deadline = Annotated[float, typer.Option(min=0.0, help="How long one context may take.")]
Explain = Annotated[
    bool, typer.Option("--explain", help="Tell what each hit was ranked by; JSON always does.")
]


def _parts(names: list[str]) -> list[str]:
    from moss_voice.ranking import check_parts

    try:
        check_parts(names)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return names


Without = Annotated[
    list[str],
    typer.Option(
        metavar="PART",
        callback=_parts,
        help="Leave out a part of the retrieval, to see what it does: conversation, keyword_window,"
        " focus, topic_change, neighbours, recency, spread, near_duplicates, numbers or gate.",
        show_default=False,
    ),
]


# --- commands --------------------------------------------------------------------------------------


@command(app, "demo")
def _demo(
    shell: Shell,
    host: Annotated[
        Host,
        typer.Option(help="A real LiveKit session, no host, or LiveKit where it is installed."),
    ] = Host.AUTO,
    pace: PaceOption = Pace.FAST,
    top_k: TopK = 5,
    deadline_ms: Deadline = 50.0,
    without: Without = [],  # noqa: B006 - typer's way; nobody changes it
    explain: Explain = False,
) -> None:
    """Play a support call, recalling before each reply; then another process takes it up."""
    from moss_voice.cli.demo import run_demo

    shell.run(
        run_demo(
            shell,
            host=host,
            pace=pace,
            top_k=top_k,
            deadline_ms=deadline_ms,
            without=without,
            explain=explain,
        )
    )


@command(app, "replay")
def _replay(
    shell: Shell,
    calls: Annotated[
        Path,
        typer.Argument(exists=True, dir_okay=False, help="Calls, one JSON object per line."),
    ],
    knowledge: Annotated[
        list[str] | None,
        typer.Option(metavar="INDEX|FILE", help="An index or an FAQ file to look things up in."),
    ] = None,
    focus: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD",
            help="A metadata field of it that holds names to focus on; else such fields are found.",
        ),
    ] = None,
    without: Without = [],  # noqa: B006 - as above
    explain: Explain = False,
    call: Annotated[str | None, typer.Option(metavar="ID", help="Play this call alone.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The most calls.")] = None,
    save: Annotated[
        bool, typer.Option("--save", help="Push to the cloud, not to a temporary one.")
    ] = False,
    record: Annotated[
        bool, typer.Option("--record", help="Keep recordings, which hold the text, for `inspect`.")
    ] = False,
    brief: Annotated[bool, typer.Option("--brief", help="A line per call.")] = False,
    pace: PaceOption = Pace.FAST,
    top_k: TopK = 5,
    deadline_ms: Deadline = 50.0,
    visible: Annotated[
        int, typer.Option(min=0, help="How many turns back the LLM sees without help.")
    ] = 6,
) -> None:
    """Play recorded calls, telling what was recalled for each reply; `--json` prints JSON lines."""
    from moss_voice.cli.replay import Options, run_replay

    if brief and explain:
        raise typer.BadParameter(
            "expected it without --brief, which shows no hits", param_hint="--explain"
        )
    options = Options(
        knowledge=tuple(knowledge or ()),
        focus=tuple(focus) if focus else None,
        without=without,
        explain=explain,
        call=call,
        limit=limit,
        save=save,
        record=record,
        brief=brief,
        pace=pace,
        top_k=top_k,
        deadline_ms=deadline_ms,
        visible=visible,
    )
    shell.run(run_replay(shell, calls, options))


RecordingsDir = Annotated[
    Path | None,
    typer.Option(
        "--recordings",
        metavar="DIR",
        file_okay=False,
        help="Where recordings are; else MOSS_VOICE_RECORD, else the user's data directory.",
    ),
]


@command(app, "inspect")
def _inspect(
    shell: Shell,
    call: Annotated[
        str,
        typer.Argument(
            metavar="CALL",
            help="`demo`, the id of a recorded call, the file of a recording, or a file of calls, one"
            " JSON object per line, of which one is played first.",
            show_default=False,
        ),
    ],
    one: Annotated[
        str | None, typer.Option("--call", metavar="ID", help="Of a file of calls, this one.")
    ] = None,
    knowledge: Annotated[
        list[str] | None,
        typer.Option(
            metavar="INDEX|FILE",
            help="For a file of calls: where to look things up, as in `replay`.",
        ),
    ] = None,
    focus: Annotated[
        list[str] | None, typer.Option(metavar="FIELD", help="For a file of calls, as in `replay`.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            dir_okay=False,
            help="Write one HTML file that needs nothing else; then end.",
        ),
    ] = None,
    redact: Annotated[
        bool,
        typer.Option(help="Leave card numbers, addresses, phone and id numbers out of that file."),
    ] = True,
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Ask the call again with this setting and show both side by side: alpha, top_k,"
            " min_score, max_tokens, without (parts, comma-separated) or focus.",
        ),
    ] = None,
    recordings: RecordingsDir = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes one that is free.")] = 0,
    browse: Annotated[bool, typer.Option(help="Open a browser, at a terminal.")] = True,
) -> None:
    """Look at a recorded call: what was recalled at each turn, from where, why, and how fast.

    A call is recorded where somebody asks for it: `record=True` for a call, MOSS_VOICE_RECORD=1 for all of
    a process, `replay --record`. A recording holds what was said, as text, on this machine.
    """
    from moss_voice.cli import inspecting

    look = inspecting.Look(
        call,
        call=one,
        knowledge=tuple(knowledge or ()),
        focus=tuple(focus) if focus else None,
        directory=recordings,
        out=out,
        redact=redact,
        against=tuple(against or ()),
        port=port,
        browse=browse,
    )
    shell.run(inspecting.inspect(shell, look))


@command(recordings_app, "list")
def _recordings_list(shell: Shell, recordings: RecordingsDir = None) -> None:
    """List recorded calls, the newest first."""
    from moss_voice.cli import inspecting

    inspecting.list_all(shell, recordings)


@command(recordings_app, "delete")
def _recordings_delete(
    shell: Shell,
    calls: Annotated[
        list[str] | None, typer.Argument(metavar="CALL", help="Ids of calls.", show_default=False)
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Those of every call.")] = False,
    older_than: Annotated[
        float | None,
        typer.Option(
            parser=_duration, metavar="DURATION", help="Only those that are older, such as 30d."
        ),
    ] = None,
    recordings: RecordingsDir = None,
    yes: Yes = False,
) -> None:
    """Delete recordings of some calls, or of all."""
    from moss_voice.cli import inspecting

    if (bool(calls) and everything) or not (calls or everything or older_than is not None):
        raise typer.BadParameter("expected ids of calls, --all or --older-than", param_hint="CALL")
    _asked(yes)
    shell.run(
        inspecting.delete(
            shell,
            calls or [],
            directory=recordings,
            older_than_s=older_than,
            everything=everything,
            sure=yes,
        )
    )


@command(index_app, "create")
def _index_create(
    shell: Shell,
    name: Name,
    files: Files,
    model: Annotated[
        str | None,
        typer.Option(help="moss-minilm, moss-mediumlm, custom, or a model's directory."),
    ] = None,
    max_words: MaxWords = 150,
    ttl: Annotated[
        float | None,
        typer.Option(
            parser=_duration,
            metavar="DURATION",
            help="Delete it so long after its last change, such as 30d; else never.",
        ),
    ] = None,
) -> None:
    """Embed FAQ files and store them as a new index."""
    from moss_voice.cli import indexes

    shell.run(indexes.create(shell, name, files, model=model, max_words=max_words, ttl_s=ttl))


@command(index_app, "add")
def _index_add(
    shell: Shell,
    name: Name,
    files: Files,
    upsert: Annotated[
        bool, typer.Option(help="Update documents whose id is known, or leave them.")
    ] = True,
    max_words: MaxWords = 150,
) -> None:
    """Add FAQ files to an index."""
    from moss_voice.cli import indexes

    shell.run(indexes.add(shell, name, files, upsert=upsert, max_words=max_words))


@command(index_app, "list")
def _index_list(shell: Shell) -> None:
    """List the indexes of the project, calls among them."""
    from moss_voice.cli import indexes

    shell.run(indexes.list_all(shell))


@command(index_app, "show")
def _index_show(shell: Shell, name: Name) -> None:
    """Tell about one index."""
    from moss_voice.cli import indexes

    shell.run(indexes.show(shell, name))


@command(index_app, "delete")
def _index_delete(
    shell: Shell,
    name: Name,
    yes: Yes = False,
) -> None:
    """Delete an index with all its versions."""
    from moss_voice.cli import indexes

    _asked(yes)
    shell.run(indexes.delete(shell, name, sure=yes))


@command(index_app, "export")
def _index_export(
    shell: Shell,
    name: Name,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", dir_okay=False, help="Else stdout.")
    ] = None,
    version: Version = None,
) -> None:
    """Write the documents as JSON lines, which `index create` reads."""
    from moss_voice.cli import indexes

    shell.run(indexes.export(shell, name, out, version=version))


@command(index_app, "history")
def _index_history(shell: Shell, name: Name) -> None:
    """List the versions that are still kept, newest first."""
    from moss_voice.cli import versions

    shell.run(versions.history(shell, name))


@command(index_app, "restore")
def _index_restore(
    shell: Shell,
    name: Name,
    version: Annotated[
        int, typer.Argument(min=1, help="As `index history` shows it.", show_default=False)
    ],
    yes: Yes = False,
) -> None:
    """Make a new version with the documents of an older one."""
    from moss_voice.cli import versions

    _asked(yes)
    shell.run(versions.restore(shell, name, version, sure=yes))


@command(index_app, "gc")
def _index_gc(
    shell: Shell,
    names: Names = None,
    everything: AllOfThem = False,
    grace: Annotated[
        float,
        typer.Option(
            parser=_duration,
            metavar="DURATION",
            help="How old something must be to be removed: an hour or more, else 24h.",
            show_default=False,
        ),
    ] = 24 * 3600.0,
    keep: Annotated[int, typer.Option(min=1, help="Versions to keep, however old.")] = 10,
) -> None:
    """Remove old versions and what no version needs, also of indexes that were deleted.

    Pushes do it now and then by themselves. What a push under way may be using is left.
    """
    from moss_voice.cli import versions

    if grace < 3600.0:
        raise typer.BadParameter("expected an hour or more", param_hint="--grace")
    shell.run(versions.collect(shell, _chosen(names, everything), grace_s=grace, keep=keep))


@command(index_app, "ttl")
def _index_ttl(
    shell: Shell,
    name: Name,
    period: Annotated[
        str,
        typer.Argument(
            metavar="DURATION|off",
            help="Such as 90s, 15m, 12h or 30d; off keeps it until somebody deletes it.",
            show_default=False,
        ),
    ],
    yes: Yes = False,
) -> None:
    """Set how long after its last change an index is deleted."""
    from moss_voice.cli import versions

    ttl_s = None
    if period != "off":
        try:
            ttl_s = _duration(period)
        except typer.BadParameter as error:
            raise typer.BadParameter(f"{error.message}, or off", param_hint="DURATION") from None
    shell.run(versions.set_ttl(shell, name, ttl_s, sure=yes))


@command(index_app, "encrypt")
def _index_encrypt(shell: Shell, names: Names = None, everything: AllOfThem = False) -> None:
    """Seal indexes with the current encryption key: those of before it, or of older keys.

    Their older versions are removed, since others could read them.
    """
    from moss_voice.cli import versions

    shell.run(versions.encrypt(shell, _chosen(names, everything)))


def _chosen(names: list[str] | None, everything: bool) -> list[str] | None:
    """Return the indexes that were named; None for all."""
    if everything == bool(names):
        raise typer.BadParameter("expected names of indexes, or --all", param_hint="NAME")
    return names or None


@command(app, "query")
def _query(
    shell: Shell,
    name: Name,
    text: Annotated[str, typer.Argument(help="What to look for.", show_default=False)],
    top_k: Annotated[int, typer.Option(min=1, help="The most results.")] = 5,
    alpha: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="1 by meaning, 0 by keywords.")
    ] = 0.8,
    filter: Annotated[  # noqa: A002 - the option's published name
        str | None,
        typer.Option(
            metavar="JSON", help='Such as {"field": "plan", "condition": {"$eq": "pro"}}.'
        ),
    ] = None,
    min_score: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Leave out what scores lower.")
    ] = None,
    explain: Explain = False,
) -> None:
    """Ask an index."""
    from moss_voice.cli import indexes
    from moss_voice.types import QueryOptions

    options = QueryOptions(top_k=top_k, alpha=alpha, filter=_filter(filter), min_score=min_score)
    shell.run(indexes.query(shell, name, text, options, explain=explain))


def _filter(raw: str | None) -> dict[str, Any] | None:
    if raw is None:
        return None
    try:
        value = json.loads(raw)
    except ValueError as error:
        raise typer.BadParameter(f"not JSON: {error}", param_hint="--filter") from None
    if not isinstance(value, dict):
        raise typer.BadParameter("expected a JSON object", param_hint="--filter")
    from moss_voice.errors import FilterError
    from moss_voice.filters import parse_filter

    try:
        parse_filter(value)
    except FilterError as error:
        raise typer.BadParameter(str(error), param_hint="--filter") from None
    return value


@command(session_app, "show")
def _session_show(
    shell: Shell,
    name: Annotated[str, typer.Argument(help="The call.", show_default=False)],
    version: Version = None,
) -> None:
    """Print the turns of a stored call in the order spoken."""
    from moss_voice.cli import indexes

    shell.run(indexes.show_session(shell, name, version=version))


@command(app, "recover")
def _recover(shell: Shell) -> None:
    """Push what waits here: turns of calls whose process died, pushes that no cloud took."""
    from moss_voice.cli import indexes

    shell.run(indexes.recover(shell))


@command(app, "forget")
def _forget(
    shell: Shell,
    filter: Annotated[  # noqa: A002 - as in `query`
        str | None,
        typer.Option(
            metavar="JSON", help='Such as {"field": "caller_id", "condition": {"$eq": "c-17"}}.'
        ),
    ] = None,
    field: Annotated[
        str | None, typer.Option(help="A metadata field, in place of --filter ...")
    ] = None,
    equals: Annotated[str | None, typer.Option(help="... and its value.")] = None,
    index: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Look here alone; else in every index of the project."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what would go, and leave it.")
    ] = False,
    yes: Yes = False,
) -> None:
    """Delete documents by their metadata from all versions of all indexes, and verify it.

    What waits on this machine to be pushed is pushed first, so that nothing brings them back.

    Calls under way and backups are not reached, nor other machines' caches and journals: run it there.
    """
    from moss_voice.cli import versions

    if (field is None) != (equals is None) or (filter is None) == (field is None):
        raise typer.BadParameter(
            "expected a filter, or a field and what it equals", param_hint="--filter"
        )
    raw = json.dumps({"field": field, "condition": {"$eq": equals}}) if filter is None else filter
    condition = _filter(raw)
    if not condition:
        raise typer.BadParameter(
            "expected a condition; an empty one would forget everything", param_hint="--filter"
        )
    if not dry_run:
        _asked(yes)
    shell.run(versions.forget(shell, condition, index or None, dry_run=dry_run, sure=yes))


@command(app, "doctor")
def _doctor(shell: Shell) -> None:
    """Check versions, model, cloud, journal and speed on this machine."""
    from moss_voice.cli.doctor import run_doctor

    shell.run(run_doctor(shell))


# --- encryption keys -------------------------------------------------------------------------------


@command(key_app, "new")
def _key_new(shell: Shell) -> None:
    """Print a new encryption key to stdout; keep it well, for nothing opens what it sealed without it."""
    from moss_voice.cli import versions

    versions.new(shell)


@command(key_app, "id")
def _key_id(shell: Shell) -> None:
    """Tell the ids of the keys in use, the current one first; never the keys."""
    from moss_voice.cli import versions

    versions.show_ids(shell)


# --- the server ------------------------------------------------------------------------------------

Store = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="PATH|URL",
        help="A directory, s3://, gs:// or az://; else MOSS_VOICE_STORE, else a directory of this user.",
    ),
]
Project = Annotated[str, typer.Argument(help="The project's id.", show_default=False)]
ReadOnly = Annotated[bool, typer.Option("--read-only", help="A key that cannot change anything.")]


ExpiresIn = Annotated[
    float | None,
    typer.Option(parser=_duration, metavar="DURATION", help="Such as 12h or 30d; else never."),
]


@command(app, "serve")
def _serve(
    shell: Shell,
    store: Store = None,
    host: Annotated[
        str, typer.Option(help="The address to listen on; 0.0.0.0 or :: for every one.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes one that is free.")] = 8333,
    metrics_port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Serve /metrics there, not beside the API."),
    ] = None,
    max_segment_mb: Annotated[
        int, typer.Option(min=1, help="The largest push, in units of 2**20 bytes.")
    ] = 512,
    max_indexes: Annotated[int, typer.Option(min=1, help="The most per project.")] = 100_000,
    requests_per_s: Annotated[
        float, typer.Option(min=0.0, help="Of a project, in the long run; 0 for any number.")
    ] = 500.0,
    burst: Annotated[int, typer.Option(min=1, help="Of a project, at once.")] = 1000,
    shutdown_s: Annotated[
        float, typer.Option(min=0.1, help="How long requests may go on when asked to end.")
    ] = 30.0,
    log_level: Annotated[
        str, typer.Option(help="debug, info (a line per request), warning or error.")
    ] = "info",
    trusted_proxies: Annotated[
        str,
        typer.Option(metavar="ADDRESSES", help="Whose X-Forwarded-For is believed; else nobody's."),
    ] = "",
    tls_cert: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A chain in PEM.")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Its private key in PEM.")
    ] = None,
    dashboard: Annotated[
        bool, typer.Option("--dashboard/--no-dashboard", help="Pages for people at /.")
    ] = True,
    search_mb: Annotated[
        int,
        typer.Option(
            min=0, help="Memory for indexes searched on the server, in units of 2**20 bytes."
        ),
    ] = 512,
) -> None:
    """Serve a store to clients that have a key of `moss-voice project create`."""
    from moss_voice.cli import serving

    if log_level not in {"debug", "info", "warning", "error"}:
        raise typer.BadParameter("expected debug, info, warning or error", param_hint="--log-level")
    serving.run_server(
        shell,
        store,
        serving.ServeOptions(
            host=host,
            port=port,
            metrics_port=metrics_port,
            log_level=log_level,
            trusted_proxies=trusted_proxies,
            tls_cert=tls_cert,
            tls_key=tls_key,
            dashboard=dashboard,
            limits={
                "max_segment_bytes": max_segment_mb << 20,
                "max_indexes": max_indexes,
                "requests_per_s": requests_per_s,
                "burst": burst,
            },
            settings={"shutdown_s": shutdown_s, "search_bytes": search_mb << 20},
        ),
    )


@command(project_app, "create")
def _project_create(
    shell: Shell,
    project: Project,
    store: Store = None,
    read_only: ReadOnly = False,
    expires_in: ExpiresIn = None,
) -> None:
    """Make a project, or one more key of it; the key is shown this once."""
    from moss_voice.cli import serving

    shell.run(
        serving.create(shell, project, store=store, read_only=read_only, expires_in_s=expires_in)
    )


@command(project_app, "rotate-key")
def _project_rotate(
    shell: Shell,
    project: Project,
    store: Store = None,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Rotate the read-only key, not the full one.")
    ] = False,
    expires_in: ExpiresIn = None,
    revoke_old_in: Annotated[
        float | None,
        typer.Option(
            parser=_duration,
            metavar="DURATION",
            help="When the old ones end, such as 24h; else when they are revoked.",
        ),
    ] = None,
) -> None:
    """Make a new key; the old ones work beside it until they end, so that there is no gap."""
    from moss_voice.cli import serving

    shell.run(
        serving.rotate(
            shell,
            project,
            store=store,
            read_only=read_only,
            expires_in_s=expires_in,
            end_old_in_s=revoke_old_in,
        )
    )


@command(project_app, "revoke")
def _project_revoke(
    shell: Shell,
    project: Project,
    key_ids: Annotated[
        list[str], typer.Argument(help="As `project list` shows them.", show_default=False)
    ],
    store: Store = None,
) -> None:
    """End keys for good; servers notice within seconds, and their tokens end with them."""
    from moss_voice.cli import serving

    shell.run(serving.revoke(shell, project, key_ids, store=store))


@command(project_app, "list")
def _project_list(
    shell: Shell,
    project: Annotated[
        str | None, typer.Argument(help="This project alone.", show_default=False)
    ] = None,
    store: Store = None,
) -> None:
    """List projects and their keys, without the keys themselves."""
    from moss_voice.cli import serving

    shell.run(serving.list_keys(shell, project, store=store))
