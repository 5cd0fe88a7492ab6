"""Our models behind lm-evaluation-harness: prompts are tokenised as in training, prefix-LM models see their prefix.

The only file of this room with torch. lm-eval's own HFLM is not used for our models: it would read the prompt of a
prefix-LM causally, guess lengths, and put spaces where training put a separator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from flan_tune.errors import ScoreError, did_you_mean
from flan_tune.models.export import read_export_info
from flan_tune.models.generate import generate, score
from flan_tune.models.load import load_model
from flan_tune.tokens.tokenizer import Tokenizer, load_tokenizer

try:
    from lm_eval.api.model import LM
except ImportError:
    raise ScoreError("lm-evaluation-harness is not installed. Run `pip install 'flan_tune[eval]'`.") from None

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from transformers import PreTrainedModel

_DEFAULT_MAX_NEW_TOKENS = 256  # lm-eval's own default, for tasks that do not say
NO_MODE_TOKEN = "none"


class FlanTuneLM(LM):
    """A model, its tokenizer and its flan_tune.json, as lm-eval asks for answers.

    A prompt is [BOS] [mode token] inputs + separator, exactly as packing makes it; under separator "eos" the
    end-of-sequence id stands in the separator's place. The encoder of an encoder-decoder reads [BOS] [mode token]
    inputs EOS, and nothing separates them from the answer, which is its decoder's.

    info: of `read_export_info`.
    mode_token: "[S2S]", "[NLU]" or "[NLG]", put before every prompt. None takes the one the model was tuned with, if
        flan_tune.json says so; "none" puts none.
    separator: overrides what flan_tune.json says; a model that was not trained here has none by default.
    truncated: prompts that were cut on the left so far, because they did not fit the model's positions.
    description: what a result file says of the model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        info: Mapping[str, Any],
        *,
        batch_size: int = 16,
        mode_token: str | None = None,
        separator: str | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.tokens = tokenizer  # not `tokenizer`: lm-eval would ask it for a Hugging Face tokenizer's attributes
        self.attention = str(info["attention"])
        self.layout = str(info["layout"])
        self.separator = self._separator(str(info["separator"]), separator)
        self.batch_size = batch_size
        self.truncated = 0
        chosen = info["mode_token"] if mode_token is None else mode_token
        self.mode_token = None if chosen == NO_MODE_TOKEN else chosen
        self._head = self._first_ids(self.mode_token)
        self.description = {
            "layout": self.layout,
            "attention": self.attention,
            "separator": self.separator,
            "mode_token": self.mode_token,
        }

    @classmethod
    def from_folder(
        cls,
        path: str | Path,
        *,
        revision: str | None = None,
        attn_implementation: str = "auto",
        batch_size: int = 16,
        mode_token: str | None = None,
        separator: str | None = None,
        device: str | None = None,
    ) -> FlanTuneLM:
        """The model in a folder (one exported by us, or any of Hugging Face that can be trained here) or on the hub.

        device: "cpu", "cuda", ...; None takes a GPU if there is one.
        """
        tokenizer = load_tokenizer(path, revision)
        model = load_model(
            str(path),
            vocab_size=tokenizer.vocab_size,
            revision=revision,
            seed=0,
            attn_implementation=attn_implementation,
        )
        info = read_export_info(path, revision)
        lm = cls(
            model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval(),
            tokenizer,
            info,
            batch_size=batch_size,
            mode_token=mode_token,
            separator=separator,
        )
        lm.description["path"] = str(path)
        return lm

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether an encoder reads the prompt, and a decoder of its own gives the answer."""
        return self.layout == "encoder_decoder"

    def _separator(self, trained_with: str, wanted: str | None) -> str:
        if not self.is_encoder_decoder:
            return trained_with if wanted is None else wanted
        if wanted:
            raise ScoreError(
                f"the separator is {wanted!r}, but the model is an encoder-decoder: nothing stands between its inputs "
                "and targets. Leave it out."
            )
        return ""

    def _first_ids(self, mode_token: str | None) -> list[int]:
        head = [] if self.tokens.bos_id is None else [self.tokens.bos_id]
        if mode_token is None:
            return head
        if mode_token not in self.tokens.mode_ids:
            known = sorted(self.tokens.mode_ids)
            raise ScoreError(
                f"the tokenizer has no mode token {mode_token!r}; it has {known or 'none'}."
                f"{did_you_mean(mode_token, known)}"
            )
        return [*head, self.tokens.mode_ids[mode_token]]

    @property
    def max_positions(self) -> int | None:
        """Positions of the model, prompt and answer together; None where the model sets no limit, as T5."""
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return None if limit is None else int(limit)

    def prompt_ids(self, inputs: Sequence[str], room: Sequence[int]) -> list[list[int]]:
        """Ids of each prompt, leaving `room` positions free behind it.

        One that does not fit loses tokens of its inputs on the left and is counted; BOS, mode token and EOS stay.
        Example: BOS 1, inputs + separator 5 6 7 8, 6 positions, room 2: 1 6 7 8.
        """
        ends_with_eos = self.is_encoder_decoder or self.separator == "eos"
        texts = list(inputs) if ends_with_eos else [text + self.separator for text in inputs]
        tail = [self.tokens.eos_id] if ends_with_eos else []
        encoded = self.tokens.encode_batch(texts)
        return [self._fitted([*ids.tolist(), *tail], free) for ids, free in zip(encoded, room, strict=True)]

    def _fitted(self, ids: list[int], room: int) -> list[int]:
        if self.max_positions is not None:
            budget = self.max_positions - room - len(self._head)
            if budget < 1:
                raise ScoreError(
                    f"an answer of {room} tokens leaves no room for a prompt: the model has {self.max_positions} "
                    "positions. Ask for shorter answers."
                )
            if len(ids) > budget:
                self.truncated += 1
                ids = ids[-budget:]
        # Nothing predicts a first token, so a prompt that has none begins with the end of a text before it.
        return [*self._head, *ids] or [self.tokens.eos_id]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The answer to each request, decoded greedily, cut before the first of its `until` texts."""
        texts = [request.args[0] for request in requests]
        settings = [request.args[1] for request in requests]
        lengths = [int(setting.get("max_gen_toks", _DEFAULT_MAX_NEW_TOKENS)) for setting in settings]
        if any(setting.get("do_sample") for setting in settings):
            raise ScoreError("this model answers greedily only; the task asks for do_sample.")
        prompts = self.prompt_ids(texts, lengths)
        outputs: list[str] = [""] * len(requests)
        for length in sorted(set(lengths)):
            numbers = [i for i, its in enumerate(lengths) if its == length]
            for i, ids in zip(numbers, self._generate([prompts[i] for i in numbers], length), strict=True):
                outputs[i] = cut_at(self.tokens.decode(ids), settings[i].get("until") or [])
        return outputs

    def _generate(self, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
        return generate(
            self.model,
            prompts,
            attention=self.attention,
            eos_id=self.tokens.eos_id,
            pad_id=self.tokens.pad_id,
            max_new_tokens=max_new_tokens,
            batch_size=self.batch_size,
        )

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """For each (context, continuation): log-likelihood in nats, and whether greedy decoding would say it.

        Context and continuation are tokenised apart, as inputs and targets are in training. The end of sequence is
        not part of the continuation, so of two options one may be the beginning of the other.
        """
        continuations = [ids.tolist() for ids in self.tokens.encode_batch([request.args[1] for request in requests])]
        prompts = self.prompt_ids([request.args[0] for request in requests], [len(ids) for ids in continuations])
        return self._score(prompts, continuations)

    def _score(self, prompts: list[list[int]], continuations: list[list[int]]) -> list[tuple[float, bool]]:
        return score(
            self.model,
            prompts,
            continuations,
            attention=self.attention,
            pad_id=self.tokens.pad_id,
            batch_size=self.batch_size,
        )

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each whole text, in windows of the model's positions without overlap. Causal models only.

        Raises: ScoreError for a prefix-LM model and an encoder-decoder: every token of a prompt sees the ones after
        it, so the likelihood of a text without a prompt is not something such a model gives.
        """
        if self.is_encoder_decoder:
            raise ScoreError(
                "the model is an encoder-decoder: it gives no likelihood of a whole text (perplexity), only of a "
                "target for given inputs. Use tasks that generate, or that score a continuation."
            )
        if self.attention != "causal":
            raise ScoreError(
                f"the model has {self.attention!r} attention: its tokens see later ones of the prompt, so it gives no "
                "likelihood of a whole text (perplexity). Use tasks that generate, or that score a continuation."
            )
        return [self._rolling(request.args[0]) for request in requests]

    def _rolling(self, text: str) -> float:
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        ids = self.tokens.encode_batch([text])[0].tolist()
        first = self.tokens.eos_id if self.tokens.bos_id is None else self.tokens.bos_id
        length = max(1, len(ids) if self.max_positions is None else self.max_positions - 1)
        windows = map(make_disjoint_window, get_rolling_token_windows(ids, first, length, context_len=1))
        pairs = list(windows)
        return sum(total for total, _ in self._score([list(a) for a, _ in pairs], [list(b) for _, b in pairs]))


def cut_at(text: str, stops: Sequence[str] | str) -> str:
    """`text` up to the first of `stops` found in it; empty ones are not looked for.

    >>> cut_at("4. Q: next", ["Q:", ""])
    '4. '
    """
    wanted = [stops] if isinstance(stops, str) else stops
    places = [text.index(stop) for stop in wanted if stop and stop in text]
    return text[: min(places)] if places else text
