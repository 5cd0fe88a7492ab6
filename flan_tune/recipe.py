"""The recipe: one YAML file that says everything about a run. Every key is known, documented and checked here.

    flan-tune check recipes/quickstart/flan.yaml training.learning_rate=1e-4

A recipe may extend one other (`extends: base.yaml`): mappings are merged key by key, anything else is replaced.
Overrides on the command line are `section.key=value`. There is no interpolation and no class path.
Rooms never see a Recipe: cli and train.py hand them plain values.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from flan_tune import strict_yaml
from flan_tune.errors import RecipeError, did_you_mean
from flan_tune.strict_yaml import Address

# Types of models that are encoder-decoders though their configs may not say so.
_ENCODER_DECODERS = ("bart", "longt5", "mbart", "mt5", "pegasus", "t5", "t5gemma", "umt5")


class _Section(BaseModel):
    """Unknown keys are errors; field docs go to the JSON schema."""

    model_config = ConfigDict(
        extra="forbid", protected_namespaces=(), use_attribute_docstrings=True, allow_inf_nan=False
    )


class ModelSection(_Section):
    """Which model, and how it attends."""

    model_name_or_path: str | None = None
    """Folder or hub id of the model to tune. Leave out to create one from `config`."""
    model_revision: str | None = None
    """Hub revision of `model_name_or_path`."""
    config: dict[str, Any] | None = None
    """Hugging Face config of a new model, with `model_type` (llama, qwen2, qwen3, gpt_neox, ...)."""
    attention: Literal["causal", "prefix_lm"] = "causal"
    """prefix_lm: the inputs of a segment see each other in both directions (U-PaLM, section 2.2)."""
    attn_implementation: Literal["auto", "varlen", "flex_attention", "sdpa", "eager"] = "auto"
    """Attention back-end. auto takes the best that is exact for the model on this machine (docs/attention.md)."""
    dropout: float | None = Field(None, ge=0, lt=1)
    """Rate of every dropout the family has; left out: what its config says. Flan: 0.05, at 540B 0.1 (Table 22)."""
    torch_compile: bool = False
    """Compile the decoder layers; packs of one length compile once."""


class TrainTokenizerSection(_Section):
    """A sentencepiece model trained on the spot."""

    vocab_size: int = Field(gt=260)
    """Number of pieces, with 256 bytes and 4 special ones among them."""
    model_type: Literal["bpe", "unigram"] = "bpe"
    """Kind of sentencepiece model."""
    num_examples: int = Field(20_000, gt=0)
    """It is trained on the first so many examples of the recipe's own mixture."""


class SpecialTokensSection(_Section):
    """The tokens UL2R needs."""

    sentinels: Literal["new", "reuse_last", "t5"] = "new"
    """new adds ids; reuse_last takes the last sub-words (U-PaLM, appendix 11.3); t5 takes those of T5's vocabulary."""
    num_sentinels: int = Field(100, gt=0)
    """Size of the pool of sentinels."""
    mode_tokens: bool = True
    """Whether [S2S], [NLU], [NLG] begin the inputs of a denoising segment."""


class TokenizerSection(_Section):
    """Which tokenizer."""

    name_or_path: str | None = None
    """Folder or hub id; the model's own if left out."""
    train: TrainTokenizerSection | None = None
    """Train one into `name_or_path` if that folder does not exist yet."""
    special_tokens: SpecialTokensSection | None = None
    """Needed by mixture_of_denoisers; kept with the tokenizer for later stages."""


