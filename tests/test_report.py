"""Pages: well-formed, self-contained, escaped, and with the numbers that were logged."""

import json
import math
import platform
import re
from html.parser import HTMLParser

import pytest

from fiducial.doctor import Finding
from fiducial.evals import page, plots
from fiducial.evals.demo_report import where_it_misleads, write_demo_report
from fiducial.evals.history import change_of, series
from fiducial.evals.metrics import METRICS, describe, is_healthy
from fiducial.evals.report import key_changes, verdict_sentence, write_report
from fiducial.evals.stats import Interval
from fiducial.store import RunFolder

HOSTILE = '</pre><script>alert("pwned")</script><img src=x onerror=alert(1)> & \ud83d "quotes"'
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Collects tags, text, attributes; fails on a tag that is closed out of order."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.attributes, self.ids, self.said = [], [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        self.said.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.said))


def check(html):
    """What every page must be: well-formed, nothing fetched, nothing run."""
    parsed = Page(html)
    assert not {"script", "img", "link", "iframe", "object", "embed", "form"} & set(parsed.tags)
    assert "http://" not in html and "https://" not in html and "@import" not in html
    for name, value in parsed.attributes:
        assert not name.startswith("on"), name
        if name in ("src", "href", "xlink:href"):
            assert value.startswith("#"), value
    assert "url(" not in re.sub(r"url\(#\w+\)", "", html)
    return parsed


def eval_row(pass1, greedy):
    return {
        "eval/pass@1": pass1,
        "eval/pass@1/low": pass1 - 0.03,
        "eval/pass@1/high": pass1 + 0.03,
        "eval/pass@8": 0.9,
        "eval/greedy": greedy,
        "eval/verdict/correct": pass1,
        "eval/verdict/wrong": 1 - pass1,
    }


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run <b>").create(
        {"method": "grpo", "task": HOSTILE.replace("\ud83d", ""), "seed": 3}
    )
    folder.append_metrics({"step": 0, **eval_row(0.346, 0.73)})
    for step in range(1, 41):
        folder.append_metrics(
            {"step": step, "reward": step / 40, "loss": math.nan if step == 7 else 0.1, "entropy": 1 / step}
        )
    folder.append_metrics({"step": 40, **eval_row(0.651, 0.75)})
    for phase, verdict, reward in (("before", "wrong", 0.0), ("after", "correct", 1.0)):
        sample = {"step": 0, "phase": phase, "prompt": "1+1 " + HOSTILE, "completion": phase + HOSTILE, "why": HOSTILE}
        folder.append_sample({**sample, "verdict": verdict, "reward": reward})
    folder.append_sample(
        {"step": 9, "phase": "during", "prompt": [{"role": "user", "content": HOSTILE}], "completion": "x"}
    )
    folder.write_json("data.json", {"rows": 12000, "counted": {"equal sides": 7}, "name": "<i>data</i>"})
    return folder


def test_a_report_is_well_formed_self_contained_and_escapes_what_models_wrote(folder):
    findings = [Finding("error", "entropy fell", "entropy, step 9", HOSTILE)]
    path = write_report(folder, findings)
    assert path == folder.path / "report.html"
    html = path.read_text(encoding="utf-8")
    parsed = check(html)
    assert "onerror" not in dict(parsed.attributes)
    assert "before" + HOSTILE.replace("\ud83d", "?").split(" & ")[0] in parsed.text  # shown as it was written
    assert len(set(parsed.ids)) == len(parsed.ids)
    assert parsed.tags.count("h1") == 1


def test_a_report_shows_the_numbers_that_were_logged(folder):
    html = write_report(folder).read_text(encoding="utf-8")
    text = check(html).text
    assert "pass@1 rose from 34.6 % to 65.1 %; the two 95 % intervals do not overlap" in text
    assert "already solved 73.0 % at temperature 0" in text  # what flatters must be said
    assert "34.6 % → 65.1 %" in text and "31.6 to 37.6 % → 62.1 to 68.1 %" in text
    assert "0.0625 → 0.963" in text  # reward: mean of steps 1..4 and 37..40 of 40
    assert "12,000" in text and "equal sides 7" in text
    assert "correct 34.6 % 65.1 %" in text
    assert METRICS["entropy"].definition in text
    labels = [value for name, value in Page(html).attributes if name == "aria-label"]
    assert "Reward: reward from 0.025 to 1" in labels
    assert f"python {platform.python_version()}" in text


def test_a_report_of_a_run_with_nothing_in_it_says_so(tmp_path):
    folder = RunFolder(tmp_path).create({"method": "sft"})
    text = check(write_report(folder).read_text()).text
    assert "Nothing was measured twice" in text
    with pytest.raises(ValueError, match="is not a run folder"):
        write_report(RunFolder(tmp_path / "absent"))


