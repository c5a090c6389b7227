"""The sql tool: what it answers, what it refuses, and that no query gets out or stays."""

import contextlib
import json
import os
import signal
import subprocess
import sys

import duckdb
import numpy as np
import pytest

from ayllu.errors import InputNotFoundError, RequestError
from ayllu.machine import end_worker
from ayllu.reason.tasks.database import SqliteDatabase
from ayllu.reason.tasks.tables import Tables, database
from ayllu.tools import sql, sql_worker
from ayllu.tools.sql import Database, Table, rows_text, sql_tool
from ayllu.tools.tool import Toolbox, ToolError
from ayllu.tools.walls import landlock

CITIES = Table(
    "cities",
    [("name", "text"), ("size", "integer"), ("share", "number"), ("founded", "date"), ("port", "boolean")],
    [
        ("Lima", 10, 0.5, "1535-01-18", True),
        ("Köln", None, 1 / 3, None, False),
        ("హైదరాబాద్", 7, 2.0, "1591-01-01", None),
    ],
)


@pytest.fixture(scope="module")
def base():
    return Database([CITIES, Table('odd "name"', [('a "b"', "integer")], [])], seconds=60.0)


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("SELECT name FROM cities WHERE size > 8", "Lima"),
        ("SELECT * FROM cities ORDER BY name", "Köln | null | 0.333333333333 | null | false\n"
         "Lima | 10 | 0.5 | 1535-01-18 | true\nహైదరాబాద్ | 7 | 2 | 1591-01-01 | null"),
        ("select sum(size), avg(size), count(*) from cities", "17 | 8.5 | 3"),
        ("WITH a AS (SELECT 1 AS x) SELECT x + 1 FROM a", "2"),
        ("SELECT name FROM cities WHERE false", "(no rows)"),
        ('SELECT * FROM "odd ""name"""', "(no rows)"),
        ("SELECT 1.50::DECIMAL(5,2), 10000000000000000000000::HUGEINT, [1, 2], 'nan'::DOUBLE", None),
        ("SELECT 1;", "1"),
    ],
)  # fmt: skip
def test_answers(base, query, text):
    found = base.ask(query)
    assert text is None or rows_text(found.rows, found.more) == text
    if text is None:
        assert found.rows == [(1.5, 10**22, "[1, 2]", "nan")]


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("SELECT 0.0000001::DOUBLE", "0.0000001"), ("SELECT 0.0000123::DOUBLE", "0.0000123"),
        ("SELECT 0.5000001::DOUBLE", "0.5000001"), ("SELECT 0.1::DOUBLE + 0.2::DOUBLE", "0.3"),
        ("SELECT 1 / 3", "0.333333333333"), ("SELECT 12345678901234.56::DECIMAL(16, 2)", "12345678901234.56"),
        ("SELECT 999999999999999.99::DECIMAL(17, 2)", "999999999999999.99"), ("SELECT -2.50", "-2.5"),
        ("SELECT 'a' || chr(10) || 'b' || chr(9) || chr(8232)", "a\\nb\\t\\u2028"),
    ],
)  # fmt: skip
def test_values_are_written_as_they_are(base, query, text):
    assert rows_text(base.ask(query).rows) == text


def test_columns_are_limited(base):
    assert len(base.ask("SELECT " + ", ".join(map(str, range(100)))).columns) == 100
    with pytest.raises(ToolError, match="at most 100 columns"):
        base.ask("SELECT " + ", ".join(map(str, range(101))))


def test_what_duckdb_prints_is_no_answer(base, tmp_path):
    """A log of queries can be told to go to stdout, over which the answers come."""
    log = tmp_path / "log"
    for how in ("storage='stdout'", f"storage='file', storage_config={{'path': '{log}'}}"):
        with contextlib.suppress(ToolError):
            base.ask(f"SELECT * FROM enable_logging('QueryLog', {how})")
        for n in range(3):
            assert base.ask(f"SELECT {n}").rows == [(n,)]
    assert not log.exists()


