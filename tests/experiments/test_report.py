"""The table of results: from cards only, of real data only."""

import json
import statistics

import pytest

from experiments import report

PUBLISHED = [{"metric": "accuracy", "value": 0.989, "how": "LSTM", "source": "a paper"}]


def result(seed=0, accuracy=0.99, data="real", **more):
    return {
        **{"experiment": "pixels", "dataset": "mnist", "data": data, "split": "test, all 10000", "seed": seed, "steps": 10},
        **{"metrics": {"accuracy": accuracy, "loss": 0.05}, "published": PUBLISHED},
        **{
            "examples": 80,
            "seconds": 12.3,
            "test_reads": 1,
            "device": "cpu",
            "versions": {},
            "command": "python -m experiments.pixels",
        },
        **more,
    }


def card(folder, name, **values):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result(**values)))


def cells_of(table, metric):
    """The cells of each row of a metric, of all tasks."""
    rows = [[cell.strip() for cell in line.strip()[1:-1].split("|")] for line in table.splitlines() if line.startswith("|")]
    header = rows[0]
    return [dict(zip(header, row, strict=True)) for row in rows if row[3] == metric]


def test_mean_and_deviation_over_seeds(tmp_path):
    values = [0.991, 0.9935, 0.9897]
    for seed, value in enumerate(values):
        card(tmp_path / "results", f"pixels-mnist-rows-lstm-seed{seed}", seed=seed, accuracy=value, seconds=10.0 * (seed + 1))
    card(tmp_path / "results", "pixels-mnist-permuted-gru-seed0", accuracy=0.95, published=[])
    table = report.table(tmp_path / "results")
    one, three = cells_of(table, "accuracy")
    assert (one["what"], one["ours"], one["published"], one["seeds"]) == ("permuted-gru", "0.9500", "", "0")
    assert three["what"] == "rows-lstm"
    assert three["ours"] == f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f} (n=3)"
    assert (three["published"], three["seeds"], three["training, s"]) == ("0.989 (LSTM; a paper)", "0, 1, 2", "20")
    assert three["command"] == "`python -m experiments.pixels`"
    assert len(cells_of(table, "loss")) == 2


def test_a_metric_that_not_all_cards_have_is_told_of_those_that_have_it(tmp_path):
    for seed, metrics in enumerate(({"loss": 1.0, "old": 3.0}, {"loss": 2.0, "new": 4.0}, {"loss": 3.0, "new": 5.0})):
        card(tmp_path, f"pixels-mnist-rows-seed{seed}", seed=seed, metrics=metrics)
    ours = {name: cells_of(report.table(tmp_path), name)[0]["ours"] for name in ("loss", "old", "new")}
    assert ours == {"loss": "2.0000 ± 1.0000 (n=3)", "old": "3.0000 (seeds 0)", "new": "4.5000 ± 0.7071 (n=2) (seeds 1, 2)"}


def test_a_metric_that_was_measured_elsewhere_says_where(tmp_path):
    details = {"measured_on": {"lines_per_second": "cpu, 9 cores"}}
    card(tmp_path, "pixels-mnist-rows-seed0", metrics={"loss": 1.0, "lines_per_second": 174.0}, details=details)
    table = report.table(tmp_path)
    assert cells_of(table, "lines_per_second")[0]["ours"] == "174.0000 on cpu, 9 cores"
    assert cells_of(table, "loss")[0]["ours"] == "1.0000"


def test_figures_below_a_thousandth_keep_three_digits(tmp_path):
    for seed, value in ((0, 0.00016893), (1, 0.00018893)):
        card(tmp_path / "results", f"adding-a-b-seed{seed}", seed=seed, metrics={"loss": value, "gap": 0.0})
    table = report.table(tmp_path / "results")
    assert cells_of(table, "loss")[0]["ours"] == "1.79e-04 ± 1.41e-05 (n=2)"
    assert cells_of(table, "gap")[0]["ours"] == "0.0000 ± 0.0000 (n=2)"


def test_baselines_of_forecasts_stand_beside_each_metric_and_those_that_win_are_bold(tmp_path):
    baselines = {
        "validation": {"naive": {"mse": 0.4}, "linear": {"mse": 0.1}},
        "test": {"naive": {"mse": 0.5, "mae": 0.2}, "seasonal naive": {"mse": 0.35}, "linear": {"mse": 0.25}},
    }
    for seed, mse in enumerate((0.2, 0.4)):
        metrics = {"mse_validation": 0.3, "mse": mse, "coverage": 0.8}
        card(tmp_path, f"pixels-mnist-rows-seed{seed}", seed=seed, metrics=metrics, details={"baselines": baselines})
    card(tmp_path, "pixels-mnist-old-seed0", metrics={"mse": 0.2})
    table = report.table(tmp_path)
    (validation,), (old, test) = cells_of(table, "mse_validation"), cells_of(table, "mse")
    assert validation["baselines"] == "naive 0.4000; linear **0.1000**"
    assert test["baselines"] == "naive 0.5000; seasonal naive 0.3500; linear **0.2500**"
    assert old["baselines"] == cells_of(table, "coverage")[0]["baselines"] == ""


