"""Trace readers: every format into the same table, damaged files, and mutations."""

import io
import json
import os
import random
import struct
import zipfile
from datetime import datetime

import numpy as np
import pytest
from core_agents import evaluation, mast, traces

CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"x": 1}'}}
CHAT = [
    {"role": "system", "content": "You add."},
    {"role": "user", "content": 'What is 1 + 1? "naïve" 日本 \\ \n 😀'},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "2"},
    {"role": "assistant", "content": "It is 2. TERMINATE", "name": "adder"},
]


def said(run):
    """What a conversation says, whatever its format."""

    def calls(m):
        return [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in m.get("tool_calls", ())]

    return [(m["role"], m["content"] or "", calls(m)) for m in run]


def dump(value):
    return json.dumps(value, ensure_ascii=False).encode()


def sample(i=0):
    messages = [{**m, "id": f"m{k}"} for k, m in enumerate(CHAT)]
    messages[2] = {**messages[2], "tool_calls": [{"id": "c1", "function": "add", "arguments": {"x": 1}}]}
    messages[3] = {**messages[3], "function": "add"}
    messages[4] = {k: v for k, v in messages[4].items() if k != "name"} | {"content": "attachment://aa"}
    usage = {"input_tokens": 10, "output_tokens": 3}
    model = {
        "event": "model",
        "span_id": "s1",
        "timestamp": "2026-01-02T03:04:05.5+00:00",
        "completed": "2026-01-02T03:04:06Z",
    }
    return {
        "id": f"task {i}", "epoch": 2, "messages": messages,
        "scores": {"includes": {"value": "C"}, "other": {"value": float("nan")}},
        "model_usage": {"m/one": usage}, "total_time": 1.5, "started_at": "2026-01-02T03:04:05+00:00", "error": None,
        "events": [
            {"event": "span_begin", "id": "s0", "type": "agent", "name": "adder", "span_id": "s0"},
            {"event": "span_begin", "id": "s1", "parent_id": "s0", "type": None, "name": "inner"},
            {**model, "output": {"choices": [{"message": {"id": "m4"}}], "usage": usage}},
            {"event": "tool", "id": "c1", "timestamp": "2026-01-02T03:04:05Z"},
        ],
        "attachments": {"aa": CHAT[4]["content"], "bb": "x" * 100},
    }  # fmt: skip


def archive(samples, method=zipfile.ZIP_DEFLATED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as z:
        z.writestr("_journal/start.json", "{}")
        for i, one in enumerate(samples):
            z.writestr(f"samples/{i}_epoch_1.json", dump(one))
        z.writestr("header.json", "{}")
    return out.getvalue()


def parts(m):
    """A message in OpenTelemetry's form."""
    if m["role"] == "tool":
        return {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c1", "response": m["content"]}]}
    listed = [{"type": "text", "content": m["content"]}] if m["content"] else []
    for c in m.get("tool_calls", ()):
        arguments = json.loads(c["function"]["arguments"])
        listed.append({"type": "tool_call", "id": c["id"], "name": c["function"]["name"], "arguments": arguments})
    return {"role": m["role"], "parts": listed}


def otlp(spans):
    def any_value(v):
        return {"intValue": str(v)} if isinstance(v, int) else {"stringValue": v}

    made = []
    for i, (attributes, parent) in enumerate(spans):
        listed = [{"key": k, "value": any_value(v)} for k, v in attributes.items()]
        made.append(
            {"traceId": "t1", "spanId": f"s{i}", "parentSpanId": parent, "name": f"span {i}", "attributes": listed}
        )
        made[-1] |= {"startTimeUnixNano": str((i + 1) * 10**18), "endTimeUnixNano": str((i + 1) * 10**18 + 5)}
    random.Random(0).shuffle(made)
    return dump({"resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": {}, "spans": made}]}]})


