"""Greedy generation with GPT-2 small: ours, transformers' `generate`, and a loop without a cache.

The run fails unless all write the same tokens. `a token` is the time divided by the tokens written;
it includes reading the prompt.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import measure
import torch
from measure import Case, Work
from plain_gpt import PlainGPT, turned
from torch import Tensor

from ssl_lm.config import gpt2
from ssl_lm.gpt import GPT


def main() -> None:
    flags = measure.parser(__doc__)
    flags.add_argument("--prompt", type=int, default=32)
    flags.add_argument("--new", type=int, default=48)
    args = flags.parse_args()
    chosen, shared = measure.settings(args), (args.prompt, args.new)
    results = measure.race(
        [
            Case("ours", build, (ours, *shared)),
            Case("transformers", build, (transformers, *shared), ("transformers",)),
            Case("without a cache", build, (uncached, *shared)),
        ],
        chosen,
    )
    written = {result.case: result.facts.pop("written") for result in results if not result.missing}
    for result in results:
        if not result.missing:
            seconds = statistics.median(result.seconds(chosen.clock)) / args.new
            result.facts["a token"] = measure.duration(seconds)
    measure.report(f"Generation, GPT-2 small, fp32, prompt {args.prompt}, {args.new} new tokens", results, chosen)
    if len(set(written.values())) > 1:
        raise SystemExit(f"the contenders write different tokens: {written}")


def build(make: Callable[..., Callable[[], Tensor]], prompt: int, new: int) -> Work:
    torch.manual_seed(0)
    method = GPT(gpt2()).eval()
    method.config = type(method.config)()  # without an eos token all write to the end
    write = make(method, torch.randint(50257, (1, prompt)), new)

    def run() -> Iterator[str]:
        write()
        yield "writing"

    return Work(run, {"written": tuple(write()[0, prompt:].tolist())})


def ours(method: GPT, ids: Tensor, new: int) -> Callable[[], Tensor]:
    return lambda: method.generate(ids, new, temperature=0)


def transformers(method: GPT, ids: Tensor, new: int) -> Callable[[], Tensor]:
    from transformers import GPT2LMHeadModel

    with tempfile.TemporaryDirectory() as folder:
        method.save_pretrained(folder)
        model: Any = GPT2LMHeadModel.from_pretrained(folder).eval()
    options = {
        "max_new_tokens": new,
        "min_new_tokens": new,
        "do_sample": False,
        "pad_token_id": 0,
        "eos_token_id": None,
    }
    return lambda: model.generate(ids, attention_mask=torch.ones_like(ids), **options)


def uncached(method: GPT, ids: Tensor, new: int) -> Callable[[], Tensor]:
    model = PlainGPT(method.config).eval()
    model.load_state_dict(turned(method.state_dict()))

    def write() -> Tensor:
        tokens = ids
        with torch.inference_mode():
            for _ in range(new):
                tokens = torch.cat([tokens, model.logits(tokens)[:, -1:].argmax(-1)], 1)
        return tokens

    return write


if __name__ == "__main__":
    main()
