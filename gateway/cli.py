"""The command `hotindex`. What a subcommand needs is imported when it runs: the client's need nothing of the server's."""

from __future__ import annotations

import gc
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from hotindex.client import DEFAULT_URL
from hotindex.errors import HotindexError
from typer.exceptions import TyperException

app = typer.Typer(
    name="hotindex",
    help="A WebSocket gateway around a live vector index.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _websocket(url: str) -> str:
    if not url.lower().startswith(("ws://", "wss://")):
        raise TyperException(f"--url is {url!r}: it takes the WebSocket address, ws:// or wss://")
    return url


Url = Annotated[
    str,
    typer.Option("--url", envvar="HOTINDEX_URL", callback=_websocket, help="The gateway's WebSocket address"),
]
Text = Annotated[str | None, typer.Argument(metavar="TEXT", help="What to look for")]
User = Annotated[
    str | None, typer.Option("--user", metavar="USER_ID", help="Instead of TEXT: what is recommended to this user")
]
HttpUrl = Annotated[str, typer.Option("--http-url", envvar="HOTINDEX_HTTP_URL", help="The gateway's HTTP address")]


def main() -> None:
    """Run the command line; anything wrong is one line on standard error and an exit status that isn't 0."""
    # A product with the hot buffer is too small to be shared between cores: where they are busy, one part waits for the
    # other. It has to be said before numpy is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    app.command(name="serve")(_with_settings(serve) if sys.argv[1:2] == ["serve"] else serve)
    try:
        status = app(standalone_mode=False)
    except TyperException as error:
        _fail(error.format_message(), 2)
    except HotindexError as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Who read the output has enough of it. Python would complain once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str, status: int) -> None:
    print(f"hotindex: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)


def serve(**flags: Any) -> None:
    """Run a gateway until SIGTERM or SIGINT."""
    # What is imported now stays: collecting garbage meanwhile finds none. It is on again when the gateway runs.
    gc.disable()
    from gateway import settings
    from gateway.engine.checksums import Ahead, newest_graphs
    from gateway.errors import StartupError

    config = flags.pop("config")
    try:
        given = {name: value for name, value in flags.items() if value is not None}
        loaded = settings.load(given, config)
        # Large files are read while the gateway's modules are imported, which takes about as long.
        checksum = Ahead(newest_graphs(loaded.data_dir))
        from gateway import app as gateway_app

        gateway_app.serve(loaded, checksum)
    except StartupError as error:
        _fail(str(error), 1)


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` an option for every setting, so that flags can't differ from settings."""
    from gateway.settings import Settings

    def option(name: str, kind: Any, text: str, shown: str, variable: str | None = None) -> inspect.Parameter:
        annotation = Annotated[
            kind, typer.Option(f"--{name.replace('_', '-')}", help=text, envvar=variable, metavar=shown)
        ]
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)

    options = [option("config", Path | None, "TOML file with settings", "FILE", "HOTINDEX_CONFIG")]
    for name, field in Settings.model_fields.items():
        text = field.description or ""
        if not field.default_factory:
            default = field.get_default()
            text += f" [default: {default}]"
        options.append(option(name, str | None, text, _kind(field.annotation)))
    command.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    return command


def _kind(annotation: Any) -> str:
    """Return what a setting takes, for its help."""
    if get_origin(annotation) in (dict, tuple):
        return "JSON"
    choices = get_args(annotation)
    return "|".join(choices) if choices else _KINDS[annotation]


_KINDS = {str: "TEXT", int: "INTEGER", float: "NUMBER", Path: "PATH"}


@app.command()
def load(
    file: Annotated[Path, typer.Argument(help="JSON lines or CSV, either of them gzipped or not")],
    collection: Annotated[str, typer.Option("--collection", "-c", help="Where to load to")],
    url: Url = DEFAULT_URL,
    form: Annotated[
        Literal["jsonl", "csv"] | None, typer.Option("--format", help="What the file is, if its name doesn't say so")
    ] = None,
    id_column: Annotated[
        str, typer.Option("--id", metavar="COLUMN", help="The column, or JSON field, of the id")
    ] = "id",
    numbers: Annotated[str, typer.Option(metavar="A,B", help="CSV columns that are numbers")] = "",
    lists: Annotated[str, typer.Option(metavar="A,B", help="CSV columns that are lists, split at |")] = "",
    batch: Annotated[int, typer.Option(min=1, max=10_000, help="Documents per command")] = 256,
    rejects: Annotated[
        Path | None, typer.Option(help="Where lines go that can't be loaded  [default: FILE.rejects.jsonl]")
    ] = None,
    progress: Annotated[
        Path | None, typer.Option(help="Where it is kept how far the load is  [default: FILE.progress.json]")
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew, whatever was loaded before")] = False,
    give_up: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="End where nothing is acknowledged for this long")
    ] = 120,
) -> None:
    """Load documents from a file; an interrupted load continues where it was.

    JSON lines: an object with id, and vector, content or metadata; other fields are metadata. CSV, with a header: columns
    id, vector and content where there are such; the others are metadata.

    Exit status: 0 all is loaded; 3 all but the lines in the rejects file; 1 given up, the same command continues.
    """
    from gateway.commands.load import Options, run
    from gateway.commands.loading.formats import Columns

    columns = Columns(id_column, frozenset(filter(None, numbers.split(","))), frozenset(filter(None, lists.split(","))))
    run(Options(url, collection, file, form, columns, batch, rejects, progress, restart, give_up))


@app.command()
def tail(
    collection: str,
    url: Url = DEFAULT_URL,
    since: Annotated[int | None, typer.Option(help="Start after this index_version; 0 is the whole collection")] = None,
    where: Annotated[str | None, typer.Option("--filter", help="A filter over metadata, as JSON")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line")] = False,
) -> None:
    """Show the updates of a collection as they come."""
    from gateway.commands.tail import run

    run(url, collection, since, where, as_json=as_json)


@app.command()
def search(
    collection: str,
    text: Text = None,
    user: User = None,
    url: Url = DEFAULT_URL,
    k: Annotated[int, typer.Option("-k", help="How many")] = 10,
    where: Annotated[str | None, typer.Option("--filter", help="A filter over metadata, as JSON")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line")] = False,
) -> None:
    """Search a collection by text, or for what is recommended to a user."""
    from gateway.commands.search import run

    run(url, collection, text, user, k, where, as_json=as_json)


@app.command()
def watch(
    collection: str,
    text: Text = None,
    user: User = None,
    url: Url = DEFAULT_URL,
    k: Annotated[int, typer.Option("-k", help="How many")] = 10,
    where: Annotated[str | None, typer.Option("--filter", help="A filter over metadata, as JSON")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One change a line, as a JSON object")] = False,
) -> None:
    """Watch a search by text, or what is recommended to a user: shown anew whenever it changes, until Ctrl-C."""
    from gateway.commands.watch import run

    run(url, collection, text, user, k, where, as_json=as_json)


@app.command()
def snapshot(collection: str, http_url: HttpUrl = "http://127.0.0.1:8080") -> None:
    """Have the gateway write a snapshot of a collection now."""
    from gateway.commands.snapshot import run

    run(http_url, collection)


@app.command()
def nodes(
    http_url: HttpUrl = "http://127.0.0.1:8080",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line")] = False,
) -> None:
    """List the nodes that share collections, and how far each is behind."""
    from gateway.commands.nodes import run

    run(http_url, as_json=as_json)


@app.command()
def stats(
    http_url: HttpUrl = "http://127.0.0.1:8080",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object")] = False,
) -> None:
    """Show a node's collections, and what its models were asked, were spared, and cost."""
    from gateway.commands.stats import run

    run(http_url, as_json=as_json)


@app.command()
def check(
    collections: Annotated[list[str] | None, typer.Argument(help="Which; all where none is named")] = None,
    data_dir: Annotated[Path, typer.Option(envvar="HOTINDEX_DATA_DIR", help="Of a gateway that isn't running")] = Path(
        "data"
    ),
) -> None:
    """Check a data directory: stores, snapshots, and one against the other."""
    from gateway.commands.check import run
    from gateway.errors import StartupError

    try:
        run(data_dir, collections or [])
    except StartupError as error:
        _fail(str(error), 1)


@app.command()
def demo(
    seconds: Annotated[float | None, typer.Option(help="End by itself after this time")] = None,
    rate: Annotated[float, typer.Option(min=1, max=2000, help="Ratings replayed per second")] = 200,
    ws_port: Annotated[int, typer.Option(help="WebSocket port; a free one if it is in use")] = 8765,
    http_port: Annotated[int, typer.Option(help="HTTP port; a free one if it is in use")] = 8080,
) -> None:
    """Load 31,245 movies, replay real ratings as events, and watch room and search follow."""
    from gateway.demo.run import run

    run(seconds, rate, ws_port, http_port)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def bench(context: typer.Context) -> None:
    """Run a benchmark (from a checkout of the repository): bench latency, …"""
    try:
        from bench.__main__ import main as run
    except ModuleNotFoundError:
        raise typer.BadParameter("benchmarks run from a checkout of the repository, after 'make install'") from None
    raise typer.Exit(run(context.args))