def otel():
    def chat(inputs, outputs):
        return {
            "gen_ai.operation.name": "chat", "gen_ai.usage.input_tokens": 5, "gen_ai.usage.output_tokens": 2,
            "gen_ai.request.model": "m", "gen_ai.input.messages": json.dumps([parts(m) for m in inputs]),
            "gen_ai.output.messages": json.dumps([parts(m) for m in outputs]),
        }  # fmt: skip

    tool = {
        "gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "add", "gen_ai.tool.call.id": "c1",
        "gen_ai.tool.call.arguments": '{"x":1}', "gen_ai.tool.call.result": "2",
    }  # fmt: skip
    agent = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "adder"}
    return otlp([(agent, ""), (chat(CHAT[:2], CHAT[2:3]), "s0"), (tool, "s0"), (chat(CHAT[:4], CHAT[4:]), "s0")])


def openinference():
    def flat(side, messages):
        out = {}
        for i, m in enumerate(messages):
            at = f"llm.{side}_messages.{i}.message"
            out |= {f"{at}.role": m["role"], **({f"{at}.content": m["content"]} if m["content"] else {})}
            for j, c in enumerate(m.get("tool_calls", ())):
                call = f"{at}.tool_calls.{j}.tool_call"
                out |= {f"{call}.id": c["id"], f"{call}.function.name": "add", f"{call}.function.arguments": '{"x": 1}'}
        return out

    def chat(inputs, outputs):
        return {
            "openinference.span.kind": "LLM", "llm.token_count.prompt": 5, "llm.token_count.completion": 2,
            **flat("input", inputs), **flat("output", outputs),
        }  # fmt: skip

    tool = {"openinference.span.kind": "TOOL", "tool.name": "add", "input.value": '{"x": 1}', "output.value": "2"}
    agent = {"openinference.span.kind": "AGENT", "agent.name": "adder"}
    return [(agent, ""), (chat(CHAT[:2], CHAT[2:3]), "s0"), (tool, "s0"), (chat(CHAT[:4], CHAT[4:]), "s0")]


def phoenix():
    """The same spans, one a line, with nested attributes."""

    def nest(flat):
        root = {}
        for key, value in flat.items():
            *path, last = key.split(".")
            at = root
            for part in path:
                at = at.setdefault(part, {})
            at[last] = value
        return root

    return b"\n".join(
        dump({
            "name": f"span {i}", "context": {"trace_id": "t1", "span_id": f"s{i}"}, "parent_id": parent or None,
            "start_time": f"2026-01-01T00:00:0{i}", "attributes": nest(a),
        })
        for i, (a, parent) in enumerate(openinference())
    )  # fmt: skip


def langsmith():
    names = {"system": "SystemMessage", "user": "HumanMessage", "assistant": "AIMessage", "tool": "ToolMessage"}

    def constructor(m):
        kwargs = {"content": m["content"] or "", "type": "x"}
        if m.get("tool_calls"):
            kwargs["additional_kwargs"] = {"tool_calls": m["tool_calls"]}
            kwargs["tool_calls"] = [{"name": "add", "args": {"x": 1}, "id": "c1", "type": "tool_call"}]
        if m["role"] == "tool":
            kwargs |= {"tool_call_id": "c1", "name": "add"}
        return {
            "lc": 1,
            "type": "constructor",
            "id": ["langchain", "schema", "messages", names[m["role"]]],
            "kwargs": kwargs,
        }

    def run(i, kind, inputs, outputs, **more):
        at = f"2026-01-01T00:00:0{i}.000000"
        return {
            "outputs": outputs,
            "inputs": inputs,
            "id": f"r{i}",
            "trace_id": "t1",
            "run_type": kind,
            "start_time": at,
            **more,
        }

    def chat(i, inputs, outputs, **more):
        generated = {"generations": [[{"text": "", "message": constructor(m)} for m in outputs]]}
        generated["llm_output"] = {"token_usage": {"prompt_tokens": 5, "completion_tokens": 2}}
        return run(i, "llm", {"messages": [[constructor(m) for m in inputs]]}, generated, name="ChatModel", **more)

    rows = [
        run(0, "chain", {"question": "x"}, {}, name="agent", parent_run_id=None),
        chat(1, CHAT[:2], CHAT[2:3], parent_run_id="r0"),
        run(2, "tool", {"x": 1}, {"output": "2"}, name="add", parent_run_id="r0"),
        chat(3, CHAT[:4], CHAT[4:], parent_run_id="r0"),
    ]
    return b"\n".join(map(dump, reversed(rows)))


