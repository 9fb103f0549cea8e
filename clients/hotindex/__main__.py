"""The command `hotindex`, which needs an extra of the distribution."""

import sys


def main() -> None:
    try:
        from gateway.cli import main as run  # noqa: PLC0415 - what it needs may not be installed
    except ModuleNotFoundError as error:
        sys.exit(f"hotindex: the command needs {error.name}; install it with: pip install 'hotindex[server]'")
    run()


if __name__ == "__main__":
    main()
