"""A small published category, on disk."""

from pathlib import Path

import pytest

from tests.data.amazon_reviews_2023 import made


@pytest.fixture(scope="session")
def rows():
    return made.users_rows(users=120, items=40)


@pytest.fixture(scope="session")
def published(tmp_path_factory, rows) -> Path:
    """A host's root folder: rating_only and metadata, packed."""
    return made.publish(tmp_path_factory.mktemp("host"), rows, made.metadata(40))
