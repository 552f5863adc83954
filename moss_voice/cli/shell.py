"""What every command shares: where things are, how results are told, what errors become.

The law: results go to stdout and everything else to stderr; under `--json` stdout holds JSON alone. A
fault that the user can mend is one line and a hint, never a traceback.
"""

from __future__ import annotations

import asyncio
import errno
import inspect
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from moss_voice.errors import AuthenticationError, EncryptionKeyError, MossError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from moss_voice.client import MossClient

__all__ = [
    "EXIT_CODES",
    "Cache",
    "Cloud",
    "Host",
    "Journal",
    "Json",
    "KeyFile",
    "Pace",
    "ProjectId",
    "ProjectKey",
    "Shell",
    "command",
    "counted",
    "plain",
    "where",
]

T = TypeVar("T")

FAILED: Final = 1
NOT_FOUND: Final = 3
NOT_LET_IN: Final = 4
INTERRUPTED: Final = 130
EXIT_CODES: Final = (
    "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no such index, job or model,"
    " 4 wrong credentials or encryption key, 130 interrupted."
)

DEBUG: Final = "MOSS_VOICE_DEBUG"
_HINTS: Final = {
    "authentication": "give --project-id and --project-key, or MOSS_PROJECT_ID and MOSS_PROJECT_KEY",
    "cloud_unavailable": "check --cloud or MOSS_VOICE_CLOUD; `moss-voice doctor` looks closer",
    "conflict": "somebody else pushed meanwhile; run it again",
    "corrupt_data": "the stored bytes were changed or cut off; restore them or push the index anew",
    "encryption_key": "give the key with --key-file, MOSS_VOICE_ENCRYPTION_KEY_FILE or"
    " MOSS_VOICE_ENCRYPTION_KEY; `moss-voice key id` shows which are in use",
    "format_version": "upgrade moss-voice",
    "index_exists": "`moss-voice index add` adds to it, `moss-voice index delete` removes it",
    "index_not_found": "`moss-voice index list` shows what there is",
    "journal": "check the disk and --journal; `moss-voice doctor` looks closer",
    "model_load": "`moss-voice doctor` looks closer",
    "model_not_found": "take moss-minilm, or the directory of a model",
    "permission_denied": "the key reads only, or opens another project; give one that may",
    "recording_not_found": "`moss-voice recordings list` shows what there is",
    "rate_limited": "try again in a while",
    "too_large": "send it in smaller parts",
}
# Smaller downloads are over before anybody wonders.
_LARGE_BYTES: Final = 1_000_000

