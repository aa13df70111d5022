"""Shows that the comparison can fail: makes mistakes in PyTorch's half and prints how far apart the two are then."""

import copy
import math
import tempfile

import torch

import parity
import tables
import zero_gradient
from objective import Objective
from replay import replay

CASE = parity.Case("x0", "learned-range", "p2", 1, weight_decay=0.01)


class BoundTrainsPrediction(Objective):
    def bound(self, predicted, mix, x0, x_t, t):
        return self.bits(predicted, mix, x0, x_t, t)


class BoundIsWeighted(Objective):
    def bound(self, predicted, mix, x0, x_t, t):
        return self.weights[t].to(x0.dtype) * super().bound(predicted, mix, x0, x_t, t)


class DivergenceAtZero(Objective):
    """Takes images at t = 0, one of four hundred here, to be at t = 1."""

    def bound(self, predicted, mix, x0, x_t, t):
        return super().bound(predicted, mix, x0, x_t, t.clamp(min=1))


class DifferencesNearOne(Objective):
    """The likelihood of pixels in the words of the reference: in f32 nothing is less probable than 6e-8."""

    @staticmethod
    def pixel_log_likelihood(x0, mean, log_std):
        off, precision = x0 - mean, torch.exp(-log_std)
        above = normal_cdf_by_tanh(precision * (off + 1 / 255))
        below = normal_cdf_by_tanh(precision * (off - 1 / 255))
        probability = torch.where(x0 > 0.999, 1 - below, above - below)
        probability = torch.where(x0 < -0.999, above, probability)
        return probability.clamp(min=1e-12).log()


def normal_cdf_by_tanh(x):
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


class GradientsAreSums(Objective):
    """As the reference with micro-batches, two of them here: twice the gradient."""

    def losses(self, network, x0, eps, t):
        return 2 * super().losses(network, x0, eps, t)


# Words, and what is wrong: the objective, or a value of the configuration.
MISTAKES = [
    ("none", Objective, None),
    ("the bound trains the prediction too", BoundTrainsPrediction, None),
    ("P2 weighs the bound too", BoundIsWeighted, None),
    ("no likelihood of pixels at t = 0", DivergenceAtZero, None),
    ("likelihood of pixels by differences near 1", DifferencesNearOne, None),
    ("micro-batches are summed", GradientsAreSums, None),
    ("gamma 1.001", Objective, ("loss.weighting", "gamma", 1.001)),
    ("no weight decay", Objective, ("optim", "weight_decay", 0)),
    ("beta2 0.998", Objective, ("optim", "beta2", 0.998)),
    ("Adam's eps 2e-8", Objective, ("optim", "eps", 2e-8)),
    ("half-life 81 images", Objective, ("ema", "halflife_images", 81)),
]


def changed(config, change):
    """A copy of a configuration with another value, if any."""
    config = copy.deepcopy(config)
    if change:
        path, key, value = change
        section = config
        for name in path.split("."):
            section = section[name]
        section[key] = value
    return config


def main():
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        trace, _ = parity.train_in_p2(CASE.settings, "f32", folder)
    ruler = tables.Ruler(trace.initial, zero_gradient.of_network(trace.network()))
    config, rows = trace.config, []
    for words, objective_type, change in MISTAKES:
        trace.config = changed(config, change)
        outcome, _ = replay(trace, torch.float32, objective_type)
        found = ruler.distance(trace.outcome, outcome)
        is_missed = "yes" if found.missed() else "no"
        rows.append([words, found.weights, found.averages, found.losses, is_missed])
    print(f"{CASE.name}, f32.\n")
    tables.print_table(["mistake", "weights", "averages", "losses", "beyond the bounds"], rows)


if __name__ == "__main__":
    main()
