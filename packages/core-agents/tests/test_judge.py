"""The client of a chat endpoint against a server on this machine that misbehaves on purpose."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from core_agents.judge import ChatJudge, JudgeError, ScriptedJudge

GOOD = {
    "choices": [
        {
            "message": {"content": "yes"},
            "logprobs": {
                "content": [{"top_logprobs": [{"token": "yes", "logprob": -0.1}, {"token": "no", "logprob": -3}]}]
            },
        }
    ],
    "usage": {"total_tokens": 7, "details": {}},
}


@pytest.fixture
def server():
    """Answers with the next of `script` (status, body, headers); keeps the requests."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            made.requests.append((self.path, dict(self.headers), json.loads(body)))
            status, answer, headers = made.script.pop(0)
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    made = HTTPServer(("127.0.0.1", 0), Handler)
    made.script, made.requests = [], []
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    made.url = f"http://127.0.0.1:{made.server_port}/v1"
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def judge(server, **options):
    waited = []
    return ChatJudge(server.url, "m", sleep=waited.append, timeout=5, **options), waited


def test_an_answer_with_all_it_came_with(server):
    server.script = [(200, GOOD, {})]
    client, waited = judge(server, api_key="k", seed=5, max_tokens=9)
    reply = client.ask([{"role": "user", "content": "?"}], top_logprobs=2)
    assert (reply.text, reply.attempts, reply.usage, waited) == ("yes", 1, {"total_tokens": 7}, [])
    assert reply.logprobs == [[("yes", -0.1), ("no", -3.0)]]
    assert reply.raw == GOOD
    path, headers, body = server.requests[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer k"
    assert body == {
        "model": "m", "messages": [{"role": "user", "content": "?"}], "temperature": 0.0, "seed": 5, "max_tokens": 9,
        "logprobs": True, "top_logprobs": 2,
    }  # fmt: skip
    assert "key" not in repr(client)


def test_it_tries_again_and_waits_longer(server):
    server.script = [(500, {}, {}), (429, {}, {"Retry-After": "7"}), (200, b"<html>", {}), (200, GOOD, {})]
    client, waited = judge(server)
    assert client.ask([]).attempts == 4
    assert waited == [1, 7, 14]


@pytest.mark.parametrize("answer", [b"", b"[]", {}, {"choices": []}, {"choices": [{"message": {"content": None}}]}])
def test_what_is_no_answer_is_an_error(server, answer):
    server.script = [(200, answer, {})] * 2
    client, _ = judge(server, retries=1)
    with pytest.raises(JudgeError, match="no answer after 2 attempts"):
        client.ask([])


def test_refusals_are_not_tried_again(server):
    server.script = [(401, {"error": "who are you"}, {})]
    with pytest.raises(JudgeError, match=r"status 401: .*who are you"):
        judge(server)[0].ask([])
    assert len(server.requests) == 1


def test_redirects_are_not_followed(server):
    server.script = [(307, {}, {"Location": "http://127.0.0.1:9/v1"})]
    with pytest.raises(JudgeError, match="status 307"):
        judge(server, api_key="k")[0].ask([])


def test_nobody_there_is_an_error():
    waited = []
    with pytest.raises(JudgeError, match="no answer after 3 attempts"):
        ChatJudge("http://127.0.0.1:9", "m", retries=2, sleep=waited.append).ask([])
    assert waited == [1, 2]


def test_bad_settings_name_the_argument():
    for url in ("file:///etc/passwd", "localhost:80", "", "http://"):
        with pytest.raises(ValueError, match="argument 'base_url'"):
            ChatJudge(url, "m")
    with pytest.raises(ValueError, match="'retries'"):
        ChatJudge("http://a", "m", retries=-1)


def test_a_script_ends():
    scripted = ScriptedJudge(["a"])
    assert scripted.ask([{"role": "user", "content": "?"}]).text == "a"
    with pytest.raises(JudgeError):
        scripted.ask([])


def test_runs_without_a_verdict_are_judged(server, tmp_path):
    import typer
    from core_agents import jobs
    from typer.testing import CliRunner

    said = [{"role": "assistant", "content": "done"}]
    runs = [
        {"task": "a", "success": 1, "messages": said},
        {"task": "b", "messages": said},
        {"task": "c", "messages": said},
    ]
    path, out = tmp_path / "runs.jsonl", tmp_path / "page.html"
    path.write_text("\n".join(map(json.dumps, runs)))
    no = {**GOOD, "choices": [{"message": {"content": "No, it is not."}}]}
    server.script = [(200, GOOD, {}), (200, no, {})]
    app = typer.Typer()
    app.command()(jobs.evaluate)
    arguments = [str(path), "-o", str(out), "--endpoint", server.url, "--bootstrap", "20", "--rubric", "It is done."]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    figures = json.loads(out.with_suffix(".json").read_text())
    assert figures["systems"]["runs"]["success"]["value"] == pytest.approx(2 / 3)
    assert [(j["task"], j["text"]) for j in figures["judged"]] == [("b", "yes"), ("c", "No, it is not.")]
    assert "It is done." in server.requests[0][2]["messages"][0]["content"]
    assert server.requests[0][2]["seed"] == 0
    assert CliRunner().invoke(app, arguments[:3]).exit_code == 2
