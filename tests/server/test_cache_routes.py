"""What a server says of its cache, on a real engine over the fake executor: why a prompt missed, the tree, the report, the picture."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator

import httpx
import pytest

from ramet.cli.main import main
from tests.fakes import fake_engine
from tests.server.live_server import live_server
from tests.waiting import PATIENCE

TEMPLATE = "You are a clerk.\nIt is {now}.\nBelow are the rules of the house, which are long and never change.\nQ: {question}\nA:"
CLOCKS = ("2026-11-23 10:00:01", "2026-11-23 10:00:07", "2026-11-23 10:01:40")


@pytest.fixture
def server() -> Iterator[str]:
    engine = fake_engine(max_total_tokens=2048)
    try:
        with live_server(engine) as url:
            yield url
    finally:
        engine.close_now()


def ask(url: str, text: str, rid: str, **fields: str) -> dict:
    body = {"text": text, "rid": rid, "sampling_params": {"max_new_tokens": 2, "temperature": 0}, **fields}
    return httpx.post(f"{url}/generate", timeout=PATIENCE, json=body).raise_for_status().json()["meta_info"]


def explain(url: str, rid: str) -> dict:
    return httpx.get(f"{url}/cache/explain", timeout=PATIENCE, params={"rid": rid}).raise_for_status().json()


def test_a_timestamp_near_the_top_is_found_and_named(server: str) -> None:
    for number, now in enumerate(CLOCKS):
        meta = ask(server, TEMPLATE.format(now=now, question="why?"), f"r{number}")
    found = explain(server, "r2")
    assert (found["reason"], found["line"]) == ("differs", 2)
    assert "differ at a timestamp in line 2" in found["advice"] and "Move it behind" in found["advice"]
    assert found["before"].endswith("2026-11-23 10:0") and found["yours"].startswith("1:40") and found["nearest"].startswith("0:0")
    assert found["cached_tokens"] == meta["cached_tokens"] == found["position"] == found["possible_tokens"]
    assert found["computed_tokens"] == meta["prompt_tokens"] - meta["cached_tokens"]
    assert explain(server, "r0")["reason"] == "empty"


def test_every_reason_is_told_apart(server: str) -> None:
    prompt = "The tides follow the moon, and the moon follows the earth. "
    ask(server, prompt, "first")
    ask(server, prompt, "again")
    ask(server, prompt + "Then comes the sun", "longer")
    ask(server, prompt, "elsewhere", extra_key="tenant")
    ask(server, prompt.replace("follow the", "follow  the"), "spaces")
    assert [explain(server, rid)["reason"] for rid in ("again", "elsewhere", "spaces")] == ["hit", "namespace", "differs"]
    assert explain(server, "longer")["reason"] in ("new", "differs")  # what was generated behind the first prompt differs
    assert "white space" in explain(server, "spaces")["advice"]
    for number in range(40):
        ask(server, f"{number} fills the cache with other things, again and again, {number}" * 2, f"filler{number}")
    ask(server, prompt, "late")
    late = explain(server, "late")
    assert late["reason"] == "evicted" and late["cached_tokens"] < late["possible_tokens"] == late["prompt_tokens"] - 1
    assert "were evicted" in late["advice"]


def test_unknown_requests_are_refused_by_name(server: str) -> None:
    reply = httpx.get(f"{server}/cache/explain", timeout=PATIENCE, params={"rid": "nobody"})
    assert reply.status_code == 404 and "nobody" in reply.json()["error"]["message"]


def test_the_report_counts_against_the_best_possible(server: str) -> None:
    for number in range(6):
        ask(server, "A stem that all of them share, then number " + str(number) * 3, f"n{number}")
    found = httpx.get(f"{server}/cache", timeout=PATIENCE).json()
    best = found["optimality"]
    assert best["computed_tokens"] == best["edge_tokens"] and best["computed_over_edges"] == 1.0 and best["share_of_best"] == 1.0
    assert 0.5 < best["hit_rate"] == best["best_hit_rate"] < 1.0
    tops = [node for node in found["nodes"] if node["parent"] == -1]
    assert sum(node["subtree_tokens"] for node in tops) == found["pool"]["cached_tokens"]
    assert any("A stem that all of" in node["text"] and node["hits"] >= 6 for node in tops)
    metrics = httpx.get(f"{server}/metrics", timeout=PATIENCE).text
    assert "ramet:possible_cached_tokens_total" in metrics and "ramet:prefill_tokens_total" in metrics


def test_the_picture_is_svg_with_a_bar_per_edge(server: str) -> None:
    ask(server, "A stem & a <leaf>", "one")
    reply = httpx.get(f"{server}/cache/picture", timeout=PATIENCE)
    assert reply.headers["content-type"].startswith("image/svg+xml")
    titles = [each.text for each in ElementTree.fromstring(reply.text).iter("{http://www.w3.org/2000/svg}title")]
    assert any("A stem & a <leaf>" in (title or "") for title in titles)


def test_the_command_shows_places_where_templates_waste_the_cache(server: str, capsys: pytest.CaptureFixture[str], tmp_path) -> None:
    for number, now in enumerate(CLOCKS):
        ask(server, TEMPLATE.format(now=now, question="why?"), f"r{number}")
    assert main(["cache", "--endpoint", server]) == 0
    shown = capsys.readouterr().out
    assert "differ at a timestamp in line 2" in shown and "the best possible is" in shown and "You are a clerk." in shown
    assert main(["cache", "--endpoint", server, "--explain", "r2"]) == 0
    assert "could have been cached" in capsys.readouterr().out
    assert main(["cache", "--endpoint", server, "--explain", "nobody"]) == 2
    picture = tmp_path / "tree.svg"
    assert main(["cache", "--endpoint", server, "--svg", str(picture)]) == 0
    ElementTree.parse(picture)


def test_different_questions_are_no_waste(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    for number, question in enumerate(("how far is it", "who said so", "what does it cost")):
        ask(server, TEMPLATE.format(now="noon", question=question), f"q{number}")
    assert main(["cache", "--endpoint", server]) == 0
    assert "nowhere: no template of yours wastes the cache" in capsys.readouterr().out
