"""Times PyTorch in one process: full training steps, or draws of images. Prints one line of JSON.

`compare.py` starts it once per variant and round, with threads and malloc set in its environment.
"""

import argparse
import contextlib
import json
import math
import time

import torch

import network

HALF_BIN, LAST_BIN, MIN_PROBABILITY = 1 / 255, 0.999, 1e-12


class Schedule:
    """The linear noise schedule and what the losses need of it, per noise level."""

    def __init__(self, n_timesteps, k, gamma):
        scale = 1000 / n_timesteps
        beta = torch.linspace(1e-4 * scale, 0.02 * scale, n_timesteps, dtype=torch.float64)
        alpha_bar = (1 - beta).cumprod(0)
        before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
        snr = alpha_bar / (1 - alpha_bar)
        variance = beta * (1 - before) / (1 - alpha_bar)
        variance[0] = variance[1]  # the first is 0
        mean_x0 = beta * before.sqrt() / (1 - alpha_bar)
        self.n_timesteps = n_timesteps
        self.alpha_bar = alpha_bar
        self.signal, self.noise = alpha_bar.sqrt().float(), (1 - alpha_bar).sqrt().float()
        self.weight = ((k + snr) ** -gamma).float()
        self.log_beta, self.log_variance = beta.log().float(), variance.log().float()
        # Squared distance of the two means over the variance, per squared error of the noise.
        self.mean_factor = (mean_x0.square() / snr / variance).float()
        self.mean_x0_scale = (mean_x0 / snr.sqrt()).float()


def per_image(values):
    return values[:, None, None, None]


def normal_cdf(x):
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def pixel_nats(x0, centered, log_variance):
    """Negative log-likelihood of 8-bit pixels (Ho et al. 2020, eq. 13)."""
    precision = torch.exp(-0.5 * log_variance)
    upper = normal_cdf((centered + HALF_BIN) * precision)
    lower = normal_cdf((centered - HALF_BIN) * precision)
    upper = torch.where(x0 > LAST_BIN, torch.ones_like(upper), upper)
    lower = torch.where(x0 < -LAST_BIN, torch.zeros_like(lower), lower)
    return -(upper - lower).clamp(min=MIN_PROBABILITY).log()


def loss_of(schedule, output, x0, eps, t):
    """P2-weighted error of the noise plus the bound that trains the variance (Nichol and Dhariwal 2021)."""
    eps_hat, mix = output.float().chunk(2, dim=1)
    error = eps_hat - eps
    weighted = schedule.weight[t] * error.square().mean(dim=(1, 2, 3))
    mix = (mix + 1) / 2
    low, high = per_image(schedule.log_variance[t]), per_image(schedule.log_beta[t])
    log_variance = low + mix * (high - low)
    ratio = low - log_variance
    error = error.detach()
    factor = per_image(schedule.mean_factor[t])
    nats = 0.5 * ((1 + factor * error.square()) * ratio.exp() - ratio - 1)
    first = (t == 0).nonzero().flatten()
    if len(first):
        centered = per_image(schedule.mean_x0_scale[t[first]]) * error[first]
        nats = nats.index_copy(0, first, pixel_nats(x0[first], centered, log_variance[first]))
    vb = nats.mean(dim=(1, 2, 3)) / math.log(2) * (schedule.n_timesteps / 1000)
    return (weighted + vb).mean()


def count_of(value):
    """20_000 for 20000 or "20k"."""
    if isinstance(value, str):
        return int(value[:-1]) * {"k": 1000, "M": 1_000_000}[value[-1]]
    return value


