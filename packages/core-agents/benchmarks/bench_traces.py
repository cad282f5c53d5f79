"""Reading an inspect-ai log of 500 samples: ours, inspect-ai's own data frames, and unzipping with orjson.

Run with `CORE_NUM_THREADS=1 pytest packages/core-agents/benchmarks/bench_traces.py -s`. The log is written by
inspect-ai itself with its scripted model, once as inspect-ai writes it (zstandard) and once deflated.
"""

import random
import time
import zipfile
from functools import partial

import pytest
from core_agents import mast, traces
from core_registry.timing import fastest

orjson = pytest.importorskip("orjson")
pytest.importorskip("inspect_ai")
pytest.importorskip("zipfile_zstd")


cpu = partial(fastest, clock=time.process_time)


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """500 samples of ten turns."""
    import inspect_ai
    from inspect_ai.dataset import Sample
    from inspect_ai.model import ChatMessageUser, ModelOutput, ModelUsage, get_model
    from inspect_ai.scorer import includes
    from inspect_ai.solver import solver

    rng = random.Random(0)
    words = [*(f"word{i}" for i in range(400)), "naïve", "日本語", 'say "so"', "line\nbreak", "C:\\path"]

    def text(n):
        return " ".join(rng.choice(words) for _ in range(n))

    def outputs():
        while True:
            output = ModelOutput.from_content("mockllm/model", text(40) + rng.choice(["", " yes"]))
            output.usage = ModelUsage(input_tokens=rng.randrange(1000), output_tokens=rng.randrange(99), total_tokens=9)
            yield output

    @solver
    def turns():
        async def solve(state, generate):
            for _ in range(10):
                state.messages.append(ChatMessageUser(content=text(25)))
                state = await generate(state)
            return state

        return solve

    samples = [Sample(id=f"s{i}", input=text(30), target="yes") for i in range(500)]
    task = inspect_ai.Task(samples, solver=turns(), scorer=includes())
    folder = str(tmp_path_factory.mktemp("log"))
    model = get_model("mockllm/model", custom_outputs=outputs())
    done = inspect_ai.eval(task, model=model, log_dir=folder, display="none", log_format="eval")[0]
    assert done.status == "success", done.error
    return done.location


@pytest.fixture(scope="module")
def deflated(log, tmp_path_factory):
    path = tmp_path_factory.mktemp("deflated") / "log.eval"
    with zipfile.ZipFile(log) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    return str(path)


def unzipped(path):
    with zipfile.ZipFile(path) as archive:
        return [orjson.loads(archive.read(m)) for m in archive.infolist() if m.filename.startswith("samples/")]


def test_against_unzipping(log, deflated):
    for name, path in (("zstandard", log), ("deflate", deflated)):
        read, samples = traces.read(path), unzipped(path)
        assert [s["id"] for s in samples] == read.run_strings("id")
        said = [(m["role"], m["content"]) for s in samples for m in s["messages"]]
        assert said == [(m["role"], m["content"]) for run in read.to_messages() for m in run]
        ours, theirs = cpu(lambda p=path: traces.read(p)), cpu(lambda p=path: unzipped(p))
        print(f"\n{name}: ours {ours * 1e3:.0f} ms, zip + orjson {theirs * 1e3:.0f} ms, ratio {theirs / ours:.1f}")


def test_against_samples_df(log):
    from inspect_ai.analysis import messages_df, samples_df

    runs, frame = traces.read(log, messages=False), samples_df(log)
    rows = dict(zip(runs.run_strings("id"), runs.run("score"), strict=True))
    assert rows == dict(zip(frame["id"], (frame["score_includes"] == "C").astype(float), strict=True))
    times = dict(zip(runs.run_strings("id"), runs.run("seconds"), strict=True))
    assert times == dict(zip(frame["id"], frame["total_time"], strict=True))
    ours, theirs = cpu(lambda: traces.read(log, messages=False)), cpu(lambda: samples_df(log))
    print(f"\nruns only: ours {ours * 1e3:.1f} ms, samples_df {theirs * 1e3:.0f} ms, ratio {theirs / ours:.0f}")
    read, frame = traces.read(log), messages_df(log)
    order = dict(zip(runs.run_strings("id"), range(500), strict=True))
    assert len(order) == 500
    assert len(frame) == sum(map(len, read.to_messages()))
    assert sorted(frame["content"]) == sorted(
        t for t, c in zip(read.strings("text"), read["call"], strict=True) if not c
    )
    ours, theirs = cpu(lambda: traces.read(log)), cpu(lambda: messages_df(log), 0)
    print(f"all messages: ours {ours * 1e3:.0f} ms, messages_df {theirs * 1e3:.0f} ms, ratio {theirs / ours:.0f}")


def test_text_per_second(log):
    texts = [orjson.dumps(s) for s in unzipped(log)]
    seconds = cpu(lambda: traces._parse(texts, [""] * len(texts), "inspect", False, []))
    size = sum(map(len, texts)) / 1e6
    print(f"\nJSON to columns: {size / seconds:.0f} MB/s of {size:.0f} MB")
    runs = traces.read(log).to_messages()
    seconds = cpu(lambda: [mast.detect(run) for run in runs])
    print(f"detectors on the messages: {sum(len(m['content']) for r in runs for m in r) / 1e6 / seconds:.0f} MB/s")
