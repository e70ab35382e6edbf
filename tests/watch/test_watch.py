"""The page of a sweep: what it shows, that it writes nothing and answers nobody else; in a browser if there is one."""

import http.client
import json
import shutil
import subprocess
import threading

import pytest

import umscale_studies
from umscale.errors import UserError
from umscale.store.store import Store
from umscale.watch.server import Server
from umscale.watch.state import State

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\">\u202e\x1b[2J"
CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A recorded study, a failed run whose label and reason are hostile, and a cell that waits."""
    recorded = Store.open(umscale_studies.recorded()["enwik8_density"])
    made = Store.create(tmp_path_factory.mktemp("watch") / "store")
    made.write_rows("cells", "all", recorded.read("cells").to_pylist())
    for table in ("runs", "curves"):
        of_run = {}
        for row in recorded.read(table).to_pylist():
            of_run.setdefault(row["run_id"], []).append(row)
        for run_id, rows in of_run.items():
            made.write_rows(table, run_id, rows)
    bad, waiting = "b" * 16, "c" * 16
    row = {"run_id": bad, "study": "x", "seed": 0, "budget": 10, "stage": "annealed", "status": "failed"}
    made.write_rows("runs", bad, [row | {"reason": HOSTILE}])
    cell = {"study": "x", "compensation": "none", "seed": 0}
    made.write_rows("cells", "d" * 16, [cell | {"run_id": r, "label": HOSTILE} for r in (bad, waiting)])
    return made


@pytest.fixture(scope="module")
def server(store):
    with Server(State(store)) as made:
        threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield made
        made.shutdown()


def ask(server, path="/", method="GET", host=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.request(method, path, headers={"Host": host or f"127.0.0.1:{server.server_port}"})
    answer = connection.getresponse()
    return answer, answer.read()


def test_the_state_says_what_the_store_holds(server, store):
    files = sorted(path for path in store.root.rglob("*") if "work" not in path.parts)
    answer, body = ask(server, "/state.json")
    found = json.loads(body)
    assert (answer.status, found["counts"]["failed"], found["counts"]["waiting"]) == (200, 1, 1)
    assert "upported" in found["verdict"]["wide"]
    assert len(found["verdict"]["narrow"].splitlines()) > len(found["verdict"]["wide"].splitlines())
    assert len(found["cells"]) == 49
    [failure] = found["failures"]
    assert failure["reason"].startswith("</script><img src=x")
    assert found["claims"] == []
    assert 0 < len(found["curves"]) <= 60
    assert all(len(curve["points"]) <= 120 for curve in found["curves"])
    assert sorted(path for path in store.root.rglob("*") if "work" not in path.parts) == files


def test_who_is_in_work_is_named(store):
    with store.claim("c" * 16) as mine:
        assert mine
        state = State(store).read()
    assert [claim["run_id"] for claim in state["claims"]] == ["c" * 16]
    assert "waiting" not in state["counts"]


def test_it_answers_only_what_is_asked_here(server):
    answer, body = ask(server)
    policy = answer.headers["Content-Security-Policy"]
    nonce = policy.partition("script-src 'nonce-")[2].partition("'")[0]
    assert policy.startswith("default-src 'none'")
    assert len(nonce) >= 20
    assert body.count(f'nonce="{nonce}"'.encode()) == 2
    assert b"http://" not in body.replace(b"http://www.w3.org/2000/svg", b"")
    assert b"https://" not in body
    assert b"innerHTML" not in body
    assert ask(server, host="evil.example")[0].status == 403
    assert ask(server, "/../store.json")[0].status == 404
    assert ask(server, "/state.json?x")[0].status == 404
    assert ask(server, method="POST")[0].status == 501
    assert ask(server, method="HEAD")[1] == b""
    assert server.server_address[0] == "127.0.0.1"
    with pytest.raises(UserError, match="--port 0"):
        Server(server.state, server.server_port)


def test_a_store_that_goes_away_is_said_on_the_page(tmp_path):
    store = Store.create(tmp_path / "store")
    with Server(State(store)) as made:
        assert "No answer yet" in json.loads(made.current())["verdict"]["wide"]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser_a_hostile_label_is_a_label(server, tmp_path, width):
    found = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
            "--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path}",
            f"--window-size={width},1600", "--virtual-time-budget=4000", "--timeout=60000", "--dump-dom", server.url,
        ],
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    page = found.stdout
    assert 'data-ready="yes"' in page, found.stderr[-2000:]
    assert "&lt;/script&gt;&lt;img src=x" in page
    assert "<img" not in page
    assert "<title>owned" not in page
    assert page.count("<path") > 10
