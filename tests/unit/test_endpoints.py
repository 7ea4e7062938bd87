"""The port of metrics and probes: bound where it should be, over TLS, and with a password."""

from __future__ import annotations

import base64
import contextlib
import http.client
import socket
import ssl
import urllib.error
import urllib.request
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pytest
import trustme
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from streamer.endpoints.access import Access
from streamer.endpoints.serving import Endpoints
from streamer.health import Health
from streamer.metrics import CATALOGUE, Metrics
from streamer.settings import SettingsError, load
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def serving(access: Access | None = None, host: str = "127.0.0.1") -> Iterator[tuple[Endpoints, Health]]:
    metrics = Metrics()
    health = Health(metrics)
    endpoints = Endpoints(health, metrics, host=host, port=0, access=access)
    try:
        yield endpoints, health
    finally:
        endpoints.close()


def get(url: str, *, user: str | None = None, trust: ssl.SSLContext | None = None) -> tuple[int, str]:
    request = urllib.request.Request(url)  # noqa: S310 - our own loopback URL
    if user is not None:
        request.add_header("Authorization", "Basic " + base64.b64encode(user.encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=30, context=trust) as response:  # noqa: S310
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


class Authority:
    """Issues the certificate of localhost, as often as it is asked."""

    def __init__(self, folder: Path) -> None:
        self.cert, self.key = folder / "tls.crt", folder / "tls.key"
        self._authority = trustme.CA()
        self.trust = ssl.create_default_context()
        self._authority.configure_trust(self.trust)

    def issue(self) -> bytes:
        issued = self._authority.issue_cert("localhost")
        self.cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        self.key.write_bytes(issued.private_key_pem.bytes())
        return ssl.PEM_cert_to_DER_cert(issued.cert_chain_pems[0].bytes().decode())


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    made = Authority(tmp_path)
    made.issue()
    return made


def test_with_a_password_metrics_ask_for_it_and_probes_tell_names_only() -> None:
    with serving(Access(b"prometheus:secr:et")) as (endpoints, health):
        url = f"http://127.0.0.1:{endpoints.port}"
        assert get(f"{url}/metrics")[0] == 401
        for wrong in ("prometheus:secre", "prometheus:secr:et2", "other:secr:et", ":", "\u00e9"):
            assert get(f"{url}/metrics", user=wrong)[0] == 401
        status, text = get(f"{url}/metrics", user="prometheus:secr:et")
        assert status == 200
        assert "streamer_ready 0.0" in text
        health.not_ready("broker", "no broker of kafka-1:9092 answers")
        assert get(f"{url}/readyz") == (503, "start\nbroker\n")
        assert "kafka-1:9092" in get(f"{url}/readyz", user="prometheus:secr:et")[1]
        assert get(f"{url}/livez") == (200, "ok\n")


@pytest.mark.parametrize("header", ["", "Basic", "Basic ????", "Bearer cHJvbWV0aGV1czpzZWNyZXQ=", "Basic \xff"])
def test_odd_authorizations_are_refused(header: str) -> None:
    assert not Access(b"prometheus:secret").admits(header)
    assert Access().admits(header)


def test_over_tls_only_who_speaks_it_is_answered(authority: Authority) -> None:
    with serving(Access(None, authority.cert, authority.key)) as (endpoints, _):
        url = f"https://localhost:{endpoints.port}"
        assert get(f"{url}/livez", trust=authority.trust) == (200, "ok\n")
        assert "streamer_ready" in get(f"{url}/metrics", trust=authority.trust)[1]
        with pytest.raises(urllib.error.URLError, match="certificate verify failed"):
            get(f"{url}/livez", trust=ssl.create_default_context())
        with socket.create_connection(("127.0.0.1", endpoints.port), timeout=30) as plain:
            plain.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):
                assert b"ok" not in plain.recv(1000)
        # One that is silent before its handshake holds up nobody.
        with socket.create_connection(("127.0.0.1", endpoints.port)):
            assert get(f"{url}/livez", trust=authority.trust) == (200, "ok\n")


def test_a_renewed_certificate_is_used_without_a_restart(authority: Authority) -> None:
    with serving(Access(None, authority.cert, authority.key)) as (endpoints, _):
        first = presented(endpoints.port, authority)
        renewed = authority.issue()
        assert first != renewed
        wait_until(lambda: presented(endpoints.port, authority) == renewed, "the renewed certificate")
        authority.cert.write_text("half a file")
        assert presented(endpoints.port, authority) == renewed


