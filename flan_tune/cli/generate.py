"""`generate`: answers from an exported model, attending as it was trained."""

from __future__ import annotations

import json
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
    from flan_tune.evaluation.lm import FlanTuneLM

    lm = FlanTuneLM.from_folder(model, mode_token=mode_token)
    answers = lm.answer(asked, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    for prompt, answer in zip(asked, answers, strict=True):
        if as_json:
            print(json.dumps({"prompt": prompt, "answer": answer}, ensure_ascii=False))
        else:
            print(f"{prompt}\n-> {answer}\n" if len(asked) > 1 else answer)
