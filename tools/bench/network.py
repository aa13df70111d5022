"""The ADM U-Net in PyTorch, with the sizes of a p2 preset and the parameter names of p2's files.

Sources: Dhariwal and Nichol 2021, arXiv 2105.05233, section 3; Ho et al. 2020, arXiv 2006.11239.
Run this file to check parameter counts, and outputs against the numbers in crates/nn/tests/unet.rs.
"""

import math
import tomllib
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

# What the presets must have; `p2 info --preset NAME` says the same.
N_PARAMETERS = {"bench-small": 5_662_598, "bench-medium": 56_470_566, "paper-256": 93_563_910}

N_GROUPS = 32


@dataclass(frozen=True)
class Sizes:
    """The sizes of a U-Net, as the section `[model]` of a preset names them."""

    image_size: int
    channels: int
    channel_mult: tuple[int, ...]
    n_res_blocks: int
    attention_resolutions: tuple[int, ...]
    head_channels: int
    dropout: float
    out_channels: int

    def width(self, level):
        return self.channels * self.channel_mult[level]

    def has_attention(self, level):
        return self.image_size >> level in self.attention_resolutions


def read_preset(name):
    """The preset as a nested dictionary."""
    with open(CONFIGS / f"{name}.toml", "rb") as file:
        return tomllib.load(file)


def sizes_of(preset):
    """The sizes in a preset; refuses options that this network does not have."""
    model = preset["model"]
    wanted = {
        "attention_order": "legacy",
        "resample": "res-block",
        "time_conditioning": "scale-shift",
        "n_classes": 0,
    }
    for key, value in wanted.items():
        if model[key] != value:
            raise SystemExit(f"model.{key} = {model[key]!r}: this network only has {value!r}")
    is_learned = preset["diffusion"]["variance"] == "learned-range"
    return Sizes(
        image_size=preset["data"]["image_size"],
        channels=model["channels"],
        channel_mult=tuple(model["channel_mult"]),
        n_res_blocks=model["n_res_blocks"],
        attention_resolutions=tuple(model["attention_resolutions"]),
        head_channels=model["heads"]["channels"],
        dropout=model["dropout"],
        out_channels=6 if is_learned else 3,
    )


