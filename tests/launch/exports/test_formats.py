"""Every format of an export, opened again by a reader that is not ours, and what cannot be written."""

import re
import struct
import zlib
from pathlib import Path
from xml.etree import ElementTree

import onnx
import onnxruntime
import pytest
import torch
from matplotlib.mathtext import MathTextParser

from normact.launch.export import Target, export
from normact.launch.exports import formats
from normact.launch.exports.checks import CHECKS, COMPILE, ONNXRUNTIME, PROGRAM
from normact.launch.exports.formats import Place
from normact.launch.exports.tex import tex
from normact.spaces import CATALOGUE, EVONORM_MOMENTS, EVONORM_POINTWISE, GraphLayer, GraphSpace, InputError, Op
from normact.spaces.kan.space import KanSpace
from normact.spaces.ops import OPS
from tests.launch.conftest import COSTLY, TINY, without_checks

SPACE = GraphSpace([*EVONORM_POINTWISE, *EVONORM_MOMENTS])
B0 = CATALOGUE["evonorm_b0"].graph


@pytest.fixture
def quick(monkeypatch):
    """Without the costly checks."""
    without_checks(monkeypatch, COSTLY)


def written(path, space=SPACE, text="evonorm_b0", **target):
    """What was said of an export."""
    said = []
    export(space, space.parse(text), Target(path, **target), "from run 7", said.append)
    return said


def test_a_program_takes_any_batch_and_any_length(tmp_path, quick):
    written(tmp_path / "b0.pt2", place=Place(features=6, layout="NLC"))
    extra = {"note": ""}
    program = torch.export.load(tmp_path / "b0.pt2", extra_files=extra)
    assert extra["note"] == "from run 7"
    layer = GraphLayer(B0, 6, "NLC").eval()
    for shape in ((1, 1, 6), (5, 200, 6)):
        x = torch.randn(shape)
        torch.testing.assert_close(program.module()(x), layer(x))


def test_an_onnx_file_takes_any_batch_and_any_image(tmp_path, quick):
    written(tmp_path / "b0.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "b0.onnx"))
    assert onnx.load(tmp_path / "b0.onnx").doc_string == "from run 7"
    session = onnxruntime.InferenceSession(tmp_path / "b0.onnx", providers=["CPUExecutionProvider"])
    layer = GraphLayer(B0, formats.FEATURES).eval()
    for shape in ((1, 64, 1, 1), (3, 64, 70, 4)):
        x = torch.randn(shape)
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), layer(x))


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_a_kan_is_written_layer_by_layer(tmp_path, suffix, quick):
    space = KanSpace("linear", kinds=["kan", "node"])
    candidate, place = space.parse("kan(gaussian(grid=5)); node(rational)"), Place(7, 5, index=0)
    path = tmp_path / f"kan{suffix}"
    written(path, space, "kan(gaussian(grid=5)); node(rational)", place=place)
    again = tmp_path / "again.pt2"  # the same start
    written(again, space, "kan(gaussian(grid=5)); node(rational)", place=place)
    program, layer = torch.export.load(again), space.build(candidate, place.site(space)).eval()
    layer.load_state_dict(program.state_dict)
    x = torch.randn(9, 7)
    if suffix == ".pt2":
        found = torch.export.load(path).module()(x)
    else:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        found = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
    assert found.shape == (9, 5)
    torch.testing.assert_close(found, layer(x))


def braces(text):
    depth = 0
    for character in re.sub(r"\\[{}]", "", text):
        depth += (character == "{") - (character == "}")
        assert depth >= 0
    return depth


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_formula_is_latex(name):
    """Matplotlib's reader of mathematics takes each equation; names are defined before they are used."""
    text = tex(CATALOGUE[name].graph, "100 % of it\nsecond line")
    assert braces(text) == 0
    assert "% 100 % of it\n% second line\n" in text
    body = text.partition("\\begin{align*}\n")[2].partition("\n\\end{align*}")[0]
    known = set()
    for row in body.split(" \\\\\n"):
        left, right = row.strip().split(" &= ")
        MathTextParser("path").parse(f"${left} = {right}$")
        assert set(re.findall(r"h_\{\d+\}", right)) <= known
        known.add(left)
    assert "y" in known


def test_the_formula_of_a_shared_node_names_it_once(tmp_path, quick):
    written(tmp_path / "b0.tex")
    assert (tmp_path / "b0.tex").read_text().splitlines()[:7] == [
        "% expression: affine(div(x, max(batch_std(x), add(instance_std(x), mul(v1, x)))))",
        "% from run 7",
        r"% \usepackage{amsmath}",
        r"\begin{align*}",
        r"  h_{1} &= \max\left(\sigma_{B}\left(x\right), \sigma_{I}\left(x\right) + v_{1} \cdot x\right) \\",
        r"  y &= \gamma \left(\frac{x}{h_{1}}\right) + \beta",
        r"\end{align*}",
    ]


