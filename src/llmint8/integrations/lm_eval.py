"""Real tasks through EleutherAI's lm-eval, on a model that is in memory: int8, float, or anything in between.

Without a network: a folder with task files (YAML) whose `dataset_path` is `json` and whose `data_files` are
there. lm-eval is an extra (`pip install 'llmint8[eval]'`), imported when tasks are run.
"""

from __future__ import annotations

import copy
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llmint8.errors import InputError, LLMInt8Error
from llmint8.integrations.lm_eval_tasks import load_tasks
from llmint8.integrations.task_results import Metric, influences_of, mean_stderr

#: Resamplings for metrics without a closed form of their error: two digits of it.
_BOOTSTRAPS = 1000
#: Examples in a prompt, and whatever a task samples, are drawn from this seed: the same for all models.
_SEED = 1234


@dataclass(frozen=True)
class TaskSettings:
    """How tasks are run, the same for all models that are to be compared.

    include_path: a folder with task files of one's own. limit: documents of each task, the first ones;
    None: all.
    num_fewshot: examples in a prompt; None: as the task says. batch_size: prompts in one call of the model.

    Raises InputError for a folder that does not exist, or a number that is too small.
    """

    include_path: Path | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    batch_size: int = 1

    def __post_init__(self) -> None:
        if self.include_path is not None and not Path(self.include_path).is_dir():
            raise InputError(f"{self.include_path} is no folder; give the one with the task files (*.yaml)")
        for name, smallest in (("limit", 1), ("num_fewshot", 0), ("batch_size", 1)):
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise InputError(f"{name} must be at least {smallest}, got {value}")


@dataclass(frozen=True)
class TaskResults:
    """What a model did: the metrics of the tasks in their order, then those of groups.

    lm_eval: the version of lm-eval. truncated: prompts that were longer than the model takes, and lost
    their start.
    """

    metrics: tuple[Metric, ...]
    lm_eval: str
    truncated: int


def require_lm_eval() -> None:
    """Raise LLMInt8Error, with the remedy, if lm-eval cannot be imported."""
    try:
        import lm_eval.models.huggingface  # noqa: F401
    except ImportError as error:
        raise LLMInt8Error(
            f"lm-eval cannot be imported ({error}); run: pip install 'llmint8[eval]'"
        ) from error


def evaluate_tasks(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str],
    settings: TaskSettings | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TaskResults:
    """Run a causal language model of transformers through tasks of lm-eval.

    model: float or int8. tokenizer: the model's. Neither is changed. tasks: names of tasks, groups or tags,
        patterns such as "mmlu_*", or paths of YAML files. settings: None: the defaults of TaskSettings.
    progress: called with (requests done, requests of this kind); None: lm-eval shows bars of its own.

    Likelihoods are float32 sums, whatever the type of the logits. They depend on the batch size only as far
    as the float parts of a model do: int8 layers treat each token by itself. Source of tasks and metrics:
    https://github.com/EleutherAI/lm-evaluation-harness.

    Raises InputError for a task that is not known, cannot be read, or cannot be done by such a model, and
    LLMInt8Error if lm-eval is missing.
    """
    require_lm_eval()
    import torch
    from lm_eval import evaluator

    settings = settings or TaskSettings()
    quiet = progress is not None
    with (
        _quiet(quiet),
        _truncations(quiet) as truncated,
        torch.random.fork_rng(),
        _evaluating(model),
    ):
        torch.manual_seed(_SEED)
        loaded = load_tasks(tasks, settings.include_path)
        _set_examples(loaded["tasks"], settings.num_fewshot)
        lm = _language_model(model, tokenizer, settings.batch_size, progress)
        try:
            results = evaluator.evaluate(lm, loaded, limit=settings.limit, bootstrap_iters=_BOOTSTRAPS)
        except (AssertionError, KeyError, ValueError) as error:  # how lm-eval refuses a task or a model
            reason = " ".join(str(error).split())
            raise InputError(f"the tasks {', '.join(tasks)} cannot be run: {reason}") from error
    return TaskResults(tuple(_metrics(results)), version("lm_eval"), len(truncated))


