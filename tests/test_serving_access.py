"""Who may ask: those with the token, however they send it, and without one nobody whom a page of another site makes ask."""

import base64
from pathlib import Path

import pytest
from litestar.testing import TestClient
from typer.testing import CliRunner

from twotower.cli.app import app
from twotower.serving import server
from twotower.serving.app import make_app
from twotower.serving.live import Live
from twotower.serving.settings import Settings

from . import serving_world as world
from .serving_world import Client


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.saved(tmp_path_factory.mktemp("serving"))


def test_a_token_opens_all_but_health(bundle: Path) -> None:
    front, _ = make_app(Live(bundle), Settings(token="sesame-open", watch=0, explorer=False))
    with TestClient(front) as client:
        paths = ["/", "/recommend/3", "/metrics", "/schema", "/nowhere", "/items", "/v2", "/healthy"]
        for path in ("/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"):
            assert client.get(path).status_code == 200
        for path in paths:
            for sent in (None, "Bearer sesame-ope", "sesame-open", "Bearer ü"):
                headers = {} if sent is None else {b"authorization": sent.encode("latin-1")}
                response = client.get(path, headers=headers)  # type: ignore[arg-type]
                if path != "/healthy":
                    assert response.status_code == 401
                    asks = 'Basic realm="twotower", charset="UTF-8"' if path == "/schema" else "Bearer"
                    assert response.headers["www-authenticate"] == asks
        opened = {"authorization": "Bearer sesame-open"}
        assert [client.get(path, headers=opened).status_code for path in paths] == [
            200,
            200,
            200,
            200,
            404,
            200,
            200,
            404,
        ]
        assert client.post("/reload").status_code == 401
    for token in ("short", "with a space", "ünïcödé-token", "two-lines\n", "a-zero-\0"):
        with pytest.raises(ValueError, match="at least 8 ASCII characters"):
            Settings(token=token)
    assert "sesame" not in repr(Settings(token="sesame-open"))


def test_the_scheme_of_a_token_in_any_case(bundle: Path) -> None:
    front, _ = make_app(Live(bundle), Settings(token="sesame-open", watch=0, explorer=False))
    with TestClient(front) as client:
        for sent, status in (("bearer sesame-open", 200), ("BEARER sesame-open", 200), ("basic sesame-open", 401)):
            assert client.get("/", headers={"authorization": sent}).status_code == status


def status_with(client: Client, method: str, path: str, **headers: str) -> int:
    return client.request(method, path, headers={n.replace("_", "-"): v for n, v in headers.items()}).status_code


def test_pages_of_other_sites_may_not_ask(bundle: Path) -> None:
    hosts = ("localhost", "127.0.0.1", "[::1]")
    front, _ = make_app(Live(bundle), Settings(hosts=hosts, watch=0, explorer=False))
    with TestClient(front, base_url="http://127.0.0.1:8000") as client:
        for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:80", "[::1]:8000", "[::1]"):
            assert status_with(client, "GET", "/", host=host) == 200
        for host in ("evil.example", "evil.example:8000", "localhost.evil.example", "[::2]:8000", "127.0.0.1.evil", ""):
            assert status_with(client, "GET", "/recommend/3", host=host) == 403
            assert status_with(client, "GET", "/health/ready", host=host) == 200
        for origin in (
            "http://evil.example",
            "null",
            "http://127.0.0.1:3000",
            "http://localhost:8000",
            "http://127.0.0.1:8000.evil.example",
        ):
            assert status_with(client, "POST", "/reload", origin=origin) == 403
        assert status_with(client, "POST", "/reload", origin="http://127.0.0.1:8000") == 200
        assert status_with(client, "POST", "/reload", sec_fetch_site="cross-site") == 403
        assert status_with(client, "POST", "/reload", sec_fetch_site="cross-site", sec_fetch_mode="navigate") == 403
        assert status_with(client, "GET", "/", sec_fetch_site="cross-site", sec_fetch_mode="no-cors") == 403
        assert status_with(client, "GET", "/", sec_fetch_site="cross-site", sec_fetch_mode="navigate") == 200
        assert status_with(client, "GET", "/", sec_fetch_site="same-origin") == 200


