"""The files that stages leave in a run directory, and what their fields are: whoever reads one reads it as its kind.

Fields without a default are those that no file of this kind lacks.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, field

from pipeline.typed_files import Commit, Count, Kind, Name, Seconds, Sha256, Shape, UnixSeconds

AGAIN = "Remove it and give `neuclip retry RUN`, which makes it again."
EVALUATE_AGAIN = "Remove it, then `neuclip retry RUN`, or `neuclip evaluate`, makes it again."
Elements = Annotated[int, Meta(ge=0, le=1_000_000)]
Digits = Annotated[str, Meta(pattern=r"^[0-9]{0,18}$")]
Numbers = Annotated[str, Meta(pattern=r"^[0-9]{1,9}(-[0-9]{1,9})?(,[0-9]{1,9}(-[0-9]{1,9})?)*$")]  # 0-3,7
Score = Annotated[float, Meta(ge=0, le=1)]  # a share, whatever the metric
Chance = Annotated[float, Meta(ge=0, lt=1)]


class Corpus(Shape):
    name: str | None = None


class Model(Shape):
    weights: str | None = None


class Evaluation(Shape):
    data: str | None = None


class RecipeShape(Shape):
    """A resolved recipe, of this version or an older one: what is read of it without `RunConfig`."""

    name: str | None = None
    description: str | None = None
    seed: int | None = None
    objective: str | None = None
    corpus: Corpus = field(default_factory=Corpus)
    model: Model = field(default_factory=Model)
    evaluate: Evaluation = field(default_factory=Evaluation)
    train: dict[str, Any] = field(default_factory=dict)
    tracking: dict[str, Any] = field(default_factory=dict)


class Stage(Shape):
    name: Name
    elements: Elements
    per_member: Elements = 0


class Member(Shape):
    name: Name
    overrides: list[str]


class PlanShape(Shape):
    """plan.json."""

    recipe: str
    config: RecipeShape
    stages: list[Stage]
    members: list[Member] = field(default_factory=list)
    fingerprint: str = ""


class MarkerShape(Shape):
    """stages/<stage>.<element>.json. seconds: that it took."""

    seconds: Seconds
    fingerprint: str = ""
    outputs: dict[str, str] = field(default_factory=dict)
    started_at: UnixSeconds = 0
    status: str = ""
    command: list[str] = field(default_factory=list)


class Job(Shape):
    """A scheduler's, as `describe_job` tells of it."""

    id: Digits = ""
    array_id: Digits = ""
    array_index: Digits = ""
    restarts: Digits = ""


class AttemptShape(Shape):
    """A line of stages/<stage>.<element>.attempts.jsonl."""

    attempt: Count
    event: Literal["begin", "end"]
    time: UnixSeconds
    host: str
    pid: int
    job: Job | None
    status: Literal["done", "failed", "stopped", "blocked"] | None = None
    exit_status: int | None = None
    reason: str = ""


class SubmittedShape(Shape):
    """A line of slurm/jobs.jsonl that says what was submitted. offset: of its elements in the array."""

    event: Literal["submitted"]
    stage: str
    job: Digits
    offset: Count
    elements: Numbers


class Trained(Shape):
    """train/summary.json. A loss may be anything that a number can be."""

    samples_seen: Count
    steps: Count = 0
    final_loss: float | None = None
    tau: float | None = None
    samples_per_second: float | None = None
    log_normalizer_mse: float | None = None
    log_normalizer_mse_se: float | None = None
    npn_share: float | None = None
    data_wait_share: float | None = None
    train_seconds: Seconds = 0
    gpu_hours: Seconds | None = None
    cpu_hours: Seconds | None = None
    world_size: Count | None = None
    order_digest: str | None = None
    manifest_fingerprint: str | None = None


class ReadCorpus(Shape):
    name: str
    fingerprint: str
    source: str | None = None


class EventShape(Shape):
    """A line of train/lives.jsonl, and of attempts what they have in common with it."""

    event: Literal["begin", "end"]
    time: UnixSeconds
    status: str = ""
    corpora: list[ReadCorpus] = field(default_factory=list)


class SavedFile(Shape):
    bytes: Count
    sha256: str


class Complete(Shape):
    """COMPLETE of a checkpoint."""

    files: dict[str, SavedFile]


class TrainerState(Shape):
    """trainer.json of a checkpoint, as far as others than training read it."""

    step: Count | None = None
    samples_seen: Count | None = None


class Exported(Shape):
    """model/export.json."""

    weights_sha256: str
    checkpoint: str | None = None
    samples_seen: Count = 0
    model: str = ""


class RecordFacts(Shape):
    model: str
    libraries: dict[str, str]
    seconds: Seconds
    task: dict[str, Any]


class Provenance(Exported, kw_only=True):
    """The same, as this version writes it."""

    recipe: str
    model: str
    objective: str


