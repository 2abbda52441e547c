"""Chat templates: Jinja from a checkpoint, so a stranger's code. It runs in jinja2's immutable
sandbox, in a thread that is stopped after a time, with limits on what it can build."""
import ctypes
import datetime
import json
import pathlib
import threading

SECONDS = 2.0
_MOST_TEXT = 1 << 24  # characters of one product or of the result


def find_template(folder, config):
    """The template of a checkpoint folder: text, {name: text}, or None."""
    file = pathlib.Path(folder) / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        return {entry["name"]: entry["template"] for entry in template}
    return template


class _TimeUp(BaseException):
    """Raised inside a template's thread."""


def _environment():
    import jinja2
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        """{% generation %} marks the assistant's words, which nothing here asks for."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return jinja2.nodes.Scope(body, lineno=line)

    class Environment(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(["*", "**"])

        def call_binop(self, context, operator, left, right):
            """No text or number that would fill the memory."""
            sized = [x for x in (left, right) if isinstance(x, (str, bytes, list, tuple))]
            if operator == "*" and sized:
                number = right if sized[0] is left else left
                if isinstance(number, int) and len(sized[0]) * number > _MOST_TEXT:
                    raise jinja2.exceptions.SecurityError("a product that is too large")
            if operator == "**" and not (abs(left) < 2**64 and abs(right) < 64):
                raise jinja2.exceptions.SecurityError("a power that is too large")
            return super().call_binop(context, operator, left, right)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                          sort_keys=sort_keys)

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    environment = Environment(trim_blocks=True, lstrip_blocks=True,
                              extensions=[Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


def render(template, values):
    """The text of a template. ValueError: it is faulty, refuses the messages or takes too long."""
    try:
        import jinja2
    except ImportError as error:
        raise ImportError("chat templates need the package jinja2") from error
    outcome, seconds = {}, SECONDS

    def work():
        try:
            parts, size = [], 0
            for part in _environment().from_string(template).generate(**values):
                size += len(part)
                if size > _MOST_TEXT:
                    raise jinja2.exceptions.SecurityError("a result that is too large")
                parts.append(part)
            outcome["text"] = "".join(parts)
        except _TimeUp:
            outcome["error"] = f"it took longer than {seconds:g} seconds"
        except Exception as error:  # whatever a stranger's code comes to
            outcome["error"] = str(error) or type(error).__name__

    thread = threading.Thread(target=work, name="tare chat template", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident),
                                                   ctypes.py_object(_TimeUp))
        thread.join(seconds)
    if "text" not in outcome:
        raise ValueError("chat template: " +
                         outcome.get("error", f"it took longer than {seconds:g} seconds"))
    return outcome["text"]
