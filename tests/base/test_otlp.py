"""What an OTLP endpoint is called, and what of it a server is told."""

import pytest

from rayprep.base.errors import BadRequest
from rayprep.base.otlp import GRPC, HTTP, parse_endpoint
from rayprep.model.spec import resolve
from rayprep.sglang.command import ServerSettings, server_command


@pytest.mark.parametrize(
    ("text", "protocol", "address"),
    [
        ("127.0.0.1:4317", GRPC, "127.0.0.1:4317"),
        ("[::1]:4317", GRPC, "[::1]:4317"),
        ("http://collector:4318", HTTP, "http://collector:4318/v1/traces"),
        ("http://collector:4318/", HTTP, "http://collector:4318/v1/traces"),
        ("https://collector/otlp/v1/traces", HTTP, "https://collector/otlp/v1/traces"),
    ],
)
def test_the_form_says_the_protocol(text: str, protocol: str, address: str) -> None:
    endpoint = parse_endpoint(text)
    assert (endpoint.protocol, endpoint.address) == (protocol, address)
    assert endpoint.server_env == {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": protocol}


@pytest.mark.parametrize(
    "text", ["", "4317", "collector", "collector:0", "collector:99999", "ftp://a:1", "http://:4318"]
)
def test_anything_else_is_a_bad_request_that_names_the_forms(text: str) -> None:
    with pytest.raises(BadRequest, match="HOST:PORT for gRPC"):
        resolve({"model": "tiny-dense", "otlp_endpoint": text})


def words(*server_args: str) -> list[str]:
    tracing = parse_endpoint("127.0.0.1:4317")
    settings = ServerSettings(model_path="/m", tracing=tracing, server_args=server_args)
    return list(server_command(settings, 30999, 0.96, "python"))


def test_a_server_gets_the_flags_of_this_sglang() -> None:
    assert words()[-3:] == ["--enable-trace", "--otlp-traces-endpoint", "127.0.0.1:4317"]


def test_what_the_user_gives_the_server_wins() -> None:
    asked = words("--otlp-traces-endpoint", "other:4317", "--enable-trace")
    assert asked.count("--enable-trace") == asked.count("--otlp-traces-endpoint") == 1
    assert "127.0.0.1:4317" not in asked
