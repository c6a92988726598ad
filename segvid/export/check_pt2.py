"""`.pt2` files of strangers: read as data, cleared of all that torch.export would evaluate as text, and written anew.

torch.export.load unpickles weights, constants and sample inputs, evaluates the expressions of symbolic sizes, compiles
guards and names of values as Python, and resolves operators by name from the whole of torch. Weights and constants are
taken as raw bytes only, sample inputs, guards and notes of the exporter are left out, and every name, operator and
expression that stays must be one that a model needs.
"""

import json
import keyword
import re
from typing import Any

from segvid.export.archive import Refused, written
from segvid.export.operators import ATEN, NUMBERS

WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
PAYLOAD = re.compile(r"data/weights/weight_[0-9]+|data/constants/tensor_[0-9]+")
KEPT = ("archive_format", "archive_version", "byteorder", ".data/version")
LEFT_OUT = ("data/sample_inputs/model.pt", ".data/serialization_id", "extra/segvid.json")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
DOTTED = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
# How sympy writes an expression: names of its classes, numbers, and symbols in quotes.
EXPRESSION = re.compile(
    r"(?:\s|[(),=+-]|[0-9]{1,19}|'[a-z]{1,3}[0-9]+'|(?:Symbol|Integer|Rational|Add|Mul|Pow|Max|Min|FloorDiv|CeilDiv"
    r"|CleanDiv|Mod|PythonMod|Equality|Unequality|StrictLessThan|LessThan|StrictGreaterThan|GreaterThan|And|Or|Not"
    r"|Identity|ToFloat|IntTrueDiv|FloatTrueDiv|TruncToInt|FloorToInt|CeilToInt|RoundToInt|PowByNatural|positive"
    r"|nonnegative|integer|true|false|True|False)\b)+"
)
ARGUMENTS = """
as_bool as_bools as_device as_expr as_float as_floats as_graph as_int as_ints as_layout as_memory_format as_name as_none
as_optional_tensor as_optional_tensors as_scalar_type as_string as_sym_bool as_sym_float as_sym_int as_sym_ints
as_tensor as_tensors
"""
# Of a graph inside the graph, which is checked likewise.
WRAPS = tuple(f"torch.ops.higher_order.wrap_with_{mode}" for mode in ("autocast", "set_grad_enabled"))
ONE_INPUT = (
    '[1, {"type": "builtins.tuple", "context": "null", "children_spec": [{"type": "builtins.tuple", "context": "null", '
    '"children_spec": [{"type": null, "context": null, "children_spec": []}]}, {"type": "builtins.dict", "context": '
    '"[]", "children_spec": []}]}]'
)
ONE_OUTPUT = '[1, {"type": null, "context": null, "children_spec": []}]'


def checked(files: dict[str, bytes]) -> bytes:
    """The archive with what was checked only, as bytes to be loaded.

    Args:
        files: of the archive.

    Raises:
        Refused: it holds, or would run, what a segmentation model has no need of.
    """
    model = "models/model.json"
    for name in files:
        if name not in (model, WEIGHTS, CONSTANTS, *KEPT, *LEFT_OUT) and not PAYLOAD.fullmatch(name):
            raise Refused(f"a .pt2 of tensors has no member {name!r}")
    for name in (model, WEIGHTS, CONSTANTS):
        if name not in files:
            raise Refused(f"it has no {name}")
    kept = {name: data for name, data in files.items() if name not in LEFT_OUT}
    for name, prefix in ((WEIGHTS, "data/weights/"), (CONSTANTS, "data/constants/")):
        kept[name] = as_bytes(payloads(as_json(files[name], name), prefix, files))
    kept[model] = as_bytes(program(as_json(files[model], model)))
    kept["data/sample_inputs/model.pt"] = b""
    return written(kept)


def as_json(data: bytes, name: str) -> Any:
    """The content of a member.

    Raises:
        Refused: it is no JSON.
    """
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Refused(f"its {name} is damaged ({type(error).__name__})") from error


def as_bytes(content: Any) -> bytes:
    """The content as a member."""
    return json.dumps(content).encode()


