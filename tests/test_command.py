"""What the programs show of a configuration."""

from llmsrec_jax import command, config


def test_render_shows_every_setting():
    text = command.render(config.Config())
    for name, value, _ in config.flatten(config.Config()):
        shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        assert f"{name.rpartition('.')[2]}={shown}" in text or f"='{shown}'" in text
    assert max(map(len, text.splitlines())) <= 100


def test_render_shows_legal_words():
    text = command.render(config.Config(), legal=True)
    assert "ties=random|file|item" in text and "ties=random " in command.render(config.Config())
    assert "ks=1,5,10,20" in text and "time_unit=ms|s|us|iso" in text
