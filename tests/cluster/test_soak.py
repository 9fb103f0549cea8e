"""A few seconds of what `make soak` does for minutes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.soak import soak


@pytest.mark.timeout(120)
async def test_faults_at_random_lose_nothing(tmp_path: Path) -> None:
    lines: list[str] = []
    summary = await soak(tmp_path, seed=4, seconds=0, say=lines.append, round_s=3.5)
    assert summary.checks >= 2, lines
    assert summary.acknowledged > 100, lines
    assert summary.faults.total() >= 4, lines
