"""The Lightning shell around the quantised model: one `training_step` is one optimizer step."""

import zlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from lit_sft.data.prompts import find_stop_ids
from lit_sft.errors import InputError, require
from lit_sft.evaluation.generate import Generation, evaluating, generate_greedy
from lit_sft.model.adapter import require_same_shapes
from lit_sft.model.adapter_config import read_adapter_config, require_same_lora
from lit_sft.model.base_model import Lora, Quantization, compute_dtype, outline, read_base_config
from lit_sft.model.build import build_model
from lit_sft.model.determinism import any_kernels, settle, spare_fills
from lit_sft.model.distributed import sum_gradients, sum_over_ranks, without_gradient_sync
from lit_sft.model.eval_loss import EvalLoss
from lit_sft.model.fast.attention import use_attention
from lit_sft.model.fast.cross_entropy import LogitScale
from lit_sft.model.fast.flat_parameters import (
    FlatParameters,
    require_same_layout,
    require_same_order,
)
from lit_sft.model.fast.memory import peak_memory_gib
from lit_sft.model.fast.speed import Speed
from lit_sft.model.loss import sum_supervised_loss
from lit_sft.model.nonfinite import NonFiniteSteps, require_finite_weights
from lit_sft.model.optim import OptimizerName, build_optimizer, cosine_with_warmup, count_steps
from lit_sft.model.precision import describe_device, require_precision, tell_if_emulated
from lit_sft.model.probe import LONGEST, probe_model, require_fixed_positions
from lit_sft.model.step_clock import StepClock
from lit_sft.model.targets import find_targets
from lit_sft.model.trainer_options import require_a_validation, require_limits
from lit_sft.run.identity import (
    describe_run,
    describe_settings,
    find_differences,
    match_runs,
    only_what_answers_depend_on,
    require_same_run,
)
from lit_sft.run.publish import publish
from lit_sft.types import Batch, Prompt, Window


