"""The documentation site: its pages, links, snippets, notebooks and tables, without building it."""

import inspect
import json

import nbformat
import pytest
import yaml
from documentation import decision, links, notebooks, site, snippets, verbs

import trtkit
from trtkit.cli import COMMANDS

FENCED = "# Page\n\n```bash\ntrtkit doctor\n```\n"


# Snippets


def list_all(text):
    return list(snippets.list_snippets(text, "page.md"))


def test_a_snippet_runs_unless_a_marker_gives_the_reason():
    text = f"{FENCED}\n<!-- not run: needs a GPU -->\n```python\nimport trtkit\n```\n"
    first, second = list_all(text)
    assert (first.language, first.code, first.line, first.reason) == ("bash", "trtkit doctor\n", 3, None)
    assert (second.language, second.line, second.reason) == ("python", 8, "needs a GPU")


def test_a_marker_belongs_to_the_next_block_only():
    text = "<!-- not run: needs a GPU -->\n\nText between.\n\n```bash\ntrtkit doctor\n```\n"
    assert [snippet.reason for snippet in list_all(text)] == [None]


def test_output_is_no_snippet_and_a_block_without_a_language_is_refused():
    assert list_all("```text\n[E] failed\n```\n") == []
    with pytest.raises(SystemExit, match=r"page\.md:1: name the block's language"):
        list_all("```\ntrtkit doctor\n```\n")


def test_python_blocks_of_a_page_share_their_names(tmp_path):
    page = list_all("```python\nvalue = 3\n```\n\n```python\nassert value == 3\nopen('made', 'w').close()\n```\n")
    assert snippets.run_page(page, tmp_path) == []
    assert (tmp_path / "made").is_file()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```python\nvalue = 1 / 0\n```\n", "ZeroDivisionError"),
        ("```bash\ntrtkit engine show missing.engine\n```\n", "the file does not exist"),
        ("```bash\ntrtkit export --no-such-option\n```\n", "exit status 2"),
        ("```bash\ntrue\nfalse\n```\n", "exit status 1"),
    ],
)
def test_a_snippet_that_fails_is_named_with_its_error(tmp_path, text, message):
    (problem,) = snippets.run_page(list_all(text), tmp_path)
    assert problem.startswith("page.md:1 failed")
    assert message in problem


def test_a_snippet_may_expect_an_error(tmp_path):
    page = list_all("```bash\ntrtkit engine check missing.engine || true   # says why\n```\n")
    assert snippets.run_page(page, tmp_path) == []


def test_code_that_ran_runs_again_only_after_a_change(tmp_path, monkeypatch, capsys):
    page, runs = tmp_path / "page.md", []
    page.write_text(f"{FENCED}\n<!-- not run: needs a GPU -->\n```bash\ntrtkit doctor\n```\n")
    monkeypatch.setattr(snippets, "ROOT", tmp_path)
    monkeypatch.setattr(snippets, "list_pages", lambda: [page])
    monkeypatch.setattr(snippets, "_run_pages", lambda list_: runs.append(len(list_)) or ["failed"] * (len(runs) == 1))
    assert snippets.run_all(tmp_path / "stamps") == ["failed"]
    for _ in range(2):
        assert snippets.run_all(tmp_path / "stamps") == []
    assert runs == [1, 1]
    assert "1 code blocks ran before, unchanged; not run:\n  page.md:8: needs a GPU\n" in capsys.readouterr().out
    monkeypatch.setattr(snippets, "package_hash", lambda: "another")
    snippets.run_all(tmp_path / "stamps")
    assert runs == [1, 1, 1]


def test_the_workspace_s_model_is_small(tmp_path):
    path = tmp_path / "yolo11n.pt"
    snippets._copy_model(trtkit.demo.model_path(), path)
    model, own = trtkit.load(path), trtkit.load(trtkit.demo.model_path())
    assert (model.imgsz, own.imgsz) == ((snippets.IMGSZ,) * 2, (snippets.OWN_IMGSZ,) * 2)
    assert model.names == own.names


