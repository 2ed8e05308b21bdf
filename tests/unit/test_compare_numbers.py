"""Means, standard errors, intervals and the best of a comparison, against numpy and scipy."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.files import read_json, write_json
from pipeline.report.compare.comparison import compare
from pipeline.report.compare.estimates import Estimate, difference, mean_of, of_images, of_seeds
from pipeline.report.compare.find import find_runs
from pipeline.report.compare.groups import group_runs
from pipeline.report.compare.step_time import shares, throughput
from pipeline.report.compare.words import summary
from tests.compare_support import fabricate_member, fabricate_sweep

scores = st.lists(st.floats(0.01, 0.99), min_size=2, max_size=6)


@given(scores)
def test_a_group_is_its_mean_and_the_standard_error_over_its_seeds(values):
    ours = of_seeds(values)
    assert ours.mean == pytest.approx(np.mean(values))
    assert ours.standard_error == pytest.approx(scipy.stats.sem(values), abs=1e-12)


@settings(deadline=None)
@given(scores, scores)
def test_differences_have_welchs_interval(ours, theirs):
    assume(np.var(ours) + np.var(theirs) > 1e-8)  # scipy loses its precision below
    gap = difference(of_seeds(ours), of_seeds(theirs))
    expected = scipy.stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    assert (gap.low, gap.high) == pytest.approx((expected.low, expected.high), rel=1e-6, abs=1e-9)
    assert gap.value == pytest.approx(np.mean(ours) - np.mean(theirs))
    assert gap.beyond_noise == (expected.low > 0 or expected.high < 0)


def test_a_single_run_has_the_noise_of_its_images():
    drawn = np.random.default_rng(0).binomial(500, 0.3, 200_000) / 500
    assert of_images(0.3, 500).standard_error == pytest.approx(drawn.std(), rel=0.02)
    assert of_images(1.0, 50).standard_error > 0.01, "no score is certain"
    assert of_images(0.3, None).standard_error is None


def test_the_interval_of_single_runs_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    pairs = (rng.binomial(300, [0.6, 0.55], (1000, 2)) / 300).tolist()
    gaps = [difference(of_images(a, 300), of_images(b, 300)) for a, b in pairs]
    assert 0.93 <= np.mean([gap.low <= 0.05 <= gap.high for gap in gaps]) <= 0.97


def test_the_mean_over_tasks_adds_their_variances():
    tasks = [of_images(0.5, 100), of_images(0.2, 400), of_images(0.9, 1000)]
    assert mean_of(tasks).mean == pytest.approx(np.mean([0.5, 0.2, 0.9]))
    assert mean_of(tasks).variance == pytest.approx(sum(t.variance for t in tasks) / 9)
    assert mean_of([*tasks, of_images(0.5, None)]).variance is None


def test_differences_without_noise_to_compare_with_have_no_interval():
    assert difference(of_images(0.5, None), of_images(0.4, 100)).low is None
    same = difference(of_seeds([0.5, 0.5]), of_seeds([0.4, 0.4]))
    assert (same.low, same.high) == (same.value, same.value)


def test_one_run_is_no_group_of_seeds():
    with pytest.raises(ValueError, match="one run"):
        of_seeds([0.5])


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    root = tmp_path_factory.mktemp("sweep") / "sweep"
    return fabricate_sweep(root, {"neuclip": 0.55, "openclip": 0.5, "siglip": 0.2}, seeds=3, tasks=8)


def written_scores(sweep, objective, task):
    folders = sorted((sweep / "members").glob(f"objective={objective},*"))
    return [read_json(folder / "results" / f"{task}.json")["score"] for folder in folders]


def test_a_table_holds_what_the_result_files_say(sweep):
    comparison = compare(find_runs([sweep]))
    assert [group.label for group in comparison.groups] == ["neuclip", "openclip", "siglip"]
    assert comparison.baseline == 1, "openclip, unless another is asked for"
    lines = {line.title: line for line in comparison.scores.tasks}
    for i in range(8):
        if i == 1:
            continue  # its title is hostile
        line = lines[f"Task number {i}"]
        expected = [written_scores(sweep, name, f"task{i}") for name in ("neuclip", "openclip", "siglip")]
        assert [cell.mean for cell in line.cells] == pytest.approx([np.mean(row) for row in expected])
        assert [cell.standard_error for cell in line.cells] == pytest.approx([scipy.stats.sem(r) for r in expected])
        assert line.best == int(np.argmax([np.mean(row) for row in expected]))
    overall = comparison.scores.overall
    members = [sorted((sweep / "members").glob(f"objective={name},*")) for name in ("neuclip", "openclip", "siglip")]
    means = [[read_json(folder / "results/aggregate.json")["average"] for folder in row] for row in members]
    assert overall.title == "Average of 8 tasks"
    assert [cell.mean for cell in overall.cells] == pytest.approx([np.mean(row) for row in means])
    assert [cell.standard_error for cell in overall.cells] == pytest.approx([scipy.stats.sem(row) for row in means])
    gap = overall.differences(1)[0]
    interval = scipy.stats.ttest_ind(means[0], means[1], equal_var=False).confidence_interval(0.95)
    assert (gap.low, gap.high) == pytest.approx((interval.low, interval.high))
    assert overall.differences(1)[1] is None
    assert comparison.notes == []


def test_the_words_say_what_the_numbers_say(sweep):
    words = " ".join(summary(compare(find_runs([sweep]))))
    assert words.startswith("neuclip is ahead: average of 8 tasks ")
    assert "That is more than the noise between seeds (95 % interval +" in words
    assert "from 3 and 3 runs" in words
    assert "It is ahead in 8 of 8 tasks" in words


def test_single_runs_are_judged_by_their_images_and_that_is_said(tmp_path):
    for objective, level in (("neuclip", 0.50), ("openclip", 0.49)):
        fabricate_member(tmp_path / objective, objective, level=level)
    comparison = compare(find_runs([tmp_path]))
    assert all(cell.runs == 1 for cell in comparison.scores.overall.cells)
    words = " ".join(summary(comparison))
    assert "That is not more than the noise that can be seen (95 % interval −" in words
    assert "of a single run only the noise of the tasks' images" in words
    assert "Without a second seed of each, the noise of training is not known." in words
    assert words.endswith(" tasks; by itself no task tells the two apart.")


def test_equal_means_have_no_best():
    from pipeline.report.compare.scores import Line

    def line(*means):
        return Line("t", "", "acc1", 0.1, tuple(m if m is None else Estimate(m, 1) for m in means), {})

    assert line(0.5, 0.5).best is None
    assert line(None, 0.5).best is None
    assert line(0.4, None, 0.5).best == 2


def test_a_run_without_an_average_makes_it_a_mean_of_what_all_have(tmp_path):
    for seed in (0, 1):
        fabricate_member(tmp_path / f"a{seed}", "neuclip", seed)
    partial = tmp_path / "a1" / "results"
    (partial / "task2.json").unlink()
    whole = read_json(partial / "aggregate.json")
    del whole["scores"]["task2"], whole["average"]
    write_json(partial / "aggregate.json", {**whole, "partial_mean": 0.5, "tasks": 2, "of": 3})
    comparison = compare(find_runs([tmp_path]))
    assert comparison.scores.overall.title == "Mean of the 2 tasks that all have"
    expected = [np.mean([read_json(tmp_path / f"a{s}/results/task{i}.json")["score"] for i in (0, 1)]) for s in (0, 1)]
    assert comparison.scores.overall.cells[0].mean == pytest.approx(np.mean(expected))
    assert comparison.runs[1].missing == ["no average, 2 of 3 tasks"]


def test_results_on_other_data_are_said_to_be_unlike(tmp_path):
    for seed in (0, 1):
        fabricate_member(tmp_path / f"a{seed}", "neuclip", seed)
    path = tmp_path / "a1" / "results" / "task0.json"
    write_json(path, {**read_json(path), "data_fingerprint": "other"})
    assert compare(find_runs([tmp_path])).scores.notes == [
        "Not like for like: the evaluation's data differs between runs in task0."
    ]


def test_settings_that_do_not_touch_the_weights_do_not_part_a_group(tmp_path):
    fabricate_member(tmp_path / "a", seed=0, checkpoint={"keep": 2})
    fabricate_member(tmp_path / "b", seed=1, checkpoint={"keep": 5})
    fabricate_member(tmp_path / "c", seed=1, optimizer={"lr": 0.002})
    runs = find_runs([tmp_path])
    assert [[run.name for run in group.runs] for group in group_runs(runs)] == [["a", "b"], ["c"]]
    by_seed = compare(runs, group_by="seed", baseline="b")
    assert [[run.name for run in group.runs] for group in by_seed.groups] == [["a"], ["b", "c"]]
    assert by_seed.baseline == 1
    assert "Runs of seed=1 differ in more than the seed: optimizer.lr." in by_seed.notes
    assert "Runs of seed=1 share a seed: they tell less of the noise than as many seeds would." in by_seed.notes
    assert {setting.key for setting in by_seed.settings} == {"checkpoint.keep", "optimizer.lr", "seed"}


def test_options_of_an_objective_part_its_own_runs_only(tmp_path):
    for name, objective, options in (
        ("a", "neuclip", {"rho": 5.0}), ("b", "neuclip", {"rho": 6.0}), ("c", "openclip", {}), ("d", "openclip", {}),
    ):  # fmt: skip
        fabricate_member(tmp_path / name, objective, seed=ord(name), objectives={"neuclip": options} if options else {})
    runs = find_runs([tmp_path])
    assert [group.label for group in group_runs(runs)] == ["neuclip, rho=5", "neuclip, rho=6", "openclip"]
    assert [group.label for group in group_runs([runs[0], *runs[2:]])] == ["neuclip", "openclip"]


def test_names_that_are_not_there_are_refused(sweep):
    runs = find_runs([sweep])
    with pytest.raises(UserError, match="no run has that setting"):
        compare(runs, group_by="train.stepz")
    with pytest.raises(UserError, match="there are the groups 'neuclip', 'openclip'"):
        compare(runs, baseline="clip")


def test_where_the_time_goes_adds_up(sweep):
    neuclip, *_, siglip = find_runs([sweep])
    seconds = 200 * 64 / 400
    assert shares(neuclip) == pytest.approx([0.05, 0.1, 2 * 0.2 / seconds, 0.85 - 0.4 / seconds])
    assert shares(siglip)[1] is None
    assert sum(share or 0 for share in shares(siglip)) == pytest.approx(1)
    assert throughput(neuclip) == (400, 8, 50)