class Variant:
    """A network on random images, in one memory layout and precision."""

    def __init__(self, preset, batch_size, layout, precision, is_compiled):
        sizes = network.sizes_of(preset)
        weighting = preset["loss"]["weighting"]
        if weighting["kind"] != "p2" or preset["diffusion"]["schedule"] != "linear":
            raise SystemExit("this script has P2 weighting on the linear schedule alone")
        if preset["diffusion"]["variance"] != "learned-range":
            raise SystemExit("this script only has a learned variance")
        self.preset, self.n, self.size = preset, batch_size, sizes.image_size
        self.memory_format = (
            torch.channels_last if layout == "channels_last" else torch.contiguous_format
        )
        self.unet = network.UNet(sizes).to(memory_format=self.memory_format)
        self.call = torch.compile(self.unet) if is_compiled else self.unet
        self.autocast = (
            torch.autocast("cpu", dtype=torch.bfloat16)
            if precision == "bf16"
            else contextlib.nullcontext()
        )
        self.schedule = Schedule(
            preset["diffusion"]["n_timesteps"], weighting["k"], weighting["gamma"]
        )

    def empty(self, n):
        return torch.empty(n, 3, self.size, self.size, memory_format=self.memory_format)

    def predict(self, x_t, t):
        with self.autocast:
            return self.call(x_t, t)

    def prepare_training(self):
        optim = self.preset["optim"]
        if optim["max_grad_norm"] != 0:
            raise SystemExit("this script does not clip gradients")
        self.parameters = list(self.unet.parameters())
        self.averages = [parameter.detach().clone() for parameter in self.parameters]
        halflife = count_of(self.preset["ema"]["halflife_images"])
        self.ema_weight = 1 - 0.5 ** (self.n / halflife)
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=optim["lr"],
            betas=(optim["beta1"], optim["beta2"]),
            eps=optim["eps"],
            weight_decay=optim["weight_decay"],
            fused=True,
        )

    def train_step(self):
        """One full step: images, noise, forward, loss, backward, AdamW, average."""
        x0 = self.empty(self.n).uniform_(-1, 1)
        t = torch.randint(self.schedule.n_timesteps, (self.n,))
        eps = self.empty(self.n).normal_()
        x_t = per_image(self.schedule.signal[t]) * x0 + per_image(self.schedule.noise[t]) * eps
        loss = loss_of(self.schedule, self.predict(x_t, t), x0, eps, t)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, self.parameters, self.ema_weight)
        if not math.isfinite(loss.item()):
            raise SystemExit("the loss is not finite")

    @torch.inference_mode()
    def draw(self, n_steps):
        """One batch of images by DDIM without fresh noise (Song et al. 2021, eq. 12)."""
        last = self.schedule.n_timesteps - 1
        levels = [round(i * last / max(n_steps - 1, 1)) for i in range(n_steps)]
        alpha_bar = [1.0] + [float(self.schedule.alpha_bar[t]) for t in levels]
        x = self.empty(self.n).normal_()
        for i in reversed(range(n_steps)):
            t = torch.full((self.n,), levels[i])
            eps_hat = self.predict(x, t)[:, :3].float()
            now, then = alpha_bar[i + 1], alpha_bar[i]
            x0_hat = (x / math.sqrt(now) - math.sqrt(1 / now - 1) * eps_hat).clamp(-1, 1)
            eps_hat = (x - math.sqrt(now) * x0_hat) / math.sqrt(1 - now)
            x = math.sqrt(then) * x0_hat + math.sqrt(1 - then) * eps_hat
        return x


def peak_memory_bytes():
    """The most memory that this process ever had resident."""
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    raise SystemExit("this system does not tell the peak memory of a process")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", required=True, choices=network.N_PARAMETERS)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--layout", choices=["nchw", "channels_last"], default="channels_last")
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--dropout", type=float, help="in place of the preset's")
    parser.add_argument("--sampling", action="store_true", help="draw images, do not train")
    parser.add_argument("--ddim-steps", type=int, default=50)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    preset = network.read_preset(arguments.preset)
    if arguments.dropout is not None:
        preset["model"]["dropout"] = arguments.dropout
    variant = Variant(
        preset, arguments.batch_size, arguments.layout, arguments.precision, arguments.compile
    )
    count = network.n_parameters(variant.unet)
    if count != network.N_PARAMETERS[arguments.preset]:
        raise SystemExit(f"{arguments.preset} has {count} parameters")
    if arguments.sampling:
        variant.unet.eval().requires_grad_(False)
        variant.draw(arguments.warm_up)
        step = lambda: variant.draw(arguments.ddim_steps)
    else:
        variant.prepare_training()
        for _ in range(arguments.warm_up):
            variant.train_step()
        step = variant.train_step
    seconds = []
    for _ in range(arguments.steps):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    result = {
        "seconds": seconds,
        "peak_memory_bytes": peak_memory_bytes(),
        "n_parameters": count,
        "torch": torch.__version__,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
