"""`blockd`: the daemon, and the few commands that prepare its host."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

from blockd import __version__
from blockd.config import read_config
from blockd.domain.errors import BlockdError

_DEFAULT_CONFIG = Path("/etc/blockd/blockd.toml")
_CONFIG_OPTION = typer.Option("--config", help="The configuration file.")

app = typer.Typer(add_completion=False, no_args_is_help=False, rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def serve(
    context: typer.Context,
    config: Annotated[Path, _CONFIG_OPTION] = _DEFAULT_CONFIG,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Serve volumes and snapshots of this host's disks on a Unix socket."""
    if version:
        typer.echo(f"blockd {__version__}")
        return
    if context.invoked_subcommand is not None:
        return
    from blockd.daemon import run  # noqa: PLC0415 - check-config needs none of it
    from blockd.logs import set_up_logs  # noqa: PLC0415

    checked = read_config(config)
    set_up_logs(checked.log.level, checked.log.format)
    asyncio.run(run(checked))


@app.command("check-config")
def check_config(
    path: Annotated[Path, typer.Argument(help="The configuration file.")] = _DEFAULT_CONFIG,
) -> None:
    """Check a configuration file, without touching anything."""
    checked = read_config(path)
    typer.echo(f"{path}: fine; zone {checked.host.zone}, classes {', '.join(checked.classes)}")


@app.command("make-pool")
def make_pool(
    devices: Annotated[
        list[str] | None,
        typer.Argument(help="Empty disks for a new volume group; default: [lvm] devices."),
    ] = None,
    config: Annotated[Path, _CONFIG_OPTION] = _DEFAULT_CONFIG,
    storage_class: Annotated[
        str | None, typer.Option("--class", help="Default: the first class of the configuration.")
    ] = None,
) -> None:
    """Make what a class lives in, or say that it exists: a volume group, for thin also a pool."""
    from blockd.daemon import make_pools  # noqa: PLC0415

    typer.echo(asyncio.run(make_pools(read_config(config), storage_class, devices or [])))


@app.command("recover-catalog")
def recover_catalog(
    config: Annotated[Path, _CONFIG_OPTION] = _DEFAULT_CONFIG,
    catalog: Annotated[
        str | None, typer.Option("--catalog", help="The id of one of several catalogs.")
    ] = None,
    from_volumes: Annotated[
        bool,
        typer.Option("--from-volumes", help="Without a copy: of the LVs alone, with new names."),
    ] = False,
    new: Annotated[
        bool, typer.Option("--new", help="An empty one; LVs of others stay, and are not served.")
    ] = False,
) -> None:
    """Bring back a lost catalog where a start is refused; the next start does the rest."""
    from blockd.daemon import recover_catalog as recover  # noqa: PLC0415

    checked = read_config(config)
    recovering = recover(checked, catalog, from_volumes=from_volumes, begin_anew=new)
    typer.echo(asyncio.run(recovering))


def main() -> None:
    """The entry point: what cannot start says so in one line and ends with status 2."""
    try:
        app()
    except BlockdError as err:
        sys.stderr.write(f"blockd: {err}\n")
        sys.exit(2)
    except BaseExceptionGroup as group:
        faults = [fault for fault in group.exceptions if isinstance(fault, BlockdError)]
        if not faults:
            raise
        sys.stderr.write(f"blockd: {faults[0]}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