ANSWER = {"choices": [{"message": CHAT[-1]}]}
FILES = {
    "inspect, deflated": lambda: archive([sample()]),
    "inspect, stored": lambda: archive([sample()], zipfile.ZIP_STORED),
    "inspect, json": lambda: dump({"version": 2, "eval": {}, "samples": [sample()]}),
    "openai, list": lambda: dump(CHAT),
    "openai, a line each": lambda: dump(CHAT) + b"\n",
    "openai, record": lambda: json.dumps(
        {"messages": CHAT[:-1], "choices": [{"message": CHAT[-1]}]}, indent=1
    ).encode(),
    "openai, batch": lambda: dump(
        {"response": {"body": {"choices": [{"message": CHAT[-1]}]}}, "request": {"messages": CHAT[:-1]}}
    ),
    "otel": otel,
    "openinference": lambda: otlp(openinference()),
    "openinference, phoenix": phoenix,
    "langsmith": langsmith,
}


@pytest.mark.parametrize("name", FILES)
def test_all_formats_say_the_same(name, tmp_path):
    (tmp_path / "file").write_bytes(FILES[name]())
    read = traces.read(tmp_path / "file")
    assert len(read) == 1
    (run,) = read.to_messages()
    assert said(run) == said(CHAT)
    assert read.run("complete").all()
    if not name.startswith("openai"):
        assert read.strings("agent")[-1] == "adder" or name == "langsmith"
        assert read["output_tokens"][-1] in (2, 3)
    assert [f.code for f in mast.detect(run)] == []


def test_numbers_and_times():
    read = traces.loads(archive([sample()]))
    row = {k: v[-1] for k, v in read.to_dict().items()}
    assert (row["input_tokens"], row["output_tokens"], row["step"]) == (10, 3, 4)
    assert row["start"] == np.datetime64("2026-01-02T03:04:05.5")
    run = {k: v[0] for k, v in read.runs_to_dict().items()}
    assert run["id"] == "task 0"
    assert (run["epoch"], run["score"], run["seconds"], run["input_tokens"], run["model"]) == (2, 1, 1.5, 10, "m/one")
    (one,) = read.to_runs()
    assert evaluation.summarise([one])["success"].value == 1
    spans = traces.loads(otel())
    assert spans.run("start").astype(np.int64) == 10**18
    assert (spans.run("input_tokens"), spans.run("output_tokens")) == (10, 4)
    assert spans.run_strings("model") == ["m"]
    for text in (
        "2026-01-02T03:04:05.123456789+05:30",
        "1999-12-31 23:59:59",
        "2024-02-29T00:00:00-00:30",
        "1970-01-01T00:00:00Z",
    ):
        got = traces.loads(dump([{**sample(), "started_at": text}]), "inspect").run("start")[0]
        want = datetime.fromisoformat(text if "T0" in text else text + "+00:00")
        assert (
            abs((got - np.datetime64("1970-01-01T00:00:00")) / np.timedelta64(1, "ns") - want.timestamp() * 1e9) < 1000
        )
    assert np.isnat(traces.loads(dump([{**sample(), "started_at": "2026-13-01T00:00:00Z"}]), "inspect").run("start")[0])


def test_lines_and_many_runs():
    data = b"\n".join(dump(CHAT[:n]) for n in (1, 2, 5)) + b"\n\n"
    assert [len(run) for run in traces.loads(data).to_messages()] == [1, 2, 5]
    assert [len(run) for run in traces.loads(dump([CHAT, CHAT[:2]])).to_messages()] == [5, 2]
    summary = traces.loads(archive([sample(i) for i in range(3)]), messages=False)
    assert len(summary) == 3
    assert summary.rows.shape[1] == 0


def test_what_a_model_says_twice_stays_twice():
    one, two = CHAT[1], {"role": "assistant", "content": "the same words"}
    attributes = []
    for k in range(3):
        history = [one] + [two] * k
        messages = {
            "gen_ai.input.messages": json.dumps([parts(m) for m in history]),
            "gen_ai.output.messages": json.dumps([parts(two)]),
        }
        attributes.append(({"gen_ai.operation.name": "chat", **messages}, ""))
    (run,) = traces.loads(otlp(attributes)).to_messages()
    assert [m["content"] for m in run] == [one["content"]] + ["the same words"] * 3


