"""The Lightning shell around the model: one `training_step` is one optimizer step."""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lit_sft.errors import InputError, require
from lit_sft.evaluation.generate import Generation, Tell
from lit_sft.model.adapter import Lora
from lit_sft.model.agreement import describe_start, digest_checkpoint, require_agreement
from lit_sft.model.answering import answer_greedily
from lit_sft.model.base_model import (
    Quantization,
    read_base_config,
    require_fixed_positions,
)
from lit_sft.model.build import build_model, require_trainable, try_out
from lit_sft.model.cards import require_free
from lit_sft.model.device import compute_dtype
from lit_sft.model.distributed import seed_step, sum_gradients, sum_over_ranks, without_sync
from lit_sft.model.fast.cross_entropy import LogitScale
from lit_sft.model.fast.flat_parameters import FlatParameters
from lit_sft.model.fast.graphs import GraphedDecoder
from lit_sft.model.fast.kernels import Speed, run_uncompiled, spare_fills
from lit_sft.model.fast.layer_graphs import LayerGraphs
from lit_sft.model.figures import EvalLoss, StepClock, peak_memory_gib
from lit_sft.model.loss import sum_supervised_loss
from lit_sft.model.nonfinite import NonFiniteSteps
from lit_sft.model.optim import build_optimizer, find_optimizer, group_parameters, is_flat
from lit_sft.model.pace import settle_pace, start_compilers, widen_passes
from lit_sft.model.resume import fill_checkpoint, resume
from lit_sft.model.schedule import Schedule, count_steps
from lit_sft.model.sharded.choice import is_to_shard, require_shardable
from lit_sft.model.sharded.in_step import fill_up, keep_in_step
from lit_sft.model.trainer_options import require_honoured
from lit_sft.run.metrics_file import publish
from lit_sft.types import Batch, Prompt, Window

if TYPE_CHECKING:
    from peft import PeftModel