def test_a_token_is_enough_wherever_it_comes_from(bundle: Path) -> None:
    front, _ = make_app(Live(bundle), Settings(token="sesame-open", hosts=("localhost",), watch=0, explorer=False))
    with TestClient(front) as client:
        opened = {"authorization": "Bearer sesame-open", "host": "proxy", "origin": "https://elsewhere"}
        assert status_with(client, "GET", "/", **opened) == 200


def basic(credentials: bytes) -> dict[str, str]:
    return {"authorization": f"Basic {base64.b64encode(credentials).decode()}"}


def test_a_browser_sends_the_token_as_a_password(bundle: Path) -> None:
    front, _ = make_app(Live(bundle), Settings(token="sesame:open", watch=0))
    with TestClient(front) as client:
        for path in ("/explore", "/explore/item/i3", "/explore/search.json?q=a", "/schema", "/schema/openapi.json"):
            refused = client.get(path)
            assert (refused.status_code, refused.json()["hint"]) == (
                401,
                "Give any name, and the token as the password.",
            )
            assert refused.headers["www-authenticate"].startswith("Basic ")
            for name in (b"", b"me", "jürgen".encode(), b"\xff"):
                assert client.get(path, headers=basic(name + b":sesame:open")).status_code == 200
        assert client.get("/recommend/3", headers=basic(b"me:sesame:open")).status_code == 200
        assert client.post("/reload", headers=basic(b"me:sesame:open")).status_code == 200
        right = basic(b"me:sesame:open")["authorization"]
        for sent in (
            basic(b"me:sesame:ope")["authorization"],
            basic(b"me:sesame:open2")["authorization"],
            basic(b"me:")["authorization"],
            basic("me:sesame:öpen".encode())["authorization"],
            basic(b"sesame:open")["authorization"],  # open is the password here
            basic(b"sesame")["authorization"],
            right.replace("=", ""),
            right + "!",
            right[:9] + "*" + right[10:],
            "Basic ",
            "Basic",
            "Basic sesame:open",
            "Basic \xfc\xff",
            right.replace("Basic", "Bearer"),
        ):
            headers = {b"authorization": sent.encode("latin-1")}
            assert client.get("/explore", headers=headers).status_code == 401, sent  # type: ignore[arg-type]


def test_a_browser_that_knows_the_password_is_not_made_to_ask_by_other_sites(bundle: Path) -> None:
    """It sends what it knows with every request to this server, whatever page begins it."""
    front, _ = make_app(Live(bundle), Settings(token="sesame-open", watch=0))
    known = {**basic(b"me:sesame-open"), "host": "films.example"}
    with TestClient(front) as client:
        assert status_with(client, "POST", "/reload", **known, origin="https://films.example") == 200
        for origin in ("https://evil.example", "null", "https://films.example.evil"):
            assert status_with(client, "POST", "/reload", **known, origin=origin) == 403
        assert status_with(client, "POST", "/reload", **known, sec_fetch_site="cross-site") == 403
        assert status_with(client, "GET", "/explore", **known, sec_fetch_site="cross-site") == 403
        followed = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}
        assert status_with(client, "GET", "/explore", **known, **followed) == 200
        wrong = {**known, **basic(b"me:guess")}
        assert status_with(client, "POST", "/reload", **wrong, origin="https://evil.example") == 401


def test_the_command_knows_the_names_of_this_machine(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Settings] = []
    monkeypatch.delenv("TWOTOWER_TOKEN", raising=False)
    monkeypatch.setattr(server, "serve", lambda live, settings, **_: ran.append(settings))
    for arguments in ([], ["--host", "0.0.0.0"], ["--host", "0.0.0.0", "--allow-host", "films.example"]):
        assert CliRunner().invoke(app, ["serve", str(bundle), *arguments]).exit_code == 0
    assert ran[0].hosts is not None
    assert set(ran[0].hosts) == {"localhost", "127.0.0.1", "[::1]"}
    assert ran[1].hosts is None
    assert ran[2].hosts is not None
    assert "films.example" in ran[2].hosts
