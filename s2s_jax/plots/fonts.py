"""Characters of any script: the fonts of this machine that have them, and what stands for those that none has."""


def fonts_for(text: str) -> tuple[list[str], set[str]]:
    """Fonts of this machine that have the characters of a text between them, as few as are needed, and those they have."""
    from matplotlib import font_manager

    fonts, known = ["DejaVu Sans"], set()  # comes with matplotlib
    entries = sorted(font_manager.fontManager.ttflist, key=lambda entry: (entry.name != fonts[0], entry.name))
    for entry in entries:
        missing = set(text) - known
        if not missing:
            break
        if entry.name.startswith("Last Resort"):  # has a box for everything
            continue
        try:
            has = missing & set(map(chr, font_manager.get_font(entry.fname).get_charmap()))
        except (OSError, RuntimeError):  # a font that cannot be read
            continue
        if has:
            known |= has
            fonts += [entry.name] * (entry.name not in fonts)
    return fonts, known


def literal(text: str, known: set[str]) -> str:
    """A character that no font has by its number, and no dollar sign that would begin a formula."""
    return "".join(character if character in known else f"U+{ord(character):04X}" for character in text).replace("$", r"\$")


def boxed(text: str, known: set[str]) -> str:
    """A small box for each character that no font has, where its number would reach over its neighbours."""
    return literal("".join(character if character in known else "\u25ab" for character in text), known | {"\u25ab"})
