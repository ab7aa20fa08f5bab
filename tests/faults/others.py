"""Faults beside kills: damage, full disks, wrong dates, other runs, a rank that hangs, a rewind.

Each takes the folder of a run that was broken after its second checkpoint and says what went wrong
in words, None for nothing; the run must still be able to finish without loss.
"""

import json
import os
import shutil
import signal
import time
from pathlib import Path

from jobs import SECONDS, Job
from kills import END_SECONDS, POLL
from launch import deepspeed, kill, run, start
from warm import WarmRun

from seal.models.actor import ModelSettings, load_actor

# Runs a command with directory $1 on a tmpfs of $2 bytes; what is there then is copied to after/.
IN_TMPFS = """
directory=$1 size=$2; shift 2
cp -r "$directory" after && mount -t tmpfs -o size="$size" tmpfs "$directory" &&
    cp -r after/. "$directory" && rm -r after && "$@"
status=$?; cp -r "$directory" after; exit $status
"""
YEARS = 30 * 365 * 86400


def refused(job: Job, root: Path, folder: Path, file: Path) -> str | None:
    """Resuming must refuse the checkpoint by the name of `file`; the checkpoint is removed then."""
    done = deepspeed(job.script, *job.words(root), "--load_checkpoint", cwd=folder)
    if done.status != 2 or len(done.errors) != 1 or file.name not in done.errors[0]:
        return f"status {done.status}: {done.errors}"
    shutil.rmtree(file.parent)
    return None


