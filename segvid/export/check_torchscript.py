"""TorchScript files of strangers: what they hold is checked before it is loaded, what they would run before it runs.

The archive has code, and two pickles that torch reads in C++. The reader runs `__setstate__` of classes, makes objects
of classes that torch has built in, and believes what a pickle says of the sizes of tensors; so these are checked first.
What it loads are graphs of operators, which must be known to be harmless.
"""

import io
import math
import pickle
import re
from typing import Any

from segvid.export.archive import Refused, written
from segvid.export.operators import ATEN, PRIM

MEMBER = re.compile(
    r"data\.pkl|constants\.pkl|version|byteorder|\.data/(version|serialization_id)|(data|constants)/[0-9]+"
    r"|code/__torch__(/[A-Za-z0-9_]+)*\.py(\.debug_pkl)?|extra/segvid\.json"
)
NEVER = re.compile(rb"__setstate__|__getstate__|torch\s*\.\s*classes|\bforward_(pre_)?hooks__|__forward_")
BYTES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8, "IntStorage": 4,
    "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1,
}  # fmt: skip
LISTS = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag")


def checked(files: dict[str, bytes]) -> bytes:
    """The archive with what was checked only, as bytes to be loaded.

    Args:
        files: of the archive.

    Raises:
        Refused: it holds, or would run, what a segmentation model has no need of.
    """
    for name, data in files.items():
        if not MEMBER.fullmatch(name):
            raise Refused(f"a TorchScript file has no member {name!r}")
        if name.startswith("code/") and NEVER.search(data):
            raise Refused("its code would run while it is loaded")
    # Positions in the source are of no use without it, and another pickle.
    files = {name: data for name, data in files.items() if not name.endswith((".debug_pkl", "/segvid.json"))}
    for name in ("data", "constants"):
        if f"{name}.pkl" not in files:
            raise Refused(f"it has no {name}.pkl")
        check_pickle(files[f"{name}.pkl"], name, files)
    content = written(files)
    check_operators(content)
    return content


class Inert:
    """Stands for every object of a pickle, and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "Inert":
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass

    def __setitem__(self, _: Any, __: Any) -> None:
        pass


class Storage:
    """Stands for the type of a storage.

    Args:
        name: of the type.
    """

    def __init__(self, name: str) -> None:
        self.bytes = BYTES[name]


class Reader(pickle.Unpickler):
    """Reads a pickle of TorchScript without making anything of it, and compares its tensors with the archive.

    Args:
        data: the pickle.
        folder: of its storages.
        files: of the archive.
    """

    def __init__(self, data: bytes, folder: str, files: dict[str, bytes]) -> None:
        super().__init__(io.BytesIO(data))
        self.folder = folder
        self.files = files

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a class or function; the names that torch's reader takes as its own are listed."""
        if (module + ".").startswith("__torch__.") and not f"{module}.{name}".startswith("__torch__.torch.classes"):
            return Inert
        if module == "torch" and name in BYTES:
            return Storage(name)
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return check_tensor
        if (module, name) == ("collections", "OrderedDict") or (module == "torch.jit._pickle" and name in LISTS):
            return Inert
        raise Refused(f"its data names {module}.{name}"[:200])

    def persistent_load(self, pid: Any) -> int:
        """The number of elements of a storage."""
        kind, storage, key, _, length = pid
        data = self.files.get(f"{self.folder}/{key}")
        if kind != "storage" or not isinstance(storage, Storage) or type(length) is not int or data is None:
            raise Refused("its data names a storage that it has not")
        if length < 0 or length * storage.bytes != len(data):
            raise Refused("a storage in it is not as long as it says")
        return length


def check_tensor(length: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Inert:
    """A tensor lies inside its storage, which torch's reader believes.

    Raises:
        Refused: it does not.
    """
    numbers = (length, offset, *size, *stride)
    if any(type(number) is not int or number < 0 for number in numbers) or len(size) != len(stride):
        raise Refused("a tensor in it has no possible size")
    last = offset + sum((count - 1) * step for count, step in zip(size, stride, strict=True))
    if math.prod(size) > 0 and last >= length:
        raise Refused("a tensor in it is larger than its storage")
    return Inert()


def check_pickle(data: bytes, folder: str, files: dict[str, bytes]) -> None:
    """See `Reader`.

    Raises:
        Refused: it is no pickle of a TorchScript module of tensors.
    """
    try:
        Reader(data, folder, files).load()
    except Refused:
        raise
    except Exception as error:  # a damaged pickle raises anything
        raise Refused(f"its {folder}.pkl is damaged ({type(error).__name__})") from error


def check_operators(content: bytes) -> None:
    """Every operator of every function is known, and every module is the one that the code takes it for.

    Raises:
        Refused: one is not.
    """
    import torch

    unit: Any = torch._C.CompilationUnit()
    load: Any = torch._C.import_ir_module_from_buffer  # what torch.jit.load does; it runs nothing of the graphs
    unknown: set[str] = set()
    looked_at = 0
    try:
        module = load(unit, content, torch.device("cpu"), {}, False)
        forward = module._get_method("forward").graph.copy()
        torch._C._jit_pass_inline(forward)
        while looked_at < len(functions := unit.get_functions()):  # a graph is made when it is asked for, with others
            for function in functions[looked_at:]:
                collect(function.graph, function.name in ("__enter__", "__exit__"), unknown)
            looked_at = len(functions)
    except Exception as error:
        raise Refused(f"its code is damaged ({type(error).__name__})") from error
    collect_strangers(forward, {next(forward.inputs()).debugName(): module}, unknown)
    if unknown:
        raise Refused(f"it uses {', '.join(sorted(unknown)[:5])}")


def collect(block: Any, alone: bool, unknown: set[str]) -> None:
    """Adds the operators of a block that are not known.

    Args:
        block: a graph, or a part of it.
        alone: it may run where it is not inlined: then it may hold no objects, see `collect_strangers`.
        unknown: what was found.
    """
    for node in block.nodes():
        space, _, name = node.kind().partition("::")
        objects = any(is_object(output) for output in node.outputs())
        if name not in {"aten": ATEN, "prim": PRIM}.get(space, ()):
            unknown.add(node.kind())
        elif any(node.kindOf(attribute) in ("g", "gs") for attribute in node.attributeNames()):
            unknown.add(f"{node.kind()} of a graph")
        elif objects and (alone or name == "unchecked_cast"):
            unknown.add(f"{node.kind()} of an object")
        for inner in node.blocks():
            collect(inner, alone, unknown)


def collect_strangers(block: Any, modules: dict[str, Any], unknown: set[str]) -> None:
    """Adds where a module is another one than the code declares: it would be read beyond its end.

    Args:
        block: the inlined graph of `forward`, or a part of it.
        modules: what its values hold, by their names.
        unknown: what was found.
    """
    for node in block.nodes():
        for output in node.outputs():
            if is_object(output) and node.kind() != "prim::CreateObject":
                parent = modules.get(next(node.inputs()).debugName()) if node.kind() == "prim::GetAttr" else None
                held: Any = parent.getattr(node.s("name")) if parent is not None else None
                if not hasattr(held, "_type") or held._type() != output.type():
                    unknown.add(f"{node.kind()} of a strange object")
                else:
                    modules[output.debugName()] = held
        for inner in node.blocks():
            collect_strangers(inner, modules, unknown)


def is_object(value: Any) -> bool:
    """Whether it is of a class of the file, or holds such; the name of a function is none."""
    return value.type().kind() != "FunctionType" and "__torch__" in value.type().annotation_str
