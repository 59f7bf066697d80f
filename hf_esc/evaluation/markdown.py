"""Any text as it is, in Markdown: a model card quotes labels and names, and these can hold anything."""

import re


def escaped(text: str) -> str:
    """A text in one line that Markdown and HTML show as it is."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]()#+!|~$:-])", r"\\\1", text)
