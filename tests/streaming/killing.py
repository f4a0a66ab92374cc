"""Convert in a process that kills itself at a chosen moment; a program, run by test_resume.py.

`killing.py SRC OUT COUNT` converts SRC to OUT/uninterrupted. Then, for COUNT random moments, it converts to
OUT/MOMENT in a fork that sends itself SIGKILL at that call of a function since the work on disk began, and
again in a fork that is left alone. It prints, as JSON, what was there after each kill.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from pathlib import Path

from llmint8.streaming import convert_checkpoint
from llmint8.streaming.work_folder import WorkFolder

SHARD = 2000


def convert(src: Path, out: Path, deadly: int | None) -> int:
    """Convert in a fork; return the number of calls it made, or -9 if it was killed."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        calls = 0
        resume = WorkFolder.resume

        def count(frame, event, argument):
            nonlocal calls
            calls += event in ("call", "c_call")
            if calls == deadly:
                os.kill(os.getpid(), signal.SIGKILL)

        def begin(work, state):
            sys.setprofile(count)
            resume(work, state)

        WorkFolder.resume = begin
        convert_checkpoint(src, out, max_shard_size=SHARD)
        sys.setprofile(None)
        os.write(writer, str(calls).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as opened:
        answer = opened.read()
    _, status = os.wait()
    return int(answer) if answer else -os.WTERMSIG(status)


def main() -> None:
    src, out, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    convert_checkpoint(src, out / "uninterrupted", max_shard_size=SHARD)  # here, so that forks import nothing
    calls = convert(src, out / "counted", None)
    moments = sorted(random.Random(0).sample(range(1, calls), count))
    seen = []
    for moment in moments:
        target = out / str(moment)
        killed = convert(src, target, moment)
        work = target.with_name(f".{moment}.partial")
        finished = sorted(f.name for f in work.glob("model/*.safetensors"))
        seen.append({"killed": killed, "there": target.exists(), "finished": finished, "name": str(moment)})
        if not target.exists():
            convert(src, target, None)
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
