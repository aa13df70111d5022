"""Trains one tiny network in p2 and in PyTorch from the same weights on the same images and noise.

Prints how far the two are apart after 50 steps; exits with 1 if that is more than it may be.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tools/bench"))  # its `network`

import tables  # noqa: E402
import zero_gradient  # noqa: E402
from replay import Trace, replay  # noqa: E402

# The preset `smoke` on smaller images, trained as the reference does: its default learning rate, no dropout, no
# warm-up, no clipping, a constant average. With this seed both ends of the schedule are drawn, t = 0 and 999.
SETTINGS = {
    "data.image_size": 16,
    "model.attention_resolutions": [8],
    "model.dropout": 0,
    "optim.lr": 1e-4,
    "optim.warmup_images": 0,
    "optim.max_grad_norm": 0,
    "ema.halflife_images": 80,
    "ema.rampup_ratio": 0,
    "train.seed": 2,
    "train.batch_size": 8,
    "train.micro_batch_size": 4,
    "train.total_images": 400,  # 50 steps
}

PRECISIONS = ("f32", "exact")


@dataclass(frozen=True)
class Case:
    """What is predicted, what the variance is, and how the error is weighted."""

    prediction: str
    variance: str
    kind: str
    gamma: float
    weight_decay: float = 0

    @property
    def name(self):
        variance = "learned" if self.variance == "learned-range" else "fixed"
        raw = " raw" if self.kind == "p2-raw" else ""
        decay = f", weight decay {self.weight_decay:g}" if self.weight_decay else ""
        return f"{self.prediction}, {variance}, gamma {self.gamma:g}{raw}{decay}"

    @property
    def settings(self):
        return {
            "diffusion.prediction": self.prediction,
            "diffusion.variance": self.variance,
            "loss.weighting.kind": self.kind,
            "loss.weighting.k": 1,
            "loss.weighting.gamma": self.gamma,
            "optim.weight_decay": self.weight_decay,
        }


def all_cases():
    kinds = [("eps", "p2"), ("x0", "p2"), ("x0", "p2-raw"), ("v", "p2")]
    cases = [
        Case(prediction, variance, kind, gamma)
        for prediction, kind in kinds
        for variance in ("fixed-large", "learned-range")
        for gamma in (0, 0.5, 1)
    ]
    return [*cases, Case("eps", "learned-range", "p2", 1, weight_decay=0.01)]


def train_in_p2(settings, precision, folder):
    """The trace of a run of p2, and on what it was computed."""
    path = Path(folder) / f"{precision}.safetensors"
    command = ["cargo", "run", "--release", "--quiet", "--package", "p2"]
    command += ["--example", "parity_trace", "--", str(path)]
    command += [f"{key}={value}" for key, value in (SETTINGS | settings).items()]
    command += [f"train.precision={precision}"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
    return Trace(path), json.loads(done.stdout)


def check_same_start(traces):
    """Both precisions of p2 begin alike and see the same, so that one replay serves both."""
    first, second = (traces[precision].tensors for precision in PRECISIONS)
    for name, tensor in first.items():
        is_start = name in ("x0", "eps", "t") or name.startswith("initial.")
        if is_start and not torch.equal(tensor, second[name]):
            raise SystemExit(f"{name} is not the same in both precisions of p2")


def compare(case, settings):
    """One row of the tables, and on what p2 computed."""
    settings = case.settings | settings
    with tempfile.TemporaryDirectory() as folder:
        runs = {p: train_in_p2(settings, p, folder) for p in PRECISIONS}
    traces = {precision: trace for precision, (trace, _) in runs.items()}
    check_same_start(traces)
    start = traces["f32"]
    single, _ = replay(start, torch.float32)
    double, largest_gradients = replay(start, torch.float64)
    zeros = zero_gradient.of_network(start.network())
    zero_gradient.check(zeros, largest_gradients)
    ruler = tables.Ruler(start.initial, zeros)
    outcomes = {precision: trace.outcome for precision, trace in traces.items()}
    row = tables.Row(
        name=case.name,
        zeros=zeros,
        to_single={p: ruler.distance(outcome, single) for p, outcome in outcomes.items()},
        to_double={
            p: ruler.distance(outcome, double)
            for p, outcome in (outcomes | {"torch": single}).items()
        },
        moved=ruler.apart(start.initial, double.weights),
    )
    return row, runs["f32"][1]


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cases whose name contains this, such as 'x0, fixed'")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another setting of p2")
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    # On one thread, as PyTorch's sums depend on their number.
    torch.set_num_threads(1)
    cases = [case for case in all_cases() if arguments.only in case.name]
    if not cases:
        raise SystemExit(f"no case has {arguments.only!r} in its name")
    settings = dict(assignment.split("=", 1) for assignment in arguments.set)
    rows = []
    for case in cases:
        print(f"{len(rows) + 1} of {len(cases)}: {case.name}", file=sys.stderr)
        row, engine = compare(case, settings)
        rows.append(row)
    print(
        f"p2 {engine['version']} with {engine['instruction_set']} and {engine['n_threads']} threads;"
        f" PyTorch {torch.__version__} with {torch.backends.cpu.get_cpu_capability()} and 1 thread;"
        f" Python {platform.python_version()}; {engine['n_steps']} steps.\n"
    )
    tables.print_rows(rows)
    n_missed = 0
    for row in rows:
        for precision, distance in row.to_single.items():
            for missed in distance.missed():
                print(f"{row.name}, {precision}: {missed}", file=sys.stderr)
                n_missed += 1
    raise SystemExit(1 if n_missed else 0)


if __name__ == "__main__":
    main()
