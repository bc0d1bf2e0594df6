"""Slugs: labels that are always safe as a file name."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayprep.base.errors import BadRequest
from rayprep.model.slug import model_slug


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("Qwen/Qwen2.5-7B", "qwen2.5-7b"),
        ("/models/Qwen2.5-7B", "qwen2.5-7b"),
        ("/models/Qwen2.5-7B/", "qwen2.5-7b"),
        ("/models/Qwen2.5-7B/config.json", "qwen2.5-7b"),
        ("/hub/models--Qwen--Qwen2.5-7B/snapshots/0a1b/config.json", "qwen2.5-7b"),
        ("/hub/models--org--a--b/snapshots/0a1b", "a--b"),
        ("deepseek-ai/DeepSeek-V3", "deepseek-v3"),
        ("./tiny dense (copy)", "tiny-dense-copy"),
        ("../models/Übung", "bung"),
        ("..hidden..", "hidden"),
    ],
)
def test_names_become_labels(name: str, slug: str) -> None:
    assert model_slug(name) == slug


@pytest.mark.parametrize("name", ["", "/", ".", "..", "../..", "config.json", "---", "模型", "/models/_/"])
def test_a_name_that_leaves_nothing_is_a_bad_request(name: str) -> None:
    with pytest.raises(BadRequest, match="no name for the model"):
        model_slug(name)


@given(st.text(st.characters(), max_size=300))
def test_a_slug_is_always_one_safe_file_name(name: str) -> None:
    try:
        slug = model_slug(name)
    except BadRequest:
        return
    assert re.fullmatch(r"[a-z0-9]([a-z0-9._-]{0,98}[a-z0-9])?", slug)


def test_a_slug_is_cut_to_a_safe_end() -> None:
    assert model_slug("a" * 99 + "-" + "b" * 50) == "a" * 99