def forecast(folder, name, horizon, mse, seed=0, look_back=48, **more):
    """The card of a forecaster; least squares have 9 / horizon, and 12 / horizon is published."""
    details = {"baselines": {"test": {"linear": {"mse": 9 / horizon}}}}
    config = {"horizon": horizon, "look_back": look_back, "targets": []}
    published = [{"metric": "mse", "value": 12 / horizon, "how": "DeepAR", "source": "a paper"}]
    kind = {"experiment": "forecasting", "config": config, "details": details, "metrics": {"mse": mse}, "published": published}
    card(folder, f"forecasting-mnist-{name}-seed{seed}", seed=seed, **(kind | more))


def side_by_side(folder, look_back=48):
    _, _, told = report.table(folder).partition(f"mnist, all series, from {look_back} steps: mse by steps ahead\n\n")
    return told.split("\n\n")[0].splitlines()


def test_forecasts_stand_side_by_side_by_how_far_ahead_they_are(tmp_path):
    forecast(tmp_path, "all-24-gru", 24, 0.25)
    forecast(tmp_path, "all-96-gru", 96, 0.5)
    forecast(tmp_path, "all-96-gru", 96, 0.75, seed=1)
    forecast(tmp_path, "all-24-lstm-24-wide", 24, 0.2504)  # as much as the least to the places that are shown
    forecast(tmp_path, "all-24-far", 24, 0.125, look_back=336)  # with one horizon, not a table
    forecast(tmp_path, "all-12-old", 12, 0.125, config=None)
    forecast(tmp_path, "all-24-bare", 24, 0.5, details={}, published=[])
    assert side_by_side(tmp_path) == [
        "|  | from | 24 | 96 |",
        "| --- | --- | --- | --- |",
        "| bare | ours | 0.500 |  |",
        "| gru | ours | **0.250** | 0.625 ± 0.177 (n=2) |",
        "| lstm-24-wide | ours | **0.250** |  |",
        "| linear | baseline | 0.375 | **0.094** |",
        "| DeepAR | a paper | 0.500 | 0.125 |",
    ]
    assert side_by_side(tmp_path, 336) == []


def test_a_horizon_as_long_as_the_look_back_is_there_too(tmp_path):
    for horizon in (6, 12, 24):
        forecast(tmp_path, f"24-{horizon}-gru", horizon, 1.25, look_back=24)
    assert side_by_side(tmp_path, 24)[0::2] == [
        "|  | from | 6 | 12 | 24 |",
        "| gru | ours | **1.250** | 1.250 | 1.250 |",
        "| DeepAR | a paper | 2.000 | 1.000 | 0.500 |",
    ]


def test_two_rows_of_one_name_are_an_error(tmp_path):
    for name in ("gru-24", "24-gru"):
        forecast(tmp_path, f"all-{name}", 24, 0.5)
    forecast(tmp_path, "all-gru", 96, 0.5)
    with pytest.raises(ValueError, match="forecasting-mnist-all-gru-24: expected one row of gru at 24 steps, got another"):
        report.table(tmp_path)


def test_networks_that_classify_stand_side_by_side_the_best_first(tmp_path):
    kind = {"experiment": "text_classification", "parameters": 1234}
    for name, accuracy, length, steps in (
        ("a", 0.5, 1014, 10),
        ("b", 0.75, 4096, 10),
        ("b", 0.75, 4096, 30),
        ("c", 5e-4, 9, 10),
    ):
        config = {"max_length": length, "symbols": "bytes"}
        more = {"accuracy": accuracy, "config": config, "steps": steps, "seed": steps} | kind
        card(tmp_path, f"text_classification-mnist-{name}-seed{steps}", **more)
    card(tmp_path, "text_classification-mnist-old-seed0", experiment="text_classification")
    lines = report.table(tmp_path).splitlines()
    begin = lines.index("| data | network | read of a text | parameters | steps | training, s | test accuracy |")
    assert lines[begin + 2 : begin + 6] == [
        "| mnist | b | last 4,096 bytes | 1,234 | 10 to 30 | 12 | 0.7500 ± 0.0000 (n=2) |",
        "| mnist | a | last 1,014 bytes | 1,234 | 10 | 12 | 0.5000 |",
        "| mnist | c | last 9 bytes | 1,234 | 10 | 12 | 5.00e-04 |",
        "",
    ]


