"""uWSGI's own ways to load an application: ``wsgi-file`` and ``mount``; and its log."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from routing import BOTTLE, DJANGO, FALCON, FLASK, PYRAMID, Case, ask, check_all
from servers import APPS, environment, server_spans, uwsgi
from uwsgi_programs import DOOR, LAZY, PROGRAMS, program

from mackerel_otel_server.cli.receiver.endpoint import Receiver


@pytest.mark.parametrize(
    ("file", "cases"),
    [
        ("web_django/wsgi.py", DJANGO),
        ("web_flask.py", FLASK),
        ("web_falcon.py", FALCON),
        ("web_bottle.py", BOTTLE),
        # What Pyramid leaves to the server is another test's business: uWSGI sends no 500 page.
        ("web_pyramid.py", tuple(case for case in PYRAMID if not case.error)),
    ],
)
@pytest.mark.parametrize("which", PROGRAMS)
def test_the_frameworks_are_traced_in_a_wsgi_file(
    tmp_path: Path, receiver: Receiver, file: str, cases: Sequence[Case], which: str
) -> None:
    name = "application" if "django" in file else "app"
    # The two programs and the two ways to load, all pairs of which the door's own tests have.
    mode = LAZY if which == "newest" else ""
    ini = f"{DOOR}{mode}wsgi-file = {APPS / file}\ncallable = {name}\n"
    with uwsgi(tmp_path, ini, env=environment(receiver), processes=1, program=program(which)) as server:
        ask(server, cases)
        server.wait_until_idle()
        log = server.stop()
    check_all(receiver, cases, log)
    assert "make no server spans" not in log


WARNING = (
    "the requests to 'application' of {file} make no server spans, because it is a plain callable that uWSGI loads by "
    "itself; end that file with these two lines:"
)


@pytest.mark.parametrize("mode", ["", LAZY], ids=["prefork", "lazy-apps"])
@pytest.mark.parametrize("which", PROGRAMS)
def test_a_plain_callable_in_a_wsgi_file_is_one_warning_with_the_two_lines_that_help(
    tmp_path: Path, receiver: Receiver, mode: str, which: str
) -> None:
    file = tmp_path / "site.py"
    file.write_text((APPS / "plain.py").read_text())
    ini = f"{DOOR}{mode}wsgi-file = {file}\n"
    (tmp_path / "without").mkdir()
    with uwsgi(tmp_path / "without", ini, env=environment(receiver), program=program(which)) as server:
        server.wait_for_log("make no server spans")
        server.ask_every_worker(2, 2)
        server.wait_until_idle()
        log = server.stop()
    assert log.count(WARNING.format(file=file)) == 1, log
    assert receiver.spans == []
    # What the log says is done, word for word.
    _, _, rest = log.partition(WARNING.format(file=file) + "\n")
    lines = rest.splitlines()[:2]
    assert lines == ["from mackerel_otel_server import trace_wsgi", "application = trace_wsgi(application)"]
    file.write_text("\n".join([file.read_text(), *lines]))
    with uwsgi(tmp_path, ini, env=environment(receiver), program=program(which)) as server:
        server.ask_every_worker(2, 2)
        server.wait_until_idle()
        log = server.stop()
    assert len(server_spans(receiver.spans)) == server.answered, log
    assert "make no server spans" not in log


@pytest.mark.parametrize("which", PROGRAMS)
def test_without_a_master_a_plain_callable_is_one_warning_too(tmp_path: Path, receiver: Receiver, which: str) -> None:
    file = tmp_path / "site.py"
    file.write_text("def site(environ, start_response):\n    start_response('200 OK', [])\n    return [b'site']\n")
    ini = f"{DOOR.replace('master = true', '')}wsgi-file = {file}\ncallable = site\n"
    with uwsgi(tmp_path, ini, env=environment(receiver), program=program(which), processes=1) as server:
        server.wait_for_log("make no server spans")
        log = server.stop()
    assert log.count("\nsite = trace_wsgi(site)") == 1, log


@pytest.mark.parametrize("mode", ["", LAZY], ids=["prefork", "lazy-apps"])
def test_mounts_are_part_of_the_route_and_tenants_are_not(tmp_path: Path, receiver: Receiver, mode: str) -> None:
    # Django and Flask as they are, and one that only a function around Flask can be reached by.
    mounts = (
        f"mount = /django={APPS / 'web_django' / 'wsgi.py'}\n"
        f"mount = /tenants={tmp_path / 'tenants.py'}\n"
        "mount = /falcon=falcon_site:application\n"
        "manage-script-name = true\nsingle-interpreter = true\n"
    )
    (tmp_path / "tenants.py").write_text("from web_mounts import by_tenant as application\n")
    (tmp_path / "falcon_site.py").write_text("from web_falcon import app as application\n")
    env = environment(receiver)
    env["PYTHONPATH"] += f":{tmp_path}"
    cases = (
        Case("/django/items/7/", 200, "/django/items/<int:item>/"),
        Case("/tenants/acme/items/7", 200, "/tenants/items/<int:item>"),
        Case("/falcon/fail/value", 500, "/falcon/fail/{kind}", "ValueError"),
    )
    with uwsgi(tmp_path, DOOR + mode + mounts, env=env, processes=1) as server:
        ask(server, cases)
        server.wait_until_idle()
        log = server.stop()
    check_all(receiver, cases, log)


def test_applications_in_interpreters_of_their_own_are_one_warning(tmp_path: Path, receiver: Receiver) -> None:
    (tmp_path / "one.py").write_text("from web_falcon import app as application\n")
    (tmp_path / "two.py").write_text(
        "def application(environ, start_response):\n    start_response('200 OK', [])\n    return [b'two']\n"
    )
    mounts = "".join(f"mount = /{name}={tmp_path / name}.py\n" for name in ("one", "two"))
    with uwsgi(tmp_path, f"{DOOR}{mounts}manage-script-name = true\n", env=environment(receiver)) as server:
        assert server.get("/one/items/7").status == 200
        assert server.get("/two").body == b"two"
        server.wait_until_idle()
        # With several interpreters uWSGI may crash when it ends.
        server.kill()
    assert server.log.count("add this line to its ini file: single-interpreter = true") == 1, server.log


@pytest.mark.parametrize("which", PROGRAMS)
def test_the_log_format_can_name_the_trace_id(tmp_path: Path, receiver: Receiver, which: str) -> None:
    ini = f"{DOOR}module = plain\nthreads = 2\nlog-format = seen %(uri) %(otel_trace_id)\n"
    with uwsgi(tmp_path, ini, env=environment(receiver), program=program(which), processes=1) as server:
        server.get("/own")
        server.get("/missing")
        server.wait_for_log("seen /own")
        server.wait_for_log("seen /missing")
        log = server.stop()
    ids = {span.attributes["url.path"]: span.trace_id for span in server_spans(receiver.spans)}
    assert sorted(ids) == ["/missing", "/own"]
    for path, trace_id in ids.items():
        assert f"seen {path} {trace_id}\n" in log
