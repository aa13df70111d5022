"""Repeats in PyTorch the steps that p2 took: the same weights, images, noise levels and noise."""

import json
from dataclasses import dataclass

import torch
from safetensors import safe_open

from network import UNet, sizes_of
from objective import Objective


@dataclass
class Outcome:
    """Weights, their average, and the loss of each step."""

    weights: dict
    averages: dict
    losses: torch.Tensor


class Trace:
    """What crates/p2/examples/parity_trace.rs saved."""

    def __init__(self, path):
        with safe_open(path, "pt") as file:
            self.config = json.loads(file.metadata()["p2"])
            self.tensors = {name: file.get_tensor(name) for name in file.keys()}
        self.initial = self.under("initial.")
        losses = self.tensors["weighted"].double().mean(dim=1)
        self.outcome = Outcome(self.under("final."), self.under("ema."), losses)

    def under(self, prefix):
        """The tensors under a prefix, by the rest of their names."""
        found = self.tensors.items()
        return {name[len(prefix) :]: x for name, x in found if name.startswith(prefix)}

    def network(self, dtype=torch.float32):
        """The network with the weights that it begins with."""
        network = UNet(sizes_of(self.config)).to(dtype)
        network.load_state_dict(self.initial, strict=True)
        return network

    def steps(self, dtype):
        """Images [N, 3, H, W], noise and noise levels [N] of each step."""
        for x0, eps, t in zip(*(self.tensors[name] for name in ("x0", "eps", "t"))):
            yield x0.permute(0, 3, 1, 2).to(dtype), eps.permute(0, 3, 1, 2).to(dtype), t.long()


def optimizer_of(network, optim):
    wanted = {"warmup_images": 0, "decay": "none", "max_grad_norm": 0}
    if any(optim[key] != value for key, value in wanted.items()):
        raise SystemExit(f"this script has {wanted} alone")
    return torch.optim.AdamW(
        network.parameters(),
        lr=optim["lr"],
        betas=(optim["beta1"], optim["beta2"]),
        eps=optim["eps"],
        weight_decay=optim["weight_decay"],
    )


def ema_rate(config):
    """The share of its old value that the average keeps in a step."""
    if config["ema"]["rampup_ratio"] != 0:
        raise SystemExit("this script has no average that grows longer")
    return 0.5 ** (config["train"]["batch_size"] / config["ema"]["halflife_images"])


def replay(trace, dtype, objective_type=Objective):
    """Trains from the trace's first weights; returns where that leads, and each weight's largest gradient."""
    network = trace.network(dtype)
    objective = objective_type(trace.config)
    optimizer = optimizer_of(network, trace.config["optim"])
    rate = ema_rate(trace.config)
    parameters = dict(network.named_parameters())
    averages = {name: p.detach().clone() for name, p in parameters.items()}
    largest = {name: torch.zeros_like(p) for name, p in parameters.items()}
    losses = []
    for x0, eps, t in trace.steps(dtype):
        optimizer.zero_grad()
        loss = objective.losses(network, x0, eps, t).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach().double())
        with torch.no_grad():
            for name, p in parameters.items():
                averages[name].mul_(rate).add_(p, alpha=1 - rate)
                torch.maximum(largest[name], p.grad.abs(), out=largest[name])
    weights = {name: p.detach() for name, p in parameters.items()}
    return Outcome(weights, averages, torch.stack(losses)), largest