def test_parameters_and_what_is_read_of_a_text(tmp_path):
    kinds = {
        "a": {"parameters": 1234, "config": {"max_length": 2048, "symbols": "bytes"}},
        "b": {"config": {"labels": 100, "last_bytes": 512}},
        "c": {"config": {"labels": 0, "last_bytes": 1024, "symbols": "words"}},  # a language model; its flag says nothing
        "d": {},
    }
    for name, more in kinds.items():
        card(tmp_path, f"pixels-mnist-{name}-seed0", **more)
    rows = cells_of(report.table(tmp_path), "accuracy")
    assert [(row["parameters"], row["read of a text"]) for row in rows] == [
        ("1,234", "last 2,048 bytes"),
        ("", "last 512 bytes"),
        ("", ""),
        ("", ""),
    ]


def test_generated_data_is_refused(tmp_path):
    card(tmp_path / "results", "pixels-mnist-rows-seed0", data="generated")
    with pytest.raises(ValueError, match=r"pixels-mnist-rows-seed0.json: expected real data, .*, got generated data"):
        report.table(tmp_path / "results")
    run = tmp_path / "run"
    run.mkdir()
    (run / "result.json").write_text(json.dumps(result(data="generated")))
    with pytest.raises(ValueError, match=r"result.json: expected real data, .*, got generated data"):
        report.keep(run, "rows", tmp_path / "cards")
    assert not (tmp_path / "cards").exists()


@pytest.mark.parametrize("more", [{"test_reads": 0}, {"split": "validation, all 10"}])
def test_figures_of_a_validation_split_are_refused(tmp_path, more):
    """Also where the test has been read since, with other flags of the search for instance."""
    card(tmp_path, "pixels-mnist-rows-seed0", **more)
    with pytest.raises(ValueError, match="expected figures of a test split"):
        report.table(tmp_path)


def test_drawn_data_is_kept(tmp_path):
    card(tmp_path / "results", "pixels-mnist-rows-seed0", data="drawn")
    assert len(cells_of(report.table(tmp_path / "results"), "accuracy")) == 1


def test_a_card_is_a_copy_under_its_name(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    text = json.dumps(result(seed=3), indent=2) + "\n"
    (run / "result.json").write_text(text)
    results = tmp_path / "results"
    report.main(report.Config(keep=run, what="rows-lstm", results=results))
    assert (results / "pixels-mnist-rows-lstm-seed3.json").read_text() == text
    (row,) = cells_of((tmp_path / "RESULTS.md").read_text(), "accuracy")
    assert (row["data"], row["what"], row["seeds"]) == ("mnist", "rows-lstm", "3")


def test_a_card_is_not_overwritten_by_another_run(tmp_path):
    for number, seconds in enumerate((1.0, 1.0, 2.0)):
        run = tmp_path / f"run{number}"
        run.mkdir()
        (run / "result.json").write_text(json.dumps(result(seconds=seconds)))
    report.keep(tmp_path / "run0", "rows", tmp_path / "results")
    report.keep(tmp_path / "run1", "rows", tmp_path / "results")  # the same once more
    with pytest.raises(FileExistsError, match=r"pixels-mnist-rows-seed0.json: is the card of another run"):
        report.keep(tmp_path / "run2", "rows", tmp_path / "results")
    assert json.loads((tmp_path / "results" / "pixels-mnist-rows-seed0.json").read_text())["seconds"] == 1


@pytest.mark.parametrize(("field", "other"), [("split", "test, half"), ("steps", 11), ("device", "gpu")])
def test_cards_of_one_row_differ_in_the_seed_only(tmp_path, field, other):
    card(tmp_path / "results", "pixels-mnist-rows-seed0", seed=0)
    card(tmp_path / "results", "pixels-mnist-rows-seed1", **{"seed": 1, field: other})
    with pytest.raises(ValueError, match=f"pixels-mnist-rows: expected one {field} in all its cards"):
        report.table(tmp_path / "results")


def flags(seed, **more):
    return {"steps": 6000, "seed": seed, "name": f"seed{seed}", "patience": 3, "goal": None, "freeze": [], **more}


def test_seeds_that_stopped_at_different_steps_are_one_row(tmp_path):
    for seed, (steps, seconds) in enumerate([(4000, 8.0), (6000, 12.0), (5000, 10.0)]):
        values = {"seed": seed, "steps": steps, "seconds": seconds, "config": flags(seed), "fingerprint": "a1"}
        card(tmp_path / "results", f"pixels-mnist-rows-seed{seed}", **values)
    card(tmp_path / "results", "pixels-mnist-gru-seed0", steps=300, config=flags(0, steps=300))
    one, three = cells_of(report.table(tmp_path / "results"), "accuracy")
    assert (one["steps"], three["steps"], three["seeds"], three["training, s"]) == ("300", "4000 to 6000", "0, 1, 2", "10")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"config": flags(1, patience=4)}, "expected one --patience in all its cards, got 3, 4"),
        ({"config": flags(1, freeze=["encoder"])}, r"expected one --freeze in all its cards, got \['encoder'\], \[\]"),
        ({"config": flags(1), "fingerprint": "b2"}, "expected one fingerprint in all its cards, got a1, b2"),
        ({"config": flags(1), "device": "gpu"}, "expected one device in all its cards, got cpu, gpu"),
        ({"steps": 11}, "expected one steps in all its cards, got 10, 11"),  # of flags that nobody knows
    ],
)
def test_seeds_of_other_flags_data_or_hardware_are_not_one_row(tmp_path, other, message):
    card(tmp_path / "results", "pixels-mnist-rows-seed0", config=flags(0), fingerprint="a1")
    card(tmp_path / "results", "pixels-mnist-rows-seed1", **{"seed": 1, "steps": 10, **other})
    with pytest.raises(ValueError, match=f"pixels-mnist-rows: {message}"):
        report.table(tmp_path / "results")