class SFTModule(pl.LightningModule):
    """A frozen, quantised base model with a LoRA adapter, trained on windows of chat rows.

    A batch of the loader is a window: all the rows of one optimizer step, as micro-batches. Its
    loss is the sum over the supervised tokens divided by their number in the whole window, over all
    micro-batches and ranks, so how a window is cut or spread changes nothing. Gradients accumulate
    inside the step, hence every checkpoint falls between two windows.

    Args:
        base_model: A Hub id or a folder.
        quantization: How the frozen base is stored.
        lora: The shape of the adapter.
        adapter: The folder or Hub id of an adapter to go on from, or to evaluate.
        trainable_tokens: Tokens whose rows in embedding and head are trained too; `auto` takes
            those of the chat format that look untrained, see `lit_sft.model.untrained_tokens`.
        speed: What is done for speed alone.
        optimizer: By name, see `lit_sft.model.optim.build_optimizer`.
        learning_rate: The peak of the cosine schedule.
        weight_decay: Decoupled, of every trained parameter.
        warmup_ratio: The share of all optimizer steps over which the learning rate rises from 0.
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
        lora: Lora = Lora(),  # noqa: B008 (it is frozen)
        adapter: str | None = None,
        trainable_tokens: Literal["auto", "none"] | list[str] = "auto",
        speed: Speed = Speed(),  # noqa: B008 (it is frozen)
        optimizer: OptimizerName = "paged_adamw_32bit",
        learning_rate: float = 1e-4,
        weight_decay: float = 0.0,
        warmup_ratio: float = 0.03,
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
        require(max_new_tokens > 0, f"model.max_new_tokens must be positive, got {max_new_tokens}")
        self.base_model, self.quantization, self.lora = base_model, quantization, lora
        self.adapter, self.trainable_tokens, self.speed = adapter, trainable_tokens, speed
        self.optimizer_name, self.learning_rate = optimizer, learning_rate
        self.weight_decay, self.warmup_ratio = weight_decay, warmup_ratio
        self.max_grad_norm, self.max_new_tokens, self.seed = max_grad_norm, max_new_tokens, seed
        self.automatic_optimization = False
        self.strict_loading = False  # checkpoints hold no base; `on_load_checkpoint` is stricter
        self.nonfinite = NonFiniteSteps(nonfinite)
        self.eval_loss = EvalLoss()
        self._clock = StepClock()
        self.accept_changes = accept_changes
        self.trained_tokens: dict[str, str] = {}
        self.cached_bytes = 0
        self.logit_scale, self.may_pack = LogitScale(), True
        self._model: nn.Module | None = None
        self._flat: FlatParameters | None = None

    @property
    def model(self) -> Any:
        """The `peft.PeftModel`, once `configure_model` has built it."""
        if self._model is None:
            raise RuntimeError("the model is not built yet; Trainer or configure_model() does it")
        return self._model

    @property
    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that ask for gradients, by name; a checkpoint holds these alone."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    @cached_property
    def base_config(self) -> PretrainedConfig:
        """The config of the base, read once; no weights are touched."""
        return read_base_config(self.base_model)

    def check_base(self) -> None:
        """Raise `InputError` if the base cannot be trained as asked; reads its config alone."""
        base = outline(self.base_model, self.base_config)
        find_targets(base, self.lora.target_modules)
        if self.adapter:
            require_same_lora(self.adapter, read_adapter_config(self.adapter), self.lora, base)

    def count_embeddings(self) -> int | None:
        """Return the rows of the base's embedding, as its config tells; None if it does not."""
        return getattr(self.base_config.get_text_config(), "vocab_size", None)

    def setup(self, stage: str) -> None:
        """Find what is wrong before any weights are touched."""
        spare_fills()
        strategy = self.trainer.strategy
        require_precision(self.trainer.precision, describe_device(strategy.root_device))
        tell_if_emulated(self.trainer.precision, strategy.root_device)
        require(
            isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)),
            f"trainer.strategy must be auto or ddp, got {type(strategy).__name__}",
        )
        if stage == "fit":
            require_limits(self.trainer)
            require_a_validation(self.trainer)
        if self._model is None:
            self.check_base()
            data: Any = getattr(self.trainer, "datamodule", None)
            if stage == "fit" and hasattr(data, "max_length"):
                runs_alone = data.batching == "padded" and data.batch_size == 1
                require_fixed_positions(self.base_config, data.max_length, runs_alone)

    def configure_model(self) -> None:
        """Load the base and attach the adapter, once, and see that the loss here is its own."""
        if self._model is not None:
            return
        self._model, self.trained_tokens, self.cached_bytes = build_model(
            self.base_model,
            self.quantization,
            self.lora,
            self.adapter,
            self.trainable_tokens,
            self.speed,
            self._tokenizer(),
            compute_dtype(self.trainer.precision),
            self.trainer.strategy.root_device,
            self.seed,
        )
        if self.trainer.state.fn != "predict":
            self._try_out()

    def configure_optimizers(self) -> Optimizer:
        """Return the optimizer. Its learning rate is a pure function of the step, set in each."""
        parameters = list(self.trained_parameters.values())
        if self.speed.flat_optimizer:
            self._flat = FlatParameters(parameters)
            parameters = [self._flat.parameter]
        return build_optimizer(
            self.optimizer_name, parameters, self.learning_rate, self.weight_decay
        )

    def training_step(self, window: Window, batch_idx: int) -> None:
        """Take one optimizer step: the mean loss over the supervised tokens of the window."""
        self._clock.begin()
        torch.manual_seed(self._seed_of_step())
        supervised = sum_over_ranks(self._count(window, "num_supervised"))
        loss = torch.zeros((), device=self.device)
        with without_gradient_sync(self.trainer.model):
            for batch in window:
                part = self._sum_loss(batch) / supervised
                self.manual_backward(part)
                loss += part.detach()
        loss = sum_over_ranks(loss)
        trained = self._collect_gradients()
        sum_gradients(trained)
        grad_norm = nn.utils.clip_grad_norm_(trained, self.max_grad_norm or float("inf"))
        if not self.nonfinite.accept(self.trainer, batch_idx, loss, grad_norm, supervised):
            for parameter in trained:  # a step without gradients is counted, and changes nothing
                parameter.grad = None
        learning_rate = self._step_optimizer()
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

    def on_train_start(self) -> None:
        """Wait for the loader from now on; here and below, what callbacks do is done already."""
        self._clock.wait()

    def on_train_epoch_start(self) -> None:
        """Wait for the loader from now on."""
        self._clock.wait()

    def on_train_batch_end(self, *args: Any) -> None:
        """Wait for the loader from now on."""
        self._clock.wait()

    def on_validation_end(self) -> None:
        """Wait for the loader from now on."""
        self._clock.wait()

    def validation_step(self, window: Window, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a window to `val/loss`, the mean over all supervised tokens of the split."""
        self._add_eval_loss(window, dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        """Log `val/loss`, and `val/loss/<name>` of each source of a mixture."""
        losses = self._take_eval_losses("val")
        if self.trainer.sanity_checking:
            return  # of the first rows alone: no figure of the run
        if self.trainer.state.fn == "fit":
            publish(self.trainer, losses)
        else:
            self.log_dict(losses)

    def test_step(self, window: Window, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a window to `test/loss`, the mean over all supervised tokens of the split."""
        self._add_eval_loss(window, dataloader_idx)

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
        max_batch_tokens: int = 32768,
    ) -> list[Generation]:
        """Answer prompts greedily, and leave modes and random states as they were.

        Args:
            prompts: Token ids, generation prompt included.
            max_new_tokens: Of an answer; None takes the module's own.
            max_batch_tokens: Rows times their longest length, of a batch.
        """
        tokenizer = self._tokenizer()
        if tokenizer is None:
            raise InputError(
                "generation takes a data module with a tokenizer, such as SFTDataModule"
            )
        use_attention(self.model, packed=False)
        with (
            evaluating(self.model),
            self.trainer.precision_plugin.forward_context(),
            torch.compiler.set_stance("force_eager"),  # with a cache that grows, all shapes are new
        ):
            return generate_greedy(
                self.model,
                prompts,
                stop_ids=find_stop_ids(
                    tokenizer,
                    self.model.config.get_text_config(),
                    self.model.config,
                    self.model.generation_config,
                ),
                pad_id=tokenizer.pad_token_id,
                max_new_tokens=max_new_tokens or self.max_new_tokens,
                max_batch_tokens=max_batch_tokens,
            )

    def total_steps(self) -> int:
        """Return the number of optimizer steps after which the learning rate is 0.

        Lightning's `estimated_stepping_batches` would throw away the position that a resumed loader
        was given; by the first step, the trainer knows the length of an epoch without it.
        """
        trainer = self.trainer
        return count_steps(trainer.max_steps, trainer.max_epochs, trainer.num_training_batches)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the adapter and what the run is, and drop the frozen base.

        Raises:
            NonFiniteError: If the adapter is not finite.
        """
        checkpoint["state_dict"] = {
            name: parameter.detach().clone() for name, parameter in self.trained_parameters.items()
        }
        require_finite_weights(checkpoint["state_dict"], self.global_step)
        checkpoint["nonfinite"] = self.nonfinite.state_dict()
        checkpoint["optimizer_parameters"] = list(self.trained_parameters)
        checkpoint["run"] = describe_run(self)
        checkpoint["settings"] = describe_settings(self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another adapter, and to go on with another run's.

        Raises:
            InputError: With what differs.
        """
        require("run" in checkpoint, "the checkpoint is none of this trainer's: it names no run")
        saved, now = match_runs(checkpoint["run"], self)
        if self.trainer.state.fn != "fit":
            saved, now = only_what_answers_depend_on(saved), only_what_answers_depend_on(now)
        require_same_run(saved, now, self.accept_changes)
        require_same_shapes(self.trained_parameters, checkpoint["state_dict"], "the checkpoint")
        if self.trainer.state.fn == "fit":
            if unknown := sorted(now.keys() - saved.keys()):
                rank_zero_info(
                    f"the checkpoint does not say, and may differ in: {', '.join(unknown)}"
                )
            require_same_layout(checkpoint.get("optimizer_states", []), self.speed.flat_optimizer)
            # Earlier releases named none, but saved the weights in that order.
            names = checkpoint.get("optimizer_parameters", list(checkpoint["state_dict"]))
            require_same_order(names, list(self.trained_parameters))
            changes = find_differences(checkpoint.get("settings", {}), describe_settings(self))
            for name, change in changes.items():
                rank_zero_info(f"{name} {change}")
            self.nonfinite.load_state_dict(checkpoint["nonfinite"])

    def _try_out(self) -> None:
        """Let the data module pad its rows where the model cannot keep packed ones apart."""
        data: Any = getattr(self.trainer, "datamodule", None)
        asked = getattr(data, "batching", "padding_free")
        device = self.trainer.strategy.root_device
        with self.trainer.precision_plugin.forward_context():
            with any_kernels():
                probe = probe_model(
                    *(self.model, asked == "padding_free", self.speed.fused_head),
                    getattr(data, "max_length", LONGEST),
                )
            if self.trainer.state.fn == "fit" and (self.speed.compile or device.type == "cuda"):
                settle(self.model, device, probe.packs)
        self.logit_scale, self.may_pack = probe.logit_scale, probe.packs
        remark = probe.remark
        if asked == "padding_free" and not probe.packs and hasattr(data, "pad_rows"):
            remark += f" ({data.pad_rows():.1%} of train is padding then)"
        if remark:
            rank_zero_info(remark)

    def _sum_loss(self, batch: Batch) -> Tensor:
        if "cu_seq_lens" in batch and not self.may_pack:
            raise InputError("the data module packs rows, which this model cannot keep apart")
        return sum_supervised_loss(self.model, batch, self.speed.fused_head, self.logit_scale)

    def _tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Return the data module's, where there is one that has one."""
        return getattr(getattr(self.trainer, "datamodule", None), "tokenizer", None)

    def _seed_of_step(self) -> int:
        """Return 32 bits, all that the CPU generator reads, from seed, step and rank.

        What dropout draws then depends on no history: a resumed run draws what the uninterrupted
        one drew, and an evaluation in between changes nothing.
        """
        return zlib.crc32(f"{self.seed} {self.global_step} {self.global_rank}".encode())

    def _step_optimizer(self) -> float:
        optimizer: Any = self.optimizers()
        total = self.total_steps()
        warmup = round(self.warmup_ratio * total)
        learning_rate = self.learning_rate * cosine_with_warmup(self.global_step, warmup, total)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
            group["weight_decay"] = self.weight_decay  # a resumed optimizer remembers its old one
        optimizer.step()
        (self._flat or optimizer).zero_grad()
        return learning_rate

    def _collect_gradients(self) -> list[nn.Parameter]:
        """Return what the optimizer updates: the trained parameters, or the buffer they are in."""
        if self._flat is None:
            return list(self.trained_parameters.values())
        self._flat.collect()
        return [self._flat.parameter]

    def _add_eval_loss(self, window: Window, source: int) -> None:
        loss = torch.zeros((), device=self.device)
        for batch in window:
            if batch["num_supervised"]:
                loss += self._sum_loss(batch)
        self.eval_loss.add(source, loss, self._count(window, "num_supervised"))

    def _take_eval_losses(self, split: str) -> dict[str, Tensor]:
        data: Any = getattr(self.trainer, "datamodule", None)
        sources = data.source_names(split) if hasattr(data, "source_names") else []
        return self.eval_loss.take(f"{split}/loss", sources)

    def _count(self, window: Window, field: Literal["num_tokens", "num_supervised"]) -> Tensor:
        return torch.tensor(float(sum(batch[field] for batch in window)), device=self.device)
