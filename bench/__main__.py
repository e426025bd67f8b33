"""Run the benchmark: `make bench`, or `python -m bench --help`."""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from bench import costs, report
from bench.load import BUILD, Load, LoadError
from bench.more import MORE
from bench.peers import OWN, PEERS, CannotRun, Peer, against
from bench.scenarios import FULL, QUICK, SCENARIOS, Record, Session, Size

Results = dict[str, dict[str, list[Record]]]


def measure(peer: Peer, scenario: str, size: Size, measures: dict[str, list[Record]]) -> str:
    """Run one scenario on a fresh server; why it did not come to its end, where it did not."""
    known = {name: list(records) for name, records in measures.items()}
    with ExitStack() as stack:
        try:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
            target = peer.start(stack, folder)
            load = stack.enter_context(Load("127.0.0.1", target.port))
            session = Session(peer, target, load, size, lambda name: known.get(name, []))
            session.prepare()
            for name, record in SCENARIOS[scenario](session):
                measures[name].append(record)
                told = f"   server's core {record['server']:.0%}" if "server" in record else ""
                told += "".join(f"   {field} {record[field]:,.2f}" for field in report.DETAILS if field in record)
                told += "" if record["valid"] else f"   does not count: {json.dumps(record)}"
                print(f"  {peer.name:20} {name:18} {record['value']:14,.1f}{told}", flush=True)
        except (LoadError, AssertionError, OSError, subprocess.SubprocessError) as error:
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            print(f"  {peer.name:20} {scenario:18} not run: {why}", flush=True)
            return why
    return ""


def run(peers: Sequence[Peer], scenarios: Sequence[str], size: Size, rounds: int) -> tuple[Results, dict[str, str]]:
    """All peers in each round, one after the other, so that what else the machine does meets them alike."""
    results: Results = {peer.name: defaultdict(list) for peer in peers}
    faults: dict[str, str] = {}
    for number in range(rounds):
        for scenario in scenarios:
            # The two checkouts take turns in going first, so that a machine that heats up meets them alike.
            for peer in reversed(peers) if size.repeat and number % 2 else peers:
                once = not size.repeat and scenario not in peer.every_round
                if scenario not in peer.scenarios or (number and once) or peer.label in faults:
                    continue
                print(f"round {number + 1} of {rounds}, {scenario}: {peer.label}", flush=True)
                start = time.monotonic()
                try:
                    if why := measure(peer, scenario, size, results[peer.name]):
                        faults[f"{peer.label}, {scenario}"] = why
                except CannotRun as error:
                    faults[peer.label] = str(error)
                    print(f"  {peer.name:20} not run: {error}", flush=True)
                print(f"  {'':20} {time.monotonic() - start:.0f} s", flush=True)
    return results, faults


def main(words: Sequence[str]) -> int:
    """Measure, print the tables, and write what came of it. Return 1 if --costs finds a loss."""
    args = parse(words)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    BUILD.mkdir(exist_ok=True)
    return compare_costs(args) if args.costs else compare_peers(args)


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Return the arguments: `peers` and `only` as lists, `size` as a Size."""
    every = [peer.name for peer in PEERS + MORE]
    parser = argparse.ArgumentParser("bench", description="Throughline and its peers, side by side.")
    parser.add_argument("--peers", help=f"some of: {', '.join(every)}")
    parser.add_argument("--more", action="store_true", help="those too that have to be built with Go")
    parser.add_argument("--against", type=Path, metavar="DIR", help="compare with another checkout of this project")
    parser.add_argument(
        "--costs", action="store_true", help="with --against: what things cost, until each ratio is known"
    )
    parser.add_argument("--only", help=f"some of: {', '.join(SCENARIOS)}; with --costs: {', '.join(costs.GROUPS)}")
    parser.add_argument("--rounds", type=int, help=f"3 where it is not given; with --costs at the most, {costs.MOST}")
    parser.add_argument("--streams", help="such as 100,1000,10000")
    parser.add_argument("--quick", action="store_true", help="tiny, to see that everything works")
    parser.add_argument("--results", type=Path, default=BUILD / "results.json", help="where all records go")
    parser.add_argument("--docs", action="store_true", help="write docs/benchmarks.md and its chart")
    args = parser.parse_args(words)
    if args.against and not (args.against / "sse").is_dir():
        parser.error(f"{args.against} is no checkout of this project")
    if args.costs and not args.against:
        parser.error("--costs compares with another checkout: give --against")
    usual = costs.PEERS if args.costs else every if args.more else [peer.name for peer in PEERS]
    known = list(costs.GROUPS if args.costs else SCENARIOS)
    is_chosen = bool(args.peers or args.only)
    args.peers = args.peers.split(",") if args.peers else usual
    args.only = args.only.split(",") if args.only else known
    if unknown := {*args.peers} - {*(OWN if args.costs else every)} | {*args.only} - {*known}:
        parser.error(f"not known: {', '.join(sorted(unknown))}")
    args.size = replace(QUICK if args.quick else FULL, repeat=is_chosen)
    if args.streams:
        args.size = replace(args.size, streams=tuple(sorted(int(count) for count in args.streams.split(","))))
    return args


def compare_costs(args: argparse.Namespace) -> int:
    """Compare two checkouts until it is known what things cost, or for `rounds`."""
    rounds = args.rounds or (2 if args.quick else costs.MOST)
    peers = [peer for peer in PEERS if peer.name in args.peers]
    found = costs.compare(peers, args.against.resolve(), args.size, rounds, args.only)
    args.results.write_text(json.dumps(found.as_json(), indent=1))
    return int(found.has_loss)


def compare_peers(args: argparse.Namespace) -> int:
    """Measure peers side by side for `rounds`, and tell medians."""
    size: Size = args.size
    peers = [peer for peer in PEERS + MORE if peer.name in args.peers]
    if args.against:
        size = replace(size, repeat=True)
        others = {peer.name: against(peer, args.against.resolve()) for peer in peers}
        peers = [one for peer in peers for one in (peer, others[peer.name]) if one]
    began = time.time()
    results, faults = run(peers, args.only, size, 1 if args.quick else args.rounds or 3)
    print(f"{(time.time() - began) / 60:.1f} minutes\n")
    outcome = report.Outcome(results, faults, {peer.name: peer.label for peer in peers}, size.streams)
    args.results.write_text(json.dumps(outcome.as_json(), indent=1))
    print(report.tables(outcome))
    if args.against:
        print(f"\n## As ratios to {args.against}, medians of the rounds\n\n{report.ratios(outcome)}")
    if args.docs:
        report.write(outcome)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
