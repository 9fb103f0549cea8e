"""`hotindex check`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from gateway.engine import verify
from gateway.errors import StartupError
from gateway.node.datadir import locked


def run(data_dir: Path, names: Sequence[str]) -> None:
    """Check collections (all, where none is named); ends with status 1 if one is damaged."""
    if not data_dir.is_dir():
        raise StartupError(f"data directory {str(data_dir)!r} does not exist")
    sound = True
    with locked(data_dir) as directory:
        known = directory.names()
        if unknown := set(names) - set(known):
            raise StartupError(f"no collection {min(unknown)!r} in {str(data_dir)!r}")
        for name in names or known:
            for finding in verify.collection(directory.collection(name)):
                print(f"{name}: {finding.subject}: {'' if finding.sound else 'DAMAGED: '}{finding.text}")
                sound &= finding.sound
    print(f"{len(names or known)} collections checked, {'all sound' if sound else 'not all sound'}")
    raise typer.Exit(0 if sound else 1)
