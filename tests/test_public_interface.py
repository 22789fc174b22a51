"""The public interface is the one listed in public_interface.txt.

After an intended change, write the list again and review the difference:

    python tests/test_public_interface.py > tests/public_interface.txt
"""

import abc
import dataclasses
import difflib
import inspect
import typing
from pathlib import Path

import kmsdata
from kmsdata.lazy_property import lazy_property

LIST = Path(__file__).with_name("public_interface.txt")


class AsWritten:
    """An annotation whose repr is its source text, without quotes."""

    def __init__(self, annotation):
        if isinstance(annotation, typing.ForwardRef):  # of a NamedTuple
            annotation = annotation.__forward_arg__
        self.text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)

    def __repr__(self):
        return self.text


def annotated(annotation):
    return annotation if annotation is inspect.Signature.empty else AsWritten(annotation)


def signature(function):
    found = inspect.signature(function)
    parameters = [p.replace(annotation=annotated(p.annotation)) for p in found.parameters.values()]
    return str(found.replace(parameters=parameters, return_annotation=annotated(found.return_annotation)))


def is_ours(cls):
    return cls.__module__.partition(".")[0] == "kmsdata"


def bases(cls):
    """Yield the nearest public base classes. A private one is replaced by its bases."""
    for base in cls.__bases__:
        if is_ours(base) and base.__name__ not in kmsdata.__all__:
            yield from bases(base)
        elif base not in (object, abc.ABC):
            yield base.__name__


def members(cls):
    """Return the public members that kmsdata defines. Those of pandas and Arrow depend on their versions."""
    found = {}
    if dataclasses.is_dataclass(cls):
        found |= dict.fromkeys(field.name for field in dataclasses.fields(cls))
    for base in reversed(cls.__mro__):
        if is_ours(base):
            found |= vars(base)
    return {name: found[name] for name in sorted(found) if not name.startswith("_")}


def described(name, thing):
    """Yield the lines for a function, a class, or a member of a class."""
    if isinstance(thing, property | lazy_property):
        getter = thing.fget if isinstance(thing, property) else thing._compute
        yield f"{name}: {annotated(inspect.signature(getter).return_annotation)}"
    elif isinstance(thing, classmethod | staticmethod):
        yield f"{name}{signature(thing.__func__)}  # {type(thing).__name__}"
    elif inspect.isfunction(thing):
        yield f"{name}{signature(thing)}"
    else:
        yield name


def interface():
    for name in kmsdata.__all__:
        thing = getattr(kmsdata, name)
        if not inspect.isclass(thing):
            yield from described(name, thing)
            continue
        yield f"class {name}({', '.join(bases(thing))})".removesuffix("()")
        if not getattr(thing, "_is_protocol", False):  # a protocol has no instances
            yield f"{name}.__init__{signature(thing)}"
        for member, value in members(thing).items():
            yield from described(f"{name}.{member}", value)


def test_the_interface_is_as_listed():
    listed = LIST.read_text().splitlines()
    difference = list(difflib.unified_diff(listed, list(interface()), LIST.name, "kmsdata", n=0, lineterm=""))
    assert not difference, "\n".join(difference)


def test_all_is_sorted_and_has_no_duplicates():
    assert kmsdata.__all__ == sorted(set(kmsdata.__all__))


def test_dir_lists_public_names_only():
    special = {name for name in dir(kmsdata) if name.startswith("__") and name.endswith("__")}
    assert set(dir(kmsdata)) - special == set(kmsdata.__all__)


def test_public_classes_name_kmsdata_as_their_module():
    classes = [thing for name in kmsdata.__all__ if inspect.isclass(thing := getattr(kmsdata, name))]
    assert {f"{cls.__module__}.{cls.__name__}" for cls in classes if cls.__module__ != "kmsdata"} == set()


if __name__ == "__main__":
    print("\n".join(interface()))
