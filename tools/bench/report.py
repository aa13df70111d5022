"""Statistics of timed steps, and the table that people read."""

from dataclasses import dataclass, field
from statistics import median


@dataclass
class Measured:
    """All timed steps of one program or variant on one workload."""

    name: str
    rounds: list[list[float]] = field(default_factory=list)
    peak_memory_bytes: int = 0
    # The limit of the machine, as each process of p2 found it.
    gemm_peaks: list[float] = field(default_factory=list)
    info: dict = field(default_factory=dict)

    def add(self, result):
        self.rounds.append(result["seconds"])
        self.peak_memory_bytes = max(self.peak_memory_bytes, result["peak_memory_bytes"] or 0)
        if "gemm_peak_gflops" in result:
            self.gemm_peaks.append(result["gemm_peak_gflops"])
        known = ("train_share_of_gemm_peak", "multiply_adds_per_image", "ops")
        self.info |= {key: result[key] for key in known if key in result}

    def join(self, other):
        self.rounds += other.rounds
        self.gemm_peaks += other.gemm_peaks
        self.peak_memory_bytes = max(self.peak_memory_bytes, other.peak_memory_bytes)
        self.info |= other.info

    @property
    def seconds(self):
        return [value for round_ in self.rounds for value in round_]

    @property
    def median(self):
        return median(self.seconds)

    def summary(self):
        seconds = self.seconds
        return {
            "name": self.name,
            "median_seconds": self.median,
            "min_seconds": min(seconds),
            "max_seconds": max(seconds),
            # From the fastest to the slowest step, as a share of the median.
            "spread": (max(seconds) - min(seconds)) / self.median,
            "peak_memory_bytes": self.peak_memory_bytes,
            "gemm_peaks_gflops": self.gemm_peaks,
            "rounds": self.rounds,
            **self.info,
        }


def ratio(p2, other):
    """How much faster p2 is, by medians over all rounds and per round, and its share of the memory."""
    per_round = [
        median(theirs) / median(ours) for theirs, ours in zip(other.rounds, p2.rounds)
    ]
    return {
        "against": other.name,
        "speed": other.median / p2.median,
        "speed_by_minima": min(other.seconds) / min(p2.seconds),
        "speed_min_round": min(per_round),
        "speed_max_round": max(per_round),
        "memory": p2.peak_memory_bytes / other.peak_memory_bytes,
    }


def table(measured, images_per_step):
    """One line per program or variant."""
    width = max(len(each.name) for each in measured)
    head = f"{'':{width}}   median s     min s   spread   images/s   peak GB   steps"
    lines = [head]
    for each in measured:
        summary = each.summary()
        lines.append(
            f"{each.name:{width}}  {each.median:9.4f} {summary['min_seconds']:9.4f}"
            f"   {100 * summary['spread']:4.0f} %  {images_per_step / each.median:9.2f}"
            f" {each.peak_memory_bytes / 1e9:9.2f}  {len(each.seconds):6}"
        )
    return "\n".join(lines)


def ratio_line(label, found):
    return (
        f"p2 against PyTorch's {label}: {found['speed']:.2f} times as fast"
        f" (rounds {found['speed_min_round']:.2f} to {found['speed_max_round']:.2f},"
        f" minima {found['speed_by_minima']:.2f}), {found['memory']:.2f} of the memory"
        f"  [{found['against']}]"
    )
