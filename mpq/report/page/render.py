"""Facts -> HTML: templates, one style, one script, the numbers as JSON."""

import json
import re
import shlex
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

from mpq._support.json_object import known
from mpq._support.names import for_people, shortened, visible
from mpq.report.amount import amount
from mpq.report.page.comparison import Comparison
from mpq.report.page.estimators import EstimatorFacts
from mpq.report.page.facts import Facts
from mpq.report.page.groups import Wholes, groups_at_answer
from mpq.report.page.numbers import fixed, heat_of, plain, share
from mpq.report.page.profiled import ProfileFacts
from mpq.report.page.recipes import RecipeFacts
from mpq.report.page.script_data import comparing_data, script_data
from mpq.report.page.summary import Summary
from mpq.report.page.vega import vega_script

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

_LONGEST: Final = 120
"""Characters of a layer's name that are shown; its title has more."""


def page_of(facts: Facts) -> bytes:
    """The page of one result."""
    groups = groups_at_answer(facts)
    wholes = Wholes.of(facts, groups)
    data = script_data(facts)
    return _rendered("page", facts=facts, data=data, groups=groups, wholes=wholes)


def comparing_page(comparison: Comparison) -> bytes:
    """The page of several results, beside each other."""
    return _rendered("runs", comparison=comparison, data=comparing_data(comparison))


def estimators_page(facts: EstimatorFacts) -> bytes:
    """The page of compared estimators."""
    return _rendered("estimators", facts=facts, data=facts.script_data())


def recipes_page(facts: RecipeFacts) -> bytes:
    """The page of compared recipes."""
    return _rendered("recipes", facts=facts, data=facts.script_data())


def profile_page(facts: ProfileFacts) -> bytes:
    """The page of a measured network."""
    return _rendered("profile", facts=facts, data=facts.script_data())


def summary_of(facts: Summary) -> str:
    """A part of a notebook's page: no script, no style, and every name is text."""
    return _environment().get_template("summary.html").render(facts=facts)


def _rendered(kind: str, **values: Any) -> bytes:
    template = _environment().get_template(f"{kind}.html")
    style, *scripts = map(_static, ("page.css", "common.js", f"{kind}.js"))
    text = template.render(style=style, script="\n".join(scripts), vega=vega_script(), **values)
    # A name may hold half of a surrogate pair, which no encoding has.
    return text.encode("utf-8", errors="replace")


def _static(name: str) -> str:
    return (files("mpq.report.page") / "static" / name).read_text(encoding="utf-8")


@cache
def _environment() -> "Environment":
    # Imported when called: who searches without a page needs none.
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("mpq.report.page", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "amount": _amount,
        "fixed": fixed,
        "plain": plain,
        "share": share,
        "name": _name,
        "told": for_people,
        "embedded": embedded,
        "heat": heat_of,
        "shell": shlex.join,
        "words": lambda text: text.replace("_", " "),
    }
    return made


def _amount(value: float | None, unit: str) -> str:
    return "cannot run" if value is None else amount(value, unit)


def _name(text: str) -> "Markup":
    """A name that a network brings, harmless, short, and with places to begin a new line at."""
    from markupsafe import Markup, escape

    shown = escape(shortened(visible(text), _LONGEST))
    # Not within a number, such as 0.5x:w8a8.
    return Markup(re.sub(r"(?<!\d)\.|\.(?!\d)", ".<wbr>", str(shown)))


def embedded(data: Any) -> "Markup":
    """JSON that is safe inside a script element, whatever texts it holds.

    >>> print(embedded({"name": "</script><!--&"}))
    {"name":"\\u003c/script\\u003e\\u003c!--\\u0026"}
    """
    # ASCII only, so that U+2028 and U+2029, which end a line of JavaScript, are escapes, too.
    text = json.dumps(known(data), separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    from markupsafe import Markup

    return Markup(text)
