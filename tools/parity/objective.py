"""The training loss in PyTorch, term by term as in the papers and the reference implementation.

p2 and tools/bench have shorter forms of the same terms; nothing is shared with either.
"""

import math

import torch


class Process:
    """The linear noise schedule and its posterior q(x_{t-1} given x_t, x0), in f64 (Ho et al. 2020)."""

    def __init__(self, n_timesteps):
        scale = 1000 / n_timesteps
        beta = torch.linspace(1e-4 * scale, 0.02 * scale, n_timesteps, dtype=torch.float64)
        alpha_bar = torch.cumprod(1 - beta, 0)
        before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
        variance = beta * (1 - before) / (1 - alpha_bar)
        self.n_timesteps = n_timesteps
        self.alpha_bar = alpha_bar
        self.snr = alpha_bar / (1 - alpha_bar)
        self.log_beta = beta.log()
        # The variance of the first step is 0; the reference takes the second in its place.
        self.log_variance = torch.cat([variance[1:2], variance[1:]]).log()
        self.mean_of_x0 = beta * before.sqrt() / (1 - alpha_bar)
        self.mean_of_x_t = (1 - before) * (1 - beta).sqrt() / (1 - alpha_bar)

    def add_noise(self, x0, eps, t):
        signal = at(self.alpha_bar.sqrt(), t, x0)
        return signal * x0 + at((1 - self.alpha_bar).sqrt(), t, x0) * eps

    def target(self, prediction, x0, eps, t):
        if prediction == "eps":
            return eps
        if prediction == "x0":
            return x0
        # Salimans and Ho 2022, section 4.
        return at(self.alpha_bar.sqrt(), t, x0) * eps - at((1 - self.alpha_bar).sqrt(), t, x0) * x0

    def x0_hat(self, prediction, predicted, x_t, t):
        if prediction == "eps":
            scale = at((1 / self.alpha_bar).sqrt(), t, x_t)
            return scale * x_t - at((1 / self.alpha_bar - 1).sqrt(), t, x_t) * predicted
        if prediction == "x0":
            return predicted
        signal = at(self.alpha_bar.sqrt(), t, x_t)
        return signal * x_t - at((1 - self.alpha_bar).sqrt(), t, x_t) * predicted

    def mean(self, x0, x_t, t):
        """The mean of the posterior, or of the model if x0 is its guess."""
        return at(self.mean_of_x0, t, x_t) * x0 + at(self.mean_of_x_t, t, x_t) * x_t


def at(table, t, like):
    """Numbers of a table in f64 for each image, rounded where they are used: [N, 1, 1, 1]."""
    return table[t].to(like.dtype)[:, None, None, None]


def weights(process, prediction, weighting):
    """What the squared error of the prediction is multiplied by, for each timestep.

    Choi et al. 2022, eq. 8: 1 / (k + SNR)^gamma on the error of the noise. The kind `p2` converts it to the
    error of x0 (times the SNR) or v (times the SNR over 1 + SNR); `p2-raw` does not, as the reference.
    """
    weight = 1 / (weighting["k"] + process.snr) ** weighting["gamma"]
    if weighting["kind"] == "p2-raw" or prediction == "eps":
        return weight
    return weight * (process.snr if prediction == "x0" else process.alpha_bar)


def normal_kl(mean1, log_variance1, mean2, log_variance2):
    """The divergence of two normal distributions, in nats."""
    distance = (mean1 - mean2) ** 2 * torch.exp(-log_variance2)
    ratio = torch.exp(log_variance1 - log_variance2)
    return 0.5 * (-1 + log_variance2 - log_variance1 + ratio + distance)


def normal_cdf(x):
    """The reference's approximation, 0.5 (1 + tanh(y)), as the sigmoid of 2 y: that has digits where it is small."""
    return torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))


def pixel_log_likelihood(x0, mean, log_std):
    """The logarithm of the probability of the bin of an 8-bit pixel: [N, C, H, W] (Ho et al. 2020, eq. 13).

    Taken from the smaller tail. The reference subtracts numbers near 1 in f32, which `mistakes.py` has as well.
    """
    off, precision = x0 - mean, torch.exp(-log_std)
    first = normal_cdf(precision * (off + 1 / 255))
    last = normal_cdf(-precision * (off - 1 / 255))
    far = -off.abs()
    middle = normal_cdf(precision * (far + 1 / 255)) - normal_cdf(precision * (far - 1 / 255))
    probability = torch.where(x0 < -0.999, first, torch.where(x0 > 0.999, last, middle))
    return probability.clamp(min=1e-12).log()


class Objective:
    """What a configuration of p2 minimizes."""

    pixel_log_likelihood = staticmethod(pixel_log_likelihood)

    def __init__(self, config):
        diffusion = config["diffusion"]
        wanted = {"schedule": "linear", "time": "discrete"}
        if any(diffusion[key] != value for key, value in wanted.items()):
            raise SystemExit(f"this script has {wanted} alone")
        self.process = Process(diffusion["n_timesteps"])
        self.prediction = diffusion["prediction"]
        self.is_learned = diffusion["variance"] == "learned-range"
        self.weights = weights(self.process, self.prediction, config["loss"]["weighting"])

    def losses(self, network, x0, eps, t):
        """The loss of each image, [N] (Nichol and Dhariwal 2021, eq. 16, with Choi et al.'s weight)."""
        x_t = self.process.add_noise(x0, eps, t)
        output = network(x_t, t)
        predicted, mix = output.chunk(2, dim=1) if self.is_learned else (output, None)
        error = self.process.target(self.prediction, x0, eps, t) - predicted
        weighted = (at(self.weights, t, error) * error**2).mean(dim=(1, 2, 3))
        return weighted + self.bound(predicted, mix, x0, x_t, t) if self.is_learned else weighted

    def bound(self, predicted, mix, x0, x_t, t):
        """What trains the variance, and it alone: [N]. No weight applies to it."""
        return self.bits(predicted.detach(), mix, x0, x_t, t)

    def bits(self, predicted, mix, x0, x_t, t):
        """The term of the variational bound in bits per dimension, times T / 1000: [N].

        Nichol and Dhariwal 2021, eq. 15: the divergence of the two posteriors, or at t = 0 the likelihood of pixels.
        """
        process = self.process
        low, high = at(process.log_variance, t, x_t), at(process.log_beta, t, x_t)
        fraction = (mix + 1) / 2
        log_variance = fraction * high + (1 - fraction) * low
        x0_hat = process.x0_hat(self.prediction, predicted, x_t, t)
        mean = process.mean(x0_hat, x_t, t)
        divergence = normal_kl(process.mean(x0, x_t, t), low, mean, log_variance)
        surprise = -self.pixel_log_likelihood(x0, mean, 0.5 * log_variance)
        is_first = (t == 0)[:, None, None, None]
        nats = torch.where(is_first, surprise, divergence).mean(dim=(1, 2, 3))
        return nats / math.log(2) * (process.n_timesteps / 1000)
