"""Let the model answer, grade its answers, and log how many are right."""

import time
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn

from lit_sft.data.gradable import make_gradable_prompts
from lit_sft.data.prompts import decode_answer
from lit_sft.data.protocol import graded_data, run_data
from lit_sft.errors import require
from lit_sft.evaluation.exact_match import Answer, make_answer
from lit_sft.evaluation.scores import describe_no_match, format_scores, list_figures, measure
from lit_sft.model.answering import BATCH_TOKENS, weigh_pieces
from lit_sft.model.distributed import gather_over_ranks, max_over_ranks
from lit_sft.model.module import SFTModule
from lit_sft.run.answer_file import keep_answers
from lit_sft.run.earlier_answers import EarlierAnswers
from lit_sft.run.early_stopping import Stoppers, require_measured, require_same_rhythm
from lit_sft.run.folder import RunFolder, is_trial
from lit_sft.run.metrics_file import publish
from lit_sft.run.sample_file import keep_samples
from lit_sft.tasks.base import ChatTask
from lit_sft.types import Split


class GenerationEval(pl.Callback):
    """Exact match by greedy generation: `val/exact_match` while training, `test/exact_match` after.

    Where the task grades by F1, it is `val/f1`; in a mixture there is `val/exact_match/NAME` of
    each task, too. After a test a table has them with 95 % intervals, Wilson's of an exact match
    and Agresti and Coull's of an F1, and says what was won and lost against `data.compare_with`.
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
        for name, value in (
            ("every_n_steps", every_n_steps),
            ("max_new_tokens", max_new_tokens),
            ("max_batch_tokens", None if max_batch_tokens == "auto" else max_batch_tokens),
        ):
            require(value is None or value > 0, f"GenerationEval.{name} must be positive: {value}")
        numbers = {"eval_rows": eval_rows, "num_shots": num_shots, "samples": samples}
        for name, number in numbers.items():
            require(number >= 0, f"GenerationEval.{name} must not be negative: {number}")
        self.eval_rows, self.every_n_steps = eval_rows, every_n_steps
        self.max_new_tokens, self.max_batch_tokens = max_new_tokens, max_batch_tokens
        self.num_shots, self.samples, self.task = num_shots, samples, task
        self._evaluated_at = -1
        self._earlier: EarlierAnswers | None = None
        self._told: set[tuple[str, bool]] = set()

    def setup(self, trainer: pl.Trainer, pl_module: SFTModule, stage: str) -> None:
        """Render the prompts, so that what is wrong with them is found before training."""
        if stage == "predict":
            return
        data, tokenizer = graded_data(trainer), run_data(trainer).tokenizer
        self._task = self.task or data.task
        split: Split = "test" if stage == "test" else "val"
        limit = self.eval_rows if split == "val" else 0
        prompts, sources, grades, self._graders = make_gradable_prompts(
            self._task, split, tokenizer, data.val_rows, self.num_shots, limit
        )
        self._rows = Counter(sources)
        mine = slice(trainer.global_rank, None, trainer.world_size)
        self.prompts = prompts[mine]
        path = getattr(data, "compare_with", None) if split == "test" else None
        self._earlier = EarlierAnswers(path, prompts, mine) if path else None
        if stage == "fit":
            figures = [f"val/{name}" for name in list_figures(sources, grades)]
            require_same_rhythm(trainer, figures, self.every_n_steps or 1)
            require_measured(trainer, figures)
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
            figures = self._measure(trainer, pl_module, self._answer(trainer, pl_module))
            pl_module.log_dict({f"val/{k}": v for k, v in figures.items()})

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: SFTModule) -> None:
        """Measure the test split with 95 % intervals, and print what came of it."""
        started = time.perf_counter()
        answers = self._answer(trainer, pl_module)
        figures = self._measure(trainer, pl_module, answers, with_interval=True)
        seconds = time.perf_counter() - started
        named = {f"test/{k}": v for k, v in figures.items()} | {"test/eval_seconds": seconds}
        pl_module.log_dict({k: v for k, v in named.items() if k.count("/") == 1})
        # Those of the sources stand in the table below, which has room for them.
        trainer.callback_metrics.update({k: torch.tensor(v) for k, v in named.items()})
        told = [format_scores(figures, self._graders, self._rows)]
        if self._earlier:
            rows, device = {x: self._rows[x] for x in self._graders}, pl_module.device
            compared = self._earlier.compare(answers, self._task, rows, device)
            told += compared.lines
            changed = {f"test/{k}": torch.tensor(v) for k, v in compared.figures.items()}
            trainer.callback_metrics.update(changed)
        if trainer.is_global_zero:
            print("\n".join(told), flush=True)

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
        figures = {f"val/{k}": v for k, v in self._measure(trainer, pl_module, answers).items()}
        figures["val/eval_seconds"] = time.perf_counter() - started
        publish(trainer, figures)
        if trainer.global_step:  # the base as it is sets no mark
            self._stoppers.look(trainer)
        everyone = gather_over_ranks([answer.describe() for answer in answers])
        if is_trial(trainer):
            return
        autocast = trainer.precision_plugin.forward_context()
        tokenizer = run_data(trainer).tokenizer
        sampled = self._sampled if trainer.is_global_zero else []
        # On all ranks, as they may share the base.
        scale = pl_module.logit_scale
        pieces = weigh_pieces(pl_module.model, tokenizer, autocast, sampled, scale)
        if trainer.is_global_zero:
            keep_samples(trainer, answers[: self.samples])
            ranked = sorted(everyone, key=lambda told: told["row"])
            for told in ranked:
                if told["row"] in pieces:
                    told["tokens"] = pieces[told["row"]]
            keep_answers(RunFolder.of(trainer).answers, trainer.global_step, ranked)

    def _answer(self, trainer: pl.Trainer, pl_module: SFTModule) -> list[Answer]:
        """Return this rank's answers."""
        generations = pl_module.generate(
            [prompt.input_ids for prompt in self.prompts],
            max_new_tokens=self.max_new_tokens,
            max_batch_tokens=self.max_batch_tokens,
            tell=getattr(trainer.progress_bar_callback, "tell_answers", None),
        )
        tokenizer = run_data(trainer).tokenizer
        self._sampled = [*zip(self.prompts, generations, strict=True)][: self.samples]
        answers = []
        for prompt, generation in zip(self.prompts, generations, strict=True):
            output = decode_answer(tokenizer, generation.token_ids)
            grade = self._task.grade(prompt.record, output)
            source = self._task.source_of(prompt.record)
            answers.append(make_answer(prompt, output, grade, generation.finished, source))
        return answers

    def _measure(
        self,
        trainer: pl.Trainer,
        pl_module: SFTModule,
        answers: Sequence[Answer],
        with_interval: bool = False,
    ) -> dict[str, float]:
        """Return the figures over all ranks, and say it where a grader finds nothing.

        In training it is said once of the base, and once of what is trained.
        """
        sources = [source for source in self._graders if source]
        figures = measure(answers, pl_module.device, sources, with_interval)
        for source, grader in self._graders.items():
            one = next((answer for answer in answers if answer.source == source), None)
            text = describe_no_match(figures, grader, self._rows[source], one, source)
            told = (source, trainer.global_step > 0)
            if text and told not in self._told:
                self._told.add(told)
                when = f", after step {trainer.global_step}" if trainer.state.fn == "fit" else ""
                rank_zero_warn(f"GenerationEval{when}: {text}")
        return figures