def presented(port: int, authority: Authority) -> bytes | None:
    with (
        socket.create_connection(("127.0.0.1", port), timeout=30) as plain,
        authority.trust.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        return secure.getpeercert(binary_form=True)


def test_endpoints_listen_only_on_the_configured_address() -> None:
    with serving(host="127.0.0.2") as (endpoints, _):
        assert get(f"http://127.0.0.2:{endpoints.port}/livez")[0] == 200
        with pytest.raises(OSError, match="refused"):
            get(f"http://127.0.0.1:{endpoints.port}/livez")


def test_the_settings_and_a_file_give_the_password(tmp_path: Path, authority: Authority) -> None:
    secret = tmp_path / "password"
    secret.write_text("secret\n")
    by_file = Access.of(load({"metrics_user": "prometheus", "metrics_password_file": str(secret)}))
    assert by_file.credentials == b"prometheus:secret"
    given = load({"metrics_user": "prometheus", "metrics_password": "secret"})
    assert Access.of(given) == by_file
    assert "secret" not in repr(given)
    tls = Access.of(load({"metrics_cert": str(authority.cert), "metrics_key": str(authority.key)}))
    assert (tls.credentials, tls.cert, tls.key) == (None, authority.cert, authority.key)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"metrics_user": "u"}, "metrics_password"),
        ({"metrics_password": "p"}, "metrics_user"),
        ({"metrics_user": "a:b", "metrics_password": "p"}, "metrics_user"),
        ({"metrics_user": "u", "metrics_password_file": "/nowhere"}, "metrics_password_file"),
        ({"metrics_cert": "/nowhere"}, "metrics_key"),
        ({"metrics_key": "/nowhere"}, "metrics_cert"),
    ],
)
def test_conflicting_options_are_reported_by_name(given: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError, match=f"^{named} "):
        Access.of(load(given))


def test_an_unusable_certificate_is_reported(tmp_path: Path) -> None:
    (tmp_path / "tls.crt").write_text("no certificate")
    with pytest.raises(SettingsError, match=r"^metrics_cert "), serving(Access(None, tmp_path / "tls.crt", tmp_path)):
        pass


@pytest.mark.parametrize("path", ["/metrics", "/livez", "/readyz", "/nothing"])
def test_head_is_answered_as_get_without_the_body(path: str) -> None:
    with serving() as (endpoints, _):
        answers = {}
        for method in ("GET", "HEAD"):
            connection = http.client.HTTPConnection("127.0.0.1", endpoints.port, timeout=30)
            with closing(connection):
                connection.request(method, path)
                response = connection.getresponse()
                answers[method] = response.status, response.getheader("Content-Type"), len(response.read())
                length = int(response.getheader("Content-Length") or 0)
        assert answers["HEAD"] == (*answers["GET"][:2], 0)
        # What is counted between the two may take a digit more.
        assert abs(length - answers["GET"][2]) < 100


@pytest.mark.parametrize("path", ["/metrics", "/livez", "/readyz"])
def test_an_answer_is_dated_once_by_the_clock_of_the_service(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    date = "Thu, 01 Jan 1970 00:00:00 GMT"
    monkeypatch.setattr("streamer.endpoints.serving.formatdate", lambda **_: date)
    with serving() as (endpoints, _), closing(http.client.HTTPConnection("127.0.0.1", endpoints.port)) as connection:
        connection.request("GET", path)
        assert connection.getresponse().headers.get_all("Date") == [date]


def test_head_asks_for_the_password_too() -> None:
    with serving(Access(credentials=b"a:b")) as (endpoints, _):
        connection = http.client.HTTPConnection("127.0.0.1", endpoints.port, timeout=30)
        with closing(connection):
            connection.request("HEAD", "/metrics")
            assert connection.getresponse().status == 401


def test_openmetrics_has_units_and_the_traces_of_slow_events() -> None:
    metrics = Metrics()
    metrics.latency.labels("query.results").observe(0.2, {"trace_id": "0af7651916cd43dd8448eb211c80319c"})
    endpoints = Endpoints(Health(metrics), metrics, host="127.0.0.1", port=0)
    try:
        request = urllib.request.Request(
            f"http://127.0.0.1:{endpoints.port}/metrics",
            headers={"Accept": "application/openmetrics-text; version=1.0.0"},
        )
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
            text = response.read().decode()
    finally:
        endpoints.close()
    families = {family.name: family for family in text_string_to_metric_families(text)}  # type: ignore[no-untyped-call]
    for metric in CATALOGUE.values():
        name = metric.name.removesuffix("_total")
        assert families[name].unit == (metric.unit if name.endswith(f"_{metric.unit}") else "")
    assert families["streamer_event_latency_seconds"].unit == "seconds"
    samples = families["streamer_event_latency_seconds"].samples
    [traced] = [sample.exemplar for sample in samples if sample.exemplar]
    assert traced.labels == {"trace_id": "0af7651916cd43dd8448eb211c80319c"}
