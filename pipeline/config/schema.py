"""Every setting of a run, typed, frozen and validated; the defaults are here and nowhere else.

Units are in the names. `objectives` holds the options of any number of objectives; those of the chosen one are checked
(`pipeline.config.objectives`) when a run is planned, and when the objective is built.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from pipeline.config.duration import Duration, Period

Symptom = Literal[
    "tau_at_bound",
    "skipped_steps",
    "frozen_group",
    "normalizer_error",
    "feature_collapse",
    "prototype_collapse",
    "loss_flat",
    "straggler",
    "hang",
]
Share = Annotated[float, Field(ge=0, lt=1)]


def _caption_field(value: str) -> str:
    if value != "txt" and not (value.startswith("json:") and value != "json:"):
        raise ValueError(f"{value!r} is not a caption field: give txt, or json:KEY for a text of the sample's metadata")
    return value


CaptionField = Annotated[str, AfterValidator(_caption_field)]
Factor = Annotated[float, Field(ge=0)]
Jitter = tuple[Factor, Factor, Factor, Annotated[float, Field(ge=0, le=0.5)]]


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class CorpusConfig(Section):
    """What ingest makes: the corpus, how it is cut into work items, and how hard to try for each URL."""

    name: str = "demo"  # a corpus of data_prep/corpora, or a path to such a YAML
    fabricate: Literal["scenes", "emoji"] | None = None  # make the images first and serve them on localhost
    scenes: int = Field(6400, ge=16)  # training scenes that `fabricate: scenes` draws
    evaluation_scenes: int = Field(960, ge=64)  # held-out scenes
    held_out_style: str = "openmoji"  # `fabricate: emoji`: the drawing style that training never sees
    tasks: int = Field(4, ge=1)  # work items
    samples_per_shard: int = Field(1000, ge=1)
    processes: int = Field(1, ge=1)
    threads: int = Field(32, ge=1)
    timeout_seconds: float = Field(5, gt=0)
    retries: int = Field(2, ge=0)
    expected_samples: int | None = Field(None, ge=1)  # what dry runs reckon with while there is no manifest
    port: int = Field(0, ge=0, lt=65536)  # of the local image server; 0: pick a free one once and keep it


class CorpusShare(Section):
    """One of several corpora to train on."""

    manifest: str  # folder or URL with manifest.parquet
    # its part of the samples, relative to the others' weights; null for all: every sample equally often
    weight: float | None = Field(None, gt=0)


class LoaderConfig(Section):
    """How samples reach a rank. The order is a function of the seed, the manifests and `ORDER_SETTINGS`."""

    manifest: str | None = None  # folder or URL with manifest.parquet; the chain fills it in
    corpora: tuple[CorpusShare, ...] = ()  # several, in place of `manifest`
    replacement: bool = False  # draw with replacement: an epoch has some samples several times, others not at all
    workers: int = Field(1, ge=0)  # loader processes per rank
    prefetch: int = Field(4, ge=1)  # batches per worker
    # parallel streams through the shuffled shards; a multiple of the ranks reads best
    lanes: int = Field(64, ge=1)
    shuffle_window: int = Field(8192, ge=1)  # samples of a lane that are shuffled together
    # `txt`, or `json:KEY` of the sample's metadata: one is drawn for each position, the next where it is empty
    captions: tuple[CaptionField, ...] = Field(("txt",), min_length=1)
    crop_scale: tuple[float, float] = (0.9, 1.0)  # area of the random resized crop, as a share of the image
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # its width over its height
    color_jitter: Jitter | None = None  # largest change of brightness, contrast, saturation (factors), hue (turns)
    color_jitter_prob: float = Field(0, ge=0, le=1)  # of a sample's being jittered
    gray_scale_prob: float = Field(0, ge=0, le=1)  # of its losing its colours
    cache: str | None = None  # folder of this machine for copies of the shards that lie at URLs
    cache_gib: float = Field(100, gt=0)  # what it may hold
    # of samples that cannot be decoded, before the run stops
    max_failure_rate: float = Field(0.01, ge=0, le=1)

    @property
    def sources(self) -> tuple[CorpusShare, ...]:
        """The corpora, one or several; empty where none is given."""
        return self.corpora or (() if self.manifest is None else (CorpusShare(manifest=self.manifest),))

    @model_validator(mode="after")
    def _one_kind_of_source(self) -> LoaderConfig:
        if self.manifest is not None and self.corpora:
            raise ValueError("give manifest, or corpora for several, not both")
        if len({source.manifest for source in self.corpora}) < len(self.corpora):
            raise ValueError("corpora names a manifest twice: give it once, with both weights together")
        if len({source.weight is None for source in self.corpora}) == 2:
            raise ValueError("give all corpora a weight, or none")
        return self

    @model_validator(mode="after")
    def _crop_within_image(self) -> LoaderConfig:
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError("crop_scale must satisfy 0 < smallest <= largest <= 1")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError("crop_ratio must satisfy 0 < smallest <= largest")
        return self

    @model_validator(mode="after")
    def _jitter_complete(self) -> LoaderConfig:
        if (self.color_jitter is None) != (self.color_jitter_prob == 0):
            raise ValueError("color_jitter and color_jitter_prob go together: give both or none")
        return self


# The settings of the loader on which a run depends, besides what the manifests say.
ORDER_SETTINGS = (
    "replacement",
    "lanes",
    "shuffle_window",
    "captions",
    "crop_scale",
    "crop_ratio",
    "color_jitter",
    "color_jitter_prob",
    "gray_scale_prob",
)


class ModelConfig(Section):
    """The two towers: an open_clip architecture by name, or its config written out; where their weights start."""

    name: str = "ViT-B-32"
    config: dict[str, Any] | None = None  # open_clip model config: embed_dim, vision_cfg, text_cfg
    # null: fresh; a folder of `neuclip export`, a checkpoint file of open_clip, or one of its pretrained tags
    weights: str | None = None
    lock_image: int | None = Field(None, ge=0)  # freeze the image tower but for its last so many groups of layers
    lock_text: int | None = Field(None, ge=0)  # the same for the text tower
    patch_dropout: float = Field(0.0, ge=0, lt=1)  # share of a ViT's patches that a training step leaves out


class TemperatureConfig(Section):
    """tau, learned through `logit_scale = log(1/tau)` (one parameter of shape [1], no weight decay)."""

    init: float | None = Field(None, gt=0)  # null: as in model.weights, or the objective's (0.07; siglip 0.1)
    learnable: bool = True
    minimum: float = Field(0.01, gt=0)
    maximum: float = Field(1.0, gt=0)
    lr: float = Field(2e-4, ge=0)  # a step on the log scale, constant
    drop_below: float = Field(0.03, ge=0)  # once tau is at or below this ...
    drop_factor: float = Field(1 / 3, gt=0, le=1)  # ... lr is multiplied by this (FastCLIP)

    @model_validator(mode="after")
    def _ordered(self) -> TemperatureConfig:
        init = self.minimum if self.init is None else self.init
        if not self.minimum <= init <= self.maximum:
            raise ValueError("must satisfy minimum <= init <= maximum")
        return self


class OptimizerConfig(Section):
    """AdamW for the towers; weight decay skips norms, biases and other vectors.

    schedule, after the warm-up: `cosine` or `linear` from `lr` to `lr_min` at the end; `constant`, and linear to
    `lr_min` within the last `cooldown`.
    """

    lr: float = Field(1e-3, gt=0)
    lr_min: float = Field(0.0, ge=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Duration = "100 steps"
    cooldown: Duration = "0 steps"
    betas: tuple[Share, Share] = (0.9, 0.98)
    eps: float = Field(1e-6, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    clip_grad_norm: float = Field(1.0, ge=0)  # 0: no clipping
    layer_decay: float = Field(1.0, gt=0, le=1)  # of the rate, for each layer further from a tower's output

    @model_validator(mode="after")
    def _cooldown_of_constant(self) -> OptimizerConfig:
        if self.schedule != "constant" and self.cooldown != "0 steps":
            raise ValueError(f"cooldown is for schedule=constant; schedule={self.schedule} falls to lr_min by itself")
        return self


class TrainConfig(Section):
    """How long, how large, and in what precision."""

    global_batch_size: int = Field(256, ge=2)
    # samples that a rank encodes at one time; null: all of its share. Less memory, a third more work, the same result
    micro_batch_size_per_gpu: int | None = Field(None, ge=1)
    samples: int | None = Field(None, ge=1)  # duration: give exactly one of samples, epochs, steps
    epochs: float | None = Field(None, gt=0)
    steps: int | None = Field(None, ge=1)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    activation_checkpointing: bool = False  # keep no activations inside the towers' blocks: less memory, a third slower
    # of the trained weights, kept beside them and exported in their place; 0.9999 for runs of 100,000 steps; null: none
    ema_decay: float | None = Field(None, gt=0, lt=1)
    compile: bool = False  # torch.compile of the towers: faster steps on a GPU, minutes at the start
    deepspeed: str = "zero2"  # a file of deepspeed_configs, by name or path
    processes: int = Field(1, ge=1)  # ranks per node that the launcher starts
    log_every_steps: int = Field(10, ge=1)

    @model_validator(mode="after")
    def _one_duration(self) -> TrainConfig:
        given = [name for name in ("samples", "epochs", "steps") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of samples, epochs, steps (given: {', '.join(given) or 'none'})")
        return self

    @model_validator(mode="after")
    def _divisible(self) -> TrainConfig:
        if self.global_batch_size % self.processes:
            raise ValueError(
                f"global_batch_size={self.global_batch_size} cannot be split over processes={self.processes}"
            )
        return self


class CheckpointConfig(Section):
    """When to save, what stays, what happens when the disk does not take it, and how long a stop may last."""

    every: Period | None = None  # "500 steps", "1e6 samples", "0.5 epochs"
    every_minutes: float | None = Field(30, gt=0)  # looked at on the steps that are logged
    keep: int = Field(2, ge=1)  # the newest so many complete tags ...
    keep_every: Period | None = None  # ... and, for ever, the first one at or after each multiple of this
    background: bool = True  # write while training goes on, from a copy in host memory
    on_failure: Literal["stop", "continue"] = "stop"  # continue: warn, and try again at the next save
    stop_within_seconds: float = Field(600, gt=0)  # after a signal; then the process is forced out


class DiagnosticsConfig(Section):
    """Every so many steps: the log-normalizer error, exact over a fixed reference subset, and parameter norms."""

    every_steps: int = Field(100, ge=1)
    reference_samples: int = Field(1024, ge=2)


class HealthConfig(Section):
    """When a run is not learning as it should (pipeline.health): a warning, or a stop for the names in `stop_on`.

    Always a stop: a loss, gradient, tau or parameter that is not finite, too many undecodable samples
    (`loader.max_failure_rate`), and a resumed optimizer that is not the saved one.
    """

    stop_on: tuple[Symptom, ...] = ("skipped_steps", "hang")
    # without a move, from waiting for data to the step, the callbacks, a save: longer than the first step compiles
    hang_seconds: float = Field(1800, gt=0)
    tau_at_bound_steps: int = Field(200, ge=1)  # in a row with tau within 1 % of a bound of `temperature`
    skipped_steps: int = Field(20, ge=1)  # in a row, for overflow under fp16
    normalizer_error_factor: float = Field(5, gt=1)  # the median of the last three errors over the lowest so far ...
    normalizer_error_floor: float = Field(4, ge=0)  # ... and above this: 4 means off by 2 in log g
    uniformity_maximum: float = Field(-0.01, le=0)  # of either modality; 0: all embeddings are the same
    spread_ratio_minimum: float = Field(0.1, ge=0)  # `npn/spread_ratio`, of the prototypes
    loss_flat_steps: int = Field(1000, ge=8)  # after the warm-up, in which the loss should move by more than ...
    loss_flat_noise: float = Field(6, gt=0)  # ... so many standard errors of its mean over a quarter of them
    straggler_factor: float = Field(2, gt=1)  # a rank's own seconds over the median rank's ...
    straggler_windows: int = Field(5, ge=1)  # ... in so many windows of `train.log_every_steps` in a row


class EvaluateConfig(Section):
    """Which tasks, from where. `tasks` may name entries of DATA/tasks.yaml besides the shipped ones."""

    tasks: tuple[str, ...] | Literal["all"] = "all"
    data: str | None = None  # folder with wds_<task>_test folders; the chain fills it in
    batch_size: int = Field(128, ge=1)
    workers: int = Field(1, ge=0)
    elements: int = Field(1, ge=1)  # processes, or jobs of an array, among which a model's tasks are dealt


class EvaluateDuringConfig(EvaluateConfig):
    """Evaluation while training goes on, of checkpoints that are saved for it, by a process beside rank 0."""

    every: Period | None = None  # as `checkpoint.every`; null: none
    device: str = "cpu"  # or a GPU that training leaves free: cuda:7
    limit_minutes: float = Field(120, gt=0)  # of one checkpoint; then it is killed
    wait_minutes: float = Field(4, ge=0)  # after the last step, for what is due and has no scores yet


class TrackingConfig(Section):
    """Where runs are compared. With no uri: MLFLOW_TRACKING_URI, else SQLite in the run directory."""

    mlflow: bool = True
    uri: str | None = None
    experiment: str = "neuclip"
    models: bool = True  # log the exported model with its weights
    register_as: str | None = None  # also as a version of this registered model ...
    alias: str = "newest"  # ... which then carries this alias
    system_every_seconds: float = Field(10, gt=0)  # between two looks at a node's CPU, memory, network and GPUs


class RunConfig(Section):
    """One recipe, resolved."""

    name: str
    description: str = ""
    seed: int = Field(0, ge=0, lt=2**63)
    data: str | None = None  # folder that the corpus is made from, for recipes that start from local files
    objective: str = "neuclip"  # a name of pipeline.config.objectives.OPTIONS
    objectives: dict[str, dict[str, Any]] = Field(default_factory=dict)  # options, by objective name
    corpus: CorpusConfig = CorpusConfig()
    loader: LoaderConfig = LoaderConfig()
    model: ModelConfig = ModelConfig()
    temperature: TemperatureConfig = TemperatureConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig
    checkpoint: CheckpointConfig = CheckpointConfig()
    diagnostics: DiagnosticsConfig = DiagnosticsConfig()
    health: HealthConfig = HealthConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    evaluate_during: EvaluateDuringConfig = EvaluateDuringConfig()
    tracking: TrackingConfig = TrackingConfig()