def texts(path):
    return [element.text for element in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")]


def test_a_picture_shows_every_node_and_every_input(tmp_path, quick):
    written(tmp_path / "b0.svg")
    labels = ["x", "batch_std", "instance_std", "v1", "mul", "add", "max", "div", "affine"]
    assert sorted(texts(tmp_path / "b0.svg")) == sorted(labels)
    assert "from run 7" in (tmp_path / "b0.svg").read_text()
    written(tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_bytes() == (tmp_path / "b0.svg").read_bytes()


def chunks(data):
    """The chunks of a PNG file, their checksums checked."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at = 8
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0] == zlib.crc32(kind + body)
        yield kind, body
        at += 12 + size


def test_other_pictures_are_what_their_suffix_says(tmp_path, quick):
    written(tmp_path / "b0.png")
    found = list(chunks((tmp_path / "b0.png").read_bytes()))
    assert min(struct.unpack(">II", dict(found)[b"IHDR"][:8])) > 200
    assert (b"tEXt", b"Description\0from run 7") in found
    written(tmp_path / "b0.pdf")
    data = (tmp_path / "b0.pdf").read_bytes()
    assert data.startswith(b"%PDF-")
    assert data.rstrip().endswith(b"%%EOF")


def test_a_pointwise_layer_has_a_curve(normact, tmp_path):
    start = ["space=pointwise", "budget.proposals=1", "start_from=['mul(v1, tanh(x))']", "run_dir=run"]
    assert normact("search", *TINY, *start)[0] == 0
    status, out, err = normact("export", "run", "--candidate", "#0", "--out", "act.tex", "--curve", "act.svg")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    run = [name for name in CHECKS if name not in COSTLY]
    assert [line.split()[0] for line in lines[: len(run)]] == [name.split()[0] for name in run]
    assert lines[len(run)].startswith("exported #0 to act.tex: outputs and gradients within ")
    plotted = lines[len(run) + 1 :]
    assert plotted[0].split()[0] == "1"  # tanh(6) and tanh(-6), to four digits
    assert plotted[-1].split() == ["-6", "x", "6"]
    assert {"layer", "derivative"} <= set(texts(tmp_path / "act.svg"))


def _branching(a):
    if a.detach().sum() > 1e30:
        return a
    return torch.tanh(a)


def test_a_check_that_fails_is_said_and_noted_in_the_file(tmp_path, monkeypatch):
    """A person's op that decides by its tensor's values: no compiler can follow that."""
    monkeypatch.setitem(OPS, "branching", Op("branching", 1, _branching))
    without_checks(monkeypatch, {ONNXRUNTIME})
    space = GraphSpace(["add", "branching"], layouts=["NC"])
    said = written(tmp_path / "mine.py", space, "add(x, branching(x))")
    failed = {line[2:28].strip() for line in said if " FAILED " in line}
    assert failed == {COMPILE, PROGRAM[:26].strip()}
    docstring = compile((tmp_path / "mine.py").read_text(), "mine.py", "exec").co_consts[0]
    notes = [line for line in docstring.splitlines() if line.startswith("FAILED at export: ")]
    assert [line.split(": ")[1] for line in notes] == [COMPILE, PROGRAM]
    assert "from run 7" in docstring
    with pytest.raises(InputError, match=r"^torch.export cannot take layer: .*; write it as .py$"):
        written(tmp_path / "mine.pt2", space, "add(x, branching(x))")
    without_checks(monkeypatch, COSTLY)
    written(tmp_path / "mine.tex", space, "add(x, branching(x))")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["mine.py", "mine.tex"]


BAD = [
    ("x.foo", {}, "must end in .py, .pt2, .onnx, .tex, .svg, .png, .pdf; got '.foo'"),
    ("x", {}, "got 'no suffix'"),
    ("no/x.svg", {}, "the folder no does not exist"),
    ("there.tex", {}, "there.tex exists already"),
    ("x.py", {"curve": Path("x.txt")}, "--curve x.txt must end in .svg, .png, .pdf"),
    ("x.py", {"curve": Path("x.svg")}, "--curve x.svg: only a graph without moments has one"),
    ("x.tex", {"place": Place(features=3)}, "are for .pt2 and .onnx, got x.tex"),
    ("x.pt2", {"place": Place(layout="NC")}, "--layout NC: this layer has none; it has NCHW and NLC"),
    ("x.pt2", {"place": Place(index=7)}, "--index 7: this layer has none; it has 0 and 1"),
    ("x.onnx", {"place": Place(out_features=7)}, "--out-features 7: a layer of kind norm_act keeps its channels"),
]


@pytest.mark.parametrize(("path", "target", "message"), BAD, ids=lambda value: str(value)[:30])
def test_what_cannot_be_written_is_one_line_and_no_file(tmp_path, monkeypatch, path, target, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.tex").write_text("mine")
    with pytest.raises(InputError, match=re.escape(message)) as error:
        written(Path(path), **target)
    assert "\n" not in str(error.value)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("there.tex", "mine")]


@pytest.mark.parametrize(
    ("path", "package", "extra"), [("x.onnx", "onnxscript", "onnx"), ("x.pdf", "matplotlib", "pictures")]
)
def test_a_library_that_is_missing_is_named_with_its_extra(tmp_path, monkeypatch, path, package, extra):
    monkeypatch.setattr(formats, "missing", lambda needs: [name for name in needs if name == package])
    with pytest.raises(InputError, match=re.escape(f"needs {package}: pip install 'normact[{extra}]'")):
        written(tmp_path / path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".tex", ".svg"])
def test_a_kan_has_no_formula_and_no_picture(tmp_path, suffix):
    with pytest.raises(
        InputError, match=rf"{suffix} is for graph layers, got kan\(gaussian.*; write it as .py, .pt2 or .onnx"
    ):
        written(tmp_path / f"x{suffix}", KanSpace("linear", kinds=["kan"]), "kan(gaussian(grid=5))")
    assert not list(tmp_path.iterdir())
