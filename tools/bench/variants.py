"""What is compared: workloads, the ways to run PyTorch on them, and how a child process runs one."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# glibc returns large buffers to the system at once; these keep them, as p2 does for itself.
TUNED_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "17179869184",
    "MALLOC_TRIM_THRESHOLD_": "34359738368",
    "MALLOC_TOP_PAD_": "536870912",
    "MALLOC_ARENA_MAX": "1",
}
# ATen alone leaves oneDNN's convolutions and MKL's products at AVX-512, so both are measured.
ATEN_AVX2 = {"ATEN_CPU_CAPABILITY": "avx2"}
ALL_AVX2 = ATEN_AVX2 | {"ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


@dataclass(frozen=True)
class Workload:
    """One row of the table."""

    preset: str
    batch_size: int
    is_sampling: bool = False
    is_avx2: bool = False
    # Timed steps of a child. Sampling counts whole drawings.
    steps: int = 5
    # Both programs without dropout, as the paper's published command has it.
    dropout: float | None = None


WORKLOADS = {
    "small": Workload("bench-small", 32, steps=10),
    "medium": Workload("bench-medium", 8),
    "paper-256": Workload("paper-256", 2, steps=3, dropout=0.0),
    "sampling": Workload("bench-small", 32, is_sampling=True, steps=2),
    "small-avx2": Workload("bench-small", 32, is_avx2=True, steps=10),
}


@dataclass(frozen=True)
class Variant:
    """One way to run PyTorch."""

    layout: str
    precision: str
    is_compiled: bool = False
    is_tuned: bool = False
    isa: str = ""
    environment: dict = field(default_factory=dict, hash=False, compare=False)

    @property
    def name(self):
        words = ["torch", self.precision, self.layout]
        words += ["compiled"] if self.is_compiled else []
        words += ["malloc tuned" if self.is_tuned else "as installed"]
        words += [self.isa] if self.isa else []
        return ", ".join(words)


def eager_variants(workload):
    """All ways without torch.compile: layout, precision, malloc, and for AVX2 what is held to it."""
    isas = {"": {}}
    if workload.is_avx2:
        isas = {"ATen avx2": ATEN_AVX2, "all avx2": ALL_AVX2}
    return [
        Variant(layout, precision, False, is_tuned, isa, environment)
        for isa, environment in isas.items()
        for precision in (("f32",) if workload.is_avx2 else ("f32", "bf16"))
        for layout in ("nchw", "channels_last")
        for is_tuned in (False, True)
    ]


def compiled(variant):
    return replace(variant, is_compiled=True)


class ChildFailed(Exception):
    """A child process ended with an error; its last words."""


@dataclass
class Runner:
    """Starts the children, all with the same number of threads."""

    p2: Path
    threads: int
    scratch: Path
    timeout: float

    def run_p2(self, workload, steps, ddim_steps=None, precision="f32"):
        command = [str(self.p2), "bench", "--quiet", "--json", "--preset", workload.preset]
        command += ["--batch-size", str(workload.batch_size), "--threads", str(self.threads)]
        command += ["--steps", str(steps), "--set", f"train.precision={precision}"]
        if workload.dropout is not None:
            command += ["--set", f"model.dropout={workload.dropout}"]
        if workload.is_sampling:
            command += ["--sampling"]
        if ddim_steps:
            command += ["--set", f"sample.n_steps={ddim_steps}"]
        result = self.child(command, {"P2_ISA": "avx2"} if workload.is_avx2 else {})
        result["seconds"] = result["draw_seconds" if workload.is_sampling else "step_seconds"]
        return result

    def run_torch(self, workload, variant, steps, ddim_steps=None):
        script = Path(__file__).with_name("step.py")
        command = [sys.executable, str(script), "--preset", workload.preset]
        command += ["--batch-size", str(workload.batch_size), "--threads", str(self.threads)]
        command += ["--layout", variant.layout, "--precision", variant.precision]
        command += ["--steps", str(steps)]
        command += ["--compile"] if variant.is_compiled else []
        if workload.dropout is not None:
            command += ["--dropout", str(workload.dropout)]
        if workload.is_sampling:
            command += ["--sampling"]
        if ddim_steps:
            command += ["--ddim-steps", str(ddim_steps)]
        # One cache for all children, so that each graph is compiled once.
        environment = {"TORCHINDUCTOR_CACHE_DIR": str(self.scratch / "inductor")}
        environment |= TUNED_MALLOC if variant.is_tuned else {}
        return self.child(command, environment | variant.environment)

    def child(self, command, environment):
        """Runs a command and reads the JSON in the last line that it prints."""
        try:
            done = subprocess.run(
                command,
                env=os.environ | {"OMP_NUM_THREADS": str(self.threads)} | environment,
                capture_output=True,
                text=True,
                timeout=self.timeout,
            )
        except subprocess.TimeoutExpired as error:
            raise ChildFailed(f"took more than {self.timeout:.0f} s") from error
        lines = done.stdout.strip().splitlines()
        if done.returncode != 0 or not lines:
            words = done.stderr.strip().splitlines() or ["it said nothing"]
            raise ChildFailed(words[-1])
        return json.loads(lines[-1])