def test_verdict_sentences_do_not_flatter():
    def rows(name, first, last, low=None):
        ends = {f"{name}/low": 0.2, f"{name}/high": 0.9} if low else {}
        return [{"step": 0, name: first, **ends}, {"step": 1, name: last, **ends}]

    assert verdict_sentence(rows("eval/pass@1", 0.5, 0.4)) == "pass@1 fell from 50.0 % to 40.0 %, which is worse."
    assert "overlap, so chance is not excluded" in verdict_sentence(rows("eval/pass@1", 0.4, 0.5, low=True))
    assert verdict_sentence(rows("loss", 2.0, 2.0)) == "loss stayed at 2."
    assert verdict_sentence(rows("eval/pass@1", 0.5, 0.5, low=True)) == "pass@1 stayed at 50.0 %."
    assert verdict_sentence(rows("loss", 2.0, 1.0)) == "loss fell from 2 to 1."


def test_changes_compare_evaluations_and_average_steps():
    rows = [{"step": s, "reward": float(s)} for s in range(1, 31)] + [
        {"step": 30, "eval/loss": 3.0},
        {"step": 31, "loss": None},
    ]
    change = change_of(rows, "reward")
    assert change is not None and (change.before, change.after) == (2.0, 29.0)  # means of 1 2 3 and of 28 29 30
    once = change_of(rows, "eval/loss")
    assert once is not None and once.before is None and once.after == 3.0
    assert change_of(rows, "loss") is None and change_of(rows, "absent") is None
    steps, values = series(rows, "loss")
    assert steps == [31] and math.isnan(values[0])


def test_a_policy_gradient_run_shows_no_loss_among_its_key_figures():
    rows = [{"step": 1, "loss": 0.1, "reward": 0.5, "eval/pass@2": 0.5, "eval/pass@16": 0.9}]
    assert [change.name for change in key_changes(rows)] == ["eval/pass@16", "reward"]
    assert [change.name for change in key_changes([{"step": 1, "loss": 0.1}])] == ["loss"]