class SFTModule(pl.LightningModule):
    """A base model, frozen and quantised, with a LoRA adapter, trained on windows of chat rows.

    A batch of the loader is a window: all the rows of one optimizer step, as micro-batches. Its
    loss is the sum over the supervised tokens divided by their number in the whole window, over all
    micro-batches and ranks, so how a window is cut or spread changes nothing. Gradients accumulate
    inside the step, hence every checkpoint falls between two windows.

    Args:
        base_model: A Hub id or a folder.
        quantization: How the frozen base is stored.
        lora: The shape of the adapter; null trains all weights of a base that is not quantised, in
            float32, whatever the precision of the arithmetic.
        adapter: The folder or Hub id of an adapter to go on from, or to evaluate; of its shape,
            where `lora` says none.
        trainable_tokens: Tokens whose rows in embedding and head are trained too; `auto` takes
            those of the chat format that look untrained, see `lit_sft.model.untrained_tokens`.
        speed: What is done for speed alone.
        optimizer: `paged_adamw_32bit`, `paged_adamw_8bit`, `adamw_8bit` (bitsandbytes'), `adamw`
            (torch's, fused), `muon` (torch's Muon for the matrices of hidden layers, AdamW for
            embeddings, head and vectors), or a class path such as `torch.optim.NAdam`, which is
            given the parameters one by one.
        optimizer_args: Of the optimizer's class, such as `betas`, besides rate and weight decay;
            with `muon`, those of Muon.
        learning_rate: The peak of the schedule.
        weight_decay: Decoupled, of every trained parameter.
        warmup_ratio: The share of all optimizer steps over which the learning rate rises from 0.
        schedule: How it goes on from there.
        neftune_noise_alpha: Of the noise on the embeddings in training; see
            `lit_sft.model.noise.add_noise`. 0 for none.
        max_grad_norm: A larger gradient is scaled down to this norm; 0 never clips.
        nonfinite: A step whose loss or gradient is NaN or infinite changes no weight: `stop` ends
            the run there, `skip` goes on to the next, but not after several in a row.
        max_new_tokens: Of a generated answer, its stop token included.
        accept_changes: What may differ from the run of a checkpoint that is resumed, by the names
            that the refusal gives.
        seed: Of the adapter's initial weights, and of the dropout of every step.
    """

    def __init__(
        self,
        base_model: str,
        quantization: Quantization = Quantization(),  # noqa: B008 (it is frozen)
        lora: Lora | None = Lora(),  # noqa: B008 (it is frozen)
        adapter: str | None = None,
        trainable_tokens: Literal["auto", "none"] | list[str] = "auto",
        speed: Speed = Speed(),  # noqa: B008 (it is frozen)
        optimizer: str = "paged_adamw_32bit",
        optimizer_args: dict[str, Any] | None = None,
        learning_rate: float = 1e-4,
        weight_decay: float = 0.0,
        warmup_ratio: float = 0.03,
        schedule: Schedule = Schedule(),  # noqa: B008 (it is frozen)
        neftune_noise_alpha: float = 0.0,
        max_grad_norm: float = 1.0,
        nonfinite: Literal["stop", "skip"] = "stop",
        max_new_tokens: int = 256,
        accept_changes: tuple[str, ...] = (),
        seed: int = 0,
    ) -> None:
        super().__init__()
        require(learning_rate > 0, f"model.learning_rate must be positive, got {learning_rate}")
        require(weight_decay >= 0, f"model.weight_decay must not be negative, got {weight_decay}")
        require(0 <= warmup_ratio < 1, f"model.warmup_ratio must be in [0, 1), got {warmup_ratio}")
        require(max_grad_norm >= 0, f"model.max_grad_norm must not be negative: {max_grad_norm}")
        require(
            neftune_noise_alpha >= 0,
            f"model.neftune_noise_alpha must not be negative, got {neftune_noise_alpha}",
        )
        find_optimizer(optimizer)
        require(
            optimizer != "muon" or lora is None or lora.loraplus_lr_ratio == 1,
            "model.lora.loraplus_lr_ratio: muon scales each step by the shape of the matrix; leave "
            "it at 1, or take another model.optimizer",
        )
        require(max_new_tokens > 0, f"model.max_new_tokens must be positive, got {max_new_tokens}")
        self.base_model, self.quantization, self.lora = base_model, quantization, lora
        self.adapter, self.trainable_tokens, self.speed = adapter, trainable_tokens, speed
        self.optimizer_name, self.optimizer_args = optimizer, dict(optimizer_args or {})
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.warmup_ratio, self.schedule = warmup_ratio, schedule
        self.neftune_noise_alpha = neftune_noise_alpha
        self.max_grad_norm, self.max_new_tokens, self.seed = max_grad_norm, max_new_tokens, seed
        self.automatic_optimization = False
        self.strict_loading = False  # checkpoints hold no base; `on_load_checkpoint` is stricter
        self.nonfinite = NonFiniteSteps(nonfinite)
        self.eval_loss = EvalLoss()
        self._clock = StepClock()
        self.accept_changes = accept_changes
        self.compiled_before: bool | None = None
        """Whether the run that goes on compiled its layers, until a change of that is told."""
        self.trained_tokens: dict[str, str] = {}
        self.cached_bytes, self.base_sha256 = 0, ""
        self.logit_scale, self.may_pack, self._is_probed = LogitScale(), True, False
        self._model: PeftModel | PreTrainedModel | None = None
        self._flat: FlatParameters
        self._graphed: GraphedDecoder | LayerGraphs | None = None

    @property
    def model(self) -> "PeftModel | PreTrainedModel":
        """The base with its adapter, if it has one, once `configure_model` has built it."""
        if self._model is None:
            raise RuntimeError("the model is not built yet; Trainer or configure_model() does it")
        return self._model

    @property
    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that ask for gradients, by name; a checkpoint holds these alone."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    @property
    def loraplus_lr_ratio(self) -> float:
        """Of the learning rates of the halves B and of all others; 1 without an adapter."""
        return self.lora.loraplus_lr_ratio if self.lora else 1.0

    @cached_property
    def base_config(self) -> PretrainedConfig:
        """The config of the base, read once; no weights are touched."""
        return read_base_config(self.base_model)

    def check_base(self) -> None:
        """Raise `InputError` if the base cannot be trained as asked; reads its config alone."""
        require_trainable(self)

    def count_embeddings(self) -> int | None:
        """Return the rows of the base's embedding, as its config tells; None if it does not."""
        return getattr(self.base_config.get_text_config(), "vocab_size", None)

    def setup(self, stage: str) -> None:
        """Find what is wrong before any weights are touched."""
        spare_fills()
        require_honoured(self.trainer, stage)
        if getattr(self.trainer.strategy, "shards", False):
            require_shardable(self)
        if self.trainer.world_size > 1:
            require_agreement(describe_start(self.trainer))
        require_free(self.trainer.strategy.root_device)
        if self._model is None:
            self.check_base()
        data: Any = getattr(self.trainer, "datamodule", None)
        if stage == "fit" and hasattr(data, "max_length"):
            runs_alone = data.batching == "padded" and data.batch_size == 1
            require_fixed_positions(self.base_config, data.max_length, runs_alone)

    def configure_model(self) -> None:
        """Load the base and attach the adapter, once, and see that the loss here is its own."""
        if self.trainer.state.fn == "fit":
            start_compilers(self)
        if self._model is None:
            dtype, device = compute_dtype(self.trainer.precision), self.trainer.strategy.root_device
            shards = is_to_shard(self)
            built = build_model(self, self._tokenizer(), dtype, device, shards)
            self._model, self.trained_tokens, self.cached_bytes, self.base_sha256 = built
            require_agreement(
                {
                    "model.base_model": self.base_sha256,
                    "model.trainable_tokens": [*self.trained_tokens],
                }
            )
        if not self._is_probed and self.trainer.state.fn != "predict":
            probe = try_out(self._model, self.trainer)
            self.logit_scale, self.may_pack = probe.logit_scale, probe.packs
            self._is_probed = True
        if self.trainer.state.fn == "fit":
            widen_passes(self)

    def configure_optimizers(self) -> Optimizer:
        """Return the optimizer. Its learning rate is a pure function of the step, set in each."""
        groups = group_parameters(self)
        self._flat = FlatParameters(*groups)
        if is_flat(self.optimizer_name):
            groups = [[part] for part in self._flat.parts]
        return self._build_optimizer(groups)

    def training_step(self, window: Window, batch_idx: int) -> None:
        """Take one optimizer step: the mean loss over the supervised tokens of the window."""
        self._clock.begin()
        self._flat.zero_grad()  # Lightning sets all to None, as before a validation; graphs add
        torch.manual_seed(seed_step(self.seed, self.global_step, self.global_rank))
        supervised = sum_over_ranks(self._count(window, "num_supervised"))
        loss = torch.zeros((), device=self.device)
        with without_sync(self.trainer.model):
            for batch in fill_up(self.model, window, self.device):
                part = self._sum_loss(batch) / supervised
                self.manual_backward(part)
                loss += part.detach()
        loss = sum_over_ranks(loss)
        trained = self._collect_gradients()
        sum_gradients(trained)
        grad_norm = nn.utils.clip_grad_norm_(trained, self.max_grad_norm or float("inf"))
        is_good = self.nonfinite.accept(self.trainer, batch_idx, loss, grad_norm, supervised)
        learning_rate = self._step_optimizer(is_good)
        tokens = sum_over_ranks(self._count(window, "num_tokens"))
        publish(
            self.trainer,
            self.nonfinite.figures(loss, grad_norm)
            | {
                "train/learning_rate": learning_rate,
                **self._clock.figures(tokens, supervised),
                "train/peak_memory_gib": peak_memory_gib(self.device),
            },
        )

    def _wait_for_loader(self, *args: object, **kwargs: object) -> None:
        """Count the time to the next window as a wait for data from here: all else is done."""
        self._clock.wait()

    def on_fit_start(self) -> None:
        """See that all ranks go on from one checkpoint, or all begin anew."""
        require_agreement({"ckpt_path": digest_checkpoint(self.trainer.ckpt_path)})

    def on_train_start(self) -> None:
        """Decide how the layers are run, as what decides it is known; then wait for the loader."""
        self._graphed = settle_pace(self, self._flat)
        self._clock.wait()

    def on_fit_end(self) -> None:
        """Give back the memory of graphs, and let the layers be called as they are."""
        self._graphed = None
        if self.speed.compile:
            run_uncompiled(self.model)

    on_train_epoch_start = _wait_for_loader
    on_train_batch_end = on_validation_end = _wait_for_loader

    def validation_step(self, window: Window, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a window to `val/loss`, the mean over all supervised tokens of the split."""
        eager = torch.compiler.set_stance("force_eager")  # another compilation takes longer
        with keep_in_step(self.model), eager:
            loss = torch.zeros((), device=self.device)
            for batch in window:
                if batch["num_supervised"]:
                    loss += self._sum_loss(batch)
        self.eval_loss.add(dataloader_idx, loss, self._count(window, "num_supervised"))

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Log `val/loss`, and `val/loss/<name>` of each source of a mixture."""
        losses = self._take_eval_losses("val")
        if self.trainer.sanity_checking:
            return  # of the first rows alone: no figure of the run
        if self.trainer.state.fn == "fit":
            publish(self.trainer, losses)
        else:
            self.log_dict(losses)

    def on_test_epoch_end(self) -> None:
        """Log `test/loss`, and `test/loss/<name>` of each source of a mixture."""
        self.log_dict(self._take_eval_losses("test"))

    def predict_step(self, prompts: Sequence[Prompt], batch_idx: int) -> list[Generation]:
        """Answer prompts greedily."""
        return self.generate([prompt.input_ids for prompt in prompts])

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int | None = None,
        max_batch_tokens: Literal["auto"] | int = "auto",
        tell: Tell | None = None,
    ) -> list[Generation]:
        """Answer prompts greedily, and leave modes and random states as they were.

        Args:
            prompts: Token ids, generation prompt included.
            max_new_tokens: Of an answer; None takes the module's own.
            max_batch_tokens: Rows times their longest length, of a batch; see
                `lit_sft.model.answering`.
            tell: Is told how far it is.
        """
        return answer_greedily(
            self.model,
            self._tokenizer(),
            self.trainer.precision_plugin.forward_context(),
            prompts,
            max_new_tokens or self.max_new_tokens,
            max_batch_tokens,
            tell,
        )

    def total_steps(self) -> int:
        """Return the number of optimizer steps after which the learning rate is 0.

        Lightning's `estimated_stepping_batches` would throw away the position that a resumed loader
        was given; by the first step, the trainer knows the length of an epoch without it.
        """
        trainer = self.trainer
        return count_steps(trainer.max_steps, trainer.max_epochs, trainer.num_training_batches)

    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        """Keep the adapter and what the run is, and drop the frozen base."""
        fill_checkpoint(checkpoint, self)

    def on_load_checkpoint(self, checkpoint: dict[str, object]) -> None:
        """Refuse a checkpoint of another adapter, and to go on with another run's."""
        resume(checkpoint, self)

    def _sum_loss(self, batch: Batch) -> Tensor:
        """Return the loss of a batch's supervised tokens, summed: float32 of shape `[]`."""
        if "cu_seq_lens" in batch and not self.may_pack:
            raise InputError("the data module packs rows, which this model cannot keep apart")
        hidden = self._graphed(batch) if self._graphed and torch.is_grad_enabled() else None
        return sum_supervised_loss(self.model, batch, logit_scale=self.logit_scale, hidden=hidden)

    def _tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Return the data module's, where there is one that has one."""
        return getattr(getattr(self.trainer, "datamodule", None), "tokenizer", None)

    def _build_optimizer(self, groups: Sequence[Sequence[nn.Parameter]]) -> Optimizer:
        rates = self.learning_rate, self.weight_decay
        return build_optimizer(self.optimizer_name, groups, *rates, self.optimizer_args)

    def _step_optimizer(self, is_good: bool) -> float:
        optimizer: Any = self.optimizers()
        factor = self.schedule.factor(self.global_step, self.warmup_ratio, self.total_steps())
        learning_rate = self.learning_rate * factor
        ratios = 1.0, self.loraplus_lr_ratio
        for group, ratio in zip(optimizer.param_groups, ratios, strict=False):
            group["lr"] = learning_rate * ratio
            group["weight_decay"] = self.weight_decay  # a resumed optimizer remembers its old one
            for parameter in group["params"] if not is_good else ():
                parameter.grad = None  # a step without gradients is counted, and changes nothing
        optimizer.step()
        return learning_rate

    def _collect_gradients(self) -> list[nn.Parameter]:
        """Return what a gradient is clipped by: the buffer that the trained parameters are in."""
        self._flat.collect()
        return [self._flat.parameter]

    def _take_eval_losses(self, split: str) -> dict[str, Tensor]:
        """Return the mean losses since the last call by name, each of shape `[]`."""
        data: Any = getattr(self.trainer, "datamodule", None)
        sources = data.source_names(split) if hasattr(data, "source_names") else []
        return self.eval_loss.take(f"{split}/loss", sources)

    def _count(self, window: Window, field: Literal["num_tokens", "num_supervised"]) -> Tensor:
        return torch.tensor(float(sum(batch[field] for batch in window)), device=self.device)
