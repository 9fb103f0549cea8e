"""The command `hotindex`, which needs an extra of the distribution."""

import sys


def main() -> None:
    try:
        from gateway.cli import main as run  # noqa: PLC0415 - what it needs may not be installed
    except ModuleNotFoundError as error:
        extra = "cli" if error.name in ("rich", "typer") else "server"
        sys.exit(f"hotindex: the command needs {error.name}, which the extra {extra!r} of the package installs")
    run()


if __name__ == "__main__":
    main()
