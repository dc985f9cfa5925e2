"""The client's own README, as the installed package carries it."""

from importlib import metadata


def blocks(heading: str) -> list[str]:
    """The Python blocks below a heading, up to the next one of the same or a higher level, in order."""
    text = metadata.metadata("wrenn").get_payload() or metadata.metadata("wrenn")["Description"]
    level, found, fence = None, [], None
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            if fence is not None and level is not None and fence[0] == "```python":
                found.append("\n".join(fence[1:]) + "\n")
            fence = [line.strip()] if fence is None else None
        elif fence is not None:
            fence.append(line)
        elif line.startswith("#"):
            marks, _, title = line.partition(" ")
            if level is None and title.strip() == heading:
                level = len(marks)
            elif level is not None and len(marks) <= level:
                break
    if level is None:
        raise LookupError(f"the README has no heading {heading!r}")
    return found


def run(block: str, **names):
    """Runs a block as printed, with some names already bound; returns what it bound."""
    scope = dict(names)
    exec(compile(block, "README", "exec"), scope)
    return scope