_WHERE: Final = "Where (before or after the command)"
Cloud = Annotated[
    str | None,
    typer.Option(
        "--cloud",
        metavar="PATH|URL",
        help="The cloud; else MOSS_VOICE_CLOUD, else a directory of this user.",
        rich_help_panel=_WHERE,
    ),
]
ProjectId = Annotated[
    str | None,
    typer.Option(
        "--project-id", metavar="ID", help="Else MOSS_PROJECT_ID.", rich_help_panel=_WHERE
    ),
]
ProjectKey = Annotated[
    str | None,
    typer.Option(
        "--project-key",
        metavar="KEY",
        help="Else MOSS_PROJECT_KEY, which other users of the machine cannot read.",
        rich_help_panel=_WHERE,
    ),
]
Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        metavar="DIR",
        help="Downloaded segments and graphs; else the user's cache directory.",
        rich_help_panel=_WHERE,
    ),
]
Journal = Annotated[
    Path | None,
    typer.Option(
        "--journal",
        metavar="DIR",
        help="Journals of calls; else in the user's data directory.",
        rich_help_panel=_WHERE,
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key-file",
        metavar="PATH",
        help="Encryption keys, one a line, the current one first; else"
        " MOSS_VOICE_ENCRYPTION_KEY_FILE or MOSS_VOICE_ENCRYPTION_KEY.",
        rich_help_panel=_WHERE,
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print JSON, and nothing else, to stdout.", rich_help_panel=_WHERE),
]
_SHARED: Final[dict[str, tuple[Any, object]]] = {
    "cloud": (Cloud, None),
    "project_id": (ProjectId, None),
    "project_key": (ProjectKey, None),
    "cache": (Cache, None),
    "journal": (Journal, None),
    "key_file": (KeyFile, None),
    "json": (Json, False),
}


class Pace(StrEnum):
    """How fast a call is played."""

    FAST = "fast"
    REAL = "real"


class Host(StrEnum):
    """What a call is played in."""

    AUTO = "auto"
    LIVEKIT = "livekit"
    NONE = "none"


@dataclass(frozen=True)
class Shell:
    """What the shared options say, and the ways to tell a result."""

    cloud: str | None = None
    project_id: str | None = None
    project_key: str | None = None
    cache: Path | None = None
    journal: Path | None = None
    key_file: Path | None = None
    json: bool = False

    def over(self, other: Shell) -> Shell:
        """Return these settings, filled up with another's where they are not given."""
        return Shell(*(getattr(self, f.name) or getattr(other, f.name) for f in fields(self)))

    def client(self) -> MossClient:
        """Make a client of the cloud that the options name."""
        from moss_voice.client import MossClient  # a second of imports that --help can do without

        return MossClient(
            self.project_id,
            self.project_key,
            cloud=self.cloud,
            cache_path=self.cache,
            journal_path=self.journal,
            encryption_key_file=self.key_file,
            on_received=self._bars.received if self.err.is_terminal else None,
        )

    @cached_property
    def out(self) -> Console:
        """The console of results."""
        return _console(stderr=False)

    @cached_property
    def err(self) -> Console:
        """The console of progress and notes."""
        return _console(stderr=True)

    @cached_property
    def _bars(self) -> _Bars:
        return _Bars(self.err)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a command's work to its end."""
        try:
            return asyncio.run(work)
        finally:
            self._bars.stop()

    async def ask(self, question: str) -> None:
        """Ask whoever sits at the terminal, and end the command unless the answer is yes."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bytes] = loop.create_future()

        def settle(line: bytes) -> None:
            if not answer.done():
                answer.set_result(line)

        def read() -> None:
            try:
                line = os.read(sys.stdin.fileno(), 1024)
            except OSError:
                line = b""
            with suppress(RuntimeError):  # interrupted: nobody waits any more
                loop.call_soon_threadsafe(settle, line)

        sys.stderr.write(f"{question} [y/N]: ")
        sys.stderr.flush()
        # A daemon past `sys.stdin`, whose lock would hold up the end: an interrupt does not wait for it.
        threading.Thread(target=read, daemon=True).start()
        try:
            line = await answer
        except asyncio.CancelledError:
            sys.stderr.write("\n")
            raise
        if line.strip().lower() not in {b"y", b"yes"}:
            raise typer.Exit(FAILED)

    def emit(self, document: object, *, indent: int | None = 2) -> None:
        """Print a JSON document to stdout; on one line where `indent` is None."""
        from pydantic_core import to_jsonable_python

        text = json.dumps(document, indent=indent, default=to_jsonable_python, allow_nan=False)
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    @contextmanager
    def progress(self, what: str, *, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
        """Show a bar on stderr, where somebody watches it, and give the function that moves it."""
        if quiet or not self.err.is_terminal:
            yield lambda *_: None
            return
        bars = self._bars
        bar = bars.add(what)
        try:
            yield lambda done, total: bars.move(bar, done, total, f"{done}/{total}")
        finally:
            bars.remove(bar)


class _Bars:
    """Bars on a terminal: all in one display, since a console bears no two; gone when they are done."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._display: Progress | None = None
        self._downloads: dict[tuple[str, int], TaskID] = {}

    def add(self, what: str, total: int | None = None, amount: str = "") -> TaskID:
        if self._display is None:
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            self._display = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.fields[amount]}", markup=False),
                TimeElapsedColumn(),
                console=self._console,
                transient=True,
                # Else rich would send what is written to stdout meanwhile to stderr.
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._display.start()
        return self._display.add_task(plain(what), total=total, amount=amount)

    def move(self, bar: TaskID, done: int, total: int, amount: str) -> None:
        if self._display is not None:
            self._display.update(bar, completed=done, total=total, amount=amount)

    def remove(self, bar: TaskID) -> None:
        if self._display is not None:
            self._display.remove_task(bar)
            if not self._display.tasks:
                self.stop()

    def received(self, index: str, done: int, total: int) -> None:
        """Show a large download; segments of one size share a bar."""
        if total < _LARGE_BYTES:
            return
        key = index, total
        amount = f"{done / 1e6:.1f}/{total / 1e6:.1f} MB"
        if done >= total:
            if key in self._downloads:
                self.remove(self._downloads.pop(key))
        elif key in self._downloads:
            self.move(self._downloads[key], done, total, amount)
        else:
            self._downloads[key] = self.add(f"Downloading {index}", total, amount)

    def stop(self) -> None:
        """Clear what is shown, also where the work was broken off."""
        if self._display is not None:
            self._display.stop()
            self._display = None
            self._downloads.clear()


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=False, emoji=False, markup=False)