def test_a_late_answer_is_not_taken_for_the_next(base, monkeypatch):
    """Ctrl-C in the middle of a query: what that one still says belongs to nobody."""
    real = sql._Worker._read

    def interrupted(worker, patience):
        raise KeyboardInterrupt

    monkeypatch.setattr(sql._Worker, "_read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        base.ask("SELECT 1")
    monkeypatch.setattr(sql._Worker, "_read", real)
    assert base.ask("SELECT 2").rows == [(2,)]


def test_rows_are_limited_and_it_shows(base):
    found = base.ask("SELECT i FROM range(51) r(i)")
    assert len(found.rows) == sql.MAX_ROWS and found.more
    assert rows_text(found.rows, found.more).endswith("\n49\n…[only the first 50 rows]…")
    assert not base.ask("SELECT i FROM range(50) r(i)").more
    assert "[500 characters cut]" in base.ask("SELECT repeat('x', 1000)").rows[0][0]


@pytest.mark.parametrize(
    "query",
    [
        "", ";", "SELEC 1", "SELECT nothing FROM cities", "SELECT 1; SELECT 2", "SELECT '",
        "CREATE TABLE t AS SELECT 1", "INSERT INTO cities (name) VALUES ('x')", "DROP TABLE cities",
        "UPDATE cities SET size = 1", "DELETE FROM cities", "PRAGMA database_list", "SET threads = 4",
        "SET enable_external_access = true", "ATTACH 'x.db'", "COPY cities TO 'x.csv'", "EXPORT DATABASE 'x'",
        "INSTALL httpfs", "LOAD httpfs", "CALL pragma_version()", "PREPARE a AS SELECT 1", "BEGIN",
        "CHECKPOINT",
        "SELECT * FROM query('DROP TABLE cities')", "EXPLAIN ANALYZE SELECT 1", "VACUUM", "USE memory",
        "WITH gone AS (DELETE FROM cities RETURNING name) SELECT count(*) FROM gone",
        "WITH new AS (INSERT INTO cities (name) VALUES ('x') RETURNING name) SELECT * FROM new",
        "WITH new AS (UPDATE cities SET size = 1 RETURNING name) SELECT * FROM new",
        "COMMIT", "ROLLBACK", "ABORT",
    ],
)  # fmt: skip
def test_one_select_and_nothing_else(base, query):
    with pytest.raises(ToolError):
        base.ask(query)
    assert base.ask("SELECT name, size FROM cities").rows == [row[:2] for row in CITIES.rows]


@pytest.mark.parametrize("path", ["/etc/passwd", __file__, "https://example.org/x.csv", "/proc/self/environ"])
def test_nothing_outside_is_read(base, path):
    for reader in (
        "read_csv", "read_text", "read_blob", "read_json", "read_parquet", "sniff_csv", "glob",
        "parquet_metadata",
        "parquet_schema", "read_duckdb", "read_csv_auto", "read_json_objects", "read_ndjson",
    ):  # fmt: skip
        with pytest.raises(ToolError):
            base.ask(f"SELECT * FROM {reader}('{path}')")
    for query in (
        f"SELECT * FROM '{path}'",
        f'SELECT * FROM "{path}"',
        f"SELECT * FROM query_table('{path}')",
    ):
        with pytest.raises(ToolError):
            base.ask(query)


def test_objects_of_python_and_secrets_are_out_of_reach(base):
    for query in (
        "SELECT * FROM bases",
        "SELECT * FROM duckdb_secrets()",
        "SELECT getenv('PATH')",
        "FROM CITIES_",
    ):
        with pytest.raises(ToolError):
            base.ask(query)


def test_walls(base):
    base.ask("SELECT 1")
    assert {"limits", "privileges"} <= set(base.walls)
    known = 0
    with contextlib.suppress(OSError):
        known = landlock.version()
    assert ("landlock" in base.walls) == (known > 0)


@pytest.mark.parametrize(
    "query",
    [
        "SELECT length(repeat('x', 1000000000))",
        "SELECT printf('%2000000000d', 1)",
        "SELECT list_resize([1], 2000000000)",
        "SELECT list(i) FROM range(1000000000) r(i)",
        "SELECT length(replace(s, 'x', s)) FROM (SELECT repeat('x', 60000) s)",
        "SELECT " + "(" * 30000 + "1" + ")" * 30000,
        "SELECT " + "+".join(["1"] * 30000),
    ],
)
def test_floods_cost_the_query_alone(base, query):
    try:
        rows = base.ask(query).rows
    except ToolError as error:
        assert len(str(error)) < 400
    else:
        assert len(rows) == 1
    assert base.ask("SELECT count(*) FROM cities").rows == [(3,)]


def test_time_is_limited():
    quick = Database([CITIES], seconds=0.1)
    with pytest.raises(ToolError, match=r"too long|too much time"):
        quick.ask("SELECT count(*) FROM range(1000000000000)")
    quick.seconds = 60.0
    assert quick.ask("SELECT count(*) FROM cities").rows == [(3,)]


def test_a_process_that_died_or_forgot_is_replaced(base, monkeypatch):
    base.ask("SELECT 1")
    os.kill(base._worker._process.pid, signal.SIGKILL)
    base._worker._process.wait()
    assert base.ask("SELECT count(*) FROM cities").rows == [(3,)]
    worker = base._worker._process  # what was half written to a dead one can't be written when it is closed
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    with contextlib.suppress(OSError):
        worker.stdin.write(b"x" * 100)
        worker.stdin.flush()
    end_worker(worker)
    assert worker.stdin.closed and worker.stdout.closed
    assert base.ask("SELECT count(*) FROM cities").rows == [(3,)]
    monkeypatch.setattr(sql, "_GRACE", 0.0)  # one that doesn't answer is ended
    os.kill(base._worker._process.pid, signal.SIGSTOP)
    stuck = Database([CITIES], seconds=0.1)
    with pytest.raises(ToolError, match="too much time"):
        stuck.ask("SELECT 1")
    monkeypatch.undo()
    stuck.seconds = 60.0
    assert stuck.ask("SELECT count(*) FROM cities").rows == [(3,)]
    assert base.ask("SELECT count(*) FROM cities").rows == [(3,)]


def test_names_of_files_are_no_patterns_and_nothing_else_is_read(tmp_path):
    (tmp_path / "sales[1].csv").write_text("amount\n1\n")
    (tmp_path / "sales1.csv").write_text("amount\n2\n")
    with Database.of_files([tmp_path / "sales[1].csv"]) as files:
        assert files.ask('SELECT amount FROM "sales[1]"').rows == [(1,)]
    # While files are read, by a reader written in C++, nothing else can be opened where there is Landlock.
    code = """if True:
        import sys
        from ayllu.tools import sql_worker
        sql_worker.confine(sys.argv[1:2])
        print(open(sys.argv[1]).read().split(), end=" ")
        open(sys.argv[2])
    """
    paths = [str(tmp_path / "sales[1].csv"), str(tmp_path / "sales1.csv")]
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True)
    assert done.stdout == "['amount', '1'] "
    with contextlib.suppress(OSError):
        landlock.version()
        assert "PermissionError" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root reads what belongs to another user")
