"""Which tasks lm-eval knows by a name, where their data lies, and what to do if there is none."""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmint8.errors import InputError

#: Names of tasks that an error shows.
_SHOWN = 8


def load_tasks(tasks: Sequence[str], folder: Path | None) -> dict[str, Any]:
    """The tasks as `lm_eval.evaluator.evaluate` takes them: "tasks", "groups" and "group_map", each by name.

    tasks: names of tasks, groups or tags, patterns such as "mmlu_*", or paths of YAML files.
    folder: task files of one's own, which are looked at first. Their relative `data_files` lie in the current
        folder or in this one.

    Raises InputError if a task is not known, or if it or its data cannot be read.
    """
    if not tasks:
        raise InputError("no task was given; name at least one")
    from lm_eval.tasks import TaskManager

    if folder is not None:
        folder = folder.resolve()  # the current folder changes while data is looked for
        # lm-eval reads thousands of files of its own to know its tasks; one's own may do.
        own = TaskManager(include_path=folder, include_defaults=False)
        if not _unknown(own, tasks):
            with contextlib.suppress(KeyError):  # a group of one's own with tasks of lm-eval
                return _load(own, tasks, folder)
    every = TaskManager(include_path=folder)
    unknown = _unknown(every, tasks)
    if unknown:
        raise InputError(_remedy(unknown[0], every, folder))
    try:
        return _load(every, tasks, folder)
    except KeyError as error:
        raise InputError(
            f"the tasks {', '.join(tasks)} name one that lm-eval does not have: {error}"
        ) from error


def _matching(manager: Any, task: str) -> list[str]:
    names: list[str] = manager.match_tasks([task])
    is_file = task.endswith((".yaml", ".yml")) and Path(task).is_file()
    return names or ([task] if is_file else [])


def _unknown(manager: Any, tasks: Sequence[str]) -> list[str]:
    return [task for task in tasks if not _matching(manager, task)]


def _load(manager: Any, tasks: Sequence[str], folder: Path | None) -> dict[str, Any]:
    loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    for task in tasks:
        for name in _matching(manager, task):
            try:
                found = _with_data(manager, name, folder)
            except KeyError:
                raise
            except Exception as error:  # a task file, and a library of data sets, may raise anything
                raise InputError(_broken(name, error)) from error
            for part, entries in loaded.items():
                entries.update(found.get(part, {}))
    return loaded


def _with_data(manager: Any, name: str, folder: Path | None) -> Any:
    try:
        return manager.load([name])
    except FileNotFoundError:
        if folder is None:
            raise
        with _inside(folder):
            return manager.load([name])


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _remedy(task: str, manager: Any, folder: Path | None) -> str:
    """What is wrong with a name, and which ones there are."""
    similar = difflib.get_close_matches(task, manager.all_tasks, _SHOWN)
    text = f"lm-eval has no task {task!r}"
    if similar:
        text += f"; similar: {', '.join(similar)}"
    if folder is None:
        return text + "; `lm-eval ls tasks` lists all, and --include-path takes a folder with task files"
    own = sorted(
        name
        for name, entry in manager.task_index.items()
        if entry.yaml_path is not None and Path(folder) in entry.yaml_path.parents
    )
    shown = ", ".join(own[:_SHOWN]) + (" …" if len(own) > _SHOWN else "") if own else "none"
    return f"{text}; {folder} defines {shown} (files that are no valid task are passed over)"


def _broken(name: str, error: Exception) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    text = f"the task {name} or its data cannot be read ({reason[:300]})"
    if not isinstance(error, OSError):
        return f"{text}; correct the task file"
    if _offline():
        return (
            f"{text}; HF_HUB_OFFLINE=1 forbids to fetch it: allow that once "
            "(llmint8 eval --download), or give a folder with task files and data (--include-path)"
        )
    return f"{text}; check the network, or give a folder with task files and data (--include-path)"


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)
