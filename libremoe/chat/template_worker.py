"""Renders a model's own chat template, in a process of its own with little memory; template.py starts and kills it.

A template is code from a model's files. Jinja2's sandbox stops attacks on Python but not on time and memory
(`{% for i in range(10**9) %}`), hence this process. One JSON object a line in, one out; imports nothing of ours.
"""

import json
import resource
import sys
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY_BYTES = 512 << 20
MAX_TEXT = 16 << 20  # of a rendered conversation


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def environment() -> ImmutableSandboxedEnvironment:
    """What Hugging Face's apply_chat_template offers to templates."""
    jinja = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    jinja.filters["tojson"] = _to_json
    jinja.globals["raise_exception"] = _refuse
    jinja.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    return jinja


def answer(jinja: ImmutableSandboxedEnvironment, line: str) -> dict[str, str]:
    try:
        request = json.loads(line)
        text = jinja.from_string(request["template"]).render(**request["values"])
    except MemoryError:
        return {"error": "needs too much memory"}
    except (
        TemplateError,
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        RecursionError,
    ) as error:
        return {"error": f"{type(error).__name__}: {error}"[:500]}
    return {"text": text} if len(text) <= MAX_TEXT else {"error": f"makes more than {MAX_TEXT} characters"}


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    jinja = environment()
    for line in sys.stdin:
        print(json.dumps(answer(jinja, line)), flush=True)


if __name__ == "__main__":
    main()