def test_root_reads_what_belongs_to_another_user(tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "sales.csv").write_text("amount\n1\n")
    for path, mode in ((folder / "sales.csv", 0o600), (folder, 0o700)):
        os.chown(path, 65534, 65534)
        path.chmod(mode)
    with Database.of_files([folder / "sales.csv"]) as files:
        assert files.ask("SELECT amount FROM sales").rows == [(1,)]
        with Database([CITIES]) as other:
            other.ask("SELECT 1")
            assert set(files.walls) == set(other.walls)


def test_a_result_that_is_too_large_is_told_and_costs_nothing_else(base):
    wide = ", ".join(["repeat('x', 500)"] * 90)
    worker = base._worker._process
    with pytest.raises(ToolError, match="fewer columns or rows"):
        base.ask(f"SELECT {wide} FROM range(900)", 1000)
    assert base._worker._process is worker
    assert base.ask("SELECT count(*) FROM cities").rows == [(3,)]


def test_a_transaction_that_can_not_be_ended_ends_the_process():
    class Broken:
        def execute(self, _):
            raise duckdb.InterruptException

    with pytest.raises(SystemExit):
        sql_worker._roll_back(Broken())


def test_files(tmp_path):
    (tmp_path / "sales.csv").write_text("month,amount\nMay,3\nJune,5.5\n")
    (tmp_path / "log.jsonl").write_text('{"a": 1}\n{"a": 2}\n')
    with Database.of_files([tmp_path / "sales.csv", tmp_path / "log.jsonl"]) as files:
        assert files.schema() == "log (a bigint)\nsales (month varchar, amount double)"
        assert files.ask("SELECT sum(amount) FROM sales").rows == [(8.5,)]
        assert files.ask("SELECT max(a) FROM log").rows == [(2,)]
        with pytest.raises(ToolError):
            files.ask(f"SELECT * FROM read_csv('{tmp_path / 'sales.csv'}')")
        os.kill(files._worker._process.pid, signal.SIGKILL)
        files._worker._process.wait()
        assert files.ask("SELECT count(*) FROM sales").rows == [(2,)]
        (tmp_path / "sales.csv").write_text("month,amount\nMay,4\n")
        assert files.ask("SELECT sum(amount) FROM sales").rows == [(8.5,)], "as it was read"
        os.kill(files._worker._process.pid, signal.SIGKILL)
        files._worker._process.wait()
        with pytest.raises(ToolError, match="has changed since it was read"):
            files.ask("SELECT sum(amount) FROM sales")
    (tmp_path / "sales.exe").write_text("region,amount\n")
    for wrong, error in (
        (tmp_path / "none.csv", InputNotFoundError),
        (tmp_path / "sales.exe", RequestError),
        (tmp_path, RequestError),
    ):
        with pytest.raises(error, match="no data file"):
            Database.of_files([wrong])
    (tmp_path / "bad.parquet").write_text("no parquet")
    with pytest.raises(RequestError, match="can't be read"):
        Database.of_files([tmp_path / "bad.parquet"])


def test_the_tool(base):
    box = Toolbox([sql_tool(base)])
    assert box.run("sql", json.dumps({"query": "SELECT max(size) FROM cities"})).text == "10"
    assert box.run("sql", json.dumps({"query": "DROP TABLE cities"})).text.startswith("error: one SELECT")
    assert "cities (name text, size integer" in box.tools[0].description
    with pytest.raises(ValueError, match="no kind"):
        Database([Table("t", [("a", "blob")], [])])


def test_two_engines_agree_on_table_problems():
    """Problems are solved by SQLite, models ask DuckDB."""
    task, rng = Tables(), np.random.default_rng(5)
    for number in range(27):
        problem = task.problem(rng, 1 + number % 3, "train")
        data = problem.data
        mine = SqliteDatabase(data["table"], data["columns"], data["rows"]).ask(data["query"])
        assert rows_text(database(problem).ask(data["query"]).rows) == rows_text(mine) == problem.answer
    assert database(problem) is database(problem)
