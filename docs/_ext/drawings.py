"""The file of a mermaid drawing: its name follows the text, so a changed drawing cannot show an old picture."""

import hashlib


def drawing_name(text: str) -> str:
    return f"drawing-{hashlib.sha256(text.strip().encode()).hexdigest()[:8]}.svg"