class DataSection(_Section):
    """Which examples, and how they become packs."""

    mixture: str
    """Mixture file, relative to the working directory."""
    task_paths: list[str] = []
    """Folders with cards of your own."""
    data_root: str | None = None
    """Folder with data in the hub's layout; FLAN_TUNE_DATA if left out; the hub if neither is set."""
    packs_dir: str | None = None
    """Where packs are written and read; `<output_dir>/packs` if left out."""
    max_length: int = Field(gt=8)
    """Tokens in a pack; of an encoder-decoder, those of its encoder."""
    max_target_length: int | None = Field(None, gt=1)
    """Encoder-decoders (T5, mT5) alone, and always: tokens of the decoder in a pack."""
    window_examples: int = Field(10_000, gt=0)
    """Draws of the schedule compiled together. Larger packs fuller, smaller spreads work finer."""
    num_packs: int | None = Field(None, gt=0)
    """Packs to make; max_steps * global_batch_size if left out."""
    data_seed: int = 0
    """Keys everything about packs; part of their fingerprint."""
    too_long: Literal["truncate_input", "drop"] = "truncate_input"
    """What happens to an example that does not fit with any number of shots. Targets are never cut."""
    packing: bool = True
    """false: one segment in each pack, the rest of it padding, in the same order as the segments of full packs."""
    max_segments_per_pack: int = Field(256, gt=0)
    """Most segments in one pack."""
    separator: str = "\n"
    """Text between inputs and targets; the word `eos` puts the end-of-sequence token there, as Flan-PaLM did."""
    max_failed_share: float = Field(0.01, ge=0, le=1)
    """Packs are not sealed if more than this share of all draws (20 at least) had to be replaced or gave no target."""
    max_failed_share_of_task: float = Field(0.2, ge=0, le=1)
    """The same for the draws of any one task."""


class DenoiserSection(_Section):
    """One denoiser of a custom mixture."""

    name: str
    """Name in provenance and metrics."""
    kind: Literal["span", "prefix"] = "span"
    """span: masked runs; prefix: the end is the target."""
    rate: float = Field(gt=0, lt=1)
    """Share of tokens masked; for a prefix denoiser the mean share of target tokens."""
    mean_span: float | None = Field(None, gt=0)
    """Mean length of a masked run, in tokens."""
    mode: Literal["[S2S]", "[NLU]", "[NLG]", "none"] = "[NLU]"
    """Its mode token."""
    share: float = Field(1.0, gt=0)
    """Its share of the mixture; `rates` says of what."""


class ObjectiveSection(_Section):
    """What is predicted."""

    kind: Literal["supervised", "causal", "mixture_of_denoisers"]
    """supervised: targets only; causal: every token; mixture_of_denoisers: UL2R."""
    preset: Literal["ul2", "ul2r"] | None = None
    """Denoisers of UL2's Table 1, or of U-PaLM (section 2.3)."""
    denoisers: list[DenoiserSection] | None = None
    """A mixture of your own instead of a preset."""
    rates: Literal["per_example", "per_token"] = "per_example"
    """Denoisers share the cuts of the text (per_example, as in the papers), or its tokens (per_token)."""
    span_sampler: Literal["t5", "uniform"] = "t5"
    """Where hidden spans fall: t5 as T5 draws them, towards the end; uniform favours no place."""
    cut_lengths: list[int] | None = Field(None, min_length=2, max_length=2)
    """[least, most] positions of a segment, drawn evenly; left out: all have max_length (docs/ul2r.md)."""
    mode_token: Literal["[S2S]", "[NLU]", "[NLG]"] | None = None
    """supervised after UL2R: begins the inputs of every example; left out, mode tokens are no longer used."""
    loss_normalization: Literal["token", "example"] = "token"
    """token: every target token of a step weighs the same; example: every segment does."""
    z_loss: float = Field(0.0, ge=0)
    """Weight of log(Z)^2 per target, Z the sum its softmax divides by; 1e-4 in PaLM (section 5), 0 = none."""


