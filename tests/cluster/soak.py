"""A fleet under load with faults at random: python -m tests.cluster.soak --minutes 10 --seed 1

What happens, and in which order, comes from the seed; when it does, from the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.faults import ALL, AND_AGREE_WITHOUT, Injector
from tests.cluster.fleet import COLLECTION, Fleet, Violation, fleet
from tests.cluster.support import Audience, Facts, Writer, audience, check, fits, load
from tests.redis_servers import Fsync, RedisServer

FLAGS = ("--stream-changes", "500", "--hot-target", "64", "--snapshot-interval-s", "2")
_KINDS = 2
_PERSISTENCE: tuple[Fsync | None, ...] = (None, "everysec", "always")


@dataclass
class Summary:
    """What a soak has been through."""

    faults: Counter[str]
    checks: int = 0
    acknowledged: int = 0
    open: int = 0
    longest_s: float = 0.0
    index_version: int = 0

    def __str__(self) -> str:
        faults = ", ".join(f"{name} {count}" for name, count in sorted(self.faults.items()))
        return (
            f"{self.checks} checks, {self.acknowledged} writes acknowledged, {self.open} left open (the longest after"
            f" {self.longest_s:.1f} s), index_version {self.index_version}; faults: {faults}"
        )


class Soak:
    """Rounds of load and faults, with a check after each."""

    def __init__(
        self, fleet: Fleet, audience: Audience, seed: int, say: Callable[[str], None], writers: int = 4
    ) -> None:
        self.summary = Summary(Counter())
        self._fleet = fleet
        self._audience = audience
        self._random = random.Random(seed)
        self._say = say
        self._writers = writers

    async def round(self, number: int, seconds: float) -> None:
        """Write, and break things, for some seconds; then let all come to rest, and look. Raises Violation."""
        facts = Facts()
        injector = Injector(self._fleet, self._random)
        writers = [
            Writer(f"r{number}w{i}", self._fleet.members, facts, random.Random(self._random.random()))
            for i in range(self._writers)
        ]
        shared = f"shared{number}"
        await self._fleet.members[0].client.upsert(COLLECTION, id=shared, **fits(0))
        for writer in writers:
            writer.shared = shared
        resets = self._audience.resets
        # Of two kinds of rounds one knows all that must be there to the last key.
        kinds = ALL if number % _KINDS == 0 else AND_AGREE_WITHOUT
        due = time.monotonic() + seconds
        async with load(writers):
            while time.monotonic() < due:
                await asyncio.sleep(self._random.uniform(0.2, 1.5))
                self._say(f"  {await self._fault(injector, kinds)}")
        self._say("  at rest")
        agreed = injector.agreed and self._audience.resets == resets
        began = time.monotonic()
        self.summary.index_version = await check(self._fleet, facts, self._audience, agreed=agreed)
        self.summary.checks += 1
        self.summary.acknowledged += facts.acknowledged
        self.summary.open += facts.open.total()
        self.summary.longest_s = max(self.summary.longest_s, facts.longest_s)
        self._say(
            f"check {number}: all level at {self.summary.index_version} after {time.monotonic() - began:.1f} s;"
            f" {facts.acknowledged} acknowledged, {facts.open.total()} open {dict(facts.open)},"
            f" {len(facts.surprises)} surprises, {self._audience.resets - resets} resets"
        )

    async def _fault(self, injector: Injector, kinds: tuple[Callable[[Injector], object], ...]) -> str:
        fault = self._random.choice(kinds)
        name = getattr(fault, "__name__", "?")
        self.summary.faults[name] += 1
        said = await getattr(injector, name)()
        return str(said)


async def soak(path: Path, seed: int, seconds: float, say: Callable[[str], None], round_s: float = 10.0) -> Summary:
    """Run for about so long, and a round of each kind. Raises Violation, with the round and the logs' place."""
    appendfsync = _PERSISTENCE[seed % len(_PERSISTENCE)]
    say(f"seed {seed}; Redis keeps {appendfsync or 'nothing'}; logs in {path}")
    due = time.monotonic() + seconds
    with RedisServer(appendfsync=appendfsync) as redis:
        async with fleet(path, redis, flags=FLAGS) as nodes:
            await nodes.make()
            async with audience(nodes) as subscribers:
                run = Soak(nodes, subscribers, seed, say)
                for number in itertools.count():
                    if number >= _KINDS and time.monotonic() >= due:
                        return run.summary
                    try:
                        await run.round(number, round_s)
                    except Violation as error:
                        raise Violation(f"round {number} of seed {seed} (logs in {path}):\n  {error}") from error
    raise AssertionError("the count never ends")


def _say(line: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {line}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description="A fleet under load with faults at random.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=None, help="repeats the faults of another run")
    options = parser.parse_args()
    seed = secrets.randbelow(1 << 20) if options.seed is None else options.seed
    path = Path(tempfile.mkdtemp(prefix=f"soak-{seed}-"))
    try:
        summary = asyncio.run(soak(path, seed, 60 * options.minutes, _say))
    except Violation as error:
        _say(f"VIOLATION in {error}")
        return 1
    _say(f"seed {seed}: {summary}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