def test_bad_input_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"result.json: expected the result of a finished run, found none"):
        report.keep(tmp_path, "rows", tmp_path / "results")
    with pytest.raises(ValueError, match="what: expected a name"):
        report.main(report.Config(keep=tmp_path, results=tmp_path / "results"))


def test_each_task_has_a_table_and_an_empty_folder_none(tmp_path):
    assert report.HEADER not in report.table(tmp_path)
    for name in ("pixels-mnist-rows", "pixels-mnist-pixels"):
        card(tmp_path, f"{name}-seed0")
    card(tmp_path, "other-mnist-rows-seed0", experiment="other", metrics={"loss_validation": 2.0, "loss": 1.0})
    contents, *tasks = report.table(tmp_path).split("\n## ")
    assert [(task.splitlines()[0], task.count("mnist")) for task in tasks] == [("other", 1), ("pixels", 2)]
    assert contents.endswith("\n- [other](#other)\n- [pixels](#pixels)\n")
    assert tasks[0].index("| loss |") < tasks[0].index("| loss_validation |")  # the test first


def test_a_command_is_one_that_a_shell_takes(tmp_path):
    card(tmp_path, "pixels-mnist-rows-seed0", command="python -m x --optimizer adamw(weight_decay=1e-4) --name 'a b'")
    (row,) = cells_of(report.table(tmp_path), "accuracy")
    assert row["command"] == "`python -m x --optimizer 'adamw(weight_decay=1e-4)' --name 'a b'`"


def test_the_table_in_the_repository_is_that_of_its_cards():
    assert report.table(report.FOLDER / "results") == (report.FOLDER / "RESULTS.md").read_text()


def test_what_a_card_of_a_row_does_not_tell_is_told(tmp_path):
    kinds = {
        "a": [{"config": flags(0, early="exact")}, {"config": flags(1)}],
        "b": [{"details": {"signatures": {"loss": f"version {seed}", "accuracy": "one"}}} for seed in range(2)],
        "c": [{"config": flags(0)}, {}],
        "d": [{"config": flags(0)}, {"config": flags(1)}],
    }
    for name, cards in kinds.items():
        for seed, more in enumerate(cards):
            card(tmp_path, f"pixels-mnist-{name}-seed{seed}", seed=seed, **more)
    assert [row["what"] for row in cells_of(report.table(tmp_path), "accuracy")] == [
        "a; seed 1 tells no --early",
        "b; signatures differ of loss",
        "c; seed 1 tells no flags",
        "d",
    ]


def test_what_lower_cased_output_is_beside_cased_references_is_not_told(tmp_path):
    signatures = {
        "bleu_cased": "case:mixed|tok:13a",
        "bleu_lowercased": "case:lc|tok:13a",
        "bleu_lowercased_tokens": "case:mixed|tok:none|before: normalize, lowercase, tokenize de",
        "exact_match": "exact match of whole texts",
    }
    metrics = dict.fromkeys([*signatures, *(f"{name}_validation" for name in signatures), "loss"], 0.5)
    for seed, (lowercase, match) in enumerate(((True, ""), (True, ", lower-cased"), (False, ""))):
        details = {"signatures": signatures | {"exact_match": f"exact match of whole texts{match}"}}
        how = {"config": {"lowercase": lowercase}, "details": details}
        card(tmp_path, f"pixels-mnist-{'abc'[seed]}-seed0", metrics=metrics, **how)
    table = report.table(tmp_path)
    told = {name: len(cells_of(table, name)) for name in metrics}
    assert told == {
        name: 1 if name.startswith("bleu_cased") else 2 if name.startswith("exact_match") else 3 for name in metrics
    }
