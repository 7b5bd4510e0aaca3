"""A directive of Sphinx that shows public names with their docstrings, which are Markdown with Google's sections."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import vi_kit

LISTS = ("Args", "Attributes", "Raises")
LINES = ("Returns", "Yields", "Unbiased when", "Needs", "Cost", "Variance", "Use for")
BLOCKS = ("Example", "Examples", "References")
SECTION = re.compile(rf"^({'|'.join((*LISTS, *LINES, *BLOCKS))}):(.*)$")
ITEM = re.compile(r"^([*\w., ]+?): (.*)$", re.DOTALL)


def sections(doc: str) -> Iterator[tuple[str, str]]:
    """The parts of a docstring: the text before all sections under an empty name, then each by its own."""
    name, lines = "", []
    for line in [*inspect.cleandoc(doc).split("\n"), None]:
        match = SECTION.match(line) if line is not None else None
        ends = line is None or match or (name and line and not line.startswith(" "))
        if ends:
            yield name, "\n".join(lines)
            name, lines = (match[1], [match[2].strip()]) if match else ("", [line or ""])
        else:
            lines.append(line)


def items(text: str) -> list[str]:
    """The items of a section: each starts at the smallest indent, and goes on below it."""
    body = inspect.cleandoc("\n" + text.strip("\n")) if text.startswith("\n") else text
    return [" ".join(i.split()) for i in re.split(r"\n(?=\S)", body.strip()) if i.strip()]


def example(text: str) -> str:
    """Prompts and their outputs as code, and what is said between them as text."""
    blocks = re.split(r"\n[ \t]*\n", inspect.cleandoc(text))
    return "\n\n".join(f"```pycon\n{b}\n```" if b.startswith(">>>") else b for b in blocks)


def markdown(doc: str) -> str:
    """A docstring as Markdown."""
    parts = []
    for name, text in sections(doc):
        if not text.strip():
            continue
        if not name:
            parts.append(text)
        elif name in LINES:
            parts.append(f"**{name}:** {' '.join(text.split())}")
        elif name in ("Example", "Examples"):
            parts.append(example(text))
        elif name == "References":
            parts.append("**References**\n\n" + "\n".join(f"- {i}" for i in items(text)))
        else:
            rows = [ITEM.sub(r"`\1`: \2", i) for i in items(text)]
            parts.append(f"**{name}**\n\n" + "\n".join(f"- {row}" for row in rows))
    return "\n\n".join(parts)


def found(path: str) -> Any:
    """What a name such as `vi_kit.pyro.Loss` stands for."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def everything(module: str) -> list[str]:
    """The names of a module of vi_kit, but for those that `vi_kit` has too."""
    return [n for n in importlib.import_module(module).__all__ if n not in vi_kit.__all__]


def signature(value: Any) -> str:
    """As it is called, with annotations left to the docstring's words."""
    try:
        sig = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    bare = [
        p.replace(annotation=inspect.Parameter.empty)
        for p in sig.parameters.values()
        if p.name != "self"
    ]
    shown = sig.replace(parameters=bare, return_annotation=inspect.Signature.empty)
    return re.sub(r"<(?:factory|(?:built-in )?function ([\w.]+))[^>]*>", r"\1", str(shown))


def members(value: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties that a class of vi_kit has itself or inherits from another of vi_kit."""
    for name in dir(value):
        member = inspect.getattr_static(value, name)
        member = getattr(member, "__func__", member)
        wrapped = member.fget if isinstance(member, property) else member
        is_ours = (getattr(wrapped, "__module__", None) or "").startswith("vi_kit")
        if not name.startswith("_") and is_ours and callable(wrapped) and inspect.getdoc(wrapped):
            yield name, member


def entry(path: str, shown: str | None) -> str:
    """The Markdown of one name, with the members `shown` of a class: by name, or all (empty)."""
    value = found(path)
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        return f"::::{{py:data}} {path}\n`{value!r}`\n::::\n"
    doc = markdown(inspect.getdoc(value) or "")
    if not inspect.isclass(value):
        return f"::::{{py:function}} {path}{signature(value)}\n{doc}\n::::\n"
    kind = "exception" if issubclass(value, Exception) else "class"
    parts = [doc]
    there = dict(members(value)) if shown is not None else {}
    for name in (shown or "").split() or there:
        member = there[name]
        text = markdown(inspect.getdoc(member) or "")
        if isinstance(member, property):
            parts.append(f":::{{py:property}} {name}\n{text}\n:::")
        else:
            parts.append(f":::{{py:method}} {name}{signature(member)}\n{text}\n:::")
    head = "" if kind == "exception" else signature(value)
    body = "\n\n".join(parts)
    return f"::::{{py:{kind}}} {path}{head}\n{body}\n::::\n"


class PublicNames(SphinxDirective):
    """Names below a module, one a line, or all; `:members:` shows methods of classes too, all or those named."""

    required_arguments = 1
    option_spec: ClassVar[dict[str, Callable[[str], Any]]] = {"members": lambda names: names or ""}
    has_content = True

    def run(self) -> list[nodes.Node]:
        module, names = self.arguments[0], [line.strip() for line in self.content if line.strip()]
        names = names or everything(module)
        texts = [entry(f"{module}.{name}", self.options.get("members")) for name in names]
        return self.parse_text_to_nodes("\n".join(texts))


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("public-names", PublicNames)
    return {"version": vi_kit.__version__, "parallel_read_safe": True}
