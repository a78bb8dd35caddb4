"""The configuration: every key, its type, default and meaning. Strict, frozen and free of torch.

The descriptions are what ``prunetaylor config`` prints and what the JSON schema tells an editor.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    WithJsonSchema,
    field_validator,
)

from prunetaylor.core import registry
from prunetaylor.core.config.fields import Fraction, OneOf, Points, Share, Size, one_of

_LOSSES = ["auto", "cross-entropy", "bce", "mse"]
_METRIC = OneOf(
    registry.METRICS, {"auto": "the usual one of the task, top1 for classes"}, ("FILE.py:FUNCTION", "torchmetrics:NAME")
)


class Section(BaseModel):
    """A part of the configuration: strict, frozen, without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class Normalization(Section):
    """Channel means and standard deviations of inputs scaled to [0, 1]."""

    mean: list[float]
    std: list[Annotated[float, Field(gt=0)]]


class ModelSection(Section):
    """The network."""

    checkpoint: str | None = None
    """The checkpoint to prune (MODEL on the command line): a file, a run's folder, or a folder with config.json."""
    arch: str | None = None
    """torchvision:NAME, timm:NAME, hf:DIR, FILE.py:FACTORY or package.module:FACTORY; null: the checkpoint's
    network."""
    args: dict[str, Any] = {}
    """Keyword arguments of the network's factory; for hf:DIR, entries of config.json."""
    output: str = "auto"
    """The output that counts, where the network returns several: a key, an attribute or an index, nested ones joined by
    dots; auto: the one that fits the targets."""


class DataSection(Section):
    """The samples and their preprocessing."""

    source: str | None = None
    """digits, torchvision:NAME, folder:DIR, arrays:FILE.npz, csv:FILE, lines:FILE, hf-data:DIR, FILE.py:FUNCTION or
    none; null: the checkpoint's data."""
    columns: list[str] | None = None
    """The columns of csv and hf-data that are inputs; null: all but the targets'."""
    tokenizer: str | None = None
    """Folder of the tokenizer for texts; null: the network's, if that is described by a folder with config.json."""
    max_length: Annotated[int, Field(ge=1)] | None = None
    """Tokens at which texts are cut; null: the length that the tokenizer's and the network's folder state."""
    root: str | None = None
    """Folder of torchvision's data sets."""
    download: bool = False
    """Download a torchvision data set that is missing."""
    normalize: Literal["auto", "imagenet", "cifar10", "mnist", "none"] | Normalization = "auto"
    """Normalisation of inputs; auto: the checkpoint's, else the source's default, else none."""
    augment: Literal["auto", "none", "flip", "crop-flip"] | list[str | dict[str, dict[str, Any]]] = "auto"
    """Random changes of training images; auto: crop-flip (shifted by up to 4 pixels, an eighth of sides above 64,
    mirrored at the edges, and flipped) for colour images, none otherwise; or torchvision's transforms.v2 in a list:
    [RandomHorizontalFlip, {RandomCrop: {size: 32, padding: 4}}]."""
    channels: Annotated[int, Field(ge=1, le=3)] | Literal["auto"] = "auto"
    """Channels that images are converted to: 1, grey by luminance, or 3, grey three times; auto: those that the network
    takes, where it does not take the images as they are."""
    target: str | None = None
    """The entry of a dictionary, or the column, that holds the targets; null: labels, label, target, targets or y."""
    collate: str | None = None
    """FILE.py:FUNCTION or package.module:FUNCTION that combines a list of samples to a batch, as a DataLoader's
    collate_fn; null: samples are stacked, or what the DataLoader of a FILE.py:FUNCTION has."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Samples per fine-tuning step and per forward pass."""
    validation: Literal["auto"] | Annotated[Fraction, Field(gt=0, lt=1)] = "auto"
    """Share of the training set held out of fine-tuning to choose the best epoch, if the source has no validation set;
    auto: a tenth, 2,000 samples at most. Of the samples in one file (csv, lines, hf-data without splits) also the share
    that tests; auto: a fifth."""
    size: Annotated[int, Field(ge=1)] | None = None
    """Height and width that images are resized and cropped to; null: as they are, or 224 if their sizes differ."""
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Processes that decode images; auto: one per core, 8 at most, if files must be decoded."""


class CalibrationSection(Section):
    """The training samples that the Taylor model is fitted on."""

    samples: Annotated[int, Field(ge=2)] = 1000
    """Number of distinct training samples that a run uses before fine-tuning, held-out ones included."""
    labels: Literal["auto"] | bool = "auto"
    """true: the error is the loss with labels; false: the distance to the dense outputs; auto: by convergence."""
    holdout: Annotated[Fraction, Field(gt=0, lt=1)] = 0.2
    """Share of the samples held out of the fit, on which predicted and measured changes are compared.

    If the first-order term is kept, obs_fisher, obs_kfac and joint choose the length of a Newton step on them.
    """
    resample: bool = False
    """Draw fresh samples at every stage; held-out samples are never used in any stage's fit."""