def payloads(content: Any, folder: str, files: dict[str, bytes]) -> Any:
    """Which member holds which tensor, as raw bytes.

    Raises:
        Refused: one is pickled, an object, or not there.
    """
    if not isinstance(content, dict) or set(content) != {"config"} or not isinstance(content["config"], dict):
        raise Refused("the list of its tensors is damaged")
    for name, meta in content["config"].items():
        path = meta.get("path_name") if isinstance(meta, dict) else None
        if not isinstance(path, str) or not PAYLOAD.fullmatch(folder + path) or folder + path not in files:
            raise Refused("a tensor in it is not among its members, or is an object")
        if meta.get("use_pickle") is not False or not isinstance(meta.get("tensor_meta"), dict):
            raise Refused(f"its tensor {name[:80]!r} is pickled, which could run anything")
    return inert(content)


def program(content: Any) -> Any:
    """The program, without what torch would evaluate as text, and with one image as its input.

    Raises:
        Refused: something else in it is not inert.
    """
    try:
        module = content["graph_module"]
        entry = module["module_call_graph"][0]
        signature = entry["signature"]
        if (signature["in_spec"], signature["out_spec"]) != (ONE_INPUT, ONE_OUTPUT):
            raise Refused("it takes or gives something else than a tensor")
        signature = {"inputs": [], "outputs": [], "in_spec": None, "out_spec": None, "forward_arg_names": ["image"]}
        module = {
            "graph": module["graph"],
            "signature": module["signature"],
            "module_call_graph": [{"fqn": "root", "signature": signature}],
        }
        names = ("opset_version", "range_constraints", "schema_version")
        kept = {name: content[name] for name in names} | {"graph_module": module, "verifiers": ["TRAINING"]}
    except (KeyError, TypeError, IndexError) as error:
        raise Refused(f"its model.json is damaged ({type(error).__name__})") from error
    try:
        kept = inert(kept)
    except RecursionError as error:
        raise Refused("its model.json is nested too deeply") from error
    kept["graph_module"]["module_call_graph"][0] = {
        "fqn": "",
        "signature": signature | {"in_spec": ONE_INPUT, "out_spec": ONE_OUTPUT},
    }
    return kept


def inert(value: Any, key: str = "") -> Any:
    """The value, if every text in it is a name, a known operator or an expression of sizes; notes become empty.

    Args:
        value: of JSON.
        key: under which it stands.

    Raises:
        Refused: one is not.
    """
    if isinstance(value, dict):
        for name in value:
            if not word(name) or (name.startswith("as_") and name not in ARGUMENTS.split()):
                raise Refused(f"it holds {name[:80]!r}")
        return {name: {} if name == "metadata" else inert(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [inert(item, key) for item in value]
    if key == "target":
        operator(value)
    elif key == "expr_str":
        if not isinstance(value, str) or len(value) > 10_000 or not EXPRESSION.fullmatch(value):
            raise Refused(f"a size in it is no expression of sizes: {str(value)[:80]!r}")
    elif key == "as_float" and value in ("Infinity", "-Infinity", "NaN"):
        return value
    elif isinstance(value, str) and value and key != "as_string":
        plain_name = NAME.fullmatch(value) and not keyword.iskeyword(value)
        if not word(value) or (key in ("name", "as_name") and not plain_name):
            raise Refused(f"it holds a strange name: {value[:80]!r}")
    return value


def word(text: str) -> bool:
    """Whether it is a name with dots, none of whose parts is one of Python's own."""
    parts = text.split(".")
    return bool(DOTTED.fullmatch(text)) and not any(part.startswith("__") and part.endswith("__") for part in parts)


def operator(name: Any) -> None:
    """Raises Refused if the operator is not known."""
    parts = name.split(".") if isinstance(name, str) else []
    aten = len(parts) == 5 and parts[:3] == ["torch", "ops", "aten"] and parts[3] in ATEN and NAME.fullmatch(parts[4])
    if not (aten and not parts[4].startswith("_")) and name not in (*WRAPS, *NUMBERS):
        raise Refused(f"it uses {str(name)[:80]}")
