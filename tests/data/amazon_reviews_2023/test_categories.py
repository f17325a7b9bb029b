import pytest

from llmsrec_jax.data.amazon_reviews_2023 import categories


@pytest.mark.parametrize("name", ["Electronics", "electronics", " ELECTRONICS "])
def test_any_case(name):
    assert categories.resolve(name) == "Electronics"


def test_spaces_and_ampersands():
    assert categories.resolve("Movies & TV") == "Movies_and_TV"
    assert all(categories.resolve(name) == name for name in categories.SIZES)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("Elektronics", "Electronics"), ("Movies", "Movies_and_TV"), ("vinyl", "CDs_and_Vinyl")],
)
def test_did_you_mean(name, meant):
    with pytest.raises(ValueError, match=f"did you mean {meant}"):
        categories.resolve(name)


def test_something_else_entirely():
    with pytest.raises(ValueError, match="is no category of Amazon Reviews 2023: use one of All_B"):
        categories.resolve("?")


def test_all_published_categories():
    assert len(categories.SIZES) == 34  # 33 and Unknown
    assert set(categories.WITHOUT_5CORE) < set(categories.SIZES)
    assert set(categories.TABLE_10) < set(categories.SIZES) - set(categories.WITHOUT_5CORE)
    assert categories.core("Electronics") == "5core" and categories.core("Appliances") == "0core"


def test_sizes_of_the_files_that_are_known():
    meta = categories.about_bytes("Electronics", metadata=True, packed=True)
    assert meta == pytest.approx(1.24e9, rel=0.05)
    plain = categories.about_bytes("Electronics", metadata=False, packed=False)
    assert plain == pytest.approx(857e6, rel=0.05)
