"""Weights whose gradient is zero in exact arithmetic.

Rounding leaves some 1e-9 there, which Adam divides by its own size: full steps in directions that say
nothing and change nothing. So these are not compared. Which they are follows from the network; that it is
they and no others is checked on the gradients of the replay in f64.
"""

from dataclasses import dataclass

import torch

from network import N_GROUPS, AttentionBlock, ResBlock

# Of the largest gradient of the whole network; between the two kinds lie eight orders of magnitude.
MOST = 1e-12


NORM = "a bias before a norm whose groups are one channel each, which takes the mean away"
LAST_NORM = "a bias on what only the last norm reads, whose groups are one channel each"
KEYS = "the bias of an attention's keys, a third of the tensor: the same for all scores of a query"


@dataclass
class Zero:
    """Some weights of a tensor."""

    name: str
    reason: str
    mask: torch.Tensor


def of_network(network):
    """All weights without gradient."""
    found = []
    parameters = dict(network.named_parameters())

    def add(name, reason, mask=None):
        like = parameters[name]
        every = torch.ones_like(like, dtype=torch.bool)
        found.append(Zero(name, reason, every if mask is None else mask))

    for name, block in network.named_modules():
        if isinstance(block, ResBlock) and block.out_layers[0].num_channels == N_GROUPS:
            add(f"{name}.in_layers.2.bias", NORM)
        if isinstance(block, AttentionBlock):
            heads = block.norm.num_channels // block.head_channels
            mask = torch.zeros(heads, 3, block.head_channels, dtype=torch.bool)
            mask[:, 1] = True  # a head's queries, keys and values stand together
            add(f"{name}.qkv.bias", KEYS, mask.flatten())
    if network.out[0].num_channels == N_GROUPS:
        last = f"output_blocks.{len(network.output_blocks) - 1}.0"
        add(f"{last}.out_layers.3.bias", LAST_NORM)
        add(f"{last}.skip_connection.bias", LAST_NORM)
    return found


def check(zeros, largest_gradients):
    """Stops unless the weights without gradient are the expected ones, in f64."""
    top = max(float(gradient.max()) for gradient in largest_gradients.values())
    expected = {zero.name: zero.mask for zero in zeros}
    for name, gradient in largest_gradients.items():
        found = gradient < MOST * top
        wanted = expected.get(name, torch.zeros_like(found))
        if not torch.equal(found, wanted):
            raise SystemExit(
                f"{name}: {int(found.sum())} weights have no gradient, {int(wanted.sum())} should have none"
            )
