"""A real run, killed with SIGKILL again and again, ends with the bits of one that was left alone."""

import contextlib
import itertools
import json
import multiprocessing
import os
import signal
import time

import jax.numpy as jnp
import numpy as np
from flax import nnx

from s2s_jax import layers
from s2s_jax.data.pipeline import Batches
from s2s_jax.losses import cross_entropy
from s2s_jax.training.checkpoint import Checkpoints, save_weights
from s2s_jax.training.loop import Goal, fit
from tests.training import test_loop as small

STEPS, EVERY, KILLS = 240, 10, 20
# Each run is a process of its own; it is forked from one that has imported everything and done nothing, which saves seconds.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["orbax.checkpoint", "grain", "tests.training.test_kill"])


class Model(nnx.Module):
    """With running statistics, and with dropout."""

    def __init__(self):
        self.norm = layers.BatchNorm(small.D, momentum=0.999)  # remembers to the end what a resume would lose
        self.classifier = small.small_model()

    def __call__(self, xs, mask, key):
        of_steps = jnp.broadcast_to(mask[:, None], xs.shape[:2])
        return self.classifier(self.norm(xs, mask=of_steps, training=True), key=key)


def loss(model, batch, key):
    nats = cross_entropy(model(batch["xs"], batch["mask"], key), batch["labels"], batch["mask"])
    return nats.total / nats.count, {"loss": nats}


class Watched:
    """Batches from Grain's threads (those of arrays without a transform would not be), the last of an epoch with rows that
    are none; takes down which steps were asked for.
    """

    def __init__(self, batches, folder, pause):
        self._batches, self._folder, self._pause = batches, folder, pause
        self.ids = batches.ids

    def __call__(self, step):
        return self._batches(step)

    def iterate(self, first_step):
        for step, batch in enumerate(self._batches.iterate(first_step), first_step):
            with (self._folder / "asked").open("a") as asked:
                asked.write(f"{step}\n")
            time.sleep(self._pause)
            yield {**batch, "xs": batch["xs"] * np.float32(np.nan if step == 57 else 1)}


def train(folder, cache, pause):
    """A run with a goal with patience, averaged parameters, batches in parts, and a step that is skipped."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    folder.mkdir(parents=True, exist_ok=True)

    with (folder / "told").open("a") as told, contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        run = small.run_in(folder, steps=STEPS)
        trained = fit(
            Model(),
            loss,
            Watched(Batches(small.DATA, 12, seed=5, transform=dict), folder, pause),
            optimizer=small.OPTIMIZER,
            steps=STEPS,
            seed=11,
            evaluate=lambda model: {
                "score": float(np.sin(1e3 * (model.classifier.output.bias[...][0] + model.norm.mean[...][0])))
            },
            evaluate_every=10,
            goal=Goal("score", patience=1000, keep=3),
            run=run,
            checkpoint_every=EVERY,
            log_every=10,
            accumulate=2,
            average_decay=0.99,
        )
        save_weights(run.weights, trained.model)


def start(folder, cache, pause=0.0):
    process = PROCESSES.Process(target=train, args=(folder, cache, pause))
    process.start()
    return process


def finish(process, folder):
    process.join(300)
    assert process.exitcode == 0, (folder / "told").read_text()


def last_checkpoint(folder):
    """All leaves of the newest checkpoint as they lie on the disk, and its values but for the seconds and the checksum."""
    checkpoints = Checkpoints(folder / "task" / "default" / "checkpoints")
    (*_, step) = checkpoints.steps()
    stored = checkpoints._manager.restore(step, args=checkpoints._ocp.args.Composite(
        tree=checkpoints._ocp.args.StandardRestore(), values=checkpoints._ocp.args.JsonRestore()
    ))  # fmt: skip
    values = {name: value for name, value in stored["values"].items() if name not in ("times", "crc32")}
    return step, {name: np.asarray(leaf) for name, leaf in stored["tree"].items()}, values


def wait(process, until):
    """Until then, or until the process ends."""
    deadline = time.monotonic() + 120
    while not until() and process.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def test_twenty_kills_change_no_bit(tmp_path):
    """At random moments, during the write of a checkpoint too; at most the steps since the last checkpoint are done twice."""
    left_alone, killed, cache = tmp_path / "left alone", tmp_path / "killed", tmp_path / "cache"
    finish(start(left_alone, cache), left_alone)

    rng = np.random.default_rng(0)
    folder, asked = killed / "task" / "default" / "checkpoints", killed / "asked"

    def size():
        return asked.stat().st_size if asked.exists() else 0

    def whole():
        return max((int(path.name) for path in folder.glob("*") if path.name.isdigit()), default=0)

    def in_write():
        return bool(list(folder.glob("*tmp*")))

    kills, during_write = 0, 0
    while kills < KILLS:
        before, newest = size(), whole()
        process = start(killed, cache, pause=0.02)
        # It begins to compile once it asks for a batch. Half of the sittings end before their first checkpoint is whole, some
        # of them in its write; the others leave one, and half of them are killed in the write of the next.
        wait(process, lambda before=before: size() > before)
        if kills % 4 >= 2:
            wait(process, lambda newest=newest: whole() > newest)
        if kills % 2:
            wait(process, in_write)
            during_write += in_write()
        else:
            time.sleep(float(rng.uniform(0.0, 0.3)))
        if not process.is_alive():
            break  # it has ended before its kill
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
    finish(start(killed, cache), killed)

    skipped = {line["step"]: line["ids"] for line in map(json.loads, _whole_lines(killed / "task/default/skipped.jsonl"))}
    assert skipped == {57: Batches(small.DATA, 12, seed=5).ids(57).tolist()}
    step, leaves, values = last_checkpoint(killed)
    want_step, want_leaves, want_values = last_checkpoint(left_alone)
    assert step == want_step == STEPS
    assert leaves.keys() == want_leaves.keys()
    for name, leaf in leaves.items():
        assert leaf.tobytes() == want_leaves[name].tobytes(), name
    assert values == want_values
    for name in ("weights.safetensors", *(f"best/{path.name}" for path in (left_alone / "task/default/best").iterdir())):
        assert (killed / "task/default" / name).read_bytes() == (left_alone / "task/default" / name).read_bytes(), name

    sittings, last = [], STEPS
    for line in (killed / "asked").read_text().splitlines():
        if int(line) <= last:
            sittings.append([])
        last = int(line)
        sittings[-1].append(last)
    for sitting, after in itertools.pairwise(sittings):
        assert sitting[-1] - after[0] < EVERY, "more steps were done again than since the last checkpoint"
    assert kills == KILLS
    assert during_write >= 3
    assert len({sitting[0] for sitting in sittings} - {0}) >= 5, "hardly a sitting went on from a checkpoint"
    lines = {(line["step"], tuple(line)): line for line in map(json.loads, _whole_lines(killed / "task/default/metrics.jsonl"))}
    want = {
        (line["step"], tuple(line)): line for line in map(json.loads, _whole_lines(left_alone / "task/default/metrics.jsonl"))
    }
    assert lines.keys() == want.keys()
    for key, line in want.items():
        timed = ("seconds", "steps_per_second")
        assert {name: v for name, v in lines[key].items() if name not in timed} == {
            n: v for n, v in line.items() if n not in timed
        }


def _whole_lines(path):
    return [line for line in path.read_text().splitlines() if line.endswith("}")]