def truncated_checkpoint(job: Job, root: Path, folder: Path) -> str | None:
    """The newest checkpoint is cut short: refused in one line that names the file."""
    newest = max(folder.glob("snapshots/*/step_*"), key=lambda path: int(path.name[5:]))
    file = newest / "engine_0.0.pt"
    os.truncate(file, file.stat().st_size // 2)
    return refused(job, root, folder, file)


def flipped_bit(job: Job, root: Path, folder: Path) -> str | None:
    """One bit of a weight in the newest checkpoint: refused, with the name of the file."""
    newest = max(folder.glob("snapshots/*/step_*"), key=lambda path: int(path.name[5:]))
    file = newest / "engine_0.0.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    return refused(job, root, folder, file)


def code_in_a_checkpoint(job: Job, root: Path, folder: Path) -> str | None:
    """A checkpoint whose files would run code when unpickled, of the right size: refused."""
    newest = max(folder.glob("snapshots/*/step_*"), key=lambda path: int(path.name[5:]))
    file, mark = newest / "engine_0.0.pt", folder / "has_run"
    command = f"cposix\nsystem\n(S'touch {mark}'\ntR.".encode()
    file.write_bytes(command.ljust(file.stat().st_size))
    done = deepspeed(job.script, *job.words(root), "--load_checkpoint", cwd=folder)
    if mark.exists() or done.status != 2 or len(done.errors) != 1:
        return f"code has run: {mark.exists()}; status {done.status}: {done.errors}"
    shutil.rmtree(newest)
    return None


def full_disk(job: Job, root: Path, folder: Path) -> str | None:
    """No file may grow beyond what the second half of a checkpoint needs: it is never completed."""
    before = {path.name for path in folder.glob("snapshots/*/step_*")}
    limit = (
        max(path.stat().st_size for path in folder.glob("snapshots/*/step_*/engine_0.0.pt")) // 2
    )
    shell = ["bash", "-c", f'ulimit -f {max(1, limit // 1024)}; exec "$@"', "limited"]
    words = [*shell, *job.command(root), "--load_checkpoint"]
    done = run(words, cwd=folder, seconds=2 * END_SECONDS)
    after = {path.name for path in folder.glob("snapshots/*/step_*")}
    if done.status == 0 or after != before or list(folder.glob("tuned/*.safetensors")):
        return f"status {done.status}, checkpoints {before} -> {after}"
    return None


def full_tmpfs(job: Job, root: Path, folder: Path) -> str | None:
    """The checkpoints, then the model, go to a file system with room for a part of one only."""
    if os.geteuid():
        print("full_tmpfs: left out, only root can mount", flush=True)
        return None
    held = sum(path.stat().st_size for path in folder.glob("snapshots/*/*/*"))  # two checkpoints
    for name, size in (("snapshots", held * 5 // 4), ("tuned", 64 * 1024)):
        before = whole_files(folder / name)
        words = ["unshare", "--mount", "bash", "-c", IN_TMPFS, "small", name, size]
        done = run([*words, *job.command(root), "--load_checkpoint"], cwd=folder)
        if done.status == 0 or len(done.errors) != 1 or "no room" not in done.errors[0]:
            return f"{name}: status {done.status}: {done.errors or done.output[-500:]}"
        if (after := whole_files(folder / "after")) != before:
            return f"{name}: {before} -> {after}"
        shutil.copytree(folder / "after", folder / name, dirs_exist_ok=True)  # as a disk would
        shutil.rmtree(folder / "after")
    return None


def whole_files(directory: Path) -> set[str]:
    """What stands for a whole checkpoint or model below a directory."""
    kinds = ("manifest.json", "*.safetensors")
    return {str(path.relative_to(directory)) for kind in kinds for path in directory.rglob(kind)}


def clock_jump(job: Job, root: Path, folder: Path) -> str | None:
    """Half of the files are dated thirty years ahead, the other half thirty years back."""
    for number, path in enumerate(sorted(folder.rglob("*"))):
        date = time.time() + (YEARS if number % 2 else -YEARS)
        os.utime(path, (date, date))
    return None


def has_moved(marks: dict[Path, float]) -> bool:
    """Whether one of these files has been written since, looked at every millisecond."""
    time.sleep(0.001)
    return any(path.stat().st_mtime != date for path, date in marks.items())


def second_run(job: Job, root: Path, folder: Path) -> str | None:
    """While one goes on, a second on the same outputs is refused."""
    marks = {path: path.stat().st_mtime for path in folder.rglob(job.log)}
    process = start([*job.command(root), "--load_checkpoint"], cwd=folder)
    try:
        while not has_moved(marks):
            if process.poll() is not None:
                return "the first run did not start"
        os.killpg(process.pid, signal.SIGSTOP)  # it holds its lock meanwhile
        done = deepspeed(job.script, *job.words(root), "--load_checkpoint", cwd=folder)
        if done.status != 2 or len(done.errors) != 1 or "has not ended" not in done.errors[0]:
            return f"status {done.status}: {done.errors}"
        return None
    finally:
        kill(process)


def hanging_rank(job: Job, root: Path, folder: Path) -> str | None:
    """Rank 0, which holds the rendezvous, stops for ever: named, and all end."""
    marks = {path: path.stat().st_mtime for path in folder.rglob(job.log)}
    limit = 15
    words = [*job.words(root), "--load_checkpoint", "--timeout_minutes", str(limit / 60)]
    run = WarmRun(job.script, words, folder)
    while not has_moved(marks):
        if run.ended():
            return "the run did not start"
    os.kill(run.pids[1], signal.SIGSTOP)
    if not run.wait(limit + END_SECONDS):
        run.kill()
        return "hang"
    return None if "no answer from rank 0," in run.output else run.output[-500:]


def ended(job: Job, words: list[str], folder: Path) -> str:
    """Runs a job's script to its end; what it has printed.

    Raises:
        AssertionError: it hangs, or its status is not 0.
    """
    run = WarmRun(job.script, words, folder)
    if not run.wait(SECONDS):
        run.kill()
    assert run.status == 0, run.output[-1500:]
    return run.output


def rewind(job: Job, root: Path, folder: Path) -> str | None:
    """Gone on from the older checkpoint, and killed at once: the newest is the older one then."""
    older = min(folder.glob("snapshots/*/step_*"), key=lambda path: int(path.name[5:]))
    words = [*job.words(root), "--load_checkpoint"]
    run = WarmRun(job.script, [*words, str(older)], folder)
    while json.loads((older.parent / "order.json").read_text())[-1] != older.name:
        if run.ended():
            return f"the run did not start: {run.output[-500:]}"
        time.sleep(POLL)
    run.kill()
    output = ended(job, words, folder)
    if f"{older.name} after step {older.name[5:]}" not in output:
        return f"not from {older}: {output[-500:]}"
    return None


def another_run(job: Job, root: Path, folder: Path) -> str | None:
    """A run with another seed in the same directory of checkpoints leaves this one's alone."""
    before = whole_files(folder / "snapshots")
    ended(job, [*job.words(root), "--seed", "7", "--save_path", "other"], folder)
    after = whole_files(folder / "snapshots")
    return None if before < after else f"{before} -> {after}"


def another_kind_of_model(job: Job, root: Path, folder: Path) -> str | None:
    """An adapter replaces the full model: it alone is there; the resume puts the full one back."""
    ended(job, [*job.words(root), "--load_checkpoint"], folder)
    words = [*job.words(root), "--lora_rank", "2", "--overwrite", "--ckpt_path", "apart"]
    ended(job, words, folder)
    left = whole_files(folder / "tuned")
    loaded = load_actor(ModelSettings(str(folder / "tuned")))
    if left != {"adapter_model.safetensors"} or not loaded.has_adapter:
        return f"{left}, loaded as an adapter: {loaded.has_adapter}"
    return None


FAULTS = (
    truncated_checkpoint,
    flipped_bit,
    code_in_a_checkpoint,
    full_disk,
    full_tmpfs,
    clock_jump,
    second_run,
    hanging_rank,
    rewind,
    another_run,
    another_kind_of_model,
)
