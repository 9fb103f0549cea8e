"""`hotindex bench NAME`: runs a benchmark, prints its table, writes its JSON."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.harness import Report

BENCHMARKS = {
    "latency": "send → acknowledged, send → last of S subscribers has it, beside the bare minimum of the path",
    "fanout": "one event to many subscribers, beside websockets, picows, Node's ws and bare sockets",
    "engine": "updates, recall, searches, snapshots, starts, beside hnswlib and usearch",
    "ingest": "events with text: embedded, acknowledged, searchable; texts known before; a service that is slow, or fails",
    "recommend": "real ratings predicted one after the other, beside popularity and the last item's nearest",
    "cluster": "three nodes that share a Redis, beside one node alone and bare Redis",
    "watch": "changes a second that standing queries take, and their answers, beside searching again for every one",
}
RESULTS = Path(__file__).parent / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks named; return 0, or with --check 1 if a target was missed."""
    parser = argparse.ArgumentParser(
        "hotindex bench",
        epilog="\n".join(f"  {name:<10}{text}" for name, text in BENCHMARKS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=[*BENCHMARKS, "all"])
    parser.add_argument("--seed", type=int, default=1, help="of all random data (default 1)")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="of the amount of work; 1 is what docs/benchmarks.md shows"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="directory for the JSON")
    parser.add_argument("--check", action="store_true", help="exit with status 1 where a target is missed")
    options = parser.parse_args(arguments)
    missed = False
    for name in BENCHMARKS if options.name == "all" else [options.name]:
        report: Report = importlib.import_module(f"bench.{name}").run(options.seed, options.scale)
        report.print()
        print(f"written to {report.write(options.out)}")
        missed |= report.missed
    return 1 if missed and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