def test_truncated_text_gives_the_valid_part():
    data = b"\n".join(dump(CHAT) for _ in range(3))
    with pytest.raises(traces.TraceError, match="ends too early at line 3") as error:
        traces.loads(data[:-30])
    assert [len(run) for run in error.value.traces.to_messages()] == [5, 5, 4]
    assert error.value.traces.run("complete").tolist() == [1, 1, 0]
    broken = dump(CHAT) + b'\n[{"role": tru}]\n' + dump(CHAT)
    kept = traces.loads(broken, keep_damaged=True)
    assert [len(run) for run in kept.to_messages()] == [5, 0, 5] or [len(run) for run in kept.to_messages()] == [5, 5]
    assert len(kept.problems) == 1


def test_truncated_archive_gives_the_valid_part():
    data = archive([sample(i) for i in range(5)])
    with pytest.raises(traces.TraceError, match="no valid directory") as error:
        traces.loads(data[: len(data) * 3 // 5])
    assert 1 <= len(error.value.traces) < 5
    assert said(error.value.traces.to_messages()[0]) == said(CHAT)


def test_hostile_archives():
    data = bytearray(archive([sample(i) for i in range(3)]))
    at = data.index(b"PK\1\2", data.index(b"PK\1\2") + 4)
    for offset, value, why in (
        (10, 99, "compression method 99"),
        (24, 5, "size or checksum"),
        (16, 0, "size or checksum"),
    ):
        bad = data.copy()
        struct.pack_into("<H" if offset == 10 else "<I", bad, at + offset, value)
        with pytest.raises(traces.TraceError, match=why) as error:
            traces.loads(bytes(bad))
        assert len(error.value.traces) == 2
    huge = data.copy()
    struct.pack_into("<I", huge, at + 24, 0xFFFFFFF0)
    with pytest.raises(traces.TraceError, match=r"max_bytes|size or checksum"):
        traces.loads(bytes(huge), max_bytes=1 << 20)
    bomb = archive([{"id": "0" * 5_000_000}])
    with pytest.raises(traces.TraceError, match="max_bytes"):
        traces.loads(bomb, max_bytes=1 << 20)
    with pytest.raises(traces.TraceError, match="no samples"):
        traces.loads(archive([]))


REFUSED = [
    b"", b"[", b"nul", b"[1,]", b'{"a" 1}', b'{"a":1,}', b"[01]", b"[1.]", b"[1e]", b"[-]", b'["\\x"]', b'["\\u12g4"]',
    b'["\n"]',     b'["\xff"]', b'["\xc0\xaf"]', b'["\xed\xa0\x80"]', b'["\xf4\x90\x80\x80"]',
    b'["a]', b"[1] 2", b"{1:2}", b"[tru]", b"'a'", b"3",
]  # fmt: skip


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_not_json_is_refused(text):
    if not text:
        assert len(traces.loads(text)) == 0
        return
    with pytest.raises(traces.TraceError):
        traces.loads(text, "openai")


def test_deep_input_is_an_error():
    for text in (
        b"[" * 100_000,
        b'[{"role":"user","content":' * 50_000,
        b'{"request":' * 100_000,
        b'{"spans":[' * 100_000,
    ):
        for kind in traces.FORMATS:
            with pytest.raises(traces.TraceError):
                traces.loads(text, kind)
    deep = b'{"a":' + b"[" * 200 + b"]" * 200 + b"}"
    assert len(traces.loads(deep, "openai")) == 1


def test_strings_as_python_reads_them():
    rng = random.Random(1)
    alphabet = ['"', "\\", "/", "\b", "\n", "é", "日", "😀", "\x7f", "a", " ", "\u2028", "z" * 9]
    for _ in range(300):
        text = "".join(rng.choice(alphabet) for _ in range(rng.randrange(40)))
        for ascii_only in (True, False):
            data = json.dumps([{"role": "user", "content": text}], ensure_ascii=ascii_only).encode()
            assert traces.loads(data).to_messages()[0][0]["content"] == text
    lone = traces.loads(b'[{"role":"user","content":"\\ud800x\\udc00"}]')
    assert lone.strings("text") == ["\ufffdx\ufffd"]


def test_zstandard_members():
    zstandard = pytest.importorskip("zstandard")
    data = archive([sample()], zipfile.ZIP_STORED)
    raw = dump(sample())
    packed = zstandard.compress(raw)
    name = b"samples/0_epoch_1.json"
    crc = struct.unpack_from("<I", data, data.index(name) - 16)[0]
    local = (
        struct.pack("<4sHHHHHIIIHH", b"PK\3\4", 20, 0, 93, 0, 0, crc, len(packed), len(raw), len(name), 0)
        + name
        + packed
    )
    assert said(traces.loads(local, keep_damaged=True).to_messages()[0]) == said(CHAT)
    damaged = local[:-5] + b"12345"
    assert len(traces.loads(damaged, keep_damaged=True)) == 0


def mutations(seed, count):
    """Damaged files: bytes changed, cut out, doubled, cut off."""
    rng = random.Random(seed)
    files = [(name, make()) for name, make in FILES.items()]
    words = [
        b'"',
        b"\\",
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"null",
        b"\xff",
        b"1e999",
        b"-",
        b"PK\1\2",
        b"\0\0\0\0",
        b"\xff\xff\xff\xff",
    ]
    for _ in range(count):
        name, data = rng.choice(files)
        out = bytearray(data)
        for _ in range(rng.randrange(1, 5)):
            at, length = rng.randrange(len(out)), rng.randrange(1, 30)
            kind = rng.randrange(5)
            if kind == 0:
                out[at] = rng.randrange(256)
            elif kind == 1:
                out[at : at + length] = b""
            elif kind == 2:
                out[at:at] = out[at : at + length]
            elif kind == 3:
                out[at : at + rng.randrange(2)] = rng.choice(words)
            else:
                out = out[: max(1, at)] if rng.random() < 0.2 else out
            out = out or bytearray(b"{")
        yield name, bytes(out)


def test_mutations_do_no_harm():
    count = 100_000 if os.environ.get("CORE_TEST_ALL") else 2000
    for name, data in mutations(0, count):
        kind = None if data[:2] == b"PK" else name.partition(",")[0]
        read = traces.loads(data, kind, keep_damaged=True, max_bytes=1 << 24)
        begins, ends = read["text_begin"], read["text_end"]
        assert ((begins <= ends) & (ends <= len(read.buffer))).all()
        assert (np.diff(read["run"]) >= 0).all()
        assert ((read["run"] >= 0) & (read["run"] < len(read))).all()
        for run in read.to_messages():
            mast.detect(run)


def test_frames():
    read = traces.loads(dump(CHAT))
    frame = pytest.importorskip("pandas").DataFrame(read.to_dict())
    assert read.to_pandas().equals(frame)
    assert len(frame) == 6
    pytest.importorskip("pyarrow")
    assert read.to_arrow().num_rows == 6


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="argument 'format' must be one of"):
        traces.loads(b"[]", "xml")
    with pytest.raises(ValueError, match="max_bytes"):
        traces.loads(b"[]  ", max_bytes=2)
    with pytest.raises(OSError, match="nowhere"):
        traces.read(tmp_path / "nowhere")
    with pytest.raises(KeyError):
        traces.loads(b"[]")["colour"]


def test_jobs_take_any_traces(tmp_path):
    import typer
    from core_agents import jobs
    from typer.testing import CliRunner

    for job, name, out in ((jobs.judge, "otel", "found.jsonl"), (jobs.evaluate, "inspect, deflated", "report.html")):
        app = typer.Typer()
        app.command()(job)
        (tmp_path / "file").write_bytes(FILES[name]())
        done = CliRunner().invoke(app, [str(tmp_path / "file"), "-o", str(tmp_path / out)])
        assert done.exit_code == 0, done.output
    (row,) = map(json.loads, (tmp_path / "found.jsonl").read_text().splitlines())
    assert (row["id"], row["detected"]) == ("t1", [])
    assert json.loads((tmp_path / "report.json").read_text())["systems"]["file"]["success"]["value"] == 1
