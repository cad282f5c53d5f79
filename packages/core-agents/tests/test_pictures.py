"""Pictures of trees and of tick logs."""

import base64
import json
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from core_agents import behaviour_tree as bt
from core_agents import from_dsl, pictures
from core_agents.reference.behaviour_tree import random_tree

TREE = from_dsl("""
Selector: "a < b & c"
    Condition: obs[0] > 0.5
        Action: 1 for 3
    Sequence(memory): "</script>"
        not:
            Condition: obs[1] < 0
        Action: 0 "$x^$"
""")


def test_svg_shows_every_node():
    for tree in (TREE, random_tree(np.random.default_rng(0), 60, 4)):
        root = ET.fromstring(pictures.tree_svg(tree))
        kinds = [e.tag.rpartition("}")[2] for e in root]
        nodes = len(bt.compile(tree).nodes)
        assert (kinds.count("rect"), kinds.count("text"), kinds.count("path")) == (nodes, nodes, nodes - 1)
    assert "a < b & c" in "".join(ET.fromstring(pictures.tree_svg(TREE)).itertext())
    with pytest.raises(ValueError, match="labels"):
        pictures.tree_svg(TREE, ["one"])


def test_files(tmp_path):
    pictures.save_tree(TREE, tmp_path / "tree.svg")
    assert (tmp_path / "tree.svg").read_text() == pictures.tree_svg(TREE)
    with pytest.raises(ValueError, match="must end in"):
        pictures.save_tree(TREE, tmp_path / "tree.bmp")
    pytest.importorskip("matplotlib")
    pictures.save_tree(TREE, tmp_path / "tree.png")
    assert (tmp_path / "tree.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_holds_the_log(tmp_path):
    program = bt.compile(TREE, 2)
    batched, log = bt.BatchedTree(program, 5), bt.TickLog(program, [1, 3])
    rng = np.random.default_rng(0)
    for _ in range(7):
        batched.tick(rng.normal(size=(5, 2)).astype(np.float32), log=log)
    pictures.save_trace(log, tmp_path / "trace.html", "a <b>")
    page = (tmp_path / "trace.html").read_text()
    assert page.count("</script>") == 2
    assert "a &lt;b&gt;" in page
    assert not re.search(r"(src|href)=", page)
    data = json.loads(re.search(r'json">(.*?)</script>', page)[1])
    assert [n["text"] for n in data["nodes"]] == [n["text"] for n in log.nodes]
    held = np.frombuffer(base64.b64decode(data["statuses"]), np.uint8).reshape(2, len(program), 7)
    np.testing.assert_array_equal(held, log.statuses.transpose(2, 1, 0))
    assert data["actions"] == log.actions.T.tolist()
