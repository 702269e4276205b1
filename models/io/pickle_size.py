"""Limits on pickles, checked before they are read: a few bytes of one can take any amount of memory or time.

Three kinds of attack stay possible within the names that PyTorch's restricted reader allows. A pickle can refer to one
value many times, so that values nested in each other double their size at each level, and calls copy them. A name such
as ``bytearray`` can allocate any size. Keys of dictionaries and sets can be chosen to have one hash, so that inserting
n of them takes n^2 steps. The check follows the operations of a pickle with an abstract stack, which holds the size and
kind of each value instead of the value.
"""

import enum
import io
import pickletools

# A tensor takes about 90 bytes and 32 operations; the largest published checkpoint has 4,800 tensors.
MAX_BYTES = 2**23
MAX_OPERATIONS = 50_000  # plus OPERATIONS_PER_ENTRY for each entry of the archive
OPERATIONS_PER_ENTRY = 50
MAX_OPERATIONS_OLD_FORMAT = 250_000
MAX_GLOBALS = 1000  # names of functions and types; a pickler writes each name once
MAX_COPIED = 2**22  # values and characters in the arguments of all calls together
PICKLES_OLD_FORMAT = 5  # pickles at the start of a file of the format before PyTorch 1.6

# Number of values that an operation takes off the stack; None: all values above the last mark.
TAKES = {
    **{"APPEND": 1, "APPENDS": None, "SETITEM": 2, "SETITEMS": None, "BUILD": 1, "REDUCE": 2, "NEWOBJ": 2},
    **{"TUPLE": None, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "BINPERSID": 1},
}
# Operations that copy these values, and those that add them to the value below instead of pushing a result.
CALLS = ("REDUCE", "NEWOBJ", "BUILD", "BINPERSID")
ADDS = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD")

# Values that are safe as keys: they hash fast, and no more than a few have the same hash. Long integers and complex
# numbers can be chosen to have one hash, and a tuple of tuples can take any time to hash.
KEY_OPERATIONS = ("BINUNICODE", "SHORT_BINSTRING", "BININT", "BININT1", "BININT2", "NONE", "NEWTRUE", "NEWFALSE")
NOT_PLAIN = "its pickle holds more than the tensors and plain values of a checkpoint"
MAX_KEY_BYTES = 8  # of an integer
HASHING_TYPES = ("OrderedDict", "Counter", "set")  # types that hash the items of their argument
KNOWN_MODULES = ("torch", "collections", "__builtin__", "builtins")  # their objects store a state as attributes


class _Kind(enum.Enum):
    """Kind of a value, as far as it decides whether hashing the value is safe."""

    KEY = enum.auto()  # text, a short integer, a truth value or None
    KEYS = enum.auto()  # list or tuple of keys
    DICT = enum.auto()
    ARGUMENT = enum.auto()  # tuple of one KEYS or DICT
    IDENTITY = enum.auto()  # tuple of keys and names, which identifies a storage
    HASHING = enum.auto()  # name of one of HASHING_TYPES
    NAME = enum.auto()  # name of another function or type in KNOWN_MODULES
    FOREIGN = enum.auto()  # name in another module
    MADE = enum.auto()  # result of a call
    OTHER = enum.auto()


class _Value:
    """A value on the abstract stack.

    Attributes:
        kind: kind of the value.
        size: number of values and characters in it, counted as often as they are reached.
        shared: whether the pickle refers to it again through the memo.
    """

    __slots__ = ("kind", "shared", "size")

    def __init__(self, kind: _Kind, size: int = 1) -> None:
        self.kind, self.size, self.shared = kind, size, False


class _LimitError(ValueError):
    """A pickle exceeds a limit."""


def check_pickle(data: bytes, entries: int) -> None:
    """Raise ValueError, naming the limit, if a pickle exceeds one.

    Args:
        data: bytes of the pickle, or its first ``MAX_BYTES`` + 1 bytes if it is longer.
        entries: number of entries of the archive that it is in; each tensor has one.
    """
    _check(data, 1, MAX_OPERATIONS + OPERATIONS_PER_ENTRY * entries)


def check_pickles_of_old_file(data: bytes) -> None:
    """Raise ValueError if the pickles at the start of a file from before PyTorch 1.6 exceed a limit, or are incomplete.

    The reader would allocate whatever length an incomplete pickle claims.

    Args:
        data: bytes of the file, or its first ``MAX_BYTES`` + 1 bytes if it is longer.
    """
    _check(data, PICKLES_OLD_FORMAT, MAX_OPERATIONS_OLD_FORMAT)


