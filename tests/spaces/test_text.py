import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from normact.spaces import CATALOGUE, OPS, GraphLayer, InputError, LayerGraph, Node, formula, latex, parse
from normact.spaces.text import MAX_DEPTH, MAX_TEXT, to_text


@given(data=st.data())
def test_text_comes_back_as_the_same_layer(graphs, data):
    graph = data.draw(graphs)
    assert parse(str(graph)).canonical == graph.canonical
    assert parse(str(graph)).key() == graph.key()
    assert str(graph) == to_text(graph)


@given(data=st.data())
def test_spaces_and_line_breaks_between_the_parts_do_not_matter(graphs, data):
    graph = data.draw(graphs)
    spread = str(graph).replace("(", " (\n ").replace(")", "\t) ").replace(",", " ,")
    assert parse(spread) == parse(str(graph))


def test_an_expression_is_read_into_nodes():
    assert parse("mul(x, sigmoid(mul(v1, x)))") == LayerGraph(
        (Node("mul", ("v1", "x")), Node("sigmoid", (0,)), Node("mul", ("x", 1)))
    )
    assert parse("affine(add(neg(x), neg(x)))") == LayerGraph((Node("neg", ("x",)), Node("add", (0, 0))), affine=True)
    assert parse("add(s0.01, v0_2)").nodes == (Node("add", ("s0.01", "v0_2")),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at position 0: expected an op, found the end"),
        ("   ", "expected an op, found the end"),
        ("x", "at position 0: 'x' alone is no layer"),
        ("v1", "at position 0: 'v1' alone is no layer"),
        ("affine(x)", "'x' alone is no layer"),
        ("relu", r"at position 4: expected '\(', found the end"),
        ("relu(", "at position 5: expected an op or an input, found the end"),
        ("relu(x", r"at position 6: expected '\)', found the end"),
        ("relu(x))", r"at position 7: the expression ends here, but '\)' follows"),
        ("relu(x) relu(x)", r"at position 8: the expression ends here, but 'relu\(x\)' follows"),
        ("relu()", r"at position 5: expected an op or an input, found '\)'"),
        ("relu(x,)", r"at position 7: expected an op or an input, found '\)'"),
        ("add(x)", r"at position 0: op 'add' takes 2 argument\(s\), got 1"),
        ("neg(add(x, x, x))", r"at position 4: op 'add' takes 2 argument\(s\), got 3"),
        (
            "mul(x, sigmoyd(x))",
            "unknown op or input 'sigmoyd' at position 7; the nearest is 'sigmoid'; known: abs",
        ),
        ("mul(x, zer0)", "unknown op or input 'zer0' at position 7; the nearest is 'zero'"),
        ("mul(x,    w1)", "unknown op or input 'w1' at position 10"),
        ("mul(x, affine(x))", r"at position 7: affine\(...\) may only be outermost"),
        ("affine(affine(relu(x)))", r"at position 7: affine\(...\) may only be outermost"),
        ("affine(relu(x)", r"at position 14: expected '\)', found the end"),
        ("add(x, 1)", "at position 7: expected an op or an input, found '1"),
        ("add(x; x)", r"at position 5: expected '\)', found '; x\)'"),
        ("x + x", "at position 2: the expression ends here, but '. x' follows"),
        ("relu(-x)", r"at position 5: expected an op or an input, found '-x\)'"),
        ('__import__("os")', "unknown op or input '__import__' at position 0"),
        ("relu.__class__(x)", r"at position 4: expected '\(', found '.__class__"),
        ("relu(x).detach()", r"at position 7: the expression ends here, but '.detach\(\)' follows"),
        ("lambda: x", "unknown op or input 'lambda' at position 0"),
        ("relu(x", "in ...'relu.x'..."),
        ("ｒelu(x)", "at position 0: expected an op, found"),
        ("relu(x)\0", "at position 7: the expression ends here"),
    ],
)
def test_a_wrong_expression_is_answered_with_its_place(text, message):
    with pytest.raises(InputError, match=message) as error:
        parse(text)
    assert "\n" not in str(error.value)


ALPHABET = st.sampled_from(
    [
        "relu",
        "add",
        "mul",
        "neg",
        "batch_std",
        "affine",
        "x",
        "zero",
        "v0",
        "s0.01",
        "v1_2",
        "(",
        ")",
        ",",
        " ",
        "\n",
        "1",
    ]
)


@given(text=st.text() | st.lists(ALPHABET, max_size=30).map("".join))
@example("relu(x)")
@example("(" * 5000)
@example("ﬁ(x)")
@example("x" * 5000)
def test_any_text_is_a_layer_or_an_input_error(text):
    try:
        graph = parse(text)
    except InputError as error:
        assert len(str(error)) < 1000
        return
    assert parse(str(graph)).canonical == graph.canonical


