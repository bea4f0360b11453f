"""The training step of DALL-E's tokenizer, forward and backward, at 112 pixels.

No other project trains it, so the peer is plain torch: transformers' FlavaImageCodebook as encoder
and the published decoder, both in torch's default memory layout, with noise as `F.gumbel_softmax`
draws it. With the same weights, pixels and noise its first loss must equal ours.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Iterator

import measure
import torch
from einops import rearrange
from measure import Case, Work
from torch import Tensor

from ssl_beit.config import PRESETS
from ssl_beit.dvae import DVAE, Decoder, anneal, gumbel_noise
from ssl_core.device import autocast

CPU = torch.device("cpu")
PROGRESS = 0.02


def main() -> None:
    flags = measure.parser(__doc__)
    flags.add_argument("--presets", nargs="+", choices=[*PRESETS["dvae"]], default=["dalle", "small"])
    flags.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    flags.add_argument("--batch", type=int, default=2, help="images")
    args = flags.parse_args()
    chosen = measure.settings(args)
    for preset in args.presets:
        shared = (preset, args.precision, args.batch)
        cases = [Case("ours", build, (ours, *shared)), Case("plain", build, (plain, *shared), ("transformers",))]
        results = measure.race(cases, chosen)
        measure.report(f"dVAE step, {preset}, 112 px, {args.precision}, batch {args.batch}", results, chosen)
        measure.same(results, within=1e-4)


def build(make: Callable[..., Callable[[], Tensor]], preset: str, precision: str, batch: int) -> Work:
    """One contender with the weights of seed 0."""
    torch.manual_seed(0)
    method = DVAE(dataclasses.replace(PRESETS["dvae"][preset](), image_size=112)).train()
    pixels = torch.randint(0, 256, (batch, 3, 112, 112), dtype=torch.uint8)
    loss = make(method, pixels, torch.arange(batch))
    with torch.no_grad():
        first = round(float(loss()), 5)

    def run() -> Iterator[str]:
        with autocast(precision, CPU):
            value = loss()
        value.backward()
        yield "forward + backward"

    return Work(run, {"loss": first})


def ours(method: DVAE, pixels: Tensor, seeds: Tensor) -> Callable[[], Tensor]:
    batch = {"views": [pixels], "seed": seeds}
    return lambda: method(batch, PROGRESS)["loss"]


def plain(method: DVAE, pixels: Tensor, seeds: Tensor) -> Callable[[], Tensor]:
    from transformers import FlavaImageCodebook

    config = method.config
    with tempfile.TemporaryDirectory() as folder:
        method.save_pretrained(folder)
        encoder = FlavaImageCodebook.from_pretrained(folder).train().requires_grad_(True)
    decoder = Decoder(
        channels=3, hidden=config.hidden, blocks=config.blocks, vocab=config.vocab, init=config.decoder_init
    )
    decoder.load_state_dict(method.online.decoder.state_dict())
    x = 0.8 * (pixels / 255) + 0.1
    temperature = anneal(PROGRESS, 1.0, config.temperature, config.temperature_decay)
    weight = anneal(PROGRESS, 0.0, config.kl_weight, config.kl_warmup)
    same = [rearrange(gumbel_noise(seeds, (14, 14, config.vocab)), "b h w k -> b k h w")]

    def loss() -> Tensor:
        logits = encoder(x)
        noise = same.pop() if same else -torch.empty_like(logits).exponential_().log()
        mu, log_b = decoder(((logits + noise) / temperature).softmax(1)).chunk(2, 1)
        log_x = torch.log(x / (1 - x))
        nll = (torch.log(2 * log_b.float().exp() * x * (1 - x)) + (log_x - mu).abs() / log_b.float().exp()).mean()
        log_q = logits.float().log_softmax(1)
        kl = (log_q.exp() * (log_q + math.log(config.vocab))).sum(1).mean()
        return nll + weight / 192 * kl

    return loss


if __name__ == "__main__":
    main()
