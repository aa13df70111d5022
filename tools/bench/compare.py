"""Runs p2 and PyTorch on the same networks, batches and steps, in turn, and prints how they compare.

PyTorch is first tried in every layout, precision and malloc for a few steps, compiled and not; then
p2 alternates with PyTorch's fastest f32 variant and its fastest of any kind.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from report import Measured, ratio, ratio_line, table
from variants import ROOT, WORKLOADS, ChildFailed, Runner, compiled, eager_variants


def tell(text):
    print(text, file=sys.stderr, flush=True)


def screen(runner, workload, effort):
    """The least seconds of each variant that runs, fastest first; the others are named with why.

    The least, because a few steps that something else disturbed must not decide who is compared.
    """
    found, skipped = [], {}

    def attempt(variant):
        try:
            result = runner.run_torch(workload, variant, effort.screen_steps, effort.screen_ddim)
        except ChildFailed as error:
            skipped[variant.name] = str(error)
            tell(f"  {variant.name}: skipped, {error}")
            return
        found.append((min(result["seconds"]), variant))
        tell(f"  {variant.name}: {found[-1][0]:.4f} s, {result['peak_memory_bytes'] / 1e9:.2f} GB")

    for variant in eager_variants(workload):
        attempt(variant)
    if effort.compiles:
        # torch.compile with the malloc that suits each layout and precision without it.
        best = {}
        for seconds, variant in sorted(found, key=lambda pair: pair[0]):
            best.setdefault((variant.layout, variant.precision, variant.isa), variant)
        for variant in best.values():
            attempt(compiled(variant))
    else:
        skipped["torch.compile"] = "not tried: --no-compile or --quick"
        tell("  torch.compile: not tried")
    return sorted(found, key=lambda pair: pair[0]), skipped


def finalists(workload, screened):
    """What p2 is compared with: label and variant, each the fastest of its kind."""

    def fastest(is_wanted):
        return next((variant for _, variant in screened if is_wanted(variant)), None)

    if workload.is_avx2:
        rivals = {
            "f32, ATen held to AVX2": fastest(lambda v: v.isa == "ATen avx2"),
            "f32, everything held to AVX2": fastest(lambda v: v.isa == "all avx2"),
        }
    else:
        rivals = {
            "best f32": fastest(lambda v: v.precision == "f32" and not v.is_compiled),
            "fastest of any kind": fastest(lambda v: True),
        }
    return {label: variant for label, variant in rivals.items() if variant is not None}


def pairs_of(rivals):
    """Precisions of p2, labels and variants of PyTorch: f32 with all, bf16 with a rival in bf16."""
    pairs = [("f32", label, rival) for label, rival in rivals.items()]
    halves = [(label, rival) for label, rival in rivals.items() if rival.precision == "bf16"]
    return pairs + [("bf16", label, rival) for label, rival in halves]


def merged(all_measured):
    """Those of one name as one."""
    rows = {}
    for each in all_measured:
        rows.setdefault(each.name, Measured(each.name)).join(each)
    return list(rows.values())


def compare(name, runner, effort):
    """Screens, interleaves, prints, and returns everything as JSON."""
    workload = WORKLOADS[name]
    tell(f"\n{name}: {workload.preset}, batch {workload.batch_size}; trying PyTorch's variants")
    screened, skipped = screen(runner, workload, effort)
    rivals = finalists(workload, screened)
    if not rivals:
        raise SystemExit(f"{name}: no variant of PyTorch runs")
    steps = effort.steps or workload.steps
    pairs = pairs_of(rivals)
    # Each with the p2 that ran just before it.
    measured = [(Measured(f"p2, {precision}"), Measured(rival.name)) for precision, _, rival in pairs]
    for round_ in range(effort.rounds):
        for (precision, _, rival), (ours, theirs) in zip(pairs, measured):
            tell(f"  round {round_ + 1} of {effort.rounds}: p2 in {precision}, then {rival.name}")
            ours.add(runner.run_p2(workload, steps, effort.ddim_steps, precision))
            theirs.add(runner.run_torch(workload, rival, steps, effort.ddim_steps))
    rows = merged([ours for ours, _ in measured]) + merged([theirs for _, theirs in measured])
    ratios = {
        f"{label}, p2 in {precision}": ratio(*pair)
        for (precision, label, _), pair in zip(pairs, measured)
    }
    print(f"\n{name}: {'32 images by DDIM' if workload.is_sampling else 'full training step'}")
    print(table(rows, workload.batch_size))
    for label, found in ratios.items():
        print(ratio_line(label, found))
    peaks = [peak for ours, _ in measured for peak in ours.gemm_peaks]
    low, high = min(peaks), max(peaks)
    print(f"GEMM peak of the machine over the rounds: {low:.0f} to {high:.0f} Gflop/s", flush=True)
    return {
        "preset": workload.preset,
        "batch_size": workload.batch_size,
        "dropout": workload.dropout,
        "screened": [{"name": v.name, "min_seconds": s} for s, v in screened],
        "skipped": skipped,
        "measured": [row.summary() for row in rows],
        "ratios": ratios,
    }


class Effort:
    """How long is measured."""

    def __init__(self, arguments):
        is_quick = arguments.quick
        self.rounds = arguments.rounds or (1 if is_quick else 5)
        self.steps = arguments.steps or (2 if is_quick else None)
        self.screen_steps = 1 if is_quick else 3
        self.screen_ddim = 2 if is_quick else 10
        self.ddim_steps = 2 if is_quick else None
        self.compiles = not (is_quick or arguments.no_compile)


def machine(threads):
    """What the numbers were measured on."""
    model = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {
        "processor": model,
        "system": f"{platform.system()} {platform.release()}",
        "threads": threads,
        "python": platform.python_version(),
        "torch": version("torch"),
        "numpy": version("numpy"),
    }


def n_cores():
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def built_p2():
    """Builds p2 as a user would."""
    tell("building p2")
    subprocess.run(["cargo", "build", "--release", "--locked"], cwd=ROOT, check=True)
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    return target / "release" / "p2"


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", choices=[*WORKLOADS, "all"], default="all")
    parser.add_argument("--rounds", type=int, help="of p2 and each rival in turn [5]")
    parser.add_argument("--steps", type=int, help="timed steps of a child [by workload]")
    parser.add_argument("--threads", type=int, default=n_cores(), help="of both [all cores]")
    parser.add_argument("--p2", type=Path, help="the program [built from this repository]")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for a child [3600]")
    parser.add_argument("--quick", action="store_true", help="one round of two steps: does it run?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save all numbers")
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    effort = Effort(arguments)
    names = list(WORKLOADS) if arguments.workload == "all" else [arguments.workload]
    p2 = arguments.p2 or built_p2()
    results = {"machine": machine(arguments.threads), "workloads": {}}
    print(", ".join(f"{key} {value}" for key, value in results["machine"].items()))
    with tempfile.TemporaryDirectory() as scratch:
        runner = Runner(p2.resolve(), arguments.threads, Path(scratch), arguments.timeout)
        for name in names:
            try:
                results["workloads"][name] = compare(name, runner, effort)
            except ChildFailed as error:
                raise SystemExit(f"{name}: {error}") from error
            if arguments.json:
                # After each workload, so that an interruption loses one.
                arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
