"""A dag of real jobs: order, blocking, retry, stop, restart, hold, through jobctl."""

from __future__ import annotations

from tests.end_to_end.conftest import Jobd

DIAMOND = """
[jobs.extract]
command = "echo extract >> order; test ! -e fail"
[jobs.left]
command = "echo left >> order"
needs = ["extract"]
[jobs.right]
command = "echo right >> order"
needs = ["extract"]
[jobs.alone]
command = "echo alone >> order"
[jobs.join]
command = "echo join >> order"
needs = ["left", "right"]
[jobs.clean]
command = "echo clean >> order"
needs = ["extract:failed"]
"""


def test_jobs_run_in_the_order_of_their_needs(jobd: Jobd) -> None:
    jobd.start(DIAMOND)
    jobd.ctl("start", "--wait", "--timeout", "50s")
    order = (jobd.folder / "order").read_text().split()
    assert sorted(order) == ["alone", "extract", "join", "left", "right"]
    assert order.index("extract") < min(order.index("left"), order.index("right"))
    assert order[-1] == "join" or order.index("join") > max(order.index("left"), order.index("right"))
    states = jobd.states()
    assert states.pop("clean") == "skipped"
    assert set(states.values()) == {"success"}


def test_a_failure_blocks_exactly_its_downstream_and_retry_goes_on_by_itself(jobd: Jobd) -> None:
    (jobd.folder / "fail").touch()
    jobd.start(DIAMOND)
    assert jobd.ctl("start", "--wait", code=1)
    assert jobd.states() == {
        "extract": "failed",
        "left": "blocked",
        "right": "blocked",
        "join": "blocked",
        "alone": "success",
        "clean": "success",
    }
    assert jobd.jobs()["extract"]["reason"] == "exit code 1"
    assert jobd.jobs()["extract"]["exit_code"] == 1

    (jobd.folder / "fail").unlink()
    changed = jobd.ctl("retry", "--wait", "--json", code=0)
    assert jobd.states()["join"] == "success", changed
    assert (jobd.folder / "order").read_text().split().count("alone") == 1
    attempts = jobd.ctl("history", "extract", "--json").json["attempts"]
    assert [(each["attempt"], each["state"]) for each in attempts] == [(2, "success"), (1, "failed")]


def test_a_job_that_fails_is_tried_again_by_itself(jobd: Jobd) -> None:
    jobd.start("""
[jobs.flaky]
command = "echo x >> tries; test $(wc -l < tries) -ge 3"
retries = 2
retry_delay = 0.01
""")
    jobd.ctl("start", "--wait")
    assert jobd.jobs()["flaky"]["attempt"] == 3


def test_a_pool_and_its_slots_are_never_exceeded(jobd: Jobd) -> None:
    job = """
[jobs.job{n}]
pool = "two"
command = '''
mkdir here.{n}; ls -d here.* | wc -l >> counts; sleep 0.05; rmdir here.{n}
'''
"""
    jobd.start("[pools]\ntwo = 2\n" + "".join(job.format(n=n) for n in range(8)))
    jobd.ctl("start", "--wait")
    counts = [int(each) for each in (jobd.folder / "counts").read_text().split()]
    assert len(counts) == 8
    assert max(counts) <= 2


def test_stop_and_start_again(jobd: Jobd) -> None:
    jobd.start("""
[jobs.long]
command = "test -e quick || sleep 600"
[jobs.next]
command = "true"
needs = ["long"]
""")
    jobd.ctl("start")
    jobd.await_event(lambda event: event["kind"] == "running")
    assert jobd.states() == {"long": "running", "next": "queued"}
    jobd.ctl("stop", "--wait")
    assert jobd.states() == {"long": "stopped", "next": "stopped"}
    (jobd.folder / "quick").touch()
    first = jobd.ctl("status", "--json").json["runs"][0]["run"]
    jobd.ctl("start", "--wait")
    assert jobd.states() == {"long": "success", "next": "success"}
    assert jobd.ctl("status", "--json").json["runs"][0]["run"] == first
    assert jobd.ctl("start", "long", code=1).err.count("restart") == 1
    jobd.ctl("restart", "--wait")
    assert jobd.ctl("status", "--json").json["runs"][0]["run"] != first


def test_a_held_job_starts_only_when_released(jobd: Jobd) -> None:
    jobd.start("[jobs.one]\ncommand = 'true'\n[jobs.two]\ncommand = 'true'\nneeds = ['one']\n")
    jobd.ctl("hold", "two", "--reason", "not yet")
    jobd.ctl("start")
    jobd.await_event(lambda event: event["kind"] == "success" and event["job"] == "one")
    two = jobd.jobs()["two"]
    assert two["state"] == "queued"
    assert two["held"]
    assert two["waiting_for"] == [{"kind": "hold", "what": "two: not yet"}]
    released = jobd.ctl("release", "two", "--json").json
    assert released["starts"] == ["two"]
    jobd.ctl("wait", "two")
    assert jobd.states()["two"] == "success"


def test_skip_and_mark_set_the_outcome_by_hand(jobd: Jobd) -> None:
    jobd.start("""
[jobs.one]
command = "false"
[jobs.two]
command = "false"
needs = ["one"]
[jobs.three]
command = "true"
needs = ["two"]
""")
    jobd.ctl("start", "--wait", code=1)
    jobd.ctl("skip", "one")
    jobd.ctl("wait", code=1)
    assert jobd.states() == {"one": "skipped", "two": "failed", "three": "blocked"}
    jobd.ctl("mark", "two", "success")
    jobd.ctl("wait")
    assert jobd.states()["three"] == "success"
    assert "marked success by" in jobd.jobs()["two"]["reason"]


def test_a_dry_run_tells_and_changes_nothing(jobd: Jobd) -> None:
    jobd.start("[jobs.one]\ncommand = 'true'\n")
    told = jobd.ctl("start", "--dry-run", "--json").json
    assert [(each["job"], each["to"]) for each in told["changed"]] == [("one", "queued")]
    assert jobd.ctl("status", "--json").json["runs"] == []


def test_a_report_is_an_outcome_and_an_amount_of_data(jobd: Jobd) -> None:
    jobd.start("""
[jobs.submit]
finish = "report"
command = "jobctl report data --data 4711"
[jobs.after]
command = "true"
needs = ["submit"]
""")
    jobd.ctl("start")
    jobd.await_event(lambda event: event["kind"] == "report")
    submit = jobd.jobs()["submit"]
    assert (submit["state"], submit["data"]) == ("running", 4711)
    jobd.ctl("report", "success", "--job", "submit", "--message", "cluster says ok")
    jobd.ctl("wait")
    assert jobd.states() == {"submit": "success", "after": "success"}


def test_the_same_request_id_has_one_effect_and_one_answer(jobd: Jobd) -> None:
    jobd.start("[jobs.one]\ncommand = 'true'\n")
    first = jobd.ctl("start", "--request-id", "tonight", "--json").json
    jobd.ctl("wait")
    assert jobd.ctl("start", "--request-id", "tonight", "--json").json == first
    assert jobd.jobs()["one"]["attempt"] == 1
    jobd.stop()
    jobd.start()
    assert jobd.ctl("start", "--request-id", "tonight", "--json").json == first