class PruneSection(Section):
    """The pruning itself: selection, removal and repair."""

    method: Annotated[
        str,
        OneOf(registry.CRITERIA, {"auto": "exact_obs; obs if that would take too long; magnitude without data"}),
    ] = "auto"
    """The criterion that scores weights; `prunetaylor config prune.method` describes each one, its cost and its use."""
    sparsity: Annotated[Fraction, Field(ge=0, lt=1)] = 0.5
    """Fraction of the prunable weights removed, in [0, 1): 0.8 or 80%."""
    structure: Annotated[str, OneOf(registry.STRUCTURES)] = "weight"
    """The unit that is removed as a whole."""
    include: list[str] = ["*"]
    """Patterns of layer names (shell style) whose weights may be removed."""
    exclude: list[str] = []
    """Patterns of layer names whose weights are not removed."""
    stages: Literal["auto"] | Annotated[int, Field(ge=1)] | list[Annotated[Fraction, Field(gt=0, lt=1)]] = "auto"
    """Rounds of fit, score, select and repair: their number, or the sparsity after each, ending at the run's sparsity
    (a list replaces a gradual schedule's curve); auto: by sparsity and method."""
    schedule: Literal["one-shot", "cubic", "linear", "constant"] = "one-shot"
    """one-shot: before any training; the others prune between epochs of fine-tuning, with a new fit each time: sparsity
    rises along a cubic or a line, or each step removes a constant share of the remaining weights."""
    during: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """Epochs over which a gradual schedule prunes, starting before any training; auto: two thirds of the epochs."""
    first_order: Literal["auto", "keep", "drop"] = "auto"
    """The gradient term of the Taylor model; auto: by its measured share, if there are labels."""
    damping: Annotated[float, Field(gt=0)] = 0.01
    """Ridge added to a curvature, relative to its mean diagonal."""
    repair: Annotated[
        str,
        OneOf(registry.REPAIRS, {"auto": "the criterion's default", "none": "the kept weights stay as they are"}),
    ] = "auto"
    """Adjustment of the kept weights after a removal: by least squares, by the OBS update, or of batch-norm statistics
    only."""
    refine: Literal["auto", "none", "last", "stages"] = "auto"
    """Joint refinement of all kept weights and biases, after the last or after each stage; auto: by method, convergence
    and cost."""
    refine_by: Annotated[
        str, OneOf(registry.REFINERS, {"auto": "gauss-newton where labels are used and pay, else features"})
    ] = "auto"
    """features: Adam, towards the dense layers' outputs; gauss-newton: few steps, towards the error's own target."""
    refine_steps: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Maximum steps of a refinement; auto: 300 for features, 6 for gauss-newton. Held-out samples check progress."""

    @field_validator("stages")
    @classmethod
    def _rising(cls, value: Any) -> Any:
        if value == []:
            raise ValueError("no stages are given")
        if isinstance(value, list) and any(a >= b for a, b in pairwise([0.0, *value])):
            raise ValueError("the sparsities of the stages must rise")
        return value


class DistillSection(Section):
    """Fine-tuning towards the dense network's outputs."""

    weight: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = "auto"
    """Share of the distillation loss in the training loss; 0: off; auto: 0.9."""
    temperature: Annotated[float, Field(gt=0)] = 4.0
    """Softening of both outputs (Hinton et al. 2015)."""


