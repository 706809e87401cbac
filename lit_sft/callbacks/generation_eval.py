"""Let the model answer, grade its answers, and log how many are right."""

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn

from lit_sft.data.prompts import decode_answer, make_prompts, split_answer
from lit_sft.data.protocol import graded_data, run_data
from lit_sft.errors import require
from lit_sft.evaluation.exact_match import SHARES, Answer, ExactMatch
from lit_sft.files import replace_file
from lit_sft.model.answering import BATCH_TOKENS, weigh_answers
from lit_sft.model.distributed import gather_over_ranks, max_over_ranks
from lit_sft.model.module import SFTModule
from lit_sft.run.answer_file import keep_answers
from lit_sft.run.early_stopping import Stoppers, require_same_rhythm
from lit_sft.run.folder import RunFolder, is_trial
from lit_sft.run.metrics_file import publish
from lit_sft.run.records import read_generations
from lit_sft.tasks.base import ChatTask
from lit_sft.types import Prompt, Split


class GenerationEval(pl.Callback):
    """Exact match by greedy generation: `val/exact_match` while training, `test/exact_match` after.

    The prompts are rendered by the template of training. In training it runs before the first step,
    then every `every_n_steps`, and after the last step; it leaves no trace in what is trained.
    Lightning's `ModelCheckpoint` and `EarlyStopping` see its figures at once, in whatever order
    callbacks are given; an `EarlyStopping` of such a figure counts evaluations of it alone.

    Args:
        eval_rows: Rows of the validation split to answer; 0 answers all of them.
        every_n_steps: Optimizer steps between two evaluations; None evaluates after each epoch.
        max_new_tokens: Of an answer, its stop token included; None takes the model's own.
        max_batch_tokens: Rows times their longest length, of a batch; bounds the cache's memory.
            `auto` is 32,768, and on a GPU as many as fit into half of the free memory.
        num_shots: Solved training rows before each question, for a base that knows no chat.
        samples: How many answers are kept in `logs/generations.jsonl` and shown by the loggers.
        task: What to evaluate on, if it is not what is trained.
    """

    def __init__(
        self,
        eval_rows: int = 256,
        every_n_steps: int | None = None,
        max_new_tokens: int | None = None,
        max_batch_tokens: Literal["auto"] | int = "auto",
        num_shots: int = 0,
        samples: int = 8,
        task: ChatTask | None = None,
    ) -> None:
        require(eval_rows >= 0, f"GenerationEval.eval_rows must not be negative: {eval_rows}")
        for name, value in (
            ("every_n_steps", every_n_steps),
            ("max_new_tokens", max_new_tokens),
            ("max_batch_tokens", None if max_batch_tokens == "auto" else max_batch_tokens),
        ):
            require(value is None or value > 0, f"GenerationEval.{name} must be positive: {value}")
        require(num_shots >= 0, f"GenerationEval.num_shots must not be negative: {num_shots}")
        require(samples >= 0, f"GenerationEval.samples must not be negative: {samples}")
        self.eval_rows, self.every_n_steps = eval_rows, every_n_steps
        self.max_new_tokens, self.max_batch_tokens = max_new_tokens, max_batch_tokens
        self.num_shots, self.samples, self.task = num_shots, samples, task
        self._evaluated_at = -1

    def setup(self, trainer: pl.Trainer, pl_module: SFTModule, stage: str) -> None:
        """Render the prompts, so that what is wrong with them is found before training."""
        if stage == "predict":
            return
        data, tokenizer = graded_data(trainer), run_data(trainer).tokenizer
        task = self.task or data.task
        require(
            type(task).grade is not ChatTask.grade,
            f"GenerationEval: {type(task).__name__} does not grade answers; give it a method "
            "grade(row, text), name another task, or take the callback out (--trainer.callbacks "
            "'[]' takes out all)",
        )
        split: Split = "test" if stage == "test" else "val"
        require(
            split == "test" or data.val_rows > 0,
            "GenerationEval: data.val_rows=0 leaves no rows to evaluate on",
        )
        prompts = make_prompts(task, split, tokenizer, data.val_rows, self.num_shots)
        limit = (self.eval_rows if split == "val" else 0) or len(prompts)
        for prompt in prompts[:limit]:
            # A row that cannot be graded is found now, not after hours.
            task.grade(prompt.record, "")
        rank, world_size = trainer.global_rank, trainer.world_size
        self._grade = task.grade
        self._prompts = prompts[:limit][rank::world_size]
        if stage == "fit":
            figures = [f"val/{name}" for name in SHARES]
            require_same_rhythm(trainer, figures, self.every_n_steps or 1)
            self._stoppers = Stoppers(trainer, figures)

    def on_train_start(self, trainer: pl.Trainer, pl_module: SFTModule) -> None:
        """Measure the base as it is; a resumed run has done so already."""
        if trainer.global_step == 0:
            self._evaluate_in_training(trainer, pl_module)
        else:
            self._stoppers.stop_again(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: SFTModule, *args: object) -> None:
        """Measure after the steps that are due."""
        step = trainer.global_step
        if self.every_n_steps:
            is_due = step % self.every_n_steps == 0
        else:
            is_due = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if is_due or step == pl_module.total_steps():
            self._evaluate_in_training(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: SFTModule) -> None:
        """Measure a run that ended before its last step, such as by `trainer.max_time`."""
        self._evaluate_in_training(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: SFTModule) -> None:
        """Measure for `lit-sft validate`; validations inside training have their own rhythm."""
        if trainer.state.fn == "validate":
            figures = measure(self._answer(trainer, pl_module), pl_module.device)
            pl_module.log_dict({f"val/{k}": v for k, v in figures.items()})

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: SFTModule) -> None:
        """Measure the test split, with a 95 % interval."""
        started = time.perf_counter()
        answers = self._answer(trainer, pl_module)
        figures = measure(answers, pl_module.device, with_interval=True)
        seconds = time.perf_counter() - started
        pl_module.log_dict(
            {f"test/{k}": v for k, v in figures.items()} | {"test/eval_seconds": seconds}
        )

    def steps_between(self, trainer: pl.Trainer) -> float:
        """Return the optimizer steps from one evaluation to the next, as a progress bar asks."""
        return self.every_n_steps or trainer.num_training_batches

    def advise_less_memory(self) -> str:
        """Return what would make its batches smaller."""
        tokens = BATCH_TOKENS if self.max_batch_tokens == "auto" else self.max_batch_tokens
        return (
            f"GenerationEval's max_batch_tokens: {tokens // 2} (now {tokens}), if it was in an "
            "evaluation"
        )

    def _evaluate_in_training(self, trainer: pl.Trainer, pl_module: SFTModule) -> None:
        if self._evaluated_at == trainer.global_step:
            return
        self._evaluated_at = trainer.global_step
        started, answers, problem = time.perf_counter(), [], ""
        try:
            answers = self._answer(trainer, pl_module)
        except torch.OutOfMemoryError as error:
            # Not worth a training run; one row that does not fit alone is all that comes here.
            problem = str(error)
        if max_over_ranks(int(bool(problem)), pl_module.device):  # all leave it out, or none
            reason = problem or "another rank is out of memory"
            rank_zero_warn(f"evaluation left out after step {trainer.global_step}: {reason}")
            return
        shares = measure(answers, pl_module.device)
        figures = {f"val/{k}": v for k, v in shares.items()}
        figures["val/eval_seconds"] = time.perf_counter() - started
        publish(trainer, figures)
        if trainer.global_step:  # the base as it is sets no mark
            self._stoppers.look(trainer)
        everyone = gather_over_ranks([describe(answer) for answer in answers])
        if trainer.is_global_zero and not is_trial(trainer):
            self._keep_samples(trainer, answers[: self.samples])
            weighed = self._weigh_samples(trainer, pl_module)
            ranked = sorted(everyone, key=lambda answer: answer["row"])
            ranked = [answer | weighed.get(answer["row"], {}) for answer in ranked]
            keep_answers(RunFolder.of(trainer).answers, trainer.global_step, ranked)

    def _answer(self, trainer: pl.Trainer, pl_module: SFTModule) -> list[Answer]:
        """Return this rank's answers."""
        generations = pl_module.generate(
            [prompt.input_ids for prompt in self._prompts],
            max_new_tokens=self.max_new_tokens,
            max_batch_tokens=self.max_batch_tokens,
            tell=getattr(trainer.progress_bar_callback, "tell_answers", None),
        )
        tokenizer = run_data(trainer).tokenizer
        self._sampled = [*zip(self._prompts, generations, strict=True)][: self.samples]
        answers = []
        for prompt, generation in zip(self._prompts, generations, strict=True):
            output = decode_answer(tokenizer, generation.token_ids)
            answers.append(
                make_answer(prompt, output, self._grade(prompt.record, output), generation.finished)
            )
        return answers

    def _weigh_samples(self, trainer: pl.Trainer, pl_module: SFTModule) -> dict[int, Any]:
        """Return the tokens of the sample answers by row, with how likely each was.

        Where memory does not hold the logits of an answer, there is nothing.
        """
        answers = [(prompt.input_ids, x.token_ids) for prompt, x in self._sampled if x.token_ids]
        autocast = trainer.precision_plugin.forward_context()
        weights: list[list[float]] = []
        with suppress(torch.OutOfMemoryError):
            weights = weigh_answers(pl_module.model, autocast, answers)
        rows = [prompt.row for prompt, x in self._sampled if x.token_ids]
        tokenizer, weighed = run_data(trainer).tokenizer, {}
        for row, (_, ids), likely in zip(rows, answers, weights, strict=False):
            pieces = split_answer(tokenizer, list(ids))
            if pieces:
                weighed[row] = {
                    "tokens": [[x, round(p, 3)] for x, p in zip(pieces, likely, strict=True)]
                }
        return weighed

    def _keep_samples(self, trainer: pl.Trainer, answers: Sequence[Answer]) -> None:
        step = trainer.global_step
        path = RunFolder.of(trainer).generations
        # A resumed run writes the steps after its checkpoint again.
        earlier = [x.line for x in read_generations(path) if x.step < step] if step > 0 else []
        lines = [json.dumps({"step": step} | describe(answer)) for answer in answers]
        with replace_file(path) as staged:
            staged.write_text("".join(f"{line}\n" for line in [*earlier, *lines]), encoding="utf-8")
        columns = list(describe(answers[0])) if answers else []
        rows = [list(describe(answer).values()) for answer in answers]
        for logger in trainer.loggers:
            if hasattr(logger, "log_table"):
                logger.log_table("val/generations", columns=columns, data=rows, step=step)


def measure(
    answers: Sequence[Answer], device: torch.device, with_interval: bool = False
) -> dict[str, float]:
    """Return the shares over the answers of all ranks, as `ExactMatch` computes them.

    Args:
        answers: Of this rank.
        device: Where the ranks exchange their counts.
        with_interval: As `ExactMatch` has it.
    """
    metric = ExactMatch(with_interval).to(device)
    metric.update([answer.grade for answer in answers], [answer.finished for answer in answers])
    figures: dict[str, float] = metric.compute()
    return figures


def make_answer(prompt: Prompt, output: str, grade: bool | None, finished: bool) -> Answer:
    """Return an answer beside the question and the reference of its conversation."""
    said = {message["role"]: message["content"] for message in prompt.messages}
    return Answer(
        prompt.row, said.get("user", ""), said.get("assistant", ""), output, grade, finished
    )


def describe(answer: Answer) -> dict[str, Any]:
    """Return an answer as plain values, the verdict in words."""
    return {
        "row": answer.row,
        "question": answer.question,
        "reference": answer.reference,
        "output": answer.output,
        "verdict": answer.verdict,
        "finished": answer.finished,
    }