class TrainingSection(_Section):
    """How it is optimised. One step is one optimiser update over `global_batch_size` packs."""

    output_dir: str
    """Checkpoints, metrics, status and the export go here."""
    max_steps: int = Field(gt=0)
    """Steps to train."""
    global_batch_size: int = Field(gt=0)
    """Packs per step, over all ranks. Accumulation is derived from it."""
    per_device_train_batch_size: int = Field(1, gt=0)
    """Packs per rank and forward pass."""
    learning_rate: float = Field(gt=0)
    """Peak, after warm-up."""
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "constant"
    """Shape after warm-up."""
    lr_final_ratio: float = Field(0.0, ge=0, le=1)
    """The last learning rate as a share of the peak (linear and cosine)."""
    warmup_steps: int = Field(0, ge=0)
    """Steps of linear warm-up."""
    optim: Literal["adamw_torch", "adamw_torch_fused", "adafactor"] = "adamw_torch"
    """Optimiser."""
    weight_decay: float = Field(0.0, ge=0)
    """Not applied to norms and biases."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """First-moment decay."""
    adam_beta2: float = Field(0.95, ge=0, lt=1)
    """Second-moment decay."""
    adam_epsilon: float = Field(1e-8, gt=0)
    """Added to the denominator."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Gradients are clipped to this norm; 0 switches clipping off."""
    bf16: bool = False
    """Compute in bfloat16."""
    gradient_checkpointing: bool = False
    """Recompute activations: less memory, about a third more compute."""
    save_steps: int = Field(500, gt=0)
    """A checkpoint every so many steps, and at the end."""
    save_total_limit: int = Field(2, gt=0)
    """Checkpoints kept."""
    logging_steps: int = Field(10, gt=0)
    """A metrics line every so many steps."""
    report_to: list[Literal["tensorboard", "wandb"]] = []
    """Trackers beside metrics.jsonl, which is always written."""
    seed: int = 0
    """Keys initialisation and dropout; packs have data.data_seed."""


class Recipe(_Section):
    """One run. Sections are named after the rooms that read them."""

    model: ModelSection
    """Which model."""
    tokenizer: TokenizerSection = TokenizerSection()
    """Which tokenizer."""
    data: DataSection
    """Which examples."""
    objective: ObjectiveSection
    """What is predicted."""
    training: TrainingSection
    """How it is optimised."""

    @property
    def packs_dir(self) -> Path:
        """Where the packs of this recipe lie."""
        return Path(self.data.packs_dir or Path(self.training.output_dir) / "packs")

    @property
    def num_packs(self) -> int:
        """Packs this recipe trains on."""
        return self.data.num_packs or self.training.max_steps * self.training.global_batch_size

    @property
    def tokenizer_path(self) -> str:
        """Where the tokenizer is read from."""
        return str(self.tokenizer.name_or_path or self.model.model_name_or_path)


