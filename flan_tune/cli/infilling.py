"""The suite `infilling` of `evaluate`: text of a data root, and further models that are asked for the same spans."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flan_tune.errors import RecipeError, ScoreError
from flan_tune.evaluation.infilling import Infilling, compare_infilling, measure_infilling
from flan_tune.evaluation.suites.infilling import (
    SPLIT,
    Documents,
    Passage,
    draw_passages,
    infilling_questions,
    same_passages,
)
from flan_tune.sources.rows import find_data_root, open_rows
from flan_tune.tasks.catalog import load_catalog

if TYPE_CHECKING:
    from flan_tune.evaluation.lm import FlanTuneLM


@dataclass(frozen=True)
class InfillingJob:
    """So many passages of `passage_tokens` tokens of the validation split of `corpus`, asked of one model or several.

    Samples go to `folder`.
    """

    corpus: str
    documents: Documents
    passages: int
    passage_tokens: int
    folder: Path

    def measure(self, lm: FlanTuneLM) -> Infilling:
        """One model."""
        questions = infilling_questions(self._passages(lm))
        return measure_infilling(lm, questions, self.folder / "samples.jsonl", _say)

    def about(self, found: Infilling) -> dict[str, Any]:
        """What results.json says beside the tasks."""
        asked = {"corpus": self.corpus, "split": SPLIT, "passages": self.passages}
        return {**asked, "passage_tokens": self.passage_tokens, "causal_text": found.result["causal_text"]}

    def compare(self, base: Infilling, base_lm: FlanTuneLM, others: Mapping[str, str]) -> dict[str, Any]:
        """{"models": {name: result}, "differences": {name: against the base}} of others, name -> model.

        Raises: ScoreError if a model's tokenizer splits text otherwise: it would be asked for other spans.
        """
        from flan_tune.evaluation.lm import FlanTuneLM

        passages = self._passages(base_lm)
        results: dict[str, Any] = {}
        differences: dict[str, Any] = {}
        for name, model in others.items():
            lm = FlanTuneLM.from_folder(model, batch_size=base_lm.batch_size)
            if not same_passages(passages, self._passages(lm)):
                raise ScoreError(
                    f"{model}: its tokenizer splits text otherwise than that of {base_lm.description['path']}, so the "
                    "spans would be others. Compare models of one tokenizer; added tokens do not matter."
                )
            _say(f"{model}:")
            found = measure_infilling(lm, infilling_questions(passages), self.folder / name / "samples.jsonl", _say)
            results[name], differences[name] = dict(found.result), compare_infilling(base, found)
        return {"models": results, "differences": differences}

    def _passages(self, lm: FlanTuneLM) -> list[Passage]:
        return draw_passages(self.documents, lm.tokens, self.passages, length=self.passage_tokens)


def open_infilling(
    corpus: str, passages: int, passage_tokens: int, data_root: str | None, folder: Path
) -> InfillingJob:
    """Opens the documents. Raises: RecipeError or SourceError if there are none."""
    if not corpus.startswith("text:"):
        raise RecipeError(f"--corpus is {corpus!r}; it is text:NAME, for the documents in <data root>/text/NAME.")
    (task,) = load_catalog().select(corpus)
    return InfillingJob(corpus, open_rows(task, SPLIT, find_data_root(data_root)), passages, passage_tokens, folder)


def names_of(models: Sequence[str]) -> dict[str, str]:
    """A short name for each model: the folder that its folder lies in; its path where two would have the same."""
    short = [Path(model).parent.name if Path(model).exists() else model for model in models]
    names = short if len(set(short)) == len(models) else models
    return {name.strip("/").replace("/", "--"): model for name, model in zip(names, models, strict=True)}


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
