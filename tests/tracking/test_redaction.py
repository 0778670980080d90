import pytest
import yaml

from tracking.redaction import REDACTED, is_secret_name, redact, redact_text, redact_uri, redact_yaml

CANARY = "c4n4ry-Zq9"


@pytest.mark.parametrize(
    "values",
    [
        {"password": CANARY},
        {"data": {"db": {"PassWord": CANARY}}},
        {"hf_token": CANARY},
        {"apiKey": CANARY},
        {"AWS_SECRET_ACCESS_KEY": CANARY},
        {"callbacks": [{"init_args": {"client_secret": CANARY}}]},
        {"credentials": {"user": "ann", "file": [CANARY]}},
        {"uri": f"postgresql+psycopg://ann:{CANARY}@host:5432/db"},
        {"uri": f"http://{CANARY}@host"},
        {"uri": f"mysql://ann:p@ss@{CANARY}@host/db"},
        {"uri": f"https://host/path?user=a&access_token={CANARY}&x=1"},
        {"command": f"run --db-password {CANARY} --epochs 3"},
        {"note": f'answer was {{"secret": "{CANARY}"}}'},
        {"header": f"Authorization: Bearer {CANARY}.abcdef"},
    ],
)
def test_no_canary_survives(values: dict) -> None:
    text = yaml.safe_dump(values)
    assert CANARY in text
    assert CANARY not in str(redact(values))
    assert CANARY not in redact_yaml(text)
    assert yaml.safe_load(redact_yaml(text)) == redact(values)


@pytest.mark.parametrize(
    "key",
    [
        "AKIAIOSFODNN7EXAMPLE",
        "ghp_" + "a1B2" * 9,
        "hf_" + "aB3dE" * 7,
        "sk-proj-" + "x9" * 12,
        "xoxb-1234567890-abcdef",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----",
    ],
)
def test_known_shapes_are_found_under_any_name(key: str) -> None:
    assert redact({"comment": f"use {key} here"}) == {"comment": f"use {REDACTED} here"}


def test_everything_else_stays_as_it_is() -> None:
    values = {
        "lr": 1e-4,
        "shape": [32, 40, 32],
        "num_tokens": 4,
        "token_dim": 64,
        "class_token": True,
        "password": None,
        "secret": "",
        "key": "age",
        "low_pass": 0.1,
        "monitor": "val/mae",
        "table": "cohorts/ixi.tsv",
        "uri": "sqlite:////data/outputs/mlflow.db",
        "optimizer": {"class_path": "torch.optim.AdamW"},
    }
    assert redact(values) == values
    assert redact_uri("http://127.0.0.1:5000") == "http://127.0.0.1:5000"


def test_numbers_under_secret_names_go() -> None:
    assert redact({"password": 1234, "pin_token": 5}) == {"password": REDACTED, "pin_token": REDACTED}


def test_yaml_keeps_comments_order_and_types() -> None:
    text = "# why\nb: 2  # two\na:\n  password: my secret phrase  # of the lab\n  size: [1, 2]\n"
    expected = text.replace("my secret phrase", REDACTED)
    assert redact_yaml(text) == expected


def test_yaml_written_anew_where_lines_do_not_reach() -> None:
    text = "steps: 3\npassword: |\n  first line\n  second line\n"
    assert yaml.safe_load(redact_yaml(text)) == {"steps": 3, "password": REDACTED}


def test_text_that_is_no_yaml() -> None:
    assert redact_yaml("{password: abc") == f"{{password: {REDACTED}"
    assert redact_yaml("- token: abc") == f"- token: {REDACTED}"


def test_redacting_twice_changes_nothing() -> None:
    text = redact_text("password=abc token: xyz http://a:b@c")
    assert redact_text(text) == text


@pytest.mark.timeout(10)
@pytest.mark.parametrize("unit", ["x", "a.", "x ", "://x", "a:", "'", '"', "eyJ", "- ", "token: ", "://a@b "])
def test_long_texts_take_no_long_time(unit: str) -> None:
    redact_text(unit * 50_000)


@pytest.mark.parametrize(
    "name", ["DB_PASS", "private_key", "privateKey", "ssh-key", "HFToken", "passwd", "my.secret.file"]
)
def test_secret_names(name: str) -> None:
    assert is_secret_name(name)