def zeroed(layer):
    """A layer that starts as zero, so that its branch adds nothing at first."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def timestep_embedding(t, channels):
    """Cosines, then sines, of t times frequencies from 1 down to 1/10000: [N, channels]."""
    half = channels // 2
    exponents = torch.arange(half, dtype=torch.float32) * (-math.log(10_000) / half)
    angles = t.float()[:, None] * exponents.exp()[None]
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class ResBlock(nn.Module):
    """Norm, SiLU, resampling, convolution; the noise level scales and shifts; once more; plus the input."""

    def __init__(self, c_in, c_out, embed_channels, dropout, resample=None):
        super().__init__()
        self.resample = resample
        self.in_layers = nn.Sequential(
            nn.GroupNorm(N_GROUPS, c_in), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embed_channels, 2 * c_out))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(N_GROUPS, c_out),
            nn.SiLU(),
            nn.Dropout(dropout),
            zeroed(nn.Conv2d(c_out, c_out, 3, padding=1)),
        )
        if c_in != c_out:
            self.skip_connection = nn.Conv2d(c_in, c_out, 1)
        else:
            self.skip_connection = nn.Identity()

    def forward(self, x, embedding):
        norm, silu, conv = self.in_layers
        h = silu(norm(x))
        if self.resample == "up":
            h, x = (F.interpolate(part, scale_factor=2.0, mode="nearest") for part in (h, x))
        elif self.resample == "down":
            h, x = (F.avg_pool2d(part, 2) for part in (h, x))
        h = conv(h)
        scale, shift = self.emb_layers(embedding)[:, :, None, None].chunk(2, dim=1)
        norm, silu, dropout, conv = self.out_layers
        h = dropout(silu(norm(h) * (1 + scale) + shift))
        return self.skip_connection(x) + conv(h)


class AttentionBlock(nn.Module):
    """Norm, multi-head attention over all positions, projection; plus the input.

    The two projections are matrix products over positions and the middle is PyTorch's fused
    attention, which wants the channels of a head side by side.
    """

    def __init__(self, channels, head_channels):
        super().__init__()
        self.head_channels = head_channels
        self.norm = nn.GroupNorm(N_GROUPS, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x):
        n, c, h, w = x.shape
        heads = c // self.head_channels
        positions = self.norm(x).permute(0, 2, 3, 1).reshape(n, h * w, c)
        qkv = F.linear(positions, self.qkv.weight.squeeze(2), self.qkv.bias)
        # Legacy order: the q, k and v of a head stand together.
        qkv = qkv.view(n, h * w, heads, 3, self.head_channels).permute(3, 0, 2, 1, 4)
        y = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])  # [N, heads, T, D]
        y = y.transpose(1, 2).reshape(n, h * w, c)
        y = F.linear(y, self.proj_out.weight.squeeze(2), self.proj_out.bias)
        return x + y.view(n, h, w, c).permute(0, 3, 1, 2)


class Stage(nn.Sequential):
    """Layers one after the other; residual blocks are told the noise level."""

    def forward(self, x, embedding):
        for layer in self:
            x = layer(x, embedding) if isinstance(layer, ResBlock) else layer(x)
        return x


class UNet(nn.Module):
    """Noised images [N, 3, H, W] and noise levels [N] to [N, 3 or 6, H, W]: prediction, learned variance."""

    def __init__(self, sizes):
        super().__init__()
        self.sizes = sizes
        embed_channels = 4 * sizes.channels
        self.time_embed = nn.Sequential(
            nn.Linear(sizes.channels, embed_channels),
            nn.SiLU(),
            nn.Linear(embed_channels, embed_channels),
        )

        def block(c_in, c_out, resample=None):
            return ResBlock(c_in, c_out, embed_channels, sizes.dropout, resample)

        def attention(level, c):
            return [AttentionBlock(c, sizes.head_channels)] if sizes.has_attention(level) else []

        last = len(sizes.channel_mult) - 1
        c = sizes.width(0)
        self.input_blocks = nn.ModuleList([Stage(nn.Conv2d(3, c, 3, padding=1))])
        skips = [c]
        for level in range(last + 1):
            for _ in range(sizes.n_res_blocks):
                stage = Stage(block(c, sizes.width(level)), *attention(level, sizes.width(level)))
                self.input_blocks.append(stage)
                c = sizes.width(level)
                skips.append(c)
            if level < last:
                self.input_blocks.append(Stage(block(c, c, "down")))
                skips.append(c)
        middle = AttentionBlock(c, sizes.head_channels)
        self.middle_block = Stage(block(c, c), middle, block(c, c))
        self.output_blocks = nn.ModuleList()
        for level in reversed(range(last + 1)):
            for i in range(sizes.n_res_blocks + 1):
                layers = [block(c + skips.pop(), sizes.width(level))]
                c = sizes.width(level)
                layers += attention(level, c)
                if level > 0 and i == sizes.n_res_blocks:
                    layers.append(block(c, c, "up"))
                self.output_blocks.append(Stage(*layers))
        out_conv = zeroed(nn.Conv2d(c, sizes.out_channels, 3, padding=1))
        self.out = nn.Sequential(nn.GroupNorm(N_GROUPS, c), nn.SiLU(), out_conv)

    def forward(self, x, t):
        # f32 even where the network is f64: its rounding is a part of the network.
        embedding = timestep_embedding(t, self.sizes.channels).to(x.dtype)
        embedding = self.time_embed(embedding)
        skips = []
        for stage in self.input_blocks:
            x = stage(x, embedding)
            skips.append(x)
        x = self.middle_block(x, embedding)
        for stage in self.output_blocks:
            x = stage(torch.cat([x, skips.pop()], dim=1), embedding)
        return self.out(x)


def n_parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def check_outputs():
    """Case A of crates/nn/tests/unet.rs: numbers of the reference implementation."""
    tiny = Sizes(16, 32, (1, 2), 1, (8,), 16, 0.0, 6)
    network = UNet(tiny)
    for k, (name, parameter) in enumerate(network.named_parameters()):
        values = 0.1 * torch.sin(0.7 * k + 0.13 * torch.arange(parameter.numel()).double())
        values += 1.0 if parameter.dim() == 1 and name.endswith("weight") else 0.0
        parameter.data.copy_(values.view_as(parameter))
    x = torch.sin(0.05 * torch.arange(2 * 3 * 256).double()).float().view(2, 3, 16, 16)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        network.to(memory_format=memory_format)
        with torch.inference_mode():
            y = network(x.contiguous(memory_format=memory_format), torch.tensor([7.0, 500.0]))
        found = [y.mean(), y.std(unbiased=False), *y.flatten()[:4], *y.flatten()[-4:]]
        expected = [5.139585e-2, 4.074544e-1, 0.1566784, 0.3202660, 0.3834880, 0.4886346]
        expected += [0.1255388, -0.006723873, -0.04946209, -0.04625285]
        error = max(abs(float(a) - b) for a, b in zip(found, expected))
        if error > 4e-5:
            raise SystemExit(f"the network differs by {error:.1e} from the reference")


def check_counts():
    """The sizes in the presets give exactly the networks that are compared."""
    for name, expected in N_PARAMETERS.items():
        with torch.device("meta"):
            count = n_parameters(UNet(sizes_of(read_preset(name))))
        if count != expected:
            raise SystemExit(f"{name} has {count} parameters, not {expected}")
        print(f"{name}: {count:,} parameters")


if __name__ == "__main__":
    check_counts()
    check_outputs()
    print("outputs equal those of the reference implementation")