def test_plots_take_their_colours_from_the_page_and_hold_the_curve():
    svg = plots.line_plot([plots.Line("reward", [0, 1, 3], [0.0, 0.5, 1.0], marked=True)], "reward <up>", share=True)
    assert svg.startswith("<svg viewBox=") and svg.endswith("</svg>") and 'aria-label="reward &lt;up&gt;"' in svg
    assert "#0a0a01" not in svg and "http" not in svg and ">0 %<" in svg and ">60 %<" in svg
    curve = next(path for path in re.findall(r"<path[^>]*>", svg) if "var(--series-1)" in path and path.count("L") == 2)
    (x0, y0), (x1, y1), (x3, y3) = [(float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", curve)[:3]]
    assert (
        (x3 - x1) / (x1 - x0) == pytest.approx(2) and (y0 - y1) == pytest.approx(y1 - y3) and y0 > y1
    )  # y points down
    bars = plots.bar_plot(["pass@1"], ["before", "after"], [[0.35], [0.81]], [[(0.3, 0.4)], [None]], "bars")
    assert ">35%<" in bars and ">81%<" in bars and ">pass@1<" in bars


def test_the_moving_average_is_a_centred_mean():
    values = [float(i % 2) for i in range(50)]
    # 8 % of 50 points is a window of 2 on each side: five points hold two or three ones
    smooth = plots.moving_average(values)
    assert smooth[10] == pytest.approx(2 / 5) and smooth[11] == pytest.approx(3 / 5)
    assert {round(value, 6) for value in smooth[2:-2]} == {0.4, 0.6}
    assert plots.moving_average([math.nan] * 30)[0] != plots.moving_average([math.nan] * 30)[0]  # NaN stays NaN


def test_every_metric_has_a_definition_and_patterns_find_theirs():
    for name, metric in METRICS.items():
        assert metric.definition.endswith("."), name
        assert metric.healthy is None or metric.healthy[0] <= metric.healthy[1], name
    assert describe("rewards/chosen") is METRICS["rewards/chosen"]
    assert describe("rewards/length/mean") is METRICS["rewards/<source>/mean"]
    assert describe("eval/pass@16") is METRICS["eval/pass@<k>"] and describe("eval/pass@1") is METRICS["eval/pass@1"]
    assert describe("eval/pass@16/low") is not None and describe("eval/perplexity") is METRICS["perplexity"]
    assert describe("pass") is None and describe("eval/unheard-of") is None
    assert is_healthy("entropy", 99) and not is_healthy("kl", 0.6) and is_healthy("kl", 0.5)


BEFORE = {
    **{"pass@1": 0.346, "greedy": 0.73, "pass@8": 0.93, "maj@8": 0.64, "n": 256, "k": 8, "unjudged": 0.0},
    **{"entropy": 0.10, "distinct_answers": 4.0, "completions/clipped_ratio": 0.03},
    "intervals": {"pass@1": [0.31, 0.38], "greedy": [0.67, 0.78], "pass@8": [0.89, 0.96], "maj@8": [0.58, 0.7]},
    "verdicts": {"correct": 30, "wrong": 60, "unparseable": 10},
}
AFTER = {
    **{"pass@1": 0.651, "greedy": 0.75, "pass@8": 0.88, "maj@8": 0.72, "n": 256, "k": 8, "unjudged": 0.0},
    **{"entropy": 0.033, "distinct_answers": 2.0, "completions/clipped_ratio": 0.0},
    "intervals": {"pass@1": [0.62, 0.69], "greedy": [0.69, 0.8], "pass@8": [0.84, 0.92], "maj@8": [0.66, 0.77]},
    "verdicts": {"correct": 65, "wrong": 35},
}


def test_the_demo_page_sets_before_beside_after(tmp_path):
    summary = {"seconds": 233.0, "stages": [{"name": "imitation", "seconds": 85.0}], "before": BEFORE, "after": AFTER}
    path = write_demo_report(
        tmp_path / "report.html",
        title="Teachers & <pupils>",
        story="A story.",
        summary=summary,
        change={"pass@1": Interval(0.305, 0.27, 0.34), "pass@8": Interval(-0.05, -0.08, -0.02)},
        stages={
            "imitation": [{"step": s, "loss": 1 / s} for s in range(1, 9)],
            "reinforcement": [{"step": s, "reward": s / 9} for s in range(1, 9)],
        },
        samples=[
            {"phase": "before", "prompt": "2+2", "completion": HOSTILE, "verdict": "wrong"},
            {"phase": "after", "prompt": "2+2", "completion": "4", "verdict": "correct"},
        ],
        caveats=["One more thing."],
        config={"seed": 0},
    )
    html = path.read_text(encoding="utf-8")
    text = check(html).text
    assert path == tmp_path / "report.html" and "233 seconds in all · imitation 85 s" in text
    assert "pass@1 34.6 % 31.0 to 38.0 65.1 % 62.0 to 69.0 +30.5 points +27.0 to +34.0" in text
    assert '<span class="down">-5.0 points</span>' in html and '<span class="up">+30.5 points</span>' in html
    assert "greedy 73.0 % 67.0 to 78.0 75.0 % 69.0 to 80.0 +2.0 points" in text
    assert "Curves: imitation" in text and "Curves: reinforcement" in text and "One more thing." in text
    assert "correct 30.0 % 65.0 %" in text and "unparseable 10.0 % 0.0 %" in text


def test_the_page_says_where_its_numbers_mislead():
    said = " ".join(where_it_misleads(BEFORE, AFTER))
    # 73.0 - 34.6 = 38.4 points of room, more than the 30.5 gained
    assert "already solved 73.0 %: up to 30.5 of the 30.5 points" in said
    assert "samples are no better than the starting model at temperature 0" in said  # 65.1 < 73.0
    assert "pass@8 fell from 93.0 % to 88.0 %" in said and "maj@8 fell" not in said
    assert "from 4 to 2 different answers" in said and "from 0.1 to 0.033 nats" in said
    assert "Up to 3.0 % of the completions were cut" in said and "could not be judged" not in said
    better = {**AFTER, "pass@1": 0.9, "pass@8": 0.97}
    said = " ".join(where_it_misleads({**BEFORE, "greedy": 0.4}, better))
    assert "up to 5.4 of the 55.4 points" in said and "no better" not in said and "fell" not in said
    assert "256 problems" in said


def test_html_blocks_escape_their_text():
    for block in (
        page.panel(HOSTILE, ""),
        page.card(HOSTILE, HOSTILE, HOSTILE, HOSTILE),
        page.section(HOSTILE, "x", note=HOSTILE),
        page.details(HOSTILE, "x"),
        page.bullets([HOSTILE]),
        page.badge(HOSTILE),
        page.prompt([{"role": HOSTILE, "content": HOSTILE}]),
        page.said(HOSTILE, {"completion": HOSTILE, "why": HOSTILE, "verdict": HOSTILE, "reward": 0.5}),
        page.code({HOSTILE: HOSTILE}),
        page.table([HOSTILE], [["x"]]),
        page.interval_strip([(0.5, (0.4, 0.6))], HOSTILE),
    ):
        assert "script" not in Page(block).tags and "img" not in Page(block).tags
        block.encode()  # half a character would not


def test_code_is_the_recipe_itself():
    shown = page.code({"beta": 0.1, "name": "a<b"})
    assert json.loads(Page(shown).said[0]) == {"beta": 0.1, "name": "a<b"}