# Links


@pytest.fixture
def repository(tmp_path):
    for name in ("README.md", "docs/a.md", "docs/verbs.md", "src/code.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    pages = {"README.md": "readme.md", "docs/a.md": "a.md", "docs/verbs.md": "verbs/"}
    return links.LinkMap(tmp_path, pages, lambda path: f"files/{path.name}.txt" if path.is_file() else None)


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("[r](../README.md#start)", "[r](readme.md#start)"),
        ("[v](verbs.md#export)", "[v](verbs/export.md)"),
        ("[c](../src/code.py)", "[c](files/code.py.txt)"),
        ("[folder](../src)", "folder"),
        ("[web](https://example.com/a) [here](#part)", "[web](https://example.com/a) [here](#part)"),
        ("```text\n[r](../README.md)\n```\n", "```text\n[r](../README.md)\n```\n"),
    ],
)
def test_links_lead_to_pages_of_the_site(repository, markdown, expected):
    assert links.rewrite(markdown, "docs/a.md", "a.md", repository) == expected


def test_a_link_to_no_file_is_refused(repository):
    with pytest.raises(SystemExit, match="leads to no file"):
        links.rewrite("[x](gone.md)", "docs/a.md", "a.md", repository)


def test_broken_links_anchors_and_remote_loads_of_a_site_are_found(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "index.html").write_text(
        '<a href="a/#there">1</a><a href="a/#gone">2</a><a href="b/">3</a><a href="https://example.com">4</a>'
        '<img src="no.png"><script src="https://cdn.example.com/x.js"></script><link rel="canonical" href="https://x.y">'
    )
    (tmp_path / "a" / "index.html").write_text('<h1 id="there">A</h1><a href="../">up</a>')
    (tmp_path / "style.css").write_text('@import "//fonts.example.com/x"; a { background: url(own.png) }')
    assert links.find_broken_links(tmp_path) == [
        "index.html: a/#gone (no such anchor)", "index.html: b/", "index.html: no.png",
    ]  # fmt: skip
    assert links.find_remote_loads(tmp_path) == [
        "index.html: https://cdn.example.com/x.js", "style.css: //fonts.example.com/x",
    ]  # fmt: skip


# Verbs


@pytest.fixture(scope="module")
def verb_pages():
    return verbs.list_pages()


def test_every_command_and_every_public_function_has_a_page(verb_pages):
    text = "\n".join(verb_pages.values())
    assert {name.replace("-", "_") for name in COMMANDS} <= set(verb_pages)
    for name in dir(trtkit):
        member = getattr(trtkit, name)
        if inspect.isfunction(member) or (inspect.isclass(member) and name != "TrtkitError"):
            assert f"::: {member.__module__}.{member.__qualname__}\n" in text, name
    assert "::: trtkit.errors\n" in text


def test_a_page_has_example_options_and_signature(verb_pages):
    page = verb_pages["export"]
    assert "artifact = tk.export(" in page
    assert "trtkit export yolo11n.pt --half  # an FP16 engine beside the model" in page
    assert "| `--format {engine,onnx}` |" in page
    assert "::: trtkit.exporter.export\n" in page
    assert "::: trtkit.exporter.Artifact\n" in page


def test_no_object_is_documented_twice(verb_pages):
    directives = [line for text in verb_pages.values() for line in text.splitlines() if line.startswith(":::")]
    assert len(directives) == len(set(directives)) > 40


# Notebooks


def test_every_notebook_is_executed_for_the_site():
    stems = [stem for chain in notebooks.CHAINS for stem in chain]
    assert sorted(stems) == [path.stem for path in sorted(notebooks.SOURCES.glob("*.ipynb"))]
    # The third loads what the first saved.
    assert notebooks.CHAINS[0][:2] == ("01_quickstart", "03_int8_vs_fp16")