@dataclass(frozen=True)
class RecipeSource:
    """The merged data of a recipe before it is checked, and 'file:line' of every key.

    is_whole: False if a file of it could not be read, so that a key which seems to be missing may be there.
    """

    path: str
    data: dict[str, Any]
    where: Mapping[Address, str]
    faults: tuple[str, ...]
    is_whole: bool = True

    def at(self, *address: str | int) -> str:
        """'file:line' of a key, or of its nearest parent."""
        for stop in range(len(address), -1, -1):
            if tuple(address[:stop]) in self.where:
                return self.where[tuple(address[:stop])]
        return self.path


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads and checks a recipe. Raises: RecipeError with all faults, each with file:line."""
    source = read_source(path, overrides)
    recipe, faults = check_source(source)
    if recipe is None:
        raise RecipeError(*faults)
    return recipe


def read_source(path: str | Path, overrides: Sequence[str] = ()) -> RecipeSource:
    """The merged data of a recipe: the file it extends, the file, the overrides."""
    data, where, faults = _read_layer(Path(path), is_base=False)
    is_whole = not faults
    found = (_apply_override(data, where, override) for override in overrides if data)
    faults += [fault for fault in found if fault]
    return RecipeSource(str(path), data, where, tuple(faults), is_whole)


def _read_layer(path: Path, *, is_base: bool) -> tuple[dict[str, Any], dict[Address, str], list[str]]:
    document = strict_yaml.read_file(path)
    faults = list(document.faults)
    data = document.data
    if not isinstance(data, dict):
        if not faults:
            faults.append(f"{path}: a recipe is a mapping with the sections {list(Recipe.model_fields)}.")
        return {}, {}, faults
    where = {address: f"{path}:{line}" for address, line in document.lines.items()}
    extends = data.pop("extends", None)
    if extends is None:
        return data, where, faults
    base_path = path.parent / str(extends)
    if is_base:
        faults.append(f"{document.at('extends')}: a recipe may extend one other, which extends none itself.")
        return data, where, faults
    if not base_path.exists():
        faults.append(f"{document.at('extends')}: there is no recipe {str(base_path)!r} to extend. Check the path.")
        return data, where, faults
    base, base_where, base_faults = _read_layer(base_path, is_base=True)
    return _merge(base, data), {**base_where, **where}, base_faults + faults


def _merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in top.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merge(merged[name], value) if both else value
    return merged


def _apply_override(data: dict[str, Any], where: dict[Address, str], override: str) -> str | None:
    name, mark, text = override.partition("=")
    parts = name.split(".")
    if not mark or not all(parts):
        return f"command line: {override!r} is not of the form section.key=value."
    value = strict_yaml.read_text(text, f"command line {override!r}")
    if value.faults:
        return value.faults[0]
    place = data
    for part in parts[:-1]:
        inner = place[part] = {} if place.get(part) is None else place[part]
        if not isinstance(inner, dict):
            return f"command line {override!r}: {part!r} is not a section."
        place = inner
    place[parts[-1]] = value.data
    where[tuple(parts)] = f"command line {override!r}"
    return None


def check_source(source: RecipeSource) -> tuple[Recipe | None, list[str]]:
    """The recipe, or None with all its faults."""
    faults = list(source.faults)
    recipe = None
    try:
        recipe = Recipe.model_validate(source.data)
    except pydantic.ValidationError as error:
        faults += [_fault(item, source) for item in error.errors() if source.is_whole or item["type"] != "missing"]
    else:
        faults += [f"{source.at(*address)}: {message}" for address, message in _contradictions(recipe)]
    return (None if faults else recipe), faults


def _fault(item: Any, source: RecipeSource) -> str:
    location = tuple(part for part in item["loc"])
    name = ".".join(str(part) for part in location)
    where = source.at(*location)
    if item["type"] == "extra_forbidden":
        known = _fields_at(location[:-1])
        near = did_you_mean(str(location[-1]), known)
        return f"{where}: unknown key {name!r}.{near or f' The keys here are {sorted(known)}.'}"
    if item["type"] == "missing":
        return f"{where}: the key {name!r} is missing. {_doc_of(location)}"
    if item["type"] == "model_type":
        return f"{where}: {name} is {item['input']!r}; it is a section with the keys {_fields_at(location)}."
    message = item["msg"][0].lower() + item["msg"][1:]
    return f"{where}: {name} is {item['input']!r}: {message}. {_doc_of(location)}".rstrip()


def _fields_at(location: tuple[Any, ...]) -> list[str]:
    section = _section_at(location)
    return list(section.model_fields) if section is not None else []


def _section_at(location: tuple[Any, ...]) -> type[BaseModel] | None:
    section: type[BaseModel] | None = Recipe
    for part in location:
        if isinstance(part, int):
            continue
        if section is None or part not in section.model_fields:
            return None
        section = next(_sections_in(section.model_fields[part].annotation), None)
    return section


def _sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, types.UnionType, list):
        for argument in get_args(annotation):
            yield from _sections_in(argument)


def _doc_of(location: tuple[Any, ...]) -> str:
    section = _section_at(location[:-1])
    if section is None or location[-1] not in section.model_fields:
        return ""
    return section.model_fields[location[-1]].description or ""


def _contradictions(recipe: Recipe) -> Iterator[tuple[Address, str]]:
    """Faults between keys that are each fine alone."""
    model, objective = recipe.model, recipe.objective
    if (model.model_name_or_path is None) == (model.config is None):
        yield ("model",), "give either model_name_or_path (tune a model) or config (create one), not both or neither."
    if model.config is not None and "model_type" not in model.config:
        yield ("model", "config"), "config needs `model_type`, for example llama."
    if recipe.tokenizer.name_or_path is None and model.model_name_or_path is None:
        yield ("tokenizer",), "a new model needs tokenizer.name_or_path."
    if recipe.tokenizer.train is not None and recipe.tokenizer.name_or_path is None:
        yield ("tokenizer", "train"), "tokenizer.train needs tokenizer.name_or_path, the folder to write to."
    yield from _layout_contradictions(recipe)
    is_mixture = objective.kind == "mixture_of_denoisers"
    if is_mixture and (objective.preset is None) == (objective.denoisers is None):
        yield ("objective",), "mixture_of_denoisers needs either a preset (ul2, ul2r) or a list of denoisers."
    if not is_mixture and (objective.preset or objective.denoisers):
        yield ("objective",), f"preset and denoisers belong to mixture_of_denoisers, the kind is {objective.kind!r}."
    if not is_mixture and (objective.rates, objective.span_sampler, objective.cut_lengths) != (
        "per_example",
        "t5",
        None,
    ):
        yield (
            ("objective",),
            f"rates, span_sampler and cut_lengths belong to mixture_of_denoisers, the kind is {objective.kind!r}.",
        )
    if objective.mode_token is not None and objective.kind != "supervised":
        yield (
            ("objective", "mode_token"),
            f"mode_token belongs to supervised, the kind is {objective.kind!r}: a denoiser has a mode of its own.",
        )
    training = recipe.training
    if training.global_batch_size % training.per_device_train_batch_size:
        yield (
            ("training", "global_batch_size"),
            f"global_batch_size {training.global_batch_size} is no multiple of per_device_train_batch_size "
            f"{training.per_device_train_batch_size}.",
        )
    if training.warmup_steps > training.max_steps:
        yield ("training", "warmup_steps"), f"warm-up ({training.warmup_steps}) is longer than max_steps."
    if recipe.num_packs < training.max_steps * training.global_batch_size:
        yield (
            ("data", "num_packs"),
            f"{recipe.num_packs} packs are too few for {training.max_steps} steps of {training.global_batch_size}.",
        )


def _layout_contradictions(recipe: Recipe) -> Iterator[tuple[Address, str]]:
    """Faults of an encoder-decoder: it is one if data.max_target_length is given, and only then."""
    model, data = recipe.model, recipe.data
    if model.config and "model_type" in model.config:
        fault = layout_fault(is_encoder_decoder(model.config), data.max_target_length)
        if fault:
            yield ("data",), fault
    if data.max_target_length is None:
        return
    if recipe.objective.kind == "causal":
        yield ("objective", "kind"), "an encoder-decoder has no causal objective: its encoder needs inputs."
    if model.attention == "prefix_lm":
        yield (
            ("model", "attention"),
            "attention prefix_lm is for decoders; the encoder of an encoder-decoder sees both ways as it is. "
            "Leave model.attention out.",
        )
    if model.attn_implementation in ("varlen", "flex_attention"):
        yield (
            ("model", "attn_implementation"),
            f"{model.attn_implementation} is for decoders; an encoder-decoder runs on sdpa and eager.",
        )
    if recipe.objective.kind == "supervised" and data.separator != "\n":
        yield (
            ("data", "separator"),
            "an encoder-decoder reads inputs and targets apart, so nothing separates them. Leave data.separator out.",
        )


def is_encoder_decoder(config: Mapping[str, Any]) -> bool:
    """Whether a Hugging Face config is that of an encoder-decoder.

    >>> is_encoder_decoder({"model_type": "mt5"}), is_encoder_decoder({"model_type": "llama"})
    (True, False)
    """
    return bool(config.get("is_encoder_decoder", config.get("model_type") in _ENCODER_DECODERS))


def layout_fault(has_encoder: bool, max_target_length: int | None) -> str:
    """What is wrong with giving `data.max_target_length`, or with leaving it out; "" if nothing.

    >>> layout_fault(False, None), layout_fault(True, None).partition(";")[0]
    ('', 'the model is an encoder-decoder')
    """
    if has_encoder and max_target_length is None:
        return "the model is an encoder-decoder; give data.max_target_length, the tokens of its decoder in a pack."
    if max_target_length is not None and not has_encoder:
        return "max_target_length is for encoder-decoders, and the model is none. Leave it out."
    return ""