class FinetuneSection(Section):
    """Fine-tuning of the kept weights, with the removed ones held at zero."""

    epochs: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Passes over the training set; auto: 3 on a CUDA GPU, 0 elsewhere. A number gives the same run everywhere."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """The optimizer; sgd uses Nesterov momentum."""
    lr: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """Peak learning rate; auto: 0.05 for sgd, 0.001 for adamw."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of sgd."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """Weight decay; norms and biases are exempt."""
    warmup: Annotated[Fraction, Field(ge=0, lt=1)] = 0.05
    """Share of the steps in which the learning rate rises before lr_schedule applies."""
    lr_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the learning rate after the warm-up: it falls to zero, or stays constant."""
    rewind: bool = False
    """Learning-rate rewinding: warm-up and schedule restart after each step of a gradual schedule."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Label smoothing: the share of each label that is spread over all classes."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Batches whose gradients are accumulated into one optimizer step."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Maximum norm of the gradient of all parameters; null: no limit."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of an exponential moving average of the weights, which becomes the result; 0: off."""
    compile: bool = False
    """Run the network through torch.compile; needs a compiler on the machine."""
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    """Arithmetic of fine-tuning; auto: bf16 on a CUDA GPU (fp16 if it lacks bf16), float32 elsewhere."""
    distill: DistillSection = DistillSection()


class CheckpointSection(Section):
    """The state that an interrupted run resumes from, with --resume."""

    every: Annotated[float, Field(ge=0)] = 60.0
    """Seconds between saved states; 0: save at every opportunity."""


class CacheSection(Section):
    """Cache of fitted curvatures between runs. It never changes a result."""

    enabled: bool = True
    """Reuse curvatures fitted earlier for the same weights and samples, and store new ones."""
    dir: str | None = None
    """Folder of the cache; null: prunetaylor in $XDG_CACHE_HOME, else in ~/.cache."""
    limit: Annotated[float, Field(gt=0)] = 4.0
    """Maximum size in gigabytes (10^9 bytes); the least recently used entries are deleted first."""


class GateSection(Section):
    """Limits for a finished run, or for `prunetaylor check`. A limit that is null is not checked."""

    baseline: str | None = None
    """Dense checkpoint to compare with; null: the one that the run pruned."""
    max_drop: Points | None = None
    """Maximum drop of the metric: 0.5 or 0.5pp (percentage points); for a loss, its maximum rise in its own unit."""
    max_class_drop: Points | None = None
    """Maximum drop of the accuracy of any class, in percentage points."""
    min_sparsity: Share | None = None
    """Minimum fraction of the prunable weights that must be removed: 0.8 or 80%."""
    max_size: Size | None = None
    """Maximum size of the pruned file: 2MB, 500KiB or a number of bytes."""
    max_flops: Share | None = None
    """Maximum share of the dense network's FLOPs: 0.5 or 50%; in layers that shrank, zeros count as work."""
    max_latency_ratio: Annotated[float, Field(gt=0)] | None = None
    """Maximum ratio of pruned to dense latency; both networks are timed on this machine's device."""
    latency_batch: Annotated[int, Field(ge=1)] = 1
    """Samples per timed forward pass."""
    metric: str | None = None
    """The metric that the gate judges by, where it is another than the run's; null: metric."""
    on_inconclusive: Literal["pass", "fail", "warn"] | None = None
    """Result if there are too few samples: pass or warn (exit code 0), fail (3); null: inconclusive, exit code 4."""

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, value: str | None) -> str | None:
        return None if value in (None, "auto") else _METRIC.check(value)


class Config(Section):
    """All settings of a run."""

    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    calibration: CalibrationSection = CalibrationSection()
    prune: PruneSection = PruneSection()
    finetune: FinetuneSection = FinetuneSection()
    checkpoint: CheckpointSection = CheckpointSection()
    cache: CacheSection = CacheSection()
    gate: GateSection = GateSection()
    track: list[Annotated[str, OneOf(registry.TRACKERS)]] = []
    """Trackers that receive a run's numbers: tensorboard (in the run's folder), mlflow, wandb; each is an extra."""
    loss: Annotated[str, WithJsonSchema({"anyOf": [{"enum": _LOSSES}, {"type": "string", "pattern": ":"}]})] = "auto"
    """The loss that the network was trained with: cross-entropy, bce (of logits), mse, or FILE.py:FUNCTION of (outputs,
    targets); auto: cross-entropy for class ids and shares of classes, bce for zeros and ones, mse for values."""
    metric: Annotated[str, _METRIC] = "auto"
    """The metric whose drop is measured: one of those below, FILE.py:FUNCTION of (outputs, targets), or
    torchmetrics:NAME."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Random seed."""
    device: str = "auto"
    """Device to compute on: auto (cuda, then mps, then cpu), or a torch device."""
    memory: Size | None = None
    """Maximum memory, besides Python and torch themselves: 3GiB, 500MB or bytes; null: the free memory."""
    output: str | None = None
    """The run's folder; null: runs/NAME-N."""

    @field_validator("loss")
    @classmethod
    def _known_loss(cls, value: str) -> str:
        return value if ":" in value else one_of(value, [*_LOSSES, "FILE.py:FUNCTION"])