def test_published_settings_are_shown_in_the_settings_cell():
    (cell,) = (cell for cell in notebooks.read("04_calibration_tuning").cells if cell.id == "parameters")
    assert 'algorithms = ("minmax", "percentile")  # to compare' in cell.source.replace("'", '"')
    scope = {"tk": trtkit}
    exec(cell.source, scope)
    published = notebooks.read("04_calibration_tuning").metadata["trtkit"]["published"]
    assert {name: json.loads(json.dumps(scope[name])) for name in published} == published


def make_notebook(*outputs):
    cell = nbformat.v4.new_code_cell("tk.demo", id="cell", outputs=list(outputs), execution_count=1)
    text = nbformat.v4.new_markdown_cell("# Title", id="title")
    return nbformat.v4.new_notebook(cells=[text, cell], metadata={"trtkit": {"published": {"trials": 1}}})


def test_a_page_has_outputs_without_plotly_and_without_paths():
    library = "<script type='text/plain' data-trtkit-library>AAAA</script>"
    html = nbformat.v4.new_output("display_data", {"text/html": f"{library}<b>{notebooks.ROOT}/runs/x</b>"})
    parts = [nbformat.v4.new_output("stream", name="stdout", text=text) for text in ("\x1b[1mone\x1b[0m <", "two>\n")]
    markdown, outputs = notebooks.page_markdown("01", make_notebook(html, *parts))
    assert outputs == {"01/cell": "<b>runs/x</b>\n<pre>one &lt;two&gt;</pre>"}
    assert '<div class="notebook-output" data-output="01/cell"></div>' in markdown
    assert "The settings `trials` are smaller than the file's" in markdown


def test_errors_warnings_and_cells_that_did_not_run_are_problems():
    warning = nbformat.v4.new_output("stream", name="stderr", text="a warning")
    error = nbformat.v4.new_output("error", ename="ValueError", evalue="", traceback=[])
    notebook = make_notebook(warning, error)
    notebook.cells[1].execution_count = None
    assert list(notebooks.list_problems(notebook)) == [
        "cell cell did not run", "cell cell wrote to stderr: a warning", "cell cell raised ValueError",
    ]  # fmt: skip
    assert not list(notebooks.list_problems(make_notebook()))


def test_a_notebook_s_key_follows_its_code_and_that_of_those_before_it(monkeypatch):
    monkeypatch.setattr(notebooks, "package_hash", lambda: "package")
    first = {stem: notebooks.find_key(stem) for chain in notebooks.CHAINS for stem in chain}
    read = notebooks.read

    def changed(stem):
        notebook = read(stem)
        if stem == "03_int8_vs_fp16":
            notebook.cells[1].source += "\n1"
        return notebook

    monkeypatch.setattr(notebooks, "read", changed)
    second = {stem: notebooks.find_key(stem) for stem in first}
    (chain,) = (chain for chain in notebooks.CHAINS if "03_int8_vs_fp16" in chain)
    assert {stem for stem in first if first[stem] != second[stem]} == set(chain[1:])
    monkeypatch.setattr(notebooks, "package_hash", lambda: "another")
    assert not set(second.values()) & {notebooks.find_key(stem) for stem in first}


# Tables


def test_the_tables_are_those_of_the_records():
    rows = list(decision.list_engine_rows(decision.RECORDS))
    (row,) = (one for one in rows if (one["gpu"], one["model"], one["batch"]) == ("NVIDIA H200", "yolo11n", 8))
    # As benchmarks/results/engines-nvidia-h200.md has them.
    assert (round(row["fp16_ms"], 3), round(row["int8_ms"], 3), round(row["change"], 4)) == (0.133, 0.111, -0.0034)
    text = decision.fill("before\n<!-- generated: engines -->\nafter")
    assert text.startswith("before\n| GPU |")
    assert text.endswith("\nafter")
    assert "| NVIDIA H200 | yolo11n, 640 | 8 | 0.133 | 0.111 | 0.84 | -0.0034 mAP50-95(B) |" in text


