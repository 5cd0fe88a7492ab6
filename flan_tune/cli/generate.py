"""`generate`: answers from an exported model, attending as it was trained."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from flan_tune.errors import RecipeError


def generate_command(
    model: str,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    mode_token: str | None,
    temperature: float,
    seed: int,
    as_json: bool,
) -> None:
    """Prints the answer to each prompt."""
    asked = list(prompts) or [line.rstrip("\n") for line in sys.stdin]
    if not asked:
        raise RecipeError("there is no prompt. Give --prompt TEXT, or lines on standard input.")
    os.environ.setdefault("TQDM_DISABLE", "1")
    from flan_tune.evaluation.lm import FlanTuneLM
    from flan_tune.models.generate import generate

    lm = FlanTuneLM.from_folder(model, mode_token=mode_token)
    generated = generate(
        lm.model,
        lm.prompt_ids(asked, [max_new_tokens] * len(asked)),
        attention=lm.attention,
        eos_id=lm.tokens.eos_id,
        pad_id=lm.tokens.pad_id,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
    )
    answers = [lm.tokens.decode(ids) for ids in generated]
    for prompt, answer in zip(asked, answers, strict=True):
        if as_json:
            print(json.dumps({"prompt": prompt, "answer": answer}, ensure_ascii=False))
        else:
            print(f"{prompt}\n-> {answer}\n" if len(asked) > 1 else answer)
