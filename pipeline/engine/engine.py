"""One training step: encode, objective, backward, optimizer. DeepSpeed owns the towers, the objective its own state."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline.config.schema import RunConfig
from pipeline.data.loader import Batch
from pipeline.distributed import World
from pipeline.engine.deepspeed_config import deepspeed_config, micro_batch_size
from pipeline.engine.device_time import DeviceTime
from pipeline.engine.lean_deepspeed import deepspeed
from pipeline.engine.loss_scaling import scale_losses
from pipeline.engine.master_state import clamp
from pipeline.engine.micro_batches import MicroBatches, refuse_batch_norm
from pipeline.engine.optimizer import TEMPERATURE, build_optimizer
from pipeline.engine.parameter_norms import parameter_norms
from pipeline.engine.schedule import build_schedule, temperature_rate
from pipeline.engine.tau_gradient import TauGradient
from pipeline.engine.train_module import build_train_module
from pipeline.engine.weight_average import WeightAverage
from pipeline.engine.without_zero import reduce_in_small_buckets, tell_gradient_norm
from pipeline.models.two_tower import open_clip_config
from pipeline.objectives import Features, ObjectiveOutput, build_objective
from pipeline.transfer import Transfer


@dataclass(frozen=True)
class StepOutput:
    """What a step leaves to look at, detached.

    features: of the local batch, (B, D) each, before the update. tau: (1,). output: the objective's.
    metrics: floats or 0-dim tensors, equal on every rank, written to by no later step; callbacks that measure add
        theirs.
    """

    features: Features
    tau: Tensor
    output: ObjectiveOutput
    metrics: dict[str, Tensor | float]


class TrainEngine:
    """The towers under DeepSpeed with an objective beside them.

    dataset_size: N, samples per epoch. total_steps: where the learning rate's schedule ends.
    """

    def __init__(self, config: RunConfig, world: World, dataset_size: int, total_steps: int) -> None:
        self.config = config
        self.world = world
        batch_size = config.train.global_batch_size
        self.schedule = build_schedule(config.optimizer, total_steps, batch_size, dataset_size)
        self.step_number = 0
        self.encode_time = DeviceTime(world.device)
        self._tau: Transfer | None = None  # for the next step's learning rate, sent after the last update
        torch.manual_seed(config.seed)  # the same fresh weights on every rank
        self.module = build_train_module(config)
        self.objective = build_objective(config.objective, config.objectives.get(config.objective, {}))
        epochs = total_steps * batch_size / dataset_size
        embed_dim = open_clip_config(config.model)["embed_dim"]
        self.objective.prepare(world.device, embed_dim, dataset_size, config.seed, epochs)
        optimizer = build_optimizer(self.module, config.optimizer, config.temperature)
        # ZeRO puts flat partitions into the optimizer's groups, so keep which parameters they are made of.
        self.groups = {group["name"]: list(group["params"]) for group in optimizer.param_groups}
        self.micro_batch_size = micro_batch_size(config, world.size)
        if self.micro_batch_size < batch_size // world.size:
            refuse_batch_norm(self.module.towers)
        if config.train.compile:
            self.module.compile()
        os.environ.setdefault("LOCAL_RANK", str(world.local_rank))  # DeepSpeed insists, even in one process
        self.deepspeed, self.optimizer, _, _ = deepspeed.initialize(
            model=self.module,
            optimizer=optimizer,
            config=deepspeed_config(config, world.size),
        )
        if self.zero_stage == 0:
            reduce_in_small_buckets(self.deepspeed, world)
            tell_gradient_norm(self.deepspeed)
        if config.train.precision == "fp16":
            scale_losses(self.optimizer)
        decay = config.train.ema_decay
        self.average = None if decay is None else WeightAverage(self.module, decay, world)

    def step(self, batch: Batch) -> StepOutput:
        """One update from the local batch; collective. batch: on this rank's device."""
        pieces = MicroBatches(self.deepspeed, batch, self.micro_batch_size)
        with self.encode_time.measured():
            encoded = pieces.encode()
        features = Features(encoded.image_features, encoded.text_features)
        output = self.objective(features, batch.sample_index, encoded.tau, encoded.logit_bias)
        tau = encoded.tau.detach()
        rates = self._set_learning_rates()
        tau_gradient = TauGradient(output.loss, encoded.tau)
        pieces.update(output.loss)
        clamp(self.module.towers.logit_scale, *self.module.logit_scale_bounds, self.world)
        self._tau = self._send_tau()
        self.step_number += 1
        if self.average is not None:
            self.average.update(self.step_number)
        gradient_norm = self.deepspeed.get_global_grad_norm()
        metrics = {
            "train/loss": output.loss.detach(),
            "train/tau": tau.squeeze(),
            "train/grad_norm": 0.0 if gradient_norm is None else gradient_norm,
            "train/skipped_steps": float(not self.deepspeed.was_step_applied()),
            **rates,
            **output.metrics,
        }
        if self.config.train.precision == "fp16":
            metrics["train/loss_scale"] = self.optimizer.loss_scale
        slope = tau_gradient.value()
        if slope is not None:
            metrics["train/tau_grad"] = slope
        return StepOutput(Features(*(f.detach() for f in features)), tau, output, metrics)

    @torch.no_grad()
    def encode(self, batch: Batch) -> Features:
        """Features of a batch with the current weights, without a graph; collective under ZeRO-3."""
        self.module.eval()
        encoded = self.deepspeed(batch.images, batch.tokens)
        self.module.train()
        return Features(encoded.image_features, encoded.text_features)

    @property
    def parameter_groups(self) -> list[str]:
        """The optimizer's groups by name, those that have a parameter."""
        return list(self.groups)

    @property
    def parameter_count(self) -> int:
        """Of the towers, as a whole."""
        return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in self.module.parameters())

    def parameter_norms(self) -> dict[str, Tensor]:
        """The norm of each optimizer group's parameters, () fp64; collective."""
        return parameter_norms(self.groups, self.world)

    def save(self, folder: Path, tag: str) -> None:
        """Write the ZeRO state under `folder/tag`; collective."""
        self.deepspeed.save_checkpoint(str(folder), tag=tag, save_latest=False)

    def load(self, folder: Path, tag: str) -> None:
        """Read what `save` wrote, at the same number of ranks; collective."""
        self.deepspeed.load_checkpoint(str(folder), tag=tag)

    @property
    def zero_stage(self) -> int:
        """Of DeepSpeed, 0 to 3."""
        return self.deepspeed.zero_optimization_stage()

    def _send_tau(self) -> Transfer:
        """tau as it is now, on its way to the host; collective under ZeRO-3."""
        parameter = self.module.towers.logit_scale
        with deepspeed.zero.GatheredParameters([parameter]):
            return Transfer({"tau": torch.exp(-parameter.detach())})

    def _set_learning_rates(self) -> dict[str, float]:
        self._tau = self._tau or self._send_tau()
        tau = self._tau.values()["tau"]
        rate, of_tau = self.schedule.rate(self.step_number), temperature_rate(tau, self.config.temperature)
        for group in self.optimizer.param_groups:
            group["lr"] = of_tau if group["name"] == TEMPERATURE else rate * group["rate_factor"]
        return {"train/lr": rate, "train/lr_temperature": of_tau}
