"""The generated code is that of the .proto files: every message, field, number, type, method, no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from headwater.proto import wire
from headwater.proto.v1 import control_pb2, messages_pb2

FOLDER = Path(wire.__file__).parent / "v1"
MODULES = {"messages": messages_pb2, "control": control_pb2}
TYPES = {
    1: "double",
    3: "int64",
    4: "uint64",
    8: "bool",
    9: "string",
    12: "bytes",
    13: "uint32",
    18: "sint64",
}


def test_every_file_is_known():
    assert {p.stem for p in FOLDER.glob("*.proto")} == set(MODULES)
    assert {p.name for p in FOLDER.glob("*_pb2*")} == {
        f"{n}_pb2.{end}" for n in MODULES for end in ("py", "pyi")
    }


@pytest.mark.parametrize("name", MODULES)
def test_messages_are_those_of_the_file(name):
    written = {}
    for message, body in re.findall(r"^message (\w+) \{(\}|.*?^\})", source(name), re.M | re.S):
        fields = re.findall(r"(repeated |optional )?(map<\w+, \w+>|\w+) (\w+) = (\d+);", body)
        written[message] = {(f, int(n), t, label.strip()) for label, t, f, n in fields}
        assert written[message] or body == "}", message
    assert written == {m.name: set(map(field, m.fields)) for m in messages(MODULES[name])}


@pytest.mark.parametrize("name", MODULES)
def test_methods_are_those_of_the_file(name):
    pattern = r"rpc (\w+)\((stream )?(\w+)\) returns \((stream )?(\w+)\);"
    written = {(m, bool(s), q, bool(t), a) for m, s, q, t, a in re.findall(pattern, source(name))}
    generated = {
        (m.name, m.client_streaming, m.input_type.name, m.server_streaming, m.output_type.name)
        for service in MODULES[name].DESCRIPTOR.services_by_name.values()
        for m in service.methods
    }
    assert written == generated
    assert bool(written) == (name == "control")


@pytest.mark.parametrize("name", MODULES)
def test_type_stubs_are_of_the_same_generation(name):
    stubs = (FOLDER / f"{name}_pb2.pyi").read_text()
    for message in messages(MODULES[name]):
        slots = ", ".join(f'"{f.name}"' for f in message.fields)
        slots = f"({slots},)" if len(message.fields) == 1 else f"({slots})"
        assert f"class {message.name}(_message.Message):\n    __slots__ = {slots}\n" in stubs


def source(name):
    text = (FOLDER / f"{name}.proto").read_text()
    return re.sub(r"//.*", "", text)


def messages(module):
    return module.DESCRIPTOR.message_types_by_name.values()


def field(f):
    if f.message_type and f.message_type.GetOptions().map_entry:
        key, value = f.message_type.fields
        return (f.name, f.number, f"map<{kind(key)}, {kind(value)}>", "")
    optional = f.containing_oneof is not None and f.containing_oneof.name == f"_{f.name}"
    return (f.name, f.number, kind(f), "repeated" if f.is_repeated else "optional" if optional else "")


def kind(f):
    return f.message_type.name if f.message_type else TYPES[f.type]
