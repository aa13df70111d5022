"""How far two trainings are apart, and the tables of it."""

from dataclasses import dataclass

import torch

# What is asked for: relative L2 of all weights, and of their averages; relative difference of a step's loss.
MOST_WEIGHTS, MOST_LOSSES = 1e-3, 1e-4


@dataclass
class Distance:
    """How far an outcome is from another one."""

    weights: float
    averages: float
    losses: float
    worst_name: str
    worst: float

    def missed(self):
        """What is further than it may be; a distance that is no number is."""
        bounds = [
            ("weights", self.weights, MOST_WEIGHTS),
            ("averages", self.averages, MOST_WEIGHTS),
            ("losses", self.losses, MOST_LOSSES),
        ]
        return [f"{what} by {x:.1e}, not {most:.0e}" for what, x, most in bounds if not x <= most]


class Ruler:
    """Measures the weights that have a gradient."""

    def __init__(self, tensors, zeros):
        self.counted = {name: torch.ones_like(x, dtype=torch.bool) for name, x in tensors.items()}
        for zero in zeros:
            self.counted[zero.name] = ~zero.mask

    def apart(self, a, b, names=None):
        """The L2 distance of a from b, relative to b."""
        names = names or self.counted
        joined = lambda tensors: torch.cat(
            [tensors[name].double()[self.counted[name]] for name in names]
        )
        return float((joined(a) - joined(b)).norm() / joined(b).norm())

    def distance(self, a, b):
        """The distance of an outcome from another one, and of the tensor that is furthest apart."""
        names = [name for name, mask in self.counted.items() if mask.any()]
        each = {name: self.apart(a.weights, b.weights, [name]) for name in names}
        worst_name = max(each, key=each.get)
        return Distance(
            weights=self.apart(a.weights, b.weights),
            averages=self.apart(a.averages, b.averages),
            losses=float(((a.losses - b.losses) / b.losses).abs().max()),
            worst_name=worst_name,
            worst=each[worst_name],
        )


@dataclass
class Row:
    """One case: what PyTorch in f32 and in f64 are apart from the others."""

    name: str
    zeros: list
    # By the precision of p2.
    to_single: dict
    # The same, and "torch" for PyTorch in f32.
    to_double: dict
    # How far the weights moved in all steps.
    moved: float


def print_table(head, rows):
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        cells = [cell if isinstance(cell, str) else f"{cell:.1e}" for cell in row]
        print("| " + " | ".join(cells) + " |")
    print()


def print_rows(rows):
    print(f"p2 against PyTorch in f32. Allowed: {MOST_WEIGHTS:.0e}, for losses {MOST_LOSSES:.0e}.\n")
    words = ["weights", "averages", "losses"]
    head = ["case", *words, *(f"exact: {word}" for word in words)]
    print_table(head, [[row.name, *against_single(row)] for row in rows])

    print("Each against PyTorch in f64.\n")
    names = ["p2", "p2 exact", "PyTorch f32"]
    head = ["case", "moved", *(f"{what}: {name}" for what in ("weights", "losses") for name in names)]
    print_table(head, [[row.name, row.moved, *against_double(row)] for row in rows])

    print("The tensor furthest from PyTorch in f64.\n")
    head = ["case", "p2", "by", "PyTorch f32", "by"]
    print_table(head, [[row.name, *worst(row)] for row in rows])

    print("Not compared, because the gradient is zero in exact arithmetic:\n")
    for reason in dict.fromkeys(zero.reason for zero in rows[0].zeros):
        names = [f"`{zero.name}`" for zero in rows[0].zeros if zero.reason == reason]
        print(f"- {reason}: {', '.join(names)}")


def against_single(row):
    for found in row.to_single.values():
        yield from (found.weights, found.averages, found.losses)


def against_double(row):
    yield from (found.weights for found in row.to_double.values())
    yield from (found.losses for found in row.to_double.values())


def worst(row):
    for name in ("f32", "torch"):
        found = row.to_double[name]
        yield from (f"`{found.worst_name}`", found.worst)