def test_depth_is_limited_without_touching_pythons_limit():
    fits = "neg(" * MAX_DEPTH + "x" + ")" * MAX_DEPTH
    assert len(parse(fits).nodes) == MAX_DEPTH
    for depth in (MAX_DEPTH + 1, 15_000):
        with pytest.raises(InputError, match=f"nested deeper than {MAX_DEPTH}"):
            parse("neg(" * depth + "x" + ")" * depth)


def test_length_and_number_of_operations_are_limited():
    with pytest.raises(InputError, match=f"has {MAX_TEXT + 1} characters; at most {MAX_TEXT}"):
        parse("x" * (MAX_TEXT + 1))
    text = "x"
    names = [f"s{k}" for k in range(300)]

    def tree(leaves):
        if len(leaves) == 1:
            return leaves[0]
        half = len(leaves) // 2
        return f"add({tree(leaves[:half])}, {tree(leaves[half:])})"

    assert len(parse(tree(names[:257])).nodes) == 256
    with pytest.raises(InputError, match="more than 256 distinct operations"):
        parse(tree(names[:258]) + text)


def test_a_graph_that_shares_much_is_listed_and_comes_back_by_json():
    nodes = [Node("add", ("x", "x")), *(Node("add", (k, k)) for k in range(40))]
    graph = LayerGraph(tuple(nodes))
    assert str(graph).startswith("n0 = add(x, x); n1 = add(n0, n0); ")
    assert len(str(graph)) < 2000
    assert LayerGraph.from_json(graph.to_json()) == graph


PYTHON_NAMES = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "max": torch.maximum,
    "min": torch.minimum,
    "neg": torch.neg,
    "abs": torch.abs,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "batch_mean": lambda a: a.mean(0, keepdim=True).expand_as(a),
    "group_rms": lambda a: (a.square().mean(1, keepdim=True) + 1e-5).sqrt().expand_as(a),
}


@given(data=st.data())
def test_a_formula_means_what_its_graph_computes(tame_graphs, data):
    """A formula over these names is Python too, whose rules of precedence are an independent judge."""
    graph = data.draw(tame_graphs)
    x = torch.linspace(-2, 2, 20, dtype=torch.float64).sin().view(5, 4)
    names = {"x": x, "zero": 0 * x, "v0": 0 * x, "v1": 0 * x + 1, "affine": lambda a: a, **PYTHON_NAMES}
    value = eval(formula(graph), {"__builtins__": {}}, names)
    layer = GraphLayer(graph, 4, "NC").double()
    layer.groups = 1
    torch.testing.assert_close(layer(x), value, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mul(add(x, v0), v1)", "(x + v0) * v1"),
        ("add(mul(x, v0), v1)", "x * v0 + v1"),
        ("div(x, mul(v0, v1))", "x / (v0 * v1)"),
        ("sub(x, sub(v0, v1))", "x - (v0 - v1)"),
        ("sub(sub(x, v0), v1)", "x - v0 - v1"),
        ("neg(add(x, v0))", "-(x + v0)"),
        ("neg(neg(x))", "-(-x)"),
        ("mul(neg(x), v1)", "-x * v1"),
        ("affine(div(mul(x, sigmoid(x)), group_std(x)))", "affine(x * sigmoid(x) / group_std(x))"),
        ("max(x, zero)", "max(x, zero)"),
    ],
)
def test_formulas_have_the_brackets_they_need_and_no_more(text, expected):
    assert formula(parse(text)) == expected


def test_latex_of_a_known_layer():
    assert latex(CATALOGUE["evonorm_s1"].graph) == (
        r"\gamma \left(\frac{x \cdot \sigma\left(x\right)}{\sigma_{G}\left(x\right)}\right) + \beta"
    )
    assert latex(parse("add(s0.01, mul(v0_2, square(zero)))")) == r"s_{0.01} + v_{0,2} \cdot \left(0\right)^2"
    assert latex(parse("leaky_relu(x)")) == r"\mathrm{leaky\_relu}\left(x\right)"


@given(data=st.data())
def test_latex_is_balanced(graphs, data):
    text = latex(data.draw(graphs))
    depth = 0
    for character in text:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    assert text.count(r"\left") == text.count(r"\right")


def test_every_op_can_be_written_in_every_form():
    for op in OPS.values():
        graph = parse(f"{op.name}({', '.join(['x'] * op.arity)})")
        assert parse(str(graph)) == graph
        assert formula(graph)
        assert latex(graph)
