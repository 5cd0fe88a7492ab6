"""Making a model from a config, and loading one with room for new tokens.

Writing one is in export.py. Sharding is the engine's business (training/): it hands in one context manager for
building and one for gathering, and without an engine both do nothing.

Under ZeRO-3 every process must call these functions: loading and gathering are collective.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from flan_tune import rng
from flan_tune.errors import CheckpointError, RecipeError, did_you_mean
from flan_tune.models.backends import Machine, resolve_attn_implementation
from flan_tune.models.kernels import register

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Building = Callable[[], AbstractContextManager[Any]]
Gathering = Callable[[list[nn.Parameter]], AbstractContextManager[Any]]

# Keys that transformers 5 reads and that are not among every config's attributes: old spellings, and one it only looks
# for in those that have it.
_MORE_KEYS = {"rope_theta", "rope_scaling", "torch_dtype", "decoder_start_token_id"}


def create_model(
    config: Mapping[str, Any],
    vocab_size: int,
    *,
    seed: int,
    attn_implementation: str = "auto",
    dtype: torch.dtype = torch.float32,
    compute_dtype: torch.dtype | None = None,
    dropout: float | None = None,
    building: Building = nullcontext,
    gathering: Gathering = lambda parameters: nullcontext(),
) -> PreTrainedModel:
    """A new causal model or encoder-decoder. The same config, seed and kind of device give the same weights, sharded or
    not, whatever was drawn before.

    config: keys of the family's Hugging Face config, `model_type` among them. The vocabulary is not one of them.
    vocab_size: that of the tokenizer, added tokens included; known before the model is built, so nothing is resized.
    compute_dtype: what autocast will compute in, where it is on; decides which back-ends there are.
    dropout: for every dropout that the family has; None leaves what its config says.
    building: entered around construction; `lambda: torch.device("meta")` makes a model without memory.

    >>> create_model({"model_type": "llama", "hidden_size": 64}, 512, seed=0).config.vocab_size
    512

    Raises: RecipeError for an unknown model type or key, or a family that cannot be trained.
    """
    built = _config_from(config, vocab_size)
    _set_dropout(built, dropout)
    implementation = _implementation(built, attn_implementation, compute_dtype or dtype)
    with building(), _seeded(rng.key(seed, "model")):
        model = _auto_class(built).from_config(built, attn_implementation=implementation, dtype=dtype)
        _initialise(model, seed, gathering)
    return model


@torch.no_grad()
def _initialise(model: PreTrainedModel, seed: int, gathering: Gathering) -> None:
    """Draws all weights again, by the family's own rule, each module under its own key.

    transformers draws from one stream, and under ZeRO-3 in another order: the same seed gave another model there.
    Children come first, and are gathered with their parent, because some families (gpt2) initialise a child's weight
    over again from its parent.
    """
    from transformers import PreTrainedModel

    def visit(module: nn.Module, name: str, owner: PreTrainedModel) -> None:
        owner = module if isinstance(module, PreTrainedModel) else owner
        for child_name, child in module.named_children():
            visit(child, f"{name}.{child_name}", owner)
        reached = [module, *module.children()]
        with gathering([p for part in reached for p in part.parameters(recurse=False)]):
            torch.manual_seed(rng.key(seed, "model", name))
            owner._init_weights(module)

    visit(model, "", model)


def _config_from(config: Mapping[str, Any], vocab_size: int) -> PreTrainedConfig:
    from transformers import CONFIG_MAPPING

    values = dict(config)
    model_type = str(values.pop("model_type", ""))
    if model_type not in CONFIG_MAPPING:
        raise RecipeError(
            f"model_type {model_type!r} is not one transformers knows.{did_you_mean(model_type, CONFIG_MAPPING.keys())}"
        )
    if values.pop("vocab_size", vocab_size) != vocab_size:
        raise RecipeError(
            f"the model config sets vocab_size {config['vocab_size']}, but the tokenizer has {vocab_size} ids. "
            "Leave the key out: the vocabulary is the tokenizer's."
        )
    family = CONFIG_MAPPING[model_type]
    known = set(family().to_dict()) | set(family.attribute_map) | _MORE_KEYS
    unknown = sorted(set(values) - known)
    if unknown:  # transformers itself keeps any key and then ignores it
        raise RecipeError(
            *(f"model type {model_type!r} has no config key {key!r}.{did_you_mean(key, known)}" for key in unknown)
        )
    return family(vocab_size=vocab_size, **values)


def _set_dropout(config: PreTrainedConfig, dropout: float | None) -> None:
    """Every rate of dropout in a config, whatever the family calls it (dropout_rate, attn_pdrop, ...).

    Raises: RecipeError if there is none and another than 0 is wanted.
    """
    if dropout is None:
        return
    text = config.get_text_config()
    names = [name for name, value in vars(text).items() if _is_dropout(name) and isinstance(value, float | int)]
    if not names and dropout:
        raise RecipeError(f"model type {config.model_type!r} has no dropout. Leave model.dropout out.")
    for name in names:
        setattr(text, name, dropout)


def _is_dropout(name: str) -> bool:
    return "dropout" in name or name.endswith("pdrop")


def load_model(
    path: str,
    *,
    vocab_size: int,
    seed: int,
    revision: str | None = None,
    attn_implementation: str = "auto",
    dtype: torch.dtype = torch.float32,
    compute_dtype: torch.dtype | None = None,
    dropout: float | None = None,
    building: Building = nullcontext,
    gathering: Gathering = lambda parameters: nullcontext(),
) -> PreTrainedModel:
    """The causal model or encoder-decoder in a folder or on the hub, with a row for each of `vocab_size` ids.

    Rows the checkpoint has are kept bit by bit, also where it has more than `vocab_size` of them (Qwen2 has 151,936
    rows for 151,665 tokens): rows are never removed. New rows are drawn, see `extend_vocabulary`.
    dtype: float32 unless the engine keeps a float32 copy of its own. compute_dtype, dropout: as for `create_model`.

    Raises: RecipeError if there is no such model or its family cannot be trained; CheckpointError if the weights do
    not fill the model.
    """
    from transformers import AutoConfig

    where = {} if revision is None else {"revision": revision}
    try:
        config = AutoConfig.from_pretrained(path, **where)
        _set_dropout(config, dropout)
        implementation = _implementation(config, attn_implementation, compute_dtype or dtype)
        with building(), _seeded(rng.key(seed, "model")), _ties_compared_whole(gathering):
            model, report = _auto_class(config).from_pretrained(
                path, **where, config=config, attn_implementation=implementation, dtype=dtype, output_loading_info=True
            )
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RecipeError(f"{path!r}: no language model can be loaded from here: {first}") from None
    _check_report(path, report)
    extend_vocabulary(model, vocab_size, seed=seed, gathering=gathering)
    return model


@contextmanager
def _ties_compared_whole(gathering: Gathering) -> Iterator[None]:
    """transformers ties a head that its checkpoint has beside the embedding only if their values are equal. Of sharded
    parameters it compares what is left on this process, nothing with nothing: the heads of mT5 and T5 1.1 were lost."""
    from transformers import modeling_utils

    equal = getattr(modeling_utils, "_tied_params_are_equal", None)  # a private name, of 5.23
    if equal is None:
        yield
        return

    def equal_as_wholes(one: nn.Parameter, other: nn.Parameter) -> bool:
        with gathering([one, other]):
            return bool(equal(one, other))

    modeling_utils._tied_params_are_equal = equal_as_wholes
    try:
        yield
    finally:
        modeling_utils._tied_params_are_equal = equal


def _check_report(path: str, report: Mapping[str, Any]) -> None:
    # transformers draws missing weights at random and goes on with a line in the log.
    for name in ("missing_keys", "mismatched_keys", "error_msgs"):
        found = sorted(str(entry) for entry in report.get(name) or ())
        if found:
            raise CheckpointError(
                f"{path!r}: the weights do not fill the model: {len(found)} {name}, first {found[:3]}. "
                "Is this the folder of a whole model, of the family its config.json names?"
            )


def _auto_class(config: PreTrainedConfig) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def _implementation(config: PreTrainedConfig, requested: str, dtype: torch.dtype) -> str:
    return register(resolve_attn_implementation(requested, config, Machine.here(dtype)))


def decoder_start_id_of(model: PreTrainedModel) -> int:
    """What the decoder of an encoder-decoder is given before its first token: the config's `decoder_start_token_id`, or
    its `pad_token_id`, which is what T5 begins with.

    Raises: RecipeError if the config has neither.
    """
    for name in ("decoder_start_token_id", "pad_token_id"):
        value = getattr(model.config, name, None)
        if value is not None:
            return int(value)
    raise RecipeError(
        f"model type {model.config.model_type!r}: the config has neither decoder_start_token_id nor pad_token_id, so "
        "its decoder has nothing to begin with. Give decoder_start_token_id in model.config, or in config.json."
    )


def extend_vocabulary(
    model: PreTrainedModel, vocab_size: int, *, seed: int, gathering: Gathering = lambda parameters: nullcontext()
) -> None:
    """Gives `model` rows for ids up to `vocab_size`, in place; does nothing if it has them.

    A new row is drawn, column by column, from a normal distribution with the mean and standard deviation of the
    column over the old rows, for input and output embeddings each; a new bias is the mean of the old ones. New rows
    as small as `initializer_range` would have logits near 0, often far above those of trained tokens, and the first
    steps would go into unlearning them (Hewitt 2021, "Initializing new word embeddings for pretrained language
    models"; we leave his covariances out).

    Row i depends on (seed, i) and the old rows only: not on world size, order, or how many rows are added.
    gathering: makes the parameters whole inside, and afterwards gives all processes those of process 0.
    """
    old_size = int(model.config.get_text_config().vocab_size)
    if vocab_size <= old_size:
        return
    # What transformers draws for the new rows is overwritten.
    with _seeded(rng.key(seed, "resize")), _ties_kept(model):
        model.resize_token_embeddings(vocab_size, mean_resizing=False)
    parameters = _vocabulary_parameters(model)
    with gathering(list(parameters.values())), torch.no_grad():
        for name, parameter in parameters.items():
            parameter[old_size:] = _new_rows(parameter[:old_size], rng.key(seed, name), old_size, vocab_size)


@contextmanager
def _ties_kept(model: PreTrainedModel) -> Iterator[None]:
    """T5 configs always say that the head is tied, also where it is not (version 1.1, mT5): transformers believes that
    when it resizes, and would put the embedding in the place of the trained head."""
    is_tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    if is_tied or not getattr(model.config, "tie_word_embeddings", False):
        yield
        return
    model.config.tie_word_embeddings = False
    try:
        yield
    finally:
        model.config.tie_word_embeddings = True


def _vocabulary_parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Parameters with one row per id; tied ones once."""
    head = model.get_output_embeddings()
    candidates = {
        "embedding": model.get_input_embeddings().weight,
        "output_embedding": head.weight,
        "output_bias": getattr(head, "bias", None),
    }
    found: dict[str, nn.Parameter] = {}
    for name, parameter in candidates.items():
        if parameter is not None and not any(parameter is other for other in found.values()):
            found[name] = parameter
    return found


def _new_rows(old_rows: Tensor, base: int, start: int, stop: int) -> Tensor:
    if old_rows.dim() == 1:
        return old_rows.float().mean().to(old_rows.dtype)
    std_D, mean_D = torch.std_mean(old_rows.float(), dim=0)
    noise = normal_rows(base, start, stop, old_rows.shape[1])
    return (mean_D + std_D * torch.from_numpy(noise).to(mean_D)).to(old_rows.dtype)


def normal_rows(base: int, start: int, stop: int, width: int) -> np.ndarray:
    """Standard normal float64 [stop - start, width]; row i is keyed by (base, i) alone. Box and Muller 1958."""
    row_keys = rng.keys(base, np.arange(start, stop))[:, None]
    column = np.arange(width)
    radius = np.sqrt(-2.0 * np.log1p(-rng.uniform(row_keys, 2 * column)))  # 1 - u lies in (0, 1]: the log is finite
    return radius * np.cos(2.0 * np.pi * rng.uniform(row_keys, 2 * column + 1))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """torch's generators seeded inside, and afterwards as if nothing had been drawn."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