class RecordShape(Shape):
    """What results/samples/<task>.safetensors and the records of parts say of themselves."""

    stamp: dict[str, str]
    facts: RecordFacts


class Outcomes(Shape):
    """manifest.json of a corpus: totals."""

    rows: Count
    ok: Count
    outcomes: dict[str, Count]
    dropped: dict[str, Count] = field(default_factory=dict)
    rows_read: Count | None = None
    shards: Count | None = None
    fingerprint: str = ""
    title: str | None = None
    source: str | None = None
    licence: str | None = None


class DownloadedFile(Shape):
    size: Count
    sha256: Sha256


class Downloads(Shape):
    """evaldata/download.json. commits: by repository."""

    commits: dict[str, Commit]
    files: dict[str, DownloadedFile]


class Scored(Shape):
    """results/<task>.json, or <task>.error.json; also those of other versions."""

    task: str
    error: str = ""
    title: str | None = None
    kind: str | None = None
    main_metric: str | None = None
    score: Score | None = None
    chance: Chance | None = None
    n: Count | None = None
    checkpoint_sha256: str = ""
    precision: str | None = None
    task_hash: str | None = None
    data_fingerprint: str | None = None
    code_version: str | None = None


class Measured(Scored, kw_only=True):
    """results/<task>.json as this version writes it."""

    title: str
    kind: str
    main_metric: str | None
    score: Score | None
    chance: Chance | None
    n: Count
    metrics: dict[str, Any]
    model: str
    checkpoint_sha256: str
    model_config_sha256: str
    precision: str
    task_hash: str
    data_fingerprint: str
    parts: list[str] = field(default_factory=list)


class TaskScore(Shape):
    score: Score
    title: str = ""
    chance: Chance | None = None
    main_metric: str | None = None


class GroupMean(Shape):
    tasks: Count
    mean: Score


class Average(Shape):
    """results/aggregate.json: `average`, or `partial_mean` and `of`."""

    checkpoint_sha256: str
    scores: dict[str, TaskScore]
    tasks: Count = 0
    average: Score = 0
    partial_mean: Score | None = None
    of: Count = 0
    groups: dict[str, GroupMean] = field(default_factory=dict)


class TrackedRuns(Shape):
    """mlflow.json. runs: ids by key."""

    tracking_uri: str
    experiment: str
    id: str = ""
    parent_run_id: str | None = None
    runs: dict[str, str] = field(default_factory=dict)


class StageSummary(Shape):
    status: str
    seconds: Seconds | None = None


class TrainSummary(Shape):
    final_loss: float | None = None


class TaskSummary(Shape):
    score: Score
    chance: Chance | None = None


class MemberSummary(Shape):
    train: TrainSummary | None
    evaluate: dict[str, TaskSummary] | None


class SummaryShape(MemberSummary, kw_only=True):
    """summary.json. members: of a sweep."""

    stages: dict[str, StageSummary]
    report: str | None = None
    members: dict[str, MemberSummary] = field(default_factory=dict)


class Anything(Shape):
    """An object."""


RECIPE = Kind(RecipeShape, "Put back what was there: plan.json of the run, `config` in it, says the same.")
PLAN = Kind(PlanShape, "A plan is frozen: put back what was there, or run the recipe in another directory.")
MARKER = Kind(MarkerShape, AGAIN)
ATTEMPT = Kind(AttemptShape, "")
SUBMITTED = Kind(SubmittedShape, "")
TRAINED = Kind(Trained, AGAIN)
EVENT = Kind(EventShape, "")
COMPLETE = Kind(Complete, "Put back what was there, or remove the checkpoint's folder.")
TRAINER_STATE = Kind(TrainerState, "Put back what was there, or remove the checkpoint's folder.")
EXPORTED = Kind(Exported, "`neuclip export`, or `neuclip retry RUN`, writes it again.")
PROVENANCE = Kind(Provenance, EXPORTED.mend)
RECORD = Kind(RecordShape, EVALUATE_AGAIN)
OUTCOMES = Kind(Outcomes, "`data-prep manifest CORPUS`, or `neuclip retry RUN`, writes it again.")
DOWNLOADS = Kind(
    Downloads, "It says what was downloaded, at which commits: put it back, or remove it and download again."
)
SCORED = Kind(Scored, EVALUATE_AGAIN)
MEASURED = Kind(Measured, EVALUATE_AGAIN)
AVERAGE = Kind(Average, "`neuclip aggregate RESULTS`, or `neuclip retry RUN`, writes it again.")
TRACKED_RUNS = Kind(
    TrackedRuns,
    "It says which MLflow runs are this directory's: put it back, or remove it and `neuclip sync` begins new ones.",
)
SUMMARY = Kind(SummaryShape, "`neuclip report RUN` writes it again.")
ENVIRONMENT = Kind(Anything, "It says where the run was planned, and nothing needs it: remove it.")
