"""What an import costs and what it brings along, and that no arrow in the package runs back up."""

import ast
import itertools
import subprocess
import sys
import time
from pathlib import Path

import pytest

from s2s_jax import models

ROOT = Path(__file__).parents[1]
NUMERIC = ("types", "masks", "cells", "recurrence", "attention", "ctc", "losses", "metrics", "decoding", "sharding", "cache")
FLAX = ("layers", "models", "training")
# Imported when first used, and not before.
LATE = (
    *("orbax", "matplotlib", "tensorflow_datasets", "grain", "rich", "tyro", "safetensors", "tensorboardX"),
    *("tensorflow", "torch", "keras", "sacrebleu", "sacremoses", "sentencepiece", "array_record", "jiwer", "PIL"),
)


def modules(folder):
    """Dotted name of every module in a package of this repository, and its source file."""
    files = sorted((ROOT / folder).rglob("*.py"))
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def top_level(tree):
    """The statements that run on import: function bodies, and what only type checkers read, left out."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            yield from top_level(node)


def imports(name, file, nodes):
    """Names of the modules that the nodes import, "from x import y" as x.y where that is a module, else as x."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            for alias in node.names:
                dotted = f"{node.module}.{alias.name}"
                found.add(dotted if dotted in OURS else node.module)
    return found


OURS = modules("s2s_jax") | modules("experiments")
TREES = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in OURS.items()}
WHEN_IMPORTED = {name: imports(name, OURS[name], top_level(tree)) for name, tree in TREES.items()}
EVER = {name: imports(name, OURS[name], ast.walk(tree)) for name, tree in TREES.items()}


def part(name):
    """The part of the house that a module of s2s_jax is in: "layers" of s2s_jax.layers.recurrent."""
    return name.split(".")[1] if name.startswith("s2s_jax.") else ""


def test_there_are_no_circles():
    # A name imported from a package's own __init__ is what that __init__ imports.
    above = {name: {other for other in EVER[name] if other in OURS and other != name} for name in OURS}
    done, in_progress = set(), []

    def visit(name):
        assert name not in in_progress, f"a circle: {' -> '.join([*in_progress, name])}"
        if name not in done:
            in_progress.append(name)
            for other in sorted(above[name]):
                visit(other)
            done.add(in_progress.pop())

    for name in above:
        visit(name)


@pytest.mark.parametrize("name", [name for name in OURS if part(name) in NUMERIC])
def test_numeric_modules_import_arrays_only(name):
    allowed = {"jax", "numpy", "jaxtyping"} | ({"optax"} if part(name) == "losses" else set()) | set(sys.stdlib_module_names)
    for other in EVER[name]:
        if other.split(".")[0] == "s2s_jax":
            assert part(other) in NUMERIC, f"{name} imports {other}"
        else:
            assert other.split(".")[0] in allowed, f"{name} imports {other}"


@pytest.mark.parametrize("name", [name for name in OURS if name.startswith("s2s_jax")])
def test_only_upper_floors_import_flax_and_none_imports_experiments(name):
    for other in EVER[name]:
        assert other.split(".")[0] != "experiments", f"{name} imports {other}"
        if part(name) not in FLAX:
            assert other.split(".")[0] != "flax", f"{name} imports {other}"
            assert part(other) not in FLAX, f"{name} imports {other}"
        if part(name) == "layers":
            assert part(other) not in ("models", "training"), f"{name} imports {other}"


@pytest.mark.parametrize("name", modules("experiments"))
def test_experiments_never_import_each_other(name):
    own = ".".join(name.split(".")[:2])  # an experiment may be a package of several files
    assert not [other for other in EVER[name] if other.startswith("experiments") and not f"{other}.".startswith(f"{own}.")]


# A peer's model on PyTorch, which a class of it must inherit from: imported itself when it is first used.
OF_PEERS = {"experiments.benchmark.torch_decoding"}


@pytest.mark.parametrize("name", OURS)
def test_heavy_packages_are_imported_when_first_used(name):
    # What stands under `if __name__ == "__main__"` does not run on import.
    main_block = [node for node in TREES[name].body if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)]
    under = imports(name, OURS[name], itertools.chain.from_iterable(ast.walk(node) for node in main_block))
    late = LATE if name not in OF_PEERS else set(LATE) - {"torch"}
    heavy = {other for other in WHEN_IMPORTED[name] - under if other.split(".")[0] in late or other in OF_PEERS}
    assert not heavy, f"{name} imports {heavy}"


def run(code):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.split()


NOT_ALONG = {"experiments.__main__", *OF_PEERS}


@pytest.mark.parametrize(
    "wanted",
    [
        "s2s_jax",
        ", ".join(name for name in OURS if name.startswith("s2s_jax")),
        ", ".join(name for name in OURS if name.startswith("experiments.") and name not in NOT_ALONG),
    ],
    ids=["the package", "all modules", "experiments"],
)
def test_an_import_brings_nothing_heavy_along(wanted):
    known = "import sys, jax, flax, optax, flax.nnx; before = set(sys.modules)"
    loaded = run(f"{known}; import {wanted}; print(*(set(sys.modules) - before))")
    assert not {name.split(".")[0] for name in loaded} & set(LATE)


def test_the_package_alone_needs_no_flax():
    assert "flax" not in run("import sys, s2s_jax; print(*sys.modules)")


def test_every_model_is_exported_by_models():
    """Those with an underscore and the layer that `Seq2Seq` ends with are parts of others."""
    trees = [tree for name, tree in TREES.items() if name.startswith("s2s_jax.models.")]
    classes = [node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)]
    flax = {node.name for node in classes if {ast.unparse(base) for base in node.bases} & {"nnx.Module", "_Decoder"}}
    public = {name for name in flax if not name.startswith("_")}
    assert {"Seq2Seq", "SegmentForecaster", "CharacterCNN"} <= public
    assert public - set(vars(models)) == {"TiedOutput"}


@pytest.mark.alone
def test_import_takes_at_most_a_fifth_more_than_that_of_its_dependencies():
    best = {"jax, flax, optax": float("inf"), "s2s_jax": float("inf")}
    for attempt in range(6):  # other work on the machine only ever adds
        for wanted in best:
            start = time.perf_counter()
            run(f"import {wanted}")
            best[wanted] = min(best[wanted], time.perf_counter() - start)
        if attempt and best["s2s_jax"] <= 1.2 * best["jax, flax, optax"]:
            break
    assert best["s2s_jax"] <= 1.2 * best["jax, flax, optax"], f"seconds: {best}"
