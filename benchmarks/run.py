"""Measure rlm beside its floor: `python benchmarks/run.py [NAME…] [--json PATH]`.

Names: step fanout context start log trajectory shells runs; all of them without any. See README.md."""
import argparse, importlib, os, sys, time
from pathlib import Path

sys.path[0] = str(Path(__file__).parent.parent) # the project, in place of the folder of this script
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

from benchmarks.measure import show, write_json

NAMES = ("step", "fanout", "context", "start", "log", "trajectory", "shells", "runs")


def main():
    p = argparse.ArgumentParser(description="Measure rlm beside its floor.")
    p.add_argument("names", nargs="*", metavar="NAME", help=f"what to measure: {', '.join(NAMES)}; default: all")
    p.add_argument("--json", metavar="PATH", help="write all samples to this file")
    args = p.parse_args()
    if unknown := set(args.names) - set(NAMES): p.error(f"no such benchmark: {', '.join(unknown)}")
    results = {}
    for name in args.names or NAMES:
        start = time.perf_counter()
        results[name] = importlib.import_module(f"benchmarks.{name}").rows()
        print(f"{name}: {time.perf_counter()-start:.0f} s", file=sys.stderr)
    show(results)
    if args.json: write_json(results, args.json)


if __name__ == "__main__": main()