def _check(data: bytes, number: int, most_operations: int) -> None:
    """Check ``number`` pickles that follow each other in ``data``.

    A pickle that is malformed in another way is left to the reader, which stops at the same operation.
    """
    stream, operations, copied, names = io.BytesIO(data), 0, 0, 0
    try:
        for _ in range(number):
            stack: list[_Value] = []
            marks: list[int] = []
            memo: dict[object, _Value] = {}
            for operation, argument, _ in pickletools.genops(stream):
                operations += 1
                if operations > most_operations:
                    raise _LimitError(f"its pickle has more than {most_operations:,} operations")
                name = operation.name
                if name in TAKES:
                    takes = TAKES[name]
                    first = marks.pop() if takes is None else len(stack) - takes
                    taken = stack[first:]
                    size = sum([item.size for item in taken])
                    if size > MAX_BYTES:
                        raise _LimitError("its pickle repeats the same values too often")
                    del stack[first:]
                    if name in CALLS:
                        copied += size
                    if copied >= MAX_COPIED:
                        raise _LimitError("its pickle copies the same values too often")
                    if name in ADDS:
                        _add(name, stack[-1], taken)
                    else:
                        stack.append(_make(name, taken, size))
                elif name in ("BINPUT", "LONG_BINPUT"):
                    memo[argument] = stack[-1]
                elif name in ("BINGET", "LONG_BINGET"):
                    memo[argument].shared = True
                    stack.append(memo[argument])
                elif name == "MARK":
                    marks.append(len(stack))
                elif name in KEY_OPERATIONS:
                    stack.append(_Value(_Kind.KEY, 1 + len(argument) if isinstance(argument, str) else 1))
                elif name == "LONG1":
                    short = -(2 ** (8 * MAX_KEY_BYTES - 1)) <= argument < 2 ** (8 * MAX_KEY_BYTES - 1)
                    stack.append(_Value(_Kind.KEY if short else _Kind.OTHER))
                elif name == "GLOBAL":
                    names += 1
                    module, _, function = str(argument).partition(" ")
                    if names > MAX_GLOBALS or function == "bytearray":  # it allocates any size
                        raise _LimitError(NOT_PLAIN)
                    known = module.split(".")[0] in KNOWN_MODULES
                    kind = _Kind.HASHING if function in HASHING_TYPES else _Kind.NAME if known else _Kind.FOREIGN
                    stack.append(_Value(kind))
                elif name in ("EMPTY_LIST", "EMPTY_TUPLE", "EMPTY_SET"):
                    stack.append(_Value(_Kind.KEYS))
                elif name == "EMPTY_DICT":
                    stack.append(_Value(_Kind.DICT))
                elif name == "BINFLOAT":
                    stack.append(_Value(_Kind.OTHER))
                elif name not in ("PROTO", "STOP"):
                    raise _LimitError("its pickle is damaged, or not of protocol 2")
    except _LimitError:
        raise
    except (ValueError, IndexError, KeyError) as error:
        if len(data) > MAX_BYTES:
            raise ValueError(f"its pickle has more than {MAX_BYTES:,} bytes") from error
        if number > 1:
            raise ValueError("it is damaged, or no checkpoint") from error


def _add(operation: str, below: _Value, taken: list[_Value]) -> None:
    """Add the values ``taken`` off the stack to the list, dictionary or object ``below`` them."""
    kinds = {item.kind for item in taken}
    made = below.kind is _Kind.MADE
    if below.shared and (made or operation != "BUILD"):  # the sizes of others already include it
        raise _LimitError("its pickle changes a value that it has put elsewhere")
    if operation in ("SETITEM", "SETITEMS") and any(item.kind is not _Kind.KEY for item in taken[::2]):
        raise _LimitError("its pickle has other keys than text and short integers")
    if _Kind.HASHING in kinds or (operation == "BUILD" and made and not kinds <= {_Kind.DICT, _Kind.KEYS}):
        raise _LimitError(NOT_PLAIN)
    if below.kind is _Kind.KEYS and kinds != {_Kind.KEY}:
        below.kind = _Kind.OTHER
    below.size += sum([item.size for item in taken])


def _make(operation: str, taken: list[_Value], size: int) -> _Value:
    """Return the abstract result of an operation that makes a tuple of values or calls a function with them."""
    kinds = {item.kind for item in taken}
    if operation in ("REDUCE", "NEWOBJ"):
        function, arguments = taken
        if function.kind is _Kind.HASHING and arguments.kind not in (_Kind.KEYS, _Kind.ARGUMENT):
            raise _LimitError("its pickle has other keys than text and short integers")
        return _Value(_Kind.OTHER if function.kind is _Kind.FOREIGN else _Kind.MADE, 1 + size)
    if operation == "BINPERSID":
        if taken[0].kind not in (_Kind.KEY, _Kind.KEYS, _Kind.IDENTITY):
            raise _LimitError(NOT_PLAIN)
        return _Value(_Kind.MADE)
    if _Kind.HASHING in kinds:  # another function could call it
        raise _LimitError(NOT_PLAIN)
    if kinds <= {_Kind.KEY}:
        kind = _Kind.KEYS
    elif kinds <= {_Kind.KEY, _Kind.NAME}:
        kind = _Kind.IDENTITY
    else:
        kind = _Kind.ARGUMENT if len(taken) == 1 and kinds <= {_Kind.KEYS, _Kind.DICT} else _Kind.OTHER
    return _Value(kind, 1 + size)