@contextmanager
def quiet_recordings() -> Iterator[None]:
    """Leave out the warning that a call is recorded: of one that this program plays, it says so itself."""
    logger = logging.getLogger("moss_voice.call.witness")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def where(option: str | None, variable: str) -> str | None:
    """Return an option, or else the environment variable that stands for it; None for neither."""
    return option or os.environ.get(variable) or None


def plain(text: str) -> str:
    """Fold a text into one line without control characters, which could drive a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def counted(number: int, what: str) -> str:
    """Return a number of things: `1 object`, `2 objects`; `what` forms its plural with an s."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def command(app: typer.Typer, name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command: a function of a `Shell` and its own options, which gets the shared ones too.

    The shared options are taken before the command's name and after it; the later one counts.
    """

    def register(run: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(run, eval_str=True).parameters.values())[1:]

        def call(ctx: typer.Context, **options: Any) -> None:
            given = Shell(**{field: options.pop(field) for field in _SHARED})
            with _told():
                run(given.over(ctx.obj), **options)

        kind = inspect.Parameter.KEYWORD_ONLY
        parameters = [
            inspect.Parameter("ctx", kind, annotation=typer.Context),
            *(parameter.replace(kind=kind) for parameter in own),
            *(
                inspect.Parameter(field, kind, default=default, annotation=annotation)
                for field, (annotation, default) in _SHARED.items()
            ),
        ]
        # Typer reads a command's options off its signature, and older versions off its annotations.
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        call.__doc__ = run.__doc__
        app.command(name)(call)
        return run

    return register


@contextmanager
def _told() -> Iterator[None]:
    """Turn what goes wrong into a message and an exit code."""
    if os.environ.get(DEBUG):
        logging.basicConfig(level=logging.DEBUG)
    try:
        yield
    except MossError as error:
        _complain(str(error), _HINTS.get(error.code))
        raise typer.Exit(_exit_code(error)) from (error if _traceback(error) else None)
    except (KeyboardInterrupt, asyncio.CancelledError) as error:
        _complain("interrupted", None)
        raise typer.Exit(INTERRUPTED) from (error if _traceback(error) else None)
    except OSError as error:
        if error.errno == errno.EPIPE:  # `| head` is no fault: click ends quietly
            raise
        what = error.strerror or type(error).__name__
        _complain(f"{error.filename}: {what}" if error.filename else what, None)
        raise typer.Exit(FAILED) from (error if _traceback(error) else None)
    except Exception as error:
        if isinstance(error, typer.Exit | typer.Abort) or hasattr(error, "exit_code"):
            raise  # typer's own: it prints them
        # The message is left out: it may quote what somebody said.
        _complain(
            f"unexpected {type(error).__name__}; this is a fault of moss-voice",
            f"set {DEBUG}=1 to see where",
        )
        raise typer.Exit(FAILED) from (error if _traceback(error) else None)


def _exit_code(error: MossError) -> int:
    if isinstance(error, AuthenticationError | EncryptionKeyError):
        return NOT_LET_IN
    return NOT_FOUND if isinstance(error, LookupError) else FAILED


def _complain(message: str, hint: str | None) -> None:
    sys.stdout.flush()
    sys.stderr.write(f"error: {message}\n")
    if hint:
        sys.stderr.write(f"hint: {hint}\n")


def _traceback(error: BaseException) -> bool:
    if not os.environ.get(DEBUG):
        return False
    import traceback

    traceback.print_exception(error)
    return True