def test_rows_of_a_zoo_are_engines_too(tmp_path):
    key = {"model": "yolo11m", "imgsz": 640, "backend": "tensorrt", "gpu": "NVIDIA L4"}
    own = {"metric": "mAP50-95(B)", "versions": {"tensorrt": "10.9"}}
    rows = [
        {**key, **own, "precision": precision, "value": value, "size_mb": size}
        for precision, value, size in (("fp32", 0.5, 80.0), ("fp16", 0.5, 41.0), ("int8", 0.49, 24.0))
    ]
    timings = [
        {**key, "precision": precision, "batch": batch, "image_ms": ms * batch}
        for precision, ms in (("fp16", 2.0), ("int8", 1.5))
        for batch in (1, 8)
    ]
    without_gpu = {**rows[2], "gpu": None, "backend": "onnxruntime"}
    zoo = tmp_path / "zoo.json"
    zoo.write_text(json.dumps({"facts": {"rows": [*rows, without_gpu], "timings": timings}}))
    first, second = decision.list_engine_rows(tmp_path, zoo)
    assert (first["batch"], first["fp16_ms"], first["int8_ms"], first["ratio"]) == (1, 2.0, 1.5, 0.75)
    assert (second["batch"], second["fp16_ms"], second["tensorrt"], second["int8_mb"]) == (8, 16.0, "10.9", 24.0)
    assert round(first["change"], 6) == -0.01


def test_a_loss_has_compare_s_verdict():
    text = decision.fill("<!-- generated: losses -->")
    assert "| yolo26n (one-to-many) | mAP50-95(B) | 0.8625 | -0.0113 [-0.0143, -0.0079] | 300 | loses |" in text


def test_a_table_without_a_name_is_refused():
    with pytest.raises(SystemExit, match="no table is called 'nothing'"):
        decision.fill("<!-- generated: nothing -->")


# The site


def test_every_page_of_docs_is_in_the_menu(tmp_path):
    site.collect({}, tmp_path)
    configuration = yaml.safe_load((tmp_path / "mkdocs.yml").read_text())

    def list_files(entry):
        if isinstance(entry, str):
            return [entry]
        values = entry.values() if isinstance(entry, dict) else entry
        return [name for value in values for name in list_files(value)]

    listed = list_files(configuration["nav"])
    made = {path.relative_to(tmp_path / "docs").as_posix() for path in (tmp_path / "docs").rglob("*.md")}
    assert len(listed) == len(set(listed))
    assert set(listed) == made
    assert {"index.md", "decision.md", "glossary.md", "tools.md", "benchmarks.md", "verbs/compare.md"} <= made
    assert {"errors/engine-header.md", "errors/tensorrt-11.md", "errors/calibration-cache.md"} <= made


def test_the_error_pages_hold_the_messages_literally():
    texts = {path.stem: path.read_text() for path in (site.ROOT / "docs" / "errors").glob("*.md")}
    for page, message in {
        "engine-header": "Serialization assertion plan->header.magicTag == rt::kPLAN_MAGIC_TAG failed.",
        "version-mismatch": "The engine plan file is not compatible with this version of TensorRT, expecting",
        "gpu-mismatch": "The engine plan file is generated on an incompatible device, expecting compute",
        "none-engine": "AttributeError: 'NoneType' object has no attribute 'create_execution_context'",
        "tensorrt-11": "BuilderFlag' has no attribute 'FP16'",
        "calibration-cache": "Missing scale and zero-point for tensor",
    }.items():
        assert message in texts[page]
        assert f"]({page}.md)" in texts["index"]
        assert "**Cure:**" in texts[page]
    assert set(texts) - {"index"} == {name for name in texts if f"]({name}.md)" in texts["index"]}