def _set_examples(tasks: Mapping[str, Any], wanted: int | None) -> None:
    for task in tasks.values():
        own = task.get_config("num_fewshot")
        # A zero in a task file means that examples make no sense there.
        number = own if own == 0 or wanted is None else wanted
        task.set_config(key="num_fewshot", value=number or 0)
        task.set_fewshot_seed(seed=_SEED)


def _language_model(
    model: Any, tokenizer: Any, batch_size: int, progress: Callable[[int, int], None] | None
) -> Any:
    """The model as lm-eval calls it."""
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(
        pretrained=model,
        tokenizer=copy.deepcopy(tokenizer),  # lm-eval gives it a padding token
        batch_size=batch_size,
        softmax_dtype="float32",
    )
    if progress is not None:
        for kind in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
            setattr(lm, kind, _counted(lm, getattr(lm, kind), progress))
    return lm


def _counted(lm: Any, answer: Callable[..., Any], progress: Callable[[int, int], None]) -> Callable[..., Any]:
    """A method of the model that reports each request: lm-eval tells its cache of answers about them."""

    class Count:
        def __init__(self, requests: int) -> None:
            self.done, self.requests = 0, requests

        def add_partial(self, *_answer: Any) -> None:
            self.done += 1
            progress(self.done, self.requests)

    def answered(requests: list[Any]) -> Any:
        lm.set_cache_hook(Count(len(requests)))
        return answer(requests, disable_tqdm=True)

    return answered


def _metrics(results: Mapping[str, Any]) -> Iterator[Metric]:
    for task, values in results["results"].items():
        samples = results["samples"].get(task, [])
        for key, value in values.items():
            name, comma, chosen = key.partition(",")
            if not comma or name.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            outcomes = [s[name] for s in samples if s["filter"] == chosen and name in s]
            influences = influences_of(float(value), outcomes)
            stderr = values.get(f"{name}_stderr,{chosen}")
            known = float(stderr) if isinstance(stderr, float) else None
            yield Metric(
                task,
                name if chosen == "none" else f"{name} ({chosen})",
                float(value),
                mean_stderr(influences) if influences else known,
                len(outcomes) if samples else int(values["sample_len"]),
                results["higher_is_better"].get(task, {}).get(name),
                influences,
            )


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """lm-eval puts a model into evaluation mode; leave it as it was."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def _truncations(quiet: bool) -> Iterator[list[str]]:
    """What lm-eval says about prompts that it cuts, one remark each. quiet: keep its other remarks back."""
    found: list[str] = []

    def look(record: logging.LogRecord) -> bool:
        if "runcat" in record.getMessage():
            found.append(record.getMessage())
            return False
        return not quiet

    logger = logging.getLogger("lm_eval.models.huggingface")
    level = logger.level
    logger.setLevel(logging.WARNING)
    logger.addFilter(look)
    try:
        yield found
    finally:
        logger.removeFilter(look)
        logger.setLevel(level)


@contextmanager
def _quiet(quiet: bool) -> Iterator[None]:
    """Keep lm-eval's bars, prints and remarks from the terminal, if asked to; Python warnings come through.

    It resamples in a pool of processes otherwise: forking a process with the threads of torch may hang.
    """
    with ExitStack() as stack:
        stack.enter_context(_variable("DISABLE_MULTIPROC", "1"))
        if quiet:
            logger = logging.getLogger("lm_eval")
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
            caught = stack.enter_context(warnings.catch_warnings(record=True))
            stack.enter_context(redirect_stdout(io.StringIO()))
            stack.enter_context(redirect_stderr(io.StringIO()))
        yield
    for warning in caught if quiet else ():
        warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
