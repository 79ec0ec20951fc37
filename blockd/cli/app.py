"""The command line of `blockctl`: its commands, the options of all of them, and how errors end."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from blockd import __version__

from . import backups, doctor, events, groups, host, jobs, pools, snapshots, volumes
from .client import Client
from .complete import DEFAULT_SOCKET
from .failures import Code, Failure, usage
from .output import Output
from .session import Session
from .text import clean

FLAGS = frozenset({"--json", "--quiet", "-q", "--bytes"})
VALUED = frozenset({"--socket", "--zone", "--project"})

EVERYWHERE = (
    "Every command also takes --json, --quiet, --bytes, --project, --zone and --socket:"
    " see blockctl --help."
)
EXIT_CODES = """\b
Exit codes:
  0  done
  1  the operation failed, or the daemon is degraded
  2  usage, or an argument that is not valid
  3  there is no such resource
  4  timed out: the operation goes on in the daemon
  5  refused: in use, busy, in the wrong state, or no room
  6  the daemon cannot be reached
  7  not permitted
"""


class Root(TyperGroup):
    """The root command; ends a run that fails with one line and an exit code."""

    def list_commands(self, ctx: Any) -> list[str]:
        """In `--help`: what is used most comes first."""
        nouns = ["volume", "snapshot", "job"]
        return [*nouns, *(n for n in super().list_commands(ctx) if n not in nouns)]

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for. Raises typer.Exit."""
        try:
            return super().invoke(ctx)
        except Failure as failure:
            complain(failure.text)
            raise typer.Exit(failure.code) from None
        except KeyboardInterrupt:
            goes_on = isinstance(ctx.obj, Session) and ctx.obj.client.changing
            complain(f"interrupted{'; what was begun goes on in the daemon' if goes_on else ''}")
            raise typer.Exit(Code.INTERRUPTED) from None
        except BrokenPipeError:  # typer would make an error of it; main() knows it is none
            return None


app = typer.Typer(
    cls=Root,
    help="Volumes and snapshots of this host's storage daemon, blockd.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"blockctl {__version__}")
        raise typer.Exit


@app.callback()
def root(
    ctx: typer.Context,
    json: Annotated[bool, typer.Option("--json", help="Print the API's own JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print ids alone.")] = False,
    exact: Annotated[bool, typer.Option("--bytes", help="Print sizes as exact numbers.")] = False,
    project: Annotated[
        str | None,
        typer.Option(
            "--project",
            envvar="BLOCKD_PROJECT",
            metavar="ID",
            help="Act for this project alone; without it lists show all projects.",
        ),
    ] = None,
    zone: Annotated[
        str | None,
        typer.Option(
            "--zone", envvar="BLOCKD_ZONE", metavar="ZONE", help="Without it, the daemon is asked."
        ),
    ] = None,
    socket: Annotated[
        str,
        typer.Option(
            "--socket", envvar="BLOCKD_SOCKET", metavar="PATH", help="The daemon's socket."
        ),
    ] = DEFAULT_SOCKET,
    version: Annotated[  # noqa: ARG001 - its callback has answered
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print blockctl's version."
        ),
    ] = False,
) -> None:
    """Make the session. These options may stand before or after the command."""
    client = Client(socket or DEFAULT_SOCKET, zone or None)
    ctx.call_on_close(client.close)
    ctx.obj = Session(client, Output(json, quiet, exact), project or None)


app.add_typer(volumes.app, name="volume")
app.add_typer(snapshots.app, name="snapshot")
app.add_typer(groups.app, name="group")
app.add_typer(jobs.app, name="job")
app.add_typer(pools.app, name="pool")
app.add_typer(backups.app, name="backup")
app.command()(events.events)
app.command()(host.health)
app.command()(doctor.doctor)
app.command()(host.version)
for group in (
    app,
    volumes.app,
    snapshots.app,
    groups.app,
    jobs.app,
    pools.app,
    backups.app,
):
    for command in group.registered_commands:
        command.epilog = EVERYWHERE


def run(argv: Sequence[str]) -> int:
    """Run one command line; returns the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        # Not standalone: typer's own errors take three lines, or a box.
        return int(app(hoist(argv), prog_name="blockctl", standalone_mode=False) or 0)
    except Failure as failure:
        complain(failure.text)
        return failure.code
    except Exception as err:  # noqa: BLE001 - a person never sees a traceback
        # typer carries click inside, or not, by its version: its errors have no name to import.
        if hasattr(err, "format_message"):
            _complain_of_usage(err)
            return Code.USAGE
        complain(f"this is a bug in blockctl: {type(err).__name__}: {err}")
        return Code.FAILED


def hoist(argv: Sequence[str]) -> list[str]:
    """Move the options that every command has to the front, where typer looks for them.

    Raises:
        Failure: one of them lacks its value, or a word is not UTF-8.
    """
    front: list[str] = []
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--":
            rest += [word, *words]
        elif word in FLAGS or ("=" in word and word.split("=", 1)[0] in VALUED):
            front.append(word)
        elif not word.isascii() and not _is_text(word):
            raise usage(f"{word} is not valid UTF-8")
        elif word in VALUED:
            value = next(words, None)
            if value is None:
                raise usage(f"{word} needs a value")
            front += [word, value]
        else:
            rest.append(word)
    return [*front, *rest]


def _is_text(word: str) -> bool:
    """False for bytes of the shell that are not UTF-8; Python holds them as lone surrogates."""
    return not any(0xD800 <= ord(c) <= 0xDFFF for c in word)


def complain(text: str) -> None:
    """One line on stderr, harmless on a terminal."""
    print(f"blockctl: {clean(text)}", file=sys.stderr)


def _complain_of_usage(err: Any) -> None:
    text = str(err.format_message()).replace("Value error, ", "")  # pydantic's, under typer
    if "Usage:" in text:  # a group without a command: its help is the answer
        print(text, file=sys.stderr)
        return
    context = getattr(err, "ctx", None)
    asked = context.command_path if context is not None else "blockctl"
    complain(f"{text[:1].lower()}{text[1:].rstrip('.')}: see {asked} --help")
